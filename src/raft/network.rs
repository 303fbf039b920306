//! openraft's network on a [`Carrier`]: what this replica says to the others of its group.
//!
//! Entries are pipelined: many requests to one replica are under way, and their answers are handed to
//! the consensus core in order. Each of openraft's clients has one task, so that each keeps to one class:
//! heartbeats never wait behind entries, entries never behind a snapshot.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use openraft::error::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::time::{Instant, timeout, timeout_at};

use super::Metrics;
use super::carrier::{Carrier, CarryError, Class, Route};
use super::message::{
    Append, decode_append_answer, decode_transfer_answer, decode_vote_answer, encode_append, encode_transfer,
    encode_vote_request,
};
use super::outgoing::{self, Outgoing};
use super::snapshot::{RaftSnapshot, SnapshotData};
use super::types::{RaftLogId, TypeConfig, Vote};
use crate::codec::Malformed;
use crate::types::{LogKey, ReplicaId};

/// Requests with entries under way to one replica. More would only be smaller messages: what waits
/// meanwhile goes together into the next one.
const IN_FLIGHT_MAX: usize = 32;

/// No further request is sent to a replica while this many bytes are under way: a few round trips of a
/// fast network, and a bound on what a slow follower makes the leader hold.
const IN_FLIGHT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long the oldest request under way may stay without an answer. The answer comes after the
/// follower's fsync, so this outlasts a stalled disk that recovers; a broken connection is reported by
/// the carrier long before. Giving up costs no more than sending again what is under way.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Waits between attempts to reach a replica: short, so that one that returns is soon served.
const BACKOFF_MS: [u64; 4] = [50, 100, 200, 400];

type Error = RPCError<TypeConfig>;
type Answered = StreamAppendResult<TypeConfig>;

/// The other replicas of a group.
#[derive(Debug)]
pub(crate) struct Peers {
    pub key: LogKey,
    pub carrier: Arc<dyn Carrier>,
    pub metrics: Metrics,
    pub outgoing: Outgoing,
}

impl Peers {
    fn peer(&self, target: u64, class: Class) -> Peer {
        Peer {
            route: Route { group: self.key.group, from: self.key.replica, to: ReplicaId(target) },
            class,
            carrier: self.carrier.clone(),
            metrics: self.metrics.clone(),
            outgoing: self.outgoing.clone(),
            acknowledged: None,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &()) -> Peer {
        self.peer(target, Class::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &()) -> Peer {
        self.peer(target, Class::Control)
    }

    async fn new_snapshot_client(&mut self, target: u64, _node: &()) -> Peer {
        self.peer(target, Class::Snapshot)
    }
}

/// One other replica, for one task.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(super) route: Route,
    /// What its appends go by.
    class: Class,
    pub(super) carrier: Arc<dyn Carrier>,
    pub(super) metrics: Metrics,
    pub(super) outgoing: Outgoing,
    /// The last entry that it said it has, durably, since this task began.
    acknowledged: Option<RaftLogId>,
}

/// Why a call went unanswered.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error(transparent)]
    Carry(#[from] CarryError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Whatever the reason, the next attempt waits for the backoff: sending again at once would meet the
/// same full queue, closed connection or refusal.
pub(super) fn unreachable(error: &NoAnswer) -> Unreachable<TypeConfig> {
    Unreachable::from_string(error)
}

impl Peer {
    pub(super) fn timeout(&self, action: RPCTypes, timeout: Duration) -> Timeout<TypeConfig> {
        Timeout { action, id: self.route.from.0, target: self.route.to.0, timeout }
    }

    /// Says so if a follower has no entry any more that it acknowledged to this leader. It gets it again; but what
    /// was committed with its help may be on one disk less than was promised.
    fn look_for_loss(&mut self, missing: RaftLogId) {
        if let Some(acknowledged) =
            self.acknowledged.take_if(|acknowledged| missing.index <= acknowledged.index)
        {
            tracing::error!(
                route = %self.route,
                %acknowledged,
                %missing,
                "a replica has lost entries that it had made durable: its disk lost them, or its data directory is an \
                 old copy; it gets them again"
            );
        }
    }

    /// Sends one message that is no entry and no snapshot, and waits for its answer.
    async fn call<T>(
        &self,
        action: RPCTypes,
        message: Bytes,
        within: Duration,
        decode: impl FnOnce(Bytes) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        match timeout(within, self.carrier.send(self.route, Class::Control, message)).await {
            Ok(Ok(answer)) => decode(answer).map_err(|error| unreachable(&error.into()).into()),
            Ok(Err(error)) => Err(unreachable(&error.into()).into()),
            Err(_) => Err(self.timeout(action, within).into()),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, Error> {
        let mut answers = self.stream_append(Box::pin(stream::iter([request])), option).await?;
        match answers.next().await {
            Some(answer) => answer.map(AppendEntriesResponse::from),
            None => Err(Unreachable::from_string("no answer").into()),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<Answered, Error>>, Error>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let answer_within = match self.class {
            Class::Control => option.soft_ttl(),
            Class::Append | Class::Snapshot => ANSWER_WITHIN,
        };
        let pipeline = Pipeline {
            peer: self,
            input: Some(input),
            in_flight: VecDeque::new(),
            bytes: 0,
            answer_within,
            answer_by: Instant::now(),
        };
        let answers = stream::unfold(Some(pipeline), |pipeline| async move {
            let mut pipeline = pipeline?;
            let answer = pipeline.next().await?;
            // What is in flight behind an error or a conflict can't be of use any more.
            let goes_on = matches!(answer, Ok(Ok(_)));
            Some((answer, goes_on.then_some(pipeline)))
        });
        let answers: BoxStream<'s, Result<Answered, Error>> = Box::pin(answers);
        Box::pin(std::future::ready(Ok(answers)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Error> {
        let message = encode_vote_request(&request, false);
        self.call(RPCTypes::Vote, message, option.soft_ttl(), decode_vote_answer).await
    }

    /// The default grants everything.
    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Error> {
        let message = encode_vote_request(&request, true);
        self.call(RPCTypes::Vote, message, option.soft_ttl(), decode_vote_answer).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = outgoing::send(self, vote, snapshot) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Error> {
        let message = encode_transfer(&request);
        let decode = |answer| decode_transfer_answer(answer, &request);
        self.call(RPCTypes::TransferLeader, message, option.soft_ttl(), decode).await
    }

    fn backoff(&self) -> Option<Backoff> {
        let Route { group, from, to } = self.route;
        let seed = mixed(from.0 ^ mixed(to.0 ^ mixed(u64::from(group.0))));
        Some(Backoff::new((0..).map(move |attempt| backoff(seed, attempt))))
    }
}

/// Spread by up to a fifth, differently for every group, pair of replicas and attempt, so that all groups of a
/// node do not knock at the same moment.
fn backoff(seed: u64, attempt: u64) -> Duration {
    let step = usize::try_from(attempt).unwrap_or(usize::MAX).min(BACKOFF_MS.len() - 1);
    let base = BACKOFF_MS[step];
    Duration::from_millis(base + mixed(seed ^ attempt) % (base / 5 + 1))
}

/// The finalizer of SplitMix64: numbers that are close come out far apart.
fn mixed(number: u64) -> u64 {
    let mut number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// A request whose answer is awaited.
struct InFlight {
    answer: BoxFuture<'static, Result<Bytes, CarryError>>,
    prev: Option<RaftLogId>,
    last: Option<RaftLogId>,
    bytes: usize,
}

/// One session of appends to a replica.
struct Pipeline<'s, S> {
    peer: &'s mut Peer,
    /// `None` once it ended.
    input: Option<S>,
    in_flight: VecDeque<InFlight>,
    /// Of all that is in flight.
    bytes: usize,
    answer_within: Duration,
    /// When the oldest request in flight must be answered.
    answer_by: Instant,
}

impl<S> Pipeline<'_, S>
where
    S: Stream<Item = Append> + Send + Unpin,
{
    /// The answer to the oldest request; sends more meanwhile. `None` once the input ended and all is
    /// answered.
    async fn next(&mut self) -> Option<Result<Answered, Error>> {
        loop {
            let ended = self.input.is_none();
            let room = self.in_flight.len() < IN_FLIGHT_MAX && self.bytes < IN_FLIGHT_BYTES_MAX;
            let more = async {
                match &mut self.input {
                    Some(input) if room => input.next().await,
                    Some(_) => std::future::pending().await,
                    None => None,
                }
            };
            let Some(oldest) = self.in_flight.front_mut() else {
                let request = more.await?;
                self.send(request);
                continue;
            };
            if ended {
                let answer = timeout_at(self.answer_by, &mut oldest.answer).await;
                return Some(self.answered(answer.ok()));
            }
            tokio::select! {
                biased;
                request = more => match request {
                    Some(request) => self.send(request),
                    None => self.input = None,
                },
                answer = timeout_at(self.answer_by, &mut oldest.answer) => {
                    return Some(self.answered(answer.ok()));
                }
            }
        }
    }

    fn send(&mut self, request: Append) {
        let metrics = &self.peer.metrics;
        match self.peer.class {
            Class::Control => metrics.heartbeats_sent.inc(),
            Class::Append | Class::Snapshot => {
                metrics.appends_sent.inc();
                metrics.entries_sent.inc_by(request.entries.len() as u64);
            }
        }
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        let message = encode_append(&request);
        let bytes = message.len();
        if self.in_flight.is_empty() {
            self.answer_by = Instant::now() + self.answer_within;
        }
        let answer = self.peer.carrier.send(self.peer.route, self.peer.class, message);
        self.bytes += bytes;
        self.in_flight.push_back(InFlight { answer, prev, last, bytes });
    }

    fn answered(&mut self, answer: Option<Result<Bytes, CarryError>>) -> Result<Answered, Error> {
        let request = self.in_flight.pop_front().expect("an answer is awaited only while one is due");
        self.bytes -= request.bytes;
        self.answer_by = Instant::now() + self.answer_within;
        let answer = match answer {
            Some(Ok(answer)) => decode_append_answer(answer, request.prev, request.last).map_err(Into::into),
            Some(Err(error)) => Err(NoAnswer::from(error)),
            None => return Err(self.peer.timeout(RPCTypes::AppendEntries, self.answer_within).into()),
        };
        match &answer {
            Ok(Ok(last)) => self.peer.acknowledged = self.peer.acknowledged.max(*last),
            Ok(Err(StreamAppendError::Conflict(at))) => {
                self.peer.metrics.append_conflicts.inc();
                self.peer.look_for_loss(*at);
            }
            Ok(Err(StreamAppendError::HigherVote(_))) | Err(_) => {}
        }
        answer.map_err(|error| unreachable(&error).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_is_short_and_spread() {
        let waits: Vec<Duration> = (0..20).map(|attempt| backoff(1, attempt)).collect();
        assert!(waits.iter().all(|wait| (50..=480).contains(&wait.as_millis())), "{waits:?}");
        assert_ne!(waits[10..], (0..20).map(|attempt| backoff(2, attempt)).collect::<Vec<_>>()[10..]);
    }
}
