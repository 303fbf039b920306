//! Calls that go by a pipeline: which can, and how their answers are read.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::Response;
use tonic::metadata::MetadataMap;

use super::{Caller, Kind, name, note_health};
use crate::client::pipeline::{Asked, Lost};
use crate::client::pool::Endpoint;
use crate::client::types::error_of;
use crate::error::{Error, Happened, Reason, Result};
use crate::proto::v1;
use crate::proto::v1::pipeline_request::Call;
use crate::proto::v1::pipeline_response::Outcome;
use crate::transport::{self, Failed, Leader};
use crate::types::{Epoch, PartitionId};

impl Caller<'_> {
    /// The same as [`Caller::attempt`], of a call that was sent by a pipeline. `None`: the server ended that before it
    /// read the call, which then goes alone.
    pub(super) async fn await_pipelined<R>(
        self,
        kind: Kind,
        endpoint: &Endpoint,
        sent: Sent<R>,
        deadline: Instant,
    ) -> Option<Result<Response<R>, Failed>> {
        let started = Instant::now();
        let result = self.answer_of(kind, sent, started, deadline).await?;
        note_health(endpoint, started, &result);
        Some(result.map_err(|failed| Failed { error: name(endpoint, failed.error), ..failed }))
    }

    async fn answer_of<R>(
        self,
        kind: Kind,
        Sent { mut asked, take }: Sent<R>,
        started: Instant,
        deadline: Instant,
    ) -> Option<Result<Response<R>, Failed>> {
        let leaves_within = self.leaves_within();
        let leaves_by = started + leaves_within;
        let mut result = timeout_at(leaves_by.min(deadline), &mut asked).await;
        if result.is_err() && leaves_by < deadline {
            if asked.take_back() {
                let message = format!("the request did not leave within {leaves_within:?}");
                return Some(Err(Failed::unanswered(Error::new(Reason::Unavailable, message), Happened::No)));
            }
            result = timeout_at(deadline, &mut asked).await;
        }
        Some(match result {
            Ok(Ok(answer)) => match answered(answer, take) {
                (Ok(message), metadata) => {
                    Ok(Response::from_parts(metadata, message, tonic::Extensions::default()))
                }
                (Err(error), metadata) => Err(Failed { error, answered: true, has_left: true, metadata }),
            },
            Ok(Err(Lost { is_unread: true, .. })) => return None,
            Ok(Err(Lost { sent, why, .. })) => Err(Failed::unanswered(broken(kind, sent, &why), sent)),
            Err(_) => {
                let sent = asked.give_up();
                Err(Failed::unanswered(transport::late(kind, sent), sent))
            }
        })
    }
}

/// A call on its way in a pipeline, and how to read its answer.
pub(super) struct Sent<R> {
    asked: Asked,
    take: fn(Outcome) -> Option<R>,
}

/// A call that a pipeline can carry.
pub(in crate::client) trait Pipelined: Clone {
    type Answer;

    /// About how large it is.
    fn bytes(&self) -> usize;
    fn call(&self) -> Call;
    /// `None`: that is no answer to it.
    fn answer(outcome: Outcome) -> Option<Self::Answer>;
}

/// The same as values, so that calls that no pipeline carries need not have it.
pub(super) struct Codec<M, R> {
    pub(super) bytes: fn(&M) -> usize,
    pub(super) call: fn(&M) -> Call,
    pub(super) answer: fn(Outcome) -> Option<R>,
}

impl<M, R> Clone for Codec<M, R> {
    fn clone(&self) -> Codec<M, R> {
        *self
    }
}

impl<M, R> Copy for Codec<M, R> {}

impl<M, R> Codec<M, R> {
    pub(super) fn start(self, endpoint: &Endpoint, message: &M, left: Duration) -> Option<Sent<R>> {
        let asked = endpoint.pipeline(|| (self.call)(message), (self.bytes)(message), left)?;
        Some(Sent { asked, take: self.answer })
    }
}

impl Pipelined for v1::PutRequest {
    type Answer = v1::PutResponse;

    fn bytes(&self) -> usize {
        self.key.len() + self.value.len()
    }

    fn call(&self) -> Call {
        Call::Put(self.clone())
    }

    fn answer(outcome: Outcome) -> Option<v1::PutResponse> {
        if let Outcome::Put(answer) = outcome { Some(answer) } else { None }
    }
}

impl Pipelined for v1::DeleteRequest {
    type Answer = v1::DeleteResponse;

    fn bytes(&self) -> usize {
        self.key.len()
    }

    fn call(&self) -> Call {
        Call::Delete(self.clone())
    }

    fn answer(outcome: Outcome) -> Option<v1::DeleteResponse> {
        if let Outcome::Delete(answer) = outcome { Some(answer) } else { None }
    }
}

impl Pipelined for v1::GetRequest {
    type Answer = v1::GetResponse;

    fn bytes(&self) -> usize {
        self.key.len()
    }

    fn call(&self) -> Call {
        Call::Get(self.clone())
    }

    fn answer(outcome: Outcome) -> Option<v1::GetResponse> {
        if let Outcome::Get(answer) = outcome { Some(answer) } else { None }
    }
}

/// What a pipeline's answer says, and what would be its metadata.
fn answered<R>(answer: v1::PipelineResponse, take: fn(Outcome) -> Option<R>) -> (Result<R>, MetadataMap) {
    let mut metadata = MetadataMap::new();
    if let Some(v1::PipelineLeader { address, partition, epoch, cluster_id }) = answer.leader {
        let (epoch, partition) = (Epoch(epoch), PartitionId(partition));
        Leader { cluster_id, epoch, partition, address }.write(&mut metadata);
    }
    let result = match answer.outcome {
        Some(Outcome::Error(error)) => Err(error_of(error)),
        // Without a sense, what it did is not known.
        outcome => {
            outcome.and_then(take).ok_or_else(|| Error::new(Reason::Internal, "the answer makes no sense"))
        }
    };
    (result, metadata)
}

/// The pipeline ended without an answer.
fn broken(kind: Kind, sent: Happened, why: &str) -> Error {
    match (kind, sent) {
        (Kind::Write, Happened::Unknown) => Error::new(
            Reason::OutcomeUnknown,
            format!("no answer after the write was sent: it may have taken place, or may yet ({why})"),
        ),
        _ => Error::new(Reason::Unavailable, format!("the node can't be reached: {why}")),
    }
}
