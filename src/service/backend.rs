//! What the services need of a node.
//!
//! [`Node`] is the only implementation outside tests. The seam is here so that the services can be
//! tested against a backend that stalls, fails and answers out of line, which a node does not do on
//! request.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::kv;
use crate::node::{
    ClusterInfo, Consistency, Deadline, Joined, Node, Problem, Routed, RoutedBatch, ScanPage, ScanQuery,
};
use crate::types::{Epoch, PartitionId};

/// The calls of [`Node`] that services make; see there for what each promises.
pub trait Backend: Send + Sync + 'static {
    fn problems(&self) -> Vec<Problem>;
    fn probe(&self) -> impl Future<Output = Result<()>> + Send;
    /// Whether a call that is meant for the cluster with this id is right here.
    fn is_of_cluster(&self, id: &str) -> bool;
    fn write(&self, op: kv::Op, deadline: Deadline) -> impl Future<Output = Routed<kv::Outcome>> + Send;
    fn write_batch(
        &self,
        ops: Vec<kv::Op>,
        deadline: Deadline,
    ) -> impl Future<Output = RoutedBatch<kv::Outcome>> + Send;
    fn get(
        &self,
        key: Bytes,
        how: Consistency,
        deadline: Deadline,
    ) -> impl Future<Output = Routed<Option<kv::Record>>> + Send;
    /// May answer fewer results than keys, once the records read are more than a message holds.
    fn get_batch(
        &self,
        keys: Vec<Bytes>,
        how: Consistency,
        deadline: Deadline,
    ) -> impl Future<Output = RoutedBatch<Option<kv::Record>>> + Send;
    fn scan(&self, query: ScanQuery, deadline: Deadline) -> impl Future<Output = Result<ScanPage>> + Send;
    fn cluster_info(&self) -> impl Future<Output = Result<ClusterInfo>> + Send;
    fn locate(&self, key: &[u8]) -> Result<(u64, PartitionId)>;
    fn topology_changed(&self, seen: Epoch) -> impl Future<Output = ()> + Send;
    fn join(
        &self,
        address: &str,
        name: Option<&str>,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Joined>> + Send;
    fn leave(&self, name: &str, deadline: Deadline) -> impl Future<Output = Result<()>> + Send;
    /// The node that other nodes talk to on this port, if they do.
    fn peer(self: &Arc<Self>) -> Option<Arc<Node>> {
        None
    }
}

impl Backend for Node {
    fn problems(&self) -> Vec<Problem> {
        Node::problems(self)
    }

    fn probe(&self) -> impl Future<Output = Result<()>> + Send {
        Node::probe(self)
    }

    fn is_of_cluster(&self, id: &str) -> bool {
        Node::is_of_cluster(self, id)
    }

    fn write(&self, op: kv::Op, deadline: Deadline) -> impl Future<Output = Routed<kv::Outcome>> + Send {
        Node::write_routed(self, op, deadline)
    }

    fn write_batch(
        &self,
        ops: Vec<kv::Op>,
        deadline: Deadline,
    ) -> impl Future<Output = RoutedBatch<kv::Outcome>> + Send {
        Node::write_batch_routed(self, ops, deadline)
    }

    fn get(
        &self,
        key: Bytes,
        how: Consistency,
        deadline: Deadline,
    ) -> impl Future<Output = Routed<Option<kv::Record>>> + Send {
        Node::get_routed(self, key, how, deadline)
    }

    fn get_batch(
        &self,
        keys: Vec<Bytes>,
        how: Consistency,
        deadline: Deadline,
    ) -> impl Future<Output = RoutedBatch<Option<kv::Record>>> + Send {
        Node::get_batch_routed(self, keys, how, deadline)
    }

    fn scan(&self, query: ScanQuery, deadline: Deadline) -> impl Future<Output = Result<ScanPage>> + Send {
        Node::scan(self, query, deadline)
    }

    fn cluster_info(&self) -> impl Future<Output = Result<ClusterInfo>> + Send {
        Node::cluster_info(self)
    }

    fn locate(&self, key: &[u8]) -> Result<(u64, PartitionId)> {
        Node::locate(self, key)
    }

    fn topology_changed(&self, seen: Epoch) -> impl Future<Output = ()> + Send {
        Node::topology_changed(self, seen)
    }

    fn join(
        &self,
        address: &str,
        name: Option<&str>,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Joined>> + Send {
        Node::join(self, address, name, deadline)
    }

    fn leave(&self, name: &str, deadline: Deadline) -> impl Future<Output = Result<()>> + Send {
        Node::leave(self, name, deadline)
    }

    fn peer(self: &Arc<Self>) -> Option<Arc<Node>> {
        Some(self.clone())
    }
}
