//! What was acknowledged is committed, and stays: every later state has it.

use std::collections::BTreeMap;

use super::Safety;
use crate::types::{GroupId, ReplicaId};

/// The newest acknowledged write of each group.
#[derive(Debug, Default)]
pub(in crate::simulation) struct Acknowledged(BTreeMap<GroupId, u64>);

impl Acknowledged {
    /// A client was told that its command took effect at `index`.
    pub(in crate::simulation) fn write(&mut self, safety: &Safety, group: GroupId, index: u64, command: u64) {
        let found = safety.command_at(group, index);
        assert!(
            found == Some(command),
            "committed never lost: {group} acknowledged entry {index}, and what was applied there is another"
        );
        let newest = self.0.entry(group).or_default();
        *newest = index.max(*newest);
    }

    /// At the end, all replicas have it.
    pub(in crate::simulation) fn reached(&self, group: GroupId, replica: ReplicaId, applied: u64) {
        let newest = self.0.get(&group).copied().unwrap_or_default();
        assert!(
            applied >= newest,
            "committed never lost: {group} acknowledged entry {newest}, and {replica} ends at {applied}"
        );
    }
}
