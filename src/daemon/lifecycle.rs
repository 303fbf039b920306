//! From opening the node to its end, over what a node can do ([`Work`]), so that tests can drive every
//! turn of it.
//!
//! ```text
//! open -> serve -> wait until nothing keeps it from serving -> READY -> run -> drain -> stopped
//!   |       |                        |                                   |       |
//!   +-------+------------------------+--- failed: ends at once ----------+-------+
//! ```
//! The service manager hears of each step. While the node recovers, its start timeout is extended.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{error, info, warn};

use super::hang::{self, Heart};
use super::notify::{Notifier, State, feed_watchdog};
use super::process::{Request, Requests};
use crate::error::Result;
use crate::node::{Deadline, Problem};
use crate::storage;

/// What the lifecycle needs of a node. [`crate::node::Node`] says what each promises.
pub trait Work: Send + Sync + 'static {
    fn problems(&self) -> Vec<Problem>;
    fn failed(&self) -> impl Future<Output = String> + Send;
    fn probe(&self) -> impl Future<Output = Result<()>> + Send;
    /// Resolves when it can go on only in a process that starts anew.
    fn starts_anew(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
    /// Lets other nodes take over what this one leads, while it still serves.
    fn hand_over(&self, _deadline: Deadline) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
    fn shutdown(&self, deadline: Deadline) -> impl Future<Output = Result<()>> + Send;
    /// What it does, for the status line.
    fn status(&self) -> impl Future<Output = String> + Send;
}

/// How long other nodes have to take over before a stop.
const HAND_OVER_MAX: Duration = Duration::from_secs(5);

/// How long the node has to tell its status.
const STATUS_MAX: Duration = Duration::from_millis(500);

/// The loops are probed at half of it where no service manager says how often.
const WATCHDOG_DEFAULT: Duration = Duration::from_secs(30);

/// How long a start may wait for others and for elections before its log calls that a warning.
const USUAL_START: Duration = Duration::from_secs(5);

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two looks at what still keeps the node from serving.
    pub ready_poll: Duration,
    /// Between two extensions of the start timeout, each to three times as much.
    pub extend: Duration,
    /// The start timeout is not extended beyond this: recovery reads the log, at most a few GiB of it,
    /// and what takes longer is stuck.
    pub start_max: Duration,
    /// Between two looks at the status.
    pub status: Duration,
    /// For calls under way to finish after a stop was asked for: as long as a call takes by default.
    pub drain: Duration,
    /// For the checkpoint and the closing of files after that. Both together stay under the unit's
    /// `TimeoutStopSec`.
    pub shutdown: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            ready_poll: Duration::from_millis(50),
            extend: Duration::from_secs(10),
            start_max: Duration::from_secs(30 * 60),
            status: Duration::from_secs(5),
            drain: crate::limits::CALL_DEADLINE_DEFAULT,
            shutdown: Duration::from_secs(30),
        }
    }
}

/// How the operating system says that a disk is full (ENOSPC).
const NO_SPACE: &str = "(os error 28)";

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// As asked, everything closed.
    Stopped,
    /// Everything closed, to be started again.
    Again,
    /// A second signal came before everything was closed.
    Forced,
    /// Nothing can be saved by going on; why.
    Failed(String),
}

/// The servers, running until told to stop.
pub type Servers = JoinHandle<Result<(), String>>;

/// Resolves when calls under way are to be finished and no new ones taken.
pub type Stop = watch::Receiver<bool>;

/// Everything around the node.
#[derive(Debug)]
pub struct Lifecycle<R> {
    pub notifier: Notifier,
    /// The service manager's watchdog, if it has one.
    pub watchdog: Option<Duration>,
    pub requests: R,
    pub pace: Pace,
}

/// What one wait of the running node ended with.
enum Turn {
    Look,
    Asked(Request),
    Failed(String),
    ServersEnded(String),
    Again,
}

impl<R: Requests> Lifecycle<R> {
    /// Runs a node from its opening to its end.
    ///
    /// `serve` starts the servers; `reload` reads the configuration again and answers what came of it,
    /// for the status line.
    pub async fn run<W: Work>(
        mut self,
        open: impl Future<Output = Result<Arc<W>, String>>,
        serve: impl FnOnce(Arc<W>, Stop) -> Servers,
        mut reload: impl FnMut() -> String,
    ) -> Ended {
        let started = Instant::now();
        let heart = Heart::default();
        // Until this returns.
        let watched = Arc::new(());
        let watching = Arc::downgrade(&watched);
        let under_way = move || watching.upgrade().map(|_| storage::under_way());
        if let Err(error) = hang::watch(heart.clone(), under_way) {
            return self.failed(format!("a thread can't be started: {error}"));
        }
        let node = match self.open(open, started, &mut reload).await {
            Ok(node) => node,
            Err(ended) => return ended,
        };
        let (stop, stopping) = watch::channel(false);
        let servers = serve(node.clone(), stopping.clone());
        let probed = node.clone();
        // From now on it has to answer.
        heart.beat();
        // Without a service manager that wants it, what is sent goes nowhere.
        let period = self.watchdog.unwrap_or(WATCHDOG_DEFAULT);
        let watchdog = tokio::spawn(feed_watchdog(self.notifier.clone(), heart, period, move || {
            let (node, stopping) = (probed.clone(), stopping.clone());
            async move {
                tokio::select! {
                    answer = node.probe() => answer,
                    // A node that is closing has no loops to probe, and the drain has its own end.
                    () = stopped(stopping) => Ok(()),
                }
            }
        }));
        let ended = self.serve(node, servers, stop, started, &mut reload).await;
        watchdog.abort();
        ended
    }

    /// Waits for the node to open, and keeps the service manager patient meanwhile.
    async fn open<W>(
        &mut self,
        open: impl Future<Output = Result<Arc<W>, String>>,
        started: Instant,
        reload: &mut impl FnMut() -> String,
    ) -> Result<Arc<W>, Ended> {
        self.notifier.status("opening the data directory and recovering");
        tokio::pin!(open);
        let mut extend = interval(self.pace.extend);
        loop {
            tokio::select! {
                opened = &mut open => return opened.map_err(|reason| self.failed(reason)),
                _ = extend.tick() => self.extend_start(started),
                request = self.requests.next() => match request {
                    Request::Reload => {
                        reload();
                    }
                    Request::Stop(signal) => {
                        // Nothing was acknowledged since the start: there is nothing to finish, and
                        // recovery begins anew next time.
                        info!(signal, "stopping before the node was open");
                        self.notifier.send(&[State::Stopping, State::Status("stopping")]);
                        return Err(Ended::Stopped);
                    }
                },
            }
        }
    }

    fn extend_start(&self, started: Instant) {
        if started.elapsed() < self.pace.start_max {
            let more = u32::try_from((self.pace.extend * 3).as_micros()).unwrap_or(u32::MAX);
            self.notifier.send(&[State::ExtendTimeoutUsec(more)]);
        }
    }

    fn failed(&self, mut reason: String) -> Ended {
        // Wherever in the node the disk was met full.
        if reason.contains(NO_SPACE) {
            reason += "; the data directory's disk is full: free or add space, then start again; acknowledged \
                       writes are in the log";
        }
        error!("{reason}");
        self.notifier.status(&reason);
        Ended::Failed(reason)
    }

    /// Waits until it serves, says so, and goes on until it is asked to stop or can't go on.
    async fn serve<W: Work>(
        &mut self,
        node: Arc<W>,
        mut servers: Servers,
        stop: watch::Sender<bool>,
        started: Instant,
        reload: &mut impl FnMut() -> String,
    ) -> Ended {
        let failed = node.failed();
        tokio::pin!(failed);
        let anew = node.starts_anew();
        tokio::pin!(anew);
        let mut look = interval(self.pace.ready_poll);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut extended = Instant::now();
        let mut ready = false;
        let mut status = String::new();
        loop {
            let turn = tokio::select! {
                biased;
                reason = &mut failed => Turn::Failed(reason),
                ended = &mut servers => Turn::ServersEnded(match ended {
                    Ok(Ok(())) => "a server ended by itself".to_string(),
                    Ok(Err(reason)) => reason,
                    Err(error) => format!("a server was ended: {error}"),
                }),
                request = self.requests.next() => Turn::Asked(request),
                () = &mut anew => Turn::Again,
                _ = look.tick() => Turn::Look,
            };
            match turn {
                Turn::Failed(reason) | Turn::ServersEnded(reason) => return self.failed(reason),
                Turn::Asked(Request::Stop(signal)) => {
                    info!(signal, "stopping: calls under way are finished, then the data is checkpointed");
                    self.notifier.send(&[State::Stopping]);
                    return tokio::select! {
                        ended = drain(&self.notifier, self.pace, &*node, servers, stop) => ended,
                        reason = &mut failed => self.failed(reason),
                        () = second_stop(&mut self.requests) => {
                            warn!(
                                "a second signal: ending at once; acknowledged writes are in the log, the \
                                 next start recovers them"
                            );
                            Ended::Forced
                        }
                    };
                }
                Turn::Again => {
                    info!("starting anew: calls under way are finished first");
                    // The service manager is not told of a stop: the process stays.
                    return tokio::select! {
                        ended = drain(&self.notifier, self.pace, &*node, servers, stop) => match ended {
                            Ended::Stopped => Ended::Again,
                            other => other,
                        },
                        reason = &mut failed => self.failed(reason),
                        () = second_stop(&mut self.requests) => {
                            info!("asked to stop while starting anew: the next start goes on with it");
                            Ended::Forced
                        }
                    };
                }
                Turn::Asked(Request::Reload) if ready => {
                    let now = State::monotonic_usec_now().ok();
                    let mut states = vec![State::Reloading];
                    states.extend(now);
                    self.notifier.send(&states);
                    let outcome = reload();
                    self.notifier.send(&[State::Ready, State::Status(&super::notify::one_line(&outcome))]);
                    // The outcome stays to be read until the next look.
                    status.clear();
                    look.reset();
                }
                Turn::Asked(Request::Reload) => {
                    reload();
                }
                Turn::Look => {
                    let problems = node.problems();
                    if !ready && !problems.iter().any(Problem::keeps_from_starting) {
                        ready = true;
                        look = interval(self.pace.status);
                        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
                        status = self.current_status(&*node, &problems).await;
                        info!(took_ms = started.elapsed().as_millis() as u64, "ready: {status}");
                        self.notifier.send(&[State::Ready, State::Status(&super::notify::one_line(&status))]);
                        look.reset();
                        continue;
                    }
                    if !ready && extended.elapsed() >= self.pace.extend {
                        extended = Instant::now();
                        self.extend_start(started);
                    }
                    let now = match ready {
                        true => self.current_status(&*node, &problems).await,
                        false => format!("waiting: {}", first_of(&problems)),
                    };
                    if now != status {
                        // Elections at a start are no trouble yet.
                        let is_usual = problems.is_empty() || (!ready && started.elapsed() < USUAL_START);
                        match is_usual {
                            true => info!("{now}"),
                            false => warn!("{now}"),
                        }
                        self.notifier.status(&now);
                        status = now;
                    }
                }
            }
        }
    }

    async fn current_status<W: Work>(&self, node: &W, problems: &[Problem]) -> String {
        if !problems.is_empty() {
            return format!("degraded: {}", first_of(problems));
        }
        // A status is not worth waiting for: a node too busy to tell it has better things to do, and a
        // signal may be next.
        match timeout(self.pace.status.min(STATUS_MAX), node.status()).await {
            Ok(status) => status,
            Err(_) => "serving, too busy to tell more".to_string(),
        }
    }
}

fn first_of(problems: &[Problem]) -> String {
    match problems {
        [] => "nothing".to_string(),
        [only] => only.message.clone(),
        [first, rest @ ..] => format!("{} (and {} more)", first.message, rest.len()),
    }
}

async fn second_stop(requests: &mut impl Requests) {
    while !matches!(requests.next().await, Request::Stop(_)) {}
}

/// Finishes calls, then the node, each within its time.
async fn drain<W: Work>(
    notifier: &Notifier,
    pace: Pace,
    node: &W,
    mut servers: Servers,
    stop: watch::Sender<bool>,
) -> Ended {
    let more = u32::try_from((pace.drain + pace.shutdown).as_micros()).unwrap_or(u32::MAX);
    notifier
        .send(&[State::Status("stopping: finishing the calls under way"), State::ExtendTimeoutUsec(more)]);
    let begun = Instant::now();
    if timeout(HAND_OVER_MAX, node.hand_over(begun + HAND_OVER_MAX)).await.is_err() {
        warn!("the leaderships were not handed over in time: the others will elect");
    }
    // With nobody listening the servers have ended already.
    let _ = stop.send(true);
    match timeout(pace.drain, &mut servers).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(reason))) => warn!("while stopping: {reason}"),
        Ok(Err(error)) => warn!("while stopping: {error}"),
        Err(_) => {
            warn!(waited_ms = pace.drain.as_millis() as u64, "calls are still under way; they are cut off");
            servers.abort();
        }
    }
    notifier.status("stopping: checkpointing");
    let closing = Instant::now();
    // The node keeps to its deadline itself; the grace is for one that does not.
    let grace = pace.shutdown / 10;
    match timeout(pace.shutdown + grace, node.shutdown(closing + pace.shutdown)).await {
        Ok(Ok(())) => {
            info!(took_ms = closing.elapsed().as_millis() as u64, "stopped");
            notifier.status("stopped");
            Ended::Stopped
        }
        Ok(Err(error)) => close_failed(notifier, error.to_string()),
        Err(_) => close_failed(notifier, format!("not done after {} s", pace.shutdown.as_secs_f32())),
    }
}

fn close_failed(notifier: &Notifier, why: String) -> Ended {
    let reason = format!(
        "the checkpoint before the end failed: {why}; acknowledged writes are in the log, the next start \
         recovers them"
    );
    error!("{reason}");
    notifier.status(&reason);
    Ended::Failed(reason)
}

/// Resolves when `stop` says so, or nobody is left to say so.
pub async fn stopped(mut stop: Stop) {
    let _ = stop.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests;
