//! What replicas of a group say to each other, as bytes: our own encoding, drawn in
//! `docs/formats/raft-messages.md`.
//!
//! Decoding checks what the consensus engine takes for granted and would panic over: that a leader's
//! vote is committed, that entries follow each other, that no entry is of a later term than its leader.

mod answer;
#[cfg(test)]
mod tests;

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};

pub(crate) use answer::{
    decode_append_answer, decode_confirm_answer, decode_snapshot_answer, decode_transfer_answer,
    decode_vote_answer, encode_append_answer, encode_confirm_answer, encode_snapshot_answer,
    encode_transfer_answer, encode_vote_answer,
};

use super::codec::{
    self, decode_payload, decode_stored_membership, encode_stored_membership, payload_bytes, put_log_id,
    put_payload, put_vote,
};
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
