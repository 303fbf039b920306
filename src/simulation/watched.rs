//! A state machine under observation: the production one, and what it applies is told to the invariants.

use bytes::Bytes;

use super::sim;
use super::trace::hash_of;
use crate::raft::{ApplyError, Machine, Space, Txn};
use crate::types::LogKey;

/// The machine of one replica.
#[derive(Debug)]
pub(super) struct Watched<M> {
    key: LogKey,
    machine: M,
    space: Option<Space>,
    /// During a redo: until then the records are of no one moment.
    mixed_until: u64,
}

impl<M: Machine> Watched<M> {
    pub(super) fn new(key: LogKey, machine: M) -> Watched<M> {
        Watched { key, machine, space: None, mixed_until: 0 }
    }
}

impl<M: Machine> Machine for Watched<M> {
    fn load(&mut self, space: &Space, redo: bool) -> Result<u64, ApplyError> {
        if self.space.replace(space.clone()).is_some() {
            sim().installed(self.key);
        }
        self.mixed_until = self.machine.load(space, redo)?;
        Ok(self.mixed_until)
    }

    fn apply(&mut self, index: u64, command: Bytes, txn: &mut Txn<'_>) -> Result<Bytes, ApplyError> {
        sim().applied(self.key, index, hash_of(&command));
        self.machine.apply(index, command, txn)
    }

    fn finish(&mut self, txn: &mut Txn<'_>) -> Result<(), ApplyError> {
        self.machine.finish(txn)
    }

    fn published(&mut self, index: u64) {
        self.machine.published(index);
        if let Some(space) = self.space.as_ref().filter(|_| index >= self.mixed_until) {
            sim().published(self.key, index, space);
        }
    }

    fn checkpointed(&mut self, index: u64) {
        self.machine.checkpointed(index);
    }
}
