//! Real processes that form a cluster together, or join one: a crash at any step of it leaves one
//! cluster, and what can't come to one is refused with what to do. (`crash_point` names the steps.)

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/process.rs"]
mod process;

use std::time::{Duration, Instant};

use cluster::{Cluster, WAIT_MAX, get, info, put};
use process::Daemon;

/// Names the step to crash at: see `src/crash_point.rs`.
const CRASH_AT: &str = "RUSHKV_CRASH_AT";

const PEERS: &str = "RUSHKV__PEERS";

/// A step that is not come to within this time is none of that node's.
const CRASHES_WITHIN: Duration = Duration::from_secs(20);

/// Daemons that name each other, not started.
fn together(count: usize) -> (tempfile::TempDir, Vec<Daemon>) {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes: Vec<Daemon> = (1..=count).map(|number| daemon(&dir, &format!("node{number}"))).collect();
    let peers: Vec<String> = nodes.iter().map(Daemon::address).collect();
    for node in &mut nodes {
        node.set(PEERS, Some(&peers.join(",")));
    }
    (dir, nodes)
}

fn daemon(dir: &tempfile::TempDir, name: &str) -> Daemon {
    Daemon::new(&dir.path().join(name), "fjall").named(name).env("RUSHKV__CLUSTER__PARTITIONS", "4")
}

fn logs(nodes: &[Daemon]) -> String {
    nodes.iter().map(|node| format!("--- {}\n{}", node.name, node.log())).collect()
}

/// Waits until the node says this in its log.
async fn says(node: &Daemon, what: &str) {
    let started = Instant::now();
    while !node.log().contains(what) {
        assert!(started.elapsed() < WAIT_MAX, "it does not say {what:?}:\n{}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until they all serve as one cluster, and what one is told the others know. Returns its id.
async fn are_one(nodes: &mut [Daemon], when: &str) -> String {
    for node in &mut *nodes {
        node.serves().await;
    }
    let count = u32::try_from(nodes.len()).unwrap();
    let started = Instant::now();
    let mut ids = Vec::new();
    for node in &*nodes {
        loop {
            let told = info(node.channel()).await.unwrap();
            if told.node_count == count {
                ids.push(told.cluster_id);
                break;
            }
            assert!(started.elapsed() < WAIT_MAX, "{when}: {told:?}\n{}", logs(nodes));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{when}: {ids:?}\n{}", logs(nodes));
    let channels: Vec<_> = nodes.iter().map(Daemon::channel).collect();
    put(&channels[0], "k", "v").await.unwrap();
    for channel in &channels {
        assert_eq!(get(channel, "k").await.unwrap().as_deref(), Some("v"), "{when}");
    }
    ids.remove(0)
}

/// Waits until it ends at the step it was told to crash at, and starts it again as it should be.
fn crashes(node: &mut Daemon, step: &str) {
    let code = node.wait_end(CRASHES_WITHIN);
    assert_eq!(code, None, "{} at {step} ended by itself:\n{}", node.name, node.log());
    node.set(CRASH_AT, None);
    node.start();
}

/// Three nodes found a cluster, and `victim` crashes at each of the steps once.
async fn founders_crash(victim: usize, steps: &[&str]) {
    for step in steps {
        let (_dir, mut nodes) = together(3);
        nodes[victim].set(CRASH_AT, Some(step));
        nodes.iter_mut().for_each(Daemon::start);
        crashes(&mut nodes[victim], step);
        let when = format!("{} crashed at {step}", nodes[victim].name);
        let id = are_one(&mut nodes, &when).await;
        if steps.last() != Some(step) {
            continue;
        }
        // Once more, now that it is formed: they find each other again.
        nodes.iter_mut().for_each(Daemon::kill);
        nodes.iter_mut().for_each(Daemon::start);
        assert_eq!(are_one(&mut nodes, "all were killed once the cluster was formed").await, id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_founder_crashes_before_the_cluster_begins() {
    let steps = ["forming.all-heard", "forming.drawn", "forming.first-prepared", "forming.another-prepared"];
    founders_crash(0, &steps).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_founder_crashes_while_the_cluster_begins() {
    let steps = ["forming.all-prepared", "forming.initialized", "forming.formed", "forming.identity-written"];
    founders_crash(0, &steps).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_founder_crashes() {
    let steps = [
        "forming.all-heard",
        "forming.asked-to-prepare",
        "forming.prepared",
        "forming.formed",
        "forming.identity-written",
    ];
    founders_crash(2, &steps).await;
}

/// Whoever leads group 0 may be any of them: all crash there, and one of them comes to it.
#[tokio::test(flavor = "multi_thread")]
async fn who_proposes_the_founding_crashes() {
    let (_dir, mut nodes) = together(3);
    for node in &mut nodes {
        node.set(CRASH_AT, Some("forming.form-committed"));
        node.start();
    }
    let started = Instant::now();
    let crashed = loop {
        match nodes.iter_mut().position(Daemon::has_ended) {
            Some(at) => break at,
            None => assert!(started.elapsed() < CRASHES_WITHIN, "nobody proposed:\n{}", logs(&nodes)),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    crashes(&mut nodes[crashed], "forming.form-committed");
    are_one(&mut nodes, "the founding was committed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joining_node_crashes() {
    for step in ["forming.all-heard", "joining.admitted", "joining.identity-written"] {
        let mut cluster = Cluster::start(1, "fjall").await;
        let mut node = cluster.daemon(2).env(PEERS, &cluster.nodes[0].address());
        node.set(CRASH_AT, Some(step));
        node.start();
        crashes(&mut node, step);
        cluster.nodes.push(node);
        are_one(&mut cluster.nodes, &format!("a joining node crashed at {step}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_peers_are_only_itself_founds_alone() {
    let (_dir, mut nodes) = together(1);
    // The same node by another of its names.
    let peers = format!("{},localhost:{}", nodes[0].address(), nodes[0].port);
    nodes[0].set(PEERS, Some(&peers));
    for step in [Some("forming.first-prepared"), Some("forming.initialized"), None] {
        nodes[0].set(CRASH_AT, step);
        nodes[0].start();
        if let Some(step) = step {
            let code = nodes[0].wait_end(CRASHES_WITHIN);
            assert_eq!(code, None, "at {step}:\n{}", nodes[0].log());
        }
    }
    are_one(&mut nodes, "it named only itself").await;
}
