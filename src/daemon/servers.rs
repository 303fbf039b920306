//! The node and its servers, as the lifecycle drives them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use tokio::net::TcpListener;

use super::lifecycle::{Servers, Stop, Work, stopped};
use crate::error::Result;
use crate::limits;
use crate::metrics::Grpc;
use crate::node::{Deadline, Node, Problem};
use crate::service::{grpc, http};

/// How long calls under way have to finish: as long as a call takes by default.
pub const DRAIN: Duration = limits::CALL_DEADLINE_DEFAULT;

impl Work for Node {
    fn problems(&self) -> Vec<Problem> {
        Node::problems(self)
    }

    fn failed(&self) -> impl Future<Output = String> + Send {
        Node::failed(self)
    }

    fn probe(&self) -> impl Future<Output = Result<()>> + Send {
        Node::probe(self)
    }

    fn starts_anew(&self) -> impl Future<Output = ()> + Send {
        Node::starts_anew(self)
    }

    fn hand_over(&self, deadline: Deadline) -> impl Future<Output = ()> + Send {
        Node::hand_over(self, deadline)
    }

    fn shutdown(&self, deadline: Deadline) -> impl Future<Output = Result<()>> + Send {
        Node::shutdown(self, deadline)
    }

    async fn status(&self) -> String {
        let info = match self.cluster_info().await {
            Ok(info) => info,
            Err(error) => return format!("serving; the cluster can't be told: {error}"),
        };
        let own = &info.answered_by;
        let held = info.partitions.iter().filter(|p| p.replicas.iter().any(|r| r.node == *own)).count();
        let led = info.partitions.iter().filter(|p| p.leader.as_deref() == Some(own)).count();
        format!("serving {held} partitions, {led} led")
    }
}

/// Starts the gRPC server and, where there is a listener for it, the HTTP one. They end together.
pub fn start(
    node: Arc<Node>,
    grpc_listener: TcpListener,
    http_listener: Option<TcpListener>,
    metrics: Arc<Grpc>,
    registry: Registry,
    connections_max: usize,
    stop: Stop,
) -> Servers {
    let serve_http = {
        let (node, stop) = (node.clone(), stop.clone());
        async move {
            match http_listener {
                Some(listener) => http::serve(listener, node, registry, stopped(stop)).await,
                None => {
                    stopped(stop).await;
                    Ok(())
                }
            }
        }
    };
    let serve_grpc = async move {
        let options = grpc::Options { connections_max, drain: DRAIN, ..grpc::Options::default() };
        grpc::serve(grpc_listener, node, metrics, options, stopped(stop)).await
    };
    tokio::spawn(async move {
        // The first error ends both: half a server helps nobody.
        tokio::try_join!(
            async { serve_grpc.await.map_err(|error| format!("the gRPC server failed: {error}")) },
            async { serve_http.await.map_err(|error| format!("the HTTP server failed: {error}")) },
        )
        .map(|_| ())
    })
}
