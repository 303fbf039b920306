//! `Kv.Pipeline`: many calls on one stream, each answered when it is done.
//!
//! A stream's calls are worked on by a task of its own, whether their client takes answers or not: what a call needs
//! from others (a passed-on answer in a connection between nodes, a permit) is not held for as long as a client likes.
//! Answers that wait for their client are bounded in number, by which a stream is read no further, and in bytes, of
//! which reads are refused. Each call takes its place among all calls under way, and its bytes, as a call of its own
//! would, and is counted as one.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::task::AtomicWaker;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinHandle;
use tonic::{Code, Request, Status, Streaming};

use super::Backend;
use super::answer::Lease;
use super::body::Arrived;
use super::deadline::{Clock, Limit};
use super::listen::stopped;
use super::share::{Connection, NoRoom, Taken};
use super::{kv, request};
use crate::error::{Error, Happened, Reason, Result, to_status};
use crate::limits::{PIPELINE_CALLS_MAX, PIPELINE_MESSAGE_BYTES_MAX, PIPELINES_PER_CONNECTION_MAX};
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

/// The answers of one stream.
#[derive(Debug)]
pub struct Pipeline {
    answers: mpsc::Receiver<Result<Waiting, Status>>,
    untaken: Arc<Untaken>,
    task: JoinHandle<()>,
}

/// An answer that its client has not taken yet.
#[derive(Debug)]
struct Waiting {
    answer: Answer,
    _lease: Lease,
}

impl Waiting {
    fn bytes(answer: &Answer) -> usize {
        size_of::<Waiting>() + answer.encoded_len()
    }

    /// An answer that can't be refused any more.
    fn anyway(answer: Answer, of: &Connection) -> Waiting {
        let _lease = of.answers.hold(Waiting::bytes(&answer));
        Waiting { answer, _lease }
    }
}

/// How many they are.
#[derive(Debug, Default)]
struct Untaken {
    answers: AtomicUsize,
    /// Of who waits for there to be fewer.
    task: AtomicWaker,
}

impl Pipeline {
    pub(super) fn new<N: Backend>(
        node: Arc<N>,
        metrics: Arc<metrics::Grpc>,
        request: Request<Streaming<v1::PipelineRequest>>,
    ) -> Result<Pipeline> {
        let connection = Connection::of(&request);
        let place = connection.pipelines.clone().try_acquire_owned().map_err(|_| {
            let message =
                format!("this connection has {PIPELINES_PER_CONNECTION_MAX} pipelines, which is the limit");
            Error::new(Reason::Overloaded, message)
        })?;
        let stopping = match request.extensions().get::<Stopping>() {
            Some(Stopping(stopping)) => stopped(stopping.clone()).boxed(),
            // A request made by hand.
            None => std::future::pending().boxed(),
        };
        let meant = request.metadata().get(CLUSTER);
        // All that have a place, and the last message; an error comes in the place of the request that it ends with.
        let (sender, answers) = mpsc::channel(PIPELINE_CALLS_MAX + 1);
        let untaken = Arc::new(Untaken::default());
        let work = Work {
            node,
            metrics,
            connection,
            _place: place,
            meant: meant.map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned()),
            arrived: request.extensions().get::<Arc<Arrived>>().cloned(),
            requests: request.into_inner(),
            stopping,
            last_id: 0,
            had_large: false,
            under_way: FuturesUnordered::new(),
            answers: sender,
            untaken: untaken.clone(),
        };
        Ok(Pipeline { answers, untaken, task: tokio::spawn(work.run()) })
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stream for Pipeline {
    type Item = Result<Answer, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.answers.poll_recv(cx));
        if next.is_some() {
            self.untaken.answers.fetch_sub(1, Ordering::Relaxed);
            self.untaken.task.wake();
        }
        Poll::Ready(next.map(|waiting| waiting.map(|waiting| waiting.answer)))
    }
}

/// The calls of one stream.
struct Work<N> {
    node: Arc<N>,
    metrics: Arc<metrics::Grpc>,
    connection: Arc<Connection>,
    _place: OwnedSemaphorePermit,
    /// The cluster that its calls are meant for.
    meant: Option<String>,
    /// The bytes of a request that is not whole yet.
    arrived: Option<Arc<Arrived>>,
    requests: Streaming<v1::PipelineRequest>,
    stopping: BoxFuture<'static, ()>,
    last_id: u64,
    /// A message was larger than is to be kept room for.
    had_large: bool,
    under_way: FuturesUnordered<BoxFuture<'static, Waiting>>,
    answers: mpsc::Sender<Result<Waiting, Status>>,
    untaken: Arc<Untaken>,
}

/// Why a stream is read no further.
enum End {
    /// The client has sent its last.
    Read,
    /// The server stops, or frees memory.
    Closed,
    Failed(Status),
}

/// Requests that are begun before other tasks have their turn.
const REQUESTS_AT_ONCE: usize = 64;

impl<N: Backend> Work<N> {
    async fn run(mut self) {
        let end = poll_fn(|cx| self.poll_work(cx)).await;
        while let Some(answer) = self.under_way.next().await {
            self.answered(Ok(answer));
        }
        if !matches!(end, End::Read) {
            // So that the client knows what was not begun.
            let answer = Answer { id: self.last_id, outcome: Some(Outcome::Closed(true)), leader: None };
            self.answered(Ok(Waiting::anyway(answer, &self.connection)));
        }
        if let End::Failed(status) = end {
            self.answered(Err(status));
        }
    }

    fn answered(&mut self, answer: Result<Waiting, Status>) {
        if let Ok(waiting) = &answer {
            self.had_large |= waiting.answer.encoded_len() > PIPELINE_MESSAGE_BYTES_MAX;
        }
        self.untaken.answers.fetch_add(1, Ordering::Relaxed);
        // There is room for all. If nobody takes them any more, this task is about to be aborted.
        let _ = self.answers.try_send(answer);
    }

    /// Reads and works until there is nothing more to be read.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for _ in 0..REQUESTS_AT_ONCE {
            while let Poll::Ready(Some(answer)) = self.under_way.poll_next_unpin(cx) {
                self.answered(Ok(answer));
            }
            if self.had_large || self.stopping.poll_unpin(cx).is_ready() {
                return Poll::Ready(End::Closed);
            }
            if !self.has_room() {
                self.untaken.task.register(cx.waker());
                if !self.has_room() {
                    self.arrived.iter().for_each(|arrived| arrived.held_up());
                    return Poll::Pending;
                }
            }
            let begun = match ready!(self.requests.poll_next_unpin(cx)) {
                Some(Ok(request)) => self.begin(request),
                Some(Err(status)) => Err(status),
                None => return Poll::Ready(End::Read),
            };
            if let Err(status) = begun {
                return Poll::Ready(End::Failed(status));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn has_room(&self) -> bool {
        self.under_way.len() + self.untaken.answers.load(Ordering::Relaxed) < PIPELINE_CALLS_MAX
    }

    fn begin(&mut self, request: v1::PipelineRequest) -> Result<(), Status> {
        let arrived = self.arrived.as_ref().map_or(0, |arrived| arrived.decoded());
        let v1::PipelineRequest { id, timeout_ms, call } = request;
        if id <= self.last_id {
            let message = format!("request {id} comes after {}; ids have to rise", self.last_id);
            return Err(to_status(&Error::new(Reason::InvalidArgument, message)));
        }
        let before = std::mem::replace(&mut self.last_id, id);
        let (path, bytes) = match &call {
            Some(Call::Put(put)) => ("/rushkv.v1.Kv/Put", put.key.len() + put.value.len()),
            Some(Call::Delete(delete)) => ("/rushkv.v1.Kv/Delete", delete.key.len()),
            Some(Call::Get(get)) => ("/rushkv.v1.Kv/Get", get.key.len()),
            None => ("", 0),
        };
        // It keeps all that it came in.
        let bytes = bytes.max(arrived);
        self.had_large |= bytes > PIPELINE_MESSAGE_BYTES_MAX;
        let counted = self.metrics.call(path);
        let limit = Clock::asked(timeout_ms).unary();
        let admitted = self.held(bytes).and_then(|held| {
            super::kv::meant(&*self.node, self.meant.as_deref())?;
            let call = call.ok_or_else(|| {
                Error::new(Reason::InvalidArgument, format!("request {id} is neither put, delete nor get"))
            })?;
            Ok((Op::of(call, &self.connection)?, held))
        });
        match admitted {
            Ok((op, held)) => {
                let (node, connection) = (self.node.clone(), self.connection.clone());
                let work = async move {
                    let _held = held;
                    op.carry_out(&*node, limit, &connection, (id, counted)).await
                };
                self.under_way.push(work.boxed());
            }
            Err(error) => {
                let answer = answer(id, Err((error, Happened::No)), None, counted);
                match self.connection.answers.try_hold(Waiting::bytes(&answer)) {
                    Ok(_lease) => self.answered(Ok(Waiting { answer, _lease })),
                    Err(error) => {
                        self.last_id = before;
                        return Err(to_status(&error));
                    }
                }
            }
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
}

/// What is to be done.
enum Op {
    Put(crate::kv::Op),
    Delete(crate::kv::Op),
    Get(bytes::Bytes, crate::node::Consistency),
}

impl Op {
    fn of(call: Call, connection: &Connection) -> Result<Op> {
        Ok(match call {
            Call::Put(put) => Op::Put(request::put(put)?),
            Call::Delete(delete) => Op::Delete(request::delete(delete)?),
            Call::Get(get) => {
                connection.answers.room(0)?;
                // A copy: what it came in would be kept until the answer is taken.
                let key = bytes::Bytes::copy_from_slice(&request::key(get.key)?);
                Op::Get(key, request::consistency(get.consistency)?)
            }
        })
    }

    async fn carry_out(
        self,
        node: &impl Backend,
        limit: Limit,
        connection: &Connection,
        (id, counted): (u64, metrics::Call),
    ) -> Waiting {
        let (op, outcome): (_, fn(crate::kv::Outcome) -> Result<Outcome>) = match self {
            Op::Put(op) => (op, |outcome| kv::put_outcome(outcome).map(Outcome::Put)),
            Op::Delete(op) => (op, |outcome| kv::delete_outcome(outcome).map(Outcome::Delete)),
            Op::Get(key, how) => {
                let read = limit.read(async { Ok(node.get(key.clone(), how, limit.node).await) }).await;
                let (result, leader) = told(read);
                let held = result.and_then(|found| {
                    let record = found.map(|found| kv::record(key, found));
                    let bytes = size_of::<Waiting>() + record.as_ref().map_or(0, v1::Record::encoded_len);
                    Ok((Outcome::Get(v1::GetResponse { record }), connection.answers.try_hold(bytes)?))
                });
                return match held {
                    Ok((found, _lease)) => Waiting { answer: answer(id, Ok(found), leader, counted), _lease },
                    Err(error) => {
                        let answer = answer(id, Err((error, Happened::No)), leader, counted);
                        Waiting::anyway(answer, connection)
                    }
                };
            }
        };
        let (result, leader) = told(limit.write(async { Ok(node.write(op, limit.node).await) }).await);
        let outcome = result.and_then(outcome).map_err(|error| (error.clone(), error.happened()));
        Waiting::anyway(answer(id, outcome, leader, counted), connection)
    }
}

fn told<T>(done: Result<Routed<T>>) -> (Result<T>, Option<Leader>) {
    match done {
        Ok(Routed { result, leader }) => (result, leader),
        Err(error) => (Err(error), None),
    }
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
