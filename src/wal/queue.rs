//! What waits for the writer.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::log::Cell;
use super::segments::Segment;
use super::{Done, Entry};
use crate::types::LogId;

/// An entry's payload, or where to read it.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Memory(Bytes),
    Disk { segment: Arc<Segment>, offset: u64, payload_bytes: usize },
}

/// What is to become of a log. Memory has it already.
#[derive(Debug)]
pub(super) enum Change {
    Append(Vec<Entry>),
    Vote(Bytes),
    Truncate(u64),
    Purge(LogId),
    Destroy,
    Barrier,
    /// Vote and purge point once more; `entries`: the whole log, see
    /// [`Record::State`](super::format::Record::State).
    Copy {
        vote: Option<Bytes>,
        purged: Option<LogId>,
        entries: Option<Vec<(LogId, Source)>>,
    },
}

pub(super) struct Item {
    /// Counts up along the queue.
    pub(super) number: u64,
    pub(super) cell: Arc<Cell>,
    pub(super) change: Change,
    /// What it takes in a batch, at most.
    pub(super) bytes: usize,
    /// What it took of the queue's room.
    pub(super) permits: usize,
    /// None for what the writer asked itself.
    pub(super) done: Option<Done>,
}

/// Whether the queue still takes changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// What is in it will still be written.
    Closing,
    /// Nothing will be written any more.
    Ended,
}

pub(super) struct Inner {
    pub(super) phase: Phase,
    items: VecDeque<Item>,
    next_number: u64,
    asleep: bool,
    woken: bool,
}

/// The changes of all logs, in order. Its length is bounded by the permits that callers take first.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    wake: Condvar,
    /// The same for a writer that is no thread.
    #[cfg(test)]
    pumped: tokio::sync::Notify,
}

/// What the writer finds to do.
pub(super) enum Taken {
    Batch(Vec<Item>),
    /// Somebody asked whether the writer lives.
    Nothing,
    /// The queue is empty and closed.
    Closed,
}

impl Queue {
    pub(super) fn new() -> Queue {
        let inner =
            Inner { phase: Phase::Open, items: VecDeque::new(), next_number: 0, asleep: false, woken: false };
        Queue {
            inner: Mutex::new(inner),
            wake: Condvar::new(),
            #[cfg(test)]
            pumped: tokio::sync::Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Who panics with it is an assertion, before anything was changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, mut inner: MutexGuard<'_, Inner>, item: Item) {
        assert_eq!(item.number, inner.next_number, "items are numbered along the queue");
        inner.next_number += 1;
        inner.items.push_back(item);
        let asleep = inner.asleep;
        drop(inner);
        if asleep {
            self.wake.notify_one();
        }
        #[cfg(test)]
        self.pumped.notify_one();
    }

    /// Makes the writer pass through its loop once.
    pub(super) fn wake(&self) {
        self.lock().woken = true;
        self.wake.notify_one();
        #[cfg(test)]
        self.pumped.notify_one();
    }

    /// No change is taken from now on. Returns whether it was open.
    pub(super) fn close(&self) -> bool {
        let mut inner = self.lock();
        let open = inner.phase == Phase::Open;
        if open {
            inner.phase = Phase::Closing;
        }
        drop(inner);
        self.wake.notify_one();
        #[cfg(test)]
        self.pumped.notify_one();
        open
    }

    /// Ends it and returns what it held.
    pub(super) fn end(&self) -> Vec<Item> {
        let mut inner = self.lock();
        inner.phase = Phase::Ended;
        inner.items.drain(..).collect()
    }

    /// Waits for something to do and takes it: as much as waits and fits into `bytes`, at least one
    /// item. An item that does not fit into `bytes` begins a new segment, and then the batch may be as
    /// large as `bytes_max`.
    pub(super) fn take(&self, bytes: usize, bytes_max: usize) -> Taken {
        let mut inner = self.lock();
        while inner.items.is_empty() && !inner.woken && inner.phase == Phase::Open {
            inner.asleep = true;
            inner = self.wake.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.asleep = false;
        }
        inner.take(bytes, bytes_max)
    }

    /// The same, without keeping a thread.
    #[cfg(test)]
    pub(super) async fn taken(&self, bytes: usize, bytes_max: usize) -> Taken {
        loop {
            {
                let mut inner = self.lock();
                if !inner.items.is_empty() || inner.woken || inner.phase != Phase::Open {
                    return inner.take(bytes, bytes_max);
                }
            }
            self.pumped.notified().await;
        }
    }
}

impl Inner {
    fn take(&mut self, bytes: usize, bytes_max: usize) -> Taken {
        self.woken = false;
        let Some(first) = self.items.front() else {
            return if self.phase == Phase::Open { Taken::Nothing } else { Taken::Closed };
        };
        let limit = if first.bytes <= bytes { bytes.min(bytes_max) } else { bytes_max };
        let mut taken = Vec::new();
        let mut sum = 0;
        while let Some(item) = self.items.front() {
            sum += item.bytes;
            if sum > limit && !taken.is_empty() {
                break;
            }
            taken.extend(self.items.pop_front());
        }
        Taken::Batch(taken)
    }

    pub(super) fn next_number(&self) -> u64 {
        self.next_number
    }
}
