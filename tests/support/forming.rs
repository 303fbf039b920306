//! Daemons that form a cluster together or join one, and crash on the way. `src/crash_point.rs` says how a
//! step is named.

#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::time::{Duration, Instant};

use rushkv::proto::original::JoinRequest;
use rushkv::proto::original::rush_kv_client::RushKvClient;
use rushkv::proto::v1::InfoResponse;

use crate::cluster::{WAIT_MAX, get, info, put};
use crate::process::Daemon;

/// Names the step to crash at: see `src/crash_point.rs`.
pub const CRASH_AT: &str = "RUSHKV_CRASH_AT";

pub const PEERS: &str = "RUSHKV__PEERS";

/// Its name in the configuration.
pub type Engine = &'static str;

/// A step that is not come to within this time is none of that node's.
pub const CRASHES_WITHIN: Duration = Duration::from_secs(20);

/// Daemons that name each other, not started.
pub fn together(count: usize, engine: Engine) -> (tempfile::TempDir, Vec<Daemon>) {
    let dir = tempfile::tempdir().unwrap();
    let name = |number| format!("node{number}");
    let mut nodes: Vec<Daemon> = (1..=count).map(|number| daemon(&dir, &name(number), engine)).collect();
    let peers: Vec<String> = nodes.iter().map(Daemon::address).collect();
    for node in &mut nodes {
        node.set(PEERS, Some(&peers.join(",")));
    }
    (dir, nodes)
}

pub fn daemon(dir: &tempfile::TempDir, name: &str, engine: Engine) -> Daemon {
    Daemon::new(&dir.path().join(name), engine).named(name).env("RUSHKV__CLUSTER__PARTITIONS", "4")
}

pub fn logs(nodes: &[Daemon]) -> String {
    nodes.iter().map(|node| format!("--- {}\n{}", node.name, node.log())).collect()
}

/// Waits until the node says this in its log.
pub async fn says(node: &Daemon, what: &str) {
    let started = Instant::now();
    while !node.log().contains(what) {
        assert!(started.elapsed() < WAIT_MAX, "it does not say {what:?}:\n{}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until they all serve as one cluster, and what one is told the others know. Returns its id.
pub async fn are_one(nodes: &mut [Daemon], when: &str) -> String {
    let count = u32::try_from(nodes.len()).unwrap();
    let started = Instant::now();
    let id = loop {
        let mut told = Vec::new();
        for node in &*nodes {
            told.push(info(node.channel()).await.map_err(|status| status.message().to_string()));
        }
        let whole =
            |info: &InfoResponse| info.node_count == count && info.partitions_led == info.partition_count;
        let all: Vec<&InfoResponse> = told.iter().flatten().filter(|info| whole(info)).collect();
        if all.len() == nodes.len() && all.iter().all(|info| info.cluster_id == all[0].cluster_id) {
            break all[0].cluster_id.clone();
        }
        if let Some(ended) = nodes.iter_mut().find_map(|node| node.has_ended().then(|| node.name.clone())) {
            panic!("{when}: {ended} ended\n{}", logs(nodes));
        }
        assert!(started.elapsed() < WAIT_MAX, "{when}: not one cluster: {told:?}\n{}", logs(nodes));
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let channels: Vec<_> = nodes.iter().map(Daemon::channel).collect();
    let written = put(&channels[0], "k", "v").await;
    assert!(written.is_ok(), "{when}: {written:?}\n{}", logs(nodes));
    for channel in &channels {
        let read = get(channel, "k").await;
        assert!(matches!(&read, Ok(Some(v)) if v == "v"), "{when}: {read:?}\n{}", logs(nodes));
    }
    id
}

/// Waits until it ends at the step it was told to crash at, and starts it again as it should be.
pub fn crashes(node: &mut Daemon, step: &str) {
    let code = tokio::task::block_in_place(|| node.wait_end(CRASHES_WITHIN));
    assert_eq!(code, None, "{} at {step} ended by itself:\n{}", node.name, node.log());
    node.set(CRASH_AT, None);
    node.start();
}

/// Plays a scenario for each of these, side by side: most of each is waiting.
pub async fn at_each<T, F>(these: impl IntoIterator<Item = T>, scenario: impl Fn(T) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let played: Vec<_> = these.into_iter().map(|one| tokio::spawn(scenario(one))).collect();
    for scenario in played {
        scenario.await.unwrap();
    }
}

/// The steps of a founding that only the first node (the lowest name) takes.
pub const STEPS_OF_THE_FIRST: [&str; 5] = [
    "forming.drawn",
    "forming.first-prepared",
    "forming.another-prepared",
    "forming.all-prepared",
    "forming.initialized",
];

/// Those that only another one takes.
pub const STEPS_OF_ANOTHER: [&str; 2] = ["forming.asked-to-prepare", "forming.prepared"];

/// Those that each takes.
pub const STEPS_OF_EACH: [&str; 4] =
    ["forming.all-heard", "forming.birth", "forming.formed", "forming.identity-written"];

/// Three nodes found a cluster, and `victim` crashes at the step once.
pub async fn founder_crashes(engine: Engine, victim: usize, step: &str) {
    let (_dir, mut nodes) = together(3, engine);
    nodes[victim].set(CRASH_AT, Some(step));
    nodes.iter_mut().for_each(Daemon::start);
    crashes(&mut nodes[victim], step);
    let when = format!("{engine}: {} crashed at {step}", nodes[victim].name);
    are_one(&mut nodes, &when).await;
}

/// Three nodes found a cluster, and all are killed in the middle of Prepare: each that is told a step once
/// it is there, the others after those. All are started again and come to one cluster, and to no other than
/// the one that the first had drawn.
pub async fn all_are_killed_in_prepare(engine: Engine, steps: [Option<&str>; 3]) {
    let (_dir, mut nodes) = together(3, engine);
    for (node, step) in nodes.iter_mut().zip(steps) {
        node.set(CRASH_AT, step);
        node.start();
    }
    for (node, step) in nodes.iter_mut().zip(steps).filter(|(_, step)| step.is_some()) {
        let code = tokio::task::block_in_place(|| node.wait_end(CRASHES_WITHIN));
        assert_eq!(code, None, "{} at {step:?} ended by itself:\n{}", node.name, node.log());
        node.set(CRASH_AT, None);
    }
    nodes.iter_mut().filter(|node| node.is_running()).for_each(Daemon::kill);
    nodes.iter_mut().for_each(Daemon::start);
    let id = are_one(&mut nodes, &format!("{engine}: all were killed at {steps:?}")).await;
    let log = logs(&nodes);
    let drawn: Vec<&str> = log.lines().filter(|line| line.contains("founding a cluster")).collect();
    assert!(drawn.len() == 1 && drawn[0].contains(&id), "{engine}, {steps:?}: {id}, {drawn:?}\n{log}");
}

/// All nodes crash once the founding is committed, by whomever it was proposed: one of them comes to that.
pub async fn who_proposes_crashes(engine: Engine) {
    let (_dir, mut nodes) = together(3, engine);
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
    are_one(&mut nodes, &format!("{engine}: the founding was committed")).await;
}

/// Daemons that each found a cluster of their own, as the original's were started.
pub async fn alone(dir: &tempfile::TempDir, count: usize, engine: Engine) -> Vec<Daemon> {
    let name = |number| format!("node{number}");
    let mut nodes: Vec<Daemon> = (1..=count).map(|number| daemon(dir, &name(number), engine)).collect();
    nodes.iter_mut().for_each(Daemon::start);
    for node in &mut nodes {
        node.serves().await;
    }
    nodes
}

/// The original's Join: of its body, success and error.
pub async fn join(at: &Daemon, node: &Daemon) -> (bool, String) {
    let request =
        JoinRequest { node_id: node.name.clone(), address: "127.0.0.1".into(), port: i32::from(node.port) };
    let answer = RushKvClient::new(at.channel()).join(request).await.unwrap().into_inner();
    (answer.success, answer.error)
}

/// Whether rushkvctl succeeded, and all that it said.
pub fn ctl(at: &Daemon, args: &[&str]) -> (bool, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_rushkvctl"))
        .args(["--server", &at.address()])
        .args(args)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

/// It crashes at the step while it gives its cluster up; started again, it goes on by itself.
pub async fn gives_up_and_crashes(engine: Engine, step: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = alone(&dir, 2, engine).await;
    // The directory is there by now: its making is none of the steps.
    nodes[1].kill();
    nodes[1].set(CRASH_AT, Some(step));
    nodes[1].start();
    nodes[1].serves().await;
    // It may be told of the crash, or of a success.
    let told = join(&nodes[0], &nodes[1]).await;
    crashes(&mut nodes[1], step);
    are_one(&mut nodes, &format!("{engine}: it crashed at {step}, {told:?}")).await;
}
