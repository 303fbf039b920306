//! The task of one outgoing link: connects, shakes hands, hands out answers, and begins again.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Code, Status, Streaming};

use super::Reached;
use super::dial::{Connector, Cutter, endpoint};
use super::handshake::{self, Local, name};
use super::link::{Link, Requests};
use super::options::Options;
use crate::limits::PEER_FRAME_BYTES_MAX;
use crate::proto::v1;
use crate::proto::v1::transport_client::TransportClient;
use crate::raft::Class;

/// What the links to one peer share.
#[derive(Debug)]
pub(super) struct Target {
    pub address: Arc<str>,
    pub options: Options,
    /// Who this node is; `None` before its cluster is formed.
    pub local: watch::Receiver<Option<Arc<Local>>>,
    pub refusal: LastSaid,
    pub reached: watch::Sender<Reached>,
}

/// Keeps `link` connected. Never returns unless the transport is gone; ended by aborting it.
pub(super) async fn run(link: Arc<Link>, target: Arc<Target>) {
    let mut local = target.local.clone();
    let mut backoff = Backoff::new(&target.options);
    let mut first = true;
    loop {
        let Some(me) = local.borrow_and_update().clone() else {
            link.down("this node is in no cluster yet");
            if local.changed().await.is_err() {
                return;
            }
            continue;
        };
        let session = link.begin(first);
        first = false;
        let attempt = tokio::select! {
            attempt = Session::open(&link, &target, &me, session) => attempt,
            changed = local.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            }
        };
        let mut eager = true;
        match attempt {
            Ok(opened) => {
                target.accepted(&link);
                link.up(session);
                if link.class == Class::Append {
                    target.reached.send_modify(|reached| *reached.entry(link.peer).or_default() += 1);
                }
                let began = Instant::now();
                let why = tokio::select! {
                    why = opened.run(&link) => why,
                    changed = local.changed() => match changed {
                        Ok(()) => "this node has become another one".to_string(),
                        Err(_) => return,
                    },
                };
                link.down(&why);
                if link.class == Class::Control {
                    tracing::warn!(peer = %link.peer, address = %target.address, why, "lost the connection");
                }
                // One that breaks as soon as it is there is a failure as any other.
                if began.elapsed() > target.options.backoff_max {
                    backoff.reset();
                }
            }
            Err(failure) => {
                link.down(&failure.to_string());
                match failure {
                    Failure::Refused(why) => {
                        // It will say the same again until somebody changes something.
                        eager = false;
                        target.refused(&link, why);
                    }
                    Failure::Failed(why) => {
                        let class = name(link.class);
                        tracing::debug!(peer = %link.peer, address = %target.address, class, why, "not connected");
                    }
                }
            }
        }
        tokio::select! {
            () = backoff.wait(&link, eager) => {}
            changed = local.changed() => if changed.is_err() { return },
        }
    }
}

impl Target {
    fn refused(&self, link: &Link, why: String) {
        if self.refusal.is_news(&why) {
            tracing::warn!(peer = %link.peer, address = %self.address, why, "refused by the peer, or it is another");
        }
    }

    fn accepted(&self, link: &Link) {
        self.refusal.forget();
        if link.class == Class::Control {
            tracing::info!(peer = %link.peer, address = %self.address, "connected");
        }
    }
}

/// Why the peer was refused the last time, so that it is said once and not with every attempt.
#[derive(Debug, Default)]
pub(super) struct LastSaid(Mutex<Option<String>>);

impl LastSaid {
    fn is_news(&self, why: &str) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let news = last.as_deref() != Some(why);
        *last = Some(why.to_string());
        news
    }

    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Why there is no session.
#[derive(Debug)]
enum Failure {
    Failed(String),
    /// One side does not want the other, and says why.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Failed(why) => write!(f, "not connected: {why}"),
            Failure::Refused(why) => write!(f, "refused: {why}"),
        }
    }
}

/// A connection whose handshake has succeeded.
struct Session {
    number: u64,
    answers: Streaming<v1::Frame>,
    /// Ends the connection with the session.
    _cutter: Cutter,
}

impl Session {
    async fn open(link: &Arc<Link>, target: &Target, me: &Local, number: u64) -> Result<Session, Failure> {
        let options = &target.options;
        let endpoint =
            endpoint(&target.address, options).map_err(|error| Failure::Refused(error.to_string()))?;
        let (connector, cutter) = Connector::new(target.address.clone());
        let late = |what: &str, after: Duration| Failure::Failed(format!("{what} within {after:?}"));
        let channel =
            tokio::time::timeout(options.connect_timeout, endpoint.connect_with_connector(connector))
                .await
                .map_err(|_| late("no connection", options.connect_timeout))?
                .map_err(|error| Failure::Failed(causes(&error)))?;
        let shake = async {
            let offer = handshake::offer(me, link.peer, link.class);
            let mut answers = TransportClient::new(channel)
                .max_decoding_message_size(PEER_FRAME_BYTES_MAX)
                .max_encoding_message_size(PEER_FRAME_BYTES_MAX)
                .exchange(Requests::new(link.clone(), number, offer))
                .await
                .map_err(|status| failure(&status))?
                .into_inner();
            let frame = answers.message().await.map_err(|status| failure(&status))?;
            let theirs = frame
                .and_then(|frame| frame.handshake)
                .ok_or_else(|| Failure::Failed("the peer did not answer the handshake".to_string()))?;
            handshake::check_answer(me, link.peer, link.class, &theirs)
                .map_err(|refusal| Failure::Refused(refusal.to_string()))?;
            Ok(answers)
        };
        let answers = tokio::time::timeout(options.handshake_timeout, shake)
            .await
            .map_err(|_| late("no answer to the handshake", options.handshake_timeout))??;
        Ok(Session { number, answers, _cutter: cutter })
    }

    /// Hands out answers until the connection breaks; says why it did.
    async fn run(mut self, link: &Link) -> String {
        let mut tick = tokio::time::interval(link.stall_check());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                frame = self.answers.message() => match frame {
                    Ok(Some(frame)) if frame.handshake.is_none() => link.answered(self.number, frame.messages),
                    Ok(Some(_)) => return "the peer shook hands twice".to_string(),
                    Ok(None) => return "the peer ended it".to_string(),
                    Err(status) => return describe(&status),
                },
                _ = tick.tick() => if let Some(waited) = link.stalled() {
                    return format!("no answer for {} ms", waited.as_millis());
                },
            }
        }
    }
}

fn failure(status: &Status) -> Failure {
    match status.code() {
        Code::FailedPrecondition => Failure::Refused(status.message().to_string()),
        _ => Failure::Failed(describe(status)),
    }
}

fn describe(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => causes(source),
        None => format!("{}: {}", status.code(), status.message()),
    }
}

/// An error with its causes: the outermost of tonic's say little.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// How long to wait before the next attempt.
#[derive(Debug)]
struct Backoff {
    min: Duration,
    max: Duration,
    eager: Duration,
    next: Duration,
}

impl Backoff {
    fn new(options: &Options) -> Backoff {
        let Options { backoff_min: min, backoff_max: max, eager, .. } = *options;
        Backoff { min, max, eager, next: min }
    }

    fn reset(&mut self) {
        self.next = self.min;
    }

    /// Waits for the next attempt's time; if `eager`, only until somebody wants to send. In any case no
    /// longer than until the peer is heard of: one that dials us has come back.
    async fn wait(&mut self, link: &Link, eager: bool) {
        let full = jitter(self.next);
        self.next = (self.next * 2).min(self.max);
        let wanted = async {
            if !eager {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(jitter(self.eager)).await;
            link.wanted.notified().await;
        };
        tokio::select! {
            () = tokio::time::sleep(full) => {}
            () = wanted => {}
            () = link.returned.notified() => {}
        }
    }
}

/// Between three quarters and five quarters of it, so that nodes that lost each other at once do not
/// come back at once.
fn jitter(wait: Duration) -> Duration {
    // Without random numbers the waits are merely equal.
    let draw = getrandom::u32().unwrap_or(u32::MAX / 2);
    wait.mul_f64(0.75 + 0.5 * f64::from(draw) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_said_once_until_it_changes() {
        let said = LastSaid::default();
        let news: Vec<_> = ["a", "a", "b", "b", "a"].iter().map(|why| said.is_news(why)).collect();
        assert_eq!(news, [true, false, true, false, true]);
        said.forget();
        assert!(said.is_news("a"), "there was a connection in between");
    }

    #[test]
    fn waits_are_spread_around_their_length() {
        let waits: Vec<_> = (0..1000).map(|_| jitter(Duration::from_millis(100))).collect();
        assert!(waits.iter().all(|wait| (75..=125).contains(&wait.as_millis())));
        let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!(*most - *least > Duration::from_millis(30), "{least:?} {most:?}");
    }
}
