//! The data state machine: what a partition's log means.
//!
//! The outcome of an operation depends only on its own key's record, so that a log can be applied
//! again over a state that is partly ahead of it, and a partition can be split.

mod codec;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod machine;
mod marks;
mod seals;
mod summary;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use codec::{
    decode_answer, decode_command, decode_mark, decode_written, encode_command, encode_mark_command,
    encode_seal, encode_unseal, encode_verdict,
};
pub use machine::{Machine, ReadError, Totals, get, get_in, hash_at, scan, verify};
pub use summary::Summary;

/// What must hold of a key for a write to take place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    None,
    /// The key is there, with this version; never 0.
    Version(u64),
    /// The key is not there.
    Absent,
}

/// One write to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put { key: Bytes, value: Bytes, precondition: Precondition },
    Delete { key: Bytes, precondition: Precondition },
}

impl Op {
    pub fn key(&self) -> &Bytes {
        match self {
            Op::Put { key, .. } | Op::Delete { key, .. } => key,
        }
    }
}

/// What a partition's log entry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// In order, at one index.
    Writes(Vec<Op>),
    /// No write takes effect any more: the cluster gives itself up.
    Seal,
    /// It does not after all.
    Unseal,
    /// Every replica notes what its records come to here.
    Mark,
    /// What came of comparing the replicas at a mark.
    Verdict(Verdict),
}

/// What a replica's records come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Log index.
    pub index: u64,
    /// [`Summary::hash`] there.
    pub hash: u128,
}

/// What came of comparing the replicas at the mark at this log index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A strict majority agrees: who has another hash is damaged. Ends a halt.
    Majority { mark: u64, hash: u128 },
    /// Some differ, and nobody can say who is right: nothing linearizable is served.
    NoMajority { mark: u64 },
}

/// What became of writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// One for each operation, in order.
    Outcomes(Vec<Outcome>),
    /// The partition is sealed: none took place.
    Sealed,
    /// It is halted: none took place.
    Halted,
}

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// `version` counts the modifications of this key since it was created; `revision` is the log
    /// index of the write.
    Put {
        version: u64,
        revision: u64,
    },
    Deleted {
        existed: bool,
        revision: u64,
    },
    /// Nothing was written. 0: the key is not there.
    PreconditionFailed {
        current_version: u64,
    },
}

/// A key's current state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub value: Bytes,
    /// Modifications of this key since it was created; 1 after the first put.
    pub version: u64,
    /// Log index of the write that created it.
    pub create_revision: u64,
    /// Log index of the last write.
    pub mod_revision: u64,
}
