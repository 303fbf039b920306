//! What goes into a call and what comes out, free of the wire's forms.

use bytes::Bytes;

use crate::error::{Error, Happened, Reason, Result};
use crate::limits;
use crate::proto::v1;

/// What must hold of a key for a write to take place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precondition {
    #[default]
    None,
    /// The key is there, with this version; never 0.
    Version(u64),
    /// The key is not there.
    Absent,
}

impl Precondition {
    pub(super) fn to_wire(self) -> Option<v1::Precondition> {
        use v1::precondition::Condition;
        let condition = match self {
            Precondition::None => return None,
            Precondition::Version(version) => Condition::Version(version),
            Precondition::Absent => Condition::Absent(true),
        };
        Some(v1::Precondition { condition: Some(condition) })
    }
}

/// A key and its current state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub key: Bytes,
    /// Empty in a scan of keys only.
    pub value: Bytes,
    /// Modifications of this key since it was created; 1 after the first put.
    pub version: u64,
    /// Revisions order the writes of one partition; across partitions they mean nothing.
    pub create_revision: u64,
    pub mod_revision: u64,
}

impl From<v1::Record> for Record {
    fn from(record: v1::Record) -> Record {
        Record {
            key: record.key,
            value: record.value,
            version: record.version,
            create_revision: record.create_revision,
            mod_revision: record.mod_revision,
        }
    }
}

/// One write of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOp {
    Put { key: Bytes, value: Bytes, precondition: Precondition },
    Delete { key: Bytes, precondition: Precondition },
}

impl WriteOp {
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> WriteOp {
        WriteOp::Put { key: key.into(), value: value.into(), precondition: Precondition::None }
    }

    pub fn delete(key: impl Into<Bytes>) -> WriteOp {
        WriteOp::Delete { key: key.into(), precondition: Precondition::None }
    }

    pub fn key(&self) -> &Bytes {
        match self {
            WriteOp::Put { key, .. } | WriteOp::Delete { key, .. } => key,
        }
    }

    pub(super) fn to_wire(&self) -> v1::WriteOperation {
        use v1::write_operation::Operation;
        let operation = match self.clone() {
            WriteOp::Put { key, value, precondition } => {
                Operation::Put(v1::PutRequest { key, value, precondition: precondition.to_wire() })
            }
            WriteOp::Delete { key, precondition } => {
                Operation::Delete(v1::DeleteRequest { key, precondition: precondition.to_wire() })
            }
        };
        v1::WriteOperation { operation: Some(operation) }
    }
}

/// A put that took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The key's version after it.
    pub version: u64,
    pub revision: u64,
}

/// A delete that took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// Whether there was anything to delete.
    pub existed: bool,
    pub revision: u64,
}

/// What became of one operation of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    Put(Written),
    Deleted(Deleted),
}

impl From<v1::PutResponse> for Written {
    fn from(response: v1::PutResponse) -> Written {
        Written { version: response.version, revision: response.revision }
    }
}

impl From<v1::DeleteResponse> for Deleted {
    fn from(response: v1::DeleteResponse) -> Deleted {
        Deleted { existed: response.existed, revision: response.revision }
    }
}

/// What a scan reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// First key, inclusive; empty: from the beginning.
    pub start: Bytes,
    /// End, exclusive; empty: to the end.
    pub end: Bytes,
    /// How many records at most; `None`: all.
    pub limit: Option<u64>,
    /// Leave the values out.
    pub keys_only: bool,
    /// From the end to the beginning.
    pub reverse: bool,
    /// Whatever the asked node has, which may lag behind.
    pub stale: bool,
}

impl ScanOptions {
    /// Every key.
    pub fn all() -> ScanOptions {
        ScanOptions::default()
    }

    /// The keys that start with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> ScanOptions {
        let start = prefix.into();
        let end = prefix_end(&start).unwrap_or_default();
        ScanOptions { start, end, ..ScanOptions::default() }
    }

    #[must_use]
    pub fn limit(mut self, limit: u64) -> ScanOptions {
        self.limit = Some(limit);
        self
    }
}

/// The first key after all that start with `prefix`; `None`: there is none.
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let keep = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    Some(end.into())
}

/// A reason that this version does not know is judged by what it says of the write.
pub(super) fn error_of(error: v1::OperationError) -> Error {
    let reason = Reason::from_name(&error.reason).unwrap_or(if error.happened == Happened::No.as_str() {
        Reason::InvalidArgument
    } else {
        Reason::OutcomeUnknown
    });
    let mut result = Error::new(reason, error.message);
    result.metadata = error.metadata.into_iter().collect();
    result
}

/// Refuses what a server would refuse: every call does it before anything is sent.
///
/// # Errors
/// `InvalidArgument` or `TooLarge`; the message names the limit.
pub fn check(op: &WriteOp) -> Result<()> {
    check_key(op.key())?;
    let (value, precondition) = match op {
        WriteOp::Put { value, precondition, .. } => (value.len(), precondition),
        WriteOp::Delete { precondition, .. } => (0, precondition),
    };
    if value > limits::VALUE_BYTES_MAX {
        return Err(too_large("value", value, limits::VALUE_BYTES_MAX));
    }
    if *precondition == Precondition::Version(0) {
        let message = "versions start at 1; to ask that the key is not there, use the precondition for that (--if-absent)";
        return Err(Error::new(Reason::InvalidArgument, message));
    }
    if let WriteOp::Delete { precondition: Precondition::Absent, .. } = op {
        let message = "a delete of a key that must be absent would do nothing; leave that precondition out";
        return Err(Error::new(Reason::InvalidArgument, message));
    }
    Ok(())
}

pub(super) fn check_key(key: &[u8]) -> Result<()> {
    if key.is_empty() {
        return Err(Error::new(Reason::InvalidArgument, "a key has at least one byte"));
    }
    if key.len() > limits::KEY_BYTES_MAX {
        return Err(too_large("key", key.len(), limits::KEY_BYTES_MAX));
    }
    Ok(())
}

/// Refuses a batch of this many operations and bytes on the wire.
pub(super) fn check_batch(operations: usize, bytes: usize) -> Result<()> {
    if operations > limits::BATCH_OPERATIONS_MAX {
        let message = format!(
            "the batch has {operations} operations; at most {} are taken",
            limits::BATCH_OPERATIONS_MAX
        );
        return Err(Error::new(Reason::TooLarge, message));
    }
    if bytes > limits::MESSAGE_BYTES_MAX {
        return Err(too_large("batch", bytes, limits::MESSAGE_BYTES_MAX));
    }
    Ok(())
}

fn too_large(what: &str, bytes: usize, limit: usize) -> Error {
    Error::new(Reason::TooLarge, format!("the {what} has {bytes} bytes; at most {limit} are taken"))
        .with("limit_bytes", limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key_without_it() {
        for (prefix, end) in [
            (&b"a"[..], Some(&b"b"[..])),
            (b"user:", Some(b"user;")),
            (b"a\xff", Some(b"b")),
            (b"a\xff\xff", Some(b"b")),
            (b"\xff", None),
            (b"", None),
        ] {
            assert_eq!(prefix_end(prefix).as_deref(), end, "{prefix:?}");
        }
    }

    #[test]
    fn limits_are_checked_at_their_edge() {
        let op = |key: usize, value: usize| WriteOp::put(vec![b'k'; key], vec![0; value]);
        assert!(check(&op(limits::KEY_BYTES_MAX, limits::VALUE_BYTES_MAX)).is_ok());
        let reason = |op: WriteOp| check(&op).unwrap_err().reason;
        assert_eq!(reason(op(0, 0)), Reason::InvalidArgument);
        assert_eq!(reason(op(limits::KEY_BYTES_MAX + 1, 0)), Reason::TooLarge);
        assert_eq!(reason(op(1, limits::VALUE_BYTES_MAX + 1)), Reason::TooLarge);
        let zero = WriteOp::Delete { key: "k".into(), precondition: Precondition::Version(0) };
        assert_eq!(reason(zero), Reason::InvalidArgument);
        let absent = WriteOp::Delete { key: "k".into(), precondition: Precondition::Absent };
        assert_eq!(reason(absent), Reason::InvalidArgument);
    }
}
