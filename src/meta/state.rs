//! The cluster as values, and what follows from them: pure.

use std::collections::BTreeMap;

use super::partition::{Desired, Holders, Partition, largest_odd};
use crate::placement::{Candidate, Placement, Route, RoutingTable};
use crate::types::{Epoch, GroupId, NodeId, PartitionId, ReplicaId};

/// The newest set of commands and formats that this program knows.
pub const CLUSTER_VERSION: u32 = 1;

/// What every cluster begins with, whichever programs found it: what the command does must not depend on
/// the program that applies it. It rises from there.
pub(super) const FIRST_VERSION: u32 = 1;

/// Most voters of group 0: two may fail, and every change of the cluster waits for three disks.
const GROUP0_VOTERS_MAX: usize = 5;

/// Whether a member takes part, or is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    Active,
    /// Its copies move elsewhere; when none is left, it is removed.
    Leaving,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    /// host:port that others dial.
    pub address: String,
    pub zone: String,
    /// Its share of the data, relative to the others'; 1 to [`WEIGHT_MAX`](crate::limits::WEIGHT_MAX).
    pub weight: u32,
    /// The data directory's own id: a second holder of the name is told by it.
    pub disk_id: String,
    pub state: MemberState,
}

/// What stays of a member that was removed, so that it can be told if it returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    pub name: String,
    pub disk_id: String,
}

/// Which cluster a cluster of one gives itself up to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub cluster_id: String,
    /// Its members', host:port.
    pub addresses: Vec<String>,
}

/// All that group 0 knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// Drawn at formation; empty before.
    pub cluster_id: String,
    pub cluster_name: String,
    /// Gates new commands and formats.
    pub version: u32,
    /// Grows with every change of members or of placement.
    pub epoch: Epoch,
    /// Copies of every key.
    pub replicas: u32,
    /// What the next member will be numbered.
    pub(super) next_number: NodeId,
    pub members: BTreeMap<NodeId, Member>,
    /// Members that were removed.
    pub removed: BTreeMap<NodeId, Tombstone>,
    /// Who is in group 0.
    pub group0: Holders,
    pub partitions: BTreeMap<PartitionId, Partition>,
    /// Set while it gives itself up.
    pub sealed: Option<Sealed>,
}

/// A node's replica of group 0. A node has one in its life: a new disk is a new member.
pub fn group0_replica(number: NodeId) -> ReplicaId {
    ReplicaId::new(number, 1)
}

/// Who votes in group 0: of the active members the largest odd number up to five, those with the
/// lowest numbers.
pub fn group0_voters(state: &State) -> Vec<NodeId> {
    let active: Vec<NodeId> = state.active().map(|(number, _)| number).collect();
    let count = largest_odd(active.len().min(GROUP0_VOTERS_MAX));
    active[..count].to_vec()
}

/// Numbers members for a formation: from 1, in the order of their names.
pub fn number_members(members: impl IntoIterator<Item = Member>) -> BTreeMap<NodeId, Member> {
    let mut members: Vec<Member> = members.into_iter().collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    (1..).map(NodeId).zip(members).collect()
}

impl State {
    pub fn is_formed(&self) -> bool {
        !self.cluster_id.is_empty()
    }

    /// The member or former member with this disk.
    pub fn number_of_disk(&self, disk_id: &str) -> Option<NodeId> {
        let members = self.members.iter().map(|(number, member)| (number, &member.disk_id));
        let removed = self.removed.iter().map(|(number, tombstone)| (number, &tombstone.disk_id));
        members.chain(removed).find(|(_, disk)| *disk == disk_id).map(|(number, _)| *number)
    }

    pub(super) fn active(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        let active = |member: &Member| member.state == MemberState::Active;
        self.members
            .iter()
            .filter(move |(_, member)| active(member))
            .map(|(number, member)| (*number, member))
    }

    /// Those that may hold copies.
    pub fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(number, member): (NodeId, &Member)| Candidate {
            number,
            name: member.name.clone(),
            zone: member.zone.clone(),
            weight: member.weight,
        };
        self.active().map(candidate).collect()
    }

    /// Where copies should be, as nodes.
    pub fn placement(&self) -> Placement {
        let nodes = |partition: &Partition| partition.replicas.iter().map(|replica| replica.node()).collect();
        self.partitions.iter().map(|(id, partition)| (*id, nodes(partition))).collect()
    }

    /// What a group's membership should become; `None` for a partition that does not exist.
    ///
    /// In group 0 a leaving member stays a learner until no partition names it any more: until then it
    /// has to learn of its own changes.
    pub fn desired(&self, group: GroupId) -> Option<Desired> {
        if group != GroupId::META {
            return self.partitions.get(&partition_of(group)?).map(Partition::desired);
        }
        let voters = group0_voters(self);
        let stays = |number: NodeId, member: &Member| {
            member.state == MemberState::Active || self.partitions.values().any(|p| p.names(number))
        };
        let learners = (self.members.iter())
            .filter(|(number, member)| !voters.contains(number) && stays(**number, member))
            .map(|(number, _)| group0_replica(*number));
        Some(Desired {
            learners: learners.collect(),
            voters: voters.iter().copied().map(group0_replica).collect(),
            preferred_leader: None,
            is_renewed: false,
        })
    }

    /// The replica was meant to be in its partition, and no longer is. A state from before the replica
    /// does not know it at all: that such a state does not want it says nothing.
    pub fn has_discarded(&self, id: PartitionId, replica: ReplicaId) -> bool {
        let Some(partition) = self.partitions.get(&id) else { return false };
        let newest = partition.incarnations.get(&replica.node());
        let issued = newest.is_some_and(|newest| replica.incarnation() <= *newest);
        (issued || self.removed.contains_key(&replica.node())) && !partition.replicas.contains(&replica)
    }

    /// Who is in a group, as far as group 0 knows; `None` for a partition that does not exist.
    pub fn holders(&self, group: GroupId) -> Option<&Holders> {
        if group == GroupId::META {
            return Some(&self.group0);
        }
        self.partitions.get(&partition_of(group)?).map(|partition| &partition.holders)
    }

    /// The partition that a group replicates.
    pub(super) fn partition_mut(&mut self, group: GroupId) -> Option<&mut Partition> {
        self.partitions.get_mut(&partition_of(group)?)
    }

    /// The leaving members that nothing names any more: group 0's leader proposes
    /// [`Command::Removed`](super::Command::Removed) for them.
    pub fn removable(&self) -> Vec<NodeId> {
        let leaving = self.members.iter().filter(|(_, member)| member.state == MemberState::Leaving);
        leaving.map(|(number, _)| *number).filter(|number| self.still_named(*number).is_none()).collect()
    }

    /// What still names this node: the first group found.
    pub(super) fn still_named(&self, number: NodeId) -> Option<String> {
        let partition = self.partitions.iter().find(|(_, partition)| partition.names(number));
        if let Some((id, _)) = partition {
            return Some(format!("partition {id}"));
        }
        self.group0.name(number).then(|| "group 0".to_string())
    }

    /// Which partition holds which hashes.
    pub fn routing(&self) -> Result<RoutingTable, String> {
        let mut starts: Vec<(u64, PartitionId)> =
            self.partitions.iter().map(|(id, partition)| (partition.first, *id)).collect();
        starts.sort_unstable();
        let ends = starts.iter().skip(1).map(|(first, _)| first.wrapping_sub(1)).chain([u64::MAX]);
        let routes =
            starts.iter().zip(ends).map(|((first, id), last)| Route { first: *first, last, partition: *id });
        RoutingTable::new(routes.collect())
    }
}

/// The partition that a group replicates.
fn partition_of(group: GroupId) -> Option<PartitionId> {
    group.0.checked_sub(1).map(PartitionId)
}
