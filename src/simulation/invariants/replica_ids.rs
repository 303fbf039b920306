//! A replica's id is one replica: it lives on one disk, and once destroyed it never comes back.

use std::collections::BTreeMap;

use crate::types::{LogKey, NodeId};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    node: NodeId,
    is_over: bool,
}

/// Every replica there ever was.
#[derive(Debug, Default)]
pub(in crate::simulation) struct ReplicaIds(BTreeMap<LogKey, Life>);

impl ReplicaIds {
    pub(in crate::simulation) fn opened(&mut self, key: LogKey, node: NodeId) {
        let life = self.0.entry(key).or_insert(Life { node, is_over: false });
        assert!(life.node == node, "replica ids: {key} was on {}, and is on {node}", life.node);
        assert!(!life.is_over, "replica ids: {key} was destroyed, and is opened again");
    }

    pub(in crate::simulation) fn destroyed(&mut self, key: LogKey) {
        if let Some(life) = self.0.get_mut(&key) {
            life.is_over = true;
        }
    }
}
