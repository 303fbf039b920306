//! The write-ahead log: one per node, shared by all groups.
//!
//! Every group's entries, votes and purge points go through one queue to one writer thread. It takes
//! all that waits, writes it as one batch, makes it durable with one `fdatasync`, and then calls every
//! waiting [`Done`] in order: the fsync's price is shared by all groups that had something to write.
//! Nothing waits for a batch to grow, so a lone writer pays no delay.
//!
//! ```text
//!  Log::append ──┐ memory first,          ┌ one write, one fsync, then the callbacks
//!  Log::save_vote├──▶ bounded queue ──▶ writer ──▶ segment 7 ▏segment 8 ▏segment 9 ...
//!  Log::purge  ──┘                        └ frees the oldest segments, copies laggards forward
//! ```
//!
//! The log knows nothing of Raft: it keeps bytes in order per [`LogKey`]. An I/O error is fatal: what
//! is on the disk is then unknown, so every waiting and later call gets [`Failed`] and the process must
//! end. Nothing is ever retried, and damage found at open is refused, never skipped.
//!
//! The bytes, and why a torn tail can be told from damage: `docs/formats/wal.md`.

mod cache;
mod format;
pub mod fs;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod ledger;
mod log;
mod metrics;
mod queue;
mod recover;
mod segments;
mod shared;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

pub use log::Log;
pub use metrics::Metrics;
use shared::Shared;

use crate::types::{LogId, LogKey};
use crate::way_out::START_OVER;

/// One entry of a group's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: LogId,
    /// Opaque here. A part of a larger buffer keeps all of that in memory while it is cached.
    pub payload: Bytes,
}

/// Settings of the log.
#[derive(Debug, Clone)]
pub struct Options {
    /// The log's own directory; it is created if it is missing.
    pub dir: PathBuf,
    /// Length of a segment file; at least [`Options::SEGMENT_BYTES_MIN`]. A batch that is larger gets a
    /// segment of its own size. May differ from run to run.
    pub segment_bytes: u64,
    /// Payload kept in memory for reading, over all logs; beyond it the oldest durable entries are
    /// read back from disk when they are asked for. What is not durable yet comes on top.
    pub cache_bytes: usize,
    /// What may wait for the writer, over all logs; callers wait for room. A call that is larger than
    /// this alone waits until the queue is empty. The batch being written comes on top.
    pub queue_bytes: usize,
}

impl Options {
    /// Smallest segment: smaller ones would hold little but their header.
    pub const SEGMENT_BYTES_MIN: u64 = 16 * 1024;

    /// The defaults: segments of 64 MiB (a few seconds of full load, half a second to read at open), 64
    /// MiB of cache, 16 MiB of queue.
    pub fn new(dir: impl Into<PathBuf>) -> Options {
        Options {
            dir: dir.into(),
            segment_bytes: 64 * 1024 * 1024,
            cache_bytes: 64 * 1024 * 1024,
            queue_bytes: 16 * 1024 * 1024,
        }
    }
}

/// Called once a write is durable, or with the error after which nobody knows; on the writer's thread,
/// where everybody else waits meanwhile, or on the caller's if the log has ended already.
pub type Done = Box<dyn FnOnce(Result<(), Failed>) + Send>;

/// When an fsync returns, by a simulated disk.
#[cfg(test)]
pub type Synced = Box<dyn Fn() -> futures_util::future::BoxFuture<'static, ()> + Send + Sync>;

/// The log has failed or was closed. After a failure the state of what was written is unknown: the
/// process must end, and recover when it starts again.
#[derive(Debug, Clone)]
pub struct Failed(Arc<str>);

impl Failed {
    fn new(message: impl Into<String>) -> Failed {
        Failed(Arc::from(message.into()))
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write-ahead log: {}", self.0)
    }
}

impl std::error::Error for Failed {}

fn failed_io(doing: &str, path: &Path, error: std::io::Error) -> Failed {
    Failed::new(format!("can't {doing} {}: {error}", path.display()))
}

/// Why the log could not be opened. What is in the log was not changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("write-ahead log: {0}")]
    Options(String),
    /// The disk failed; trying again may work.
    #[error("write-ahead log: can't {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Failed(#[from] Failed),
    /// Written by another version of this program.
    #[error(
        "write-ahead log: {} has format version {found}, and this program knows version {known}; start \
         the version of rushkv that wrote it",
        path.display()
    )]
    Version { path: PathBuf, found: u32, known: u32 },
    /// What was fsynced is not there any more: entries that this node has acknowledged are lost.
    #[error(
        "write-ahead log: {} is damaged at offset {offset}: {found}. Acknowledged writes may be lost, so \
         this node must not go on with it: {}",
        path.display(), START_OVER
    )]
    Damaged { path: PathBuf, offset: u64, found: String },
    /// A file of the sequence is gone.
    #[error(
        "write-ahead log: {} is missing, and segments after it are there. Acknowledged writes may be \
         lost, so this node must not go on without it: {}",
        path.display(), START_OVER
    )]
    Missing { path: PathBuf },
}

/// The node's write-ahead log. Clones are the same log; the last one to go closes it.
#[derive(Debug, Clone)]
pub struct Wal {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Wal {
    /// Recovers what is in `options.dir` and starts the writer thread. Blocks: the whole log is read.
    /// The caller sees to it that no other process has the directory open.
    ///
    /// # Errors
    /// See [`OpenError`]. A batch that was being written when the process or the machine stopped is no
    /// error: it was never acknowledged, and is cut off or kept whole.
    pub fn open(options: Options, metrics: Metrics) -> Result<Wal, OpenError> {
        Wal::open_on(Arc::new(fs::Disk), options, metrics)
    }

    /// The same on a disk of the caller's.
    pub fn open_on(fs: Arc<dyn fs::Fs>, options: Options, metrics: Metrics) -> Result<Wal, OpenError> {
        let (shared, writer) = Wal::recover(fs, &options, metrics)?;
        let thread = std::thread::Builder::new()
            .name("wal".to_string())
            .spawn(move || writer.run())
            .map_err(|error| Failed::new(format!("can't start the writer's thread: {error}")))?;
        Ok(Wal { handle: Arc::new(Handle { shared, thread: Mutex::new(Some(thread)) }) })
    }

    /// The same, with a task for a writer: it waits for `synced` after each batch, before it says that it is durable.
    #[cfg(test)]
    pub fn open_pumped(
        fs: Arc<dyn fs::Fs>,
        options: Options,
        metrics: Metrics,
        synced: Synced,
    ) -> Result<Wal, OpenError> {
        let (shared, writer) = Wal::recover(fs, &options, metrics)?;
        crate::runtime::spawn(writer.pump(synced));
        Ok(Wal { handle: Arc::new(Handle { shared, thread: Mutex::new(None) }) })
    }

    fn recover(
        fs: Arc<dyn fs::Fs>,
        options: &Options,
        metrics: Metrics,
    ) -> Result<(Arc<Shared>, writer::Writer), OpenError> {
        if options.segment_bytes < Options::SEGMENT_BYTES_MIN {
            return Err(OpenError::Options(format!(
                "segments of {} bytes are too small; at least {} are needed",
                options.segment_bytes,
                Options::SEGMENT_BYTES_MIN
            )));
        }
        if options.segment_bytes > u64::from(u32::MAX) || options.queue_bytes > u32::MAX as usize / 2 {
            return Err(OpenError::Options("segments end below 4 GiB, and queues below 2 GiB".to_string()));
        }
        let recovered = recover::recover(fs, options, metrics.clone())?;
        let shared = Arc::new(Shared::new(options, metrics, &recovered));
        let writer = writer::Writer::new(shared.clone(), recovered);
        Ok((shared, writer))
    }

    /// The logs that have a vote, a purge point or entries; in order.
    pub fn keys(&self) -> Vec<LogKey> {
        let mut keys: Vec<LogKey> = self
            .shared()
            .cells()
            .into_iter()
            .filter(|cell| !cell.lock().is_blank())
            .map(|cell| cell.key)
            .collect();
        keys.sort_unstable();
        keys
    }

    /// The log of `key`; empty if there was none.
    pub fn log(&self, key: LogKey) -> Log {
        Log::new(self.handle.shared.clone(), self.shared().cell(key))
    }

    /// Resolves with the first fatal error; never, if the log is closed without one.
    pub async fn failed(&self) -> Failed {
        self.shared().failed().await
    }

    /// Returns once the writer has passed through its loop, or while it is inside a call to the disk that
    /// began less than `stall` ago: a slow disk is no dead thread. A watchdog is fed when this returns.
    ///
    /// # Errors
    /// The log has failed or was closed.
    pub async fn probe(&self, stall: Duration) -> Result<(), Failed> {
        self.shared().probe(stall).await
    }

    /// For how long the writer has been inside its current call to the disk, be it an fsync of a file or
    /// of the directory, or anything else that waits where they wait; `None` if it is in none.
    pub fn writer_stuck_for(&self) -> Option<Duration> {
        self.shared().pulse().stuck_for()
    }

    /// Counts the writer's passes through its loop, and its calls to the disk. It stands still while nothing is
    /// written.
    pub fn heartbeat(&self) -> u64 {
        self.shared().pulse().heartbeat()
    }

    /// The bytes of all files, spare ones included.
    pub fn disk_bytes(&self) -> u64 {
        self.shared().disk_bytes()
    }

    /// Bytes written since the log was opened.
    pub fn written_bytes(&self) -> u64 {
        self.shared().metrics.written_bytes.get()
    }

    /// Writes what is queued, marks the log as closed, and ends the writer. Blocks. Later calls fail.
    ///
    /// # Errors
    /// The log has failed, now or before.
    pub fn close(&self) -> Result<(), Failed> {
        self.handle.close();
        self.shared().failure().map_or(Ok(()), Err)
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }
}

impl Handle {
    fn close(&self) {
        self.shared.close();
        let thread = self.thread.lock().expect("nothing panics with this lock").take();
        if let Some(thread) = thread
            // A callback may hold the last clone.
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            self.shared.fail(Failed::new("the writer's thread panicked"));
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

/// Cells by key.
type Cells = HashMap<LogKey, Arc<log::Cell>>;
