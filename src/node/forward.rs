//! One attempt of a call on another node, and what that node's answers mean. A call is passed on once:
//! the other side does it itself or refuses.

use std::time::Duration;

use bytes::Bytes;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tokio::time::Instant;

use super::calls::{Place, is_worth_repeating};
use super::reconcile::Confirmed;
use super::{Consistency, Deadline, Node, ScanPage, ScanQuery};
use crate::error::{Error, Reason, Result};
use crate::kv;
use crate::limits::DECODE_BYTES_MAX;
use crate::proto::v1;
use crate::proto::v1::peer_client::PeerClient;
use crate::transport::{self, GatedChannel, Kind, Limit};
use crate::types::{GroupId, NodeId, PartitionId, ReplicaId};

/// A request that has not left within this time is taken back: the connection does not come about.
const LEAVES_WITHIN: Duration = Duration::from_millis(500);

/// What the other side has less than we wait, so that its verdict arrives while we listen.
const MARGIN: Duration = Duration::from_millis(20);

type Peer = PeerClient<GatedChannel>;

/// Where reads and writes of keys were tried.
#[derive(Debug)]
pub(super) struct Metrics {
    here: IntCounter,
    there: IntCounter,
    refused: IntCounter,
}

impl Metrics {
    /// # Errors
    /// If `registry` has metrics of these names already.
    pub fn register(registry: &Registry) -> prometheus::Result<Metrics> {
        let calls = IntCounterVec::new(
            Opts::new(
                "rushkv_routing_calls_total",
                "Reads and writes of keys that clients asked of this node, by where they were tried.",
            ),
            &["served"],
        )?;
        let refused = IntCounter::new(
            "rushkv_routing_refused_total",
            "Reads and writes that another node passed on to this one, which does not lead.",
        )?;
        registry.register(Box::new(calls.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        let served = |place| calls.with_label_values(&[place]);
        Ok(Metrics { here: served("local"), there: served("forwarded"), refused })
    }

    /// Counts one attempt.
    pub fn tried(&self, place: Place) {
        match place {
            Place::Here => self.here.inc(),
            Place::There(_) => self.there.inc(),
        }
    }

    /// Counts what another node is refused, so that it looks for the leader again.
    pub fn passed_on<T>(&self, result: Result<T>) -> Result<T> {
        if result.as_ref().is_err_and(is_worth_repeating) {
            self.refused.inc();
        }
        result
    }
}

impl Node {
    pub(super) async fn propose_there(
        &self,
        node: NodeId,
        group: GroupId,
        command: Bytes,
        deadline: Deadline,
    ) -> Result<Bytes> {
        let request = v1::ProposeRequest { cluster_id: self.cluster_id()?, group: group.0, command };
        let send = |channel, request| async move { peer(channel).propose(request).await };
        let answer: v1::ProposeResponse = self.ask_node(node, Kind::Write, request, deadline, &send).await?;
        Ok(answer.answer)
    }

    pub(super) async fn read_there(
        &self,
        node: NodeId,
        keys: Vec<Bytes>,
        how: Consistency,
        deadline: Deadline,
    ) -> Result<Vec<Result<Option<kv::Record>>>> {
        let stale = how == Consistency::Stale;
        let request = v1::ReadKeysRequest { cluster_id: self.cluster_id()?, keys, stale };
        let send = |channel, request| async move { peer(channel).read_keys(request).await };
        let answer: v1::ReadKeysResponse = self.ask_node(node, Kind::Read, request, deadline, &send).await?;
        Ok(answer.records.into_iter().map(|found| Ok(found.record.map(|one| record(one).1))).collect())
    }

    pub(super) async fn scan_there(
        &self,
        node: NodeId,
        partitions: Vec<PartitionId>,
        query: &ScanQuery,
        deadline: Deadline,
    ) -> Result<ScanPage> {
        let request = v1::ReadRangeRequest {
            cluster_id: self.cluster_id()?,
            partitions: partitions.into_iter().map(|partition| partition.0).collect(),
            start: query.start.clone(),
            end: query.end.clone(),
            reverse: query.reverse,
            limit: u32::try_from(query.limit).unwrap_or(u32::MAX),
            keys_only: query.keys_only,
            stale: query.consistency == Consistency::Stale,
        };
        let send = |channel, request| async move { peer(channel).read_range(request).await };
        let answer: v1::ReadRangeResponse = self.ask_node(node, Kind::Read, request, deadline, &send).await?;
        Ok(ScanPage { records: answer.records.into_iter().map(record).collect(), more: answer.more })
    }

    /// What another node says of itself and of what it leads.
    pub(super) async fn describe_there(
        &self,
        node: NodeId,
        deadline: Deadline,
    ) -> Result<v1::DescribeResponse> {
        let request = v1::DescribeRequest { cluster_id: self.cluster_id()? };
        let send = |channel, request| async move { peer(channel).describe(request).await };
        self.ask_node(node, Kind::Read, request, deadline, &send).await
    }

    /// The members of a group, from the node that leads it.
    pub(super) async fn membership_there(
        &self,
        node: NodeId,
        group: GroupId,
        deadline: Deadline,
    ) -> Result<Confirmed> {
        let request = v1::MembershipRequest { cluster_id: self.cluster_id()?, group: group.0 };
        let send = |channel, request| async move { peer(channel).membership(request).await };
        let answer: v1::MembershipResponse =
            self.ask_node(node, Kind::Read, request, deadline, &send).await?;
        let members = answer.members.into_iter().map(ReplicaId).collect();
        Ok(Confirmed { members, term: answer.term, index: answer.index })
    }

    /// Has another node compare the replicas of a partition that it leads.
    pub(super) async fn compare_there(
        &self,
        node: NodeId,
        partition: PartitionId,
        deadline: Deadline,
    ) -> Result<v1::Comparison> {
        let request = v1::ComparePartitionRequest { cluster_id: self.cluster_id()?, partition: partition.0 };
        let send = |channel, request| async move { peer(channel).compare_partition(request).await };
        self.ask_node(node, Kind::Read, request, deadline, &send).await
    }

    /// What a replica came to at a mark, from its node.
    pub(super) async fn hash_there(
        &self,
        partition: PartitionId,
        replica: ReplicaId,
        mark: u64,
        deadline: Deadline,
    ) -> Result<u128> {
        let (cluster_id, partition) = (self.cluster_id()?, partition.0);
        let request = v1::HashAtRequest { cluster_id, partition, replica: replica.0, mark };
        let send = |channel, request| async move { peer(channel).hash_at(request).await };
        let answer: v1::HashAtResponse =
            self.ask_node(replica.node(), Kind::Read, request, deadline, &send).await?;
        u128::from_str_radix(&answer.hash, 16)
            .map_err(|_| Error::new(Reason::Internal, format!("{:?} is no hash", answer.hash)))
    }

    /// Has another node check all that its engine holds.
    pub(super) async fn scrub_there(&self, node: NodeId, deadline: Deadline) -> Result<()> {
        let request = v1::ScrubHereRequest { cluster_id: self.cluster_id()? };
        let send = |channel, request| async move { peer(channel).scrub_here(request).await };
        let answer: v1::ScrubHereResponse = self.ask_node(node, Kind::Read, request, deadline, &send).await?;
        let v1::ScrubHereResponse {} = answer;
        Ok(())
    }

    fn cluster_id(&self) -> Result<String> {
        let seat = self.seat().ok_or_else(|| self.no_leader(GroupId::META))?;
        Ok(seat.identity.cluster_id.clone())
    }

    async fn ask_node<M, R, S, F>(
        &self,
        node: NodeId,
        kind: Kind,
        message: M,
        deadline: Deadline,
        send: &S,
    ) -> Result<R>
    where
        S: Fn(GatedChannel, tonic::Request<M>) -> F,
        F: Future<Output = std::result::Result<tonic::Response<R>, tonic::Status>>,
    {
        let channel = self
            .transport
            .channel(node)
            .ok_or_else(|| Error::new(Reason::Unavailable, format!("no address of {node} is known")))?;
        let left = deadline.saturating_duration_since(Instant::now());
        let limit =
            Limit { grpc_timeout: left.saturating_sub(MARGIN), leaves_within: LEAVES_WITHIN, deadline };
        let request = tonic::Request::new(message);
        let answer = transport::attempt(kind, GatedChannel(channel), request, limit, send).await;
        answer.map(tonic::Response::into_inner).map_err(|failed| {
            let mut error = failed.error;
            error.message = format!("{node}: {}", error.message);
            error
        })
    }
}

fn peer(channel: GatedChannel) -> Peer {
    PeerClient::new(channel)
        .max_decoding_message_size(DECODE_BYTES_MAX)
        .max_encoding_message_size(DECODE_BYTES_MAX)
}

fn record(one: v1::Record) -> (Bytes, kv::Record) {
    let v1::Record { key, value, version, create_revision, mod_revision } = one;
    (key, kv::Record { value, version, create_revision, mod_revision })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_document_names_the_metrics() {
        let registry = Registry::new();
        let _metrics = Metrics::register(&registry).unwrap();
        let registered: BTreeSet<String> =
            registry.gather().iter().map(|family| family.name().to_string()).collect();
        let documented: BTreeSet<String> = include_str!("../../docs/metrics.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
            .filter(|name| name.starts_with("rushkv_routing_"))
            .map(str::to_string)
            .collect();
        assert_eq!(registered, documented);
    }
}
