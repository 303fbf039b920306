//! A backend in memory that can be told to stall, fail and have problems.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::watch;

use super::Backend;
use crate::error::{Error, Reason, Result};
use crate::kv::{Op, Outcome, Precondition, Record};
use crate::limits::{SCAN_MESSAGE_BYTES, SCAN_MESSAGE_RECORDS};
use crate::node::{
    ClusterInfo, ClusterProblem, Consistency, Deadline, Joined, NodeInfo, PartitionInfo, Problem,
    ReplicaInfo, Role, Routed, RoutedBatch, ScanPage, ScanQuery,
};
use crate::transport::Leader;
use crate::types::{Epoch, NodeId, PartitionId, ReplicaId};

#[derive(Debug)]
pub(super) struct Fake {
    pub records: Mutex<BTreeMap<Bytes, Record>>,
    pub problems: Mutex<Vec<Problem>>,
    /// Never answers, past its deadline too.
    pub stalled: AtomicBool,
    /// Answers every write by this.
    pub refuse: Mutex<Option<Error>>,
    /// Who leads, if it is another node.
    pub leader: Mutex<Option<Leader>>,
    pub epoch: watch::Sender<u64>,
    pub scans: AtomicUsize,
    revision: AtomicUsize,
}

impl Default for Fake {
    fn default() -> Fake {
        Fake {
            records: Mutex::default(),
            problems: Mutex::default(),
            stalled: AtomicBool::new(false),
            refuse: Mutex::default(),
            leader: Mutex::default(),
            epoch: watch::channel(1).0,
            scans: AtomicUsize::new(0),
            revision: AtomicUsize::new(0),
        }
    }
}

impl Fake {
    async fn ready(&self) {
        if self.stalled.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    fn apply(&self, op: &Op) -> Result<Outcome> {
        if let Some(error) = self.refuse.lock().unwrap().clone() {
            return Err(error);
        }
        let mut records = self.records.lock().unwrap();
        let revision = self.revision.fetch_add(1, Ordering::Relaxed) as u64 + 1;
        let current = records.get(op.key()).map_or(0, |record| record.version);
        let (Op::Put { precondition, .. } | Op::Delete { precondition, .. }) = op;
        let holds = match precondition {
            Precondition::None => true,
            Precondition::Absent => current == 0,
            Precondition::Version(version) => current == *version,
        };
        if !holds {
            return Ok(Outcome::PreconditionFailed { current_version: current });
        }
        match op {
            Op::Put { key, value, .. } => {
                let version = current + 1;
                let create_revision = records.get(key).map_or(revision, |record| record.create_revision);
                let record =
                    Record { value: value.clone(), version, create_revision, mod_revision: revision };
                records.insert(key.clone(), record);
                Ok(Outcome::Put { version, revision })
            }
            Op::Delete { key, .. } => {
                Ok(Outcome::Deleted { existed: records.remove(key).is_some(), revision })
            }
        }
    }
}

impl Backend for Fake {
    fn problems(&self) -> Vec<Problem> {
        self.problems.lock().unwrap().clone()
    }

    async fn probe(&self) -> Result<()> {
        self.ready().await;
        Ok(())
    }

    fn is_of_cluster(&self, id: &str) -> bool {
        id == "c1"
    }

    async fn write(&self, op: Op, _deadline: Deadline) -> Routed<Outcome> {
        self.ready().await;
        Routed { result: self.apply(&op), leader: self.leader.lock().unwrap().clone() }
    }

    async fn write_batch(&self, ops: Vec<Op>, _deadline: Deadline) -> RoutedBatch<Outcome> {
        self.ready().await;
        let results = ops.iter().map(|op| self.apply(op)).collect();
        RoutedBatch { results, leader: self.leader.lock().unwrap().clone() }
    }

    async fn get(&self, key: Bytes, _how: Consistency, _deadline: Deadline) -> Routed<Option<Record>> {
        self.ready().await;
        let result = Ok(self.records.lock().unwrap().get(&key).cloned());
        Routed { result, leader: self.leader.lock().unwrap().clone() }
    }

    async fn get_batch(
        &self,
        keys: Vec<Bytes>,
        _how: Consistency,
        _deadline: Deadline,
    ) -> RoutedBatch<Option<Record>> {
        self.ready().await;
        let records = self.records.lock().unwrap();
        let results = keys.iter().map(|key| Ok(records.get(key).cloned())).collect();
        RoutedBatch { results, leader: self.leader.lock().unwrap().clone() }
    }

    async fn scan(&self, query: ScanQuery, _deadline: Deadline) -> Result<ScanPage> {
        self.ready().await;
        self.scans.fetch_add(1, Ordering::Relaxed);
        let records = self.records.lock().unwrap();
        let start = query.start.map_or(Bound::Unbounded, Bound::Included);
        let end = query.end.map_or(Bound::Unbounded, Bound::Excluded);
        let range = records.range((start, end));
        let mut range: Box<dyn Iterator<Item = (&Bytes, &Record)>> =
            if query.reverse { Box::new(range.rev()) } else { Box::new(range) };
        let mut page = ScanPage { records: Vec::new(), more: false };
        let mut bytes = 0;
        for (key, record) in &mut range {
            if page.records.len() == query.limit.min(SCAN_MESSAGE_RECORDS) || bytes > SCAN_MESSAGE_BYTES {
                page.more = true;
                break;
            }
            bytes += key.len() + record.value.len();
            page.records.push((key.clone(), record.clone()));
        }
        Ok(page)
    }

    async fn cluster_info(&self) -> Result<ClusterInfo> {
        self.ready().await;
        Ok(ClusterInfo { epoch: Epoch(*self.epoch.borrow()), problems: self.told(), ..cluster_info() })
    }

    fn locate(&self, key: &[u8]) -> Result<(u64, PartitionId)> {
        if key == b"nowhere" {
            return Err(Error::new(Reason::Unavailable, "no routing table yet"));
        }
        Ok((7, PartitionId(0)))
    }

    async fn join(&self, address: &str, name: Option<&str>, _deadline: Deadline) -> Result<Joined> {
        match (address, name) {
            ("localhost:8080" | "[::1]:8080", name) => {
                Ok(Joined { node: name.unwrap_or("node1").to_string(), is_member: true })
            }
            (address, _) => Err(Error::new(Reason::Unavailable, format!("no node answers at {address}"))),
        }
    }

    async fn leave(&self, name: &str, _deadline: Deadline) -> Result<()> {
        match name {
            "node1" => Err(Error::new(Reason::ClusterRefused, "the last member can't leave")),
            name => Err(Error::new(Reason::NotFound, format!("the cluster has no node {name:?}"))),
        }
    }

    async fn topology_changed(&self, seen: Epoch) {
        let mut epoch = self.epoch.subscribe();
        let _ = epoch.wait_for(|epoch| *epoch > seen.0).await;
    }
}

impl Fake {
    fn told(&self) -> Vec<ClusterProblem> {
        let told = |problem: Problem| ClusterProblem {
            reason: problem.reason.into(),
            message: problem.message,
            nodes: vec!["node1".into()],
        };
        self.problems().into_iter().map(told).collect()
    }
}

/// A cluster of one.
pub(super) fn cluster_info() -> ClusterInfo {
    let node = NodeInfo {
        name: "node1".into(),
        number: NodeId(1),
        address: "localhost:8080".into(),
        zone: String::new(),
        weight: 1,
        is_group0_leader: true,
        version: "0.0.0".into(),
        engine: "memory".into(),
        started_at_unix_ms: 1,
        disk_free_bytes: 2,
        disk_total_bytes: 3,
        replica_count: 2,
        leader_count: 2,
        engine_disk_bytes: 4,
        wal_bytes: 5,
        is_leaving: false,
        is_reachable: true,
        group0_role: Some(Role::Leader),
    };
    let id = ReplicaId::new(NodeId(1), 1);
    let partition = PartitionInfo {
        id: PartitionId(0),
        first_hash: 0,
        last_hash: u64::MAX,
        replicas: vec![ReplicaInfo {
            id,
            node: "node1".into(),
            role: Role::Leader,
            match_index: 9,
            silent: None,
        }],
        leader: Some("node1".into()),
        term: 1,
        commit_index: 9,
        applied_index: 9,
        key_count: 0,
        data_bytes: 0,
    };
    ClusterInfo {
        cluster_id: "c1".into(),
        cluster_name: "rushkv".into(),
        cluster_version: 1,
        epoch: Epoch(1),
        leader: Some("node1".into()),
        replicas: 1,
        nodes: vec![node],
        partitions: vec![partition],
        answered_by: "node1".into(),
        problems: Vec::new(),
    }
}
