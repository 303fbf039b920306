//! How much of a group's log stays after a checkpoint: what others still need of it, within bounds.
//!
//! A follower that needs entries which are gone gets a snapshot: right for one that was away for long,
//! a waste for one that restarted.

use crate::types::ReplicaId;

/// Bounds, in bytes of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention {
    /// What is kept though nobody is known to need it: a follower may become leader, and does not know
    /// how far the others are.
    pub tail_bytes: u64,
    /// What is kept for a follower that lags.
    pub lag_bytes: u64,
    /// What is kept for one that gets a snapshot: without the entries after it, the snapshot would be in
    /// vain.
    pub snapshot_bytes: u64,
}

impl Retention {
    /// The tail is a second or two of a busy group's writes, and small against the 64 MiB after which the
    /// next checkpoint comes, over the groups of a node. A lag of 32 MiB is about the point from which a
    /// snapshot of a typical partition is no dearer; 16 groups together hold 512 MiB at the worst.
    pub const DEFAULT: Retention =
        Retention { tail_bytes: 1024 * 1024, lag_bytes: 32 * 1024 * 1024, snapshot_bytes: 256 * 1024 * 1024 };
}

/// Another replica, as the leader knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Other {
    pub replica: ReplicaId,
    /// The last entry that is durable there; 0 if that is not known.
    pub matched: u64,
    /// The last entry of the snapshot that it gets.
    pub snapshot: Option<u64>,
}

/// What the bounds are applied to.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// What a checkpoint has made durable: no more than this goes.
    pub upto: u64,
    /// Nobody else is in the group.
    pub alone: bool,
    /// Nothing was written since the last checkpoint. An idle group keeps no tail: it would lie in an old
    /// segment, and be copied forward again and again.
    pub idle: bool,
    /// `None` if this replica does not lead.
    pub others: Option<Vec<Other>>,
}

impl Retention {
    /// The last entry that goes. `tail(n)` is the first entry of the log's last `n` bytes.
    pub(crate) fn purge_to(&self, asked: &Asked, tail: impl Fn(u64) -> u64) -> Option<u64> {
        if asked.alone {
            return Some(asked.upto);
        }
        let mut keep_from = asked.upto + 1;
        if !asked.idle {
            keep_from = keep_from.min(tail(self.tail_bytes));
        }
        for other in asked.others.iter().flatten() {
            let (has, bytes) = match other.snapshot {
                Some(snapshot) => (other.matched.max(snapshot), self.snapshot_bytes),
                None => (other.matched, self.lag_bytes),
            };
            // Nothing is known to be there: not even the first entry, which is the birth's.
            let lacks = if has == 0 { 0 } else { has + 1 };
            keep_from = keep_from.min(lacks.max(tail(bytes)));
        }
        keep_from.checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETENTION: Retention = Retention { tail_bytes: 10, lag_bytes: 100, snapshot_bytes: 1000 };

    /// Entries of one byte, up to 5000.
    fn purge_to(asked: Asked) -> Option<u64> {
        RETENTION.purge_to(&asked, |bytes| 5001 - bytes)
    }

    fn other(matched: u64, snapshot: Option<u64>) -> Other {
        Other { replica: ReplicaId(2), matched, snapshot }
    }

    fn asked(upto: u64) -> Asked {
        Asked { upto, alone: false, idle: false, others: Some(Vec::new()) }
    }

    #[test]
    fn what_is_kept() {
        let led = |upto, others: &[Other]| Asked { others: Some(others.to_vec()), ..asked(upto) };
        let cases = [
            ("alone, nobody needs anything", Asked { alone: true, ..asked(5000) }, 5000),
            ("a follower keeps a tail", Asked { others: None, ..asked(5000) }, 4990),
            ("unless it is idle", Asked { others: None, idle: true, ..asked(5000) }, 5000),
            ("no more than the checkpoint", Asked { others: None, ..asked(4000) }, 4000),
            ("a leader whose followers have all keeps a tail", led(5000, &[other(5000, None)]), 4990),
            ("what the slowest lacks", led(5000, &[other(4999, None), other(4950, None)]), 4950),
            ("within the bound", led(5000, &[other(4999, None), other(17, None)]), 4900),
            ("idle or not", Asked { idle: true, ..led(5000, &[other(4950, None)]) }, 4950),
            ("more for one that gets a snapshot", led(5000, &[other(17, Some(4500))]), 4500),
            ("within a bound, too", led(5000, &[other(17, Some(3000))]), 4000),
        ];
        for (what, asked, expected) in cases {
            assert_eq!(purge_to(asked), Some(expected), "{what}");
        }
        let new = Asked { idle: true, ..led(5000, &[other(0, None)]) };
        assert_eq!(RETENTION.purge_to(&new, |_| 0), None, "a new one lacks even the first");
    }
}
