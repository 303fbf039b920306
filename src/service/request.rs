//! Requests, checked: from the wire's messages to the node's values. Every limit has its error here.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::error::{Error, Reason, Result};
use crate::kv::{Op, Precondition};
use crate::limits::{
    BATCH_OPERATIONS_MAX, KEY_BYTES_MAX, MESSAGE_BYTES_MAX, PARTITIONS_MAX, VALUE_BYTES_MAX,
};
use crate::node::{Consistency, ScanQuery};
use crate::proto::v1;
use crate::types::PartitionId;

use super::page::{Range, prefix_end};

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Reason::InvalidArgument, message)
}

/// `what` has `size`, which is more than `max`.
fn too_large(what: &str, size: usize, max: usize, unit: &str) -> Error {
    Error::new(Reason::TooLarge, format!("{what} has {size} {unit}; the limit is {max}"))
        .with("size", size)
        .with("limit", max)
}

/// A key that may be read or written.
pub(super) fn key(key: Bytes) -> Result<Bytes> {
    match key.len() {
        0 => Err(invalid("the key is empty; a key has 1 byte at least")),
        1..=KEY_BYTES_MAX => Ok(key),
        size => Err(too_large("the key", size, KEY_BYTES_MAX, "bytes")),
    }
}

fn value(value: Bytes) -> Result<Bytes> {
    match value.len() {
        0..=VALUE_BYTES_MAX => Ok(value),
        size => Err(too_large("the value", size, VALUE_BYTES_MAX, "bytes")),
    }
}

fn precondition(precondition: Option<v1::Precondition>) -> Result<Precondition> {
    use v1::precondition::Condition;
    let Some(precondition) = precondition else { return Ok(Precondition::None) };
    match precondition.condition {
        None => Err(invalid("the precondition is empty; name a version, or absent = true, or leave it out")),
        Some(Condition::Version(0)) => {
            Err(invalid("the precondition asks for version 0, which no key has; say absent = true instead"))
        }
        Some(Condition::Version(version)) => Ok(Precondition::Version(version)),
        Some(Condition::Absent(true)) => Ok(Precondition::Absent),
        Some(Condition::Absent(false)) => {
            Err(invalid("the precondition says absent = false; name a version, or leave it out"))
        }
    }
}

pub(super) fn put(request: v1::PutRequest) -> Result<Op> {
    Ok(Op::Put {
        key: key(request.key)?,
        value: value(request.value)?,
        precondition: precondition(request.precondition)?,
    })
}

pub(super) fn delete(request: v1::DeleteRequest) -> Result<Op> {
    let op = Op::Delete { key: key(request.key)?, precondition: precondition(request.precondition)? };
    if let Op::Delete { precondition: Precondition::Absent, .. } = op {
        return Err(invalid("a delete of a key that must be absent would do nothing; leave absent out"));
    }
    Ok(op)
}

/// A number from the wire, that may be of a later version.
pub(super) fn consistency(number: i32) -> Result<Consistency> {
    match v1::Consistency::try_from(number) {
        Ok(v1::Consistency::Linearizable) => Ok(Consistency::Linearizable),
        Ok(v1::Consistency::Stale) => Ok(Consistency::Stale),
        Err(_) => Err(invalid(format!("consistency {number} is not known to this version"))),
    }
}

/// All operations, or the first one's error: a malformed batch is refused whole.
pub(super) fn batch(request: v1::BatchWriteRequest) -> Result<Vec<Op>> {
    use v1::write_operation::Operation;
    let count = request.operations.len();
    if count > BATCH_OPERATIONS_MAX {
        return Err(too_large("the batch", count, BATCH_OPERATIONS_MAX, "operations"));
    }
    let bytes = prost::Message::encoded_len(&request);
    if bytes > MESSAGE_BYTES_MAX {
        return Err(too_large("the batch", bytes, MESSAGE_BYTES_MAX, "bytes"));
    }
    let op = |operation: v1::WriteOperation| match operation.operation {
        Some(Operation::Put(request)) => put(request),
        Some(Operation::Delete(request)) => delete(request),
        None => Err(invalid("neither put nor delete")),
    };
    let numbered = request.operations.into_iter().enumerate();
    numbered.map(|(index, operation)| op(operation).map_err(|error| at(error, "operation", index))).collect()
}

pub(super) fn batch_keys(keys: Vec<Bytes>) -> Result<Vec<Bytes>> {
    if keys.len() > BATCH_OPERATIONS_MAX {
        return Err(too_large("the batch", keys.len(), BATCH_OPERATIONS_MAX, "keys"));
    }
    let numbered = keys.into_iter().enumerate();
    numbered.map(|(index, one)| key(one).map_err(|error| at(error, "key", index))).collect()
}

/// Says which part of a batch an error is about.
fn at(mut error: Error, what: &str, index: usize) -> Error {
    error.message = format!("{what} {index} of the batch: {}", error.message);
    error.with("index", index)
}

/// The range that a scan asks for, before its page token.
pub(super) fn range(request: &v1::ScanRequest) -> Result<Range> {
    for (what, bound) in [("the prefix", &request.prefix), ("start", &request.start), ("end", &request.end)] {
        if bound.len() > KEY_BYTES_MAX {
            return Err(too_large(what, bound.len(), KEY_BYTES_MAX, "bytes"));
        }
    }
    let bound = |bytes: &Bytes| (!bytes.is_empty()).then(|| bytes.clone());
    if request.prefix.is_empty() {
        return Ok(Range {
            start: bound(&request.start),
            end: bound(&request.end),
            reverse: request.reverse,
        });
    }
    if !request.start.is_empty() || !request.end.is_empty() {
        return Err(invalid("a scan has either a prefix or start and end, not both"));
    }
    Ok(Range {
        start: Some(request.prefix.clone()),
        end: prefix_end(&request.prefix),
        reverse: request.reverse,
    })
}

/// What another node asks of a scan: each partition once, in order. Its bounds may be behind a key, and so longer by a
/// byte ([`Range::after`]).
pub(super) fn part_of_scan(
    request: v1::ReadRangeRequest,
    consistency: Consistency,
) -> Result<(Vec<PartitionId>, ScanQuery)> {
    let count = request.partitions.len();
    if count > PARTITIONS_MAX as usize {
        return Err(too_large("the scan", count, PARTITIONS_MAX as usize, "partitions"));
    }
    for (what, bound) in [("start", &request.start), ("end", &request.end)] {
        let size = bound.as_ref().map_or(0, Bytes::len);
        if size > KEY_BYTES_MAX + 1 {
            return Err(too_large(what, size, KEY_BYTES_MAX + 1, "bytes"));
        }
    }
    let partitions: BTreeSet<PartitionId> = request.partitions.into_iter().map(PartitionId).collect();
    let query = ScanQuery {
        start: request.start,
        end: request.end,
        reverse: request.reverse,
        limit: request.limit as usize,
        keys_only: request.keys_only,
        consistency,
    };
    Ok((partitions.into_iter().collect(), query))
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::precondition::Condition;

    fn put_of(key: usize, value: usize) -> v1::PutRequest {
        v1::PutRequest { key: vec![b'k'; key].into(), value: vec![b'v'; value].into(), precondition: None }
    }

    fn reason<T: std::fmt::Debug>(result: Result<T>) -> Option<Reason> {
        result.err().map(|error| error.reason)
    }

    #[test]
    fn sizes_at_and_over_each_limit() {
        let cases = [
            (put_of(0, 1), Some(Reason::InvalidArgument)),
            (put_of(1, 0), None),
            (put_of(KEY_BYTES_MAX, VALUE_BYTES_MAX), None),
            (put_of(KEY_BYTES_MAX + 1, 1), Some(Reason::TooLarge)),
            (put_of(1, VALUE_BYTES_MAX + 1), Some(Reason::TooLarge)),
        ];
        for (request, expected) in cases {
            let (key, value) = (request.key.len(), request.value.len());
            assert_eq!(reason(put(request)), expected, "key of {key}, value of {value}");
        }
        let error = put(put_of(KEY_BYTES_MAX + 1, 1)).unwrap_err();
        assert_eq!(error.message, "the key has 4097 bytes; the limit is 4096");
        assert_eq!(error.metadata["limit"], "4096");
    }

    #[test]
    fn preconditions() {
        let on_put = |condition| {
            let precondition = Some(v1::Precondition { condition });
            put(v1::PutRequest { precondition, ..put_of(1, 1) })
        };
        let on_delete = |condition| {
            let precondition = Some(v1::Precondition { condition });
            delete(v1::DeleteRequest { key: Bytes::from_static(b"k"), precondition })
        };
        for bad in [None, Some(Condition::Version(0)), Some(Condition::Absent(false))] {
            assert_eq!(reason(on_put(bad)), Some(Reason::InvalidArgument), "{bad:?}");
            assert_eq!(reason(on_delete(bad)), Some(Reason::InvalidArgument), "{bad:?}");
        }
        let of = |op: Op| match op {
            Op::Put { precondition, .. } | Op::Delete { precondition, .. } => precondition,
        };
        assert_eq!(on_put(Some(Condition::Version(7))).map(of), Ok(Precondition::Version(7)));
        assert_eq!(on_put(Some(Condition::Absent(true))).map(of), Ok(Precondition::Absent));
        assert_eq!(on_delete(Some(Condition::Version(7))).map(of), Ok(Precondition::Version(7)));
        assert_eq!(reason(on_delete(Some(Condition::Absent(true)))), Some(Reason::InvalidArgument));
    }

    #[test]
    fn a_batch_is_checked_whole_and_the_error_names_the_operation() {
        use v1::write_operation::Operation;
        let op = |operation| v1::WriteOperation { operation };
        let of = |operations| batch(v1::BatchWriteRequest { operations });
        let good = || op(Some(Operation::Put(put_of(1, 1))));

        assert_eq!(of(vec![]).unwrap(), vec![]);
        assert_eq!(of(vec![good(); BATCH_OPERATIONS_MAX]).unwrap().len(), BATCH_OPERATIONS_MAX);
        assert_eq!(reason(of(vec![good(); BATCH_OPERATIONS_MAX + 1])), Some(Reason::TooLarge));
        let big = op(Some(Operation::Put(put_of(1, VALUE_BYTES_MAX))));
        assert_eq!(of(vec![big.clone(); 2]).unwrap().len(), 2);
        let error = of(vec![big; 3]).unwrap_err();
        assert_eq!(error.reason, Reason::TooLarge);
        assert!(error.message.ends_with("bytes; the limit is 3145728"), "{error}");

        let error = of(vec![good(), op(None)]).unwrap_err();
        assert_eq!(error.message, "operation 1 of the batch: neither put nor delete");
        assert_eq!(error.metadata["index"], "1");
        let error = of(vec![good(), good(), op(Some(Operation::Put(put_of(0, 1))))]).unwrap_err();
        assert!(error.message.starts_with("operation 2 of the batch: the key is empty"), "{error}");
        let error = batch_keys(vec![Bytes::from_static(b"k"), Bytes::new()]).unwrap_err();
        assert!(error.message.starts_with("key 1 of the batch: "), "{error}");
        let many = vec![Bytes::from_static(b"k"); BATCH_OPERATIONS_MAX + 1];
        assert_eq!(reason(batch_keys(many)), Some(Reason::TooLarge));
    }

    #[test]
    fn ranges() {
        let request = |prefix: &'static [u8], start: &'static [u8], end: &'static [u8]| v1::ScanRequest {
            prefix: Bytes::from_static(prefix),
            start: Bytes::from_static(start),
            end: Bytes::from_static(end),
            ..Default::default()
        };
        let bounds = |range: Range| (range.start, range.end);
        let bytes = |bytes: &'static [u8]| Some(Bytes::from_static(bytes));
        assert_eq!(range(&request(b"", b"", b"")).map(bounds), Ok((None, None)));
        assert_eq!(range(&request(b"", b"a", b"b")).map(bounds), Ok((bytes(b"a"), bytes(b"b"))));
        assert_eq!(range(&request(b"a", b"", b"")).map(bounds), Ok((bytes(b"a"), bytes(b"b"))));
        assert_eq!(range(&request(b"\xFF", b"", b"")).map(bounds), Ok((bytes(b"\xFF"), None)));
        assert_eq!(reason(range(&request(b"a", b"a", b""))), Some(Reason::InvalidArgument));
        assert_eq!(reason(range(&request(b"a", b"", b"b"))), Some(Reason::InvalidArgument));
        let long = v1::ScanRequest { start: vec![0; KEY_BYTES_MAX + 1].into(), ..Default::default() };
        assert_eq!(reason(range(&long)), Some(Reason::TooLarge));
    }

    #[test]
    fn a_part_of_a_scan_is_within_the_limits_of_a_scan() {
        let request = |partitions: Vec<u32>, bound: usize| v1::ReadRangeRequest {
            partitions,
            start: Some(vec![b'k'; bound].into()),
            end: Some(vec![b'l'; bound].into()),
            ..Default::default()
        };
        let part = |request| part_of_scan(request, Consistency::Stale);
        let (partitions, query) = part(request(vec![3, 1, 3], KEY_BYTES_MAX + 1)).unwrap();
        assert_eq!(partitions, [PartitionId(1), PartitionId(3)]);
        assert_eq!(query.start.map(|start| start.len()), Some(KEY_BYTES_MAX + 1));
        let numbers = (0..=PARTITIONS_MAX).collect();
        for (request, limit) in [
            (request(vec![1], KEY_BYTES_MAX + 2), KEY_BYTES_MAX + 1),
            (v1::ReadRangeRequest { start: None, ..request(vec![1], KEY_BYTES_MAX + 2) }, KEY_BYTES_MAX + 1),
            (request(numbers, 1), PARTITIONS_MAX as usize),
            (request(vec![7; PARTITIONS_MAX as usize + 1], 1), PARTITIONS_MAX as usize),
        ] {
            let error = part(request).unwrap_err();
            assert_eq!((error.reason, &error.metadata["limit"]), (Reason::TooLarge, &limit.to_string()));
        }
    }

    #[test]
    fn a_consistency_of_the_future_is_refused() {
        assert_eq!(consistency(0), Ok(Consistency::Linearizable));
        assert_eq!(consistency(1), Ok(Consistency::Stale));
        assert_eq!(reason(consistency(9)), Some(Reason::InvalidArgument));
    }
}
