//! Views of sled, and scans in them.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use sled::IVec;

use super::super::preimages::Opened;
use super::super::{KeyRange, Order, Pair, Result, View, is_empty_range};
use super::{Shared, convert, read_again, to_bytes};

/// A scan reads this many pairs under the lock at first, for the many scans that want only a few ...
const CHUNK_PAIRS_FIRST: usize = 16;
/// ... then twice as many each time, up to this many (some 100 us from the cache) ...
const CHUNK_PAIRS_MAX: usize = 256;
/// ... or until they hold this many bytes.
const CHUNK_BYTES_MAX: usize = 256 * 1024;

pub(super) struct SledView {
    pub(super) shared: Arc<Shared>,
    pub(super) opened: Opened,
}

impl Drop for SledView {
    fn drop(&mut self) {
        self.shared.write().preimages.close_view(self.opened);
    }
}

impl View for SledView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let state = self.shared.read();
        state.db()?;
        state.check(self.opened)?;
        match state.preimages.get(key, self.opened) {
            Some(value) => Ok(value.clone()),
            None => state.get(key),
        }
    }

    fn scan(&self, range: KeyRange, order: Order) -> Box<dyn Iterator<Item = Result<Pair>> + Send + '_> {
        Box::new(Scan {
            view: self,
            order,
            rest: Some(range),
            chunk: VecDeque::new(),
            chunk_pairs: CHUNK_PAIRS_FIRST,
        })
    }
}

/// Walks a range chunk by chunk; between two chunks it holds no lock and no position in the tree.
struct Scan<'a> {
    view: &'a SledView,
    order: Order,
    /// What is not in `chunk` yet; `None`: nothing.
    rest: Option<KeyRange>,
    chunk: VecDeque<Pair>,
    chunk_pairs: usize,
}

impl Iterator for Scan<'_> {
    type Item = Result<Pair>;

    fn next(&mut self) -> Option<Result<Pair>> {
        while self.chunk.is_empty() {
            let range = self.rest.take()?;
            let filled = read_again(|| {
                self.chunk.clear();
                self.fill(range.clone())
            });
            if let Err(error) = filled {
                self.chunk.clear();
                return Some(Err(error));
            }
        }
        self.chunk.pop_front().map(Ok)
    }
}

impl Scan<'_> {
    /// Merges what the tree has with what it had, in the scan's order, up to a chunk's size.
    fn fill(&mut self, range: KeyRange) -> Result<()> {
        if is_empty_range(&range) {
            return Ok(());
        }
        let state = self.view.shared.read();
        let tree = state.db()?.range::<Bytes, _>(range.clone()).map(|pair| {
            pair.map(|(key, value)| (to_bytes(&key), value))
                .map_err(|error| convert(error, || "scanning".into()))
        });
        let past = state.preimages.range(range.clone(), self.view.opened);
        state.check(self.view.opened)?;
        let last = match self.order {
            Order::Ascending => self.merge(tree, past)?,
            Order::Descending => self.merge(tree.rev(), past.rev())?,
        };
        self.chunk_pairs = (self.chunk_pairs * 2).min(CHUNK_PAIRS_MAX);
        self.rest = last.map(|last| match self.order {
            Order::Ascending => (Bound::Excluded(last), range.1),
            Order::Descending => (range.0, Bound::Excluded(last)),
        });
        Ok(())
    }

    /// Returns the last key seen if there may be more.
    fn merge<'p>(
        &mut self,
        tree: impl Iterator<Item = Result<(Bytes, IVec)>>,
        past: impl Iterator<Item = (&'p Bytes, &'p Option<Bytes>)>,
    ) -> Result<Option<Bytes>> {
        let (mut tree, mut past) = (tree.peekable(), past.peekable());
        let (mut keys, mut bytes) = (0, 0);
        loop {
            let from_past = match (tree.peek(), past.peek()) {
                (None, None) => return Ok(None),
                (None, Some(_)) => true,
                (Some(_), None) | (Some(Err(_)), _) => false,
                (Some(Ok((now, _))), Some((then, _))) => match self.order {
                    Order::Ascending => *then <= now,
                    Order::Descending => *then >= now,
                },
            };
            let (key, value) = if from_past {
                let Some((key, value)) = past.next() else { continue };
                // What the key has now came after this view.
                tree.next_if(|pair| pair.as_ref().is_ok_and(|(now, _)| now == key)).transpose()?;
                (key.clone(), value.clone())
            } else {
                let Some((key, value)) = tree.next().transpose()? else { continue };
                (key, Some(to_bytes(&value)))
            };
            keys += 1;
            bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
            // A key that this view must not see counts too: there may be many of them in a row.
            if let Some(value) = value {
                self.chunk.push_back((key.clone(), value));
            }
            if keys >= self.chunk_pairs || bytes >= CHUNK_BYTES_MAX {
                return Ok(Some(key));
            }
        }
    }
}
