//! A member meets its peers: they may be of another cluster, or run on a copy of its own directory. What is
//! wrong in the configuration shows here, and is refused rather than served.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Node;
use super::formation::{Heard, Met, decide_met};
use super::forming::{Dialled, ROUND};
use crate::error::{Error, Reason, Result};

/// A node that has just begun to serve may still end because its peers are strangers; later it goes on, and
/// says so.
const REFUSES_WITHIN: Duration = Duration::from_secs(10);

/// Between two looks at peers that have not answered since the start.
const MEETS_AGAIN: Duration = Duration::from_secs(10);

/// For giving the own cluster up.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(10);

/// Until each of the peers is known to be of this cluster.
pub(super) async fn run(node: Weak<Node>, mut dialled: Dialled) {
    let started = Instant::now();
    let mut unheard = usize::MAX;
    let mut said = Met::Friends;
    while unheard > 0 {
        let Some(node) = node.upgrade() else { return };
        match node.meet_peers(&mut dialled, started.elapsed() < REFUSES_WITHIN, &mut said).await {
            Ok(left) => unheard = left,
            Err(error) => tracing::warn!("the cluster of a peer is not joined: {error}"),
        }
        drop(node);
        let pause = if started.elapsed() < REFUSES_WITHIN { ROUND } else { MEETS_AGAIN };
        sleep(pause).await;
    }
}

impl Node {
    /// Looks whether the peers are of this cluster; answers how many are not known to be.
    async fn meet_peers(
        self: &Arc<Node>,
        dialled: &mut Dialled,
        is_new: bool,
        said: &mut Met,
    ) -> Result<usize> {
        let heard = self.ask_peers(dialled).await;
        let me = self.standing();
        let met = decide_met(&me, &heard);
        let is_news = *said != met;
        said.clone_from(&met);
        match met {
            Met::Friends => {
                let friend = |one: &&Heard| {
                    one.standing.as_ref().is_some_and(|standing| standing.cluster_id == me.cluster_id)
                };
                return Ok(heard.len() - heard.iter().filter(friend).count());
            }
            Met::GiveUpFor(asked) => {
                tracing::info!(cluster_id = asked.cluster_id, "the peers are of another cluster: joining it");
                self.give_up(asked, Instant::now() + GIVEN_UP_WITHIN).await?;
            }
            Met::Newcomer(address) if is_news => {
                tracing::info!(address, "a peer is a cluster of its own, and joins this one if it names it");
            }
            Met::Strangers(why) if is_new && me.members.len() == 1 => self.fail(why),
            // Others depend on it.
            Met::Strangers(why) if is_news => tracing::error!("{why}"),
            Met::Newcomer(_) | Met::Strangers(_) => {}
        }
        Ok(usize::MAX)
    }

    /// Refuses to be a member twice, on a copy of its directory: asks who is where group 0 knows this node.
    pub(super) async fn refuse_copies(&self) -> Result<()> {
        let Some(seat) = self.seat() else { return Ok(()) };
        let state = seat.state.borrow().clone();
        let Some(known) = state.members.get(&seat.number()) else { return Ok(()) };
        if known.address == self.options.advertise_addr {
            return Ok(());
        }
        // Who does not answer is not there any more: this node has moved.
        let Ok(there) = self.hello(&known.address).await else { return Ok(()) };
        let is_copy = there.process_id != self.process_id
            && there.node.is_some_and(|node| node.disk_id == self.data_dir.disk_id());
        if !is_copy {
            return Ok(());
        }
        Err(Error::new(
            Reason::ClusterRefused,
            format!(
                "a node runs at {} on a copy of this data directory, {}, as the same member: stop one of the two, \
                 and start it with an empty data_dir and a node_id of its own",
                known.address,
                self.data_dir.path().display()
            ),
        ))
    }
}
