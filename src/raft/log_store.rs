//! openraft's log storage on one group's part of the write-ahead log.
//!
//! What this owes openraft, and what keeps it:
//! - a vote is durable before `save_vote` returns: it waits for the log's callback;
//! - entries are readable once `append` returned, and durable once its callback fired: the log
//!   promises both;
//! - votes and entries of a group are never reordered: the log keeps the order of the calls, and
//!   openraft makes them one after another.
//!
//! [`Durability`] tells the state machine how far the log is durable, so that nothing is applied that
//! a crash could take out of the log (rule 2 of the design).

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex};

use futures_util::stream::{self, Stream, TryStreamExt as _};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::{oneshot, watch};

use super::codec::{decode_entry, decode_vote, encode_entry, encode_vote};
use super::types::{Entry, RaftLogId, TypeConfig, Vote, log_id, raft_log_id};
use crate::codec::Malformed;
use crate::{runtime, wal};

/// Most bytes of entries that one replication read returns: a message between peers stays small
/// enough not to hold up those behind it.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// How far a group's log is durable.
///
/// Truncation takes entries back, and the callbacks of their appends may come later: a callback
/// counts only if no truncation came in between.
#[derive(Debug, Clone)]
pub(crate) struct Durability {
    log: wal::Log,
    state: Arc<Mutex<DurableState>>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct DurableState {
    /// The next index that is not durable.
    next: u64,
    /// Counts truncations.
    generation: u64,
    failed: bool,
}

impl Durability {
    fn new(log: wal::Log) -> Durability {
        // The log has been recovered, and is durable as far as it goes.
        let next = log.last().map_or(0, |id| id.index + 1);
        let state = DurableState { next, generation: 0, failed: false };
        Durability { log, state: Arc::new(Mutex::new(state)), changed: watch::Sender::new(()) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, DurableState> {
        // The lock guards three numbers, which no panic can leave half changed.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn generation(&self) -> u64 {
        self.lock().generation
    }

    fn appended(&self, generation: u64, next: u64, result: &Result<(), wal::Failed>) {
        {
            let mut state = self.lock();
            match result {
                Err(_) => state.failed = true,
                Ok(()) if state.generation == generation => state.next = state.next.max(next),
                Ok(()) => {}
            }
        }
        self.changed.send_replace(());
    }

    fn truncated(&self, next: u64) {
        let mut state = self.lock();
        state.generation += 1;
        state.next = state.next.min(next);
    }

    /// After a purge beyond the log's end (a snapshot was installed).
    fn purged(&self, next: u64) {
        let mut state = self.lock();
        state.next = state.next.max(next);
        drop(state);
        self.changed.send_replace(());
    }

    /// For the storage suite, which applies entries that are in no log.
    #[cfg(test)]
    pub(crate) fn always(self) -> Durability {
        self.lock().next = u64::MAX;
        self
    }

    /// Waits until every earlier write of this log is durable, truncations included.
    pub(crate) async fn settled(&self) -> io::Result<()> {
        durably(|done| self.log.barrier(done)).await
    }

    fn is_reached(&self, index: u64) -> io::Result<bool> {
        let state = self.lock();
        match state.failed {
            true => Err(io::Error::other("the write-ahead log failed")),
            false => Ok(state.next > index),
        }
    }

    /// Waits until the entry at `index` is durable.
    pub(crate) async fn reached(&self, index: u64) -> io::Result<()> {
        // Mostly it is.
        if self.is_reached(index)? {
            return Ok(());
        }
        let mut changed = self.changed.subscribe();
        loop {
            if self.is_reached(index)? {
                return Ok(());
            }
            changed.changed().await.map_err(|_| io::Error::other("the log store is gone"))?;
        }
    }
}

/// One group's log.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    log: wal::Log,
    durability: Durability,
}

impl LogStore {
    /// `log` has been recovered: all that it holds is durable.
    pub(crate) fn new(log: wal::Log) -> LogStore {
        LogStore { durability: Durability::new(log.clone()), log }
    }

    pub(crate) fn durability(&self) -> Durability {
        self.durability.clone()
    }
}

/// Runs a write and waits until it is durable.
async fn durably<F>(write: impl FnOnce(wal::Done) -> F) -> io::Result<()>
where
    F: Future<Output = Result<(), wal::Failed>>,
{
    let (done, durable) = oneshot::channel();
    let callback: wal::Done = Box::new(move |result| {
        // If nobody waits any more, the group was stopped.
        let _ = done.send(result);
    });
    write(callback).await.map_err(failed)?;
    match durable.await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(io::Error::other("the write-ahead log dropped a write")),
    }
}

fn failed(error: wal::Failed) -> io::Error {
    io::Error::other(error)
}

fn malformed(error: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        Ok(LogState {
            last_purged_log_id: self.log.purged().map(raft_log_id),
            last_log_id: self.log.last().map(raft_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = encode_vote(vote);
        #[cfg(test)]
        if runtime::is_planted(runtime::Planted::VoteNotDurable) {
            return self.log.save_vote(vote, Box::new(drop)).await.map_err(failed);
        }
        durably(|done| self.log.save_vote(vote, done)).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<wal::Entry> = entries.into_iter().map(encode_entry).collect();
        let Some(last) = entries.last() else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let next = last.id.index + 1;
        let durability = self.durability.clone();
        let generation = durability.generation();
        let done: wal::Done = Box::new(move |result| {
            durability.appended(generation, next, &result);
            callback.io_completed(result.map_err(failed));
        });
        self.log.append(entries, done).await.map_err(failed)
    }

    async fn truncate_after(&mut self, last_log_id: Option<RaftLogId>) -> io::Result<()> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        self.durability.truncated(from);
        durably(|done| self.log.truncate_from(from, done)).await?;
        // What is left was written before the truncation, and is durable with it.
        self.durability.appended(self.durability.generation(), from, &Ok(()));
        Ok(())
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        let upto = log_id(&upto);
        durably(|done| self.log.purge(upto, done)).await?;
        self.durability.purged(upto.index + 1);
        Ok(())
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (from, to) = bounds(&range);
        // openraft asks from before the first one, too.
        let from = from.max(self.log.first_index().unwrap_or(from));
        self.read(from, to, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        // From `start` or not at all: what follows a purge, which can come at any moment, must not be sent as
        // if it came next. The follower gets a snapshot as soon as the core sees it.
        self.read(start, end, READ_BYTES_MAX).await
    }

    /// Entries to apply, a bounded piece at a time: after a restart there may be millions.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (from, to) = bounds(&range);
        let store = self.clone();
        let pieces = stream::try_unfold(from, move |next| {
            let store = store.clone();
            async move {
                if next >= to {
                    return Ok::<_, io::Error>(None);
                }
                let entries = store.read(next, to, READ_BYTES_MAX).await?;
                if entries.is_empty() {
                    return match store.log.purged() {
                        Some(purged) if purged.index >= next => {
                            Err(io::Error::other(format!("entry {next} was purged before it was applied")))
                        }
                        _ => Ok(None),
                    };
                }
                let following = next + entries.len() as u64;
                Ok(Some((stream::iter(entries.into_iter().map(Ok)), following)))
            }
        });
        pieces.try_flatten()
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.log.vote().map(decode_vote).transpose().map_err(malformed)
    }
}

impl LogStore {
    /// The entries of `[from, to)`, from `from` on without a gap, as far as there are any.
    async fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let entries = match self.log.entries_cached(from, to, bytes_max) {
            Some(entries) => entries,
            None => {
                let log = self.log.clone();
                runtime::spawn_blocking(move || log.entries(from, to, bytes_max))
                    .await
                    .map_err(io::Error::other)?
                    .map_err(failed)?
            }
        };
        entries.into_iter().map(|entry| decode_entry(entry).map_err(malformed)).collect()
    }
}

/// `[from, to)`.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(&index) => index,
        Bound::Excluded(&index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(&index) => index.saturating_add(1),
        Bound::Excluded(&index) => index,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}
