//! Who gets the next turn: every task of every node, on one thread, in an order that the seed decides.
//!
//! It runs inside of tokio's single thread with paused time, for tokio's timers and channels: time moves
//! on when nobody has anything to do. Of the tasks that can go on, any may be next, and which ones can go
//! on does not depend on the order in which they were woken: tokio wakes waiters of one watch in an order
//! of its own.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;

use super::dice::Dice;
use crate::types::NodeId;

/// Turns at one moment after which the simulation is stuck in a loop.
const TURNS_AT_ONCE_MAX: u64 = 200_000;

#[derive(Default)]
struct Ready {
    woken: Mutex<BTreeSet<u64>>,
    /// Of the future that drives all tasks.
    driver: Mutex<Option<Waker>>,
}

struct TaskWaker {
    id: u64,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.woken.lock().unwrap().insert(self.id);
        if let Some(driver) = self.ready.driver.lock().unwrap().as_ref() {
            driver.wake_by_ref();
        }
    }
}

struct Task {
    /// On which node it runs; `None`: outside of all, as the network and the clients do.
    node: Option<NodeId>,
    /// Taken while it has its turn.
    future: Option<LocalBoxFuture<'static, ()>>,
    waker: Waker,
}

/// All tasks.
pub(super) struct Executor {
    tasks: RefCell<BTreeMap<u64, Task>>,
    next: Cell<u64>,
    ready: Arc<Ready>,
    /// Whose task has its turn, if one has: what it spawns runs there.
    current: Cell<Option<NodeId>>,
    /// A node's tasks are being dropped: what they spawn is dropped, too.
    ending: Cell<bool>,
    /// Nodes whose tasks get no turns.
    stalled: RefCell<BTreeSet<NodeId>>,
    dice: Dice,
}

impl Executor {
    pub(super) fn new(dice: Dice) -> Executor {
        Executor {
            tasks: RefCell::default(),
            next: Cell::new(0),
            ready: Arc::default(),
            current: Cell::new(None),
            ending: Cell::new(false),
            stalled: RefCell::default(),
            dice,
        }
    }

    /// A task that runs where the caller does.
    pub(super) fn spawn(&self, future: LocalBoxFuture<'static, ()>) {
        if self.ending.get() {
            return;
        }
        let id = self.next.replace(self.next.get() + 1);
        let waker = Waker::from(Arc::new(TaskWaker { id, ready: self.ready.clone() }));
        let task = Task { node: self.current.get(), future: Some(future), waker: waker.clone() };
        self.tasks.borrow_mut().insert(id, task);
        waker.wake();
    }

    /// On which node the current turn is; `None`: outside of all.
    pub(super) fn current(&self) -> Option<NodeId> {
        self.current.get()
    }

    /// Does something as a task of `node` would.
    pub(super) fn on<T>(&self, node: Option<NodeId>, work: impl FnOnce() -> T) -> T {
        let before = self.current.replace(node);
        let done = work();
        self.current.set(before);
        done
    }

    /// Drops every task of a node, wherever it is, and what `also` drops.
    pub(super) fn kill(&self, node: NodeId, also: impl FnOnce()) {
        let mut killed = Vec::new();
        self.tasks.borrow_mut().retain(|_, task| {
            let stays = task.node != Some(node);
            if !stays {
                killed.push(task.future.take());
            }
            stays
        });
        let before = self.ending.replace(true);
        drop(killed);
        also();
        self.ending.set(before);
        self.stalled.borrow_mut().remove(&node);
    }

    pub(super) fn stall(&self, node: NodeId) {
        self.stalled.borrow_mut().insert(node);
    }

    pub(super) fn resume(&self, node: NodeId) {
        self.stalled.borrow_mut().remove(&node);
        if let Some(driver) = self.ready.driver.lock().unwrap().as_ref() {
            driver.wake_by_ref();
        }
    }

    /// Runs tasks until `main` has ended. `turn` is told of each turn; `quiet` is called each time that nobody
    /// can go on at this moment.
    pub(super) async fn run<T: 'static>(
        &self,
        main: impl Future<Output = T> + 'static,
        turn: impl Fn(u64),
        quiet: impl Fn(),
    ) -> T {
        let result: Rc<RefCell<Option<T>>> = Rc::default();
        let place = result.clone();
        self.spawn(main.map(move |value| *place.borrow_mut() = Some(value)).boxed_local());
        let driving = poll_fn(|context| {
            *self.ready.driver.lock().unwrap() = Some(context.waker().clone());
            for _ in 0..TURNS_AT_ONCE_MAX {
                let Some(id) = self.choose() else {
                    quiet();
                    return Poll::Pending;
                };
                turn(id);
                self.poll(id);
                if let Some(value) = result.borrow_mut().take() {
                    return Poll::Ready(value);
                }
            }
            panic!("{TURNS_AT_ONCE_MAX} turns, and time stands still");
        });
        // One tokio task for all of ours: its budget must not end the turn of any.
        tokio::task::unconstrained(driving).await
    }

    fn choose(&self) -> Option<u64> {
        let mut woken = self.ready.woken.lock().unwrap();
        let tasks = self.tasks.borrow();
        woken.retain(|id| tasks.contains_key(id));
        let stalled = self.stalled.borrow();
        let may =
            |id: &&u64| stalled.is_empty() || tasks[*id].node.is_none_or(|node| !stalled.contains(&node));
        let count = woken.iter().filter(may).count() as u64;
        if count == 0 {
            return None;
        }
        let id = *woken.iter().filter(may).nth(self.dice.below(count) as usize).unwrap();
        woken.remove(&id);
        Some(id)
    }

    fn poll(&self, id: u64) {
        let Some((mut future, waker, node)) = self
            .tasks
            .borrow_mut()
            .get_mut(&id)
            .and_then(|task| Some((task.future.take()?, task.waker.clone(), task.node)))
        else {
            return;
        };
        let ended = self.on(node, || future.poll_unpin(&mut Context::from_waker(&waker)).is_ready());
        if ended {
            self.tasks.borrow_mut().remove(&id);
        } else if let Some(task) = self.tasks.borrow_mut().get_mut(&id) {
            task.future = Some(future);
            return;
        }
        // It ended, or killed its own node.
        self.on(node, || drop(future));
    }

    /// Drops all tasks.
    pub(super) fn clear(&self) {
        self.ending.set(true);
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
    }
}
