//! The ids that RushKV counts in. Newtypes, so that one can't be passed for another.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id! {
    /// A member's number, given by group 0 when it joins; never given twice.
    NodeId(u32), "n"
}
id! {
    /// A Raft group. 0 is the metadata; partition `p` is group `p + 1`.
    GroupId(u32), "g"
}
id! {
    /// A shard of the hash space, as the routing table numbers them.
    PartitionId(u32), "p"
}
id! {
    /// One copy of one group, and its id in Raft: the node's number in the upper half, its
    /// incarnation in the lower. Never used again in its group: a wiped disk is a new replica.
    ReplicaId(u64), "r"
}
id! {
    /// Version of the routing table; grows with every change of it.
    Epoch(u64), "e"
}

impl GroupId {
    /// The group that replicates members, placement and routing.
    pub const META: GroupId = GroupId(0);
}

impl PartitionId {
    /// The Raft group that replicates this partition.
    pub fn group(self) -> GroupId {
        GroupId(self.0 + 1)
    }
}

impl ReplicaId {
    pub fn new(node: NodeId, incarnation: u32) -> ReplicaId {
        ReplicaId((u64::from(node.0) << 32) | u64::from(incarnation))
    }

    /// The node it lives on.
    pub fn node(self) -> NodeId {
        NodeId((self.0 >> 32) as u32)
    }

    /// Counts the replicas that this node was given of one group, from 1.
    pub fn incarnation(self) -> u32 {
        (self.0 & u64::from(u32::MAX)) as u32
    }
}

/// Which log a record in the write-ahead log belongs to: a node that holds a group twice in its
/// life does so under two replica ids, and the second must not inherit the first one's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogKey {
    pub group: GroupId,
    pub replica: ReplicaId,
}

impl fmt::Display for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.replica)
    }
}

/// Where an entry stands in its group's log, ordered by (term, index) as in Raft. There is at most one
/// leader in a term, so that the term says whose entry it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogId {
    pub term: u64,
    pub index: u64,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}@{}", self.term, self.index)
    }
}
