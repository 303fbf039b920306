//! `rushkv.v1.Kv`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::Backend;
use super::answer::{Answers, Lease};
use super::deadline::Clock;
use super::page::Range;
use super::pipeline::Pipeline;
use super::request;
use super::share::{Connection, NoRoom, Taken};
use crate::error::{Error, Happened, Reason, Result, to_status};
use crate::kv;
use crate::limits::{CALL_DEADLINE_DEFAULT, CALL_DEADLINE_MAX, MESSAGE_BYTES_MAX, SCAN_MESSAGE_RECORDS};
use crate::metrics;
use crate::node::{Consistency, Routed, RoutedBatch, ScanQuery};
use crate::proto::v1;
use crate::proto::v1::kv_server::Kv;
use crate::transport::{CLUSTER, OF_ANOTHER_CLUSTER};

/// Pages of a scan that are read ahead of its client: the next one is read while one is sent.
const SCAN_PAGES_AHEAD: usize = 1;

#[derive(Debug)]
pub(super) struct Service<N> {
    node: Arc<N>,
    metrics: Arc<metrics::Grpc>,
}

/// Refuses a call that is meant for another cluster, before anything is done.
pub(super) fn meant(node: &impl Backend, cluster: Option<&str>) -> Result<()> {
    let Some(cluster) = cluster.filter(|id| !node.is_of_cluster(id)) else { return Ok(()) };
    let message = "the call is meant for another cluster than this node is of";
    Err(Error::new(Reason::Unavailable, message).with(OF_ANOTHER_CLUSTER, cluster))
}

impl<N: Backend> Service<N> {
    fn meant<T>(&self, request: &Request<T>) -> Result<()> {
        let cluster = request.metadata().get(CLUSTER);
        meant(&*self.node, cluster.map(|id| String::from_utf8_lossy(id.as_bytes())).as_deref())
    }
}

impl<N> Service<N> {
    pub fn new(node: Arc<N>, metrics: Arc<metrics::Grpc>) -> Service<N> {
        Service { node, metrics }
    }
}

/// A place among the scans under way.
fn scan_place(connection: &Connection) -> Result<Taken> {
    connection.scans.take(1).map_err(|NoRoom { total, own, part, max }| {
        let message = format!(
            "{total} scans are under way, {own} of them of this connection, which may have {part} for now; the \
             limit for all is {max}"
        );
        Error::new(Reason::Overloaded, message)
    })
}

type Answer<T> = std::result::Result<Response<T>, Status>;

fn answer<T>(result: Result<T>) -> Answer<T> {
    result.map(Response::new).map_err(|error| to_status(&error))
}

/// The answer to a call on a key; it tells who leads, whatever came of the call.
fn routed<T, R>(done: Result<Routed<T>>, outcome: impl FnOnce(T) -> Result<R>) -> Answer<R> {
    let (result, leader) = match done {
        Ok(Routed { result, leader }) => (result.and_then(outcome), leader),
        Err(error) => (Err(error), None),
    };
    let mut answer = answer(result);
    if let Some(leader) = leader {
        leader.write(match &mut answer {
            Ok(response) => response.metadata_mut(),
            Err(status) => status.metadata_mut(),
        });
    }
    answer
}

#[tonic::async_trait]
impl<N: Backend> Kv for Service<N> {
    async fn put(&self, request: Request<v1::PutRequest>) -> Answer<v1::PutResponse> {
        let limit = Clock::of(&request).unary();
        let written = async {
            self.meant(&request)?;
            let op = request::put(request.into_inner())?;
            limit.write(async { Ok(self.node.write(op, limit.node).await) }).await
        };
        routed(written.await, put_outcome)
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        let limit = Clock::of(&request).unary();
        let written = async {
            self.meant(&request)?;
            let op = request::delete(request.into_inner())?;
            limit.write(async { Ok(self.node.write(op, limit.node).await) }).await
        };
        routed(written.await, delete_outcome)
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::GetResponse> {
        let limit = Clock::of(&request).unary();
        let meant = self.meant(&request);
        let request = request.into_inner();
        let read = async {
            meant?;
            let key = request::key(request.key.clone())?;
            let how = request::consistency(request.consistency)?;
            limit.read(async { Ok(self.node.get(key, how, limit.node).await) }).await
        };
        routed(read.await, |found| {
            Ok(v1::GetResponse { record: found.map(|found| record(request.key, found)) })
        })
    }

    type ScanStream = ScanStream;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Answer<ScanStream> {
        // A scan is as long as its range, and goes on from where it stopped: it has the longest
        // deadline where its client names none, and each page one of its own.
        let deadline = Clock::of(&request).limit(CALL_DEADLINE_MAX, CALL_DEADLINE_MAX).node;
        self.meant(&request).map_err(|error| to_status(&error))?;
        let connection = Connection::of(&request);
        let request = request.into_inner();
        let scan = || {
            let range = request::range(&request)?;
            Ok(Scan {
                consistency: request::consistency(request.consistency)?,
                keys_only: request.keys_only,
                remaining: if request.limit == 0 { u64::MAX } else { request.limit },
                rest: range.resume(&request.page_token)?,
                range,
                deadline,
                answers: connection.answers.clone(),
            })
        };
        let scan: Scan = scan().map_err(|error| to_status(&error))?;
        let place = scan_place(&connection).map_err(|error| to_status(&error))?;
        let (pages, stream) = mpsc::channel(SCAN_PAGES_AHEAD);
        let node = self.node.clone();
        // Ends when the range does, when the deadline passes, or when the stream is dropped.
        tokio::spawn(scan.run(node, pages));
        Ok(Response::new(ScanStream { pages: stream, ended: false, _place: place }))
    }

    type PipelineStream = Pipeline;

    async fn pipeline(&self, request: Request<Streaming<v1::PipelineRequest>>) -> Answer<Pipeline> {
        answer(Pipeline::new(self.node.clone(), self.metrics.clone(), request))
    }

    async fn batch_write(&self, request: Request<v1::BatchWriteRequest>) -> Answer<v1::BatchWriteResponse> {
        let limit = Clock::of(&request).unary();
        let written = async {
            self.meant(&request)?;
            let ops = request::batch(request.into_inner())?;
            if ops.is_empty() {
                return Ok(Routed { result: Ok(v1::BatchWriteResponse::default()), leader: None });
            }
            let write = async { Ok(self.node.write_batch(ops.clone(), limit.node).await) };
            let RoutedBatch { results, leader } = limit.write(write).await?;
            if results.len() != ops.len() {
                let message = format!("{} outcomes for {} operations", results.len(), ops.len());
                return Err(Error::new(Reason::Internal, message));
            }
            let outcomes = ops.iter().zip(results).map(|(op, outcome)| write_outcome(op, outcome)).collect();
            Ok(Routed { result: Ok(v1::BatchWriteResponse { outcomes }), leader })
        };
        routed(written.await, Ok)
    }

    async fn batch_get(&self, request: Request<v1::BatchGetRequest>) -> Answer<v1::BatchGetResponse> {
        let limit = Clock::of(&request).unary();
        let meant = self.meant(&request);
        let request = request.into_inner();
        let read = async {
            meant?;
            let how = request::consistency(request.consistency)?;
            let keys = request::batch_keys(request.keys)?;
            if keys.is_empty() {
                return Ok(Routed { result: Ok(v1::BatchGetResponse::default()), leader: None });
            }
            let read = async { Ok(self.node.get_batch(keys.clone(), how, limit.node).await) };
            let RoutedBatch { results, leader } = limit.read(read).await?;
            Ok(Routed { result: Ok(v1::BatchGetResponse { results: fill(keys, results) }), leader })
        };
        routed(read.await, Ok)
    }
}

pub(super) fn record(key: Bytes, record: kv::Record) -> v1::Record {
    v1::Record {
        key,
        value: record.value,
        version: record.version,
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
    }
}

fn precondition_failed(current_version: u64) -> Error {
    let message = match current_version {
        0 => "the precondition does not hold: the key is not there".to_string(),
        version => format!("the precondition does not hold: the key is there, with version {version}"),
    };
    Error::new(Reason::PreconditionFailed, message).with("current_version", current_version)
}

fn mixed_up(asked: &str, outcome: kv::Outcome) -> Error {
    Error::new(Reason::Internal, format!("a {asked} was answered by {outcome:?}"))
}

pub(super) fn put_outcome(outcome: kv::Outcome) -> Result<v1::PutResponse> {
    match outcome {
        kv::Outcome::Put { version, revision } => Ok(v1::PutResponse { version, revision }),
        kv::Outcome::PreconditionFailed { current_version } => Err(precondition_failed(current_version)),
        kv::Outcome::Deleted { .. } => Err(mixed_up("put", outcome)),
    }
}

pub(super) fn delete_outcome(outcome: kv::Outcome) -> Result<v1::DeleteResponse> {
    match outcome {
        kv::Outcome::Deleted { existed, revision } => Ok(v1::DeleteResponse { existed, revision }),
        kv::Outcome::PreconditionFailed { current_version } => Err(precondition_failed(current_version)),
        kv::Outcome::Put { .. } => Err(mixed_up("delete", outcome)),
    }
}

fn write_outcome(op: &kv::Op, outcome: Result<kv::Outcome>) -> v1::WriteOutcome {
    use v1::write_outcome::Outcome;
    let outcome = outcome.and_then(|outcome| match op {
        kv::Op::Put { .. } => put_outcome(outcome).map(Outcome::Put),
        kv::Op::Delete { .. } => delete_outcome(outcome).map(Outcome::Delete),
    });
    v1::WriteOutcome {
        outcome: Some(outcome.unwrap_or_else(|error| {
            let happened = error.happened();
            Outcome::Error(operation_error(error, happened))
        })),
    }
}

/// `happened` is the row's for a write; a read changes nothing, however it fails.
pub(super) fn operation_error(error: Error, happened: Happened) -> v1::OperationError {
    let row = error.reason.row();
    v1::OperationError {
        reason: row.name.into(),
        message: error.message,
        happened: happened.as_str().into(),
        code: row.grpc as i32,
        metadata: error.metadata.into_iter().collect(),
    }
}

/// One result per key; from the first one on that would make the message too large, `not_read`.
fn fill(keys: Vec<Bytes>, found: Vec<Result<Option<kv::Record>>>) -> Vec<v1::BatchGetResult> {
    use v1::batch_get_result::Result as Found;
    // Every key may still turn out `not_read`: keep room for that (a tag, a length, a tag, a bool).
    const NOT_READ_BYTES: usize = 4;
    let mut room = MESSAGE_BYTES_MAX - keys.len() * NOT_READ_BYTES;
    let mut full = false;
    let mut found = found.into_iter();
    let mut one = |key: Bytes| {
        if full {
            return Found::NotRead(true);
        }
        let result = match found.next() {
            None => Found::NotRead(true),
            Some(Ok(None)) => Found::NotFound(true),
            Some(Ok(Some(one))) => Found::Record(record(key, one)),
            Some(Err(error)) => Found::Error(operation_error(error, Happened::No)),
        };
        let result = v1::BatchGetResult { result: Some(result) };
        // The message and the tag and length before it.
        let size = result.encoded_len() + 1 + 5;
        if size > room {
            full = true;
            return Found::NotRead(true);
        }
        room -= size;
        result.result.unwrap_or(Found::NotRead(true))
    };
    keys.into_iter().map(|key| v1::BatchGetResult { result: Some(one(key)) }).collect()
}

/// A scan under way.
struct Scan {
    /// What was asked for; page tokens are bound to it.
    range: Range,
    /// What is left of it.
    rest: Range,
    remaining: u64,
    keys_only: bool,
    consistency: Consistency,
    deadline: Instant,
    answers: Answers,
}

/// A message that waits for its client.
#[derive(Debug)]
struct Waiting {
    message: v1::ScanResponse,
    last: bool,
    /// Until the body counts it.
    _lease: Lease,
}

type Page = std::result::Result<Waiting, Status>;

impl Scan {
    async fn run<N: Backend>(mut self, node: Arc<N>, pages: mpsc::Sender<Page>) {
        loop {
            let page = tokio::select! {
                page = self.next(&*node) => page,
                () = pages.closed() => return,
            };
            let page = page.map_err(|error| to_status(&error));
            let last = !matches!(page, Ok(Waiting { last: false, .. }));
            // A client that does not take its pages until the deadline finds the channel closed early,
            // and the stream makes an error of that.
            match tokio::time::timeout_at(self.deadline, pages.send(page)).await {
                Ok(Ok(())) if !last => {}
                _ => return,
            }
        }
    }

    async fn next<N: Backend>(&mut self, node: &N) -> Result<Waiting> {
        if self.rest.is_empty() {
            return self.waiting(v1::ScanResponse::default(), true);
        }
        self.answers.room(MESSAGE_BYTES_MAX)?;
        let limit = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(SCAN_MESSAGE_RECORDS);
        let query = ScanQuery {
            start: self.rest.start.clone(),
            end: self.rest.end.clone(),
            reverse: self.rest.reverse,
            limit,
            keys_only: self.keys_only,
            consistency: self.consistency,
        };
        let deadline = self.deadline.min(Instant::now() + CALL_DEADLINE_DEFAULT);
        // The node answers at its deadline; the second is for one that does not.
        let page = tokio::time::timeout_at(deadline + Duration::from_secs(1), node.scan(query, deadline))
            .await
            .unwrap_or_else(|_| Err(scan_late()))?;

        self.remaining = self.remaining.saturating_sub(page.records.len() as u64);
        let mut page_token = Bytes::new();
        if page.more {
            let Some((key, _)) = page.records.last() else {
                return Err(Error::new(Reason::Internal, "a page of a scan is empty, and yet there is more"));
            };
            page_token = self.range.token(key);
            self.rest = self.rest.after(key);
        }
        let last = !page.more || self.remaining == 0;
        let records = page.records.into_iter().map(|(key, found)| {
            let mut record = record(key, found);
            if self.keys_only {
                record.value = Bytes::new();
            }
            record
        });
        let message = v1::ScanResponse { records: records.collect(), page_token };
        self.waiting(message, last)
    }

    fn waiting(&self, message: v1::ScanResponse, last: bool) -> Result<Waiting> {
        Ok(Waiting { _lease: self.answers.try_hold(message.encoded_len())?, message, last })
    }
}

fn scan_late() -> Error {
    Error::new(
        Reason::DeadlineExceeded,
        "the deadline passed before the scan ended; go on from the last page_token",
    )
}

/// The messages of a scan. Ends well only after its last message: a scan that was cut off ends in an
/// error.
#[derive(Debug)]
pub(super) struct ScanStream {
    pages: mpsc::Receiver<Page>,
    ended: bool,
    _place: Taken,
}

impl tokio_stream::Stream for ScanStream {
    type Item = std::result::Result<v1::ScanResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.pages.poll_recv(cx).map(|page| {
            let page = page.unwrap_or_else(|| Err(to_status(&scan_late())));
            self.ended = !matches!(page, Ok(Waiting { last: false, .. }));
            Some(page.map(|page| page.message))
        })
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn found(bytes: usize) -> Result<Option<kv::Record>> {
        let value = vec![0; bytes].into();
        Ok(Some(kv::Record { value, version: 1, create_revision: u64::MAX, mod_revision: u64::MAX }))
    }

    #[test]
    fn a_batch_of_reads_stays_under_the_message_limit_and_says_what_is_left() {
        use v1::batch_get_result::Result as Found;
        for (count, bytes) in [(4, 1024 * 1024), (4096, 4096), (4096, 740), (1, 0), (300, 10_463)] {
            let keys: Vec<Bytes> = (0..count).map(|i| format!("key{i:08}").into()).collect();
            let results = fill(keys.clone(), (0..count).map(|_| found(bytes)).collect());
            let kind = |found: &Found| match found {
                Found::Record(_) => 'r',
                Found::NotRead(true) => 'n',
                _ => '?',
            };
            let kinds: String = results.iter().map(|r| kind(r.result.as_ref().unwrap())).collect();
            let read = kinds.chars().take_while(|kind| *kind == 'r').count();
            assert_eq!(kinds, "r".repeat(read) + &"n".repeat(count - read));
            let size = v1::BatchGetResponse { results }.encoded_len();
            assert!(size <= MESSAGE_BYTES_MAX, "{count} of {bytes}: {size}");
            // Nothing is left out that would have fitted.
            assert!(
                read == count || size + bytes + 64 > MESSAGE_BYTES_MAX - 4096 * 8,
                "{count} of {bytes}: {size}"
            );
        }
    }

    #[test]
    fn what_the_node_did_not_read_is_not_read() {
        use v1::batch_get_result::Result as Found;
        let keys = ["a", "b", "c"].map(Bytes::from).to_vec();
        let found = vec![Err(Error::new(Reason::Unavailable, "no leader")), Ok(None)];
        let results: Vec<Found> = fill(keys, found).into_iter().map(|r| r.result.unwrap()).collect();
        let Found::Error(error) = &results[0] else { panic!("{results:?}") };
        assert_eq!((error.reason.as_str(), error.code), ("UNAVAILABLE", 14));
        assert_eq!(results[1..], [Found::NotFound(true), Found::NotRead(true)]);
    }

    #[test]
    fn outcomes_of_the_wrong_kind_are_bugs_not_successes() {
        let deleted = kv::Outcome::Deleted { existed: true, revision: 1 };
        assert_eq!(put_outcome(deleted).unwrap_err().reason, Reason::Internal);
        let put = kv::Outcome::Put { version: 1, revision: 1 };
        assert_eq!(delete_outcome(put).unwrap_err().reason, Reason::Internal);
        let failed = put_outcome(kv::Outcome::PreconditionFailed { current_version: 3 }).unwrap_err();
        assert_eq!(
            (failed.reason, failed.metadata["current_version"].as_str()),
            (Reason::PreconditionFailed, "3")
        );
    }
}
