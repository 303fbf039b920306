//! Answers: one byte, and what belongs to it.

use bytes::{BufMut, Bytes};
use openraft::raft::{
    StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteResponse,
};

use super::super::codec::put_vote;
use super::super::confirm::Verdict;
use super::super::types::{RaftLogId, TypeConfig};
use super::*;

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
