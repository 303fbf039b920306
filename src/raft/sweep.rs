//! Deleting spaces that nobody needs any more, and leaving those that can't be read.
//!
//! A damaged page is damaged for whoever deletes it, too: sled reads what it deletes. So the space of a damaged
//! copy is *left* once that fails: it stays on the disk, its number is not given away again, and nothing reads
//! it. What is known to be damaged is read once before anything of it is deleted: an error in the middle of a
//! write ends the process. Should it come to that, the note is durable already, and no start tries again.

use std::collections::BTreeSet;
use std::ops::Bound;

use bytes::{BufMut, Bytes, BytesMut};

use super::space::{SpaceId, next_space, whole};
use crate::storage::{self, Batch, Engine, Error, Order};

/// Key of a space that is left.
const LEFT: u8 = b'u';

/// Records that are read in one view.
const READ_AT_ONCE: usize = 1024;

/// To be written before a space is deleted that may be damaged; [`delete`] takes it away.
pub(super) fn leave(batch: &mut Batch, space: SpaceId) {
    batch.put(left_key(space), Bytes::new());
}

fn left_key(space: SpaceId) -> Bytes {
    let mut key = BytesMut::with_capacity(5);
    key.put_u8(LEFT);
    key.put_u32(space.0);
    key.freeze()
}

/// The spaces that stay though nobody needs them.
pub(super) fn left(engine: &dyn Engine) -> storage::Result<BTreeSet<SpaceId>> {
    let view = engine.view()?;
    let mut found = BTreeSet::new();
    for pair in view.scan(storage::prefix_range(&[LEFT]), Order::Ascending) {
        let (key, _) = pair?;
        // Only this module writes such keys.
        found
            .extend(key.get(1..).and_then(|id| id.try_into().ok()).map(|id| SpaceId(u32::from_be_bytes(id))));
    }
    Ok(found)
}

/// Deletes a space, or leaves it if it can't be read.
pub(super) fn delete(engine: &dyn Engine, space: SpaceId) -> storage::Result<()> {
    let note = left_key(space);
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
                "what nobody needs any more can't be read, and is left on the disk; it goes when this node leaves \
                 and joins anew with an empty data directory"
            );
            leave(&mut batch, space);
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
        let mut last = None;
        for pair in view.scan((low, high.clone()), Order::Ascending).take(READ_AT_ONCE) {
            last = Some(pair?.0);
        }
        match last {
            Some(key) => low = Bound::Excluded(key),
            None => return Ok(()),
        }
    }
}

/// Deletes every space that is not in `used`: installs that a crash broke off. Returns the lowest number that
/// can be given away.
pub(super) fn sweep(engine: &dyn Engine, used: &BTreeSet<SpaceId>) -> storage::Result<u32> {
    let mut known = left(engine)?;
    if !known.is_empty() {
        tracing::warn!(
            spaces = known.len(),
            "the engine holds damaged data that nobody needs, and can't delete it"
        );
    }
    known.extend(used);
    let mut swept = false;
    let mut from = SpaceId(0);
    while let Some(found) = next_unknown(engine, from, &known)? {
        swept = true;
        tracing::info!(space = found.0, "removing what an unfinished snapshot left behind");
        let mut batch = Batch::default();
        leave(&mut batch, found);
        engine.apply(batch)?;
        engine.checkpoint()?;
        delete(engine, found)?;
        let Some(next) = found.0.checked_add(1) else { break };
        from = SpaceId(next);
    }
    if swept {
        // Their numbers are given away again: nothing of them may come back.
        engine.checkpoint()?;
        known.extend(left(engine)?);
    }
    Ok(known.last().map_or(0, |space| space.0 + 1))
}

/// The first space from `from` on that has records and is not in `known`.
fn next_unknown(
    engine: &dyn Engine,
    mut from: SpaceId,
    known: &BTreeSet<SpaceId>,
) -> storage::Result<Option<SpaceId>> {
    let after = |space: SpaceId| space.0.checked_add(1).map(SpaceId);
    loop {
        // Without a look at what may be damaged.
        while known.contains(&from) {
            match after(from) {
                Some(next) => from = next,
                None => return Ok(None),
            }
        }
        let view = engine.view()?;
        match next_space(view.as_ref(), from) {
            Ok(Some(found)) if known.contains(&found) => from = found,
            // A page that also holds the beginning of a space that is known: what lies before is left, too. Its
            // number is below that one's, and is not given away.
            Err(error @ Error::Corrupt { .. }) => match known.range(from..).next() {
                Some(next) => from = *next,
                None => return Err(error),
            },
            found => return found,
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
            assert_eq!(left(inner.as_ref()).unwrap().into_iter().collect::<Vec<_>>(), [SpaceId(6)]);
            delete(&damaged, SpaceId(2)).unwrap();
            assert_eq!(sweep(&damaged, &BTreeSet::new()).unwrap(), 7);
            // The last there is, and it can't be read: no number is known to be free.
            let end = Damaged::new(inner.clone(), whole(SpaceId(9)).0, whole(SpaceId(9)).1);
            put(&inner, 9, "a");
            assert!(matches!(sweep(&end, &BTreeSet::new()), Err(Error::Corrupt { .. })));
            inner.close().unwrap();
        }
    }

    #[test]
    fn what_was_thought_to_be_damaged_and_is_not_goes() {
        let dir = tempfile::tempdir().unwrap();
        let engine = storage::open(Kind::Sled, dir.path(), &Options::default()).unwrap();
        put(&engine, 3, "a");
        let mut batch = Batch::default();
        leave(&mut batch, SpaceId(3));
        engine.apply(batch).unwrap();
        delete(engine.as_ref(), SpaceId(3)).unwrap();
        assert!(left(engine.as_ref()).unwrap().is_empty() && spaces(engine.as_ref()).is_empty());
        engine.close().unwrap();
    }
}
