//! Replaces this node's damaged replicas, as far as others say that they are not needed: group 0 draws a new
//! replica for the place, which gets everything from the group's leader.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::Node;
use crate::types::{LogKey, PartitionId};
use crate::{meta, raft};

/// Between two looks at what is damaged here.
const LOOK: Duration = Duration::from_secs(1);

/// From one attempt for a replica to the next one: what refuses it takes time to change.
const PAUSE: Duration = Duration::from_secs(30);

const TOLD_WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn run(node: Weak<Node>) {
    tokio::join!(replace(node.clone()), step_down(node));
}

async fn replace(node: Weak<Node>) {
    let mut tried: HashMap<LogKey, Instant> = HashMap::new();
    loop {
        sleep(LOOK).await;
        let Some(node) = node.upgrade() else { return };
        let forgetting = node.clone();
        // The other error: the runtime ends.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || forgetting.forget_old_engine()).await {
            tracing::warn!(%error, "the damaged engine that was replaced stays for now");
        }
        for (partition, replica) in node.replicas() {
            let key = replica.group.key();
            let is_due = tried.get(&key).is_none_or(|last| last.elapsed() >= PAUSE);
            let is_damaged = replica.group.damage().is_some();
            if !is_due || !(is_damaged || replica.group.is_in_doubt()) {
                continue;
            }
            tried.insert(key, Instant::now());
            match is_damaged {
                true => node.rebuild(partition, key).await,
                false => drop(node.replace_doubted(partition, &replica).await),
            }
        }
    }
}

/// A leader whose copy is in doubt serves nobody; another one may. Apart from the rest, which asks others one partition
/// after another: a leadership that lasts is not taken for one that was handed over at once.
async fn step_down(node: Weak<Node>) {
    loop {
        sleep(LOOK).await;
        let Some(node) = node.upgrade() else { return };
        let led = node.replicas().into_iter().filter(|(_, replica)| {
            replica.group.is_in_doubt() && replica.group.status().role == raft::Role::Leader
        });
        let handing_over = led.map(|(partition, replica)| async move {
            let key = replica.group.key();
            match replica.group.step_down(Instant::now() + TOLD_WITHIN).await {
                Ok(_) => tracing::warn!(%partition, %key, "a leader whose copy is in doubt has stepped down"),
                Err(error) => tracing::debug!(%partition, %key, %error, "it goes on leading"),
            }
        });
        join_all(handing_over).await;
    }
}

impl Node {
    async fn rebuild(self: &Arc<Node>, partition: PartitionId, key: LogKey) {
        let Some(cluster) = self.cluster() else { return };
        let wanted = cluster.state.partitions.get(&partition);
        if !wanted.is_some_and(|wanted| wanted.replicas.contains(&key.replica)) {
            // It is on its way out.
            return;
        }
        // Else the one that is made anew could be a copy of what is wrong, and outvote what is right.
        if !self.others_agree(partition, key.replica).await {
            tracing::warn!(%partition, %key, "a damaged replica stays: the others don't agree, or are too few");
            return;
        }
        // The clock only keeps rebuilds apart.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let rebuild = meta::Command::Rebuild { partition, replica: key.replica, at: now };
        match self.change(&rebuild, Instant::now() + TOLD_WITHIN).await {
            Ok(_) => tracing::warn!(%partition, %key, "a damaged replica is replaced by a new one"),
            Err(error) => tracing::warn!(%partition, %key, %error, "a damaged replica is not replaced"),
        }
    }
}
