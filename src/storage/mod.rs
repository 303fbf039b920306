//! The engine that keeps applied records: one trait, with sled, fjall and memory behind it.
//!
//! What makes a write durable is the write-ahead log, not the engine: an engine only has to be atomic
//! per batch, and durable up to its last [`Engine::checkpoint`]. Keys are opaque bytes here; who owns
//! which prefix is decided above.
//!
//! `docs/decisions/0002-two-engines.md` says why there are two, and what each of them owes to the
//! layer above; [`DataDir`] guards the directory they live in.

mod cached;
mod data_dir;
mod dir;
mod fjall;
mod fjall_journal;
mod fjall_version;
mod memory;
mod preimages;
mod sled;
mod suspicion;
pub mod testing;
mod watched;

use std::collections::HashSet;
use std::fmt;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use cached::Cached;
pub use data_dir::{DataDir, FORMAT_VERSION, free_bytes, total_bytes};
pub use suspicion::{dismiss, suspicion};
use watched::{PROCESS, Watched};
pub use watched::{UnderWay, under_way};

/// Longest key an engine takes, in bytes: fjall writes lengths as 16 bits, and one byte is ours.
/// [`crate::limits::KEY_BYTES_MAX`] leaves ample room for the prefixes put before a user's key.
pub const ENGINE_KEY_BYTES_MAX: usize = u16::MAX as usize - 1;

/// Opens the engine in `dir`, creating it if `dir` is missing or empty. `dir` belongs to the engine
/// alone. [`Kind::Memory`] ignores it.
///
/// Creating is not atomic: a crash can leave a half-made engine behind. [`DataDir`] takes care of
/// that; others start with a fresh directory.
///
/// # Errors
/// [`Error::Refused`] if another process has it open; otherwise as the variants say.
pub fn open(kind: Kind, dir: &Path, options: &Options) -> Result<Arc<dyn Engine>> {
    let of_records = options.cache_bytes / RECORDS_PART;
    let options = &Options { cache_bytes: options.cache_bytes - of_records };
    Ok(match kind {
        Kind::Fjall => in_front(self::fjall::Fjall::open(dir, options)?, of_records),
        Kind::Sled => in_front(self::sled::Sled::open(dir, options)?, of_records),
        Kind::Memory => Arc::new(memory::Memory::default()),
    })
}

/// What part of the cache is of single records; the rest is the engine's own.
const RECORDS_PART: u64 = 2;

fn in_front<E: Engine>(engine: E, of_records: u64) -> Arc<dyn Engine> {
    Arc::new(Watched::new(Cached::new(engine, of_records), PROCESS.clone()))
}

/// The engines that can be chosen by `storage.engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Fjall,
    Sled,
    /// For tests: forgets everything when dropped.
    Memory,
}

/// Settings of the engine; what they mean for each engine is said there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Memory for cached blocks or pages.
    pub cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { cache_bytes: 128 * 1024 * 1024 }
    }
}

/// Why an engine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk failed. The engine's state is unknown: the process must end.
    #[error("{engine}: {doing}: {source}")]
    Io { engine: Kind, doing: String, source: std::io::Error },
    /// What was read can't have been written.
    #[error("{engine}: {message}")]
    Corrupt { engine: Kind, message: String },
    /// The view was held so long that the engine stopped keeping it; take a new one and go on from
    /// the last key read.
    #[error("{engine}: the view is too old to be read further")]
    ViewExpired { engine: Kind },
    /// The engine or the data directory is not to be used so: it belongs to something else, is in
    /// use, or was closed. The message says what to do.
    #[error("{0}")]
    Refused(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What every method of a closed engine answers.
fn closed(engine: Kind) -> Error {
    Error::Refused(format!("{engine}: the engine was closed"))
}

pub type Pair = (Bytes, Bytes);

/// A range of keys. One that ends before it starts is empty, not an error.
pub type KeyRange = (Bound<Bytes>, Bound<Bytes>);

/// Whether no key can be in `range`. Some trees panic when asked for such a range.
fn is_empty_range(range: &KeyRange) -> bool {
    match range {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Excluded(high))
        | (Bound::Excluded(low), Bound::Included(high)) => low >= high,
        _ => false,
    }
}

/// `range` among the keys that an engine can hold, with bounds that are no longer than such a key. What is cut off
/// an end decides nothing: a key within the limit that is not before the whole bound is behind its beginning.
fn fitting(range: KeyRange) -> KeyRange {
    let cut = |key: &Bytes| (key.len() > ENGINE_KEY_BYTES_MAX).then(|| key.slice(..ENGINE_KEY_BYTES_MAX));
    let (mut low, mut high) = range;
    if let Bound::Included(key) | Bound::Excluded(key) = &low
        && let Some(cut) = cut(key)
    {
        low = Bound::Excluded(cut);
    }
    if let Bound::Included(key) | Bound::Excluded(key) = &high
        && let Some(cut) = cut(key)
    {
        high = Bound::Included(cut);
    }
    (low, high)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put(Bytes, Bytes),
    Delete(Bytes),
}

/// Writes that take place together or not at all, in order: of two writes to one key, the later wins.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub writes: Vec<Write>,
}

impl Batch {
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.writes.push(Write::Put(key.into(), value.into()));
    }

    pub fn delete(&mut self, key: impl Into<Bytes>) {
        self.writes.push(Write::Delete(key.into()));
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// The writes that count, in no order: the last one of each key. (fjall would otherwise store
    /// two writes to one key under one sequence number.)
    fn into_last_writes(self) -> Vec<Write> {
        let mut seen = HashSet::with_capacity(self.writes.len());
        let counts: Vec<bool> = self.writes.iter().rev().map(|write| seen.insert(write.key())).collect();
        let mut counts = counts.into_iter().rev();
        let mut writes = self.writes;
        writes.retain(|_| counts.next().unwrap_or(true));
        writes
    }
}

/// # Errors
/// [`Error::Refused`] if a key is longer than [`ENGINE_KEY_BYTES_MAX`].
fn check_keys(writes: &[Write], engine: Kind) -> Result<()> {
    match writes.iter().map(|write| write.key().len()).max() {
        Some(longest) if longest > ENGINE_KEY_BYTES_MAX => Err(Error::Refused(format!(
            "{engine}: a key of {longest} bytes is over the engine's limit of {ENGINE_KEY_BYTES_MAX}"
        ))),
        _ => Ok(()),
    }
}

impl Write {
    pub fn key(&self) -> &Bytes {
        match self {
            Write::Put(key, _) | Write::Delete(key) => key,
        }
    }
}

/// What an engine takes up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    pub disk_bytes: u64,
    /// As far as the engine can tell: caches and write buffers.
    pub memory_bytes: u64,
}

/// A store of ordered keys. Every method may block on the disk: async callers go through
/// `spawn_blocking` or a thread of their own.
pub trait Engine: fmt::Debug + Send + Sync + 'static {
    fn kind(&self) -> Kind;

    /// Whether what comes back after a power loss is some prefix of the batches applied. Where it is
    /// not (sled), the layer above redoes the log from its last checkpoint.
    fn recovers_prefix(&self) -> bool;

    /// The key's value after some whole batch that was applied before the call, or while it runs: of a batch, either
    /// everything is seen or nothing, by this call, those after it, and views that are opened after it. A key that is
    /// longer than [`ENGINE_KEY_BYTES_MAX`] has none.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// What [`Engine::get`] would answer, if that is known without looking into the engine, and so without the disk.
    fn cached(&self, _key: &[u8]) -> Option<Option<Bytes>> {
        None
    }

    /// Whether reads that are not cached have not waited for the disk lately.
    fn reads_at_once(&self) -> bool {
        true
    }

    /// Whether a batch that is applied now does not wait for the disk, as far as that can be known.
    fn is_ready(&self) -> bool {
        false
    }

    /// Applies a batch atomically. Visible on return, durable after the next checkpoint.
    ///
    /// # Errors
    /// [`Error::Refused`] if a key is longer than [`ENGINE_KEY_BYTES_MAX`], too: nothing was applied.
    fn apply(&self, batch: Batch) -> Result<()> {
        self.write(&batch.into_last_writes())
    }

    /// The same with writes to different keys.
    fn write(&self, writes: &[Write]) -> Result<()>;

    /// The state between two batches, unaffected by later ones until it expires. Costs the engine
    /// memory or disk for as long as it is held.
    fn view(&self) -> Result<Box<dyn View>>;

    /// The same, of the keys with `prefix` alone: what others become costs it nothing. Asked for another
    /// key, it may answer from any moment.
    fn view_of(&self, _prefix: Bytes) -> Result<Box<dyn View>> {
        self.view()
    }

    /// Removes every key of the range. Need not be atomic: a crash may leave a part, and calling it
    /// again finishes.
    fn delete_range(&self, range: KeyRange) -> Result<()>;

    /// Returns when every batch applied before the call is on stable storage, by a real fsync.
    fn checkpoint(&self) -> Result<()>;

    fn sizes(&self) -> Result<Sizes>;

    /// Checkpoints and releases the files. Calls after it fail with [`Error::Refused`], those on
    /// views included; an iterator already under way may still finish.
    fn close(&self) -> Result<()>;
}

/// A consistent state of an engine.
pub trait View: Send {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// The pairs of a range, whose bounds may be of any length. Yields nothing after its first error.
    fn scan(&self, range: KeyRange, order: Order) -> Box<dyn Iterator<Item = Result<Pair>> + Send + '_>;
}

/// Keys taken away together by [`delete_by_batches`]: small enough that a batch is no burden to the
/// engine's log and write buffer, large enough that its fixed cost does not count.
const DELETE_BATCH_KEYS: usize = 1024;

/// The same in bytes of what is deleted: sled writes the pages anew that held it.
const DELETE_BATCH_BYTES: usize = 256 * 1024;

/// [`Engine::delete_range`] for engines that have nothing better. Each batch starts from a view of
/// its own, so that what was deleted is neither kept alive nor walked over again.
fn delete_by_batches(engine: &dyn Engine, range: KeyRange) -> Result<()> {
    let (mut low, high) = range;
    loop {
        let view = engine.view()?;
        let mut batch = Batch::default();
        let mut bytes = 0;
        for pair in view.scan((low.clone(), high.clone()), Order::Ascending).take(DELETE_BATCH_KEYS) {
            let (key, value) = pair?;
            bytes += key.len() + value.len();
            batch.delete(key);
            if bytes >= DELETE_BATCH_BYTES {
                break;
            }
        }
        drop(view);
        match batch.writes.last() {
            Some(last) => low = Bound::Excluded(last.key().clone()),
            None => return Ok(()),
        }
        engine.apply(batch)?;
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Fjall => "fjall",
            Kind::Sled => "sled",
            Kind::Memory => "memory",
        })
    }
}

/// The keys that start with `prefix`.
pub fn prefix_range(prefix: &[u8]) -> KeyRange {
    let start = Bound::Included(Bytes::copy_from_slice(prefix));
    // The first key after all of them: the prefix with its last byte below 0xFF raised by one.
    match prefix.iter().rposition(|&byte| byte != 0xFF) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            (start, Bound::Excluded(end.into()))
        }
        None => (start, Bound::Unbounded),
    }
}
