//! A node that left its cluster says that it did, and refuses to start as what it was.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/process.rs"]
mod process;

use std::time::{Duration, Instant};

use cluster::{Cluster, WAIT_MAX, info, put};
use rushkv::error::{Happened, Reason, from_status};
use rushkv::proto::v1::LeaveRequest;
use rushkv::proto::v1::cluster_client::ClusterClient;
use rushkv::types::{NodeId, ReplicaId};

/// Two nodes of one cluster once drew the same port.
#[test]
fn a_port_is_given_out_once() {
    let ports: std::collections::BTreeSet<u16> = (0..200).map(|_| process::free_port()).collect();
    assert_eq!(ports.len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_removed_hears_of_it() {
    let mut cluster = Cluster::start(3, "fjall").await;
    // One that runs on, and, further below, one that was away meanwhile.
    let mut client = ClusterClient::new(cluster.nodes[0].channel());
    client.leave(LeaveRequest { node: "node3".into() }).await.unwrap();
    cluster.settles(0, &["node1", "node2"], |replicas| replicas == 8).await;
    let left = cluster.nodes[2].channel();
    let started = Instant::now();
    loop {
        let told = info(left.clone()).await.unwrap();
        if let [problem] = &told.problems[..]
            && problem.reason == "REMOVED"
        {
            assert!(problem.message.contains("empty data_dir"), "{problem:?}");
            break;
        }
        assert!(started.elapsed() < WAIT_MAX, "it does not hear of it: {told:?}\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(cluster.nodes[2].stop(), Some(0), "{}", cluster.nodes[2].log());

    cluster.nodes[2].start();
    assert_eq!(cluster.nodes[2].wait_end(WAIT_MAX), Some(1), "{}", cluster.nodes[2].log());
    let log = cluster.nodes[2].log();
    assert!(log.contains("node \"node3\" was removed from its cluster"), "{log}");

    // With an empty directory it comes again, as another member.
    std::fs::remove_dir_all(&cluster.nodes[2].data_dir).unwrap();
    cluster.nodes[2].start();
    cluster.serve().await;
    cluster.settles(0, &["node1", "node2", "node3"], |replicas| replicas == 8).await;
}

/// Who asks for it by another node, whose question to the leader broke off half-way, is never told that it surely did not
/// happen, though nobody could be asked again.
#[tokio::test(flavor = "multi_thread")]
async fn a_leave_that_may_have_happened_is_not_denied() {
    let mut cluster = Cluster::start(3, "fjall").await;
    cluster.settles(0, &["node1", "node2", "node3"], |replicas| replicas == 8).await;
    let leader = info(cluster.nodes[0].channel()).await.unwrap().leader;
    let at = |name: &str| (0..3).find(|at| format!("node{}", at + 1) == name).unwrap();
    let leader = at(&leader);
    let (asked, other) = ((leader + 1) % 3, (leader + 2) % 3);
    // They take what is sent to them, and answer nothing.
    cluster.nodes[leader].pause();
    cluster.nodes[other].pause();
    let mut client = ClusterClient::new(cluster.nodes[asked].channel());
    let request = LeaveRequest { node: format!("node{}", other + 1) };
    let mut leaving = tokio::spawn(async move { client.leave(request).await });
    // It waits for the leader: nobody else can become one.
    let early = tokio::time::timeout(Duration::from_secs(1), &mut leaving).await;
    assert!(early.is_err(), "it does not wait for the leader: {early:?}");
    cluster.nodes[leader].kill();
    let status = leaving.await.unwrap().unwrap_err();
    cluster.nodes[other].resume();
    let error = from_status(&status, Happened::No);
    assert_eq!((error.reason, error.happened()), (Reason::OutcomeUnknown, Happened::Unknown), "{error}");
    cluster.nodes[leader].start();
    cluster.serve().await;
}

/// Replicas moved away from a node and come back under new ids, all while it was away: the old one is destroyed
/// first, so that nothing of it is left to be redone at each start, or copied forward for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_moved_away_and_back_meanwhile_is_destroyed_before_it_comes_again() {
    let mut cluster = guest_takes_from_node4("sled").await;
    let excluded = format!("RemoveLearner({:?})", ReplicaId::new(NodeId(4), 1));
    let started = Instant::now();
    while !cluster.logs().contains(&excluded) {
        assert!(started.elapsed() < WAIT_MAX, "nothing moves:\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    guest_leaves(&mut cluster).await;
    let log = cluster.nodes[3].log();
    assert!(log.contains("its group has excluded this replica"), "nothing had moved away and back:\n{log}");
    assert_eq!(cluster.nodes[3].stop(), Some(0), "{log}");
    cluster.nodes[3].start();
    cluster.nodes[3].serves().await;
    let log = cluster.nodes[3].log();
    let opened: Vec<&str> = log.lines().filter(|line| line.contains("engine opened")).collect();
    assert!(opened[1].contains("clean=false") && opened[2].contains("clean=true"), "{opened:?}\n{log}");
}

/// The moves that it was to bring are called off in the middle, wherever each of them stands.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_leaves_before_it_has_everything_holds_nothing_up() {
    let mut cluster = guest_takes_from_node4("fjall").await;
    guest_leaves(&mut cluster).await;
}

/// Four nodes, and a fifth that joins while the fourth is away.
async fn guest_takes_from_node4(engine: &'static str) -> Cluster {
    let mut cluster = Cluster::start(4, engine).await;
    cluster.settles(0, &MEMBERS, |replicas| replicas == 6).await;
    for key in cluster.keys_of_all_partitions().await {
        put(&cluster.nodes[0].channel(), &key, "v").await.unwrap();
    }
    cluster.nodes[3].kill();
    let mut guest = cluster.daemon(5).env("RUSHKV__PEERS", &cluster.nodes[0].address());
    guest.start();
    guest.serves().await;
    cluster.nodes.push(guest);
    cluster
}

async fn guest_leaves(cluster: &mut Cluster) {
    let mut client = ClusterClient::new(cluster.nodes[0].channel());
    client.leave(LeaveRequest { node: "node5".into() }).await.unwrap();
    cluster.nodes[3].start();
    cluster.settles(0, &MEMBERS, |replicas| replicas == 6).await;
}

const MEMBERS: [&str; 4] = ["node1", "node2", "node3", "node4"];
