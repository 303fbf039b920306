//! A node's place in a cluster: who it is there, and its replica of group 0.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::identity::Identity;
use super::open::refused;
use super::{MetaGroup, Node};
use crate::error::{Error, Reason, Result};
use crate::proto::v1::{Founder, Founding};
use crate::raft::Carrier;
use crate::types::{GroupId, LogKey, NodeId};
use crate::way_out::START_OVER;
use crate::{meta, raft};

/// Between two attempts of one change.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// Who this node is in its cluster.
#[derive(Debug)]
pub(super) struct Seat {
    pub identity: Identity,
    pub meta: MetaGroup,
    pub state: watch::Receiver<Arc<meta::State>>,
    /// What it helps to found; `None` once that is done.
    pub founding: Option<Founding>,
}

impl Seat {
    pub fn number(&self) -> NodeId {
        self.identity.number
    }
}

/// How group 0 comes to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// This node founds a cluster by itself.
    Alone,
    /// From others: in its log, or by what they send.
    Others,
}

impl Node {
    /// Opens group 0 as `identity`, and takes the place of any earlier seat.
    pub(super) async fn take_seat(
        self: &Arc<Node>,
        identity: Identity,
        founding: Option<Founding>,
        beginning: Beginning,
        known: &[Founder],
    ) -> Result<Arc<Seat>> {
        if let Some(old) = self.seat.send_replace(None) {
            old.meta.shutdown().await;
        }
        self.transport.set_local(&identity.cluster_id, identity.number);
        let replica = meta::group0_replica(identity.number);
        let key = LogKey { group: GroupId::META, replica };
        let (machine, state) = meta::Machine::new();
        let carrier: Arc<dyn Carrier> = self.transport.clone();
        let log = self.wal.log(key);
        let meta = MetaGroup::open(key, self.store.clone(), log, machine, &self.raft_metrics, carrier)
            .await
            .map_err(refused)?;
        if let Some(why) = meta.damage() {
            return Err(refused(format!("group 0 can't be read: {why}: {START_OVER}")));
        }
        if !meta.is_initialized().await.map_err(refused)? && beginning == Beginning::Alone {
            if state.borrow().is_formed() || self.wal.keys().iter().any(|other| *other != key) {
                return Err(refused(format!(
                    "group 0's log is empty, but the directory holds data of cluster {}: {START_OVER}",
                    identity.cluster_id
                )));
            }
            meta.initialize(&[replica]).await.map_err(refused)?;
        }
        meta.elect_if_alone().await;
        let formed = state.borrow().clone();
        if formed.is_formed() && formed.cluster_id != identity.cluster_id {
            return Err(refused(format!(
                "{}: IDENTITY names cluster {}, group 0 is of cluster {}: the directory is a mix of two; restore \
                 all of it from one copy",
                self.options.data_dir.display(),
                identity.cluster_id,
                formed.cluster_id
            )));
        }
        let peers = known
            .iter()
            .map(|one| (NodeId(one.number), one.address.clone()))
            .filter(|(number, _)| *number != identity.number);
        self.transport.set_peers(peers.collect());
        let seat = Arc::new(Seat { identity, meta, state, founding });
        self.seat.send_replace(Some(seat.clone()));
        self.watch_group(&seat.meta, |node, group| node.seat().is_some_and(|seat| seat.meta.is_same(group)));
        Ok(seat)
    }

    /// Proposes a command to group 0, wherever it is led, until it is answered: every command may be
    /// repeated.
    ///
    /// # Errors
    /// [`Reason::OutcomeUnknown`] as well if any attempt ended so and none after it was answered: whatever the last one came to,
    /// that one may have taken place, or may yet.
    pub(super) async fn change(&self, command: &meta::Command, deadline: Instant) -> Result<meta::Answer> {
        if let Some(cluster) = self.cluster() {
            cluster.state.allows(command).map_err(|why| Error::new(Reason::ClusterRefused, why))?;
        }
        let bytes = meta::encode_command(command);
        let mut unknown = None;
        loop {
            let answer = self.propose_to(GroupId::META, bytes.clone(), deadline).await;
            match answer {
                Ok(answer) => {
                    return meta::decode_answer(&answer)
                        .map_err(|why| Error::new(Reason::ClusterRefused, why));
                }
                // An unknown outcome, too: a command that has taken place does nothing the second time.
                Err(error) => {
                    let is_unknown = error.reason == Reason::OutcomeUnknown;
                    let again = is_unknown || super::calls::is_worth_repeating(&error);
                    if is_unknown {
                        unknown = Some(error.clone());
                    }
                    if !again || Instant::now() + PAUSE >= deadline {
                        return Err(unknown.unwrap_or(error));
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// openraft's role names, as group 0 uses them.
pub(super) fn leads(meta: &MetaGroup) -> bool {
    meta.status().role == raft::Role::Leader
}
