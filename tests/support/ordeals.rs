//! Faults in which more happens than a blow: each step of them is held to what it should do.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rushkv::error::{Happened, Reason, from_status};
use rushkv::proto::v1::DeleteRequest;
use rushkv::proto::v1::cluster_client::ClusterClient;
use rushkv::proto::v1::kv_client::KvClient;
use rushkv::proto::v1::{ListNodesRequest, ListPartitionsRequest, ReplicaRole};

use crate::cluster::{WAIT_MAX, put};
use crate::faults::ends_by_itself;
use crate::rig::{DISK_RESERVE, DISK_RESERVE_MIB, NODES, Rig};

const HOUR: Duration = Duration::from_secs(3600);

/// How long a state is kept that nodes are to bear.
const BORNE_FOR: Duration = Duration::from_secs(2);

/// Less than this, and a file system has no room for its own needs.
const FULL_BYTES: u64 = 1 << 20;

/// So many that the others let go what the one that is away lacks: a log is let go at the checkpoints, which are 64 MiB
/// of log apart, and but 32 MiB of it are kept for one who lags. Two checkpoints, and a little more.
const BULKS: usize = 144 * 2;

/// The same for one who was sent a snapshot lately: for a minute after it 256 MiB are kept.
const BULKS_AFTER_SNAPSHOT: usize = (144 + 224) * 2;

/// That minute, and the time that the snapshot took.
const LATELY: Duration = Duration::from_secs(90);

/// All of one partition, as they share what is in braces.
fn bulk_key(number: usize) -> String {
    format!("{{bulk}}-{number}")
}

fn bulk() -> String {
    "x".repeat(512 * 1024)
}

/// The disk of a node is short of room: what it leads takes no puts; and no deletes either, and it takes nothing
/// from other leaders, if less than half of the reserve is left. All else goes on.
pub async fn low_disk(rig: &Rig<'_>, node: usize, quarters: u64) {
    let name = &rig.cluster.nodes[node].name;
    let channel = rig.cluster.nodes[node].channel();
    let left = (DISK_RESERVE_MIB << 20) / 4 * quarters;
    // A node whose disk is low is given nothing to lead.
    rig.cluster.leads_something(node).await;
    rig.disks[node].fill(left);
    let started = Instant::now();
    // Leaders move now and then: what is asked of one may meet another.
    loop {
        let (own, others): (Vec<_>, Vec<_>) =
            rig.led().await.into_iter().partition(|(_, leader)| leader == name);
        if own.is_empty() {
            // What it led moved away, and would not come back.
            rig.disks[node].make_room();
            rig.cluster.leads_something(node).await;
            rig.disks[node].fill(left);
            assert!(started.elapsed() < WAIT_MAX, "it never keeps what it leads\n{}", rig.cluster.logs());
            continue;
        }
        let mut wrong = Vec::new();
        for (key, _) in &own {
            let written = put(&channel, key, "x").await;
            let delete = DeleteRequest { key: key.clone().into(), precondition: None };
            let deleted = KvClient::new(channel.clone()).delete(delete).await.map(drop);
            let is_right =
                if quarters >= 2 { deleted.is_ok() } else { deleted.as_ref().is_err_and(is_refused) };
            if !written.as_ref().is_err_and(is_refused) || !is_right {
                wrong.push(format!("{key}, which it leads: {written:?}, {deleted:?}"));
            }
        }
        for (key, leader) in &others {
            if let Err(status) = put(&channel, key, "x").await {
                wrong.push(format!("{key} of {leader}: {status}"));
            }
        }
        if wrong.is_empty() {
            break;
        }
        assert!(started.elapsed() < WAIT_MAX, "{wrong:?}\n{}", rig.cluster.logs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(BORNE_FOR).await;
    rig.disks[node].make_room();
}

/// For want of room, and surely.
fn is_refused(status: &tonic::Status) -> bool {
    let refusal = from_status(status, Happened::Unknown);
    refusal.reason == Reason::DiskFull && refusal.happened() == Happened::No
}

/// A node that keeps nothing in reserve runs out of room: it ends, and goes on once there is room.
pub async fn no_space(rig: &mut Rig<'_>, node: usize) {
    let victim = &mut rig.cluster.nodes[node];
    assert_eq!(victim.stop(), Some(0), "{}", victim.log());
    victim.set(DISK_RESERVE, Some("0"));
    victim.start();
    victim.serves().await;
    let writer = rig.cluster.nodes[(node + 1) % NODES].channel();
    let writing = tokio::spawn(async move {
        for number in 0.. {
            // It is led by the one that runs out of room, perhaps.
            let _ = put(&writer, &bulk_key(number % 64), &bulk()).await;
        }
    });
    let (victim, disk) = (&mut rig.cluster.nodes[node], &rig.disks[node]);
    ends_by_itself(victim, || disk.fill(FULL_BYTES), &["No space left on device"]);
    writing.abort();
    disk.make_room();
    victim.set(DISK_RESERVE, Some(&format!("{DISK_RESERVE_MIB}MiB")));
    victim.start();
}

/// The clock of a node jumps, and the node is started again under a clock that is wrong.
pub async fn clock_jump(rig: &mut Rig<'_>, node: usize, hours: i64) {
    rig.set_clock(node, hours);
    tokio::time::sleep(BORNE_FOR).await;
    rig.answers().await;
    rig.cluster.nodes[node].kill();
    rig.cluster.nodes[node].start();
    rig.cluster.serve().await;
    let mut client = ClusterClient::new(rig.cluster.nodes[node].channel());
    let told = client.list_nodes(ListNodesRequest {}).await.unwrap().into_inner();
    let itself = told.nodes.iter().find(|one| one.name == rig.cluster.nodes[node].name).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let off = now.abs_diff(Duration::from_millis(itself.started_at_unix_ms));
    assert!(off.abs_diff(HOUR) < WAIT_MAX, "the clock did not jump: {off:?}");
    tokio::time::sleep(BORNE_FOR).await;
    rig.set_clock(node, 0);
}

/// Of a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    All,
    Log,
    Engine,
}

/// A node loses what it has, or a part of it. It must not come back as who it was; once the operator has said that
/// its old self has left, it joins anew.
pub async fn wiped(rig: &mut Rig<'_>, node: usize, lost: Lost) {
    let victim = &mut rig.cluster.nodes[node];
    victim.kill();
    let said_before = victim.log().len();
    let (gone, why) = match lost {
        Lost::All => (victim.data_dir.clone(), "with another data directory"),
        Lost::Log => (victim.data_dir.join("wal"), "an older copy has forgotten"),
        Lost::Engine => (victim.data_dir.join("engine"), "has lost its engine folder"),
    };
    std::fs::remove_dir_all(gone).unwrap();
    victim.start();
    let code = tokio::task::block_in_place(|| victim.wait_end(WAIT_MAX));
    let log = victim.log();
    assert_eq!(code, Some(1), "{log}");
    assert!(log[said_before..].contains(why), "it does not say {why:?}:\n{log}");
    std::fs::remove_dir_all(&victim.data_dir).unwrap();
    replaced(rig, node).await;
}

/// The operator lets a node leave that has ended and has nothing any more, and starts it: it joins anew.
pub async fn replaced(rig: &mut Rig<'_>, node: usize) {
    let other = (node + 1) % NODES;
    let name = rig.cluster.nodes[node].name.clone();
    let address = rig.cluster.nodes[other].address();
    let leave = Command::new(env!("CARGO_BIN_EXE_rushkvctl"))
        .args(["-s", &address, "cluster", "leave", &name, "--yes"])
        .output()
        .unwrap();
    assert!(leave.status.success(), "{leave:?}\n{}", rig.cluster.logs());
    let stay: Vec<String> =
        rig.cluster.nodes.iter().map(|node| node.name.clone()).filter(|one| *one != name).collect();
    let stay: Vec<&str> = stay.iter().map(String::as_str).collect();
    rig.cluster.settles(other, &stay, |_| true).await;
    rig.cluster.nodes[node].start();
}

/// After [`wiped`]: waits until everything has three voters again. Two members acknowledge on one copy, and before
/// the next one loses its disk there must be more.
pub async fn is_whole(rig: &Rig<'_>) {
    let names: Vec<String> = (1..=NODES).map(|number| format!("node{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let started = Instant::now();
    rig.cluster.settles(0, &names, |_| true).await;
    let votes = |role| matches!(role, ReplicaRole::Leader | ReplicaRole::Follower);
    loop {
        let mut client = ClusterClient::new(rig.cluster.nodes[0].channel());
        let nodes = client.list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes;
        let told = client.list_partitions(ListPartitionsRequest {}).await.unwrap().into_inner();
        let partitions =
            told.partitions.iter().map(|one| one.replicas.iter().filter(|it| votes(it.role())).count());
        let group0 = nodes.iter().filter(|node| votes(node.group0_role())).count();
        if partitions.chain([group0]).all(|voters| voters == NODES) {
            return;
        }
        assert!(started.elapsed() < WAIT_MAX, "too few voters: {told:?} {nodes:?}\n{}", rig.cluster.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A node is away until the others' logs do not reach back to it any more, is killed in the middle of the
/// snapshot that it gets, and gets it again.
pub async fn away(rig: &mut Rig<'_>, node: usize) {
    rig.cluster.nodes[node].kill();
    let channel = rig.cluster.nodes[(node + 1) % NODES].channel();
    let lately = rig.snapshots[node].is_some_and(|at| at.elapsed() < LATELY);
    for number in 0..if lately { BULKS_AFTER_SNAPSHOT } else { BULKS } {
        let started = Instant::now();
        // Its leader may just have been killed.
        while let Err(status) = put(&channel, &bulk_key(number % 64), &bulk()).await {
            assert!(started.elapsed() < WAIT_MAX, "{status}\n{}", rig.cluster.logs());
        }
    }

    let victim = &mut rig.cluster.nodes[node];
    // It dies when the first piece has come.
    victim.set("RUSHKV_CRASH_AT", Some("snapshot.piece-written"));
    victim.start();
    let code = tokio::task::block_in_place(|| victim.wait_end(WAIT_MAX));
    assert_eq!(code, None, "killed\n{}", victim.log());
    rig.snapshots[node] = Some(Instant::now());
    victim.set("RUSHKV_CRASH_AT", None);
    victim.start();
}

/// After [`away`]: waits until the snapshot was installed.
pub async fn has_caught_up(rig: &Rig<'_>, node: usize) {
    rig.cluster.catches_up(node).await;
    let installed = rig.cluster.nodes[node].sample("rushkv_raft_snapshots_installed_total").await;
    assert!(installed.is_some_and(|count| count > 0), "it got no snapshot: {installed:?}");
}
