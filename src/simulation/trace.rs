//! What happened, in order: hashed as a whole, and its end kept to be shown.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use crate::raft::{Class, Route};
use crate::types::{LogKey, NodeId};

/// Events kept to be shown with a violation.
const SHOWN: usize = 400;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// A task got its turn.
    Polled(u64),
    Sent(Route, Class, u64),
    Delivered(Route, Class, u64),
    Answered(Route, Class, Result<u64, String>),
    /// Operations of a disk became durable.
    Synced(NodeId, usize),
    Opened(LogKey),
    Applied(LogKey, u64, u64),
    /// A snapshot.
    Installed(LogKey),
    Leads(LogKey, u64),
    Called(u32, String),
    Heard(u32, String),
    /// A fault, a change of members, or what else is told in words.
    Note(String),
}

/// The events so far.
#[derive(Debug, Default)]
pub(super) struct Trace {
    count: Cell<u64>,
    hash: Cell<u64>,
    last: RefCell<VecDeque<(u64, Event)>>,
    /// Show every event at once.
    loud: bool,
}

impl Trace {
    pub(super) fn new(loud: bool) -> Trace {
        Trace { loud, ..Trace::default() }
    }

    pub(super) fn note(&self, now_ms: u64, event: Event) {
        let mut hasher = Fnv(self.hash.get());
        (now_ms, &event).hash(&mut hasher);
        self.hash.set(hasher.finish());
        self.count.set(self.count.get() + 1);
        if matches!(event, Event::Polled(_)) {
            return;
        }
        if self.loud {
            println!("{:9.3} {event:?}", now_ms as f64 / 1e3);
        }
        let mut last = self.last.borrow_mut();
        if last.len() == SHOWN {
            last.pop_front();
        }
        last.push_back((now_ms, event));
    }

    /// Counts up with each event: a clock finer than the simulated one.
    pub(super) fn count(&self) -> u64 {
        self.count.get()
    }

    /// Of everything that happened.
    pub(super) fn hash(&self) -> u64 {
        self.hash.get()
    }

    pub(super) fn last(&self) -> String {
        let lines = self.last.borrow();
        lines.iter().map(|(ms, event)| format!("{:9.3} {event:?}\n", *ms as f64 / 1e3)).collect()
    }
}

/// FNV-1a.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xCBF2_9CE4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(29);
    }
}

pub(super) fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = Fnv::default();
    hasher.write(bytes);
    hasher.finish()
}
