//! Keeps the payloads in memory bounded: the oldest durable ones go first, whichever log they are of.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::log::{Cell, Place, State};

/// Durable entries `first..=last` of a log, whose payloads may be in memory.
#[derive(Debug)]
struct Span {
    cell: Arc<Cell>,
    first: u64,
    last: u64,
}

/// The order in which payloads leave memory. What purges and truncations take out of memory stays
/// listed until the list is cleaned, so it is never longer than twice what is there, and some.
#[derive(Debug)]
pub(super) struct Cache {
    limit: usize,
    bytes: Arc<AtomicUsize>,
    spans: VecDeque<Span>,
    clean_at: usize,
}

/// A list shorter than this is not worth cleaning.
const CLEAN_MIN: usize = 4096;

impl Cache {
    pub(super) fn new(limit: usize) -> Cache {
        Cache { limit, bytes: Arc::default(), spans: VecDeque::new(), clean_at: CLEAN_MIN }
    }

    /// Payload in memory, durable or not: everybody who adds or removes some counts it here.
    pub(super) fn bytes(&self) -> Arc<AtomicUsize> {
        self.bytes.clone()
    }

    pub(super) fn used(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Entries `first..=last` became durable.
    pub(super) fn push(&mut self, cell: &Arc<Cell>, first: u64, last: u64) {
        match self.spans.back_mut() {
            Some(span)
                if Arc::ptr_eq(&span.cell, cell) && span.last + 1 == first && last - span.first < 64 =>
            {
                span.last = last;
            }
            _ => self.spans.push_back(Span { cell: cell.clone(), first, last }),
        }
        if self.spans.len() >= self.clean_at {
            self.spans.retain(|span| {
                let state = span.cell.lock();
                (span.first..=span.last).any(|index| is_evictable(&state, index))
            });
            self.clean_at = CLEAN_MIN.max(2 * self.spans.len());
        }
    }

    /// Evicts until the limit holds, or nothing durable is left in memory.
    pub(super) fn evict(&mut self) {
        while self.used() > self.limit
            && let Some(span) = self.spans.pop_front()
        {
            let mut state = span.cell.lock();
            for index in span.first..=span.last {
                if is_evictable(&state, index)
                    && let Some(payload) = state.slot_mut(index).and_then(|slot| slot.payload.take())
                {
                    self.bytes.fetch_sub(payload.len(), Ordering::Relaxed);
                }
            }
        }
    }
}

fn is_evictable(state: &State, index: u64) -> bool {
    state.slot(index).is_some_and(|slot| {
        matches!(slot.place, Place::At { .. })
            && slot.payload.as_ref().is_some_and(|payload| !payload.is_empty())
    })
}
