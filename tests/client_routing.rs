//! The client library against three real nodes: it goes straight to the leaders, which the nodes' own
//! counters show; who moved is found by one answer; a dead node costs nobody an error. And what one node
//! passes on to another is passed on once.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/metrics.rs"]
mod metrics;
#[path = "support/process.rs"]
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::{Cluster, WAIT_MAX, get, info};
use rushkv::Client;
use rushkv::client::{CONNECTIONS_DEFAULT, WriteOp};
use rushkv::error::{Happened, Reason, from_status};
use rushkv::kv::{Op, Precondition, encode_command};
use rushkv::proto::v1::cluster_client::ClusterClient;
use rushkv::proto::v1::peer_client::PeerClient;
use rushkv::proto::v1::{
    ListPartitionsRequest, LocateKeyRequest, Partition, ProposeRequest, ReadKeysRequest,
};
use tonic::transport::Channel;

const FORWARDED: &str = "rushkv_routing_calls_total{served=\"forwarded\"}";
const LOCAL: &str = "rushkv_routing_calls_total{served=\"local\"}";
const REFUSED: &str = "rushkv_routing_refused_total";

/// Keys in a round: some 3 in each of the 8 partitions.
const KEYS: u64 = 24;

/// A cluster whose nodes can be asked what they count.
struct Counted {
    cluster: Cluster,
    metrics: Vec<u16>,
    /// Tests take turns: a machine too busy to keep its leaders says nothing about detours.
    _turn: tokio::sync::MutexGuard<'static, ()>,
}

static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Counted {
    async fn start() -> Counted {
        let turn = TURN.lock().await;
        let mut metrics = Vec::new();
        let cluster = Cluster::start_with(Vec::new(), 3, "fjall", |node| {
            let port = process::free_port();
            metrics.push(port);
            node.env("RUSHKV__METRICS__ADDR", &format!("127.0.0.1:{port}"))
        });
        let cluster = cluster.await;
        Counted { cluster, metrics, _turn: turn }
    }

    /// A series of one node.
    async fn sample(&self, at: usize, series: &str) -> u64 {
        metrics::sample(self.metrics[at], series).await
    }

    /// A series summed over the running nodes.
    async fn sum(&self, series: &str) -> u64 {
        let mut sum = 0;
        for at in 0..self.metrics.len() {
            if self.cluster.nodes[at].is_running() {
                sum += self.sample(at, series).await;
            }
        }
        sum
    }

    /// Calls that did not go straight to their leader, so far.
    async fn detours(&self) -> u64 {
        self.sum(FORWARDED).await + self.sum(REFUSED).await
    }

    /// Waits until every running node knows a running leader of every partition.
    async fn led(&self) {
        let since = Instant::now();
        let dead: Vec<&str> = (self.cluster.nodes.iter())
            .filter(|node| !node.is_running())
            .map(|node| node.name.as_str())
            .collect();
        for channel in self.cluster.channels() {
            loop {
                let found = partitions(&channel).await;
                if found.iter().all(|one| !one.leader.is_empty() && !dead.contains(&one.leader.as_str())) {
                    break;
                }
                assert!(since.elapsed() < WAIT_MAX, "no leaders: {found:?}\n{}", self.cluster.logs());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// The term of each partition: it grows with every change of leaders.
    async fn terms(&self) -> BTreeMap<u32, u64> {
        let found = partitions(&self.cluster.channels()[0]).await;
        found.iter().map(|one| (one.id, one.term)).collect()
    }

    /// A client that knows one node of this cluster, and by now all that lead.
    async fn warm_client(&self, at: usize) -> Client {
        let client = client(&[self.cluster.nodes[at].address()]);
        self.straight(&client).await;
        client
    }

    /// Makes rounds of calls until one of them needs no detour.
    async fn straight(&self, client: &Client) {
        let since = Instant::now();
        loop {
            let before = self.detours().await;
            round(client).await;
            if self.detours().await == before {
                return;
            }
            assert!(since.elapsed() < WAIT_MAX, "calls take detours for ever:\n{}", self.cluster.logs());
        }
    }
}

async fn partitions(channel: &Channel) -> Vec<Partition> {
    let mut client = ClusterClient::new(channel.clone());
    client.list_partitions(ListPartitionsRequest {}).await.unwrap().into_inner().partitions
}

fn client(addresses: &[String]) -> Client {
    Client::builder().endpoint(&addresses.join(",")).timeout(Duration::from_secs(20)).build().unwrap()
}

/// A put and a get of each key; none may fail.
async fn round(client: &Client) {
    assert_eq!(round_in_doubt(client).await, 0);
}

/// The same, but a put may be in doubt: it is made again and counted.
async fn round_in_doubt(client: &Client) -> usize {
    let mut doubts = 0;
    for key in 0..KEYS {
        let (key, value) = (format!("k{key}"), format!("v{key}"));
        while let Err(error) = client.put(key.clone(), value.clone()).await {
            assert_eq!(error.reason, Reason::OutcomeUnknown, "{error:?}");
            doubts += 1;
        }
        let found = client.get(key).await.unwrap().expect("it was put");
        assert_eq!(found.value, value);
    }
    doubts
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_straight_to_the_leaders() {
    let counted = Counted::start().await;
    let client = counted.warm_client(0).await;
    let keys: Vec<Bytes> = (0..KEYS).map(|key| format!("k{key}").into()).collect();
    let mut held = BTreeSet::new();
    let mut cluster = ClusterClient::new(counted.cluster.channels()[0].clone());
    for key in &keys {
        let located = cluster.locate_key(LocateKeyRequest { key: key.clone() }).await.unwrap().into_inner();
        held.insert(located.partition.unwrap().id);
    }
    // A leadership that moves in the midst of it makes a detour right: then it is looked at again.
    let expected = 2 * 2 * KEYS + 2 * held.len() as u64;
    for _ in 0..10 {
        let terms = counted.terms().await;
        counted.straight(&client).await;
        let (detours, local) = (counted.detours().await, counted.sum(LOCAL).await);
        for _ in 0..2 {
            round(&client).await;
        }
        // A batch counts once for each of its partitions.
        let read = client.batch_get(&keys).await.unwrap();
        assert!(read.iter().all(|one| matches!(one, Ok(Some(_)))), "{read:?}");
        let ops: Vec<WriteOp> = keys.iter().map(|key| WriteOp::put(key.clone(), "w")).collect();
        let written = client.batch_write(&ops).await.unwrap();
        assert!(written.iter().all(Result::is_ok), "{written:?}");
        let (detours, local) = (counted.detours().await - detours, counted.sum(LOCAL).await - local);
        if counted.terms().await == terms {
            assert!(detours == 0 && local >= expected, "{detours} detours, {local} of {expected} calls");
            // A read is repeated where its leader was not confirmed in time, and counts again.
            if local == expected {
                return;
            }
        }
    }
    panic!("leaderships never rest, or are never confirmed in time:\n{}", counted.cluster.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_costs_a_detour_for_each_of_its_partitions() {
    let mut counted = Counted::start().await;
    let early = counted.warm_client(0).await;
    let late = counted.warm_client(1).await;
    let all: Vec<String> = counted.cluster.nodes.iter().map(process::Daemon::address).collect();
    for victim in 0..3 {
        counted.led().await;
        let known = counted.terms().await;
        counted.straight(&late).await;
        counted.cluster.nodes[victim].kill();
        // Nothing was under way: every call succeeds, at once or once there is another leader. Only what
        // is sent on a connection of which nobody has noticed yet that it is broken is in doubt.
        let doubts = round_in_doubt(&early).await;
        assert!(doubts <= CONNECTIONS_DEFAULT, "{doubts} puts in doubt");
        // That holds for a client that knows only the dead node so far, and another.
        let other = all[(victim + 1) % 3].clone();
        round(&client(&[all[victim].clone(), other])).await;

        // Who heard nothing of it finds each new leader by one answer.
        counted.led().await;
        let (before, detours) = (counted.terms().await, counted.detours().await);
        round(&late).await;
        let detours = counted.detours().await - detours;
        let after = counted.terms().await;
        let moved = after.iter().filter(|(id, term)| known[*id] != **term).count() as u64;
        let meanwhile = after.values().sum::<u64>() - before.values().sum::<u64>();
        println!(
            "{} killed: {moved} leaders moved, {meanwhile} while looking, {detours} detours",
            all[victim]
        );
        assert!(moved > 0, "the killed node led nothing, and nobody else ever lost a leadership");
        assert!(detours <= moved + meanwhile, "{detours} detours, {moved} and {meanwhile} moves");
        counted.straight(&late).await;

        counted.cluster.nodes[victim].start();
        counted.cluster.serve().await;
        for client in [&early, &late] {
            counted.straight(client).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_passes_on_is_passed_on_once() {
    let counted = Counted::start().await;
    let channels = counted.cluster.channels();
    let cluster_id = info(channels[0].clone()).await.unwrap().cluster_id;
    let mut cluster = ClusterClient::new(channels[0].clone());
    let located = cluster.locate_key(LocateKeyRequest { key: "k".into() }).await.unwrap().into_inner();
    let partition = located.partition.unwrap();
    let group = partition.id + 1;
    let op = Op::Put { key: "k".into(), value: "passed on".into(), precondition: Precondition::None };
    let command = encode_command(&[op]);
    let mut refusals = BTreeMap::new();
    for (at, channel) in channels.iter().enumerate() {
        if counted.cluster.nodes[at].name == partition.leader {
            continue;
        }
        let before = (counted.sample(at, FORWARDED).await, counted.sample(at, REFUSED).await);
        let mut peer = PeerClient::new(channel.clone());
        let command = command.clone();
        let proposed = peer.propose(ProposeRequest { cluster_id: cluster_id.clone(), group, command }).await;
        let read = ReadKeysRequest { cluster_id: cluster_id.clone(), keys: vec!["k".into()], stale: false };
        let read = peer.read_keys(read).await;
        for status in [proposed.map(drop).unwrap_err(), read.map(drop).unwrap_err()] {
            let error = from_status(&status, Happened::Unknown);
            assert_eq!((error.reason, error.happened()), (Reason::Unavailable, Happened::No), "{error:?}");
            // It says who leads, so that the node that asked asks there.
            refusals.insert((at, status.code() as i32), error.metadata.get("leader_node").cloned());
        }
        let after = (counted.sample(at, FORWARDED).await, counted.sample(at, REFUSED).await);
        assert_eq!(after, (before.0, before.1 + 2), "it was refused, and not passed on");
    }
    let leader = counted.cluster.nodes.iter().position(|node| node.name == partition.leader).unwrap();
    let number = (leader + 1).to_string();
    assert_eq!(refusals.len(), 2, "two followers");
    assert!(refusals.values().all(|told| told.as_ref() == Some(&number)), "{refusals:?}");
    assert_eq!(get(&channels[leader], "k").await.unwrap(), None);
}
