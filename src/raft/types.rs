//! openraft's type parameters as RushKV sets them, and the conversions to our own words.

use std::fmt;

use bytes::Bytes;

use crate::types::LogId;

openraft::declare_raft_types!(
    /// Bytes in, bytes out. The standard leader id: at most one leader in a term, so that a log id is
    /// (term, index). Nodes carry nothing: addresses come from group 0.
    pub TypeConfig:
        D = Command,
        R = Reply,
        NodeId = u64,
        Node = (),
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = super::runtime::Runtime,
);

pub(crate) type RaftLogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type Payload = openraft::EntryPayload<Command, u64, ()>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, ()>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// What is replicated: a command of the group's [`super::Machine`].
#[derive(Clone, PartialEq, Eq)]
pub struct Command(pub Bytes);

/// What the machine answered.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Reply(pub Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({} bytes)", self.0.len())
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Our log id from openraft's.
pub(crate) fn log_id(id: &RaftLogId) -> LogId {
    LogId { term: id.leader_id.term, index: id.index }
}

/// openraft's log id from ours.
pub(crate) fn raft_log_id(id: LogId) -> RaftLogId {
    RaftLogId { leader_id: id.term.into(), index: id.index }
}
