//! Changes of members: a copy moves from one node to another while all goes on.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::dice::Dice;
use super::node::{Data, open_assigned};
use super::sim;
use crate::raft::{MembershipError, Removed, Role, Status};
use crate::types::{GroupId, LogId, LogKey, NodeId, ReplicaId};

const STEP_WITHIN: Duration = Duration::from_secs(5);

/// Moves a copy of `group` to a node that has none, as often as `moves` says.
pub(super) async fn run(dice: Dice, group: GroupId, moves: u32) {
    for round in 0..moves {
        sleep(dice.ms(4000, 20_000)).await;
        let (holders, free) = {
            let sim = sim();
            let nodes = sim.nodes.borrow();
            let holders: Vec<ReplicaId> =
                nodes.values().filter_map(|node| node.assigned.get(&group).copied()).collect();
            let free: Vec<NodeId> = (nodes.iter())
                .filter(|(_, node)| !node.assigned.contains_key(&group))
                .map(|(id, _)| *id)
                .collect();
            (holders, free)
        };
        let (old, node) = (*dice.pick(&holders), *dice.pick(&free));
        // The old copy may have been the node's second one, or third.
        let new = ReplicaId::new(node, 2 + round);
        sim().tell(format!("{group}: {new} is to take the place of {old}"));
        open_assigned(node, LogKey { group, replica: new });
        take_steps(group, old, new).await;
        sim().tell(format!("{group}: {new} has taken the place of {old}"));
        sim().retire(LogKey { group, replica: old }).await;
        sim().changes.set(sim().changes.get() + 1);
    }
}

/// Asks whoever leads for the next step, until there is none.
async fn take_steps(group: GroupId, old: ReplicaId, new: ReplicaId) {
    let mut commit = None;
    loop {
        sleep(Duration::from_millis(150)).await;
        let Some((leader, status)) = leader(group) else { continue };
        // What a copy must have to be complete: what was committed at the last look, in this term.
        let before = commit.replace((status.term, status.committed));
        let Some(expect) = status.membership.filter(|_| status.membership_committed) else { continue };
        let complete = before
            .filter(|(term, _)| *term == status.term)
            .and_then(|(_, committed)| committed)
            .is_some_and(|committed| status.matched(new) >= committed.index);
        let members =
            (status.is_member(old), status.is_voter(old), status.is_member(new), status.is_voter(new));
        let step = match members {
            _ if status.joint => Step::Flatten,
            (_, _, false, _) => Step::Add,
            (_, _, true, false) if complete => Step::Promote,
            (_, _, true, false) => continue,
            (true, _, true, true) if leader.key().replica == old => Step::HandOver,
            (true, _, true, true) => Step::Remove,
            (false, _, true, true) => return,
        };
        take(leader, step, expect, &status, old, new).await;
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Flatten,
    Add,
    Promote,
    HandOver,
    Remove,
}

async fn take(leader: Data, step: Step, expect: LogId, status: &Status, old: ReplicaId, new: ReplicaId) {
    let deadline = Instant::now() + STEP_WITHIN;
    let node = leader.key().replica.node();
    let voters: Vec<ReplicaId> =
        status.voters.iter().copied().filter(|voter| *voter != old).chain([new]).collect();
    sim().tell(format!("{}: {step:?}", leader.key()));
    let taking = async move {
        let done: Result<(), MembershipError> = match step {
            Step::Flatten => leader.flatten(Removed::StayLearners, expect, deadline).await.map(drop),
            Step::Add => leader.add_learner(new, expect, deadline).await.map(drop),
            Step::Promote => {
                leader.change_voters(&voters, Removed::StayLearners, expect, deadline).await.map(drop)
            }
            Step::HandOver => leader.transfer_leader(new, deadline).await.map(drop),
            Step::Remove => leader.remove(old, expect, deadline).await.map(drop),
        };
        sim().tell(format!("{}: {step:?} -> {done:?}", leader.key()));
    };
    // Its node may crash meanwhile: then the next leader is asked.
    let _ = sim().ask(node, taking).await;
}

fn leader(group: GroupId) -> Option<(Data, Status)> {
    let sim = sim();
    let nodes = sim.nodes.borrow();
    let groups = nodes.values().filter_map(|node| node.running.as_ref()?.groups.get(&group));
    let led = groups.map(|group| (group, group.status())).filter(|(_, status)| status.role == Role::Leader);
    led.max_by_key(|(_, status)| status.term).map(|(group, status)| (group.clone(), status))
}
