//! Servers on loopback for the tests of the client and of the tools: an in-memory cluster of one that
//! can be told to misbehave, and listeners that are no servers at all.

mod bugs;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

pub(crate) use bugs::Bug;
use bugs::Planted;

use crate::error::{Error, Reason, to_status};
use crate::proto::v1;
use crate::transport::Leader;
use crate::types::{Epoch, PartitionId};

/// What a status says that is not to be told to the client.
const BREAK: &str = "break";

pub(crate) const CLUSTER_ID: &str = "00c0ffee00c0ffee";

/// What a call does instead of its work.
pub(crate) enum Act {
    Work,
    Fail(Status),
    /// The work is done, and then the status is answered nevertheless.
    WorkThenFail(Status),
    /// The work is answered, and not done.
    Lose,
    /// The work is done, and the answer says that the node at this address leads.
    Tell(String),
    Hang,
    /// The work is done once as many calls have come as the barrier wants.
    Meet(Arc<tokio::sync::Barrier>),
    /// In a pipeline: it breaks.
    Break,
}

pub(crate) type Plan = Box<dyn Fn(&'static str, usize) -> Act + Send + Sync>;

/// An in-memory server. `plan` is asked with each call's name and number, over all calls.
pub(crate) struct Fake {
    pub(crate) state: Arc<State>,
    pub(crate) address: String,
    task: JoinHandle<()>,
}

pub(crate) struct State {
    own: Weak<State>,
    plan: Plan,
    /// Whether it has pipelines; those of before do not.
    pub(crate) has_pipelines: AtomicBool,
    /// A pipeline is closed before the request with this id is read.
    pub(crate) closed_before: AtomicU64,
    pub(crate) records: Mutex<BTreeMap<Bytes, v1::Record>>,
    calls: Mutex<Vec<&'static str>>,
    /// The last one that was given.
    revision: AtomicU64,
    planted: Mutex<Planted>,
    /// What a watch of the topology begins with; none: there is no such call.
    pub(crate) topology: Mutex<Option<v1::Topology>>,
    /// The members; each partition has a copy on up to three of them.
    nodes: Mutex<Vec<v1::Node>>,
    /// Records in each message of a scan.
    page: usize,
    /// Keys that one BatchGet answers.
    batch_get_room: usize,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub(crate) async fn start() -> Fake {
        Fake::with(Box::new(|_, _| Act::Work)).await
    }

    pub(crate) async fn with(plan: Plan) -> Fake {
        Fake::listen(plan, "127.0.0.1:0").await
    }

    /// One with a bug.
    pub(crate) async fn with_bug(bug: Bug) -> Fake {
        let fake = Fake::start().await;
        *fake.state.planted.lock().unwrap() = Planted::of(bug);
        fake
    }

    pub(crate) async fn start_at(address: &str) -> Fake {
        Fake::listen(Box::new(|_, _| Act::Work), address).await
    }

    async fn listen(plan: Plan, address: &str) -> Fake {
        let state = Arc::new_cyclic(|own| State {
            own: own.clone(),
            plan,
            has_pipelines: AtomicBool::new(false),
            closed_before: AtomicU64::new(u64::MAX),
            records: Mutex::new(BTreeMap::new()),
            revision: AtomicU64::new(0),
            planted: Mutex::default(),
            calls: Mutex::new(Vec::new()),
            topology: Mutex::default(),
            nodes: Mutex::new(vec![State::node()]),
            page: 3,
            batch_get_room: 2,
        });
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = tonic::transport::Server::builder()
            .add_service(v1::kv_server::KvServer::from_arc(state.clone()))
            .add_service(v1::cluster_server::ClusterServer::from_arc(state.clone()));
        let task = tokio::spawn(async move {
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Fake { state, address, task }
    }

    /// It tells this table from now on: a partition for each of `leaders`, who share the hashes in their order.
    pub(crate) fn tell_topology(&self, epoch: u64, leaders: &[&str]) {
        let (mut nodes, mut partitions) = (Vec::new(), Vec::new());
        let part = u64::MAX / leaders.len() as u64;
        for (number, leader) in leaders.iter().enumerate() {
            let id = u32::try_from(number).unwrap();
            let name = format!("leader{id}");
            let first_hash = if id == 0 { 0 } else { part * u64::from(id) + 1 };
            let last_hash = if number + 1 == leaders.len() { u64::MAX } else { part * u64::from(id + 1) };
            nodes.push(v1::Node { name: name.clone(), address: leader.to_string(), ..v1::Node::default() });
            partitions.push(v1::Partition {
                id,
                first_hash,
                last_hash,
                leader: name,
                ..v1::Partition::default()
            });
        }
        let topology = v1::Topology { epoch, nodes, partitions, cluster_id: CLUSTER_ID.into() };
        *self.state.topology.lock().unwrap() = Some(topology);
    }

    /// It tells so many members from now on: node1, node2, ...
    pub(crate) fn tell_nodes(&self, count: u32) {
        let node =
            |number: u32| v1::Node { name: format!("node{number}"), number: number.into(), ..State::node() };
        *self.state.nodes.lock().unwrap() = (1..=count).map(node).collect();
    }

    /// How often `call` was made.
    pub(crate) fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|one| **one == call).count()
    }

    pub(crate) fn calls(&self) -> Vec<&'static str> {
        self.state.calls.lock().unwrap().clone()
    }

    pub(crate) fn put(&self, key: &str, value: &str) {
        self.state.write_put(put_request(key, value)).unwrap();
    }
}

pub(crate) fn put_request(key: &str, value: &str) -> v1::PutRequest {
    let (key, value) = (Bytes::from(key.to_string()), Bytes::from(value.to_string()));
    v1::PutRequest { key, value, precondition: None }
}

/// A port where nobody listens, nor will as long as this process lives.
pub(crate) fn refusing() -> String {
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = bound.local_addr().unwrap().to_string();
    std::mem::forget(bound);
    address
}

/// Takes connections, reads what comes until `bytes` have come on one, and closes it. Counts them.
pub(crate) async fn closing_after(bytes: usize) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                let mut got = 0;
                while got < bytes {
                    match connection.read(&mut buffer).await {
                        Ok(0) | Err(_) => return,
                        Ok(n) => got += n,
                    }
                }
            });
        }
    });
    (address, connections)
}

/// Never completes a connection: its backlog is full. Keep what is returned.
pub(crate) async fn unconnectable() -> (String, Vec<tokio::net::TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut fillers = Vec::new();
    let patience = std::time::Duration::from_millis(300);
    while let Ok(Ok(filler)) = tokio::time::timeout(patience, tokio::net::TcpStream::connect(address)).await {
        fillers.push(filler);
        assert!(fillers.len() < 64, "the backlog does not fill");
    }
    // Kept open for the test's life, without anybody who accepts.
    std::mem::forget(listener);
    (address.to_string(), fillers)
}

/// Whether a write may run, and with which version the key is there now (0: not there).
fn check(precondition: Option<&v1::Precondition>, current: u64) -> Result<(), Status> {
    use v1::precondition::Condition;
    let holds = match precondition.and_then(|p| p.condition) {
        None => true,
        Some(Condition::Version(version)) => version == current,
        Some(Condition::Absent(_)) => current == 0,
    };
    if holds {
        return Ok(());
    }
    let message = format!("the key is at version {current}");
    Err(to_status(&Error::new(Reason::PreconditionFailed, message).with("current_version", current)))
}

impl State {
    /// Runs `work` as the plan has it.
    async fn act<R>(
        &self,
        call: &'static str,
        work: impl FnOnce(&State) -> Result<R, Status>,
    ) -> Result<Response<R>, Status> {
        let number = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(call);
            calls.len() - 1
        };
        match (self.plan)(call, number) {
            Act::Work => Ok(Response::new(work(self)?)),
            Act::Tell(address) => {
                let leader = Leader {
                    cluster_id: CLUSTER_ID.into(),
                    epoch: Epoch(4),
                    partition: PartitionId(0),
                    address,
                };
                let mut answer = work(self).map(Response::new);
                leader.write(match &mut answer {
                    Ok(response) => response.metadata_mut(),
                    Err(status) => status.metadata_mut(),
                });
                answer
            }
            Act::Fail(status) => Err(status),
            Act::WorkThenFail(status) => {
                work(self)?;
                Err(status)
            }
            Act::Lose => {
                let before = self.records.lock().unwrap().clone();
                let answer = work(self).map(Response::new);
                *self.records.lock().unwrap() = before;
                answer
            }
            Act::Break => Err(Status::aborted(BREAK)),
            Act::Hang => std::future::pending().await,
            Act::Meet(all) => {
                all.wait().await;
                Ok(Response::new(work(self)?))
            }
        }
    }

    fn next_revision(&self) -> u64 {
        self.revision.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn write_put(&self, request: v1::PutRequest) -> Result<v1::PutResponse, Status> {
        let mut records = self.records.lock().unwrap();
        let revision = self.next_revision();
        let old = records.get(&request.key);
        let version = old.map_or(0, |record| record.version);
        check(request.precondition.as_ref(), version)?;
        let record = v1::Record {
            key: request.key.clone(),
            value: request.value,
            version: version + 1,
            create_revision: old.map_or(revision, |record| record.create_revision),
            mod_revision: revision,
        };
        records.insert(request.key, record);
        Ok(v1::PutResponse { version: version + 1, revision })
    }

    fn write_delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, Status> {
        let mut records = self.records.lock().unwrap();
        let version = records.get(&request.key).map_or(0, |record| record.version);
        check(request.precondition.as_ref(), version)?;
        let existed = records.remove(&request.key).is_some();
        Ok(v1::DeleteResponse { existed, revision: self.next_revision() })
    }

    fn select(request: &v1::ScanRequest, records: &BTreeMap<Bytes, v1::Record>) -> Vec<v1::Record> {
        let lower =
            if request.start.is_empty() { Bound::Unbounded } else { Bound::Included(request.start.clone()) };
        let upper =
            if request.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(request.end.clone()) };
        let mut found: Vec<_> = records.range((lower, upper)).map(|(_, record)| record.clone()).collect();
        if request.reverse {
            found.reverse();
        }
        found.retain(|record| {
            let token = &request.page_token;
            token.is_empty() || (record.key > *token) != request.reverse && record.key != *token
        });
        if request.keys_only {
            found.iter_mut().for_each(|record| record.value = Bytes::new());
        }
        if request.limit > 0 {
            found.truncate(request.limit as usize);
        }
        found
    }

    fn node() -> v1::Node {
        v1::Node {
            name: "node1".into(),
            number: 1,
            address: "127.0.0.1:8080".into(),
            zone: "default".into(),
            weight: 1,
            is_group0_leader: true,
            version: "0.1.0".into(),
            engine: "fjall".into(),
            started_at_unix_ms: 1_700_000_000_000,
            disk_free_bytes: 40 << 30,
            disk_total_bytes: 100 << 30,
            replica_count: 2,
            leader_count: 2,
            engine_disk_bytes: 5 << 20,
            wal_bytes: 64 << 20,
            state: v1::NodeState::Active.into(),
            is_reachable: true,
            group0_role: v1::ReplicaRole::Leader.into(),
        }
    }

    fn partition(&self, id: u32) -> v1::Partition {
        let half = u64::MAX / 2;
        let replica = v1::Replica {
            id: 1 << 32,
            node: "node1".into(),
            role: v1::ReplicaRole::Leader.into(),
            match_index: 7,
            silent_ms: None,
        };
        v1::Partition {
            id,
            first_hash: if id == 0 { 0 } else { half + 1 },
            last_hash: if id == 0 { half } else { u64::MAX },
            replicas: vec![replica],
            leader: if id == 0 { "node1".into() } else { self.leader_of_second() },
            term: 3,
            commit_index: 7,
            applied_index: 7,
            key_count: 1200,
            data_bytes: 345_678,
        }
    }

    /// The second partition loses its leader while a key "sick" is there.
    fn leader_of_second(&self) -> String {
        let sick = self.records.lock().unwrap().contains_key(&b"sick"[..]);
        if sick { String::new() } else { "node1".into() }
    }
}

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
                let result = match operation.operation.unwrap() {
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
            let problem = v1::Problem {
                reason: "PARTITION_WITHOUT_LEADER".into(),
                message: "partition 1 has no leader".into(),
                nodes: vec!["node1".into()],
            };
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
                problems: if led == 2 { vec![] } else { vec![problem] },
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
