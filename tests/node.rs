//! A node in this process: what it keeps over restarts, and what it does with a record that can't be
//! read.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rushkv::error::Reason;
use rushkv::kv::{Op, Outcome, Precondition};
use rushkv::limits::MESSAGE_BYTES_MAX;
use rushkv::node::{Consistency, Formation, Node, Options, ScanQuery};
use rushkv::storage::{self, Batch, Kind, Order};
use tokio::time::Instant;

const ENGINES: [Kind; 2] = [Kind::Fjall, Kind::Sled];

fn options(dir: &Path, engine: Kind) -> Options {
    Options {
        name: "node1".into(),
        advertise_addr: "localhost:8080".into(),
        peers: Vec::new(),
        data_dir: dir.to_path_buf(),
        zone: String::new(),
        weight: 1,
        engine,
        engine_options: storage::Options { cache_bytes: 16 << 20 },
        formation: Formation { cluster_name: "test".into(), replicas: 3, partitions: 4 },
        disk_reserve_bytes: 0,
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

async fn open(dir: &Path, engine: Kind) -> Arc<Node> {
    Node::open(options(dir, engine), &prometheus::Registry::new()).await.unwrap()
}

async fn ready(node: &Node) {
    let deadline = soon();
    while !node.problems().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", node.problems());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn put(key: &str, value: impl Into<Bytes>) -> Op {
    Op::Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.into(),
        precondition: Precondition::None,
    }
}

async fn get(node: &Node, key: &str) -> Option<Bytes> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    node.get(key, Consistency::Linearizable, soon()).await.unwrap().map(|record| record.value)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_after_orderly_stops() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster_id = String::new();
        for round in 0..3u32 {
            let node = open(dir.path(), engine).await;
            ready(&node).await;
            let info = node.cluster_info().await.unwrap();
            assert!(round == 0 || info.cluster_id == cluster_id, "the cluster was formed twice");
            cluster_id = info.cluster_id;
            assert_eq!(info.partitions.iter().map(|p| p.key_count).sum::<u64>(), u64::from(round * 50));
            for at in 0..round * 50 {
                assert_eq!(get(&node, &format!("k{at}")).await.unwrap(), format!("v{at}"));
            }
            for at in round * 50..(round + 1) * 50 {
                node.write(put(&format!("k{at}"), format!("v{at}")), soon()).await.unwrap();
            }
            node.checkpoint().await.unwrap();
            node.shutdown(soon()).await.unwrap();
            let refused = node.write(put("late", "x"), soon()).await.unwrap_err();
            assert_eq!(refused.reason, Reason::ShuttingDown);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_come_in_key_order_from_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path(), Kind::Fjall).await;
    ready(&node).await;
    let ops = (0..300).map(|at| put(&format!("k{at:03}"), "v")).collect();
    assert!(node.write_batch(ops, soon()).await.iter().all(Result::is_ok));
    for reverse in [false, true] {
        let mut seen: Vec<Bytes> = Vec::new();
        loop {
            let last = seen.last().cloned();
            let (start, end) = match (last, reverse) {
                (None, _) => (Some("k010".into()), Some("k290".into())),
                (Some(last), false) => (Some([&last[..], &[0]].concat().into()), Some("k290".into())),
                (Some(last), true) => (Some("k010".into()), Some(last)),
            };
            let consistency = Consistency::Linearizable;
            let query = ScanQuery { start, end, reverse, limit: 17, keys_only: true, consistency };
            let page = node.scan(query, soon()).await.unwrap();
            assert!(page.records.len() <= 17);
            seen.extend(page.records.into_iter().map(|(key, _)| key));
            if !page.more {
                break;
            }
        }
        if reverse {
            seen.reverse();
        }
        let expected: Vec<String> = (10..290).map(|at| format!("k{at:03}")).collect();
        assert_eq!(seen, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_reads_stays_within_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path(), Kind::Fjall).await;
    ready(&node).await;
    let value = Bytes::from(vec![1; 1 << 20]);
    for at in 0..6 {
        node.write(put(&format!("k{at}"), value.clone()), soon()).await.unwrap();
    }
    let keys = (0..6).map(|at| Bytes::from(format!("k{at}"))).collect();
    let read = node.get_batch(keys, Consistency::Linearizable, soon()).await;
    assert_eq!(read.len(), MESSAGE_BYTES_MAX.div_ceil(value.len()), "it stops when a message is full");
    assert!(read.iter().all(|record| record.as_ref().unwrap().as_ref().unwrap().value == value));
}

/// Spoils the record of `key` in the engine, as a failing disk under a lost checksum would.
fn spoil(dir: &Path, engine: Kind, key: &str) {
    let engine =
        storage::open(engine, &dir.join("engine"), &storage::Options { cache_bytes: 16 << 20 }).unwrap();
    let found: Vec<Bytes> = {
        let view = engine.view().unwrap();
        let data = storage::prefix_range(b"d");
        view.scan(data, Order::Ascending)
            .map(|pair| pair.unwrap().0)
            .filter(|stored| stored.ends_with(key.as_bytes()))
            .collect()
    };
    let [stored] = &found[..] else { panic!("{found:?}") };
    let mut value = engine.get(stored).unwrap().unwrap().to_vec();
    value[3] ^= 1;
    let mut batch = Batch::default();
    batch.put(stored.clone(), value);
    engine.apply(batch).unwrap();
    engine.close().unwrap();
}

/// Waits until nothing is wrong but a damaged replica, if even that.
async fn serves_the_rest(node: &Node) {
    let deadline = soon();
    while node.problems().iter().any(|problem| problem.reason != "REPLICA_FAILED") {
        assert!(Instant::now() < deadline, "{:?}", node.problems());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cant_be_read_is_never_served_and_stops_its_partition_only() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let node = open(dir.path(), engine).await;
        ready(&node).await;
        for key in ["good", "spoilt"] {
            node.write(put(key, "value"), soon()).await.unwrap();
        }
        let (good, spoilt) = (node.locate(b"good").unwrap().1, node.locate(b"spoilt").unwrap().1);
        assert_ne!(good, spoilt);
        node.shutdown(soon()).await.unwrap();
        drop(node);
        spoil(dir.path(), engine, "spoilt");

        // sled's records are counted at the start: it is found there.
        let node = open(dir.path(), engine).await;
        serves_the_rest(&node).await;
        let read = node.get("spoilt".into(), Consistency::Linearizable, soon()).await.unwrap_err();
        assert_eq!(read.reason, Reason::ReplicaFailed, "{read}");
        // Applying a write to it shows that the copy can't be relied on: the replica stops.
        let written = node.write(put("spoilt", "new"), soon()).await.unwrap_err();
        assert!(matches!(written.reason, Reason::OutcomeUnknown | Reason::ReplicaFailed), "{written:?}");
        let refused = node.write(put("spoilt", "new"), soon()).await.unwrap_err();
        assert_eq!(refused.reason, Reason::ReplicaFailed, "{refused:?}");
        assert!(node.problems().iter().any(|problem| problem.reason == "REPLICA_FAILED"));
        assert_eq!(get(&node, "good").await.unwrap(), "value");
        node.write(put("good", "better"), soon()).await.unwrap();
        node.probe().await.unwrap();
        node.checkpoint().await.unwrap();
        node.shutdown(soon()).await.unwrap();
        drop(node);

        // Still so after a restart, and the others still serve.
        let node = open(dir.path(), engine).await;
        serves_the_rest(&node).await;
        assert_eq!(get(&node, "good").await.unwrap(), "better");
        let refused = node.write(put("spoilt", "new"), soon()).await.unwrap_err();
        assert_eq!(refused.reason, Reason::ReplicaFailed, "{refused:?}");
        node.shutdown(soon()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_of_one_key_count_every_write_once() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path(), Kind::Fjall).await;
    ready(&node).await;
    let writers = (0..64).map(|at| {
        let node = node.clone();
        tokio::spawn(async move { node.write(put("one", format!("{at}")), soon()).await.unwrap() })
    });
    let mut versions = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        match writer.await.unwrap() {
            Outcome::Put { version, .. } => versions.push(version),
            other => panic!("{other:?}"),
        }
    }
    versions.sort_unstable();
    assert_eq!(versions, (1..=64).collect::<Vec<u64>>());
    node.shutdown(soon()).await.unwrap();
}
