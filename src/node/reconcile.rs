//! Makes what is what group 0 says should be: pure decisions, for somebody else to carry out.
//!
//! [`decide`] is for the leader of a group: one step at a time, each safe by itself, so that a leader
//! may die after any of them and the next one goes on from what it finds. [`replicas_to_open`] and
//! [`replicas_to_close`] are for a node's own replicas.
//!
//! A move is: add the new copies as learners, wait until they have everything, change the voters in
//! one joint change (who no longer votes stays as a learner), and only then remove whoever is left
//! over. So the copies never fall below what is desired, and a change that can't be finished leaves
//! the group as it serves now.

use std::collections::{BTreeMap, BTreeSet};

use crate::meta::{self, Birth, Desired};
use crate::types::{LogId, NodeId, PartitionId, ReplicaId};

/// A group as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The leader's own replica.
    pub here: ReplicaId,
    /// While joint: those of the newer set.
    pub voters: Vec<ReplicaId>,
    pub learners: Vec<ReplicaId>,
    /// Two sets of voters must agree.
    pub joint: bool,
    /// The newest membership in the log is committed.
    pub membership_committed: bool,
    /// Log index of that membership. Every change must be refused if it is no longer this one.
    pub membership_index: u64,
    /// Of the others, the last log index that each has durably, as acknowledged in this leader's term.
    /// Who was not heard of lately should be left out: it does not count as a copy then.
    pub matched: BTreeMap<ReplicaId, u64>,
    /// What a copy must have to be complete: the leader's commit index when `matched` was read, or
    /// somewhat earlier (so that a copy is not behind for ever merely because writes go on).
    pub commit_index: u64,
    /// The holders of this group as group 0 knows them, sorted.
    pub reported_holders: Vec<ReplicaId>,
}

/// What the leader should do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// All is as it should be, or something has to happen first.
    Nothing,
    /// Leave the joint configuration for its newer set of voters (the leader is one of them).
    Flatten,
    /// Add it without waiting for it.
    AddLearner(ReplicaId),
    /// Let these vote, in one joint change. Who voted before and is not among them becomes a learner.
    ChangeVoters(Vec<ReplicaId>),
    /// Drop it from the group.
    RemoveLearner(ReplicaId),
    /// Hand leadership to this voter, which has everything. To be repeated with patience: the other
    /// side may decline.
    TransferLeader(ReplicaId),
    /// Tell group 0 who is in the group (the command `Moved`): voters and learners, sorted.
    Report { holders: Vec<ReplicaId>, index: u64 },
}

impl Observed {
    fn is_complete(&self, replica: ReplicaId) -> bool {
        replica == self.here
            || self.matched.get(&replica).is_some_and(|matched| *matched >= self.commit_index)
    }
}

/// The next step from what is to what should be.
pub fn decide(desired: &Desired, observed: &Observed) -> Step {
    if !observed.membership_committed {
        return Step::Nothing;
    }
    let voters: BTreeSet<ReplicaId> = observed.voters.iter().copied().collect();
    if observed.joint {
        return flatten(desired, observed, &voters);
    }
    let members: BTreeSet<ReplicaId> = voters.iter().chain(&observed.learners).copied().collect();
    let here = observed.here;
    if desired.voters.is_empty() {
        return Step::Nothing; // nobody to move to
    }
    if !voters.contains(&here) {
        // Elected while the change that took its vote was not committed yet: it would lead for good.
        return hand_over(desired, observed, &voters);
    }
    let wanted = || desired.voters.iter().chain(&desired.learners).copied();
    let report = || {
        let holders = members.iter().copied().collect();
        Step::Report { holders, index: observed.membership_index }
    };
    if let Some(missing) = wanted().find(|replica| !members.contains(replica)) {
        // Who was in the group does not come back: group 0 draws another one when it hears of it.
        let was_excluded = desired.is_renewed && observed.reported_holders.contains(&missing);
        return if was_excluded { report() } else { Step::AddLearner(missing) };
    }
    // All additions are reported at once; group 0 counts whoever was to be added as a holder anyway.
    if !members.iter().eq(&observed.reported_holders) {
        return report();
    }
    let is_in_the_way = |replica: &ReplicaId| {
        !desired.contains(*replica) && wanted().any(|wanted| wanted.node() == replica.node())
    };
    if let Some(older) = members.iter().copied().find(is_in_the_way)
        && let Some(step) = give_way(older, observed, &voters)
    {
        return step;
    }
    if !voters.iter().eq(&desired.voters.iter().copied().collect::<BTreeSet<_>>()) {
        return change_voters(desired, observed, &voters);
    }
    if let Some(extra) = members.iter().find(|replica| !desired.contains(**replica)) {
        // It may be the only complete copy beside those that are not complete yet.
        return match wanted().all(|replica| observed.is_complete(replica)) {
            true => Step::RemoveLearner(*extra),
            false => Step::Nothing,
        };
    }
    match desired.preferred_leader {
        Some(preferred)
            if preferred != here && voters.contains(&preferred) && observed.is_complete(preferred) =>
        {
            Step::TransferLeader(preferred)
        }
        _ => Step::Nothing,
    }
}

/// What is desired while the replicas of a group differ, and no majority says which is right: nobody comes in, since
/// it would be made after the leader's, and nobody goes, who could still say something, but those whose nodes are to
/// leave, and those that others on their nodes are to replace. So an operator can leave the wrong ones out.
pub fn desired_while_halted(
    desired: Desired,
    observed: &Observed,
    leaves: impl Fn(NodeId) -> bool,
) -> Desired {
    let is_replaced = |replica: ReplicaId| {
        let wanted = desired.voters.iter().chain(&desired.learners);
        wanted.clone().any(|wanted| wanted.node() == replica.node() && *wanted != replica)
    };
    let stays = |replica: &ReplicaId| {
        desired.contains(*replica) || !(leaves(replica.node()) || is_replaced(*replica))
    };
    let kept = |of: &[ReplicaId]| of.iter().copied().filter(stays).collect::<Vec<_>>();
    let (mut voters, mut learners) = (kept(&observed.voters), kept(&observed.learners));
    if voters.is_empty() && !learners.is_empty() {
        voters.push(learners.remove(0));
    }
    let preferred_leader = desired.preferred_leader.filter(|preferred| voters.contains(preferred));
    Desired { voters, learners, preferred_leader, is_renewed: desired.is_renewed }
}

/// Somebody else's joint change is to be finished. A leader outside of the newer set must not do it: it
/// could crash with the only log that says that it has no vote. Then it can't be elected any more, and
/// its log is longer than those that it must vote for.
fn flatten(desired: &Desired, observed: &Observed, newer: &BTreeSet<ReplicaId>) -> Step {
    match newer.contains(&observed.here) {
        true => Step::Flatten,
        false => hand_over(desired, observed, newer),
    }
}

/// To a voter that has everything, if there is one.
fn hand_over(desired: &Desired, observed: &Observed, voters: &BTreeSet<ReplicaId>) -> Step {
    let preferred = desired.preferred_leader.filter(|replica| voters.contains(replica));
    let mut successors = preferred.into_iter().chain(voters.iter().copied());
    successors.find(|replica| observed.is_complete(*replica)).map_or(Step::Nothing, Step::TransferLeader)
}

/// A node holds one replica of a partition at a time: the older one goes, before the newer one can have
/// anything.
fn give_way(older: ReplicaId, observed: &Observed, voters: &BTreeSet<ReplicaId>) -> Option<Step> {
    if !voters.contains(&older) {
        return Some(Step::RemoveLearner(older));
    }
    let rest: Vec<ReplicaId> = voters.iter().copied().filter(|voter| *voter != older).collect();
    if rest.is_empty() || !rest.iter().all(|voter| observed.is_complete(*voter)) {
        return None;
    }
    Some(match older == observed.here {
        true => Step::TransferLeader(rest[0]),
        false => Step::ChangeVoters(rest),
    })
}

/// Everybody who should vote is in the group, and somebody else votes or one of them does not.
fn change_voters(desired: &Desired, observed: &Observed, voters: &BTreeSet<ReplicaId>) -> Step {
    let here = observed.here;
    if !desired.voters.iter().all(|replica| observed.is_complete(*replica)) {
        return Step::Nothing;
    }
    if desired.voters.contains(&here) {
        return Step::ChangeVoters(desired.voters.clone());
    }
    // A leader does not vote itself out: it hands over to one that stays, and that one goes on.
    let preferred = desired.preferred_leader.into_iter();
    match preferred.chain(desired.voters.iter().copied()).find(|replica| voters.contains(replica)) {
        Some(successor) => Step::TransferLeader(successor),
        // Nobody who votes now will stay: they get the vote first, beside the leader.
        None => Step::ChangeVoters(desired.voters.iter().copied().chain([here]).collect()),
    }
}

/// A replica that this node must create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    pub partition: PartitionId,
    pub replica: ReplicaId,
    /// Where this replica begins the group's history: with these voters, unless it has a log already.
    pub initialize: Option<Vec<ReplicaId>>,
}

/// The replicas that name this node, do not exist here, and never did (`tombstones`): those that a
/// partition should have, those that may be in its group already, and, while it is being created,
/// those it is born with. A replica comes to life only from here, never because of a message.
pub fn replicas_to_open(
    state: &meta::State,
    me: NodeId,
    present: &BTreeSet<(PartitionId, ReplicaId)>,
    tombstones: &BTreeSet<(PartitionId, ReplicaId)>,
) -> Vec<Open> {
    let mut open = Vec::new();
    for (id, partition) in &state.partitions {
        let creating = partition.birth == Birth::Creating;
        let born: &[ReplicaId] = if creating { &partition.birth_replicas } else { &[] };
        let named: BTreeSet<ReplicaId> =
            partition.replicas.iter().chain(&partition.holders.replicas).chain(born).copied().collect();
        for replica in named.into_iter().filter(|replica| replica.node() == me) {
            if present.contains(&(*id, replica)) || tombstones.contains(&(*id, replica)) {
                continue;
            }
            let founds = creating && partition.birth_replicas.first() == Some(&replica);
            let initialize = founds.then(|| partition.birth_voters());
            open.push(Open { partition: *id, replica, initialize });
        }
    }
    open
}

/// The replicas that are wanted on this node, and were destroyed here before that was known: group 0 has to
/// draw others for them.
pub fn replicas_to_renew(
    state: &meta::State,
    me: NodeId,
    tombstones: &BTreeSet<(PartitionId, ReplicaId)>,
) -> Vec<(PartitionId, ReplicaId)> {
    let wanted = state.partitions.iter().flat_map(|(id, partition)| {
        partition.replicas.iter().filter(|replica| replica.node() == me).map(|replica| (*id, *replica))
    });
    wanted.filter(|wanted| tombstones.contains(wanted)).collect()
}

/// A replica that exists on this node, and what is known of its place in its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    pub partition: PartitionId,
    pub replica: ReplicaId,
    /// Voters and learners of the last membership that it knows to be committed; `None` while it knows
    /// none.
    pub committed: Option<Vec<ReplicaId>>,
    /// A membership that it knew to be committed has named it. Without that it may be a newcomer that
    /// still applies the history from before it was added. False if not known.
    pub was_member: bool,
    /// The newest membership in its log, committed or not, if that names it.
    pub named_by: Option<LogId>,
    /// Who is in the group, as its leader last told.
    pub confirmed: Option<Confirmed>,
}

impl Present {
    /// Its own log says so.
    pub fn excludes_itself(&self) -> bool {
        let excludes = |members: &Vec<ReplicaId>| !members.is_empty() && !members.contains(&self.replica);
        self.was_member && self.committed.as_ref().is_some_and(excludes)
    }
}

/// Who is in a group by its leader's word, after a quorum confirmed that it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmed {
    /// Voters and learners.
    pub members: Vec<ReplicaId>,
    /// Of the leader.
    pub term: u64,
    /// Log index of that membership; there is no newer one in the leader's log.
    pub index: u64,
}

impl Confirmed {
    fn excludes(&self, replica: ReplicaId, named_by: Option<LogId>) -> bool {
        // What names it may have come after that word; unless it is of an earlier term, and not in the log of
        // the leader, who has all that is or will ever be committed of earlier terms.
        let is_newer =
            named_by.is_some_and(|named_by| named_by.term >= self.term && named_by.index > self.index);
        !is_newer && !self.members.is_empty() && !self.members.contains(&replica)
    }
}

/// The replicas that this node must destroy, leaving a tombstone: those that the group excludes, by
/// their own committed membership or by their leader's confirmed word, and that are not meant to be in
/// it. Never from metadata alone, which knows nothing of what is committed in the group; nor from the
/// group alone, which a newcomer has not been added to yet; nor by metadata from before the replica.
pub fn replicas_to_close(state: &meta::State, present: &[Present]) -> Vec<(PartitionId, ReplicaId)> {
    (present.iter())
        .filter(|it| {
            let by_itself = it.excludes_itself();
            let by_leader = it.confirmed.as_ref().is_some_and(|word| word.excludes(it.replica, it.named_by));
            state.has_discarded(it.partition, it.replica) && (by_itself || by_leader)
        })
        .map(|it| (it.partition, it.replica))
        .collect()
}

#[cfg(test)]
mod tests;
