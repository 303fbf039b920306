//! The receiving side of the network: what other replicas of the group say to this one.

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use openraft::raft::{AppendEntriesResponse, StreamAppendError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::Group;
use super::carrier::{Class, Route};
use super::confirm::{self, Verdict};
use super::incoming::Part;
use super::machine::Machine;
use super::message::{
    Append, Request, encode_append_answer, encode_confirm_answer, encode_snapshot_answer,
    encode_transfer_answer, encode_vote_answer,
};
use super::types::RaftLogId;

/// Bytes of appends that may wait for the consensus core and its fsync; more is refused, and sent again.
/// It takes the whole of what two leaders, the old and the new, have under way.
pub(super) const APPEND_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What an append counts for besides its bytes, so that small ones have a bound, too: 512 of them.
const APPEND_COST: usize = 64 * 1024;

/// Heartbeats, votes and the like that may wait. A leader sends five heartbeats a second and gives each
/// up before the next: only a core that does not come round lets so many pile up.
pub(super) const CONTROLS_MAX: usize = 64;

type Answer = Result<Bytes, String>;

impl<M: Machine> Group<M> {
    /// Takes a message from another replica of this group; never blocks. The future resolves with the
    /// answer, or with why there is none. Messages reach the consensus core in the order of these calls,
    /// however late their futures are polled; dropping one does not take its message back.
    ///
    /// A replica whose copy can't be read answers nothing: it must not be counted on.
    pub fn receive(&self, route: Route, class: Class, message: Bytes) -> BoxFuture<'static, Answer> {
        self.admit(route, class, message).unwrap_or_else(|why| {
            self.metrics.refused.inc();
            Box::pin(std::future::ready(Err(why)))
        })
    }

    fn admit(
        &self,
        route: Route,
        class: Class,
        message: Bytes,
    ) -> Result<BoxFuture<'static, Answer>, String> {
        if route.group != self.key.group || route.to != self.key.replica {
            return Err(format!("{route}: this is {}", self.key));
        }
        if let Some(why) = self.damage() {
            return Err(format!("its copy can't be read: {why}"));
        }
        let bytes = message.len();
        let raft = self.raft.clone();
        match Request::decode(route.from, message).map_err(|error| error.to_string())? {
            Request::Append(append) => {
                self.heard.note(route.from);
                let room = match class {
                    Class::Control => {
                        self.metrics.heartbeats_received.inc();
                        room(&self.controls, 1)?
                    }
                    Class::Append | Class::Snapshot => {
                        self.metrics.appends_received.inc();
                        self.metrics.entries_received.inc_by(append.entries.len() as u64);
                        room(&self.appends, bytes + APPEND_COST)?
                    }
                };
                Ok(begin(async move {
                    let _room = room;
                    let (prev, last) = ends(&append);
                    let answer = raft.append_entries(append).await.map_err(|error| error.to_string())?;
                    append_answer(answer, prev, last)
                }))
            }
            Request::Vote(vote) => {
                self.metrics.votes_received.inc();
                let room = room(&self.controls, 1)?;
                Ok(begin(async move {
                    let _room = room;
                    let answer = raft.vote(vote).await.map_err(|error| error.to_string())?;
                    Ok(encode_vote_answer(&answer))
                }))
            }
            Request::PreVote(vote) => {
                self.metrics.votes_received.inc();
                let room = room(&self.controls, 1)?;
                Ok(begin(async move {
                    let _room = room;
                    let answer = raft.pre_vote(vote).await.map_err(|error| error.to_string())?;
                    Ok(encode_vote_answer(&answer))
                }))
            }
            Request::TransferLeader(transfer) => {
                let room = room(&self.controls, 1)?;
                Ok(begin(async move {
                    let _room = room;
                    let answer = raft.handle_transfer_leader(transfer).await;
                    Ok(encode_transfer_answer(&answer.map_err(|error| error.to_string())?))
                }))
            }
            Request::Confirm(vote) => {
                // What the log says was saved before anybody was told of it, and so before any newer leader.
                // A replica that has stopped could refuse its leader for ever, which never hears of it otherwise.
                let verdict = match (confirm::verdict(&self.log, &vote), self.damage()) {
                    (Verdict::Superseded, Some(_)) => Verdict::Unknown,
                    (verdict, _) => verdict,
                };
                Ok(Box::pin(std::future::ready(Ok(encode_confirm_answer(verdict)))))
            }
            Request::Snapshot(request) => {
                let (answer, answered) = oneshot::channel();
                let part = Part { from: route.from, request, answer };
                self.snapshots.try_send(part).map_err(|error| match error {
                    mpsc::error::TrySendError::Full(_) => "too many parts of snapshots wait".to_string(),
                    mpsc::error::TrySendError::Closed(_) => "the group stopped".to_string(),
                })?;
                Ok(Box::pin(async move {
                    let answer = answered.await.map_err(|_| "the group stopped".to_string())??;
                    Ok(encode_snapshot_answer(&answer))
                }))
            }
        }
    }
}

fn room(of: &std::sync::Arc<Semaphore>, cost: usize) -> Result<OwnedSemaphorePermit, String> {
    // Too large for the permit's type is too large for the room, too.
    let cost = u32::try_from(cost).unwrap_or(u32::MAX);
    of.clone().try_acquire_many_owned(cost).map_err(|_| "too many messages wait".to_string())
}

/// Polls a call of the consensus core once: that puts its message into the core's queue, now and in
/// order. (The queue has room for far more than what is admitted; if it were full all the same, the
/// message would be late, which Raft bears.)
fn begin(call: impl Future<Output = Answer> + Send + 'static) -> BoxFuture<'static, Answer> {
    let mut call = tokio::task::unconstrained(call).boxed();
    match (&mut call).now_or_never() {
        Some(answer) => Box::pin(std::future::ready(answer)),
        None => call,
    }
}

/// Where a message's entries begin and end.
fn ends(append: &Append) -> (Option<RaftLogId>, Option<RaftLogId>) {
    let prev = append.prev_log_id;
    (prev, append.entries.last().map(|entry| entry.log_id).or(prev))
}

fn append_answer(
    answer: AppendEntriesResponse<super::types::TypeConfig>,
    prev: Option<RaftLogId>,
    last: Option<RaftLogId>,
) -> Answer {
    let answer = match (answer, prev) {
        (AppendEntriesResponse::Success, _) => Ok(last),
        (AppendEntriesResponse::PartialSuccess(_), _) => return Err("only a part was appended".to_string()),
        (AppendEntriesResponse::HigherVote(vote), _) => Err(StreamAppendError::HigherVote(vote)),
        (AppendEntriesResponse::Conflict, Some(prev)) => Err(StreamAppendError::Conflict(prev)),
        (AppendEntriesResponse::Conflict, None) => {
            return Err("a conflict before the first entry".to_string());
        }
    };
    Ok(encode_append_answer(&answer))
}
