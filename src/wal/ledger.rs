//! Which segment is needed for what, as far as the log is written: the writer's own books.
//!
//! Memory runs ahead of the disk, so it can't say which segments may go: this can. Replayed from any
//! segment that is not before [`Ledger::oldest`], the log comes out the same.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::types::LogKey;

/// Entries of one log in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    segment: u64,
    first: u64,
    last: u64,
    /// Of their records; an estimate once a part of the run is gone.
    bytes: u64,
}

/// Where the records stand that make up one log.
///
/// Invariants: runs are in ascending order of index and of segment, without gaps.
#[derive(Debug, Default)]
struct Account {
    vote: Option<u64>,
    purge: Option<u64>,
    runs: VecDeque<Run>,
    /// As it is filed in [`Ledger::by_oldest`].
    filed: Option<u64>,
}

impl Account {
    fn oldest(&self) -> Option<u64> {
        let entries = self.runs.front().map(|run| run.segment);
        [self.vote, self.purge, entries].into_iter().flatten().min()
    }
}

/// What a log would cost to be copied forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cost {
    /// Its entries must be copied too; else only vote and purge point.
    pub(super) entries: bool,
    pub(super) bytes: u64,
}

/// What a vote and a purge point take when they are copied, about.
const STATE_BYTES: u64 = 128;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    accounts: HashMap<LogKey, Account>,
    by_oldest: BTreeMap<u64, BTreeSet<LogKey>>,
    entry_bytes: u64,
}

impl Ledger {
    /// The oldest segment that any log needs.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.by_oldest.keys().next().copied()
    }

    /// The logs that need `segment` and none before it.
    pub(super) fn logs_of(&self, segment: u64) -> impl Iterator<Item = LogKey> {
        self.by_oldest.get(&segment).into_iter().flatten().copied()
    }

    /// What it costs to make `key` independent of `segment`, its oldest.
    pub(super) fn cost(&self, key: LogKey, segment: u64) -> Cost {
        let Some(account) = self.accounts.get(&key) else { return Cost { entries: false, bytes: 0 } };
        let entries = account.runs.front().is_some_and(|run| run.segment <= segment);
        let live = account.runs.iter().map(|run| run.bytes).sum::<u64>();
        Cost { entries, bytes: STATE_BYTES + if entries { live } else { 0 } }
    }

    /// The bytes of all live entries.
    pub(super) fn live_bytes(&self) -> u64 {
        self.entry_bytes + self.accounts.len() as u64 * STATE_BYTES
    }

    /// Changes an account, and files it anew.
    fn change<T>(&mut self, key: LogKey, change: impl FnOnce(&mut Account, &mut u64) -> T) -> T {
        let account = self.accounts.entry(key).or_default();
        let result = change(account, &mut self.entry_bytes);
        let (filed, oldest) = (account.filed, account.oldest());
        if filed != oldest {
            account.filed = oldest;
            if let Some(filed) = filed
                && let Some(keys) = self.by_oldest.get_mut(&filed)
            {
                keys.remove(&key);
                if keys.is_empty() {
                    self.by_oldest.remove(&filed);
                }
            }
            if let Some(oldest) = oldest {
                self.by_oldest.entry(oldest).or_default().insert(key);
            }
        }
        if oldest.is_none() {
            self.accounts.remove(&key);
        }
        result
    }

    /// Entries `first..=last` were written to `segment`.
    pub(super) fn append(&mut self, key: LogKey, segment: u64, first: u64, last: u64, bytes: u64) {
        self.change(key, |account, total| {
            *total += bytes;
            match account.runs.back_mut() {
                Some(run) => {
                    assert_eq!(run.last + 1, first, "runs have no gaps");
                    assert!(run.segment <= segment, "later entries stand in later segments");
                    if run.segment == segment {
                        run.last = last;
                        run.bytes += bytes;
                        return;
                    }
                }
                None => assert!(first <= last, "a run is not empty"),
            }
            account.runs.push_back(Run { segment, first, last, bytes });
        });
    }

    pub(super) fn vote(&mut self, key: LogKey, segment: u64) {
        self.change(key, |account, _| account.vote = Some(segment));
    }

    pub(super) fn truncate(&mut self, key: LogKey, from: u64) {
        self.change(key, |account, total| match from.checked_sub(1) {
            Some(last) => account.keep(0, last, total),
            None => account.keep(1, 0, total),
        });
    }

    pub(super) fn purge(&mut self, key: LogKey, segment: u64, upto: u64) {
        self.change(key, |account, total| {
            account.purge = Some(segment);
            account.keep(upto + 1, u64::MAX, total);
        });
    }

    pub(super) fn destroy(&mut self, key: LogKey) {
        self.change(key, |account, total| {
            account.keep(1, 0, total);
            account.vote = None;
            account.purge = None;
        });
    }

    /// Vote and purge point, where there are any, were written again; with `replaces` nothing before
    /// counts.
    pub(super) fn state(
        &mut self,
        key: LogKey,
        segment: u64,
        replaces: bool,
        vote: bool,
        purged: Option<u64>,
    ) {
        self.change(key, |account, total| {
            if replaces {
                account.keep(1, 0, total);
            }
            account.vote = vote.then_some(segment);
            account.purge = purged.map(|_| segment);
            if let Some(upto) = purged {
                account.keep(upto + 1, u64::MAX, total);
            }
        });
    }
}

impl Account {
    /// Forgets the entries outside `first..=last`.
    fn keep(&mut self, first: u64, last: u64, total: &mut u64) {
        let mut forget = |run: &mut Run, kept: Option<(u64, u64)>| {
            let bytes = kept.map_or(0, |(first, last)| {
                let part = u128::from(run.bytes) * u128::from(last - first + 1);
                (part / u128::from(run.last - run.first + 1)) as u64
            });
            *total -= run.bytes - bytes;
            run.bytes = bytes;
            if let Some((first, last)) = kept {
                (run.first, run.last) = (first, last);
            }
        };
        while let Some(run) = self.runs.back_mut()
            && run.last > last
        {
            let kept = (run.first <= last).then_some((run.first, last));
            forget(run, kept);
            if kept.is_some() {
                break;
            }
            self.runs.pop_back();
        }
        while let Some(run) = self.runs.front_mut()
            && run.first < first
        {
            let kept = (run.last >= first).then_some((first, run.last));
            forget(run, kept);
            if kept.is_some() {
                break;
            }
            self.runs.pop_front();
        }
    }
}
