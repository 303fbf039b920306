//! Makes what is what group 0 says should be: as `node/reconciling.rs`, with its memory and its decisions.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use super::follow::change;
use super::node::{Data, Process};
use super::sim;
use crate::meta;
use crate::node::reconcile::{Confirmed, Present, Step, replicas_to_close};
use crate::node::reconciling::Memory;
use crate::raft::{Group, Machine, MembershipError, Removed, Role};
use crate::types::{LogId, LogKey, NodeId, PartitionId, ReplicaId};

const LOOK: Duration = Duration::from_millis(300);
const STEP_WITHIN: Duration = Duration::from_secs(5);
const ASK_WITHIN: Duration = Duration::from_secs(1);

pub(super) async fn run(process: Process) {
    let mut memory = Memory::default();
    loop {
        sleep(LOOK).await;
        let Some(meta) = sim().meta(process.id) else { continue };
        let state = meta.state.borrow().clone();
        if !state.is_formed() {
            continue;
        }
        let of_meta = memory.look(&meta.group, &state, false);
        let held = sim().held(process.id);
        let of_data: Vec<_> = held
            .iter()
            .filter_map(|(_, group)| {
                memory.look(group, &state, false).map(|(_, step, expect)| (group, step, expect))
            })
            .collect();
        if let Some((_, step, expect)) = of_meta {
            take(process.id, &meta.group, step, expect).await;
        }
        join_all(of_data.into_iter().map(|(group, step, expect)| take(process.id, group, step, expect)))
            .await;
        process.close_excluded(&mut memory, &state).await;
        if meta.group.status().role == Role::Leader {
            for number in state.removable() {
                // If it is not removed yet, it is looked at again.
                let _ = change(process.id, &meta::Command::Removed(number), STEP_WITHIN).await;
            }
        }
    }
}

/// Takes one step. What fails is decided anew at the next look.
async fn take<M: Machine>(id: NodeId, group: &Group<M>, step: Step, expect: LogId) {
    let deadline = Instant::now() + STEP_WITHIN;
    let shown = format!("{}: {step:?}", group.key());
    let done: Result<(), MembershipError> = match step {
        Step::Nothing => Ok(()),
        Step::Flatten => group.flatten(Removed::StayLearners, expect, deadline).await.map(drop),
        Step::AddLearner(replica) => group.add_learner(replica, expect, deadline).await.map(drop),
        Step::ChangeVoters(voters) => {
            group.change_voters(&voters, Removed::StayLearners, expect, deadline).await.map(drop)
        }
        Step::RemoveLearner(replica) => group.remove(replica, expect, deadline).await.map(drop),
        Step::TransferLeader(to) => group.transfer_leader(to, deadline).await.map(drop),
        Step::Report { holders, index } => {
            let moved = meta::Command::Moved { group: group.key().group, holders, index };
            let _ = change(id, &moved, STEP_WITHIN).await;
            Ok(())
        }
    };
    sim().step(format!("{shown} -> {done:?}"), done.is_ok());
}

impl Process {
    /// Destroys replicas that their groups exclude; their ids are never used again.
    async fn close_excluded(&self, memory: &mut Memory, state: &meta::State) {
        let mut told = BTreeMap::new();
        for (partition, group) in sim().held(self.id) {
            let key = group.key();
            // Whom a group excludes, it does not tell any more: its leader has to be asked.
            if state.has_discarded(partition, key.replica)
                && !memory.present(partition, &group).excludes_itself()
                && memory.is_due(key)
                && let Some(word) = self.confirmed(key, state).await
            {
                told.insert(key, word);
            }
        }
        let mut is_any = false;
        loop {
            let _following = self.following.lock().await;
            let Some(state) = sim().meta(self.id).map(|meta| meta.state.borrow().clone()) else { return };
            let present: Vec<Present> = (sim().held(self.id).iter())
                .map(|(partition, group)| Present {
                    confirmed: told.get(&group.key()).cloned(),
                    ..memory.present(*partition, group)
                })
                .collect();
            let Some((partition, replica)) = replicas_to_close(&state, &present).first().copied() else {
                break;
            };
            self.destroy(LogKey { group: partition.group(), replica }).await;
            is_any = true;
        }
        // A newer replica of the same partition may have waited for its place.
        if is_any {
            self.catch_up(state).await;
        }
    }

    async fn destroy(&self, key: LogKey) {
        let mut held = None;
        sim().running(self.id, |running| held = running.groups.remove(&key.group));
        let Some(group) = held else { return };
        sim().tell(format!("{}: {key} is destroyed", self.id));
        group.destroy().await.unwrap();
        sim().invariants.borrow_mut().replica_ids.destroyed(key);
    }

    /// Who is in the group of a replica that is not meant to be here, by its leader's word.
    async fn confirmed(&self, key: LogKey, state: &meta::State) -> Option<Confirmed> {
        let partition = state.partitions.get(&PartitionId(key.group.0.checked_sub(1)?))?;
        let holders = partition.replicas.iter().chain(&partition.holders.replicas);
        let mut nodes: Vec<NodeId> = holders.map(|replica| replica.node()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.retain(|node| *node != self.id && !sim().network.is_cut(self.id, *node));
        let asked = nodes.into_iter().map(|node| async move {
            sleep(sim().network.delay()).await;
            let group = sim()
                .held(node)
                .into_iter()
                .map(|(_, group)| group)
                .find(|it| it.key().group == key.group)?;
            let asking = sim().ask(node, membership(group));
            timeout(ASK_WITHIN, asking).await.ok()?.ok()?
        });
        join_all(asked).await.into_iter().flatten().max_by_key(|word| word.term)
    }
}

/// The members of a group that a node leads, as a majority confirms it.
async fn membership(group: Data) -> Option<Confirmed> {
    let before = group.status();
    group.read(Instant::now() + ASK_WITHIN).await.ok()?;
    let status = group.status();
    let settled = status.role == Role::Leader && status.membership_committed && !status.joint;
    if !settled || (status.term, status.membership) != (before.term, before.membership) {
        return None;
    }
    let members: Vec<ReplicaId> = status.voters.iter().chain(&status.learners).copied().collect();
    Some(Confirmed { members, term: status.term, index: status.membership?.index })
}
