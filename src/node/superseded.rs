//! The end of waiting for a node that was asked as a leader, and is none any more: one that was cut off
//! answers nothing, and its connection is found dead only seconds later.

use std::time::Duration;

use tokio::time::sleep;

use super::Node;
use crate::error::{Error, Reason};
use crate::transport::Kind;
use crate::types::{GroupId, NodeId, PartitionId};

/// Between two looks at who leads. Most calls are answered before the first.
const LOOK: Duration = Duration::from_millis(100);

/// How long a node may still answer what it took while it led: one that handed its leadership over has
/// committed it, and says so at once.
const GRACE: Duration = Duration::from_secs(1);

impl Node {
    /// Resolves, with what that means for a call, when `asked` has not led the group for a while, as
    /// this node's own replica knows for sure. Never without one.
    pub(super) async fn superseded(&self, group: GroupId, asked: NodeId, kind: Kind) -> Error {
        let mut left = GRACE;
        loop {
            sleep(LOOK).await;
            match self.known_leader(group) {
                Some(leader) if leader != asked => left = left.saturating_sub(LOOK),
                _ => left = GRACE,
            }
            if left.is_zero() {
                break;
            }
        }
        let what = format!("{asked} does not answer, and does not lead any more");
        match kind {
            Kind::Read => Error::new(Reason::Unavailable, what),
            Kind::Write => Error::new(
                Reason::OutcomeUnknown,
                format!("{what}: the write may have taken place, or may yet"),
            ),
        }
    }

    fn known_leader(&self, group: GroupId) -> Option<NodeId> {
        let status = match group {
            GroupId::META => self.seat()?.meta.status(),
            GroupId(number) => self.replica(PartitionId(number - 1))?.group.status(),
        };
        status.live_leader().map(|leader| leader.node())
    }
}
