//! The calls of the in-memory server.

use std::pin::Pin;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tonic::{Request, Response, Status};

use super::{BREAK, CLUSTER_ID, State, put_request};
use crate::error::{Error, Reason, to_status};
use crate::proto::v1;
use crate::transport::Leader;

impl State {
    async fn pipelined(&self, request: v1::PipelineRequest) -> Result<v1::PipelineResponse, Status> {
        use v1::kv_server::Kv as _;
        use v1::pipeline_request::Call;
        use v1::pipeline_response::Outcome;
        let answered = match request.call.unwrap() {
            Call::Put(put) => self.put(Request::new(put)).await.map(|answer| answer.map(Outcome::Put)),
            Call::Delete(delete) => {
                self.delete(Request::new(delete)).await.map(|answer| answer.map(Outcome::Delete))
            }
            Call::Get(get) => self.get(Request::new(get)).await.map(|answer| answer.map(Outcome::Get)),
        };
        let metadata = match &answered {
            Ok(answer) => answer.metadata(),
            Err(status) => status.metadata(),
        };
        let leader = Leader::read(metadata).map(|leader| v1::PipelineLeader {
            address: leader.address,
            partition: leader.partition.0,
            epoch: leader.epoch.0,
            cluster_id: leader.cluster_id,
        });
        let outcome = match answered {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.message() == BREAK => return Err(status),
            Err(status) => {
                let error = crate::error::from_status(&status, crate::error::Happened::Unknown);
                Outcome::Error(v1::OperationError {
                    reason: error.reason.row().name.into(),
                    happened: error.happened().as_str().into(),
                    message: error.message,
                    code: status.code() as i32,
                    metadata: error.metadata.into_iter().collect(),
                })
            }
        };
        Ok(v1::PipelineResponse { id: request.id, outcome: Some(outcome), leader })
    }
}

#[tonic::async_trait]
impl v1::kv_server::Kv for State {
    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        self.act("put", |state| state.buggy_put(request.into_inner())).await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        self.act("delete", |state| state.buggy_delete(request.into_inner())).await
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let key = request.into_inner().key;
        self.act("get", |state| Ok(v1::GetResponse { record: state.buggy_get(&key) })).await
    }

    type ScanStream = Pin<Box<dyn Stream<Item = Result<v1::ScanResponse, Status>> + Send>>;

    /// Fails, if the plan says so, after the first message.
    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let request = request.into_inner();
        let found = self.buggy_scan(|records| State::select(&request, records));
        let mut messages: Vec<Result<v1::ScanResponse, Status>> = found
            .chunks(self.page)
            .enumerate()
            .map(|(number, records)| {
                let is_last = (number + 1) * self.page >= found.len();
                let token = if is_last { Bytes::new() } else { records.last().unwrap().key.clone() };
                Ok(v1::ScanResponse { records: records.to_vec(), page_token: token })
            })
            .collect();
        let planned = self.act("scan", |_| Ok(())).await;
        if let Err(status) = planned {
            messages.truncate(1);
            messages.push(Err(status));
        }
        Ok(Response::new(Box::pin(stream::iter(messages))))
    }

    type PipelineStream = Pin<Box<dyn Stream<Item = Result<v1::PipelineResponse, Status>> + Send>>;

    async fn pipeline(
        &self,
        request: Request<tonic::Streaming<v1::PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        self.calls.lock().unwrap().push("pipeline");
        if !self.has_pipelines.load(Ordering::SeqCst) {
            return Err(Status::unimplemented("no such call"));
        }
        let before = self.closed_before.load(Ordering::SeqCst);
        let closed = v1::PipelineResponse {
            id: before - 1,
            outcome: Some(v1::pipeline_response::Outcome::Closed(true)),
            leader: None,
        };
        let own = self.own.clone();
        let read = request.into_inner().filter_map(|request| std::future::ready(request.ok()));
        let answers = read
            .take_while(move |request| std::future::ready(request.id < before))
            .map(move |request| {
                let state = own.upgrade().unwrap();
                async move { state.pipelined(request).await }
            })
            .buffer_unordered(64);
        let closed = stream::iter((before < u64::MAX).then_some(Ok(closed)));
        Ok(Response::new(Box::pin(answers.chain(closed))))
    }

    async fn batch_write(
        &self,
        request: Request<v1::BatchWriteRequest>,
    ) -> Result<Response<v1::BatchWriteResponse>, Status> {
        use v1::write_operation::Operation;
        use v1::write_outcome::Outcome;
        self.act("batch_write", |state| {
            let outcomes = request.into_inner().operations.into_iter().map(|operation| {
                let cut_off = state.is_cut_off.load(Ordering::SeqCst);
                let result = match operation.operation.unwrap() {
                    _ if cut_off => Err(to_status(&Error::new(Reason::Unavailable, "no leader"))),
                    Operation::Put(put) if put.key.starts_with(b"unlucky") => {
                        // Fails the first time it is asked for.
                        let first = state.write_put(put_request("unlucky", "")).unwrap().version == 1;
                        let status = to_status(&Error::new(Reason::Unavailable, "no leader"));
                        if first { Err(status) } else { state.write_put(put).map(Outcome::Put) }
                    }
                    Operation::Put(put) => state.buggy_put_of_batch(put).map(Outcome::Put),
                    Operation::Delete(delete) => state.buggy_delete(delete).map(Outcome::Delete),
                };
                let outcome = result.unwrap_or_else(|status| {
                    let error = crate::error::from_status(&status, crate::error::Happened::No);
                    Outcome::Error(v1::OperationError {
                        reason: error.reason.row().name.into(),
                        message: error.message.clone(),
                        happened: error.happened().as_str().into(),
                        code: status.code() as i32,
                        metadata: error.metadata.into_iter().collect(),
                    })
                });
                v1::WriteOutcome { outcome: Some(outcome) }
            });
            Ok(v1::BatchWriteResponse { outcomes: outcomes.collect() })
        })
        .await
    }

    async fn batch_get(
        &self,
        request: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        use v1::batch_get_result::Result as Wire;
        self.act("batch_get", |state| {
            let results = request.into_inner().keys.into_iter().enumerate().map(|(number, key)| {
                let result = match state.buggy_get(&key) {
                    _ if state.is_cut_off.load(Ordering::SeqCst) => Wire::NotRead(true),
                    _ if number >= state.batch_get_room => Wire::NotRead(true),
                    Some(record) => Wire::Record(record),
                    None => Wire::NotFound(true),
                };
                v1::BatchGetResult { result: Some(result) }
            });
            Ok(v1::BatchGetResponse { results: results.collect() })
        })
        .await
    }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for State {
    async fn info(&self, _: Request<v1::InfoRequest>) -> Result<Response<v1::InfoResponse>, Status> {
        self.act("info", |state| {
            let led = if state.leader_of_second().is_empty() { 1 } else { 2 };
            let problem = |reason: &str, message: &str| v1::Problem {
                reason: reason.into(),
                message: message.into(),
                nodes: vec!["node1".into()],
            };
            let mut problems = Vec::new();
            if led < 2 {
                problems.push(problem("PARTITION_WITHOUT_LEADER", "partition 1 has no leader"));
            }
            if state.is_removed.load(Ordering::SeqCst) {
                problems.push(problem("REMOVED", "node \"node1\" was removed from its cluster"));
            }
            let nodes = u32::try_from(state.nodes.lock().unwrap().len()).unwrap();
            Ok(v1::InfoResponse {
                cluster_id: CLUSTER_ID.into(),
                cluster_name: "rushkv".into(),
                cluster_version: 1,
                epoch: 4,
                leader: "node1".into(),
                node_count: nodes,
                partition_count: 2,
                partitions_led: led,
                replicas: nodes.min(3),
                answered_by: Some(State::node()),
                problems,
            })
        })
        .await
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        self.act("list_nodes", |state| {
            Ok(v1::ListNodesResponse { nodes: state.nodes.lock().unwrap().clone() })
        })
        .await
    }

    async fn list_partitions(
        &self,
        _: Request<v1::ListPartitionsRequest>,
    ) -> Result<Response<v1::ListPartitionsResponse>, Status> {
        self.act("list_partitions", |state| {
            Ok(v1::ListPartitionsResponse { partitions: vec![state.partition(0), state.partition(1)] })
        })
        .await
    }

    async fn locate_key(
        &self,
        _: Request<v1::LocateKeyRequest>,
    ) -> Result<Response<v1::LocateKeyResponse>, Status> {
        self.act("locate_key", |state| {
            Ok(v1::LocateKeyResponse { hash: 0x0123_4567_89ab_cdef, partition: Some(state.partition(0)) })
        })
        .await
    }

    type WatchTopologyStream = Pin<Box<dyn Stream<Item = Result<v1::Topology, Status>> + Send>>;

    async fn watch_topology(
        &self,
        _: Request<v1::WatchTopologyRequest>,
    ) -> Result<Response<Self::WatchTopologyStream>, Status> {
        let topology = self.topology.lock().unwrap().clone();
        let topology = topology.ok_or_else(|| Status::unimplemented("no topology"))?;
        self.act("watch_topology", |_| Ok(())).await?;
        Ok(Response::new(Box::pin(stream::once(async { Ok(topology) }))))
    }

    /// What is at an address that begins with "alone" has to give its own cluster up first.
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let is_member = !request.into_inner().address.starts_with("alone");
        self.act("join", |_| Ok(v1::JoinResponse { node: "node2".into(), is_member })).await
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveResponse>, Status> {
        let name = request.into_inner().node;
        self.act("leave", |state| {
            let mut nodes = state.nodes.lock().unwrap();
            let node = nodes.iter_mut().find(|node| node.name == name).ok_or_else(|| {
                to_status(&Error::new(Reason::NotFound, format!("the cluster has no node \"{name}\"")))
            })?;
            node.set_state(v1::NodeState::Leaving);
            Ok(v1::LeaveResponse {})
        })
        .await
    }
}
