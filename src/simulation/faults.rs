//! What goes wrong: crashes, power losses, cut links, stalls and slow disks, by the dice.

use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep};

use super::dice::Dice;
use super::{Ambush, sim};
use crate::types::NodeId;

/// Makes faults until `end`, one after another; some last into the next one.
pub(super) async fn run(dice: Dice, end: Instant) {
    loop {
        sleep(dice.ms(1500, 7000)).await;
        if Instant::now() >= end {
            return;
        }
        let nodes: Vec<NodeId> = sim().nodes.borrow().keys().copied().collect();
        let any = *dice.pick(&nodes);
        let node = leader_or(&dice, any);
        let other = *dice.pick(&nodes);
        let lasts = dice.ms(50, 4000);
        sim().faults.set(sim().faults.get() + 1);
        match dice.below(100) {
            0..18 => crash(&dice, node, dice.chance(70), lasts),
            18..30 => {
                let what = [Ambush::Vote, Ambush::Vote, Ambush::Entries, Ambush::Append, Ambush::Snapshot];
                let what = *dice.pick(&what);
                sim().ambush.set(Some(what));
                if what == Ambush::Vote {
                    // Somebody has to be elected.
                    crash(&dice, node, true, dice.ms(1000, 3000));
                }
            }
            30..38 => {
                let power_loss = dice.chance(70);
                for node in nodes {
                    crash(&dice, node, power_loss, dice.ms(20, 3000));
                }
            }
            38..55 => cut(&format!("{node} is cut off"), lasts, |cut| {
                for other in &nodes {
                    cut(node, *other);
                    cut(*other, node);
                }
            }),
            55..66 => cut(&format!("{node} is not heard"), lasts, |cut| {
                for other in &nodes {
                    cut(node, *other);
                }
            }),
            66..74 => cut(&format!("{node} and {other} don't hear each other"), lasts, |cut| {
                cut(node, other);
                cut(other, node);
            }),
            74..84 => {
                sim().tell(format!("{node} stalls for {lasts:?}"));
                sim().executor.stall(node);
                later(lasts, move || sim().executor.resume(node));
            }
            84..93 => {
                sim().tell(format!("the disk of {node} is slow for {lasts:?}"));
                set_disk_slowness(node, *dice.pick(&[10, 50, 300]));
                later(lasts, move || set_disk_slowness(node, 1));
            }
            _ => {
                sim().tell(format!("the network is slow for {lasts:?}"));
                sim().network.set_slowness(*dice.pick(&[5, 20, 60]));
                later(lasts, || sim().network.set_slowness(1));
            }
        }
    }
}

/// Ends all faults.
pub(super) fn heal() {
    let sim = sim();
    sim.network.heal();
    sim.network.set_slowness(1);
    let nodes: Vec<NodeId> = sim.nodes.borrow().keys().copied().collect();
    for node in nodes {
        sim.executor.resume(node);
        set_disk_slowness(node, 1);
        sim.start(node);
    }
}

/// Often the one that matters most.
fn leader_or(dice: &Dice, node: NodeId) -> NodeId {
    match sim().a_leader().filter(|_| dice.chance(60)) {
        Some(leader) => leader,
        None => node,
    }
}

fn later(after: Duration, then: impl FnOnce() + 'static) {
    let waiting = async move {
        sleep(after).await;
        then();
    };
    let sim = sim();
    sim.executor.on(None, || sim.executor.spawn(waiting.boxed_local()));
}

fn crash(dice: &Dice, node: NodeId, power_loss: bool, down: Duration) {
    // A short one comes back before anybody noticed.
    let down = if dice.chance(40) { dice.ms(5, 100) } else { down };
    let what = if power_loss { "loses power" } else { "is killed" };
    sim().tell(format!("{node} {what}, for {down:?}"));
    sim().crash(node, power_loss);
    later(down, move || sim().start(node));
}

/// A node did what was waited for. It is back soon.
pub(super) fn ambushed(node: NodeId) {
    sim().tell(format!("{node} is ambushed"));
    sim().crash(node, true);
    let down = sim().disk_dice.ms(5, 300);
    later(down, move || sim().start(node));
}

fn cut(what: &str, lasts: Duration, links: impl FnOnce(&mut dyn FnMut(NodeId, NodeId))) {
    sim().tell(format!("{what} for {lasts:?}"));
    links(&mut |from, to| sim().network.cut(from, to));
    later(lasts, || sim().network.heal());
}

fn set_disk_slowness(node: NodeId, slowness: u32) {
    if let Some(node) = sim().nodes.borrow_mut().get_mut(&node) {
        node.slowness = slowness;
    }
}
