//! An engine with damaged pages or blocks is made anew: what can be read of it is copied, and what can't be is left.
//!
//! Nothing that is damaged is ever served, and a replica whose copy is damaged gets another one from the others. But
//! the damage stays in the engine's files, and whatever the engine writes beside it, or merges, can end the process.
//! So a start makes the engine anew if a write met damage, or if damaged records that nobody needs are left there.
//! A copy that can't be read to its end is marked (rule 15), before the new engine takes the old one's place.

use std::ops::Bound;

use bytes::Bytes;

use super::codec::decode_stored_membership;
use super::space::{DATA, whole};
use super::store::{Birth, StoreError, births, damage_key, membership_key};
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
    match for_each_chunk(engine, (Bound::Unbounded, Bound::Unbounded), &mut |_| Ok(()))? {
        Err(error @ Error::Corrupt { .. }) => Ok(Some(error.to_string())),
        read => Ok(read.map(|()| None)?),
    }
}

/// Copies what can be read of `old` into `new`, an empty one, and makes that durable. What belongs to no replica is
/// left out. The inner error says why this is not the way out: it can't be told which replicas there are, or a
/// copy can't be read that could not be made anew from others.
///
/// # Errors
/// What `new` says.
pub fn renew(old: &dyn Engine, new: &dyn Engine) -> Result<Result<Renewed, String>, StoreError> {
    let mut renewed = Renewed::default();
    let others = [
        (Bound::Unbounded, Bound::Excluded(Bytes::from_static(&[DATA]))),
        (Bound::Included(Bytes::from_static(&[DATA + 1])), Bound::Unbounded),
    ];
    for range in others {
        match copy(old, new, range)? {
            Ok(records) => renewed.records += records,
            Err(error) => return Ok(Err(format!("what it knows of its replicas can't be read: {error}"))),
        }
    }
    for (key, birth) in births(new)? {
        if new.get(&damage_key(key))?.is_some() {
            // It is not used any more.
            continue;
        }
        match copy(old, new, whole(birth.space))? {
            Ok(records) => renewed.records += records,
            Err(error) if !can_be_rebuilt(new, key, &birth)? => {
                return Ok(Err(format!("{key} can't be read, and not be made anew: {error}")));
            }
            Err(error @ Error::Corrupt { .. }) => {
                new.delete_range(whole(birth.space))?;
                let mut batch = Batch::default();
                batch.put(damage_key(key), error.to_string());
                new.apply(batch)?;
                renewed.damaged.push(key);
            }
            Err(error) => return Ok(Err(error.to_string())),
        }
    }
    new.checkpoint()?;
    Ok(Ok(renewed))
}

/// Whether the others are a majority without this replica, as far as is known here. Of two, one that stops takes the
/// other with it; and nobody replaces a copy of group 0.
fn can_be_rebuilt(engine: &dyn Engine, key: LogKey, birth: &Birth) -> Result<bool, StoreError> {
    let membership = match engine.get(&membership_key(key))? {
        Some(bytes) => decode_stored_membership(bytes)?,
        None => birth.membership.clone(),
    };
    let voters = membership.membership().get_joint_config();
    Ok(key.group != GroupId::META && voters.iter().all(|voters| voters.len() >= 3))
}

/// The inner error is of reading.
fn copy(old: &dyn Engine, new: &dyn Engine, range: KeyRange) -> Result<storage::Result<u64>, StoreError> {
    let mut records = 0;
    let copied = for_each_chunk(old, range, &mut |pairs| {
        let mut batch = Batch::default();
        for (key, value) in pairs {
            // What is left behind is damaged no more.
            if !sweep::is_note(&key) {
                batch.put(key, value);
                records += 1;
            }
        }
        Ok(new.apply(batch)?)
    });
    Ok(copied?.map(|()| records))
}

/// In many short views: nobody else writes. The inner error is of reading.
fn for_each_chunk(
    engine: &dyn Engine,
    (mut low, high): KeyRange,
    each: &mut dyn FnMut(Vec<storage::Pair>) -> Result<(), StoreError>,
) -> Result<storage::Result<()>, StoreError> {
    loop {
        let pairs = match chunk(engine, (low, high.clone())) {
            Ok(pairs) => pairs,
            Err(error) => return Ok(Err(error)),
        };
        match pairs.last() {
            Some((key, _)) => low = Bound::Excluded(key.clone()),
            None => return Ok(Ok(())),
        }
        each(pairs)?;
    }
}

fn chunk(engine: &dyn Engine, range: KeyRange) -> storage::Result<Vec<storage::Pair>> {
    let view = engine.view()?;
    let mut pairs = Vec::new();
    let mut bytes = 0;
    for pair in view.scan(range, Order::Ascending).take(CHUNK_RECORDS) {
        let (key, value) = pair?;
        bytes += key.len() + value.len();
        pairs.push((key, value));
        if bytes >= CHUNK_BYTES {
            break;
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests;
