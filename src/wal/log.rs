//! One group's log: what is in memory of it, and the handle that groups write and read through.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::format::{self, ENTRY_OVERHEAD_BYTES, RECORD_HEADER_BYTES, Record};
use super::queue::{Change, Source};
use super::segments::Segment;
use super::shared::Shared;
use super::{Done, Entry, Failed};
use crate::types::{LogId, LogKey};

/// Entries that stand close to each other in a segment are read back in pieces of up to this many
/// bytes: one system call instead of many.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// Where an entry's record is.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// In the queue or in the batch being written, put there by the change of this number; the payload
    /// is in memory.
    Waiting(u64),
    /// Durable.
    At { segment: Arc<Segment>, offset: u64 },
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: LogId,
    pub(super) payload_bytes: u32,
    /// None: evicted from memory, which only happens to durable entries.
    pub(super) payload: Option<Bytes>,
    pub(super) place: Place,
}

impl Slot {
    /// What it counts for in the cache.
    fn cached_bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len)
    }
}

/// A log as its group sees it: with every change whose call has returned, durable or not.
///
/// Invariants: entries have consecutive indexes; if there is a purge point, the first entry follows
/// it; an entry without its payload in memory is durable.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) vote: Option<Bytes>,
    pub(super) purged: Option<LogId>,
    slots: VecDeque<Slot>,
}

impl State {
    pub(super) fn is_blank(&self) -> bool {
        self.vote.is_none() && self.purged.is_none() && self.slots.is_empty()
    }

    pub(super) fn last(&self) -> Option<LogId> {
        self.slots.back().map(|slot| slot.id).or(self.purged)
    }

    pub(super) fn first_index(&self) -> Option<u64> {
        self.slots.front().map(|slot| slot.id.index)
    }

    pub(super) fn slots(&self) -> impl DoubleEndedIterator<Item = &Slot> {
        self.slots.iter()
    }

    pub(super) fn slot(&self, index: u64) -> Option<&Slot> {
        let at = index.checked_sub(self.first_index()?)?;
        self.slots.get(usize::try_from(at).ok()?)
    }

    pub(super) fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        let at = index.checked_sub(self.first_index()?)?;
        self.slots.get_mut(usize::try_from(at).ok()?)
    }

    /// Appends without asking whether a gap to the purge point is left: during replay the record that
    /// moves the purge point may still come.
    pub(super) fn push(&mut self, slot: Slot) {
        if let Some(last) = self.slots.back() {
            assert_eq!(slot.id.index, last.id.index + 1, "entries have consecutive indexes");
        }
        self.slots.push_back(slot);
    }

    /// Each of these returns the cached bytes that it let go.
    pub(super) fn truncate_from(&mut self, from: u64) -> usize {
        let mut freed = 0;
        while let Some(slot) = self.slots.pop_back_if(|slot| slot.id.index >= from) {
            freed += slot.cached_bytes();
        }
        freed
    }

    pub(super) fn purge(&mut self, upto: LogId) -> usize {
        let mut freed = 0;
        while let Some(slot) = self.slots.pop_front_if(|slot| slot.id.index <= upto.index) {
            freed += slot.cached_bytes();
        }
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
        freed
    }

    /// As a record has it: the newest one counts, whatever those before it said, for it is the only one
    /// that the ledger keeps.
    pub(super) fn purge_exactly(&mut self, upto: Option<LogId>) -> usize {
        self.purged = None;
        upto.map_or(0, |upto| self.purge(upto))
    }

    pub(super) fn clear(&mut self) -> usize {
        let freed = self.slots.iter().map(Slot::cached_bytes).sum();
        *self = State::default();
        freed
    }

    /// Whether the entries follow the purge point without a gap.
    pub(super) fn check(&self) -> Result<(), String> {
        match (self.purged, self.first_index()) {
            (Some(purged), Some(first)) if first != purged.index + 1 => {
                Err(format!("it is purged up to {} and begins at {first}", purged.index))
            }
            _ => Ok(()),
        }
    }
}

/// A log's state behind its lock. The lock is held while a change is put into the queue, so a log's
/// changes are written in the order in which they took place in memory. Lock order: a log, then the
/// queue; never two logs.
pub(super) struct Cell {
    pub(super) key: LogKey,
    state: Mutex<State>,
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cell({})", self.key)
    }
}

impl Cell {
    pub(super) fn new(key: LogKey, state: State) -> Cell {
        Cell { key, state: Mutex::new(state) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Who panics with it is an assertion, before anything was changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One group's log. Clones are the same log.
///
/// Reads see a write as soon as its call has returned; it is durable once its [`Done`] was called with
/// `Ok`. One log's writes take place in the order in which their calls got room in the queue: a caller
/// awaits one before it makes the next. A call dropped before it returned has done nothing.
///
/// After [`Log::destroy`] the handle is that of a new, empty log.
///
/// # Panics
/// Writes that would break the log's invariants (an append that leaves a gap) panic: they are bugs of
/// the caller that must not reach the disk.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    cell: Arc<Cell>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log({})", self.cell.key)
    }
}

impl Log {
    pub(super) fn new(shared: Arc<Shared>, cell: Arc<Cell>) -> Log {
        Log { shared, cell }
    }

    pub fn key(&self) -> LogKey {
        self.cell.key
    }

    /// What was saved last; opaque here.
    pub fn vote(&self) -> Option<Bytes> {
        self.cell.lock().vote.clone()
    }

    /// The last entry that was purged, or the point that a snapshot brought.
    pub fn purged(&self) -> Option<LogId> {
        self.cell.lock().purged
    }

    /// The last entry, else the purge point.
    pub fn last(&self) -> Option<LogId> {
        self.cell.lock().last()
    }

    /// The index of the first entry; `None` if there are no entries.
    pub fn first_index(&self) -> Option<u64> {
        self.cell.lock().first_index()
    }

    /// The id of the entry at `index`, or of the purge point if it is there.
    pub fn id_at(&self, index: u64) -> Option<LogId> {
        let state = self.cell.lock();
        state.slot(index).map(|slot| slot.id).or(state.purged.filter(|purged| purged.index == index))
    }

    /// The first entry of the longest tail of the log whose payloads take no more than `bytes`; the
    /// index after the last entry if that one alone takes more, or if there is none. Walks over the tail.
    pub fn tail_index(&self, bytes: u64) -> u64 {
        let state = self.cell.lock();
        let mut left = bytes;
        let mut first = state.last().map_or(0, |last| last.index + 1);
        for slot in state.slots().rev() {
            match left.checked_sub(u64::from(slot.payload_bytes)) {
                Some(rest) => left = rest,
                None => break,
            }
            first = slot.id.index;
        }
        first
    }

    /// The entries from `from` up to, not including, `to`, as far as there are any without a gap from
    /// `from` on; stops before payloads exceed `max_bytes`, but returns at least one. Entries that are
    /// not in memory are read from the disk, which blocks.
    ///
    /// # Errors
    /// An entry could not be read back: the log has failed.
    pub fn entries(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, Failed> {
        let wanted = self.select(from, to, max_bytes, |id, source| Some((id, source))).unwrap_or_default();
        read_entries(self.cell.key, wanted).inspect_err(|failed| self.shared.fail(failed.clone()))
    }

    /// The same, without blocking; `None` if one of them is not in memory.
    pub fn entries_cached(&self, from: u64, to: u64, max_bytes: usize) -> Option<Vec<Entry>> {
        self.select(from, to, max_bytes, |id, source| match source {
            Source::Memory(payload) => Some(Entry { id, payload }),
            Source::Disk { .. } => None,
        })
    }

    fn select<T>(
        &self,
        from: u64,
        to: u64,
        max_bytes: usize,
        mut take: impl FnMut(LogId, Source) -> Option<T>,
    ) -> Option<Vec<T>> {
        let state = self.cell.lock();
        let mut taken = Vec::new();
        let mut bytes = 0;
        for index in from..to {
            let Some(slot) = state.slot(index) else { break };
            bytes += slot.payload_bytes as usize;
            if bytes > max_bytes && !taken.is_empty() {
                break;
            }
            taken.push(take(slot.id, Source::of(slot))?);
        }
        Some(taken)
    }

    /// Appends `entries`, which follow each other and the last one. Waits only for room in the queue.
    /// Without entries it is a [`Log::barrier`].
    ///
    /// # Errors
    /// The log has failed or was closed; `done` has been called with that, too.
    pub async fn append(&self, entries: Vec<Entry>, done: Done) -> Result<(), Failed> {
        if entries.is_empty() {
            return self.barrier(done).await;
        }
        let bytes = entries.iter().map(|entry| ENTRY_OVERHEAD_BYTES + entry.payload.len()).sum();
        let shared = &self.shared;
        let apply = |state: &mut State, number| {
            let last = state.last();
            let first = last.map_or(entries[0].id.index, |last| last.index + 1);
            for (entry, index) in entries.iter().zip(first..) {
                assert_eq!(entry.id.index, index, "{}: an append must follow {last:?}", self.cell.key);
            }
            let mut cached = 0;
            for entry in &entries {
                cached += entry.payload.len();
                state.push(Slot {
                    id: entry.id,
                    payload_bytes: u32::try_from(entry.payload.len()).expect("payloads are bounded"),
                    payload: Some(entry.payload.clone()),
                    place: Place::Waiting(number),
                });
            }
            shared.cache_grew(cached);
            Change::Append(entries)
        };
        shared.submit(&self.cell, bytes, apply, done).await
    }

    /// Saves the vote, in place of the one before.
    pub async fn save_vote(&self, vote: Bytes, done: Done) -> Result<(), Failed> {
        let bytes = RECORD_HEADER_BYTES + vote.len();
        let apply = |state: &mut State, _| {
            state.vote = Some(vote.clone());
            Change::Vote(vote)
        };
        self.shared.submit(&self.cell, bytes, apply, done).await
    }

    /// Removes every entry at `from` and after; 0 removes all.
    pub async fn truncate_from(&self, from: u64, done: Done) -> Result<(), Failed> {
        let apply = |state: &mut State, _| {
            self.shared.cache_shrank(state.truncate_from(from));
            Change::Truncate(from)
        };
        self.shared.submit(&self.cell, RECORD_HEADER_BYTES + 8, apply, done).await
    }

    /// Removes every entry up to and including `upto`, and moves the purge point there. `upto` may be
    /// beyond the last entry: then the log is empty and goes on after it. A purge point never moves back.
    pub async fn purge(&self, upto: LogId, done: Done) -> Result<(), Failed> {
        let apply = |state: &mut State, _| {
            self.shared.cache_shrank(state.purge(upto));
            // Written again where it did not move, so that its newest record is always the one that counts.
            Change::Purge(state.purged.expect("it was just set"))
        };
        self.shared.submit(&self.cell, ENTRY_OVERHEAD_BYTES, apply, done).await
    }

    /// Removes the log: vote, purge point and entries. Once durable, it never comes back.
    pub async fn destroy(&self, done: Done) -> Result<(), Failed> {
        let apply = |state: &mut State, _| {
            self.shared.cache_shrank(state.clear());
            Change::Destroy
        };
        self.shared.submit(&self.cell, RECORD_HEADER_BYTES, apply, done).await
    }

    /// Writes nothing; `done` is called once everything written to this log before is durable.
    pub async fn barrier(&self, done: Done) -> Result<(), Failed> {
        self.shared.submit(&self.cell, RECORD_HEADER_BYTES, |_, _| Change::Barrier, done).await
    }
}

impl Source {
    pub(super) fn of(slot: &Slot) -> Source {
        match (&slot.payload, &slot.place) {
            (Some(payload), _) => Source::Memory(payload.clone()),
            (None, Place::At { segment, offset }) => Source::Disk {
                segment: segment.clone(),
                offset: *offset,
                payload_bytes: slot.payload_bytes as usize,
            },
            (None, Place::Waiting(_)) => unreachable!("only durable entries are evicted"),
        }
    }
}

/// Gets the payloads that are on disk, verified.
pub(super) fn read_entries(key: LogKey, wanted: Vec<(LogId, Source)>) -> Result<Vec<Entry>, Failed> {
    let mut entries: Vec<Entry> = Vec::with_capacity(wanted.len());
    let mut wanted = wanted.into_iter().peekable();
    while let Some((id, source)) = wanted.next() {
        let (segment, start, payload_bytes) = match source {
            Source::Memory(payload) => {
                entries.push(Entry { id, payload });
                continue;
            }
            Source::Disk { segment, offset, payload_bytes } => (segment, offset, payload_bytes),
        };
        // One read for this record and those that stand closely behind it.
        let mut records = vec![(id, start)];
        let mut end = start + (ENTRY_OVERHEAD_BYTES + payload_bytes) as u64;
        while let Some((id, Source::Disk { segment: next, offset, payload_bytes })) = wanted.peek() {
            let next_end = offset + (ENTRY_OVERHEAD_BYTES + payload_bytes) as u64;
            if !Arc::ptr_eq(next, &segment) || *offset < end || next_end - start > READ_BYTES_MAX as u64 {
                break;
            }
            records.push((*id, *offset));
            end = next_end;
            wanted.next();
        }
        let mut buffer = vec![0; (end - start) as usize];
        let broken = |id: LogId, offset: u64, problem: String| {
            Failed::new(format!(
                "log {key}: entry {id} can't be read back from segment {:016x} at offset {offset}: \
                 {problem}",
                segment.salt.segment
            ))
        };
        segment
            .file
            .read_at(&mut buffer, start)
            .map_err(|error| broken(records[0].0, start, error.to_string()))?;
        let buffer = Bytes::from(buffer);
        for (id, offset) in records {
            let record = buffer.slice((offset - start) as usize..);
            match format::read_record(segment.salt, offset, &record) {
                Ok((found, Record::Entry { id: found_id, payload }, _)) if found == key && found_id == id => {
                    entries.push(Entry { id, payload });
                }
                Ok(_) => return Err(broken(id, offset, "another record is there".to_string())),
                Err(problem) => return Err(broken(id, offset, problem.to_string())),
            }
        }
    }
    Ok(entries)
}
