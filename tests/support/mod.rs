//! A whole node in this process: its data in a temporary directory, both ports on loopback.

#![allow(dead_code)] // each test file uses a part of it

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rushkv::metrics::{self, Metrics};
use rushkv::node::{Formation, Node, Options};
use rushkv::service::{grpc, http};
use rushkv::storage;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// How long a node may take to start, or to stop.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Engines that keep what they are given; every test of the interface holds on both.
pub const ENGINES: [storage::Kind; 2] = [storage::Kind::Fjall, storage::Kind::Sled];

pub struct TestNode {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub node: Arc<Node>,
    stop: watch::Sender<bool>,
    servers: JoinSet<()>,
}

impl TestNode {
    /// Starts a node on `data_dir` and waits until it serves.
    pub async fn start(data_dir: &Path, engine: storage::Kind) -> TestNode {
        let metrics = Metrics::new();
        let grpc_metrics = metrics::Grpc::register(&metrics.registry).unwrap();
        let grpc_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (grpc, http) = (grpc_listener.local_addr().unwrap(), http_listener.local_addr().unwrap());

        let options = Options {
            name: "node1".into(),
            advertise_addr: grpc.to_string(),
            peers: Vec::new(),
            data_dir: data_dir.to_path_buf(),
            zone: String::new(),
            weight: 1,
            engine,
            engine_options: storage::Options { cache_bytes: 16 * 1024 * 1024 },
            formation: Formation { cluster_name: "test".into(), replicas: 3, partitions: 4 },
            disk_reserve_bytes: 0,
        };
        let node = tokio::time::timeout(WAIT_MAX, Node::open(options, &metrics.registry))
            .await
            .expect("the node opens in time")
            .unwrap_or_else(|error| panic!("the node does not open: {error:?}"));

        let (stop, stopping) = watch::channel(false);
        let stopped = |mut stopping: watch::Receiver<bool>| async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        let mut servers = JoinSet::new();
        {
            let (node, stopped) = (node.clone(), stopped(stopping.clone()));
            servers.spawn(async move {
                let options = grpc::Options::default();
                grpc::serve(grpc_listener, node, grpc_metrics, options, stopped).await.unwrap();
            });
        }
        {
            let (node, stopped) = (node.clone(), stopped(stopping));
            servers.spawn(async move {
                http::serve(http_listener, node, metrics.registry, stopped).await.unwrap();
            });
        }
        let started = tokio::time::Instant::now();
        while !node.problems().is_empty() {
            assert!(started.elapsed() < WAIT_MAX, "the node is not ready: {:?}", node.problems());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        TestNode { grpc, http, node, stop, servers }
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.grpc)).unwrap().connect().await.unwrap()
    }

    /// Stops as the daemon does: the ports first, then the node.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let deadline = tokio::time::Instant::now() + WAIT_MAX;
        while let Some(ended) = self.servers.join_next().await {
            ended.unwrap();
        }
        self.node.shutdown(deadline).await.unwrap();
    }
}
