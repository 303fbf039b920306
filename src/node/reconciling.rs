//! Carries out what `reconcile` decides: for each group that this node leads, one step towards the
//! members that group 0 wants; for its own replicas, closing those that their group excludes; for group
//! 0's leader, removing members that nothing names any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::reconcile::{Confirmed, Observed, Present, Step, decide, desired_while_halted, replicas_to_close};
use super::seat::{Seat, leads};
use super::transfers::Transfers;
use super::{Node, Replica};
use crate::meta::{self, MemberState};
use crate::raft::{Group, Machine, MembershipError, Removed, Role, Status};
use crate::types::{GroupId, LogKey, NodeId, PartitionId, ReplicaId};

/// Between two looks at what this node leads.
const LOOK: Duration = Duration::from_millis(300);

/// For one step.
const STEP_WITHIN: Duration = Duration::from_secs(5);

/// A copy that was not heard of for this long does not count as one.
const HEARD_WITHIN: Duration = Duration::from_secs(3);

/// Between two questions to the members which cluster version they know, while this program knows a newer
/// one than the cluster's.
const VERSION_PAUSE: Duration = Duration::from_secs(10);

/// Between two questions to a group's leader whether a replica is still in it, and for each.
const ASK_PAUSE: Duration = Duration::from_secs(2);
const ASK_WITHIN: Duration = Duration::from_secs(1);

/// What is remembered from look to look.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Each led group's term and commit index at the last look: who has that much is complete, though
    /// writes go on meanwhile.
    commits: HashMap<GroupId, (u64, u64)>,
    transfers: HashMap<GroupId, Transfers>,
    /// Replicas here that a committed membership has named.
    were_members: BTreeSet<LogKey>,
    /// When a group's leader was last asked about a replica that is not meant to be here.
    asked: HashMap<LogKey, Instant>,
    /// When the members were last asked which cluster version they know.
    version_asked: Option<Instant>,
}

pub(super) async fn run(node: Weak<Node>) {
    let mut memory = Memory::default();
    loop {
        sleep(LOOK).await;
        let Some(node) = node.upgrade() else { return };
        let (Some(seat), Some(cluster)) = (node.seat(), node.cluster()) else { continue };
        let state = &cluster.state;
        let replicas = node.replicas();

        let mut steps = Vec::new();
        if let Some(step) = memory.look(&seat.meta, state, false) {
            steps.push(step);
        }
        let groups: BTreeMap<GroupId, Replica> =
            replicas.iter().map(|(id, replica)| (id.group(), replica.clone())).collect();
        for replica in groups.values() {
            if let Some(step) = memory.look(&replica.group, state, replica.totals.is_halted()) {
                steps.push(step);
            }
        }
        let taken = steps.into_iter().map(|(id, step, expect)| {
            let (node, seat, group) = (&node, &seat, groups.get(&id));
            async move {
                match group {
                    Some(replica) => node.take(&replica.group, step, expect).await,
                    None => node.take(&seat.meta, step, expect).await,
                }
            }
        });
        join_all(taken).await;
        node.close_excluded(&mut memory, &seat, state).await;
        if leads(&seat.meta) {
            if state.version < meta::CLUSTER_VERSION && memory.is_version_due() {
                node.raise_version(state, seat.number()).await;
            }
            for number in state.removable() {
                let removed = meta::Command::Removed(number);
                if let Err(error) = node.change(&removed, Instant::now() + STEP_WITHIN).await {
                    tracing::debug!(%error, %number, "a member is not removed yet");
                }
            }
        }
    }
}

impl Memory {
    /// What this group needs next, if this node leads it. `is_halted`: its replicas differ, see
    /// [`desired_while_halted`].
    pub(crate) fn look<M: Machine>(
        &mut self,
        group: &Group<M>,
        state: &meta::State,
        is_halted: bool,
    ) -> Option<(GroupId, Step, crate::types::LogId)> {
        let id = group.key().group;
        let status = group.status();
        if status.role != Role::Leader {
            self.commits.remove(&id);
            return None;
        }
        let desired = state.desired(id)?;
        let expect = status.membership?;
        let commit = status.committed.map_or(0, |committed| committed.index);
        let before = self.commits.insert(id, (status.term, commit));
        let now = Instant::now();
        let transfers = self.transfers.entry(id).or_insert_with(|| Transfers::new(now));
        if before.is_none_or(|(term, _)| term != status.term) {
            transfers.elected(now);
        }
        // Of an earlier term nothing is known of what the others have.
        let (_, commit_index) = before.filter(|(term, _)| *term == status.term)?;
        let observed = observed(group.key().replica, &status, commit_index, state.holders(id)?);
        let leaves =
            |node| state.members.get(&node).is_none_or(|member| member.state == MemberState::Leaving);
        let desired = match is_halted {
            true => desired_while_halted(desired, &observed, leaves),
            false => desired,
        };
        match decide(&desired, &observed) {
            Step::Nothing => None,
            Step::TransferLeader(to) if !transfers.is_due(to, now) => None,
            step => Some((id, step, expect)),
        }
    }
}

impl Memory {
    fn is_version_due(&mut self) -> bool {
        let is_due = self.version_asked.is_none_or(|last| last.elapsed() >= VERSION_PAUSE);
        if is_due {
            self.version_asked = Some(Instant::now());
        }
        is_due
    }

    /// Whether it is time to ask a group's leader about a replica; notes that it is asked.
    pub(crate) fn is_due(&mut self, key: LogKey) -> bool {
        let is_due = self.asked.get(&key).is_none_or(|last| last.elapsed() >= ASK_PAUSE);
        if is_due {
            self.asked.insert(key, Instant::now());
        }
        is_due
    }

    /// A replica of this node, as [`replicas_to_close`] looks at it.
    pub(crate) fn present<M: Machine>(&mut self, partition: PartitionId, group: &Group<M>) -> Present {
        let (key, status) = (group.key(), group.status());
        let committed = status.membership_committed && status.membership.is_some();
        let members: Vec<ReplicaId> = status.voters.iter().chain(&status.learners).copied().collect();
        let is_named = members.contains(&key.replica);
        if committed && is_named {
            self.were_members.insert(key);
        }
        Present {
            partition,
            replica: key.replica,
            committed: committed.then_some(members),
            was_member: self.were_members.contains(&key),
            named_by: status.membership.filter(|_| is_named),
            confirmed: None,
        }
    }
}

fn observed(here: ReplicaId, status: &Status, commit_index: u64, holders: &meta::Holders) -> Observed {
    let heard: BTreeSet<ReplicaId> =
        status.answered.iter().filter(|(_, ago)| *ago < HEARD_WITHIN).map(|(replica, _)| *replica).collect();
    let matched = status.matched.iter().filter(|(replica, _)| heard.contains(replica));
    Observed {
        here,
        voters: status.next_voters.clone(),
        learners: status.learners.clone(),
        joint: status.joint,
        membership_committed: status.membership_committed,
        membership_index: status.membership.map_or(0, |membership| membership.index),
        matched: matched.copied().collect(),
        commit_index,
        reported_holders: holders.replicas.clone(),
    }
}

impl Node {
    /// Raises the cluster's version as far as every member knows it.
    async fn raise_version(&self, state: &meta::State, me: NodeId) {
        let deadline = Instant::now() + ASK_WITHIN;
        let asked = state.members.keys().map(|number| async move {
            match *number == me {
                true => Some(meta::CLUSTER_VERSION),
                // A program from before the field says nothing, and knows the first.
                false => Some(self.describe_there(*number, deadline).await.ok()?.cluster_version_max.max(1)),
            }
        });
        let Some(version) = state.next_version(&join_all(asked).await) else { return };
        let raise = meta::Command::SetVersion { version, epoch: state.epoch };
        match self.change(&raise, Instant::now() + STEP_WITHIN).await {
            Ok(_) => {
                tracing::info!(version, "every member knows this cluster version: it is used from now on")
            }
            Err(error) => tracing::info!(%error, version, "the cluster's version is not raised yet"),
        }
    }

    /// Takes one step. What fails is decided anew at the next look.
    async fn take<M: Machine>(&self, group: &Group<M>, step: Step, expect: crate::types::LogId) {
        let id = group.key().group;
        let deadline = Instant::now() + STEP_WITHIN;
        let shown = format!("{step:?}");
        let done: Result<(), MembershipError> = match step {
            Step::Nothing => Ok(()),
            Step::Flatten => group.flatten(Removed::StayLearners, expect, deadline).await.map(drop),
            Step::AddLearner(replica) => group.add_learner(replica, expect, deadline).await.map(drop),
            Step::ChangeVoters(voters) => {
                group.change_voters(&voters, Removed::StayLearners, expect, deadline).await.map(drop)
            }
            Step::RemoveLearner(replica) => group.remove(replica, expect, deadline).await.map(drop),
            Step::TransferLeader(to) => group.transfer_leader(to, deadline).await.map(drop),
            Step::Report { holders, index } => {
                let moved = meta::Command::Moved { group: id, holders, index };
                if let Err(error) = self.change(&moved, deadline).await {
                    tracing::debug!(%error, group = %id, "group 0 was not told of a membership");
                }
                return;
            }
        };
        match done {
            Ok(()) => tracing::info!(group = %id, step = shown, "took a step towards the desired members"),
            Err(error) => tracing::info!(group = %id, step = shown, %error, "a step was not taken"),
        }
    }

    /// Destroys replicas that their groups exclude; their ids are never used again.
    async fn close_excluded(self: &Arc<Node>, memory: &mut Memory, seat: &Seat, state: &meta::State) {
        let mut doubtful = Vec::new();
        for (partition, replica) in self.replicas() {
            let key = replica.group.key();
            let is_discarded = state.has_discarded(partition, key.replica);
            // Whom a group excludes, it does not tell any more: its leader has to be asked.
            if is_discarded
                && !memory.present(partition, &replica.group).excludes_itself()
                && memory.is_due(key)
            {
                doubtful.push(key);
            }
        }
        let asked =
            doubtful.into_iter().map(|key| async move { Some((key, self.confirmed(key, state).await?)) });
        let told: HashMap<LogKey, Confirmed> = join_all(asked).await.into_iter().flatten().collect();

        // What was true before the questions need not be any more: decided by what is known now, and until it is
        // destroyed, whoever follows group 0 must not take it for missing. One at a time: each waits for the disk,
        // and others want the lock.
        let mut is_any = false;
        loop {
            let _following = self.following.lock().await;
            let state = seat.state.borrow().clone();
            let present: Vec<Present> = (self.replicas().iter())
                .map(|(partition, replica)| Present {
                    confirmed: told.get(&replica.group.key()).cloned(),
                    ..memory.present(*partition, &replica.group)
                })
                .collect();
            let Some((partition, replica)) = replicas_to_close(&state, &present).first().copied() else {
                break;
            };
            self.destroy_replica(partition, replica).await;
            is_any = true;
        }
        // A newer replica of the same partition may have waited for its place.
        if is_any && let Err(error) = super::follow::catch_up(self).await {
            self.fail(error.to_string());
        }
    }

    /// Who is in the group of a replica that is not meant to be here, by its leader's word.
    async fn confirmed(&self, key: LogKey, state: &meta::State) -> Option<Confirmed> {
        let partition = state.partitions.get(&PartitionId(key.group.0.checked_sub(1)?))?;
        // It may be led by one that is to leave it.
        let holders = partition.replicas.iter().chain(&partition.holders.replicas);
        let nodes: BTreeSet<NodeId> = holders.map(|replica| replica.node()).collect();
        let deadline = Instant::now() + ASK_WITHIN;
        let others = nodes.into_iter().filter(|node| *node != key.replica.node());
        let asked = others.map(|node| self.membership_there(node, key.group, deadline));
        // Of a stale leader and its successor, the one of the newer term.
        join_all(asked).await.into_iter().flatten().max_by_key(|word| word.term)
    }

    async fn destroy_replica(&self, partition: PartitionId, replica: ReplicaId) {
        let held = {
            let mut replicas = self.replicas.write().unwrap_or_else(PoisonError::into_inner);
            match replicas.get(&partition) {
                Some(held) if held.group.key().replica == replica => replicas.remove(&partition),
                _ => None,
            }
        };
        let Some(held) = held else { return };
        tracing::info!(%partition, %replica, "its group has excluded this replica: it is destroyed");
        if let Err(error) = held.group.destroy().await {
            self.fail(format!("replica {replica} of partition {partition} can't be destroyed: {error}"));
        }
    }
}
