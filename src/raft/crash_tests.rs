//! Three replicas, of which one is killed while its disk stalls: what it holds then is what the next
//! start finds.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::cluster::*;
use super::stall_tests::*;
use super::*;
use crate::storage::Kind;
use crate::types::ReplicaId;

/// By replica. Dropped before the cluster, also when a test fails: a log that stalls can't be closed.
struct Disks(Vec<Stalling>);

impl Disks {
    fn stall(&self, id: u64, stalled: bool) {
        self.0[id as usize].stall(stalled);
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.0.iter().for_each(|disk| disk.stall(false));
    }
}

/// Three replicas whose logs can be held up.
async fn stalling(kind: Kind) -> (Cluster, Disks) {
    let mut cluster = Cluster::empty(kind);
    let disks = Disks((0..4).map(|_| Stalling::default()).collect());
    for id in 1..=3 {
        let dir = cluster.path(id);
        std::fs::create_dir_all(&dir).unwrap();
        cluster.start_on(id, open_stalling(&dir, kind, &disks.0[id as usize])).await;
    }
    cluster.form(3).await;
    (cluster, disks)
}

/// Rule 1: a leader that comes back at once without what it had submitted must not give the same log
/// ids away again.
async fn leader_killed_between_submit_and_fsync(kind: Kind) {
    let (mut cluster, disks) = stalling(kind).await;
    cluster.write("acknowledged ").await;
    cluster.converge("acknowledged ").await;
    let old = cluster.leader().await;
    let (one, other) = (old % 3 + 1, (old + 1) % 3 + 1);
    let term = cluster.group(old).status().term;
    let left = cluster.path(100 + old);
    copy(&cluster.path(old), &left);

    // The entry is on the disk of one follower, and on no other disk.
    disks.stall(old, true);
    cluster.net.cut_one_way(old, other);
    let before = cluster.nodes[&one].log().last();
    let submitted = tokio::spawn({
        let group = cluster.group(old).clone();
        async move { group.propose("submitted ".into(), soon()).await }
    });
    cluster.wait("the follower has it", |c| c.nodes[&one].log().last() > before).await;
    let id = cluster.nodes[&one].log().last().unwrap();
    assert_eq!(id.term, term);
    assert!(!submitted.is_finished(), "answered on one disk");
    cluster.kill(old);
    cluster.net.heal();
    cluster.start_in(old, &left).await;

    let led_again = cluster.group(old).status();
    assert!(led_again.role != Role::Leader || led_again.term > term, "{led_again:?}");
    cluster.write("after ").await;
    let leader = cluster.leader().await;
    assert!(cluster.group(leader).status().term > term);
    let space = cluster.group(leader).read(soon()).await.unwrap();
    let content = super::tests::content(&space);
    assert!(
        ["acknowledged after ", "acknowledged submitted after "].contains(&content.as_str()),
        "{content}"
    );
    cluster.converge(&content).await;
    // One log, the same everywhere.
    for index in 0..=cluster.group(leader).status().last_index {
        let ids: Vec<_> = cluster.nodes.values().map(|node| node.log().id_at(index)).collect();
        assert!(ids.iter().all(|id| *id == ids[0]), "{index}: {ids:?}");
    }
    disks.stall(old, false);
    submitted.abort();
    for killed in &cluster.killed {
        killed.group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_between_submit_and_fsync_on_fjall() {
    leader_killed_between_submit_and_fsync(Kind::Fjall).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_between_submit_and_fsync_on_sled() {
    leader_killed_between_submit_and_fsync(Kind::Sled).await;
}

async fn follower_killed_with_an_unfsynced_tail(kind: Kind) {
    let (mut cluster, disks) = stalling(kind).await;
    cluster.write("acknowledged ").await;
    cluster.converge("acknowledged ").await;
    let leader = cluster.leader().await;
    let (stalls, away) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.kill(away);
    let left = cluster.path(100 + stalls);
    copy(&cluster.path(stalls), &left);

    disks.stall(stalls, true);
    let before = cluster.nodes[&stalls].log().last();
    let submitted = tokio::spawn({
        let group = cluster.group(leader).clone();
        async move { group.propose("submitted ".into(), soon()).await }
    });
    cluster.wait("the follower has it in memory", |c| c.nodes[&stalls].log().last() > before).await;
    sleep(Duration::from_millis(100)).await;
    assert!(!submitted.is_finished(), "an entry counts that its follower has not fsynced");
    cluster.kill(stalls);
    cluster.start_in(stalls, &left).await;
    // Whoever leads now: if it is the same leader, the entry is committed, for it has it on its disk.
    cluster.write("after ").await;
    let outcome = submitted.await.unwrap();
    let now = cluster.leader().await;
    let space = cluster.group(now).read(soon()).await.unwrap();
    let content = super::tests::content(&space);
    match outcome {
        Ok(_) => assert_eq!(content, "acknowledged submitted after "),
        Err(error) => {
            assert!(matches!(error, ProposeError::Unknown(_)), "{error}");
            assert!(
                content == "acknowledged after " || content == "acknowledged submitted after ",
                "{content}"
            );
        }
    }
    cluster.converge(&content).await;
    disks.stall(stalls, false);
    for killed in &cluster.killed {
        killed.group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_killed_with_an_unfsynced_tail_on_fjall() {
    follower_killed_with_an_unfsynced_tail(Kind::Fjall).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_killed_with_an_unfsynced_tail_on_sled() {
    follower_killed_with_an_unfsynced_tail(Kind::Sled).await;
}

/// A crash after the engine flipped to a snapshot and before the log was purged up to it.
#[tokio::test(flavor = "multi_thread")]
async fn an_install_that_a_crash_broke_off_is_finished_at_the_next_start() {
    let mut cluster = Cluster::new(Kind::Fjall, 3).await;
    cluster.write("a ").await;
    cluster.converge("a ").await;
    let leader = cluster.leader().await;
    let away = leader % 3 + 1;
    cluster.stop(away).await;
    // Its log as it was before the snapshot came, under its engine as it was after.
    let left = cluster.path(100 + away);
    let lost = cluster.path(200 + away);
    for copied in [&left, &lost] {
        copy(&cluster.path(away).join("wal"), &copied.join("wal"));
    }
    cluster.group(leader).set_retention(super::retention::Retention {
        tail_bytes: 0,
        lag_bytes: 0,
        snapshot_bytes: 0,
    });
    cluster.write("b ").await;
    cluster.nodes[&leader].checkpoint().await;
    let applied = cluster.group(leader).status().applied;
    cluster.wait("the log goes", |c| c.nodes[&leader].log().purged() == applied).await;
    cluster.start(away).await;
    cluster.applies(away, "a b ").await;
    assert_eq!(cluster.nodes[&away].metrics.snapshots_installed.get(), 1);
    // Its leader has heard that it has the snapshot: it would send it once more.
    let at = applied.unwrap().index;
    cluster.wait("the leader hears", |c| c.group(leader).status().matched(ReplicaId(away)) >= at).await;
    cluster.stop(away).await;
    copy(&cluster.path(away).join("engine"), &left.join("engine"));

    cluster.start_in(away, &left).await;
    assert_eq!(cluster.nodes[&away].log().purged(), applied);
    cluster.write("c ").await;
    cluster.converge("a b c ").await;
    assert_eq!(cluster.nodes[&away].metrics.snapshots_installed.get(), 0, "it had the snapshot already");

    // Once more was applied, the same log is one that has lost entries.
    cluster.stop(away).await;
    copy(&left.join("engine"), &lost.join("engine"));
    let disk = super::tests::open(&lost, Kind::Fjall, false);
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let (store, log) = (disk.store.clone(), disk.wal.log(key(away)));
    let opened =
        Group::open(key(away), store, log, super::tests::Journal::default(), &metrics, Arc::new(NoPeers));
    let error = opened.await.unwrap_err().to_string();
    assert!(error.contains("the log is incomplete"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_replica_answers_nothing() {
    let mut cluster = Cluster::new(Kind::Fjall, 3).await;
    cluster.write("a ").await;
    cluster.converge("a ").await;
    let away = cluster.leader().await % 3 + 1;
    cluster.nodes[&away].disk.store.mark_damaged(key(away), "a test").unwrap();
    cluster.stop(away).await;
    cluster.start(away).await;
    let other = cluster.leader_but(away).await;
    let route = Route { group: GROUP, from: ReplicaId(other), to: ReplicaId(away) };
    let answer = cluster.group(away).receive(route, Class::Control, bytes::Bytes::new()).await;
    assert!(answer.unwrap_err().contains("a test"));
    cluster.write_but(away, "b ").await;
    cluster.applies(other, "a b ").await;
    assert_eq!(cluster.group(away).status().applied, None, "it runs");
}
