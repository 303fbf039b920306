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
use rushkv::proto::original::JoinRequest;
use rushkv::proto::original::rush_kv_client::RushKvClient;
use rushkv::proto::v1::kv_client::KvClient;
use rushkv::proto::v1::{DeleteRequest, InfoResponse};

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
fn crashes(node: &mut Daemon, step: &str) {
    let code = node.wait_end(CRASHES_WITHIN);
    assert_eq!(code, None, "{} at {step} ended by itself:\n{}", node.name, node.log());
    node.set(CRASH_AT, None);
    node.start();
}

/// Plays a scenario for each of the steps, side by side: most of each is waiting.
async fn at_each<F>(steps: &[&'static str], scenario: impl Fn(&'static str) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let played: Vec<_> = steps.iter().map(|step| tokio::spawn(scenario(step))).collect();
    for scenario in played {
        scenario.await.unwrap();
    }
}

/// Three nodes found a cluster, and `victim` crashes at the step once.
async fn founder_crashes(victim: usize, step: &str) {
    let (_dir, mut nodes) = together(3);
    nodes[victim].set(CRASH_AT, Some(step));
    nodes.iter_mut().for_each(Daemon::start);
    crashes(&mut nodes[victim], step);
    let when = format!("{} crashed at {step}", nodes[victim].name);
    are_one(&mut nodes, &when).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_founder_crashes_before_the_cluster_begins() {
    let steps = ["forming.all-heard", "forming.drawn", "forming.first-prepared", "forming.another-prepared"];
    at_each(&steps, |step| founder_crashes(0, step)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_founder_crashes_while_the_cluster_begins() {
    let steps = ["forming.all-prepared", "forming.initialized", "forming.formed", "forming.identity-written"];
    at_each(&steps, |step| founder_crashes(0, step)).await;
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
    at_each(&steps, |step| founder_crashes(2, step)).await;
}

/// Before anything but the founding was ever made durable: they find each other again.
#[tokio::test(flavor = "multi_thread")]
async fn all_founders_are_killed_once_the_cluster_is_formed() {
    let (_dir, mut nodes) = together(3);
    nodes.iter_mut().for_each(Daemon::start);
    let id = are_one(&mut nodes, "they found").await;
    nodes.iter_mut().for_each(Daemon::kill);
    nodes.iter_mut().for_each(Daemon::start);
    assert_eq!(are_one(&mut nodes, "all were killed").await, id);
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
    let steps = ["forming.all-heard", "joining.admitted", "joining.identity-written"];
    at_each(&steps, |step| async move {
        let mut cluster = Cluster::start(1, "fjall").await;
        let mut node = cluster.daemon(2).env(PEERS, &cluster.nodes[0].address());
        node.set(CRASH_AT, Some(step));
        node.start();
        crashes(&mut node, step);
        cluster.nodes.push(node);
        are_one(&mut cluster.nodes, &format!("a joining node crashed at {step}")).await;
    })
    .await;
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

/// Daemons that each found a cluster of their own, as the original's were started.
async fn alone(dir: &tempfile::TempDir, count: usize) -> Vec<Daemon> {
    let mut nodes: Vec<Daemon> = (1..=count).map(|number| daemon(dir, &format!("node{number}"))).collect();
    nodes.iter_mut().for_each(Daemon::start);
    for node in &mut nodes {
        node.serves().await;
    }
    nodes
}

/// The original's Join: of its body, success and error.
async fn join(at: &Daemon, node: &Daemon) -> (bool, String) {
    let request =
        JoinRequest { node_id: node.name.clone(), address: "127.0.0.1".into(), port: i32::from(node.port) };
    let answer = RushKvClient::new(at.channel()).join(request).await.unwrap().into_inner();
    (answer.success, answer.error)
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_started_alone_are_joined_the_originals_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = alone(&dir, 3).await;
    let pid = nodes[1].pid();
    // What is written to the cluster that stays is there afterwards.
    put(&nodes[0].channel(), "before", "v").await.unwrap();
    assert_eq!(join(&nodes[0], &nodes[1]).await, (true, String::new()), "{}", logs(&nodes));
    let told = ctl(&nodes[1], &["cluster", "join", &nodes[2].address()]);
    assert!(told.0 && told.1.contains("node3"), "{told:?}\n{}", logs(&nodes));
    let id = are_one(&mut nodes, "they were joined").await;
    assert_eq!(nodes[1].pid(), pid);
    for node in &nodes {
        assert_eq!(get(&node.channel(), "before").await.unwrap().as_deref(), Some("v"));
    }
    // Once more changes nothing.
    assert_eq!(join(&nodes[2], &nodes[1]).await, (true, String::new()));
    nodes.iter_mut().for_each(Daemon::kill);
    nodes.iter_mut().for_each(Daemon::start);
    assert_eq!(are_one(&mut nodes, "they were joined, and killed").await, id);
}

/// Whether rushkvctl succeeded, and all that it said.
fn ctl(at: &Daemon, args: &[&str]) -> (bool, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_rushkvctl"))
        .args(["--server", &at.address()])
        .args(args)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

/// It crashes at the step while it gives its cluster up; started again, it goes on by itself.
async fn gives_up_and_crashes(step: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = alone(&dir, 2).await;
    // The directory is there by now: its making is none of the steps.
    nodes[1].kill();
    nodes[1].set(CRASH_AT, Some(step));
    nodes[1].start();
    nodes[1].serves().await;
    // It may be told of the crash, or of a success.
    let told = join(&nodes[0], &nodes[1]).await;
    crashes(&mut nodes[1], step);
    are_one(&mut nodes, &format!("it crashed at {step}, {told:?}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_crashes_before_it_is_bound_to_join() {
    at_each(&["giving-up.sealed", "giving-up.partitions-sealed", "giving-up.bound"], gives_up_and_crashes)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_crashes_while_it_empties_its_directory_to_join() {
    at_each(
        &["data-dir.to-be-made-anew", "data-dir.format-removed", "data-dir.emptied"],
        gives_up_and_crashes,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_crashes_while_it_comes_in() {
    at_each(&["joining.admitted", "joining.identity-written"], gives_up_and_crashes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_written_to_does_not_give_itself_up() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = alone(&dir, 2).await;
    put(&nodes[1].channel(), "k", "v").await.unwrap();
    let mut client = KvClient::new(nodes[1].channel());
    client.delete(DeleteRequest { key: "k".into(), precondition: None }).await.unwrap();
    let (joined, why) = join(&nodes[0], &nodes[1]).await;
    assert!(!joined && why.contains("has taken writes") && why.contains("other way round"), "{why}");
    let told = ctl(&nodes[0], &["cluster", "join", &nodes[1].address()]);
    assert!(!told.0 && told.1.contains("has taken writes"), "{told:?}");
    put(&nodes[1].channel(), "k", "still").await.unwrap();
    // The other way round.
    let mut nodes: Vec<Daemon> = nodes.into_iter().rev().collect();
    assert_eq!(join(&nodes[0], &nodes[1]).await, (true, String::new()), "{}", logs(&nodes));
    are_one(&mut nodes, "joined the other way round").await;
    let (joined, why) = join(&nodes[0], &daemon(&dir, "nobody")).await;
    assert!(!joined && why.contains("no node of a cluster answers"), "{why}");
}

/// One of them gives itself up, or both say why they do not: never both.
#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_that_are_to_join_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = alone(&dir, 2).await;
    let (one, other) = tokio::join!(join(&nodes[0], &nodes[1]), join(&nodes[1], &nodes[0]));
    if one.0 || other.0 {
        are_one(&mut nodes, &format!("joined each other: {one:?} {other:?}")).await;
        return;
    }
    for (node, (_, why)) in nodes.iter().zip([&one, &other]) {
        assert!(why.contains("gives itself up"), "{why}\n{}", logs(&nodes));
        let started = Instant::now();
        while let Err(status) = put(&node.channel(), "k", "v").await {
            assert!(started.elapsed() < WAIT_MAX, "it stays sealed: {status}\n{}", logs(&nodes));
        }
    }
}

/// It ends by itself with a failure, and says why.
fn refuses(node: &mut Daemon, why: &[&str]) {
    let code = node.wait_end(CRASHES_WITHIN);
    let log = node.log();
    assert_eq!(code, Some(1), "{log}");
    for part in why {
        assert!(log.contains(part), "it does not say {part:?}:\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unequal_lists_of_peers_wait_and_say_for_whom() {
    let (_dir, mut nodes) = together(3);
    let all: Vec<String> = nodes.iter().map(Daemon::address).collect();
    nodes[0].set(PEERS, Some(&all[..2].join(",")));
    nodes.iter_mut().for_each(Daemon::start);
    says(&nodes[0], "which names a peer that this node does not: make their peers equal").await;
    says(&nodes[1], "waiting for \"node1\" to see \"node3\" (its peers must name it)").await;
    for node in &nodes {
        let status = info(node.channel()).await.unwrap_err();
        assert!(status.message().contains("has no cluster yet"), "{status:?}");
    }
    assert_eq!(nodes[0].stop(), Some(0));
    nodes[0].set(PEERS, Some(&all.join(",")));
    nodes[0].start();
    are_one(&mut nodes, "their peers were made equal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_of_one_name_refuse() {
    let (dir, mut nodes) = together(2);
    let (port, peers) = (nodes[1].port, nodes.iter().map(Daemon::address).collect::<Vec<_>>().join(","));
    nodes[1] = daemon(&dir, "another").named("node1").env(PEERS, &peers);
    nodes[1].port = port;
    nodes.iter_mut().for_each(Daemon::start);
    let (one, other) = nodes.split_at_mut(1);
    let why = ["calls itself \"node1\" too", "give each node a node_id of its own"];
    refuses(&mut one[0], &why);
    // It may be alone by then, and waits for the one that ended.
    if !other[0].has_ended() {
        other[0].stop();
    }
    one[0].set(PEERS, None);
    assert!(!one[0].data_dir.join("IDENTITY").exists() && !other[0].data_dir.join("IDENTITY").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_members_directory_is_refused_and_the_member_goes_on() {
    let (dir, mut nodes) = together(3);
    nodes.iter_mut().for_each(Daemon::start);
    let id = are_one(&mut nodes, "they found").await;
    assert_eq!(nodes[2].stop(), Some(0));
    let mut copy = daemon(&dir, "copy").named("node3");
    copy_dir(&nodes[2].data_dir, &copy.data_dir);
    nodes[2].start();
    are_one(&mut nodes, "it was stopped to be copied").await;
    copy.start();
    refuses(&mut copy, &["on a copy of this data directory", "start it with an empty data_dir"]);
    assert_eq!(are_one(&mut nodes, "the copy was refused").await, id);
}

/// A copy made before there was a cluster.
#[tokio::test(flavor = "multi_thread")]
async fn copies_of_one_directory_do_not_found() {
    let (dir, mut nodes) = together(2);
    nodes[1].start();
    says(&nodes[1], "waiting for").await;
    nodes[1].kill();
    let mut copy = daemon(&dir, "copy").named("node2");
    copy_dir(&nodes[1].data_dir, &copy.data_dir);
    let peers: Vec<String> = nodes.iter().chain([&copy]).map(Daemon::address).collect();
    for node in nodes.iter_mut().chain([&mut copy]) {
        node.set(PEERS, Some(&peers.join(",")));
    }
    copy.start();
    nodes[1].start();
    let started = Instant::now();
    while !copy.has_ended() && !nodes[1].has_ended() {
        assert!(started.elapsed() < WAIT_MAX, "neither is refused:\n{}\n{}", copy.log(), nodes[1].log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = if copy.has_ended() { &mut copy } else { &mut nodes[1] };
    refuses(refused, &["runs on a copy of this node's data directory", "empty data_dir"]);
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_a_wiped_disk_does_not_come_back_as_itself() {
    let (_dir, mut nodes) = together(3);
    nodes.iter_mut().for_each(Daemon::start);
    let id = are_one(&mut nodes, "they found").await;
    nodes[2].kill();
    std::fs::remove_dir_all(&nodes[2].data_dir).unwrap();
    nodes[2].start();
    let why = ["node3 is member n3 with another data directory", "(rushkvctl cluster leave node3)"];
    refuses(&mut nodes[2], &why);
    // What it says helps: the member leaves, and the name is free.
    let told = ctl(&nodes[0], &["cluster", "leave", "node3", "--yes"]);
    assert!(told.0, "{told:?}");
    let started = Instant::now();
    while ctl(&nodes[0], &["node", "list", "-o", "plain"]).1.contains("node3") {
        assert!(started.elapsed() < WAIT_MAX, "it stays a member:\n{}", logs(&nodes));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    nodes[2].start();
    assert_eq!(are_one(&mut nodes, "it left, and joined anew").await, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_that_name_each_other_become_one_or_refuse() {
    for is_written in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut nodes = alone(&dir, 2).await;
        let peers: Vec<String> = nodes.iter().map(Daemon::address).collect();
        for node in &mut nodes {
            if is_written {
                put(&node.channel(), "k", "v").await.unwrap();
            }
            assert_eq!(node.stop(), Some(0));
            node.set(PEERS, Some(&peers.join(",")));
        }
        nodes.iter_mut().for_each(Daemon::start);
        if !is_written {
            are_one(&mut nodes, "they name each other").await;
            continue;
        }
        let started = Instant::now();
        let refused = loop {
            match nodes.iter_mut().position(Daemon::has_ended) {
                Some(at) => break at,
                None => assert!(started.elapsed() < WAIT_MAX, "two clusters:\n{}", logs(&nodes)),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        refuses(&mut nodes[refused], &["neither can be given up for the other", "out of peers"]);
    }
}
