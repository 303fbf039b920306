//! `rushkv.v1.Cluster`: what the cluster consists of, and what changes it.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::Backend;
use super::deadline::Clock;
use super::request;
use crate::error::{Error, Reason, Result, to_status};
use crate::node::{ClusterInfo, Joined, NodeInfo, PartitionInfo, ReplicaInfo, Role};
use crate::proto::v1;
use crate::proto::v1::cluster_server::Cluster;
use crate::types::Epoch;

#[derive(Debug)]
pub(super) struct Service<N> {
    node: Arc<N>,
}

impl<N: Backend> Service<N> {
    pub fn new(node: Arc<N>) -> Service<N> {
        Service { node }
    }

    async fn info_for<T>(&self, request: &Request<T>) -> Result<ClusterInfo> {
        Clock::of(request).unary().read(self.node.cluster_info()).await
    }
}

type Answer<T> = std::result::Result<Response<T>, Status>;

fn answer<T>(result: Result<T>) -> Answer<T> {
    result.map(Response::new).map_err(|error| to_status(&error))
}

#[tonic::async_trait]
impl<N: Backend> Cluster for Service<N> {
    async fn info(&self, request: Request<v1::InfoRequest>) -> Answer<v1::InfoResponse> {
        answer(self.info_for(&request).await.map(info))
    }

    async fn list_nodes(&self, request: Request<v1::ListNodesRequest>) -> Answer<v1::ListNodesResponse> {
        answer(self.info_for(&request).await.map(|info| v1::ListNodesResponse { nodes: nodes(info.nodes) }))
    }

    async fn list_partitions(
        &self,
        request: Request<v1::ListPartitionsRequest>,
    ) -> Answer<v1::ListPartitionsResponse> {
        answer(
            self.info_for(&request)
                .await
                .map(|info| v1::ListPartitionsResponse { partitions: partitions(info.partitions) }),
        )
    }

    async fn locate_key(&self, request: Request<v1::LocateKeyRequest>) -> Answer<v1::LocateKeyResponse> {
        let limit = Clock::of(&request).unary();
        answer(
            async {
                let key = request::key(request.into_inner().key)?;
                let (hash, id) = self.node.locate(&key)?;
                let info = limit.read(self.node.cluster_info()).await?;
                let found = info.partitions.into_iter().find(|partition| partition.id == id);
                // Between the two calls the routing table may have changed.
                let found = found.ok_or_else(|| {
                    Error::new(Reason::Unavailable, format!("partition {id} has just moved; ask again"))
                })?;
                Ok(v1::LocateKeyResponse { hash, partition: Some(partition(found)) })
            }
            .await,
        )
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Answer<v1::JoinResponse> {
        let limit = Clock::of(&request).unary();
        let address = request.into_inner().address;
        let joined = limit.write(self.node.join(&address, None, limit.node)).await;
        answer(joined.map(|Joined { node, is_member }| v1::JoinResponse { node, is_member }))
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Answer<v1::LeaveResponse> {
        let limit = Clock::of(&request).unary();
        let name = request.into_inner().node;
        answer(limit.write(self.node.leave(&name, limit.node)).await.map(|()| v1::LeaveResponse {}))
    }

    type WatchTopologyStream = Pin<Box<dyn Stream<Item = std::result::Result<v1::Topology, Status>> + Send>>;

    async fn watch_topology(
        &self,
        request: Request<v1::WatchTopologyRequest>,
    ) -> Answer<Self::WatchTopologyStream> {
        let watch = Watch {
            node: self.node.clone(),
            seen: None,
            deadline: Clock::of(&request).endless(),
            failed: false,
        };
        Ok(Response::new(Box::pin(stream::unfold(watch, Watch::next))))
    }
}

/// A watch under way. The next topology is made when its client is ready for it, so that a slow one
/// gets the latest and not a queue of old ones.
struct Watch<N> {
    node: Arc<N>,
    seen: Option<Epoch>,
    deadline: Option<Instant>,
    failed: bool,
}

impl<N: Backend> Watch<N> {
    async fn next(mut self) -> Option<(std::result::Result<v1::Topology, Status>, Watch<N>)> {
        if self.failed {
            return None;
        }
        let result = match self.deadline {
            None => self.changed().await,
            Some(deadline) => tokio::time::timeout_at(deadline, self.changed())
                .await
                .unwrap_or_else(|_| Err(Error::new(Reason::DeadlineExceeded, "the watch's deadline passed"))),
        };
        let item = match result {
            Ok(info) => {
                self.seen = Some(info.epoch);
                Ok(topology(info))
            }
            Err(error) => {
                self.failed = true;
                Err(to_status(&error))
            }
        };
        Some((item, self))
    }

    async fn changed(&self) -> Result<ClusterInfo> {
        if let Some(seen) = self.seen {
            self.node.topology_changed(seen).await;
        }
        self.node.cluster_info().await
    }
}

fn info(info: ClusterInfo) -> v1::InfoResponse {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let answered_by = info.nodes.iter().find(|node| node.name == info.answered_by).cloned();
    v1::InfoResponse {
        cluster_id: info.cluster_id,
        cluster_name: info.cluster_name,
        cluster_version: info.cluster_version,
        epoch: info.epoch.0,
        leader: info.leader.unwrap_or_default(),
        node_count: count(info.nodes.len()),
        partition_count: count(info.partitions.len()),
        partitions_led: count(info.partitions.iter().filter(|one| one.leader.is_some()).count()),
        replicas: info.replicas,
        answered_by: answered_by.map(node),
        problems: info
            .problems
            .into_iter()
            .map(|problem| v1::Problem {
                reason: problem.reason,
                message: problem.message,
                nodes: problem.nodes,
            })
            .collect(),
    }
}

fn topology(info: ClusterInfo) -> v1::Topology {
    v1::Topology {
        epoch: info.epoch.0,
        nodes: nodes(info.nodes),
        partitions: partitions(info.partitions),
        cluster_id: info.cluster_id,
    }
}

fn nodes(nodes: Vec<NodeInfo>) -> Vec<v1::Node> {
    nodes.into_iter().map(node).collect()
}

pub(super) fn node(node: NodeInfo) -> v1::Node {
    v1::Node {
        name: node.name,
        number: u64::from(node.number.0),
        address: node.address,
        zone: node.zone,
        weight: node.weight,
        is_group0_leader: node.is_group0_leader,
        version: node.version,
        engine: node.engine,
        started_at_unix_ms: node.started_at_unix_ms,
        disk_free_bytes: node.disk_free_bytes,
        disk_total_bytes: node.disk_total_bytes,
        replica_count: node.replica_count,
        leader_count: node.leader_count,
        engine_disk_bytes: node.engine_disk_bytes,
        wal_bytes: node.wal_bytes,
        state: match node.is_leaving {
            true => v1::NodeState::Leaving,
            false => v1::NodeState::Active,
        }
        .into(),
        is_reachable: node.is_reachable,
        group0_role: node.group0_role.map_or(v1::ReplicaRole::Unspecified, role).into(),
    }
}

pub(super) fn partitions(partitions: Vec<PartitionInfo>) -> Vec<v1::Partition> {
    partitions.into_iter().map(partition).collect()
}

fn partition(partition: PartitionInfo) -> v1::Partition {
    v1::Partition {
        id: partition.id.0,
        first_hash: partition.first_hash,
        last_hash: partition.last_hash,
        replicas: partition.replicas.into_iter().map(replica).collect(),
        leader: partition.leader.unwrap_or_default(),
        term: partition.term,
        commit_index: partition.commit_index,
        applied_index: partition.applied_index,
        key_count: partition.key_count,
        data_bytes: partition.data_bytes,
    }
}

fn role(role: Role) -> v1::ReplicaRole {
    match role {
        Role::Leader => v1::ReplicaRole::Leader,
        Role::Follower => v1::ReplicaRole::Follower,
        Role::Learner => v1::ReplicaRole::Learner,
        Role::Candidate => v1::ReplicaRole::Candidate,
    }
}

fn replica(replica: ReplicaInfo) -> v1::Replica {
    v1::Replica {
        id: replica.id.0,
        node: replica.node,
        role: role(replica.role).into(),
        match_index: replica.match_index,
        silent_ms: replica.silent.map(|silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
    }
}
