//! A node that was away for so long that the others' logs do not reach back to it gets a snapshot: under
//! load, broken off by a crash in the middle, and sent again. All of it is asserted from metrics.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/metrics.rs"]
mod metrics;
#[path = "support/process.rs"]
mod process;
#[path = "support/register.rs"]
mod register;

use std::time::Instant;

use cluster::{Cluster, WAIT_MAX, get, put};
use metrics::sample;
use register::Running;
use rushkv::proto::v1::cluster_client::ClusterClient;
use rushkv::proto::v1::{LocateKeyRequest, Partition};
use tokio::sync::watch;

/// All of one partition, as they share what is in braces.
fn key(number: usize) -> String {
    format!("{{bulk}}-{number}")
}

/// Large, so that the log soon holds more than is kept for one who lags (32 MiB).
fn value(number: usize) -> String {
    format!("{number:08}").repeat(64 * 1024)
}

const AWAY: usize = 2;

/// Where the bulk goes, as the node `at` tells it.
async fn partition(cluster: &Cluster, at: usize) -> Partition {
    let mut client = ClusterClient::new(cluster.nodes[at].channel());
    let request = LocateKeyRequest { key: key(0).into() };
    client.locate_key(request).await.unwrap().into_inner().partition.unwrap()
}

fn matched(partition: &Partition, name: &str) -> u64 {
    let replica = partition.replicas.iter().find(|replica| replica.node == name);
    replica.map_or(0, |replica| replica.match_index)
}

async fn catches_up_by_snapshot(engine: &'static str) {
    let mut ports = Vec::new();
    let cluster = Cluster::start_with(Vec::new(), 3, engine, |node| {
        let port = process::free_port();
        ports.push(port);
        node.env("RUSHKV__METRICS__ADDR", &format!("127.0.0.1:{port}"))
    });
    let mut cluster = cluster.await;
    let away = cluster.nodes[AWAY].name.clone();
    let channels = watch::Sender::new(cluster.channels()[..AWAY].to_vec());
    let load = Running::start("catching-up", 8, &channels.subscribe());
    load.advance(5).await;
    cluster.nodes[AWAY].kill();

    // Until those who stay have let go what the one that is away lacks.
    let started = Instant::now();
    let mut count = 0;
    loop {
        for _ in 0..16 {
            let written = put(&cluster.nodes[0].channel(), &key(count), &value(count)).await;
            match written {
                Ok(()) => count += 1,
                // Its leader may just have been killed. What is in doubt is written again as it was.
                Err(status) => assert!(started.elapsed() < WAIT_MAX, "{status}"),
            }
        }
        let led = partition(&cluster, 0).await;
        let leader = usize::from(led.leader != cluster.nodes[0].name);
        if sample(ports[leader], "rushkv_raft_purged_index").await > matched(&led, &away) {
            break;
        }
        assert!(started.elapsed() < WAIT_MAX, "nothing is purged: {led:?}");
    }
    println!("{engine}: {count} values of 512 KiB until the log was let go");

    // It dies when the first piece of the snapshot has come.
    cluster.nodes[AWAY].set("RUSHKV_CRASH_AT", Some("snapshot.piece-written"));
    cluster.nodes[AWAY].start();
    assert_eq!(cluster.nodes[AWAY].wait_end(WAIT_MAX), None, "killed");
    load.advance(5).await;

    cluster.nodes[AWAY].set("RUSHKV_CRASH_AT", None);
    cluster.nodes[AWAY].start();
    cluster.serve().await;
    cluster.catches_up(AWAY).await;
    let installed = sample(ports[AWAY], "rushkv_raft_snapshots_installed_total").await;
    let received = sample(ports[AWAY], "rushkv_raft_snapshot_received_bytes_total").await;
    let mut sent = 0;
    for port in &ports[..AWAY] {
        sent += sample(*port, "rushkv_raft_snapshot_sent_bytes_total").await;
    }
    println!("{engine}: {installed} snapshots installed, {received} bytes received, {sent} sent");
    assert!(installed >= 1 && received > 32 * 1024 * 1024, "{installed} {received}");
    assert!(sent > received, "what was broken off was sent in vain: {sent}, {received}");
    load.advance(5).await;
    for register in load.end().await {
        register.read_at_last(&cluster.nodes[AWAY].channel(), WAIT_MAX).await.unwrap();
    }

    // With one of the others gone, it answers from what it has itself.
    cluster.nodes[0].kill();
    let channel = cluster.nodes[AWAY].channel();
    let started = Instant::now();
    for number in 0..count {
        while get(&channel, &key(number)).await.map_err(|status| status.to_string())
            != Ok(Some(value(number)))
        {
            assert!(started.elapsed() < WAIT_MAX, "{} is not there", key(number));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_gets_a_snapshot_on_fjall() {
    catches_up_by_snapshot("fjall").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_gets_a_snapshot_on_sled() {
    catches_up_by_snapshot("sled").await;
}

/// Damage at the very end of the log looks like a batch that was being written when the node was killed. What was
/// acknowledged there is on the others, who go on and send it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_lost_the_end_of_its_log_gets_it_again() {
    let mut cluster = Cluster::start(3, "fjall").await;
    put(&cluster.nodes[0].channel(), &key(0), "first").await.unwrap();
    let leader = partition(&cluster, 0).await.leader;
    let leader = cluster.nodes.iter().position(|node| node.name == leader).unwrap();
    let follower = (leader + 1) % 3;
    let third = (leader + 2) % 3;
    // Only these two can acknowledge the put, so the follower has it. Another batch may have come after it.
    let mut said = false;
    for turn in 0..10 {
        cluster.catches_up(follower).await;
        let value = format!("value {turn}");
        cluster.nodes[third].pause();
        put(&cluster.nodes[leader].channel(), &key(0), &value).await.unwrap();
        cluster.nodes[follower].kill();
        cluster.nodes[third].resume();
        damage_the_end(&cluster.nodes[follower].data_dir.join("wal"));
        cluster.nodes[follower].start();
        cluster.serve().await;
        put(&cluster.nodes[follower].channel(), "another", "value").await.unwrap();
        for node in &mut cluster.nodes {
            assert!(!node.has_ended(), "{} has ended\n{}", node.name, node.log());
            assert_eq!(get(&node.channel(), &key(0)).await.unwrap().as_deref(), Some(&*value));
        }
        said = cluster.logs().contains("has lost entries that it had made durable");
        if said {
            println!("in turn {turn}");
            break;
        }
    }
    assert!(said, "{}", cluster.logs());
}

/// Changes some of the last bytes that were written.
fn damage_the_end(wal: &std::path::Path) {
    let files = std::fs::read_dir(wal).unwrap().map(|entry| entry.unwrap().path());
    let segments = files.filter(|path| path.extension().is_some_and(|extension| extension == "wal"));
    let (path, mut bytes) = segments
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .filter(|(_, bytes)| bytes.iter().skip(4096).any(|byte| *byte != 0))
        .max_by_key(|(path, _)| path.clone())
        .unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    for byte in &mut bytes[end - 40..end - 36] {
        *byte ^= 0x55;
    }
    std::fs::write(path, bytes).unwrap();
}
