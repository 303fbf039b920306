//! Real processes that form a cluster together, or join one: a crash at any step of it leaves one
//! cluster, and what can't come to one is refused with what to do. (`crash_point` names the steps.)

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/forming.rs"]
mod forming;
#[path = "support/process.rs"]
mod process;

use std::time::{Duration, Instant};

use cluster::{Cluster, WAIT_MAX, get, info, put};
use forming::{
    CRASH_AT, CRASHES_WITHIN, Engine, PEERS, STEPS_OF_ANOTHER, STEPS_OF_EACH, all_are_killed_in_prepare,
    alone, are_one, at_each, crashes, ctl, daemon, founder_crashes, gives_up_and_crashes, join, logs, says,
    together, who_proposes_crashes,
};
use process::Daemon;
use rushkv::Client;
use rushkv::proto::v1::DeleteRequest;
use rushkv::proto::v1::kv_client::KvClient;

async fn the_first_founder_crashes_before_the_cluster_begins(engine: Engine) {
    let steps = ["forming.all-heard", "forming.drawn", "forming.first-prepared", "forming.another-prepared"];
    at_each(steps, |step| founder_crashes(engine, 0, step)).await;
}

async fn the_first_founder_crashes_while_the_cluster_begins(engine: Engine) {
    let steps = ["forming.all-prepared", "forming.initialized", "forming.formed", "forming.identity-written"];
    at_each(steps, |step| founder_crashes(engine, 0, step)).await;
}

async fn another_founder_crashes(engine: Engine) {
    at_each(STEPS_OF_ANOTHER.iter().chain(&STEPS_OF_EACH), |step| founder_crashes(engine, 1, step)).await;
}

async fn the_last_founder_crashes(engine: Engine) {
    at_each(STEPS_OF_ANOTHER.iter().chain(&STEPS_OF_EACH), |step| founder_crashes(engine, 2, step)).await;
}

/// Before anything but the founding was ever made durable: they find each other again.
async fn all_founders_are_killed_once_the_cluster_is_formed(engine: Engine) {
    let (_dir, mut nodes) = together(3, engine);
    nodes.iter_mut().for_each(Daemon::start);
    let id = are_one(&mut nodes, "they found").await;
    nodes.iter_mut().for_each(Daemon::kill);
    nodes.iter_mut().for_each(Daemon::start);
    assert_eq!(are_one(&mut nodes, "all were killed").await, id);
}

async fn all_founders_are_killed_while_they_prepare(engine: Engine) {
    let prepared = Some("forming.prepared");
    let killed = [
        // The first one knows of nobody else that is prepared.
        [None, prepared, prepared],
        [Some("forming.all-prepared"), None, None],
        [None, Some("forming.asked-to-prepare"), prepared],
    ];
    at_each(killed, |steps| all_are_killed_in_prepare(engine, steps)).await;
}

async fn who_proposes_the_founding_crashes(engine: Engine) {
    who_proposes_crashes(engine).await;
}

/// It had been told to begin some of the partitions: two of three begin them without it, and it can be let go.
async fn a_founder_never_comes_back(engine: Engine) {
    let (_dir, mut nodes) = together(3, engine);
    nodes[2].set(CRASH_AT, Some("forming.birth"));
    nodes.iter_mut().for_each(Daemon::start);
    assert_eq!(nodes[2].wait_end(CRASHES_WITHIN), None, "{}", logs(&nodes));
    std::fs::remove_dir_all(&nodes[2].data_dir).unwrap();
    // More keys than it takes to meet each of the four partitions.
    let client = Client::connect(&nodes[0].address()).unwrap().with_timeout(WAIT_MAX);
    for number in 0..40 {
        let written = client.put(format!("key {number}"), "value").await;
        assert!(written.is_ok(), "key {number}: {written:?}\n{}", logs(&nodes));
    }
    let told = ctl(&nodes[0], &["cluster", "leave", "node3", "--yes"]);
    assert!(told.0, "{told:?}");
    are_one(&mut nodes[..2], "the third was let go").await;
    nodes[2].set(CRASH_AT, None);
    nodes[2].start();
    are_one(&mut nodes, "it came anew").await;
}

/// It was away while the founding that it is prepared for took place, and heard nothing of it; somebody else, who can't know of that,
/// would have it found another cluster.
async fn a_founder_that_was_away_founds_nothing_else(engine: Engine) {
    let (dir, mut nodes) = together(3, engine);
    nodes[2].set(CRASH_AT, Some("forming.prepared"));
    nodes.iter_mut().for_each(Daemon::start);
    assert_eq!(nodes[2].wait_end(CRASHES_WITHIN), None, "{}", logs(&nodes));
    let prepared = dir.path().join("prepared");
    copy_dir(&nodes[2].data_dir, &prepared);
    nodes[2].set(CRASH_AT, None);
    nodes[2].start();
    are_one(&mut nodes, "one crashed once it was prepared").await;
    nodes.iter_mut().for_each(Daemon::kill);

    let away = nodes.pop().unwrap();
    std::fs::remove_dir_all(&away.data_dir).unwrap();
    copy_dir(&prepared, &away.data_dir);
    let mut away = away.named("renamed");
    away.start();
    refuses(
        &mut away,
        &[
            "prepared to found a cluster as \"node3\", but node_id is \"renamed\"",
            "start with an empty data_dir",
        ],
    );
    let mut away = away.named("node3");
    let mut stranger = daemon(&dir, "node0", engine).env(PEERS, &away.address());
    away.set(PEERS, Some(&stranger.address()));
    away.start();
    stranger.start();
    says(&stranger, "which may have taken place").await;
    let told = info(away.channel()).await;
    assert!(told.is_err(), "it is a member of another cluster: {told:?}\n{}", away.log());
}

/// A founding that has not taken place gives way to one of the nodes as they are now: one at another address, or with another disk.
async fn a_founding_is_drawn_anew_for_who_has_changed(engine: Engine) {
    at_each(["moved", "wiped"], |change| async move {
        let (dir, mut nodes) = together(3, engine);
        nodes[0].set(CRASH_AT, Some("forming.all-prepared"));
        nodes.iter_mut().for_each(Daemon::start);
        assert_eq!(
            tokio::task::block_in_place(|| nodes[0].wait_end(CRASHES_WITHIN)),
            None,
            "{}",
            logs(&nodes)
        );
        nodes[1..].iter_mut().for_each(Daemon::kill);
        match change {
            "moved" => nodes[0] = daemon(&dir, "node1", engine),
            _ => std::fs::remove_dir_all(&nodes[1].data_dir).unwrap(),
        }
        let peers = nodes.iter().map(Daemon::address).collect::<Vec<_>>().join(",");
        for node in &mut nodes {
            node.set(CRASH_AT, None);
            node.set(PEERS, Some(&peers));
            node.start();
        }
        are_one(&mut nodes, &format!("{engine}: one was {change}")).await;
        let drawn = logs(&nodes).matches("founding a cluster").count();
        assert!(drawn > 1, "{change}: it was not drawn anew");
    })
    .await;
}

async fn a_joining_node_crashes(engine: Engine) {
    let steps = ["forming.all-heard", "joining.admitted", "joining.identity-written"];
    at_each(steps, |step| async move {
        let mut cluster = Cluster::start(1, engine).await;
        let mut node = cluster.daemon(2).env(PEERS, &cluster.nodes[0].address());
        node.set(CRASH_AT, Some(step));
        node.start();
        crashes(&mut node, step);
        cluster.nodes.push(node);
        are_one(&mut cluster.nodes, &format!("a joining node crashed at {step}")).await;
    })
    .await;
}

async fn a_node_whose_peers_are_only_itself_founds_alone(engine: Engine) {
    let (_dir, mut nodes) = together(1, engine);
    // The same node by another of its names.
    let peers = format!("{},localhost:{}", nodes[0].address(), nodes[0].port);
    nodes[0].set(PEERS, Some(&peers));
    for step in [Some("forming.first-prepared"), Some("forming.initialized"), None] {
        nodes[0].set(CRASH_AT, step);
        nodes[0].start();
        if let Some(step) = step {
            let code = tokio::task::block_in_place(|| nodes[0].wait_end(CRASHES_WITHIN));
            assert_eq!(code, None, "at {step}:\n{}", nodes[0].log());
        }
    }
    are_one(&mut nodes, "it named only itself").await;
}

async fn nodes_started_alone_are_joined_the_originals_way(engine: Engine) {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = alone(&dir, 3, engine).await;
    let pid = nodes[1].pid();
    // What is written to the cluster that stays is there afterwards.
    put(&nodes[0].channel(), "before", "v").await.unwrap();
    assert_eq!(join(&nodes[0], &nodes[1]).await, (true, String::new()), "{}", logs(&nodes));
    // It may still be starting anew.
    are_one(&mut nodes[..2], "the second was joined").await;
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

async fn a_node_crashes_before_it_is_bound_to_join(engine: Engine) {
    at_each(["giving-up.sealed", "giving-up.partitions-sealed", "giving-up.bound"], |step| {
        gives_up_and_crashes(engine, step)
    })
    .await;
}

async fn a_node_crashes_while_it_empties_its_directory_to_join(engine: Engine) {
    at_each(["data-dir.to-be-made-anew", "data-dir.format-removed", "data-dir.emptied"], |step| {
        gives_up_and_crashes(engine, step)
    })
    .await;
}

async fn a_node_crashes_while_it_comes_in(engine: Engine) {
    at_each(["joining.admitted", "joining.identity-written"], |step| gives_up_and_crashes(engine, step))
        .await;
}

async fn a_cluster_that_was_written_to_does_not_give_itself_up(engine: Engine) {
    let dir = tempfile::tempdir().unwrap();
    let nodes = alone(&dir, 2, engine).await;
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
    let (joined, why) = join(&nodes[0], &daemon(&dir, "nobody", engine)).await;
    assert!(!joined && why.contains("no node of a cluster answers"), "{why}");
}

/// One of them gives itself up, or both say why they do not: never both.
async fn two_clusters_that_are_to_join_each_other(engine: Engine) {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = alone(&dir, 2, engine).await;
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

async fn unequal_lists_of_peers_wait_and_say_for_whom(engine: Engine) {
    let (_dir, mut nodes) = together(3, engine);
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

async fn two_nodes_of_one_name_refuse(engine: Engine) {
    let (dir, mut nodes) = together(2, engine);
    let (port, peers) = (nodes[1].port, nodes.iter().map(Daemon::address).collect::<Vec<_>>().join(","));
    nodes[1] = daemon(&dir, "another", engine).named("node1").env(PEERS, &peers);
    nodes[1].port = port;
    nodes.iter_mut().for_each(Daemon::start);
    let why = ["calls itself \"node1\" too", "give each node a node_id of its own"];
    // Whichever hears of the other first; that one may be alone by then, and waits.
    let refused = first_that_ends(&mut nodes).await;
    refuses(&mut nodes[refused], &why);
    let other = &mut nodes[1 - refused];
    match other.has_ended() {
        true => refuses(other, &why),
        false => drop(other.stop()),
    }
    assert!(nodes.iter().all(|node| !node.data_dir.join("IDENTITY").exists()));
}

/// Waits until one of them ended by itself; which.
async fn first_that_ends(nodes: &mut [Daemon]) -> usize {
    let started = Instant::now();
    loop {
        if let Some(ended) = nodes.iter_mut().position(Daemon::has_ended) {
            return ended;
        }
        assert!(started.elapsed() < WAIT_MAX, "none is refused:\n{}", logs(nodes));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_copy_of_a_members_directory_is_refused_and_the_member_goes_on(engine: Engine) {
    let (dir, mut nodes) = together(3, engine);
    nodes.iter_mut().for_each(Daemon::start);
    let id = are_one(&mut nodes, "they found").await;
    assert_eq!(nodes[2].stop(), Some(0));
    let mut copy = daemon(&dir, "copy", engine).named("node3");
    copy_dir(&nodes[2].data_dir, &copy.data_dir);
    nodes[2].start();
    are_one(&mut nodes, "it was stopped to be copied").await;
    copy.start();
    refuses(&mut copy, &["on a copy of this data directory", "start it with an empty data_dir"]);
    assert_eq!(are_one(&mut nodes, "the copy was refused").await, id);
}

/// A copy made before there was a cluster.
async fn copies_of_one_directory_do_not_found(engine: Engine) {
    let (dir, mut nodes) = together(2, engine);
    nodes[1].start();
    says(&nodes[1], "waiting for").await;
    nodes[1].kill();
    let mut copy = daemon(&dir, "copy", engine).named("node2");
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

async fn a_member_with_a_wiped_disk_does_not_come_back_as_itself(engine: Engine) {
    let (_dir, mut nodes) = together(3, engine);
    nodes.iter_mut().for_each(Daemon::start);
    let id = are_one(&mut nodes, "they found").await;
    nodes[2].kill();
    std::fs::remove_dir_all(&nodes[2].data_dir).unwrap();
    nodes[2].start();
    let why = ["node3 is member n3 with another data directory", "(rushkvctl cluster leave node3 --yes)"];
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

async fn two_clusters_that_name_each_other_become_one_or_refuse(engine: Engine) {
    for is_written in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut nodes = alone(&dir, 2, engine).await;
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

macro_rules! on_both_engines {
    ($($case:ident),* $(,)?) => {$(
        mod $case {
            #[tokio::test(flavor = "multi_thread")]
            async fn on_fjall() {
                super::$case("fjall").await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_sled() {
                super::$case("sled").await;
            }
        }
    )*};
}

on_both_engines! {
    the_first_founder_crashes_before_the_cluster_begins,
    the_first_founder_crashes_while_the_cluster_begins,
    another_founder_crashes,
    the_last_founder_crashes,
    all_founders_are_killed_once_the_cluster_is_formed,
    all_founders_are_killed_while_they_prepare,
    who_proposes_the_founding_crashes,
    a_founder_never_comes_back,
    a_founder_that_was_away_founds_nothing_else,
    a_founding_is_drawn_anew_for_who_has_changed,
    a_joining_node_crashes,
    a_node_whose_peers_are_only_itself_founds_alone,
    nodes_started_alone_are_joined_the_originals_way,
    a_node_crashes_before_it_is_bound_to_join,
    a_node_crashes_while_it_empties_its_directory_to_join,
    a_node_crashes_while_it_comes_in,
    a_cluster_that_was_written_to_does_not_give_itself_up,
    two_clusters_that_are_to_join_each_other,
    unequal_lists_of_peers_wait_and_say_for_whom,
    two_nodes_of_one_name_refuse,
    a_copy_of_a_members_directory_is_refused_and_the_member_goes_on,
    copies_of_one_directory_do_not_found,
    a_member_with_a_wiped_disk_does_not_come_back_as_itself,
    two_clusters_that_name_each_other_become_one_or_refuse,
}
