//! Which key comes next, and what is put there.

use bytes::Bytes;

/// splitmix64.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Seeds that follow each other give unrelated sequences.
    pub fn new(seed: u64) -> Dice {
        Dice(mix(seed))
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
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

pub fn key(n: u64) -> Bytes {
    // Of one length: they sort by number, for scans.
    format!("bench:{n:09}").into()
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

    pub fn any(&self, dice: &mut Dice) -> Bytes {
        let at = dice.below(RANDOM_BYTES as u64) as usize;
        self.bytes.slice(at..at + self.size)
    }
}

/// A zipfian distribution over ranks 0..n by inversion (Gray et al., "Quickly generating billion-record synthetic
/// databases", 1994), as YCSB has it; ranks are spread over the keys.
#[derive(Debug, Clone)]
pub struct Zipf {
    n: u64,
    skew: f64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

const SKEW: f64 = 0.99;

impl Zipf {
    pub fn new(n: u64) -> Zipf {
        let zeta_of = |n: u64| (1..=n).map(|rank| (rank as f64).powf(-SKEW)).sum::<f64>();
        let zeta = zeta_of(n);
        let eta = (1.0 - (2.0 / n as f64).powf(1.0 - SKEW)) / (1.0 - zeta_of(2) / zeta);
        Zipf { n, skew: SKEW, alpha: 1.0 / (1.0 - SKEW), zeta, eta }
    }

    pub fn key(&self, dice: &mut Dice) -> u64 {
        let u = dice.fraction();
        let uz = u * self.zeta;
        let rank = if uz < 1.0 {
            0
        } else if uz < 1.0 + 0.5f64.powf(self.skew) {
            1
        } else {
            (self.n as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha)) as u64
        };
        mix(rank.min(self.n - 1)) % self.n
    }
}
