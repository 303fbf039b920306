//! Random numbers that a seed decides (SplitMix64).

use std::cell::Cell;
use std::time::Duration;

/// A stream of random numbers. Each part of the simulation has its own, so that one more draw in one part
/// shifts nothing in another.
#[derive(Debug)]
pub(super) struct Dice(Cell<u64>);

impl Dice {
    pub(super) fn new(seed: u64, stream: &str) -> Dice {
        let dice = Dice(Cell::new(seed));
        for byte in stream.bytes() {
            dice.0.set(dice.draw() ^ u64::from(byte));
        }
        dice
    }

    pub(super) fn draw(&self) -> u64 {
        self.0.set(self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15));
        let mut number = self.0.get();
        number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        number ^ (number >> 31)
    }

    /// Below `end`, which is not 0.
    pub(super) fn below(&self, end: u64) -> u64 {
        self.draw() % end
    }

    pub(super) fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub(super) fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    pub(super) fn ms(&self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }
}
