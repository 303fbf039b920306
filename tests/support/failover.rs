//! One node after another, and all of them at once, killed under load. Writes go on, nothing is missing,
//! what was killed catches up.

#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tonic::transport::Channel;

use crate::cluster::{Cluster, WAIT_MAX, put, writes_resume};
use crate::ledger::{Writer, under_way, verify_all};
use crate::register::{Register, Running};

const WRITERS: usize = 8;
const REGISTERS: usize = 8;

pub fn writers() -> (Vec<Writer>, Arc<AtomicU64>) {
    let acknowledged = Arc::new(AtomicU64::new(0));
    ((0..WRITERS).map(|id| Writer::new(id, 5, acknowledged.clone())).collect(), acknowledged)
}

/// Writers on all of `channels` at once, until they are told to stop or are in doubt.
pub struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Writer>>,
}

impl Load {
    pub fn start(writers: Vec<Writer>, channels: &[Channel]) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let tasks = writers.into_iter().enumerate().map(move |(at, mut writer)| {
            let (channel, stop) = (channels[at % channels.len()].clone(), told.clone());
            tokio::spawn(async move {
                writer.run(channel, stop).await;
                writer
            })
        });
        Load { stop, tasks: tasks.collect() }
    }

    pub async fn end(self) -> Vec<Writer> {
        self.stop.store(true, Ordering::Relaxed);
        let mut writers = Vec::new();
        for task in self.tasks {
            writers.push(task.await.expect("no writer panics"));
        }
        writers
    }
}

/// What writes may have to wait at most, until they go through in every partition: median and worst.
#[derive(Debug, Clone, Copy)]
pub struct Borne {
    pub median: Duration,
    pub worst: Duration,
}

/// Kills one node after another under load, which goes on all the while and is checked: nothing that was
/// acknowledged is missing, nothing that is read is old. What was killed catches up.
pub async fn one_killed(engine: &'static str, times: usize, borne: Borne) {
    let mut cluster = Cluster::start(3, engine).await;
    let all = watch::Sender::new(cluster.channels());
    let running = Running::start("killed", REGISTERS, &all.subscribe());
    let (mut writers, acknowledged) = writers();
    let mut pauses = Vec::new();
    for round in 0..times {
        let victim = round % 3;
        cluster.leads_something(victim).await;
        running.advance(3).await;
        let before = acknowledged.load(Ordering::Relaxed);
        let load = Load::start(writers, &cluster.channels());
        under_way(&acknowledged, before + 100).await;
        cluster.nodes[victim].kill();
        pauses.push(writes_resume(&cluster.channels()).await);
        writers = load.end().await;
        verify_all(&mut writers, &cluster.channels()[0]).await;
        cluster.nodes[victim].start();
        cluster.serve().await;
        cluster.catches_up(victim).await;
        // Connections to what was killed are made anew.
        all.send_replace(cluster.channels());
        verify_all(&mut writers, &cluster.nodes[victim].channel()).await;
    }
    let registers = running.end().await;
    read_everywhere(&cluster, &registers).await;
    pauses.sort();
    let (median, worst) = (pauses[times / 2], pauses[times - 1]);
    let writes = acknowledged.load(Ordering::Relaxed) + versions(&registers);
    println!(
        "{engine}: {times} kills, {writes} writes acknowledged and found, writes resumed after a median of \
         {median:?}, at worst {worst:?}"
    );
    assert!(median <= borne.median && worst <= borne.worst, "{pauses:?} is more than {borne:?}");
}

/// Kills all nodes at once under load, which goes on as above.
pub async fn all_killed(engine: &'static str, times: usize) {
    let mut cluster = Cluster::start(3, engine).await;
    let all = watch::Sender::new(cluster.channels());
    let running = Running::start("all-killed", REGISTERS, &all.subscribe());
    let (mut writers, acknowledged) = writers();
    for _ in 0..times {
        running.advance(3).await;
        let before = acknowledged.load(Ordering::Relaxed);
        let load = Load::start(writers, &cluster.channels());
        under_way(&acknowledged, before + 100).await;
        for node in &mut cluster.nodes {
            node.kill();
        }
        writers = load.end().await;
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.serve().await;
        all.send_replace(cluster.channels());
        verify_all(&mut writers, &cluster.channels()[1]).await;
    }
    let registers = running.end().await;
    read_everywhere(&cluster, &registers).await;
    let writes = acknowledged.load(Ordering::Relaxed) + versions(&registers);
    println!("{engine}: all nodes killed {times} times, {writes} writes acknowledged and found");
}

/// Stops one node after another as planned, and starts it again, while every partition is written through the
/// nodes that stay: no write fails, and the longest of each stop is borne.
pub async fn stopped_in_turn(engine: &'static str, times: usize, borne: Borne) {
    let mut cluster = Cluster::start(3, engine).await;
    let keys = cluster.keys_of_all_partitions().await;
    let (mut count, mut pauses) = (0, Vec::new());
    for round in 0..times {
        let victim = round % 3;
        cluster.leads_something(victim).await;
        let others: Vec<Channel> =
            (0..3).filter(|at| *at != victim).map(|at| cluster.nodes[at].channel()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        // Two for each partition, by different nodes.
        let writers =
            keys.iter().flat_map(|key| others.iter().map(move |channel| (key.clone(), channel.clone())));
        let writers = writers.map(|(key, channel)| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let (mut longest, mut count) = (Duration::ZERO, 0);
                while !stop.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    put(&channel, &key, "v").await.expect("no write fails in a planned stop");
                    longest = longest.max(started.elapsed());
                    count += 1;
                }
                (longest, count)
            })
        });
        let writers: Vec<_> = writers.collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(cluster.nodes[victim].stop(), Some(0), "{}", cluster.nodes[victim].log());
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.store(true, Ordering::Relaxed);
        let mut longest = Duration::ZERO;
        for writer in writers {
            let (its, written): (Duration, u64) = writer.await.unwrap_or_else(|error| {
                panic!("round {round}, node {victim} was stopped: {error}\n{}", cluster.logs())
            });
            (longest, count) = (longest.max(its), count + written);
        }
        pauses.push(longest);
        let log = cluster.nodes[victim].log();
        assert!(!log.contains("the others will elect"), "{log}");
        cluster.nodes[victim].start();
        cluster.serve().await;
    }
    pauses.sort();
    let (median, worst) = (pauses[times / 2], pauses[times - 1]);
    println!(
        "{engine}: {times} stops, {count} writes, none failed; the longest took {median:?} in the median, {worst:?} \
         at worst"
    );
    assert!(median <= borne.median && worst <= borne.worst, "{pauses:?} is more than {borne:?}");
}

fn versions(registers: &[Arc<Register>]) -> u64 {
    registers.iter().map(|register| register.acknowledged()).sum()
}

/// Reads every register once more, through every node.
async fn read_everywhere(cluster: &Cluster, registers: &[Arc<Register>]) {
    for channel in cluster.channels() {
        for register in registers {
            let read = register.read_at_last(&channel, WAIT_MAX).await;
            read.unwrap_or_else(|status| panic!("{status}\n{}", cluster.logs()));
        }
    }
}
