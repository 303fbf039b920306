//! Reads all that the engine holds, slowly and again and again, and holds it against what the replica's
//! writes came to: a record that changed on the disk is found even if nobody asks for it (rule 11). A
//! replica whose copy is not what was written is damaged, and stops, if others hold what it should.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{IntCounter, IntGauge, Registry};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::{Deadline, Node, Replica};
use crate::error::Result;
use crate::kv::{self, ReadError};
use crate::proto::v1;
use crate::raft::Space;
use crate::storage;
use crate::types::PartitionId;

/// From the end of one pass to the next one, and from the start to the first.
const INTERVAL: Duration = Duration::from_secs(24 * 3600);
const FIRST_AFTER: Duration = Duration::from_secs(15 * 60);

/// After so many bytes the reader rests for so long: 20 MiB/s at most.
const CHUNK_BYTES: usize = 1024 * 1024;
const REST: Duration = Duration::from_millis(50);

/// An engine that keeps its views in memory can let them expire while much is written: the last try does not
/// rest.
const TRIES: u32 = 3;

/// Until a replica that recovers, or expires its views, is tried again within a pass.
const AGAIN: Duration = Duration::from_millis(500);

/// For asking every node to begin.
const ASKED_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Metrics {
    passes: IntCounter,
    bytes: IntCounter,
    damaged: IntCounter,
    skipped: IntCounter,
    ended: IntGauge,
}

impl Metrics {
    /// # Errors
    /// If `registry` has metrics of these names already.
    pub fn register(registry: &Registry) -> prometheus::Result<Metrics> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let ended = IntGauge::new(
            "rushkv_node_scrub_last_pass_timestamp_seconds",
            "When the last pass over all that the engine holds ended, in Unix time; 0: none has since the start.",
        )?;
        registry.register(Box::new(ended.clone()))?;
        Ok(Metrics {
            passes: counter("rushkv_node_scrub_passes_total", "Passes over all that the engine holds.")?,
            bytes: counter("rushkv_node_scrub_bytes_total", "Bytes of keys and records read to check them.")?,
            damaged: counter(
                "rushkv_node_scrub_damaged_total",
                "Readings of replicas that were not what had been written: each stopped, or serves stale reads only.",
            )?,
            skipped: counter(
                "rushkv_node_scrub_skipped_total",
                "Replicas that a pass could not read to the end: they were recovering, or too much was written.",
            )?,
            ended,
        })
    }
}

/// What came of reading one replica.
enum Read {
    Fine,
    Damaged(Space, String),
    /// The view expired, the replica recovers or is gone.
    NotNow,
}

/// Tells the reading thread that nobody waits for it any more.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is to be read before its time.
#[derive(Debug, Default)]
pub(super) struct Asked {
    notify: Notify,
    wanted: Mutex<Wanted>,
}

#[derive(Debug, Default)]
struct Wanted {
    all: bool,
    /// Where something could not be read.
    doubted: BTreeSet<PartitionId>,
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) {
        self.lock().all = true;
        self.notify.notify_one();
    }

    /// True: it was not doubted yet.
    fn doubt(&self, partition: PartitionId) -> bool {
        let is_new = self.lock().doubted.insert(partition);
        self.notify.notify_one();
        is_new
    }
}

pub(super) async fn run(node: Weak<Node>, metrics: Metrics) {
    let mut next = Instant::now() + FIRST_AFTER;
    loop {
        let Some(node) = node.upgrade() else { return };
        // Looks up from time to time: whoever waits must not keep the node.
        let _ = timeout(Duration::from_secs(2), node.scrub_asked.notify.notified()).await;
        let Wanted { all, doubted } = std::mem::take(&mut *node.scrub_asked.lock());
        let replicas = node.replicas();
        for (partition, replica) in replicas.iter().filter(|(partition, _)| doubted.contains(partition)) {
            check(&node, *partition, replica, &metrics).await;
        }
        if all || Instant::now() >= next {
            for (partition, replica) in &replicas {
                check(&node, *partition, replica, &metrics).await;
            }
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            metrics.ended.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
            metrics.passes.inc();
            tracing::info!("all that the engine holds was read");
            next = Instant::now() + INTERVAL;
        }
    }
}

async fn check(node: &Node, partition: PartitionId, replica: &Replica, metrics: &Metrics) {
    if replica.group.damage().is_some() {
        return;
    }
    match read(replica, metrics).await {
        Read::Fine => {}
        Read::NotNow => metrics.skipped.inc(),
        Read::Damaged(space, why) => {
            tracing::error!(%partition, key = %replica.group.key(), why, "a copy is not what was written");
            metrics.damaged.inc();
            node.found_damaged(partition, replica, &space, why).await;
        }
    }
}

async fn read(replica: &Replica, metrics: &Metrics) -> Read {
    for attempt in 1..=TRIES {
        if attempt > 1 {
            sleep(AGAIN).await;
        }
        let Ok(space) = replica.group.stale() else { continue };
        if !replica.group.is_recovered() || !replica.totals.is_settled() {
            continue;
        }
        let rests = attempt < TRIES;
        let bytes = metrics.bytes.clone();
        let stopped = Arc::new(AtomicBool::new(false));
        let _stop = Stop(stopped.clone());
        let read = space.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let view = read.view()?;
            let mut unrested = 0;
            kv::verify(&view, |read| {
                bytes.inc_by(read as u64);
                unrested += read;
                if rests && unrested >= CHUNK_BYTES {
                    unrested = 0;
                    std::thread::sleep(REST);
                }
                !stopped.load(Ordering::Relaxed)
            })
        });
        let reading = reading.await;
        if !replica.group.holds(&space) {
            // A snapshot has replaced it: whatever was wrong with it is gone.
            continue;
        }
        match reading {
            Ok(Ok(Some(_))) => return Read::Fine,
            Ok(Err(ReadError::Malformed(malformed))) => return Read::Damaged(space, malformed.to_string()),
            Ok(Err(ReadError::Storage(error @ storage::Error::Corrupt { .. }))) => {
                return Read::Damaged(space, error.to_string());
            }
            Ok(Err(ReadError::Storage(error))) => tracing::debug!(%error, attempt, "a copy was not read"),
            Ok(Ok(None)) | Err(_) => {}
        }
    }
    Read::NotNow
}

impl Node {
    /// Begins a pass on every node.
    pub async fn scrub(&self) -> Result<v1::ScrubResponse> {
        let _call = self.enter()?;
        let state = self.formed()?;
        let me = self.seat().map(|seat| seat.number());
        let deadline: Deadline = Instant::now() + ASKED_WITHIN;
        let asked = state.state.members.iter().map(|(number, member)| async move {
            if Some(*number) == me {
                self.scrub_asked.all();
                return None;
            }
            let failed = self.scrub_there(*number, deadline).await.err();
            failed.map(|error| format!("{}: {}", member.name, error.message))
        });
        let not_reached: Vec<String> =
            futures_util::future::join_all(asked).await.into_iter().flatten().collect();
        let nodes = u32::try_from(state.state.members.len()).unwrap_or(u32::MAX);
        Ok(v1::ScrubResponse { nodes, not_reached })
    }

    pub fn peer_scrub(&self, cluster_id: &str) -> Result<()> {
        let _call = self.enter()?;
        self.same_cluster(cluster_id)?;
        self.scrub_asked.all();
        Ok(())
    }

    /// Something that was read here is not what was written: the whole copy is looked at, now. Not where it could
    /// not be replaced: the rest of it is served as long as it can be.
    pub(super) fn doubt(&self, partition: PartitionId) {
        let wanted = self.cluster().and_then(|cluster| cluster.state.partitions.get(&partition).cloned());
        if wanted.is_none_or(|wanted| !wanted.can_be_rebuilt()) {
            return;
        }
        if self.scrub_asked.doubt(partition) {
            tracing::warn!(%partition, "a record can't be read: all that is held of its partition is checked");
        }
    }

    /// Stops a copy that is not what was written, if nothing is lost with it, or if it is the only one; else it goes on
    /// as a member of its group, and serves nothing linearizable.
    async fn found_damaged(&self, partition: PartitionId, replica: &Replica, space: &Space, why: String) {
        let key = replica.group.key();
        let status = replica.group.status();
        let is_alone = status.voters == [key.replica] && status.learners.is_empty();
        if is_alone {
            return self.condemn(partition, replica, why).await;
        }
        // Before the others are asked: of two that are damaged, neither may count on the other.
        let is_new = match replica.group.put_in_doubt(space, &why).await {
            Ok(is_new) => is_new,
            Err(error) => {
                return self.fail(format!("partition {partition}: the damage can't be noted: {error}"));
            }
        };
        if !self.replace_doubted(partition, replica).await && is_new {
            tracing::error!(%partition, %key, "no other copies are known that agree: it is not replaced yet");
        }
    }

    /// Stops a copy that is in doubt, if nothing is lost with it. Returns whether it is in doubt no more.
    pub(super) async fn replace_doubted(&self, partition: PartitionId, replica: &Replica) -> bool {
        if replica.group.is_in_doubt() && !self.others_agree(partition, replica.group.key().replica).await {
            return false;
        }
        // Meanwhile a snapshot may have replaced what was wrong.
        if let Some(why) = replica.group.doubt() {
            self.condemn(partition, replica, why.to_string()).await;
        }
        true
    }

    async fn condemn(&self, partition: PartitionId, replica: &Replica, why: String) {
        if let Err(error) = replica.group.condemn(why).await {
            self.fail(format!("partition {partition}: the damage can't be noted: {error}"));
        }
    }
}
