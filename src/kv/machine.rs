//! Applies the commands of a data group to its space.
//!
//! Space layout: `r` key → record; `t` → how much the space holds, there since the first write that took
//! effect; `s` → when it was sealed.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{
    Stored, decode_command, decode_stored, encode_outcomes, encode_sealed, encode_stored, encode_written,
};
use super::seals::Seals;
use super::{Command, Op, Outcome, Precondition, Record};
use crate::codec::{Malformed, Reader};
use crate::raft::{ApplyError, Space, SpaceView, Txn};
use crate::storage::{self, KeyRange, Order};

const RECORD: u8 = b'r';
const TOTALS: &[u8] = b"t";
const SEALS: &[u8] = b"s";

/// Tombstones dropped in one batch: what a checkpoint frees is spread over many small writes.
const TOMBSTONES_PER_BATCH: usize = 1024;

/// What a partition holds, for anyone to look at.
#[derive(Debug, Default)]
pub struct Totals {
    keys: AtomicU64,
    bytes: AtomicU64,
    written: AtomicBool,
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
}

/// The state machine of a partition.
#[derive(Debug)]
pub struct Machine {
    totals: Arc<Totals>,
    keys: u64,
    bytes: u64,
    changed: bool,
    /// There are totals, or there will be: see `finish`.
    written: bool,
    seals: Seals,
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
            keys: 0,
            bytes: 0,
            changed: false,
            written: false,
            seals: Seals::default(),
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
        let record_key = record_key(&key);
        let stored = match txn.get(&record_key)? {
            Some(bytes) => Some(decode_stored(&key, &bytes)?),
            None => None,
        };
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
                self.count_out(&key, current.as_ref());
                self.count_in(&key, &value);
                let record = Record { value, version, create_revision, mod_revision: index };
                txn.put(record_key, encode_stored(&key, &Stored::Live(record)));
                Ok(Outcome::Put { version, revision: index })
            }
            Op::Delete { .. } => {
                let existed = current.is_some();
                self.count_out(&key, current.as_ref());
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
            let stored = txn.get(&record_key(key))?.map(|bytes| decode_stored(key, &bytes)).transpose()?;
            if stored.is_none_or(|stored| stored.mod_revision() < index) {
                left.push(op);
            }
        }
        Ok(left)
    }

    fn count_in(&mut self, key: &[u8], value: &[u8]) {
        self.keys += 1;
        self.bytes += (key.len() + value.len()) as u64;
        self.changed = true;
    }

    fn count_out(&mut self, key: &[u8], record: Option<&Record>) {
        if let Some(record) = record {
            self.keys -= 1;
            self.bytes -= (key.len() + record.value.len()) as u64;
            self.changed = true;
        }
    }

    /// Counts what is there, and finds the tombstones that are left. Returns the newest revision.
    fn recount(&mut self, space: &Space) -> Result<u64, ApplyError> {
        let view = space.view()?;
        let mut newest = 0;
        let mut tombstones = Vec::new();
        for pair in view.scan(storage::prefix_range(&[RECORD]), Order::Ascending) {
            let (key, value) = pair?;
            let key = key.slice(1..);
            let stored = decode_stored(&key, &value)?;
            newest = newest.max(stored.mod_revision());
            match stored {
                Stored::Live(record) => self.count_in(&key, &record.value),
                Stored::Tombstone { mod_revision } => tombstones.push((key, mod_revision)),
            }
        }
        tombstones.sort_by_key(|(_, revision)| *revision);
        self.tombstones = tombstones.into();
        Ok(newest)
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
            let record_key = record_key(&key);
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
        (self.keys, self.bytes, self.ahead_until) = (0, 0, 0);
        self.tombstones.clear();
        (self.changed, self.written) = (false, false);
        self.seals = match space.get(SEALS)? {
            Some(bytes) => Seals::decode(bytes)?,
            None => Seals::default(),
        };
        let mut tombstones = 0;
        if let Some(bytes) = space.get(TOTALS)? {
            let mut input = Reader::new("totals", bytes);
            (self.keys, self.bytes, tombstones) = (input.u64()?, input.u64()?, input.u64()?);
            input.end()?;
            self.written = true;
        }
        if redo || tombstones > 0 {
            (self.keys, self.bytes) = (0, 0);
            let newest = self.recount(space)?;
            self.ahead_until = if redo { newest } else { 0 };
            // Totals where nothing was ever written would say that something was.
            self.changed = self.written || newest > 0;
            self.written = self.changed;
        }
        self.published(0);
        Ok(self.ahead_until)
    }

    fn apply(&mut self, index: u64, command: Bytes, txn: &mut Txn<'_>) -> Result<Bytes, ApplyError> {
        let mut ops = match decode_command(command).map_err(ApplyError::Command)? {
            Command::Writes(_) if self.seals.hold_at(index) => return Ok(encode_sealed()),
            Command::Writes(ops) => ops,
            Command::Seal => {
                self.seals.seal(index);
                txn.put(Bytes::from_static(SEALS), self.seals.encode());
                return Ok(encode_written(self.written));
            }
            Command::Unseal => {
                self.seals.unseal(index);
                txn.put(Bytes::from_static(SEALS), self.seals.encode());
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
        if std::mem::take(&mut self.changed) {
            let mut totals = BytesMut::with_capacity(24);
            totals.put_u64_le(self.keys);
            totals.put_u64_le(self.bytes);
            totals.put_u64_le(self.tombstones.len() as u64);
            txn.put(Bytes::from_static(TOTALS), totals.freeze());
        }
        Ok(())
    }

    fn published(&mut self, _index: u64) {
        self.totals.keys.store(self.keys, Ordering::Relaxed);
        self.totals.bytes.store(self.bytes, Ordering::Relaxed);
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

fn live(key: &[u8], bytes: Option<Bytes>) -> Result<Option<Record>, ReadError> {
    match bytes.map(|bytes| decode_stored(key, &bytes)).transpose()? {
        Some(Stored::Live(record)) => Ok(Some(record)),
        Some(Stored::Tombstone { .. }) | None => Ok(None),
    }
}

/// A key's record in `space`.
pub fn get(space: &Space, key: &[u8]) -> Result<Option<Record>, ReadError> {
    live(key, space.get(&record_key(key))?)
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
