//! Snapshots: a pinned view of a space together with the log id and membership it stands for. Nothing
//! is written to make one; its records are read while they are sent, and written into a new space
//! while they arrive.

use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use openraft::storage::{RaftSnapshotBuilder, Snapshot};

use super::space::{Space, SpaceView};
use super::state_machine::DamageMark;
use super::store::Store;
use super::types::{SnapshotMeta, TypeConfig};
use crate::storage::{self, Batch, Order, Pair};

pub(crate) type RaftSnapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// The records of a snapshot.
#[derive(Debug)]
pub enum SnapshotData {
    /// As this replica has them.
    Pinned(Pinned),
    /// As another replica sent them.
    Received(Received),
    /// There is none now: this replica applies its log again on a state that is ahead of it, so that its
    /// records are of no one moment (rule 3).
    Recovering,
}

/// A state to be read once from the first record to the last.
#[derive(Debug)]
pub struct Pinned {
    view: SpaceView,
    /// The last key read; `None` before the first.
    after: Option<Bytes>,
    damage: DamageMark,
}

impl Pinned {
    pub(crate) fn new(view: SpaceView, damage: DamageMark) -> Pinned {
        Pinned { view, after: None, damage }
    }

    /// The next records, about `bytes_max` of them and at least one; empty at the end. Blocks on the
    /// disk. If they can't be read, this replica's copy is marked as damaged.
    pub fn read(&mut self, bytes_max: usize) -> storage::Result<Vec<Pair>> {
        let start = match &self.after {
            Some(key) => Bound::Excluded(key.clone()),
            None => Bound::Unbounded,
        };
        let mut records = Vec::new();
        let mut bytes = 0;
        for pair in self.view.scan((start, Bound::Unbounded), Order::Ascending) {
            let (key, value) = pair.inspect_err(|error| self.damage.note(error))?;
            bytes += key.len() + value.len();
            records.push((key, value));
            if bytes >= bytes_max {
                break;
            }
        }
        if let Some((key, _)) = records.last() {
            self.after = Some(key.clone());
        }
        Ok(records)
    }
}

/// A space that is filled with what another replica sends. Dropped before it was installed, it is
/// deleted.
#[derive(Debug)]
pub struct Received {
    store: Arc<Store>,
    /// `None` once it was installed.
    space: Option<Space>,
}

impl Received {
    pub(crate) fn new(store: Arc<Store>) -> Received {
        let space = Space::new(store.engine().clone(), store.new_space());
        Received { store, space: Some(space) }
    }

    /// Adds records. Blocks on the disk.
    pub(crate) fn write(&self, records: Vec<Pair>) -> storage::Result<()> {
        let Some(space) = &self.space else {
            return Ok(());
        };
        let mut batch = Batch::default();
        for (key, value) in records {
            batch.put(space.key(&key), value);
        }
        self.store.engine().apply(batch)
    }

    pub(crate) fn space(&self) -> Option<Space> {
        self.space.clone()
    }

    /// The space, to be installed.
    pub(crate) fn take(mut self) -> Space {
        self.space.take().expect("it is taken once")
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(space) = self.space.take() {
            self.store.discard(space);
        }
    }
}

/// Hands out the snapshot that was pinned when openraft asked for a builder.
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    /// In a lock only because openraft wants builders to be `Sync`, which views are not. Empty if no
    /// view could be taken.
    pinned: Mutex<Option<RaftSnapshot>>,
}

impl SnapshotBuilder {
    pub(crate) fn new(meta: SnapshotMeta, snapshot: SnapshotData) -> SnapshotBuilder {
        SnapshotBuilder { pinned: Mutex::new(Some(Snapshot { meta, snapshot })) }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> std::io::Result<RaftSnapshot> {
        let pinned = self.pinned.get_mut().unwrap_or_else(PoisonError::into_inner);
        pinned.take().ok_or_else(|| std::io::Error::other("no view could be taken for a snapshot"))
    }
}
