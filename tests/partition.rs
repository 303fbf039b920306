//! A node that is cut off from the others, both ways and one way, by real packet filters between hosts
//! in network namespaces: the majority goes on, the minority refuses and answers nothing old, and all
//! agree once the network is whole again.
//!
//! Needs root, ip and nft.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/network.rs"]
mod network;
#[path = "support/process.rs"]
mod process;
#[path = "support/register.rs"]
mod register;
#[path = "support/slack.rs"]
mod slack;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::{Cluster, WAIT_MAX, get, info, writes_resume};
use network::{Cut, Network};
use register::{Register, Running};
use rushkv::Client;
use rushkv::client::WriteOp;
use rushkv::error::{Happened, from_status};
use rushkv::proto::v1::PutRequest;
use rushkv::proto::v1::kv_client::KvClient;
use tokio::sync::watch;
use tonic::transport::Channel;

/// How long a node is cut off.
const CUT_FOR: Duration = Duration::from_secs(6);

/// After this long without a majority, a node has noticed: it refuses every read and every write.
const NOTICED_WITHIN: Duration = Duration::from_secs(3);

/// Until the majority's writes go through again, in every partition.
const RESUMED_WITHIN: Duration = Duration::from_secs(5);

/// The same of batches that go to the leaders, each of which may take so long: one is spent on the node that is cut off,
/// which waits for the others; after that nothing is asked of it.
const BATCHES_RESUMED_WITHIN: Duration = Duration::from_secs(9);
const BATCH_WITHIN: Duration = Duration::from_secs(2);

/// Some 3 keys in each of the partitions.
const KEYS_OF_A_BATCH: usize = 24;

/// How many keys are written at once through a node that is cut off, how often, and how long each may take.
const WRITES_AT_ONCE: usize = 16;
const WRITE_EVERY: Duration = Duration::from_millis(500);
const WRITE_WITHIN: Duration = Duration::from_secs(3);

/// Reads through a node that is cut off: answers must not be old, and end soon.
async fn refuses_reads(channel: &Channel, registers: &[Arc<Register>]) {
    let cut = Instant::now();
    let readers = registers.iter().cloned().map(|register| {
        let channel = channel.clone();
        tokio::spawn(async move {
            let (mut answered, mut refused) = (0, 0);
            while cut.elapsed() < CUT_FOR {
                let began = cut.elapsed();
                match register.read(&channel).await {
                    Ok(_) => {
                        assert!(began < NOTICED_WITHIN, "answered a read {began:?} after it was cut off");
                        answered += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
            (answered, refused)
        })
    });
    let (mut answered, mut refused) = (0, 0);
    for reader in readers.collect::<Vec<_>>() {
        let its: (u32, u32) = reader.await.unwrap();
        (answered, refused) = (answered + its.0, refused + its.1);
    }
    println!("  cut off: {answered} reads answered, {refused} refused");
    assert!(refused > 0);
}

/// A key that was written once, and what was told of it: an answer, or whether it may have been written.
type Written = (String, Result<(), Happened>);

/// Writes through a node that is cut off, each to a key of its own: it acknowledges none once it has noticed.
async fn refuses_writes(channel: &Channel, name: &str) -> Vec<Written> {
    let cut = Instant::now();
    let mut writes = Vec::new();
    while cut.elapsed() < CUT_FOR {
        for _ in 0..WRITES_AT_ONCE {
            let (channel, key) = (channel.clone(), format!("{name}-{}", writes.len()));
            let began = cut.elapsed();
            writes.push(tokio::spawn(async move {
                let bytes = key.clone().into();
                let mut request =
                    tonic::Request::new(PutRequest { key: bytes, value: "v".into(), precondition: None });
                request.set_timeout(WRITE_WITHIN);
                let answer = KvClient::new(channel).put(request).await;
                let took = cut.elapsed() - began;
                assert!(took < WRITE_WITHIN * 2, "a write was answered only after {took:?}: {answer:?}");
                let told =
                    answer.map(drop).map_err(|status| from_status(&status, Happened::Unknown).happened());
                assert!(
                    told.is_err() || began < NOTICED_WITHIN,
                    "acknowledged {key}, {began:?} after the cut"
                );
                (key, told)
            }));
        }
        tokio::time::sleep(WRITE_EVERY).await;
    }
    let mut written = Vec::new();
    for write in writes {
        written.push(write.await.unwrap());
    }
    let count = |wanted| written.iter().filter(|(_, told)| *told == wanted).count();
    println!(
        "  cut off: {} writes acknowledged, {} surely refused, {} perhaps",
        count(Ok(())),
        count(Err(Happened::No)),
        count(Err(Happened::Unknown))
    );
    assert!(count(Err(Happened::No)) > 0, "it never says that a write surely was not done");
    written
}

/// What was told of a write holds, by every node.
async fn holds(channels: &[Channel], written: &[Written]) {
    for (at, channel) in channels.iter().enumerate() {
        for (key, told) in written {
            let is_there = get(channel, key).await.unwrap().is_some();
            match told {
                Ok(()) => assert!(is_there, "{key} was acknowledged, and node {} lacks it", at + 1),
                Err(Happened::No) => assert!(!is_there, "{key} surely was not written, and is there"),
                Err(Happened::Unknown) => {}
            }
        }
    }
}

/// A client that makes nothing but batches, and knows by now who leads.
async fn batching(cluster: &Cluster) -> Client {
    let addresses: Vec<String> = cluster.nodes.iter().map(process::Daemon::address).collect();
    let client = Client::builder().endpoint(&addresses.join(",")).timeout(BATCH_WITHIN).build().unwrap();
    // The table is fetched beside the calls.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(1) {
        batches_resume(&client).await;
    }
    client
}

/// Until a batch with keys of every partition is done as a whole.
async fn batches_resume(client: &Client) -> Duration {
    let keys: Vec<Bytes> = (0..KEYS_OF_A_BATCH).map(|number| format!("batch-{number}").into()).collect();
    let ops: Vec<WriteOp> = keys.iter().map(|key| WriteOp::put(key.clone(), "v")).collect();
    let started = Instant::now();
    loop {
        let written = client.batch_write(&ops).await;
        if written.as_ref().is_ok_and(|outcomes| outcomes.iter().all(Result::is_ok)) {
            let read = client.batch_get(&keys).await;
            if read.as_ref().is_ok_and(|found| found.iter().all(|one| matches!(one, Ok(Some(_))))) {
                return started.elapsed();
            }
        }
        assert!(started.elapsed() < WAIT_MAX, "no batch is done: {written:?}");
    }
}

async fn one_cut_off(network: &Network, engine: &'static str) {
    let hosts = (1..=3).map(|host| (network.namespace(host), network.address(host))).collect();
    let mut cluster = Cluster::start_on(hosts, 3, engine).await;
    for (victim, cut) in [Cut::Both, Cut::Inbound, Cut::Outbound].into_iter().enumerate() {
        let channels = cluster.channels();
        let others: Vec<Channel> =
            (0..3).filter(|at| *at != victim).map(|at| cluster.nodes[at].channel()).collect();
        // Keys of different partitions, which different nodes lead; written through all nodes, and through
        // those that stay together.
        let (all, rest) = (watch::Sender::new(channels.clone()), watch::Sender::new(others.clone()));
        let load = Running::start(&format!("all-{victim}"), 8, &all.subscribe());
        let majority = Running::start(&format!("majority-{victim}"), 8, &rest.subscribe());
        load.advance(5).await;
        majority.advance(5).await;

        let client = batching(&cluster).await;
        network.cut(victim + 1, cut);
        let name = format!("cut-{victim}");
        let (resumed, batches, (), written) = tokio::join!(
            writes_resume(&others),
            batches_resume(&client),
            refuses_reads(&channels[victim], &majority.registers),
            refuses_writes(&channels[victim], &name)
        );
        println!("{engine}, {cut:?}: the majority's writes resumed after {resumed:?}");
        assert!(resumed < slack::within(RESUMED_WITHIN), "{cut:?}: writes resumed only after {resumed:?}");
        println!("{engine}, {cut:?}: batches resumed after {batches:?}");
        assert!(batches < slack::within(BATCHES_RESUMED_WITHIN), "{cut:?}: only after {batches:?}");
        let told = info(channels[victim].clone()).await.unwrap();
        assert!(!told.problems.is_empty(), "{cut:?}: it does not say that it is cut off: {told:?}");
        majority.advance(5).await;

        network.heal(victim + 1);
        let healed = Instant::now();
        cluster.nodes[victim].serves().await;
        println!("{engine}, {cut:?}: it serves again {:?} after it was healed", healed.elapsed());
        load.advance(5).await;
        for register in load.end().await.iter().chain(&majority.end().await) {
            for channel in &channels {
                while let Err(status) = register.read(channel).await {
                    assert!(healed.elapsed() < WAIT_MAX, "it does not come back: {status}");
                }
            }
        }
        holds(&channels, &written).await;
    }
}

fn on_a_network(name: &str, engine: &'static str) {
    let network = Network::new(name, 3);
    network.run(|| one_cut_off(&network, engine));
}

#[test]
fn a_node_is_cut_off_on_fjall() {
    on_a_network("f", "fjall");
}

#[test]
fn a_node_is_cut_off_on_sled() {
    on_a_network("s", "sled");
}
