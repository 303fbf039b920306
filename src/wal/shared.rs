//! What callers and the writer share.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::log::{Cell, State};
use super::queue::{Change, Item, Phase, Queue};
use super::recover::Recovered;
use super::{Cells, Done, Failed, Metrics, Options};
use crate::types::LogKey;

pub(super) struct Shared {
    pub(super) queue: Queue,
    /// Bytes that still fit into the queue.
    room: Semaphore,
    queue_bytes: usize,
    cells: Mutex<Cells>,
    failed: watch::Sender<Option<Failed>>,
    pulse: Arc<Pulse>,
    cached_bytes: Arc<AtomicUsize>,
    disk_bytes: Arc<AtomicU64>,
    pub(super) metrics: Metrics,
}

/// Shows that the writer lives: it gets on, or the disk keeps it waiting.
#[derive(Debug)]
pub(super) struct Pulse {
    beat: watch::Sender<u64>,
    /// Milliseconds after `born` at which the writer's call to the disk began, plus one; 0: it is in none.
    since: AtomicU64,
    born: Instant,
}

impl Pulse {
    pub(super) fn new() -> Pulse {
        Pulse { beat: watch::Sender::new(0), since: AtomicU64::new(0), born: Instant::now() }
    }

    /// The writer got on.
    pub(super) fn bump(&self) {
        self.beat.send_modify(|beat| *beat += 1);
    }

    pub(super) fn heartbeat(&self) -> u64 {
        *self.beat.borrow()
    }

    /// Makes a call that the disk may keep waiting: an fsync above all, but where one stalls, so does
    /// whatever else needs the file system's journal.
    pub(super) fn in_disk<T>(&self, call: impl FnOnce() -> T) -> T {
        let since = self.born.elapsed().as_millis() as u64 + 1;
        self.since.store(since, Ordering::Relaxed);
        self.bump();
        let result = call();
        self.since.store(0, Ordering::Relaxed);
        result
    }

    pub(super) fn stuck_for(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.born.elapsed().saturating_sub(Duration::from_millis(since)))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    pub(super) fn new(options: &Options, metrics: Metrics, recovered: &Recovered) -> Shared {
        Shared {
            queue: Queue::new(),
            room: Semaphore::new(options.queue_bytes.max(1)),
            queue_bytes: options.queue_bytes.max(1),
            cells: Mutex::new(recovered.cells.clone()),
            failed: watch::Sender::new(None),
            pulse: recovered.segments.pulse(),
            cached_bytes: recovered.cache.bytes(),
            disk_bytes: recovered.segments.disk_bytes(),
            metrics,
        }
    }

    fn lock_cells(&self) -> std::sync::MutexGuard<'_, Cells> {
        self.cells.lock().expect("nothing panics with this lock")
    }

    pub(super) fn cells(&self) -> Vec<Arc<Cell>> {
        self.lock_cells().values().cloned().collect()
    }

    pub(super) fn cell(&self, key: LogKey) -> Arc<Cell> {
        let new = || Arc::new(Cell::new(key, State::default()));
        self.lock_cells().entry(key).or_insert_with(new).clone()
    }

    /// Waits for room, then applies a change in memory and queues it: both or neither.
    pub(super) async fn submit(
        &self,
        cell: &Arc<Cell>,
        bytes: usize,
        apply: impl FnOnce(&mut State, u64) -> Change,
        done: Done,
    ) -> Result<(), Failed> {
        let permits = bytes.min(self.queue_bytes);
        match self.room.acquire_many(permits as u32).await {
            Ok(room) => room.forget(),
            Err(_closed) => return Err(refuse(self.ended(), done)),
        }
        // No await from here on: a caller that is dropped while it waits leaves nothing behind.
        let mut state = cell.lock();
        let queue = self.queue.lock();
        if queue.phase != Phase::Open {
            drop((queue, state));
            return Err(refuse(self.ended(), done));
        }
        let number = queue.next_number();
        let change = apply(&mut state, number);
        let item = Item { number, cell: cell.clone(), change, bytes, permits, done: Some(done) };
        self.queue.push(queue, item);
        Ok(())
    }

    /// Queues what the writer itself wants written of a log's present state; not bounded by the room,
    /// because the writer is who makes room. Returns false if the queue is closed.
    pub(super) fn submit_copy(&self, cell: &Arc<Cell>, copy: impl FnOnce(&State) -> (Change, usize)) -> bool {
        let state = cell.lock();
        let (change, bytes) = copy(&state);
        let queue = self.queue.lock();
        if queue.phase != Phase::Open {
            return false;
        }
        let number = queue.next_number();
        let item = Item { number, cell: cell.clone(), change, bytes, permits: 0, done: None };
        self.queue.push(queue, item);
        true
    }

    pub(super) fn release(&self, permits: usize) {
        self.room.add_permits(permits);
    }

    pub(super) fn cache_grew(&self, bytes: usize) {
        self.cached_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn cache_shrank(&self, bytes: usize) {
        self.cached_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::Relaxed)
    }

    /// The first failure, if there was one.
    pub(super) fn failure(&self) -> Option<Failed> {
        self.failed.borrow().clone()
    }

    fn ended(&self) -> Failed {
        self.failure().unwrap_or_else(|| Failed::new("it was closed"))
    }

    pub(super) async fn failed(&self) -> Failed {
        let mut failed = self.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(first) => first.clone().expect("that was waited for"),
            Err(_) => unreachable!("the sender lives as long as self"),
        }
    }

    /// Fails everything that waits and whatever comes later. The first failure is the one that counts.
    pub(super) fn fail(&self, failed: Failed) {
        self.fail_after(failed, Vec::new());
    }

    /// The same; `batch` came before what is in the queue.
    pub(super) fn fail_after(&self, failed: Failed, batch: Vec<Item>) {
        let first = self.failed.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert_with(|| failed.clone());
            is_first
        });
        if first {
            tracing::error!(%failed, "the write-ahead log failed");
        }
        let queued = self.queue.end();
        self.room.close();
        self.queue.wake();
        for item in batch.into_iter().chain(queued) {
            if let Some(done) = item.done {
                done(Err(failed.clone()));
            }
        }
        self.pulse.bump();
    }

    pub(super) fn close(&self) {
        if self.queue.close() {
            self.room.close();
        }
    }

    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    pub(super) async fn probe(&self, stall: Duration) -> Result<(), Failed> {
        let mut beat = self.pulse.beat.subscribe();
        let before = *beat.borrow_and_update();
        self.queue.wake();
        loop {
            if let Some(failed) = self.failure() {
                return Err(failed);
            }
            if self.queue.lock().phase == Phase::Ended {
                return Err(self.ended());
            }
            if *beat.borrow_and_update() > before || self.pulse.stuck_for().is_some_and(|stuck| stuck < stall)
            {
                return Ok(());
            }
            if beat.changed().await.is_err() {
                unreachable!("the sender lives as long as self");
            }
        }
    }
}

fn refuse(failed: Failed, done: Done) -> Failed {
    done(Err(failed.clone()));
    failed
}
