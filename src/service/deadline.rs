//! How long a call may take.
//!
//! The node gets a deadline a little before the caller's, so that its own verdict (which knows
//! whether a write may have happened) arrives while somebody still listens. Should the node overrun,
//! the call is answered at the caller's deadline by what is safe to say: a read has failed, a write's
//! outcome is unknown.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tonic::codegen::http::HeaderMap;

use crate::error::{Error, Reason, Result};
use crate::limits::{CALL_DEADLINE_DEFAULT, CALL_DEADLINE_MAX};
use crate::node::Deadline;

/// What a node is short of its caller's deadline: a tenth of it, at most this.
const MARGIN_MAX: Duration = Duration::from_millis(100);

/// When a call arrived, and how long its client waits. Travels in the request's extensions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    arrived: Instant,
    asked: Option<Duration>,
}

/// A call's two deadlines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    /// For the node.
    pub node: Deadline,
    /// By when the client has an answer.
    pub answer: Instant,
}

impl Clock {
    /// Starts now; a `grpc-timeout` that is malformed counts as none.
    pub fn start(headers: &HeaderMap) -> Clock {
        let asked = headers.get("grpc-timeout").and_then(|value| parse_timeout(value.as_bytes()));
        Clock { arrived: Instant::now(), asked }
    }

    /// Starts now, for a client that waits so many milliseconds; 0: it does not say.
    pub fn asked(timeout_ms: u32) -> Clock {
        let asked = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms.into()));
        Clock { arrived: Instant::now(), asked }
    }

    /// The clock that came with the request.
    pub fn of<T>(request: &tonic::Request<T>) -> Clock {
        let clock = request.extensions().get::<Clock>().copied();
        // The dispatcher puts one into every request; a request made by hand has the defaults.
        clock.unwrap_or_else(|| Clock { arrived: Instant::now(), asked: None })
    }

    /// Of a call with one answer.
    pub fn unary(self) -> Limit {
        self.limit(CALL_DEADLINE_DEFAULT, CALL_DEADLINE_MAX)
    }

    /// Of a call with an end, that may take `default` if its client does not say, and `max` at most.
    pub fn limit(self, default: Duration, max: Duration) -> Limit {
        let allowed = self.asked.unwrap_or(default).min(max);
        let margin = (allowed / 10).min(MARGIN_MAX);
        Limit { node: self.arrived + (allowed - margin), answer: self.arrived + allowed }
    }

    /// Of a call without an end: only if its client asked for one.
    pub fn endless(self) -> Option<Instant> {
        self.asked.and_then(|asked| self.arrived.checked_add(asked))
    }
}

impl Limit {
    /// Runs something that changes nothing.
    pub async fn read<T>(self, call: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout_at(self.answer, call).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(Reason::DeadlineExceeded, "the deadline passed before the read ended")),
        }
    }

    /// Runs something that writes.
    pub async fn write<T>(self, call: impl Future<Output = Result<T>>) -> Result<T> {
        if Instant::now() >= self.node {
            return Err(Error::new(Reason::DeadlineExceeded, "the deadline passed before the write began"));
        }
        match tokio::time::timeout_at(self.answer, call).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(
                Reason::OutcomeUnknown,
                "the deadline passed while the write was under way: it may have taken place, or may yet",
            )),
        }
    }
}

/// The value of `grpc-timeout`: one to eight digits and a unit.
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = std::str::from_utf8(digits).ok()?.parse::<u64>().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(count * 3600)),
        b'M' => Some(Duration::from_secs(count * 60)),
        b'S' => Some(Duration::from_secs(count)),
        b'm' => Some(Duration::from_millis(count)),
        b'u' => Some(Duration::from_micros(count)),
        b'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        let cases: [(&str, Option<Duration>); 12] = [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("0n", Some(Duration::ZERO)),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("5", None),
            ("5s", None),
            ("-5S", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_timeout(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn deadlines_are_capped_and_the_node_has_the_earlier_one() {
        let arrived = Instant::now();
        let cases = [
            (None, CALL_DEADLINE_DEFAULT),
            (Some(Duration::from_secs(1)), Duration::from_secs(1)),
            (Some(Duration::from_secs(999_999)), CALL_DEADLINE_MAX),
        ];
        for (asked, expected) in cases {
            let limit = Clock { arrived, asked }.unary();
            assert_eq!(limit.answer - arrived, expected);
            assert_eq!(limit.answer - limit.node, MARGIN_MAX);
        }
        let short = Clock { arrived, asked: Some(Duration::from_millis(10)) }.unary();
        assert_eq!(short.answer - short.node, Duration::from_millis(1));
        assert_eq!(Clock { arrived, asked: None }.endless(), None);
    }

    #[tokio::test]
    async fn an_overrun_is_a_failed_read_but_an_unknown_write() {
        let limit = || Clock { arrived: Instant::now(), asked: Some(Duration::from_millis(20)) }.unary();
        let read = limit().read(std::future::pending::<Result<()>>()).await.unwrap_err();
        assert_eq!(read.reason, Reason::DeadlineExceeded);
        let write = limit().write(std::future::pending::<Result<()>>()).await.unwrap_err();
        assert_eq!(write.reason, Reason::OutcomeUnknown);
        let late = limit();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let late = late.write(async { panic!("must not run") as Result<()> }).await.unwrap_err();
        assert_eq!(late.reason, Reason::DeadlineExceeded);
    }
}
