//! Where tasks, blocking work and random numbers come from: the seam behind which a simulation stands.
//!
//! The layers that a simulation runs (`tests/tidy.rs` lists them) spawn, block and draw only through here,
//! and look at no clock but tokio's. A node gets tokio's tasks and the machine's random numbers. In a test
//! build a thread can be given a [`World`] instead, which then owns whatever is spawned on that thread.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

#[cfg(test)]
pub use world::{Inside, Planted, World, enter, is_planted};

/// A task that was spawned. Dropped, it goes on.
#[derive(Debug)]
pub struct Task<T>(Inner<T>);

#[derive(Debug)]
enum Inner<T> {
    Tokio(tokio::task::JoinHandle<T>),
    #[cfg(test)]
    Simulated(tokio::sync::oneshot::Receiver<T>),
}

/// A task ended without a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("a task panicked: {0}")]
    Panicked(String),
    #[error("a task was cancelled")]
    Cancelled,
}

impl<T> Future for Task<T> {
    type Output = Result<T, Ended>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Inner::Tokio(handle) => Pin::new(handle).poll(context).map_err(|error| match error.is_panic() {
                true => Ended::Panicked(error.to_string()),
                false => Ended::Cancelled,
            }),
            #[cfg(test)]
            Inner::Simulated(result) => Pin::new(result).poll(context).map_err(|_| Ended::Cancelled),
        }
    }
}

/// Runs a future beside its caller.
pub fn spawn<F>(future: F) -> Task<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[cfg(test)]
    if let Some(world) = world::current() {
        return Task(Inner::Simulated(world::spawn_in(world.as_ref(), future)));
    }
    Task(Inner::Tokio(tokio::spawn(future)))
}

/// Runs what may block on the disk where no other task waits for it.
pub fn spawn_blocking<T, W>(work: W) -> Task<T>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    #[cfg(test)]
    if let Some(world) = world::current() {
        return Task(Inner::Simulated(world::spawn_in(world.as_ref(), async move { work() })));
    }
    Task(Inner::Tokio(tokio::task::spawn_blocking(work)))
}

/// A duration as the clock of this node measures it: clocks of simulated nodes run fast or slow.
pub fn paced(duration: Duration) -> Duration {
    #[cfg(test)]
    if let Some(world) = world::current() {
        return world.paced(duration);
    }
    duration
}

/// Random numbers, of no use as secrets.
#[derive(Debug)]
pub struct Random<R> {
    machine: R,
}

impl<R: rand_core::Rng> Random<R> {
    /// `machine` draws them unless a simulation does.
    pub fn new(machine: R) -> Random<R> {
        Random { machine }
    }
}

impl<R: rand_core::Rng> rand_core::TryRng for Random<R> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        #[cfg(test)]
        if let Some(world) = world::current() {
            return Ok((world.random() >> 32) as u32);
        }
        Ok(self.machine.next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        #[cfg(test)]
        if let Some(world) = world::current() {
            return Ok(world.random());
        }
        Ok(self.machine.next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        #[cfg(test)]
        if let Some(world) = world::current() {
            for chunk in bytes.chunks_mut(8) {
                chunk.copy_from_slice(&world.random().to_le_bytes()[..chunk.len()]);
            }
            return Ok(());
        }
        self.machine.fill_bytes(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod world {
    //! A simulation's side of the seam.

    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;
    use tokio::sync::oneshot;

    /// Owns what is spawned on this thread.
    pub trait World {
        fn spawn(&self, future: BoxFuture<'static, ()>);
        fn random(&self) -> u64;
        fn paced(&self, duration: Duration) -> Duration;
        fn is_planted(&self, bug: Planted) -> bool;
    }

    /// Bugs of which a simulation must show that it would catch them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Planted {
        /// Writes are said to be durable when their fsync begins.
        AnswerBeforeFsync,
        /// A vote is given before it is durable.
        VoteNotDurable,
        /// A leader that comes back in its term goes on leading.
        LeaderRestore,
        /// A leader answers reads without asking whether it still leads.
        UnconfirmedRead,
    }

    pub fn is_planted(bug: Planted) -> bool {
        current().is_some_and(|world| world.is_planted(bug))
    }

    thread_local! {
        static WORLD: RefCell<Option<Rc<dyn World>>> = const { RefCell::new(None) };
    }

    /// Puts a world behind the seam of this thread, until what is returned is dropped.
    pub fn enter(world: Rc<dyn World>) -> Inside {
        WORLD.with(|current| *current.borrow_mut() = Some(world));
        Inside(())
    }

    /// While it lives, the thread has its own world.
    #[derive(Debug)]
    pub struct Inside(());

    impl Drop for Inside {
        fn drop(&mut self) {
            let left = WORLD.with(|current| current.borrow_mut().take());
            drop(left);
        }
    }

    pub(super) fn current() -> Option<Rc<dyn World>> {
        WORLD.with(|current| current.borrow().clone())
    }

    pub(super) fn spawn_in<F>(world: &dyn World, future: F) -> oneshot::Receiver<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        // Nobody may wait for it.
        world.spawn(future.map(move |result| drop(sender.send(result))).boxed());
        receiver
    }
}
