//! An engine that keeps everything in memory, for tests: the shape that the others are held to.
//!
//! A write copies the map if a view is open, so views are cheap to reason about and dear to use.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;

use super::{
    Engine, KeyRange, Kind, Order, Pair, Result, Sizes, View, Write, check_keys, closed, delete_by_batches,
    is_empty_range,
};

type Map = BTreeMap<Bytes, Bytes>;

/// The map, or `None` once closed.
#[derive(Debug)]
pub(super) struct Memory(Arc<RwLock<Option<Arc<Map>>>>);

impl Default for Memory {
    fn default() -> Memory {
        Memory(Arc::new(RwLock::new(Some(Arc::default()))))
    }
}

impl Memory {
    fn map(&self) -> Result<Arc<Map>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(|| closed(Kind::Memory))
    }
}

impl Engine for Memory {
    fn kind(&self) -> Kind {
        Kind::Memory
    }

    fn recovers_prefix(&self) -> bool {
        true
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.map()?.get(key).cloned())
    }

    fn write(&self, writes: &[Write]) -> Result<()> {
        check_keys(writes, Kind::Memory)?;
        let mut guard = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let map = Arc::make_mut(guard.as_mut().ok_or_else(|| closed(Kind::Memory))?);
        for write in writes {
            match write {
                Write::Put(key, value) => map.insert(key.clone(), value.clone()),
                Write::Delete(key) => map.remove(key),
            };
        }
        Ok(())
    }

    fn view(&self) -> Result<Box<dyn View>> {
        Ok(Box::new(MemoryView { map: self.map()?, engine: Memory(self.0.clone()) }))
    }

    fn delete_range(&self, range: KeyRange) -> Result<()> {
        delete_by_batches(self, range)
    }

    fn checkpoint(&self) -> Result<()> {
        self.map().map(drop)
    }

    fn sizes(&self) -> Result<Sizes> {
        let bytes: usize = self.map()?.iter().map(|(key, value)| key.len() + value.len()).sum();
        Ok(Sizes { disk_bytes: 0, memory_bytes: bytes as u64 })
    }

    fn close(&self) -> Result<()> {
        let mut guard = self.0.write().unwrap_or_else(PoisonError::into_inner);
        guard.take().map(drop).ok_or_else(|| closed(Kind::Memory))
    }
}

struct MemoryView {
    map: Arc<Map>,
    /// Asked only whether it is still open.
    engine: Memory,
}

impl View for MemoryView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.engine.map()?;
        Ok(self.map.get(key).cloned())
    }

    fn scan(&self, range: KeyRange, order: Order) -> Box<dyn Iterator<Item = Result<Pair>> + Send + '_> {
        if let Err(error) = self.engine.map() {
            return Box::new(std::iter::once(Err(error)));
        }
        if is_empty_range(&range) {
            return Box::new(std::iter::empty());
        }
        let pairs = self.map.range(range).map(|(key, value)| Ok((key.clone(), value.clone())));
        match order {
            Order::Ascending => Box::new(pairs),
            Order::Descending => Box::new(pairs.rev()),
        }
    }
}
