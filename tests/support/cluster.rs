//! Several daemons that form one cluster.

#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rushkv::proto::v1::cluster_client::ClusterClient;
use rushkv::proto::v1::kv_client::KvClient;
use rushkv::proto::v1::{
    GetRequest, InfoRequest, ListNodesRequest, ListPartitionsRequest, LocateKeyRequest, PutRequest,
};
use tonic::transport::Channel;

use crate::process::Daemon;

/// How long anything here may take that has no bound of its own.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

pub struct Cluster {
    pub nodes: Vec<Daemon>,
    dir: tempfile::TempDir,
    engine: &'static str,
    /// Namespace and address of each node, if they are not on loopback.
    hosts: Vec<(String, String)>,
}

impl Cluster {
    /// Starts `count` nodes that name each other, and waits until all of them serve.
    pub async fn start(count: usize, engine: &'static str) -> Cluster {
        Cluster::start_with(Vec::new(), count, engine, |node| node).await
    }

    /// The same on hosts of their own: a namespace and an address each.
    pub async fn start_on(hosts: Vec<(String, String)>, count: usize, engine: &'static str) -> Cluster {
        Cluster::start_with(hosts, count, engine, |node| node).await
    }

    /// The same, of nodes that `prepare` has changed.
    pub async fn start_with(
        hosts: Vec<(String, String)>,
        count: usize,
        engine: &'static str,
        prepare: impl FnMut(Daemon) -> Daemon,
    ) -> Cluster {
        let mut cluster = Cluster { nodes: Vec::new(), dir: tempfile::tempdir().unwrap(), engine, hosts };
        let nodes: Vec<Daemon> = (1..=count).map(|number| cluster.daemon(number)).map(prepare).collect();
        // One that names nobody forms a cluster by itself.
        let peers: Vec<String> = nodes.iter().map(Daemon::address).filter(|_| count > 1).collect();
        cluster.nodes = nodes.into_iter().map(|node| node.env("RUSHKV__PEERS", &peers.join(","))).collect();
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.serve().await;
        cluster
    }

    /// A daemon of this cluster, not started.
    pub fn daemon(&self, number: usize) -> Daemon {
        let name = format!("node{number}");
        let daemon = Daemon::new(&self.dir.path().join(&name), self.engine)
            .named(&name)
            .env("RUSHKV__CLUSTER__PARTITIONS", "8");
        match self.hosts.get(number - 1) {
            Some((namespace, address)) => daemon.on_host(namespace, address),
            None => daemon,
        }
    }

    /// Starts another node, which joins by way of the last one.
    pub async fn grow(&mut self) {
        let number = self.nodes.len() + 1;
        let peer = self.nodes.last().expect("there is one").address();
        let mut node = self.daemon(number).env("RUSHKV__PEERS", &peer);
        node.start();
        self.nodes.push(node);
        self.serve().await;
    }

    /// Waits until every running node knows a leader of every partition.
    pub async fn serve(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.is_running()) {
            node.serves().await;
        }
    }

    pub fn channels(&self) -> Vec<Channel> {
        self.nodes.iter().filter(|node| node.is_running()).map(Daemon::channel).collect()
    }

    /// Waits until the cluster, asked by the node `at`, has exactly these members, and each of them as
    /// many replicas as `holds` says.
    pub async fn settles(&self, at: usize, names: &[&str], holds: impl Fn(u32) -> bool) {
        let started = Instant::now();
        loop {
            let mut client = ClusterClient::new(self.nodes[at].channel());
            let answer = client.list_nodes(ListNodesRequest {}).await.map(tonic::Response::into_inner);
            if let Ok(answer) = &answer {
                let mut found: Vec<&str> = answer.nodes.iter().map(|node| node.name.as_str()).collect();
                found.sort_unstable();
                if found == names && answer.nodes.iter().all(|node| holds(node.replica_count)) {
                    return;
                }
            }
            assert!(started.elapsed() < WAIT_MAX, "not settled: {answer:?}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the node `at` has, durably, all that was committed when this was called.
    pub async fn catches_up(&self, at: usize) {
        self.catches_up_in(at, |_| true).await;
    }

    /// The same of some partitions: those that it holds a copy of, or will.
    pub async fn catches_up_in(&self, at: usize, of: impl Fn(u32) -> bool) {
        let name = &self.nodes[at].name;
        let started = Instant::now();
        let mut wanted: BTreeMap<u32, u64> = BTreeMap::new();
        loop {
            let mut client = ClusterClient::new(self.nodes[at].channel());
            let answer =
                client.list_partitions(ListPartitionsRequest {}).await.map(tonic::Response::into_inner);
            let mut behind = vec!["nobody says".to_string()];
            if let Ok(answer) = &answer {
                if wanted.is_empty() {
                    let all = answer.partitions.iter().filter(|one| of(one.id));
                    wanted = all.map(|one| (one.id, one.commit_index)).collect();
                }
                let has = |one: &rushkv::proto::v1::Partition| {
                    let replica = one.replicas.iter().find(|replica| replica.node == *name);
                    replica.map_or(0, |replica| replica.match_index)
                };
                let lags = answer
                    .partitions
                    .iter()
                    .filter(|one| wanted.get(&one.id).is_some_and(|least| has(one) < *least));
                behind =
                    lags.map(|one| format!("p{}: {} of {}", one.id, has(one), wanted[&one.id])).collect();
            }
            if behind.is_empty() {
                return;
            }
            assert!(started.elapsed() < WAIT_MAX, "{name} does not catch up: {behind:?}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the node `at` leads a partition: those that were handed over come back by and by.
    pub async fn leads_something(&self, at: usize) {
        let started = Instant::now();
        loop {
            let told = info(self.nodes[at].channel()).await;
            if told
                .as_ref()
                .is_ok_and(|told| told.answered_by.as_ref().is_some_and(|node| node.leader_count > 0))
            {
                return;
            }
            assert!(started.elapsed() < WAIT_MAX, "it leads nothing: {told:?}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A key of each partition.
    pub async fn keys_of_all_partitions(&self) -> Vec<String> {
        let mut client = ClusterClient::new(self.nodes[0].channel());
        let mut keys: BTreeMap<u32, String> = BTreeMap::new();
        let count = info(self.nodes[0].channel()).await.unwrap().partition_count as usize;
        for number in 0.. {
            let key = format!("key-{number}");
            let request = LocateKeyRequest { key: key.clone().into() };
            let found = client.locate_key(request).await.unwrap().into_inner().partition.unwrap();
            keys.entry(found.id).or_insert(key);
            if keys.len() == count {
                break;
            }
            assert!(number < 1000, "no key for some partition");
        }
        keys.into_values().collect()
    }

    pub fn logs(&self) -> String {
        self.nodes.iter().map(|node| format!("--- {}\n{}", node.name, node.log())).collect()
    }
}

/// The cluster as one node tells it.
pub async fn info(channel: Channel) -> Result<rushkv::proto::v1::InfoResponse, tonic::Status> {
    Ok(ClusterClient::new(channel).info(InfoRequest {}).await?.into_inner())
}

pub async fn put(channel: &Channel, key: &str, value: &str) -> Result<(), tonic::Status> {
    let (key, value) = (key.to_string().into(), value.to_string().into());
    KvClient::new(channel.clone()).put(PutRequest { key, value, precondition: None }).await.map(drop)
}

/// A linearizable read.
pub async fn get(channel: &Channel, key: &str) -> Result<Option<String>, tonic::Status> {
    let mut request = tonic::Request::new(GetRequest { key: key.to_string().into(), consistency: 0 });
    request.set_timeout(Duration::from_secs(5));
    let answer = KvClient::new(channel.clone()).get(request).await?.into_inner();
    Ok(answer.record.map(|record| String::from_utf8(record.value.to_vec()).unwrap()))
}

/// Puts keys of every partition through each channel, all at once, each until it succeeds; returns how
/// long the last one took.
pub async fn writes_resume(channels: &[Channel]) -> Duration {
    let started = Instant::now();
    let puts = channels.iter().enumerate().flat_map(|(at, channel)| {
        (0..32).map(move |key| {
            let (channel, key) = (channel.clone(), format!("resume-{at}-{key}"));
            tokio::spawn(async move {
                while let Err(status) = put(&channel, &key, "x").await {
                    assert!(started.elapsed() < WAIT_MAX, "writes do not resume: {status}");
                    // A node that is not there refuses at once.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
        })
    });
    for put in puts.collect::<Vec<_>>() {
        put.await.unwrap();
    }
    started.elapsed()
}
