//! The gRPC port.
//!
//! Served on hyper directly and not by tonic's own server, because that one answers `CANCELLED` at a
//! client's deadline by itself and drops the call: a write under way would end without a word on
//! whether it took place. It also has no bound on connections and no deadline for draining.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::codegen::http::{Request, Response, StatusCode, header};
use tonic::codegen::{BoxFuture, Service as _};
use tonic::{Code, Status};

use super::answer::{self, AnswerBody, Tasks};
use super::body::{Arrived, Held, RequestBody};
use super::deadline::Clock;
use super::pipeline::Stopping;
use super::share::{Connection, Pools};
use super::{Backend, cluster, debug, health, kv, linger, listen, original, peer};
use crate::error::{Error, Reason, to_status};
use crate::limits;
use crate::metrics;
use crate::proto::original::rush_kv_server::RushKvServer;
use crate::proto::v1::cluster_server::ClusterServer;
use crate::proto::v1::debug_server::DebugServer;
use crate::proto::v1::kv_server::KvServer;
use crate::proto::v1::peer_server::PeerServer;

/// What may be set for one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    pub connections_max: usize,
    pub calls_max: usize,
    pub scans_max: usize,
    /// Bytes of answers that their clients have not taken yet.
    pub answer_bytes_max: usize,
    /// An answer of which nothing is taken for this long is cut.
    pub answer_idle: Duration,
    /// How long calls under way may take after the shutdown began; then their connections are cut.
    pub drain: Duration,
    /// A connection that has not begun to speak HTTP/2 by then is closed.
    pub handshake: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connections_max: limits::CONNECTIONS_MAX,
            calls_max: limits::CALLS_MAX,
            scans_max: limits::SCANS_MAX,
            answer_bytes_max: limits::ANSWER_BYTES_MAX,
            answer_idle: limits::ANSWER_IDLE_MAX,
            drain: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
        }
    }
}

/// What every HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An idle connection is asked for a sign of life this often, and closed when none comes in time.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream's flow-control window, in bytes: it holds the largest value, so that a put of one does not
/// wait for a round trip.
const STREAM_WINDOW: u32 = 1024 * 1024 + 64 * 1024;

/// Streams that a client reset before they were accepted (CVE-2023-44487), and streams that we reset
/// for its errors (CVE-2025-8671); beyond, the connection is closed.
const PENDING_RESETS_MAX: usize = 20;
const ERROR_RESETS_MAX: usize = 1024;

/// A client that was told of the stop closes at once; others are cut off after this.
const LINGER_MAX: Duration = Duration::from_secs(1);

/// The messages of consensus: a stream each way for as long as two nodes know each other.
const EXCHANGE: &str = "/rushkv.v1.Transport/Exchange";

/// Many calls, each with its own end: it ends when those under way have.
const PIPELINE: &str = "/rushkv.v1.Kv/Pipeline";

/// Calls whose answer has no end of its own: they end when the server stops.
const ENDLESS: [&str; 5] = [
    EXCHANGE,
    "/rushkv.v1.Cluster/WatchTopology",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Serves until `shutdown`, then lets the calls under way end, for `options.drain` at most.
///
/// # Errors
/// If the interface's own description can't be read, which is a bug of the build.
pub async fn serve<N: Backend>(
    listener: TcpListener,
    node: Arc<N>,
    metrics: Arc<metrics::Grpc>,
    options: Options,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let (stopping, stopped) = watch::channel(false);
    let health = health::Health::new(node.clone()).await;
    let dispatch = Arc::new(Dispatch::new(node, &health, metrics.clone(), options, stopped)?);

    let shutdown = async {
        tokio::select! {
            () = shutdown => {}
            () = health.watch() => {}
        }
        // Before anything is closed, so that those who watch hear of it.
        health.stop().await;
    };
    let refused = || metrics.connection_refused("limit");
    let serve_one = |stream, stopping| connection(stream, dispatch.clone(), stopping);
    let cut_off = listen::run(
        listener,
        (options.connections_max, listen::Full::RefuseNew),
        options.drain,
        stopping,
        shutdown,
        refused,
        serve_one,
    )
    .await;
    if cut_off > 0 {
        tracing::warn!(connections = cut_off, "connections were cut off at the end of the drain");
    }
    Ok(())
}

/// Serves one connection to its end.
async fn connection(mut stream: TcpStream, dispatch: Arc<Dispatch>, stopping: watch::Receiver<bool>) {
    let open = dispatch.metrics.connections.clone();
    open.inc();
    let _open = Guard(move || open.dec());

    // Read here, because hyper waits for it without an end, and so that anything that is not HTTP/2
    // (a scanner, a browser, a client of another protocol) is closed without a word.
    let preface = tokio::select! {
        read = tokio::time::timeout(dispatch.options.handshake, preface(&mut stream)) => read,
        () = listen::stopped(stopping.clone()) => return,
    };
    match preface {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => return dispatch.metrics.connection_refused("not_http2"),
        // It closed or broke before it said anything: a port check.
        Ok(Err(_)) => return,
        Err(_) => return dispatch.metrics.connection_refused("silent"),
    }
    let (read, write) = stream.into_split();
    let (read, given_back) = linger::lend(read);
    let io = tokio::io::join(AsyncReadExt::chain(&PREFACE[..], read), write);

    let idle = dispatch.options.answer_idle;
    let answers_cut = dispatch.metrics.answers_cut.clone();
    let own = dispatch.pools.connection();
    let lingering = own.lingering.clone();
    let mut builder = hyper::server::conn::http2::Builder::new(Tasks { idle, cut: answers_cut.clone() });
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION_MAX)
        .max_header_list_size(limits::HEADER_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(ERROR_RESETS_MAX);
    let service = service_fn(move |request| dispatch.clone().call(request, own.clone()));
    let connection = builder.serve_connection(TokioIo::new(io), service);
    // Whether it was ended as planned. The connection, and with it the half that it writes to, is gone after that.
    let served = async {
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => ended.map(|()| false),
            () = listen::stopped(stopping) => {
                connection.as_mut().graceful_shutdown();
                connection.await.map(|()| true)
            }
        }
    };
    tokio::select! {
        ended = served => match ended {
            Ok(true) => given_back.read_to_end(LINGER_MAX).await,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "a connection broke"),
        },
        // Twice as long: the streams that can be reset by themselves were, by then.
        count = lingering.stuck(idle * 2) => {
            answers_cut.inc_by(count as u64);
            tracing::debug!(count, "a connection was cut: its client does not take its answers");
        }
    }
}

/// Reads the preface; false as soon as it is something else.
async fn preface(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<bool> {
    let mut read = [0; PREFACE.len()];
    let mut len = 0;
    while len < PREFACE.len() {
        let count = stream.read(&mut read[len..]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        len += count;
        if read[..len] != PREFACE[..len] {
            return Ok(false);
        }
    }
    Ok(true)
}

type Handler =
    Box<dyn Fn(Request<RequestBody>) -> BoxFuture<Response<tonic::body::Body>, Infallible> + Send + Sync>;

/// Every service by its name, and what all calls share.
struct Dispatch {
    services: HashMap<&'static str, Handler>,
    metrics: Arc<metrics::Grpc>,
    pools: Pools,
    options: Options,
    stopping: watch::Receiver<bool>,
}

/// A service as a function of its requests.
macro_rules! handler {
    ($server:expr) => {{
        let server = $server;
        Box::new(move |request: Request<RequestBody>| server.clone().call(request)) as Handler
    }};
}

impl Dispatch {
    fn new<N: Backend>(
        node: Arc<N>,
        health: &Arc<health::Health<N>>,
        metrics: Arc<metrics::Grpc>,
        options: Options,
        stopping: watch::Receiver<bool>,
    ) -> io::Result<Dispatch> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(crate::proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let pools = Pools::new(&options, metrics.answer_bytes.clone());
        let kv = kv::Service::new(node.clone(), metrics.clone());
        let max = limits::DECODE_BYTES_MAX;
        let mut services: Vec<(&'static str, Handler)> = vec![
            (
                "rushkv.RushKV",
                handler!(
                    RushKvServer::new(original::Service::new(node.clone())).max_decoding_message_size(max)
                ),
            ),
            ("rushkv.v1.Kv", handler!(KvServer::new(kv).max_decoding_message_size(max))),
            (
                "rushkv.v1.Cluster",
                handler!(
                    ClusterServer::new(cluster::Service::new(node.clone())).max_decoding_message_size(max)
                ),
            ),
            ("grpc.health.v1.Health", handler!(health.service())),
            (
                "grpc.reflection.v1.ServerReflection",
                handler!(reflection().build_v1().map_err(io::Error::other)?),
            ),
            (
                "grpc.reflection.v1alpha.ServerReflection",
                handler!(reflection().build_v1alpha().map_err(io::Error::other)?),
            ),
        ];
        if let Some(node) = node.peer() {
            let transport = node.transport().server(node.clone());
            services.push(("rushkv.v1.Transport", handler!(transport)));
            let debug = DebugServer::new(debug::Service::new(node.clone())).max_decoding_message_size(max);
            services.push(("rushkv.v1.Debug", handler!(debug)));
            let peers = PeerServer::new(peer::Service::new(node)).max_decoding_message_size(max);
            services.push(("rushkv.v1.Peer", handler!(peers)));
        }
        Ok(Dispatch { services: services.into_iter().collect(), metrics, pools, options, stopping })
    }

    async fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Result<Response<AnswerBody>, Infallible> {
        let path = request.uri().path();
        let call = self.metrics.call(path);
        let held = Arc::new(Held::new(&connection));
        let endless = ENDLESS.contains(&path);
        let bound = answer::bound(path);
        let answer = match bound.room.map_or(Ok(()), |room| connection.answers.room(room)) {
            Ok(()) => self.answer(request, &connection, &held).await,
            Err(error) => to_status(&error).into_http(),
        };
        let (parts, body) = answer.into_parts();
        let stopping = endless.then(|| self.stopping.clone());
        let answer = (&parts.headers, body);
        let body = AnswerBody::new(answer, call, held, &connection, bound.refusable, stopping);
        Ok(Response::from_parts(parts, body))
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        connection: &Arc<Connection>,
        held: &Arc<Held>,
    ) -> Response<tonic::body::Body> {
        let grpc = |value: &header::HeaderValue| value.as_bytes().starts_with(b"application/grpc");
        if !request.headers().get(header::CONTENT_TYPE).is_some_and(grpc) {
            // As the gRPC protocol has it.
            let mut answer = Response::new(tonic::body::Body::empty());
            *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return answer;
        }
        let refuse = |reason, message: String| to_status(&Error::new(reason, message)).into_http();
        let path = request.uri().path();
        let service =
            path.strip_prefix('/').and_then(|path| path.split_once('/')).map(|(service, _)| service);
        let Some((service, handler)) = service.and_then(|name| self.services.get_key_value(name)) else {
            return refuse(Reason::Unimplemented, format!("this server has no call {path:?}"));
        };
        if path == EXCHANGE {
            // Bounded by the transport itself, and never refused: consensus must go on.
            return match handler(request.map(RequestBody::endless)).await {
                Ok(answer) => answer,
                Err(never) => match never {},
            };
        }
        // Health is asked most urgently when there is too much to do.
        if !service.starts_with("grpc.")
            && let Err(error) = held.begin()
        {
            return to_status(&error).into_http();
        }
        if path == PIPELINE {
            let arrived = Arc::new(Arrived::new(connection));
            let mut request = request.map(|body| RequestBody::messages(body, arrived.clone()));
            request.extensions_mut().insert(arrived);
            request.extensions_mut().insert(connection.clone());
            request.extensions_mut().insert(Stopping(self.stopping.clone()));
            return match handler(request).await {
                Ok(answer) => explained(answer),
                Err(never) => match never {},
            };
        }
        let clock = Clock::start(request.headers());
        let deadline = clock.limit(limits::CALL_DEADLINE_DEFAULT, limits::CALL_DEADLINE_MAX).answer;
        let mut request = request.map(|body| RequestBody::new(body, held.clone(), deadline));
        request.extensions_mut().insert(clock);
        request.extensions_mut().insert(connection.clone());
        match handler(request).await {
            Ok(answer) if service.starts_with("grpc.") => answer,
            Ok(answer) => explained(answer),
            Err(never) => match never {},
        }
    }
}

/// Our services give every error a detail. A failure without one is tonic's, made before a service
/// was reached (a request too large to decode, or that is no message of ours): it gets a detail too,
/// so that a client knows that nothing happened.
fn explained(answer: Response<tonic::body::Body>) -> Response<tonic::body::Body> {
    let Some(status) = Status::from_header_map(answer.headers()) else { return answer };
    if status.code() == Code::Ok || !status.details().is_empty() {
        return answer;
    }
    let reason = match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => Reason::TooLarge,
        Code::Unimplemented => Reason::Unimplemented,
        _ => Reason::InvalidArgument,
    };
    let message = match reason {
        Reason::TooLarge => format!("the request is too large to be read: {}", status.message()),
        Reason::Unimplemented => format!("this server has no such call: {}", status.message()),
        _ => format!("the request can't be read: {}", status.message()),
    };
    to_status(&Error::new(reason, message)).into_http()
}

/// Runs something when dropped.
struct Guard<F: FnMut()>(F);

impl<F: FnMut()> Drop for Guard<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
