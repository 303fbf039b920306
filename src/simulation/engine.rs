//! An engine in memory that forgets in a crash what was not checkpointed: all from some batch on, or, as
//! sled may, this batch and not that one.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::dice::Dice;
use crate::storage::{Batch, Engine, KeyRange, Kind, Order, Pair, Result, Sizes, View, Write};

type Map = BTreeMap<Bytes, Bytes>;

#[derive(Debug, Default)]
struct State {
    now: Arc<Map>,
    checkpoint: Arc<Map>,
    /// Since the checkpoint.
    batches: Vec<Vec<Write>>,
}

/// One node's engine, from one start of the node to its crash. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct SimEngine {
    recovers_prefix: bool,
    state: Arc<Mutex<State>>,
}

fn apply(map: &mut Map, writes: &[Write]) {
    for write in writes {
        match write {
            Write::Put(key, value) => drop(map.insert(key.clone(), value.clone())),
            Write::Delete(key) => drop(map.remove(key)),
        }
    }
}

impl SimEngine {
    pub(super) fn new(recovers_prefix: bool) -> SimEngine {
        SimEngine { recovers_prefix, state: Arc::default() }
    }

    /// What a crash leaves.
    pub(super) fn crash(&self, dice: &Dice) -> SimEngine {
        let state = self.state.lock().unwrap();
        let mut left = Map::clone(&state.checkpoint);
        let prefix = dice.below(state.batches.len() as u64 + 1) as usize;
        let kept = *dice.pick(&[10, 50, 95]);
        for (at, batch) in state.batches.iter().enumerate() {
            let is_left = if self.recovers_prefix { at < prefix } else { dice.chance(kept) };
            if is_left {
                apply(&mut left, batch);
            }
        }
        let now = Arc::new(left);
        let state = State { checkpoint: now.clone(), now, batches: Vec::new() };
        SimEngine { recovers_prefix: self.recovers_prefix, state: Arc::new(Mutex::new(state)) }
    }

    fn map(&self) -> Arc<Map> {
        self.state.lock().unwrap().now.clone()
    }
}

impl Engine for SimEngine {
    fn kind(&self) -> Kind {
        Kind::Memory
    }

    fn recovers_prefix(&self) -> bool {
        self.recovers_prefix
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.state.lock().unwrap().now.get(key).cloned())
    }

    fn write(&self, writes: &[Write]) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        apply(Arc::make_mut(&mut state.now), writes);
        state.batches.push(writes.to_vec());
        Ok(())
    }

    fn view(&self) -> Result<Box<dyn View>> {
        Ok(Box::new(SimView(self.map())))
    }

    fn delete_range(&self, range: KeyRange) -> Result<()> {
        let mut batch = Batch::default();
        for (key, _) in self.map().range(range) {
            batch.delete(key.clone());
        }
        self.apply(batch)
    }

    fn checkpoint(&self) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        state.checkpoint = state.now.clone();
        state.batches.clear();
        Ok(())
    }

    fn sizes(&self) -> Result<Sizes> {
        Ok(Sizes::default())
    }

    fn close(&self) -> Result<()> {
        self.checkpoint()
    }
}

struct SimView(Arc<Map>);

impl View for SimView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, range: KeyRange, order: Order) -> Box<dyn Iterator<Item = Result<Pair>> + Send + '_> {
        let is_empty = match (&range.0, &range.1) {
            (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => {
                low > high || (low == high && range.0 != range.1)
            }
            _ => false,
        };
        if is_empty {
            return Box::new(std::iter::empty());
        }
        let pairs = self.0.range(range).map(|(key, value)| Ok((key.clone(), value.clone())));
        match order {
            Order::Ascending => Box::new(pairs),
            Order::Descending => Box::new(pairs.rev()),
        }
    }
}
