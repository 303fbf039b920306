//! Deleting spaces that nobody needs any more, and leaving those that can't be read.
//!
//! A damaged page is damaged for whoever deletes it, too: sled reads what it deletes. So the space of a damaged
//! copy is *left* once that fails: it stays on the disk, its number is not given away again, and nothing reads
//! it. What may be damaged is read once before anything of it is deleted: an error in the middle of a write ends
//! the process. Should it come to that all the same, a note is durable before the first attempt, and says how
//! often a start may try again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::{BufMut, Bytes, BytesMut};

use super::space::{SpaceId, next_space, whole};
use crate::storage::{self, Batch, Engine, Error, Order};

/// Key of a space that may be damaged.
const NOTE: u8 = b'u';

/// What is read in one view, in bytes and records.
const READ_BYTES: usize = 256 * 1024;
const READ_RECORDS: usize = 1024;

/// After so many starts that did not come to the end of it, a space is left.
const ATTEMPTS_MAX: u8 = 2;
/// It can't be read.
const UNREADABLE: u8 = u8::MAX;

/// Numbers that are not given away where nobody can tell which are: more than a process ever uses for installs
/// that are broken off.
const GAP: u32 = 1 << 16;

/// To be written before a space is deleted that may be damaged; [`delete`] takes it away.
pub(super) fn note(batch: &mut Batch, space: SpaceId) {
    batch.put(note_key(space), Bytes::from_static(&[0]));
}

fn note_key(space: SpaceId) -> Bytes {
    let mut key = BytesMut::with_capacity(5);
    key.put_u8(NOTE);
    key.put_u32(space.0);
    key.freeze()
}

/// The spaces that may be damaged and that nobody needs, with the attempts that starts made at them.
fn noted(engine: &dyn Engine) -> storage::Result<BTreeMap<SpaceId, u8>> {
    let view = engine.view()?;
    let mut found = BTreeMap::new();
    for pair in view.scan(storage::prefix_range(&[NOTE]), Order::Ascending) {
        let (key, value) = pair?;
        // Only this module writes such keys.
        if let Some(id) = key.get(1..).and_then(|id| id.try_into().ok()) {
            found.insert(SpaceId(u32::from_be_bytes(id)), value.first().copied().unwrap_or(UNREADABLE));
        }
    }
    Ok(found)
}

/// Whether damaged records that nobody needs stay in the engine.
pub(super) fn leaves(engine: &dyn Engine) -> storage::Result<bool> {
    Ok(noted(engine)?.into_values().any(|attempts| attempts == UNREADABLE))
}

pub(super) fn is_note(key: &[u8]) -> bool {
    key.first() == Some(&NOTE)
}

/// Deletes a space, or leaves it if it can't be read.
pub(super) fn delete(engine: &dyn Engine, space: SpaceId) -> storage::Result<()> {
    let note = note_key(space);
    let is_noted = engine.get(&note)?.is_some();
    let read = if is_noted { read_all(engine, space) } else { Ok(()) };
    let mut batch = Batch::default();
    match read.and_then(|()| engine.delete_range(whole(space))) {
        Ok(()) if is_noted => batch.delete(note),
        Ok(()) => return Ok(()),
        Err(error @ Error::Corrupt { .. }) => {
            tracing::error!(
                space = space.0,
                %error,
                "what nobody needs any more can't be read; the next start makes the engine anew without it"
            );
            batch.put(note, Bytes::from_static(&[UNREADABLE]));
        }
        Err(error) => return Err(error),
    }
    engine.apply(batch)
}

/// In many short views, as others write meanwhile.
fn read_all(engine: &dyn Engine, space: SpaceId) -> storage::Result<()> {
    let (mut low, high) = whole(space);
    loop {
        let view = engine.view()?;
        let (mut last, mut bytes) = (None, 0);
        for pair in view.scan((low, high.clone()), Order::Ascending).take(READ_RECORDS) {
            let (key, value) = pair?;
            bytes += key.len() + value.len();
            last = Some(key);
            if bytes >= READ_BYTES {
                break;
            }
        }
        match last {
            Some(key) => low = Bound::Excluded(key),
            None => return Ok(()),
        }
    }
}

/// Deletes every space that is not in `used`: installs that a crash broke off, and what was noted. Returns the
/// lowest number that can be given away.
pub(super) fn sweep(engine: &dyn Engine, used: &BTreeSet<SpaceId>) -> storage::Result<u32> {
    let mut swept = false;
    let mut left = BTreeSet::new();
    for (space, attempts) in noted(engine)? {
        // A batch that took it from its replica wrote the note; no doubt may cost a copy, though.
        if attempts < ATTEMPTS_MAX && !used.contains(&space) {
            swept = true;
            attempt(engine, space, attempts + 1)?;
        }
        if engine.get(&note_key(space))?.is_some() {
            left.insert(space);
        }
    }
    if !left.is_empty() {
        tracing::warn!(
            spaces = left.len(),
            "the engine holds records that nobody needs and that could not be deleted"
        );
    }
    let mut known: BTreeSet<SpaceId> = left.union(used).copied().collect();
    let mut gap = 0;
    let mut from = Some(SpaceId(0));
    while let Some(at) = from {
        match next_unknown(engine, at, &known)? {
            Next::None => break,
            Next::Unreadable => {
                gap = GAP;
                tracing::error!(
                    "the engine's last records can't be read: what an unfinished snapshot left stays"
                );
                break;
            }
            Next::Space(found) => {
                swept = true;
                tracing::info!(space = found.0, "removing what an unfinished snapshot left behind");
                attempt(engine, found, 1)?;
                if engine.get(&note_key(found))?.is_some() {
                    known.insert(found);
                }
                from = after(found);
            }
        }
    }
    if swept {
        // Their numbers are given away again: nothing of them may come back.
        engine.checkpoint()?;
    }
    Ok(known.last().map_or(0, |space| space.0.saturating_add(1)).saturating_add(gap))
}

/// Deletes a space, with a durable note that this was tried.
fn attempt(engine: &dyn Engine, space: SpaceId, attempts: u8) -> storage::Result<()> {
    let mut batch = Batch::default();
    batch.put(note_key(space), vec![attempts]);
    engine.apply(batch)?;
    engine.checkpoint()?;
    delete(engine, space)
}

fn after(space: SpaceId) -> Option<SpaceId> {
    space.0.checked_add(1).map(SpaceId)
}

enum Next {
    Space(SpaceId),
    /// There may be more; no known space is behind.
    Unreadable,
    None,
}

/// The first space from `from` on that has records and is not in `known`.
fn next_unknown(engine: &dyn Engine, mut from: SpaceId, known: &BTreeSet<SpaceId>) -> storage::Result<Next> {
    loop {
        // Without a look at what may be damaged.
        while known.contains(&from) {
            match after(from) {
                Some(next) => from = next,
                None => return Ok(Next::None),
            }
        }
        let view = engine.view()?;
        match next_space(view.as_ref(), from) {
            Ok(Some(found)) if known.contains(&found) => from = found,
            Ok(found) => return Ok(found.map_or(Next::None, Next::Space)),
            // A page that also holds the beginning of a space that is known: what lies before stays, too.
            Err(Error::Corrupt { .. }) => match known.range(from..).next() {
                Some(next) => from = *next,
                None => return Ok(Next::Unreadable),
            },
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::raft::space::Space;
    use crate::storage::testing::Damaged;
    use crate::storage::{Kind, Options};

    fn put(engine: &Arc<dyn Engine>, space: u32, key: &'static str) {
        let space = Space::new(engine.clone(), SpaceId(space));
        let mut batch = Batch::default();
        batch.put(space.key(key.as_bytes()), Bytes::from_static(b"value"));
        engine.apply(batch).unwrap();
    }

    fn spaces(engine: &dyn Engine) -> Vec<u32> {
        let view = engine.view().unwrap();
        let mut found = Vec::new();
        let mut from = SpaceId(0);
        while let Some(space) = next_space(view.as_ref(), from).unwrap() {
            found.push(space.0);
            from = SpaceId(space.0 + 1);
        }
        found
    }

    #[test]
    fn what_can_not_be_read_is_left_and_its_number_with_it() {
        for kind in [Kind::Fjall, Kind::Sled] {
            let dir = tempfile::tempdir().unwrap();
            let inner = storage::open(kind, dir.path(), &Options::default()).unwrap();
            for space in [1, 2, 4, 6, 9] {
                put(&inner, space, "a");
                put(&inner, space, "b");
            }
            // Nothing is known of 1, 4 and 9; 4 and 6 can't be read.
            let damaged = Damaged::new(inner.clone(), whole(SpaceId(4)).0, whole(SpaceId(6)).1);
            let used = BTreeSet::from([SpaceId(2), SpaceId(6)]);
            for _ in 0..2 {
                assert_eq!(sweep(&damaged, &used).unwrap(), 7);
                assert_eq!(spaces(inner.as_ref()), [2, 4, 6]);
            }
            // A replica whose copy was 6 is destroyed.
            delete(&damaged, SpaceId(6)).unwrap();
            let used = BTreeSet::from([SpaceId(2)]);
            assert_eq!(sweep(&damaged, &used).unwrap(), 7);
            assert_eq!(noted(inner.as_ref()).unwrap(), [(SpaceId(6), UNREADABLE)].into());
            delete(&damaged, SpaceId(2)).unwrap();
            assert_eq!(sweep(&damaged, &BTreeSet::new()).unwrap(), 7);
            // The last there is, and it can't be read: no number near it is given away.
            let end = Damaged::new(inner.clone(), whole(SpaceId(9)).0, whole(SpaceId(9)).1);
            put(&inner, 9, "a");
            assert_eq!(sweep(&end, &BTreeSet::new()).unwrap(), 7 + GAP);
            assert_eq!(spaces(inner.as_ref()), [6, 9]);
            inner.close().unwrap();
        }
    }

    #[test]
    fn what_was_thought_to_be_damaged_and_is_not_goes() {
        let dir = tempfile::tempdir().unwrap();
        let engine = storage::open(Kind::Sled, dir.path(), &Options::default()).unwrap();
        for (attempts, goes) in [(0, true), (1, true), (2, false), (UNREADABLE, false)] {
            put(&engine, 3, "a");
            let mut batch = Batch::default();
            note(&mut batch, SpaceId(3));
            batch.put(note_key(SpaceId(3)), vec![attempts]);
            engine.apply(batch).unwrap();
            let next = if goes { 0 } else { 4 };
            assert_eq!(sweep(engine.as_ref(), &BTreeSet::new()).unwrap(), next, "{attempts}");
            assert_eq!(noted(engine.as_ref()).unwrap().is_empty(), goes, "{attempts}");
            assert_eq!(spaces(engine.as_ref()).is_empty(), goes, "{attempts}");
        }
        // While the node runs, it is tried once more.
        delete(engine.as_ref(), SpaceId(3)).unwrap();
        assert!(noted(engine.as_ref()).unwrap().is_empty() && spaces(engine.as_ref()).is_empty());
        engine.close().unwrap();
    }
}
