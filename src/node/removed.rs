//! A node that was removed from its cluster hears of it only if it asks: nobody sends it the log of group 0
//! any more, so that its own state says for ever that it is a member.

use std::sync::Weak;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::Node;
use crate::meta;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Looks in a row without a leader of group 0 before the others are asked: an election is over by then.
const SILENT_LOOKS: u32 = 2;

pub(super) async fn run(node: Weak<Node>) {
    let mut silent = 0;
    let mut has_served = false;
    loop {
        sleep(LOOK).await;
        let Some(node) = node.upgrade() else { return };
        let Some(seat) = node.seat() else { continue };
        if seat.meta.status().live_leader().is_some() {
            (silent, has_served) = (0, true);
            continue;
        }
        silent += 1;
        if silent < SILENT_LOOKS || !node.others_say_removed().await {
            continue;
        }
        let why = node.is_removed_text();
        tracing::error!("{why}");
        if !has_served {
            // It begins with what can't succeed.
            node.fail(why);
        }
        node.removed.send_replace(true);
        return;
    }
}

impl Node {
    /// Whether a member of its cluster says that this node, by its disk, was removed. What a member has
    /// applied of group 0 is committed, so that one such answer is enough.
    async fn others_say_removed(&self) -> bool {
        let Some(cluster) = self.cluster() else { return false };
        let state = &cluster.state;
        let own = state.number_of_disk(self.data_dir.disk_id());
        let others = state.members.iter().filter(|(number, _)| Some(**number) != own);
        let asked = others.map(|(_, member)| async {
            let answer = self.hello_answer(&member.address).await.ok()?;
            let is_of_ours = answer.standing?.cluster_id == state.cluster_id;
            Some(is_of_ours && answer.removed)
        });
        join_all(asked).await.contains(&Some(true))
    }

    /// What a member answers to a node that asks who it is: whether that one was removed.
    pub(super) fn has_removed(&self, disk_id: &str) -> bool {
        self.cluster().is_some_and(|cluster| has_removed(&cluster.state, disk_id))
    }

    pub(super) fn is_removed_text(&self) -> String {
        format!(
            "node \"{}\" was removed from its cluster: stop it; to join again, start it with an empty data_dir \
             (it is {} now) and name a member in its peers",
            self.options.name,
            self.data_dir.path().display()
        )
    }
}

/// Whether the node with this disk was a member once.
pub(super) fn has_removed(state: &meta::State, disk_id: &str) -> bool {
    !disk_id.is_empty() && state.removed.values().any(|tombstone| tombstone.disk_id == disk_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    #[test]
    fn only_the_removed_disk_is_removed() {
        let mut state = meta::State::default();
        let tombstone = meta::Tombstone { name: "node3".into(), disk_id: "d3".into() };
        state.removed.insert(NodeId(3), tombstone);
        assert!(has_removed(&state, "d3"));
        assert!(!has_removed(&state, "d4") && !has_removed(&state, ""));
    }
}
