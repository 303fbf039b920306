//! Who changes the cluster: founds it, lets a node join, has another one leave.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::sleep;

use super::dice::Dice;
use super::follow::change;
use super::node::Node;
use super::{FOUNDERS, PARTITIONS, REPLICAS, sim};
use crate::meta::{self, Answer, Command, Form, Join, Member, MemberState};
use crate::types::NodeId;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Founds a cluster of the nodes that there are.
pub(super) async fn found() {
    let members = (1..=FOUNDERS).map(|number| Member {
        name: format!("node{number}"),
        address: format!("node{number}:8080"),
        zone: String::new(),
        weight: 1,
        disk_id: format!("disk{number}"),
        state: MemberState::Active,
    });
    let members: BTreeMap<NodeId, Member> = meta::number_members(members);
    let voters = [1, 2, 3].map(|number| meta::group0_replica(NodeId(number)));
    let first = sim().meta(NodeId(1)).expect("it has just been started").group;
    sim().ask(NodeId(1), async move { first.initialize(&voters).await.unwrap() }).await.unwrap();
    let form = Form {
        cluster_id: "simulated".into(),
        cluster_name: "simulated".into(),
        replicas: REPLICAS,
        partitions: PARTITIONS,
        members,
    };
    change(NodeId(1), &Command::Form(form), ANSWER_WITHIN).await.unwrap();
}

/// A node joins and another one leaves, in this order or the other.
pub(super) async fn run(dice: Dice, recovers_prefix: bool) {
    let mut changes = [true, false];
    if dice.chance(50) {
        changes.reverse();
    }
    for joins in changes {
        sleep(dice.ms(3000, 15_000)).await;
        match joins {
            true => join(&dice, recovers_prefix).await,
            false => leave(&dice).await,
        }
        sim().changes.set(sim().changes.get() + 1);
    }
}

/// Asks any node until one has seen to it.
async fn ask(dice: &Dice, command: Command) -> Answer {
    loop {
        let members = sim().members();
        let node = *dice.pick(&members);
        let answer = sim().ask(node, {
            let command = command.clone();
            async move { change(node, &command, ANSWER_WITHIN).await }
        });
        // A node that crashes meanwhile says nothing.
        if let Ok(Ok(answer)) = answer.await {
            return answer;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn join(dice: &Dice, recovers_prefix: bool) {
    let name = format!("node{}", FOUNDERS + 1);
    let join = Join {
        address: format!("{name}:8080"),
        disk_id: "another disk".into(),
        name,
        zone: String::new(),
        weight: 1,
        version_max: meta::CLUSTER_VERSION,
    };
    let Answer::Number(number) = ask(dice, Command::Join(join)).await else {
        panic!("who joins is given a number");
    };
    sim().tell(format!("{number} joins"));
    sim().nodes.borrow_mut().insert(number, Node::new(number, recovers_prefix));
    sim().start(number);
}

async fn leave(dice: &Dice) {
    let number = *dice.pick(&sim().members());
    sim().tell(format!("{number} is to leave"));
    ask(dice, Command::Leave(number)).await;
    loop {
        sleep(Duration::from_millis(500)).await;
        let members = sim().members();
        let metas = members.iter().filter_map(|node| sim().meta(*node));
        if metas.into_iter().any(|meta| meta.state.borrow().removed.contains_key(&number)) {
            break;
        }
    }
    sim().tell(format!("{number} has left"));
    if let Some(node) = sim().nodes.borrow_mut().get_mut(&number) {
        node.is_member = false;
    }
    sim().crash(number, false);
}
