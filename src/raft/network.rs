//! openraft's network on a [`Carrier`]: what this replica says to the others of its group.
//!
//! Entries are pipelined: many requests to one replica are under way, and their answers are handed to
//! the consensus core in order. Each of openraft's clients has one task, so that each keeps to one class:
//! heartbeats never wait behind entries, entries never behind a snapshot.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

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

/// How often a follower is told what is committed: it applies that at once, and many entries together cost it much less
/// than one by one. Nobody waits for it but those who read what may be old, and a new leader, which finds out by itself.
const COMMIT_EVERY: Duration = Duration::from_millis(20);

/// Waits between attempts to reach a replica: short, so that one that returns is soon served.
const BACKOFF_MS: [u64; 4] = [50, 100, 200, 400];

type Error = RPCError<TypeConfig>;
type Answered = StreamAppendResult<TypeConfig>;

/// The other replicas of a group.
#[derive(Debug)]
pub(crate) struct Peers {
    key: LogKey,
    carrier: Arc<dyn Carrier>,
    metrics: Metrics,
    outgoing: Outgoing,
    /// What each of them said it has. Its clients share it: whichever asks first hears that something is missing.
    acknowledged: BTreeMap<u64, Arc<Mutex<Acknowledged>>>,
}

impl Peers {
    pub(crate) fn new(key: LogKey, carrier: Arc<dyn Carrier>, metrics: Metrics, outgoing: Outgoing) -> Peers {
        Peers { key, carrier, metrics, outgoing, acknowledged: BTreeMap::new() }
    }

    fn peer(&mut self, target: u64, class: Class) -> Peer {
        Peer {
            route: Route { group: self.key.group, from: self.key.replica, to: ReplicaId(target) },
            class,
            carrier: self.carrier.clone(),
            metrics: self.metrics.clone(),
            outgoing: self.outgoing.clone(),
            acknowledged: self.acknowledged.entry(target).or_default().clone(),
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
    acknowledged: Arc<Mutex<Acknowledged>>,
}

/// The last entry that a replica told one leader it has, durably.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged {
    /// Whose answers these are. Entries that it acknowledged to an earlier leader may be gone for a good reason.
    vote: Option<Vote>,
    last: Option<RaftLogId>,
}

impl Acknowledged {
    fn add(&mut self, vote: Vote, last: Option<RaftLogId>) {
        if self.vote != Some(vote) {
            *self = Acknowledged { vote: Some(vote), last: None };
        }
        self.last = self.last.max(last);
    }

    /// The last one, if it acknowledged what it misses now; said once.
    fn lost(&mut self, vote: Vote, missing: RaftLogId) -> Option<RaftLogId> {
        let is_this_leader = self.vote == Some(vote);
        self.last.take_if(|last| is_this_leader && missing.index <= last.index)
    }
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

    fn acknowledged(&self) -> MutexGuard<'_, Acknowledged> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says so if a follower has no entry any more that it acknowledged to this leader. It gets it again; but what
    /// was committed with its help may be on one disk less than was promised.
    fn look_for_loss(&self, vote: Vote, missing: RaftLogId) {
        let lost = self.acknowledged().lost(vote, missing);
        if let Some(acknowledged) = lost {
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
            last_sent: None,
            held: None,
            told: Told { commit: None, at: Instant::now() },
            ready: VecDeque::new(),
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
    vote: Vote,
    prev: Option<RaftLogId>,
    last: Option<RaftLogId>,
    bytes: usize,
    /// Of how many requests its answer is one: of those that were held back for it, too; of none, if it brings news
    /// that was taken from another.
    owed: usize,
}

/// The news that something is committed, and until when it waits.
struct Held {
    request: Append,
    /// Requests that said no more than that, and have to be answered.
    count: usize,
    until: Instant,
}

/// The last news that something is committed.
struct Told {
    commit: Option<RaftLogId>,
    at: Instant,
}

/// One session of appends to a replica.
struct Pipeline<'s, S> {
    peer: &'s mut Peer,
    /// `None` once it ended.
    input: Option<S>,
    in_flight: VecDeque<InFlight>,
    /// Of all that is in flight.
    bytes: usize,
    /// The last entry of the last request, once there was one.
    last_sent: Option<Option<RaftLogId>>,
    held: Option<Held>,
    told: Told,
    /// Answers to tell before any other.
    ready: VecDeque<Result<Answered, Error>>,
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
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            let room = self.in_flight.len() < IN_FLIGHT_MAX && self.bytes < IN_FLIGHT_BYTES_MAX;
            let is_open = self.input.is_some();
            let more = async {
                match &mut self.input {
                    Some(input) if room => input.next().await,
                    Some(_) => std::future::pending().await,
                    None => None,
                }
            };
            let held_until = self.held.as_ref().map(|held| held.until);
            let ended = !is_open && held_until.is_none();
            let let_go = async {
                match held_until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            let oldest = self.in_flight.front_mut().map(|oldest| &mut oldest.answer);
            let answer_by = self.answer_by;
            let answer = async {
                match oldest {
                    Some(answer) => timeout_at(answer_by, answer).await.ok(),
                    None if ended => None,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                request = more, if is_open => match request {
                    Some(request) => self.take(request),
                    None => self.input = None,
                },
                () = let_go => self.send_held(),
                answer = answer => {
                    if self.in_flight.is_empty() {
                        return None;
                    }
                    self.answered(answer);
                }
            }
        }
    }

    /// Sends a request, or holds it back for the next.
    fn take(&mut self, mut request: Append) {
        let now = Instant::now();
        let next_news = self.told.at + COMMIT_EVERY;
        if self.peer.class != Class::Append || self.last_sent.is_none() {
            return self.send(request, 1);
        }
        if request.entries.is_empty() && self.last_sent == Some(request.prev_log_id) {
            let count = self.held.as_ref().map_or(0, |held| held.count) + 1;
            self.held = Some(Held { request, count, until: next_news });
            return;
        }
        let held = self.held.take().map_or(0, |held| held.count);
        if now < next_news && request.leader_commit > self.told.commit {
            let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
            let (vote, leader_commit) = (request.vote, request.leader_commit);
            let news = Append { vote, prev_log_id: last, leader_commit, entries: Vec::new() };
            request.leader_commit = self.told.commit;
            self.held = Some(Held { request: news, count: 0, until: next_news });
        }
        self.send(request, 1 + held);
    }

    fn send_held(&mut self) {
        if let Some(Held { request, count, .. }) = self.held.take() {
            self.send(request, count);
        }
    }

    fn send(&mut self, request: Append, owed: usize) {
        let metrics = &self.peer.metrics;
        match self.peer.class {
            Class::Control => metrics.heartbeats_sent.inc(),
            Class::Append | Class::Snapshot => {
                metrics.appends_sent.inc();
                metrics.entries_sent.inc_by(request.entries.len() as u64);
            }
        }
        let (vote, prev) = (request.vote, request.prev_log_id);
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        let message = encode_append(&request);
        let bytes = message.len();
        if self.in_flight.is_empty() {
            self.answer_by = Instant::now() + self.answer_within;
        }
        let answer = self.peer.carrier.send(self.peer.route, self.peer.class, message);
        self.bytes += bytes;
        self.last_sent = Some(last);
        if request.leader_commit > self.told.commit {
            self.told = Told { commit: request.leader_commit, at: Instant::now() };
        }
        self.in_flight.push_back(InFlight { answer, vote, prev, last, bytes, owed });
    }

    fn answered(&mut self, answer: Option<Result<Bytes, CarryError>>) {
        let request = self.in_flight.pop_front().expect("an answer is awaited only while one is due");
        self.bytes -= request.bytes;
        self.answer_by = Instant::now() + self.answer_within;
        let answer = match answer {
            Some(Ok(answer)) => decode_append_answer(answer, request.prev, request.last).map_err(Into::into),
            Some(Err(error)) => Err(NoAnswer::from(error)),
            None => {
                let timeout = self.peer.timeout(RPCTypes::AppendEntries, self.answer_within);
                return self.ready.push_back(Err(timeout.into()));
            }
        };
        match &answer {
            Ok(Ok(last)) => {
                self.peer.acknowledged().add(request.vote, *last);
                self.ready.extend((1..request.owed).map(|_| Ok(Ok(request.prev))));
                if request.owed == 0 {
                    return;
                }
            }
            Ok(Err(StreamAppendError::Conflict(at))) => {
                self.peer.metrics.append_conflicts.inc();
                self.peer.look_for_loss(request.vote, *at);
            }
            Ok(Err(StreamAppendError::HigherVote(_))) | Err(_) => {}
        }
        self.ready.push_back(answer.map_err(|error| unreachable(&error).into()));
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use prometheus::Registry;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::super::message::{Request, encode_append_answer};
    use super::super::types::{Entry, raft_log_id};
    use super::*;
    use crate::types::{GroupId, LogId};

    /// Notes what is sent, and answers that it was done.
    #[derive(Debug, Default)]
    struct Noting(Mutex<Vec<Append>>);

    impl Carrier for Noting {
        fn send(
            &self,
            route: Route,
            _: Class,
            message: Bytes,
        ) -> BoxFuture<'static, Result<Bytes, CarryError>> {
            let Ok(Request::Append(append)) = Request::decode(route.from, message) else {
                panic!("no append")
            };
            let last = append.entries.last().map(|entry| entry.log_id).or(append.prev_log_id);
            self.0.lock().unwrap().push(append);
            Box::pin(std::future::ready(Ok(encode_append_answer(&Ok(last)))))
        }
    }

    fn id(index: u64) -> Option<RaftLogId> {
        (index > 0).then(|| raft_log_id(LogId { term: 1, index }))
    }

    fn append(prev: u64, entries: u64, committed: u64) -> Append {
        let entry = |index| Entry { log_id: id(index).unwrap(), payload: EntryPayload::Blank };
        Append {
            vote: Vote::new_committed(1, 1),
            prev_log_id: id(prev),
            entries: (prev + 1..=prev + entries).map(entry).collect(),
            leader_commit: id(committed),
        }
    }

    fn peers(carrier: Arc<dyn Carrier>) -> Peers {
        let key = LogKey { group: GroupId(1), replica: ReplicaId(1) };
        Peers::new(key, carrier, Metrics::register(&Registry::new()).unwrap(), Outgoing::default())
    }

    #[test]
    fn what_is_missing_is_lost_if_this_leader_was_told_that_it_is_there() {
        let mut peers = peers(Arc::new(Noting::default()));
        let (appends, heartbeats) = (peers.peer(2, Class::Append), peers.peer(2, Class::Control));
        let (vote, later) = (Vote::new_committed(1, 1), Vote::new_committed(2, 1));
        let missing = |index| id(index).unwrap();
        appends.acknowledged().add(vote, id(5));
        heartbeats.acknowledged().add(vote, id(3));
        assert_eq!(
            peers.peer(3, Class::Control).acknowledged().lost(vote, missing(5)),
            None,
            "another replica"
        );
        assert_eq!(heartbeats.acknowledged().lost(vote, missing(6)), None);
        assert_eq!(heartbeats.acknowledged().lost(later, missing(5)), None, "it was not told this leader");
        assert_eq!(heartbeats.acknowledged().lost(vote, missing(5)), id(5));
        assert_eq!(appends.acknowledged().lost(vote, missing(5)), None, "once");
        appends.acknowledged().add(later, id(2));
        assert_eq!(appends.acknowledged().lost(later, missing(2)), id(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_committed_is_told_with_entries_and_now_and_then() {
        let carrier = Arc::new(Noting::default());
        let mut peers = peers(carrier.clone());
        let mut peer = peers.peer(2, Class::Append);
        let (requests, input) = mpsc::channel(16);
        let option = RPCOption::new(Duration::from_secs(1));
        let mut answers = peer.stream_append(ReceiverStream::new(input), option).await.unwrap();
        let sent = || -> Vec<(u64, usize, u64)> {
            let index = |id: Option<RaftLogId>| id.map_or(0, |id| id.index);
            let sent = carrier.0.lock().unwrap();
            sent.iter().map(|a| (index(a.prev_log_id), a.entries.len(), index(a.leader_commit))).collect()
        };
        // The first one, whatever it is, then entries, then the news that they are committed, then more entries.
        for request in [append(3, 0, 3), append(3, 2, 3), append(5, 0, 5), append(5, 1, 5)] {
            requests.send(request).await.unwrap();
        }
        for last in [3, 5, 5, 6] {
            assert_eq!(answers.next().await.unwrap().unwrap(), Ok(id(last)), "each is answered, in order");
        }
        assert_eq!(sent(), [(3, 0, 3), (3, 2, 3), (5, 1, 3)], "the news waits");
        let none = timeout(COMMIT_EVERY * 2, answers.next()).await;
        assert!(none.is_err(), "nobody asked for an answer to it");
        assert_eq!(sent()[3..], [(6, 0, 5)], "and is told by itself");
        // News alone is answered when it was told.
        requests.send(append(6, 0, 6)).await.unwrap();
        requests.send(append(6, 0, 7)).await.unwrap();
        for _ in 0..2 {
            assert_eq!(answers.next().await.unwrap().unwrap(), Ok(id(6)));
        }
        assert_eq!(sent()[4..], [(6, 0, 7)]);
        drop(requests);
        assert!(answers.next().await.is_none());
    }

    #[test]
    fn backoff_is_short_and_spread() {
        let waits: Vec<Duration> = (0..20).map(|attempt| backoff(1, attempt)).collect();
        assert!(waits.iter().all(|wait| (50..=480).contains(&wait.as_millis())), "{waits:?}");
        assert_ne!(waits[10..], (0..20).map(|attempt| backoff(2, attempt)).collect::<Vec<_>>()[10..]);
    }
}
