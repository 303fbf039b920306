//! Keeps group 0's state in its space, as one record, and publishes it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::codec::{decode_command, decode_state, encode_answer, encode_state};
use super::state::State;
use crate::raft::{ApplyError, Space, Txn};

const STATE: &[u8] = b"state";

/// The state machine of group 0.
#[derive(Debug)]
pub struct Machine {
    state: State,
    /// Index of the command that made it: a redo passes over those before.
    revision: u64,
    changed: bool,
    published: watch::Sender<Arc<State>>,
}

impl Machine {
    /// A machine, and where its state can be watched.
    pub fn new() -> (Machine, watch::Receiver<Arc<State>>) {
        let (published, watcher) = watch::channel(Arc::new(State::default()));
        (Machine { state: State::default(), revision: 0, changed: false, published }, watcher)
    }
}

impl crate::raft::Machine for Machine {
    fn load(&mut self, space: &Space, _redo: bool) -> Result<u64, ApplyError> {
        (self.state, self.revision) = match space.get(STATE)? {
            Some(bytes) => decode_state(bytes)?,
            None => (State::default(), 0),
        };
        self.changed = true;
        self.published(self.revision);
        self.changed = false;
        Ok(self.revision)
    }

    fn apply(&mut self, index: u64, command: Bytes, _txn: &mut Txn<'_>) -> Result<Bytes, ApplyError> {
        if index <= self.revision {
            return Ok(Bytes::new());
        }
        let result = self.state.apply(decode_command(command).map_err(ApplyError::Command)?);
        if result.is_ok() {
            self.revision = index;
            self.changed = true;
        }
        Ok(encode_answer(&result))
    }

    fn finish(&mut self, txn: &mut Txn<'_>) -> Result<(), ApplyError> {
        if self.changed {
            txn.put(txn.key([STATE]), encode_state(&self.state, self.revision));
        }
        Ok(())
    }

    fn published(&mut self, _index: u64) {
        if std::mem::take(&mut self.changed) {
            self.published.send_replace(Arc::new(self.state.clone()));
        }
    }

    fn checkpointed(&mut self, _index: u64) {}
}
