//! `rushkv.v1.Debug`: whether what is stored is what was written. A thin adapter.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::deadline::Clock;
use crate::error::{Result, to_status};
use crate::node::Node;
use crate::proto::v1;
use crate::proto::v1::debug_server::Debug;
use crate::types::PartitionId;

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

#[tonic::async_trait]
impl Debug for Service {
    async fn compare(&self, request: Request<v1::CompareRequest>) -> Answer<v1::CompareResponse> {
        let limit = Clock::of(&request).unary();
        let partitions = request.into_inner().partitions.into_iter().map(PartitionId).collect();
        let compared = limit.read(self.node.compare(partitions, limit.node)).await;
        answer(compared.map(|comparisons| v1::CompareResponse { comparisons }))
    }

    async fn scrub(&self, request: Request<v1::ScrubRequest>) -> Answer<v1::ScrubResponse> {
        let limit = Clock::of(&request).unary();
        answer(limit.read(self.node.scrub()).await)
    }
}
