//! What a load is made of: which key comes next, and what is put there. `rushkv-cli bench` makes its calls from it, and so
//! does the program that measures RushKV beside others (`benches/peers`).

use bytes::Bytes;

/// splitmix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014): fast, and the same in every run.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Seeds that follow each other give unrelated sequences: where one begins must be far from where the others do,
    /// since they all take the same steps.
    pub fn new(seed: u64) -> Dice {
        Dice(Dice(seed).roll())
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.roll()) * u128::from(bound)) >> 64) as u64
    }

    /// At least 0, and less than 1.
    fn fraction(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Keys below 10^9 are of one length, so that they sort by number, for scans.
pub fn key(prefix: &str, number: u64) -> String {
    format!("{prefix}{number:09}")
}

/// Keys of one batch, `count` of `keys`: far apart, and none twice as long as there are enough.
pub fn spread(first: u64, count: u64, keys: u64) -> impl Iterator<Item = u64> {
    /// A prime: steps of it meet every key before any again, but where the number of keys is a multiple of it.
    const STEP: u64 = 769;
    let step = if keys.is_multiple_of(STEP) { 1 } else { STEP };
    (0..count).map(move |n| (first + n * step) % keys)
}

/// Values of one size that don't compress, cut from random bytes without copying.
#[derive(Debug, Clone)]
pub struct Values {
    bytes: Bytes,
    size: usize,
}

const RANDOM_BYTES: usize = 1024 * 1024;

impl Values {
    pub fn new(size: usize) -> Values {
        let mut dice = Dice::new(0x5eed);
        let bytes = (0..(RANDOM_BYTES + size).div_ceil(8)).flat_map(|_| dice.roll().to_le_bytes()).collect();
        Values { bytes, size }
    }

    /// The same for the same number.
    pub fn pick(&self, number: u64) -> Bytes {
        let at = (number % RANDOM_BYTES as u64) as usize;
        self.bytes.slice(at..at + self.size)
    }
}

/// A zipfian distribution over ranks 0..n by inversion (Gray et al., "Quickly generating billion-record synthetic
/// databases", 1994), as YCSB has it; ranks are spread over the keys.
#[derive(Debug, Clone)]
pub struct Zipf {
    n: u64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

const SKEW: f64 = 0.99;

impl Zipf {
    /// Over `n` keys, at least one. Takes some nanoseconds for each.
    pub fn new(n: u64) -> Zipf {
        let zeta_of = |n: u64| (1..=n).map(|rank| (rank as f64).powf(-SKEW)).sum::<f64>();
        let zeta = zeta_of(n);
        let eta = (1.0 - (2.0 / n as f64).powf(1.0 - SKEW)) / (1.0 - zeta_of(2) / zeta);
        Zipf { n, alpha: 1.0 / (1.0 - SKEW), zeta, eta }
    }

    pub fn key(&self, dice: &mut Dice) -> u64 {
        let u = dice.fraction();
        let uz = u * self.zeta;
        let rank = if uz < 1.0 {
            0
        } else if uz < 1.0 + 0.5f64.powf(SKEW) {
            1
        } else {
            (self.n as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha)) as u64
        };
        mix(rank.min(self.n - 1)) % self.n
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn few_keys_are_drawn_most_of_the_time() {
        let (zipf, mut dice) = (Zipf::new(1000), Dice::new(7));
        let mut drawn = BTreeMap::<u64, u32>::new();
        for _ in 0..100_000 {
            *drawn.entry(zipf.key(&mut dice)).or_default() += 1;
        }
        let mut counts: Vec<u32> = drawn.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        // The sum of the first ten of 1/rank^0.99 over all thousand is 0.385; a few ranks share a key.
        let share = f64::from(counts[..10].iter().sum::<u32>()) / 100_000.0;
        assert!((0.37..0.46).contains(&share), "{share}");
        assert!(counts.len() > 500, "the others are drawn, too: {}", counts.len());
        for keys in 1..4 {
            let zipf = Zipf::new(keys);
            assert!((0..1000).all(|_| zipf.key(&mut dice) < keys), "{keys}");
        }
    }

    #[test]
    fn a_batch_names_no_key_twice() {
        for (first, keys) in [(99_990, 100_000), (5, 128), (1, 2 * 769)] {
            let numbers: BTreeSet<u64> = spread(first, 128, keys).collect();
            assert_eq!(numbers.len(), 128);
            assert!(numbers.iter().all(|number| *number < keys));
        }
    }

    #[test]
    fn values_are_of_their_size_and_keys_in_order() {
        let values = Values::new(100);
        assert_eq!(values.pick(u64::MAX).len(), 100);
        assert_eq!(values.pick(5), values.pick(5));
        assert!(Values::new(0).pick(1).is_empty());
        assert!(key("k", 9) < key("k", 10) && key("k", 10) < key("k", 999_999_999));
    }
}
