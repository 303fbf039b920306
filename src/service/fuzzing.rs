//! For fuzzing: bytes of the wire become a request within the limits, or an error.

use bytes::Bytes;
use prost::Message;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue};

use super::deadline::Clock;
use super::page::Range;
use super::request;
use crate::error::{Error, Happened, Result};
use crate::error::{from_status, to_status};
use crate::kv::Op;
use crate::limits::{BATCH_OPERATIONS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::proto::v1;

fn within_limits(op: &Op) {
    assert!((1..=KEY_BYTES_MAX).contains(&op.key().len()));
    if let Op::Put { value, .. } = op {
        assert!(value.len() <= VALUE_BYTES_MAX);
    }
}

/// An error comes through the wire whole.
fn refused<T>(result: Result<T>) -> Option<T> {
    result.map_err(|error: Error| assert_eq!(from_status(&to_status(&error), Happened::Unknown), error)).ok()
}

/// The first byte says which request the rest is.
pub fn run(input: &[u8]) -> bool {
    let Some((&kind, bytes)) = input.split_first() else { return false };
    match kind % 6 {
        0 => {
            let op = v1::PutRequest::decode(bytes).ok().and_then(|put| refused(request::put(put)));
            op.iter().for_each(within_limits);
            op.is_some()
        }
        1 => {
            let op = v1::DeleteRequest::decode(bytes).ok().and_then(|one| refused(request::delete(one)));
            op.iter().for_each(within_limits);
            op.is_some()
        }
        2 => {
            let ops = v1::BatchWriteRequest::decode(bytes).ok().and_then(|all| refused(request::batch(all)));
            assert!(ops.as_ref().is_none_or(|ops| ops.len() <= BATCH_OPERATIONS_MAX));
            ops.iter().flatten().for_each(within_limits);
            ops.is_some()
        }
        3 => {
            let Ok(asked) = v1::BatchGetRequest::decode(bytes) else { return false };
            refused(request::consistency(asked.consistency));
            let keys = refused(request::batch_keys(asked.keys));
            assert!(keys.iter().flatten().all(|key| (1..=KEY_BYTES_MAX).contains(&key.len())));
            keys.is_some()
        }
        4 => {
            let Ok(asked) = v1::ScanRequest::decode(bytes) else { return false };
            refused(request::range(&asked)).is_some_and(|range| scan(&range, &asked.page_token))
        }
        _ => {
            let Ok(value) = HeaderValue::from_bytes(bytes) else { return false };
            Clock::start(&HeaderMap::from_iter([(HeaderName::from_static("grpc-timeout"), value)])).unary();
            true
        }
    }
}

/// A token goes on within its range, whoever made it; ours always does.
fn scan(range: &Range, token: &Bytes) -> bool {
    let resumed = refused(range.resume(token));
    if let Some(rest) = &resumed {
        assert!(token.is_empty() || *rest == range.after(&token.slice(9..)));
    }
    if let Some(start) = range.start.clone().filter(|start| !start.is_empty() && !range.is_empty()) {
        let rest = refused(range.resume(&range.token(&start))).expect("our own token");
        assert_eq!(rest, range.after(&start));
    }
    resumed.is_some()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let key = Bytes::from_static(b"key");
    let precondition = |condition| Some(v1::Precondition { condition: Some(condition) });
    use v1::precondition::Condition::{Absent, Version};
    let put = v1::PutRequest { key: key.clone(), value: "v".into(), precondition: precondition(Version(3)) };
    let delete = v1::DeleteRequest { key: key.clone(), precondition: precondition(Version(4)) };
    let absent = v1::PutRequest { precondition: precondition(Absent(true)), ..put.clone() };
    let operation = |operation| v1::WriteOperation { operation: Some(operation) };
    let operations = vec![
        operation(v1::write_operation::Operation::Put(put.clone())),
        operation(v1::write_operation::Operation::Delete(delete.clone())),
    ];
    let whole = Range { start: Some(key.clone()), end: None, reverse: false };
    let scan = v1::ScanRequest { start: key.clone(), page_token: whole.token(&key), ..Default::default() };
    let prefix = v1::ScanRequest { prefix: key.clone(), limit: 3, reverse: true, ..Default::default() };
    let with = |kind: u8, message: Vec<u8>| [vec![kind], message].concat();
    vec![
        with(0, put.encode_to_vec()),
        with(0, absent.encode_to_vec()),
        with(1, delete.encode_to_vec()),
        with(2, v1::BatchWriteRequest { operations }.encode_to_vec()),
        with(3, v1::BatchGetRequest { keys: vec![key], consistency: 1 }.encode_to_vec()),
        with(4, scan.encode_to_vec()),
        with(4, prefix.encode_to_vec()),
        with(5, b"250m".to_vec()),
    ]
}
