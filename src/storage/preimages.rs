//! What lets an engine without snapshots answer from the past: the values that keys had before they
//! were overwritten, kept while somebody may still ask, and within a bound.
//!
//! Applies are numbered 1, 2, ... A view taken after apply `n` has the mark `n` and must not see the
//! applies above it. Before apply `m` changes a key, the key's value is kept here under `m`. So for a
//! view with mark `n` a key has the value kept under the smallest number above `n`, or, if there is
//! none, the value that the engine has now. A view is of the keys with a prefix: what happens to others
//! costs it nothing.
//!
//! Not synchronised: the engine's lock makes changing the engine and changing this one step.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::KeyRange;

/// Rough cost of one kept value beside its key's and its own bytes: tree nodes and headers.
const OVERHEAD_BYTES: usize = 160;

/// A key's value before one apply; `None`: it was not there.
type Preimage = (u64, Option<Bytes>);

/// An open view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Opened {
    /// The apply that it was taken after.
    mark: u64,
    /// Tells views of the same moment apart.
    number: u64,
}

/// # Invariants
/// - The marks in `views` are at most `applied`.
/// - A key's preimages are in ascending order of their numbers.
/// - `log` names every kept preimage, in ascending order of numbers; `bytes` is the sum of its costs.
/// - The oldest kept preimage is one that an open view can ask for; the others are, when there is too much.
#[derive(Debug)]
pub(super) struct PreImages {
    bytes_max: usize,
    /// Number of the last apply.
    applied: u64,
    /// The open views that have not expired, each with the prefix of its keys.
    views: BTreeMap<Opened, Bytes>,
    /// How many views were ever opened.
    opened: u64,
    keys: BTreeMap<Bytes, Vec<Preimage>>,
    log: VecDeque<(u64, Bytes, usize)>,
    bytes: usize,
}

impl PreImages {
    /// Keeps about `bytes_max` at most; when there is more, the oldest views expire.
    pub(super) fn new(bytes_max: usize) -> PreImages {
        PreImages {
            bytes_max,
            applied: 0,
            views: BTreeMap::new(),
            opened: 0,
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Opens a view of the present of the keys with `prefix`.
    pub(super) fn open_view(&mut self, prefix: Bytes) -> Opened {
        self.opened += 1;
        let view = Opened { mark: self.applied, number: self.opened };
        self.views.insert(view, prefix);
        view
    }

    pub(super) fn close_view(&mut self, view: Opened) {
        if self.views.remove(&view).is_some() {
            self.drop_unneeded();
        }
    }

    pub(super) fn is_expired(&self, view: Opened) -> bool {
        !self.views.contains_key(&view)
    }

    /// Whether the next apply must [`record`](Self::record) this key's value: some open view would see
    /// the change, and has no older value of the key to go by.
    pub(super) fn wants(&self, key: &[u8]) -> bool {
        let Some((newest, _)) = self.views.iter().rfind(|(_, prefix)| key.starts_with(prefix)) else {
            return false;
        };
        let last = self.keys.get(key).and_then(|preimages| preimages.last());
        last.is_none_or(|(number, _)| *number <= newest.mark)
    }

    /// Begins the next apply, with the values of the keys that it [`wants`](Self::wants) and that the
    /// apply will change; each key once.
    pub(super) fn record(&mut self, values: Vec<(Bytes, Option<Bytes>)>) {
        self.applied += 1;
        for (key, value) in values {
            let cost = 2 * key.len() + value.as_ref().map_or(0, Bytes::len) + OVERHEAD_BYTES;
            self.bytes += cost;
            self.log.push_back((self.applied, key.clone(), cost));
            self.keys.entry(key).or_default().push((self.applied, value));
        }
        // Who wanted them may be gone by now.
        self.drop_unneeded();
        while self.bytes > self.bytes_max {
            let before = self.bytes;
            self.drop_all_unneeded();
            // Else the next applies would look through all of it again.
            let is_enough = self.bytes <= self.bytes_max && before - self.bytes >= self.bytes_max / 8;
            if is_enough {
                break;
            }
            let Some((number, key, _)) = self.log.front() else { break };
            if let Some(view) = self.asks_for(*number, key) {
                self.views.remove(&view);
            }
            self.drop_unneeded();
        }
    }

    /// The value that `key` has for `view`, if it differs from the engine's; the inner `None`
    /// says that the key was not there.
    pub(super) fn get(&self, key: &[u8], view: Opened) -> Option<&Option<Bytes>> {
        self.keys.get(key).and_then(|preimages| after(preimages, view.mark))
    }

    /// As [`get`](Self::get), for every key of a range, which must not be empty.
    pub(super) fn range(
        &self,
        range: KeyRange,
        view: Opened,
    ) -> impl DoubleEndedIterator<Item = (&Bytes, &Option<Bytes>)> {
        self.keys.range(range).filter_map(move |(key, preimages)| Some((key, after(preimages, view.mark)?)))
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The oldest open view that can ask for a key's value before the apply `number`.
    fn asks_for(&self, number: u64, key: &Bytes) -> Option<Opened> {
        let older = self.views.iter().take_while(|(view, _)| view.mark < number);
        older.filter(|(_, prefix)| key.starts_with(prefix)).map(|(view, _)| *view).next()
    }

    /// Drops whatever no view can ask for.
    fn drop_all_unneeded(&mut self) {
        for (number, key, cost) in std::mem::take(&mut self.log) {
            if self.asks_for(number, &key).is_some() {
                self.log.push_back((number, key, cost));
                continue;
            }
            self.bytes -= cost;
            if let Some(preimages) = self.keys.get_mut(&key) {
                preimages.retain(|(kept, _)| *kept != number);
                if preimages.is_empty() {
                    self.keys.remove(&key);
                }
            }
        }
    }

    /// Drops the oldest, as far as no view can ask for it.
    fn drop_unneeded(&mut self) {
        while let Some((number, key, _)) = self.log.front()
            && self.asks_for(*number, key).is_none()
            && let Some((_, key, cost)) = self.log.pop_front()
        {
            self.bytes -= cost;
            if let Some(preimages) = self.keys.get_mut(&key) {
                // The log is in order, so the key's oldest preimage is the one meant.
                preimages.remove(0);
                if preimages.is_empty() {
                    self.keys.remove(&key);
                }
            }
        }
    }
}

fn after(preimages: &[Preimage], mark: u64) -> Option<&Option<Bytes>> {
    let first = preimages.partition_point(|(number, _)| *number <= mark);
    preimages.get(first).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &'static str) -> Option<Bytes> {
        Some(Bytes::from_static(text.as_bytes()))
    }

    fn overwrite(kept: &mut PreImages, key: &'static str, old: Option<Bytes>) {
        let values = if kept.wants(key.as_bytes()) { vec![(key.into(), old)] } else { Vec::new() };
        kept.record(values);
    }

    #[test]
    fn each_view_gets_the_value_of_its_time() {
        let mut kept = PreImages::new(1 << 20);
        let first = kept.open_view(Bytes::new());
        overwrite(&mut kept, "k", None);
        let second = kept.open_view(Bytes::new());
        overwrite(&mut kept, "k", value("1"));
        overwrite(&mut kept, "k", value("2"));
        let third = kept.open_view(Bytes::new());

        assert_eq!(kept.get(b"k", first), Some(&None));
        assert_eq!(kept.get(b"k", second), Some(&value("1")));
        assert_eq!(kept.get(b"k", third), None);
        assert_eq!(kept.log.len(), 2, "the third overwrite has no view that needs it");
    }

    #[test]
    fn nothing_is_kept_without_views_or_after_the_last_one() {
        let mut kept = PreImages::new(1 << 20);
        overwrite(&mut kept, "k", None);
        assert_eq!(kept.bytes(), 0);
        let (first, second) = (kept.open_view(Bytes::new()), kept.open_view(Bytes::new()));
        overwrite(&mut kept, "k", value("1"));
        kept.close_view(first);
        assert_eq!(kept.get(b"k", second), Some(&value("1")));
        kept.close_view(second);
        assert!(kept.bytes() == 0 && kept.keys.is_empty() && kept.log.is_empty());
    }

    #[test]
    fn over_the_bound_the_oldest_views_expire_and_only_they() {
        let mut kept = PreImages::new(3 * OVERHEAD_BYTES);
        let old = kept.open_view(Bytes::new());
        overwrite(&mut kept, "a", value("1"));
        overwrite(&mut kept, "b", value("1"));
        let new = kept.open_view(Bytes::new());
        assert!(!kept.is_expired(old));
        overwrite(&mut kept, "c", value("1"));
        assert!(kept.is_expired(old) && !kept.is_expired(new));
        assert_eq!(kept.get(b"c", new), Some(&value("1")));
        assert_eq!(kept.log.len(), 1, "what only the expired view needed is gone");
        kept.close_view(old);
        kept.close_view(new);
        assert_eq!(kept.bytes(), 0);
    }

    #[test]
    fn a_view_is_not_expired_by_what_happens_to_other_keys() {
        let mut kept = PreImages::new(8 * OVERHEAD_BYTES);
        let long = kept.open_view("a".into());
        overwrite(&mut kept, "b", value("1"));
        assert_eq!(kept.bytes(), 0);
        overwrite(&mut kept, "a1", value("1"));
        // Many short ones, each of which makes some be kept: all that is behind what the long one needs.
        for _ in 0..100 {
            let short = kept.open_view("b".into());
            overwrite(&mut kept, "b1", value("1"));
            overwrite(&mut kept, "b2", value("1"));
            assert!(!kept.is_expired(short));
            kept.close_view(short);
        }
        assert!(!kept.is_expired(long) && kept.bytes() <= 8 * OVERHEAD_BYTES);
        assert_eq!(kept.get(b"a1", long), Some(&value("1")));
        // One whose own keys are too many.
        let greedy = kept.open_view("b".into());
        for key in ["b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "b9"] {
            overwrite(&mut kept, key, value("2"));
        }
        assert!(kept.is_expired(greedy) || kept.is_expired(long));
        assert!(kept.bytes() <= 8 * OVERHEAD_BYTES);
        kept.close_view(long);
        kept.close_view(greedy);
        assert!(kept.bytes() == 0 && kept.keys.is_empty() && kept.log.is_empty());
    }

    /// A view was asked whether it wants a key, and is closed before the apply.
    #[test]
    fn what_nobody_wants_any_more_does_not_pile_up() {
        let mut kept = PreImages::new(4 * OVERHEAD_BYTES);
        let gone = kept.open_view("a".into());
        let long = kept.open_view("b".into());
        assert!(kept.wants(b"a1"));
        kept.close_view(gone);
        kept.record(vec![("a1".into(), value("1"))]);
        for key in ["b1", "b2", "b3", "b4", "b5"] {
            overwrite(&mut kept, key, value("1"));
        }
        assert!(kept.bytes() <= 4 * OVERHEAD_BYTES && kept.is_expired(long));
    }
}
