//! Calls that share a stream.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming};

use super::{Server, is, put};
use crate::error::Reason;
use crate::limits::{PIPELINE_MESSAGE_BYTES_MAX, PIPELINES_PER_CONNECTION_MAX};
use crate::proto::v1;
use crate::proto::v1::pipeline_request::Call;
use crate::proto::v1::pipeline_response::Outcome;
use crate::service::grpc::Options;
use crate::transport::{CLUSTER, Leader, OF_ANOTHER_CLUSTER};
use crate::types::{Epoch, PartitionId};

struct Stream {
    requests: mpsc::Sender<v1::PipelineRequest>,
    answers: Streaming<v1::PipelineResponse>,
}

impl Stream {
    async fn open(server: &Server, cluster: Option<&'static str>) -> Stream {
        let (requests, queue) = mpsc::channel(64);
        let mut request = Request::new(ReceiverStream::new(queue));
        if let Some(cluster) = cluster {
            request.metadata_mut().insert(CLUSTER, cluster.parse().unwrap());
        }
        let answers = server.kv().await.pipeline(request).await.unwrap().into_inner();
        Stream { requests, answers }
    }

    fn send(&self, id: u64, call: impl Into<Option<Call>>) {
        self.requests.try_send(v1::PipelineRequest { id, timeout_ms: 0, call: call.into() }).unwrap();
    }

    async fn answer(&mut self) -> v1::PipelineResponse {
        self.answers.message().await.unwrap().expect("the stream goes on")
    }

    async fn error(&mut self) -> (u64, v1::OperationError) {
        match self.answer().await {
            v1::PipelineResponse { id, outcome: Some(Outcome::Error(error)), .. } => (id, error),
            other => panic!("no error: {other:?}"),
        }
    }
}

fn get(key: &'static str) -> Call {
    Call::Get(v1::GetRequest { key: key.into(), consistency: 0 })
}

#[tokio::test]
async fn each_is_answered_under_its_id() {
    let server = Server::start(Options::default()).await;
    let mut stream = Stream::open(&server, Some("c1")).await;
    stream.send(1, Call::Put(put("k", "v")));
    assert!(matches!(
        stream.answer().await,
        v1::PipelineResponse {
            id: 1,
            outcome: Some(Outcome::Put(v1::PutResponse { version: 1, .. })),
            leader: None,
        }
    ));
    stream.send(5, get("k"));
    let answer = stream.answer().await;
    let Some(Outcome::Get(v1::GetResponse { record: Some(record) })) = answer.outcome else {
        panic!("{answer:?}")
    };
    assert_eq!((answer.id, &record.value[..]), (5, &b"v"[..]));

    let condition = v1::precondition::Condition::Absent(true);
    let absent = Some(v1::Precondition { condition: Some(condition) });
    stream.send(6, Call::Put(v1::PutRequest { precondition: absent, ..put("k", "w") }));
    let (id, error) = stream.error().await;
    assert_eq!((id, error.reason.as_str()), (6, Reason::PreconditionFailed.row().name));
    assert_eq!((error.happened.as_str(), error.metadata["current_version"].as_str()), ("no", "1"));

    stream.send(7, Call::Put(put("", "v")));
    stream.send(8, None);
    for id in [7, 8] {
        let (of, error) = stream.error().await;
        assert_eq!((of, error.code), (id, Code::InvalidArgument as i32), "{error:?}");
    }
    let delete = v1::DeleteRequest { key: "k".into(), precondition: None };
    stream.send(9, Call::Delete(delete));
    let answer = stream.answer().await;
    assert!(matches!(answer.outcome, Some(Outcome::Delete(v1::DeleteResponse { existed: true, .. }))));

    drop(stream.requests);
    assert!(
        stream.answers.message().await.unwrap().is_none(),
        "it ends when its client has nothing more to ask"
    );
    for (method, code, count) in
        [("\"Put\"", "\"OK\"", 1.0), ("\"Put\"", "FAILED_PRECONDITION", 1.0), ("\"Get\"", "\"OK\"", 1.0)]
    {
        server.eventually(&["requests_total{", method, code], count).await;
    }
    server.eventually(&["rushkv_grpc_in_flight "], 0.0).await;
}

#[tokio::test]
async fn a_call_that_takes_long_holds_up_no_other() {
    let server = Server::start(Options::default()).await;
    let mut stream = Stream::open(&server, None).await;
    server.node.stalled.store(true, Ordering::Relaxed);
    stream.send(1, get("k"));
    // The stream and the call.
    server.eventually(&["rushkv_grpc_in_flight "], 2.0).await;
    server.node.stalled.store(false, Ordering::Relaxed);
    stream.send(2, get("k"));
    assert_eq!(stream.answer().await.id, 2);
    drop(stream);
    server.eventually(&["rushkv_grpc_in_flight "], 0.0).await;
}

#[tokio::test]
async fn ids_have_to_rise() {
    let server = Server::start(Options::default()).await;
    let mut stream = Stream::open(&server, None).await;
    stream.send(2, get("k"));
    assert_eq!(stream.answer().await.id, 2);
    stream.send(2, get("k"));
    let last = stream.answer().await;
    assert_eq!((last.id, last.outcome), (2, Some(Outcome::Closed(true))), "what was not begun is told");
    is(&stream.answers.message().await.unwrap_err(), Code::InvalidArgument, "INVALID_ARGUMENT", "no");
}

#[tokio::test]
async fn a_large_message_ends_the_stream_once_it_is_answered() {
    let server = Server::start(Options::default()).await;
    let large = v1::PutRequest { value: vec![7; PIPELINE_MESSAGE_BYTES_MAX + 1].into(), ..put("k", "") };
    let reads = [Call::Put(large), get("k")];
    for (id, call) in (1..).zip(reads) {
        let mut stream = Stream::open(&server, None).await;
        stream.send(id, call);
        let answer = stream.answer().await;
        assert!(answer.id == id && !matches!(answer.outcome, Some(Outcome::Error(_))), "{answer:?}");
        let last = stream.answer().await;
        assert_eq!((last.id, last.outcome), (id, Some(Outcome::Closed(true))));
        assert!(stream.answers.message().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_connection_has_few_of_them() {
    let server = Server::start(Options::default()).await;
    let mut kv = server.kv().await;
    let mut open = Vec::new();
    for _ in 0..PIPELINES_PER_CONNECTION_MAX {
        let (requests, queue) = mpsc::channel(1);
        let answers = kv.pipeline(ReceiverStream::new(queue)).await.unwrap();
        open.push((requests, answers));
    }
    let refused = kv.pipeline(tokio_stream::pending()).await.unwrap_err();
    is(&refused, Code::ResourceExhausted, "OVERLOADED", "no");
    drop(open);
    for _ in 0..200 {
        if kv.pipeline(tokio_stream::pending()).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the places are not given back");
}

#[tokio::test]
async fn a_server_that_stops_says_how_far_it_has_read() {
    let server = Server::start(Options { drain: Duration::from_secs(30), ..Options::default() }).await;
    let mut stream = Stream::open(&server, None).await;
    stream.send(3, Call::Put(put("k", "v")));
    assert_eq!(stream.answer().await.id, 3);
    server.stop.send(()).unwrap();
    let last = stream.answer().await;
    assert_eq!((last.id, last.outcome), (3, Some(Outcome::Closed(true))));
    assert!(stream.answers.message().await.unwrap().is_none());
    let stopped = tokio::time::timeout(Duration::from_secs(5), server.done).await;
    stopped.expect("an idle stream does not hold up a stop").unwrap().unwrap();
}

#[tokio::test]
async fn one_for_another_cluster_is_refused() {
    let server = Server::start(Options::default()).await;
    let mut stream = Stream::open(&server, Some("c2")).await;
    stream.send(1, Call::Put(put("k", "v")));
    let (_, error) = stream.error().await;
    assert_eq!((error.happened.as_str(), error.metadata[OF_ANOTHER_CLUSTER].as_str()), ("no", "c2"));
    assert!(server.node.records.lock().unwrap().is_empty());
}

#[tokio::test]
async fn who_leads_is_told() {
    let server = Server::start(Options::default()).await;
    let mut stream = Stream::open(&server, None).await;
    *server.node.leader.lock().unwrap() = Some(Leader {
        cluster_id: "c1".into(),
        epoch: Epoch(7),
        partition: PartitionId(3),
        address: "n2:8080".into(),
    });
    stream.send(1, get("k"));
    let leader = stream.answer().await.leader.unwrap();
    let told = (leader.address.as_str(), leader.partition, leader.epoch, leader.cluster_id.as_str());
    assert_eq!(told, ("n2:8080", 3, 7, "c1"));
}

#[tokio::test]
async fn they_share_the_limit_of_all_calls() {
    let server = Server::start(Options { calls_max: 16, ..Options::default() }).await;
    let mut stream = Stream::open(&server, None).await;
    server.node.stalled.store(true, Ordering::Relaxed);
    (1..=16).for_each(|id| stream.send(id, get("k")));
    let (_, error) = stream.error().await;
    assert_eq!(error.reason, Reason::Overloaded.row().name);
    drop(stream);
    server.eventually(&["rushkv_grpc_in_flight "], 0.0).await;
}
