//! What a node can be asked, as values. [`super::Node`] answers with these; the services only
//! translate them to the wire.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::Result;
use crate::kv;
use crate::transport::Leader;
use crate::types::{Epoch, NodeId, PartitionId, ReplicaId};

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    Linearizable,
    /// What this node has, without asking anyone.
    Stale,
}

/// What came of a call on a key, and where it should have been made.
#[derive(Debug)]
pub struct Routed<T> {
    pub result: Result<T>,
    /// The node that leads the key's partition, if this one does not and had to ask it.
    pub leader: Option<Leader>,
}

/// What came of a call on several keys, and where the first of them should have been asked for.
#[derive(Debug)]
pub struct RoutedBatch<T> {
    pub results: Vec<Result<T>>,
    /// As of [`Routed`].
    pub leader: Option<Leader>,
}

/// A range of keys: `start` inclusive, `end` exclusive; `None` is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanQuery {
    pub start: Option<Bytes>,
    pub end: Option<Bytes>,
    pub reverse: bool,
    /// At most this many records in the page; the page may also end earlier, at its size limit.
    pub limit: usize,
    pub keys_only: bool,
    pub consistency: Consistency,
}

/// Part of a scan, in key order over all partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanPage {
    pub records: Vec<(Bytes, kv::Record)>,
    /// Whether the range holds more: go on after the last key (before it, in reverse).
    pub more: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Learner,
    Candidate,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    pub name: String,
    pub number: NodeId,
    /// host:port that others dial.
    pub address: String,
    pub zone: String,
    pub weight: u32,
    pub is_group0_leader: bool,
    pub version: String,
    pub engine: String,
    pub started_at_unix_ms: u64,
    pub disk_free_bytes: u64,
    pub disk_total_bytes: u64,
    pub replica_count: u32,
    pub leader_count: u32,
    pub engine_disk_bytes: u64,
    pub wal_bytes: u64,
    /// Its copies move elsewhere; when none is left, it is dropped.
    pub is_leaving: bool,
    /// It answered the asked node just now, or is that one.
    pub is_reachable: bool,
    /// What it is in group 0; `None` if the asked node can't tell.
    pub group0_role: Option<Role>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaInfo {
    pub id: ReplicaId,
    pub node: String,
    pub role: Role,
    pub match_index: u64,
    /// How long ago it last answered its leader, which tells; `None` for that one itself.
    pub silent: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionInfo {
    pub id: PartitionId,
    /// Both ends inclusive.
    pub first_hash: u64,
    pub last_hash: u64,
    pub replicas: Vec<ReplicaInfo>,
    pub leader: Option<String>,
    pub term: u64,
    pub commit_index: u64,
    pub applied_index: u64,
    pub key_count: u64,
    pub data_bytes: u64,
}

/// Something that an operator should know of; `reason` is stable, for scripts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub reason: &'static str,
    pub message: String,
}

/// A problem that some of a cluster's nodes have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterProblem {
    pub reason: String,
    pub message: String,
    /// Who has it, by name.
    pub nodes: Vec<String>,
}

impl Problem {
    /// Whether a node that starts with this has not started yet. The others are an operator's to mend while it
    /// serves what it can: on a low disk that is done by deletes.
    pub fn keeps_from_starting(&self) -> bool {
        !matches!(self.reason, "DISK_LOW" | "DISK_STALLED" | "REPLICA_FAILED")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterInfo {
    pub cluster_id: String,
    pub cluster_name: String,
    pub cluster_version: u32,
    pub epoch: Epoch,
    /// Name of group 0's leader.
    pub leader: Option<String>,
    pub replicas: u32,
    pub nodes: Vec<NodeInfo>,
    pub partitions: Vec<PartitionInfo>,
    pub answered_by: String,
    pub problems: Vec<ClusterProblem>,
}

/// A node that was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    pub node: String,
    /// It is a member now; else it becomes one by itself.
    pub is_member: bool,
}

/// When the caller stops waiting.
pub type Deadline = Instant;
