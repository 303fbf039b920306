//! What a node does of what group 0 says: as `node/follow.rs`, with the same decisions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::node::Process;
use super::sim;
use crate::node::reconcile::{Open, replicas_to_open, replicas_to_renew};
use crate::types::{LogKey, NodeId, PartitionId, ReplicaId};
use crate::{kv, meta};

const AGAIN: Duration = Duration::from_millis(200);
const AT_LATEST: Duration = Duration::from_secs(10);
const TOLD_WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn run(process: Process, mut states: watch::Receiver<Arc<meta::State>>) {
    loop {
        let state = states.borrow_and_update().clone();
        if state.is_formed() {
            process.catch_up(&state).await;
        }
        let more = process.tell(&state).await;
        // Whatever came first, it is looked at again.
        drop(timeout(if more { AGAIN } else { AT_LATEST }, states.changed()).await);
    }
}

impl Process {
    /// Opens what is to be here and is not.
    pub(super) async fn catch_up(&self, state: &meta::State) {
        let _following = self.following.lock().await;
        self.store.checkpoint().unwrap();
        // Replicas that are here though nothing names them any more.
        for key in self.store.unopened() {
            let Some(partition) = key.group.0.checked_sub(1).map(PartitionId) else { continue };
            let is_free = sim().held(self.id).iter().all(|(held, _)| *held != partition);
            if state.has_discarded(partition, key.replica) && is_free {
                self.open_replica(Open { partition, replica: key.replica, initialize: None }).await;
            }
        }
        let present = sim().held(self.id).into_iter().map(|(id, group)| (id, group.key().replica)).collect();
        for open in replicas_to_open(state, self.id, &present, &self.tombstones()) {
            // One of each partition at a time: an older one goes first.
            if sim().held(self.id).iter().all(|(held, _)| *held != open.partition) {
                self.open_replica(open).await;
            }
        }
    }

    async fn open_replica(&self, open: Open) {
        let Open { partition, replica, initialize } = open;
        let key = LogKey { group: partition.group(), replica };
        let group = self.open(key, kv::Machine::new(self.store.engine().recovers_prefix())).await;
        if let Some(voters) = initialize
            && !group.is_initialized().await.unwrap()
        {
            group.initialize(&voters).await.unwrap();
        }
        group.elect_if_alone().await;
        sim().running(self.id, |running| drop(running.groups.insert(key.group, group.clone())));
    }

    fn tombstones(&self) -> BTreeSet<(PartitionId, ReplicaId)> {
        let keys = self.store.tombstones().unwrap().into_iter();
        keys.filter_map(|key| Some((PartitionId(key.group.0.checked_sub(1)?), key.replica))).collect()
    }

    /// Tells group 0 of births, and of replicas that were destroyed before it wanted them; true: some could not
    /// be told.
    async fn tell(&self, state: &meta::State) -> bool {
        let mut more = false;
        for (id, partition) in &state.partitions {
            let founder = partition.birth_replicas.first();
            let held = sim().held(self.id).into_iter().find(|(held, _)| held == id).map(|(_, group)| group);
            let Some(group) = held.filter(|group| founder == Some(&group.key().replica)) else { continue };
            if partition.birth == meta::Birth::Created {
                continue;
            }
            let begun = group.is_initialized().await.unwrap_or(false);
            more |= !begun || change(self.id, &meta::Command::Created(*id), TOLD_WITHIN).await.is_err();
        }
        for (partition, replica) in replicas_to_renew(state, self.id, &self.tombstones()) {
            let command = meta::Command::Renew { partition, replica };
            more |= change(self.id, &command, TOLD_WITHIN).await.is_err();
        }
        more
    }
}

/// Proposes a command to group 0, wherever it is led, until it is answered: every command may be repeated.
pub(super) async fn change(
    from: NodeId,
    command: &meta::Command,
    within: Duration,
) -> Result<meta::Answer, String> {
    let deadline = Instant::now() + within;
    let bytes = meta::encode_command(command);
    let mut told_of = None;
    loop {
        let here = sim().meta(from).and_then(|meta| meta.group.status().leader).map(ReplicaId::node);
        let to = told_of.take().or(here).unwrap_or(from);
        if let Some(meta) = sim().meta(to).filter(|_| to == from || !sim().network.is_cut(from, to)) {
            sleep(sim().network.delay()).await;
            let bytes = bytes.clone();
            let proposing = sim().ask(to, async move { meta.group.propose(bytes, deadline).await });
            match timeout_at(deadline, proposing).await {
                Ok(Ok(Ok(answer))) => return meta::decode_answer(&answer),
                Ok(Ok(Err(crate::raft::ProposeError::NotLeader { leader }))) => {
                    told_of = leader.map(ReplicaId::node).filter(|leader| *leader != to);
                }
                // Unknown, or that node crashed.
                _ => {}
            }
        }
        if Instant::now() >= deadline {
            return Err("no answer before the deadline".into());
        }
        sleep(Duration::from_millis(50)).await;
    }
}
