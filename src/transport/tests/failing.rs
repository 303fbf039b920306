//! Connections that break, stall or lead elsewhere.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::super::Options;
use super::support::*;
use crate::raft::{CarryError, Class};
use crate::types::NodeId;

/// Times so short that a test need not wait for them, where they are not its subject.
fn quick() -> Options {
    Options { backoff_max: Duration::from_millis(100), ..Options::default() }
}

/// Sends until something arrives; says how long it took.
async fn until_reached(from: &Host, to: u32, class: Class) -> Duration {
    let began = Instant::now();
    while soon(from.send(to, class, number(u64::MAX, 8))).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(10), "not reached");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    began.elapsed()
}

#[tokio::test]
async fn a_broken_connection_fails_those_who_wait_and_is_made_again() {
    let (one, two) = (Host::start(1, quick()), Host::start(2, quick()));
    let proxy = Proxy::start(two.address).await;
    one.dials(&[(2, proxy.address)]);
    one.connected(2).await;
    two.inbox.hold(Class::Append);
    let calls: Vec<_> = (0..10).map(|i| one.send(2, Class::Append, number(i, 8))).collect();
    until("they have arrived", || two.inbox.count() == 10).await;
    proxy.cut();
    for outcome in soon(join_all(calls)).await {
        assert!(matches!(outcome, Err(CarryError::Broken(_))), "{outcome:?}");
    }
    two.inbox.release();
    until_reached(&one, 2, Class::Append).await;
    assert!(one.of("connects_total", 2, "append").unwrap() >= 2.0);
    until("the old streams are gone", || two.transport.incoming.len() <= 3).await;
}

#[tokio::test]
async fn what_was_not_sent_is_unreachable_and_what_was_is_broken() {
    let (one, two) = (Host::start(1, quick()), Host::start(2, quick()));
    let proxy = Proxy::start(two.address).await;
    one.dials(&[(2, proxy.address)]);
    one.connected(2).await;
    proxy.stall();
    // Far more than HTTP/2's window of about 1 MiB.
    let calls: Vec<_> = (0..200).map(|i| one.send(2, Class::Append, number(i, 100 * 1024))).collect();
    until("the window is full", || one.of("sent_messages_total", 2, "append").unwrap() > 0.0).await;
    proxy.heal();
    let outcomes = soon(join_all(calls)).await;
    let broken = outcomes.iter().take_while(|outcome| matches!(outcome, Err(CarryError::Broken(_)))).count();
    let unreachable = outcomes[broken..]
        .iter()
        .filter(|outcome| matches!(outcome, Err(CarryError::Unreachable(_))))
        .count();
    assert!(broken > 0 && unreachable > 0, "{broken} broken, {unreachable} unreachable");
    assert_eq!(broken + unreachable, 200);
    until_reached(&one, 2, Class::Append).await;
    let arrived = two.inbox.numbers(Class::Append);
    let first = arrived.iter().position(|number| *number == u64::MAX).expect("the last one has arrived");
    assert!(arrived[first..].iter().all(|number| *number == u64::MAX), "none came after a newer one");
}

#[tokio::test]
async fn messages_to_a_peer_that_is_down_fail_at_once() {
    let (one, two) = pair(quick()).await;
    two.kill();
    until("it is noticed", || one.of("connected", 2, "control") == Some(0.0)).await;
    for _ in 0..100 {
        let outcome = one.send(2, Class::Control, number(0, 8)).now_or_never();
        refused_with(outcome.expect("it is known at once"));
    }
}

#[tokio::test]
async fn a_restarted_peer_is_reached_at_once_by_whoever_wants_to_send() {
    // A backoff so long that only the wish to send can bring an attempt.
    let long = Duration::from_secs(60);
    let options = Options { backoff_min: long, backoff_max: long, ..Options::default() };
    let (one, two) = pair(options).await;
    let address = two.kill();
    until("it is noticed", || one.of("connected", 2, "control") == Some(0.0)).await;
    let two = Host::start_at(2, options, address);
    let took = until_reached(&one, 2, Class::Control).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    drop(two);
}

#[tokio::test]
async fn it_is_told_that_a_peer_was_reached_again() {
    let options = Options::default();
    let (one, two) = pair(options).await;
    let reached = one.transport.reached();
    let times = || reached.borrow().get(&NodeId(2)).copied();
    until("the first connection is told", || times() == Some(1)).await;
    let address = two.kill();
    until("it is noticed", || one.of("connected", 2, "append") == Some(0.0)).await;
    assert_eq!(times(), Some(1));
    let _two = Host::start_at(2, options, address);
    until("the second is told", || times() == Some(2)).await;
}

#[tokio::test]
async fn a_peer_that_dials_is_dialled_back() {
    let long = Duration::from_secs(60);
    let options = Options { backoff_min: long, backoff_max: long, ..Options::default() };
    let (one, two) = pair(options).await;
    let address = two.kill();
    until("it is noticed", || one.of("connected", 2, "append") == Some(0.0)).await;
    let two = Host::start_at(2, options, address);
    two.dials(&[(1, one.address)]);
    one.connected(2).await;
}

#[tokio::test]
async fn a_peer_that_answers_nothing_is_given_up() {
    let stall = Duration::from_millis(200);
    let options = Options { stall: [stall; 3], ..quick() };
    let (one, two) = pair(options).await;
    two.inbox.hold(Class::Control);
    let began = Instant::now();
    let outcome = soon(one.send(2, Class::Control, number(0, 8))).await;
    assert!(matches!(&outcome, Err(CarryError::Broken(why)) if why.contains("no answer for")), "{outcome:?}");
    assert!(began.elapsed() >= stall);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(two.inbox.count() == 1, "it was the answer that was missing");
}

#[tokio::test]
async fn a_peer_that_works_slowly_is_not_given_up_and_an_idle_one_neither() {
    let stall = Duration::from_millis(400);
    let options = Options { stall: [stall; 3], ..quick() };
    let (one, two) = pair(options).await;
    let began = Instant::now();
    while began.elapsed() < 3 * stall {
        assert!(soon(one.send(2, Class::Control, number(0, 8))).await.is_ok());
        tokio::time::sleep(stall / 8).await;
    }
    assert_eq!(one.of("connects_total", 2, "control"), Some(1.0));
    assert_eq!(one.of("connects_total", 2, "append"), Some(1.0));
    drop(two);
}

#[tokio::test]
async fn a_peer_that_has_vanished_is_noticed_by_its_silence() {
    let options = Options {
        keepalive_interval: Duration::from_millis(100),
        keepalive_timeout: Duration::from_millis(200),
        ..quick()
    };
    let (one, two) = (Host::start(1, options), Host::start(2, options));
    let proxy = Proxy::start(two.address).await;
    one.dials(&[(2, proxy.address)]);
    one.connected(2).await;
    proxy.stall();
    let began = Instant::now();
    let calls: Vec<_> = (0..100).map(|i| one.send(2, Class::Append, number(i, 100 * 1024))).collect();
    let outcomes = soon(join_all(calls)).await;
    assert!(outcomes.iter().all(Result::is_err));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    // Without traffic too.
    until("the idle connection is given up", || one.of("connected", 2, "control") == Some(0.0)).await;
    proxy.heal();
    until_reached(&one, 2, Class::Append).await;
}

#[tokio::test]
async fn a_new_address_is_dialled_and_the_old_connection_ends() {
    let (one, two) = pair(quick()).await;
    assert!(soon(one.send(2, Class::Append, number(1, 8))).await.is_ok());
    two.inbox.hold(Class::Append);
    let waiting = one.send(2, Class::Append, number(2, 8));
    until("it has arrived", || two.inbox.count() == 2).await;
    let moved = Host::start(2, quick());
    one.dials(&[(2, moved.address)]);
    let outcome = soon(waiting).await;
    assert!(matches!(&outcome, Err(CarryError::Broken(why)) if why.contains("address")), "{outcome:?}");
    one.connected(2).await;
    until_reached(&one, 2, Class::Append).await;
    assert_eq!(moved.inbox.count(), 1);
    until("the old connections are gone", || two.transport.incoming.len() == 0).await;
    assert_eq!(two.inbox.count(), 2);
}

#[tokio::test]
async fn a_peer_that_leaves_takes_its_connections_and_series_along() {
    let (one, two) = pair(quick()).await;
    assert!(soon(one.send(2, Class::Append, number(1, 8))).await.is_ok());
    assert_eq!(one.of("sent_messages_total", 2, "append"), Some(1.0));
    one.dials_nobody();
    until("its connections are gone", || two.transport.incoming.len() == 0).await;
    assert_eq!(one.metric("connected", &[("peer", "2")]), None);
    assert_eq!(one.metric("sent_messages_total", &[("peer", "2")]), None);
    let why = refused_with(one.send(2, Class::Append, number(1, 8)).await);
    assert!(why.contains("n2 is no peer"), "{why}");
}

#[tokio::test]
async fn a_node_that_becomes_another_one_shakes_hands_anew() {
    let (one, two) = pair(quick()).await;
    two.dials(&[(1, one.address)]);
    two.connected(1).await;
    one.transport.set_local("cluster-2", NodeId(1));
    until("neither reaches the other", || {
        one.of("connected", 2, "control") == Some(0.0) && two.of("connected", 1, "control") == Some(0.0)
    })
    .await;
    until("the refusal says why", || {
        let outcome = one.send(2, Class::Control, number(1, 8)).now_or_never();
        matches!(outcome, Some(Err(CarryError::Unreachable(why)))
            if why.contains("n1 is in cluster cluster-2, n2 in cluster-1"))
    })
    .await;
    assert!(two.metric("handshakes_refused_total", &[("reason", "cluster")]).unwrap() > 0.0);
    two.transport.set_local("cluster-2", NodeId(2));
    until_reached(&one, 2, Class::Control).await;
    until_reached(&two, 1, Class::Control).await;
}
