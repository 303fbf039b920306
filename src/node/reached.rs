//! A node that can be reached again is sent to at once: what its groups' leaders send it has been waiting longer
//! and longer between attempts, and until it has that, one copy less acknowledges.

use std::sync::Weak;

use super::Node;
use crate::types::NodeId;

pub(super) async fn run(node: Weak<Node>) {
    let Some(mut reached) = node.upgrade().map(|node| node.transport.reached()) else { return };
    let mut known = reached.borrow_and_update().clone();
    while reached.changed().await.is_ok() {
        let now = reached.borrow_and_update().clone();
        let Some(node) = node.upgrade() else { return };
        for (peer, _) in now.iter().filter(|(peer, count)| known.get(peer) != Some(count)) {
            node.send_at_once(*peer).await;
        }
        known = now;
    }
}

impl Node {
    async fn send_at_once(&self, peer: NodeId) {
        if let Some(seat) = self.seat() {
            seat.meta.send_at_once(peer).await;
        }
        for (_, replica) in self.replicas() {
            replica.group.send_at_once(peer).await;
        }
    }
}
