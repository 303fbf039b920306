//! State machine safety: no two replicas apply different commands at the same index, and each applies them in
//! order.

use std::collections::BTreeMap;

use crate::types::{GroupId, LogId, LogKey, ReplicaId};

#[derive(Debug, Clone, Copy)]
struct Applied {
    id: LogId,
    command: u64,
    by: ReplicaId,
}

/// What was applied at each index.
#[derive(Debug, Default)]
pub(in crate::simulation) struct Safety(BTreeMap<GroupId, BTreeMap<u64, Applied>>);

impl Safety {
    pub(in crate::simulation) fn applied(&mut self, key: LogKey, id: LogId, command: u64) {
        let new = Applied { id, command, by: key.replica };
        let first = self.0.entry(key.group).or_default().entry(id.index).or_insert(new);
        assert!(
            first.command == command && first.id == id,
            "state machine safety: {key} applies another command as {id} than {} did as {}",
            first.by,
            first.id
        );
    }

    /// Every command that any replica of the group has applied.
    pub(in crate::simulation) fn committed(&self, group: GroupId) -> impl Iterator<Item = LogId> {
        self.0.get(&group).into_iter().flat_map(|applied| applied.values().map(|applied| applied.id))
    }

    pub(in crate::simulation) fn command_at(&self, group: GroupId, index: u64) -> Option<u64> {
        Some(self.0.get(&group)?.get(&index)?.command)
    }
}
