//! What changes the cluster, and what each change makes of it: pure, and the same on every node.
//!
//! A command whose outcome is unknown is proposed again, so that each may be repeated: once it has
//! taken effect, it answers the same and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::group0_replica;
use super::partition::{Birth, Partition};
use super::state::{FIRST_VERSION, Member, MemberState, Sealed, State, Tombstone};
use crate::limits::{MEMBERS_MAX, PARTITIONS_MAX, REPLICAS_MAX, WEIGHT_MAX};
use crate::placement::{Placement, RoutingTable, place};
use crate::types::{Epoch, GroupId, NodeId, PartitionId, ReplicaId};

/// The founding of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    pub cluster_id: String,
    pub cluster_name: String,
    pub replicas: u32,
    /// A power of two.
    pub partitions: u32,
    /// Numbered as [`number_members`](super::number_members) does.
    pub members: BTreeMap<NodeId, Member>,
}

/// A node that asks to become a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    pub name: String,
    pub address: String,
    pub zone: String,
    pub weight: u32,
    pub disk_id: String,
    /// The newest cluster version that its program knows.
    pub version_max: u32,
}

/// A change of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Form(Form),
    /// The group of this partition has been initialised.
    Created(PartitionId),
    /// What a member says of itself has changed; its name and disk stay.
    UpdateMember {
        number: NodeId,
        address: String,
        zone: String,
        weight: u32,
    },
    /// Makes a node a member, and gives it its share. Answers its number.
    Join(Join),
    /// Moves everything away from a member, which is removed afterwards.
    Leave(NodeId),
    /// A group's leader reports its committed, uniform membership: voters and learners.
    Moved {
        group: GroupId,
        holders: Vec<ReplicaId>,
        /// Log index of that membership.
        index: u64,
    },
    /// A node says that it destroyed this replica, though it is wanted (again): another one takes its place.
    Renew {
        partition: PartitionId,
        replica: ReplicaId,
    },
    /// A node's replica is damaged, at that second of Unix time, and others are not: another one takes its place.
    Rebuild {
        partition: PartitionId,
        replica: ReplicaId,
        at: u64,
    },
    /// A leaving member holds nothing any more: see [`State::removable`].
    Removed(NodeId),
    /// A cluster of one gives itself up to join another: nobody can join it any more.
    Seal(Sealed),
    /// It does not after all.
    Unseal,
    /// Allows the commands and formats of this cluster version. Every member of the cluster at that epoch
    /// must know it: the proposer sees to that. Refused at a later epoch.
    SetVersion {
        version: u32,
        epoch: Epoch,
    },
}

/// What group 0 answers to a command that it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// The number of the member that joined.
    Number(NodeId),
}

impl State {
    /// What the command makes of this state; or why it is refused, and the state stays.
    pub fn apply(&mut self, command: Command) -> Result<Answer, String> {
        if !self.is_formed() && !matches!(command, Command::Form(_)) {
            return Err("the cluster is not formed yet".into());
        }
        match command {
            Command::Form(form) => self.form(form)?,
            Command::Created(id) => {
                let partition = self.partitions.get_mut(&id).ok_or(format!("there is no partition {id}"))?;
                partition.birth = Birth::Created;
            }
            Command::UpdateMember { number, address, zone, weight } => {
                self.update(number, address, zone, weight)?;
            }
            Command::Join(join) => return self.join(join).map(Answer::Number),
            Command::Leave(number) => self.leave(number)?,
            Command::Moved { group, holders, index } => self.moved(group, holders, index)?,
            Command::Renew { partition, replica } => {
                let known = self.partitions.get_mut(&partition);
                if known.ok_or(format!("there is no partition {partition}"))?.renew(replica) {
                    self.epoch.0 += 1;
                }
            }
            Command::Rebuild { partition, replica, at } => {
                let known = self.partitions.get_mut(&partition);
                if known.ok_or(format!("there is no partition {partition}"))?.rebuild(replica, at)? {
                    self.epoch.0 += 1;
                }
            }
            Command::Removed(number) => self.remove(number)?,
            Command::Seal(target) => self.seal(target)?,
            Command::Unseal => self.sealed = None,
            Command::SetVersion { version, epoch } => self.raise_version(version, epoch)?,
        }
        Ok(Answer::Done)
    }

    fn form(&mut self, form: Form) -> Result<(), String> {
        if self.is_formed() {
            // The founder proposes it again after a crash.
            return match self.cluster_id == form.cluster_id {
                true => Ok(()),
                false => Err(format!("the cluster {} is formed already", self.cluster_id)),
            };
        }
        check_form(&form)?;
        let routes = RoutingTable::equal(form.partitions);
        let count = u32::try_from(form.members.len()).expect("a cluster has at most MEMBERS_MAX members");
        self.cluster_id = form.cluster_id;
        self.cluster_name = form.cluster_name;
        self.version = FIRST_VERSION;
        self.replicas = form.replicas;
        self.members = form.members;
        self.next_number = NodeId(count + 1);
        self.epoch = Epoch(1);
        self.group0.replicas = self.members.keys().map(|number| group0_replica(*number)).collect();
        let placement = place(&Placement::new(), &routes, &self.candidates(), self.replicas);
        self.partitions = (routes.routes().iter())
            .map(|route| (route.partition, Partition::born(route.first, &placement[&route.partition])))
            .collect();
        Ok(())
    }

    fn update(&mut self, number: NodeId, address: String, zone: String, weight: u32) -> Result<(), String> {
        check_weight(weight)?;
        let member = self.members.get_mut(&number).ok_or(format!("there is no member {number}"))?;
        let moves = (&member.zone, member.weight) != (&zone, weight);
        if !moves && member.address == address {
            return Ok(());
        }
        (member.address, member.zone, member.weight) = (address, zone, weight);
        match moves {
            true => self.place_anew(),
            false => self.epoch.0 += 1,
        }
        Ok(())
    }

    fn join(&mut self, join: Join) -> Result<NodeId, String> {
        let Join { name, address, zone, weight, disk_id, version_max } = join;
        if let Some(target) = &self.sealed {
            return Err(format!(
                "this cluster gives itself up to join {}: join that one, at {}",
                target.cluster_id,
                target.addresses.join(" or ")
            ));
        }
        if let Some((number, tombstone)) = self.removed.iter().find(|(_, was)| was.disk_id == disk_id) {
            return Err(format!(
                "this data directory was {}'s, member {number}, which was removed: start with an empty one",
                tombstone.name
            ));
        }
        if let Some((number, member)) = self.members.iter().find(|(_, member)| member.disk_id == disk_id) {
            return match (member.name == name, member.state) {
                (true, MemberState::Active) => Ok(*number),
                (true, MemberState::Leaving) => Err(format!(
                    "{name}, member {number}, is leaving: start with an empty data directory later"
                )),
                (false, _) => {
                    Err(format!("the data directory of {name} is {}'s, member {number}", member.name))
                }
            };
        }
        if let Some((number, member)) = self.members.iter().find(|(_, member)| member.name == name) {
            if member.state == MemberState::Leaving {
                return Err(format!(
                    "{name} is member {number} with another data directory, and is still leaving: start again once \
                     rushkvctl node list, on another node, does not name it any more"
                ));
            }
            return Err(format!(
                "{name} is member {number} with another data directory: if its disk was lost or replaced, let that \
                 member leave first (rushkvctl cluster leave {name} --yes); else choose another node_id"
            ));
        }
        // The version may have risen since the node was asked.
        self.admits_version(version_max)?;
        check_weight(weight)?;
        if name.is_empty() || disk_id.is_empty() {
            return Err("a member needs a name and a disk id".into());
        }
        if self.members.len() >= MEMBERS_MAX {
            return Err(format!("a cluster has at most {MEMBERS_MAX} members"));
        }
        let number = self.next_number;
        self.next_number.0 += 1;
        let state = MemberState::Active;
        self.members.insert(number, Member { name, address, zone, weight, disk_id, state });
        self.group0.add(group0_replica(number));
        self.place_anew();
        Ok(number)
    }

    fn seal(&mut self, target: Sealed) -> Result<(), String> {
        match &self.sealed {
            Some(sealed) if *sealed == target => return Ok(()),
            Some(sealed) => {
                return Err(format!("this cluster gives itself up already, to join {}", sealed.cluster_id));
            }
            None => {}
        }
        if target.cluster_id == self.cluster_id {
            return Err("a cluster can't join itself".into());
        }
        if self.members.len() > 1 {
            return Err(format!(
                "this cluster has {} members: only a cluster of one can give itself up; let the node leave first",
                self.members.len()
            ));
        }
        self.sealed = Some(target);
        Ok(())
    }

    fn leave(&mut self, number: NodeId) -> Result<(), String> {
        if self.removed.contains_key(&number) {
            return Ok(());
        }
        let others = self.active().filter(|(other, _)| *other != number).count();
        let member = self.members.get_mut(&number).ok_or(format!("there is no member {number}"))?;
        if member.state == MemberState::Leaving {
            return Ok(());
        }
        if others == 0 {
            return Err(format!("{} is the last member: nobody is left to take its data", member.name));
        }
        member.state = MemberState::Leaving;
        self.place_anew();
        Ok(())
    }

    fn moved(&mut self, group: GroupId, replicas: Vec<ReplicaId>, index: u64) -> Result<(), String> {
        if self.holders(group).is_none() {
            return Err(format!("there is no group {group}"));
        }
        if replicas.is_empty() {
            return Err(format!("a report says that nobody is in group {group}"));
        }
        let is_new = match self.partition_mut(group) {
            Some(partition) => partition.report(replicas, index),
            None => self.group0.report(replicas, index),
        };
        if is_new {
            self.epoch.0 += 1;
        }
        Ok(())
    }

    fn remove(&mut self, number: NodeId) -> Result<(), String> {
        if self.removed.contains_key(&number) {
            return Ok(());
        }
        let member = self.members.get(&number).ok_or(format!("there is no member {number}"))?;
        if member.state != MemberState::Leaving {
            return Err(format!("{} has not been asked to leave", member.name));
        }
        if let Some(group) = self.still_named(number) {
            return Err(format!("{} is still in {group}", member.name));
        }
        let tombstone = Tombstone { name: member.name.clone(), disk_id: member.disk_id.clone() };
        self.members.remove(&number);
        self.removed.insert(number, tombstone);
        for partition in self.partitions.values_mut() {
            // The number is never given again, and so no replica of it either.
            partition.incarnations.remove(&number);
        }
        self.epoch.0 += 1;
        Ok(())
    }

    /// Places all partitions on the members that are active now.
    fn place_anew(&mut self) {
        let routes = self.routing().expect("the partitions have divided the hash space since formation");
        let placement = place(&self.placement(), &routes, &self.candidates(), self.replicas);
        for (id, partition) in &mut self.partitions {
            partition.place(&placement[id]);
        }
        self.epoch.0 += 1;
    }
}

fn check_weight(weight: u32) -> Result<(), String> {
    match weight {
        1..=WEIGHT_MAX => Ok(()),
        _ => Err(format!("the weight {weight} is not between 1 and {WEIGHT_MAX}")),
    }
}

fn check_form(form: &Form) -> Result<(), String> {
    if form.cluster_id.is_empty() {
        return Err("a cluster needs an id".into());
    }
    if !form.partitions.is_power_of_two() || form.partitions > PARTITIONS_MAX {
        return Err(format!("{} partitions are not a power of two up to {PARTITIONS_MAX}", form.partitions));
    }
    if !(1..=REPLICAS_MAX).contains(&form.replicas) {
        return Err(format!("{} replicas are not between 1 and {REPLICAS_MAX}", form.replicas));
    }
    if !(1..=MEMBERS_MAX).contains(&form.members.len()) {
        return Err(format!("{} members are not between 1 and {MEMBERS_MAX}", form.members.len()));
    }
    let names: BTreeSet<&String> = form.members.values().map(|member| &member.name).collect();
    let disks: BTreeSet<&String> = form.members.values().map(|member| &member.disk_id).collect();
    if names.len() < form.members.len() || disks.len() < form.members.len() {
        return Err("two members have the same name or the same disk id".into());
    }
    let numbers = (1..).map(NodeId);
    let in_order = form.members.values().map(|member| &member.name).eq(names);
    if !form.members.keys().copied().eq(numbers.take(form.members.len())) || !in_order {
        return Err("the members are not numbered from 1 by their names".into());
    }
    for member in form.members.values() {
        check_weight(member.weight)?;
        if member.name.is_empty() || member.state != MemberState::Active {
            return Err(format!("{:?} can't found a cluster: it has no name, or is leaving", member.name));
        }
    }
    Ok(())
}
