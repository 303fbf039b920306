//! What the gRPC edge counts: calls by method and code, their duration, what is open.
//!
//! Labels come from a closed list: a path outside it is counted under `unknown`, so that nobody can
//! make new time series by asking for calls that do not exist.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};
use tonic::Code;

use super::LATENCY_SECONDS;

/// Every method that the server has, by its path. A test holds it to the interface.
pub const METHODS: [&str; 39] = [
    "/rushkv.RushKV/Put",
    "/rushkv.RushKV/Get",
    "/rushkv.RushKV/Delete",
    "/rushkv.RushKV/Join",
    "/rushkv.RushKV/Leave",
    "/rushkv.RushKV/GetClusterInfo",
    "/rushkv.v1.Kv/Put",
    "/rushkv.v1.Kv/Delete",
    "/rushkv.v1.Kv/Get",
    "/rushkv.v1.Kv/Scan",
    "/rushkv.v1.Kv/BatchWrite",
    "/rushkv.v1.Kv/BatchGet",
    "/rushkv.v1.Kv/Pipeline",
    "/rushkv.v1.Cluster/Info",
    "/rushkv.v1.Cluster/ListNodes",
    "/rushkv.v1.Cluster/ListPartitions",
    "/rushkv.v1.Cluster/LocateKey",
    "/rushkv.v1.Cluster/WatchTopology",
    "/rushkv.v1.Cluster/Join",
    "/rushkv.v1.Cluster/Leave",
    "/rushkv.v1.Debug/Compare",
    "/rushkv.v1.Debug/Scrub",
    "/rushkv.v1.Peer/Hello",
    "/rushkv.v1.Peer/Prepare",
    "/rushkv.v1.Peer/Admit",
    "/rushkv.v1.Peer/GiveUp",
    "/rushkv.v1.Peer/Propose",
    "/rushkv.v1.Peer/ReadKeys",
    "/rushkv.v1.Peer/ReadRange",
    "/rushkv.v1.Peer/Membership",
    "/rushkv.v1.Peer/Describe",
    "/rushkv.v1.Peer/HashAt",
    "/rushkv.v1.Peer/ComparePartition",
    "/rushkv.v1.Peer/ScrubHere",
    "/rushkv.v1.Transport/Exchange",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The codes that gRPC has, 0 to 16.
const CODES: usize = 17;

/// One method's handles, looked up once instead of on every call.
#[derive(Debug)]
struct Method {
    service: &'static str,
    method: &'static str,
    seconds: Histogram,
    /// By code; made when first needed, so that `/metrics` does not list 17 zeros a method.
    requests: [OnceLock<IntCounter>; CODES],
}

/// The gRPC edge's metrics.
#[derive(Debug)]
pub struct Grpc {
    requests: IntCounterVec,
    in_flight: IntGauge,
    pub(crate) connections: IntGauge,
    refused: IntCounterVec,
    pub(crate) answer_bytes: IntGauge,
    pub(crate) answers_cut: IntCounter,
    /// In the order of [`METHODS`], then `unknown`.
    methods: Vec<Method>,
    by_path: HashMap<&'static str, usize>,
}

/// One call under way. Counted when dropped: a call dropped before it was answered is one that its
/// client gave up.
#[derive(Debug)]
pub struct Call {
    metrics: Arc<Grpc>,
    method: usize,
    started: Instant,
    code: Code,
}

impl Grpc {
    /// # Errors
    /// If `registry` has metrics of these names already.
    pub fn register(registry: &Registry) -> prometheus::Result<Arc<Grpc>> {
        let requests = IntCounterVec::new(
            Opts::new("rushkv_grpc_requests_total", "gRPC calls that ended, by method and status code."),
            &["service", "method", "code"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "rushkv_grpc_request_seconds",
                "From a gRPC call's headers to the end of its answer; for streams, their whole life.",
            )
            .buckets(LATENCY_SECONDS.to_vec()),
            &["service", "method"],
        )?;
        let in_flight = IntGauge::new("rushkv_grpc_in_flight", "gRPC calls under way.")?;
        let connections = IntGauge::new("rushkv_grpc_connections", "Open connections on the gRPC port.")?;
        let refused = IntCounterVec::new(
            Opts::new(
                "rushkv_grpc_connections_refused_total",
                "Connections closed without a call: over the limit, not HTTP/2, or silent.",
            ),
            &["reason"],
        )?;
        let answer_bytes =
            IntGauge::new("rushkv_grpc_answer_bytes", "Answers that their clients have not taken yet.")?;
        let answers_cut = IntCounter::new(
            "rushkv_grpc_answers_cut_total",
            "Answers cut because their clients did not take them.",
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        registry.register(Box::new(answer_bytes.clone()))?;
        registry.register(Box::new(answers_cut.clone()))?;

        let split = |path: &'static str| path[1..].split_once('/').expect("METHODS holds /service/method");
        let methods = METHODS
            .iter()
            .map(|path| split(path))
            .chain([("unknown", "unknown")])
            .map(|(service, method)| Method {
                service,
                method,
                seconds: seconds.with_label_values(&[service, method]),
                requests: [const { OnceLock::new() }; CODES],
            })
            .collect();
        let by_path = METHODS.iter().enumerate().map(|(index, path)| (*path, index)).collect();
        Ok(Arc::new(Grpc {
            requests,
            in_flight,
            connections,
            refused,
            answer_bytes,
            answers_cut,
            methods,
            by_path,
        }))
    }

    /// Starts counting a call to `path` (`/service/method`).
    pub fn call(self: &Arc<Grpc>, path: &str) -> Call {
        self.in_flight.inc();
        Call {
            metrics: self.clone(),
            method: self.by_path.get(path).copied().unwrap_or(METHODS.len()),
            started: Instant::now(),
            code: Code::Cancelled,
        }
    }

    #[cfg(test)]
    fn in_flight(&self) -> usize {
        usize::try_from(self.in_flight.get()).unwrap_or(0)
    }

    /// A connection was closed without a call; `reason` is one of a few fixed words.
    pub fn connection_refused(&self, reason: &'static str) {
        self.refused.with_label_values(&[reason]).inc();
    }
}

impl Call {
    /// The code that the client sees.
    pub fn answered(&mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let method = &self.metrics.methods[self.method];
        method.seconds.observe(self.started.elapsed().as_secs_f64());
        method.requests[self.code as usize]
            .get_or_init(|| {
                self.metrics.requests.with_label_values(&[method.service, method.method, name(self.code)])
            })
            .inc();
        self.metrics.in_flight.dec();
    }
}

/// A code as the gRPC specification writes it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    #[test]
    fn every_method_of_the_interface_is_listed() {
        let files = prost_types::FileDescriptorSet::decode(crate::proto::DESCRIPTORS).unwrap();
        let mut paths = BTreeSet::new();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    paths.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        let ours: BTreeSet<String> =
            METHODS.iter().filter(|path| !path.starts_with("/grpc.")).map(|path| path.to_string()).collect();
        assert_eq!(ours, paths);
    }

    #[test]
    fn foreign_paths_make_no_labels() {
        let registry = Registry::new();
        let grpc = Grpc::register(&registry).unwrap();
        for path in ["/rushkv.v1.Kv/Nope", "/x/y", "", "/"] {
            grpc.call(path).answered(Code::Unimplemented);
        }
        let text = crate::metrics::text(&registry).unwrap();
        let line =
            "rushkv_grpc_requests_total{code=\"UNIMPLEMENTED\",method=\"unknown\",service=\"unknown\"} 4";
        assert!(text.contains(line), "{text}");
        assert!(!text.contains("Nope"), "{text}");
    }

    #[test]
    fn a_dropped_call_counts_as_cancelled() {
        let registry = Registry::new();
        let grpc = Grpc::register(&registry).unwrap();
        let call = grpc.call("/rushkv.v1.Kv/Get");
        assert_eq!(grpc.in_flight(), 1);
        drop(call);
        assert_eq!(grpc.in_flight(), 0);
        let text = crate::metrics::text(&registry).unwrap();
        assert!(text.contains("{code=\"CANCELLED\",method=\"Get\",service=\"rushkv.v1.Kv\"} 1"), "{text}");
    }
}
