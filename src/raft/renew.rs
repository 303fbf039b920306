//! An engine with damaged pages or blocks is made anew: what can be read of it is copied, and what can't be is left.
//!
//! Nothing that is damaged is ever served, and a replica whose copy is damaged gets another one from the others. But
//! the damage stays in the engine's files, and whatever the engine writes beside it, or merges, can end the process.
//! So a start makes the engine anew if a write met damage, or if damaged records that nobody needs are left there.
//! A copy that can't be read to its end is marked (rule 15), before the new engine takes the old one's place.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::space::{DATA, SpaceId, whole};
use super::store::{StoreError, births, damage_key};
use super::sweep;
use crate::storage::{self, Batch, Engine, Error, KeyRange, Order};
use crate::types::{GroupId, LogKey};

/// What is read in one view and written in one batch, in bytes and records.
const CHUNK_BYTES: usize = 256 * 1024;
const CHUNK_RECORDS: usize = 1024;

/// What became of an engine's content.
#[derive(Debug, Default)]
pub struct Renewed {
    pub records: u64,
    /// Replicas whose copies can't be read.
    pub damaged: Vec<LogKey>,
}

/// Why the engine has to be made anew, if it has. One in which a write met something is read from end to end.
pub fn is_due(engine: &dyn Engine, is_suspect: bool) -> Result<Option<String>, StoreError> {
    if sweep::leaves(engine)? {
        return Ok(Some("it holds damaged records that nobody needs".into()));
    }
    if !is_suspect {
        return Ok(None);
    }
    match for_each_chunk(engine, (Bound::Unbounded, Bound::Unbounded), &mut |_| Ok(())) {
        Err(StoreError::Storage(error @ Error::Corrupt { .. })) => Ok(Some(error.to_string())),
        read => read.map(|()| None),
    }
}

/// Copies what can be read of `old` into `new`, an empty one, and makes that durable. What belongs to no replica is
/// left out.
///
/// # Errors
/// [`Error::Corrupt`] if it can't be told which replicas there are or how far they had come, or if group 0 can't be
/// read: then this is not the way out.
pub fn renew(old: &dyn Engine, new: &dyn Engine) -> Result<Renewed, StoreError> {
    let mut renewed = Renewed::default();
    let others = [
        (Bound::Unbounded, Bound::Excluded(Bytes::from_static(&[DATA]))),
        (Bound::Included(Bytes::from_static(&[DATA + 1])), Bound::Unbounded),
    ];
    for range in others {
        renewed.records += copy(old, new, range)?;
    }
    let marked = |key: &LogKey| new.get(&damage_key(*key));
    let mut spaces: BTreeMap<LogKey, SpaceId> = BTreeMap::new();
    for (key, birth) in births(new)? {
        // A marked copy is not used any more.
        if marked(&key)?.is_none() {
            spaces.insert(key, birth.space);
        }
    }
    for (key, space) in spaces {
        match copy(old, new, whole(space)) {
            Ok(records) => renewed.records += records,
            Err(StoreError::Storage(error @ Error::Corrupt { .. })) if key.group != GroupId::META => {
                new.delete_range(whole(space))?;
                let mut batch = Batch::default();
                batch.put(damage_key(key), error.to_string());
                new.apply(batch)?;
                renewed.damaged.push(key);
            }
            Err(error) => return Err(error),
        }
    }
    new.checkpoint()?;
    Ok(renewed)
}

fn copy(old: &dyn Engine, new: &dyn Engine, range: KeyRange) -> Result<u64, StoreError> {
    let mut records = 0;
    for_each_chunk(old, range, &mut |pairs| {
        let mut batch = Batch::default();
        for (key, value) in pairs {
            // What is left behind is damaged no more.
            if !sweep::is_note(&key) {
                batch.put(key, value);
                records += 1;
            }
        }
        Ok(new.apply(batch)?)
    })?;
    Ok(records)
}

/// In many short views: nobody else writes.
fn for_each_chunk(
    engine: &dyn Engine,
    (mut low, high): KeyRange,
    each: &mut dyn FnMut(Vec<storage::Pair>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    loop {
        let view = engine.view()?;
        let mut pairs = Vec::new();
        let mut bytes = 0;
        for pair in view.scan((low.clone(), high.clone()), Order::Ascending).take(CHUNK_RECORDS) {
            let (key, value) = pair?;
            bytes += key.len() + value.len();
            pairs.push((key, value));
            if bytes >= CHUNK_BYTES {
                break;
            }
        }
        drop(view);
        match pairs.last() {
            Some((key, _)) => low = Bound::Excluded(key.clone()),
            None => return Ok(()),
        }
        each(pairs)?;
    }
}

#[cfg(test)]
mod tests;
