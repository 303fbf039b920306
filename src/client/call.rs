//! One call: attempts within a deadline, and the judgement which failures may be tried again.
//!
//! A read may always be tried again. A write is tried again only if it surely did not take place: the
//! server said so, or the request never left (see [`crate::transport::Gate`]). Everything else about a write is
//! [`Reason::OutcomeUnknown`], and is the caller's to decide.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};

use super::pool::{Endpoint, Pool};
use crate::error::{Error, Reason, Result};
pub(super) use crate::transport::Kind;
use crate::transport::{self, GatedChannel, Limit};

/// First pause between attempts, doubled each time up to the longest. A leader election takes about a
/// second: the first pauses are well below that, and a handful of attempts outlasts it.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(800);

/// Beyond the time to connect: how long a request may wait for its turn on a busy connection.
const TURN_WAIT: Duration = Duration::from_millis(500);

/// Least time for one attempt of a read, when the deadline is shared among endpoints.
const ATTEMPT_MIN: Duration = Duration::from_millis(500);

/// What a call is made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) pool: &'a Pool,
    pub(super) connect_timeout: Duration,
}

impl Caller<'_> {
    /// Makes one call: asks endpoint after endpoint until one answers, the failure is final, or the
    /// deadline is near. Also tells which endpoint answered.
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
        let mut backoff = Backoff::default();
        let mut attempts = 0;
        loop {
            let (number, endpoint) = self.pool.current();
            let attempt_deadline = match kind {
                Kind::Write => deadline,
                Kind::Read => share(deadline, self.pool.len().saturating_sub(attempts)),
            };
            let left = attempt_deadline.saturating_duration_since(Instant::now());
            let error = match self.attempt(kind, endpoint, message, left, attempt_deadline, &send).await {
                Ok(response) => return Ok((response, endpoint.name.clone())),
                Err(error) => error,
            };
            if !may_retry(kind, &error) {
                return Err(error);
            }
            self.pool.leave(number);
            attempts += 1;
            // Another endpoint is tried at once; when all have failed, it is time to wait.
            let pause = if attempts % self.pool.len() == 0 { backoff.pause() } else { Duration::ZERO };
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            sleep(pause).await;
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
    ) -> Result<R>
    where
        M: Clone,
        S: Fn(GatedChannel, Request<M>) -> F,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let leaves_within = self.connect_timeout + TURN_WAIT;
        let channel = endpoint.channel();
        let limit = Limit { grpc_timeout, leaves_within, deadline };
        let result = transport::attempt(kind, channel, message.clone(), limit, send).await;
        result.map_err(|error| name(endpoint, error))
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
        // Without randomness (it never fails in practice) clients merely stay in step.
        let draw = getrandom::u32().unwrap_or(u32::MAX);
        full / 2 + (full / 2).mul_f64(f64::from(draw) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{self, Happened};

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
