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

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{Cluster, WAIT_MAX, info, writes_resume};
use network::{Cut, Network};
use register::{Register, Running};
use tokio::sync::watch;
use tonic::transport::Channel;

/// How long a node is cut off.
const CUT_FOR: Duration = Duration::from_secs(6);

/// After this long without a majority, a node has noticed: it refuses every read.
const NOTICED_WITHIN: Duration = Duration::from_secs(3);

/// Reads through a node that is cut off: answers must not be old, and end soon.
async fn refuses(channel: &Channel, registers: &[Arc<Register>]) {
    let cut = Instant::now();
    let (mut answered, mut refused) = (0, 0);
    while cut.elapsed() < CUT_FOR {
        for register in registers {
            let began = cut.elapsed();
            match register.read(channel).await {
                Ok(_) => {
                    assert!(began < NOTICED_WITHIN, "answered a read {began:?} after it was cut off");
                    answered += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    println!("  cut off: {answered} reads answered, {refused} refused");
    assert!(refused > 0);
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

        network.cut(victim + 1, cut);
        let (resumed, ()) =
            tokio::join!(writes_resume(&others), refuses(&channels[victim], &majority.registers));
        println!("{engine}, {cut:?}: the majority's writes resumed after {resumed:?}");
        assert!(resumed < Duration::from_secs(15), "{cut:?}: writes resumed only after {resumed:?}");
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
    }
}

fn on_a_network(name: &str, engine: &'static str) {
    let network = Network::new(name, 3);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            network.enter();
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(one_cut_off(&network, engine));
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn a_node_is_cut_off_on_fjall() {
    on_a_network("f", "fjall");
}

#[test]
fn a_node_is_cut_off_on_sled() {
    on_a_network("s", "sled");
}
