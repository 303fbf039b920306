//! At most one replica leads a group in a term: only leaders send entries and heartbeats.

use std::collections::BTreeMap;

use crate::types::{GroupId, ReplicaId};

/// Who led which term.
#[derive(Debug, Default)]
pub(in crate::simulation) struct Election(BTreeMap<(GroupId, u64), ReplicaId>);

impl Election {
    /// `replica` acts as the leader of this term; says whether that is new.
    pub(in crate::simulation) fn leads(&mut self, group: GroupId, term: u64, replica: ReplicaId) -> bool {
        let before = self.0.insert((group, term), replica);
        let before = before.inspect(|before| {
            assert!(
                *before == replica,
                "election safety: {before} and {replica} lead {group} in term {term}"
            );
        });
        before.is_none()
    }

    /// The newest term that anybody has led.
    pub(in crate::simulation) fn newest(&self, group: GroupId) -> u64 {
        self.0.range((group, 0)..=(group, u64::MAX)).next_back().map_or(0, |((_, term), _)| *term)
    }

    /// How many leaders there were.
    pub(in crate::simulation) fn count(&self) -> usize {
        self.0.len()
    }
}
