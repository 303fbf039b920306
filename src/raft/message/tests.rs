//! What was encoded is decoded, and nothing else is.

use openraft::EntryPayload;
use openraft::raft::{StreamAppendError, TransferLeaderError, VoteResponse};
use proptest::prelude::*;

use super::super::confirm::Verdict;
use super::super::types::{Command, StoredMembership};
use super::*;

const FROM: ReplicaId = ReplicaId(7);

fn some_id(term: u64, index: u64) -> Option<RaftLogId> {
    Some(raft_log_id(LogId { term, index }))
}

fn append(first: u64, commands: &[Vec<u8>]) -> Append {
    let entries = commands.iter().zip(first..).map(|(command, index)| Entry {
        log_id: raft_log_id(LogId { term: 3, index }),
        payload: match command.is_empty() {
            true => EntryPayload::Blank,
            false => EntryPayload::Normal(Command(Bytes::copy_from_slice(command))),
        },
    });
    Append {
        vote: Vote::new_committed(4, FROM.0),
        prev_log_id: first.checked_sub(1).and_then(|before| some_id(2, before)),
        entries: entries.collect(),
        leader_commit: some_id(2, 1),
    }
}

fn assert_same(left: &Append, right: &Append) {
    assert_eq!(format!("{left:?}"), format!("{right:?}"));
    assert_eq!(left.entries, right.entries);
}

#[test]
fn what_no_log_reaches_is_refused() {
    let decoded = |term, index| {
        let request = VoteRequest::new(Vote::new(term, FROM.0), some_id(1, index));
        Request::decode(FROM, encode_vote_request(&request, false))
    };
    decoded(COUNT_MAX, COUNT_MAX).unwrap();
    decoded(COUNT_MAX + 1, 1).unwrap_err();
    decoded(1, u64::MAX).unwrap_err();
}

proptest! {
    #[test]
    fn appends_survive(first in 0u64..5, commands: Vec<Vec<u8>>) {
        let request = append(first, &commands);
        match Request::decode(FROM, encode_append(&request)).unwrap() {
            Request::Append(found) => assert_same(&found, &request),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn votes_survive(term in 0..=COUNT_MAX, index in 0..=COUNT_MAX, transfer: bool, pre: bool) {
        let mut request = VoteRequest::new(Vote::new(term, FROM.0), some_id(term, index));
        request.leadership_transfer = transfer;
        match (pre, Request::decode(FROM, encode_vote_request(&request, pre)).unwrap()) {
            (true, Request::PreVote(found)) | (false, Request::Vote(found)) => assert_eq!(found, request),
            other => panic!("{other:?}"),
        }
        let answer = VoteResponse::new(Vote::new(term, index), some_id(index, term), transfer);
        prop_assert_eq!(decode_vote_answer(encode_vote_answer(&answer)).unwrap(), answer);
    }

    #[test]
    fn nonsense_is_an_error_not_a_panic(kind in 0u8..10, bytes: Vec<u8>) {
        for bytes in [bytes.clone(), [vec![VERSION, kind], bytes].concat()] {
            let bytes = Bytes::from(bytes);
            let _ = Request::decode(FROM, bytes.clone());
            let _ = decode_append_answer(bytes.clone(), None, None);
            let _ = decode_vote_answer(bytes.clone());
            let _ = decode_confirm_answer(bytes.clone());
            let _ = decode_snapshot_answer(bytes.clone());
            let transfer = TransferLeaderRequest::new(Vote::new(1, 1), 2, None);
            let _ = decode_transfer_answer(bytes, &transfer);
        }
    }

    #[test]
    fn a_broken_append_is_an_error_not_a_panic(at: prop::sample::Index, with: u8, cut: prop::sample::Index) {
        let whole = encode_append(&append(4, &[vec![1; 9], vec![], vec![3; 40]]));
        let mut broken = whole.to_vec();
        let at = at.index(broken.len());
        broken[at] = with;
        let _ = Request::decode(FROM, broken.into());
        let short = whole.slice(..cut.index(whole.len()));
        prop_assert!(Request::decode(FROM, short).is_err());
    }
}

#[test]
fn the_rest_survives() {
    let transfer = TransferLeaderRequest::new(Vote::new_committed(4, FROM.0), 8, some_id(4, 2));
    match Request::decode(FROM, encode_transfer(&transfer)).unwrap() {
        Request::TransferLeader(found) => assert_eq!(found, transfer),
        other => panic!("{other:?}"),
    }
    for answer in [
        Ok(()),
        Err(TransferLeaderError::VoteChanged { expected: *transfer.from_leader(), actual: Vote::new(5, 1) }),
        Err(TransferLeaderError::LogNotFlushed { expected: some_id(4, 2), actual: some_id(4, 1) }),
    ] {
        assert_eq!(decode_transfer_answer(encode_transfer_answer(&answer), &transfer).unwrap(), answer);
    }

    let (prev, last) = (some_id(1, 1), some_id(1, 9));
    for answer in [
        Ok(last),
        Err(StreamAppendError::Conflict(prev.unwrap())),
        Err(StreamAppendError::HigherVote(Vote::new_committed(6, 2))),
    ] {
        assert_eq!(decode_append_answer(encode_append_answer(&answer), prev, last).unwrap(), answer);
    }

    let vote = Vote::new_committed(4, FROM.0);
    match Request::decode(FROM, encode_confirm(&vote)).unwrap() {
        Request::Confirm(found) => assert_eq!(found, vote),
        other => panic!("{other:?}"),
    }
    for verdict in [Verdict::Unknown, Verdict::Confirmed, Verdict::Superseded] {
        assert_eq!(decode_confirm_answer(encode_confirm_answer(verdict)).unwrap(), verdict);
    }

    let meta = SnapshotMeta { last_log_id: some_id(4, 8), last_membership: StoredMembership::default() };
    let records = vec![(Bytes::from_static(b"key"), Bytes::from_static(b"value")), Default::default()];
    for request in [
        SnapshotRequest::Begin { session: 1, vote: Vote::new_committed(4, FROM.0), meta },
        SnapshotRequest::Records { session: 1, sequence: 3, records },
        SnapshotRequest::End { session: 1, messages: 4 },
    ] {
        match Request::decode(FROM, encode_snapshot(&request)).unwrap() {
            Request::Snapshot(found) => assert_eq!(found, request),
            other => panic!("{other:?}"),
        }
    }
    for answer in [SnapshotAnswer::Taken, SnapshotAnswer::Ended(Vote::new_committed(4, FROM.0))] {
        assert_eq!(decode_snapshot_answer(encode_snapshot_answer(&answer)).unwrap(), answer);
    }
}

#[test]
fn what_no_leader_says_is_refused() {
    let mut request = append(4, &[vec![1]]);
    request.vote = Vote::new(4, FROM.0);
    assert!(Request::decode(FROM, encode_append(&request)).is_err(), "a vote without a majority");
    request.vote = Vote::new_committed(2, FROM.0);
    assert!(Request::decode(FROM, encode_append(&request)).is_err(), "an entry of a later term");
    request.vote = Vote::new_committed(4, 8);
    assert!(Request::decode(FROM, encode_append(&request)).is_err(), "it speaks for another replica");
    request.vote = Vote::new_committed(4, FROM.0);
    request.prev_log_id = some_id(4, 3);
    assert!(Request::decode(FROM, encode_append(&request)).is_err(), "terms go back");
    let vote = VoteRequest::new(Vote::new_committed(4, FROM.0), None);
    assert!(Request::decode(FROM, encode_vote_request(&vote, false)).is_err(), "a vote granted before");
}
