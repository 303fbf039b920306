//! One error for every layer above the leaves, and one table of what its reasons mean: the server's
//! statuses, the client's decisions, the tools' exit codes and the README's table all come from
//! [`TABLE`].
//!
//! A reason answers "what should the caller do?". The layers below have errors of their own, which
//! say what broke; they become a reason where somebody can act on it.

mod wire;

use std::collections::BTreeMap;
use std::fmt;

pub use wire::{from_status, to_status};

/// Why a call failed. The wire carries [`Row::name`] in a `google.rpc.ErrorInfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The request itself is wrong; the same request will fail again.
    InvalidArgument,
    /// A key, value or batch is over a limit.
    TooLarge,
    /// There is no such key, node or partition (where that is an error at all).
    NotFound,
    /// The precondition did not hold.
    PreconditionFailed,
    /// The cluster, as it is, can't do what was asked of it.
    ClusterRefused,
    /// Nobody leads the partition, or its leader can't reach a quorum; refused before anything happened.
    Unavailable,
    /// Too much is waiting already; refused before anything happened.
    Overloaded,
    /// The disk is at its low-water mark; refused before anything happened. Deletes work for a while longer.
    DiskFull,
    /// This node is stopping; refused before anything happened.
    ShuttingDown,
    /// The deadline passed before anything happened.
    DeadlineExceeded,
    /// A write may have taken place, or may yet.
    OutcomeUnknown,
    /// This node's copy can't be read, and is being replaced.
    ReplicaFailed,
    /// The partition's replicas differ, with no majority to say which is right; refused before anything happened.
    Diverged,
    /// The call exists in the interface but not yet in this version.
    Unimplemented,
    /// A bug, or a message from a program that is not ours.
    Internal,
}

/// Whether a failed write took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// Surely not: it may be tried again.
    No,
    /// Perhaps: trying again could do it twice.
    Unknown,
}

impl Happened {
    pub fn as_str(self) -> &'static str {
        match self {
            Happened::No => "no",
            Happened::Unknown => "unknown",
        }
    }
}

/// One reason's line in the table of errors.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub reason: Reason,
    /// On the wire: `google.rpc.ErrorInfo.reason`.
    pub name: &'static str,
    /// The gRPC status code's number.
    pub grpc: tonic::Code,
    pub happened: Happened,
    /// The exit code of `rushkv-cli` and `rushkvctl`.
    pub exit: u8,
    pub meaning: &'static str,
    pub way_out: &'static str,
}

/// The `domain` of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "rushkv";

/// The table of errors. Unknown outcomes are never `UNAVAILABLE`: proxies and gRPC's own retry
/// policies repeat that one, which would turn one write into two.
pub const TABLE: [Row; 15] = {
    use Happened::{No, Unknown};
    use Reason::*;
    use tonic::Code;
    const fn row(
        reason: Reason,
        name: &'static str,
        grpc: Code,
        happened: Happened,
        exit: u8,
        meaning: &'static str,
        way_out: &'static str,
    ) -> Row {
        Row { reason, name, grpc, happened, exit, meaning, way_out }
    }
    [
        row(
            InvalidArgument,
            "INVALID_ARGUMENT",
            Code::InvalidArgument,
            No,
            2,
            "the request itself is wrong",
            "mend the request; the message says what is wrong with it",
        ),
        row(
            TooLarge,
            "TOO_LARGE",
            Code::InvalidArgument,
            No,
            2,
            "a key, value or batch is over a limit",
            "send less; the message names the limit",
        ),
        row(
            NotFound,
            "NOT_FOUND",
            Code::NotFound,
            No,
            3,
            "there is no such key, node or partition",
            "check the name",
        ),
        row(
            PreconditionFailed,
            "PRECONDITION_FAILED",
            Code::FailedPrecondition,
            No,
            4,
            "the key is not in the state that the write asked for",
            "read it again and decide anew; metadata current_version has its version (0: not there)",
        ),
        row(
            ClusterRefused,
            "CLUSTER_REFUSED",
            Code::FailedPrecondition,
            No,
            4,
            "the cluster, as it is, can't do what was asked of it",
            "the message says what stands in the way",
        ),
        row(
            Unavailable,
            "UNAVAILABLE",
            Code::Unavailable,
            No,
            5,
            "the partition has no leader that reaches a majority, or the node can't be reached",
            "try again; if it lasts, see rushkvctl cluster health",
        ),
        row(
            Overloaded,
            "OVERLOADED",
            Code::ResourceExhausted,
            No,
            5,
            "too much is waiting already",
            "try again later, with fewer calls at once",
        ),
        row(
            DiskFull,
            "DISK_FULL",
            Code::ResourceExhausted,
            No,
            5,
            "the disk has less free space than writes must leave",
            "free or add space; deletes work until half of storage.disk_reserve is used",
        ),
        row(
            ShuttingDown,
            "SHUTTING_DOWN",
            Code::Unavailable,
            No,
            5,
            "the node is stopping",
            "ask another node, or wait until it is back",
        ),
        row(
            DeadlineExceeded,
            "DEADLINE_EXCEEDED",
            Code::DeadlineExceeded,
            No,
            5,
            "the deadline passed before anything happened",
            "try again, with more time",
        ),
        row(
            OutcomeUnknown,
            "OUTCOME_UNKNOWN",
            Code::Unknown,
            Unknown,
            6,
            "the write may have taken place, or may yet",
            "read the key; write again only if doing it twice is harmless, or with a precondition",
        ),
        row(
            ReplicaFailed,
            "REPLICA_FAILED",
            Code::DataLoss,
            No,
            5,
            "this node's copy of the partition can't be read",
            "see rushkvctl cluster health and the node's log",
        ),
        row(
            Diverged,
            "DIVERGED",
            Code::DataLoss,
            No,
            5,
            "the partition's replicas differ, and no majority says which is right",
            "see rushkvctl debug hash; stale reads are still served, each by its node's own replica",
        ),
        row(
            Unimplemented,
            "UNIMPLEMENTED",
            Code::Unimplemented,
            No,
            1,
            "this version does not have that call yet",
            "see the README for what is there",
        ),
        row(
            Internal,
            "INTERNAL",
            Code::Internal,
            Unknown,
            1,
            "a bug, or an answer that makes no sense",
            "please report it with the node's log",
        ),
    ]
};

impl Reason {
    pub fn row(self) -> &'static Row {
        // Every variant has its row; a test holds the table to it.
        TABLE.iter().find(|row| row.reason == self).unwrap_or(&TABLE[TABLE.len() - 1])
    }

    /// The reason with this name on the wire.
    pub fn from_name(name: &str) -> Option<Reason> {
        TABLE.iter().find(|row| row.name == name).map(|row| row.reason)
    }
}

/// Why a call failed, in words for its caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub reason: Reason,
    /// Names the thing, the value and, where it is not the reason's usual one, the way out.
    pub message: String,
    /// Facts for programs; `google.rpc.ErrorInfo.metadata` on the wire.
    pub metadata: BTreeMap<String, String>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(reason: Reason, message: impl Into<String>) -> Error {
        Error { reason, message: message.into(), metadata: BTreeMap::new() }
    }

    #[must_use]
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Error {
        self.metadata.insert(key.to_string(), value.to_string());
        self
    }

    pub fn happened(&self) -> Happened {
        self.reason.row().happened
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_reason_and_by_name() {
        for row in &TABLE {
            assert_eq!(row.reason.row().name, row.name);
            assert_eq!(Reason::from_name(row.name), Some(row.reason));
        }
    }

    #[test]
    fn unknown_outcomes_are_never_unavailable() {
        for row in &TABLE {
            if row.happened == Happened::Unknown {
                assert_ne!(row.grpc, tonic::Code::Unavailable, "{}", row.name);
            }
        }
    }
}
