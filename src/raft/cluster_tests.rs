//! Three replicas: replication, failover, partitions.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::time::{Instant, sleep};

use super::cluster::*;
use super::codec::encode_vote;
use super::confirm::{Claim, Verdict, verdict};
use super::types::Vote;
use super::*;
use crate::storage::Kind;
use crate::types::ReplicaId;

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_replicate() {
    let cluster = Cluster::new(Kind::Memory, 3).await;
    cluster.net.set_delay(Duration::from_millis(20));
    let mut expected = String::new();
    for number in 0..5 {
        let command = format!("{number} ");
        cluster.write(&command).await;
        expected += &command;
    }
    cluster.converge(&expected).await;
    let leader = cluster.leader().await;
    let status = cluster.group(leader).status();
    assert_eq!(status.voters, [ReplicaId(1), ReplicaId(2), ReplicaId(3)]);
    assert!(status.membership.is_some() && status.membership_committed && !status.joint, "{status:?}");
    assert!(status.quorum_acked.unwrap() < Duration::from_secs(1), "{status:?}");
    assert_eq!(status.matched.len(), 2, "{status:?}");
    cluster.wait("heartbeats", |c| c.nodes[&leader].metrics.heartbeats_sent.get() > 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writes_are_pipelined_to_slow_followers() {
    let cluster = Cluster::new(Kind::Memory, 3).await;
    let leader = cluster.leader().await;
    cluster.net.set_delay(Duration::from_millis(50));
    let group = cluster.group(leader);
    let writes = (0..40).map(|number| async move {
        sleep(Duration::from_millis(5 * number)).await;
        group.propose(format!("{number} ").into(), soon()).await.unwrap();
    });
    futures_util::future::join_all(writes).await;
    let under_way = cluster.net.appends_max.load(std::sync::atomic::Ordering::SeqCst);
    assert!(under_way > 4, "only {under_way} to two followers");
}

async fn failover(kind: Kind) {
    let mut cluster = Cluster::new(kind, 3).await;
    cluster.write("before ").await;
    let old = cluster.leader().await;
    let mut changes = cluster.group(old % 3 + 1).changes();
    cluster.stop(old).await;
    let started = Instant::now();
    assert!(changes.changed().await);
    cluster.write("after ").await;
    assert!(started.elapsed() < Duration::from_secs(15), "failover took {:?}", started.elapsed());
    cluster.start(old).await;
    cluster.converge("before after ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_is_replaced_on_fjall() {
    failover(Kind::Fjall).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_is_replaced_on_sled() {
    failover(Kind::Sled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_majority_neither_commits_nor_answers_reads() {
    let cluster = Cluster::new(Kind::Memory, 3).await;
    cluster.write("before ").await;
    let old = cluster.leader().await;
    cluster.net.cut_off(old);
    let deadline = Instant::now() + Duration::from_secs(1);
    let (read, write) =
        tokio::join!(cluster.group(old).read(deadline), cluster.group(old).propose("lost ".into(), deadline));
    assert!(read.is_err());
    assert!(matches!(write, Err(ProposeError::Unknown(_) | ProposeError::NotLeader { .. })), "{write:?}");
    cluster.write_but(old, "after ").await;
    cluster.net.heal();
    cluster.converge("before after ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_confirmed_past_the_core() {
    let cluster = Cluster::new(Kind::Memory, 3).await;
    cluster.write("before ").await;
    let leader = cluster.leader().await;
    let unconfirmed = || cluster.nodes[&leader].metrics.read_rounds_unconfirmed.get();
    let before = unconfirmed();
    for _ in 0..20 {
        cluster.group(leader).read(soon()).await.unwrap();
    }
    assert_eq!(unconfirmed(), before);
    // One of the others is enough.
    cluster.net.cut_off(leader % 3 + 1);
    cluster.group(leader).read(soon()).await.unwrap();
    assert_eq!(unconfirmed(), before);
    cluster.net.cut_off((leader + 1) % 3 + 1);
    cluster.group(leader).read(Instant::now() + Duration::from_secs(1)).await.unwrap_err();
    assert!(unconfirmed() > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_replaced_is_not_confirmed() {
    let cluster = Cluster::new(Kind::Memory, 3).await;
    cluster.write("before ").await;
    let old = cluster.leader().await;
    let claim = |id: u64| {
        let group = cluster.group(id);
        let metrics = group.raft.metrics();
        let claim: Option<Claim> = Claim::of(key(id), &metrics.borrow_watched(), &group.log);
        drop(metrics);
        claim
    };
    let of_old = claim(old).expect("it leads, and has applied an entry of its term");
    assert!(claim(old % 3 + 1).is_none(), "a follower claims nothing");
    cluster.net.cut_off(old);
    cluster.write_but(old, "after ").await;
    assert!(claim(old).is_some(), "it does not know yet");
    let new = cluster.leader_but(old).await;
    assert_eq!(verdict(&cluster.group(new).log, &of_old.vote), Verdict::Superseded);
    cluster.group(old).read(Instant::now() + Duration::from_secs(1)).await.unwrap_err();
    cluster.net.heal();
    cluster.wait("it hears of the other", |_| claim(old).is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_followers_gave_newer_votes_is_not_read() {
    let cluster = Cluster::new(Kind::Memory, 3).await;
    cluster.write("before ").await;
    let leader = cluster.leader().await;
    cluster.group(leader).read(soon()).await.unwrap();
    let unconfirmed = || cluster.nodes[&leader].metrics.read_rounds_unconfirmed.get();
    let before = unconfirmed();
    // Behind the backs of their cores, which go on following: nothing but the votes says that it is over.
    for follower in (1..=3).filter(|id| *id != leader) {
        let newer = encode_vote(&Vote::new(cluster.group(leader).status().term + 1000, follower));
        cluster.group(follower).log.save_vote(newer, Box::new(drop)).await.unwrap();
    }
    let read = cluster.group(leader).read(soon()).await.map(|_| ());
    assert_eq!(read, Err(ReadError::NotLeader { leader: None }));
    assert_eq!(unconfirmed(), before, "it was told, not left without an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_cut_off_does_not_disturb_the_leader() {
    let cluster = Cluster::new(Kind::Memory, 3).await;
    let leader = cluster.leader().await;
    let away = leader % 3 + 1;
    // It hears nothing, and all hear it: the worst for a group without pre-vote.
    for other in (1..=3).filter(|other| *other != away) {
        cluster.net.cut_one_way(other, away);
    }
    let term = cluster.group(leader).status().term;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.group(away).status().term, term, "it stood for election");
    // Where this machine stood still for long, the other follower did, and rightly.
    let is_undisturbed = cluster.group(leader).status().term == term;
    cluster.net.heal();
    cluster.write("after ").await;
    cluster.converge("after ").await;
    if is_undisturbed {
        assert_eq!(cluster.group(away).status().term, term, "it stood for election");
        assert_eq!(cluster.leader().await, leader);
    }
    assert!(cluster.nodes.values().any(|node| node.metrics.votes_received.get() > 0), "nobody asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_names_the_leader() {
    let cluster = Cluster::new(Kind::Memory, 3).await;
    let leader = cluster.leader().await;
    let follower = leader % 3 + 1;
    cluster
        .wait("it knows the leader", |c| c.group(follower).status().leader == Some(ReplicaId(leader)))
        .await;
    let leader = Some(ReplicaId(leader));
    let read = cluster.group(follower).read(soon()).await.map(|_| ());
    assert_eq!(read, Err(ReadError::NotLeader { leader }));
    let written = cluster.group(follower).propose("x".into(), soon()).await;
    assert_eq!(written, Err(ProposeError::NotLeader { leader }));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_to_others_are_refused() {
    let cluster = Cluster::new(Kind::Memory, 1).await;
    let route = Route { group: GROUP, from: ReplicaId(2), to: ReplicaId(3) };
    let answer = cluster.group(1).receive(route, Class::Control, bytes::Bytes::new()).await;
    assert!(answer.unwrap_err().contains("this is g1/r1"));
    let route = Route { group: GROUP, from: ReplicaId(2), to: ReplicaId(1) };
    let answer = cluster.group(1).receive(route, Class::Control, bytes::Bytes::from_static(b"junk")).await;
    assert!(answer.unwrap_err().contains("malformed"));
    assert_eq!(cluster.nodes[&1].metrics.refused.get(), 2);
}
