//! Who is in the group: learners added, voters changed, members removed, leadership handed over.
//!
//! Every change names the membership that it starts from (rule 9), so that of two that were decided on
//! the same view only one takes place. Every one may be asked for again: what is so already is a
//! success. Each ends by its deadline; a change that was begun may take place after it.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::errors::PreconditionFailed;
use openraft::raft::{Precondition, VoteRequest};
use tokio::time::{Instant, sleep, timeout_at};

use super::Group;
use super::machine::Machine;
use super::status::{Role, Status};
use super::types::{TypeConfig, Vote, log_id, raft_log_id};
use crate::runtime;
use crate::types::{LogId, ReplicaId};

/// A follower that answered within this is reachable: several heartbeats.
const REACHABLE_WITHIN: Duration = Duration::from_secs(1);

/// A voter that lacks more entries than this is not caught up: it could not take over in the time that
/// the group then stands without a leader.
const TRANSFER_LAG_MAX: u64 = 4096;

/// How long a transfer may take. The group accepts no writes meanwhile.
const TRANSFER_WITHIN: Duration = Duration::from_secs(2);

/// How long stepping down is waited for.
const ABDICATE_WITHIN: Duration = Duration::from_secs(2);

/// Between two attempts to step down.
const ABDICATE_PAUSE: Duration = Duration::from_millis(200);

/// How long a transfer waits for what is under way.
const QUIET_WITHIN: Duration = Duration::from_millis(200);

/// Why the membership was not changed, or is not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Somebody else leads, or nobody does. Not changed to what was asked for; but the first of two steps to it may have
    /// been taken, a joint membership, which whoever leads next ends.
    #[error("this replica does not lead")]
    NotLeader { leader: Option<ReplicaId> },
    /// Surely not changed: another change is not committed yet.
    #[error("another membership change is under way")]
    InProgress,
    /// Surely not changed: the membership is not the one that was expected.
    #[error("the membership is not the expected one")]
    Changed { actual: Option<LogId> },
    /// Surely not changed, and never will be: what was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Surely not changed: the replica is unreachable or lags; later it may work.
    #[error("{0}")]
    NotReady(String),
    /// Perhaps changed, now or later: look, and ask again.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

/// What becomes of voters that stop being voters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// They stay and keep receiving entries.
    StayLearners,
    /// They leave the group.
    Leave,
}

type Changed = Result<LogId, MembershipError>;

impl<M: Machine> Group<M> {
    /// Adds a replica as learner; does not wait until it has caught up. Returns the membership that has
    /// it.
    pub async fn add_learner(&self, replica: ReplicaId, expect: LogId, deadline: Instant) -> Changed {
        if let Some(done) = self.already(|status| status.is_member(replica))? {
            return Ok(done);
        }
        let add = ChangeMembers::AddNodes([(replica.0, ())].into());
        self.change(add, Removed::StayLearners, expect, deadline).await
    }

    /// Makes `voters` the voters of the group; new ones must be learners already. A change that was
    /// broken off halfway is ended first, as its first half was meant. Returns the new membership.
    pub async fn change_voters(
        &self,
        voters: &[ReplicaId],
        removed: Removed,
        expect: LogId,
        deadline: Instant,
    ) -> Changed {
        let wanted: BTreeSet<u64> = voters.iter().map(|voter| voter.0).collect();
        if wanted.is_empty() {
            return Err(MembershipError::Invalid("a group needs a voter".to_string()));
        }
        let expect = self.flatten(removed, expect, deadline).await?;
        if let Some(done) = self.already(|status| has_voters(status, &wanted))? {
            return Ok(done);
        }
        self.change(ChangeMembers::ReplaceAllVoters(wanted), removed, expect, deadline).await
    }

    /// Takes a replica out of the group, voter or learner. A leader that is removed hands over soon after.
    pub async fn remove(&self, replica: ReplicaId, expect: LogId, deadline: Instant) -> Changed {
        let expect = self.flatten(Removed::StayLearners, expect, deadline).await?;
        if let Some(done) = self.already(|status| !status.is_member(replica))? {
            return Ok(done);
        }
        let only: BTreeSet<u64> = [replica.0].into();
        let change = match self.status().is_voter(replica) {
            true => ChangeMembers::RemoveVoters(only),
            false => ChangeMembers::RemoveNodes(only),
        };
        self.change(change, Removed::Leave, expect, deadline).await
    }

    /// The membership in force, if it is committed and `holds` for it.
    fn already(&self, holds: impl FnOnce(&Status) -> bool) -> Result<Option<LogId>, MembershipError> {
        let status = self.status();
        if status.role != Role::Leader {
            return Err(MembershipError::NotLeader { leader: status.leader });
        }
        let settled = status.membership_committed && !status.joint && holds(&status);
        Ok(status.membership.filter(|_| settled))
    }

    /// Ends a joint membership; returns the one that is expected then.
    pub async fn flatten(&self, removed: Removed, expect: LogId, deadline: Instant) -> Changed {
        let status = self.status();
        if !status.joint || status.membership != Some(expect) {
            return Ok(expect);
        }
        self.change(ChangeMembers::AddVoterIds(BTreeSet::new()), removed, expect, deadline).await
    }

    async fn change(
        &self,
        change: ChangeMembers<u64, ()>,
        removed: Removed,
        expect: LogId,
        deadline: Instant,
    ) -> Changed {
        if let Some(why) = self.damage() {
            return Err(MembershipError::Invalid(format!("this replica's copy can't be read: {why}")));
        }
        let raft = self.raft.clone();
        let condition =
            Precondition::LastMembershipLogId { last_membership_log_id: Some(raft_log_id(expect)) };
        // A task of its own: given up halfway, it would leave a joint membership behind.
        let changing = runtime::spawn(async move {
            raft.change_membership_if(change, removed == Removed::StayLearners, [condition]).await
        });
        match timeout_at(deadline, changing).await {
            Ok(Ok(Ok(written))) => Ok(log_id(&written.log_id)),
            Ok(Ok(Err(error))) => Err(membership_error(error)),
            Ok(Err(error)) => Err(MembershipError::Unknown(error.to_string())),
            Err(_) => Err(MembershipError::Unknown("no answer before the deadline".to_string())),
        }
    }

    /// Hands the leadership to `to`, a voter that is reachable and caught up. Returns once another
    /// replica leads or this one has ceased to; `false` if `to` did not take over in time: then this
    /// replica has stepped down, because it would accept no more writes, and the group elects anew.
    pub async fn transfer_leader(&self, to: ReplicaId, deadline: Instant) -> Result<bool, MembershipError> {
        let status = self.status();
        if status.role != Role::Leader {
            return Err(MembershipError::NotLeader { leader: status.leader });
        }
        if to == self.key.replica {
            return Ok(true);
        }
        fit(&status, to).map_err(MembershipError::NotReady)?;
        // What is under way is answered first: once another one leads, this replica learns only by and by that
        // it is committed. If that takes long, it is not waited for.
        let quiet = timeout_at(deadline.min(Instant::now() + QUIET_WITHIN), self.under_way.write()).await;
        let status = self.status();
        if status.role != Role::Leader {
            return Err(MembershipError::NotLeader { leader: status.leader });
        }
        let mut changes = self.changes();
        let deadline = deadline.min(Instant::now() + TRANSFER_WITHIN);
        let stopped = |error: &dyn std::fmt::Display| MembershipError::Unknown(error.to_string());
        self.raft.trigger().transfer_leader(to.0).await.map_err(|error| stopped(&error))?;
        let taken_over = async {
            loop {
                let now = self.status();
                if now.role != Role::Leader && now.leader.is_some_and(|leader| leader != self.key.replica) {
                    return now.leader == Some(to);
                }
                if !changes.changed().await {
                    return false;
                }
            }
        };
        let taken_over = timeout_at(deadline, taken_over).await;
        drop(quiet);
        if let Ok(taken_over) = taken_over {
            return Ok(taken_over);
        }
        if self.status().role == Role::Leader {
            tracing::warn!(key = %self.key, %to, "it did not take over in time; this replica steps down");
            // A task of its own: given up halfway, it would leave a leader that refuses everything.
            let group = self.clone();
            let stepping_down = runtime::spawn(async move { group.abdicate(to, status.term).await });
            return match timeout_at(Instant::now() + ABDICATE_WITHIN, stepping_down).await {
                Ok(Ok(done)) => done.map(|()| false),
                Ok(Err(error)) => Err(stopped(&error)),
                Err(_) => Err(MembershipError::Unknown("it goes on stepping down".to_string())),
            };
        }
        Ok(false)
    }

    /// Hands the leadership to whichever voter has most of the log. `false` as for
    /// [`Group::transfer_leader`].
    pub async fn step_down(&self, deadline: Instant) -> Result<bool, MembershipError> {
        let status = self.status();
        let voters = status.voters.iter().filter(|voter| **voter != self.key.replica);
        let best =
            voters.filter(|voter| fit(&status, **voter).is_ok()).max_by_key(|voter| status.matched(**voter));
        match best {
            _ if status.role != Role::Leader => Err(MembershipError::NotLeader { leader: status.leader }),
            Some(best) => self.transfer_leader(*best, deadline).await,
            None => Err(MembershipError::NotReady("no other voter is reachable and caught up".to_string())),
        }
    }

    /// Ceases to lead. openraft has no call for it, and a leader whose transfer failed refuses writes for
    /// good (rule 12); but it yields to a vote of the next term, as if `to` had asked for one. That is
    /// safe: this replica's vote in that term is then given to `to`, and to nobody else.
    async fn abdicate(&self, to: ReplicaId, term: u64) -> Result<(), MembershipError> {
        let stopped = |error: &dyn std::fmt::Display| MembershipError::Unknown(error.to_string());
        loop {
            // A transfer lets nothing be appended; but writes before it may still have waited for a disk that stalled.
            let last = self.log.last().map(raft_log_id);
            let mut vote = VoteRequest::<TypeConfig>::new(Vote::new(term + 1, to.0), last);
            vote.leadership_transfer = true;
            let answer = self.raft.vote(vote).await.map_err(|error| stopped(&error))?;
            let status = self.status();
            if answer.vote_granted || status.role != Role::Leader || status.term != term {
                return Ok(());
            }
            tracing::warn!(key = %self.key, %to, "it could not step down yet");
            sleep(ABDICATE_PAUSE).await;
        }
    }
}

fn has_voters(status: &Status, wanted: &BTreeSet<u64>) -> bool {
    status.voters.iter().map(|voter| voter.0).eq(wanted.iter().copied())
}

/// Why `to` can't take over now, if it can't.
fn fit(status: &Status, to: ReplicaId) -> Result<(), String> {
    if !status.is_voter(to) {
        return Err(format!("{to} is no voter"));
    }
    let answered = status.answered.iter().find(|(id, _)| *id == to);
    if answered.is_none_or(|(_, ago)| *ago > REACHABLE_WITHIN) {
        return Err(format!("{to} can't be reached"));
    }
    let lag = status.last_index.saturating_sub(status.matched(to));
    if lag > TRANSFER_LAG_MAX {
        return Err(format!("{to} lacks {lag} entries"));
    }
    Ok(())
}

fn membership_error(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> MembershipError {
    let error = match error {
        RaftError::APIError(error) => error,
        RaftError::Fatal(fatal) => return MembershipError::Unknown(fatal.to_string()),
    };
    match error {
        // Only this one means that nothing was appended; a discarded entry may still be committed.
        ClientWriteError::ForwardToLeader(forward) => {
            MembershipError::NotLeader { leader: forward.leader_id.map(ReplicaId) }
        }
        ClientWriteError::ChangeMembershipError(error) => match error {
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => {
                MembershipError::InProgress
            }
            other => MembershipError::Invalid(other.to_string()),
        },
        ClientWriteError::PreconditionFailed(PreconditionFailed::LastMembershipLogIdMismatch {
            actual,
            ..
        }) => MembershipError::Changed { actual: actual.as_ref().map(log_id) },
        other => MembershipError::Unknown(other.to_string()),
    }
}
