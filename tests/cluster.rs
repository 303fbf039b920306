//! Three real processes as one cluster: any node answers for any key, and neither a node that is killed,
//! nor all of them at once, nor nodes that come and go under load lose what was acknowledged.
//! `RUSHKV_KILLS` sets how often per engine.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/failover.rs"]
mod failover;
#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/process.rs"]
mod process;
#[path = "support/register.rs"]
mod register;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cluster::{Cluster, WAIT_MAX, get, info, put};
use failover::{Borne, Load, all_killed, one_killed, stopped_in_turn, writers};
use ledger::{under_way, verify_all};
use process::Daemon;
use rushkv::proto::v1::cluster_client::ClusterClient;
use rushkv::proto::v1::{InfoResponse, LeaveRequest};
use tonic::transport::Channel;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

fn kills(default: usize) -> usize {
    std::env::var("RUSHKV_KILLS").map_or(default, |kills| kills.parse().expect("RUSHKV_KILLS is a number"))
}

/// On a machine that builds and tests at once; `cluster_long.rs` holds what is promised.
const BORNE: Borne = Borne { median: Duration::from_secs(10), worst: Duration::from_secs(10) };

async fn serve_each_others_keys(engine: &'static str) {
    let cluster = Cluster::start(3, engine).await;
    let channels = cluster.channels();
    for key in 0..40 {
        let key = format!("k{key}");
        put(&channels[0], &key, &format!("v-{key}")).await.unwrap();
        for channel in &channels {
            assert_eq!(get(channel, &key).await.unwrap(), Some(format!("v-{key}")));
        }
    }
    let started = Instant::now();
    for channel in &channels {
        loop {
            let told = info(channel.clone()).await;
            let fits = |told: &InfoResponse| {
                (told.node_count, told.partitions_led, told.problems.len()) == (3, 8, 0)
            };
            if told.as_ref().is_ok_and(fits) {
                break;
            }
            // A peer may be slow to answer, and a leadership may just move.
            assert!(started.elapsed() < WAIT_MAX, "{told:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_answers_for_any_key_on_fjall() {
    serve_each_others_keys("fjall").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_answers_for_any_key_on_sled() {
    serve_each_others_keys("sled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_killed_under_load_on_fjall() {
    one_killed("fjall", kills(3), BORNE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_killed_under_load_on_sled() {
    one_killed("sled", kills(3), BORNE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_killed_at_once_on_fjall() {
    all_killed("fjall", kills(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_killed_at_once_on_sled() {
    all_killed("sled", kills(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_hands_the_leaderships_over_first_on_fjall() {
    stopped_in_turn("fjall", 6, BORNE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_hands_the_leaderships_over_first_on_sled() {
    stopped_in_turn("sled", 3, BORNE).await;
}

/// 1 -> 3 -> 4 -> 3 nodes under load, the first member leaving.
async fn members_come_and_go(engine: &'static str) {
    let mut cluster = Cluster::start(1, engine).await;
    let (mut writers, acknowledged) = writers();
    for _ in 0..3 {
        let before = acknowledged.load(Ordering::Relaxed);
        let load = Load::start(writers, &cluster.channels());
        under_way(&acknowledged, before + 20).await;
        cluster.grow().await;
        writers = load.end().await;
        verify_all(&mut writers, &cluster.nodes.last().expect("it grew").channel()).await;
    }
    cluster.settles(3, &["node1", "node2", "node3", "node4"], |replicas| replicas == 6).await;

    let before = acknowledged.load(Ordering::Relaxed);
    let channels: Vec<Channel> = (1..4).map(|at| cluster.nodes[at].channel()).collect();
    let load = Load::start(writers, &channels);
    under_way(&acknowledged, before + 20).await;
    for _ in 0..2 {
        // Asked twice, it changes nothing.
        let mut client = ClusterClient::new(cluster.nodes[1].channel());
        client.leave(LeaveRequest { node: "node1".into() }).await.unwrap();
    }
    cluster.settles(2, &["node2", "node3", "node4"], |replicas| replicas == 8).await;
    writers = load.end().await;
    assert_eq!(cluster.nodes[0].stop(), Some(0), "{}", cluster.nodes[0].log());
    verify_all(&mut writers, &cluster.nodes[3].channel()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_under_load_on_fjall() {
    members_come_and_go("fjall").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_under_load_on_sled() {
    members_come_and_go("sled").await;
}

/// How two of three nodes are lost.
#[derive(Debug, Clone, Copy)]
enum Lost {
    Killed,
    /// Their connections stay, and nothing comes.
    Silent,
}

/// What the node's probes say: `/livez`, `/readyz` and why not, `grpc.health.v1`.
async fn probes(node: &Daemon) -> (u16, u16, String, ServingStatus) {
    let (live, _) = node.http("/livez").await;
    let (ready, why) = node.http("/readyz").await;
    let mut health = HealthClient::new(node.channel());
    let answer = health.check(HealthCheckRequest { service: String::new() }).await.unwrap();
    (live, ready, why, answer.into_inner().status())
}

/// Asks a node's probes until it is ready, or is not, by all of them; it is live all the while. Returns
/// why it is not ready.
async fn says_ready(cluster: &Cluster, at: usize, wanted: bool) -> String {
    let node = &cluster.nodes[at];
    let started = Instant::now();
    let expected = if wanted { (200, ServingStatus::Serving) } else { (503, ServingStatus::NotServing) };
    loop {
        let (live, ready, why, health) = probes(node).await;
        assert_eq!(live, 200, "{}: a restart would not help it:\n{}", node.name, node.log());
        if (ready, health) == expected {
            println!("  {}: {ready} {health:?} after {:?}", node.name, started.elapsed());
            return why;
        }
        assert!(started.elapsed() < WAIT_MAX, "{ready} {health:?} {why}\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whichever node can't reach the others, as a leader or as a follower, refuses; it serves nothing old. It is
/// live, and says that it is not ready, and why, until the others are back.
async fn a_node_without_a_majority(engine: &'static str, lost: Lost) {
    println!("{engine}, {lost:?}");
    let mut cluster = Cluster::start_with(Vec::new(), 3, engine, Daemon::with_http).await;
    let channels = cluster.channels();
    put(&channels[0], "k", "old").await.unwrap();
    for at in 0..3 {
        says_ready(&cluster, at, true).await;
    }
    for node in &mut cluster.nodes[1..] {
        match lost {
            Lost::Killed => node.kill(),
            Lost::Silent => node.pause(),
        }
    }
    // It leads some partitions and follows in the others: none of them has a leader that it knows of.
    let lost_at = Instant::now();
    loop {
        let told = info(channels[0].clone()).await.unwrap();
        if told.partitions_led == 0 && told.leader.is_empty() && !told.problems.is_empty() {
            break;
        }
        assert!(lost_at.elapsed() < WAIT_MAX, "it does not notice that it is alone: {told:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("  it noticed after {:?}", lost_at.elapsed());
    let why = says_ready(&cluster, 0, false).await;
    for part in ["GROUP0_WITHOUT_LEADER: nobody leads group 0", "PARTITION_WITHOUT_LEADER: nobody leads p0"] {
        assert!(why.contains(part), "{why}");
    }
    // A read waits its time out for a leader.
    let reads = (0..3).map(|key| {
        let channel = channels[0].clone();
        tokio::spawn(async move { get(&channel, &format!("k{key}")).await })
    });
    let reads: Vec<_> = reads.collect();
    // For as long as it lasts, whatever it tries to be elected.
    let alone = Instant::now();
    while alone.elapsed() < Duration::from_secs(3) {
        let (live, ready, why, health) = probes(&cluster.nodes[0]).await;
        let seen = (live, ready, health);
        assert_eq!(seen, (200, 503, ServingStatus::NotServing), "{why}\n{}", cluster.nodes[0].log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for read in reads {
        let answer = read.await.unwrap();
        assert!(answer.is_err(), "{answer:?}");
    }
    for node in &mut cluster.nodes[1..] {
        match lost {
            Lost::Killed => node.start(),
            Lost::Silent => node.resume(),
        }
    }
    cluster.serve().await;
    for at in 0..3 {
        says_ready(&cluster, at, true).await;
    }
    assert_eq!(get(&channels[0], "k").await.unwrap().as_deref(), Some("old"), "{}", cluster.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_majority_is_killed_is_live_and_not_ready_on_fjall() {
    a_node_without_a_majority("fjall", Lost::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_majority_is_killed_is_live_and_not_ready_on_sled() {
    a_node_without_a_majority("sled", Lost::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_majority_is_silent_is_live_and_not_ready_on_fjall() {
    a_node_without_a_majority("fjall", Lost::Silent).await;
}
