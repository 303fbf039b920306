//! What the calls answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tonic::codegen::http::{HeaderMap, HeaderValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::super::deadline::Clock;
use super::super::{kv, original};
use super::{Fake, Options, Server, is, put};
use crate::error::{Error, Happened, from_status};
use crate::proto::original as original_proto;
use crate::proto::original::rush_kv_client::RushKvClient;
use crate::proto::original::rush_kv_server::RushKv as _;
use crate::proto::v1;
use crate::proto::v1::cluster_client::ClusterClient;
use crate::proto::v1::kv_client::KvClient;
use crate::proto::v1::kv_server::Kv as _;
use crate::transport::Leader;
use crate::types::{Epoch, PartitionId};

#[tokio::test]
async fn keys_are_written_read_and_deleted() {
    let server = Server::start(Options::default()).await;
    let mut kv = server.kv().await;
    let answer = kv.put(put("k", "one")).await.unwrap().into_inner();
    assert_eq!(answer.version, 1);
    assert_eq!(kv.put(put("k", "two")).await.unwrap().into_inner().version, 2);
    let get = |key: &'static str| v1::GetRequest { key: key.into(), consistency: 0 };
    let record = kv.get(get("k")).await.unwrap().into_inner().record.unwrap();
    assert_eq!((record.key, record.value, record.version), ("k".into(), "two".into(), 2));
    assert_eq!((record.create_revision, record.mod_revision), (1, 2));
    assert_eq!(kv.get(get("none")).await.unwrap().into_inner().record, None);

    let condition = Some(v1::precondition::Condition::Version(1));
    let stale = v1::PutRequest { precondition: Some(v1::Precondition { condition }), ..put("k", "three") };
    let status = kv.put(stale).await.unwrap_err();
    is(&status, Code::FailedPrecondition, "PRECONDITION_FAILED", "no");
    assert_eq!(status.get_details_error_info().unwrap().metadata["current_version"], "2");

    let delete = |key: &'static str| v1::DeleteRequest { key: key.into(), precondition: None };
    assert!(kv.delete(delete("k")).await.unwrap().into_inner().existed);
    assert!(!kv.delete(delete("k")).await.unwrap().into_inner().existed);

    let labels = ["rushkv_grpc_requests_total{", "rushkv.v1.Kv", "\"Put\""];
    server.eventually(&[&labels[..], &["\"OK\""]].concat(), 2.0).await;
    server.eventually(&[&labels[..], &["FAILED_PRECONDITION"]].concat(), 1.0).await;
    server.eventually(&["rushkv_grpc_in_flight "], 0.0).await;
    server.eventually(&["rushkv_grpc_connections "], 1.0).await;
}

#[tokio::test]
async fn every_limit_has_its_error_on_the_wire() {
    let server = Server::start(Options::default()).await;
    let mut kv = server.kv().await;
    let mib = 1024 * 1024;
    let status = kv.put(put("", "v")).await.unwrap_err();
    is(&status, Code::InvalidArgument, "INVALID_ARGUMENT", "no");
    for request in [put(vec![b'k'; 4097], "v"), put("k", vec![0; mib + 1]), put("k", vec![0; 7 * mib / 2])] {
        is(&kv.put(request).await.unwrap_err(), Code::InvalidArgument, "TOO_LARGE", "no");
    }
    // Past what is decoded at all, the transport refuses; it says the sizes too.
    let status = kv.put(put("k", vec![0; 5 * mib])).await.unwrap_err();
    is(&status, Code::InvalidArgument, "TOO_LARGE", "no");
    assert!(status.message().contains("the limit is: 4194304 bytes"), "{status:?}");

    let operation = |size: usize| v1::WriteOperation {
        operation: Some(v1::write_operation::Operation::Put(put("k", vec![0; size]))),
    };
    let batch = |size, count| v1::BatchWriteRequest { operations: vec![operation(size); count] };
    let status = kv.batch_write(batch(1, 4097)).await.unwrap_err();
    is(&status, Code::InvalidArgument, "TOO_LARGE", "no");
    let status = kv.batch_write(batch(mib, 3)).await.unwrap_err();
    is(&status, Code::InvalidArgument, "TOO_LARGE", "no");
    assert_eq!(kv.batch_write(batch(1, 4096)).await.unwrap().into_inner().outcomes.len(), 4096);
    let keys = vec![Bytes::from_static(b"k"); 4097];
    let status = kv.batch_get(v1::BatchGetRequest { keys, consistency: 0 }).await.unwrap_err();
    is(&status, Code::InvalidArgument, "TOO_LARGE", "no");

    let request = v1::GetRequest { key: "k".into(), consistency: 5 };
    is(&kv.get(request).await.unwrap_err(), Code::InvalidArgument, "INVALID_ARGUMENT", "no");
    // All requests have ended: nothing of them is still counted as held.
    server.eventually(&["rushkv_grpc_in_flight "], 0.0).await;
}

#[tokio::test]
async fn headers_over_the_limit_are_refused() {
    let server = Server::start(Options::default()).await;
    let mut kv = server.kv().await;
    let mut request = Request::new(put("k", "v"));
    request.metadata_mut().insert("x-large", "x".repeat(32 * 1024).parse().unwrap());
    kv.put(request).await.unwrap_err();
    assert!(server.node.records.lock().unwrap().is_empty());
    kv.put(put("k", "v")).await.unwrap();
}

#[tokio::test]
async fn the_nodes_errors_reach_the_client_whole() {
    let server = Server::start(Options::default()).await;
    let mut kv = server.kv().await;
    for row in &crate::error::TABLE {
        let error = Error::new(row.reason, "the node said so").with("partition", 3);
        *server.node.refuse.lock().unwrap() = Some(error.clone());
        let status = kv.put(put("k", "v")).await.unwrap_err();
        is(&status, row.grpc, row.name, row.happened.as_str());
        assert_eq!(from_status(&status, Happened::Unknown), error);

        let operation = v1::write_operation::Operation::Put(put("k", "v"));
        let operations = vec![v1::WriteOperation { operation: Some(operation) }];
        let answer = kv.batch_write(v1::BatchWriteRequest { operations }).await.unwrap().into_inner();
        let Some(v1::write_outcome::Outcome::Error(error)) = &answer.outcomes[0].outcome else {
            panic!("{answer:?}")
        };
        assert_eq!((error.reason.as_str(), error.code), (row.name, row.grpc as i32));
        assert_eq!(error.happened, row.happened.as_str());
        assert_eq!(error.metadata["partition"], "3");
    }
}

fn fill(node: &Fake, count: usize, value: usize) {
    let mut records = node.records.lock().unwrap();
    for index in 0..count {
        let value = vec![b'v'; value].into();
        let record = crate::kv::Record { value, version: 1, create_revision: 1, mod_revision: 1 };
        records.insert(format!("key{index:05}").into(), record);
    }
}

async fn scan_all(kv: &mut KvClient<Channel>, request: v1::ScanRequest) -> Vec<v1::ScanResponse> {
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

#[tokio::test]
async fn a_scan_streams_its_range_and_goes_on_from_every_message() {
    let server = Server::start(Options::default()).await;
    fill(&server.node, 5000, 10);
    let mut kv = server.kv().await;
    for reverse in [false, true] {
        let request = v1::ScanRequest { prefix: "key".into(), reverse, ..Default::default() };
        let messages = scan_all(&mut kv, request.clone()).await;
        let mut expected: Vec<Bytes> = (0..5000).map(|index| format!("key{index:05}").into()).collect();
        if reverse {
            expected.reverse();
        }
        assert_eq!(keys(&messages), expected);
        assert!(messages.len() > 3 && messages.last().unwrap().page_token.is_empty());
        let mut seen = 0;
        for message in &messages {
            seen += message.records.len();
            if !message.page_token.is_empty() {
                let page_token = message.page_token.clone();
                let rest = scan_all(&mut kv, v1::ScanRequest { page_token, ..request.clone() }).await;
                assert_eq!(keys(&rest), expected[seen..]);
            }
        }
    }
}

#[tokio::test]
async fn scans_keep_to_limit_range_and_keys_only() {
    let server = Server::start(Options::default()).await;
    fill(&server.node, 3000, 10);
    let mut kv = server.kv().await;
    let limited = v1::ScanRequest { limit: 1500, keys_only: true, ..Default::default() };
    let messages = scan_all(&mut kv, limited.clone()).await;
    assert_eq!(keys(&messages).len(), 1500);
    assert!(messages.iter().flat_map(|message| &message.records).all(|record| record.value.is_empty()));
    let page_token = messages.last().unwrap().page_token.clone();
    assert!(!page_token.is_empty(), "the limit ended it, not the range");
    let rest = scan_all(&mut kv, v1::ScanRequest { page_token: page_token.clone(), ..limited }).await;
    assert_eq!(keys(&rest)[0], "key01500");
    assert!(rest.last().unwrap().page_token.is_empty());

    let range = v1::ScanRequest { start: "key00010".into(), end: "key00012".into(), ..Default::default() };
    assert_eq!(keys(&scan_all(&mut kv, range.clone()).await), ["key00010", "key00011"]);
    let empty = v1::ScanRequest { start: "b".into(), end: "a".into(), ..Default::default() };
    assert_eq!(scan_all(&mut kv, empty).await, [v1::ScanResponse::default()]);

    for bad in [
        v1::ScanRequest { page_token, ..range.clone() },
        v1::ScanRequest { page_token: "nonsense".into(), ..range.clone() },
        v1::ScanRequest { prefix: "k".into(), ..range },
    ] {
        let status = kv.scan(bad).await.unwrap_err();
        is(&status, Code::InvalidArgument, "INVALID_ARGUMENT", "no");
    }
}

#[tokio::test]
async fn a_scan_nobody_reads_does_not_read_ahead_far_and_one_dropped_ends() {
    let server = Server::start(Options::default()).await;
    fill(&server.node, 400, 100_000);
    let mut kv = server.kv().await;
    let stream = kv.scan(v1::ScanRequest::default()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let early = server.node.scans.load(Ordering::Relaxed);
    assert!((1..=10).contains(&early), "{early} pages of 60 were read for a client that reads none");
    drop(stream);
    server.eventually(&["requests_total{", "\"Scan\"", "CANCELLED"], 1.0).await;
    server.eventually(&["rushkv_grpc_in_flight "], 0.0).await;
    let late = server.node.scans.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.node.scans.load(Ordering::Relaxed), late);
}

fn service(node: &Arc<Fake>) -> kv::Service<Fake> {
    let metrics = crate::metrics::Grpc::register(&prometheus::Registry::new()).unwrap();
    kv::Service::new(node.clone(), metrics)
}

/// A request as the dispatcher hands it on, whose client waits 50 ms.
fn hurried<T>(message: T) -> Request<T> {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-timeout", HeaderValue::from_static("50m"));
    let mut request = Request::new(message);
    request.extensions_mut().insert(Clock::start(&headers));
    request
}

#[tokio::test]
async fn what_the_node_does_not_answer_in_time_is_late_for_reads_and_unknown_for_writes() {
    use tokio_stream::StreamExt as _;
    let node = Arc::new(Fake::default());
    node.stalled.store(true, Ordering::Relaxed);
    let service = service(&node);
    let late = |status: Status| is(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "no");
    let unknown = |status: Status| is(&status, Code::Unknown, "OUTCOME_UNKNOWN", "unknown");

    unknown(service.put(hurried(put("k", "v"))).await.unwrap_err());
    let delete = v1::DeleteRequest { key: "k".into(), precondition: None };
    unknown(service.delete(hurried(delete)).await.unwrap_err());
    let operation = Some(v1::write_operation::Operation::Put(put("k", "v")));
    let operations = vec![v1::WriteOperation { operation }];
    unknown(service.batch_write(hurried(v1::BatchWriteRequest { operations })).await.unwrap_err());
    late(service.get(hurried(v1::GetRequest { key: "k".into(), consistency: 0 })).await.unwrap_err());
    let keys = vec!["k".into()];
    late(service.batch_get(hurried(v1::BatchGetRequest { keys, consistency: 0 })).await.unwrap_err());
    let mut scan = service.scan(hurried(v1::ScanRequest::default())).await.unwrap().into_inner();
    late(scan.next().await.unwrap().unwrap_err());
    assert!(scan.next().await.is_none());

    // In the original's calls it travels in the body.
    let original = original::Service::new(node);
    let request = original_proto::PutRequest { key: "k".into(), value: "v".into() };
    let answer = original.put(hurried(request)).await.unwrap().into_inner();
    assert!(!answer.success && answer.error.starts_with("OUTCOME_UNKNOWN: "), "{answer:?}");
    let answer = original.get(hurried(original_proto::GetRequest { key: "k".into() })).await;
    assert!(answer.unwrap().into_inner().error.starts_with("DEADLINE_EXCEEDED: "));
}

#[tokio::test]
async fn a_scan_that_is_not_read_until_its_deadline_ends_in_an_error_not_as_if_complete() {
    use tokio_stream::StreamExt as _;
    let node = Arc::new(Fake::default());
    fill(&node, 5000, 10);
    let service = service(&node);
    let scan = service.scan(hurried(v1::ScanRequest::default())).await.unwrap().into_inner();
    tokio::time::sleep(Duration::from_millis(120)).await;
    let items: Vec<_> = scan.collect().await;
    let (last, pages) = items.split_last().unwrap();
    is(last.as_ref().unwrap_err(), Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "no");
    assert!(pages.len() < 5 && pages.iter().all(Result::is_ok));
}

#[tokio::test]
async fn the_original_calls_answer_in_the_body() {
    let server = Server::start(Options::default()).await;
    let mut client = RushKvClient::new(server.channel().await);
    let put = |key: &str| original_proto::PutRequest { key: key.into(), value: "v".into() };
    let answer = client.put(put("k")).await.unwrap().into_inner();
    assert_eq!((answer.success, answer.error.as_str()), (true, ""));
    let get = |key: &str| original_proto::GetRequest { key: key.into() };
    let answer = client.get(get("k")).await.unwrap().into_inner();
    assert_eq!((answer.success, &answer.value[..], answer.error.as_str()), (true, &b"v"[..], ""));
    let answer = client.get(get("none")).await.unwrap().into_inner();
    assert_eq!((answer.success, answer.error.as_str()), (false, "key not found"));
    let delete = |key: &str| original_proto::DeleteRequest { key: key.into() };
    assert!(client.delete(delete("k")).await.unwrap().into_inner().success);
    let answer = client.delete(delete("k")).await.unwrap().into_inner();
    assert_eq!((answer.success, answer.error.as_str()), (false, "key not found"));
    let answer = client.put(put("")).await.unwrap().into_inner();
    assert!(!answer.success && answer.error.contains("the key is empty"), "{answer:?}");
    let answer = client.put(put(&"k".repeat(5000))).await.unwrap().into_inner();
    assert!(!answer.success && answer.error.starts_with("TOO_LARGE: "), "{answer:?}");

    let info = client.get_cluster_info(original_proto::ClusterInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.leader.as_str(), info.nodes.len()), ("node1", 1));
    assert!(info.nodes[0].is_leader);
}

#[tokio::test]
async fn the_cluster_is_described_and_watched_until_the_server_stops() {
    let server = Server::start(Options::default()).await;
    let mut client = ClusterClient::new(server.channel().await);
    let info = client.info(v1::InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.node_count, info.partition_count, info.partitions_led), (1, 1, 1));
    assert_eq!(info.answered_by.unwrap().name, "node1");
    assert_eq!(client.list_nodes(v1::ListNodesRequest {}).await.unwrap().into_inner().nodes.len(), 1);
    let partitions = client.list_partitions(v1::ListPartitionsRequest {}).await.unwrap().into_inner();
    assert_eq!(partitions.partitions[0].last_hash, u64::MAX);
    assert_eq!(partitions.partitions[0].replicas[0].role(), v1::ReplicaRole::Leader);
    let located = client.locate_key(v1::LocateKeyRequest { key: "k".into() }).await.unwrap().into_inner();
    assert_eq!((located.hash, located.partition.unwrap().id), (7, 0));
    let status = client.locate_key(v1::LocateKeyRequest { key: "".into() }).await.unwrap_err();
    is(&status, Code::InvalidArgument, "INVALID_ARGUMENT", "no");
    let status = client.locate_key(v1::LocateKeyRequest { key: "nowhere".into() }).await.unwrap_err();
    is(&status, Code::Unavailable, "UNAVAILABLE", "no");

    let mut watch = client.watch_topology(v1::WatchTopologyRequest {}).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().epoch, 1);
    server.node.epoch.send_replace(5);
    assert_eq!(watch.message().await.unwrap().unwrap().epoch, 5);
    server.stop.send(()).unwrap();
    is(&watch.message().await.unwrap_err(), Code::Unavailable, "SHUTTING_DOWN", "no");
    let ended = tokio::time::timeout(Duration::from_secs(5), server.done).await;
    ended.expect("a watch must not hold up the shutdown").unwrap().unwrap();
}

#[tokio::test]
async fn answers_tell_who_leads_and_calls_for_another_cluster_are_refused() {
    let server = Server::start(Options::default()).await;
    let mut kv = server.kv().await;
    let get = || v1::GetRequest { key: "k".into(), consistency: 0 };
    assert_eq!(Leader::read(kv.put(put("k", "v")).await.unwrap().metadata()), None);

    let leader = Leader {
        cluster_id: "c1".into(),
        epoch: Epoch(3),
        partition: PartitionId(0),
        address: "node2:8080".into(),
    };
    *server.node.leader.lock().unwrap() = Some(leader.clone());
    assert_eq!(Leader::read(kv.put(put("k", "v")).await.unwrap().metadata()), Some(leader.clone()));
    assert_eq!(Leader::read(kv.get(get()).await.unwrap().metadata()), Some(leader.clone()));
    let batch_get = v1::BatchGetRequest { keys: vec!["k".into()], consistency: 0 };
    let answer = kv.batch_get(batch_get).await.unwrap();
    assert_eq!(Leader::read(answer.metadata()), Some(leader.clone()));
    let operation = v1::write_operation::Operation::Put(put("k", "v"));
    let operations = vec![v1::WriteOperation { operation: Some(operation) }];
    let answer = kv.batch_write(v1::BatchWriteRequest { operations }).await.unwrap();
    assert_eq!(Leader::read(answer.metadata()), Some(leader.clone()));
    let absent = Some(v1::Precondition { condition: Some(v1::precondition::Condition::Absent(true)) });
    let conflict = kv.put(v1::PutRequest { precondition: absent, ..put("k", "w") }).await.unwrap_err();
    assert_eq!(Leader::read(conflict.metadata()), Some(leader));

    for (meant, right) in [("c1", true), ("c2", false)] {
        let with = |mut metadata: tonic::metadata::MetadataMap| {
            metadata.insert("rushkv-cluster", meant.parse().unwrap());
            metadata
        };
        macro_rules! ask {
            ($call:ident, $message:expr) => {{
                let mut request = Request::new($message);
                *request.metadata_mut() = with(Default::default());
                let answer = kv.$call(request).await.map(drop);
                if let Err(status) = &answer {
                    is(status, Code::Unavailable, "UNAVAILABLE", "no");
                }
                assert_eq!(answer.is_ok(), right, "{} for {meant}: {answer:?}", stringify!($call));
            }};
        }
        ask!(put, put("k", "v"));
        ask!(get, get());
        ask!(delete, v1::DeleteRequest { key: "k".into(), precondition: None });
        ask!(batch_get, v1::BatchGetRequest { keys: vec!["k".into()], consistency: 0 });
        ask!(batch_write, v1::BatchWriteRequest::default());
        ask!(scan, v1::ScanRequest::default());
    }
}
