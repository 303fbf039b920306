//! A whole cluster on one thread, whose time, randomness, disks, tasks and network belong to a seed.
//!
//! The production code of `raft/`, `wal/`, `kv/` and `meta/`, and the decisions of `node/`, run on several nodes;
//! what surrounds them is simulated.
//! The same seed gives the same run, event for event. `docs/decisions/0016-simulation.md` says how, and
//! what it does not show.
//!
//! ```text
//! clients ── ask ──▶ node: Group ── Links ──▶ network ──▶ Group of another node
//!                      │  wal, store                    faults: crash, power loss, cut, stall, slow
//!                    disk, engine                       operator: join, leave
//! every message, apply, acknowledgement ──▶ invariants          calls and answers ──▶ history
//! ```

mod client;
mod dice;
mod disk;
mod engine;
mod executor;
mod faults;
mod follow;
mod invariants;
mod network;
mod node;
mod operator;
mod reconcile;
mod tests;
mod trace;
mod watched;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, LocalBoxFuture, join_all};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use self::client::Client;
use self::dice::Dice;
use self::executor::Executor;
use self::invariants::Invariants;
use self::network::Network;
use self::node::{Data, Meta, Node, Running};
use self::trace::{Event, Trace, hash_of};
use crate::history::{self, Operation};
use crate::raft::{self, Class, Role, Route, Space};
use crate::runtime::{self, Planted};
use crate::types::{GroupId, LogKey, NodeId, PartitionId};

const FOUNDERS: u32 = 4;
const PARTITIONS: u32 = 2;
const REPLICAS: u32 = 3;
const CLIENTS: u32 = 5;
const CALLS: u64 = 1000;
const LASTS: Duration = Duration::from_secs(60);

/// After the last fault, everybody must be where group 0 wants them, and have applied everything, within this.
const CONVERGES_WITHIN: Duration = Duration::from_secs(60);

/// For each key's search: far more than any history of this length takes.
const SEARCH_BUDGET: u64 = 20_000_000;

/// Everything that a seed decides.
struct Simulation {
    executor: Executor,
    network: Network,
    nodes: RefCell<BTreeMap<NodeId, Node>>,
    invariants: RefCell<Invariants>,
    history: RefCell<BTreeMap<String, Vec<Operation>>>,
    trace: Trace,
    disk_dice: Dice,
    /// What openraft draws.
    raft_dice: Dice,
    planted: Option<Planted>,
    ambush: Cell<Option<Ambush>>,
    faults: Cell<u64>,
    /// Of members.
    changes: Cell<u64>,
    /// Of memberships of groups.
    steps: Cell<u64>,
    snapshots: Cell<u64>,
    began: Instant,
}

thread_local! {
    static SIMULATION: RefCell<Option<Rc<Simulation>>> = const { RefCell::new(None) };
}

/// The one that this thread runs.
fn sim() -> Rc<Simulation> {
    SIMULATION.with(|sim| sim.borrow().clone()).expect("only what a simulation runs asks for it")
}

/// The simulation as the seam sees it.
struct Seam;

impl runtime::World for Seam {
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        sim().executor.spawn(future);
    }

    fn random(&self) -> u64 {
        sim().raft_dice.draw()
    }

    fn paced(&self, duration: Duration) -> Duration {
        let sim = sim();
        let node = sim.executor.current();
        let nodes = sim.nodes.borrow();
        node.and_then(|id| nodes.get(&id)).map_or(duration, |node| duration * node.pace_percent / 100)
    }

    fn is_planted(&self, bug: Planted) -> bool {
        sim().is_planted(bug)
    }
}

/// What a node does when a fault waits for it: it crashes at that moment, before any fsync returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ambush {
    /// Gives its vote.
    Vote,
    /// Sends entries.
    Entries,
    /// Answers entries.
    Append,
    /// Answers a part of a snapshot.
    Snapshot,
}

/// What a seed came to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ended {
    hash: u64,
    events: u64,
    operations: usize,
    unknown: usize,
    faults: u64,
    changes: u64,
    steps: u64,
    leaders: usize,
    snapshots: u64,
    /// Pairs of replicas whose records were compared after the same entry.
    compared: u64,
}

/// Runs a seed to its end.
///
/// # Panics
/// If something does not hold.
fn run(seed: u64, planted: Option<Planted>, loud: bool) -> Ended {
    let tokio =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let began = {
        let _inside = tokio.enter();
        Instant::now()
    };
    let sim = Rc::new(Simulation {
        executor: Executor::new(Dice::new(seed, "executor")),
        network: Network::new(Dice::new(seed, "network")),
        nodes: RefCell::default(),
        invariants: RefCell::default(),
        history: RefCell::default(),
        trace: Trace::new(loud),
        disk_dice: Dice::new(seed, "disk"),
        raft_dice: Dice::new(seed, "raft"),
        planted,
        ambush: Cell::new(None),
        faults: Cell::new(0),
        changes: Cell::new(0),
        steps: Cell::new(0),
        snapshots: Cell::new(0),
        began,
    });
    let _leaving = Entered::new(&sim);
    let turn = |id| sim.note(Event::Polled(id));
    let quiet = || sim.compare_logs();
    tokio.block_on(sim.executor.run(play(seed), turn, quiet))
}

/// Ends the simulation however the run ends.
struct Entered {
    sim: Rc<Simulation>,
    seam: Option<runtime::Inside>,
}

impl Entered {
    fn new(sim: &Rc<Simulation>) -> Entered {
        SIMULATION.with(|current| *current.borrow_mut() = Some(sim.clone()));
        Entered { sim: sim.clone(), seam: Some(runtime::enter(Rc::new(Seam))) }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.sim.trace.last());
        }
        // Tasks and nodes while they still find the simulation; it is kept by what they hold.
        self.sim.executor.clear();
        let nodes = std::mem::take(&mut *self.sim.nodes.borrow_mut());
        drop(nodes);
        drop(self.seam.take());
        SIMULATION.with(|current| current.borrow_mut().take());
    }
}

/// The story of a seed.
async fn play(seed: u64) -> Ended {
    let dice = Dice::new(seed, "play");
    let sim = sim();
    // sled's way of recovering, or fjall's.
    let recovers_prefix = dice.chance(50);
    for number in (1..=FOUNDERS).map(NodeId) {
        sim.nodes.borrow_mut().insert(number, Node::new(number, recovers_prefix));
        sim.start(number);
    }
    sleep(Duration::from_millis(200)).await;
    operator::found().await;
    let end = Instant::now() + LASTS;
    sim.beside(faults::run(Dice::new(seed, "faults"), end - Duration::from_secs(5)));
    sim.beside(operator::run(Dice::new(seed, "operator"), recovers_prefix));
    let clients = (1..=CLIENTS).map(|number| {
        let client = Client::new(number, Dice::new(seed ^ u64::from(number) << 40, "client"));
        client.run(CALLS / u64::from(CLIENTS), end)
    });
    join_all(clients).await;
    sleep_until(end).await;
    faults::heal();
    sim.converge().await;
    Client::new(CLIENTS + 1, Dice::new(seed, "reader")).read_all().await;
    sim.verdict()
}

impl Simulation {
    fn is_planted(&self, bug: Planted) -> bool {
        self.planted == Some(bug)
    }

    fn note(&self, event: Event) {
        self.trace.note(self.began.elapsed().as_millis() as u64, event);
    }

    fn tell(&self, what: String) {
        self.note(Event::Note(what));
    }

    /// Outside of all nodes.
    fn beside(&self, future: impl Future<Output = ()> + 'static) {
        let future: LocalBoxFuture<'static, ()> = future.boxed_local();
        self.executor.on(None, || self.executor.spawn(future));
    }

    /// Does something as a task of `node`, which may crash before it is done.
    fn ask<T: 'static>(&self, node: NodeId, work: impl Future<Output = T> + 'static) -> oneshot::Receiver<T> {
        let (tell, told) = oneshot::channel();
        let working = work.map(move |value| drop(tell.send(value)));
        self.executor.on(Some(node), || self.executor.spawn(working.boxed_local()));
        told
    }

    fn start(&self, node: NodeId) {
        self.executor.on(Some(node), || {
            if let Some(node) = self.nodes.borrow_mut().get_mut(&node) {
                node.start();
            }
        });
    }

    fn crash(&self, id: NodeId, power_loss: bool) {
        let running = self.nodes.borrow_mut().get_mut(&id).and_then(|node| node.crash(power_loss));
        self.executor.kill(id, || drop(running));
        self.network.crashed(id);
    }

    fn receive(
        &self,
        route: Route,
        class: Class,
        message: Bytes,
    ) -> Option<BoxFuture<'static, Result<Bytes, String>>> {
        self.nodes.borrow().get(&route.to.node())?.receive(route, class, message)
    }

    /// A node that leads something.
    fn a_leader(&self) -> Option<NodeId> {
        let nodes = self.nodes.borrow();
        let groups =
            nodes.values().filter_map(|node| node.running.as_ref()).flat_map(|it| it.groups.values());
        let mut led = groups.filter(|group| group.status().role == Role::Leader);
        led.next().map(|group| group.key().replica.node())
    }

    /// Does something to a node that runs.
    fn running(&self, id: NodeId, work: impl FnOnce(&mut Running)) {
        if let Some(running) = self.nodes.borrow_mut().get_mut(&id).and_then(|node| node.running.as_mut()) {
            work(running);
        }
    }

    fn members(&self) -> Vec<NodeId> {
        let nodes = self.nodes.borrow();
        nodes.iter().filter(|(_, node)| node.is_member).map(|(id, _)| *id).collect()
    }

    fn meta(&self, id: NodeId) -> Option<Meta> {
        self.nodes.borrow().get(&id)?.running.as_ref()?.meta.clone()
    }

    /// The partitions' replicas on a node.
    fn held(&self, id: NodeId) -> Vec<(PartitionId, Data)> {
        let nodes = self.nodes.borrow();
        let Some(running) = nodes.get(&id).and_then(|node| node.running.as_ref()) else { return Vec::new() };
        running.groups.iter().map(|(group, held)| (PartitionId(group.0 - 1), held.clone())).collect()
    }

    /// Whether that replica is one of a node that runs, and is not about to be destroyed.
    fn holds(&self, id: NodeId, key: LogKey) -> bool {
        match key.group {
            GroupId::META => self.meta(id).is_some(),
            _ => self.held(id).iter().any(|(_, group)| group.key() == key),
        }
    }

    /// A step towards what group 0 wants.
    fn step(&self, what: String, is_taken: bool) {
        self.tell(what);
        self.steps.set(self.steps.get() + u64::from(is_taken));
    }

    /// Waits until everybody is where group 0 wants them, and has applied everything.
    async fn converge(&self) {
        let deadline = Instant::now() + CONVERGES_WITHIN;
        loop {
            sleep(Duration::from_millis(100)).await;
            match self.unrest() {
                None => return,
                Some(why) => assert!(Instant::now() < deadline, "it does not come to rest: {why}"),
            }
        }
    }

    /// What is not as it should be.
    fn unrest(&self) -> Option<String> {
        let mut statuses: BTreeMap<LogKey, raft::Status> = BTreeMap::new();
        let mut state = None;
        for node in self.members() {
            let Some(meta) = self.meta(node) else { return Some(format!("{node} does not run")) };
            let status = meta.group.status();
            if status.role == Role::Leader {
                state = Some(meta.state.borrow().clone());
            }
            statuses.insert(meta.group.key(), status);
            statuses.extend(self.held(node).iter().map(|(_, group)| (group.key(), group.status())));
        }
        let Some(state) = state else { return Some(format!("nobody leads group 0: {statuses:#?}")) };
        if self.changes.get() < 2 {
            return Some(format!("the operator is not done: {state:#?}"));
        }
        for group in (0..=PARTITIONS).map(GroupId) {
            let desired = state.desired(group)?;
            let mut wanted: Vec<_> = desired.voters.iter().chain(&desired.learners).copied().collect();
            wanted.sort_unstable();
            let of_group: Vec<_> = statuses.iter().filter(|(key, _)| key.group == group).collect();
            let there: Vec<_> = of_group.iter().map(|(key, _)| key.replica).collect();
            if there != wanted {
                return Some(format!("{group} is on {there:?}, not on {wanted:?}: {of_group:#?}"));
            }
            let is_whole = |status: &raft::Status| {
                status.applied.map(|applied| applied.index) == Some(status.last_index) && !status.joint
            };
            let last = of_group[0].1.last_index;
            let leads = |status: &raft::Status| status.role == Role::Leader && status.quorum_acked.is_some();
            let is_even = of_group.iter().all(|(_, status)| is_whole(status) && status.last_index == last);
            if !is_even || !of_group.iter().any(|(_, status)| leads(status)) {
                return Some(format!("{group} is not even: {of_group:#?}"));
            }
            for (key, _) in of_group {
                self.invariants.borrow().acknowledged.reached(group, key.replica, last);
            }
        }
        None
    }

    fn verdict(&self) -> Ended {
        let history = self.history.borrow();
        let report = history::check(&history, SEARCH_BUDGET);
        let violations: Vec<&str> = report.violations.iter().map(|it| it.text.as_str()).collect();
        assert!(violations.is_empty(), "linearizability: {}", violations.join("\n"));
        assert!(report.undecided.is_empty(), "no verdict on {:?}", report.undecided);
        let invariants = self.invariants.borrow();
        Ended {
            hash: self.trace.hash(),
            events: self.trace.count(),
            operations: report.operations,
            unknown: report.unknown,
            faults: self.faults.get(),
            changes: self.changes.get(),
            steps: self.steps.get(),
            leaders: invariants.election.count(),
            snapshots: self.snapshots.get(),
            compared: invariants.same_state.compared,
        }
    }

    /// A message is sent: what it claims must hold.
    fn watch_message(&self, route: Route, message: &Bytes) {
        let Some(claim) = raft::testing::claim(route.from, message.clone()) else { return };
        let mut invariants = self.invariants.borrow_mut();
        if !claim.entries.is_empty() {
            self.spring(Ambush::Entries, route.from.node());
        }
        let mut previous = claim.previous;
        for (id, payload) in claim.entries {
            invariants.matching.entry(route.group, route.from, previous, id, hash_of(&payload));
            previous = Some(id);
        }
        if !invariants.election.leads(route.group, claim.term, route.from) {
            return;
        }
        let key = LogKey { group: route.group, replica: route.from };
        self.note(Event::Leads(key, claim.term));
        let nodes = self.nodes.borrow();
        let running = nodes.get(&route.from.node()).and_then(|node| node.running.as_ref());
        if let Some(running) = running {
            let log = running.process.wal.log(key);
            invariants::check_completeness(&invariants.safety, key, claim.term, &log);
        }
    }

    /// A node answers: what it promises must hold, and it may crash at once.
    fn watch_answer(&self, route: Route, class: Class, request: Bytes, answer: Bytes) {
        let granted = raft::testing::granted(route.from, request, answer);
        if let Some(term) = granted {
            let voter = LogKey { group: route.group, replica: route.to };
            self.invariants.borrow_mut().votes.granted(voter, term, route.from);
        }
        let trap = match class {
            _ if granted.is_some() => Ambush::Vote,
            Class::Append => Ambush::Append,
            Class::Snapshot => Ambush::Snapshot,
            Class::Control => return,
        };
        self.spring(trap, route.to.node());
    }

    /// Crashes a node if it has just done what the fault waits for. What it said is on its way.
    fn spring(&self, what: Ambush, node: NodeId) {
        if self.ambush.get() == Some(what) {
            self.ambush.set(None);
            self.beside(async move { faults::ambushed(node) });
        }
    }

    fn applied(&self, key: LogKey, index: u64, command: u64) {
        self.note(Event::Applied(key, index, command));
        let nodes = self.nodes.borrow();
        let running = nodes.get(&key.replica.node()).and_then(|node| node.running.as_ref());
        let id = running.and_then(|running| running.process.wal.log(key).id_at(index));
        let Some(id) = id else { panic!("{key} applies entry {index}, which is not in its log") };
        let mut invariants = self.invariants.borrow_mut();
        let newest_term = invariants.election.newest(key.group);
        invariants.safety.applied(key, id, command, newest_term);
    }

    fn installed(&self, key: LogKey) {
        self.note(Event::Installed(key));
        self.snapshots.set(self.snapshots.get() + 1);
    }

    fn published(&self, key: LogKey, index: u64, space: &Space) {
        self.invariants.borrow_mut().same_state.published(key, index, space);
    }

    /// Of all nodes that run, each time that nobody has anything to do.
    fn compare_logs(&self) {
        let nodes = self.nodes.borrow();
        let mut invariants = self.invariants.borrow_mut();
        for running in nodes.values().filter_map(|node| node.running.as_ref()) {
            let meta = running.meta.iter().map(|meta| meta.group.key());
            for key in running.groups.values().map(|group| group.key()).chain(meta) {
                let log = running.process.wal.log(key);
                let Some(last) = log.last() else { continue };
                let mut next = invariants.matching.unseen(key, last);
                let mut previous = next.checked_sub(1).and_then(|before| log.id_at(before));
                while next <= last.index {
                    let Some(id) = log.id_at(next) else { break };
                    let entries = log.entries(next, next + 1, usize::MAX).unwrap();
                    // Not where the log was purged to: only its id is left.
                    if let Some(entry) = entries.first() {
                        let payload = hash_of(&entry.payload);
                        invariants.matching.entry(key.group, key.replica, previous, id, payload);
                    }
                    previous = Some(id);
                    next += 1;
                }
            }
        }
    }
}
