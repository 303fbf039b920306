//! When a partition was sealed, while its cluster of one gave itself up or tried to; and when it was halted,
//! because its replicas differed.
//!
//! Kept as ranges of the log and not as a yes or no, because of redo: over an engine that does not recover
//! a prefix the log is applied again on a state that may be ahead of it, and a write that was refused then
//! must be refused again.

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{Malformed, Reader};

/// Ranges kept: more are not made between two checkpoints, within which a redo stays.
const RANGES_MAX: usize = 64;

/// A range that has no end yet.
const OPEN: u64 = u64::MAX;

/// The ranges of the log in which no write takes effect, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seals {
    /// Index of a seal, and of the command that ended it.
    ranges: Vec<(u64, u64)>,
}

impl Seals {
    /// Whether a write at this index takes no effect.
    pub fn hold_at(&self, index: u64) -> bool {
        self.ranges.iter().any(|(from, until)| (*from..*until).contains(&index))
    }

    /// Whether the last range has no end.
    pub fn hold_from_now_on(&self) -> bool {
        self.hold_at(OPEN - 1)
    }

    /// Seals from `index` on.
    pub fn seal(&mut self, index: u64) {
        if self.hold_at(index) {
            return;
        }
        self.ranges.push((index, OPEN));
        self.ranges.sort_unstable();
        let excess = self.ranges.len().saturating_sub(RANGES_MAX);
        self.ranges.drain(..excess);
    }

    /// Ends at `index` what seals it.
    pub fn unseal(&mut self, index: u64) {
        for (from, until) in &mut self.ranges {
            if (*from..*until).contains(&index) {
                *until = index;
            }
        }
    }

    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.ranges.len() * 16);
        for (from, until) in &self.ranges {
            out.put_u64_le(*from);
            out.put_u64_le(*until);
        }
        out.freeze()
    }

    pub fn decode(bytes: Bytes) -> Result<Seals, Malformed> {
        let mut input = Reader::new("seals", bytes);
        let mut seals = Seals::default();
        while input.remaining() > 0 {
            seals.ranges.push((input.u64()?, input.u64()?));
        }
        Ok(seals)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Entry {
        Write,
        Seal,
        Unseal,
    }

    fn apply(seals: &mut Seals, index: u64, entry: Entry) -> Option<bool> {
        match entry {
            Entry::Write => return Some(seals.hold_at(index)),
            Entry::Seal => seals.seal(index),
            Entry::Unseal => seals.unseal(index),
        }
        None
    }

    proptest! {
        /// The log is applied; then again from any checkpoint, over any later version of the ranges.
        #[test]
        fn a_redo_refuses_the_same_writes(
            entries in prop::collection::vec(
                prop_oneof![Just(Entry::Write), Just(Entry::Seal), Just(Entry::Unseal)], 1..60),
            checkpoint: prop::sample::Index, ahead: prop::sample::Index,
        ) {
            let mut seals = Seals::default();
            let mut versions = vec![seals.clone()];
            let mut refused = Vec::new();
            for (at, entry) in entries.iter().enumerate() {
                refused.push(apply(&mut seals, at as u64 + 1, *entry));
                prop_assert_eq!(Seals::decode(seals.encode()).unwrap(), seals.clone());
                versions.push(seals.clone());
            }
            let from = checkpoint.index(versions.len());
            let found = from + ahead.index(versions.len() - from);
            let mut seals = versions[found].clone();
            for (at, entry) in entries.iter().enumerate().skip(from) {
                prop_assert_eq!(apply(&mut seals, at as u64 + 1, *entry), refused[at]);
            }
        }
    }
}
