//! A replica's own stretch of the engine: every key under one short prefix.
//!
//! A space is written once from empty: by a replica's log from its birth on, or by an installed
//! snapshot. Replacing a replica's state means filling a new space and flipping to it.

use std::ops::Bound;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::state_machine::blocking;
use crate::storage::{self, Engine, KeyRange, Order, Pair, View};

/// First byte of every data key in the engine; see `docs/formats/engine.md`.
pub(super) const DATA: u8 = b'd';

/// The number of a space in its engine; never used for another replica or generation while keys of it
/// are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SpaceId(pub u32);

/// Keys of one space, seen without their prefix. Clones share a count, so that a space that was
/// replaced is deleted only when its last reader has gone.
#[derive(Debug, Clone)]
pub struct Space {
    engine: Arc<dyn Engine>,
    id: Arc<SpaceId>,
}

impl Space {
    pub(crate) fn new(engine: Arc<dyn Engine>, id: SpaceId) -> Space {
        Space { engine, id: Arc::new(id) }
    }

    pub(crate) fn id(&self) -> SpaceId {
        *self.id
    }

    /// Whether somebody besides the caller still holds it.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.id) > 1
    }

    pub(crate) fn key(&self, key: &[u8]) -> Bytes {
        full_key(*self.id, [key])
    }

    /// The key that consists of `parts`.
    pub(crate) fn key_of<const N: usize>(&self, parts: [&[u8]; N]) -> Bytes {
        full_key(*self.id, parts)
    }

    /// The engine, to be asked for keys that [`Space::key_of`] has made.
    pub(crate) fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    pub fn get(&self, key: &[u8]) -> storage::Result<Option<Bytes>> {
        self.engine.get(&self.key(key))
    }

    /// The same for a task that shares its thread: if the disk is slow, the others do not wait with it.
    pub fn get_aside(&self, key: &[u8]) -> storage::Result<Option<Bytes>> {
        let key = self.key(key);
        if self.engine.reads_at_once() {
            return self.engine.get(&key);
        }
        match self.engine.cached(&key) {
            Some(found) => Ok(found),
            None => blocking(|| self.engine.get(&key)),
        }
    }

    /// A consistent state of the space.
    pub fn view(&self) -> storage::Result<SpaceView> {
        Ok(SpaceView { view: self.engine.view_of(self.key(&[]))?, space: self.clone() })
    }
}

/// A consistent state of a space, unaffected by later writes.
pub struct SpaceView {
    view: Box<dyn View>,
    space: Space,
}

impl std::fmt::Debug for SpaceView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpaceView").field("space", &self.space.id()).finish_non_exhaustive()
    }
}

impl SpaceView {
    pub fn get(&self, key: &[u8]) -> storage::Result<Option<Bytes>> {
        self.view.get(&self.space.key(key))
    }

    /// The keys of `range`, in order, without the space's prefix.
    pub fn scan(
        &self,
        range: KeyRange,
        order: Order,
    ) -> impl Iterator<Item = storage::Result<Pair>> + Send + '_ {
        let id = self.space.id();
        let (low, high) = range;
        let low = match low {
            Bound::Included(key) => Bound::Included(full_key(id, [&key])),
            Bound::Excluded(key) => Bound::Excluded(full_key(id, [&key])),
            Bound::Unbounded => whole(id).0,
        };
        let high = match high {
            Bound::Included(key) => Bound::Included(full_key(id, [&key])),
            Bound::Excluded(key) => Bound::Excluded(full_key(id, [&key])),
            Bound::Unbounded => whole(id).1,
        };
        self.view
            .scan((low, high), order)
            .map(move |pair| pair.map(|(key, value)| (key.slice(prefix_bytes(id)..), value)))
    }
}

/// A space's prefix is the type byte and its number: small ones in one byte, since short keys are cheap; larger ones in three and
/// five, the first of which says so. None is the beginning of another, and they sort as the numbers do.
const PREFIX_BYTES_MAX: usize = 6;

/// First byte of the numbers from this on, in two more bytes, ...
const IN_TWO: u8 = 0xF0;
/// ... and of all larger ones, in four more.
const IN_FOUR: u8 = 0xF1;

const IN_TWO_FROM: u32 = IN_TWO as u32;
const IN_FOUR_FROM: u32 = IN_TWO_FROM + (1 << 16);

fn put_prefix(id: SpaceId, into: &mut impl BufMut) {
    into.put_u8(DATA);
    match id.0 {
        small @ 0..IN_TWO_FROM => into.put_u8(small as u8),
        middle @ IN_TWO_FROM..IN_FOUR_FROM => {
            into.put_u8(IN_TWO);
            into.put_u16((middle - IN_TWO_FROM) as u16);
        }
        large => {
            into.put_u8(IN_FOUR);
            into.put_u32(large);
        }
    }
}

fn prefix_bytes(id: SpaceId) -> usize {
    match id.0 {
        0..IN_TWO_FROM => 2,
        IN_TWO_FROM..IN_FOUR_FROM => 4,
        IN_FOUR_FROM.. => PREFIX_BYTES_MAX,
    }
}

/// The space that a key is of.
pub(super) fn space_of(key: &[u8]) -> Option<SpaceId> {
    let (first, rest) = key.strip_prefix(&[DATA])?.split_first()?;
    Some(SpaceId(match *first {
        IN_FOUR => u32::from_be_bytes(*rest.first_chunk()?),
        IN_TWO => IN_TWO_FROM + u32::from(u16::from_be_bytes(*rest.first_chunk()?)),
        small => (small < IN_TWO).then_some(small)?.into(),
    }))
}

fn full_key<const N: usize>(id: SpaceId, parts: [&[u8]; N]) -> Bytes {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let mut full = BytesMut::with_capacity(prefix_bytes(id) + bytes);
    put_prefix(id, &mut full);
    for part in parts {
        full.put_slice(part);
    }
    full.freeze()
}

pub(crate) fn whole(id: SpaceId) -> KeyRange {
    let end = match id.0.checked_add(1) {
        Some(next) => full_key(SpaceId(next), []),
        None => Bytes::from_static(&[DATA + 1]),
    };
    (Bound::Included(full_key(id, [])), Bound::Excluded(end))
}

/// The space of the first data key at or after `from`, if there is one.
pub(crate) fn next_space(view: &dyn View, from: SpaceId) -> storage::Result<Option<SpaceId>> {
    let range = (Bound::Included(full_key(from, [])), Bound::Excluded(Bytes::from_static(&[DATA + 1])));
    let Some(first) = view.scan(range, Order::Ascending).next() else {
        return Ok(None);
    };
    let (key, _) = first?;
    // The range holds only keys with the whole prefix, unless somebody else wrote into the engine.
    Ok(space_of(&key))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::storage::testing::{Slow, cached};

    #[test]
    fn prefixes_are_short_for_small_numbers_sort_as_they_do_and_come_back() {
        let near = |number: u32| number.saturating_sub(2)..=number.saturating_add(2);
        let borders = [0, IN_TWO_FROM, 256, 65_536, IN_FOUR_FROM, 1 << 24, u32::MAX];
        let numbers: Vec<u32> = borders.into_iter().flat_map(near).collect();
        for id in numbers.iter().copied().map(SpaceId) {
            let (low, high) = whole(id);
            let (Bound::Included(low), Bound::Excluded(high)) = (low, high) else { panic!("{id:?}") };
            assert_eq!((low.len(), space_of(&low)), (prefix_bytes(id), Some(id)));
            for key in [&b""[..], &[0], &[0xFF; 30]] {
                let full = full_key(id, [key]);
                assert!(low <= full && full < high, "{id:?}");
                assert_eq!((space_of(&full), &full[prefix_bytes(id)..]), (Some(id), key));
            }
            for other in numbers.iter().filter(|other| **other > id.0) {
                assert!(full_key(id, [&[0xFF; 30]]) < full_key(SpaceId(*other), []), "{id:?} {other}");
            }
        }
        assert_eq!(prefix_bytes(SpaceId(IN_TWO_FROM - 1)), 2);
        for short in [&b""[..], b"d", &[DATA, IN_TWO, 1], &[DATA, IN_FOUR, 0, 0, 1], &[DATA, 0xF2, 0], b"s\0"]
        {
            assert_eq!(space_of(short), None);
        }
    }

    const EACH: Duration = Duration::from_millis(20);
    const READS: u8 = 30;

    /// One thread for all tasks, and a disk that takes its time: who reads nothing does not wait for all who read.
    #[test]
    fn while_the_disk_is_slow_others_go_on() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let space = Space::new(cached(Slow(EACH), 1 << 20), SpaceId(1));
        runtime.block_on(async {
            let (begun, has_begun) = tokio::sync::oneshot::channel();
            let looking = tokio::spawn(async {
                begun.send(()).unwrap();
                let mut longest = Duration::ZERO;
                for _ in 0..20 {
                    let began = Instant::now();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    longest = longest.max(began.elapsed());
                }
                longest
            });
            has_begun.await.unwrap();
            let reads: Vec<_> = (0..READS)
                .map(|key| {
                    let space = space.clone();
                    tokio::spawn(async move { space.get_aside(&[key]).unwrap() })
                })
                .collect();
            let longest = looking.await.unwrap();
            for read in reads {
                assert_eq!(read.await.unwrap(), None);
            }
            assert!(longest < EACH * u32::from(READS) / 2, "it waited for {longest:?}");
        });
        // What was read is known, and needs no disk.
        let began = Instant::now();
        (0..READS).for_each(|key| assert_eq!(space.get_aside(&[key]).unwrap(), None));
        assert!(began.elapsed() < EACH * u32::from(READS) / 2, "it took {:?}", began.elapsed());
    }
}
