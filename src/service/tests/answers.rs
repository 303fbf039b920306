//! Clients that do not take their answers.

use std::time::Duration;

use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{Options, Server, is, put};
use crate::proto::original as original_proto;
use crate::proto::original::rush_kv_client::RushKvClient;
use crate::proto::v1;
use crate::proto::v1::kv_client::KvClient;

const MIB: usize = 1024 * 1024;
const HELD: [&str; 1] = ["rushkv_grpc_answer_bytes "];
const CUT: [&str; 1] = ["rushkv_grpc_answers_cut_total "];
const IN_FLIGHT: [&str; 1] = ["rushkv_grpc_in_flight "];
const CONNECTIONS: [&str; 1] = ["rushkv_grpc_connections "];

fn get(key: &'static str) -> v1::GetRequest {
    v1::GetRequest { key: key.into(), consistency: 0 }
}

/// A client that lets `window` bytes of each answer be sent before it has read them.
async fn stingy(server: &Server, window: u32) -> KvClient<Channel> {
    let endpoint = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(window);
    KvClient::new(endpoint.connect().await.unwrap()).max_decoding_message_size(4 * MIB)
}

/// Gets under way, of which none will be answered.
fn gets(kv: &KvClient<Channel>, count: usize) -> JoinSet<Result<(), Status>> {
    let mut calls = JoinSet::new();
    for _ in 0..count {
        let mut kv = kv.clone();
        calls.spawn(async move { kv.get(get("big")).await.map(|_| ()) });
    }
    calls
}

async fn held_at_least(server: &Server, bytes: usize) {
    for _ in 0..500 {
        if server.sample(&HELD) >= bytes as f64 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} bytes are held, not {bytes}", server.sample(&HELD));
}

#[tokio::test]
async fn answers_that_nobody_reads_are_cut_and_others_are_served_meanwhile() {
    let server = Server::start(Options { answer_idle: Duration::from_secs(1), ..Options::default() }).await;
    let mut kv = server.kv().await;
    kv.put(put("big", vec![1; MIB])).await.unwrap();
    let mut idle = stingy(&server, 0).await;
    let mut calls = gets(&idle, 30);
    let (mut one, mut other) = (idle.clone(), idle.clone());
    calls.spawn(async move { one.put(put("k", "v")).await.map(|_| ()) });
    let keys = vec!["big".into(); 3];
    calls.spawn(
        async move { other.batch_get(v1::BatchGetRequest { keys, consistency: 0 }).await.map(|_| ()) },
    );
    let _scan = idle.scan(v1::ScanRequest::default()).await.unwrap().into_inner();
    held_at_least(&server, 32 * MIB).await;

    kv.put(put("k", "w")).await.unwrap();
    assert_eq!(kv.get(get("big")).await.unwrap().into_inner().record.unwrap().value.len(), MIB);
    while let Some(ended) = calls.join_next().await {
        assert_eq!(ended.unwrap().unwrap_err().code(), Code::Cancelled);
    }
    server.eventually(&CUT, 33.0).await;
    server.eventually(&HELD, 0.0).await;
    server.eventually(&IN_FLIGHT, 0.0).await;
    // Streams were cut, not the connection.
    assert_eq!(server.sample(&CONNECTIONS), 2.0);
}

#[tokio::test]
async fn over_the_bound_large_reads_are_refused_and_writes_go_on() {
    let options = Options { answer_bytes_max: 6 * MIB, ..Options::default() };
    let server = Server::start(options).await;
    let mut kv = server.kv().await;
    kv.put(put("big", vec![1; MIB])).await.unwrap();
    kv.get(get("big")).await.unwrap();
    server.eventually(&HELD, 0.0).await;
    // Each may have a quarter of what is free: one of the six, and one of the other five.
    let (idle, other) = (stingy(&server, 0).await, stingy(&server, 0).await);
    let mut calls = gets(&idle, 1);
    held_at_least(&server, MIB).await;
    is(&idle.clone().get(get("big")).await.unwrap_err(), Code::ResourceExhausted, "OVERLOADED", "no");
    let mut more = gets(&other, 1);
    held_at_least(&server, 2 * MIB).await;

    let refused = |status: Status| is(&status, Code::ResourceExhausted, "OVERLOADED", "no");
    refused(kv.get(get("big")).await.unwrap_err());
    let keys = vec!["k".into()];
    refused(kv.batch_get(v1::BatchGetRequest { keys, consistency: 0 }).await.unwrap_err());
    refused(kv.scan(v1::ScanRequest::default()).await.unwrap_err());
    // What is small fits.
    kv.put(put("small", "v")).await.unwrap();
    kv.get(get("small")).await.unwrap();
    let mut original = RushKvClient::new(server.channel().await);
    refused(original.get(original_proto::GetRequest { key: "big".into() }).await.unwrap_err());
    let operation = Some(v1::write_operation::Operation::Put(put("never", "v")));
    let operations = vec![v1::WriteOperation { operation }];
    refused(kv.batch_write(v1::BatchWriteRequest { operations }).await.unwrap_err());
    assert!(!server.node.records.lock().unwrap().contains_key(&b"never"[..]));

    kv.put(put("k", "v")).await.unwrap();
    kv.delete(v1::DeleteRequest { key: "k".into(), precondition: None }).await.unwrap();

    calls.shutdown().await;
    more.shutdown().await;
    server.eventually(&HELD, 0.0).await;
    kv.get(get("big")).await.unwrap();
    assert_eq!(server.sample(&CUT), 0.0);
}

#[tokio::test]
async fn an_answer_for_which_there_is_no_room_after_all_becomes_an_error() {
    // The value fits, and its message does not.
    let server = Server::start(Options { answer_bytes_max: 4 * MIB, ..Options::default() }).await;
    let mut kv = server.kv().await;
    kv.put(put("big", vec![1; MIB])).await.unwrap();
    let status = kv.get(get("big")).await.unwrap_err();
    is(&status, Code::ResourceExhausted, "OVERLOADED", "no");
    server.eventually(&["requests_total{", "\"Get\"", "RESOURCE_EXHAUSTED"], 1.0).await;
    assert_eq!(server.sample(&HELD), 0.0);
}

#[tokio::test]
async fn what_http2_holds_is_counted_and_cut_too() {
    let options = Options { answer_idle: Duration::from_millis(300), ..Options::default() };
    let server = Server::start(options).await;
    let mut kv = server.kv().await;
    kv.put(put("big", vec![1; MIB])).await.unwrap();
    // One byte of window lets a whole piece into the queue of HTTP/2.
    let mut idle = stingy(&server, 1).await;
    let large = idle.scan(v1::ScanRequest::default()).await.unwrap().into_inner();
    held_at_least(&server, MIB).await;
    server.eventually(&CUT, 1.0).await;
    server.eventually(&HELD, 0.0).await;
    assert_eq!(server.sample(&CONNECTIONS), 2.0);
    drop(large);

    // All pieces of this one fit in the queue, and what is left there still has a stream to reset.
    kv.put(put("mid", vec![1; 100_000])).await.unwrap();
    let prefix = v1::ScanRequest { prefix: "mid".into(), ..Default::default() };
    let mut middling = stingy(&server, 70_000).await;
    let queued = middling.scan(prefix).await.unwrap().into_inner();
    server.eventually(&CUT, 2.0).await;
    server.eventually(&HELD, 0.0).await;
    assert_eq!(server.sample(&CONNECTIONS), 3.0);
    drop((queued, middling));
    server.eventually(&CONNECTIONS, 2.0).await;

    // A small answer is in there as a whole: its call has ended, and only the connection can be cut.
    let keys_only = v1::ScanRequest { prefix: "big".into(), keys_only: true, ..Default::default() };
    let small = idle.scan(keys_only).await.unwrap().into_inner();
    server.eventually(&IN_FLIGHT, 0.0).await;
    assert!(server.sample(&HELD) > 0.0);
    server.eventually(&CUT, 3.0).await;
    server.eventually(&HELD, 0.0).await;
    server.eventually(&CONNECTIONS, 1.0).await;
    drop(small);
    kv.get(get("big")).await.unwrap();
}

#[tokio::test]
async fn nothing_that_has_left_counts_as_held_while_the_connection_idles() {
    let options = Options { answer_idle: Duration::from_millis(50), ..Options::default() };
    let server = Server::start(options).await;
    let mut kv = server.kv().await;
    // Around the sizes at which HTTP/2 copies, chains and splits, and at which trailers wait.
    for size in [0, 200, 256, 1000, 1024, 16_000, 16_384, 65_400, 65_536, 70_000, 300_000] {
        kv.put(put("k", vec![1; size])).await.unwrap();
        assert_eq!(kv.get(get("k")).await.unwrap().into_inner().record.unwrap().value.len(), size);
        server.eventually(&HELD, 0.0).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((server.sample(&CUT), server.sample(&CONNECTIONS)), (0.0, 1.0));
}

#[tokio::test]
async fn a_slow_reader_is_not_cut() {
    let server = Server::start(Options { answer_idle: Duration::from_secs(1), ..Options::default() }).await;
    let mut kv = server.kv().await;
    for index in 0..14 {
        kv.put(put(format!("key{index:02}"), vec![1; MIB])).await.unwrap();
    }
    let mut slow = stingy(&server, 256 * 1024).await;
    let mut scan = slow.scan(v1::ScanRequest::default()).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(message) = scan.message().await.unwrap() {
        count += message.records.len();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(count, 14);
    server.eventually(&HELD, 0.0).await;
    assert_eq!(server.sample(&CUT), 0.0);
}

#[tokio::test]
async fn scans_over_the_limit_are_refused() {
    let server = Server::start(Options { scans_max: 1, ..Options::default() }).await;
    let mut kv = server.kv().await;
    for index in 0..10 {
        kv.put(put(format!("key{index:02}"), vec![1; MIB])).await.unwrap();
    }
    let scan = kv.scan(v1::ScanRequest::default()).await.unwrap();
    let status = kv.scan(v1::ScanRequest::default()).await.unwrap_err();
    is(&status, Code::ResourceExhausted, "OVERLOADED", "no");
    kv.get(get("key00")).await.unwrap();
    drop(scan);
    server.eventually(&IN_FLIGHT, 0.0).await;
    let mut scan = kv.scan(v1::ScanRequest::default()).await.unwrap().into_inner();
    while scan.message().await.unwrap().is_some() {}
    server.eventually(&HELD, 0.0).await;
}
