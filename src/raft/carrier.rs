//! The seam between consensus and the network: bytes from one replica to another.
//!
//! `raft/` knows what the bytes mean and never how they travel; what carries them knows addresses,
//! connections and queues, and never what they mean.

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::types::{GroupId, ReplicaId};

/// From one replica of a group to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    pub group: GroupId,
    pub from: ReplicaId,
    pub to: ReplicaId,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.group, self.from, self.to)
    }
}

/// Each class has a connection of its own to each node, so that heartbeats never wait behind bulk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Votes, heartbeats, leader transfer.
    Control,
    /// Entries.
    Append,
    /// Snapshots.
    Snapshot,
}

/// Why a message has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CarryError {
    /// It was not sent: no connection, or the queue to that node is full.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// It was perhaps delivered: the connection broke before the answer.
    #[error("no answer: {0}")]
    Broken(String),
    /// The other side has it and refuses: no such replica there, or it can't be read.
    #[error("refused: {0}")]
    Refused(String),
}

/// Carries messages to the replicas of other nodes.
pub trait Carrier: fmt::Debug + Send + Sync + 'static {
    /// Sends one message; resolves with its answer. Never blocks: a full queue is an error.
    ///
    /// The messages of one class to one node are delivered in the order of these calls, or not at all;
    /// after a [`CarryError::Broken`] none that was sent before it on that connection arrives any more
    /// ahead of one sent later. Answers may come in any order. There is no deadline here: the caller
    /// gives up by dropping the future, which does not take the message back.
    fn send(
        &self,
        route: Route,
        class: Class,
        message: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, CarryError>>;
}

/// Takes the messages that arrive at this node.
pub trait Inbox: fmt::Debug + Send + Sync + 'static {
    /// Called in the order of arrival, never blocks; the future resolves with the answer, or with why
    /// there is none.
    fn receive(
        &self,
        route: Route,
        class: Class,
        message: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, String>>;
}

/// Carries nothing: for a node without peers.
#[derive(Debug)]
pub struct NoPeers;

impl Carrier for NoPeers {
    fn send(&self, route: Route, _: Class, _: Bytes) -> BoxFuture<'static, Result<Bytes, CarryError>> {
        let error = CarryError::Unreachable(format!("no connection leads to {}", route.to));
        Box::pin(std::future::ready(Err(error)))
    }
}
