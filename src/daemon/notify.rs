//! Talks to the service manager: sd_notify's datagrams, and the watchdog that it may want fed.
//!
//! The crate `sd-notify` gives the messages their form; they are sent from here, because it reads the
//! socket's name from the environment at each message and knows no abstract sockets.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

pub use sd_notify::NotifyState as State;

use super::hang::Heart;
use crate::error::Result;

/// A service manager that does not read for this long has other troubles; we go on.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest status line, in bytes: it is for one line of `systemctl status`.
const STATUS_BYTES_MAX: usize = 256;

/// The way to the service manager; leads nowhere where there is none. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Notifier {
    target: Option<Arc<(UnixDatagram, SocketAddr)>>,
}

impl Notifier {
    /// To where `NOTIFY_SOCKET` points.
    pub fn from_env() -> Notifier {
        match std::env::var_os("NOTIFY_SOCKET") {
            None => Notifier::default(),
            Some(socket) => Notifier::to(socket.as_bytes()).unwrap_or_else(|error| {
                tracing::warn!(%error, ?socket, "the service manager's socket can't be used");
                Notifier::default()
            }),
        }
    }

    /// To this socket: a path, or `@` and an abstract name.
    pub fn to(name: &[u8]) -> io::Result<Notifier> {
        let address = match name.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Notifier { target: Some(Arc::new((socket, address))) })
    }

    /// Sends the states as one message. A failure is logged: it must not stop the node.
    pub fn send(&self, states: &[State<'_>]) {
        let Some(target) = &self.target else { return };
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        let (socket, address) = &**target;
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            tracing::warn!(%error, "the service manager was not told: {}", message.trim_end());
        }
    }

    /// Sends a status line.
    pub fn status(&self, status: &str) {
        self.send(&[State::Status(&one_line(status))]);
    }
}

/// A newline would begin another state.
pub fn one_line(status: &str) -> String {
    let mut line = status.replace(|c: char| c.is_control(), " ");
    if line.len() > STATUS_BYTES_MAX {
        let end = (0..=STATUS_BYTES_MAX).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(end);
    }
    line
}

/// A heart beats at least as often while all is well, whatever the service manager wants.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(15);

/// Feeds the watchdog at half its `period` or more often, as long as `probe` answers: without an answer the service
/// manager ends the process when the period is over, and starts it anew. `heart` beats with it. Never returns.
pub async fn feed_watchdog<F>(
    notifier: Notifier,
    heart: Heart,
    period: Duration,
    mut probe: impl FnMut() -> F,
) where
    F: Future<Output = Result<()>>,
{
    let pause = (period / 2).min(PROBE_PAUSE_MAX);
    loop {
        let probing = probe();
        tokio::pin!(probing);
        let answer = tokio::select! {
            answer = &mut probing => answer,
            () = tokio::time::sleep(pause) => {
                tracing::error!(
                    waited_ms = pause.as_millis() as u64,
                    "the node's loops do not answer; if that lasts, the watchdog ends this process"
                );
                probing.await
            }
        };
        match answer {
            Ok(()) => {
                heart.beat();
                notifier.send(&[State::Watchdog]);
                tokio::time::sleep(pause).await;
            }
            Err(error) => {
                tracing::error!(%error, "the node's loops do not run; the watchdog is not fed");
                tokio::time::sleep(pause / 4).await;
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::error::{Error, Reason};

    /// A service manager's end of the socket.
    pub struct Manager {
        socket: UnixDatagram,
        seen: Mutex<String>,
        _dir: tempfile::TempDir,
        pub notifier: Notifier,
    }

    impl Manager {
        pub fn new() -> Manager {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("notify");
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_nonblocking(true).unwrap();
            let notifier = Notifier::to(path.as_os_str().as_bytes()).unwrap();
            Manager { socket, seen: Mutex::default(), _dir: dir, notifier }
        }

        /// Everything received so far.
        pub fn seen(&self) -> String {
            let mut seen = self.seen.lock().unwrap();
            let mut buffer = [0; 4096];
            while let Ok(length) = self.socket.recv(&mut buffer) {
                seen.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
            }
            seen.clone()
        }

        /// Waits until `part` has been received.
        pub async fn wait_for(&self, part: &str) {
            for _ in 0..6000 {
                if self.seen().contains(part) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            panic!("no {part:?} within 30 s; seen:\n{}", self.seen());
        }
    }

    #[test]
    fn messages_arrive_whole_by_path_and_by_abstract_name() {
        let manager = Manager::new();
        manager.notifier.send(&[State::Ready, State::Status("serving")]);
        assert_eq!(manager.seen(), "READY=1\nSTATUS=serving\n");

        let name = format!("rushkv-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::to(format!("@{name}").as_bytes()).unwrap().send(&[State::Stopping]);
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STOPPING=1\n");
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        Notifier::default().send(&[State::Ready]);
        let gone = Manager::new();
        let notifier = gone.notifier.clone();
        drop(gone);
        notifier.send(&[State::Ready]);
    }

    #[test]
    fn a_status_is_one_line_of_bounded_length() {
        assert_eq!(one_line("a\nREADY=1"), "a READY=1");
        assert_eq!(one_line(&"\u{e4}".repeat(200)).len(), STATUS_BYTES_MAX);
    }

    #[tokio::test]
    async fn the_watchdog_is_fed_only_while_the_probe_answers() {
        let manager = Manager::new();
        let healthy = Arc::new(AtomicBool::new(true));
        let state = healthy.clone();
        let period = Duration::from_millis(40);
        let feeding =
            tokio::spawn(feed_watchdog(manager.notifier.clone(), Heart::default(), period, move || {
                let healthy = state.load(Ordering::SeqCst);
                async move {
                    match healthy {
                        true => Ok(()),
                        false => Err(Error::new(Reason::Internal, "stuck")),
                    }
                }
            }));
        manager.wait_for("WATCHDOG=1\nWATCHDOG=1\nWATCHDOG=1\n").await;
        healthy.store(false, Ordering::SeqCst);
        tokio::time::sleep(period).await;
        let before = manager.seen();
        tokio::time::sleep(period * 5).await;
        assert_eq!(manager.seen(), before, "fed although the probe failed");
        healthy.store(true, Ordering::SeqCst);
        manager.wait_for(&format!("{before}WATCHDOG=1\n")).await;
        feeding.abort();
    }

    #[tokio::test]
    async fn a_probe_that_hangs_starves_the_watchdog() {
        let manager = Manager::new();
        let period = Duration::from_millis(20);
        let feeding = tokio::spawn(feed_watchdog(
            manager.notifier.clone(),
            Heart::default(),
            period,
            std::future::pending,
        ));
        tokio::time::sleep(period * 6).await;
        assert_eq!(manager.seen(), "");
        feeding.abort();
    }
}
