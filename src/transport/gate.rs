//! Knowing whether a request left.
//!
//! A failed write is only surely not done if the server can't have got it. What the transport's errors
//! say about that is vague (a refused connection, one closed while idle and one closed in the middle of
//! an answer can look alike), so the client does not ask them: the request's body passes a [`Gate`] on
//! its way into the transport. While nothing has passed, the server has no message; and a closed gate
//! lets nothing pass any more, so an attempt given up before it left stays undone.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::Channel;

use crate::error::Happened;

const OPEN: u8 = 0;
const PASSED: u8 = 1;
const CLOSED: u8 = 2;

/// One attempt's gate. Invariant: it leaves [`OPEN`] once, to [`PASSED`] or to [`CLOSED`], and stays.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<AtomicU8>);

impl Gate {
    /// Closes the gate, and says whether the request may have left before.
    pub fn close(&self) -> Happened {
        match self.0.compare_exchange(OPEN, CLOSED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(CLOSED) => Happened::No,
            Err(_) => Happened::Unknown,
        }
    }

    /// Whether the request's next piece may leave.
    fn pass(&self) -> bool {
        !matches!(self.0.compare_exchange(OPEN, PASSED, Ordering::AcqRel, Ordering::Acquire), Err(CLOSED))
    }
}

/// A channel whose requests pass the [`Gate`] among their extensions.
#[derive(Debug, Clone)]
pub struct GatedChannel(pub Channel);

impl Service<http::Request<Body>> for GatedChannel {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match request.extensions().get::<Gate>().cloned() {
            Some(gate) => self.0.call(request.map(|body| Body::new(GatedBody { body, gate }))),
            None => self.0.call(request),
        }
    }
}

struct GatedBody {
    body: Body,
    gate: Gate,
}

impl http_body::Body for GatedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(_))) = &polled
            && !self.gate.pass()
        {
            return Poll::Ready(Some(Err(Status::cancelled("given up before it was sent"))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_nothing_pass() {
        let gate = Gate::default();
        assert_eq!(gate.close(), Happened::No);
        assert!(!gate.pass());
        assert_eq!(gate.close(), Happened::No, "nothing passed in between");
    }

    #[test]
    fn what_passed_stays_passed() {
        let gate = Gate::default();
        assert!(gate.pass());
        assert!(gate.pass(), "later pieces follow the first");
        assert_eq!(gate.close(), Happened::Unknown);
        assert!(gate.pass());
    }
}
