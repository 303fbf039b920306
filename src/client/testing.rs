//! Servers on loopback for the tests of the client and of the tools: an in-memory cluster of one that
//! can be told to misbehave, and listeners that are no servers at all.

mod bugs;
mod server;
mod sockets;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status};

pub(crate) use bugs::Bug;
use bugs::Planted;
pub(crate) use sockets::{closing_after, refusing, unconnectable};

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
    /// It is no member any more, and says so.
    pub(crate) is_removed: AtomicBool,
    /// Every operation of a batch fails for now, as of a node that hears nothing of the others.
    pub(crate) is_cut_off: AtomicBool,
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
            is_removed: AtomicBool::new(false),
            is_cut_off: AtomicBool::new(false),
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
