//! Closing a connection so that its last word arrives.
//!
//! A socket that is closed while something unread is there, or before more comes, answers with a reset, and a client
//! that is reset may never see what was sent to it before: neither its answers nor which of its calls were not taken on.
//! So the sending half is closed first, and what still comes is read until the client closes, too (RFC 9112, 9.6,
//! has it for HTTP/1).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::oneshot;

/// The receiving half of a connection, which comes back when it is dropped.
pub(super) struct Lent {
    half: Option<OwnedReadHalf>,
    back: Option<oneshot::Sender<OwnedReadHalf>>,
}

/// Where it comes back to.
pub(super) struct GivenBack(oneshot::Receiver<OwnedReadHalf>);

pub(super) fn lend(half: OwnedReadHalf) -> (Lent, GivenBack) {
    let (back, given_back) = oneshot::channel();
    (Lent { half: Some(half), back: Some(back) }, GivenBack(given_back))
}

impl GivenBack {
    /// Reads, and drops, what still comes until the client closes, or breaks off, for `within` at most.
    pub(super) async fn read_to_end(self, within: Duration) {
        let rest = async {
            if let Ok(mut half) = self.0.await {
                let _ = tokio::io::copy(&mut half, &mut tokio::io::sink()).await;
            }
        };
        let _ = tokio::time::timeout(within, rest).await;
    }
}

impl AsyncRead for Lent {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.half {
            Some(half) => Pin::new(half).poll_read(cx, buf),
            // Only a drop takes it.
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(half), Some(back)) = (self.half.take(), self.back.take()) {
            // Nobody waits for it unless the connection was ended as planned.
            let _ = back.send(half);
        }
    }
}
