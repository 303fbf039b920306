//! The client against servers that misbehave: what it tries again, what it must not, and what it says.

mod batches;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _};
use tonic::Status;

use super::testing::{Act, Fake, closing_after, refusing, unconnectable};
use super::*;
use crate::error::{Error, Reason, to_status};

fn client(endpoints: &str) -> Client {
    Client::builder()
        .endpoint(endpoints)
        .timeout(Duration::from_millis(1500))
        .connect_timeout(Duration::from_millis(300))
        .connections(1)
        .build()
        .unwrap()
}

fn status(reason: Reason) -> Status {
    to_status(&Error::new(reason, "said the server"))
}

/// A server that says of every answer that the one at `address` leads.
async fn telling_of(address: &str) -> Fake {
    let leader = address.to_string();
    let told = Box::new(move |call, _| match call {
        "put" | "get" | "delete" => Act::Tell(leader.clone()),
        _ => Act::Work,
    });
    let fake = Fake::with(told).await;
    fake.tell_topology(4, &[address]);
    fake
}

/// Waits until the client goes straight to `leader`.
async fn goes_to(client: &Client, leader: &Fake) {
    let since = Instant::now();
    while leader.count("put") == 0 {
        assert!(since.elapsed() < Duration::from_secs(10), "it never goes to the leader");
        client.put("k", "v").await.unwrap();
    }
}

#[tokio::test]
async fn calls_do_what_they_say() {
    let fake = Fake::start().await;
    let client = client(&fake.address);
    assert_eq!(client.get("k").await.unwrap(), None);
    assert_eq!(client.put("k", "v").await.unwrap().version, 1);
    assert_eq!(client.put_if("k", "w", Precondition::Version(1)).await.unwrap().version, 2);
    let conflict = client.put_if("k", "x", Precondition::Absent).await.unwrap_err();
    assert_eq!(conflict.reason, Reason::PreconditionFailed);
    assert_eq!(conflict.metadata["current_version"], "2");
    assert_eq!(conflict.metadata["endpoint"], fake.address);
    assert!(conflict.message.starts_with(&fake.address), "{conflict}");
    let record = client.get_stale("k").await.unwrap().unwrap();
    assert_eq!((&record.value[..], record.version), (&b"w"[..], 2));
    assert!(client.exists("k").await.unwrap());
    assert!(client.delete_if("k", Precondition::Version(2)).await.unwrap().existed);
    assert!(!client.delete("k").await.unwrap().existed);
    assert_eq!(client.cluster_info().await.unwrap().cluster_name, "rushkv");
    assert_eq!(client.nodes().await.unwrap().len(), 1);
    assert_eq!(client.partitions().await.unwrap().len(), 2);
    assert_eq!(client.locate("k").await.unwrap().partition.unwrap().id, 0);
}

#[tokio::test]
async fn a_write_that_surely_did_not_happen_is_tried_again() {
    for reason in [Reason::Unavailable, Reason::Overloaded, Reason::ShuttingDown] {
        let fake = Fake::with(Box::new(move |_, number| match number {
            0 | 1 => Act::Fail(status(reason)),
            _ => Act::Work,
        }))
        .await;
        assert_eq!(client(&fake.address).put("k", "v").await.unwrap().version, 1, "{reason:?}");
        assert_eq!(fake.calls().len(), 3);
    }
}

#[tokio::test]
async fn an_ambiguous_write_is_never_tried_again() {
    // The last one is what a proxy says, without our detail: the write may be done.
    for status in [status(Reason::OutcomeUnknown), status(Reason::Internal), Status::unavailable("proxy")] {
        let answer = status.clone();
        let fake = Fake::with(Box::new(move |_, _| Act::WorkThenFail(answer.clone()))).await;
        let other = Fake::start().await;
        let client = client(&format!("{},{}", fake.address, other.address));
        let error = client.put("k", "v").await.unwrap_err();
        assert_eq!(error.happened(), crate::error::Happened::Unknown, "{error:?}");
        assert_eq!(fake.calls(), ["put"]);
        assert!(other.calls().is_empty());
    }
}

#[tokio::test]
async fn a_refused_connection_leaves_a_write_undone() {
    let address = refusing();
    let error = client(&address).put("k", "v").await.unwrap_err();
    assert_eq!(error.reason, Reason::Unavailable, "{error:?}");
    assert!(error.message.contains(&address) && error.message.contains("refused"), "{error}");
}

#[tokio::test]
async fn a_refused_connection_sends_a_write_to_the_next_endpoint() {
    let fake = Fake::start().await;
    let client = client(&format!("{},{}", refusing(), fake.address));
    let start = Instant::now();
    assert_eq!(client.put("k", "v").await.unwrap().version, 1);
    assert!(start.elapsed() < Duration::from_secs(1));
    client.put("k", "v").await.unwrap();
    assert_eq!(fake.calls().len(), 2);
}

#[tokio::test]
async fn a_connection_that_never_opens_leaves_a_write_undone() {
    let (address, _fillers) = unconnectable().await;
    let error = client(&address).put("k", "v").await.unwrap_err();
    assert_eq!(error.happened(), crate::error::Happened::No, "{error:?}");

    let fake = Fake::start().await;
    let client = client(&format!("{address},{}", fake.address));
    let writes = (0..20).map(|n| client.put(format!("k{n}"), "v"));
    for written in futures_util::future::join_all(writes).await {
        assert_eq!(written.unwrap().version, 1, "even those that queued behind the connection");
    }
}

#[tokio::test]
async fn a_connection_closed_after_sending_leaves_a_write_unknown() {
    // The preface and settings are some 60 bytes, the headers some 150: by 300 the value is under way.
    let (address, connections) = closing_after(300).await;
    let error = client(&address).put("k", vec![7; 4096]).await.unwrap_err();
    assert_eq!(error.reason, Reason::OutcomeUnknown, "{error:?}");
    assert!(error.message.contains(&address), "{error}");
    assert_eq!(connections.load(Ordering::SeqCst), 1, "sent once");
}

#[tokio::test]
async fn a_connection_closed_after_sending_lets_a_read_be_tried_again() {
    let (address, connections) = closing_after(100).await;
    let fake = Fake::start().await;
    fake.put("k", "v");
    let client = client(&format!("{address},{}", fake.address));
    assert!(client.exists("k").await.unwrap());
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn no_answer_leaves_a_write_unknown_and_a_read_late() {
    let fake = Fake::with(Box::new(|_, _| Act::Hang)).await;
    let client = client(&fake.address).with_timeout(Duration::from_secs(1));
    let start = Instant::now();
    assert_eq!(client.put("k", "v").await.unwrap_err().reason, Reason::OutcomeUnknown);
    assert_eq!(client.get("k").await.unwrap_err().reason, Reason::DeadlineExceeded);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(fake.calls().iter().filter(|call| **call == "put").count(), 1);
}

#[tokio::test]
async fn a_read_leaves_a_silent_endpoint_in_time() {
    let silent = Fake::with(Box::new(|_, _| Act::Hang)).await;
    let fake = Fake::start().await;
    fake.put("k", "v");
    let client = client(&format!("{},{}", silent.address, fake.address));
    assert!(client.exists("k").await.unwrap());
    assert_eq!(silent.calls(), ["get"]);
}

#[tokio::test]
async fn a_restarted_server_is_found_again() {
    let process = tokio::runtime::Runtime::new().unwrap();
    let first = process.spawn(Fake::start()).await.unwrap();
    let address = first.address.clone();
    let client = client(&address);
    client.put("k", "v").await.unwrap();
    drop(first);
    let gone = move || process.shutdown_timeout(Duration::from_secs(5));
    tokio::task::spawn_blocking(gone).await.unwrap();
    // Until the client has noticed.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.reason, Reason::Unavailable, "the broken connection was noticed first: {error:?}");
    let _second = Fake::start_at(&address).await;
    assert_eq!(client.put("k", "v").await.unwrap().version, 1);
}

#[tokio::test]
async fn limits_are_told_before_anything_is_sent() {
    let client = client(&refusing());
    for (key, value, reason) in [
        (0, 0, Reason::InvalidArgument),
        (limits::KEY_BYTES_MAX + 1, 0, Reason::TooLarge),
        (1, limits::VALUE_BYTES_MAX + 1, Reason::TooLarge),
    ] {
        let error = client.put(vec![b'k'; key], vec![0; value]).await.unwrap_err();
        assert_eq!(error.reason, reason);
    }
    let many = vec![WriteOp::put("k", "v"); limits::BATCH_OPERATIONS_MAX + 1];
    assert_eq!(client.batch_write(&many).await.unwrap_err().reason, Reason::TooLarge);
}

#[tokio::test]
async fn a_scan_goes_on_where_its_stream_broke() {
    // Every stream breaks after its first message but the fifth.
    let broken = Fake::with(Box::new(|call, number| match (call, number) {
        ("scan", 0..4) => Act::Fail(Status::unavailable("lost")),
        _ => Act::Work,
    }))
    .await;
    for n in 0..20 {
        broken.put(&format!("k{n:02}"), "v");
    }
    let client = client(&broken.address);
    let keys = |records: Vec<Record>| -> Vec<String> {
        records.iter().map(|record| String::from_utf8(record.key.to_vec()).unwrap()).collect()
    };
    let all: Vec<String> = (0..20).map(|n| format!("k{n:02}")).collect();
    let found: Vec<Record> = client.scan(ScanOptions::all()).try_collect().await.unwrap();
    assert_eq!(keys(found), all);
    assert_eq!(broken.calls().len(), 5);

    let limited: Vec<Record> = client.scan(ScanOptions::prefix("k1").limit(7)).try_collect().await.unwrap();
    assert_eq!(keys(limited), all[10..17]);
    let reverse = ScanOptions { reverse: true, keys_only: true, ..ScanOptions::all() };
    let found: Vec<Record> = client.scan(reverse).try_collect().await.unwrap();
    assert!(found.iter().all(|record| record.value.is_empty()));
    assert_eq!(keys(found), all.into_iter().rev().collect::<Vec<_>>());
    let none: Vec<Record> = client.scan(ScanOptions::prefix("x")).try_collect().await.unwrap();
    assert!(none.is_empty());
}

#[tokio::test]
async fn a_limit_holds_across_broken_streams() {
    let fake = Fake::with(Box::new(|call, number| match (call, number) {
        ("scan", 0) => Act::Fail(Status::unavailable("lost")),
        _ => Act::Work,
    }))
    .await;
    for n in 0..20 {
        fake.put(&format!("k{n:02}"), "v");
    }
    let found: Vec<Record> =
        client(&fake.address).scan(ScanOptions::all().limit(5)).try_collect().await.unwrap();
    assert_eq!(found.len(), 5);
    assert_eq!(found[4].key, "k04");
}

#[tokio::test]
async fn a_scan_that_gets_nowhere_ends_with_its_error() {
    let fake = Fake::with(Box::new(|_, _| Act::Fail(status(Reason::ReplicaFailed)))).await;
    let scan = client(&fake.address).scan(ScanOptions::all());
    let items: Vec<_> = scan.collect().await;
    assert_eq!(items.len(), 1);
    assert_eq!(items[0].as_ref().unwrap_err().reason, Reason::ReplicaFailed);
}

#[tokio::test]
async fn calls_go_straight_to_the_leader_once_an_answer_told_of_it() {
    let leader = Fake::start().await;
    let first = telling_of(&leader.address).await;
    let client = client(&first.address);
    goes_to(&client, &leader).await;
    assert_eq!(first.count("watch_topology"), 1, "the table was fetched once");
    let before = first.calls().len();
    client.delete("k").await.unwrap();
    client.put_if("k", "v", Precondition::Absent).await.unwrap();
    client.put_if("k", "v", Precondition::Absent).await.unwrap_err();
    assert!(client.exists("k").await.unwrap());
    assert_eq!(first.calls().len(), before, "nothing goes there any more");
    client.get_stale("k").await.unwrap();
    assert_eq!(first.calls().len(), before + 1, "but what any node may answer");
}

#[tokio::test]
async fn a_leader_that_moved_is_found_by_one_answer() {
    let second = Fake::start().await;
    let leader = telling_of(&second.address).await;
    let first = telling_of(&leader.address).await;
    let client = client(&first.address);
    goes_to(&client, &leader).await;
    goes_to(&client, &second).await;
    assert_eq!((leader.count("put"), second.count("put")), (1, 1), "corrected in one hop");
}

#[tokio::test]
async fn a_conflict_tells_of_the_leader_too() {
    let leader = Fake::start().await;
    let first = telling_of(&leader.address).await;
    first.put("k", "v");
    let client = client(&first.address);
    let since = Instant::now();
    while leader.count("put") == 0 {
        assert!(since.elapsed() < Duration::from_secs(10), "it never goes to the leader");
        let _ = client.put_if("k", "v", Precondition::Absent).await;
    }
}

#[tokio::test]
async fn a_dead_leader_costs_one_attempt_and_the_others_answer() {
    let dead = refusing();
    let first = telling_of(&dead).await;
    let client = client(&first.address);
    let since = Instant::now();
    while first.count("watch_topology") == 0 {
        assert!(since.elapsed() < Duration::from_secs(10), "no table was fetched");
        client.put("k", "v").await.unwrap();
    }
    let start = Instant::now();
    for _ in 0..200 {
        client.put("k", "v").await.unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_leader_that_may_have_the_write_is_the_only_one_to_get_it() {
    let leader = Fake::with(Box::new(|call, number| match (call, number) {
        ("put", 0) => Act::Work,
        _ => Act::WorkThenFail(Status::unavailable("proxy")),
    }))
    .await;
    let first = telling_of(&leader.address).await;
    let client = client(&first.address);
    goes_to(&client, &leader).await;
    let before = first.count("put");
    assert_eq!(client.put("k", "w").await.unwrap_err().reason, Reason::OutcomeUnknown);
    assert_eq!((first.count("put"), leader.count("put")), (before, 2));
}

#[tokio::test]
async fn what_is_wrong_with_a_request_does_not_unseat_the_leader() {
    let refused = status(Reason::TooLarge);
    let leader = Fake::with(Box::new(move |_, number| match number {
        0 => Act::Work,
        _ => Act::Fail(refused.clone()),
    }))
    .await;
    let first = telling_of(&leader.address).await;
    let client = client(&first.address);
    goes_to(&client, &leader).await;
    let before = first.calls().len();
    for _ in 0..3 {
        client.put("k", "w").await.unwrap_err();
    }
    assert_eq!(first.calls().len(), before);
}

#[tokio::test]
async fn who_was_removed_is_not_asked_what_the_cluster_is_like_if_others_can_be() {
    let (removed, member) = (Fake::start().await, Fake::start().await);
    removed.state.is_removed.store(true, Ordering::SeqCst);
    let both = client(&format!("{},{}", removed.address, member.address));
    assert!(super::removed(&both.cluster_info().await.unwrap()).is_none());
    both.nodes().await.unwrap();
    assert_eq!((removed.count("list_nodes"), member.count("list_nodes")), (0, 1), "nor anything after that");
    // Alone, or beside one that is down, it tells what it knows.
    for others in [String::new(), format!(",{}", refusing())] {
        let client = client(&format!("{}{others}", removed.address));
        let since = Instant::now();
        assert!(super::removed(&client.cluster_info().await.unwrap()).is_some());
        assert!(since.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn a_table_that_can_not_be_had_is_not_asked_for_again_and_again() {
    let first = telling_of("127.0.0.1:1").await;
    *first.state.topology.lock().unwrap() = Some(crate::proto::v1::Topology::default());
    let client = client(&first.address);
    let since = Instant::now();
    for _ in 0..200 {
        client.put("k", "v").await.unwrap();
    }
    // After half a second at the soonest.
    let (times, halves) = (first.count("watch_topology"), since.elapsed().as_millis() / 500);
    assert!(times as u128 <= 1 + halves, "{times} times within {halves} half seconds");
}

#[tokio::test]
async fn nobody_there_is_told_soon_where_that_is_wished() {
    let two = format!("{},{}", refusing(), refusing());
    let hurried = Client::builder()
        .endpoint(&two)
        .timeout(Duration::from_secs(30))
        .unreachable_after(Duration::from_millis(300))
        .build()
        .unwrap();
    let start = Instant::now();
    for error in [hurried.put("k", "v").await.map(drop), hurried.get("k").await.map(drop)] {
        assert_eq!(error.unwrap_err().reason, Reason::Unavailable);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());

    // A server that is there and only refuses is waited for.
    let fake = Fake::with(Box::new(|_, number| match number {
        0..8 => Act::Fail(status(Reason::Unavailable)),
        _ => Act::Work,
    }))
    .await;
    let patient =
        Client::builder().endpoint(&fake.address).unreachable_after(Duration::ZERO).build().unwrap();
    patient.put("k", "v").await.unwrap();
    assert_eq!(fake.count("put"), 9);
}
