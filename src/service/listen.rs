//! Accepting connections: bounded in number, told when the server stops, cut off when they don't end.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// How long to wait after accepting failed for want of something (file descriptors, memory) that
/// only time brings back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Resolves when the server stops.
pub(super) async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender, and so the server, is gone altogether.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Which connection ends when there is one over the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// The new one: those that are there carry calls.
    RefuseNew,
    /// The oldest: requests are short, and who has been there for longest waits, is slow, or is there to keep
    /// others out. None of them can, but by coming again faster than a request takes.
    CutOldest,
}

/// Serves connections until `shutdown`, then waits for the open ones to end, for `drain` at most.
/// `refused` hears of each that the limit ended. `serve` gets each connection, and a flag that becomes true when it should end. Returns how many
/// connections were cut off.
pub(super) async fn run<S, F>(
    listener: TcpListener,
    (connections_max, full): (usize, Full),
    drain: Duration,
    stopping: watch::Sender<bool>,
    shutdown: impl Future<Output = ()>,
    refused: impl Fn(),
    serve: S,
) -> usize
where
    S: Fn(TcpStream, watch::Receiver<bool>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut by_age = ByAge { handles: VecDeque::new(), open_max: connections_max };
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Those that have just ended make room first.
                    while connections.try_join_next().is_some() {}
                    if connections.len() >= connections_max {
                        refused();
                        match full {
                            Full::RefuseNew => continue,
                            Full::CutOldest => by_age.cut_oldest(),
                        }
                    }
                    // Answers are written whole; waiting for more to send would only delay them.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY could not be set");
                    }
                    let handle = connections.spawn(serve(stream, stopping.subscribe()));
                    if full == Full::CutOldest {
                        by_age.push(handle);
                    }
                }
                Err(error) if of_the_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, open = connections.len(), "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    // Closed before draining: a new client is refused at once instead of waiting in the backlog.
    drop(listener);
    stopping.send_replace(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(drain, drained).await;
    let cut_off = connections.len();
    connections.shutdown().await;
    cut_off
}

/// The open connections, oldest first; and some that have ended.
struct ByAge {
    handles: VecDeque<AbortHandle>,
    open_max: usize,
}

impl ByAge {
    fn push(&mut self, handle: AbortHandle) {
        // A handle keeps the memory of its connection. More than half of these have ended.
        if self.handles.len() >= 2 * self.open_max {
            self.handles.retain(|handle| !handle.is_finished());
        }
        self.handles.push_back(handle);
    }

    fn cut_oldest(&mut self) {
        while let Some(oldest) = self.handles.pop_front() {
            if !oldest.is_finished() {
                return oldest.abort();
            }
        }
    }
}

/// Whether an error of `accept` is about the connection that was to be accepted, not the listener.
fn of_the_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scraper that keeps its connection, and a probe that makes a new one each time.
    #[tokio::test]
    async fn one_that_stays_does_not_keep_what_came_after_it() {
        let mut by_age = ByAge { handles: VecDeque::new(), open_max: 4 };
        let stays = tokio::spawn(std::future::pending::<()>());
        by_age.push(stays.abort_handle());
        for _ in 0..100 {
            let ends = tokio::spawn(async {});
            by_age.push(ends.abort_handle());
            ends.await.unwrap();
            assert!(by_age.handles.len() <= 2 * by_age.open_max, "{}", by_age.handles.len());
        }
        by_age.cut_oldest();
        assert!(stays.await.unwrap_err().is_cancelled());
    }
}
