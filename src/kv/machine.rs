//! Applies the commands of a data group to its space.
//!
//! Space layout: `r` key → record; `t` → what the records come to, there since the first write that took
//! effect; `s` → when it was sealed; `h` → when it was halted; `m` → marks.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{BufMut as _, Bytes, BytesMut};

use super::codec::{
    Stored, decode_command, decode_stored, encode_halted, encode_mark, encode_outcomes, encode_sealed,
    encode_stored, encode_written,
};
use super::marks::Marks;
use super::seals::Seals;
use super::summary::{Summary, count};
use super::{Command, Op, Outcome, Precondition, Record, Verdict};
use crate::codec::Malformed;
use crate::raft::{ApplyError, Space, SpaceView, Txn};
use crate::storage::{self, KeyRange, Order};

pub(super) const RECORD: u8 = b'r';
const TOTALS: &[u8] = b"t";
const SEALS: &[u8] = b"s";
const HALTS: &[u8] = b"h";
const MARKS: &[u8] = b"m";

/// Tombstones dropped in one batch: what a checkpoint frees is spread over many small writes.
const TOMBSTONES_PER_BATCH: usize = 1024;

/// What a partition holds, for anyone to look at.
#[derive(Debug, Default)]
pub struct Totals {
    keys: AtomicU64,
    bytes: AtomicU64,
    written: AtomicBool,
    halted: AtomicBool,
    settled: AtomicBool,
}

impl Totals {
    pub fn keys(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }

    /// Whether any write ever took effect; what was deleted since counts.
    pub fn is_written(&self) -> bool {
        self.written.load(Ordering::Relaxed)
    }

    /// Of keys and values, without what storing them costs.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether the replicas were found to differ, with no majority to say which is right: nothing
    /// linearizable is served.
    pub fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Relaxed)
    }

    /// Whether what the space says that its records come to is about the records that are there. Not so
    /// during a redo.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }
}

/// The state machine of a partition.
#[derive(Debug)]
pub struct Machine {
    totals: Arc<Totals>,
    summary: Summary,
    changed: bool,
    /// There are totals, or there will be: see `finish`.
    written: bool,
    /// The totals in the space are of another moment than its records.
    unsettled: bool,
    seals: Seals,
    halts: Seals,
    marks: Marks,
    /// Deletes leave a tombstone until a checkpoint has them: the engine does not recover a prefix.
    keep_tombstones: bool,
    /// Keys and revisions of tombstones, oldest first.
    tombstones: VecDeque<(Bytes, u64)>,
    checkpointed: u64,
    /// During a redo: the newest revision that the space already held.
    ahead_until: u64,
}

impl Machine {
    /// `recovers_prefix` as the engine says it.
    pub fn new(recovers_prefix: bool) -> Machine {
        Machine {
            totals: Arc::new(Totals::default()),
            summary: Summary::default(),
            changed: false,
            written: false,
            unsettled: false,
            seals: Seals::default(),
            halts: Seals::default(),
            marks: Marks::default(),
            keep_tombstones: !recovers_prefix,
            tombstones: VecDeque::new(),
            checkpointed: 0,
            ahead_until: 0,
        }
    }

    pub fn totals(&self) -> Arc<Totals> {
        self.totals.clone()
    }

    fn apply_op(&mut self, index: u64, op: Op, txn: &mut Txn<'_>) -> Result<Outcome, ApplyError> {
        let key = op.key().clone();
        let record_key = txn.key([&[RECORD], &key]);
        let before = txn.get(&record_key)?.unwrap_or_default();
        let stored = if before.is_empty() { None } else { Some(decode_stored(&key, &before)?) };
        let current = match stored {
            Some(Stored::Live(record)) => Some(record),
            Some(Stored::Tombstone { .. }) | None => None,
        };
        let current_version = current.as_ref().map_or(0, |record| record.version);
        let (Op::Put { precondition, .. } | Op::Delete { precondition, .. }) = &op;
        let holds = match precondition {
            Precondition::None => true,
            Precondition::Version(version) => current_version == *version,
            Precondition::Absent => current_version == 0,
        };
        if !holds {
            return Ok(Outcome::PreconditionFailed { current_version });
        }
        match op {
            Op::Put { value, .. } => {
                let version = current_version + 1;
                let create_revision = current.as_ref().map_or(index, |record| record.create_revision);
                self.take(&key, current.as_ref(), &before);
                let record = Record { value, version, create_revision, mod_revision: index };
                let value = record.value.clone();
                let stored = encode_stored(&key, &Stored::Live(record));
                self.summary.add(&key, &value, &stored);
                self.changed = true;
                txn.put(record_key, stored);
                Ok(Outcome::Put { version, revision: index })
            }
            Op::Delete { .. } => {
                let existed = current.is_some();
                self.take(&key, current.as_ref(), &before);
                if existed && self.keep_tombstones {
                    txn.put(record_key, encode_stored(&key, &Stored::Tombstone { mod_revision: index }));
                    self.tombstones.push_back((key, index));
                } else if existed {
                    txn.delete(record_key);
                }
                Ok(Outcome::Deleted { existed, revision: index })
            }
        }
    }

    /// In a redo, passes over the operations that took effect before: their key's record says so.
    /// Nobody waits for their outcomes.
    fn not_yet_applied(&self, index: u64, ops: Vec<Op>, txn: &Txn<'_>) -> Result<Vec<Op>, ApplyError> {
        let mut left = Vec::with_capacity(ops.len());
        for op in ops {
            let key = op.key();
            let stored =
                txn.get(&txn.key([&[RECORD], key]))?.map(|bytes| decode_stored(key, &bytes)).transpose()?;
            if stored.is_none_or(|stored| stored.mod_revision() < index) {
                left.push(op);
            }
        }
        Ok(left)
    }

    fn take(&mut self, key: &[u8], record: Option<&Record>, stored: &[u8]) {
        if let Some(record) = record {
            self.summary.take(key, &record.value, stored);
            self.changed = true;
        }
    }

    /// Finds the tombstones that are left. Where the summary is no more than a guess, since the records may be
    /// ahead of it, it is made anew; else it must hold.
    fn recount(&mut self, space: &Space, redo: bool) -> Result<u64, ApplyError> {
        let Some(mut counted) = count(&space.view()?, |_| true)? else { return Ok(0) };
        if !redo && counted.summary != self.summary {
            return Err(ApplyError::Malformed(self.summary.unlike(&counted.summary)));
        }
        self.summary = counted.summary;
        counted.tombstones.sort_by_key(|(_, revision)| *revision);
        self.tombstones = counted.tombstones.into();
        Ok(counted.newest)
    }

    /// What the leader found when it compared the replicas at a mark.
    fn judge(&mut self, index: u64, verdict: Verdict, txn: &mut Txn<'_>) -> Result<(), ApplyError> {
        let halted = match verdict {
            Verdict::Majority { mark, hash } => {
                // In a redo the comparison was made before.
                let own = self.marks.at(mark).filter(|_| index > self.ahead_until);
                if let Some(own) = own.filter(|own| *own != hash) {
                    let problem = format!(
                        "at log index {mark} they come to {own:032x}, and to {hash:032x} on the majority of replicas"
                    );
                    return Err(ApplyError::Malformed(Malformed::new("the records", problem)));
                }
                false
            }
            Verdict::NoMajority { .. } => true,
        };
        let before = self.halts.clone();
        match halted {
            true => self.halts.seal(index),
            false => self.halts.unseal(index),
        }
        if self.halts != before {
            txn.put(txn.key([HALTS]), self.halts.encode());
        }
        Ok(())
    }

    fn mark(&mut self, index: u64, txn: &mut Txn<'_>) -> Bytes {
        // In a redo the records are of a later moment than the log.
        if index > self.ahead_until {
            self.marks.set(index, self.summary.hash);
            txn.put(txn.key([MARKS]), self.marks.encode());
        }
        encode_mark(index, self.summary.hash)
    }

    fn drop_tombstones(&mut self, txn: &mut Txn<'_>) -> Result<(), ApplyError> {
        for _ in 0..TOMBSTONES_PER_BATCH {
            match self.tombstones.front() {
                Some((_, revision)) if *revision <= self.checkpointed => {}
                _ => return Ok(()),
            }
            let Some((key, revision)) = self.tombstones.pop_front() else {
                return Ok(());
            };
            self.changed = true;
            let record_key = txn.key([&[RECORD], &key]);
            let Some(bytes) = txn.get(&record_key)? else {
                continue;
            };
            if decode_stored(&key, &bytes)? == (Stored::Tombstone { mod_revision: revision }) {
                txn.delete(record_key);
            }
        }
        Ok(())
    }
}

impl crate::raft::Machine for Machine {
    fn load(&mut self, space: &Space, redo: bool) -> Result<u64, ApplyError> {
        (self.summary, self.ahead_until) = (Summary::default(), 0);
        self.tombstones.clear();
        (self.changed, self.written) = (false, false);
        self.seals = space.get(SEALS)?.map(Seals::decode).transpose()?.unwrap_or_default();
        self.halts = space.get(HALTS)?.map(Seals::decode).transpose()?.unwrap_or_default();
        self.marks = space.get(MARKS)?.map(Marks::decode).transpose()?.unwrap_or_default();
        let mut tombstones = 0;
        if let Some(bytes) = space.get(TOTALS)? {
            (self.summary, tombstones) = Summary::decode(bytes)?;
            self.written = true;
        }
        // An engine that may come back as a mixture of moments may come back without some of them at all: sled
        // leaves out what it can't read.
        if redo || tombstones > 0 || self.keep_tombstones {
            let newest = self.recount(space, redo)?;
            self.ahead_until = if redo { newest } else { 0 };
            // Totals where nothing was ever written would say that something was.
            self.changed = self.written || newest > 0;
            self.written = self.changed;
        }
        self.unsettled = redo && self.changed;
        self.published(0);
        Ok(self.ahead_until)
    }

    fn verify(space: &Space) -> Result<(), ApplyError> {
        verify(&space.view()?, |_| true)?;
        Ok(())
    }

    fn apply(&mut self, index: u64, command: Bytes, txn: &mut Txn<'_>) -> Result<Bytes, ApplyError> {
        let mut ops = match decode_command(command).map_err(ApplyError::Command)? {
            Command::Writes(_) if self.seals.hold_at(index) => return Ok(encode_sealed()),
            Command::Writes(_) if self.halts.hold_at(index) => return Ok(encode_halted()),
            Command::Writes(ops) => ops,
            Command::Seal => {
                self.seals.seal(index);
                txn.put(txn.key([SEALS]), self.seals.encode());
                return Ok(encode_written(self.written));
            }
            Command::Unseal => {
                self.seals.unseal(index);
                txn.put(txn.key([SEALS]), self.seals.encode());
                return Ok(encode_outcomes(&[]));
            }
            Command::Mark => return Ok(self.mark(index, txn)),
            Command::Verdict(verdict) => {
                self.judge(index, verdict, txn)?;
                return Ok(encode_outcomes(&[]));
            }
        };
        if index <= self.ahead_until {
            ops = self.not_yet_applied(index, ops, txn)?;
        }
        let mut outcomes = Vec::with_capacity(ops.len());
        for op in ops {
            outcomes.push(self.apply_op(index, op, txn)?);
        }
        self.written |= self.changed;
        Ok(encode_outcomes(&outcomes))
    }

    fn finish(&mut self, txn: &mut Txn<'_>) -> Result<(), ApplyError> {
        self.drop_tombstones(txn)?;
        self.unsettled = false;
        if std::mem::take(&mut self.changed) {
            txn.put(txn.key([TOTALS]), self.summary.encode(self.tombstones.len() as u64));
        }
        Ok(())
    }

    fn published(&mut self, _index: u64) {
        self.totals.keys.store(self.summary.keys, Ordering::Relaxed);
        self.totals.bytes.store(self.summary.bytes, Ordering::Relaxed);
        self.totals.halted.store(self.halts.hold_from_now_on(), Ordering::Relaxed);
        self.totals.settled.store(!self.unsettled, Ordering::Relaxed);
        self.totals.written.store(self.written, Ordering::Relaxed);
    }

    fn checkpointed(&mut self, index: u64) {
        self.checkpointed = self.checkpointed.max(index);
    }
}

fn record_key(key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + key.len());
    out.put_u8(RECORD);
    out.put_slice(key);
    out.freeze()
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl From<ReadError> for ApplyError {
    fn from(error: ReadError) -> ApplyError {
        match error {
            ReadError::Storage(error) => error.into(),
            ReadError::Malformed(error) => error.into(),
        }
    }
}

fn live(key: &[u8], bytes: Option<Bytes>) -> Result<Option<Record>, ReadError> {
    match bytes.map(|bytes| decode_stored(key, &bytes)).transpose()? {
        Some(Stored::Live(record)) => Ok(Some(record)),
        Some(Stored::Tombstone { .. }) | None => Ok(None),
    }
}

/// What the records came to at the mark at this log index; `None` if it is not known (any more).
pub fn hash_at(space: &Space, mark: u64) -> Result<Option<u128>, ReadError> {
    let marks = space.get(MARKS)?.map(Marks::decode).transpose()?;
    Ok(marks.and_then(|marks| marks.at(mark)))
}

/// Reads every record of `view` as the engine has it, and holds the whole against what the space says that it
/// comes to. `pace` is called with the bytes of each, and may take its time; `None` if it said false, to stop.
///
/// # Errors
/// [`ReadError::Malformed`] if a record can't be read, or they come to something else.
pub fn verify(view: &SpaceView, pace: impl FnMut(usize) -> bool) -> Result<Option<Summary>, ReadError> {
    let said = view.get(TOTALS)?.map(Summary::decode).transpose()?;
    let said = said.map(|(summary, _)| summary).unwrap_or_default();
    match count(view, pace)? {
        Some(counted) if counted.summary != said => Err(said.unlike(&counted.summary).into()),
        counted => Ok(counted.map(|counted| counted.summary)),
    }
}

/// A key's record in `space`.
///
/// What is not cached is read where the caller is, as long as that takes no time; while the disk is slow, other tasks of its
/// thread go on elsewhere.
pub fn get(space: &Space, key: &[u8]) -> Result<Option<Record>, ReadError> {
    live(key, space.get_aside(&record_key(key))?)
}

/// A key's record in `view`.
pub fn get_in(view: &SpaceView, key: &[u8]) -> Result<Option<Record>, ReadError> {
    live(key, view.get(&record_key(key))?)
}

/// The records of `range`, in order.
pub fn scan(
    view: &SpaceView,
    range: KeyRange,
    order: Order,
) -> impl Iterator<Item = Result<(Bytes, Record), ReadError>> + Send + '_ {
    let all = storage::prefix_range(&[RECORD]);
    let bound = |bound: Bound<Bytes>, open: Bound<Bytes>| match bound {
        Bound::Included(key) => Bound::Included(record_key(&key)),
        Bound::Excluded(key) => Bound::Excluded(record_key(&key)),
        Bound::Unbounded => open,
    };
    let range = (bound(range.0, all.0), bound(range.1, all.1));
    view.scan(range, order).filter_map(|pair| {
        let (key, value) = match pair {
            Ok(pair) => pair,
            Err(error) => return Some(Err(error.into())),
        };
        let key = key.slice(1..);
        match live(&key, Some(value)) {
            Ok(Some(record)) => Some(Ok((key, record))),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    })
}
