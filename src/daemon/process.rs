//! What concerns the process as a whole: panics, open files, signals.

use std::backtrace::Backtrace;
use std::os::unix::process::CommandExt as _;
use std::panic::PanicHookInfo;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::Level;

use super::log;
use crate::limits;

/// From now on a panic in any thread or task ends the process: a node with a dead task would go on
/// answering without it.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let backtrace = Backtrace::force_capture();
        // Not through the log: it may be what panicked.
        log::plain(Level::ERROR, &format!("{}\n{backtrace}", describe(info)));
        std::process::abort();
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let message = info.payload_as_str().unwrap_or("(no message)");
    let thread = std::thread::current();
    let location = info.location().map_or_else(|| "an unknown place".to_string(), ToString::to_string);
    let meaning = match info.location().is_some_and(|location| is_sleds(location.file())) {
        true => SLED_PANICKED,
        false => PANICKED,
    };
    format!(
        "rushkv {} panicked in thread {} at {location}: {message}\n{meaning}",
        env!("CARGO_PKG_VERSION"),
        thread.name().unwrap_or("(unnamed)"),
    )
}

const PANICKED: &str = "This is a bug. The process ends; acknowledged writes are in the log and come back at the next \
                        start. Please report it with the lines below.";

/// It does not return errors for much of what a damaged file can make it find.
const SLED_PANICKED: &str = "The engine, sled, can't make sense of its files. The process ends. If it does so at each \
                             start, the disk has damaged them: in a cluster, let this node leave (rushkvctl cluster \
                             leave NODE --yes), and start it with an empty data directory; alone, restore the data directory \
                             from a copy.";

fn is_sleds(file: &str) -> bool {
    file.split(['/', '\\']).any(|part| part.starts_with("sled-"))
}

/// Lets the process open as many files as it may: an engine keeps hundreds open, and each connection
/// is one. Answers how many those are; `None`: without limit.
pub fn raise_open_files() -> Result<Option<u64>, std::io::Error> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(limit.maximum)
}

/// How many files the process may have open.
pub fn open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// How many of them connections of clients may take: the rest is for the log, the engine, and connections to
/// other nodes, without which the node ends. Half, or all but 2048.
pub fn connections_max(open_files: Option<u64>) -> usize {
    let Some(most) = open_files else { return limits::CONNECTIONS_MAX };
    let rest = (most / 2).min(2048);
    usize::try_from(most - rest).map_or(limits::CONNECTIONS_MAX, |room| room.min(limits::CONNECTIONS_MAX))
}

/// Becomes a new process of the same program, with the same arguments and id; returns only if it can't.
pub fn start_again() -> std::io::Error {
    let mut args = std::env::args_os();
    // By its path, so that it keeps its name; by the open file, if an upgrade has replaced it meanwhile.
    let program = std::env::current_exe().ok().filter(|path| path.is_file());
    let mut again = Command::new(program.unwrap_or_else(|| "/proc/self/exe".into()));
    if let Some(name) = args.next() {
        again.arg0(name);
    }
    again.args(args).exec()
}

/// What somebody asks of the running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT, by its name.
    Stop(&'static str),
    /// SIGHUP.
    Reload,
}

/// The signals, caught from when it is made.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Where requests come from: signals, or a test.
pub trait Requests: Send {
    /// The next one. Nothing is lost if the wait is given up.
    fn next(&mut self) -> impl Future<Output = Request> + Send;
}

impl Requests for Signals {
    async fn next(&mut self) -> Request {
        // Biased: who wants it to stop is heard before who wants it changed.
        tokio::select! {
            biased;
            Some(()) = self.terminate.recv() => Request::Stop("SIGTERM"),
            Some(()) = self.interrupt.recv() => Request::Stop("SIGINT"),
            Some(()) = self.hangup.recv() => Request::Reload,
            else => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test runs itself again as a child, with this set, and looks how that one ended.
    const CHILD: &str = "RUSHKV_TEST_CHILD_PANICS";

    #[test]
    fn a_panic_of_sled_is_told_from_one_of_ours() {
        assert!(is_sleds("/somewhere/sled-0.34.7/src/serialization.rs"));
        assert!(!is_sleds("src/storage/sled.rs"));
    }

    #[test]
    fn a_panic_in_any_task_ends_the_process_and_says_where() {
        use std::os::unix::process::ExitStatusExt as _;
        if std::env::var_os(CHILD).is_some() {
            abort_on_panic();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
            let task = runtime.spawn(async { panic!("the index is {}", 7) });
            // Without the hook the runtime would catch it, and the process end well.
            let _ = runtime.block_on(task);
            return;
        }
        let name = "daemon::process::tests::a_panic_in_any_task_ends_the_process_and_says_where";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .env_remove("JOURNAL_STREAM")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(rustix::process::Signal::ABORT.as_raw()), "{told}");
        let backtrace = "   0: ";
        for part in [env!("CARGO_PKG_VERSION"), "src/daemon/process.rs:", "the index is 7", backtrace] {
            assert!(told.contains(part), "{part} is missing:\n{told}");
        }
    }

    #[tokio::test]
    async fn signals_are_requests() {
        use rustix::process::{Signal, getpid, kill_process};
        let mut signals = Signals::new().unwrap();
        for (sent, request) in [
            (Signal::HUP, Request::Reload),
            (Signal::TERM, Request::Stop("SIGTERM")),
            (Signal::INT, Request::Stop("SIGINT")),
        ] {
            kill_process(getpid(), sent).unwrap();
            assert_eq!(signals.next().await, request);
        }
    }

    #[test]
    fn connections_leave_files_to_the_node() {
        let cases = [(1024, 512), (4096, 2048), (10_000, 7952), (65_536, limits::CONNECTIONS_MAX)];
        for (open_files, connections) in cases {
            assert_eq!(connections_max(Some(open_files)), connections, "{open_files}");
        }
        assert_eq!(connections_max(None), limits::CONNECTIONS_MAX);
    }

    #[test]
    fn open_files_are_raised_to_the_hard_limit() {
        let most = raise_open_files().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, most);
    }
}
