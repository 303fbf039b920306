//! An engine with a cache of single records in front of it: what a key's last reads and writes left. Finding a record
//! in an engine costs more than all else that is done for a call on it.
//!
//! What is cached is what the engine would answer. While a key is being written, reads of it go to the engine, and what
//! they find is not kept; when the engine has it, what is cached is changed before reads may find it again. So nothing old can be
//! seen after something new, be that seen here or in a view. Keys share counts of writes under way, so that a read may go to the
//! engine for another key's sake.
//! Only what is cached already is kept by a write, so that a snapshot which is taken in does not drive out what is read;
//! a machine reads each record before it writes it.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
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

/// Each of 16 bytes. As many as make it rare that two of the keys that are written at one time share one.
const SHARDS: usize = 16 * 1024;

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
    /// Of its keys; changed under the lock of `begun`.
    under_way: AtomicU32,
    /// How many writes have begun, round and round: what is read is not kept if any did meanwhile. Under its lock one
    /// entry of the shard is changed at a time.
    begun: Mutex<u32>,
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, u32> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Cached<E> {
    engine: E,
    records: Cache<Bytes, Found, Weight>,
    hasher: RandomState,
    shards: Box<[Shard]>,
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
            shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect(),
            opened: Instant::now(),
            slow_until: AtomicU64::new(0),
        }
    }

    /// What the engine answers, with a note of how long it took.
    fn look_up(&self, key: &[u8]) -> Result<Option<Bytes>> {
        // While reads are slow, those that step aside say nothing: after that time one is tried again.
        let is_quick = self.reads_at_once();
        let began = Instant::now();
        let found = self.engine.get(key);
        if is_quick && began.elapsed() >= AT_ONCE {
            self.slow_until.store(millis(self.opened.elapsed() + SLOW_FOR), Ordering::Relaxed);
        }
        found
    }

    fn shard(&self, key: &[u8]) -> &Shard {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    fn begin_writing(&self, key: &[u8]) {
        let shard = self.shard(key);
        let mut begun = shard.lock();
        *begun = begun.wrapping_add(1);
        // Who sees what the engine makes of this sees this, too.
        shard.under_way.fetch_add(1, Ordering::AcqRel);
    }

    /// `value`: what it has become, if that is to be kept.
    fn end_writing(&self, key: Bytes, value: Option<Bytes>) {
        let shard = self.shard(&key);
        let _begun = shard.lock();
        // Of two writes at once to one key, nobody here knows which the engine took last.
        let is_alone = shard.under_way.load(Ordering::Acquire) == 1;
        if is_alone && value.as_ref().is_some_and(is_small) {
            // If it was there.
            let _ = self.records.replace(key, value, false);
        } else {
            self.records.remove(&key);
        }
        shard.under_way.fetch_sub(1, Ordering::AcqRel);
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
        // Before what is cached is looked at: a write that begins between the two is under way while this is read.
        let is_written = self.shard(key).under_way.load(Ordering::Acquire) > 0;
        if is_written { None } else { self.records.get(key) }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        if let Some(found) = self.cached(key) {
            return Ok(found);
        }
        let shard = self.shard(key);
        let begun = {
            let begun = shard.lock();
            (shard.under_way.load(Ordering::Acquire) == 0).then_some(*begun)
        };
        let found = self.look_up(key)?;
        if let Some(before) = begun {
            let begun = shard.lock();
            if *begun == before && found.as_ref().is_none_or(is_small) {
                self.records.insert(Bytes::copy_from_slice(key), found.clone());
            }
        }
        Ok(found)
    }

    fn reads_at_once(&self) -> bool {
        let slow_until = self.slow_until.load(Ordering::Relaxed);
        // As long as none was slow, no clock is looked at.
        slow_until == 0 || slow_until <= millis(self.opened.elapsed())
    }

    fn is_ready(&self) -> bool {
        self.engine.is_ready()
    }

    fn apply(&self, batch: Batch) -> Result<()> {
        let writes = batch.into_last_writes();
        writes.iter().for_each(|write| self.begin_writing(write.key()));
        let applied = self.engine.write(&writes);
        for write in writes {
            let (key, value) = match write {
                Write::Put(key, value) => (key, Some(value)),
                // A range that is deleted would drive out what is read.
                Write::Delete(key) => (key, None),
            };
            self.end_writing(key, value.filter(|_| applied.is_ok()));
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::sync::{Arc, OnceLock};

    use super::*;
    use crate::storage::Error;
    use crate::storage::memory::Memory;

    /// Reads and writes at once, and answers when it is let.
    #[derive(Debug, Default)]
    struct Held {
        engine: Memory,
        reads: OnceLock<Mutex<Stop>>,
        writes: OnceLock<Mutex<Stop>>,
        fails: std::sync::atomic::AtomicBool,
    }

    #[derive(Debug)]
    struct Stop {
        reached: SyncSender<()>,
        go: Receiver<()>,
    }

    /// What the test has of it.
    struct Gate {
        reached: Receiver<()>,
        go: SyncSender<()>,
    }

    fn gate(stop: &OnceLock<Mutex<Stop>>) -> Gate {
        let ((reached, is_reached), (go, goes)) = (sync_channel(1), sync_channel(1));
        stop.set(Mutex::new(Stop { reached, go: goes })).unwrap();
        Gate { reached: is_reached, go }
    }

    fn wait(stop: &OnceLock<Mutex<Stop>>) {
        if let Some(stop) = stop.get() {
            let stop = stop.lock().unwrap();
            // A test that has gone waits for nothing.
            let _ = stop.reached.send(()).map(|()| stop.go.recv());
        }
    }

    impl Engine for Held {
        fn kind(&self) -> Kind {
            Kind::Memory
        }
        fn recovers_prefix(&self) -> bool {
            true
        }
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
            let found = self.engine.get(key);
            wait(&self.reads);
            found
        }
        fn write(&self, writes: &[Write]) -> Result<()> {
            if self.fails.load(Ordering::Relaxed) {
                return Err(Error::Refused("a test says so".into()));
            }
            self.engine.write(writes)?;
            wait(&self.writes);
            Ok(())
        }
        fn view(&self) -> Result<Box<dyn View>> {
            self.engine.view()
        }
        fn delete_range(&self, range: KeyRange) -> Result<()> {
            self.engine.delete_range(range)
        }
        fn checkpoint(&self) -> Result<()> {
            Ok(())
        }
        fn sizes(&self) -> Result<Sizes> {
            Ok(Sizes::default())
        }
        fn close(&self) -> Result<()> {
            Ok(())
        }
    }

    fn cached() -> Arc<Cached<Held>> {
        Arc::new(Cached::new(Held::default(), 1 << 20))
    }

    fn put(cached: &Cached<Held>, key: &'static str, value: &'static str) -> Result<()> {
        let mut batch = Batch::default();
        batch.put(key, value);
        cached.apply(batch)
    }

    /// A key that was read, and is cached.
    fn warm(cached: &Cached<Held>, key: &'static str, value: &'static str) {
        put(cached, key, value).unwrap();
        assert_eq!(cached.cached(key.as_bytes()), None, "a write alone brings nothing in");
        cached.get(key.as_bytes()).unwrap();
        assert_eq!(cached.cached(key.as_bytes()), Some(Some(value.into())));
    }

    #[test]
    fn a_write_changes_what_is_cached_and_one_that_fails_drops_it() {
        let cached = cached();
        warm(&cached, "k", "old");
        put(&cached, "k", "new").unwrap();
        assert_eq!(cached.cached(b"k"), Some(Some("new".into())));
        cached.engine.fails.store(true, Ordering::Relaxed);
        put(&cached, "k", "newest").unwrap_err();
        assert_eq!(cached.cached(b"k"), None, "who knows what the engine has");
        assert_eq!(cached.get(b"k").unwrap(), Some("new".into()));
    }

    #[test]
    fn what_is_not_there_is_cached_too_until_it_is_written() {
        let cached = cached();
        assert_eq!(cached.get(b"k").unwrap(), None);
        assert_eq!(cached.cached(b"k"), Some(None));
        put(&cached, "k", "v").unwrap();
        assert_eq!(cached.cached(b"k"), Some(Some("v".into())));
    }

    #[test]
    fn while_a_key_is_written_its_reads_go_to_the_engine() {
        let cached = cached();
        warm(&cached, "k", "old");
        let writes = gate(&cached.engine.writes);
        let writing = {
            let cached = cached.clone();
            std::thread::spawn(move || put(&cached, "k", "new").unwrap())
        };
        writes.reached.recv().unwrap();
        // The engine shows it already: the old one must not be seen any more.
        assert_eq!(cached.cached(b"k"), None);
        assert_eq!(cached.get(b"k").unwrap(), Some("new".into()));
        writes.go.send(()).unwrap();
        writing.join().unwrap();
        assert_eq!(cached.cached(b"k"), Some(Some("new".into())));
    }

    #[test]
    fn what_was_read_before_a_write_is_not_kept_after_it() {
        let cached = cached();
        put(&cached, "k", "old").unwrap();
        let reads = gate(&cached.engine.reads);
        let reading = {
            let cached = cached.clone();
            std::thread::spawn(move || cached.get(b"k").unwrap())
        };
        reads.reached.recv().unwrap();
        put(&cached, "k", "new").unwrap();
        reads.go.send(()).unwrap();
        assert_eq!(reading.join().unwrap(), Some("old".into()), "it began before");
        assert_eq!(cached.cached(b"k"), None);
    }

    #[test]
    fn keys_that_share_a_count_get_what_they_were_given() {
        let cached = cached();
        let with_first = |number: &u32| {
            std::ptr::eq(cached.shard(&0u32.to_be_bytes()), cached.shard(&number.to_be_bytes()))
        };
        let other = (1..).find(with_first).unwrap();
        for round in [b"1", b"2", b"3"] {
            let mut batch = Batch::default();
            for number in [0, other] {
                batch.put(number.to_be_bytes().to_vec(), round.to_vec());
            }
            cached.apply(batch).unwrap();
            for number in [0, other] {
                for _ in 0..2 {
                    assert_eq!(cached.get(&number.to_be_bytes()).unwrap().as_deref(), Some(&round[..]));
                }
            }
        }
    }
}
