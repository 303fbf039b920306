//! What other nodes may ask of this one. What is asked here is done here, or refused: never passed on.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::reconcile::Confirmed;
use super::{Consistency, Deadline, Node, NodeInfo, PartitionInfo, Problem, ScanPage, ScanQuery};
use crate::error::{Error, Reason, Result};
use crate::kv;
use crate::placement;
use crate::proto::v1;
use crate::raft::{Class, Inbox, Role, Route};
use crate::types::{GroupId, PartitionId};

impl Inbox for Node {
    fn receive(
        &self,
        route: Route,
        class: Class,
        message: Bytes,
    ) -> BoxFuture<'static, std::result::Result<Bytes, String>> {
        let GroupId(number) = route.group;
        if route.group == GroupId::META
            && let Some(seat) = self.seat()
        {
            return seat.meta.receive(route, class, message);
        }
        if number > 0
            && let Some(replica) = self.replica(PartitionId(number - 1))
        {
            // Heartbeats and votes take no room, and group 0 next to none: it must stay able to act.
            if class != Class::Control
                && let Err(why) = self.disk.check_received(message.len())
            {
                return Box::pin(std::future::ready(Err(why)));
            }
            return replica.group.receive(route, class, message);
        }
        let refusal = format!("node \"{}\" holds no replica {}", self.options.name, route);
        Box::pin(std::future::ready(Err(refusal)))
    }
}

impl Node {
    /// The server of the messages that nodes exchange.
    pub fn transport(&self) -> &std::sync::Arc<crate::transport::Transport> {
        &self.transport
    }

    pub fn peer_hello(&self, request: v1::HelloRequest) -> v1::HelloResponse {
        let disk_id = request.from.and_then(|from| from.node).unwrap_or_default().disk_id;
        v1::HelloResponse { standing: Some(self.standing()), removed: self.has_removed(&disk_id) }
    }

    /// # Errors
    /// [`Reason::ClusterRefused`] if this node can't take part in the founding.
    pub async fn peer_prepare(
        self: &std::sync::Arc<Node>,
        founding: v1::Founding,
        replaces: &str,
    ) -> Result<()> {
        // Whoever asks may give up waiting: what is begun is ended all the same.
        let (node, replaces) = (self.clone(), replaces.to_string());
        let (tell, told) = tokio::sync::oneshot::channel();
        self.keep_task(tokio::spawn(async move {
            // If nobody waits any more, it is asked for again.
            let _ = tell.send(node.accept_founding(founding, &replaces).await);
        }));
        told.await.unwrap_or_else(|_| Err(Error::new(Reason::ShuttingDown, "the node is stopping")))
    }

    /// # Errors
    /// [`Reason::ClusterRefused`] if the cluster does not take the node.
    pub async fn peer_admit(
        &self,
        node: v1::Founder,
        version_max: u32,
        deadline: Deadline,
    ) -> Result<v1::AdmitResponse> {
        self.admit(node, version_max, deadline).await
    }

    /// # Errors
    /// [`Reason::ClusterRefused`] if this node's cluster can't be given up.
    pub async fn peer_give_up(&self, asked: v1::GiveUpRequest, deadline: Deadline) -> Result<()> {
        self.give_up(asked, deadline).await
    }

    pub async fn peer_propose(
        &self,
        cluster_id: &str,
        group: GroupId,
        command: Bytes,
        deadline: Deadline,
    ) -> Result<Bytes> {
        let _call = self.enter()?;
        self.same_cluster(cluster_id)?;
        self.routing_metrics.passed_on(self.propose_here(group, command, deadline).await)
    }

    /// Reads keys, of one moment per partition, in order; stops when the records fill a message.
    pub async fn peer_read_keys(
        &self,
        cluster_id: &str,
        keys: Vec<Bytes>,
        how: Consistency,
        deadline: Deadline,
    ) -> Result<Vec<Option<kv::Record>>> {
        let _call = self.enter()?;
        self.same_cluster(cluster_id)?;
        let routing = &self.formed()?.routing;
        let mut parts: BTreeMap<PartitionId, Vec<Bytes>> = BTreeMap::new();
        for key in &keys {
            parts.entry(routing.partition_of(placement::hash(key))).or_default().push(key.clone());
        }
        let mut found = BTreeMap::new();
        for (partition, keys) in parts {
            let read = self.routing_metrics.passed_on(self.read_here(partition, keys, how, deadline).await);
            found.insert(partition, read?.into_iter());
        }
        let mut records = Vec::with_capacity(keys.len());
        for key in &keys {
            let next = found.get_mut(&routing.partition_of(placement::hash(key))).and_then(Iterator::next);
            let Some(record) = next else { break };
            records.push(record?);
        }
        Ok(records)
    }

    pub async fn peer_read_range(
        &self,
        cluster_id: &str,
        partitions: &[PartitionId],
        query: &ScanQuery,
        deadline: Deadline,
    ) -> Result<ScanPage> {
        let _call = self.enter()?;
        self.same_cluster(cluster_id)?;
        self.scan_here(partitions, query, deadline).await
    }

    /// The members of a group that this node leads, as a majority confirms it.
    pub async fn peer_membership(
        &self,
        cluster_id: &str,
        group: GroupId,
        deadline: Deadline,
    ) -> Result<Confirmed> {
        self.same_cluster(cluster_id)?;
        let partition = group.0.checked_sub(1).map(PartitionId).ok_or_else(|| self.no_leader(group))?;
        let replica = self.replica(partition).ok_or_else(|| self.no_leader(group))?;
        let before = replica.group.status();
        self.space(partition, &replica.group, Consistency::Linearizable, deadline).await?;
        // Nothing was changed while the majority was asked.
        let status = replica.group.status();
        let settled = status.role == Role::Leader && status.membership_committed && !status.joint;
        if !settled || (status.term, status.membership) != (before.term, before.membership) {
            return Err(self.no_leader(group));
        }
        let Some(membership) = status.membership else { return Err(self.no_leader(group)) };
        let members = status.voters.iter().chain(&status.learners).copied().collect();
        Ok(Confirmed { members, term: status.term, index: membership.index })
    }

    /// What this node knows of itself, and of the partitions that it leads; its problems.
    pub fn peer_describe(&self, cluster_id: &str) -> Result<(NodeInfo, Vec<PartitionInfo>, Vec<Problem>)> {
        self.same_cluster(cluster_id)?;
        let (node, partitions) = self.describe()?;
        Ok((node, partitions, self.problems()))
    }

    pub(super) fn same_cluster(&self, asked: &str) -> Result<()> {
        let seat = self.seat().ok_or_else(|| self.no_leader(GroupId::META))?;
        if seat.identity.cluster_id == asked {
            return Ok(());
        }
        Err(Error::new(
            Reason::InvalidArgument,
            format!(
                "the call is meant for cluster {asked}, and node \"{}\" is of cluster {}",
                self.options.name, seat.identity.cluster_id
            ),
        ))
    }
}
