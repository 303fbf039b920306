//! fjall behind [`Engine`]: a log-structured merge tree with a journal of its own.
//!
//! One database, one keyspace. The journal is persisted only by [`Engine::checkpoint`] (and by fjall
//! itself before it flushes a memtable), since what makes a write durable is our own log.
//!
//! # Why it recovers a prefix
//! In fjall 3.1.13, with one keyspace:
//! - `batch/mod.rs` `commit`: one mutex, the journal writer's, covers taking a sequence number,
//!   appending the batch to the journal and inserting it in the memtable. So the journal holds the
//!   batches in the order in which they took effect.
//! - `journal/batch_reader.rs`: a batch is Start(count), items, End(checksum). Replay ends at the first
//!   batch without its End, and truncates the journal there.
//! - `keyspace/mod.rs` `inner_rotate_memtable` takes the same mutex, so no batch straddles two
//!   memtables; `worker_pool.rs` fsyncs the journal before it flushes one, and lsm-tree fsyncs a table
//!   and its directory before the version that names it. So tables hold all batches up to some number,
//!   and `db.rs` `recover` replays only what is newer.
//! - `journal/writer.rs` `rotate`: a journal is fsynced before its successor is created.
//!
//! There are two exceptions, which [`fjall_journal`] mends: after a power loss a page in the *middle* of
//! a batch that was never fsynced can be missing while its End is there; and after an fsync that failed,
//! replay reads from memory what the disk does not have. [`fjall_version`] looks at a checksum at which fjall
//! does not.

use std::borrow::Cow;
use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use fjall::{
    CompressionType, Database, Error as FjallError, Keyspace, KeyspaceCreateOptions, LsmError, PersistMode,
    Readable as _, Slice, Snapshot,
};

use super::{
    ENGINE_KEY_BYTES_MAX, Engine, Error, KeyRange, Kind, Options, Order, Pair, Result, Sizes, View, Write,
    check_keys, closed, delete_by_batches, dir, fitting,
    fjall_journal::{self, Found, Mark},
    fjall_version, is_empty_range, suspicion,
};

/// The one keyspace.
const KEYSPACE: &str = "records";

/// A memtable is sealed, to be written to disk, when it holds this much. Written into the keyspace
/// when it is created. With [`SEALED_MEMTABLES_MAX`] it bounds the write buffers to some 128 MiB.
const MEMTABLE_BYTES: u64 = 32 * 1024 * 1024;

/// What may still be written into a memtable that is far from full: the batches of all threads that saw the room.
const READY_BYTES: u64 = 2 * 1024 * 1024;

/// Sealed memtables that may wait for the disk before writers do. fjall itself stops writers at 4,
/// where it sleeps without looking whether its flusher is still alive; we stop them one earlier and
/// look.
const SEALED_MEMTABLES_MAX: usize = 3;

/// Tables in level 0 at which writers wait for compaction, for the same reason below fjall's own 20.
const LEVEL0_TABLES_MAX: usize = 18;

/// Bytes of journals at which fjall hurries the flush of whatever keeps the oldest one alive. It seals
/// a journal at the first memtable flush past 64 MB and deletes it once that memtable is on disk, so
/// with one keyspace there are rarely more than two; this is the backstop.
const JOURNALS_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// How often a waiting writer looks again.
const WAIT_STEP: Duration = Duration::from_millis(5);

pub(super) struct Fjall {
    dir: PathBuf,
    mark: Mark,
    /// Checkpoints that hold the journal, or wait for it.
    syncing: AtomicUsize,
    /// One batch is committed at a time. Taken before `newest`.
    committing: Mutex<()>,
    /// As of the last whole batch, for every read; `None` once closed. fjall's own snapshots are not always that: a flush
    /// or a merge that ends while a batch is being committed makes those that are opened from then on show the
    /// part of it that is in (`lsm-tree`, `upgrade_version`).
    newest: RwLock<Option<Arc<Snapshot>>>,
    /// `None` once closed.
    open: Arc<RwLock<Option<Open>>>,
}

#[derive(Clone)]
struct Open {
    database: Database,
    keyspace: Keyspace,
}

impl Fjall {
    pub(super) fn open(dir: &Path, options: &Options) -> Result<Fjall> {
        // One worker only ever flushes memtables if there are two: a long compaction then can't let
        // the memtable grow without bound.
        let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
        let open_database = || {
            Database::builder(dir)
                .cache_size(options.cache_bytes)
                .manual_journal_persist(true)
                // It is short-lived, and mending it should need no decompressor.
                .journal_compression(CompressionType::None)
                .max_journaling_size(JOURNALS_BYTES_MAX)
                .worker_threads(workers)
                .open()
        };
        let opening = || format!("opening {}", dir.display());
        std::fs::create_dir_all(dir).map_err(|error| io_error(opening(), error))?;
        let mark = Mark::open(dir).map_err(|error| io_error(opening(), error))?;
        let damage = fjall_version::damage(dir).map_err(|error| io_error("reading its versions", error))?;
        if let Some(message) = damage {
            return Err(Error::Corrupt { engine: Kind::Fjall, message });
        }
        // Before fjall reads it: what it recovers counts as durable from then on.
        let rewritten = mark.read().and_then(|durable| fjall_journal::rewrite_undurable(dir, durable));
        let bytes = rewritten.map_err(|error| io_error("writing the end of the journal again", error))?;
        if bytes > 0 {
            tracing::info!(bytes, "wrote the journal's end again, which is not known to be durable");
        }
        let database = match open_database() {
            Err(error @ FjallError::JournalRecovery(_)) => {
                mend_journal(dir, &mark, &convert(error, opening))?;
                open_database()
            }
            opened => opened,
        };
        let database = database.map_err(|error| convert(error, opening))?;
        let keyspace = database
            .keyspace(KEYSPACE, || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(MEMTABLE_BYTES)
                    .manual_journal_persist(true)
            })
            .map_err(|error| convert(error, || format!("opening the keyspace in {}", dir.display())))?;
        // What was recovered is durable by now. Durably, since sequence numbers may have gone back: an
        // older mark would be too high for what is written next.
        mark.write(database.visible_seqno())
            .and_then(|()| mark.sync())
            .map_err(|error| io_error("noting what is durable", error))?;
        Ok(Fjall {
            dir: dir.to_path_buf(),
            mark,
            syncing: AtomicUsize::new(0),
            committing: Mutex::default(),
            newest: RwLock::new(Some(Arc::new(database.snapshot()))),
            open: Arc::new(RwLock::new(Some(Open { database, keyspace }))),
        })
    }

    fn handles(&self) -> Result<Open> {
        handles(&self.open)
    }

    fn newest(&self) -> Result<Arc<Snapshot>> {
        let newest = self.newest.read().unwrap_or_else(PoisonError::into_inner);
        newest.clone().ok_or_else(|| closed(Kind::Fjall))
    }

    /// Only where no batch is being committed.
    fn renew_newest(&self, _committing: &MutexGuard<'_, ()>, database: &Database) {
        let mut newest = self.newest.write().unwrap_or_else(PoisonError::into_inner);
        if newest.is_some() {
            *newest = Some(Arc::new(database.snapshot()));
        }
    }

    /// Without writes nothing else renews it: what has been flushed or merged since would be kept for reads that will not
    /// come. Called at checkpoints, and whenever the sizes are asked for, which the node's gauges do all the time.
    fn let_go(&self, database: &Database) {
        if let Ok(committing) = self.committing.try_lock() {
            self.renew_newest(&committing, database);
        }
    }

    /// Notes, of something that writes, what may be damage: fjall does not say what has stopped its flushes
    /// and merges, and they read, too.
    fn noted<T>(&self, written: Result<T, FjallError>, doing: &'static str) -> Result<T> {
        let is_poisoned = matches!(written, Err(FjallError::Poisoned));
        let written = written.map_err(|error| convert(error, || doing.into()));
        if let Err(error) = &written
            && is_poisoned
        {
            suspicion::note(&self.dir, error);
        }
        written
    }
}

/// After an error of replay: cuts the journal before a torn batch, or says why that must not be.
fn mend_journal(dir: &Path, mark: &Mark, refused: &Error) -> Result<()> {
    let mended = mark.read().and_then(|durable| fjall_journal::cut_torn_batch(dir, durable));
    match mended.map_err(|error| io_error("mending the journal", error))? {
        Found::Cut { sequence_number, at } => {
            tracing::warn!(
                sequence_number,
                at,
                "the journal was torn in a batch that was never checkpointed, and was cut before it"
            );
            Ok(())
        }
        Found::Damaged { sequence_number, at } => Err(Error::Corrupt {
            engine: Kind::Fjall,
            message: format!(
                "batch {sequence_number}, at byte {at} of the newest journal in {}, was durable and is damaged; \
                 the disk is not to be trusted",
                dir.display()
            ),
        }),
        Found::NothingTorn => Err(Error::Corrupt { engine: Kind::Fjall, message: refused.to_string() }),
    }
}

fn handles(open: &RwLock<Option<Open>>) -> Result<Open> {
    open.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(|| closed(Kind::Fjall))
}

impl Open {
    /// Waits while flush or compaction lag too far behind.
    fn wait_for_room(&self) -> Result<(), FjallError> {
        while self.keyspace.sealed_memtable_count() >= SEALED_MEMTABLES_MAX
            || self.keyspace.l0_table_count() >= LEVEL0_TABLES_MAX
        {
            // Writes a buffer to the file at most; what counts is that it fails if a worker died.
            self.database.persist(PersistMode::Buffer)?;
            std::thread::sleep(WAIT_STEP);
        }
        Ok(())
    }
}

impl Engine for Fjall {
    fn kind(&self) -> Kind {
        Kind::Fjall
    }

    fn recovers_prefix(&self) -> bool {
        true
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        get(&*self.newest()?, &self.handles()?.keyspace, key)
    }

    /// No journal is being synced, neither for a checkpoint nor before a memtable is written, and the memtable will not be
    /// full so soon that one would be: whoever does that keeps all batches out.
    fn is_ready(&self) -> bool {
        let has_room = |open: &Open| {
            open.database.write_buffer_size() + READY_BYTES <= MEMTABLE_BYTES
                && open.keyspace.l0_table_count() < LEVEL0_TABLES_MAX
        };
        self.syncing.load(Ordering::Acquire) == 0 && self.handles().is_ok_and(|open| has_room(&open))
    }

    fn write(&self, writes: &[Write]) -> Result<()> {
        check_keys(writes, Kind::Fjall)?;
        let open = self.handles()?;
        self.noted(open.wait_for_room(), "waiting for a flush")?;
        let mut batch = fjall::OwnedWriteBatch::with_capacity(open.database.clone(), writes.len());
        for write in writes {
            match write {
                Write::Put(key, value) => {
                    batch.insert(&open.keyspace, encode_key(key).as_ref(), Slice::from(value.as_ref()));
                }
                Write::Delete(key) => batch.remove(&open.keyspace, encode_key(key).as_ref()),
            }
        }
        let committing = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.noted(batch.commit(), "applying a batch")?;
        self.renew_newest(&committing, &open.database);
        Ok(())
    }

    fn view(&self) -> Result<Box<dyn View>> {
        Ok(Box::new(FjallView { open: self.open.clone(), snapshot: self.newest()? }))
    }

    fn delete_range(&self, range: KeyRange) -> Result<()> {
        delete_by_batches(self, range)
    }

    fn checkpoint(&self) -> Result<()> {
        let open = self.handles()?;
        let visible = open.database.visible_seqno();
        self.syncing.fetch_add(1, Ordering::AcqRel);
        let synced = open.database.persist(PersistMode::SyncAll);
        self.syncing.fetch_sub(1, Ordering::AcqRel);
        self.noted(synced, "syncing the journal")?;
        self.let_go(&open.database);
        self.mark.write(visible).map_err(|error| io_error("noting what is durable", error))
    }

    fn sizes(&self) -> Result<Sizes> {
        let open = self.handles()?;
        self.let_go(&open.database);
        let disk_bytes =
            dir::disk_bytes(&self.dir).map_err(|error| io_error("measuring its files", error))?;
        Ok(Sizes { disk_bytes, memory_bytes: open.database.cache_size() + open.database.write_buffer_size() })
    }

    fn close(&self) -> Result<()> {
        self.checkpoint()?;
        let mut guard = self.open.write().unwrap_or_else(PoisonError::into_inner);
        *self.newest.write().unwrap_or_else(PoisonError::into_inner) = None;
        // Dropping the last handles stops the workers and releases the lock.
        guard.take().map(drop).ok_or_else(|| closed(Kind::Fjall))
    }
}

impl fmt::Debug for Fjall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fjall").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Holds no handle, so that an engine can be closed while views are about.
struct FjallView {
    open: Arc<RwLock<Option<Open>>>,
    snapshot: Arc<Snapshot>,
}

impl View for FjallView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        get(&self.snapshot, &handles(&self.open)?.keyspace, key)
    }

    fn scan(&self, range: KeyRange, order: Order) -> Box<dyn Iterator<Item = Result<Pair>> + Send + '_> {
        let open = match handles(&self.open) {
            Ok(open) => open,
            Err(error) => return Box::new(std::iter::once(Err(error))),
        };
        let range = fitting(range);
        if is_empty_range(&range) {
            return Box::new(std::iter::empty());
        }
        let bounds = (encode_bound(range.0), encode_bound(range.1));
        let mut guards = self.snapshot.range(&open.keyspace, bounds);
        let mut failed = false;
        Box::new(std::iter::from_fn(move || {
            if failed {
                return None;
            }
            let guard = match order {
                Order::Ascending => guards.next(),
                Order::Descending => guards.next_back(),
            }?;
            let pair = guard.into_inner().map(|(key, value)| (decode_key(&key), to_bytes(value)));
            failed = pair.is_err();
            Some(pair.map_err(|error| convert(error, || "scanning".into())))
        }))
    }
}

/// fjall panics when it is asked for a key that is longer than it takes any.
fn get(snapshot: &Snapshot, keyspace: &Keyspace, key: &[u8]) -> Result<Option<Bytes>> {
    if key.len() > ENGINE_KEY_BYTES_MAX {
        return Ok(None);
    }
    let value = snapshot.get(keyspace, encode_key(key).as_ref());
    Ok(value.map_err(|error| convert(error, || "reading a key".into()))?.map(to_bytes))
}

/// fjall takes no empty key, so the empty one, and those that begin with a zero byte, get a zero byte
/// in front. That keeps keys distinct and in order: "" < 00 < 00 00 < 01 becomes
/// 00 < 00 00 < 00 00 00 < 01.
fn encode_key(key: &[u8]) -> Cow<'_, [u8]> {
    match key.first() {
        Some(first) if *first != 0 => key.into(),
        _ => [&[0], key].concat().into(),
    }
}

fn decode_key(encoded: &[u8]) -> Bytes {
    Bytes::copy_from_slice(encoded.strip_prefix(&[0]).unwrap_or(encoded))
}

fn encode_bound(bound: Bound<Bytes>) -> Bound<Vec<u8>> {
    bound.map(|key| encode_key(&key).into_owned())
}

fn to_bytes(slice: Slice) -> Bytes {
    Bytes::copy_from_slice(&slice)
}

fn io_error(doing: impl Into<String>, source: std::io::Error) -> Error {
    Error::Io { engine: Kind::Fjall, doing: doing.into(), source }
}

fn convert(error: FjallError, doing: impl FnOnce() -> String) -> Error {
    use std::io::ErrorKind;
    let corrupt = |message: String| Error::Corrupt { engine: Kind::Fjall, message };
    match error {
        // A table or journal that ends too early, as opposed to a disk that fails.
        FjallError::Io(source) | FjallError::Storage(LsmError::Io(source))
            if matches!(source.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) =>
        {
            corrupt(format!("{}: {source}", doing()))
        }
        FjallError::Io(source) | FjallError::Storage(LsmError::Io(source)) => io_error(doing(), source),
        FjallError::Poisoned => io_error(
            doing(),
            std::io::Error::other(
                "an earlier write, fsync, flush or merge failed; the log has the first error",
            ),
        ),
        FjallError::Locked => {
            Error::Refused(format!("fjall: {}: the files are in use by another process", doing()))
        }
        FjallError::InvalidVersion(Some(version)) => Error::Refused(format!(
            "fjall: {}: the files have format {version:?}, this program reads V3",
            doing()
        )),
        FjallError::Storage(error) => corrupt(format!("{}: {error}", doing())),
        FjallError::JournalRecovery(_)
        | FjallError::InvalidVersion(None)
        | FjallError::Decompress(_)
        | FjallError::InvalidTrailer
        | FjallError::InvalidTag(_)
        | FjallError::Unrecoverable => corrupt(format!("{}: {error}", doing())),
        // Unknown to us: the state is unknown too.
        other => io_error(doing(), std::io::Error::other(other)),
    }
}

#[cfg(test)]
mod tests;
