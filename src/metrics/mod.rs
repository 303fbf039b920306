//! The process's metrics: one Prometheus registry, into which every layer registers what it owns.
//!
//! This module owns what belongs to the process and to the gRPC edge. The log, the groups and the
//! node register theirs themselves. Every name has a line in `docs/metrics.md`.

mod grpc;

use prometheus::{Encoder as _, IntGaugeVec, Opts, Registry, TextEncoder};

pub use grpc::{Call, Grpc, METHODS};

/// Upper bounds of latency histograms, in seconds: from 50 us (a read from memory over loopback
/// takes about 100 us; an fsync of a good disk 130 us) to 10 s (the default deadline), three buckets
/// a decade, so that a quantile read from them is off by at most a factor of 2.5.
pub const LATENCY_SECONDS: [f64; 17] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0,
];

/// The content type of [`Metrics::text`] and [`text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The registry, with the process's own metrics and the build's in it.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub registry: Registry,
}

impl Metrics {
    /// # Panics
    /// Never in practice: the registry is new, so no name in it can be taken.
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let build = IntGaugeVec::new(
            Opts::new("rushkv_build_info", "Always 1; the labels say what is running."),
            &["version", "arch", "os"],
        )
        .expect("the name and the labels are well-formed");
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), std::env::consts::ARCH, std::env::consts::OS])
            .set(1);
        registry.register(Box::new(build)).expect("the registry is empty");
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("nothing else is named process_*");
        Metrics { registry }
    }

    /// Everything registered, in Prometheus's text format.
    pub fn text(&self) -> prometheus::Result<String> {
        text(&self.registry)
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

/// Everything registered in `registry`, in Prometheus's text format.
pub fn text(registry: &Registry) -> prometheus::Result<String> {
    let mut out = Vec::with_capacity(32 * 1024);
    TextEncoder::new().encode(&registry.gather(), &mut out)?;
    String::from_utf8(out).map_err(|error| prometheus::Error::Msg(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Names in the table of `docs/metrics.md` that this module owns.
    fn documented() -> BTreeSet<String> {
        let owned = |name: &str| {
            name.starts_with("process_") || name.starts_with("rushkv_grpc_") || name == "rushkv_build_info"
        };
        include_str!("../../docs/metrics.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
            .filter(|name| owned(name))
            .map(str::to_string)
            .collect()
    }

    #[test]
    fn the_document_and_the_registry_name_the_same_metrics() {
        let metrics = Metrics::new();
        let grpc = Grpc::register(&metrics.registry).unwrap();
        // A vector shows only once it has a child.
        let mut call = grpc.call("/rushkv.v1.Kv/Put");
        call.answered(tonic::Code::Ok);
        drop(call);
        grpc.connection_refused("limit");
        let registered: BTreeSet<String> =
            metrics.registry.gather().iter().map(|family| family.name().to_string()).collect();
        assert_eq!(registered, documented());
    }

    #[test]
    fn the_text_names_the_build() {
        let text = Metrics::new().text().unwrap();
        assert!(
            text.contains(&format!("rushkv_build_info{{arch=\"{}\"", std::env::consts::ARCH))
                && text.contains(&format!("version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))),
            "{text}"
        );
    }

    #[test]
    fn buckets_grow() {
        assert!(LATENCY_SECONDS.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
