//! Members come and go, and in the middle of each step a random node is killed, under load that is
//! checked all the time: nothing is lost, nothing old is read, and nothing fails but for a few seconds
//! after a kill. `RUSHKV_SEED` repeats a run's choices.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::time::{Duration, Instant};

use rushkv::proto::v1::LeaveRequest;
use rushkv::proto::v1::cluster_client::ClusterClient;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::cluster::{Cluster, WAIT_MAX};
use crate::register::Running;

/// xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

struct Churn {
    cluster: Cluster,
    channels: watch::Sender<Vec<Channel>>,
    random: Random,
    kills: Vec<Instant>,
}

impl Churn {
    /// A node is killed some time from now, and started again.
    async fn kill_one(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.random.below(800))).await;
        let count = self.cluster.nodes.len() as u64;
        let victim = usize::try_from(self.random.below(count)).unwrap();
        println!("  {} is killed", self.cluster.nodes[victim].name);
        self.kills.push(Instant::now());
        self.cluster.nodes[victim].kill();
        self.cluster.nodes[victim].start();
    }

    /// Another node joins.
    async fn grow(&mut self, load: &Running) {
        let number = self.cluster.nodes.len() + 1;
        let peer = self.cluster.nodes.last().unwrap().address();
        let mut node = self.cluster.daemon(number).env("RUSHKV__PEERS", &peer);
        node.start();
        self.cluster.nodes.push(node);
        self.kill_one().await;
        self.cluster.serve().await;
        self.channels.send_replace(self.cluster.channels());
        load.advance(20).await;
    }

    /// The first node leaves.
    async fn shrink(&mut self, load: &Running) {
        self.channels.send_replace(self.cluster.channels().split_off(1));
        let mut client = ClusterClient::new(self.cluster.nodes[1].channel());
        client.leave(LeaveRequest { node: "node1".into() }).await.unwrap();
        self.kill_one().await;
        load.advance(20).await;
    }
}

/// Grows a cluster from one node to four and has the first leave, a random node killed in each step; errors
/// are borne for so long after a kill.
pub async fn churn(engine: &'static str, borne: Duration) {
    let drawn =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("RUSHKV_SEED").map_or_else(|_| drawn(), |seed| seed.parse().unwrap());
    println!("{engine}: RUSHKV_SEED={seed}");
    let cluster = Cluster::start(1, engine).await;
    let channels = watch::Sender::new(cluster.channels());
    let load = Running::start("churn", 16, &channels.subscribe());
    let mut churn = Churn { cluster, channels, random: Random(seed | 1), kills: Vec::new() };
    load.advance(20).await;
    for _ in 0..3 {
        churn.grow(&load).await;
    }
    churn.cluster.settles(3, &["node1", "node2", "node3", "node4"], |replicas| replicas == 6).await;
    churn.shrink(&load).await;
    churn.cluster.settles(2, &["node2", "node3", "node4"], |replicas| replicas == 8).await;
    load.advance(20).await;
    let registers = load.end().await;

    for channel in churn.channels.borrow().iter() {
        for register in &registers {
            let read = register.read_at_last(channel, WAIT_MAX).await;
            read.unwrap_or_else(|status| panic!("{status}\n{}", churn.cluster.logs()));
        }
    }
    let excused = |at: Instant| churn.kills.iter().any(|kill| at > *kill && at - *kill < borne);
    let errors: Vec<(Instant, String)> = registers.iter().flat_map(|register| register.errors()).collect();
    let late: Vec<&(Instant, String)> = errors.iter().filter(|(at, _)| !excused(*at)).collect();
    let since_kill = |at: Instant| churn.kills.iter().filter(|kill| at > **kill).map(|kill| at - *kill).min();
    let latest = errors.iter().filter_map(|(at, _)| since_kill(*at)).max();
    let writes: u64 = registers.iter().map(|register| register.acknowledged()).sum();
    println!("{engine}: {writes} writes, {} errors, the latest {latest:?} after a kill", errors.len());
    let shown: Vec<_> = late.iter().map(|(at, error)| (since_kill(*at), error)).collect();
    let logs = churn.cluster.logs();
    assert!(late.is_empty(), "errors later than {borne:?} after a kill: {shown:?}\n{logs}");
}
