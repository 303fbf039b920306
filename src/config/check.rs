//! Looks at the keys together, and makes [`Config`] of them.

use std::path::PathBuf;

use serde::Deserialize;

use super::layer::Layers;
use super::problem::{Origin, Problem};
use super::value::{self, HostPort, Wrong, accept};
use super::{keys, layer};
use crate::{node, storage};

/// Less room than this can be used up between two looks at it.
const DISK_RESERVE_SAFE: u64 = 256 * 1024 * 1024;

/// From the gRPC port to the metrics port where `metrics.addr` is "auto": 8080 gives 9180, which no
/// well-known exporter uses, and several nodes of one host stay apart.
pub const METRICS_PORT_OFFSET: u16 = 1100;

/// A configuration that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub node_id: String,
    /// Where gRPC is served; port 0 is any free one.
    pub addr: HostPort,
    /// What others dial, if it is not `addr`.
    pub advertise_addr: Option<HostPort>,
    pub data_dir: PathBuf,
    pub peers: Vec<HostPort>,
    pub zone: String,
    pub weight: u32,
    pub formation: node::Formation,
    pub engine: storage::Kind,
    pub engine_options: storage::Options,
    /// In bytes; 0: writes are never refused.
    pub disk_reserve_bytes: u64,
    /// Where HTTP is served; `None`: not at all.
    pub metrics_addr: Option<HostPort>,
    /// Directives as `tracing_subscriber::EnvFilter` takes them.
    pub log_level: String,
}

impl Config {
    /// The node's options, once the port is known that `addr` was bound to.
    pub fn node_options(&self, bound_port: u16) -> node::Options {
        let own = HostPort { host: self.addr.host.clone(), port: bound_port };
        node::Options {
            name: self.node_id.clone(),
            advertise_addr: self.advertise_addr.as_ref().unwrap_or(&own).to_string(),
            peers: self.peers.iter().map(HostPort::to_string).collect(),
            data_dir: self.data_dir.clone(),
            zone: self.zone.clone(),
            weight: self.weight,
            engine: self.engine,
            engine_options: self.engine_options,
            formation: self.formation.clone(),
            disk_reserve_bytes: self.disk_reserve_bytes,
        }
    }
}

/// The keys as figment hands them over: each value accepted by its key, none looked at together.
#[derive(Debug, Deserialize)]
struct Raw {
    node_id: String,
    addr: String,
    advertise_addr: String,
    data_dir: String,
    peers: Vec<String>,
    zone: String,
    weight: u32,
    cluster: RawCluster,
    storage: RawStorage,
    metrics: RawMetrics,
    log: RawLog,
}

#[derive(Debug, Deserialize)]
struct RawCluster {
    name: String,
    replicas: u32,
    partitions: u32,
}

#[derive(Debug, Deserialize)]
struct RawStorage {
    engine: String,
    cache: u64,
    disk_reserve: u64,
}

#[derive(Debug, Deserialize)]
struct RawMetrics {
    addr: String,
}

#[derive(Debug, Deserialize)]
struct RawLog {
    level: String,
}

/// Where problems go; each is pinned on the entry whose value it is about.
struct Report<'a> {
    layers: &'a Layers,
    problems: &'a mut Vec<Problem>,
}

impl Report<'_> {
    fn wrong(&mut self, key: &str, message: impl Into<String>, way_out: impl Into<String>) {
        let problem = pinned(self.layers, key, message.into(), way_out.into());
        self.problems.push(problem);
    }

    /// A value that its key has accepted before reads again; if not, that is said, not hidden.
    fn addr(&mut self, key: &str, text: &str) -> Option<HostPort> {
        match value::addr(text) {
            Ok(addr) => Some(addr),
            Err(Wrong { message, way_out }) => {
                self.wrong(key, message, way_out);
                None
            }
        }
    }
}

fn pinned(layers: &Layers, key: &str, message: String, way_out: String) -> Problem {
    let entry: Option<&layer::Entry> = layers.find(key);
    let origin = entry.map_or(Origin::Default, |entry| entry.origin.clone());
    let value = entry.map_or(String::new(), |entry| entry.value.to_string());
    Problem { origin, setting: Some((key.to_string(), value)), message, way_out }
}

/// Checks what is on top of `layers`. `None` if something can't be made sense of; what only does not
/// fit together is in `problems` either way.
pub fn check(
    layers: &Layers,
    host_name: &str,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> Option<Config> {
    let raw: Raw = match layers.extract() {
        Ok(raw) => raw,
        Err(error) => {
            problems.push(Problem {
                origin: Origin::Default,
                setting: None,
                message: format!("the layers do not fit together: {error}"),
                way_out: "this is a bug; please report it".to_string(),
            });
            return None;
        }
    };
    // A value that its key refused has left the one below it in place. What that one would clash with
    // is nobody's concern: only keys that are whole are looked at together.
    let refused: Vec<String> =
        problems.iter().filter_map(|problem| Some(problem.setting.as_ref()?.0.clone())).collect();
    let whole = |names: &[&str]| names.iter().all(|name| !refused.iter().any(|refused| refused == name));
    let mut report = Report { layers, problems };

    let node_id = match raw.node_id.as_str() {
        "" => match accept(keys::Kind::Name, &value::Written::Text(host_name.to_string())) {
            Ok(_) => host_name.to_string(),
            Err(wrong) => {
                let message =
                    format!("the host name {host_name:?} can't be the node's: it {}", wrong.message);
                report.wrong("node_id", message, "set node_id");
                return None;
            }
        },
        given => given.to_string(),
    };
    let addr = report.addr("addr", &raw.addr)?;
    let advertise_addr = match raw.advertise_addr.as_str() {
        "" => None,
        given => Some(report.addr("advertise_addr", given)?),
    };
    let mut peers = Vec::with_capacity(raw.peers.len());
    for peer in &raw.peers {
        peers.push(report.addr("peers", peer)?);
    }
    if whole(&["addr", "advertise_addr", "peers"]) {
        check_advertised(&addr, advertise_addr.as_ref(), &peers, &mut report, warnings);
    }
    if raw.storage.disk_reserve < DISK_RESERVE_SAFE {
        let message =
            "a disk that fills up ends the process: that is too little to keep it from that".to_string();
        let way_out = format!("leave at least {}", value::show_bytes(DISK_RESERVE_SAFE));
        warnings.push(pinned(layers, "storage.disk_reserve", message, way_out));
    }
    let metrics_addr = match whole(&["addr", "metrics.addr"]) {
        true => metrics_addr(&raw.metrics.addr, &addr, &mut report),
        false => None,
    };
    let engine = match raw.storage.engine.as_str() {
        "sled" => storage::Kind::Sled,
        _ => storage::Kind::Fjall,
    };
    Some(Config {
        node_id,
        addr,
        advertise_addr,
        data_dir: PathBuf::from(raw.data_dir),
        peers,
        zone: raw.zone,
        weight: raw.weight,
        formation: node::Formation {
            cluster_name: raw.cluster.name,
            replicas: raw.cluster.replicas,
            partitions: raw.cluster.partitions,
        },
        engine,
        engine_options: storage::Options { cache_bytes: raw.storage.cache },
        disk_reserve_bytes: raw.storage.disk_reserve,
        metrics_addr,
        log_level: raw.log.level,
    })
}

/// What others are told to dial must lead here, from where they are.
fn check_advertised(
    addr: &HostPort,
    advertise_addr: Option<&HostPort>,
    peers: &[HostPort],
    report: &mut Report<'_>,
    warnings: &mut Vec<Problem>,
) {
    const WAY_OUT: &str = "set advertise_addr to the address by which other hosts reach this one";
    let (key, told) = match advertise_addr {
        Some(told) => ("advertise_addr", told),
        None => ("addr", addr),
    };
    let remote = peers.iter().find(|peer| !peer.is_loopback());
    if told.port == 0 && (advertise_addr.is_some() || !peers.is_empty()) {
        report.wrong(key, "others can't dial port 0", "give the port");
    }
    match remote {
        Some(peer) if told.is_wildcard() => {
            report.wrong(key, format!("the peer {peer} can't dial every interface"), WAY_OUT);
        }
        Some(peer) if told.is_loopback() => {
            report.wrong(key, format!("the peer {peer} on another host would dial itself"), WAY_OUT);
        }
        None if told.is_wildcard() => {
            let message = "clients that ask for the cluster's nodes are told this address".to_string();
            warnings.push(pinned(report.layers, key, message, WAY_OUT.to_string()));
        }
        _ => {}
    }
}

/// The HTTP endpoint's address; `None` also where it can't be had, with the reason reported.
fn metrics_addr(given: &str, addr: &HostPort, report: &mut Report<'_>) -> Option<HostPort> {
    const KEY: &str = "metrics.addr";
    match given {
        "off" => None,
        "auto" => {
            // With any free port for gRPC, any free one for HTTP.
            let port = match addr.port {
                0 => Some(0),
                port => port.checked_add(METRICS_PORT_OFFSET),
            };
            if port.is_none() {
                let message =
                    format!("port {} of addr plus {METRICS_PORT_OFFSET} is more than 65535", addr.port);
                report.wrong(KEY, message, "set metrics.addr to a host and port, or to \"off\"");
            }
            Some(HostPort { host: "127.0.0.1".to_string(), port: port? })
        }
        given => {
            let metrics = report.addr(KEY, given)?;
            let same_host = metrics.host == addr.host || metrics.is_wildcard() || addr.is_wildcard();
            if metrics.port == addr.port && metrics.port != 0 && same_host {
                report.wrong(KEY, "is also where addr serves gRPC", "give it a port of its own");
            }
            Some(metrics)
        }
    }
}
