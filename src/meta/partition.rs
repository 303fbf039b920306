//! One partition as group 0 knows it: who should hold it, and who may.

use std::collections::BTreeMap;

use crate::types::{NodeId, ReplicaId};

/// Whether a group has come to life. Only its birth voters may initialise it, and only while it
/// is `Creating`: otherwise a replica that lost its log could start the group's history anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Birth {
    Creating,
    Created,
}

/// Who is in a group, as its leader last reported; besides, until a report says otherwise, whoever was
/// meant to be in it since. So nobody who may be in a group is missing here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holders {
    /// Voters and learners, sorted.
    pub replicas: Vec<ReplicaId>,
    /// Log index, in that group, of the membership that was reported: an older report changes nothing.
    pub index: u64,
}

impl Holders {
    pub(super) fn add(&mut self, replica: ReplicaId) {
        if let Err(at) = self.replicas.binary_search(&replica) {
            self.replicas.insert(at, replica);
        }
    }

    /// Takes a report, unless it was delayed, and overtaken by a newer one; true: that is something new.
    pub(super) fn report(&mut self, mut replicas: Vec<ReplicaId>, index: u64) -> bool {
        if index < self.index {
            return false;
        }
        replicas.sort_unstable();
        replicas.dedup();
        let is_new = self.replicas != replicas;
        *self = Holders { replicas, index };
        is_new
    }

    pub(super) fn name(&self, number: NodeId) -> bool {
        self.replicas.iter().any(|replica| replica.node() == number)
    }
}

/// What a group's membership should become.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// An odd number of them, the preferred leader first.
    pub voters: Vec<ReplicaId>,
    pub learners: Vec<ReplicaId>,
    /// None where it does not matter who leads.
    pub preferred_leader: Option<ReplicaId>,
    /// Group 0 draws another replica for one that is wanted and was excluded, as soon as it is told. Not so
    /// in group 0 itself, where a node has one in its life.
    pub is_renewed: bool,
}

impl Desired {
    /// The largest odd number of the copies votes, from the front; a further one is a learner.
    fn of(copies: &[ReplicaId]) -> Desired {
        let (voters, learners) = copies.split_at(largest_odd(copies.len()));
        let preferred_leader = voters.first().copied();
        let (voters, learners) = (voters.to_vec(), learners.to_vec());
        Desired { voters, learners, preferred_leader, is_renewed: true }
    }

    /// Whether the replica should be in the group.
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica) || self.learners.contains(&replica)
    }
}

/// An even number of voters tolerates no more failures than one voter less, and waits for one more.
pub(super) fn largest_odd(count: usize) -> usize {
    if count.is_multiple_of(2) { count.saturating_sub(1) } else { count }
}

/// A range of the hash space, and who should hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// First hash; the range ends where the next one starts.
    pub first: u64,
    pub birth: Birth,
    /// The replicas it is created with; one of [`Partition::birth_voters`] initialises, the first if it comes.
    pub birth_replicas: Vec<ReplicaId>,
    /// The replicas it should have, the preferred leader first.
    pub replicas: Vec<ReplicaId>,
    pub holders: Holders,
    /// The newest incarnation each node was given here: a replica's id is never used again.
    pub(super) incarnations: BTreeMap<NodeId, u32>,
    /// When a damaged replica was last replaced, in seconds of Unix time by its node's clock; 0: never.
    pub(super) rebuilt_at: u64,
}

/// From one replacement of a damaged replica to the next one of the same partition: if what damages replicas
/// is not the disk, rebuilding them one after another would leave none.
const REBUILD_PAUSE_SECONDS: u64 = 3600;

impl Partition {
    /// What its group should become.
    pub fn desired(&self) -> Desired {
        Desired::of(&self.replicas)
    }

    /// With whom it is initialised, by one of them; the rest of the birth replicas are added.
    pub fn birth_voters(&self) -> Vec<ReplicaId> {
        Desired::of(&self.birth_replicas).voters
    }

    /// A partition that is to be created on these nodes, the preferred leader first.
    pub(crate) fn born(first: u64, nodes: &[NodeId]) -> Partition {
        let mut partition = Partition {
            first,
            birth: Birth::Creating,
            birth_replicas: Vec::new(),
            replicas: Vec::new(),
            holders: Holders::default(),
            incarnations: BTreeMap::new(),
            rebuilt_at: 0,
        };
        partition.place(nodes);
        partition.birth_replicas = partition.replicas.clone();
        for replica in partition.birth_voters() {
            partition.holders.add(replica);
        }
        partition
    }

    /// Wants copies on these nodes, the preferred leader first. Who may still be in the group stays who it
    /// is, and the move that was to take it away is off; who is not is a new replica. Who is no longer wanted
    /// counts as a holder until a report says otherwise.
    pub(crate) fn place(&mut self, nodes: &[NodeId]) {
        let before = std::mem::take(&mut self.replicas);
        for node in nodes {
            let wanted = before.iter().copied().find(|replica| replica.node() == *node);
            let replica = wanted.or_else(|| self.newest_held(*node)).unwrap_or_else(|| self.draw(*node));
            self.replicas.push(replica);
        }
        for gone in before {
            if !self.replicas.contains(&gone) {
                self.holders.add(gone);
            }
        }
    }

    fn newest_held(&self, node: NodeId) -> Option<ReplicaId> {
        let newest = ReplicaId::new(node, *self.incarnations.get(&node)?);
        self.holders.replicas.binary_search(&newest).is_ok().then_some(newest)
    }

    /// A replica that there never was.
    fn draw(&mut self, node: NodeId) -> ReplicaId {
        let incarnation = self.incarnations.entry(node).or_default();
        *incarnation += 1;
        ReplicaId::new(node, *incarnation)
    }

    /// Takes its leader's report of who is in the group; true: that is something new. A wanted replica that
    /// is no longer in it was excluded by a leader that did not know yet that it is wanted again: its node
    /// may have destroyed it, so that another one takes its place.
    pub(crate) fn report(&mut self, replicas: Vec<ReplicaId>, index: u64) -> bool {
        let before = self.holders.replicas.clone();
        if !self.holders.report(replicas, index) {
            return false;
        }
        let excluded = before.iter().filter(|replica| !self.holders.replicas.contains(replica));
        for replica in excluded.copied().collect::<Vec<_>>() {
            self.replace(replica);
        }
        true
    }

    /// Another replica takes the place of one that its node destroyed; false: it is not wanted.
    pub(crate) fn renew(&mut self, replica: ReplicaId) -> bool {
        let replaced = self.replace(replica);
        if replaced {
            // Its group may know it all the same.
            self.holders.add(replica);
        }
        replaced
    }

    /// Whether a majority of the copies is left without one of them.
    pub fn can_be_rebuilt(&self) -> bool {
        self.replicas.len() >= 3
    }

    /// Another replica takes the place of a damaged one, at `now` by its node's clock. False: it is not wanted,
    /// there is nothing to do.
    ///
    /// # Errors
    /// If too few others are left to rebuild it from, or another one was rebuilt just before.
    pub(crate) fn rebuild(&mut self, replica: ReplicaId, now: u64) -> Result<bool, String> {
        if !self.replicas.contains(&replica) {
            return Ok(false);
        }
        if !self.can_be_rebuilt() {
            return Err(format!(
                "with {} copies there is no majority beside it: nothing is thrown away; whoever runs the cluster has to \
                 decide",
                self.replicas.len()
            ));
        }
        // A clock that was far ahead must not put this off for years.
        if self.rebuilt_at > 0 && now.abs_diff(self.rebuilt_at) < REBUILD_PAUSE_SECONDS {
            return Err(format!(
                "a replica was rebuilt less than {} minutes ago: this one has to wait",
                REBUILD_PAUSE_SECONDS / 60
            ));
        }
        self.rebuilt_at = now.max(1);
        Ok(self.renew(replica))
    }

    fn replace(&mut self, replica: ReplicaId) -> bool {
        let Some(at) = self.replicas.iter().position(|wanted| *wanted == replica) else { return false };
        self.replicas[at] = self.draw(replica.node());
        true
    }

    pub(super) fn names(&self, number: NodeId) -> bool {
        self.holders.name(number) || self.replicas.iter().any(|replica| replica.node() == number)
    }
}
