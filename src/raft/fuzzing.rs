//! For fuzzing: what replicas say to each other and what stands in their logs is read or refused, and what
//! is read is written back the same.

use bytes::Bytes;

use super::codec::{
    decode_entry, decode_stored_membership, decode_vote, encode_entry, encode_stored_membership, encode_vote,
};
use super::message::{
    Request, decode_append_answer, decode_confirm_answer, decode_snapshot_answer, decode_transfer_answer,
    decode_vote_answer, encode_append, encode_append_answer, encode_confirm, encode_confirm_answer,
    encode_snapshot, encode_snapshot_answer, encode_transfer, encode_transfer_answer, encode_vote_answer,
    encode_vote_request,
};
use super::types::raft_log_id;
use crate::types::{LogId, ReplicaId};
use crate::wal;

const FROM: ReplicaId = ReplicaId(7);

fn encode(request: &Request) -> Bytes {
    match request {
        Request::Append(append) => encode_append(append),
        Request::Vote(vote) => encode_vote_request(vote, false),
        Request::PreVote(vote) => encode_vote_request(vote, true),
        Request::TransferLeader(transfer) => encode_transfer(transfer),
        Request::Snapshot(part) => encode_snapshot(part),
        Request::Confirm(vote) => encode_confirm(vote),
    }
}

/// A request; a part of a snapshot is one.
pub fn message(input: &[u8]) -> bool {
    let Ok(request) = Request::decode(FROM, Bytes::copy_from_slice(input)) else { return false };
    let written = encode(&request);
    let again = Request::decode(FROM, written.clone()).expect("what is written can be read");
    assert_eq!(encode(&again), written);
    true
}

/// The answers to requests.
pub fn answer(input: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(input);
    let prev = Some(raft_log_id(LogId { term: 1, index: 1 }));
    let transfer = Request::decode(FROM, Bytes::from_static(&TRANSFER));
    let Ok(Request::TransferLeader(transfer)) = transfer else { panic!("it is a transfer") };
    let _ = decode_append_answer(bytes.clone(), None, None);
    let written = [
        decode_append_answer(bytes.clone(), prev, prev).map(|answer| encode_append_answer(&answer)),
        decode_vote_answer(bytes.clone()).map(|answer| encode_vote_answer(&answer)),
        decode_snapshot_answer(bytes.clone()).map(|answer| encode_snapshot_answer(&answer)),
        decode_transfer_answer(bytes.clone(), &transfer).map(|answer| encode_transfer_answer(&answer)),
        decode_confirm_answer(bytes.clone()).map(encode_confirm_answer),
    ];
    let read = written.iter().flatten().count();
    assert!(written.iter().flatten().all(|written| *written == bytes));
    read > 0
}

/// What the log and the engine keep: an entry, a vote, a membership.
pub fn stored(input: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(input);
    let vote = decode_vote(bytes.clone());
    if let Ok(vote) = &vote {
        assert_eq!(encode_vote(vote), bytes);
    }
    let id = LogId { term: 3, index: 9 };
    let entry = decode_entry(wal::Entry { id, payload: bytes.clone() });
    if let Ok(entry) = &entry {
        let written = encode_entry(entry.clone());
        assert_eq!(decode_entry(written).expect("what is written can be read"), *entry);
    }
    let membership = decode_stored_membership(bytes);
    if let Ok(membership) = &membership {
        let written = encode_stored_membership(membership);
        assert_eq!(decode_stored_membership(written).expect("what is written can be read"), *membership);
    }
    vote.is_ok() || entry.is_ok() || membership.is_ok()
}

/// A transfer of leadership to replica 9, by the leader of term 5.
const TRANSFER: [u8; 28] =
    [1, 4, 5, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0, 0, 0, 0, 0, 0, 0, 0];

fn vote(term: u64, committed: u8) -> Vec<u8> {
    [&term.to_le_bytes()[..], &FROM.0.to_le_bytes(), &[committed]].concat()
}

fn log_id(term: u64, index: u64) -> Vec<u8> {
    [&[1][..], &term.to_le_bytes(), &index.to_le_bytes()].concat()
}

/// With one config of these two replicas.
fn membership() -> Vec<u8> {
    let replicas = [&2u32.to_le_bytes()[..], &7u64.to_le_bytes(), &9u64.to_le_bytes()].concat();
    [&1u32.to_le_bytes()[..], &replicas, &replicas].concat()
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat()
}

/// Of each kind one that can be read.
pub fn message_seeds() -> Vec<Vec<u8>> {
    let payloads = [vec![0], b"\x01command".to_vec(), [vec![2], membership()].concat()];
    let entries: Vec<u8> =
        payloads.iter().flat_map(|payload| [5u64.to_le_bytes().to_vec(), sized(payload)].concat()).collect();
    let append = [vec![1, 1], vote(5, 1), log_id(4, 8), log_id(4, 8), 3u32.to_le_bytes().to_vec(), entries];
    let begin =
        [vec![1, 5], vec![3; 8], vote(5, 1), log_id(4, 8), sized(&[log_id(4, 7), membership()].concat())];
    let records = [vec![1, 6], vec![0; 16], 1u32.to_le_bytes().to_vec(), sized(b"key"), sized(b"value")];
    vec![
        append.concat(),
        [vec![1, 1], vote(5, 1), vec![0, 0], vec![0; 4]].concat(),
        [vec![1, 2], vote(5, 0), log_id(4, 8), vec![0]].concat(),
        [vec![1, 3], vote(5, 0), vec![0, 1]].concat(),
        TRANSFER.to_vec(),
        begin.concat(),
        records.concat(),
        [vec![1, 7], vec![0; 16]].concat(),
        [vec![1, 8], vote(5, 1)].concat(),
    ]
}

pub fn answer_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![1, 1, 0],
        vec![1, 1, 1],
        [vec![1, 1, 2], vote(5, 1)].concat(),
        [vec![1, 2], vote(5, 0), log_id(4, 8), vec![1]].concat(),
        [vec![1, 4, 3], log_id(4, 8)].concat(),
        [vec![1, 6, 2], vote(5, 1)].concat(),
        vec![1, 8, 0],
        vec![1, 8, 1],
        vec![1, 8, 2],
    ]
}

pub fn stored_seeds() -> Vec<Vec<u8>> {
    let membership_entry = [vec![2], membership()].concat();
    vec![
        vote(5, 1),
        vec![0],
        b"\x01command".to_vec(),
        membership_entry,
        [log_id(4, 7), membership()].concat(),
    ]
}
