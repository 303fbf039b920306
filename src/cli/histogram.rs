//! Latencies, counted in buckets that grow with them: memory does not, and any percentile, and any bound of what is shown,
//! is within 1.6 % of the truth.

use std::time::Duration;

/// Buckets per doubling.
const STEPS: usize = 64;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Microseconds up to 2^40: longer than any deadline.
const BUCKETS: usize = STEPS * (40 - STEP_BITS as usize + 1);

#[derive(Debug, Clone)]
pub(super) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: Duration,
}

impl Histogram {
    pub(super) fn new() -> Histogram {
        Histogram { buckets: vec![0; BUCKETS], count: 0, max: Duration::ZERO }
    }

    pub(super) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(micros)] += 1;
        self.count += 1;
        self.max = self.max.max(latency);
    }

    pub(super) fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn max(&self) -> Duration {
        self.max
    }

    /// From the fastest call to the slowest; bounds are 1, 2 and 5 times a power of ten, in microseconds.
    pub(super) fn bars(&self) -> Vec<Bar> {
        let mut bounds = (0..).flat_map(|power| [1, 2, 5].map(|step| step * 10u64.pow(power)));
        let mut bars: Vec<Bar> = Vec::new();
        let mut bound = 0;
        for (at, calls) in self.buckets.iter().enumerate().filter(|(_, calls)| **calls > 0) {
            // The bucket's middle: it is in whichever bar has more of it.
            let middle = upper(at) - width(at) / 2;
            while bound < middle {
                bound = bounds.next().unwrap_or(u64::MAX);
                if !bars.is_empty() || bound >= middle {
                    bars.push(Bar { up_to: Duration::from_micros(bound), calls: 0 });
                }
            }
            match bars.last_mut() {
                Some(bar) => bar.calls += calls,
                // No time at all.
                None => bars.push(Bar { up_to: Duration::ZERO, calls: *calls }),
            }
        }
        bars
    }

    /// The latency that the given share of calls (0 to 1) did not exceed.
    pub(super) fn percentile(&self, share: f64) -> Duration {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(upper(at)).min(self.max);
            }
        }
        self.max
    }
}

/// Calls that took no longer than `up_to`, and longer than the bar before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bar {
    pub(super) up_to: Duration,
    pub(super) calls: u64,
}

/// Below [`STEPS`], a bucket a microsecond; above, [`STEPS`] buckets per doubling.
fn bucket(micros: u64) -> usize {
    if micros < STEPS as u64 {
        return micros as usize;
    }
    let doubling = 63 - micros.leading_zeros() - STEP_BITS;
    let step = (micros >> doubling) as usize - STEPS;
    ((doubling as usize + 1) * STEPS + step).min(BUCKETS - 1)
}

/// The largest latency in a bucket.
fn upper(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let doubling = bucket / STEPS - 1;
    let step = bucket % STEPS + STEPS;
    ((step as u64 + 1) << doubling) - 1
}

/// How many microseconds share a bucket.
fn width(bucket: usize) -> u64 {
    if bucket < STEPS { 1 } else { 1 << (bucket / STEPS - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_join_without_gaps() {
        for at in 0..BUCKETS - 1 {
            assert_eq!(bucket(upper(at)), at);
            assert_eq!(bucket(upper(at) + 1), at + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_close() {
        let mut histogram = Histogram::new();
        for micros in 1..=100_000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (share, want) in [(0.5, 50_000.0), (0.99, 99_000.0), (0.999, 99_900.0)] {
            let got = histogram.percentile(share).as_micros() as f64;
            assert!((got / want - 1.0).abs() < 0.016, "{share}: {got}");
        }
        assert_eq!(histogram.percentile(1.0), Duration::from_micros(100_000));
        assert_eq!(Histogram::new().percentile(0.5), Duration::ZERO);
    }

    #[test]
    fn bars_hold_every_call() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.bars(), []);
        for micros in [30, 50, 51, 1500, 1900, 1990] {
            histogram.record(Duration::from_micros(micros));
        }
        let bar = |up_to, calls| Bar { up_to: Duration::from_micros(up_to), calls };
        let between = [bar(200, 0), bar(500, 0), bar(1000, 0)];
        assert_eq!(histogram.bars(), [&[bar(50, 2), bar(100, 1)], &between[..], &[bar(2000, 3)]].concat());
        histogram.record(Duration::ZERO);
        histogram.record(Duration::from_secs(3600));
        let bars = histogram.bars();
        assert_eq!(bars.iter().map(|bar| bar.calls).sum::<u64>(), histogram.count());
        assert_eq!((bars[0], bars[bars.len() - 1].up_to), (bar(0, 1), Duration::from_secs(5000)));
    }

    #[test]
    fn merging_is_recording_together() {
        let (mut a, mut b) = (Histogram::new(), Histogram::new());
        a.record(Duration::from_micros(10));
        b.record(Duration::from_millis(10));
        a.merge(&b);
        assert_eq!((a.count(), a.max()), (2, Duration::from_millis(10)));
        assert_eq!(a.percentile(0.5), Duration::from_micros(10));
    }
}
