//! `rushkv.v1.Peer`: what nodes ask each other. A thin adapter; see [`Node`]'s `peer_` calls.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::deadline::Clock;
use super::{cluster, kv, request as checked};
use crate::error::{Error, Reason, Result, to_status};
use crate::node::{Consistency, Node, Problem};
use crate::proto::v1;
use crate::proto::v1::peer_server::Peer;
use crate::types::{GroupId, PartitionId};

#[derive(Debug)]
pub(super) struct Service {
    node: Arc<Node>,
}

impl Service {
    pub fn new(node: Arc<Node>) -> Service {
        Service { node }
    }
}

type Answer<T> = std::result::Result<Response<T>, Status>;

fn answer<T>(result: Result<T>) -> Answer<T> {
    result.map(Response::new).map_err(|error| to_status(&error))
}

fn freshness(stale: bool) -> Consistency {
    match stale {
        true => Consistency::Stale,
        false => Consistency::Linearizable,
    }
}

fn missing(what: &str) -> Error {
    Error::new(Reason::InvalidArgument, format!("the request has no {what}"))
}

#[tonic::async_trait]
impl Peer for Service {
    async fn hello(&self, request: Request<v1::HelloRequest>) -> Answer<v1::HelloResponse> {
        Ok(Response::new(self.node.peer_hello(request.into_inner())))
    }

    async fn prepare(&self, request: Request<v1::PrepareRequest>) -> Answer<v1::PrepareResponse> {
        let v1::PrepareRequest { founding, replaces } = request.into_inner();
        let prepared = async {
            let founding = founding.ok_or_else(|| missing("founding"))?;
            self.node.peer_prepare(founding, &replaces).await
        };
        answer(prepared.await.map(|()| v1::PrepareResponse {}))
    }

    async fn admit(&self, request: Request<v1::AdmitRequest>) -> Answer<v1::AdmitResponse> {
        let limit = Clock::of(&request).unary();
        let admitted = async {
            let request = request.into_inner();
            let node = request.node.ok_or_else(|| missing("node"))?;
            self.node.peer_admit(node, request.cluster_version_max, limit.node).await
        };
        answer(limit.write(admitted).await)
    }

    async fn give_up(&self, request: Request<v1::GiveUpRequest>) -> Answer<v1::GiveUpResponse> {
        let limit = Clock::of(&request).unary();
        let given_up = self.node.peer_give_up(request.into_inner(), limit.node);
        answer(limit.write(given_up).await.map(|()| v1::GiveUpResponse {}))
    }

    async fn propose(&self, request: Request<v1::ProposeRequest>) -> Answer<v1::ProposeResponse> {
        let limit = Clock::of(&request).unary();
        let v1::ProposeRequest { cluster_id, group, command } = request.into_inner();
        let proposed = self.node.peer_propose(&cluster_id, GroupId(group), command, limit.node);
        answer(limit.write(proposed).await.map(|answer| v1::ProposeResponse { answer }))
    }

    async fn read_keys(&self, request: Request<v1::ReadKeysRequest>) -> Answer<v1::ReadKeysResponse> {
        let limit = Clock::of(&request).unary();
        let v1::ReadKeysRequest { cluster_id, keys, stale } = request.into_inner();
        let read = async {
            let how = freshness(stale);
            let keys = checked::batch_keys(keys)?;
            let found = self.node.peer_read_keys(&cluster_id, keys.clone(), how, limit.node).await?;
            let records = keys
                .into_iter()
                .zip(found)
                .map(|(key, found)| v1::FoundRecord { record: found.map(|record| kv::record(key, record)) });
            Ok(v1::ReadKeysResponse { records: records.collect() })
        };
        answer(limit.read(read).await)
    }

    async fn read_range(&self, request: Request<v1::ReadRangeRequest>) -> Answer<v1::ReadRangeResponse> {
        let limit = Clock::of(&request).unary();
        let read = async {
            let request = request.into_inner();
            let consistency = freshness(request.stale);
            let cluster_id = request.cluster_id.clone();
            let (partitions, query) = checked::part_of_scan(request, consistency)?;
            self.node.peer_read_range(&cluster_id, &partitions, &query, limit.node).await
        };
        answer(limit.read(read).await.map(|page| v1::ReadRangeResponse {
            records: page.records.into_iter().map(|(key, record)| kv::record(key, record)).collect(),
            more: page.more,
        }))
    }

    async fn membership(&self, request: Request<v1::MembershipRequest>) -> Answer<v1::MembershipResponse> {
        let limit = Clock::of(&request).unary();
        let v1::MembershipRequest { cluster_id, group } = request.into_inner();
        let asked = self.node.peer_membership(&cluster_id, GroupId(group), limit.node);
        answer(limit.read(asked).await.map(|confirmed| v1::MembershipResponse {
            members: confirmed.members.into_iter().map(|replica| replica.0).collect(),
            term: confirmed.term,
            index: confirmed.index,
        }))
    }

    async fn hash_at(&self, request: Request<v1::HashAtRequest>) -> Answer<v1::HashAtResponse> {
        let limit = Clock::of(&request).unary();
        answer(limit.read(self.node.peer_hash_at(request.into_inner(), limit.node)).await)
    }

    async fn compare_partition(
        &self,
        request: Request<v1::ComparePartitionRequest>,
    ) -> Answer<v1::Comparison> {
        let limit = Clock::of(&request).unary();
        let v1::ComparePartitionRequest { cluster_id, partition } = request.into_inner();
        answer(limit.read(self.node.peer_compare(&cluster_id, PartitionId(partition), limit.node)).await)
    }

    async fn scrub_here(&self, request: Request<v1::ScrubHereRequest>) -> Answer<v1::ScrubHereResponse> {
        let begun = self.node.peer_scrub(&request.get_ref().cluster_id);
        answer(begun.map(|()| v1::ScrubHereResponse {}))
    }

    async fn describe(&self, request: Request<v1::DescribeRequest>) -> Answer<v1::DescribeResponse> {
        let described = self.node.peer_describe(&request.get_ref().cluster_id);
        let problem = |problem: Problem| v1::Problem {
            reason: problem.reason.into(),
            message: problem.message,
            nodes: Vec::new(),
        };
        answer(described.map(|(node, partitions, problems)| v1::DescribeResponse {
            cluster_version_max: crate::meta::CLUSTER_VERSION,
            node: Some(cluster::node(node)),
            partitions: cluster::partitions(partitions),
            problems: problems.into_iter().map(problem).collect(),
        }))
    }
}
