//! Changes records on the disk of a node that does not run, so that every checksum still holds.

#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use rushkv::storage::{self, Batch, DataDir, Engine, Kind, Order};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// What is changed with the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forge {
    /// Nothing: the replica's own sum speaks against it.
    Record,
    /// The sum, too: as if the replica had applied something else.
    RecordAndHash,
}

/// Before the value: kind, version, create and mod revision, expiry, checksum (`docs/formats/engine.md`).
const HEADER: usize = 33;

struct Found {
    engine: Arc<dyn Engine>,
    _dir: DataDir,
    /// Of the record, in the engine.
    key: Bytes,
    stored: Bytes,
}

fn find(data_dir: &Path, engine: &str, key: &str) -> Found {
    let kind = match engine {
        "sled" => Kind::Sled,
        _ => Kind::Fjall,
    };
    let dir = DataDir::open(data_dir, kind).unwrap();
    let engine = storage::open(kind, &dir.engine_dir(), &storage::Options::default()).unwrap();
    let end = [b"r", key.as_bytes()].concat();
    let all = (Bound::Unbounded, Bound::Unbounded);
    let found: Vec<(Bytes, Bytes)> = (engine.view().unwrap().scan(all, Order::Ascending))
        .map(Result::unwrap)
        // Behind the number of its space, which is of several lengths.
        .filter(|(full, _)| full.first() == Some(&b'd') && (2..=6).any(|at| full.get(at..) == Some(&end[..])))
        .collect();
    let [(key, stored)] = &found[..] else {
        panic!("{} records of {key} in {}", found.len(), data_dir.display())
    };
    Found { key: key.clone(), stored: stored.clone(), engine, _dir: dir }
}

/// The value as it is on the disk.
pub fn value(data_dir: &Path, engine: &str, key: &str) -> String {
    let found = find(data_dir, engine, key);
    found.engine.close().unwrap();
    String::from_utf8(found.stored[HEADER + 4..].to_vec()).unwrap()
}

/// Gives the record of `key` another value.
pub fn tamper(data_dir: &Path, engine: &str, key: &str, value: &str, forge: Forge) {
    let Found { engine, key: full, stored, _dir } = find(data_dir, engine, key);
    let mut forged = BytesMut::from(&stored[..HEADER]);
    let sum = crc32c::crc32c_append(crc32c::crc32c(key.as_bytes()), &forged);
    forged.put_u32_le(crc32c::crc32c_append(sum, value.as_bytes()));
    forged.put_slice(value.as_bytes());
    let forged = forged.freeze();
    let mut batch = Batch::default();
    if forge == Forge::RecordAndHash {
        let hash = |stored: &[u8]| xxh3_128_with_seed(stored, xxh3_64(key.as_bytes()));
        let space = full.len() - 1 - key.len();
        let totals_key = [&full[..space], b"t"].concat();
        let mut totals = engine.get(&totals_key).unwrap().unwrap().to_vec();
        let sum = u128::from_le_bytes(totals[24..40].try_into().unwrap());
        let sum = sum.wrapping_sub(hash(&stored)).wrapping_add(hash(&forged));
        totals[24..40].copy_from_slice(&sum.to_le_bytes());
        let bytes = u64::from_le_bytes(totals[8..16].try_into().unwrap());
        let bytes = bytes + value.len() as u64 - (stored.len() - HEADER - 4) as u64;
        totals[8..16].copy_from_slice(&bytes.to_le_bytes());
        batch.put(totals_key, totals);
    }
    batch.put(full, forged);
    engine.apply(batch).unwrap();
    engine.checkpoint().unwrap();
    engine.close().unwrap();
}
