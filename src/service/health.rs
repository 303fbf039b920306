//! `grpc.health.v1`: SERVING while the node has no problem, NOT_SERVING otherwise and while stopping.

use std::time::Duration;

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::Backend;

/// The services that have a status; the empty name is the server as a whole.
pub(super) const SERVICES: [&str; 4] = ["", "rushkv.RushKV", "rushkv.v1.Kv", "rushkv.v1.Cluster"];

/// How often the node is asked.
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn set(reporter: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

fn status<N: Backend>(node: &N) -> ServingStatus {
    if node.problems().is_empty() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// Keeps the status true; never returns.
pub(super) async fn watch<N: Backend>(reporter: &HealthReporter, node: &N) {
    let mut last = None;
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        let now = status(node);
        if last != Some(now) {
            set(reporter, now).await;
            last = Some(now);
        }
    }
}
