//! What a carrier owes while all goes well, or is merely slow.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::super::handshake::{CLASSES, name};
use super::super::{Metrics, Options, Transport};
use super::support::*;
use crate::limits::{PEER_FRAME_BYTES, PEER_FRAME_MESSAGES_MAX, PEER_MESSAGE_BYTES_MAX};
use crate::raft::{Carrier as _, CarryError, Class};
use crate::types::NodeId;

#[tokio::test]
async fn messages_arrive_in_order_each_with_its_answer_and_many_in_a_frame() {
    let (one, two) = pair(Options::default()).await;
    for class in CLASSES {
        let calls: Vec<_> = (0..5000).map(|i| one.send(2, class, number(i, 100))).collect();
        let answers = soon(join_all(calls)).await;
        for (i, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer, Ok(number(i as u64, 100)));
        }
        assert_eq!(two.inbox.numbers(class), (0..5000).collect::<Vec<u64>>());
        let sent = |what| one.of(&format!("sent_{what}_total"), 2, name(class)).unwrap();
        assert_eq!((sent("messages"), sent("bytes")), (5000.0, 500_000.0));
        assert!(sent("frames") < 1000.0, "{} frames", sent("frames"));
        assert!(sent("frames") >= (5000 / PEER_FRAME_MESSAGES_MAX) as f64);
    }
    let (route, class, _) = two.inbox.received.lock().unwrap()[0].clone();
    assert_eq!((route, class), (super::support::route(1, 2, 1), Class::Control));
    // Node 1 is no peer of node 2.
    let received = two.metric("received_messages_total", &[("peer", "unknown"), ("class", "append")]);
    assert_eq!(received, Some(5000.0));
}

#[tokio::test]
async fn what_is_sent_while_the_first_connection_is_made_waits_for_it() {
    let options = Options { first_messages_max: 3, ..Options::default() };
    let (one, two) = (Host::start(1, options), Host::start(2, options));
    one.dials(&[(2, two.address)]);
    let calls: Vec<_> = (0..4).map(|i| one.send(2, Class::Append, number(i, 8))).collect();
    let answers = soon(join_all(calls)).await;
    for (i, answer) in answers[..3].iter().enumerate() {
        assert_eq!(*answer, Ok(number(i as u64, 8)));
    }
    let why = refused_with(answers[3].clone());
    assert!(why.contains("full: 3 messages"), "{why}");
}

#[tokio::test]
async fn a_refusal_reaches_its_caller_and_the_connection_stays() {
    let (one, two) = pair(Options::default()).await;
    two.inbox.refuse.store(true, Ordering::SeqCst);
    let answer = soon(one.send(2, Class::Control, number(1, 8))).await;
    assert_eq!(answer, Err(CarryError::Refused("no replica r8589934593".to_string())));
    two.inbox.refuse.store(false, Ordering::SeqCst);
    assert!(soon(one.send(2, Class::Control, number(1, 8))).await.is_ok());
    assert_eq!(one.of("connects_total", 2, "control"), Some(1.0));
}

#[tokio::test]
async fn the_largest_message_passes_both_ways_and_a_larger_one_does_not() {
    let (one, two) = pair(Options::default()).await;
    let largest = Bytes::from(vec![7; PEER_MESSAGE_BYTES_MAX]);
    // A frame that is nearly full already gets it too.
    let nearly = Bytes::from(vec![1; PEER_FRAME_BYTES - 1]);
    let calls = [nearly, largest.clone()].map(|body| one.send(2, Class::Append, body));
    let answers = soon(join_all(calls)).await;
    assert_eq!(answers[1].as_ref().map(Bytes::len), Ok(PEER_MESSAGE_BYTES_MAX));
    let larger = Bytes::from(vec![7; PEER_MESSAGE_BYTES_MAX + 1]);
    let error = one.send(2, Class::Append, larger).await.unwrap_err();
    assert!(matches!(&error, CarryError::Refused(why) if why.contains("limit")), "{error}");
    two.inbox.answer_bytes.store(PEER_MESSAGE_BYTES_MAX + 1, Ordering::SeqCst);
    let error = soon(one.send(2, Class::Append, number(1, 8))).await.unwrap_err();
    assert!(matches!(&error, CarryError::Refused(why) if why.contains("limit")), "{error}");
    assert_eq!(one.of("connects_total", 2, "append"), Some(1.0), "none of it broke the connection");
}

#[tokio::test]
async fn a_slow_inbox_is_not_flooded_and_gets_everything_in_the_end() {
    const MIB: usize = 1024 * 1024;
    let options = Options { in_flight_bytes_max: [MIB; 3], ..Options::default() };
    let (one, two) = pair(options).await;
    two.inbox.hold(Class::Append);
    let calls: Vec<_> = (0..400).map(|i| one.send(2, Class::Append, number(i, 64 * 1024))).collect();
    standstill("no more arrives", || two.inbox.count() as u64).await;
    assert!(two.inbox.held_bytes_most.load(Ordering::SeqCst) >= MIB);
    two.inbox.release();
    for answer in soon(join_all(calls)).await {
        assert!(answer.is_ok());
    }
    assert_eq!(two.inbox.numbers(Class::Append), (0..400).collect::<Vec<u64>>());
    let most = two.inbox.held_bytes_most.load(Ordering::SeqCst);
    assert!(most <= 2 * MIB + 64 * 1024, "{most} bytes were under way: more than the bound and a frame");
}

#[tokio::test]
async fn the_number_of_messages_under_way_is_bounded_too() {
    let options = Options { in_flight_messages_max: 50, ..Options::default() };
    let (one, two) = pair(options).await;
    two.inbox.hold(Class::Control);
    let calls: Vec<_> = (0..8000).map(|i| one.send(2, Class::Control, number(i, 8))).collect();
    standstill("no more arrives", || two.inbox.count() as u64).await;
    two.inbox.release();
    assert!(soon(join_all(calls)).await.iter().all(Result::is_ok));
    let most = two.inbox.held_most.load(Ordering::SeqCst);
    assert!(most <= 50 + PEER_FRAME_MESSAGES_MAX, "{most}");
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_recovers() {
    let options = Options {
        queue_messages_max: 10,
        queue_bytes_max: [512 * 1024; 3],
        in_flight_messages_max: 1,
        ..Options::default()
    };
    let (one, two) = pair(options).await;
    two.inbox.hold(Class::Snapshot);
    let mut calls = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    // What the connection's windows hold is not in the queue any more.
    let why = loop {
        assert!(Instant::now() < deadline, "the queue never gets full");
        let mut call = one.send(2, Class::Snapshot, number(calls.len() as u64, 100 * 1024));
        match (&mut call).now_or_never() {
            Some(outcome) => break refused_with(outcome),
            None => calls.push(call),
        }
        tokio::task::yield_now().await;
    };
    assert!(why.contains("queue is full"), "{why}");
    assert!(one.of("queued_messages", 2, "snapshot").unwrap() >= 4.0);
    assert_eq!(one.of("unsent_messages_total", 2, "snapshot"), Some(1.0));
    two.inbox.release();
    assert!(soon(join_all(calls)).await.iter().all(Result::is_ok));
    assert_eq!(one.of("queued_messages", 2, "snapshot"), Some(0.0));
    assert!(soon(one.send(2, Class::Snapshot, number(0, 8))).await.is_ok());
}

#[tokio::test]
async fn heartbeats_pass_while_snapshots_are_stuck() {
    let (one, two) = pair(Options::default()).await;
    two.inbox.hold(Class::Snapshot);
    let mut stuck = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while stuck.len() < 1000 && Instant::now() < deadline {
        let mut call = one.send(2, Class::Snapshot, number(0, 512 * 1024));
        if (&mut call).now_or_never().is_some() {
            break;
        }
        stuck.push(call);
        tokio::task::yield_now().await;
    }
    assert!(one.of("unsent_messages_total", 2, "snapshot").unwrap() >= 1.0, "the queue is full");
    for i in 0..20 {
        let began = Instant::now();
        assert!(soon(one.send(2, Class::Control, number(i, 8))).await.is_ok());
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn callers_that_gave_up_are_forgotten_and_their_messages_still_arrive() {
    let (one, two) = pair(Options { callers_max: 10, ..Options::default() }).await;
    two.inbox.hold(Class::Append);
    for round in 0..5 {
        let calls: Vec<_> = (0..10).map(|i| one.send(2, Class::Append, number(round * 10 + i, 8))).collect();
        let why = refused_with(one.send(2, Class::Append, number(0, 8)).await);
        assert!(why.contains("10 messages are unanswered"), "{why}");
        drop(calls);
    }
    until("all have arrived", || two.inbox.count() == 50).await;
    let link = one.transport.peers()[&NodeId(2)].links[1].clone();
    assert_eq!(link.waiting(), (0, 0));
    two.inbox.release();
    assert!(soon(one.send(2, Class::Append, number(50, 8))).await.is_ok());
    assert_eq!(two.inbox.numbers(Class::Append), (0..51).collect::<Vec<u64>>());
}

#[tokio::test]
async fn a_node_without_a_cluster_sends_and_takes_nothing_until_it_has_one() {
    let two = Host::start(2, Options::default());
    let transport = Transport::new(Options::default(), Metrics::unregistered());
    transport.set_peers([(NodeId(2), two.address.to_string()), (NodeId(1), two.address.to_string())].into());
    let send = || transport.send(route(1, 2, 1), Class::Control, number(1, 8));
    let why = refused_with(send().await);
    assert!(why.contains("no cluster yet"), "{why}");
    transport.set_local(CLUSTER, NodeId(1));
    let deadline = Instant::now() + Duration::from_secs(10);
    while soon(send()).await.is_err() {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    let own = refused_with(transport.send(route(1, 1, 1), Class::Control, number(1, 8)).await);
    assert!(own.contains("n1 is no peer"), "a node is no peer of its own: {own}");
    assert!(transport.channel(NodeId(2)).is_some() && transport.channel(NodeId(1)).is_none());
    transport.shutdown();
    assert!(refused_with(send().await).contains("stopping"));
}
