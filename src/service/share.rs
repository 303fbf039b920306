//! How much one connection may have of what all connections of a port share.
//!
//! A limit for all alone would let one client shut every other out: it takes the whole and keeps it. So a
//! connection may hold only a part of what is still free (the dynamic thresholds of Choudhury and Hahne,
//! 1998). With a quarter, one that wants everything gets a fifth; N at once get 1/(N+4) each, and four times
//! that stays free for whoever comes then. Who holds something is never made to give it back, so N that come
//! one after another take a fifth of the rest each. But what is large is refused long before what is small.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::IntGauge;
use tokio::sync::Semaphore;

use super::answer::{Answers, Lingering};
use super::grpc::Options;
use crate::limits::{PIPELINES_PER_CONNECTION_MAX, REQUEST_BYTES_MAX};

/// Something of which there is a limited amount.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    total: Arc<AtomicUsize>,
    max: usize,
    /// A connection may hold one part in so many of what is free.
    parts: usize,
}

/// What one connection holds of a pool.
#[derive(Debug, Clone)]
pub(super) struct Share(Arc<Holds>);

#[derive(Debug)]
struct Holds {
    pool: Pool,
    own: AtomicUsize,
}

/// A part of that; given back when dropped.
#[derive(Debug)]
pub(super) struct Taken {
    share: Share,
    amount: AtomicUsize,
}

/// There is no more for this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom {
    /// What all connections hold.
    pub total: usize,
    /// What this one does.
    pub own: usize,
    /// What it may hold for now.
    pub part: usize,
    pub max: usize,
}

impl Pool {
    /// Of `max`; a connection may hold one part in `parts` of what is free.
    pub fn new(max: usize, parts: usize) -> Pool {
        Pool { total: Arc::default(), max, parts }
    }

    /// Whether a connection that holds `own` of a `total` may have `more`.
    fn room(&self, own: usize, more: usize, total: usize) -> Result<(), NoRoom> {
        let (max, part) = (self.max, self.max.saturating_sub(total) / self.parts);
        match own.saturating_add(more) <= part {
            true => Ok(()),
            false => Err(NoRoom { total, own, part, max }),
        }
    }

    /// That of a new connection.
    pub fn share(&self) -> Share {
        Share(Arc::new(Holds { pool: self.clone(), own: AtomicUsize::new(0) }))
    }
}

impl Share {
    /// Whether there is room for `more`.
    ///
    /// # Errors
    /// This connection holds as much as is left, or would.
    pub fn room(&self, more: usize) -> Result<(), NoRoom> {
        let pool = &self.0.pool;
        pool.room(self.0.own.load(Ordering::Relaxed), more, pool.total.load(Ordering::Relaxed))
    }

    /// Takes nothing yet.
    pub fn nothing(&self) -> Taken {
        Taken { share: self.clone(), amount: AtomicUsize::new(0) }
    }

    /// Takes `amount` if there is room for it.
    ///
    /// # Errors
    /// There is not.
    pub fn take(&self, amount: usize) -> Result<Taken, NoRoom> {
        let taken = self.nothing();
        taken.more(amount).map(|()| taken)
    }

    /// Takes `amount`, whatever there is room for.
    pub fn take_anyway(&self, amount: usize) -> Taken {
        let taken = self.nothing();
        taken.count(amount);
        taken
    }

    #[cfg(test)]
    pub fn total(&self) -> usize {
        self.0.pool.total.load(Ordering::Relaxed)
    }
}

impl Taken {
    /// Takes more, whatever there is room for.
    fn count(&self, amount: usize) {
        self.amount.fetch_add(amount, Ordering::Relaxed);
        self.share.0.own.fetch_add(amount, Ordering::Relaxed);
        self.share.0.pool.total.fetch_add(amount, Ordering::Relaxed);
    }

    /// How much it is.
    pub fn amount(&self) -> usize {
        self.amount.load(Ordering::Relaxed)
    }

    /// Gives all back, and says how much it was.
    pub fn give_back(&self) -> usize {
        let amount = self.amount.swap(0, Ordering::Relaxed);
        self.less(amount);
        amount
    }

    fn less(&self, amount: usize) {
        self.share.0.own.fetch_sub(amount, Ordering::Relaxed);
        self.share.0.pool.total.fetch_sub(amount, Ordering::Relaxed);
    }

    /// Takes more, if there is room for it: two that fit one by one and not together are not both let in, and
    /// what is refused takes nothing from anybody else.
    ///
    /// # Errors
    /// There was no room for it.
    pub fn more(&self, amount: usize) -> Result<(), NoRoom> {
        let Holds { pool, own } = &*self.share.0;
        let had = own.fetch_add(amount, Ordering::Relaxed);
        let with = |total| pool.room(had, amount, total).is_ok().then_some(total + amount);
        match pool.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with) {
            Ok(_) => {
                self.amount.fetch_add(amount, Ordering::Relaxed);
                Ok(())
            }
            Err(total) => {
                own.fetch_sub(amount, Ordering::Relaxed);
                pool.room(had, amount, total)
            }
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// One part in so many of what is free may be held by a connection.
const PARTS: usize = 4;

/// What all connections of a port share.
#[derive(Debug)]
pub(super) struct Pools {
    calls: Pool,
    requests: Pool,
    scans: Pool,
    answers: Pool,
    answer_bytes: IntGauge,
}

impl Pools {
    /// `answer_bytes` tells what answers hold.
    pub fn new(options: &Options, answer_bytes: IntGauge) -> Pools {
        Pools {
            calls: Pool::new(options.calls_max, PARTS),
            requests: Pool::new(REQUEST_BYTES_MAX, PARTS),
            // Nobody keeps a scan: it has a deadline. One connection of a peer brings those of all its clients.
            scans: Pool::new(options.scans_max, 1),
            answers: Pool::new(options.answer_bytes_max, PARTS),
            answer_bytes,
        }
    }

    pub fn connection(&self) -> Arc<Connection> {
        Arc::new(Connection {
            calls: self.calls.share(),
            requests: self.requests.share(),
            scans: self.scans.share(),
            answers: Answers::new(self.answer_bytes.clone(), self.answers.share()),
            lingering: Arc::default(),
            pipelines: Arc::new(Semaphore::new(PIPELINES_PER_CONNECTION_MAX)),
        })
    }
}

/// What one connection holds. The dispatcher puts it into every request.
#[derive(Debug)]
pub(super) struct Connection {
    /// Calls under way.
    pub calls: Share,
    /// Bytes of requests under way.
    pub requests: Share,
    pub scans: Share,
    pub answers: Answers,
    pub lingering: Arc<Lingering>,
    /// Places for pipelines.
    pub pipelines: Arc<Semaphore>,
}

impl Connection {
    /// The one that a request came over.
    pub fn of<T>(request: &tonic::Request<T>) -> Arc<Connection> {
        // The dispatcher puts it into every request; a request made by hand comes alone.
        request.extensions().get::<Arc<Connection>>().cloned().unwrap_or_else(|| {
            let answer_bytes = IntGauge::new("answer_bytes", "Gathered by nobody.");
            let answer_bytes = answer_bytes.expect("the name is a valid one");
            Pools::new(&Options::default(), answer_bytes).connection()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_all_leaves_what_is_fair() {
        for (hogs, parts) in [1, 2, 9, 99].into_iter().flat_map(|hogs| [(hogs, 1), (hogs, 4)]) {
            let pool = Pool::new(100_000, parts);
            let hold: Vec<(Share, Taken)> =
                (0..hogs).map(|_| pool.share()).map(|one| (one.clone(), one.nothing())).collect();
            let more = |(share, taken): &(Share, Taken)| share.room(10).is_ok() && taken.more(10).is_ok();
            while hold.iter().filter(|one| more(one)).count() > 0 {}
            let free = 100_000 - pool.share().total();
            let fair = 100_000 * parts / (hogs + parts);
            assert!(free.abs_diff(fair) <= fair / 5 + 50, "{hogs}: {free} are free, {fair} would be fair");
            // So one that comes now is served.
            pool.share().take(fair / parts / 2).unwrap();
            drop(hold);
            assert_eq!(pool.share().total(), 0);
        }
    }

    #[test]
    fn what_is_small_is_served_when_many_took_what_is_large_one_after_another() {
        let pool = Pool::new(256 << 20, PARTS);
        let mut held = Vec::new();
        for hog in (0..1000).map(|_| pool.share()) {
            held.extend(std::iter::from_fn(|| hog.take(3 << 20).ok()));
        }
        pool.share().take(2 << 20).unwrap();
    }

    #[test]
    fn what_is_refused_is_not_counted() {
        let share = Pool::new(10, 1).share();
        let six = share.take(6).unwrap();
        assert_eq!(share.room(5), Err(NoRoom { total: 6, own: 6, part: 4, max: 10 }));
        assert!(share.take(5).is_err());
        assert_eq!(share.total(), 6);
        let other = share.0.pool.share();
        other.take(4).unwrap();
        let refused = other.nothing();
        assert_eq!(refused.more(5), Err(NoRoom { total: 6, own: 0, part: 4, max: 10 }));
        assert_eq!(share.total(), 6);
        let anyway = share.take_anyway(100);
        assert_eq!(share.total(), 106);
        drop((six, refused, anyway));
        assert_eq!(share.total(), 0);
    }
}
