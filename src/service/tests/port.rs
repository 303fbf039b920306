//! What the two ports do with connections, with strangers and at the end; health and reflection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tonic::{Code, Request};

use super::super::{health, http};
use super::{Fake, Metrics, Options, Server, is, put};
use crate::error::{Happened, Reason, from_status};
use crate::node::Problem;
use crate::proto::v1;

#[tokio::test]
async fn health_follows_the_nodes_problems_and_the_shutdown() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let server = Server::start(Options::default()).await;
    let mut client = HealthClient::new(server.channel().await);
    let mut watch =
        client.watch(HealthCheckRequest { service: "rushkv.v1.Kv".into() }).await.unwrap().into_inner();
    let mut next = async |expected: ServingStatus| {
        loop {
            // The first status may be from before the node was asked.
            if watch.message().await.unwrap().unwrap().status() == expected {
                return;
            }
        }
    };
    let wait = Duration::from_secs(5);
    tokio::time::timeout(wait, next(ServingStatus::Serving)).await.unwrap();
    for service in health::SERVICES {
        let status = client.check(HealthCheckRequest { service: service.into() }).await.unwrap();
        assert_eq!(status.into_inner().status(), ServingStatus::Serving, "{service:?}");
    }
    server.node.problems.lock().unwrap().push(Problem { reason: "TEST", message: "a test".into() });
    // As the node is now, not as it was a moment ago.
    let status = client.check(HealthCheckRequest { service: String::new() }).await.unwrap();
    assert_eq!(status.into_inner().status(), ServingStatus::NotServing);
    tokio::time::timeout(wait, next(ServingStatus::NotServing)).await.unwrap();
    server.node.problems.lock().unwrap().clear();
    tokio::time::timeout(wait, next(ServingStatus::Serving)).await.unwrap();
    server.stop.send(()).unwrap();
    tokio::time::timeout(wait, next(ServingStatus::NotServing)).await.unwrap();
    tokio::time::timeout(wait, server.done).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::{v1 as pb, v1alpha};
    let server = Server::start(Options::default()).await;
    let request = pb::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(server.channel().await);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["rushkv.RushKV", "rushkv.v1.Kv", "rushkv.v1.Cluster", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|listed| listed == name), "{name} is not in {names:?}");
    }

    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
            "rushkv.v1.Kv".into(),
        )),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel().await);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    use v1alpha::server_reflection_response::MessageResponse as Alpha;
    assert!(matches!(answer, Some(Alpha::FileDescriptorResponse(_))), "{answer:?}");
}

/// What the server sends before it closes; panics if it does not close.
async fn closed(mut stream: TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    // A reset counts as closed.
    let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut read)).await;
    let _ = end.expect("the server keeps the connection open");
    read
}

#[tokio::test]
async fn what_is_not_http2_is_closed_without_a_word() {
    let options = Options { handshake: Duration::from_millis(100), ..Options::default() };
    let server = Server::start(options).await;
    let garbage: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", &[0xFF; 4096], b"PRI * HTTP/2.0\r\n\r\nXX"];
    for bytes in garbage {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        assert_eq!(closed(stream).await, b"", "{bytes:?}");
    }
    server.eventually(&["refused_total{", "not_http2"], 4.0).await;

    // One says nothing at all, one begins and stops.
    let silent = TcpStream::connect(server.address).await.unwrap();
    let mut stopped = TcpStream::connect(server.address).await.unwrap();
    stopped.write_all(b"PRI * HT").await.unwrap();
    assert_eq!(closed(silent).await, b"");
    assert_eq!(closed(stopped).await, b"");
    server.eventually(&["refused_total{", "silent"], 2.0).await;

    // HTTP/2 that goes wrong after the preface.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&[0xFF; 64]).await.unwrap();
    closed(stream).await;
    server.eventually(&["rushkv_grpc_connections "], 0.0).await;
    server.kv().await.put(put("k", "v")).await.unwrap();
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_at_once() {
    let server = Server::start(Options { connections_max: 2, ..Options::default() }).await;
    let (mut first, second) = (server.kv().await, server.kv().await);
    first.put(put("k", "v")).await.unwrap();
    server.eventually(&["rushkv_grpc_connections "], 2.0).await;
    let third = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(closed(third).await, b"");
    server.eventually(&["refused_total{", "limit"], 1.0).await;
    drop(second);
    server.eventually(&["rushkv_grpc_connections "], 1.0).await;
    server.kv().await.put(put("k", "v")).await.unwrap();
}

/// Its last word is not lost in a reset: what a client sent before it knew of the stop is still read.
#[tokio::test]
async fn a_stop_closes_only_once_the_client_has() {
    let server = Server::start(Options::default()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // Frames: length, kind, flags, stream (RFC 9113, 4.1).
    let (settings, ping, go_away) = (4, 6, 7);
    let head = |length, kind, flags| [0, 0, length, kind, flags, 0, 0, 0, 0];
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&head(0, settings, 0)).await.unwrap();
    server.eventually(&["rushkv_grpc_connections "], 1.0).await;
    server.stop.send(()).unwrap();
    let mut said = Vec::new();
    // To the end of what the server sends.
    let mut frame = [0; 9];
    while stream.read_exact(&mut frame).await.is_ok() {
        let [_, _, length, kind, flags, ..] = frame;
        let mut payload = vec![0; length.into()];
        stream.read_exact(&mut payload).await.unwrap();
        said.push(kind);
        if kind == ping && flags == 0 {
            stream.write_all(&[&head(length, ping, 1)[..], &payload].concat()).await.unwrap();
        }
    }
    assert_eq!(
        said.iter().filter(|kind| **kind == go_away).count(),
        2,
        "first of all, then of the last: {said:?}"
    );
    // A reset would answer the first of these, and fail the next.
    for _ in 0..5 {
        stream.write_all(&head(0, settings, 1)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!server.done.is_finished());
    let closed = std::time::Instant::now();
    drop(stream);
    server.done.await.unwrap().unwrap();
    assert!(closed.elapsed() < Duration::from_millis(700), "it does not wait for more");
}

#[tokio::test]
async fn calls_that_do_not_exist_are_unimplemented() {
    let server = Server::start(Options::default()).await;
    for path in ["/rushkv.v1.Kv/Nope", "/rushkv.v9.Kv/Put"] {
        let mut client = tonic::client::Grpc::new(server.channel().await);
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<v1::PutRequest, v1::PutResponse>::default();
        let status =
            client.unary(Request::new(put("k", "v")), path.parse().unwrap(), codec).await.unwrap_err();
        is(&status, Code::Unimplemented, "UNIMPLEMENTED", "no");
    }
    server.eventually(&["requests_total{", "\"unknown\"", "UNIMPLEMENTED"], 2.0).await;
}

#[tokio::test]
async fn a_call_given_up_is_counted_and_a_drain_lets_calls_end_or_cuts_them_off() {
    let options = Options { drain: Duration::from_millis(300), ..Options::default() };
    let server = Server::start(options).await;
    server.node.stalled.store(true, Ordering::Relaxed);
    let mut kv = server.kv().await;
    let given_up = tokio::time::timeout(Duration::from_millis(50), kv.put(put("k", "v"))).await;
    assert!(given_up.is_err());
    server.eventually(&["requests_total{", "\"Put\"", "CANCELLED"], 1.0).await;
    server.eventually(&["rushkv_grpc_in_flight "], 0.0).await;

    let metrics = server.metrics.clone();
    let stuck = tokio::spawn(async move { kv.put(put("k", "v")).await });
    server.eventually(&["rushkv_grpc_in_flight "], 1.0).await;
    let started = std::time::Instant::now();
    server.stop.send(()).unwrap();
    server.done.await.unwrap().unwrap();
    let took = started.elapsed();
    assert!(took >= options.drain && took < Duration::from_secs(3), "{took:?}");
    let status = stuck.await.unwrap().unwrap_err();
    assert_eq!(from_status(&status, Happened::Unknown).reason, Reason::OutcomeUnknown);
    TcpStream::connect(server.address).await.unwrap_err();
    // The call itself was dropped with its connection: nothing of it holds the node.
    for _ in 0..200 {
        if metrics.text().unwrap().contains("\nrushkv_grpc_in_flight 0\n") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the call that was cut off is still under way");
}

async fn http_get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let text = String::from_utf8(closed(stream).await).unwrap();
    (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
}

#[tokio::test]
async fn the_http_endpoint_tells_metrics_life_and_readiness() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let node = Arc::new(Fake::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let done = tokio::spawn(http::serve(listener, node.clone(), Metrics::new().registry, shutdown));

    let (status, text) = http_get(address, "/metrics").await;
    assert_eq!(status, 200);
    assert!(text.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{text}");
    assert!(text.contains("\nrushkv_build_info{"), "{text}");
    assert_eq!(http_get(address, "/livez").await.0, 200);
    assert_eq!(http_get(address, "/readyz").await.0, 200);
    assert_eq!(http_get(address, "/nope").await.0, 404);
    let long = format!("/{}", "x".repeat(64 * 1024));
    assert!((400..500).contains(&http_get(address, &long).await.0));

    let problem = |reason, message: &str| Problem { reason, message: message.into() };
    *node.problems.lock().unwrap() = vec![problem("DISK_LOW", "1 GiB left"), problem("TEST", "a test")];
    let (status, text) = http_get(address, "/readyz").await;
    assert_eq!(status, 503);
    assert!(text.ends_with("\r\n\r\nDISK_LOW: 1 GiB left\nTEST: a test\n"), "{text}");
    assert_eq!(http_get(address, "/livez").await.0, 200);

    stop.send(()).unwrap();
    done.await.unwrap().unwrap();
    TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn a_request_that_is_no_message_of_ours_is_refused_before_anything_happens() {
    let server = Server::start(Options::default()).await;
    let mut client = tonic::client::Grpc::new(server.channel().await);
    client.ready().await.unwrap();
    // Its field 1 is a number, where a put has its key.
    let codec = tonic_prost::ProstCodec::<v1::Topology, v1::PutResponse>::default();
    let wrong = v1::Topology { epoch: 7, ..Default::default() };
    let path = "/rushkv.v1.Kv/Put".parse().unwrap();
    let status = client.unary(Request::new(wrong), path, codec).await.unwrap_err();
    is(&status, Code::InvalidArgument, "INVALID_ARGUMENT", "no");
    assert!(server.node.records.lock().unwrap().is_empty());
}

#[tokio::test]
async fn calls_over_the_limit_are_refused_but_health_still_answers() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    // A connection may have a quarter of what is free.
    let server = Server::start(Options { calls_max: 4, ..Options::default() }).await;
    server.node.stalled.store(true, Ordering::Relaxed);
    let mut kv = server.kv().await;
    let mut busy = kv.clone();
    let busy = tokio::spawn(async move { busy.put(put("k", "v")).await });
    server.eventually(&["rushkv_grpc_in_flight "], 1.0).await;
    let status = kv.put(put("k", "v")).await.unwrap_err();
    is(&status, Code::ResourceExhausted, "OVERLOADED", "no");
    let mut health = HealthClient::new(server.channel().await);
    health.check(HealthCheckRequest { service: String::new() }).await.unwrap();
    busy.abort();
    server.eventually(&["rushkv_grpc_in_flight "], 0.0).await;
    server.node.stalled.store(false, Ordering::Relaxed);
    kv.put(put("k", "v")).await.unwrap();
}
