//! Peers made by hand: what they may say wrong, and what they may leave undone.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

use super::super::handshake::{Local, offer};
use super::super::{Options, dial};
use super::support::*;
use crate::limits::{PEER_FRAME_BYTES_MAX, PEER_FRAME_MESSAGES_MAX, PEER_MESSAGE_BYTES_MAX};
use crate::proto::v1;
use crate::proto::v1::transport_client::TransportClient;
use crate::proto::v1::transport_server::{Transport as Service, TransportServer};
use crate::raft::{CarryError, Class};
use crate::types::{NodeId, ReplicaId};

/// What node 1 says first to node 2.
fn handshake(class: Class) -> v1::Handshake {
    offer(&Local { cluster_id: CLUSTER.to_string(), number: NodeId(1) }, NodeId(2), class)
}

fn opening(handshake: v1::Handshake) -> v1::Frame {
    v1::Frame { handshake: Some(handshake), messages: Vec::new() }
}

fn message(request: u64) -> v1::Message {
    v1::Message {
        request,
        group: 1,
        from: ReplicaId::new(NodeId(1), 1).0,
        to: ReplicaId::new(NodeId(2), 1).0,
        body: number(request, 8),
        refusal: String::new(),
    }
}

fn frame(messages: Vec<v1::Message>) -> v1::Frame {
    v1::Frame { handshake: None, messages }
}

async fn exchange(
    address: SocketAddr,
    frames: impl Stream<Item = v1::Frame> + Send + 'static,
) -> Result<Streaming<v1::Frame>, Status> {
    let channel = dial(&address.to_string()).unwrap();
    let answers = soon(TransportClient::new(channel).exchange(frames)).await?;
    Ok(answers.into_inner())
}

/// A connection whose handshake has succeeded.
async fn open(host: &Host, class: Class) -> (mpsc::Sender<v1::Frame>, Streaming<v1::Frame>) {
    let (frames, queue) = mpsc::channel(16);
    frames.send(opening(handshake(class))).await.unwrap();
    let mut answers = exchange(host.address, ReceiverStream::new(queue)).await.unwrap();
    let theirs = soon(answers.message()).await.unwrap().unwrap().handshake.unwrap();
    assert_eq!((theirs.from_node, theirs.to_node, theirs.cluster_id.as_str()), (2, 1, CLUSTER));
    (frames, answers)
}

/// How a connection ended.
async fn end(mut answers: Streaming<v1::Frame>) -> Result<(), Status> {
    while soon(answers.message()).await?.is_some() {}
    Ok(())
}

#[tokio::test]
async fn handshakes_that_do_not_fit_are_refused_with_both_sides_named() {
    type Change = fn(&mut v1::Handshake);
    let cases: [(&str, Change, &[&str]); 6] = [
        ("cluster", |h| h.cluster_id = "elsewhere".to_string(), &["elsewhere", CLUSTER, "n1", "n2"]),
        ("node", |h| h.to_node = 9, &["n1", "n9", "n2"]),
        ("node", |h| h.from_node = 2, &["n2", "itself"]),
        ("protocol", |h| (h.protocol_min, h.protocol_max) = (70, 90), &["70 to 90", "n1", "n2"]),
        ("class", |h| h.class = 0, &["class 0", "n1", "n2"]),
        ("malformed", |h| h.cluster_id.clear(), &["n1", CLUSTER]),
    ];
    let two = Host::start(2, Options::default());
    for (reason, change, words) in cases {
        let before = two.metric("handshakes_refused_total", &[("reason", reason)]).unwrap();
        let mut wrong = handshake(Class::Append);
        change(&mut wrong);
        let frames = stream::iter([opening(wrong), frame(vec![message(1)])]);
        let status = exchange(two.address, frames).await.expect_err(reason);
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(words.iter().all(|word| status.message().contains(word)), "{status}");
        let after = two.metric("handshakes_refused_total", &[("reason", reason)]).unwrap();
        assert_eq!(after, before + 1.0, "{reason}");
    }
    assert_eq!((two.inbox.count(), two.transport.incoming.len()), (0, 0));
}

#[tokio::test]
async fn a_connection_that_begins_with_anything_else_is_refused() {
    let options = Options { handshake_timeout: Duration::from_millis(100), ..Options::default() };
    let two = Host::start(2, options);
    let with_messages = v1::Frame { messages: vec![message(1)], ..opening(handshake(Class::Append)) };
    let cases = [
        (Code::InvalidArgument, stream::iter(vec![frame(vec![message(1)])]).boxed()),
        (Code::InvalidArgument, stream::iter(vec![with_messages]).boxed()),
        (Code::InvalidArgument, stream::empty().boxed()),
        (Code::DeadlineExceeded, stream::pending().boxed()),
    ];
    for (code, frames) in cases {
        assert_eq!(exchange(two.address, frames).await.unwrap_err().code(), code);
    }
    assert_eq!(two.metric("handshakes_refused_total", &[("reason", "malformed")]), Some(4.0));
    two.transport.shutdown();
    let frames = stream::iter([opening(handshake(Class::Append))]);
    assert_eq!(exchange(two.address, frames).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(two.inbox.count(), 0);
}

#[tokio::test]
async fn nonsense_closes_its_connection_and_nothing_of_it_is_delivered() {
    let two = Host::start(2, Options::default());
    let replica = |node, incarnation| ReplicaId::new(NodeId(node), incarnation).0;
    let large = Bytes::from(vec![0; PEER_MESSAGE_BYTES_MAX + 1]);
    let cases = [
        frame(Vec::new()),
        opening(handshake(Class::Append)),
        v1::Frame { messages: vec![message(1)], ..opening(handshake(Class::Append)) },
        frame((0..=PEER_FRAME_MESSAGES_MAX as u64).map(message).collect()),
        frame(vec![message(1), v1::Message { from: replica(3, 1), ..message(2) }]),
        frame(vec![message(1), v1::Message { to: replica(3, 1), ..message(2) }]),
        frame(vec![message(1), v1::Message { refusal: "no".to_string(), ..message(2) }]),
        frame(vec![message(1), v1::Message { body: large, ..message(2) }]),
        frame(vec![v1::Message { body: vec![0; PEER_FRAME_BYTES_MAX].into(), ..message(1) }]),
    ];
    for wrong in cases {
        let shown: String = format!("{wrong:?}").chars().take(200).collect();
        let (frames, answers) = open(&two, Class::Append).await;
        frames.send(wrong).await.unwrap();
        let status = end(answers).await.expect_err(&shown);
        assert!(matches!(status.code(), Code::InvalidArgument | Code::OutOfRange), "{status} {shown}");
        assert_eq!(two.inbox.count(), 0, "{shown}");
    }
    let (frames, mut answers) = open(&two, Class::Append).await;
    frames.send(frame(vec![message(5)])).await.unwrap();
    let answer = soon(answers.message()).await.unwrap().unwrap();
    assert_eq!(answer.messages, [message(5)], "and the next connection works");
}

/// Has a field where a frame has its messages, of another type.
#[derive(Clone, PartialEq, prost::Message)]
struct Garbage {
    #[prost(message, optional, tag = "1")]
    handshake: Option<v1::Handshake>,
    #[prost(uint64, tag = "2")]
    messages: u64,
}

#[tokio::test]
async fn bytes_that_are_no_frame_close_the_connection() {
    let two = Host::start(2, Options::default());
    let mut client = tonic::client::Grpc::new(dial(&two.address.to_string()).unwrap());
    soon(client.ready()).await.unwrap();
    let frames = [
        Garbage { handshake: Some(handshake(Class::Append)), messages: 0 },
        Garbage { handshake: None, messages: 7 },
    ];
    let codec = tonic_prost::ProstCodec::<Garbage, v1::Frame>::default();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/rushkv.v1.Transport/Exchange");
    let requests = Request::new(stream::iter(frames).chain(stream::pending()));
    let answers = soon(client.streaming(requests, path, codec)).await.unwrap().into_inner();
    assert_eq!(end(answers).await.unwrap_err().code(), Code::Internal);
    assert_eq!(two.inbox.count(), 0);
    until("the stream is gone", || two.transport.incoming.len() == 0).await;
}

#[tokio::test]
async fn a_newer_connection_of_the_same_node_and_class_takes_over() {
    let two = Host::start(2, Options::default());
    let (control, mut control_answers) = open(&two, Class::Control).await;
    let (old, old_answers) = open(&two, Class::Append).await;
    two.inbox.hold(Class::Append);
    old.send(frame(vec![message(1)])).await.unwrap();
    until("it has arrived", || two.inbox.count() == 1).await;
    let (new, mut new_answers) = open(&two, Class::Append).await;
    // Of the old connection, whatever it still carries.
    let _ = old.try_send(frame(vec![message(2)]));
    let status = end(old_answers).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
    new.send(frame(vec![message(3)])).await.unwrap();
    until("the new one's has arrived", || two.inbox.count() == 2).await;
    two.inbox.release();
    assert_eq!(soon(new_answers.message()).await.unwrap().unwrap().messages, [message(3)]);
    assert_eq!(two.inbox.numbers(Class::Append), [1, 3]);
    control.send(frame(vec![message(4)])).await.unwrap();
    assert_eq!(soon(control_answers.message()).await.unwrap().unwrap().messages, [message(4)]);
}

#[tokio::test]
async fn a_peer_that_takes_no_answers_is_not_read_from_for_ever() {
    const ANSWER: usize = 256 * 1024;
    let two = Host::start(2, Options { in_flight_messages_max: 8, ..Options::default() });
    two.inbox.answer_bytes.store(ANSWER, Ordering::SeqCst);
    let sent = Arc::new(AtomicU64::new(0));
    let counting = sent.clone();
    let endless = stream::iter(1..).map(move |request| {
        counting.store(request, Ordering::SeqCst);
        frame(vec![v1::Message { body: number(request, 64 * 1024), ..message(request) }])
    });
    let first = stream::iter([opening(handshake(Class::Append))]);
    let proxy = Proxy::start(two.address).await;
    let answers = exchange(proxy.address, first.chain(endless)).await.unwrap();
    standstill("the client can send no more", || sent.load(Ordering::SeqCst)).await;
    // The client's window (4 MiB) holds 16 answers, and what HTTP/2 has in hand a few more.
    let arrived = two.inbox.count();
    assert!(arrived < 64, "{arrived} messages were taken in, without a place for their answers");
    proxy.cut();
    drop(answers);
    until("the stream is gone", || two.transport.incoming.len() == 0).await;
}

/// Answers every exchange with the same frames, then nothing.
#[derive(Debug)]
struct Scripted(Vec<v1::Frame>);

#[tonic::async_trait]
impl Service for Scripted {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<v1::Frame, Status>> + Send>>;

    async fn exchange(
        &self,
        requests: Request<Streaming<v1::Frame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        // Held, or HTTP/2 would tell the other side that nobody listens.
        let requests = requests.into_inner();
        let silence = stream::unfold(requests, |mut requests| async move {
            while let Ok(Some(_)) = requests.message().await {}
            None
        });
        Ok(Response::new(stream::iter(self.0.clone()).map(Ok).chain(silence).boxed()))
    }
}

async fn scripted(frames: Vec<v1::Frame>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(TransportServer::new(Scripted(frames)));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    address
}

/// What a node answers to node 1.
fn answer(from: u32, class: Class) -> v1::Frame {
    opening(offer(&Local { cluster_id: CLUSTER.to_string(), number: NodeId(from) }, NodeId(1), class))
}

#[tokio::test]
async fn a_server_that_is_not_the_one_meant_is_refused() {
    let options = Options { handshake_timeout: Duration::from_millis(300), ..Options::default() };
    let cases = [
        ("another node", vec![answer(3, Class::Control)], "n2 was dialled, and n3 answered"),
        ("another class", vec![answer(2, Class::Append)], "append"),
        ("no handshake", vec![frame(vec![message(1)])], "did not answer the handshake"),
        ("nothing", vec![], "no answer to the handshake"),
    ];
    for (what, frames, word) in cases {
        let one = Host::start(1, options);
        one.dials(&[(2, scripted(frames).await)]);
        let why = refused_with(soon(one.send(2, Class::Control, number(1, 8))).await);
        assert!(why.contains(word), "{what}: {why}");
        assert_eq!(one.of("connects_total", 2, "control"), Some(0.0));
    }
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = Options { handshake_timeout: Duration::from_millis(200), ..Options::default() };
    let one = Host::start(1, options);
    one.dials(&[(2, listener.local_addr().unwrap())]);
    let began = Instant::now();
    let why = refused_with(soon(one.send(2, Class::Control, number(1, 8))).await);
    assert!(why.contains("no answer to the handshake"), "{why}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn answers_nobody_asked_for_are_dropped_and_a_second_handshake_breaks() {
    let one = Host::start(1, Options::default());
    let unasked = frame(vec![message(77), message(1), message(1)]);
    one.dials(&[(2, scripted(vec![answer(2, Class::Control), unasked]).await)]);
    until("it was connected", || one.of("connects_total", 2, "control") >= Some(1.0)).await;
    assert_eq!(one.of("connected", 2, "control"), Some(1.0), "that breaks nothing");

    let one = Host::start(1, Options::default());
    let twice = vec![answer(2, Class::Control), answer(2, Class::Control)];
    one.dials(&[(2, scripted(twice).await)]);
    until("it was connected", || one.of("connects_total", 2, "control") >= Some(1.0)).await;
    until("it broke", || {
        let mut call = one.send(2, Class::Control, number(1, 8));
        let outcome = futures_util::FutureExt::now_or_never(&mut call);
        matches!(outcome, Some(Err(CarryError::Unreachable(why))) if why.contains("shook hands twice"))
    })
    .await;
}
