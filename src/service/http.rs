//! The HTTP port: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever starts and routes.
//!
//! Live means that every loop of the node still turns: if not, a restart is the remedy. Ready means
//! that the node serves all it should: if not, time or an operator is.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::codegen::Service as _;

use super::Backend;
use super::listen::{self, Full};
use crate::metrics;

/// How long the node's loops have for `/livez`: they don't wait for the disk, but a busy machine may
/// keep them from the processor for a while.
const PROBE_MAX: Duration = Duration::from_secs(5);

/// Connections at once: a few scrapers and probes. One more, and the oldest is cut for it: a crowd that says
/// nothing, or reads nothing, must not keep a supervisor from its probe.
const CONNECTIONS_MAX: usize = 64;

/// How long a client may take for a request's headers; also how long it may keep an idle connection.
const HEADERS_MAX: Duration = Duration::from_secs(30);

/// Most bytes of a request: it has a path and headers only.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// How long requests under way may take after the shutdown began.
const DRAIN: Duration = Duration::from_secs(1);

struct Shared<N> {
    node: Arc<N>,
    registry: Registry,
}

/// Serves until `shutdown`.
///
/// # Errors
/// None so far; the listener's errors are logged and outlived.
pub async fn serve<N: Backend>(
    listener: TcpListener,
    node: Arc<N>,
    registry: Registry,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let router = router(node, registry);
    let (stopping, _) = watch::channel(false);
    let refused = || tracing::debug!("an HTTP connection was cut for a newer one: there were too many");
    let serve_one = |stream, stopping| connection(stream, router.clone(), stopping);
    listen::run(listener, (CONNECTIONS_MAX, Full::CutOldest), DRAIN, stopping, shutdown, refused, serve_one)
        .await;
    Ok(())
}

fn router<N: Backend>(node: Arc<N>, registry: Registry) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text::<N>))
        .route("/livez", get(livez::<N>))
        .route("/readyz", get(readyz::<N>))
        .with_state(Arc::new(Shared { node, registry }))
}

async fn connection(stream: TcpStream, router: Router, stopping: watch::Receiver<bool>) {
    let service = service_fn(move |request| router.clone().call(request));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_MAX).max_buf_size(REQUEST_BYTES_MAX);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = listen::stopped(stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection broke");
    }
}

async fn metrics_text<N: Backend>(State(shared): State<Arc<Shared<N>>>) -> Response {
    match metrics::text(&shared.registry) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn livez<N: Backend>(State(shared): State<Arc<Shared<N>>>) -> (StatusCode, String) {
    live(&*shared.node, PROBE_MAX).await
}

async fn live<N: Backend>(node: &N, max: Duration) -> (StatusCode, String) {
    match tokio::time::timeout(max, node.probe()).await {
        Ok(Ok(())) => (StatusCode::OK, "ok\n".into()),
        Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        Err(_) => {
            let message = format!("the node's loops did not answer within {} s\n", max.as_secs_f64());
            (StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }
}

async fn readyz<N: Backend>(State(shared): State<Arc<Shared<N>>>) -> (StatusCode, String) {
    let problems = shared.node.problems();
    if problems.is_empty() {
        return (StatusCode::OK, "ok\n".into());
    }
    let lines = problems.iter().map(|problem| format!("{}: {}\n", problem.reason, problem.message));
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::fake::Fake;

    #[tokio::test]
    async fn a_node_whose_loops_stand_still_is_not_live() {
        let node = Fake::default();
        assert_eq!(live(&node, PROBE_MAX).await.0, StatusCode::OK);
        node.stalled.store(true, std::sync::atomic::Ordering::Relaxed);
        let (status, text) = live(&node, Duration::from_millis(20)).await;
        assert_eq!(
            (status, text.as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "the node's loops did not answer within 0.02 s\n",)
        );
    }
}
