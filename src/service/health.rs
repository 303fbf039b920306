//! `grpc.health.v1`: SERVING while the node has no problem, NOT_SERVING otherwise and while stopping.
//!
//! A Check is answered from the node as it is now, so that it says what `/readyz` says; a Watch hears of a
//! change within [`INTERVAL`]. The service manager's READY can come before: some problems, a low disk for
//! one, do not keep a node from starting.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tonic::{Request, Response, Status, async_trait};
use tonic_health::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};
use tonic_health::server::{HealthReporter, HealthService};

use super::Backend;

/// The services that have a status; the empty name is the server as a whole.
pub(super) const SERVICES: [&str; 4] = ["", "rushkv.RushKV", "rushkv.v1.Kv", "rushkv.v1.Cluster"];

/// How often the node is asked for those who watch.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is told of a node.
pub(super) struct Health<N> {
    node: Arc<N>,
    reporter: HealthReporter,
    told: Mutex<Told>,
}

/// What was told last.
enum Told {
    Status(ServingStatus),
    /// Perhaps one service's status and not yet another's.
    Unfinished,
    /// The server stops: whatever the node is, it does not serve any more.
    Stopping,
}

impl<N: Backend> Health<N> {
    /// NOT_SERVING, until the node is asked.
    pub(super) async fn new(node: Arc<N>) -> Arc<Health<N>> {
        let reporter = HealthReporter::new();
        set(&reporter, ServingStatus::NotServing).await;
        let told = Mutex::new(Told::Status(ServingStatus::NotServing));
        Arc::new(Health { node, reporter, told })
    }

    /// The service of the gRPC port.
    pub(super) fn service(self: &Arc<Self>) -> health_server::HealthServer<Service<N>> {
        let inner = HealthService::from_health_reporter(self.reporter.clone());
        health_server::HealthServer::new(Service { health: self.clone(), inner })
    }

    /// Keeps those who watch told; never returns.
    pub(super) async fn watch(&self) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            interval.tick().await;
            self.look().await;
        }
    }

    /// NOT_SERVING from now on.
    pub(super) async fn stop(&self) {
        *self.told.lock().await = Told::Stopping;
        set(&self.reporter, ServingStatus::NotServing).await;
    }

    async fn look(&self) {
        let mut told = self.told.lock().await;
        let now = match self.node.problems().is_empty() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        match *told {
            Told::Stopping => return,
            Told::Status(last) if last == now => return,
            _ => {}
        }
        // A caller that goes away in the middle leaves the rest to the next one.
        *told = Told::Unfinished;
        set(&self.reporter, now).await;
        *told = Told::Status(now);
    }
}

async fn set(reporter: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

pub(super) struct Service<N> {
    health: Arc<Health<N>>,
    inner: HealthService,
}

#[async_trait]
impl<N: Backend> health_server::Health for Service<N> {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.health.look().await;
        self.inner.check(request).await
    }

    type WatchStream = <HealthService as health_server::Health>::WatchStream;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.health.look().await;
        self.inner.watch(request).await
    }
}
