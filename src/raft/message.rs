//! What replicas of a group say to each other, as bytes: our own encoding, drawn in
//! `docs/formats/raft-messages.md`.
//!
//! Decoding checks what the consensus engine takes for granted and would panic over: that a leader's
//! vote is committed, that entries follow each other, that no entry is of a later term than its leader.

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::codec::{
    self, decode_payload, decode_stored_membership, encode_stored_membership, payload_bytes, put_log_id,
    put_payload, put_vote,
};
use super::confirm::Verdict;
use super::types::{Entry, RaftLogId, SnapshotMeta, TypeConfig, Vote, log_id, raft_log_id};
use crate::codec::{Malformed, Reader, Writer as _};
use crate::storage::Pair;
use crate::types::{LogId, ReplicaId};

/// Version of the encoding; the first byte of every message.
const VERSION: u8 = 1;

const APPEND: u8 = 1;
const VOTE: u8 = 2;
const PRE_VOTE: u8 = 3;
const TRANSFER_LEADER: u8 = 4;
const SNAPSHOT_BEGIN: u8 = 5;
const SNAPSHOT_RECORDS: u8 = 6;
const SNAPSHOT_END: u8 = 7;
const CONFIRM: u8 = 8;

pub(crate) type Append = AppendEntriesRequest<TypeConfig>;

/// What one replica asks of another.
#[derive(Debug)]
pub(crate) enum Request {
    Append(Append),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    Snapshot(SnapshotRequest),
    /// Whether this leader's vote is still the newest that the receiver gave.
    Confirm(Vote),
}

/// A part of a snapshot. `session` is the sender's number for one attempt to send one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SnapshotRequest {
    Begin {
        session: u64,
        vote: Vote,
        meta: SnapshotMeta,
    },
    /// `sequence` counts from 0.
    Records {
        session: u64,
        sequence: u64,
        records: Vec<Pair>,
    },
    /// `messages` of records were sent.
    End {
        session: u64,
        messages: u64,
    },
}

/// The answer to a part of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SnapshotAnswer {
    /// Go on.
    Taken,
    /// This is the receiver's vote; if it is the sender's, the snapshot is installed.
    Ended(Vote),
}

fn start(kind: u8, bytes: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(2 + bytes);
    out.put_u8(VERSION);
    out.put_u8(kind);
    out
}

const VOTE_BYTES: usize = 17;
const LOG_ID_BYTES_MAX: usize = 17;

/// What an entry takes in a message beside its payload: its term and the payload's length.
const ENTRY_BYTES: usize = 12;

fn id(id: Option<&RaftLogId>) -> Option<LogId> {
    id.map(log_id)
}

/// The entries' indexes are not sent: they follow the one before them.
pub(crate) fn encode_append(request: &Append) -> Bytes {
    let next = request.prev_log_id.map_or(0, |prev| prev.index + 1);
    let indexes = request.entries.iter().map(|entry| entry.log_id.index);
    assert!(indexes.eq(next..next + request.entries.len() as u64), "entries that don't follow {next}");
    let entries: usize =
        request.entries.iter().map(|entry| ENTRY_BYTES + payload_bytes(&entry.payload)).sum();
    let mut out = start(APPEND, VOTE_BYTES + 2 * LOG_ID_BYTES_MAX + 4 + entries);
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, id(request.prev_log_id.as_ref()));
    put_log_id(&mut out, id(request.leader_commit.as_ref()));
    out.put_u32_le(u32::try_from(request.entries.len()).expect("a message has a bounded number of entries"));
    for entry in &request.entries {
        out.put_u64_le(entry.log_id.leader_id.term);
        let bytes = payload_bytes(&entry.payload);
        out.put_u32_le(u32::try_from(bytes).expect("limits keep every entry under 4 GiB"));
        put_payload(&mut out, &entry.payload);
    }
    out.freeze()
}

pub(crate) fn encode_vote_request(request: &VoteRequest<TypeConfig>, pre: bool) -> Bytes {
    let mut out = start(if pre { PRE_VOTE } else { VOTE }, VOTE_BYTES + LOG_ID_BYTES_MAX + 1);
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, id(request.last_log_id.as_ref()));
    out.put_u8(u8::from(request.leadership_transfer));
    out.freeze()
}

pub(crate) fn encode_transfer(request: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let mut out = start(TRANSFER_LEADER, VOTE_BYTES + 8 + LOG_ID_BYTES_MAX);
    put_vote(&mut out, request.from_leader());
    out.put_u64_le(*request.to_node_id());
    put_log_id(&mut out, id(request.last_log_id()));
    out.freeze()
}

pub(crate) fn encode_snapshot(request: &SnapshotRequest) -> Bytes {
    match request {
        SnapshotRequest::Begin { session, vote, meta } => {
            let mut out = start(SNAPSHOT_BEGIN, 128);
            out.put_u64_le(*session);
            put_vote(&mut out, vote);
            put_log_id(&mut out, id(meta.last_log_id.as_ref()));
            out.write_bytes(&encode_stored_membership(&meta.last_membership));
            out.freeze()
        }
        SnapshotRequest::Records { session, sequence, records } => {
            let bytes: usize = records.iter().map(|(key, value)| 8 + key.len() + value.len()).sum();
            let mut out = start(SNAPSHOT_RECORDS, 20 + bytes);
            out.put_u64_le(*session);
            out.put_u64_le(*sequence);
            out.put_u32_le(u32::try_from(records.len()).expect("a message has a bounded number of records"));
            for (key, value) in records {
                out.write_bytes(key);
                out.write_bytes(value);
            }
            out.freeze()
        }
        SnapshotRequest::End { session, messages } => {
            let mut out = start(SNAPSHOT_END, 16);
            out.put_u64_le(*session);
            out.put_u64_le(*messages);
            out.freeze()
        }
    }
}

pub(crate) fn encode_confirm(vote: &Vote) -> Bytes {
    let mut out = start(CONFIRM, VOTE_BYTES);
    put_vote(&mut out, vote);
    out.freeze()
}

impl Request {
    /// Reads a request that `from` sent; it speaks for nobody else.
    pub(crate) fn decode(from: ReplicaId, message: Bytes) -> Result<Request, Malformed> {
        let mut input = Reader::new("raft message", message);
        let kind = take_kind(&mut input)?;
        let request = match kind {
            APPEND => Request::Append(take_append(&mut input)?),
            VOTE => Request::Vote(take_vote_request(&mut input)?),
            PRE_VOTE => Request::PreVote(take_vote_request(&mut input)?),
            TRANSFER_LEADER => {
                let vote = take_leaders_vote(&mut input)?;
                let to = input.u64()?;
                let last = take_log_id(&mut input)?.map(raft_log_id);
                Request::TransferLeader(TransferLeaderRequest::new(vote, to, last))
            }
            SNAPSHOT_BEGIN => Request::Snapshot(take_snapshot_begin(&mut input)?),
            SNAPSHOT_RECORDS => Request::Snapshot(take_snapshot_records(&mut input)?),
            SNAPSHOT_END => {
                let (session, messages) = (input.u64()?, input.u64()?);
                Request::Snapshot(SnapshotRequest::End { session, messages })
            }
            CONFIRM => Request::Confirm(take_leaders_vote(&mut input)?),
            other => return Err(input.error(format!("unknown kind {other}"))),
        };
        let speaker = match &request {
            Request::Append(append) => Some(append.vote),
            Request::Vote(vote) | Request::PreVote(vote) => Some(vote.vote),
            Request::TransferLeader(transfer) => Some(*transfer.from_leader()),
            Request::Snapshot(SnapshotRequest::Begin { vote, .. }) | Request::Confirm(vote) => Some(*vote),
            Request::Snapshot(_) => None,
        };
        match speaker {
            Some(vote) if vote.leader_id.voted_for != from.0 => {
                let speaks_for = ReplicaId(vote.leader_id.voted_for);
                Err(input.error(format!("{from} speaks for {speaks_for}")))
            }
            _ => {
                input.end()?;
                Ok(request)
            }
        }
    }
}

fn take_kind(input: &mut Reader) -> Result<u8, Malformed> {
    match input.u8()? {
        VERSION => input.u8(),
        other => Err(input.error(format!("it is of version {other}, this program knows version {VERSION}"))),
    }
}

/// Terms and indexes are counted up from: one that no log can reach would overflow somewhere. What a replica has
/// stored is not held to this, so that it can count on from what it was told.
const COUNT_MAX: u64 = u64::MAX / 4;

fn take_log_id(input: &mut Reader) -> Result<Option<LogId>, Malformed> {
    let id = codec::take_log_id(input)?;
    match id {
        Some(LogId { term, index }) if term.max(index) > COUNT_MAX => {
            Err(input.error(format!("no log reaches term {term}, index {index}")))
        }
        id => Ok(id),
    }
}

fn take_vote(input: &mut Reader) -> Result<Vote, Malformed> {
    let vote = codec::take_vote(input)?;
    match vote.leader_id.term {
        ..=COUNT_MAX => Ok(vote),
        term => Err(input.error(format!("no election reaches term {term}"))),
    }
}

fn take_leaders_vote(input: &mut Reader) -> Result<Vote, Malformed> {
    let vote = take_vote(input)?;
    match vote.committed {
        true => Ok(vote),
        false => Err(input.error("a leader's vote is not granted by a majority")),
    }
}

fn take_append(input: &mut Reader) -> Result<Append, Malformed> {
    let vote = take_leaders_vote(input)?;
    let prev = take_log_id(input)?;
    let leader_commit = take_log_id(input)?.map(raft_log_id);
    let count = input.u32()? as usize;
    let mut entries = Vec::with_capacity(count.min(input.remaining() / ENTRY_BYTES));
    let mut before = prev;
    for _ in 0..count {
        let index = match before {
            Some(before) => before.index.checked_add(1).ok_or_else(|| input.error("the index overflows"))?,
            None => 0,
        };
        let id = LogId { term: input.u64()?, index };
        if before.is_some_and(|before| before.term > id.term) || id.term > vote.leader_id.term {
            return Err(input.error(format!("entry {id} follows {before:?} in a message of {vote}")));
        }
        let payload = decode_payload(id, input.bytes()?)?;
        entries.push(Entry { log_id: raft_log_id(id), payload });
        before = Some(id);
    }
    Ok(Append { vote, prev_log_id: prev.map(raft_log_id), entries, leader_commit })
}

fn take_vote_request(input: &mut Reader) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let vote = take_vote(input)?;
    if vote.committed {
        return Err(input.error("a candidate's vote is already granted"));
    }
    let mut request = VoteRequest::new(vote, take_log_id(input)?.map(raft_log_id));
    request.leadership_transfer = take_flag(input)?;
    Ok(request)
}

fn take_flag(input: &mut Reader) -> Result<bool, Malformed> {
    match input.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(input.error(format!("a flag is {other}"))),
    }
}

fn take_snapshot_begin(input: &mut Reader) -> Result<SnapshotRequest, Malformed> {
    let session = input.u64()?;
    let vote = take_leaders_vote(input)?;
    let Some(last) = take_log_id(input)? else {
        return Err(input.error("a snapshot of nothing"));
    };
    if last.term > vote.leader_id.term {
        return Err(input.error(format!("a snapshot up to {last} in a message of {vote}")));
    }
    let last_membership = decode_stored_membership(input.bytes()?)?;
    if last_membership.log_id().as_ref().map(log_id) > Some(last) {
        return Err(input.error(format!("a snapshot up to {last} with a later membership")));
    }
    let meta = SnapshotMeta { last_log_id: Some(raft_log_id(last)), last_membership };
    Ok(SnapshotRequest::Begin { session, vote, meta })
}

fn take_snapshot_records(input: &mut Reader) -> Result<SnapshotRequest, Malformed> {
    let (session, sequence) = (input.u64()?, input.u64()?);
    let count = input.u32()? as usize;
    let mut records = Vec::with_capacity(count.min(input.remaining() / 8));
    for _ in 0..count {
        records.push((input.bytes()?, input.bytes()?));
    }
    Ok(SnapshotRequest::Records { session, sequence, records })
}

const DONE: u8 = 0;
const CONFLICT: u8 = 1;
const HIGHER_VOTE: u8 = 2;
const NOT_FLUSHED: u8 = 3;

pub(crate) fn encode_append_answer(answer: &StreamAppendResult<TypeConfig>) -> Bytes {
    let mut out = start(APPEND, 1 + VOTE_BYTES);
    match answer {
        Ok(_) => out.put_u8(DONE),
        Err(StreamAppendError::Conflict(_)) => out.put_u8(CONFLICT),
        Err(StreamAppendError::HigherVote(vote)) => {
            out.put_u8(HIGHER_VOTE);
            put_vote(&mut out, vote);
        }
    }
    out.freeze()
}

/// Reads the answer to an append of the entries after `prev` up to `last`.
pub(crate) fn decode_append_answer(
    answer: Bytes,
    prev: Option<RaftLogId>,
    last: Option<RaftLogId>,
) -> Result<StreamAppendResult<TypeConfig>, Malformed> {
    let mut input = answer_to(APPEND, answer)?;
    let answer = match (input.u8()?, prev) {
        (DONE, _) => Ok(last),
        (CONFLICT, Some(prev)) => Err(StreamAppendError::Conflict(prev)),
        (CONFLICT, None) => return Err(input.error("a conflict before the first entry")),
        (HIGHER_VOTE, _) => Err(StreamAppendError::HigherVote(take_vote(&mut input)?)),
        (other, _) => return Err(input.error(format!("unknown answer {other}"))),
    };
    input.end()?;
    Ok(answer)
}

/// The same for a vote and a pre-vote.
pub(crate) fn encode_vote_answer(answer: &VoteResponse<TypeConfig>) -> Bytes {
    let mut out = start(VOTE, VOTE_BYTES + LOG_ID_BYTES_MAX + 1);
    put_vote(&mut out, &answer.vote);
    put_log_id(&mut out, id(answer.last_log_id.as_ref()));
    out.put_u8(u8::from(answer.vote_granted));
    out.freeze()
}

pub(crate) fn decode_vote_answer(answer: Bytes) -> Result<VoteResponse<TypeConfig>, Malformed> {
    let mut input = answer_to(VOTE, answer)?;
    let vote = take_vote(&mut input)?;
    let last = take_log_id(&mut input)?.map(raft_log_id);
    let granted = take_flag(&mut input)?;
    input.end()?;
    Ok(VoteResponse::new(vote, last, granted))
}

const UNKNOWN: u8 = 0;
const CONFIRMED: u8 = 1;
const SUPERSEDED: u8 = 2;

pub(crate) fn encode_confirm_answer(verdict: Verdict) -> Bytes {
    let mut out = start(CONFIRM, 1);
    out.put_u8(match verdict {
        Verdict::Unknown => UNKNOWN,
        Verdict::Confirmed => CONFIRMED,
        Verdict::Superseded => SUPERSEDED,
    });
    out.freeze()
}

pub(crate) fn decode_confirm_answer(answer: Bytes) -> Result<Verdict, Malformed> {
    let mut input = answer_to(CONFIRM, answer)?;
    let verdict = match input.u8()? {
        UNKNOWN => Verdict::Unknown,
        CONFIRMED => Verdict::Confirmed,
        SUPERSEDED => Verdict::Superseded,
        other => return Err(input.error(format!("unknown answer {other}"))),
    };
    input.end()?;
    Ok(verdict)
}

pub(crate) fn encode_transfer_answer(answer: &TransferLeaderResponse<TypeConfig>) -> Bytes {
    let mut out = start(TRANSFER_LEADER, 1 + VOTE_BYTES);
    match answer {
        Ok(()) => out.put_u8(DONE),
        Err(TransferLeaderError::VoteChanged { actual, .. }) => {
            out.put_u8(HIGHER_VOTE);
            put_vote(&mut out, actual);
        }
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
            out.put_u8(NOT_FLUSHED);
            put_log_id(&mut out, id(actual.as_ref()));
        }
    }
    out.freeze()
}

pub(crate) fn decode_transfer_answer(
    answer: Bytes,
    request: &TransferLeaderRequest<TypeConfig>,
) -> Result<TransferLeaderResponse<TypeConfig>, Malformed> {
    let mut input = answer_to(TRANSFER_LEADER, answer)?;
    let answer = match input.u8()? {
        DONE => Ok(()),
        HIGHER_VOTE => Err(TransferLeaderError::VoteChanged {
            expected: *request.from_leader(),
            actual: take_vote(&mut input)?,
        }),
        NOT_FLUSHED => Err(TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: take_log_id(&mut input)?.map(raft_log_id),
        }),
        other => return Err(input.error(format!("unknown answer {other}"))),
    };
    input.end()?;
    Ok(answer)
}

pub(crate) fn encode_snapshot_answer(answer: &SnapshotAnswer) -> Bytes {
    match answer {
        SnapshotAnswer::Taken => {
            let mut out = start(SNAPSHOT_RECORDS, 1);
            out.put_u8(DONE);
            out.freeze()
        }
        SnapshotAnswer::Ended(vote) => {
            let mut out = start(SNAPSHOT_RECORDS, 1 + VOTE_BYTES);
            out.put_u8(HIGHER_VOTE);
            put_vote(&mut out, vote);
            out.freeze()
        }
    }
}

pub(crate) fn decode_snapshot_answer(answer: Bytes) -> Result<SnapshotAnswer, Malformed> {
    let mut input = answer_to(SNAPSHOT_RECORDS, answer)?;
    let answer = match input.u8()? {
        DONE => SnapshotAnswer::Taken,
        HIGHER_VOTE => SnapshotAnswer::Ended(take_vote(&mut input)?),
        other => return Err(input.error(format!("unknown answer {other}"))),
    };
    input.end()?;
    Ok(answer)
}

fn answer_to(kind: u8, answer: Bytes) -> Result<Reader, Malformed> {
    let mut input = Reader::new("raft answer", answer);
    match take_kind(&mut input)? {
        found if found == kind => Ok(input),
        found => Err(input.error(format!("an answer to {found} where one to {kind} is due"))),
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use proptest::prelude::*;

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
            Err(TransferLeaderError::VoteChanged {
                expected: *transfer.from_leader(),
                actual: Vote::new(5, 1),
            }),
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
}
