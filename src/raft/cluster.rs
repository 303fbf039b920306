//! For tests: replicas of one group in one process, on a network whose links can be cut.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::tests::{Journal, OpenDisk, open};
use super::*;
use crate::storage::Kind;
use crate::types::{GroupId, LogKey, ReplicaId};

pub(super) const GROUP: GroupId = GroupId(1);

pub(super) fn key(id: u64) -> LogKey {
    LogKey { group: GROUP, replica: ReplicaId(id) }
}

type Running = BTreeMap<ReplicaId, (Group<Journal>, Arc<Links>)>;

/// Links between replicas. A cut link swallows messages without a word, until it is healed: then what
/// was under way is reported as broken, as by a connection that is found dead.
#[derive(Debug)]
pub(super) struct Net {
    groups: Mutex<Running>,
    cut: watch::Sender<HashSet<(ReplicaId, ReplicaId)>>,
    /// Parts of snapshots that still pass; then the link is cut for them.
    snapshot_parts: Mutex<Option<usize>>,
    delay: Mutex<Duration>,
    /// Appends under way, and the most of them at once.
    appends: AtomicUsize,
    pub appends_max: AtomicUsize,
}

impl Net {
    fn new() -> Arc<Net> {
        Arc::new(Net {
            groups: Mutex::default(),
            cut: watch::Sender::new(HashSet::new()),
            snapshot_parts: Mutex::new(None),
            delay: Mutex::default(),
            appends: AtomicUsize::new(0),
            appends_max: AtomicUsize::new(0),
        })
    }

    pub fn cut_one_way(&self, from: u64, to: u64) {
        self.cut.send_modify(|cut| {
            cut.insert((ReplicaId(from), ReplicaId(to)));
        });
    }

    /// Cuts a replica off from all others.
    pub fn cut_off(&self, id: u64) {
        for other in 1..=9 {
            self.cut_one_way(id, other);
            self.cut_one_way(other, id);
        }
    }

    pub fn heal(&self) {
        self.cut.send_modify(HashSet::clear);
    }

    pub fn set_delay(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }

    pub fn let_snapshot_parts_pass(&self, parts: Option<usize>) {
        *self.snapshot_parts.lock().unwrap() = parts;
    }

    fn is_cut(&self, from: ReplicaId, to: ReplicaId) -> bool {
        self.cut.borrow().contains(&(from, to))
    }

    async fn swallowed(&self, from: ReplicaId, to: ReplicaId) -> Result<Bytes, CarryError> {
        let mut cut = self.cut.subscribe();
        cut.wait_for(|cut| !cut.contains(&(from, to))).await.unwrap();
        Err(CarryError::Broken("the link was cut".into()))
    }
}

/// The network as one replica sees it.
#[derive(Debug)]
pub(super) struct Links {
    net: Arc<Net>,
    /// Its process was killed.
    dead: watch::Sender<bool>,
}

impl Carrier for Links {
    fn send(
        &self,
        route: Route,
        class: Class,
        message: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, CarryError>> {
        let net = self.net.clone();
        let Route { from, to, .. } = route;
        if *self.dead.borrow() {
            return async { Err(CarryError::Unreachable("it is dead".into())) }.boxed();
        }
        if net.is_cut(from, to) {
            return async move { net.swallowed(from, to).await }.boxed();
        }
        let Some((group, links)) = net.groups.lock().unwrap().get(&to).cloned() else {
            return async { Err(CarryError::Unreachable("no such replica".into())) }.boxed();
        };
        if class == Class::Snapshot
            && let Some(parts) = net.snapshot_parts.lock().unwrap().as_mut()
        {
            match parts.checked_sub(1) {
                Some(left) => *parts = left,
                None => return async { Err(CarryError::Broken("the snapshot's link broke".into())) }.boxed(),
            }
        }
        let answer = group.receive(route, class, message);
        if class == Class::Append {
            net.appends_max.fetch_max(net.appends.fetch_add(1, SeqCst) + 1, SeqCst);
        }
        // What is under way goes on whether it is awaited or not.
        let carried = tokio::spawn(async move {
            let mut dead = links.dead.subscribe();
            let answer = tokio::select! {
                answer = answer => answer.map_err(CarryError::Refused),
                _ = dead.wait_for(|dead| *dead) => Err(CarryError::Broken("it was killed".into())),
            };
            let delay = *net.delay.lock().unwrap();
            if !delay.is_zero() {
                sleep(delay).await;
            }
            if net.is_cut(to, from) {
                return net.swallowed(to, from).await;
            }
            if class == Class::Append {
                net.appends.fetch_sub(1, SeqCst);
            }
            answer
        });
        async move { carried.await.unwrap() }.boxed()
    }
}

pub(super) struct Node {
    pub id: u64,
    pub disk: OpenDisk,
    pub group: Group<Journal>,
    pub metrics: Metrics,
    links: Arc<Links>,
}

impl Node {
    pub fn log(&self) -> crate::wal::Log {
        self.disk.wal.log(key(self.id))
    }

    /// Makes a checkpoint and lets the log go.
    pub async fn checkpoint(&self) {
        let reached = self.disk.store.checkpoint().unwrap();
        self.disk.store.sweep_retired().unwrap();
        if let Some(Some(applied)) = reached.get(&key(self.id)) {
            self.group.checkpointed(*applied).await.unwrap();
        }
    }
}

/// Replicas 1, 2, ... of one group, each with its own disk.
pub(super) struct Cluster {
    dir: TempDir,
    kind: Kind,
    pub net: Arc<Net>,
    pub nodes: BTreeMap<u64, Node>,
    pub killed: Vec<Node>,
}

impl Cluster {
    /// A group of the replicas 1 up to `count`, formed and led.
    pub async fn new(kind: Kind, count: u64) -> Cluster {
        let mut cluster = Cluster::empty(kind);
        for id in 1..=count {
            cluster.start(id).await;
        }
        cluster.form(count).await;
        cluster
    }

    /// Gives the replicas that run their group.
    pub async fn form(&self, count: u64) {
        let voters: Vec<ReplicaId> = (1..=count).map(ReplicaId).collect();
        self.nodes[&1].group.initialize(&voters).await.unwrap();
        self.leader().await;
    }

    pub fn empty(kind: Kind) -> Cluster {
        Cluster {
            dir: tempfile::tempdir().unwrap(),
            kind,
            net: Net::new(),
            nodes: BTreeMap::new(),
            killed: Vec::new(),
        }
    }

    pub fn path(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    /// Starts a replica on what its directory holds.
    pub async fn start(&mut self, id: u64) {
        let dir = self.path(id);
        self.start_in(id, &dir).await;
    }

    pub async fn start_in(&mut self, id: u64, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        let disk = open(dir, self.kind, false);
        self.start_on(id, disk).await;
    }

    pub async fn start_on(&mut self, id: u64, disk: OpenDisk) {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let links = Arc::new(Links { net: self.net.clone(), dead: watch::Sender::new(false) });
        let (store, log) = (disk.store.clone(), disk.wal.log(key(id)));
        let group = Group::open(key(id), store, log, Journal::default(), &metrics, links.clone());
        let group = group.await.unwrap();
        self.net.groups.lock().unwrap().insert(ReplicaId(id), (group.clone(), links.clone()));
        self.nodes.insert(id, Node { id, disk, group, metrics, links });
    }

    /// Stops a replica without a checkpoint. Its disk stays as it is.
    pub async fn stop(&mut self, id: u64) {
        self.net.groups.lock().unwrap().remove(&ReplicaId(id));
        let node = self.nodes.remove(&id).unwrap();
        node.group.shutdown().await;
        drop(node.group);
        node.disk.store.engine().close().unwrap();
        node.disk.wal.close().unwrap();
    }

    /// Stops a replica and gives its disk away, open.
    pub async fn take_disk(&mut self, id: u64) -> OpenDisk {
        self.net.groups.lock().unwrap().remove(&ReplicaId(id));
        let node = self.nodes.remove(&id).unwrap();
        node.group.shutdown().await;
        node.disk
    }

    /// Takes a replica off the network as a kill does: what it has not said, it never says. It runs
    /// on for nobody.
    pub fn kill(&mut self, id: u64) {
        self.net.groups.lock().unwrap().remove(&ReplicaId(id));
        let node = self.nodes.remove(&id).unwrap();
        node.links.dead.send_replace(true);
        self.killed.push(node);
    }

    pub fn group(&self, id: u64) -> &Group<Journal> {
        &self.nodes[&id].group
    }

    /// The replica that leads and has a majority behind it.
    pub async fn leader(&self) -> u64 {
        self.leader_but(0).await
    }

    /// The same, without counting `not`.
    pub async fn leader_but(&self, not: u64) -> u64 {
        let deadline = soon();
        loop {
            for (id, node) in &self.nodes {
                let status = node.group.status();
                let leads =
                    status.role == Role::Leader && status.committed.is_some_and(|c| c.term == status.term);
                if *id != not && leads && status.quorum_acked.is_some() {
                    return *id;
                }
            }
            assert!(Instant::now() < deadline, "nobody leads: {:#?}", self.statuses());
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn statuses(&self) -> Vec<(u64, Status)> {
        self.nodes.iter().map(|(id, node)| (*id, node.group.status())).collect()
    }

    /// Writes through whoever leads, but `not`.
    pub async fn write_but(&self, not: u64, command: &str) {
        let deadline = soon();
        loop {
            let leader = self.leader_but(not).await;
            match self.group(leader).propose(Bytes::copy_from_slice(command.as_bytes()), soon()).await {
                Ok(_) => return,
                Err(ProposeError::NotLeader { .. }) if Instant::now() < deadline => {
                    sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{command}: {error}"),
            }
        }
    }

    pub async fn write(&self, command: &str) {
        self.write_but(0, command).await;
    }

    /// Waits until every replica that runs has applied `expected`, and no more.
    pub async fn converge(&self, expected: &str) {
        for id in self.nodes.keys() {
            self.applies(*id, expected).await;
        }
    }

    pub async fn applies(&self, id: u64, expected: &str) {
        let deadline = soon();
        loop {
            let found = self.group(id).stale().map(|space| super::tests::content(&space));
            if found.as_deref() == Ok(expected) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "r{id} holds {found:?}, not {expected:?}: {:#?}",
                self.statuses()
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until `holds` does.
    pub async fn wait(&self, what: &str, mut holds: impl FnMut(&Cluster) -> bool) {
        let deadline = soon();
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what}: {:#?}", self.statuses());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}
