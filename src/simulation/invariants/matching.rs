//! If two logs have an entry of the same index and term, both are the same up to there: the entry is the
//! same, and so is the term of the one before it.

use std::collections::HashMap;

use crate::types::{GroupId, LogId, LogKey, ReplicaId};

#[derive(Debug, Clone, Copy)]
struct Seen {
    payload: u64,
    /// `None`: seen as the first entry of a log or a message.
    previous: Option<LogId>,
    by: ReplicaId,
}

/// Every entry that any log or message ever had.
#[derive(Debug, Default)]
pub(in crate::simulation) struct Matching {
    seen: HashMap<(GroupId, LogId), Seen>,
    /// The last entry of each log when it was looked at.
    looked_at: HashMap<LogKey, LogId>,
}

impl Matching {
    /// The first entry of a log, which ends with `last`, that was not looked at. A log that changed in
    /// another way than by growing is looked at again.
    pub(in crate::simulation) fn unseen(&mut self, key: LogKey, last: LogId) -> u64 {
        match self.looked_at.insert(key, last) {
            Some(before) if before == last => last.index + 1,
            Some(before) if before.index < last.index => before.index,
            _ => 0,
        }
    }

    pub(in crate::simulation) fn entry(
        &mut self,
        group: GroupId,
        by: ReplicaId,
        previous: Option<LogId>,
        id: LogId,
        payload: u64,
    ) {
        let seen = self.seen.entry((group, id)).or_insert(Seen { payload, previous, by });
        assert!(
            seen.payload == payload,
            "log matching: {group} entry {id} of {by} is another than that of {}",
            seen.by
        );
        match (seen.previous, previous) {
            (Some(one), Some(other)) => assert!(
                one == other,
                "log matching: {group} entry {id} follows {one} in the log of {}, {other} in that of {by}",
                seen.by
            ),
            (None, Some(_)) => seen.previous = previous,
            (_, None) => {}
        }
    }
}
