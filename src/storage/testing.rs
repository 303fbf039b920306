//! Engines for tests.

use std::ops::{Bound, RangeBounds as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Engine, Error, KeyRange, Kind, Order, Pair, Result, Sizes, View, Write};

/// An engine behind a cache of records.
pub fn cached(engine: impl Engine, cache_bytes: u64) -> Arc<dyn Engine> {
    Arc::new(super::cached::Cached::new(engine, cache_bytes))
}

/// Two engines that must agree: every call goes to both, and a difference in what they answer panics.
/// Errors are passed on without comparing, the first engine's first.
///
/// Reads compare the engines at one moment only if nobody writes meanwhile: for tests with one thread.
#[derive(Debug)]
pub struct Mirror {
    first: Arc<dyn Engine>,
    second: Arc<dyn Engine>,
}

impl Mirror {
    pub fn new(first: Arc<dyn Engine>, second: Arc<dyn Engine>) -> Mirror {
        Mirror { first, second }
    }
}

impl Engine for Mirror {
    /// The first engine's.
    fn kind(&self) -> Kind {
        self.first.kind()
    }

    fn recovers_prefix(&self) -> bool {
        self.first.recovers_prefix() && self.second.recovers_prefix()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let (first, second) = (self.first.get(key)?, self.second.get(key)?);
        assert_eq!(first, second, "get {key:?}: {} and {}", self.first.kind(), self.second.kind());
        Ok(first)
    }

    fn write(&self, writes: &[Write]) -> Result<()> {
        self.first.write(writes)?;
        self.second.write(writes)
    }

    fn view(&self) -> Result<Box<dyn View>> {
        Ok(Box::new(MirrorView { first: self.first.view()?, second: self.second.view()? }))
    }

    fn view_of(&self, prefix: Bytes) -> Result<Box<dyn View>> {
        let (first, second) = (self.first.view_of(prefix.clone())?, self.second.view_of(prefix)?);
        Ok(Box::new(MirrorView { first, second }))
    }

    fn delete_range(&self, range: KeyRange) -> Result<()> {
        self.first.delete_range(range.clone())?;
        self.second.delete_range(range)
    }

    fn checkpoint(&self) -> Result<()> {
        self.first.checkpoint()?;
        self.second.checkpoint()
    }

    /// The sum.
    fn sizes(&self) -> Result<Sizes> {
        let (first, second) = (self.first.sizes()?, self.second.sizes()?);
        Ok(Sizes {
            disk_bytes: first.disk_bytes + second.disk_bytes,
            memory_bytes: first.memory_bytes + second.memory_bytes,
        })
    }

    fn close(&self) -> Result<()> {
        self.first.close()?;
        self.second.close()
    }
}

struct MirrorView {
    first: Box<dyn View>,
    second: Box<dyn View>,
}

impl View for MirrorView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let (first, second) = (self.first.get(key)?, self.second.get(key)?);
        assert_eq!(first, second, "get {key:?} from a view");
        Ok(first)
    }

    fn scan(&self, range: KeyRange, order: Order) -> Box<dyn Iterator<Item = Result<Pair>> + Send + '_> {
        let mut first = self.first.scan(range.clone(), order);
        let mut second = self.second.scan(range, order);
        Box::new(std::iter::from_fn(move || match (first.next(), second.next()) {
            (Some(Err(error)), _) | (_, Some(Err(error))) => Some(Err(error)),
            (first, second) => {
                let (first, second) = (first.transpose().ok()?, second.transpose().ok()?);
                assert_eq!(first, second, "scan of a view");
                first.map(Ok)
            }
        }))
    }
}

/// An engine with a damaged page: what is read between two keys fails.
#[derive(Debug)]
pub struct Damaged {
    inner: Arc<dyn Engine>,
    range: KeyRange,
}

impl Damaged {
    pub fn new(inner: Arc<dyn Engine>, from: Bound<Bytes>, to: Bound<Bytes>) -> Damaged {
        Damaged { inner, range: (from, to) }
    }
}

fn checked(kind: Kind, range: &KeyRange, key: &Bytes) -> Result<()> {
    match range.contains(key) {
        true => Err(Error::Corrupt { engine: kind, message: "scanning: a test says so".into() }),
        false => Ok(()),
    }
}

impl Engine for Damaged {
    fn kind(&self) -> Kind {
        self.inner.kind()
    }

    fn recovers_prefix(&self) -> bool {
        self.inner.recovers_prefix()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        checked(self.kind(), &self.range, &Bytes::copy_from_slice(key))?;
        self.inner.get(key)
    }

    fn write(&self, writes: &[Write]) -> Result<()> {
        self.inner.write(writes)
    }

    fn view(&self) -> Result<Box<dyn View>> {
        let (kind, range) = (self.kind(), self.range.clone());
        Ok(Box::new(DamagedView { inner: self.inner.view()?, kind, range }))
    }

    fn delete_range(&self, range: KeyRange) -> Result<()> {
        super::delete_by_batches(self, range)
    }

    fn checkpoint(&self) -> Result<()> {
        self.inner.checkpoint()
    }

    fn sizes(&self) -> Result<Sizes> {
        self.inner.sizes()
    }

    fn close(&self) -> Result<()> {
        self.inner.close()
    }
}

struct DamagedView {
    inner: Box<dyn View>,
    kind: Kind,
    range: KeyRange,
}

impl View for DamagedView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        checked(self.kind, &self.range, &Bytes::copy_from_slice(key))?;
        self.inner.get(key)
    }

    fn scan(&self, range: KeyRange, order: Order) -> Box<dyn Iterator<Item = Result<Pair>> + Send + '_> {
        let (kind, damaged) = (self.kind, self.range.clone());
        let checked = move |pair: Pair| checked(kind, &damaged, &pair.0).map(|()| pair);
        Box::new(self.inner.scan(range, order).map(move |pair| pair.and_then(&checked)))
    }
}

/// An engine without records, whose reads take this long.
#[derive(Debug)]
pub struct Slow(pub Duration);

impl Engine for Slow {
    fn kind(&self) -> Kind {
        Kind::Memory
    }

    fn recovers_prefix(&self) -> bool {
        true
    }

    fn get(&self, _key: &[u8]) -> Result<Option<Bytes>> {
        std::thread::sleep(self.0);
        Ok(None)
    }

    fn write(&self, _writes: &[Write]) -> Result<()> {
        Ok(())
    }

    fn view(&self) -> Result<Box<dyn View>> {
        Err(super::closed(Kind::Memory))
    }

    fn delete_range(&self, _range: KeyRange) -> Result<()> {
        Ok(())
    }

    fn checkpoint(&self) -> Result<()> {
        Ok(())
    }

    fn sizes(&self) -> Result<Sizes> {
        Ok(Sizes::default())
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}
