//! What the log tells about itself.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntGauge, Registry, exponential_buckets as exponential,
};

/// The log's metrics. Clones share their values.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(super) fsync_seconds: Histogram,
    pub(super) batch_records: Histogram,
    pub(super) batch_bytes: Histogram,
    pub(super) written_bytes: IntCounter,
    pub(super) copied_bytes: IntCounter,
    pub(super) rotations: IntCounter,
    pub(super) segments: IntGauge,
    pub(super) bytes: IntGauge,
    pub(super) cached_bytes: IntGauge,
    pub(super) pinned: IntGauge,
}

impl Metrics {
    /// Metrics that `registry` gathers.
    ///
    /// # Errors
    /// The registry has metrics of these names already.
    pub fn register(registry: &Registry) -> prometheus::Result<Metrics> {
        let histogram = |name: &str, help: &str, buckets: prometheus::Result<Vec<f64>>| {
            let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets?))?;
            registry.register(Box::new(metric.clone()))?;
            prometheus::Result::Ok(metric)
        };
        let counter = |name: &str, help: &str| {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            prometheus::Result::Ok(metric)
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            prometheus::Result::Ok(metric)
        };
        Ok(Metrics {
            // 50 us (a fast NVMe) to 26 s (a stalled volume).
            fsync_seconds: histogram(
                "rushkv_wal_fsync_seconds",
                "Time of one fsync of the write-ahead log.",
                exponential(0.000_05, 2.0, 20),
            )?,
            batch_records: histogram(
                "rushkv_wal_batch_records",
                "Records that one fsync made durable, over all groups.",
                exponential(1.0, 2.0, 14),
            )?,
            batch_bytes: histogram(
                "rushkv_wal_batch_bytes",
                "Bytes that one fsync made durable.",
                exponential(64.0, 4.0, 10),
            )?,
            written_bytes: counter(
                "rushkv_wal_written_bytes_total",
                "Bytes of batches written to the write-ahead log.",
            )?,
            copied_bytes: counter(
                "rushkv_wal_copied_bytes_total",
                "Bytes of live state written again so that an old segment could go.",
            )?,
            rotations: counter("rushkv_wal_rotations_total", "Segments that the write-ahead log began.")?,
            segments: gauge("rushkv_wal_segments", "Segments in use.")?,
            bytes: gauge("rushkv_wal_bytes", "Bytes of all segments on disk, spare ones included.")?,
            cached_bytes: gauge("rushkv_wal_cached_bytes", "Payload of entries kept in memory.")?,
            pinned: gauge(
                "rushkv_wal_pinned_logs",
                "Logs that keep the oldest segment and hold too much to be copied forward.",
            )?,
        })
    }
}
