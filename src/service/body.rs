//! The body of every request, bounded in time and in memory. That of answers is in [`super::answer`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;

use super::share::{Connection, NoRoom, Taken};
use crate::error::{Error, Reason, to_status};
use crate::limits::CALL_DEADLINE_DEFAULT;

/// What one call holds until it has ended: its place among the calls under way, and its request's bytes.
#[derive(Debug)]
pub(super) struct Held {
    call: Taken,
    bytes: Taken,
}

impl Held {
    pub fn new(of: &Connection) -> Held {
        Held { call: of.calls.nothing(), bytes: of.requests.nothing() }
    }

    /// Takes a place among the calls under way.
    pub fn begin(&self) -> Result<(), Error> {
        self.call.more(1).map_err(|NoRoom { total, own, part, max }| {
            let message = format!(
                "{total} calls are under way, {own} of them of this connection, which may have {part} for now; \
                 the limit for all is {max}"
            );
            Error::new(Reason::Overloaded, message)
        })
    }

    fn add(&self, bytes: usize) -> Result<(), Status> {
        add(&self.bytes, bytes)
    }
}

fn add(held: &Taken, bytes: usize) -> Result<(), Status> {
    held.more(bytes).map_err(|NoRoom { total, own, part, max }| {
        let message = format!(
            "requests under way hold {total} bytes, {own} of them of this connection, which may hold {part} for now; \
             the limit for all is {max}"
        );
        to_status(&Error::new(Reason::Overloaded, message))
    })
}

/// A request's body. Fails when it has not arrived by the deadline: a client that dribbles its
/// request can't hold a call open.
#[derive(Debug)]
pub(super) struct RequestBody<B = Incoming> {
    inner: B,
    bound: Bound,
    /// Made when the body is first waited for; most requests are there at once.
    late: Option<Pin<Box<Sleep>>>,
}

/// What bounds a body.
#[derive(Debug)]
enum Bound {
    /// It is one request.
    Request(Arc<Held>, Instant),
    /// It has no end, and its service bounds what is decoded.
    Messages(Arc<Arrived>),
    /// It has no end, and its service bounds it itself.
    None,
}

/// How long a message of a body without an end may take to arrive.
const MESSAGE_WITHIN: Duration = CALL_DEADLINE_DEFAULT;

/// Of a body without an end, the bytes of the message that is not whole yet, up to a frame of HTTP/2 less: what came in
/// one frame with the end of the message before it is not counted.
#[derive(Debug)]
pub(super) struct Arrived {
    bytes: Taken,
    /// The message that is waited for may take all its time again.
    anew: AtomicBool,
}

impl Arrived {
    pub fn new(of: &Connection) -> Arrived {
        Arrived { bytes: of.requests.nothing(), anew: AtomicBool::new(false) }
    }

    /// A message was decoded: its service counts it from here on. Returns the bytes that were, those of a frame's other
    /// messages included.
    pub fn decoded(&self) -> usize {
        self.held_up();
        self.bytes.give_back()
    }

    /// The service did not read, which is not the client's fault.
    pub fn held_up(&self) {
        self.anew.store(true, Ordering::Relaxed);
    }
}

impl<B> RequestBody<B> {
    pub fn new(inner: B, held: Arc<Held>, deadline: Instant) -> RequestBody<B> {
        RequestBody { inner, bound: Bound::Request(held, deadline), late: None }
    }

    /// Messages without an end, whose service says when it has decoded one.
    pub fn messages(inner: B, arrived: Arc<Arrived>) -> RequestBody<B> {
        RequestBody { inner, bound: Bound::Messages(arrived), late: None }
    }

    /// A stream without an end, whose service reads it only as fast as it can do what it asks.
    pub fn endless(inner: B) -> RequestBody<B> {
        RequestBody { inner, bound: Bound::None, late: None }
    }

    fn count(&self, bytes: usize) -> Result<(), Status> {
        match &self.bound {
            Bound::Request(held, _) => held.add(bytes),
            Bound::Messages(arrived) => add(&arrived.bytes, bytes),
            Bound::None => Ok(()),
        }
    }

    /// By when the next bytes have to come.
    fn deadline(&self) -> Option<Instant> {
        match &self.bound {
            Bound::Request(_, deadline) => Some(*deadline),
            Bound::Messages(arrived) => (arrived.bytes.amount() > 0).then(|| Instant::now() + MESSAGE_WITHIN),
            Bound::None => None,
        }
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Bound::Messages(arrived) = &self.bound
            && arrived.anew.swap(false, Ordering::Relaxed)
        {
            self.late = None;
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                Poll::Ready(Some(self.count(bytes).map(|()| frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Status::from_error(Box::new(error))))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                if self.late.is_none() {
                    self.late = self.deadline().map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
                }
                let Some(late) = &mut self.late else { return Poll::Pending };
                late.as_mut().poll(cx).map(|()| {
                    let error = Error::new(
                        Reason::DeadlineExceeded,
                        "the deadline passed before the request arrived",
                    );
                    Some(Err(to_status(&error)))
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::super::grpc::Options;
    use super::super::share::Pools;
    use super::*;
    use crate::limits::REQUEST_BYTES_MAX;

    /// Gives one chunk, then nothing for ever.
    struct Dribble(Option<Bytes>);

    impl Body for Dribble {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match self.0.take() {
                Some(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
                None => Poll::Pending,
            }
        }
    }

    async fn frame(body: &mut RequestBody<Dribble>) -> Result<usize, Status> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        frame.expect("it never ends").map(|frame| frame.data_ref().map_or(0, Bytes::len))
    }

    fn connection() -> Arc<Connection> {
        let held = prometheus::IntGauge::new("held", "In answers.").unwrap();
        Pools::new(&Options::default(), held).connection()
    }

    #[tokio::test]
    async fn a_request_that_does_not_arrive_fails_at_its_deadline() {
        let connection = connection();
        let held = Arc::new(Held::new(&connection));
        let deadline = Instant::now() + std::time::Duration::from_millis(20);
        let mut body = RequestBody::new(Dribble(Some(Bytes::from_static(b"half"))), held, deadline);
        assert_eq!(frame(&mut body).await.unwrap(), 4);
        assert_eq!(connection.requests.total(), 4);
        assert_eq!(frame(&mut body).await.unwrap_err().code(), Code::DeadlineExceeded);
        drop(body);
        assert_eq!(connection.requests.total(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_arrive_fails_and_what_was_decoded_does_not_count() {
        let connection = connection();
        let arrived = Arc::new(Arrived::new(&connection));
        let mut body = RequestBody::messages(Dribble(Some(Bytes::from_static(b"whole"))), arrived.clone());
        assert_eq!(frame(&mut body).await.unwrap(), 5);
        assert_eq!(arrived.decoded(), 5);
        let idle = tokio::time::timeout(10 * MESSAGE_WITHIN, frame(&mut body)).await;
        assert!(idle.is_err(), "between messages it may wait as long as it likes");
        assert_eq!(connection.requests.total(), 0);
        body.inner = Dribble(Some(Bytes::from_static(b"half")));
        assert_eq!(frame(&mut body).await.unwrap(), 4);
        assert_eq!(connection.requests.total(), 4);
        assert_eq!(frame(&mut body).await.unwrap_err().code(), Code::DeadlineExceeded);
        drop((body, arrived));
        assert_eq!(connection.requests.total(), 0);
    }

    #[tokio::test]
    async fn requests_over_the_memory_bound_are_refused_and_give_back_what_they_held() {
        let connection = connection();
        let part = REQUEST_BYTES_MAX / 5;
        let others = connection.requests.take_anyway(part - 3);
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        let body = |chunk: &'static [u8]| {
            let held = Arc::new(Held::new(&connection));
            RequestBody::new(Dribble(Some(Bytes::from_static(chunk))), held, deadline)
        };
        let mut fits = body(b"fits");
        assert_eq!(frame(&mut fits).await.unwrap(), 4);
        let status = frame(&mut body(b"x")).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(connection.requests.total(), part + 1);
        drop(fits);
        assert_eq!(frame(&mut body(b"x")).await.unwrap(), 1);
        drop(others);
        assert_eq!(connection.requests.total(), 0);
    }
}
