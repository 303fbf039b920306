//! What a group replicates commands for: a state machine over bytes.

use std::cell::Cell;

use bytes::Bytes;
use indexmap::IndexMap;

use super::space::Space;
use super::state_machine::blocking;
use crate::codec::Malformed;
use crate::storage::{self, Batch};

/// Why applying stopped. Never because of what a command asks for: that is an answer.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// A record that can't be read: this copy of the state is damaged.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A command that can't be read: of a newer version, or of a damaged log. The state is not to
    /// blame, and another program may well go on with it.
    #[error("{0}; if a newer version of rushkv wrote it, start that version")]
    Command(Malformed),
}

impl ApplyError {
    /// Whether this copy of the state can't be read; else the process has to end.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, ApplyError::Malformed(_) | ApplyError::Storage(storage::Error::Corrupt { .. }))
    }
}

/// A deterministic state machine. All replicas of a group apply the same commands at the same
/// indexes; the answer and every write must follow from the command, its index and the records of the
/// keys it names alone: no clock, no random numbers, no iteration over unordered maps.
///
/// **Redo.** With an engine that does not recover a prefix ([`storage::Engine::recovers_prefix`]), the
/// log is applied again from the last checkpoint on a state that may already hold the effect of later
/// entries. A machine must see from its records that an entry took effect already, and pass over it.
pub trait Machine: Send + Sync + 'static {
    /// Takes up what `space` holds: called before the first command, and after a snapshot was
    /// installed. `redo` says that the log will be applied again on a state that may be ahead of it:
    /// then it returns the newest index whose effect it found, or 0.
    fn load(&mut self, space: &Space, redo: bool) -> Result<u64, ApplyError>;

    /// Reads all that `space` holds, which another replica sent, before it takes the place of what is here. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// [`ApplyError::Malformed`] if it is not what the commands behind it have written.
    fn verify(_space: &Space) -> Result<(), ApplyError>
    where
        Self: Sized,
    {
        Ok(())
    }

    /// Applies the committed command at `index`, and answers.
    fn apply(&mut self, index: u64, command: Bytes, txn: &mut Txn<'_>) -> Result<Bytes, ApplyError>;

    /// Called once after the last command of a batch, before it is written.
    fn finish(&mut self, txn: &mut Txn<'_>) -> Result<(), ApplyError>;

    /// What was applied up to `index` can be read now.
    fn published(&mut self, index: u64);

    /// All up to `index` is in a checkpoint: the machine may drop what it kept for a redo. Writes go
    /// into the next batch.
    fn checkpointed(&mut self, index: u64);
}

/// Writes that the store adds to each batch, at most.
const OF_THE_STORE: usize = 2;

/// The writes of one batch of commands: read over the engine's state, written together at its end.
#[derive(Debug)]
pub struct Txn<'a> {
    space: &'a Space,
    /// In the order of each key's first write, so that batches are the same on every replica.
    writes: IndexMap<Bytes, Option<Bytes>>,
    /// Reads that were not answered by what is cached.
    misses: Cell<usize>,
}

/// Reads of one batch that may wait for the disk where they are; those after them let the other tasks of this thread go
/// on elsewhere, which costs more than a read from memory.
const MISSES_MAX: usize = 16;

/// A key of a batch's space, as the engine has it: made once for all that is done with it.
#[derive(Debug)]
pub struct Key(Bytes);

impl<'a> Txn<'a> {
    pub(crate) fn new(space: &'a Space) -> Txn<'a> {
        Txn { space, writes: IndexMap::new(), misses: Cell::new(0) }
    }

    /// The key that consists of `parts`.
    pub fn key<const N: usize>(&self, parts: [&[u8]; N]) -> Key {
        Key(self.space.key_of(parts))
    }

    /// The value as the commands before this one left it.
    pub fn get(&self, key: &Key) -> storage::Result<Option<Bytes>> {
        match self.writes.get(&key.0) {
            Some(written) => Ok(written.clone()),
            None => self.read(&key.0),
        }
    }

    fn read(&self, key: &[u8]) -> storage::Result<Option<Bytes>> {
        let engine = self.space.engine();
        if let Some(found) = engine.cached(key) {
            return Ok(found);
        }
        self.misses.set(self.misses.get() + 1);
        let is_quick = self.misses.get() <= MISSES_MAX && engine.reads_at_once();
        if is_quick { engine.get(key) } else { blocking(|| engine.get(key)) }
    }

    pub fn put(&mut self, key: Key, value: Bytes) {
        self.writes.insert(key.0, Some(value));
    }

    pub fn delete(&mut self, key: Key) {
        self.writes.insert(key.0, None);
    }

    pub(crate) fn into_batch(self) -> Batch {
        let mut batch = Batch::default();
        batch.writes.reserve(self.writes.len() + OF_THE_STORE);
        for (key, value) in self.writes {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        batch
    }
}
