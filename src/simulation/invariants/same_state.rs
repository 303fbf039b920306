//! Replicas that have applied the same have the same records.

use std::collections::HashMap;
use std::ops::Bound;

use crate::kv;
use crate::raft::Space;
use crate::simulation::trace::hash_of;
use crate::storage::Order;
use crate::types::{GroupId, LogKey, ReplicaId};

/// The hash of each group's records after each index where a replica looked.
#[derive(Debug, Default)]
pub(in crate::simulation) struct SameState {
    seen: HashMap<(GroupId, u64), (u64, ReplicaId)>,
    pub(in crate::simulation) compared: u64,
}

impl SameState {
    pub(in crate::simulation) fn published(&mut self, key: LogKey, index: u64, space: &Space) {
        let hash = set_hash(key.group, space);
        let (first, by) = *self.seen.entry((key.group, index)).or_insert((hash, key.replica));
        self.compared += u64::from(by != key.replica);
        assert!(first == hash, "same state: {key} and {by} differ after entry {index}");
    }
}

/// Does not depend on tombstones, which one replica may have dropped before another.
fn set_hash(group: GroupId, space: &Space) -> u64 {
    let view = space.view().unwrap();
    let all = || (Bound::Unbounded, Bound::Unbounded);
    if group == GroupId::META {
        let records = view.scan(all(), Order::Ascending).map(|pair| pair.unwrap());
        return records.fold(0, |sum, (key, value)| sum ^ hash_of(&key) ^ hash_of(&value).rotate_left(1));
    }
    let records = kv::scan(&view, all(), Order::Ascending);
    records.fold(0, |sum, pair| {
        let (key, record) = pair.unwrap();
        let numbers = [record.version, record.create_revision, record.mod_revision];
        let numbers = numbers.into_iter().flat_map(u64::to_le_bytes);
        let bytes: Vec<u8> = key.iter().chain(&record.value).copied().chain(numbers).collect();
        sum ^ hash_of(&bytes)
    })
}
