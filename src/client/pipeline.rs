//! Calls on single keys, many at a time on one stream (`Kv.Pipeline`): beside what a call asks for, a stream of HTTP/2
//! of its own costs either end several times as much as the call does.
//!
//! A connection's pipeline is opened beside the calls once there were a few; until it is, and where a server has none
//! or it is full, they go alone.
//!
//! What is known of a call whose pipeline ends: one that was not taken from the queue has not left; one that was may
//! have been carried out, unless the server said up to which it had read.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use super::kv_client;
use crate::error::Happened;
use crate::limits::PIPELINE_CALLS_MAX;
use crate::proto::v1;
use crate::proto::v1::pipeline_request::Call;
use crate::proto::v1::pipeline_response::Outcome;
use crate::transport::{CLUSTER, GatedChannel};

/// Calls that go alone before a pipeline is opened: a command makes fewer.
const CALLS_ALONE: u32 = 16;

/// Calls of a pipeline at once, those included that were given up and have no answer yet, and what they may hold; more go
/// alone. A node reads as many whatever becomes of them, so none waits unread, with its outcome unknown.
const CALLS_MAX: usize = PIPELINE_CALLS_MAX;
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// A larger call goes alone: those behind it would wait for it.
const CALL_BYTES_MAX: usize = 64 * 1024;

/// After a server ended one, and nothing was wrong: for a large message, or because it stops.
const PAUSE_ENDED: Duration = Duration::from_millis(100);
/// After a server could not open one.
const PAUSE: Duration = Duration::from_secs(2);
/// After it said that it has none.
const PAUSE_UNKNOWN: Duration = Duration::from_secs(60);

const OPENED_WITHIN: Duration = Duration::from_secs(5);
const LAST_WITHIN: Duration = Duration::from_secs(1);

/// Why a call has no answer.
#[derive(Debug)]
pub(super) struct Lost {
    /// Whether the server may have it.
    pub sent: Happened,
    /// The server ended the pipeline, with nothing wrong, and did not read this.
    pub is_unread: bool,
    pub why: String,
}

type Answered = Result<v1::PipelineResponse, Lost>;

/// The pipeline of one connection. Dropped, it ends once its calls have.
#[derive(Debug, Default)]
pub(super) struct Pipeline(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// Which pipeline this is of; an earlier one takes nothing from the queue any more.
    session: u64,
    /// Made before one was opened.
    calls: u32,
    last_id: u64,
    queue: VecDeque<v1::PipelineRequest>,
    waiting: HashMap<u64, Waiting>,
    /// What all that wait hold.
    bytes: usize,
    /// Of the stream, which waits for the queue.
    waker: Option<Waker>,
    /// Nothing will be asked any more.
    closed: bool,
}

#[derive(Debug, Default, Clone, Copy)]
enum Phase {
    #[default]
    None,
    Opening,
    Open,
    /// There is none to be had before then.
    Unusable(Instant),
}

#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Answered>,
    bytes: usize,
    sent: Happened,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under it panics half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one off the list. The stream of one that is closed ends with the last of them.
    fn remove(&self, id: u64) -> Option<Waiting> {
        let mut state = self.lock();
        let waiting = state.waiting.remove(&id)?;
        state.bytes -= waiting.bytes;
        let waker = if state.closed && state.waiting.is_empty() { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(waiting)
    }
}

impl Pipeline {
    /// Sends a call, if there is a pipeline and room in it; else it goes alone. Opens one when it is time, by
    /// `channel`. Must be called inside a Tokio runtime.
    pub(super) fn start(
        &self,
        call: impl FnOnce() -> Call,
        bytes: usize,
        timeout: Duration,
        channel: impl FnOnce() -> (GatedChannel, Option<MetadataValue<Ascii>>),
    ) -> Option<Asked> {
        let mut state = self.0.lock();
        match state.phase {
            Phase::Open => {}
            Phase::None if state.calls < CALLS_ALONE => {
                state.calls += 1;
                return None;
            }
            Phase::Unusable(until) if Instant::now() < until => return None,
            Phase::None | Phase::Unusable(_) => {
                state.phase = Phase::Opening;
                state.session += 1;
                let session = Session { shared: self.0.clone(), number: state.session, ended: false };
                drop(state);
                let (channel, cluster) = channel();
                tokio::spawn(run(session, channel, cluster));
                return None;
            }
            Phase::Opening => return None,
        }
        if bytes > CALL_BYTES_MAX || state.waiting.len() >= CALLS_MAX || state.bytes + bytes > BYTES_MAX {
            return None;
        }
        state.last_id += 1;
        let id = state.last_id;
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
        state.queue.push_back(v1::PipelineRequest { id, timeout_ms, call: Some(call()) });
        let (answer, answered) = oneshot::channel();
        state.waiting.insert(id, Waiting { answer, bytes, sent: Happened::No });
        state.bytes += bytes;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(Asked { shared: self.0.clone(), id, answered, is_answered: false })
    }
}

#[cfg(test)]
impl Pipeline {
    pub(super) fn is_open(&self) -> bool {
        matches!(self.0.lock().phase, Phase::Open)
    }

    pub(super) fn waiting(&self) -> usize {
        self.0.lock().waiting.len()
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

/// A call under way; resolves with its answer. Dropped before, it is given up.
#[derive(Debug)]
pub(super) struct Asked {
    shared: Arc<Shared>,
    id: u64,
    answered: oneshot::Receiver<Answered>,
    is_answered: bool,
}

impl Asked {
    /// Gives it up; whether the server may have it.
    pub(super) fn give_up(&mut self) -> Happened {
        match self.take_back() {
            true => Happened::No,
            // It stays on the list until the server has done with it.
            false => Happened::Unknown,
        }
    }

    /// Gives it up if it has not left.
    pub(super) fn take_back(&mut self) -> bool {
        let mut state = self.shared.lock();
        if state.waiting.get(&self.id).is_none_or(|waiting| waiting.sent != Happened::No) {
            return false;
        }
        // The queue is in the order of the ids.
        if let Ok(at) = state.queue.binary_search_by_key(&self.id, |request| request.id) {
            state.queue.remove(at);
        }
        drop(state);
        self.shared.remove(self.id).is_some()
    }
}

impl Future for Asked {
    type Output = Answered;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answered> {
        Pin::new(&mut self.answered).poll(cx).map(|answered| {
            self.is_answered = true;
            answered.unwrap_or_else(|_| {
                Err(Lost { sent: Happened::Unknown, is_unread: false, why: "the client ended".into() })
            })
        })
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.is_answered {
            self.give_up();
        }
    }
}

/// What HTTP/2 takes from the queue. Nothing leaves before the server has opened its side, so that one that has no
/// pipelines leaves no call in doubt.
struct Requests(Arc<Shared>, u64);

impl Stream for Requests {
    type Item = v1::PipelineRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<v1::PipelineRequest>> {
        let mut state = self.0.lock();
        if state.session != self.1 {
            return Poll::Ready(None);
        }
        if let Some(request) = state.queue.pop_front() {
            if let Some(waiting) = state.waiting.get_mut(&request.id) {
                waiting.sent = Happened::Unknown;
            }
            return Poll::Ready(Some(request));
        }
        if state.closed && state.waiting.is_empty() {
            return Poll::Ready(None);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Opens a pipeline and takes its answers, to its end.
async fn run(session: Session, channel: GatedChannel, cluster: Option<MetadataValue<Ascii>>) {
    let shared = session.shared.clone();
    let mut request = Request::new(Requests(shared.clone(), session.number));
    if let Some(cluster) = cluster {
        request.metadata_mut().insert(CLUSTER, cluster);
    }
    let mut client = kv_client(channel);
    let opened = tokio::time::timeout(OPENED_WITHIN, client.pipeline(request)).await;
    let mut answers = match opened {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => {
            let pause = if status.code() == Code::Unimplemented { PAUSE_UNKNOWN } else { PAUSE };
            return session.end(pause, status.message());
        }
        Err(_) => return session.end(PAUSE, "it did not open"),
    };
    shared.lock().phase = Phase::Open;
    let why = loop {
        match answers.message().await {
            Ok(Some(v1::PipelineResponse { id, outcome: Some(Outcome::Closed(_)), .. })) => {
                // After its last word comes the end, or what is wrong.
                let rest = tokio::time::timeout(LAST_WITHIN, answers.message()).await;
                let wrong = rest.ok().and_then(Result::err);
                return session.ended(id, wrong.as_ref().map(Status::message));
            }
            Ok(Some(answer)) => {
                if let Some(waiting) = shared.remove(answer.id) {
                    // Who asked may have given up.
                    let _ = waiting.answer.send(Ok(answer));
                }
            }
            Ok(None) => break "the stream ended".to_string(),
            Err(status) => break status.message().to_string(),
        }
    };
    session.end(PAUSE, &why);
}

/// One pipeline from its opening on; ended when dropped, as by a runtime that stops.
struct Session {
    shared: Arc<Shared>,
    number: u64,
    ended: bool,
}

impl Session {
    fn end(mut self, pause: Duration, why: &str) {
        self.tell(pause, None, why);
    }

    /// The server has not read what comes after `read_up_to`: as planned, if nothing is wrong.
    fn ended(mut self, read_up_to: u64, wrong: Option<&str>) {
        let (pause, why) = match wrong {
            Some(wrong) => (PAUSE, wrong),
            None => (PAUSE_ENDED, "the node ended the stream"),
        };
        self.tell(pause, Some((read_up_to, wrong.is_none())), why);
    }

    /// Tells everybody who waits. `read`: up to which id the server has read, and whether it ended as planned.
    fn tell(&mut self, pause: Duration, read: Option<(u64, bool)>, why: &str) {
        self.ended = true;
        let mut state = self.shared.lock();
        state.phase = Phase::Unusable(Instant::now() + pause);
        // Its requests end with it.
        state.session += 1;
        state.queue.clear();
        state.bytes = 0;
        let waiting = std::mem::take(&mut state.waiting);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        for (id, Waiting { answer, sent, .. }) in waiting {
            let unread = read.filter(|(up_to, _)| id > *up_to);
            let sent = if unread.is_some() { Happened::No } else { sent };
            let is_unread = unread.is_some_and(|(_, is_planned)| is_planned);
            // Who asked may have given up.
            let _ = answer.send(Err(Lost { sent, is_unread, why: why.to_string() }));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.ended {
            self.tell(Duration::ZERO, None, "its task ended");
        }
    }
}

#[cfg(test)]
mod tests;
