//! One attempt at one call: within its deadline, and with a judgement of what a failure means.
//!
//! A failed write is [`Reason::OutcomeUnknown`] unless it surely did not take place: the server said so,
//! or the request never left (see [`Gate`]).

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::gate::{Gate, GatedChannel};
use crate::error::{self, Error, Happened, Reason};

/// What a call does to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
}

/// How long an attempt may take.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// What the server is told.
    pub grpc_timeout: Duration,
    /// A request that has not left by then is taken back.
    pub leaves_within: Duration,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// An attempt that failed.
#[derive(Debug)]
pub struct Failed {
    pub error: Error,
    /// The other side itself said so; otherwise it could not be reached, or was silent.
    pub answered: bool,
    /// The request may have left.
    pub has_left: bool,
    /// Of its answer.
    pub metadata: MetadataMap,
}

impl Failed {
    pub fn unanswered(error: Error, sent: Happened) -> Failed {
        let has_left = sent == Happened::Unknown;
        Failed { error, answered: false, has_left, metadata: MetadataMap::new() }
    }
}

/// Makes one attempt on one connection.
///
/// # Errors
/// What the server said, or [`Reason::Unavailable`], [`Reason::DeadlineExceeded`] or
/// [`Reason::OutcomeUnknown`] as far as can be told from here.
pub async fn attempt<M, R, S, F>(
    kind: Kind,
    channel: GatedChannel,
    mut request: Request<M>,
    limit: Limit,
    send: &S,
) -> Result<Response<R>, Failed>
where
    S: Fn(GatedChannel, Request<M>) -> F,
    F: Future<Output = Result<Response<R>, Status>>,
{
    let Limit { grpc_timeout, leaves_within, deadline } = limit;
    let gate = Gate::default();
    request.extensions_mut().insert(gate.clone());
    request.set_timeout(grpc_timeout);
    let answer = send(channel, request);
    tokio::pin!(answer);

    // Requests queue behind a connection that is being opened. One that has not left when it should
    // have been open is taken back, so that another endpoint gets it in time.
    let leaves_by = Instant::now() + leaves_within;
    let mut result = timeout_at(leaves_by.min(deadline), &mut answer).await;
    if result.is_err() && leaves_by < deadline {
        if gate.close() == Happened::No {
            let message = format!("no connection within {leaves_within:?}");
            return Err(Failed::unanswered(Error::new(Reason::Unavailable, message), Happened::No));
        }
        result = timeout_at(deadline, &mut answer).await;
    }
    let mut sent = gate.close();
    if matches!(&result, Ok(Err(status)) if was_not_taken_on(status)) {
        sent = Happened::No;
    }
    Err(match result {
        Ok(Ok(response)) => return Ok(response),
        Ok(Err(status)) => Failed {
            error: judge(kind, &status, sent, Instant::now() >= deadline),
            answered: std::error::Error::source(&status).is_none(),
            has_left: sent == Happened::Unknown,
            metadata: status.metadata().clone(),
        },
        Err(_) => Failed::unanswered(late(kind, sent), sent),
    })
}

/// The deadline passed without an answer.
pub fn late(kind: Kind, sent: Happened) -> Error {
    match (kind, sent) {
        (Kind::Write, Happened::Unknown) => Error::new(
            Reason::OutcomeUnknown,
            "no answer in time after the write was sent: it may have taken place, or may yet",
        ),
        (_, Happened::No) => Error::new(Reason::DeadlineExceeded, "the request could not be sent in time"),
        (Kind::Read, Happened::Unknown) => Error::new(Reason::DeadlineExceeded, "no answer in time"),
    }
}

/// What a failed attempt's status means. `sent`: whether the request may have left. A status with our
/// detail speaks for itself; one that the transport made has a source; the rest is a stranger's.
pub fn judge(kind: Kind, status: &Status, sent: Happened, is_late: bool) -> Error {
    let from_transport = std::error::Error::source(status).is_some();
    if is_late && from_transport {
        return late(kind, sent);
    }
    let harmless = kind == Kind::Read || sent == Happened::No;
    if from_transport && harmless && status.code() != Code::OutOfRange {
        let message = format!("the node can't be reached: {}", root_cause(status));
        return Error::new(Reason::Unavailable, message);
    }
    // OUT_OF_RANGE is what tonic calls an answer too large to decode: the write itself is done.
    if kind == Kind::Write && sent == Happened::Unknown && status.code() == Code::OutOfRange {
        return Error::new(Reason::OutcomeUnknown, format!("the answer can't be read: {}", status.message()));
    }
    let mut error = error::from_status(status, if harmless { Happened::No } else { Happened::Unknown });
    if from_transport {
        error.message = format!("{} ({})", error.message, root_cause(status));
    }
    error
}

/// Whether the server has closed the connection and named a last stream before this one's: it surely never took it on (RFC
/// 9113, 6.8). A request may be on its way when its server begins to stop; h2 says this to no other stream.
fn was_not_taken_on(status: &Status) -> bool {
    let mut cause: &dyn std::error::Error = status;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let of_http2: Option<&h2::Error> = cause.downcast_ref();
    of_http2.is_some_and(|error| {
        error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
    })
}

/// What is at the bottom of a transport's error: "Connection refused", not "transport error".
fn root_cause(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tonic::transport::Endpoint;

    use super::*;
    use crate::proto::v1::{PutRequest, kv_client::KvClient};

    const DATA: u8 = 0;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[0, 0, payload.len() as u8, kind, 0, 0, 0, 0, 0], payload].concat()
    }

    /// What a put comes to whose server reads it whole and then ends its connection, with `last_stream` taken on.
    async fn put_to_one_that_goes(last_stream: u32) -> Error {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async move {
            let (mut wire, _) = listener.accept().await.unwrap();
            wire.read_exact(&mut [0; 24]).await.unwrap();
            wire.write_all(&frame(SETTINGS, &[])).await.unwrap();
            let mut head = [0; 9];
            while wire.read_exact(&mut head).await.is_ok() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                wire.read_exact(&mut vec![0; length as usize]).await.unwrap();
                if head[3] == DATA {
                    let no_error = 0_u32;
                    let payload = [last_stream.to_be_bytes(), no_error.to_be_bytes()].concat();
                    wire.write_all(&frame(GOAWAY, &payload)).await.unwrap();
                    break;
                }
            }
        };
        let server = tokio::spawn(server);
        let channel = GatedChannel(Endpoint::new(format!("http://{address}")).unwrap().connect_lazy());
        let second = Duration::from_secs(1);
        let limit = Limit { grpc_timeout: second, leaves_within: second, deadline: Instant::now() + second };
        let put = |channel, request| async move { KvClient::new(channel).put(request).await };
        let failed = attempt(Kind::Write, channel, Request::new(PutRequest::default()), limit, &put).await;
        server.await.unwrap();
        failed.unwrap_err().error
    }

    #[tokio::test]
    async fn what_a_server_that_goes_did_not_take_on_surely_did_not_happen() {
        let error = put_to_one_that_goes(0).await;
        assert_eq!((error.reason, error.happened()), (Reason::Unavailable, Happened::No), "{error:?}");
        let error = put_to_one_that_goes(1).await;
        assert_eq!(error.happened(), Happened::Unknown, "{error:?}");
    }

    #[test]
    fn a_strangers_status_after_sending_leaves_a_write_unknown() {
        for code in
            [Code::Unavailable, Code::Cancelled, Code::Aborted, Code::DeadlineExceeded, Code::OutOfRange]
        {
            let status = Status::new(code, "proxy");
            let write = judge(Kind::Write, &status, Happened::Unknown, false);
            assert_eq!(write.reason, Reason::OutcomeUnknown, "{code:?}");
            let read = judge(Kind::Read, &status, Happened::Unknown, false);
            assert_ne!(read.reason, Reason::OutcomeUnknown, "{code:?}");
        }
    }
}
