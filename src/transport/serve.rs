//! The receiving side: one stream of requests in, their answers out.
//!
//! A stream has no task of its own: HTTP/2 polls it for answers whenever it has room for some, and that
//! is when requests are read and worked on. So a peer that does not take its answers is not read from
//! either, and what it can make this node hold is bounded.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::Transport;
use super::handshake::{self, Accepted};
use super::link::wire;
use super::metrics::Incoming;
use super::options::Options;
use crate::limits::{PEER_FRAME_BYTES, PEER_FRAME_MESSAGES_MAX, PEER_MESSAGE_BYTES_MAX};
use crate::proto::v1;
use crate::raft::{Class, Inbox, Route};
use crate::types::{GroupId, NodeId, ReplicaId};

/// A refusal's text is cut after this many bytes: it is for a log line.
const REFUSAL_BYTES_MAX: usize = 512;

/// `rushkv.v1.Transport`, to be mounted on the node's gRPC port.
#[derive(Debug)]
pub struct Server {
    transport: Arc<Transport>,
    inbox: Arc<dyn Inbox>,
}

impl Server {
    pub(super) fn new(transport: Arc<Transport>, inbox: Arc<dyn Inbox>) -> Server {
        Server { transport, inbox }
    }
}

#[tonic::async_trait]
impl v1::transport_server::Transport for Server {
    type ExchangeStream = Answers;

    async fn exchange(&self, request: Request<Streaming<v1::Frame>>) -> Result<Response<Answers>, Status> {
        let transport = &self.transport;
        let refuse = |reason, status| {
            transport.metrics.refused(reason);
            Err(status)
        };
        if transport.is_stopping() {
            return Err(stopping());
        }
        let mut requests = request.into_inner();
        let Ok(first) = tokio::time::timeout(transport.options.handshake_timeout, requests.message()).await
        else {
            return refuse("malformed", Status::deadline_exceeded("the handshake did not arrive in time"));
        };
        let Some(v1::Frame { handshake: Some(theirs), messages }) = first? else {
            return refuse("malformed", Status::invalid_argument("the first frame holds no handshake"));
        };
        if !messages.is_empty() {
            return refuse("malformed", Status::invalid_argument("the first frame holds messages"));
        }
        let Some(local) = transport.local() else {
            return refuse("no_cluster", Status::unavailable("this node is in no cluster yet"));
        };
        let accepted = match handshake::check(&local, &theirs) {
            Ok(accepted) => accepted,
            Err(refusal) => {
                tracing::debug!(%refusal, "refused a handshake");
                return refuse(refusal.reason, Status::failed_precondition(refusal.why));
            }
        };
        let Accepted { from, class, protocol } = accepted;
        tracing::debug!(peer = %from, class = handshake::name(class), protocol, "accepted a connection");
        let incoming = Arc::new(Incomer {
            from,
            class,
            own: local.number,
            options: transport.options,
            metrics: transport.metrics.incoming(from, class),
            state: Mutex::new(State::Open(Box::new(Open {
                opening: Some(handshake::offer(&local, from, class)),
                requests: Some(requests),
                pending: FuturesUnordered::new(),
                pending_bytes: 0,
                inbox: self.inbox.clone(),
                waker: None,
            }))),
        });
        transport.incoming.replace(&incoming);
        // Either may have changed while this one was not among those that hear of it.
        if transport.is_stopping() || transport.local().as_deref() != Some(&*local) {
            transport.incoming.remove(&incoming);
            return Err(stopping());
        }
        transport.seen(from);
        Ok(Response::new(Answers { incoming, transport: transport.clone() }))
    }
}

fn stopping() -> Status {
    Status::unavailable("this node is stopping")
}

/// The incoming streams: one for each node and class, the newest. That is what keeps a message of an
/// older connection from arriving after one of a newer: taking over closes the older one, under the
/// lock under which it delivers.
#[derive(Debug, Default)]
pub(super) struct Incomers(Mutex<HashMap<(NodeId, Class), Arc<Incomer>>>);

impl Incomers {
    fn all(&self) -> MutexGuard<'_, HashMap<(NodeId, Class), Arc<Incomer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, new: &Arc<Incomer>) {
        let old = self.all().insert((new.from, new.class), new.clone());
        if let Some(old) = old {
            old.close(Status::aborted("a newer connection of the same node has taken over"));
        }
    }

    /// Closes one, if it is still the newest.
    fn remove(&self, old: &Arc<Incomer>) {
        let mut all = self.all();
        if all.get(&(old.from, old.class)).is_some_and(|newest| Arc::ptr_eq(newest, old)) {
            all.remove(&(old.from, old.class));
        }
        drop(all);
        old.close(stopping());
    }

    /// Closes all.
    pub(super) fn clear(&self, why: &str) {
        let all = std::mem::take(&mut *self.all());
        for incoming in all.into_values() {
            incoming.close(Status::unavailable(why));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all().len()
    }
}

/// One incoming stream.
#[derive(Debug)]
pub(super) struct Incomer {
    from: NodeId,
    class: Class,
    own: NodeId,
    options: Options,
    metrics: Incoming,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Open(Box<Open>),
    /// What its peer is to be told.
    Closed(Option<Status>),
}

struct Open {
    opening: Option<v1::Handshake>,
    /// `None` once the peer has sent its last.
    requests: Option<Streaming<v1::Frame>>,
    pending: FuturesUnordered<Pending>,
    pending_bytes: usize,
    inbox: Arc<dyn Inbox>,
    /// Of the task that polls for answers.
    waker: Option<Waker>,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("pending", &self.pending.len())
            .field("pending_bytes", &self.pending_bytes)
            .finish_non_exhaustive()
    }
}

impl Incomer {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic of the inbox is the only one that can happen under it; the stream goes on without.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers nothing any more from here on, and gives up what is being worked on.
    fn close(&self, status: Status) {
        let mut state = self.state();
        if let State::Open(_) = &*state {
            let old = std::mem::replace(&mut *state, State::Closed(Some(status)));
            drop(state);
            if let State::Open(open) = &old
                && let Some(waker) = &open.waker
            {
                waker.wake_by_ref();
            }
        }
    }

    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<v1::Frame, Status>>> {
        let mut state = self.state();
        let open = match &mut *state {
            State::Open(open) => open,
            State::Closed(status) => return Poll::Ready(status.take().map(Err)),
        };
        match ready!(self.poll_open(open, cx)) {
            Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
            end => {
                let old = std::mem::replace(&mut *state, State::Closed(None));
                drop(state);
                drop(old);
                Poll::Ready(end)
            }
        }
    }

    /// Reads what there is and there is room for, and gathers the answers that are ready.
    fn poll_open(&self, open: &mut Open, cx: &mut Context<'_>) -> Poll<Option<Result<v1::Frame, Status>>> {
        if let Some(opening) = open.opening.take() {
            return Poll::Ready(Some(Ok(v1::Frame { handshake: Some(opening), messages: Vec::new() })));
        }
        let mut answers = Vec::new();
        let mut bytes = 0;
        loop {
            while answers.len() < PEER_FRAME_MESSAGES_MAX && bytes < PEER_FRAME_BYTES {
                let Poll::Ready(Some((held, answer))) = open.pending.poll_next_unpin(cx) else { break };
                open.pending_bytes -= held;
                bytes += answer.body.len() + answer.refusal.len();
                answers.push(answer);
            }
            let full = answers.len() >= PEER_FRAME_MESSAGES_MAX || bytes >= PEER_FRAME_BYTES;
            let busy = open.pending.len() >= self.options.in_flight_messages_max
                || open.pending_bytes >= self.options.in_flight_bytes_max(self.class);
            let Some(requests) = open.requests.as_mut().filter(|_| !full && !busy) else { break };
            match requests.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Err(why) = self.deliver(open, frame) {
                        tracing::warn!(peer = %self.from, class = handshake::name(self.class), why,
                            "closing a connection: its frames make no sense");
                        return Poll::Ready(Some(Err(Status::invalid_argument(why))));
                    }
                }
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                Poll::Ready(None) => open.requests = None,
                Poll::Pending => break,
            }
        }
        if !answers.is_empty() {
            return Poll::Ready(Some(Ok(v1::Frame { handshake: None, messages: answers })));
        }
        if open.requests.is_none() && open.pending.is_empty() {
            return Poll::Ready(None);
        }
        match &mut open.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Hands a frame's messages to the inbox, in their order; none of them if one makes no sense.
    fn deliver(&self, open: &mut Open, frame: v1::Frame) -> Result<(), String> {
        if frame.handshake.is_some() {
            return Err("a second handshake".to_string());
        }
        let count = frame.messages.len();
        if count == 0 || count > PEER_FRAME_MESSAGES_MAX {
            return Err(format!("a frame of {count} messages; 1 to {PEER_FRAME_MESSAGES_MAX} are allowed"));
        }
        for message in &frame.messages {
            let (from, to) = (ReplicaId(message.from), ReplicaId(message.to));
            if from.node() != self.from || to.node() != self.own {
                let (peer, own) = (self.from, self.own);
                return Err(format!(
                    "a message from {} to {} on the connection from {peer} to {own}",
                    from.node(),
                    to.node()
                ));
            }
            if message.body.len() > PEER_MESSAGE_BYTES_MAX || !message.refusal.is_empty() {
                return Err(format!(
                    "no request: {} bytes, refusal {:?}",
                    message.body.len(),
                    message.refusal
                ));
            }
        }
        self.metrics.frames.inc();
        self.metrics.messages.inc_by(count as u64);
        let mut bytes = 0;
        for message in frame.messages {
            let held = message.body.len();
            bytes += held;
            let route = Route {
                group: GroupId(message.group),
                from: ReplicaId(message.from),
                to: ReplicaId(message.to),
            };
            let answer = open.inbox.receive(route, self.class, message.body);
            open.pending.push(Pending { request: message.request, route, held, answer });
        }
        open.pending_bytes += bytes;
        self.metrics.bytes.inc_by(bytes as u64);
        Ok(())
    }
}

/// A request that is being worked on; resolves with what it held, in bytes, and its answer.
struct Pending {
    request: u64,
    route: Route,
    held: usize,
    answer: BoxFuture<'static, Result<Bytes, String>>,
}

impl Future for Pending {
    type Output = (usize, v1::Message);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(usize, v1::Message)> {
        let answer = match ready!(self.answer.as_mut().poll(cx)) {
            Ok(body) if body.len() > PEER_MESSAGE_BYTES_MAX => {
                Err(format!("the answer has {} bytes; the limit is {PEER_MESSAGE_BYTES_MAX}", body.len()))
            }
            other => other,
        };
        let (body, refusal) = match answer {
            Ok(body) => (body, String::new()),
            Err(why) if why.is_empty() => (Bytes::new(), "no reason given".to_string()),
            Err(why) => (Bytes::new(), shortened(why)),
        };
        let message = v1::Message { refusal, ..wire(self.request, self.route, body) };
        Poll::Ready((self.held, message))
    }
}

fn shortened(mut why: String) -> String {
    why.truncate(why.floor_char_boundary(REFUSAL_BYTES_MAX));
    why
}

/// The answers to one incoming stream.
#[derive(Debug)]
pub struct Answers {
    incoming: Arc<Incomer>,
    transport: Arc<Transport>,
}

impl Stream for Answers {
    type Item = Result<v1::Frame, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.incoming.poll_frame(cx)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.transport.incoming.remove(&self.incoming);
    }
}
