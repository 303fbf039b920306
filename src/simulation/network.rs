//! The network between the simulated nodes: delays, broken connections, links that are cut one way or both.
//!
//! As the real transport does, it keeps one connection for each class from each node to each other: what goes
//! over it arrives in order or not at all. While a link is cut nothing arrives; afterwards what was sent
//! arrives late, or the connection is found broken.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::dice::Dice;
use super::sim;
use super::trace::{Event, hash_of};
use crate::raft::{Carrier, CarryError, Class, Route};
use crate::types::NodeId;

type Answer = Result<Bytes, CarryError>;

struct Packet {
    route: Route,
    message: Bytes,
    at: Instant,
    /// Of the connection when it was sent.
    connection: u64,
    answer: oneshot::Sender<Answer>,
}

/// From one node to another, for one class.
struct Link {
    from: NodeId,
    to: NodeId,
    class: Class,
    queue: RefCell<VecDeque<Packet>>,
    pushed: Notify,
    /// Counts connections: a broken one is replaced at once.
    connection: Cell<u64>,
    last: Cell<Instant>,
}

/// All links.
pub(super) struct Network {
    links: RefCell<BTreeMap<(NodeId, NodeId, Class), Rc<Link>>>,
    cut: watch::Sender<BTreeSet<(NodeId, NodeId)>>,
    dice: Dice,
    /// Delays are so many times longer.
    slowness: Cell<u32>,
}

impl Network {
    pub(super) fn new(dice: Dice) -> Network {
        Network {
            links: RefCell::default(),
            cut: watch::Sender::new(BTreeSet::new()),
            dice,
            slowness: Cell::new(1),
        }
    }

    pub(super) fn cut(&self, from: NodeId, to: NodeId) {
        self.cut.send_modify(|cut| {
            cut.insert((from, to));
        });
    }

    pub(super) fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.borrow().contains(&(from, to))
    }

    pub(super) fn heal(&self) {
        let cut = self.cut.send_replace(BTreeSet::new());
        for link in self.links.borrow().values() {
            let was_cut = cut.contains(&(link.from, link.to)) || cut.contains(&(link.to, link.from));
            if was_cut && self.dice.chance(50) {
                link.connection.set(link.connection.get() + 1);
            }
        }
    }

    pub(super) fn set_slowness(&self, times: u32) {
        self.slowness.set(times);
    }

    pub(super) fn delay(&self) -> Duration {
        let delay = match self.dice.below(100) {
            0..80 => self.dice.ms(1, 2),
            80..98 => self.dice.ms(2, 15),
            _ => self.dice.ms(15, 150),
        };
        delay * self.slowness.get()
    }

    /// A node crashed. What it had sent may still arrive.
    pub(super) fn crashed(&self, node: NodeId) {
        for link in self.links.borrow().values() {
            if link.to == node || (link.from == node && self.dice.chance(30)) {
                link.connection.set(link.connection.get() + 1);
            }
        }
    }

    fn link(&self, from: NodeId, to: NodeId, class: Class) -> Rc<Link> {
        let mut links = self.links.borrow_mut();
        let new = || {
            let link = Rc::new(Link {
                from,
                to,
                class,
                queue: RefCell::default(),
                pushed: Notify::new(),
                connection: Cell::new(0),
                last: Cell::new(Instant::now()),
            });
            let executor = &sim().executor;
            executor.on(None, || executor.spawn(carry(link.clone()).boxed_local()));
            link
        };
        links.entry((from, to, class)).or_insert_with(new).clone()
    }

    fn send(&self, route: Route, class: Class, message: Bytes) -> oneshot::Receiver<Answer> {
        let link = self.link(route.from.node(), route.to.node(), class);
        // Never ahead of what was sent before.
        let at = link.last.get().max(Instant::now() + self.delay());
        link.last.set(at);
        let (answer, answered) = oneshot::channel();
        let connection = link.connection.get();
        link.queue.borrow_mut().push_back(Packet { route, message, at, connection, answer });
        link.pushed.notify_one();
        if self.dice.below(1000) < 2 {
            link.connection.set(connection + 1);
        }
        answered
    }
}

async fn wait_while_cut(from: NodeId, to: NodeId) {
    let mut cut = sim().network.cut.subscribe();
    // The sender lives as long as the simulation.
    let _ = cut.wait_for(|cut| !cut.contains(&(from, to))).await;
}

/// Takes to a node what is sent to it over one link.
async fn carry(link: Rc<Link>) {
    loop {
        let next = link.queue.borrow_mut().pop_front();
        let Some(Packet { route, message, at, connection, answer }) = next else {
            link.pushed.notified().await;
            continue;
        };
        sleep_until(at).await;
        wait_while_cut(link.from, link.to).await;
        let sim = sim();
        if link.connection.get() != connection {
            let _ = answer.send(Err(CarryError::Broken("the connection broke".into())));
            continue;
        }
        sim.note(Event::Delivered(route, link.class, hash_of(&message)));
        let class = link.class;
        let node = Some(route.to.node());
        let Some(received) = sim.executor.on(node, || sim.receive(route, class, message.clone())) else {
            let _ = answer.send(Err(CarryError::Unreachable("no such replica runs there".into())));
            continue;
        };
        let link = link.clone();
        let request = message.clone();
        // If the node crashes, nobody answers.
        let answering = async move {
            let answer_there = received.await.map_err(CarryError::Refused);
            if let Ok(there) = &answer_there {
                super::sim().watch_answer(route, class, request, there.clone());
            }
            let executor = &super::sim().executor;
            let back = bring_back(link, route, connection, answer_there, answer);
            executor.on(None, || executor.spawn(back.boxed_local()));
        };
        sim.executor.on(node, || sim.executor.spawn(answering.boxed_local()));
    }
}

async fn bring_back(
    link: Rc<Link>,
    route: Route,
    connection: u64,
    result: Answer,
    answer: oneshot::Sender<Answer>,
) {
    sleep(sim().network.delay()).await;
    wait_while_cut(link.to, link.from).await;
    let result = match link.connection.get() == connection {
        true => result,
        false => Err(CarryError::Broken("the connection broke before the answer".into())),
    };
    let shown = result.as_ref().map(|bytes| hash_of(bytes)).map_err(ToString::to_string);
    sim().note(Event::Answered(route, link.class, shown));
    // Whoever asked may have given up, or crashed.
    let _ = answer.send(result);
}

/// The network, as every node sees it.
#[derive(Debug)]
pub(super) struct Links;

impl Carrier for Links {
    fn send(&self, route: Route, class: Class, message: Bytes) -> BoxFuture<'static, Answer> {
        let sim = sim();
        sim.note(Event::Sent(route, class, hash_of(&message)));
        sim.watch_message(route, &message);
        let answered = sim.network.send(route, class, message);
        async move { answered.await.unwrap_or_else(|_| Err(CarryError::Broken("it crashed".into()))) }.boxed()
    }
}
