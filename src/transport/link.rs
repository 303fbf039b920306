//! One outgoing link: what waits to be sent to one peer in one class, and who waits for an answer.
//!
//! There is no task between a caller and the wire. A caller puts its message into the queue; the
//! connection takes a frame out of it whenever it has room for one ([`Requests`]), so that what waited
//! in the meantime travels together, and nothing ever waits for a timer.
//!
//! ```text
//! send -> [queue] -> Requests (polled by HTTP/2 as its window allows) -> peer
//! caller <- [callers] <- answered <- the session's task <-------------- peer
//! ```

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::handshake::name;
use super::metrics::Outgoing;
use super::options::Options;
use crate::limits::{PEER_FRAME_BYTES, PEER_FRAME_MESSAGES_MAX, PEER_MESSAGE_BYTES_MAX};
use crate::proto::v1;
use crate::raft::{CarryError, Class, Route};
use crate::types::{GroupId, NodeId, ReplicaId};

type Answer = Result<Bytes, CarryError>;

/// What is to be sent to one peer in one class. Invariants, while the lock is free:
///
/// - Request ids grow, and are never given twice in a link's life.
/// - A caller stands in `callers` from its call until its answer, the connection's end, or until it
///   gives up. A message in `queue` has not been sent; one whose caller is in `callers` and that is not
///   in `queue` has.
/// - Only the session that is `up` takes from the queue; outside of [`Phase::First`] and
///   [`Phase::Up`] the queue and `callers` are empty.
#[derive(Debug)]
pub(super) struct Link {
    pub peer: NodeId,
    pub class: Class,
    options: Options,
    metrics: Outgoing,
    state: Mutex<State>,
    /// Something is to be sent and there is no connection.
    pub wanted: Notify,
    /// The peer was just heard of while there was no connection: it is worth trying at once.
    pub returned: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    session: u64,
    queue: VecDeque<Queued>,
    queue_bytes: usize,
    callers: HashMap<u64, oneshot::Sender<Answer>>,
    next_request: u64,
    /// Messages, waiting or sent, that this session has no answer to, whether anybody waits or not.
    unanswered: usize,
    /// When the last answer came, or the first unanswered message.
    progress: Instant,
    /// Of the task that takes frames.
    taker: Option<Waker>,
}

#[derive(Debug)]
enum Phase {
    /// The first connection is being made: a little may wait for it.
    First,
    Up,
    /// With the reason.
    Down(String),
    /// For good.
    Closed(String),
}

#[derive(Debug)]
struct Queued {
    request: u64,
    route: Route,
    message: Bytes,
}

impl Link {
    pub(super) fn new(peer: NodeId, class: Class, options: Options, metrics: Outgoing) -> Arc<Link> {
        metrics.connected.set(0);
        metrics.queued.set(0);
        Arc::new(Link {
            peer,
            class,
            options,
            metrics,
            state: Mutex::new(State {
                phase: Phase::Down("this node is in no cluster yet".to_string()),
                session: 0,
                queue: VecDeque::new(),
                queue_bytes: 0,
                callers: HashMap::new(),
                next_request: 1,
                unanswered: 0,
                progress: Instant::now(),
                taker: None,
            }),
            wanted: Notify::new(),
            returned: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics under this lock; were it so, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`crate::raft::Carrier::send`].
    pub(super) fn send(self: &Arc<Link>, route: Route, message: Bytes) -> BoxFuture<'static, Answer> {
        let len = message.len();
        if len > PEER_MESSAGE_BYTES_MAX {
            let why = format!("a message of {len} bytes is over the limit of {PEER_MESSAGE_BYTES_MAX}");
            return Box::pin(std::future::ready(Err(CarryError::Refused(why))));
        }
        let mut state = self.state();
        if let Err(why) = self.room(&state, len) {
            let down = matches!(state.phase, Phase::Down(_));
            drop(state);
            self.metrics.unsent.inc();
            if down {
                self.wanted.notify_one();
            }
            return Box::pin(std::future::ready(Err(self.unreachable(&why))));
        }
        let (sender, receiver) = oneshot::channel();
        let request = state.next_request;
        state.next_request += 1;
        state.callers.insert(request, sender);
        if state.unanswered == 0 {
            state.progress = Instant::now();
        }
        state.unanswered += 1;
        state.queue_bytes += len;
        state.queue.push_back(Queued { request, route, message });
        self.metrics.queued.set(count(state.queue.len()));
        let taker = state.taker.take();
        drop(state);
        if let Some(taker) = taker {
            taker.wake();
        }
        Box::pin(Caller { link: self.clone(), request, receiver, answered: false })
    }

    /// Whether a message of `len` bytes may wait, or why not.
    fn room(&self, state: &State, len: usize) -> Result<(), String> {
        let messages_max = match &state.phase {
            Phase::Down(why) | Phase::Closed(why) => return Err(why.clone()),
            Phase::First => self.options.first_messages_max,
            Phase::Up => self.options.queue_messages_max,
        };
        let bytes_max = self.options.queue_bytes_max(self.class);
        let (messages, bytes) = (state.queue.len(), state.queue_bytes);
        if messages >= messages_max || (messages > 0 && bytes + len > bytes_max) {
            return Err(format!("the queue is full: {messages} messages, {bytes} bytes"));
        }
        if state.callers.len() >= self.options.callers_max {
            return Err(format!("{} messages are unanswered, which is the limit", state.callers.len()));
        }
        Ok(())
    }

    fn unreachable(&self, why: &str) -> CarryError {
        CarryError::Unreachable(format!("{} ({}): {why}", self.peer, name(self.class)))
    }

    /// An attempt to connect begins. `first`: messages may wait for its outcome. Returns the session,
    /// for [`Requests`] and [`Link::up`].
    pub(super) fn begin(&self, first: bool) -> u64 {
        let mut state = self.state();
        if first && matches!(state.phase, Phase::Down(_)) {
            state.phase = Phase::First;
        }
        state.session += 1;
        state.session
    }

    /// The handshake of `session` has succeeded: what waits may go.
    pub(super) fn up(&self, session: u64) {
        let mut state = self.state();
        if state.session != session || matches!(state.phase, Phase::Closed(_)) {
            return;
        }
        state.phase = Phase::Up;
        state.unanswered = state.queue.len();
        state.progress = Instant::now();
        self.metrics.connected.set(1);
        self.metrics.connects.inc();
        let taker = state.taker.take();
        drop(state);
        if let Some(taker) = taker {
            taker.wake();
        }
    }

    /// There is no connection (any more): fails everybody who waits.
    pub(super) fn down(&self, why: &str) {
        self.end(Phase::Down(why.to_string()), why);
    }

    /// The peer is gone for good, or this node stops.
    pub(super) fn close(&self, why: &str) {
        self.end(Phase::Closed(why.to_string()), why);
    }

    fn end(&self, phase: Phase, why: &str) {
        let mut state = self.state();
        if matches!(state.phase, Phase::Closed(_)) {
            return;
        }
        state.phase = phase;
        // What is left of the old connection takes nothing any more.
        state.session += 1;
        state.queue_bytes = 0;
        state.unanswered = 0;
        let queue = std::mem::take(&mut state.queue);
        let mut callers = std::mem::take(&mut state.callers);
        let taker = state.taker.take();
        self.metrics.connected.set(0);
        self.metrics.queued.set(0);
        drop(state);
        self.metrics.unsent.inc_by(queue.len() as u64);
        for queued in &queue {
            if let Some(caller) = callers.remove(&queued.request) {
                // Here and below: an error means that the caller gave up meanwhile.
                let _ = caller.send(Err(self.unreachable(why)));
            }
        }
        for (_, caller) in callers {
            let why = format!("{} ({}): {why}", self.peer, name(self.class));
            let _ = caller.send(Err(CarryError::Broken(why)));
        }
        if let Some(taker) = taker {
            taker.wake();
        }
    }

    /// Answers have arrived. Those to nobody are dropped: their callers gave up.
    pub(super) fn answered(&self, session: u64, messages: Vec<v1::Message>) {
        let mut state = self.state();
        if state.session != session {
            return;
        }
        state.unanswered = state.unanswered.saturating_sub(messages.len());
        state.progress = Instant::now();
        let callers: Vec<_> =
            messages.into_iter().filter_map(|m| Some((state.callers.remove(&m.request)?, m))).collect();
        drop(state);
        for (caller, message) in callers {
            let answer = match message.refusal.is_empty() {
                true => Ok(message.body),
                false => Err(CarryError::Refused(message.refusal)),
            };
            let _ = caller.send(answer);
        }
    }

    /// The peer was heard of.
    pub(super) fn seen(&self) {
        if matches!(self.state().phase, Phase::Down(_)) {
            self.returned.notify_one();
        }
    }

    /// For how long messages have been unanswered without any answer, once that is too long.
    pub(super) fn stalled(&self) -> Option<Duration> {
        let state = self.state();
        let waited = state.progress.elapsed();
        (state.unanswered > 0 && waited > self.options.stall(self.class)).then_some(waited)
    }

    /// How often to ask [`Link::stalled`].
    pub(super) fn stall_check(&self) -> Duration {
        (self.options.stall(self.class) / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    /// The next frame of `session`; `None` at its end.
    fn poll_frame(&self, session: u64, cx: &mut Context<'_>) -> Poll<Option<v1::Frame>> {
        let mut state = self.state();
        if state.session != session {
            return Poll::Ready(None);
        }
        if !matches!(state.phase, Phase::Up) || state.queue.is_empty() {
            match &mut state.taker {
                Some(taker) => taker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let mut messages = Vec::with_capacity(state.queue.len().min(PEER_FRAME_MESSAGES_MAX));
        let mut bytes = 0;
        while messages.len() < PEER_FRAME_MESSAGES_MAX && bytes < PEER_FRAME_BYTES {
            let Some(Queued { request, route, message }) = state.queue.pop_front() else { break };
            bytes += message.len();
            messages.push(wire(request, route, message));
        }
        state.queue_bytes -= bytes;
        self.metrics.queued.set(count(state.queue.len()));
        drop(state);
        self.metrics.frames.inc();
        self.metrics.messages.inc_by(messages.len() as u64);
        self.metrics.bytes.inc_by(bytes as u64);
        Poll::Ready(Some(v1::Frame { handshake: None, messages }))
    }

    fn forget(&self, request: u64) {
        self.state().callers.remove(&request);
    }

    /// Messages that wait to be sent, and callers that wait for an answer.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> (usize, usize) {
        let state = self.state();
        (state.queue.len(), state.callers.len())
    }
}

/// A message as it travels, without a body or a refusal of its own if it is an answer.
pub(super) fn wire(request: u64, route: Route, body: Bytes) -> v1::Message {
    let Route { group: GroupId(group), from: ReplicaId(from), to: ReplicaId(to) } = route;
    v1::Message { request, group, from, to, body, refusal: String::new() }
}

/// For a gauge.
fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The requests of one session, beginning with the handshake; ends with the session.
#[derive(Debug)]
pub(super) struct Requests {
    link: Arc<Link>,
    session: u64,
    opening: Option<v1::Handshake>,
}

impl Requests {
    pub(super) fn new(link: Arc<Link>, session: u64, opening: v1::Handshake) -> Requests {
        Requests { link, session, opening: Some(opening) }
    }
}

impl Stream for Requests {
    type Item = v1::Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<v1::Frame>> {
        match self.opening.take() {
            Some(opening) => Poll::Ready(Some(v1::Frame { handshake: Some(opening), messages: Vec::new() })),
            None => self.link.poll_frame(self.session, cx),
        }
    }
}

/// Somebody who waits for an answer. Dropped before, it is forgotten; its message may travel all the same.
#[derive(Debug)]
struct Caller {
    link: Arc<Link>,
    request: u64,
    receiver: oneshot::Receiver<Answer>,
    answered: bool,
}

impl Future for Caller {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        Pin::new(&mut self.receiver).poll(cx).map(|answer| {
            self.answered = true;
            answer.unwrap_or_else(|_| Err(CarryError::Broken("the transport has ended".to_string())))
        })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if !self.answered {
            self.link.forget(self.request);
        }
    }
}
