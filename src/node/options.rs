//! What a node is started with.

use std::path::PathBuf;

use crate::storage;

/// Settings of one node, already validated.
#[derive(Debug, Clone)]
pub struct Options {
    /// This node's name (`node_id`).
    pub name: String,
    /// host:port that others dial.
    pub advertise_addr: String,
    /// Where other nodes may be found, host:port; only used to find or found a cluster.
    pub peers: Vec<String>,
    pub data_dir: PathBuf,
    pub zone: String,
    pub weight: u32,
    pub engine: storage::Kind,
    pub engine_options: storage::Options,
    /// Used only when this node forms a cluster; afterwards group 0 knows better.
    pub formation: Formation,
    /// Writes are refused while the disk has less free space than this.
    pub disk_reserve_bytes: u64,
}

/// Settings that all founders of a cluster must agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formation {
    pub cluster_name: String,
    pub replicas: u32,
    /// A power of two.
    pub partitions: u32,
}
