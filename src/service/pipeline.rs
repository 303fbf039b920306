//! `Kv.Pipeline`: many calls on one stream, each answered when it is done.
//!
//! A stream has no task of its own: HTTP/2 polls it for answers whenever it has room for some, and that is when
//! requests are read and worked on. So a client that does not take its answers is not read from either. Each
//! call takes its place among all calls under way, and its bytes, as a call of its own would, and is counted as one.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use tokio::sync::watch;
use tonic::{Code, Request, Status, Streaming};

use super::Backend;
use super::deadline::Clock;
use super::listen::stopped;
use super::share::{Connection, NoRoom, Taken};
use super::{kv, request};
use crate::error::{Error, Happened, Reason, Result, to_status};
use crate::limits::PIPELINE_CALLS_MAX;
use crate::metrics;
use crate::node::Routed;
use crate::proto::v1;
use crate::proto::v1::pipeline_request::Call;
use crate::proto::v1::pipeline_response::Outcome;
use crate::transport::{CLUSTER, Leader};

/// Tells a stream without an end of its own that the server stops; the dispatcher puts it into its request.
#[derive(Debug, Clone)]
pub(super) struct Stopping(pub watch::Receiver<bool>);

type Answer = v1::PipelineResponse;

/// The calls of one stream.
pub struct Pipeline<N> {
    node: Arc<N>,
    metrics: Arc<metrics::Grpc>,
    connection: Arc<Connection>,
    /// The cluster that its calls are meant for.
    meant: Option<String>,
    requests: Streaming<v1::PipelineRequest>,
    phase: Phase,
    last_id: u64,
    under_way: FuturesUnordered<BoxFuture<'static, Answer>>,
    stopping: BoxFuture<'static, ()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Reading,
    /// The client has sent its last.
    Read,
    /// The server stops: nothing more is read, and the client is told so once all is answered.
    Stopping,
    Ended,
}

impl<N: Backend> Pipeline<N> {
    pub(super) fn new(
        node: Arc<N>,
        metrics: Arc<metrics::Grpc>,
        request: Request<Streaming<v1::PipelineRequest>>,
    ) -> Pipeline<N> {
        let stopping = match request.extensions().get::<Stopping>() {
            Some(Stopping(stopping)) => stopped(stopping.clone()).boxed(),
            // A request made by hand.
            None => std::future::pending().boxed(),
        };
        let meant = request.metadata().get(CLUSTER);
        Pipeline {
            node,
            metrics,
            connection: Connection::of(&request),
            meant: meant.map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned()),
            requests: request.into_inner(),
            phase: Phase::Reading,
            last_id: 0,
            under_way: FuturesUnordered::new(),
            stopping,
        }
    }

    fn begin(&mut self, request: v1::PipelineRequest) -> Result<(), Status> {
        let v1::PipelineRequest { id, timeout_ms, call } = request;
        if id <= self.last_id {
            let message = format!("request {id} comes after {}; ids have to rise", self.last_id);
            return Err(to_status(&Error::new(Reason::InvalidArgument, message)));
        }
        self.last_id = id;
        let (path, bytes) = match &call {
            Some(Call::Put(put)) => ("/rushkv.v1.Kv/Put", put.key.len() + put.value.len()),
            Some(Call::Delete(delete)) => ("/rushkv.v1.Kv/Delete", delete.key.len()),
            Some(Call::Get(get)) => ("/rushkv.v1.Kv/Get", get.key.len()),
            None => ("", 0),
        };
        let counted = self.metrics.call(path);
        let work = self.held(bytes).and_then(|held| {
            super::kv::meant(&*self.node, self.meant.as_deref())?;
            let call = call.ok_or_else(|| {
                Error::new(Reason::InvalidArgument, format!("request {id} is neither put, delete nor get"))
            })?;
            let work = work(self.node.clone(), call, Clock::asked(timeout_ms), self.connection.clone())?;
            Ok((work, held))
        });
        match work {
            Ok((work, held)) => self.under_way.push(
                async move {
                    let _held = held;
                    let (outcome, leader) = work.await;
                    answer(id, outcome, leader, counted)
                }
                .boxed(),
            ),
            Err(error) => self
                .under_way
                .push(std::future::ready(answer(id, Err((error, Happened::No)), None, counted)).boxed()),
        }
        Ok(())
    }

    /// A call's place among those under way, and its request's bytes.
    fn held(&self, bytes: usize) -> Result<(Taken, Taken)> {
        let refused = |what: &'static str| {
            move |NoRoom { total, own, part, max }: NoRoom| {
                let message = format!(
                    "{what} under way: {total}, {own} of this connection, which may have {part} for now; the limit for \
                     all is {max}"
                );
                Error::new(Reason::Overloaded, message)
            }
        };
        let call = self.connection.calls.take(1).map_err(refused("calls"))?;
        Ok((call, self.connection.requests.take(bytes).map_err(refused("bytes of requests"))?))
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Answer, Status>>> {
        loop {
            if let Poll::Ready(Some(answer)) = self.under_way.poll_next_unpin(cx) {
                return Poll::Ready(Some(Ok(answer)));
            }
            if self.phase != Phase::Reading || self.under_way.len() >= PIPELINE_CALLS_MAX {
                break;
            }
            if self.stopping.poll_unpin(cx).is_ready() {
                self.phase = Phase::Stopping;
                break;
            }
            match ready!(self.requests.poll_next_unpin(cx)) {
                Some(Ok(request)) => {
                    if let Err(status) = self.begin(request) {
                        self.phase = Phase::Ended;
                        return Poll::Ready(Some(Err(status)));
                    }
                }
                Some(Err(status)) => {
                    self.phase = Phase::Ended;
                    return Poll::Ready(Some(Err(status)));
                }
                None => self.phase = Phase::Read,
            }
        }
        if !self.under_way.is_empty() {
            return Poll::Pending;
        }
        let was_stopped = self.phase == Phase::Stopping;
        self.phase = Phase::Ended;
        let closed = Answer { id: self.last_id, outcome: Some(Outcome::Closed(true)), leader: None };
        Poll::Ready(was_stopped.then_some(Ok(closed)))
    }
}

type Done = (Result<Outcome, (Error, Happened)>, Option<Leader>);

/// What a call comes to; an error if it is refused before anything is done.
fn work<N: Backend>(
    node: Arc<N>,
    call: Call,
    clock: Clock,
    connection: Arc<Connection>,
) -> Result<impl Future<Output = Done> + Send + 'static> {
    enum Op {
        Write(crate::kv::Op, bool),
        Read(bytes::Bytes, crate::node::Consistency),
    }
    let op = match call {
        Call::Put(put) => Op::Write(request::put(put)?, true),
        Call::Delete(delete) => Op::Write(request::delete(delete)?, false),
        Call::Get(get) => {
            connection.answers.room(0)?;
            Op::Read(request::key(get.key)?, request::consistency(get.consistency)?)
        }
    };
    let limit = clock.unary();
    Ok(async move {
        match op {
            Op::Write(op, is_put) => {
                let Routed { result, leader } = node.write(op, limit.node).await;
                let outcome = result.and_then(|outcome| match is_put {
                    true => kv::put_outcome(outcome).map(Outcome::Put),
                    false => kv::delete_outcome(outcome).map(Outcome::Delete),
                });
                (outcome.map_err(|error| (error.clone(), error.happened())), leader)
            }
            Op::Read(key, how) => {
                let Routed { result, leader } = node.get(key.clone(), how, limit.node).await;
                let found = |found: Option<crate::kv::Record>| v1::GetResponse {
                    record: found.map(|found| kv::record(key, found)),
                };
                let outcome = result.map(|record| Outcome::Get(found(record)));
                (outcome.map_err(|error| (error, Happened::No)), leader)
            }
        }
    })
}

fn answer(
    id: u64,
    outcome: Result<Outcome, (Error, Happened)>,
    leader: Option<Leader>,
    mut counted: metrics::Call,
) -> Answer {
    let outcome = match outcome {
        Ok(outcome) => {
            counted.answered(Code::Ok);
            outcome
        }
        Err((error, happened)) => {
            counted.answered(to_status(&error).code());
            Outcome::Error(kv::operation_error(error, happened))
        }
    };
    let leader = leader.map(|leader| v1::PipelineLeader {
        address: leader.address,
        partition: leader.partition.0,
        epoch: leader.epoch.0,
        cluster_id: leader.cluster_id,
    });
    Answer { id, outcome: Some(outcome), leader }
}

impl<N: Backend> Stream for Pipeline<N> {
    type Item = Result<Answer, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        match this.phase {
            Phase::Ended => Poll::Ready(None),
            _ => this.poll_answer(cx),
        }
    }
}

impl<N> std::fmt::Debug for Pipeline<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline")
            .field("phase", &self.phase)
            .field("under_way", &self.under_way.len())
            .finish_non_exhaustive()
    }
}
