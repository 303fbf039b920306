//! What runs beside the calls: checkpoints, the look at the disk, and the watch for failures.

use std::sync::{Arc, Weak};
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, Registry};
use tokio::time::Instant;

use super::Node;
use super::gauges::Gauges;
use crate::error::{Error, Reason, Result};
use crate::raft;
use crate::types::{GroupId, LogKey, PartitionId};

/// The log may grow by this much between checkpoints: it bounds what a restart applies again, and how
/// much log there is.
const CHECKPOINT_LOG_BYTES: u64 = 64 * 1024 * 1024;

/// Nothing waits longer than this for a checkpoint.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);

/// How often the disk and the log are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What this file measures itself.
///
/// # Errors
/// If `registry` has a metric of this name already.
pub(super) fn register(registry: &Registry) -> prometheus::Result<Histogram> {
    let opts = HistogramOpts::new(
        "rushkv_node_checkpoint_seconds",
        "Time to make the engine durable, so that the log before it can go.",
    )
    .buckets(vec![0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0]);
    let checkpoint_seconds = Histogram::with_opts(opts)?;
    registry.register(Box::new(checkpoint_seconds.clone()))?;
    Ok(checkpoint_seconds)
}

/// Starts the tasks; they end when the node is stopped or dropped.
pub(super) fn start(node: &Arc<Node>, registry: &Registry) -> Result<()> {
    let taken = |error: prometheus::Error| Error::new(Reason::Internal, error.to_string());
    let mut gauges = Gauges::register(registry).map_err(taken)?;
    let checkpoint_seconds = register(registry).map_err(taken)?;
    look(node, &mut gauges);
    let tasks = [
        tokio::spawn(look_on(Arc::downgrade(node), gauges)),
        tokio::spawn(look_after(Arc::downgrade(node), checkpoint_seconds)),
        tokio::spawn(watch_log(Arc::downgrade(node), node.wal.clone())),
    ];
    for task in tasks {
        node.keep_task(task);
    }
    Ok(())
}

impl Node {
    /// Ends the process when the group stops by itself, unless only this replica is damaged.
    /// `is_held` tells whether the node still has this very one.
    pub(super) fn watch_group<M: raft::Machine>(
        self: &Arc<Node>,
        group: &raft::Group<M>,
        is_held: fn(&Node, &raft::Group<M>) -> bool,
    ) {
        let group = group.clone();
        let node = Arc::downgrade(self);
        self.keep_task(tokio::spawn(async move {
            let why = group.stopped().await;
            let Some(node) = node.upgrade() else { return };
            match group.damage() {
                Some(_) => {
                    // Whoever found the damage need not have stopped it: a leader that can't serve must not lead.
                    group.shutdown().await;
                    tracing::error!(why, "a replica has stopped; the others go on");
                }
                None if is_held(&node, &group) => node.fail(why),
                // It was given up, or has another one in its place.
                None => {}
            }
        }));
    }

    /// Why the copy can't be read, of a replica that is held.
    fn damage_of(&self, key: LogKey) -> Option<String> {
        match key.group {
            GroupId::META => self.seat()?.meta.damage().map(str::to_string),
            GroupId(group) => self.replica(PartitionId(group - 1))?.group.damage().map(str::to_string),
        }
    }

    fn holds(&self, key: LogKey) -> bool {
        match key.group {
            GroupId::META => self.seat().is_some_and(|seat| seat.meta.key() == key),
            GroupId(group) => {
                self.replica(PartitionId(group - 1)).is_some_and(|replica| replica.group.key() == key)
            }
        }
    }
}

async fn watch_log(node: Weak<Node>, wal: crate::wal::Wal) {
    let failed = wal.failed().await;
    if let Some(node) = node.upgrade() {
        node.failure.send_replace(Some(failed.to_string()));
    }
}

/// Apart from the checkpoints, which can take long just when the disk fills up.
async fn look_on(node: Weak<Node>, mut gauges: Gauges) {
    let mut tick = tokio::time::interval(LOOK_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match node.upgrade() {
            Some(node) => look(&node, &mut gauges),
            None => return,
        }
    }
}

async fn look_after(node: Weak<Node>, checkpoint_seconds: Histogram) {
    let mut last_checkpoint = Instant::now();
    let mut log_bytes = 0;
    let mut applied = 0;
    let mut tick = tokio::time::interval(LOOK_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(node) = node.upgrade() else {
            return;
        };
        let written = node.wal.written_bytes();
        let now_applied = node.applied_sum();
        let grown = written.saturating_sub(log_bytes) >= CHECKPOINT_LOG_BYTES;
        let due = last_checkpoint.elapsed() >= CHECKPOINT_INTERVAL && now_applied != applied;
        if !(grown || due) {
            continue;
        }
        let timer = checkpoint_seconds.start_timer();
        if let Err(error) = node.checkpoint().await {
            // After a failed fsync nobody knows what is on the disk.
            node.failure.send_replace(Some(format!("checkpoint: {error}")));
            return;
        }
        timer.observe_duration();
        (last_checkpoint, log_bytes, applied) = (Instant::now(), written, now_applied);
        let store = node.store.clone();
        // The other error: the runtime ends.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.sweep_retired()).await {
            node.failure.send_replace(Some(format!("deleting what was replaced: {error}")));
            return;
        }
    }
}

fn look(node: &Node, gauges: &mut Gauges) {
    node.disk.look();
    gauges.set(node);
}

impl Node {
    /// Makes everything applied so far durable in the engine, and lets the log before it go.
    pub async fn checkpoint(&self) -> std::result::Result<(), String> {
        let store = self.store.clone();
        let reached = tokio::task::spawn_blocking(move || store.checkpoint())
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        for (key, applied) in reached {
            let Some(applied) = applied else {
                continue;
            };
            let noted = match key.group {
                GroupId::META => match self.seat() {
                    Some(seat) if seat.meta.key() == key => seat.meta.checkpointed(applied).await,
                    _ => Ok(()),
                },
                GroupId(group) => match self.replica(PartitionId(group - 1)) {
                    Some(replica) if replica.group.key() == key => replica.group.checkpointed(applied).await,
                    _ => Ok(()),
                },
            };
            match noted {
                Ok(()) => {}
                // It was given up meanwhile, or stopped by itself for a reason of its own.
                Err(error) if !self.holds(key) || self.damage_of(key).is_some() => {
                    tracing::info!(%key, %error, "the log of a replica that has stopped is not purged");
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Changes whenever anything was applied.
    fn applied_sum(&self) -> u64 {
        let meta = self.seat().and_then(|seat| seat.meta.status().applied);
        let data = self.replicas().into_iter().map(|(_, replica)| replica.group.status().applied);
        data.chain([meta]).flatten().map(|id| id.index).sum()
    }
}
