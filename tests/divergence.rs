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
use rushkv::proto::v1::{self, Agreement, Comparison, Partition};
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

/// Somebody did not answer in time, or voters change.
fn says_nothing(compared: &Comparison) -> bool {
    matches!(compared.agreement(), Agreement::Incomplete | Agreement::Unspecified)
}

/// Compares the partition until that comes to something, which is as expected.
async fn compared(
    cluster: &Cluster,
    client: &Client,
    partition: u32,
    is_expected: impl Fn(&Comparison) -> bool,
) {
    let started = Instant::now();
    loop {
        let compared = client.compare(vec![partition]).await.unwrap().remove(0);
        if is_expected(&compared) {
            return;
        }
        let may_wait = says_nothing(&compared) && started.elapsed() < WAIT_MAX;
        assert!(may_wait, "{compared:?}\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
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
            // Unless the cluster has compared by itself: then that replica has stopped, or is another one by now.
            let is_found = |compared: &Comparison| {
                compared.agreement() == Agreement::Majority
                    || compared.replicas.iter().all(|replica| replica.replica != before)
            };
            compared(&cluster, &client, partition.id, is_found).await;
        }
    }
    is_rebuilt(&cluster, &client, key, &node, before).await;
    for node in &cluster.nodes {
        assert_eq!(get(&node.channel(), key).await.unwrap().as_deref(), Some("written"));
    }
    // While voters change, nothing can be said of a partition.
    let started = Instant::now();
    loop {
        let all = client.compare(Vec::new()).await.unwrap();
        let is_done = all.iter().all(|one| one.agreement() == Agreement::Same);
        if is_done {
            return;
        }
        let may_wait = all.iter().all(|one| one.agreement() == Agreement::Same || says_nothing(one));
        assert!(may_wait && started.elapsed() < WAIT_MAX, "{all:?}\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
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

const LARGE_VALUES: u64 = 1000;

fn large_value(number: u64) -> Vec<u8> {
    let words = (0..128).map(|word: u64| xxhash_rust::xxh3::xxh3_64_with_seed(&word.to_le_bytes(), number));
    words.flat_map(u64::to_le_bytes).collect()
}

/// A bit of one large value of the partition, and of each former version of its page. In the middle of what the node
/// has of it: it shares no page with what the node keeps of its replicas.
async fn damage_page(client: &Client, partition: u32, data_dir: &std::path::Path) {
    let mut of_partition = Vec::new();
    for number in 0..LARGE_VALUES {
        let key = format!("large-{number}");
        if partition_of(client, &key).await.id == partition {
            of_partition.push((key, number));
        }
    }
    of_partition.sort();
    let value = large_value(of_partition[of_partition.len() / 2].1);
    let path = data_dir.join("engine/db");
    let mut content = std::fs::read(&path).unwrap();
    let windows = content.windows(value.len()).enumerate();
    let found: Vec<usize> = windows.filter(|(_, there)| *there == value).map(|(at, _)| at).collect();
    found.iter().for_each(|at| content[*at] ^= 1);
    std::fs::write(&path, content).unwrap();
}

/// Starts the node as often as it ends, as the service manager does, until everything is whole. False: it can't open
/// what it has at all, or its new copy came to lie on the damaged page, too, and has to wait for an hour.
async fn is_mended(cluster: &mut Cluster, client: &Client, at: usize) -> bool {
    let started = Instant::now();
    loop {
        let node = &mut cluster.nodes[at];
        if !node.is_running() || node.has_ended() {
            node.is_running().then(|| node.wait_end(WAIT_MAX));
            let log = node.log();
            if log.lines().rfind(|line| line.contains("ERROR")).is_some_and(|last| last.contains("opening")) {
                return false;
            }
            node.start();
        }
        let is_whole = |all: &Vec<rushkv::proto::v1::Comparison>| {
            all.iter().all(|one| one.agreement() == Agreement::Same && one.replicas.len() == 3)
        };
        let compared = client.compare(Vec::new()).await;
        if compared.as_ref().is_ok_and(is_whole)
            && info(cluster.nodes[at].channel()).await.is_ok_and(|told| told.problems.is_empty())
        {
            return true;
        }
        if cluster.nodes[at].log().contains("a replica was rebuilt less than 60 minutes ago") {
            return false;
        }
        assert!(started.elapsed() < WAIT_MAX, "not mended: {compared:?}\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A page that was damaged is rebuilt with the replica that it belongs to. It stays in the engine's file, though,
/// where it would end whatever process writes beside it: the next start makes the engine anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_engine_is_made_anew_and_gets_what_it_lacks() {
    // sled looks at what it has not seen at a start before, and leaves out what is damaged, or does not open: then
    // there is nothing to make anew.
    for _ in 0..8 {
        if is_made_anew().await {
            return;
        }
    }
    panic!("never is anything made anew");
}

async fn is_made_anew() -> bool {
    let mut cluster = Cluster::start(3, "sled").await;
    let client = client(&cluster);
    let puts: Vec<_> = (0..LARGE_VALUES)
        .map(|n| rushkv::client::WriteOp::put(format!("large-{n}"), large_value(n)))
        .collect();
    for written in client.batch_write(&puts).await.unwrap() {
        written.unwrap();
    }
    for _ in 0..2 {
        assert_eq!(cluster.nodes[2].stop(), Some(0), "{}", cluster.nodes[2].log());
        cluster.nodes[2].start();
        cluster.serve().await;
    }
    assert_eq!(cluster.nodes[2].stop(), Some(0), "{}", cluster.nodes[2].log());
    damage_page(&client, 4, &cluster.nodes[2].data_dir).await;
    // What was damaged may be found by reading, and ends nothing then: one start finds that it can't be deleted, the
    // next one makes the engine anew.
    for start in 0..3 {
        if start > 0 {
            assert_eq!(cluster.nodes[2].stop(), Some(0), "{}", cluster.nodes[2].log());
        }
        if !is_mended(&mut cluster, &client, 2).await {
            return false;
        }
    }
    if !cluster.nodes[2].log().contains("the engine was made anew") {
        return false;
    }
    let old_engine = cluster.nodes[2].data_dir.join("engine.old");
    let started = Instant::now();
    while old_engine.exists() {
        assert!(started.elapsed() < WAIT_MAX, "{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let through_it = Client::connect(&cluster.nodes[2].address()).unwrap();
    for number in 0..LARGE_VALUES {
        let found = through_it.get(format!("large-{number}")).await.unwrap();
        assert!(found.is_some_and(|record| record.value == large_value(number)), "large-{number}");
    }
    true
}

/// Two copies: nobody can say which one is right. Nothing is thrown away, nothing is served as if it were right.
#[tokio::test(flavor = "multi_thread")]
async fn two_copies_that_differ_are_refused_and_kept() {
    differing(2).await;
}

/// A third node is to take the place of the one that leaves, and can't before that has left.
#[tokio::test(flavor = "multi_thread")]
async fn two_copies_that_differ_are_refused_until_one_has_left_and_a_third_comes_in() {
    differing(3).await;
}

async fn differing(nodes: usize) {
    let mut cluster =
        Cluster::start_with(Vec::new(), nodes, "fjall", |node| node.env("RUSHKV__CLUSTER__REPLICAS", "2"))
            .await;
    let client = client(&cluster);
    put(&cluster.nodes[0].channel(), "key", "written").await.unwrap();
    let partition = partition_of(&client, "key").await;
    let holders: Vec<usize> = (0..nodes)
        .filter(|at| partition.replicas.iter().any(|one| one.node == cluster.nodes[*at].name))
        .collect();
    let at = *holders.iter().find(|at| cluster.nodes[**at].name != partition.leader).unwrap();
    // The learner comes in a little later, and hears later still that it is committed.
    cluster.catches_up_in(at, |id| id == partition.id).await;
    let started = Instant::now();
    while Client::connect(&cluster.nodes[at].address()).unwrap().get_stale("key").await.unwrap().is_none() {
        assert!(started.elapsed() < WAIT_MAX, "it does not come\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    change_on_disk(&mut cluster, at, "fjall", "key", Forge::RecordAndHash);
    cluster.serve().await;
    compared(&cluster, &client, partition.id, |compared| compared.agreement() == Agreement::None).await;

    let read = client.get("key").await.unwrap_err();
    let written = client.put("key", "another").await.unwrap_err();
    assert_eq!((read.reason, written.reason), (Reason::Diverged, Reason::Diverged), "{read} {written}");
    let stale = |at: usize| Client::connect(&cluster.nodes[at].address()).unwrap();
    let mut values = Vec::new();
    for &at in &holders {
        values.push(stale(at).get_stale("key").await.unwrap().unwrap().value);
    }
    values.sort();
    assert_eq!(values, ["changed", "written"], "both copies are there");
    let told = info(cluster.nodes[at].channel()).await.unwrap();
    assert!(told.problems.iter().any(|problem| problem.reason == "DIVERGED"), "{told:?}");
    let after = partition_of(&client, "key").await;
    for node in holders.iter().map(|at| &*cluster.nodes[*at].name) {
        assert_eq!(replica(&after, node), replica(&partition, node), "nobody was replaced");
    }

    // The operator decides: the node whose copy is wrong starts over with nothing.
    let wrong = cluster.nodes[at].name.clone();
    client.leave(&wrong).await.unwrap();
    let kept: Vec<&str> =
        cluster.nodes.iter().map(|node| &*node.name).filter(|name| *name != wrong).collect();
    let other = (at + 1) % nodes;
    cluster.settles(other, &kept, |replicas| replicas == 8).await;
    let started = Instant::now();
    loop {
        // Alone, or beside a copy of it, it agrees with itself.
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
    for asked in [at, 1 - at] {
        let told = info(cluster.nodes[asked].channel()).await.unwrap();
        let of = |problem: &&v1::Problem| problem.nodes.contains(&cluster.nodes[at].name);
        let reasons: Vec<&str> = told.problems.iter().filter(of).map(|problem| &*problem.reason).collect();
        assert!(reasons.contains(&"DIVERGED"), "asked {asked}: {told:?}");
    }
    // A start does not look at the records, and does not forget.
    assert_eq!(cluster.nodes[at].stop(), Some(0));
    cluster.nodes[at].start();
    let started = Instant::now();
    loop {
        match client.put("key", "another").await {
            Err(error) if error.reason == Reason::Diverged => break,
            Err(error) if error.reason == Reason::Unavailable && started.elapsed() < WAIT_MAX => {}
            answered => panic!("{answered:?}\n{}", cluster.logs()),
        }
    }
    assert_eq!(client.get("key").await.unwrap_err().reason, Reason::Diverged);

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
