//! `rushkv.v1.Kv` against a whole node, on both engines.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use rushkv::proto::v1;
use rushkv::proto::v1::kv_client::KvClient;
use support::{ENGINES, TestNode};
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

async fn kv(node: &TestNode) -> KvClient<Channel> {
    KvClient::new(node.channel().await)
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> v1::PutRequest {
    v1::PutRequest { key: key.into(), value: value.into(), precondition: None }
}

fn version(version: u64) -> Option<v1::Precondition> {
    Some(v1::Precondition { condition: Some(v1::precondition::Condition::Version(version)) })
}

fn absent() -> Option<v1::Precondition> {
    Some(v1::Precondition { condition: Some(v1::precondition::Condition::Absent(true)) })
}

async fn get(kv: &mut KvClient<Channel>, key: &str) -> Option<v1::Record> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    kv.get(v1::GetRequest { key, consistency: 0 }).await.unwrap().into_inner().record
}

async fn scan(kv: &mut KvClient<Channel>, request: v1::ScanRequest) -> Vec<v1::ScanResponse> {
    let mut stream = kv.scan(request).await.unwrap().into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        messages.push(message);
    }
    messages
}

fn keys(messages: &[v1::ScanResponse]) -> Vec<Bytes> {
    messages.iter().flat_map(|message| &message.records).map(|record| record.key.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_count_modifications_and_preconditions_hold_writes_to_them() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let node = TestNode::start(dir.path(), engine).await;
        let mut kv = kv(&node).await;

        let first =
            kv.put(v1::PutRequest { precondition: absent(), ..put("k", "1") }).await.unwrap().into_inner();
        assert_eq!(first.version, 1, "{engine}");
        let second =
            kv.put(v1::PutRequest { precondition: version(1), ..put("k", "2") }).await.unwrap().into_inner();
        assert_eq!(second.version, 2);
        assert!(second.revision > first.revision);

        for precondition in [version(1), absent()] {
            let status = kv.put(v1::PutRequest { precondition, ..put("k", "3") }).await.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition);
            let info = status.get_details_error_info().unwrap();
            assert_eq!(info.reason, "PRECONDITION_FAILED");
            assert_eq!((&*info.metadata["current_version"], &*info.metadata["happened"]), ("2", "no"));
        }
        let record = get(&mut kv, "k").await.unwrap();
        assert_eq!((&record.value[..], record.version), (&b"2"[..], 2));
        assert_eq!((record.create_revision, record.mod_revision), (first.revision, second.revision));

        let delete = |precondition| v1::DeleteRequest { key: "k".into(), precondition };
        kv.delete(delete(version(1))).await.unwrap_err();
        assert!(kv.delete(delete(version(2))).await.unwrap().into_inner().existed);
        assert!(!kv.delete(delete(None)).await.unwrap().into_inner().existed);
        assert_eq!(get(&mut kv, "k").await, None);
        assert_eq!(kv.put(put("k", "again")).await.unwrap().into_inner().version, 1);
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_writers_of_one_version_have_one_winner() {
    let dir = tempfile::tempdir().unwrap();
    let node = TestNode::start(dir.path(), ENGINES[0]).await;
    let mut first = kv(&node).await;
    first.put(put("k", "0")).await.unwrap();
    for round in 1..=20 {
        let racers: Vec<_> = (0..8)
            .map(|racer| {
                let mut kv = first.clone();
                let request =
                    v1::PutRequest { precondition: version(round), ..put("k", format!("{round}/{racer}")) };
                tokio::spawn(async move { kv.put(request).await })
            })
            .collect();
        let mut winners = 0;
        for racer in racers {
            match racer.await.unwrap() {
                Ok(answer) => {
                    winners += 1;
                    assert_eq!(answer.into_inner().version, round + 1);
                }
                Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}"),
            }
        }
        assert_eq!(winners, 1, "round {round}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_are_in_key_order_over_all_partitions() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let node = TestNode::start(dir.path(), engine).await;
        let mut kv = kv(&node).await;
        let expected: Vec<Bytes> = (0..3000).map(|index| format!("scan/{index:05}").into()).collect();
        for chunk in expected.chunks(1000) {
            let operation = |key: &Bytes| v1::WriteOperation {
                operation: Some(v1::write_operation::Operation::Put(put(key.clone(), key.clone()))),
            };
            let request = v1::BatchWriteRequest { operations: chunk.iter().map(operation).collect() };
            let answer = kv.batch_write(request).await.unwrap().into_inner();
            assert!(answer.outcomes.iter().all(|outcome| matches!(
                outcome.outcome,
                Some(v1::write_outcome::Outcome::Put(v1::PutResponse { version: 1, .. }))
            )));
        }
        kv.put(put("scam", "below")).await.unwrap();
        kv.put(put("scan0", "above")).await.unwrap();

        for reverse in [false, true] {
            let mut expected = expected.clone();
            if reverse {
                expected.reverse();
            }
            let request = v1::ScanRequest { prefix: "scan/".into(), reverse, ..Default::default() };
            let messages = scan(&mut kv, request.clone()).await;
            assert_eq!(keys(&messages), expected, "{engine}, reverse {reverse}");
            // A limit stops within a page; its token goes on exactly there.
            let limited = scan(&mut kv, v1::ScanRequest { limit: 1234, ..request.clone() }).await;
            assert_eq!(keys(&limited), expected[..1234]);
            let page_token = limited.last().unwrap().page_token.clone();
            let rest = scan(&mut kv, v1::ScanRequest { page_token, ..request }).await;
            assert_eq!(keys(&rest), expected[1234..]);
        }
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_answer_each_operation_and_stay_under_the_message_limit() {
    use v1::batch_get_result::Result as Found;
    let dir = tempfile::tempdir().unwrap();
    let node = TestNode::start(dir.path(), ENGINES[0]).await;
    let mut kv = kv(&node).await;
    for index in 0..5 {
        kv.put(put(format!("big{index}"), vec![index; 1024 * 1024])).await.unwrap();
    }
    let mut wanted: Vec<Bytes> = (0..5).map(|index| format!("big{index}").into()).collect();
    wanted.insert(1, "none".into());
    let mut read = BTreeMap::new();
    let mut calls = 0;
    // As a client asks again for what did not fit.
    while !wanted.is_empty() {
        calls += 1;
        let request = v1::BatchGetRequest { keys: wanted.clone(), consistency: 0 };
        let results = kv.batch_get(request).await.unwrap().into_inner().results;
        assert_eq!(results.len(), wanted.len());
        let mut left = Vec::new();
        for (key, result) in std::mem::take(&mut wanted).into_iter().zip(results) {
            match result.result.unwrap() {
                Found::Record(record) => assert_eq!(read.insert(key, record.value.len()), None),
                Found::NotFound(_) => assert_eq!(key, "none"),
                Found::NotRead(_) => left.push(key),
                Found::Error(error) => panic!("{key:?}: {error:?}"),
            }
        }
        wanted = left;
    }
    assert_eq!(read.len(), 5);
    assert!(read.values().all(|len| *len == 1024 * 1024));
    assert_eq!(calls, 3);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_restart() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let node = TestNode::start(dir.path(), engine).await;
        let mut client = kv(&node).await;
        for index in 0..100 {
            client.put(put(format!("k{index}"), format!("v{index}"))).await.unwrap();
            client.put(put(format!("k{index}"), format!("w{index}"))).await.unwrap();
        }
        let before = get(&mut client, "k42").await.unwrap();
        drop(client);
        node.stop().await;

        let node = TestNode::start(dir.path(), engine).await;
        let mut client = kv(&node).await;
        let after = scan(&mut client, v1::ScanRequest::default()).await;
        assert_eq!(keys(&after).len(), 100, "{engine}");
        assert!(after.iter().flat_map(|message| &message.records).all(|record| record.version == 2));
        assert_eq!(get(&mut client, "k42").await.unwrap(), before);
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_gives_up_does_not_break_those_that_stay() {
    let dir = tempfile::tempdir().unwrap();
    let node = TestNode::start(dir.path(), ENGINES[0]).await;
    let kv = kv(&node).await;
    let mut given_up = Vec::new();
    for index in 0..200u64 {
        let mut kv = kv.clone();
        let call = tokio::spawn(async move { kv.put(put(format!("gone{index}"), "v")).await });
        if index % 3 == 0 {
            tokio::task::yield_now().await;
        }
        call.abort();
        given_up.push(call);
    }
    let mut kv = kv;
    kv.put(put("stays", "v")).await.unwrap();
    assert_eq!(get(&mut kv, "stays").await.unwrap().version, 1);
    // Each of them took place once or not at all.
    let messages = scan(&mut kv, v1::ScanRequest { prefix: "gone".into(), ..Default::default() }).await;
    assert!(messages.iter().flat_map(|message| &message.records).all(|record| record.version == 1));
    node.stop().await;
}
