//! The daemon `rushkv`: from its arguments to its exit code.
//!
//! [`run`] reads as the lifecycle: arguments, configuration, logs, ports, node, servers, then
//! [`lifecycle`] until a signal. The configuration's rules are in [`crate::config`], what a node does
//! in [`crate::node`], what it answers in [`crate::service`]; here is only what makes a process of
//! them, and what the service manager hears.

mod args;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod generate;
mod hang;
mod lifecycle;
mod listen;
mod log;
mod notify;
mod process;
mod servers;

use std::io::{self, ErrorKind, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tracing::{Level, error, info, warn};

use crate::config::{self, Config, Loaded, Problem, Sources, keys::Reload};
use crate::node::Node;
use crate::{disk, error, metrics};
use args::Args;
use lifecycle::{Ended, Lifecycle, Pace};

/// Failed: the log says why.
pub const EXIT_FAILED: u8 = 1;

/// The configuration is wrong (`EX_CONFIG` of sysexits): starting again will not mend it.
pub const EXIT_CONFIG: u8 = 78;

/// Blocking work that is still under way has this long after everything was closed.
const RUNTIME_GRACE: Duration = Duration::from_secs(1);

/// Runs the program with the process's arguments, to its end.
pub fn run() -> ExitCode {
    let args = match Args::parse_from(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => {
            // Help and version too come as errors, with their own code; a closed pipe is no news.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_FAILED));
        }
    };
    if let Some(kind) = args.generate {
        return written(generate::write(kind, &mut io::stdout().lock()));
    }
    let sources = Sources::of_process(args.config.clone(), args.flags());
    let loaded = match config::load(&sources) {
        Ok(loaded) => loaded,
        Err(problems) => return refused(&problems),
    };
    if args.print_config {
        return written(io::stdout().lock().write_all(config::print(&loaded).as_bytes()));
    }
    if args.check_config {
        return checked(&loaded);
    }
    start(sources, loaded)
}

fn refused(problems: &[Problem]) -> ExitCode {
    for problem in problems {
        log::plain(Level::ERROR, &problem.to_string());
    }
    let count = match problems.len() {
        1 => "1 problem".to_string(),
        count => format!("{count} problems"),
    };
    log::plain(Level::ERROR, &format!("rushkv: {count} in the configuration"));
    ExitCode::from(EXIT_CONFIG)
}

fn checked(loaded: &Loaded) -> ExitCode {
    for warning in &loaded.warnings {
        log::plain(Level::WARN, &format!("warning: {warning}"));
    }
    written(writeln!(io::stdout(), "The configuration holds ({}).", files_read(loaded)))
}

fn files_read(loaded: &Loaded) -> String {
    let files: Vec<String> = loaded.files.iter().map(|path| path.display().to_string()).collect();
    match files.is_empty() {
        true => "no file was read".to_string(),
        false => format!("read {}", files.join(", ")),
    }
}

/// A reader that closed the pipe has seen enough.
fn written(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            log::plain(Level::ERROR, &format!("rushkv: can't write to standard output: {error}"));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Prepares the process and runs the node in it.
fn start(sources: Sources, loaded: Loaded) -> ExitCode {
    process::abort_on_panic();
    // What the data directory holds is nobody else's to read, however the program was started.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let level = match log::init(&loaded.config.log_level) {
        Ok(level) => level,
        Err(error) => {
            log::plain(Level::ERROR, &format!("rushkv: logging can't be started: {error}"));
            return ExitCode::from(EXIT_FAILED);
        }
    };
    greet(&loaded);
    let open_files = process::raise_open_files().unwrap_or_else(|error| {
        warn!(%error, "the limit of open files stays as it is");
        process::open_files()
    });
    let connections_max = process::connections_max(open_files);
    tracing::debug!(?open_files, connections_max, "open files");
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "the threads can't be started");
            return ExitCode::from(EXIT_FAILED);
        }
    };
    match runtime.block_on(serve(sources, loaded, level, connections_max)) {
        Ended::Stopped => {
            runtime.shutdown_timeout(RUNTIME_GRACE);
            ExitCode::SUCCESS
        }
        Ended::Again => {
            runtime.shutdown_timeout(RUNTIME_GRACE);
            let error = process::start_again();
            log::plain(Level::ERROR, &format!("rushkv: can't start anew by itself: {error}; start it again"));
            ExitCode::from(EXIT_FAILED)
        }
        // At once: what is still in memory is not to be written after a failure, and the log has
        // everything that was acknowledged.
        Ended::Forced | Ended::Failed(_) => std::process::exit(i32::from(EXIT_FAILED)),
    }
}

fn greet(loaded: &Loaded) {
    let config = &loaded.config;
    info!(
        node = config.node_id,
        data_dir = %config.data_dir.display(),
        engine = %config.engine,
        config = files_read(loaded),
        "rushkv {} starts",
        env!("CARGO_PKG_VERSION"),
    );
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
}

/// Binds the ports, then opens the node and keeps it until its end.
async fn serve(sources: Sources, loaded: Loaded, level: log::Switch, connections_max: usize) -> Ended {
    let notifier = notify::Notifier::from_env();
    let failed = |reason: String| {
        error!("{reason}");
        notifier.status(&reason);
        Ended::Failed(reason)
    };
    // First, so that no signal finds the process without its handlers.
    let requests = match process::Signals::new() {
        Ok(requests) => requests,
        Err(error) => return failed(format!("signals can't be caught: {error}")),
    };
    let config = loaded.config.clone();
    // Before the node, so that a port in use costs no recovery. Who connects meanwhile is served as
    // soon as the node is open.
    let (grpc_listener, http_listener, port) = match bind(&config).await {
        Ok(bound) => bound,
        Err(reason) => return failed(reason),
    };
    if let Err(reason) = prepare_data_dir(&config.data_dir) {
        return failed(reason);
    }
    let registry = metrics::Metrics::new().registry;
    let grpc_metrics = match metrics::Grpc::register(&registry) {
        Ok(metrics) => metrics,
        Err(error) => return failed(format!("metrics can't be registered: {error}")),
    };
    let open = {
        let (options, registry, dir) = (config.node_options(port), registry.clone(), config.data_dir.clone());
        async move { Node::open(options, &registry).await.map_err(|error| cant_open(&dir, &error)) }
    };
    let lifecycle = Lifecycle {
        notifier: notifier.clone(),
        watchdog: sd_notify::watchdog_enabled(),
        requests,
        // A little longer than the server takes by itself, which says more.
        pace: Pace { drain: servers::DRAIN + Duration::from_secs(2), ..Pace::default() },
    };
    let start = |node: Arc<Node>, stop| {
        servers::start(node, grpc_listener, http_listener, grpc_metrics, registry, connections_max, stop)
    };
    let mut running = loaded;
    // On the heap: it holds the whole life of the process.
    Box::pin(lifecycle.run(open, start, || reload(&sources, &mut running, &level))).await
}

type Bound = (tokio::net::TcpListener, Option<tokio::net::TcpListener>, u16);

/// The listeners for gRPC and HTTP, and the port of the first.
async fn bind(config: &Config) -> Result<Bound, String> {
    let grpc = listen::bind("addr", &config.addr).await?;
    let local = grpc.local_addr().map_err(|error| format!("addr = \"{}\": {error}", config.addr))?;
    info!(addr = %local, "listening for gRPC");
    let http = match &config.metrics_addr {
        None => None,
        Some(addr) => {
            let http = listen::bind("metrics.addr", addr).await?;
            if let Ok(local) = http.local_addr() {
                info!(addr = %local, "listening for HTTP: /metrics, /livez, /readyz");
            }
            Some(http)
        }
    };
    Ok((grpc, http, local.port()))
}

/// Makes the data directory and looks whether it can be used at all; what is in it is the node's.
fn prepare_data_dir(dir: &Path) -> Result<(), String> {
    use rustix::fs::{Access, access};
    let made = disk::create_dir_all(dir);
    let usable = made.and_then(|()| {
        if !dir.is_dir() {
            return Err(ErrorKind::NotADirectory.into());
        }
        access(dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).map_err(io::Error::from)
    });
    usable.map_err(|error| {
        let way_out = match error.kind() {
            ErrorKind::PermissionDenied => {
                "run as the user that owns it, give it to this user, or choose another directory (data_dir, \
                 or -data=DIR)"
            }
            ErrorKind::ReadOnlyFilesystem => {
                "choose a directory on a file system that can be written; under systemd, a drop-in with \
                 ReadWritePaths= opens one"
            }
            ErrorKind::NotADirectory => "choose a directory (data_dir, or -data=DIR)",
            _ => "mend that, or choose another directory (data_dir, or -data=DIR)",
        };
        format!("data_dir = \"{}\": can't be used: {error}; {way_out}", dir.display())
    })
}

fn cant_open(dir: &Path, error: &error::Error) -> String {
    format!("data_dir = \"{}\": the node can't be opened: {error}", dir.display())
}

/// Reads the configuration again. Takes up what it can, names what needs a restart; on any problem
/// everything stays as it is. Answers what came of it, in a line.
fn reload(sources: &Sources, running: &mut Loaded, level: &log::Switch) -> String {
    let new = match config::load(sources) {
        Ok(new) => new,
        Err(problems) => {
            for problem in &problems {
                error!("{problem}");
            }
            error!(problems = problems.len(), "the configuration was not reloaded; the old one stays");
            return match &problems[..] {
                [first, ..] => format!("not reloaded, the old configuration stays: {first}"),
                [] => "not reloaded, the old configuration stays".to_string(),
            };
        }
    };
    if let Err(error) = level.set(&new.config.log_level) {
        error!(error, "the configuration was not reloaded; the old one stays");
        return format!("not reloaded, the old configuration stays: {error}");
    }
    for warning in &new.warnings {
        warn!("{warning}");
    }
    let mut taken = Vec::new();
    let mut waiting = Vec::new();
    for change in config::changes(running, &new) {
        let config::Change { key, old, new, takes } = change;
        match takes {
            Reload::Live => {
                info!("{key} is now {new} (was {old})");
                taken.push(key);
            }
            Reload::Restart => {
                warn!("{key} = {new} needs a restart; until then it stays {old}");
                waiting.push(key);
            }
            Reload::Formation => {
                warn!("{key} = {new} does nothing: it counts only while a cluster is formed");
            }
        }
    }
    running.take_live(&new);
    let summary = match (&taken[..], &waiting[..]) {
        ([], []) => "reloaded: nothing changed".to_string(),
        (taken, []) => format!("reloaded: {}", taken.join(", ")),
        ([], waiting) => format!("reloaded; needs a restart: {}", waiting.join(", ")),
        (taken, waiting) => {
            format!("reloaded: {}; needs a restart: {}", taken.join(", "), waiting.join(", "))
        }
    };
    info!("{summary}");
    summary
}

/// Half of the cores run tasks. What goes on beside them (the log's writer, the engine's flushes and merges, batches that
/// wait for the disk, the kernel's part of the network) has threads of its own, and workers that stand in its way, or
/// in each other's, cost more than they bring.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let workers = (cores / 2).max(1);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("rushkv-worker")
        .enable_all()
        .build()
}

#[cfg(test)]
mod tests;
