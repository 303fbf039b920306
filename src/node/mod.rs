//! The node: its groups, routing, and the facade that services call.
//!
//! [`Node::open`] recovers what the data directory holds (`open`). A node without a cluster forms one or
//! joins one (`formation` decides, `forming` and `founding` act; `promise` is what must not be forgotten on the way); then it has a [`Seat`] in group 0 and follows what
//! group 0 says (`follow`): which replicas it holds, where the others are. It serves reads and writes
//! (`calls`) from its own replicas (`local`) or by passing them on once (`forward`), and answers other
//! nodes (`peer`). A cluster of one may give itself up to join another (`giving_up`, `taking_in`; `meeting`
//! looks whether peers are of another cluster). `reconcile` decides what the leader of a group does towards its desired members,
//! `reconciling` does it; a node that was `removed` finds out. `disk` refuses puts on a low disk, `upkeep` takes
//! checkpoints, `checking` compares replicas and `scrub` reads all that the engine holds (`divergence` decides what
//! follows, `rebuilding` replaces who is damaged), `info` tells what the node is, `gauges` shows it to Prometheus.

mod api;
mod calls;
mod checking;
mod disk;
mod divergence;
mod follow;
mod formation;
mod forming;
mod forward;
mod founding;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gauges;
mod giving_up;
mod identity;
mod info;
mod local;
mod meeting;
mod open;
mod options;
mod peer;
mod promise;
mod reached;
mod rebuilding;
pub(crate) mod reconcile;
pub(crate) mod reconciling;
mod removed;
mod renewing;
mod scan;
mod scrub;
mod seat;
mod superseded;
mod taking_in;
mod transfers;
mod upkeep;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

pub use api::*;
pub use options::{Formation, Options};
use seat::Seat;

use crate::error::{Error, Reason, Result};
use crate::placement::RoutingTable;
use crate::storage::DataDir;
use crate::transport::Transport;
use crate::types::{Epoch, GroupId, NodeId, PartitionId};
use crate::{kv, meta, raft, wal};

/// Calls that may be under way at once: each holds a permit, so that a stop can wait for them.
const CALLS_MAX: u32 = 1 << 20;

/// An fsync that takes longer than this counts as a hang. Disks that stall for half a minute come back.
const FSYNC_STALL_MAX: std::time::Duration = std::time::Duration::from_secs(120);

/// How often a probe that waits looks whether it is the disk that it waits for.
const PROBE_LOOK: std::time::Duration = std::time::Duration::from_millis(250);

type MetaGroup = raft::Group<meta::Machine>;
type DataGroup = raft::Group<kv::Machine>;

/// A partition's replica on this node, shared: every call takes one.
type Replica = Arc<Held>;

/// What a [`Replica`] is a handle of.
#[derive(Debug)]
struct Held {
    group: DataGroup,
    totals: Arc<kv::Totals>,
}

/// The cluster as group 0 described it last.
#[derive(Debug)]
struct Cluster {
    state: Arc<meta::State>,
    routing: RoutingTable,
}

/// A running node. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Node {
    options: Options,
    started_at_unix_ms: u64,
    /// Drawn at start.
    process_id: String,
    data_dir: Arc<DataDir>,
    wal: wal::Wal,
    store: Arc<raft::Store>,
    raft_metrics: raft::Metrics,
    routing_metrics: forward::Metrics,
    transport: Arc<Transport>,
    /// This node's place in a cluster; `None` until it has one.
    seat: watch::Sender<Option<Arc<Seat>>>,
    /// `None` until group 0 says that the cluster is formed.
    cluster: watch::Sender<Option<Arc<Cluster>>>,
    /// Disk ids of the nodes that it saw in its last round of Hello, its own included.
    seen: watch::Sender<Vec<String>>,
    /// Where it is to be a member, if it has given its own cluster up for that.
    joining: Option<crate::proto::v1::Joining>,
    /// Whether it gives its cluster up.
    gave_up: watch::Sender<giving_up::GivingUp>,
    /// Held while a founding is looked at, and while group 0 is begun by one.
    preparing: tokio::sync::Mutex<()>,
    /// Held while group 0's state is taken up.
    following: tokio::sync::Mutex<()>,
    /// What keeps it from having a place, in words.
    waiting: watch::Sender<String>,
    replicas: RwLock<BTreeMap<PartitionId, Replica>>,
    /// Who led a partition that has no replica here, when it was last asked.
    hints: Mutex<HashMap<GroupId, NodeId>>,
    disk: disk::Disk,
    /// One permit a call; closed while stopping.
    calls: Arc<Semaphore>,
    failure: watch::Sender<Option<String>>,
    /// It was removed from its cluster.
    removed: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    check_metrics: checking::Metrics,
    scrub_asked: scrub::Asked,
}

impl Node {
    /// Resolves, with the reason, when the process must end: a disk error, or a group that stopped.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        let reason = match failure.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone(),
            Err(_) => None,
        };
        match reason {
            Some(reason) => reason,
            // The sender lives as long as `self`.
            None => std::future::pending().await,
        }
    }

    /// Ends the process: what the state is can't be known any more, or can't be mended from here.
    fn fail(&self, reason: impl Into<String>) {
        self.failure.send_replace(Some(reason.into()));
    }

    /// Passes through every loop that serves: each group's core, and the log's writer. While the writer
    /// is inside an fsync, cores may wait for it: that is a slow disk and no hang, up to two minutes.
    pub async fn probe(&self) -> Result<()> {
        let through = self.pass_through();
        tokio::pin!(through);
        loop {
            if self.wal.writer_stuck_for().is_some_and(|stuck| stuck < FSYNC_STALL_MAX) {
                return Ok(());
            }
            if let Ok(passed) = tokio::time::timeout(PROBE_LOOK, &mut through).await {
                return passed;
            }
        }
    }

    async fn pass_through(&self) -> Result<()> {
        let stopped = |error: &dyn std::fmt::Display| Error::new(Reason::Internal, error.to_string());
        if let Some(seat) = self.seat() {
            seat.meta.probe().await.map_err(|error| stopped(&error))?;
        }
        for (_, replica) in self.replicas() {
            replica.group.probe().await.map_err(|error| stopped(&error))?;
        }
        self.wal.probe(FSYNC_STALL_MAX).await.map_err(|error| stopped(&error))
    }

    /// Resolves when the routing table's epoch grows beyond `seen`.
    pub async fn topology_changed(&self, seen: Epoch) {
        let mut cluster = self.cluster.subscribe();
        let newer = |cluster: &Option<Arc<Cluster>>| {
            cluster.as_ref().is_some_and(|cluster| cluster.state.epoch > seen)
        };
        if cluster.wait_for(newer).await.is_err() {
            // The node is gone; its services go with it.
            std::future::pending().await
        }
    }

    fn seat(&self) -> Option<Arc<Seat>> {
        self.seat.borrow().clone()
    }

    fn cluster(&self) -> Option<Arc<Cluster>> {
        self.cluster.borrow().clone()
    }

    /// The cluster, for a call; refused while there is none.
    fn formed(&self) -> Result<Arc<Cluster>> {
        self.cluster().ok_or_else(|| {
            Error::new(
                Reason::Unavailable,
                format!(
                    "node \"{}\" has no cluster yet: waiting for {}",
                    self.options.name,
                    self.waiting.borrow().as_str()
                ),
            )
        })
    }

    /// Every replica here, as of now.
    fn replicas(&self) -> Vec<(PartitionId, Replica)> {
        let replicas = self.replicas.read().unwrap_or_else(PoisonError::into_inner);
        replicas.iter().map(|(id, replica)| (*id, replica.clone())).collect()
    }

    fn replica(&self, partition: PartitionId) -> Option<Replica> {
        self.replicas.read().unwrap_or_else(PoisonError::into_inner).get(&partition).cloned()
    }

    fn keep_task(&self, task: JoinHandle<()>) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Of those that come and go with replicas.
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }
}
