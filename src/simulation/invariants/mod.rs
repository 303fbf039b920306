//! What must hold whatever happens; one file for each property. A violation is a panic that says which.
//!
//! They are told of every message that is sent, every entry that is applied, every write that is acknowledged
//! and every replica that is opened, at that moment; logs are compared each time that time moves on, if some
//! of them changed.

mod acknowledged;
mod completeness;
mod election;
mod matching;
mod replica_ids;
mod safety;
mod same_state;
mod votes;

pub(super) use acknowledged::Acknowledged;
pub(super) use election::Election;
pub(super) use matching::Matching;
pub(super) use replica_ids::ReplicaIds;
pub(super) use safety::Safety;
pub(super) use same_state::SameState;
pub(super) use votes::Votes;

pub(super) use completeness::check as check_completeness;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Invariants {
    pub(super) election: Election,
    pub(super) matching: Matching,
    pub(super) safety: Safety,
    pub(super) acknowledged: Acknowledged,
    pub(super) same_state: SameState,
    pub(super) replica_ids: ReplicaIds,
    pub(super) votes: Votes,
}
