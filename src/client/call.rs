//! One call: attempts within a deadline, and the judgement which failures may be tried again.
//!
//! A read may always be tried again. A write is tried again only if it surely did not take place: the
//! server said so, or the request never left (see [`crate::transport::Gate`]). Everything else about a write is
//! [`Reason::OutcomeUnknown`], and is the caller's to decide.

mod pipelined;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};

use self::pipelined::Codec;
pub(super) use self::pipelined::Pipelined;
use super::pool::{Endpoint, Pool};
use super::{Inner, table};
use crate::error::{Error, Reason, Result};
use crate::placement;
pub(super) use crate::transport::Kind;
use crate::transport::{self, CLUSTER, Failed, GatedChannel, Leader, Limit, OF_ANOTHER_CLUSTER};

/// First pause between rounds of attempts, doubled each time up to the longest. A leader election takes
/// about a second: the first pauses are well below that, and a handful of attempts outlasts it.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(800);

/// Beyond the time to connect: how long a request may wait for its turn on a busy connection.
const TURN_WAIT: Duration = Duration::from_millis(500);

/// How long a request may wait to leave while another endpoint could be asked instead: many times what
/// connecting takes across a continent.
const TURN_WAIT_AMONG_MANY: Duration = Duration::from_secs(1);

/// Least time for one attempt of a read, when the deadline is shared among endpoints; who is silent for
/// as long is not asked for a while.
const ATTEMPT_MIN: Duration = Duration::from_millis(500);

/// Metadata of an error: none of the call's attempts reached a server that answered.
pub const UNREACHED: &str = "unreached";

/// What a call is made with.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) inner: &'a Arc<Inner>,
}

impl Caller<'_> {
    /// Makes one call, wherever: asks endpoint after endpoint until one answers, the failure is final, or
    /// the deadline is near. Also tells which endpoint answered.
    pub(super) async fn call<M, R, S, F>(
        self,
        kind: Kind,
        message: &M,
        deadline: Instant,
        send: S,
    ) -> Result<(R, String)>
    where
        M: Clone,
        S: Fn(GatedChannel, Request<M>) -> F,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        self.call_at(kind, &[], message, deadline, send, None, |_| Heard::Done).await
    }

    /// The same, of a call on several keys. `hashes`: of all of them, if they have one leader, as far as is known, and it
    /// is to be asked first; else none. `hear` reads the answer: one that only says of each that somebody else has to be
    /// asked is none.
    pub(super) async fn call_on_many<M, R, S, F>(
        self,
        kind: Kind,
        hashes: &[u64],
        message: &M,
        deadline: Instant,
        send: S,
        hear: impl Fn(&R) -> Heard,
    ) -> Result<(R, String)>
    where
        M: Clone,
        S: Fn(GatedChannel, Request<M>) -> F,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        self.call_at(kind, hashes, message, deadline, send, None, hear).await
    }

    /// The same, of a call on a key that its leader has to answer: asks that one first.
    pub(super) async fn call_leader<M, S, F>(
        self,
        kind: Kind,
        key: &[u8],
        message: &M,
        deadline: Instant,
        send: S,
    ) -> Result<M::Answer>
    where
        M: Pipelined,
        S: Fn(GatedChannel, Request<M>) -> F,
        F: Future<Output = Result<Response<M::Answer>, Status>>,
    {
        let codec = Codec { bytes: M::bytes, call: M::call, answer: M::answer };
        let codec = self.inner.pipelined.then_some(codec);
        let hashes = [placement::hash(key)];
        Ok(self.call_at(kind, &hashes, message, deadline, send, codec, |_| Heard::Done).await?.0)
    }

    #[allow(clippy::too_many_arguments)] // the one way that all calls go
    async fn call_at<M, R, S, F>(
        self,
        kind: Kind,
        hashes: &[u64],
        message: &M,
        deadline: Instant,
        send: S,
        codec: Option<Codec<M, R>>,
        hear: impl Fn(&R) -> Heard,
    ) -> Result<(R, String)>
    where
        M: Clone,
        S: Fn(GatedChannel, Request<M>) -> F,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let Inner { pool, routes, .. } = &**self.inner;
        let mut rounds = Rounds::new(self.inner);
        loop {
            let leader = hashes.first().and_then(|hash| routes.leader_of(*hash));
            let endpoint = rounds.next(leader, deadline).await?;
            let attempt_deadline = match kind {
                Kind::Write => deadline,
                Kind::Read => share(deadline, rounds.untried()),
            };
            let left = attempt_deadline.saturating_duration_since(Instant::now());
            let pipelined = codec.and_then(|codec| codec.start(&endpoint, message, left));
            let answer = match pipelined {
                Some(sent) => self.await_pipelined(kind, &endpoint, sent, attempt_deadline).await,
                None => None,
            };
            let answer = match answer {
                Some(answer) => answer,
                None => {
                    let left = attempt_deadline.saturating_duration_since(Instant::now());
                    self.attempt(kind, &endpoint, message, left, attempt_deadline, &send).await
                }
            };
            let (answer, failures) = heard(kind, &endpoint, answer, &hear);
            self.note(hashes, &endpoint, &answer, &failures);
            let failed = match answer {
                Ok(response) => return Ok((response.into_inner(), endpoint.name.clone())),
                Err(failed) => failed,
            };
            if !may_retry(kind, &failed.error) {
                return Err(rounds.telling(failed));
            }
            pool.leave(&endpoint);
            rounds.failed(endpoint, failed);
        }
    }

    /// Learns from an answer who leads. `failures`: of the operations in it, on keys with these hashes; none if each was
    /// done.
    fn note<R>(
        self,
        hashes: &[u64],
        endpoint: &Arc<Endpoint>,
        answer: &Result<Response<R>, Failed>,
        failures: &[Option<Error>],
    ) {
        let Inner { pool, routes, .. } = &**self.inner;
        let Some(&first) = hashes.first() else { return };
        let (metadata, failure) = match answer {
            Ok(response) => (response.metadata(), failures.first().and_then(Option::as_ref)),
            Err(failed) => (&failed.metadata, Some(&failed.error)),
        };
        let told = Leader::read(metadata);
        let is_told = told.is_some();
        if let Some(leader) = told {
            if routes.told(first, &leader, pool) {
                table::fetch(self.inner, endpoint.clone());
            }
        } else if failure.is_none_or(|error| error.reason == Reason::PreconditionFailed) {
            routes.leads(first, endpoint);
        }
        match answer {
            Ok(_) => {
                for (hash, failure) in hashes.iter().zip(failures) {
                    if failure.as_ref().is_some_and(does_not_lead) {
                        routes.forget(*hash, endpoint);
                    }
                }
            }
            Err(failed) if !is_told && (!failed.answered || does_not_lead(&failed.error)) => {
                hashes.iter().for_each(|hash| routes.forget(*hash, endpoint));
            }
            Err(_) => {}
        }
    }

    /// One attempt at one endpoint. `grpc_timeout` is what the server is told.
    pub(super) async fn attempt<M, R, S, F>(
        self,
        kind: Kind,
        endpoint: &Endpoint,
        message: &M,
        grpc_timeout: Duration,
        deadline: Instant,
        send: &S,
    ) -> Result<Response<R>, Failed>
    where
        M: Clone,
        S: Fn(GatedChannel, Request<M>) -> F,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let leaves_within = self.leaves_within();
        let mut request = Request::new(message.clone());
        if let Some(cluster) = &endpoint.cluster {
            request.metadata_mut().insert(CLUSTER, cluster.clone());
        }
        let limit = Limit { grpc_timeout, leaves_within, deadline };
        let started = Instant::now();
        let result = transport::attempt(kind, endpoint.channel(), request, limit, send).await;
        note_health(endpoint, started, &result);
        result.map_err(|failed| Failed { error: name(endpoint, failed.error), ..failed })
    }

    /// How long a request may wait for its turn.
    fn leaves_within(self) -> Duration {
        let alone = self.inner.connect_timeout + TURN_WAIT;
        if self.inner.pool.all().len() > 1 { alone.min(TURN_WAIT_AMONG_MANY) } else { alone }
    }
}

/// Notes how an endpoint did.
fn note_health<R>(endpoint: &Endpoint, started: Instant, result: &Result<Response<R>, Failed>) {
    match result {
        Err(failed) if is_no_help(&failed.error) => endpoint.is_ill(),
        Err(failed) if failed.answered => endpoint.is_well(),
        // A caller in a hurry does not make a server ill.
        Err(failed) if failed.error.reason == Reason::Unavailable || started.elapsed() >= ATTEMPT_MIN => {
            endpoint.is_ill();
        }
        Err(_) => {}
        Ok(_) => endpoint.is_well(),
    }
}

/// Whom one call asks, one after the other: the leader, then everybody who is worth asking; and again
/// after a pause.
pub(super) struct Rounds<'a> {
    inner: &'a Inner,
    started: Instant,
    /// In this round.
    tried: Vec<Arc<Endpoint>>,
    /// Some server has answered.
    reached: bool,
    last: Option<Error>,
    backoff: Backoff,
}

impl<'a> Rounds<'a> {
    pub(super) fn new(inner: &'a Inner) -> Rounds<'a> {
        Rounds {
            inner,
            started: Instant::now(),
            tried: Vec::new(),
            reached: false,
            last: None,
            backoff: Backoff::default(),
        }
    }

    /// The endpoint to ask next; waits between rounds.
    ///
    /// # Errors
    /// The last failure, when there is no time left.
    pub(super) async fn next(
        &mut self,
        leader: Option<Arc<Endpoint>>,
        deadline: Instant,
    ) -> Result<Arc<Endpoint>> {
        let pool: &Pool = &self.inner.pool;
        let leader = leader.filter(|one| !self.tried.contains(one) && one.is_worth_asking());
        if let Some(endpoint) = leader.or_else(|| pool.pick(&self.tried)) {
            return Ok(endpoint);
        }
        if self.last.is_none() {
            // Nobody is worth asking: somebody has to be asked all the same.
            return Ok(pool.current());
        }
        let pause = self.backoff.pause();
        let gives_up = !self.reached && self.started.elapsed() + pause >= self.inner.unreachable_after;
        if let Some(last) = self.last.take_if(|_| gives_up || Instant::now() + pause >= deadline) {
            return Err(if self.reached { last } else { last.with(UNREACHED, true) });
        }
        sleep(pause).await;
        self.tried.clear();
        Ok(pool.pick(&[]).unwrap_or_else(|| pool.current()))
    }

    /// How many were not asked in this round, whoever is asked now included.
    fn untried(&self) -> usize {
        self.inner.pool.all().len().saturating_sub(self.tried.len())
    }

    pub(super) fn failed(&mut self, endpoint: Arc<Endpoint>, failed: Failed) {
        self.reached |= failed.answered;
        self.tried.push(endpoint);
        self.last = Some(self.telling(failed));
    }

    /// The error that says most of why the call failed: that there was no time left to send it once more says
    /// less than the failure before.
    fn telling(&mut self, failed: Failed) -> Error {
        match self.last.take_if(|_| !failed.has_left) {
            Some(earlier) if failed.error.reason == Reason::DeadlineExceeded => earlier,
            _ => failed.error,
        }
    }
}

/// Whether a server answered, and yet is of no use for a while: it stops, or is of another cluster.
fn is_no_help(error: &Error) -> bool {
    error.reason == Reason::ShuttingDown || error.metadata.contains_key(OF_ANOTHER_CLUSTER)
}

/// Whether somebody else may do better: what is wrong with the request itself is so everywhere.
fn does_not_lead(error: &Error) -> bool {
    matches!(
        error.reason,
        Reason::Unavailable
            | Reason::ShuttingDown
            | Reason::ReplicaFailed
            | Reason::DeadlineExceeded
            | Reason::OutcomeUnknown
    )
}

/// What an answer says of the operations in it.
pub(super) enum Heard {
    /// Each was done.
    Done,
    /// How each failed, in order; `None`: it was done.
    Failed(Vec<Option<Error>>),
}

impl Heard {
    pub(super) fn of(failures: impl Iterator<Item = Option<Error>> + Clone) -> Heard {
        match failures.clone().all(|failure| failure.is_none()) {
            true => Heard::Done,
            false => Heard::Failed(failures.collect()),
        }
    }
}

/// The answer, and how the operations in it failed, if any did. One that only says of each that somebody else has to be
/// asked is a failure, of the first one's kind.
fn heard<R>(
    kind: Kind,
    endpoint: &Endpoint,
    answer: Result<Response<R>, Failed>,
    hear: impl Fn(&R) -> Heard,
) -> (Result<Response<R>, Failed>, Vec<Option<Error>>) {
    let Ok(response) = answer else { return (answer, Vec::new()) };
    let Heard::Failed(failures) = hear(response.get_ref()) else { return (Ok(response), Vec::new()) };
    let is_elsewhere = |failure: &Option<Error>| {
        failure.as_ref().is_some_and(|error| may_retry(kind, error) && does_not_lead(error))
    };
    match failures.first().cloned().flatten() {
        Some(first) if failures.iter().all(is_elsewhere) => {
            let (metadata, _, _) = response.into_parts();
            let error = name(endpoint, first);
            (Err(Failed { error, answered: true, has_left: true, metadata }), failures)
        }
        _ => (Ok(response), failures),
    }
}

/// An equal part of the time left, for one of `parts` attempts.
fn share(deadline: Instant, parts: usize) -> Instant {
    let now = Instant::now();
    let parts = u32::try_from(parts.max(1)).unwrap_or(u32::MAX);
    let part = deadline.saturating_duration_since(now) / parts;
    deadline.min(now + part.max(ATTEMPT_MIN))
}

pub(super) fn may_retry(kind: Kind, error: &Error) -> bool {
    match error.reason {
        Reason::Unavailable | Reason::Overloaded | Reason::ShuttingDown => true,
        // The server's deadline or one attempt's share of ours; whether there is time left is checked
        // by the caller.
        Reason::DeadlineExceeded => kind == Kind::Read,
        _ => false,
    }
}

/// Names the endpoint in an error.
pub(super) fn name(endpoint: &Endpoint, mut error: Error) -> Error {
    error.message = format!("{}: {}", endpoint.name, error.message);
    error.with("endpoint", &endpoint.name)
}

/// Pauses between attempts: doubling, each drawn from its upper half, so that clients that failed
/// together do not come back together.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { next: PAUSE_FIRST }
    }
}

impl Backoff {
    pub(super) fn pause(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(PAUSE_MAX);
        jittered(full)
    }
}

/// Drawn from the upper half.
pub(super) fn jittered(full: Duration) -> Duration {
    // Without randomness (it never fails in practice) clients merely stay in step.
    let draw = getrandom::u32().unwrap_or(u32::MAX);
    full / 2 + (full / 2).mul_f64(f64::from(draw) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;
    use crate::error::Happened;

    #[test]
    fn pauses_grow_within_their_bounds() {
        let mut backoff = Backoff::default();
        let mut full = PAUSE_FIRST;
        for _ in 0..12 {
            let pause = backoff.pause();
            assert!(pause >= full / 2 && pause <= full, "{pause:?} of {full:?}");
            full = (full * 2).min(PAUSE_MAX);
        }
    }

    #[test]
    fn only_what_surely_did_not_happen_is_tried_again() {
        for row in &error::TABLE {
            let error = Error::new(row.reason, "");
            if may_retry(Kind::Write, &error) {
                assert_eq!(row.happened, Happened::No, "{}", row.name);
            }
        }
        assert!(!may_retry(Kind::Write, &Error::new(Reason::OutcomeUnknown, "")));
        assert!(!may_retry(Kind::Write, &Error::new(Reason::PreconditionFailed, "")));
    }
}
