//! What a partition's records come to: how many, how large, and a hash of them all.
//!
//! The hash is one of a set: a sum, to which each record adds and from which it is taken again, so that a
//! write costs the hashes of two records however many there are. Replicas that applied the same commands
//! have the same one, whatever engine they are on. It finds what went wrong, not what somebody forged.

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use super::codec::{Stored, decode_stored};
use super::machine::{RECORD, ReadError};
use crate::codec::{Malformed, Reader};
use crate::raft::SpaceView;
use crate::storage::{self, Order};

/// The live records of a partition; tombstones don't count, since not every engine needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    pub keys: u64,
    /// Of keys and values, without what storing them costs.
    pub bytes: u64,
    /// Sum, modulo 2^128, of every record's hash: XXH3-128 of the record as it is stored, seeded with
    /// XXH3-64 of its key.
    pub hash: u128,
}

fn hash(key: &[u8], stored: &[u8]) -> u128 {
    xxh3_128_with_seed(stored, xxh3_64(key))
}

impl Summary {
    /// `stored` as the engine holds it.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8], stored: &[u8]) {
        self.keys += 1;
        self.bytes += (key.len() + value.len()) as u64;
        self.hash = self.hash.wrapping_add(hash(key, stored));
    }

    /// Takes away what was added. Wrong sums of a damaged copy are for a comparison to find, not to end
    /// the process.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8], stored: &[u8]) {
        self.keys = self.keys.wrapping_sub(1);
        self.bytes = self.bytes.wrapping_sub((key.len() + value.len()) as u64);
        self.hash = self.hash.wrapping_sub(hash(key, stored));
    }

    /// What is wrong with a copy that says this, and whose records come to `counted`.
    pub(super) fn unlike(&self, counted: &Summary) -> Malformed {
        let told = |summary: &Summary| {
            format!("{} keys, {} bytes, hash {:032x}", summary.keys, summary.bytes, summary.hash)
        };
        let problem = format!("they come to {}, and should to {}", told(counted), told(self));
        Malformed::new("the records", problem)
    }

    pub(super) fn encode(&self, tombstones: u64) -> Bytes {
        let mut out = BytesMut::with_capacity(40);
        out.put_u64_le(self.keys);
        out.put_u64_le(self.bytes);
        out.put_u64_le(tombstones);
        out.put_u128_le(self.hash);
        out.freeze()
    }

    /// The summary, and how many tombstones there are beside it.
    pub(super) fn decode(bytes: Bytes) -> Result<(Summary, u64), Malformed> {
        let mut input = Reader::new("totals", bytes);
        let (keys, bytes, tombstones) = (input.u64()?, input.u64()?, input.u64()?);
        let hash = input.u128()?;
        input.end()?;
        Ok((Summary { keys, bytes, hash }, tombstones))
    }
}

/// What a space really holds.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub summary: Summary,
    /// The newest revision, tombstones' included; 0 if there is none.
    pub newest: u64,
    /// Keys and revisions.
    pub tombstones: Vec<(Bytes, u64)>,
}

/// Reads every record of `view`. `pace` is called with the bytes of each, and may take its time; `None` if
/// it said false, to stop.
pub(super) fn count(
    view: &SpaceView,
    mut pace: impl FnMut(usize) -> bool,
) -> Result<Option<Counted>, ReadError> {
    let mut counted = Counted::default();
    for pair in view.scan(storage::prefix_range(&[RECORD]), Order::Ascending) {
        let (key, stored) = pair?;
        if !pace(key.len() + stored.len()) {
            return Ok(None);
        }
        let key = key.slice(1..);
        let decoded = decode_stored(&key, &stored)?;
        counted.newest = counted.newest.max(decoded.mod_revision());
        match decoded {
            Stored::Live(record) => counted.summary.add(&key, &record.value, &stored),
            Stored::Tombstone { mod_revision } => counted.tombstones.push((key, mod_revision)),
        }
    }
    Ok(Some(counted))
}
