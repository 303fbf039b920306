//! State machine safety: no two replicas apply different commands at the same index, and each applies them in
//! order.

use std::collections::BTreeMap;

use crate::types::{GroupId, LogId, LogKey, ReplicaId};

#[derive(Debug, Clone, Copy)]
struct Applied {
    id: LogId,
    command: u64,
    by: ReplicaId,
    /// The leader that committed it led this term, or an older one.
    committed_in: u64,
}

/// What was applied at each index.
#[derive(Debug, Default)]
pub(in crate::simulation) struct Safety(BTreeMap<GroupId, BTreeMap<u64, Applied>>);

impl Safety {
    /// `newest_term`: the newest that anybody has led so far.
    pub(in crate::simulation) fn applied(&mut self, key: LogKey, id: LogId, command: u64, newest_term: u64) {
        let new = Applied { id, command, by: key.replica, committed_in: newest_term.max(id.term) };
        let first = self.0.entry(key.group).or_default().entry(id.index).or_insert(new);
        assert!(
            first.command == command && first.id == id,
            "state machine safety: {key} applies another command as {id} than {} did as {}",
            first.by,
            first.id
        );
    }

    /// Every entry that any replica of the group has applied, and the term in which it was committed at the latest.
    /// That may be newer than the entry's own: a leader commits what it finds, with the first entry of its term.
    pub(in crate::simulation) fn committed(&self, group: GroupId) -> impl Iterator<Item = (LogId, u64)> {
        let applied = self.0.get(&group).into_iter().flat_map(BTreeMap::values);
        applied.map(|applied| (applied.id, applied.committed_in))
    }

    pub(in crate::simulation) fn command_at(&self, group: GroupId, index: u64) -> Option<u64> {
        Some(self.0.get(&group)?.get(&index)?.command)
    }
}
