//! What faults strike: three nodes, each on a host and a disk of its own.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::time::{Duration, Instant};

use rushkv::proto::v1::cluster_client::ClusterClient;
use rushkv::proto::v1::kv_client::KvClient;
use rushkv::proto::v1::{GetRequest, ListPartitionsRequest, LocateKeyRequest, PutRequest};
use tonic::Request;
use tonic::transport::Channel;

use crate::clock;
use crate::cluster::{Cluster, WAIT_MAX};
use crate::network::Network;
use crate::power::PowerCut;

pub const NODES: usize = 3;

/// Sparse: what is not written takes no room.
const DISK_MIB: u64 = 2048;

/// Its name in the environment.
pub const DISK_RESERVE: &str = "RUSHKV__STORAGE__DISK_RESERVE";

/// Below this much free space, a node refuses puts.
pub const DISK_RESERVE_MIB: u64 = 256;

/// A call that a node does not answer is given up, and made again.
const CALL_WITHIN: Duration = Duration::from_secs(1);

pub struct Rig<'a> {
    // Before the disks: a node that runs is ended first.
    pub cluster: Cluster,
    pub disks: Vec<PowerCut>,
    pub network: &'a Network,
    clocks: tempfile::TempDir,
    /// One of each partition.
    keys: Vec<String>,
    /// When each node was last sent a snapshot.
    pub snapshots: [Option<Instant>; NODES],
}

impl<'a> Rig<'a> {
    pub async fn start(network: &'a Network, engine: &'static str) -> Rig<'a> {
        let disks: Vec<PowerCut> = (0..NODES).map(|_| PowerCut::new(DISK_MIB)).collect();
        let hosts = network.hosts().map(|host| (network.namespace(host), network.address(host))).collect();
        clock::sweep();
        let clocks = tempfile::tempdir().unwrap();
        let mut free = disks.iter();
        let cluster = Cluster::start_with(hosts, NODES, engine, |mut node| {
            node.data_dir = free.next().unwrap().path().join("data");
            let clock = clocks.path().join(&node.name);
            clock::set(&clock, 0);
            let node =
                clock::env(&clock).into_iter().fold(node, |node, (name, value)| node.env(name, &value));
            node.env(DISK_RESERVE, &format!("{DISK_RESERVE_MIB}MiB")).with_http()
        });
        let cluster = cluster.await;
        let keys = cluster.keys_of_all_partitions().await;
        Rig { cluster, disks, network, clocks, keys, snapshots: [None; NODES] }
    }

    /// Puts a node's clock that many hours ahead of the machine's, or back.
    pub fn set_clock(&self, node: usize, hours: i64) {
        clock::set(&self.clocks.path().join(&self.cluster.nodes[node].name), hours);
    }

    /// A key of each partition, and the name of the node that leads it.
    pub async fn led(&self) -> Vec<(String, String)> {
        let mut client = ClusterClient::new(self.cluster.nodes[0].channel());
        let mut led = Vec::new();
        for key in &self.keys {
            let found = client.locate_key(LocateKeyRequest { key: key.clone().into() }).await.unwrap();
            led.push((key.clone(), found.into_inner().partition.unwrap().leader));
        }
        led
    }

    /// Waits until something was committed since this was called: a fault is to strike while writes are in flight.
    pub async fn is_written_to(&self) {
        let started = Instant::now();
        let before = self.committed().await;
        while self.committed().await <= before {
            assert!(started.elapsed() < WAIT_MAX, "nothing is written\n{}", self.cluster.logs());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Log entries, over all partitions, as a node knows them.
    async fn committed(&self) -> u64 {
        let mut client = ClusterClient::new(self.cluster.nodes[0].channel());
        let told = client.list_partitions(ListPartitionsRequest {}).await;
        told.map_or(0, |told| told.into_inner().partitions.iter().map(|one| one.commit_index).sum())
    }

    /// Waits until every node answers a write and a read in every partition. Returns who was last, and what it
    /// said before.
    pub async fn answers(&self) -> String {
        let started = Instant::now();
        let calls = self.cluster.nodes.iter().flat_map(|node| {
            let channel = node.channel();
            self.keys.iter().map(move |key| {
                let (channel, key, node) = (channel.clone(), key.clone(), node.name.clone());
                tokio::spawn(async move {
                    let mut refused = String::new();
                    while let Err(status) = put_and_get(&channel, &key).await {
                        assert!(started.elapsed() < WAIT_MAX, "{node} does not answer for {key}: {status}");
                        refused = status.message().to_string();
                        // A node that is not there refuses at once.
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    (started.elapsed(), format!("{node} for {key}: {refused}"))
                })
            })
        });
        let mut last = (Duration::ZERO, String::new());
        for call in calls.collect::<Vec<_>>() {
            match call.await {
                Ok(answered) => last = last.max(answered),
                Err(panic) => panic!("{panic}\n{}", self.cluster.logs()),
            }
        }
        last.1
    }
}

impl Drop for Rig<'_> {
    fn drop(&mut self) {
        self.cluster.nodes.clear(); // ends them
        clock::sweep();
    }
}

async fn put_and_get(channel: &Channel, key: &str) -> Result<(), tonic::Status> {
    let mut client = KvClient::new(channel.clone());
    let key = bytes::Bytes::from(format!("{{{key}}}probe"));
    let mut put = Request::new(PutRequest { key: key.clone(), value: "x".into(), precondition: None });
    put.set_timeout(CALL_WITHIN);
    client.put(put).await?;
    let mut get = Request::new(GetRequest { key, consistency: 0 });
    get.set_timeout(CALL_WITHIN);
    client.get(get).await.map(drop)
}
