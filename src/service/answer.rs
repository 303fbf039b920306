//! Answers under way: bounded in memory, and cut when nobody takes them.
//!
//! When the bytes of an answer leave this process is up to its client, which may keep its
//! flow-control window closed or not read its socket, and still answer pings. So:
//!
//! - *Counted*: each chunk is wrapped so that it gives back what it holds when its last reference
//!   goes, be it ours, hyper's or h2's: at the socket, not at the end of the body.
//! - *Refused*: a read begins only while there is room for its answer, and its answer is dropped for
//!   an error if there is none after all. The answer of a write is never refused, since it has taken
//!   place; a batch of writes, whose answer may be large, is refused before it begins.
//! - *Cut*: a body hands out pieces of [`PIECE_BYTES`]; when one is not taken in time, the stream's
//!   task is dropped ([`Tasks`]), which resets the stream and frees what is queued for it. The
//!   trailers of a large answer wait until all of it has left, so that there is a task to drop.
//!   A small one leaves its body before it leaves the process: if it stays all the same, the
//!   connection is cut ([`Lingering`]).
//!
//! Not counted: what a read holds between the node and its encoding, for as long as the runtime takes
//! to poll it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use hyper::body::{Body, Frame, SizeHint};
use prometheus::{IntCounter, IntGauge};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tonic::codegen::http::HeaderMap;
use tonic::{Code, Status};

use super::body::Held;
use super::listen::stopped;
use super::share::{Connection, NoRoom, Share, Taken};
use crate::error::{Error, Reason, Result, to_status};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::metrics;

/// Bytes that a body hands out at once: enough for four frames of HTTP/2, and what a client has to
/// take within the limit so as not to be cut.
const PIECE_BYTES: usize = 64 * 1024;

/// What the answers of one connection hold, and may hold.
#[derive(Debug, Clone)]
pub(super) struct Answers {
    held: IntGauge,
    share: Share,
}

/// A part of it; given back when dropped.
#[derive(Debug)]
pub(super) struct Lease {
    held: IntGauge,
    bytes: i64,
    _taken: Taken,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.held.sub(self.bytes);
    }
}

impl Answers {
    /// `held` counts the bytes of all connections.
    pub fn new(held: IntGauge, share: Share) -> Answers {
        Answers { held, share }
    }

    /// Whether `bytes` more would fit.
    ///
    /// # Errors
    /// `Overloaded` if not.
    pub fn room(&self, bytes: usize) -> Result<()> {
        self.share.room(bytes).map_err(overloaded)
    }

    /// Counts `bytes`, whatever the limit.
    pub fn hold(&self, bytes: usize) -> Lease {
        self.lease(self.share.take_anyway(bytes), bytes)
    }

    /// Counts `bytes` if they fit.
    ///
    /// # Errors
    /// `Overloaded` if they don't.
    pub fn try_hold(&self, bytes: usize) -> Result<Lease> {
        Ok(self.lease(self.share.take(bytes).map_err(overloaded)?, bytes))
    }

    fn lease(&self, taken: Taken, bytes: usize) -> Lease {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.held.add(bytes);
        Lease { held: self.held.clone(), bytes, _taken: taken }
    }
}

fn overloaded(NoRoom { total, own, part, max }: NoRoom) -> Error {
    let message = format!(
        "answers that their clients have not taken yet hold {total} bytes, {own} of them of this connection, \
         which may hold {part} for now; the limit for all is {max}"
    );
    Error::new(Reason::Overloaded, message)
}

/// How a call's answer is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bound {
    /// Room that there must be before the call begins; `None`: it begins anyway.
    pub room: Option<usize>,
    /// Whether the answer may be dropped for an error once it is made.
    pub refusable: bool,
}

/// The bound of calls to `path`.
pub(super) fn bound(path: &str) -> Bound {
    match path {
        "/rushkv.RushKV/Put"
        | "/rushkv.RushKV/Delete"
        | "/rushkv.RushKV/Join"
        | "/rushkv.RushKV/Leave"
        | "/rushkv.v1.Kv/Put"
        | "/rushkv.v1.Kv/Delete"
        // Among its answers are those of writes; it refuses reads itself.
        | "/rushkv.v1.Kv/Pipeline"
        | "/rushkv.v1.Cluster/Join"
        | "/rushkv.v1.Cluster/Leave"
        | "/rushkv.v1.Peer/Propose"
        | "/rushkv.v1.Peer/Prepare"
        | "/rushkv.v1.Peer/Admit"
        | "/rushkv.v1.Peer/GiveUp"
        | "/rushkv.v1.Transport/Exchange" => Bound { room: None, refusable: false },
        "/rushkv.v1.Kv/BatchWrite" => Bound { room: Some(MESSAGE_BYTES_MAX), refusable: false },
        // Its answer may be small, and is refused when it is not.
        "/rushkv.RushKV/Get" | "/rushkv.v1.Kv/Get" => Bound { room: Some(0), refusable: true },
        "/rushkv.v1.Kv/BatchGet"
        | "/rushkv.v1.Kv/Scan"
        | "/rushkv.v1.Peer/ReadKeys"
        | "/rushkv.v1.Peer/ReadRange" => Bound { room: Some(MESSAGE_BYTES_MAX), refusable: true },
        // A few bytes, and asked most urgently when there is too much to do.
        path if path.starts_with("/grpc.health.") => Bound { room: None, refusable: false },
        _ => Bound { room: Some(0), refusable: true },
    }
}

/// Small answers of one connection that have not left the process, by when they were made: since the
/// last tick, or before.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    now: AtomicUsize,
    counts: [AtomicUsize; 2],
}

impl Lingering {
    /// Resolves when an answer has lingered for `limit` at least, and twice that at most; with how
    /// many have.
    pub async fn stuck(&self, limit: Duration) -> usize {
        let mut tick = tokio::time::interval_at(Instant::now() + limit, limit);
        // Late ticks would come in a burst, and make everything look old.
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Some(old) = self.tick() {
                return old;
            }
        }
    }

    /// How many were there at the last tick already, if any.
    fn tick(&self) -> Option<usize> {
        let before = 1 - self.now.load(Ordering::Relaxed);
        let old = self.counts[before].load(Ordering::Relaxed);
        if old > 0 {
            return Some(old);
        }
        self.now.store(before, Ordering::Relaxed);
        None
    }
}

/// Large chunks of one body that have not left the process.
#[derive(Debug, Default)]
struct Unsent {
    chunks: AtomicUsize,
    body: AtomicWaker,
}

#[derive(Debug)]
enum Until {
    Lingering(Arc<Lingering>, usize),
    Unsent(Arc<Unsent>),
}

/// The memory of a chunk, of which pieces are handed out.
struct Chunk {
    data: Bytes,
    until: Until,
    _lease: Lease,
}

impl Chunk {
    fn new(data: Bytes, lease: Lease, lingering: &Arc<Lingering>, unsent: &Arc<Unsent>) -> Chunk {
        let until = if data.len() > PIECE_BYTES {
            unsent.chunks.fetch_add(1, Ordering::AcqRel);
            Until::Unsent(unsent.clone())
        } else {
            let now = lingering.now.load(Ordering::Relaxed);
            lingering.counts[now].fetch_add(1, Ordering::Relaxed);
            Until::Lingering(lingering.clone(), now)
        };
        Chunk { data, until, _lease: lease }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        match &self.until {
            Until::Lingering(lingering, made) => {
                lingering.counts[*made].fetch_sub(1, Ordering::Relaxed);
            }
            Until::Unsent(unsent) => {
                unsent.chunks.fetch_sub(1, Ordering::AcqRel);
                unsent.body.wake();
            }
        }
    }
}

/// How a stream's body gets on, for its task to watch: odd while something that was handed out is not
/// taken yet, and another number each time.
#[derive(Debug, Clone, Default)]
struct Progress(Arc<AtomicUsize>);

impl Progress {
    fn set(&self, out: bool) {
        if out != (self.0.load(Ordering::Relaxed) % 2 == 1) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn out(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|number| number % 2 == 1)
    }
}

tokio::task_local! {
    /// Of the stream that the current task serves.
    static PROGRESS: Progress;
}

/// Runs the tasks of HTTP/2 streams, and drops one whose client takes nothing of its answer for `idle`.
#[derive(Debug, Clone)]
pub(super) struct Tasks {
    pub idle: Duration,
    pub cut: IntCounter,
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(watched(task, self.clone()));
    }
}

async fn watched(task: impl Future<Output = ()>, Tasks { idle, cut }: Tasks) {
    let progress = Progress::default();
    let mut task = pin!(PROGRESS.scope(progress.clone(), task));
    // Made when a piece is first waited for; most are taken at once.
    let mut late: Option<(usize, Pin<Box<Sleep>>)> = None;
    poll_fn(|cx| {
        if task.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(piece) = progress.out() else {
            late = None;
            return Poll::Pending;
        };
        let (of, late) = late.get_or_insert_with(|| (piece, Box::pin(tokio::time::sleep(idle))));
        if *of != piece {
            *of = piece;
            late.as_mut().reset(Instant::now() + idle);
        }
        ready!(late.as_mut().poll(cx));
        cut.inc();
        Poll::Ready(())
    })
    .await;
}

/// An answer's body. Its trailers say how the call ended; an answer without a body says it in its
/// headers.
pub(super) struct AnswerBody {
    inner: tonic::body::Body,
    call: metrics::Call,
    /// What the call holds.
    _held: Arc<Held>,
    answers: Answers,
    refusable: bool,
    lingering: Arc<Lingering>,
    progress: Progress,
    /// What is left of the chunk that is being handed out.
    chunk: Bytes,
    unsent: Arc<Unsent>,
    /// Waiting for `unsent`.
    trailers: Option<Frame<Bytes>>,
    /// Of answers without an end: resolves when the server stops, which ends them too.
    stopped: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    ended: bool,
}

impl AnswerBody {
    /// To be called in the task that serves the stream.
    pub fn new(
        answer: (&HeaderMap, tonic::body::Body),
        mut call: metrics::Call,
        held: Arc<Held>,
        connection: &Connection,
        refusable: bool,
        stopping: Option<watch::Receiver<bool>>,
    ) -> AnswerBody {
        let (headers, inner) = answer;
        if let Some(code) = code(headers) {
            call.answered(code);
        }
        let stopped = stopping
            .map(|stopping| -> Pin<Box<dyn Future<Output = ()> + Send>> { Box::pin(stopped(stopping)) });
        AnswerBody {
            inner,
            call,
            _held: held,
            answers: connection.answers.clone(),
            refusable,
            lingering: connection.lingering.clone(),
            progress: PROGRESS.try_with(Clone::clone).unwrap_or_default(),
            chunk: Bytes::new(),
            unsent: Arc::default(),
            trailers: None,
            stopped,
            ended: false,
        }
    }

    fn piece(&mut self) -> Poll<Option<std::result::Result<Frame<Bytes>, Status>>> {
        self.progress.set(true);
        let piece = self.chunk.split_to(self.chunk.len().min(PIECE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn trailers(&mut self, cx: &Context<'_>) -> Poll<Option<std::result::Result<Frame<Bytes>, Status>>> {
        self.unsent.body.register(cx.waker());
        if self.unsent.chunks.load(Ordering::Acquire) > 0 {
            self.progress.set(true);
            return Poll::Pending;
        }
        self.progress.set(false);
        let frame = self.trailers.take();
        // Here and not before: the trailers of an answer that is cut never leave, and its call counts
        // as given up.
        if let Some(code) = frame.as_ref().and_then(|frame| code(frame.trailers_ref()?)) {
            self.call.answered(code);
        }
        Poll::Ready(frame.map(Ok))
    }

    /// Ends the answer by an error.
    fn fail(&mut self, error: &Error) -> Poll<Option<std::result::Result<Frame<Bytes>, Status>>> {
        self.ended = true;
        let status = to_status(error);
        self.call.answered(status.code());
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|status| Code::from_bytes(status.as_bytes()))
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Status>>> {
        if self.trailers.is_some() {
            return self.trailers(cx);
        }
        // Who asks for the next has taken the last.
        self.progress.set(false);
        if !self.chunk.is_empty() {
            return self.piece();
        }
        if self.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) if data.is_empty() => Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(data) => {
                    let lease = if self.refusable {
                        self.answers.try_hold(data.len())
                    } else {
                        Ok(self.answers.hold(data.len()))
                    };
                    match lease {
                        Ok(lease) => {
                            let chunk = Chunk::new(data, lease, &self.lingering, &self.unsent);
                            self.chunk = Bytes::from_owner(chunk);
                            self.piece()
                        }
                        Err(error) => self.fail(&error),
                    }
                }
                Err(frame) => {
                    self.trailers = Some(frame);
                    self.trailers(cx)
                }
            },
            Poll::Ready(Some(Err(status))) => {
                self.call.answered(status.code());
                Poll::Ready(Some(Err(status)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let Some(stopped) = &mut self.stopped else { return Poll::Pending };
                ready!(stopped.as_mut().poll(cx));
                self.fail(&Error::new(Reason::ShuttingDown, "the node is stopping"))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.chunk.is_empty() && self.trailers.is_none() && (self.ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::share::Pool;
    use super::*;

    #[test]
    fn no_write_is_refused_once_it_took_place() {
        for path in metrics::METHODS {
            let call = path.rsplit('/').next().unwrap();
            let writes = [
                "Put",
                "Delete",
                "BatchWrite",
                "Join",
                "Leave",
                "Propose",
                "Prepare",
                "Admit",
                "GiveUp",
                "Exchange",
                "Pipeline",
            ]
            .contains(&call);
            assert!(!writes || !bound(path).refusable, "{path}");
            assert!(writes || bound(path).refusable || path.starts_with("/grpc.health."), "{path}");
        }
    }

    #[test]
    fn what_is_held_is_bounded_and_given_back() {
        let held = IntGauge::new("held", "In answers.").unwrap();
        let answers = Answers::new(held.clone(), Pool::new(20, 1).share());
        let six = answers.try_hold(6).unwrap();
        answers.room(8).unwrap();
        assert_eq!(answers.room(9).unwrap_err().reason, Reason::Overloaded);
        assert_eq!(answers.try_hold(9).unwrap_err().reason, Reason::Overloaded);
        let write = answers.hold(100);
        assert_eq!(held.get(), 106);
        drop((six, write));
        assert_eq!(held.get(), 0);
    }

    #[test]
    fn an_answer_is_stuck_when_a_whole_interval_has_passed_over_it() {
        let lingering = Arc::new(Lingering::default());
        let answers = Answers::new(IntGauge::new("held", "In answers.").unwrap(), Pool::new(10, 1).share());
        let chunk = || {
            let data = Bytes::from_static(b"small");
            Chunk::new(data, answers.hold(5), &lingering, &Arc::default())
        };
        // Those that leave in time are not stuck, though there is one at every tick.
        let mut last = chunk();
        for _ in 0..5 {
            assert_eq!(lingering.tick(), None);
            last = chunk();
        }
        let more = chunk();
        assert_eq!(lingering.tick(), None);
        assert_eq!(lingering.tick(), Some(2));
        drop((last, more));
        assert_eq!(lingering.tick(), None);
    }
}
