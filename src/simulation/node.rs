//! One simulated node: its disk and engine, and, while it runs, the production log, store and replicas on them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::sleep;

use super::disk::{Disk, Image};
use super::engine::SimEngine;
use super::sim;
use super::trace::Event;
use super::watched::Watched;
use crate::raft::{self, Class, Group, Route, Store};
use crate::runtime::Planted;
use crate::types::{GroupId, LogKey, NodeId, ReplicaId};
use crate::{kv, wal};

pub(super) type Data = Group<Watched<kv::Machine>>;

/// What a node is between two starts.
#[derive(Debug)]
struct Stopped {
    image: Image,
    engine: Arc<SimEngine>,
}

/// A process on a node.
#[derive(Debug)]
pub(super) struct Running {
    disk: Disk,
    engine: Arc<SimEngine>,
    pub(super) wal: wal::Wal,
    pub(super) store: Arc<Store>,
    pub(super) groups: BTreeMap<GroupId, Data>,
}

/// A node, running or not.
#[derive(Debug)]
pub(super) struct Node {
    id: NodeId,
    stopped: Option<Stopped>,
    pub(super) running: Option<Running>,
    /// The replicas that it is to have.
    pub(super) assigned: BTreeMap<GroupId, ReplicaId>,
    starts: u64,
    /// Its fsyncs take so many times longer.
    pub(super) slowness: u32,
}

impl Node {
    pub(super) fn new(id: NodeId, recovers_prefix: bool) -> Node {
        let stopped = Stopped { image: Image::default(), engine: SimEngine::new(recovers_prefix) };
        Node { id, stopped: Some(stopped), running: None, assigned: BTreeMap::new(), starts: 0, slowness: 1 }
    }

    /// Starts its process: log and store are recovered, then the replicas open one after another.
    pub(super) fn start(&mut self) {
        let Some(Stopped { image, engine }) = self.stopped.take() else { return };
        self.starts += 1;
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
        let store = Store::open_on(Arc::new(disk.clone()), engine.clone(), Path::new("/node"), false);
        let store = store.unwrap_or_else(|error| panic!("{} can't recover its store: {error}", self.id));
        let store = Arc::new(store);
        let metrics = raft::Metrics::register(&registry).unwrap();
        let (id, assigned) = (self.id, self.assigned.clone());
        let running = Running { disk, engine, wal, store, groups: BTreeMap::new() };
        sim()
            .executor
            .spawn(open_all(id, running.wal.clone(), running.store.clone(), assigned, metrics).boxed_local());
        sim().executor.spawn(upkeep(id).boxed_local());
        self.running = Some(running);
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
        let group = self.running.as_ref()?.groups.get(&route.group)?;
        Some(group.receive(route, class, message))
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

async fn open_all(
    id: NodeId,
    wal: wal::Wal,
    store: Arc<Store>,
    assigned: BTreeMap<GroupId, ReplicaId>,
    metrics: raft::Metrics,
) {
    raft::finish_destroying(&store, &wal).await.unwrap();
    for (group, replica) in assigned {
        open_replica(id, LogKey { group, replica }, &wal, &store, &metrics).await;
    }
}

async fn open_replica(id: NodeId, key: LogKey, wal: &wal::Wal, store: &Arc<Store>, metrics: &raft::Metrics) {
    let machine = Watched::new(key, kv::Machine::new(store.engine().recovers_prefix()));
    let links = Arc::new(super::network::Links);
    let opened = Group::open(key, store.clone(), wal.log(key), machine, metrics, links).await;
    let group = opened.unwrap_or_else(|error| panic!("{id} can't open {key}: {error}"));
    // Small enough that logs are purged, and snapshots needed.
    raft::testing::retain(&group, 2 * 1024, 6 * 1024, 16 * 1024);
    let sim = sim();
    sim.note(Event::Opened(key));
    sim.invariants.borrow_mut().replica_ids.opened(key, id);
    let ended = group.clone();
    let watching = async move {
        let why = ended.stopped().await;
        let nodes = super::sim();
        let nodes = nodes.nodes.borrow();
        assert!(nodes[&id].assigned.get(&key.group) != Some(&key.replica), "{id}: a replica stopped: {why}");
    };
    sim.executor.spawn(watching.boxed_local());
    if let Some(running) = sim.nodes.borrow_mut().get_mut(&id).and_then(|node| node.running.as_mut()) {
        running.groups.insert(key.group, group);
    }
}

/// Checkpoints now and then, and lets the logs go.
async fn upkeep(id: NodeId) {
    loop {
        sleep(sim().disk_dice.ms(1000, 5000)).await;
        let running = sim().nodes.borrow().get(&id).and_then(|node| {
            let running = node.running.as_ref()?;
            Some((running.store.clone(), running.groups.clone()))
        });
        let Some((store, groups)) = running else { return };
        let reached = store.checkpoint().unwrap();
        for group in groups.values() {
            if let Some(Some(applied)) = reached.get(&group.key()) {
                group.checkpointed(*applied).await.unwrap();
            }
        }
    }
}

/// Has a node open a replica that was assigned to it while it runs.
pub(super) fn open_assigned(id: NodeId, key: LogKey) {
    let sim = sim();
    let running = {
        let mut nodes = sim.nodes.borrow_mut();
        let Some(node) = nodes.get_mut(&id) else { return };
        node.assigned.insert(key.group, key.replica);
        node.running.as_ref().map(|running| (running.wal.clone(), running.store.clone()))
    };
    // A node that is down opens it when it starts.
    let Some((wal, store)) = running else { return };
    let opening = async move {
        let metrics = raft::Metrics::register(&prometheus::Registry::new()).unwrap();
        open_replica(id, key, &wal, &store, &metrics).await;
    };
    sim.executor.on(Some(id), || sim.executor.spawn(opening.boxed_local()));
}
