//! What the connections between nodes count, by peer and class.
//!
//! A peer's label is its number. Its series begin when it becomes a peer and go when it is one no more;
//! what a node sends that is no peer counts under `unknown`, so that nobody makes new series by dialling.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::handshake::{CLASSES, REASONS, name};
use crate::raft::Class;
use crate::types::NodeId;

/// The label of nodes that are no peers.
const UNKNOWN: &str = "unknown";

/// The transport's metrics. Clones share the series.
#[derive(Debug, Clone)]
pub struct Metrics {
    connected: IntGaugeVec,
    connects: IntCounterVec,
    queued: IntGaugeVec,
    unsent: IntCounterVec,
    sent_frames: IntCounterVec,
    sent_messages: IntCounterVec,
    sent_bytes: IntCounterVec,
    received_frames: IntCounterVec,
    received_messages: IntCounterVec,
    received_bytes: IntCounterVec,
    refused: IntCounterVec,
    /// Peers that have series. Series are looked up only under this lock, so that none comes back
    /// after its peer has gone.
    peers: Arc<Mutex<BTreeSet<NodeId>>>,
}

/// One outgoing connection's handles.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub connected: IntGauge,
    pub connects: IntCounter,
    pub queued: IntGauge,
    pub unsent: IntCounter,
    pub frames: IntCounter,
    pub messages: IntCounter,
    pub bytes: IntCounter,
}

/// One incoming connection's handles.
#[derive(Debug, Clone)]
pub(super) struct Incoming {
    pub frames: IntCounter,
    pub messages: IntCounter,
    pub bytes: IntCounter,
}

impl Metrics {
    /// Metrics that `registry` gathers.
    ///
    /// # Errors
    /// The registry has metrics of these names already.
    pub fn register(registry: &Registry) -> prometheus::Result<Metrics> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            prometheus::Result::Ok(metric)
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGaugeVec::new(Opts::new(name, help), &["peer", "class"])?;
            registry.register(Box::new(metric.clone()))?;
            prometheus::Result::Ok(metric)
        };
        let by_peer = |name: &str, help: &str| counter(name, help, &["peer", "class"]);
        let metrics = Metrics {
            connected: gauge(
                "rushkv_transport_connected",
                "1 while there is a connection to the peer for messages of this class, else 0.",
            )?,
            connects: by_peer("rushkv_transport_connects_total", "Connections made to the peer.")?,
            queued: gauge("rushkv_transport_queued_messages", "Messages that wait to be sent to the peer.")?,
            unsent: by_peer(
                "rushkv_transport_unsent_messages_total",
                "Messages refused or dropped before they were sent: no connection, or a full queue.",
            )?,
            sent_frames: by_peer("rushkv_transport_sent_frames_total", "Frames of messages sent.")?,
            sent_messages: by_peer(
                "rushkv_transport_sent_messages_total",
                "Messages sent to the peer, without answers to its own.",
            )?,
            sent_bytes: by_peer("rushkv_transport_sent_bytes_total", "Bytes of messages sent to the peer.")?,
            received_frames: by_peer(
                "rushkv_transport_received_frames_total",
                "Frames of messages received.",
            )?,
            received_messages: by_peer(
                "rushkv_transport_received_messages_total",
                "Messages received from the peer, without its answers to ours.",
            )?,
            received_bytes: by_peer(
                "rushkv_transport_received_bytes_total",
                "Bytes of messages received from the peer.",
            )?,
            refused: counter(
                "rushkv_transport_handshakes_refused_total",
                "Handshakes of other nodes that this one refused.",
                &["reason"],
            )?,
            peers: Arc::default(),
        };
        for reason in REASONS {
            metrics.refused.with_label_values(&[reason]);
        }
        Ok(metrics)
    }

    /// Metrics that nobody gathers.
    pub fn unregistered() -> Metrics {
        Metrics::register(&Registry::new()).expect("the registry is new, so no name in it is taken")
    }

    /// Another node's handshake was refused.
    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    /// The handles of a connection to `peer`, whose series exist from now on.
    pub(super) fn outgoing(&self, peer: NodeId, class: Class) -> Outgoing {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.insert(peer);
        let peer = peer.0.to_string();
        let labels = [peer.as_str(), name(class)];
        Outgoing {
            connected: self.connected.with_label_values(&labels),
            connects: self.connects.with_label_values(&labels),
            queued: self.queued.with_label_values(&labels),
            unsent: self.unsent.with_label_values(&labels),
            frames: self.sent_frames.with_label_values(&labels),
            messages: self.sent_messages.with_label_values(&labels),
            bytes: self.sent_bytes.with_label_values(&labels),
        }
    }

    /// The handles of a connection from `node`.
    pub(super) fn incoming(&self, node: NodeId, class: Class) -> Incoming {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = if peers.contains(&node) { node.0.to_string() } else { UNKNOWN.to_string() };
        let labels = [peer.as_str(), name(class)];
        Incoming {
            frames: self.received_frames.with_label_values(&labels),
            messages: self.received_messages.with_label_values(&labels),
            bytes: self.received_bytes.with_label_values(&labels),
        }
    }

    /// Removes the series of a node that is no peer any more.
    pub(super) fn remove(&self, peer: NodeId) {
        fn remove(
            family: &prometheus::core::MetricVec<impl prometheus::core::MetricVecBuilder>,
            labels: &[&str],
        ) {
            // The only error is that there was no such series.
            let _ = family.remove_label_values(labels);
        }
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.remove(&peer);
        let peer = peer.0.to_string();
        for class in CLASSES {
            let labels = [peer.as_str(), name(class)];
            for gauge in [&self.connected, &self.queued] {
                remove(gauge, &labels);
            }
            for counter in self.counters_by_peer() {
                remove(counter, &labels);
            }
        }
    }

    fn counters_by_peer(&self) -> [&IntCounterVec; 8] {
        [
            &self.connects,
            &self.unsent,
            &self.sent_frames,
            &self.sent_messages,
            &self.sent_bytes,
            &self.received_frames,
            &self.received_messages,
            &self.received_bytes,
        ]
    }

    /// Every family's name.
    #[cfg(test)]
    fn names(&self) -> BTreeSet<String> {
        use prometheus::core::Collector;
        let gauges = [&self.connected, &self.queued].into_iter().flat_map(Collector::desc);
        let counters = self.counters_by_peer().into_iter().chain([&self.refused]).flat_map(Collector::desc);
        gauges.chain(counters).map(|desc| desc.fq_name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_every_metric() {
        let documented: BTreeSet<String> = include_str!("../../docs/metrics.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
            .filter(|name| name.starts_with("rushkv_transport_"))
            .map(str::to_string)
            .collect();
        assert_eq!(Metrics::unregistered().names(), documented);
    }

    #[test]
    fn a_peer_that_goes_takes_its_series_along_and_none_comes_back() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let text = || crate::metrics::text(&registry).unwrap();
        let handles = metrics.outgoing(NodeId(7), Class::Append);
        metrics.incoming(NodeId(7), Class::Append).messages.inc();
        assert!(text().contains("rushkv_transport_received_messages_total{class=\"append\",peer=\"7\"} 1"));
        metrics.remove(NodeId(7));
        handles.messages.inc();
        metrics.incoming(NodeId(7), Class::Append).messages.inc();
        assert!(!text().contains("peer=\"7\""), "{}", text());
        assert!(text().contains("{class=\"append\",peer=\"unknown\"} 1"));
    }
}
