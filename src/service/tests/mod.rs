//! The services over real connections, against a backend that does as it is told.

mod answers;
mod calls;
mod pipeline;
mod port;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::fake::Fake;
use super::grpc::{self, Options};
use crate::metrics::{self, Metrics};
use crate::proto::v1;
use crate::proto::v1::kv_client::KvClient;

struct Server {
    address: SocketAddr,
    node: Arc<Fake>,
    metrics: Metrics,
    stop: oneshot::Sender<()>,
    done: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(options: Options) -> Server {
        let metrics = Metrics::new();
        let grpc_metrics = metrics::Grpc::register(&metrics.registry).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let node = Arc::new(Fake::default());
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let done = tokio::spawn(grpc::serve(listener, node.clone(), grpc_metrics, options, shutdown));
        Server { address, node, metrics, stop, done }
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel().await).max_decoding_message_size(4 * 1024 * 1024)
    }

    /// The value of the sample whose name and labels contain every one of `parts`; 0 without one.
    fn sample(&self, parts: &[&str]) -> f64 {
        let text = self.metrics.text().unwrap();
        let mut lines = text
            .lines()
            .filter(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)));
        let sample = lines.next().map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap());
        assert_eq!(lines.next(), None, "{parts:?} is ambiguous");
        sample
    }

    async fn eventually(&self, parts: &[&str], value: f64) {
        for _ in 0..500 {
            if self.sample(parts) == value {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{parts:?} never became {value}:\n{}", self.metrics.text().unwrap());
    }
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> v1::PutRequest {
    v1::PutRequest { key: key.into(), value: value.into(), precondition: None }
}

/// The reason and the metadata's "happened" that a status carries.
fn detail(status: &Status) -> (String, String) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, crate::error::DOMAIN);
    (info.reason, info.metadata["happened"].clone())
}

fn is(status: &Status, code: Code, reason: &str, happened: &str) {
    assert_eq!((status.code(), detail(status)), (code, (reason.into(), happened.into())), "{status:?}");
}
