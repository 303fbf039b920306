//! What a node tells of itself and its cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{ClusterInfo, ClusterProblem, Node, NodeInfo, PartitionInfo, Problem, ReplicaInfo, Role};
use crate::error::{Error, Reason, Result};
use crate::proto::v1;
use crate::types::{GroupId, NodeId, PartitionId, ReplicaId};
use crate::{meta, raft};

/// How long the other nodes have to say what they know.
const DESCRIBED_WITHIN: Duration = Duration::from_millis(500);

/// An fsync that is under way for longer is told: a healthy disk takes milliseconds.
const STALL_TOLD: Duration = Duration::from_secs(5);

impl From<raft::Role> for Role {
    fn from(role: raft::Role) -> Role {
        match role {
            raft::Role::Leader => Role::Leader,
            raft::Role::Follower => Role::Follower,
            raft::Role::Learner => Role::Learner,
            raft::Role::Candidate => Role::Candidate,
        }
    }
}

impl Node {
    /// What keeps this node from serving every partition it should; empty: ready.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some(failure) = self.failure.borrow().clone() {
            problems.push(Problem { reason: "NODE_FAILED", message: failure });
        }
        if self.calls.is_closed() {
            problems.push(Problem { reason: "SHUTTING_DOWN", message: "the node is stopping".into() });
        }
        if *self.removed.borrow() {
            // Whatever else is wrong follows from it.
            problems.push(Problem { reason: "REMOVED", message: self.is_removed_text() });
            return problems;
        }
        let Some(seat) = self.seat() else {
            let message = format!("no cluster yet: waiting for {}", self.waiting.borrow().as_str());
            problems.push(Problem { reason: "NO_CLUSTER", message });
            return problems;
        };
        if self.cluster().is_none() {
            let message =
                format!("the cluster is being formed: waiting for {}", self.waiting.borrow().as_str());
            problems.push(Problem { reason: "NO_CLUSTER", message });
            return problems;
        }
        if seat.meta.status().live_leader().is_none() {
            problems
                .push(Problem { reason: "GROUP0_WITHOUT_LEADER", message: "nobody leads group 0".into() });
        }
        for (id, replica) in self.replicas() {
            if let Some(why) = replica.group.damage() {
                problems.push(Problem {
                    reason: "REPLICA_FAILED",
                    message: format!("the copy of partition {id} can't be read and is stopped: {why}"),
                });
            }
        }
        for (id, replica) in self.replicas() {
            if let Some(why) = replica.group.doubt().filter(|_| replica.group.damage().is_none()) {
                problems.push(Problem {
                    reason: "DIVERGED",
                    message: format!(
                        "the copy of partition {id} is not what was written, and no others are known that agree: while \
                         it leads it serves stale reads only: {why}"
                    ),
                });
            }
            if replica.totals.is_halted() && replica.group.damage().is_none() {
                problems.push(Problem {
                    reason: "DIVERGED",
                    message: format!(
                        "the replicas of partition {id} differ, with no majority to say which is right: it serves stale \
                         reads only; see rushkvctl debug hash"
                    ),
                });
            }
        }
        let without: Vec<String> = self.leaderless().iter().map(PartitionId::to_string).collect();
        if !without.is_empty() {
            problems.push(Problem {
                reason: "PARTITION_WITHOUT_LEADER",
                message: format!("nobody leads {}", without.join(", ")),
            });
        }
        if let Some(stuck) = self.wal.writer_stuck_for().filter(|stuck| *stuck > STALL_TOLD) {
            problems.push(Problem {
                reason: "DISK_STALLED",
                message: format!("the disk has not finished an fsync for {} s: writes wait", stuck.as_secs()),
            });
        }
        if self.disk.is_low() {
            problems.push(Problem {
                reason: "DISK_LOW",
                message: format!(
                    "{} MiB of the disk are free, puts must leave {} MiB: free or add space",
                    self.disk.free_bytes() >> 20,
                    self.disk.reserve_bytes() >> 20
                ),
            });
        }
        problems
    }

    /// Partitions with a replica here whose live leader this node does not know. A damaged replica hears
    /// nobody: it is a problem of its own.
    pub(super) fn leaderless(&self) -> Vec<PartitionId> {
        (self.replicas().into_iter())
            .filter(|(_, replica)| replica.group.damage().is_none())
            .filter(|(_, replica)| replica.group.status().live_leader().is_none())
            .map(|(id, _)| id)
            .collect()
    }

    /// The cluster, from what this node knows and what the others say of themselves within
    /// [`DESCRIBED_WITHIN`].
    pub async fn cluster_info(&self) -> Result<ClusterInfo> {
        let cluster = self.formed()?;
        let seat = self.seat().ok_or_else(|| self.no_leader(GroupId::META))?;
        let state = &cluster.state;
        let deadline = Instant::now() + DESCRIBED_WITHIN;
        let others = state.members.keys().copied().filter(|number| *number != seat.number());
        let asked = others.map(|number| async move { (number, self.describe_there(number, deadline).await) });
        let mut said: BTreeMap<NodeId, NodeInfo> = BTreeMap::new();
        let mut led: BTreeMap<PartitionId, PartitionInfo> = BTreeMap::new();
        let own = self.problems().into_iter().map(|one| (one.reason.to_string(), one.message));
        let mut problems: Vec<ClusterProblem> = Vec::new();
        tell(&mut problems, &self.options.name, own);
        for (number, answer) in join_all(asked).await {
            match answer {
                Ok(answer) => {
                    let its = answer.problems.into_iter().map(|one| (one.reason, one.message));
                    tell(&mut problems, &name_of(state, number).unwrap_or_default(), its);
                    let reached = |node| NodeInfo { is_reachable: true, ..node_from(node) };
                    said.extend(answer.node.map(|node| (number, reached(node))));
                    led.extend(
                        answer.partitions.into_iter().map(|one| (PartitionId(one.id), partition_from(one))),
                    );
                }
                Err(error) => {
                    let name = name_of(state, number).unwrap_or_default();
                    let message = format!("{name} does not answer: {error}");
                    tell(&mut problems, &name, [("NODE_UNREACHABLE".to_string(), message)]);
                }
            }
        }
        let (mine, mine_led) = self.describe()?;
        said.insert(seat.number(), NodeInfo { is_reachable: true, ..mine });
        led.extend(mine_led.into_iter().map(|one| (one.id, one)));
        let group0 = seat.meta.status();
        let leader = group0.live_leader().and_then(|leader| name_of(state, leader.node()));
        let nodes = (state.members.iter())
            .map(|(number, member)| {
                let mut info = said.remove(number).unwrap_or_else(|| known_of(*number, member));
                info.is_group0_leader = leader.as_deref() == Some(&member.name);
                info.group0_role = role_in(&group0, *number);
                info.is_leaving = member.state == meta::MemberState::Leaving;
                info
            })
            .collect();
        let partitions = (cluster.routing.routes().iter())
            .filter_map(|route| {
                let partition = state.partitions.get(&route.partition)?;
                let by_leader = led.remove(&route.partition);
                Some(by_leader.unwrap_or_else(|| {
                    self.partition_info(state, route.partition, (route.first, route.last), partition)
                }))
            })
            .collect();
        Ok(ClusterInfo {
            cluster_id: state.cluster_id.clone(),
            cluster_name: state.cluster_name.clone(),
            cluster_version: state.version,
            epoch: state.epoch,
            leader,
            replicas: state.replicas,
            nodes,
            partitions,
            answered_by: self.options.name.clone(),
            problems,
        })
    }

    /// This node, and the partitions that it leads.
    pub(super) fn describe(&self) -> Result<(NodeInfo, Vec<PartitionInfo>)> {
        let cluster = self.formed()?;
        let seat = self.seat().ok_or_else(|| self.no_leader(GroupId::META))?;
        let number = seat.number();
        let member = cluster.state.members.get(&number).ok_or_else(|| {
            let name = &self.options.name;
            let why = match cluster.state.removed.contains_key(&number) {
                true => format!("node \"{name}\" is no member of its cluster any more"),
                false => format!("node \"{name}\" has not heard yet that it is a member"),
            };
            Error::new(Reason::Unavailable, why)
        })?;
        let replicas = self.replicas();
        let led: Vec<PartitionId> = replicas
            .iter()
            .filter(|(_, replica)| replica.group.status().role == raft::Role::Leader)
            .map(|(id, _)| *id)
            .collect();
        let mut info = known_of(number, member);
        info.is_group0_leader = seat.meta.status().role == raft::Role::Leader;
        info.version = env!("CARGO_PKG_VERSION").to_string();
        info.engine = self.store.engine().kind().to_string();
        info.started_at_unix_ms = self.started_at_unix_ms;
        info.disk_free_bytes = self.disk.free_bytes();
        info.disk_total_bytes = self.disk.total_bytes();
        info.replica_count = u32::try_from(replicas.len()).unwrap_or(u32::MAX);
        info.leader_count = u32::try_from(led.len()).unwrap_or(u32::MAX);
        info.engine_disk_bytes = self.store.engine().sizes().map_or(0, |sizes| sizes.disk_bytes);
        info.wal_bytes = self.wal.disk_bytes();
        let partitions = (cluster.routing.routes().iter())
            .filter(|route| led.contains(&route.partition))
            .filter_map(|route| {
                let partition = cluster.state.partitions.get(&route.partition)?;
                Some(self.partition_info(
                    &cluster.state,
                    route.partition,
                    (route.first, route.last),
                    partition,
                ))
            })
            .collect();
        Ok((info, partitions))
    }

    fn partition_info(
        &self,
        state: &meta::State,
        id: PartitionId,
        (first_hash, last_hash): (u64, u64),
        partition: &meta::Partition,
    ) -> PartitionInfo {
        let mut info = PartitionInfo {
            id,
            first_hash,
            last_hash,
            replicas: Vec::new(),
            leader: None,
            term: 0,
            commit_index: 0,
            applied_index: 0,
            key_count: 0,
            data_bytes: 0,
        };
        let Some(replica) = self.replica(id) else {
            return info;
        };
        let status = replica.group.status();
        info.leader = status.live_leader().and_then(|leader| name_of(state, leader.node()));
        info.term = status.term;
        info.commit_index = status.committed.map_or(0, |id| id.index);
        info.applied_index = status.applied.map_or(0, |id| id.index);
        info.key_count = replica.totals.keys();
        info.data_bytes = replica.totals.bytes();
        let here = replica.group.key().replica;
        info.replicas = (partition.replicas.iter())
            .map(|replica| ReplicaInfo {
                id: *replica,
                node: name_of(state, replica.node()).unwrap_or_default(),
                role: role_of(*replica, here, &status),
                match_index: match_of(*replica, here, &status),
                silent: silence_of(*replica, &status),
            })
            .collect();
        info
    }
}

/// Adds what a node tells; what others tell in the same words is told once.
fn tell(problems: &mut Vec<ClusterProblem>, node: &str, told: impl IntoIterator<Item = (String, String)>) {
    for (reason, message) in told {
        let same = |one: &&mut ClusterProblem| (&one.reason, &one.message) == (&reason, &message);
        match problems.iter_mut().find(same) {
            Some(known) => known.nodes.push(node.to_string()),
            None => problems.push(ClusterProblem { reason, message, nodes: vec![node.to_string()] }),
        }
    }
}

/// A member that did not say more of itself.
fn known_of(number: NodeId, member: &meta::Member) -> NodeInfo {
    NodeInfo {
        name: member.name.clone(),
        number,
        address: member.address.clone(),
        zone: member.zone.clone(),
        weight: member.weight,
        is_group0_leader: false,
        version: String::new(),
        engine: String::new(),
        started_at_unix_ms: 0,
        disk_free_bytes: 0,
        disk_total_bytes: 0,
        replica_count: 0,
        leader_count: 0,
        engine_disk_bytes: 0,
        wal_bytes: 0,
        is_leaving: member.state == meta::MemberState::Leaving,
        is_reachable: false,
        group0_role: None,
    }
}

fn node_from(node: v1::Node) -> NodeInfo {
    NodeInfo {
        is_leaving: node.state() == v1::NodeState::Leaving,
        is_reachable: node.is_reachable,
        group0_role: None,
        name: node.name,
        number: NodeId(u32::try_from(node.number).unwrap_or(u32::MAX)),
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
    }
}

fn partition_from(partition: v1::Partition) -> PartitionInfo {
    let replica = |replica: v1::Replica| ReplicaInfo {
        id: ReplicaId(replica.id),
        role: match replica.role() {
            v1::ReplicaRole::Leader => Role::Leader,
            v1::ReplicaRole::Learner => Role::Learner,
            v1::ReplicaRole::Candidate => Role::Candidate,
            v1::ReplicaRole::Follower | v1::ReplicaRole::Unspecified => Role::Follower,
        },
        node: replica.node,
        match_index: replica.match_index,
        silent: replica.silent_ms.map(Duration::from_millis),
    };
    PartitionInfo {
        id: PartitionId(partition.id),
        first_hash: partition.first_hash,
        last_hash: partition.last_hash,
        replicas: partition.replicas.into_iter().map(replica).collect(),
        leader: Some(partition.leader).filter(|leader| !leader.is_empty()),
        term: partition.term,
        commit_index: partition.commit_index,
        applied_index: partition.applied_index,
        key_count: partition.key_count,
        data_bytes: partition.data_bytes,
    }
}

impl Node {
    /// A member's name; its number if there is no such member.
    pub(super) fn member_name(&self, number: NodeId) -> String {
        let name = self.cluster().and_then(|cluster| name_of(&cluster.state, number));
        name.unwrap_or_else(|| number.to_string())
    }
}

fn name_of(state: &meta::State, number: NodeId) -> Option<String> {
    state.members.get(&number).map(|member| member.name.clone())
}

/// A replica's role as the one here sees it.
fn role_of(replica: ReplicaId, here: ReplicaId, status: &raft::Status) -> Role {
    if replica == here {
        return status.role.into();
    }
    match status.live_leader() {
        Some(leader) if leader == replica => Role::Leader,
        _ if status.learners.contains(&replica) => Role::Learner,
        _ => Role::Follower,
    }
}

/// A node's role in group 0, as this one sees it.
fn role_in(group0: &raft::Status, number: NodeId) -> Option<Role> {
    let of = |replicas: &[ReplicaId]| replicas.iter().any(|replica| replica.node() == number);
    match group0.live_leader() {
        Some(leader) if leader.node() == number => Some(Role::Leader),
        _ if of(&group0.voters) => Some(Role::Follower),
        _ if of(&group0.learners) => Some(Role::Learner),
        _ => None,
    }
}

fn silence_of(replica: ReplicaId, status: &raft::Status) -> Option<Duration> {
    status.answered.iter().find(|(id, _)| *id == replica).map(|(_, ago)| *ago)
}

fn match_of(replica: ReplicaId, here: ReplicaId, status: &raft::Status) -> u64 {
    if replica == here {
        return status.last_index;
    }
    status.matched.iter().find(|(id, _)| *id == replica).map_or(0, |(_, index)| *index)
}
