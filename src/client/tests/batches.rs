//! Batches: what of them is tried again, and how they are parted by leader.

use super::super::call::Heard;
use super::*;

#[tokio::test]
async fn a_batch_tries_again_only_what_failed() {
    let fake = Fake::start().await;
    let client = client(&fake.address);
    let ops = [WriteOp::put("a", "1"), WriteOp::put("unlucky2", "2"), WriteOp::delete("none")];
    let outcomes = client.batch_write(&ops).await.unwrap();
    assert!(matches!(outcomes[0], Ok(WriteOutcome::Put(Written { version: 1, .. }))), "{outcomes:?}");
    assert!(matches!(outcomes[1], Ok(WriteOutcome::Put(_))), "{outcomes:?}");
    assert!(matches!(outcomes[2], Ok(WriteOutcome::Deleted(Deleted { existed: false, .. }))));
    assert_eq!(fake.calls(), ["batch_write", "batch_write"]);
    assert_eq!(client.get("a").await.unwrap().unwrap().version, 1, "written once");
}

#[tokio::test]
async fn a_batch_tells_each_operations_failure() {
    let fake = Fake::start().await;
    fake.put("a", "1");
    let conditional = WriteOp::Put { key: "a".into(), value: "2".into(), precondition: Precondition::Absent };
    let outcomes = client(&fake.address).batch_write(&[conditional, WriteOp::put("b", "2")]).await.unwrap();
    let error = outcomes[0].as_ref().unwrap_err();
    assert_eq!((error.reason, error.metadata["current_version"].as_str()), (Reason::PreconditionFailed, "1"));
    assert!(outcomes[1].is_ok());
}

#[tokio::test]
async fn a_batch_get_asks_again_for_what_had_no_room() {
    let fake = Fake::start().await;
    for n in [0, 2, 4] {
        fake.put(&format!("k{n}"), "v");
    }
    let keys: Vec<Bytes> = (0..5).map(|n| format!("k{n}").into()).collect();
    let results = client(&fake.address).batch_get(&keys).await.unwrap();
    let found: Vec<bool> = results.into_iter().map(|result| result.unwrap().is_some()).collect();
    assert_eq!(found, [true, false, true, false, true]);
    assert_eq!(fake.calls().len(), 3, "room for two keys each");
}

/// A client that has got the table of `telling` by now, in which there are two leaders, and a batch with keys of both.
async fn knowing_two(telling: &Fake) -> (Client, Vec<WriteOp>) {
    let client = client(&telling.address);
    let since = Instant::now();
    while client.inner.routes.by_leader([0, u64::MAX].into_iter()).len() < 2 {
        assert!(since.elapsed() < Duration::from_secs(10), "no table was fetched");
        client.get("k").await.unwrap();
    }
    (client, (0..40).map(|number| WriteOp::put(format!("k{number:02}"), "v")).collect())
}

/// The same, of a server that leads the first half and tells that `second` leads the other.
async fn client_of_two(second: &str) -> (Client, Fake, Vec<WriteOp>) {
    let first = telling_of(second).await;
    first.tell_topology(4, &[&first.address, second]);
    let (client, ops) = knowing_two(&first).await;
    (client, first, ops)
}

fn keys_of(fake: &Fake) -> Vec<Bytes> {
    fake.state.records.lock().unwrap().keys().cloned().collect()
}

#[tokio::test]
async fn a_batch_goes_to_the_leaders_of_its_keys_at_once() {
    // Each half is answered when the other half has come, too.
    let both = std::sync::Arc::new(tokio::sync::Barrier::new(2));
    let meet = |both: &std::sync::Arc<tokio::sync::Barrier>| {
        let both = both.clone();
        Box::new(move |call: &'static str, _: usize| match call {
            "batch_write" | "batch_get" => Act::Meet(both.clone()),
            _ => Act::Work,
        })
    };
    let (first, second) = (Fake::with(meet(&both)).await, Fake::with(meet(&both)).await);
    let telling = telling_of(&second.address).await;
    telling.tell_topology(4, &[&first.address, &second.address]);
    let (client, ops) = knowing_two(&telling).await;
    let outcomes = client.batch_write(&ops).await.unwrap();
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let (of_first, of_second) = (keys_of(&first), keys_of(&second));
    assert_eq!(of_first.len() + of_second.len(), 40, "each once");
    assert!(of_first.iter().all(|key| crate::placement::hash(key) <= u64::MAX / 2));
    assert!(of_second.iter().all(|key| crate::placement::hash(key) > u64::MAX / 2));
    assert_eq!((telling.count("batch_write"), first.count("batch_write")), (0, 1));

    // Two keys of each, which is what these answer at once.
    let keys: Vec<Bytes> = of_second[..2].iter().rev().chain(&of_first[..2]).cloned().collect();
    let found = client.batch_get(&keys).await.unwrap();
    let found: Vec<Bytes> = found.into_iter().map(|one| one.unwrap().unwrap().key).collect();
    assert_eq!(found, keys, "in their order");
}

#[tokio::test]
async fn the_half_of_a_batch_whose_leader_is_gone_goes_to_another_node() {
    let (client, first, ops) = client_of_two(&refusing()).await;
    let outcomes = client.batch_write(&ops).await.unwrap();
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!((keys_of(&first).len(), first.count("batch_write")), (40, 2));
}

/// It answers, and so the call succeeds, but nothing in it does.
#[tokio::test]
async fn a_leader_that_is_cut_off_does_not_keep_batches() {
    for of_reads in [false, true] {
        let second = Fake::start().await;
        let first = telling_of(&second.address).await;
        first.tell_topology(4, &[&first.address, &second.address, &second.address]);
        let (client, ops) = knowing_two(&first).await;
        second.state.is_cut_off.store(true, Ordering::SeqCst);
        let keys: Vec<Bytes> = ops.iter().map(|op| op.key().clone()).collect();
        for _ in 0..2 {
            if of_reads {
                let found = client.batch_get(&keys).await.unwrap();
                assert!(found.iter().all(Result::is_ok), "{found:?}");
            } else {
                let outcomes = client.batch_write(&ops).await.unwrap();
                assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
            }
        }
        let asked = second.count(if of_reads { "batch_get" } else { "batch_write" });
        assert_eq!(asked, 1, "it is left alone");
        assert!(of_reads || keys_of(&first).len() == 40);
    }
}

#[tokio::test]
async fn what_is_learned_from_a_batch_is_what_each_operation_says() {
    let second = Fake::start().await;
    let failure = |reason: Reason| Some(Error::new(reason, "said the server"));
    // Of two keys that the second leads: how each failed, whether it is known to lead them after that, and whether it
    // was asked again elsewhere.
    for (failures, known, calls) in [
        ([None, None], [true, true], 1),
        ([failure(Reason::Overloaded), None], [true, true], 1),
        ([failure(Reason::Overloaded), failure(Reason::Overloaded)], [true, true], 1),
        ([failure(Reason::PreconditionFailed), None], [true, true], 1),
        ([None, failure(Reason::Unavailable)], [true, false], 1),
        ([failure(Reason::Unavailable), None], [false, true], 1),
        ([failure(Reason::Unavailable), failure(Reason::OutcomeUnknown)], [false, false], 1),
        ([failure(Reason::Unavailable), failure(Reason::ShuttingDown)], [false, false], 2),
    ] {
        let first = telling_of(&second.address).await;
        first.tell_topology(4, &[&first.address, &second.address, &second.address]);
        let (client, _) = knowing_two(&first).await;
        let hashes = [u64::MAX / 2, u64::MAX];
        let leads = |hash: &u64| {
            let leader = client.inner.routes.leader_of(*hash);
            leader.is_some_and(|endpoint| endpoint.name == second.address)
        };
        assert!(hashes.iter().all(leads));
        let heard = std::cell::Cell::new(0);
        let hear = |_: &v1::BatchWriteResponse| {
            heard.set(heard.get() + 1);
            match heard.get() {
                1 => Heard::of(failures.clone().into_iter()),
                _ => Heard::Done,
            }
        };
        let request = v1::BatchWriteRequest::default();
        let send = |channel, request| async move { kv_client(channel).batch_write(request).await };
        let deadline = client.deadline();
        client.caller().call_on_many(Kind::Write, &hashes, &request, deadline, send, hear).await.unwrap();
        assert_eq!(heard.get(), calls, "{failures:?}");
        if calls == 1 {
            assert_eq!([leads(&hashes[0]), leads(&hashes[1])], known, "{failures:?}");
        } else {
            assert!(!hashes.iter().any(leads), "{failures:?}");
        }
    }
}

#[tokio::test]
async fn a_malformed_batch_is_refused_before_any_of_it_is_sent() {
    let second = Fake::start().await;
    let (client, first, mut ops) = client_of_two(&second.address).await;
    ops.push(WriteOp::Delete { key: "k".into(), precondition: Precondition::Absent });
    assert_eq!(client.batch_write(&ops).await.unwrap_err().reason, Reason::InvalidArgument);
    ops.pop();
    // With what encodes them, they are larger than they seem.
    let large = crate::limits::MESSAGE_BYTES_MAX / 3 - 8;
    let ops: Vec<WriteOp> =
        ops.iter().take(3).map(|op| WriteOp::put(op.key().clone(), vec![0; large])).collect();
    let error = client.batch_write(&ops).await.unwrap_err();
    assert_eq!(error.reason, Reason::TooLarge);
    assert_eq!((first.count("batch_write"), second.count("batch_write")), (0, 0));
}

#[tokio::test]
async fn the_half_of_a_batch_that_failed_is_told_and_the_other_stands() {
    let failing = Fake::with(Box::new(|call, _| match call {
        "batch_write" => Act::WorkThenFail(status(Reason::OutcomeUnknown)),
        "batch_get" => Act::Fail(status(Reason::Internal)),
        _ => Act::Work,
    }));
    let failing = failing.await;
    let (client, first, ops) = client_of_two(&failing.address).await;
    let keys: Vec<Bytes> = ops.iter().map(|op| op.key().clone()).collect();
    for (key, found) in keys.iter().zip(client.batch_get(&keys).await.unwrap()) {
        assert_eq!(found.is_ok(), crate::placement::hash(key) <= u64::MAX / 2, "{found:?}");
    }
    let outcomes = client.batch_write(&ops).await.unwrap();
    let (done, of_failing) = (keys_of(&first), keys_of(&failing));
    assert_eq!(done.len() + of_failing.len(), 40, "nothing is written twice");
    for (op, outcome) in ops.iter().zip(outcomes) {
        match outcome {
            Ok(_) => assert!(done.contains(op.key())),
            Err(error) => {
                assert!(of_failing.contains(op.key()));
                assert_eq!(error.reason, Reason::OutcomeUnknown);
            }
        }
    }
}

/// A server that passes calls on tells so; what it tells of a batch's first key is enough.
#[tokio::test]
async fn a_batch_learns_who_leads() {
    let leader = Fake::start().await;
    let address = leader.address.clone();
    let first = Fake::with(Box::new(move |call, _| match call {
        "batch_write" => Act::Tell(address.clone()),
        _ => Act::Work,
    }));
    let first = first.await;
    first.tell_topology(4, &[&leader.address]);
    let client = client(&first.address);
    let since = Instant::now();
    while leader.count("batch_write") == 0 {
        assert!(since.elapsed() < Duration::from_secs(10), "it never goes to the leader");
        client.batch_write(&[WriteOp::put("k", "v")]).await.unwrap();
    }
}

#[tokio::test]
async fn a_batch_get_keeps_what_it_has_when_a_later_call_fails() {
    let fake = Fake::with(Box::new(|call, number| match call {
        "batch_get" if number > 0 => Act::Fail(status(Reason::Internal)),
        _ => Act::Work,
    }));
    let fake = fake.await;
    let keys: Vec<Bytes> = (0..5).map(|n| format!("k{n}").into()).collect();
    let results = client(&fake.address).batch_get(&keys).await.unwrap();
    let failed: Vec<bool> = results.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, false, true, true, true], "room for two");
}
