//! Follows what group 0 says: the members' addresses, the routing table, the replicas that this node
//! holds, and the births of groups.
//!
//! A replica is opened only because applied metadata names its id, never because a message came for it;
//! a group is begun only by its birth voters, all with the same members, and only while it is `Creating` (rule 8):
//! by the first of them, or by the others if that one does not come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::open::refused;
use super::seat::Seat;
use super::{Cluster, DataGroup, Held, Node, Replica, reconcile};
use crate::error::Result;
use crate::raft::Carrier;
use crate::types::{LogKey, NodeId, PartitionId, ReplicaId};
use crate::{crash_point, kv, meta};

/// What could not be told to group 0 is told again this much later.
const AGAIN: Duration = Duration::from_millis(200);

/// How long a change of group 0 is waited for: a replica that was destroyed here is told, though none comes.
const AT_LATEST: Duration = Duration::from_secs(10);

/// How long the first birth replica has to begin a group and to tell of it, before another one does. Should both,
/// nothing is lost: they begin it with the same entry, and one of them is elected.
const BIRTH_WAIT: Duration = Duration::from_secs(5);

/// For one attempt to tell group 0 of something.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// Takes up what group 0 said last, as far as this node has applied it.
pub(super) async fn catch_up(node: &Arc<Node>) -> Result<()> {
    match node.seat() {
        Some(seat) => node.follow(&seat).await,
        None => Ok(()),
    }
}

pub(super) async fn run(node: Weak<Node>) {
    let mut births = BTreeMap::new();
    loop {
        let Some(strong) = node.upgrade() else { return };
        let mut seats = strong.seat.subscribe();
        let Some(seat) = seats.borrow_and_update().clone() else {
            drop(strong);
            if seats.changed().await.is_err() {
                return;
            }
            continue;
        };
        let mut states = seat.state.clone();
        states.mark_unchanged();
        if let Err(error) = strong.follow(&seat).await {
            strong.fail(error.to_string());
            return;
        }
        // Both, each time.
        let more = strong.tell_births(&mut births).await | strong.tell_destroyed().await;
        drop(strong);
        let changed = async {
            tokio::select! {
                _ = states.changed() => {}
                _ = seats.changed() => {}
            }
        };
        // Whatever came first, it is looked at again.
        drop(timeout(if more { AGAIN } else { AT_LATEST }, changed).await);
    }
}

impl Node {
    async fn follow(self: &Arc<Node>, seat: &Seat) -> Result<()> {
        // One at a time, and read inside: no older state takes the place of a newer one.
        let _following = self.following.lock().await;
        let state = &seat.state.borrow().clone();
        if !state.is_formed() {
            return Ok(());
        }
        let me = seat.number();
        let others = state.members.iter().filter(|(number, _)| **number != me);
        let addresses: BTreeMap<_, _> =
            others.map(|(number, member)| (*number, member.address.clone())).collect();
        let known = self.cluster().map(|cluster| cluster.state.clone());
        if known.is_none_or(|known| addresses_differ(&known, state)) {
            self.remember_addresses().await?;
        }
        self.transport.set_peers(addresses);
        let routing = state.routing().map_err(refused)?;
        self.open_forgotten(state, me).await?;
        let present = self.replicas().into_iter().map(|(id, replica)| (id, replica.group.key().replica));
        let present: BTreeSet<(PartitionId, ReplicaId)> = present.collect();
        for open in reconcile::replicas_to_open(state, me, &present, &self.tombstones()?) {
            // One of each partition at a time: an older one goes first.
            if self.replica(open.partition).is_none() {
                self.open_replica(state, open).await?;
            }
        }
        let first = self.cluster().is_none();
        if first {
            self.warn_of_ignored_settings(state);
        }
        self.cluster.send_replace(Some(Arc::new(Cluster { state: state.clone(), routing })));
        Ok(())
    }

    /// Opens replicas that are here though nothing names them any more: their group excluded them while this
    /// node was away. Opened, they are looked at and destroyed like any other, before a newer one takes their
    /// place; left alone, their logs would be copied forward for ever.
    async fn open_forgotten(self: &Arc<Node>, state: &meta::State, me: NodeId) -> Result<()> {
        for key in self.store.unopened() {
            let Some(partition) = key.group.0.checked_sub(1).map(PartitionId) else { continue };
            let is_its = key.replica.node() == me && state.has_discarded(partition, key.replica);
            if is_its && self.replica(partition).is_none() {
                let open = reconcile::Open { partition, replica: key.replica, initialize: None };
                self.open_replica(state, open).await?;
            }
        }
        Ok(())
    }

    /// Makes what group 0 says durable in the engine. Whom it names may vote from now on: if all nodes
    /// are killed, they must find each other again, and nothing in the log is applied before they do.
    pub(super) async fn remember_addresses(&self) -> Result<()> {
        let store = self.store.clone();
        let made = tokio::task::spawn_blocking(move || store.checkpoint()).await.map_err(refused)?;
        made.map(drop).map_err(refused)
    }

    async fn open_replica(self: &Arc<Node>, state: &meta::State, open: reconcile::Open) -> Result<()> {
        let reconcile::Open { partition: id, replica, initialize } = open;
        let key = LogKey { group: id.group(), replica };
        let machine = kv::Machine::new(self.store.engine().recovers_prefix());
        let totals = machine.totals();
        let carrier: Arc<dyn Carrier> = self.transport.clone();
        let log = self.wal.log(key);
        let group = DataGroup::open(key, self.store.clone(), log, machine, &self.raft_metrics, carrier)
            .await
            .map_err(refused)?;
        if let Some(partition) = state.partitions.get(&id)
            && group.damage().is_none()
            && !group.is_initialized().await.map_err(refused)?
        {
            if let Some(voters) = initialize {
                crash_point::reached("forming.birth");
                group.initialize(&voters).await.map_err(refused)?;
            } else if partition.replicas == [replica] && partition.birth_replicas == [replica] {
                return Err(refused(format!(
                    "the log of partition {id} is empty, but the partition was created: its data is lost here, \
                     and nowhere else: restore the whole data_dir, wal included, from a copy"
                )));
            }
        }
        group.elect_if_alone().await;
        self.replicas
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, Arc::new(Held { group: group.clone(), totals }));
        // After it is held: one that is not is none of the process's.
        self.watch_group(&group, |node, group| {
            let held = |(_, replica): &(PartitionId, Replica)| replica.group.is_same(group);
            node.replicas().iter().any(held)
        });
        Ok(())
    }

    /// Replicas that were here and were destroyed.
    fn tombstones(&self) -> Result<BTreeSet<(PartitionId, ReplicaId)>> {
        let keys = self.store.tombstones().map_err(refused)?;
        let data = keys.into_iter().filter_map(|key| Some((key.group.0.checked_sub(1)?, key.replica)));
        Ok(data.map(|(number, replica)| (PartitionId(number), replica)).collect())
    }

    /// Begins the groups that somebody else should have begun, and tells group 0 of those that have begun; true: that
    /// is not done. `since` remembers since when each birth is waited for.
    async fn tell_births(&self, since: &mut BTreeMap<LogKey, Instant>) -> bool {
        let Some(cluster) = self.cluster() else { return false };
        let mut more = false;
        for (id, partition) in &cluster.state.partitions {
            if partition.birth == meta::Birth::Created {
                continue;
            }
            let Some(replica) = self.replica(*id) else { continue };
            let key = replica.group.key();
            let voters = partition.birth_voters();
            if !voters.contains(&key.replica) {
                continue;
            }
            if replica.group.damage().is_some() {
                continue; // it answers nothing
            }
            let waited = since.entry(key).or_insert_with(Instant::now).elapsed();
            let is_turn = partition.birth_replicas.first() == Some(&key.replica) || waited >= BIRTH_WAIT;
            if is_turn && !replica.group.is_initialized().await.unwrap_or(true) {
                tracing::warn!(partition = %id, %key, "nobody has begun the group: this replica does");
                if let Err(error) = replica.group.initialize(&voters).await {
                    tracing::warn!(%error, partition = %id, "a group was not begun; it is tried again");
                }
            }
            // Begun on one disk alone, it could be lost with that.
            let status = replica.group.status();
            let begun = status.membership.is_some() && status.membership_committed;
            if !begun || !is_turn {
                more = true;
                continue;
            }
            let command = meta::Command::Created(*id);
            if let Err(error) = self.change(&command, Instant::now() + TOLD_WITHIN).await {
                tracing::debug!(%error, partition = %id, "group 0 was not told of a birth; it is told again");
                more = true;
            }
        }
        since.retain(|key, _| {
            let of = |(id, partition): (&PartitionId, &meta::Partition)| {
                id.group() == key.group && partition.birth == meta::Birth::Creating
            };
            cluster.state.partitions.iter().any(of)
        });
        more
    }

    /// Tells group 0 of replicas that it wants here, and that were destroyed here before it did; true: it could
    /// not be told of some.
    async fn tell_destroyed(&self) -> bool {
        let (Some(cluster), Some(seat)) = (self.cluster(), self.seat()) else { return false };
        let tombstones = match self.tombstones() {
            Ok(tombstones) => tombstones,
            Err(error) => {
                // Whoever follows group 0 next reads them, too, and ends the node if they can't be read.
                tracing::warn!(%error, "the replicas that were destroyed here can't be read");
                return true;
            }
        };
        let mut more = false;
        for (partition, replica) in reconcile::replicas_to_renew(&cluster.state, seat.number(), &tombstones) {
            let command = meta::Command::Renew { partition, replica };
            match self.change(&command, Instant::now() + TOLD_WITHIN).await {
                Ok(_) => tracing::info!(%partition, %replica, "a destroyed replica is replaced by a new one"),
                Err(error) => {
                    tracing::debug!(%error, %partition, %replica, "group 0 was not told that it was destroyed");
                    more = true;
                }
            }
        }
        more
    }

    /// `[cluster]` only seeds the formation.
    fn warn_of_ignored_settings(&self, formed: &meta::State) {
        let wanted = &self.options.formation;
        let partitions = formed.partitions.len();
        if wanted.cluster_name != formed.cluster_name {
            tracing::warn!(
                configured = wanted.cluster_name,
                actual = formed.cluster_name,
                "cluster.name is ignored after formation"
            );
        }
        if wanted.replicas != formed.replicas {
            tracing::warn!(
                configured = wanted.replicas,
                actual = formed.replicas,
                "cluster.replicas is ignored after formation"
            );
        }
        if wanted.partitions as usize != partitions {
            tracing::warn!(
                configured = wanted.partitions,
                actual = partitions,
                "cluster.partitions is ignored after formation"
            );
        }
    }
}

/// Whether somebody can be found elsewhere than before.
fn addresses_differ(known: &meta::State, now: &meta::State) -> bool {
    let addresses = |state: &meta::State| -> Vec<(NodeId, String)> {
        state.members.iter().map(|(number, member)| (*number, member.address.clone())).collect()
    };
    addresses(known) != addresses(now)
}
