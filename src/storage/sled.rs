//! sled 0.34 behind [`Engine`]: a log-structured B-link tree.
//!
//! Three things it lacks are made up for here:
//! - It takes `sync_file_range` for an fsync, and syncs no blob file at all. So its `flush()` makes
//!   nothing durable; worse, it overwrites a segment as soon as it *believes* that what was in there is
//!   safe elsewhere. Measured (`tests/power_loss_engine.rs` without what follows): 30000 batches, then
//!   an fsync of all its files, then 3000 more batches, then a power loss: all 30000 were gone. With
//!   large values it panicked when it opened what was left. Therefore its files are made synchronous by
//!   their inode flag (`chattr +S`), so that every write is what sled believes it to be; a file system
//!   without that is refused. sled writes in segments of 512 KiB when nobody asks for a flush
//!   (`flush_every_ms(None)`), so this costs little. A checkpoint fsyncs every file and directory
//!   besides.
//! - It has no snapshots. While views are open, [`PreImages`] keeps what applies overwrite of their keys.
//! - It may come back from a power loss without some batch but with a later one, since its segments
//!   reach the disk in any order: `recovers_prefix` is false. Single batches stay atomic.
//!
//! Opening reads the whole log, and takes memory with the size of the data. Closing it on a disk that
//! fails makes sled panic, so a handle whose last sync did not succeed is leaked instead: after such an
//! error the process ends anyway.
//!
//! # Locks
//! Taken in this order: `writer`, then `state`. `writer` serialises applies and opening views, so that
//! the values an apply reads beforehand stay what they are, without readers having to wait; sled runs
//! one batch at a time anyway. `state` is taken exclusively for the change itself, and shared for each
//! read or each chunk of a scan, which therefore sees a tree that stands still.

mod view;

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use sled::{Db, Error as SledError, IVec};

use self::view::SledView;
use super::preimages::{Opened, PreImages};
use super::{
    Engine, Error, KeyRange, Kind, Options, Result, Sizes, View, Write, check_keys, closed,
    delete_by_batches, dir, suspicion,
};

/// Memory for what open views need; at the bound the oldest of them expire. Large enough for a
/// snapshot of a partition to be sent while it is being written to, small beside the cache.
const PREIMAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// sled writes its buffers by seven threads, and never gets more: it loses count of them when all are busy. They
/// also cut off the free end of its file. Whoever needs the next 512 KiB of it waits for the cut, holding a lock
/// that they need; with seven writes queued before a cut, all wait for ever. So after these many bytes what sled
/// has is written before there is more. That makes it unlikely, and no more: to wait after every second batch,
/// which makes two writes or more, took nine tenths of the puts on a busy disk. The service manager's watchdog ends a process
/// that hangs.
const UNSETTLED_BYTES_MAX: usize = 256 * 1024;

/// What a delete counts: it makes sled write a page anew, and frees what is cut off later.
const DELETE_BYTES: usize = 1024;

/// Whoever reads in sled finishes the splits and merges that it comes by, and a page that it writes for that makes it
/// move another one, from anywhere, out of a segment that is nearly free (`PageCache::replace`). If that other page is
/// damaged, the read fails, although what it asked for is whole. But what it wrote is done then, and that page is not
/// tried again: so damage counts once a read has met it this often.
const READS_MAX: usize = 4;

/// tmpfs and ramfs, as `statfs` names them.
const VOLATILE_FILE_SYSTEMS: [rustix::fs::FsWord; 2] = [0x0102_1994, 0x8584_58f6];

/// sled's background threads can hold its lock for a moment after the last handle was dropped.
const LOCK_WAIT: Duration = Duration::from_secs(2);

pub(super) struct Sled {
    dir: PathBuf,
    cache_bytes: u64,
    shared: Arc<Shared>,
    checkpoint: Mutex<SyncedBlobs>,
}

/// Files of the `blobs` folder that need no further fsync. sled puts each value over some 128 KiB into
/// such a file, writes it once and never changes it; with many of them a checkpoint would take seconds.
#[derive(Default)]
struct SyncedBlobs(HashSet<PathBuf>);

struct Shared {
    dir: PathBuf,
    /// A write or sync has failed: sled is not asked to write again, since after some errors (a full
    /// disk under a large value) it would wait for ever for a buffer that nobody completes. Holds the first
    /// error: whoever hears of it next may be the one who ends the process, and must say why.
    failed: OnceLock<String>,
    /// One writes at a time; how many bytes were applied since sled last wrote all that it had.
    writer: Mutex<usize>,
    state: RwLock<State>,
}

struct State {
    /// `None` once closed.
    db: Option<Db>,
    preimages: PreImages,
}

impl Sled {
    pub(super) fn open(dir: &Path, options: &Options) -> Result<Sled> {
        let config = sled::Config::new().path(dir).cache_capacity(options.cache_bytes).flush_every_ms(None);
        make_synchronous(dir)?;
        remove_unfinished_snapshots(dir)
            .map_err(|error| io_error(format!("preparing {}", dir.display()), error))?;
        let give_up = Instant::now() + LOCK_WAIT;
        let db = loop {
            match config.open() {
                Err(SledError::Io(error)) if is_lock_held(&error) => {
                    if Instant::now() >= give_up {
                        return Err(Error::Refused(format!(
                            "sled: the files in {} are in use by another process",
                            dir.display()
                        )));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => {
                    break other.map_err(|error| convert(error, || format!("opening {}", dir.display())))?;
                }
            }
        };
        let state = State { db: Some(db), preimages: PreImages::new(PREIMAGE_BYTES_MAX) };
        Ok(Sled {
            dir: dir.to_path_buf(),
            cache_bytes: options.cache_bytes,
            shared: Arc::new(Shared {
                dir: dir.to_path_buf(),
                failed: OnceLock::new(),
                writer: Mutex::default(),
                state: RwLock::new(state),
            }),
            checkpoint: Mutex::default(),
        })
    }
}

// A panic under these locks leaves nothing half-changed that matters: PreImages' methods don't panic,
// and after a panic inside sled, sled itself answers with its error.
impl Shared {
    fn writer(&self) -> MutexGuard<'_, usize> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does nothing but fail after [`Self::note`] has seen a failure.
    fn check_working(&self) -> Result<()> {
        match self.failed.get() {
            None => Ok(()),
            Some(first) => {
                let why = format!("an earlier write or sync failed: {first}");
                Err(io_error("writing", std::io::Error::other(why)))
            }
        }
    }

    fn note<T>(&self, written: Result<T>) -> Result<T> {
        if let Err(error @ (Error::Io { .. } | Error::Corrupt { .. })) = &written {
            self.failed.get_or_init(|| {
                if matches!(error, Error::Corrupt { .. }) {
                    suspicion::note(&self.dir, error);
                }
                error.to_string()
            });
        }
        written
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn db(&self) -> Result<&Db> {
        self.db.as_ref().ok_or_else(|| closed(Kind::Sled))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let db = self.db()?;
        let value = read_again(|| db.get(key).map_err(|error| convert(error, || "reading a key".into())))?;
        Ok(value.map(|value| to_bytes(&value)))
    }

    fn check(&self, view: Opened) -> Result<()> {
        if self.preimages.is_expired(view) {
            return Err(Error::ViewExpired { engine: Kind::Sled });
        }
        Ok(())
    }
}

impl Engine for Sled {
    fn kind(&self) -> Kind {
        Kind::Sled
    }

    fn recovers_prefix(&self) -> bool {
        false
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.shared.read().get(key)
    }

    fn write(&self, writes: &[Write]) -> Result<()> {
        check_keys(writes, Kind::Sled)?;
        let mut unsettled = self.shared.writer();
        self.shared.check_working()?;
        let mut kept = Vec::new();
        {
            let state = self.shared.read();
            for write in writes {
                if state.preimages.wants(write.key()) {
                    kept.push((write.key().clone(), state.get(write.key())?));
                }
            }
        }
        *unsettled += writes.iter().map(cost).sum::<usize>();
        let mut sled_batch = sled::Batch::default();
        for write in writes {
            match write {
                Write::Put(key, value) => sled_batch.insert(key.as_ref(), value.as_ref()),
                Write::Delete(key) => sled_batch.remove(key.as_ref()),
            }
        }
        let mut state = self.shared.write();
        state.db()?;
        state.preimages.record(kept);
        let applied = state.db()?.apply_batch(sled_batch);
        self.shared.note(applied.map_err(|error| convert(error, || "applying a batch".into())))?;
        if *unsettled < UNSETTLED_BYTES_MAX {
            return Ok(());
        }
        let db = state.db()?.clone();
        // Others may read meanwhile.
        drop(state);
        *unsettled = 0;
        self.shared.note(db.flush().map(|_| ()).map_err(|error| convert(error, || "flushing".into())))
    }

    fn view(&self) -> Result<Box<dyn View>> {
        self.view_of(Bytes::new())
    }

    fn view_of(&self, prefix: Bytes) -> Result<Box<dyn View>> {
        let _writer = self.shared.writer();
        let mut state = self.shared.write();
        state.db()?;
        let opened = state.preimages.open_view(prefix);
        Ok(Box::new(SledView { shared: self.shared.clone(), opened }))
    }

    fn delete_range(&self, range: KeyRange) -> Result<()> {
        delete_by_batches(self, range)
    }

    fn checkpoint(&self) -> Result<()> {
        // One at a time: the second needs its own flush, but not the first one's fsyncs again.
        let mut synced = self.checkpoint.lock().unwrap_or_else(PoisonError::into_inner);
        let db = self.shared.read().db()?.clone();
        self.shared.check_working()?;
        self.shared.note(db.flush().map_err(|error| convert(error, || "flushing".into())))?;
        self.shared.note(synced.sync(&self.dir).map_err(|error| io_error("syncing its files", error)))
    }

    fn sizes(&self) -> Result<Sizes> {
        let preimage_bytes = {
            let state = self.shared.read();
            state.db()?;
            state.preimages.bytes() as u64
        };
        let disk_bytes =
            dir::disk_bytes(&self.dir).map_err(|error| io_error("measuring its files", error))?;
        // sled doesn't tell what its cache holds: all data at most.
        Ok(Sizes { disk_bytes, memory_bytes: disk_bytes.min(self.cache_bytes) + preimage_bytes })
    }

    fn close(&self) -> Result<()> {
        self.checkpoint()?;
        let _writer = self.shared.writer();
        let db = self.shared.write().db.take().ok_or_else(|| closed(Kind::Sled))?;
        release(db, &self.dir, &self.shared)
    }
}

impl Drop for Sled {
    fn drop(&mut self) {
        // Views hold `shared`, but no handle of their own.
        if let Some(db) = self.shared.write().db.take() {
            // Not closed before: somebody else tells of the error, or nobody waits for one.
            let _ = release(db, &self.dir, &self.shared);
        }
    }
}

/// What a write adds to what sled has not written yet.
fn cost(write: &Write) -> usize {
    match write {
        Write::Put(key, value) => key.len() + value.len(),
        Write::Delete(key) => key.len() + DELETE_BYTES,
    }
}

/// Marks the folders, whose new files inherit it, and the file that sled writes to in place.
///
/// # Errors
/// [`Error::Refused`] where the file system can't, unless it forgets everything at a power loss anyway.
fn make_synchronous(dir: &Path) -> Result<()> {
    let io = |error| io_error(format!("preparing {}", dir.display()), error);
    let blobs = dir.join("blobs");
    std::fs::create_dir_all(&blobs).map_err(io)?;
    let mark = |path: &Path| -> std::io::Result<()> {
        let file = File::open(path)?;
        Ok(ioctl_setflags(&file, ioctl_getflags(&file)? | IFlags::SYNC)?)
    };
    let is_inherited = || -> std::io::Result<bool> {
        let path = dir.join("probe");
        let flags = File::create(&path).and_then(|file| Ok(ioctl_getflags(&file)?));
        std::fs::remove_file(&path)?;
        Ok(flags?.contains(IFlags::SYNC))
    };
    let marked = mark(dir).and_then(|()| mark(&blobs)).and_then(|()| match mark(&dir.join("db")) {
        Err(error) if error.kind() == ErrorKind::NotFound => is_inherited(),
        marked => marked.and_then(|()| is_inherited()),
    });
    let why = match marked {
        Ok(true) => return Ok(()),
        Ok(false) => "new files do not inherit the flag".to_string(),
        Err(error) => error.to_string(),
    };
    let kind = rustix::fs::statfs(dir).map_err(|errno| io(errno.into()))?.f_type;
    if VOLATILE_FILE_SYSTEMS.contains(&kind) {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "sled: the file system of {} has no synchronous files (chattr +S: {why}), without which a power loss \
         can take all of sled's data; set storage.engine = \"fjall\", or use ext4",
        dir.display()
    )))
}

/// sled writes a snapshot of its page table when it opens. Interrupted in that, it leaves a file that it
/// takes for its newest snapshot the next time, and calls corrupt: it filters out a name that it does not
/// use any more. The log holds all that the snapshot would.
fn remove_unfinished_snapshots(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "generating") {
            std::fs::remove_file(path)?;
        }
    }
    File::open(dir)?.sync_all()
}

/// Drops the last handle, unless that would panic or hang: sled's drop flushes, and unwraps its fsync.
fn release(db: Db, dir: &Path, shared: &Shared) -> Result<()> {
    let synced = shared.check_working().and_then(|()| {
        db.flush().map_err(|error| convert(error, || "flushing".into()))?;
        let file = File::open(dir.join("db")).and_then(|file| file.sync_all());
        file.map_err(|error| io_error("syncing its files", error))
    });
    match synced {
        Ok(()) => drop(db),
        Err(_) => std::mem::forget(db),
    }
    synced
}

impl SyncedBlobs {
    fn sync(&mut self, dir: &Path) -> std::io::Result<()> {
        let blobs = dir.join("blobs");
        let mut seen = HashSet::new();
        dir::sync_tree(dir, &mut |path| {
            if path.parent() != Some(&blobs) {
                return false;
            }
            seen.insert(path.to_path_buf());
            self.0.contains(path)
        })?;
        self.0 = seen;
        Ok(())
    }
}

impl fmt::Debug for Sled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // sled's own Debug prints the whole tree.
        f.debug_struct("Sled").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn to_bytes(value: &IVec) -> Bytes {
    Bytes::copy_from_slice(value)
}

/// sled wraps the lock's refusal into text.
fn is_lock_held(error: &std::io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

fn io_error(doing: impl Into<String>, source: std::io::Error) -> Error {
    Error::Io { engine: Kind::Sled, doing: doing.into(), source }
}

/// Reads until it is not damage that it meets, or [`READS_MAX`] times. What was met on the way is somewhere, if only in
/// what the disk said once.
fn read_again<T>(mut read: impl FnMut() -> Result<T>) -> Result<T> {
    let mut result = read();
    for _ in 1..READS_MAX {
        let Err(error @ Error::Corrupt { .. }) = &result else { break };
        tracing::warn!(%error, "a read met damage, perhaps of another page than it asked for: it is made again");
        result = read();
    }
    result
}

fn convert(error: SledError, doing: impl FnOnce() -> String) -> Error {
    let corrupt = |message: String| Error::Corrupt { engine: Kind::Sled, message };
    match error {
        // A file that ends too early, as opposed to a disk that fails.
        SledError::Io(source)
            if matches!(source.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) =>
        {
            corrupt(format!("{}: {source}", doing()))
        }
        SledError::Io(source) => io_error(doing(), source),
        SledError::Corruption { at, .. } => {
            corrupt(format!("{}: its checksum does not match, at {at:?}", doing()))
        }
        // "Unsupported" comes from opening files of another version or with other settings.
        SledError::Unsupported(message) => Error::Refused(format!("sled: {}: {message}", doing())),
        // Its own invariants are broken, so what it holds in memory is not to be trusted any more.
        error @ (SledError::ReportableBug(_) | SledError::CollectionNotFound(_)) => {
            io_error(doing(), std::io::Error::other(error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Batch;

    #[test]
    fn damage_counts_once_it_was_met_every_time_and_other_failures_at_once() {
        let reads_until = |ends_at: usize, error: fn() -> Error| {
            let mut reads = 0;
            let result = read_again(|| {
                reads += 1;
                if reads < ends_at { Err(error()) } else { Ok(()) }
            });
            (reads, result.is_ok())
        };
        let corrupt = || Error::Corrupt { engine: Kind::Sled, message: "its checksum does not match".into() };
        assert_eq!(reads_until(1, corrupt), (1, true));
        assert_eq!(reads_until(READS_MAX, corrupt), (READS_MAX, true));
        assert_eq!(reads_until(READS_MAX + 1, corrupt), (READS_MAX, false));
        assert_eq!(reads_until(2, || Error::ViewExpired { engine: Kind::Sled }), (1, false));
    }

    #[test]
    fn after_a_failure_nothing_is_written_and_the_first_error_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let sled = Sled::open(dir.path(), &Options { cache_bytes: 1 << 20 }).unwrap();
        let full = std::io::Error::from(ErrorKind::StorageFull);
        let text = full.to_string();
        assert!(sled.shared.note::<()>(Err(io_error("applying a batch", full))).is_err());
        assert!(sled.shared.note::<()>(Err(io_error("flushing", std::io::Error::other("later")))).is_err());
        let mut batch = Batch::default();
        batch.put("k", "v");
        for refused in [sled.apply(batch), sled.checkpoint(), sled.close()] {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains(&text) && !refused.contains("later"), "{refused}");
        }
    }
}
