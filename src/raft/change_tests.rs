//! Three replicas: members added and removed, leadership handed over, snapshots, crashes.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::cluster::*;
use super::retention::Retention;
use super::space::space_of;
use super::*;
use crate::storage::Kind;
use crate::types::{LogId, ReplicaId};

fn expect(cluster: &Cluster, leader: u64) -> LogId {
    cluster.group(leader).status().membership.unwrap()
}

fn ids(ids: &[u64]) -> Vec<ReplicaId> {
    ids.iter().copied().map(ReplicaId).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_added_promoted_and_removed() {
    let mut cluster = Cluster::new(Kind::Memory, 3).await;
    cluster.write("before ").await;
    let leader = cluster.leader().await;
    cluster.start(4).await;
    let group = cluster.group(leader).clone();
    let born = expect(&cluster, leader);

    let added = group.add_learner(ReplicaId(4), born, soon()).await.unwrap();
    assert_eq!(group.status().learners, ids(&[4]));
    let committed = |cluster: &Cluster| cluster.group(leader).status().membership_committed;
    cluster.wait("it is known to be committed", committed).await;
    assert_eq!(group.add_learner(ReplicaId(4), born, soon()).await, Ok(added), "asked again");
    let stale = group.add_learner(ReplicaId(5), born, soon()).await;
    assert_eq!(stale, Err(MembershipError::Changed { actual: Some(added) }));
    let unknown = group.change_voters(&ids(&[1, 2, 9]), Removed::Leave, added, soon()).await;
    assert!(matches!(unknown, Err(MembershipError::Invalid(_))), "{unknown:?}");
    cluster.applies(4, "before ").await;
    assert_eq!(cluster.group(4).status().role, Role::Learner);

    let away = leader % 3 + 1;
    let stays: Vec<u64> = (1..=4).filter(|id| *id != away).collect();
    let changed = group.change_voters(&ids(&stays), Removed::StayLearners, added, soon()).await.unwrap();
    let status = group.status();
    assert_eq!((&status.voters, &status.learners), (&ids(&stays), &ids(&[away])));
    assert!(!status.joint);
    cluster.wait("it is known to be committed", committed).await;
    let again = group.change_voters(&ids(&stays), Removed::StayLearners, added, soon()).await;
    assert_eq!(again, Ok(changed), "asked again");

    let removed = group.remove(ReplicaId(away), changed, soon()).await.unwrap();
    cluster.wait("it is known to be committed", committed).await;
    assert_eq!(group.remove(ReplicaId(away), changed, soon()).await, Ok(removed), "asked again");
    assert!(!group.status().is_member(ReplicaId(away)));
    let follower = stays.iter().copied().find(|id| *id != leader).unwrap();
    let elsewhere = cluster.group(follower).remove(ReplicaId(4), removed, soon()).await;
    assert_eq!(elsewhere, Err(MembershipError::NotLeader { leader: Some(ReplicaId(leader)) }));
    cluster.stop(away).await;
    cluster.write("after ").await;
    cluster.converge("before after ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_leaves_the_others_in_service() {
    let mut cluster = Cluster::new(Kind::Memory, 3).await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader).clone();
    group.remove(ReplicaId(leader), expect(&cluster, leader), soon()).await.unwrap();
    let started = Instant::now();
    cluster.write_but(leader, "after ").await;
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    drop(group);
    cluster.stop(leader).await;
    cluster.converge("after ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_without_a_majority_ends_by_its_deadline() {
    let cluster = Cluster::new(Kind::Memory, 3).await;
    let leader = cluster.leader().await;
    cluster.net.cut_off(leader);
    let deadline = Instant::now() + Duration::from_millis(300);
    let born = expect(&cluster, leader);
    let changed = cluster.group(leader).add_learner(ReplicaId(4), born, deadline).await;
    assert!(matches!(changed, Err(MembershipError::Unknown(_))), "{changed:?}");
    assert!(!cluster.group(leader).status().membership_committed);
    let again =
        cluster.group(leader).add_learner(ReplicaId(5), born, deadline + Duration::from_secs(9)).await;
    assert!(
        matches!(
            again,
            Err(MembershipError::Changed { .. }
                | MembershipError::InProgress
                | MembershipError::NotLeader { .. })
        ),
        "{again:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over() {
    let cluster = Cluster::new(Kind::Memory, 3).await;
    cluster.write("before ").await;
    let old = cluster.leader().await;
    let new = old % 3 + 1;
    cluster
        .wait("it answered", |c| c.group(old).status().answered.iter().any(|(id, _)| *id == ReplicaId(new)))
        .await;
    assert_eq!(cluster.group(old).transfer_leader(ReplicaId(new), soon()).await, Ok(true));
    assert_eq!(cluster.leader().await, new);
    cluster.write("after ").await;
    cluster.converge("before after ").await;

    cluster.wait("all answer", |c| c.group(new).status().answered.len() == 2).await;
    assert_eq!(cluster.group(new).step_down(soon()).await, Ok(true));
    assert_ne!(cluster.leader().await, new);
    let nobody = cluster.group(cluster.leader().await).transfer_leader(ReplicaId(9), soon()).await;
    assert!(matches!(nobody, Err(MembershipError::NotReady(_))), "{nobody:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_fails_leaves_no_leader_that_refuses_writes() {
    let cluster = Cluster::new(Kind::Memory, 3).await;
    cluster.write("before ").await;
    let old = cluster.leader().await;
    let new = old % 3 + 1;
    cluster.wait("it answered", |c| c.group(old).status().answered.len() == 2).await;
    // What the new leader says is lost: its candidacy, and that it is cut off.
    for other in 1..=3 {
        cluster.net.cut_one_way(new, other);
    }
    assert_eq!(cluster.group(old).transfer_leader(ReplicaId(new), soon()).await, Ok(false));
    let deadline = soon();
    cluster.net.heal();
    cluster.write("after ").await;
    assert!(Instant::now() < deadline);
    cluster.converge("before after ").await;
}

/// Keeps nothing that is not asked for.
const NONE: Retention = Retention { tail_bytes: 0, lag_bytes: 0, snapshot_bytes: 0 };

async fn behind_a_purge(kind: Kind) {
    let mut cluster = Cluster::new(kind, 3).await;
    cluster.write("a ").await;
    let leader = cluster.leader().await;
    let away = leader % 3 + 1;
    cluster.stop(away).await;
    cluster.write("b ").await;
    // It is still missed: what it lacks stays.
    cluster.nodes[&leader].checkpoint().await;
    let lacks = cluster.group(leader).status().matched(ReplicaId(away));
    sleep(Duration::from_millis(300)).await;
    let purged = cluster.nodes[&leader].log().purged();
    assert!(
        purged.is_none_or(|purged| purged.index <= lacks),
        "{purged:?}, and it lacks what follows {lacks}"
    );

    cluster.group(leader).set_retention(NONE);
    cluster.write("c ").await;
    cluster.nodes[&leader].checkpoint().await;
    let applied = cluster.group(leader).status().applied.unwrap();
    cluster.wait("the log goes", |c| c.nodes[&leader].log().purged() == Some(applied)).await;

    cluster.start(away).await;
    cluster.applies(away, "a b c ").await;
    let metrics = &cluster.nodes[&away].metrics;
    assert_eq!(metrics.snapshots_installed.get(), 1);
    assert!(metrics.snapshot_records_received.get() > 0);
    cluster
        .wait("its log begins after the snapshot", |c| c.nodes[&away].log().purged() >= Some(applied))
        .await;
    cluster.wait("the sender knows", |c| c.nodes[&leader].metrics.snapshots_sent.get() == 1).await;
    cluster.write("d ").await;
    cluster.converge("a b c d ").await;
    // What was installed survives a restart without a checkpoint.
    cluster.stop(away).await;
    cluster.start(away).await;
    cluster.converge("a b c d ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_a_purge_gets_a_snapshot_on_fjall() {
    behind_a_purge(Kind::Fjall).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_a_purge_gets_a_snapshot_on_sled() {
    behind_a_purge(Kind::Sled).await;
}

async fn broken_off(kind: Kind) {
    let mut cluster = Cluster::new(kind, 3).await;
    cluster.write("a ").await;
    let leader = cluster.leader().await;
    let away = leader % 3 + 1;
    cluster.stop(away).await;
    let bulk = format!("#{}", "x".repeat(200_000));
    for _ in 0..12 {
        cluster.write(&bulk).await;
    }
    cluster.group(leader).set_retention(NONE);
    cluster.nodes[&leader].checkpoint().await;
    let applied = cluster.group(leader).status().applied;
    cluster.wait("the log goes", |c| c.nodes[&leader].log().purged() == applied).await;

    // Begin and two pieces pass.
    cluster.net.let_snapshot_parts_pass(Some(3));
    cluster.start(away).await;
    cluster.wait("two pieces came", |c| c.nodes[&away].metrics.snapshot_records_received.get() >= 4).await;
    cluster.write("b ").await;
    assert_eq!(cluster.nodes[&away].metrics.snapshots_installed.get(), 0);
    cluster.net.let_snapshot_parts_pass(None);
    cluster.applies(away, "a b ").await;
    let metrics = &cluster.nodes[&away].metrics;
    assert_eq!((metrics.snapshots_installed.get(), metrics.snapshots_abandoned.get()), (1, 1));
    // What was broken off is deleted: only the space in use is left.
    let engine = cluster.nodes[&away].disk.store.engine().clone();
    cluster.nodes[&away].checkpoint().await;
    let deadline = soon();
    loop {
        let view = engine.view().unwrap();
        let range = crate::storage::prefix_range(b"d");
        let keys: Vec<_> =
            view.scan(range, crate::storage::Order::Ascending).map(|pair| pair.unwrap().0).collect();
        let spaces: std::collections::BTreeSet<_> = keys.iter().map(|key| space_of(key)).collect();
        if spaces.len() == 1 {
            assert_eq!(keys.len(), 13);
            return;
        }
        assert!(Instant::now() < deadline, "{} spaces", spaces.len());
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_broken_off_is_sent_again_on_fjall() {
    broken_off(Kind::Fjall).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_broken_off_is_sent_again_on_sled() {
    broken_off(Kind::Sled).await;
}
