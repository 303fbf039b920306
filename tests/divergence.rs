//! Data that is not what was written, with checksums that say it is: found by the scrub, or by comparing the
//! replicas; repaired where a majority has it right, refused where nobody can say.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/process.rs"]
mod process;
#[path = "support/tamper.rs"]
mod tamper;

use std::time::{Duration, Instant};

use cluster::{Cluster, WAIT_MAX, get, info, put};
use rushkv::Client;
use rushkv::error::Reason;
use rushkv::proto::v1::{Agreement, Partition};
use tamper::{Forge, tamper};

async fn partition_of(client: &Client, key: &str) -> Partition {
    client.locate(key.to_string()).await.unwrap().partition.unwrap()
}

/// The replica of a node.
fn replica(partition: &Partition, node: &str) -> Option<u64> {
    partition.replicas.iter().find(|replica| replica.node == node).map(|replica| replica.id)
}

fn client(cluster: &Cluster) -> Client {
    let addresses: Vec<String> = cluster.nodes.iter().map(process::Daemon::address).collect();
    Client::connect(&addresses.join(",")).unwrap()
}

/// Stops the node, changes its record of `key` on its disk, and starts it again.
fn change_on_disk(cluster: &mut Cluster, at: usize, engine: &str, key: &str, forge: Forge) {
    let node = &mut cluster.nodes[at];
    assert_eq!(node.stop(), Some(0), "{}", node.log());
    tamper(&node.data_dir, engine, key, "changed", forge);
    node.start();
}

/// Waits until the node has another replica of the key's partition, and all replicas hold the same.
async fn is_rebuilt(cluster: &Cluster, client: &Client, key: &str, node: &str, before: u64) {
    let started = Instant::now();
    loop {
        let partition = partition_of(client, key).await;
        let is_new = replica(&partition, node).is_some_and(|replica| replica != before);
        if is_new && partition.replicas.len() == 3 {
            let compared = client.compare(vec![partition.id]).await.unwrap().remove(0);
            if compared.agreement() == Agreement::Same && compared.replicas.len() == 3 {
                return;
            }
        }
        assert!(started.elapsed() < WAIT_MAX, "not rebuilt: {partition:?}\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[derive(Clone, Copy)]
enum Finds {
    Start,
    Scrub,
    Comparison,
}

/// `leads`: it is the leader's record that is changed; else a follower's.
async fn found_and_repaired(engine: &'static str, leads: bool, finds: Finds) {
    let mut cluster = Cluster::start(3, engine).await;
    let client = client(&cluster);
    let keys = cluster.keys_of_all_partitions().await;
    for key in &keys {
        put(&cluster.nodes[0].channel(), key, "written").await.unwrap();
    }
    let key = &keys[0];
    let partition = partition_of(&client, key).await;
    let at = (0..3).find(|at| (cluster.nodes[*at].name == partition.leader) == leads).unwrap();
    let node = cluster.nodes[at].name.clone();
    let before = replica(&partition, &node).unwrap();
    let forge = match finds {
        Finds::Start | Finds::Scrub => Forge::Record,
        Finds::Comparison => Forge::RecordAndHash,
    };
    change_on_disk(&mut cluster, at, engine, key, forge);
    cluster.serve().await;
    if leads {
        // The leadership comes back to where it is preferred.
        let started = Instant::now();
        while partition_of(&client, key).await.leader != node {
            assert!(started.elapsed() < WAIT_MAX, "it does not lead again\n{}", cluster.logs());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    match finds {
        Finds::Start => {}
        Finds::Scrub => assert!(client.scrub().await.unwrap().not_reached.is_empty()),
        Finds::Comparison => {
            let compared = client.compare(vec![partition.id]).await.unwrap().remove(0);
            // Unless the cluster has compared by itself, and is done with it.
            let is_new = compared.replicas.iter().all(|replica| replica.replica != before);
            assert!(
                compared.agreement() == Agreement::Majority || is_new,
                "{compared:?}\n{}",
                cluster.logs()
            );
        }
    }
    is_rebuilt(&cluster, &client, key, &node, before).await;
    for node in &cluster.nodes {
        assert_eq!(get(&node.channel(), key).await.unwrap().as_deref(), Some("written"));
    }
    let all = client.compare(Vec::new()).await.unwrap();
    assert!(all.iter().all(|one| one.agreement() == Agreement::Same), "{all:?}\n{}", cluster.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrub_finds_a_changed_record_of_a_follower_on_fjall() {
    found_and_repaired("fjall", false, Finds::Scrub).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrub_finds_a_changed_record_of_a_leader_on_fjall() {
    found_and_repaired("fjall", true, Finds::Scrub).await;
}

/// Which is when sled would leave out what it can't read.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_finds_a_changed_record_on_sled() {
    found_and_repaired("sled", false, Finds::Start).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_finds_a_follower_that_differs_on_sled() {
    found_and_repaired("sled", false, Finds::Comparison).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_finds_a_leader_that_differs_on_fjall() {
    found_and_repaired("fjall", true, Finds::Comparison).await;
}

/// Two copies: nobody can say which one is right. Nothing is thrown away, nothing is served as if it were right.
#[tokio::test(flavor = "multi_thread")]
async fn two_copies_that_differ_are_refused_and_kept() {
    let mut cluster =
        Cluster::start_with(Vec::new(), 2, "fjall", |node| node.env("RUSHKV__CLUSTER__REPLICAS", "2")).await;
    let client = client(&cluster);
    put(&cluster.nodes[0].channel(), "key", "written").await.unwrap();
    let partition = partition_of(&client, "key").await;
    let at = (0..2).find(|at| cluster.nodes[*at].name != partition.leader).unwrap();
    // The learner comes in a little later, and hears later still that it is committed.
    cluster.catches_up(at).await;
    let started = Instant::now();
    while Client::connect(&cluster.nodes[at].address()).unwrap().get_stale("key").await.unwrap().is_none() {
        assert!(started.elapsed() < WAIT_MAX, "it does not come\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    change_on_disk(&mut cluster, at, "fjall", "key", Forge::RecordAndHash);
    cluster.serve().await;
    let compared = client.compare(vec![partition.id]).await.unwrap().remove(0);
    assert_eq!(compared.agreement(), Agreement::None, "{compared:?}\n{}", cluster.logs());

    let read = client.get("key").await.unwrap_err();
    let written = client.put("key", "another").await.unwrap_err();
    assert_eq!((read.reason, written.reason), (Reason::Diverged, Reason::Diverged), "{read} {written}");
    let stale = |at: usize| Client::connect(&cluster.nodes[at].address()).unwrap();
    let mut values = Vec::new();
    for at in 0..2 {
        values.push(stale(at).get_stale("key").await.unwrap().unwrap().value);
    }
    values.sort();
    assert_eq!(values, ["changed", "written"], "both copies are there");
    let told = info(cluster.nodes[at].channel()).await.unwrap();
    assert!(told.problems.iter().any(|problem| problem.reason == "DIVERGED"), "{told:?}");
    let after = partition_of(&client, "key").await;
    for node in ["node1", "node2"] {
        assert_eq!(replica(&after, node), replica(&partition, node), "nobody was replaced");
    }

    // The operator decides: the node whose copy is wrong starts over with nothing.
    let wrong = cluster.nodes[at].name.clone();
    client.leave(&wrong).await.unwrap();
    let kept = cluster.nodes[1 - at].name.clone();
    cluster.settles(1 - at, &[&kept], |replicas| replicas == 8).await;
    let started = Instant::now();
    loop {
        // Alone, it agrees with itself.
        let compared = client.compare(vec![partition.id]).await.unwrap().remove(0);
        if compared.agreement() == Agreement::Same {
            break;
        }
        assert!(started.elapsed() < WAIT_MAX, "{compared:?}\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(client.get("key").await.unwrap().unwrap().value, "written");
    client.put("key", "another").await.unwrap();
}

/// Of two copies one votes: if that one is wrong, by its own sum, nobody else can lead. It refuses, and goes on as a
/// member, so that the operator can let its node leave.
#[tokio::test(flavor = "multi_thread")]
async fn a_voter_of_two_copies_that_changed_refuses_until_it_has_left() {
    let mut cluster =
        Cluster::start_with(Vec::new(), 2, "fjall", |node| node.env("RUSHKV__CLUSTER__REPLICAS", "2")).await;
    let client = client(&cluster);
    put(&cluster.nodes[0].channel(), "key", "written").await.unwrap();
    let partition = partition_of(&client, "key").await;
    let at = (0..2).find(|at| cluster.nodes[*at].name == partition.leader).unwrap();
    cluster.catches_up(1 - at).await;
    change_on_disk(&mut cluster, at, "fjall", "key", Forge::Record);
    cluster.serve().await;
    client.scrub().await.unwrap();
    let started = Instant::now();
    loop {
        match client.get("key").await {
            Err(error) if error.reason == Reason::Diverged => break,
            found => assert!(started.elapsed() < WAIT_MAX, "{found:?}\n{}", cluster.logs()),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(client.put("key", "another").await.unwrap_err().reason, Reason::Diverged);
    let told = info(cluster.nodes[at].channel()).await.unwrap();
    assert!(told.problems.iter().any(|problem| problem.reason == "DIVERGED"), "{told:?}");

    client.leave(&cluster.nodes[at].name).await.unwrap();
    let kept = cluster.nodes[1 - at].name.clone();
    cluster.settles(1 - at, &[&kept], |replicas| replicas == 8).await;
    assert_eq!(client.get("key").await.unwrap().unwrap().value, "written");
    client.put("key", "another").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_only_copy_that_changed_is_refused_and_kept_on_fjall() {
    an_only_copy_is_refused_and_kept("fjall").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_only_copy_that_changed_is_refused_and_kept_on_sled() {
    an_only_copy_is_refused_and_kept("sled").await;
}

async fn an_only_copy_is_refused_and_kept(engine: &'static str) {
    let mut cluster = Cluster::start(1, engine).await;
    let client = client(&cluster);
    put(&cluster.nodes[0].channel(), "key", "written").await.unwrap();
    change_on_disk(&mut cluster, 0, engine, "key", Forge::Record);
    if engine == "fjall" {
        cluster.serve().await;
        client.scrub().await.unwrap();
    }
    is_refused(&cluster, &client).await;
    let told = info(cluster.nodes[0].channel()).await.unwrap();
    assert!(told.problems.iter().any(|problem| problem.reason == "REPLICA_FAILED"), "{told:?}");
    // It stays so after a restart, and what there is stays, too.
    assert_eq!(cluster.nodes[0].stop(), Some(0));
    assert_eq!(tamper::value(&cluster.nodes[0].data_dir, engine, "key"), "changed");
    cluster.nodes[0].start();
    is_refused(&cluster, &client).await;
}

/// Waits until the key is not served any more.
async fn is_refused(cluster: &Cluster, client: &Client) {
    let started = Instant::now();
    loop {
        match client.get("key").await {
            Err(error) if error.reason == Reason::ReplicaFailed => return,
            found => assert!(started.elapsed() < WAIT_MAX, "{found:?}\n{}", cluster.logs()),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
