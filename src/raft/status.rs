//! What a replica knows of its group, and the watch on it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::metrics::{RaftMetrics, RaftServerMetrics};
use openraft::{Instant as _, ServerState};
use tokio::time::Instant;

use super::Group;
use super::machine::Machine;
use super::types::{TypeConfig, log_id};
use crate::types::{LogId, ReplicaId};

/// A leader that was silent for this long is not counted on any more, nor one whose majority was. Longer
/// than an election takes, so that an election does not show as a failure.
const LEADER_SILENT_MAX: Duration = Duration::from_secs(2);

/// What a replica is in its group now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Learner,
    Candidate,
}

/// A look at a group from one of its replicas.
#[derive(Debug, Clone)]
pub struct Status {
    pub role: Role,
    /// Who led last, as far as this replica knows: one that is cut off never hears that it is over.
    /// [`Status::live_leader`] is more careful.
    pub leader: Option<ReplicaId>,
    /// How long ago this replica, not leading itself, was spoken to by that leader.
    pub leader_heard: Option<Duration>,
    pub term: u64,
    pub last_index: u64,
    pub committed: Option<LogId>,
    pub applied: Option<LogId>,
    /// Up to where the log was let go.
    pub purged: Option<LogId>,
    /// The entry of the membership in force, committed or not: what a change of it names as expected.
    pub membership: Option<LogId>,
    /// Two sets of voters are in force at once: a change is under way, or was broken off.
    pub joint: bool,
    /// The membership in force is known to be committed.
    pub membership_committed: bool,
    /// Of both sets, if the membership is joint; in ascending order.
    pub voters: Vec<ReplicaId>,
    /// Those who will vote: of a joint membership the newer set, else all voters; in ascending order.
    pub next_voters: Vec<ReplicaId>,
    /// In ascending order.
    pub learners: Vec<ReplicaId>,
    /// As the leader knows it, the last entry durable on each other replica; 0 where it knows of none.
    pub matched: Vec<(ReplicaId, u64)>,
    /// On the leader, how long ago each other replica answered; missing if it never did.
    pub answered: Vec<(ReplicaId, Duration)>,
    /// On the leader, how long ago a majority had confirmed that it leads. `None` elsewhere, and on a
    /// leader before the first time.
    pub quorum_acked: Option<Duration>,
}

impl Status {
    pub fn is_voter(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica)
    }

    pub fn is_member(&self, replica: ReplicaId) -> bool {
        self.is_voter(replica) || self.learners.contains(&replica)
    }

    /// The leader, if it gave proof of its leadership within [`LEADER_SILENT_MAX`]: to this replica, or,
    /// if this one leads, by a majority's answers to it.
    pub fn live_leader(&self) -> Option<ReplicaId> {
        self.leader.filter(|_| is_live(self.role, self.quorum_acked, self.leader_heard))
    }

    /// As the leader knows it, the last entry durable on `replica`; 0 if it is not known.
    pub fn matched(&self, replica: ReplicaId) -> u64 {
        self.matched.iter().find(|(id, _)| *id == replica).map_or(0, |(_, index)| *index)
    }

    pub(super) fn new(this: ReplicaId, metrics: &RaftMetrics<TypeConfig>, heard: &Heard) -> Status {
        let membership = metrics.membership_config.membership();
        let sorted = |ids: &mut dyn Iterator<Item = u64>| {
            let mut ids: Vec<ReplicaId> = ids.map(ReplicaId).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let voters = sorted(&mut membership.voter_ids());
        let newest = membership.get_joint_config().last();
        let next_voters = sorted(&mut newest.into_iter().flatten().copied());
        let matched = metrics.replication.iter().flatten();
        let matched = matched.map(|(id, at)| (ReplicaId(*id), at.as_ref().map_or(0, |at| at.index)));
        let answered = metrics.heartbeat.iter().flatten();
        let answered = answered.filter_map(|(id, at)| Some((ReplicaId(*id), at.as_ref()?.elapsed())));
        let leader = metrics.current_leader.map(ReplicaId);
        Status {
            role: role(metrics.state),
            leader,
            leader_heard: leader_heard(this, leader, heard),
            term: metrics.current_term,
            last_index: metrics.last_log_index.unwrap_or(0),
            committed: metrics.local_committed.as_ref().map(log_id),
            applied: metrics.last_applied.as_ref().map(log_id),
            purged: metrics.purged.as_ref().map(log_id),
            membership: metrics.membership_config.log_id().as_ref().map(log_id),
            joint: membership.get_joint_config().len() > 1,
            membership_committed: metrics.membership_config == metrics.committed_membership_config,
            learners: sorted(&mut membership.learner_ids()),
            next_voters,
            matched: matched.filter(|(id, _)| *id != this).collect(),
            answered: answered.filter(|(id, _)| *id != this).collect(),
            quorum_acked: quorum_acked(this, metrics),
            voters,
        }
    }
}

fn is_live(role: Role, quorum_acked: Option<Duration>, leader_heard: Option<Duration>) -> bool {
    match role {
        // One that was just elected had a majority a moment ago.
        Role::Leader => quorum_acked.is_none_or(|ago| ago < LEADER_SILENT_MAX),
        Role::Follower | Role::Learner | Role::Candidate => {
            leader_heard.is_some_and(|ago| ago < LEADER_SILENT_MAX)
        }
    }
}

fn leader_heard(this: ReplicaId, leader: Option<ReplicaId>, heard: &Heard) -> Option<Duration> {
    leader.filter(|leader| *leader != this).and_then(|leader| heard.ago(leader))
}

fn quorum_acked(this: ReplicaId, metrics: &RaftMetrics<TypeConfig>) -> Option<Duration> {
    let leads = metrics.state == ServerState::Leader;
    let sets = metrics.membership_config.membership().get_joint_config();
    match metrics.last_quorum_acked {
        _ if leads && is_alone(this, sets) => Some(Duration::ZERO),
        acked => acked.filter(|_| leads).map(|at| at.elapsed()),
    }
}

/// Whether `this` is the only voter of these sets.
pub(super) fn is_alone(this: ReplicaId, sets: &[BTreeSet<u64>]) -> bool {
    !sets.is_empty() && sets.iter().all(|set| set.len() == 1 && set.contains(&this.0))
}

/// When another replica last sent this one entries or a heartbeat, as only leaders do. Clones share it.
///
/// It is noted on arrival, before the consensus core and the disk have had their turn: a slow disk here
/// says nothing about the leader. One that was deposed may still be heard; it is not the leader then.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard(Arc<Mutex<Option<(ReplicaId, Instant)>>>);

impl Heard {
    pub fn note(&self, from: ReplicaId) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((from, Instant::now()));
    }

    fn ago(&self, leader: ReplicaId) -> Option<Duration> {
        let heard = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.filter(|(from, _)| *from == leader).map(|(_, at)| at.elapsed())
    }
}

fn role(state: ServerState) -> Role {
    match state {
        ServerState::Leader => Role::Leader,
        ServerState::Candidate => Role::Candidate,
        ServerState::Follower => Role::Follower,
        ServerState::Learner | ServerState::Shutdown => Role::Learner,
    }
}

/// Tells when a group's leader, this replica's role, or the membership changed.
pub struct Changes {
    watch: openraft::alias::WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    /// What [`Group::status`] reads; the core publishes it just after the other.
    all: openraft::alias::WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    /// A change was seen that was not told yet.
    seen: bool,
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

impl Changes {
    /// Resolves once something has changed since the last call, or since the watch was made, and
    /// [`Group::status`] shows it; `false` if the group stopped, and nothing will change any more.
    /// Changes that follow closely may be told as one. May be dropped at any time: no change is missed.
    pub async fn changed(&mut self) -> bool {
        if !self.seen && self.watch.changed().await.is_err() {
            return false;
        }
        self.seen = true;
        while !self.is_shown() {
            if self.all.changed().await.is_err() {
                return false;
            }
        }
        self.seen = false;
        true
    }

    fn is_shown(&mut self) -> bool {
        let now = self.watch.borrow_and_update();
        let all = self.all.borrow_and_update();
        all.state == now.state
            && all.vote == now.vote
            && all.current_leader == now.current_leader
            && all.membership_config == now.membership_config
            && all.committed_membership_config == now.committed_membership_config
    }

    pub(super) fn role(&self) -> Role {
        role(self.watch.borrow_watched().state)
    }
}

impl<M: Machine> Group<M> {
    /// What this replica knows now.
    pub fn status(&self) -> Status {
        let metrics = self.raft.metrics();
        Status::new(self.key.replica, &metrics.borrow_watched(), &self.heard)
    }

    /// [`Status::live_leader`] without the rest of it, as every call of a client needs it.
    pub fn live_leader(&self) -> Option<ReplicaId> {
        let (this, metrics) = (self.key.replica, self.raft.metrics());
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader.map(ReplicaId)?;
        let heard = leader_heard(this, Some(leader), &self.heard);
        is_live(role(metrics.state), quorum_acked(this, &metrics), heard).then_some(leader)
    }

    /// A watch on leader, role and membership: cheap, where following every entry would not be.
    pub fn changes(&self) -> Changes {
        let (mut watch, all) = (self.raft.server_metrics(), self.raft.metrics());
        watch.borrow_and_update();
        Changes { watch, all, seen: false }
    }
}
