//! An engine with a cache of single records in front of it: what a key's last reads and writes left. Finding a record
//! in an engine costs more than all else that is done for a call on it.
//!
//! What is cached is what the engine would answer. A key that is being written is not cached until the engine has
//! it, and what is read meanwhile goes to the engine and is not kept: so nothing old can be seen after something new,
//! be that seen here or in a view.
//! No key may be written by two at once; each belongs to one group, whose entries are applied one after another.
//! Only what is cached already is kept by a write, so that a snapshot which is taken in does not drive out what is read;
//! a machine reads each record before it writes it.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::{Batch, Engine, KeyRange, Kind, Result, Sizes, View, Write};

/// A larger value is not cached: reading it costs more than finding it.
const VALUE_BYTES_MAX: usize = 32 * 1024;

/// What a record takes beside its bytes, about.
const OVERHEAD_BYTES: u64 = 128;

/// What is read is not kept if any key of its shard is written meanwhile.
const SHARDS: usize = 1024;

/// A read of the engine that takes longer waits for the disk, and those that come within this time after it may, too.
const AT_ONCE: Duration = Duration::from_millis(1);
const SLOW_FOR: Duration = Duration::from_secs(1);

/// `None`: there is no such key.
type Found = Option<Bytes>;

#[derive(Debug, Clone, Copy)]
struct Weight;

impl Weighter<Bytes, Found> for Weight {
    fn weight(&self, key: &Bytes, found: &Found) -> u64 {
        (key.len() + found.as_ref().map_or(0, Bytes::len)) as u64 + OVERHEAD_BYTES
    }
}

#[derive(Debug, Default)]
struct Shard {
    /// How many writes have begun, and how many of them have not ended.
    begun: u64,
    under_way: usize,
}

pub(super) struct Cached<E> {
    engine: E,
    records: Cache<Bytes, Found, Weight>,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    opened: Instant,
    /// Until when reads are taken to be slow, in milliseconds since it was opened.
    slow_until: AtomicU64,
}

impl<E: Engine> Cached<E> {
    pub(super) fn new(engine: E, cache_bytes: u64) -> Cached<E> {
        let records_max = usize::try_from(cache_bytes / (2 * OVERHEAD_BYTES)).unwrap_or(usize::MAX);
        Cached {
            engine,
            records: Cache::with_weighter(records_max, cache_bytes, Weight),
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
            opened: Instant::now(),
            slow_until: AtomicU64::new(0),
        }
    }

    /// What the engine answers, with a note of how long it took.
    fn look_up(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let began = Instant::now();
        let found = self.engine.get(key);
        if began.elapsed() >= AT_ONCE {
            self.slow_until.store(millis(self.opened.elapsed() + SLOW_FOR), Ordering::Relaxed);
        }
        found
    }

    fn shard(&self, key: &[u8]) -> MutexGuard<'_, Shard> {
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        // Under it one entry is changed at a time.
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was cached.
    fn begin_writing(&self, key: &[u8]) -> bool {
        let mut shard = self.shard(key);
        shard.begun += 1;
        shard.under_way += 1;
        self.records.remove(key).is_some()
    }

    /// `value`: what it has become, if that is to be kept.
    fn end_writing(&self, key: Bytes, value: Option<Bytes>) {
        let mut shard = self.shard(&key);
        shard.under_way -= 1;
        if value.as_ref().is_some_and(is_small) {
            self.records.insert(key, value);
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn is_small(value: &Bytes) -> bool {
    value.len() <= VALUE_BYTES_MAX
}

impl<E: Engine> Engine for Cached<E> {
    fn kind(&self) -> Kind {
        self.engine.kind()
    }

    fn recovers_prefix(&self) -> bool {
        self.engine.recovers_prefix()
    }

    fn cached(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.records.get(key)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        if let Some(found) = self.records.get(key) {
            return Ok(found);
        }
        let begun = {
            let shard = self.shard(key);
            (shard.under_way == 0).then_some(shard.begun)
        };
        let found = self.look_up(key)?;
        if let Some(begun) = begun {
            let shard = self.shard(key);
            if shard.begun == begun && found.as_ref().is_none_or(is_small) {
                self.records.insert(Bytes::copy_from_slice(key), found.clone());
            }
        }
        Ok(found)
    }

    fn reads_at_once(&self) -> bool {
        let slow_until = self.slow_until.load(Ordering::Relaxed);
        slow_until == 0 || slow_until <= millis(self.opened.elapsed())
    }

    fn is_ready(&self) -> bool {
        self.engine.is_ready()
    }

    fn apply(&self, batch: Batch) -> Result<()> {
        let writes = batch.into_last_writes();
        let were_cached: Vec<bool> = writes.iter().map(|write| self.begin_writing(write.key())).collect();
        let applied = self.engine.write(&writes);
        for (write, was_cached) in writes.into_iter().zip(were_cached) {
            let (key, value) = match write {
                Write::Put(key, value) => (key, Some(value)),
                // A range that is deleted would drive out what is read.
                Write::Delete(key) => (key, None),
            };
            self.end_writing(key, value.filter(|_| was_cached && applied.is_ok()));
        }
        applied
    }

    fn write(&self, writes: &[Write]) -> Result<()> {
        self.apply(Batch { writes: writes.to_vec() })
    }

    fn view(&self) -> Result<Box<dyn View>> {
        self.engine.view()
    }

    fn view_of(&self, prefix: Bytes) -> Result<Box<dyn View>> {
        self.engine.view_of(prefix)
    }

    fn delete_range(&self, range: KeyRange) -> Result<()> {
        super::delete_by_batches(self, range)
    }

    fn checkpoint(&self) -> Result<()> {
        self.engine.checkpoint()
    }

    fn sizes(&self) -> Result<Sizes> {
        let mut sizes = self.engine.sizes()?;
        sizes.memory_bytes += self.records.weight();
        Ok(sizes)
    }

    fn close(&self) -> Result<()> {
        self.engine.close()?;
        self.records.clear();
        Ok(())
    }
}

impl<E: Engine> fmt::Debug for Cached<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached").field("engine", &self.engine).finish_non_exhaustive()
    }
}
