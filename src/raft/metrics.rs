//! What the groups of a node measure, all together: a label for each group would multiply every
//! series by the number of partitions.

use prometheus::{Histogram, HistogramOpts, IntCounter, Registry};

/// Clones share the series.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) propose_seconds: Histogram,
    pub(crate) proposals_per_message: Histogram,
    pub(crate) apply_seconds: Histogram,
    pub(crate) readers_per_round: Histogram,
    pub(crate) read_rounds_unconfirmed: IntCounter,
    pub(crate) appends_sent: IntCounter,
    pub(crate) entries_sent: IntCounter,
    pub(crate) append_conflicts: IntCounter,
    pub(crate) heartbeats_sent: IntCounter,
    pub(crate) appends_received: IntCounter,
    pub(crate) entries_received: IntCounter,
    pub(crate) heartbeats_received: IntCounter,
    pub(crate) votes_received: IntCounter,
    pub(crate) refused: IntCounter,
    pub(crate) elections_won: IntCounter,
    pub(crate) snapshot_bytes_sent: IntCounter,
    pub(crate) snapshot_records_sent: IntCounter,
    pub(crate) snapshots_sent: IntCounter,
    pub(crate) snapshot_bytes_received: IntCounter,
    pub(crate) snapshot_records_received: IntCounter,
    pub(crate) snapshots_installed: IntCounter,
    pub(crate) snapshots_abandoned: IntCounter,
}

/// Upper bounds in seconds: from an in-memory apply to a stalled disk.
const SECONDS: [f64; 16] = [
    0.000_01, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0,
    5.0, 30.0,
];

/// Upper bounds of counts of merged requests.
const COUNTS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

impl Metrics {
    /// Registers the series in `registry`; fails only if they are there already.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(opts)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        Ok(Metrics {
            propose_seconds: histogram(
                "rushkv_raft_propose_seconds",
                "Time from a proposal's turn to its answer: log, fsync, majority, apply.",
                &SECONDS,
            )?,
            proposals_per_message: histogram(
                "rushkv_raft_proposals_per_message",
                "Proposals that reached a group's consensus core together.",
                &COUNTS,
            )?,
            apply_seconds: histogram(
                "rushkv_raft_apply_seconds",
                "Time to apply one batch of committed entries to the engine.",
                &SECONDS,
            )?,
            readers_per_round: histogram(
                "rushkv_raft_readers_per_round",
                "Linearizable reads that shared one confirmation of their leader.",
                &COUNTS,
            )?,
            read_rounds_unconfirmed: counter(
                "rushkv_raft_read_rounds_unconfirmed_total",
                "Rounds of readers whose leader was not confirmed by the others' votes, or had not applied anything of its term in time: answered by an error, to be tried again.",
            )?,
            appends_sent: counter(
                "rushkv_raft_appends_sent_total",
                "Messages with entries, or of a new commit index, sent to followers.",
            )?,
            entries_sent: counter(
                "rushkv_raft_entries_sent_total",
                "Log entries sent to followers; what is sent again counts again.",
            )?,
            append_conflicts: counter(
                "rushkv_raft_append_conflicts_total",
                "Appends that a follower refused because its log differs.",
            )?,
            heartbeats_sent: counter("rushkv_raft_heartbeats_sent_total", "Heartbeats sent to followers.")?,
            appends_received: counter(
                "rushkv_raft_appends_received_total",
                "Appends received from leaders, heartbeats apart.",
            )?,
            entries_received: counter(
                "rushkv_raft_entries_received_total",
                "Log entries received from leaders; what is sent again counts again.",
            )?,
            heartbeats_received: counter(
                "rushkv_raft_heartbeats_received_total",
                "Heartbeats received from leaders.",
            )?,
            votes_received: counter(
                "rushkv_raft_votes_received_total",
                "Requests for votes and pre-votes received.",
            )?,
            refused: counter(
                "rushkv_raft_messages_refused_total",
                "Messages of other replicas that were refused unanswered: too many wait, or this replica can't answer.",
            )?,
            elections_won: counter(
                "rushkv_raft_elections_won_total",
                "Times that a replica of this node became leader.",
            )?,
            snapshot_bytes_sent: counter(
                "rushkv_raft_snapshot_sent_bytes_total",
                "Bytes of records sent in snapshots.",
            )?,
            snapshot_records_sent: counter(
                "rushkv_raft_snapshot_records_sent_total",
                "Records sent in snapshots.",
            )?,
            snapshots_sent: counter(
                "rushkv_raft_snapshots_sent_total",
                "Snapshots sent and installed by their receiver.",
            )?,
            snapshot_bytes_received: counter(
                "rushkv_raft_snapshot_received_bytes_total",
                "Bytes of records received in snapshots.",
            )?,
            snapshot_records_received: counter(
                "rushkv_raft_snapshot_records_received_total",
                "Records received in snapshots.",
            )?,
            snapshots_installed: counter(
                "rushkv_raft_snapshots_installed_total",
                "Snapshots installed here.",
            )?,
            snapshots_abandoned: counter(
                "rushkv_raft_snapshots_abandoned_total",
                "Incoming snapshots that were broken off.",
            )?,
        })
    }
}
