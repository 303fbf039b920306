//! One simulated node: its disk and engine, and, while it runs, the production log, store and replicas on them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;

use super::disk::{Disk, Image};
use super::engine::SimEngine;
use super::network::Links;
use super::trace::Event;
use super::watched::Watched;
use super::{follow, reconcile, sim};
use crate::raft::{self, Class, Group, Machine, Route, Store};
use crate::runtime::Planted;
use crate::types::{GroupId, LogKey, NodeId};
use crate::{kv, meta, storage, wal};

pub(super) type Data = Group<Watched<kv::Machine>>;

/// A node's replica of group 0, and what it says.
#[derive(Debug, Clone)]
pub(super) struct Meta {
    pub(super) group: Group<Watched<meta::Machine>>,
    pub(super) state: watch::Receiver<Arc<meta::State>>,
}

/// What a node is between two starts.
#[derive(Debug)]
struct Stopped {
    image: Image,
    engine: SimEngine,
}

/// What the tasks of a process share.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) id: NodeId,
    pub(super) wal: wal::Wal,
    pub(super) store: Arc<Store>,
    metrics: raft::Metrics,
    /// Held while group 0's state is taken up.
    pub(super) following: Arc<Mutex<()>>,
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) process: Process,
    disk: Disk,
    engine: SimEngine,
    pub(super) meta: Option<Meta>,
    pub(super) groups: BTreeMap<GroupId, Data>,
}

/// A node, running or not.
#[derive(Debug)]
pub(super) struct Node {
    id: NodeId,
    stopped: Option<Stopped>,
    pub(super) running: Option<Running>,
    /// It is a member, and starts whenever it can.
    pub(super) is_member: bool,
    starts: u64,
    /// Its fsyncs take so many times longer.
    pub(super) slowness: u32,
    /// How long a second of its clock lasts, other in each of its lives: its clock is fast below 100.
    pub(super) pace_percent: u32,
}

impl Node {
    pub(super) fn new(id: NodeId, recovers_prefix: bool) -> Node {
        let stopped = Stopped { image: Image::default(), engine: SimEngine::new(recovers_prefix) };
        Node {
            id,
            stopped: Some(stopped),
            running: None,
            is_member: true,
            starts: 0,
            slowness: 1,
            pace_percent: 100,
        }
    }

    /// Starts its process: log and store are recovered, then the replicas open one after another.
    pub(super) fn start(&mut self) {
        if !self.is_member {
            return;
        }
        let Some(Stopped { image, engine }) = self.stopped.take() else { return };
        self.starts += 1;
        self.pace_percent = *sim().disk_dice.pick(&[70, 90, 100, 100, 110, 140]);
        // Salts differ in each life of the node.
        let disk = Disk::new(image, u64::from(self.id.0) << 32 | self.starts << 16);
        let registry = prometheus::Registry::new();
        let options = wal::Options {
            segment_bytes: 32 * 1024,
            cache_bytes: 16 * 1024,
            queue_bytes: 64 * 1024,
            ..wal::Options::new("/wal")
        };
        let metrics = wal::Metrics::register(&registry).unwrap();
        let opened = wal::Wal::open_pumped(Arc::new(disk.clone()), options, metrics, synced(self.id, &disk));
        let wal = opened.unwrap_or_else(|error| panic!("{} can't recover its log: {error}", self.id));
        // Small enough that records are driven out.
        let cached = storage::testing::cached(engine.clone(), 4 * 1024);
        let store = Store::open_on(Arc::new(disk.clone()), cached, Path::new("/node"), false);
        let store = store.unwrap_or_else(|error| panic!("{} can't recover its store: {error}", self.id));
        let metrics = raft::Metrics::register(&registry).unwrap();
        let following = Arc::default();
        let process = Process { id: self.id, wal, store: Arc::new(store), metrics, following };
        sim().executor.spawn(run(process.clone()).boxed_local());
        self.running = Some(Running { process, disk, engine, meta: None, groups: BTreeMap::new() });
    }

    /// Ends its process at this moment.
    pub(super) fn crash(&mut self, power_loss: bool) -> Option<Running> {
        let running = self.running.take()?;
        let dice = &sim().disk_dice;
        let image = running.disk.crash(power_loss, dice);
        self.stopped = Some(Stopped { image, engine: running.engine.crash(dice) });
        Some(running)
    }

    pub(super) fn receive(
        &self,
        route: Route,
        class: Class,
        message: bytes::Bytes,
    ) -> Option<BoxFuture<'static, Result<bytes::Bytes, String>>> {
        let running = self.running.as_ref()?;
        if route.group == GroupId::META {
            return Some(running.meta.as_ref()?.group.receive(route, class, message));
        }
        Some(running.groups.get(&route.group)?.receive(route, class, message))
    }
}

/// How the disk of a node makes the log wait for its fsyncs.
fn synced(id: NodeId, disk: &Disk) -> wal::Synced {
    let disk = disk.clone();
    Box::new(move || {
        let (sim, disk) = (sim(), disk.clone());
        let slowness = sim.nodes.borrow().get(&id).map_or(1, |node| node.slowness);
        let takes = match sim.disk_dice.below(100) {
            0..70 => Duration::from_millis(1),
            70..96 => sim.disk_dice.ms(1, 6),
            _ => sim.disk_dice.ms(10, 80),
        } * slowness;
        let count = disk.on_the_way();
        let reach = async move {
            sleep(takes).await;
            disk.reach(count);
            super::sim().note(Event::Synced(id, count));
        };
        if sim.is_planted(Planted::AnswerBeforeFsync) {
            sim.executor.spawn(reach.boxed_local());
            return async {}.boxed();
        }
        reach.boxed()
    })
}

/// The life of a process.
async fn run(process: Process) {
    raft::finish_destroying(&process.store, &process.wal).await.unwrap();
    let (machine, state) = meta::Machine::new();
    let key = LogKey { group: GroupId::META, replica: meta::group0_replica(process.id) };
    let group = process.open(key, machine).await;
    group.elect_if_alone().await;
    sim().running(process.id, |running| running.meta = Some(Meta { group, state: state.clone() }));
    let spawn = |task| sim().executor.spawn(task);
    spawn(follow::run(process.clone(), state).boxed_local());
    spawn(reconcile::run(process.clone()).boxed_local());
    spawn(upkeep(process).boxed_local());
}

impl Process {
    pub(super) async fn open<M: Machine>(&self, key: LogKey, machine: M) -> Group<Watched<M>> {
        let (store, log) = (self.store.clone(), self.wal.log(key));
        sim().invariants.borrow().votes.remembered(key, raft::testing::voted_term(&log));
        let machine = Watched::new(key, machine);
        let opened = Group::open(key, store, log, machine, &self.metrics, Arc::new(Links)).await;
        let group = opened.unwrap_or_else(|error| panic!("{} can't open {key}: {error}", self.id));
        // Small enough that logs are purged, and snapshots needed.
        raft::testing::retain(&group, 1024, 2 * 1024, 8 * 1024);
        let (sim, id) = (sim(), self.id);
        sim.note(Event::Opened(key));
        sim.invariants.borrow_mut().replica_ids.opened(key, id);
        let ended = group.clone();
        let watching = async move {
            let why = ended.stopped().await;
            assert!(!super::sim().holds(id, key), "{id}: a replica stopped: {why}");
        };
        sim.executor.spawn(watching.boxed_local());
        group
    }
}

/// Checkpoints now and then, and lets the logs go.
async fn upkeep(process: Process) {
    loop {
        sleep(sim().disk_dice.ms(500, 3000)).await;
        let mut groups = Vec::new();
        let mut meta = None;
        sim().running(process.id, |running| {
            groups.extend(running.groups.values().cloned());
            meta.clone_from(&running.meta);
        });
        let reached = process.store.checkpoint().unwrap();
        process.store.sweep_retired().unwrap();
        for group in groups {
            if let Some(Some(applied)) = reached.get(&group.key())
                && group.checkpointed(*applied).await.is_err()
            {
                assert!(!sim().holds(process.id, group.key()), "{} can't purge", group.key());
            }
        }
        if let Some(meta) = meta
            && let Some(Some(applied)) = reached.get(&meta.group.key())
        {
            meta.group.checkpointed(*applied).await.unwrap();
        }
    }
}
