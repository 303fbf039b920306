//! For the tests of machines: commands applied to a space, without a log.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::machine::{Machine, Txn};
use super::space::{Space, SpaceId};
use crate::storage::{self, Batch, Engine, Kind, Order};

/// A batch that is thrown away.
pub fn txn(space: &Space) -> Txn<'_> {
    Txn::new(space)
}

/// A space of its own to try a machine on.
#[derive(Debug)]
pub struct Bench {
    engine: Arc<dyn Engine>,
    space: Space,
    _dir: tempfile::TempDir,
}

impl Bench {
    pub fn new(kind: Kind) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let engine = storage::open(kind, &dir.path().join("engine"), &storage::Options::default()).unwrap();
        let space = Space::new(engine.clone(), SpaceId(0));
        Bench { engine, space, _dir: dir }
    }

    /// A space that holds `content` already.
    pub fn with(kind: Kind, content: &BTreeMap<Bytes, Bytes>) -> Bench {
        let bench = Bench::new(kind);
        let mut batch = Batch::default();
        for (key, value) in content {
            batch.put(bench.space.key(key), value.clone());
        }
        bench.engine.apply(batch).unwrap();
        bench
    }

    pub fn space(&self) -> Space {
        self.space.clone()
    }

    pub fn load(&self, machine: &mut impl Machine, redo: bool) {
        machine.load(&self.space, redo).unwrap();
    }

    /// Applies one command as a batch of its own.
    pub fn apply(&mut self, machine: &mut impl Machine, index: u64, command: Bytes) -> Bytes {
        let mut txn = Txn::new(&self.space);
        let answer = machine.apply(index, command, &mut txn).unwrap();
        machine.finish(&mut txn).unwrap();
        self.engine.apply(txn.into_batch()).unwrap();
        machine.published(index);
        answer
    }

    /// Everything in the space.
    pub fn raw(&self) -> BTreeMap<Bytes, Bytes> {
        let view = self.space.view().unwrap();
        view.scan((Bound::Unbounded, Bound::Unbounded), Order::Ascending).map(Result::unwrap).collect()
    }
}
