//! A cluster of one gives itself up, so that its node can join another cluster: what the original's way
//! (start each node alone, then join them) comes to here. `docs/decisions/0012-giving-up.md` says why in
//! this order.
//!
//! 1. group 0 commits Seal: nobody can join this cluster any more;
//! 2. each partition commits a seal, behind which no write takes effect, and answers whether one ever did;
//! 3. the other cluster, asked after that, does not give itself up too;
//! 4. where to go is written to the disk (`JOINING`): from here on there is no way back;
//! 5. the process starts anew, empties its data directory, and asks for admission like any new node.
//!
//! Before step 4 a refusal ends with everything unsealed. After a crash it goes on where it was.

use std::sync::Weak;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout_at};

use super::forming::ROUND;
use super::open::refused;
use super::promise::JOINING;
use super::seat::leads;
use super::{Deadline, Node};
use crate::error::{Error, Reason, Result};
use crate::meta::{self, Command, Sealed};
use crate::proto::v1;
use crate::types::PartitionId;
use crate::{crash_point, kv};

/// For one command to a group of this node.
const STEP_WITHIN: Duration = Duration::from_secs(5);

/// How often the other cluster's members are asked before it counts as gone; and for how long: this one takes no write
/// meanwhile.
const ASKED_TIMES: usize = 10;
const ASKED_WITHIN: Duration = Duration::from_secs(20);

/// How far it has come, for those who asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GivingUp {
    /// Nobody asked, or it is not decided.
    Open,
    /// It stays what it is, because of this.
    Refused(String),
    /// It is written down that this node goes.
    Bound,
}

pub(super) async fn run(node: Weak<Node>) {
    loop {
        let Some(node) = node.upgrade() else { return };
        match node.go_on_giving_up().await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::info!(%error, "giving the cluster up is tried again"),
        }
        drop(node);
        sleep(ROUND).await;
    }
}

impl Node {
    /// Gives this node's cluster of one up, to join the one that asks. Answers once that can't be lost;
    /// asking again changes nothing.
    ///
    /// # Errors
    /// [`Reason::ClusterRefused`] if it can't be given up: everything is as before then.
    pub(super) async fn give_up(&self, asked: v1::GiveUpRequest, deadline: Deadline) -> Result<()> {
        let _call = self.enter()?;
        let cluster = self.formed()?;
        let refuse = |why: String| Err(Error::new(Reason::ClusterRefused, why));
        let name = &self.options.name;
        if asked.cluster_name != cluster.state.cluster_name {
            return refuse(format!(
                "\"{name}\" is of a cluster named \"{}\", not \"{}\"",
                cluster.state.cluster_name, asked.cluster_name
            ));
        }
        // What is sealed answers for it once more; this spares a cluster in use the attempt.
        if self.replicas().iter().any(|(_, replica)| replica.totals.is_written()) {
            return refuse(self.is_in_use());
        }
        self.gave_up.send_if_modified(|state| {
            let again = matches!(state, GivingUp::Refused(_));
            if again {
                *state = GivingUp::Open;
            }
            again
        });
        let mut outcome = self.gave_up.subscribe();
        let target = Sealed { cluster_id: asked.cluster_id, addresses: asked.addresses };
        self.change(&Command::Seal(target), deadline).await?;
        let decided = outcome.wait_for(|state| *state != GivingUp::Open);
        match timeout_at(deadline, decided).await {
            Ok(Ok(state)) => match &*state {
                GivingUp::Refused(why) => refuse(why.clone()),
                GivingUp::Open | GivingUp::Bound => Ok(()),
            },
            Ok(Err(_)) | Err(_) => Err(Error::new(
                Reason::OutcomeUnknown,
                format!("\"{name}\" has begun to give its cluster up; ask again whether it has come to it"),
            )),
        }
    }

    /// Resolves when this node has to start anew to go on.
    pub async fn starts_anew(&self) {
        let mut outcome = self.gave_up.subscribe();
        if outcome.wait_for(|state| *state == GivingUp::Bound).await.is_err() {
            // The node is gone, and whoever asks goes with it.
            std::future::pending().await
        }
    }

    fn is_in_use(&self) -> String {
        format!(
            "\"{}\" has taken writes as a cluster of its own, and they would be lost: join the other way round, or \
             export them, start it with an empty data_dir, and import them afterwards",
            self.options.name
        )
    }

    /// Does what a seal of group 0 asks for; true: there is no way back.
    async fn go_on_giving_up(&self) -> Result<bool> {
        let Some(seat) = self.seat() else { return Ok(false) };
        let is_sealed = is_to_give_up(&seat.state.borrow(), self.data_dir.disk_id());
        if !is_sealed || !leads(&seat.meta) {
            return Ok(false);
        }
        // What was applied so far may be history: a seal that was taken back long ago.
        seat.meta.read(Instant::now() + STEP_WITHIN).await.map_err(refused)?;
        let state = seat.state.borrow().clone();
        match &state.sealed {
            Some(target) if is_to_give_up(&state, self.data_dir.disk_id()) => {
                self.carry_out(&state, target).await
            }
            _ => Ok(false),
        }
    }

    /// Goes on with it; true: it is written down, and there is no way back.
    async fn carry_out(&self, state: &meta::State, target: &Sealed) -> Result<bool> {
        crash_point::reached("giving-up.sealed");
        let mut is_written = false;
        for id in state.partitions.keys() {
            let answer = self.propose_to(id.group(), kv::encode_seal(), Instant::now() + STEP_WITHIN).await?;
            is_written |= kv::decode_written(&answer).map_err(|error| internal(*id, &error))?;
        }
        crash_point::reached("giving-up.partitions-sealed");
        let refusal = match is_written {
            true => Some(self.is_in_use()),
            false => self.refused_by(target).await,
        };
        if let Some(why) = refusal {
            self.stay(state, why).await?;
            return Ok(false);
        }
        let joining = v1::Joining {
            cluster_id: target.cluster_id.clone(),
            addresses: target.addresses.clone(),
            left_disk_id: self.data_dir.disk_id().to_string(),
        };
        let dir = self.data_dir.path().to_path_buf();
        let write = move || JOINING.write(&dir, &joining).map_err(|why| (why, JOINING.read(&dir)));
        let written = tokio::task::spawn_blocking(write).await;
        if let Err((why, there)) = written.map_err(refused)? {
            if there == Ok(None) {
                return Err(refused(why));
            }
            // It may stay, and the next start empties the directory if it does: nothing may be unsealed, and acknowledged, in
            // this process any more.
            self.fail(format!("whether this node has given its cluster up is not known: {why}"));
            return std::future::pending().await;
        }
        tracing::info!(cluster_id = target.cluster_id, "giving this cluster of one up to join another");
        crash_point::reached("giving-up.bound");
        self.gave_up.send_replace(GivingUp::Bound);
        Ok(true)
    }

    /// Why the other cluster can't be joined. Asked only once this one is sealed: of two that give
    /// themselves up for each other, the one that sealed later sees the other's seal.
    async fn refused_by(&self, target: &Sealed) -> Option<String> {
        let until = Instant::now() + ASKED_WITHIN;
        let mut why = String::new();
        for attempt in 0..ASKED_TIMES {
            if attempt > 0 {
                sleep(ROUND).await;
            }
            if Instant::now() >= until {
                break;
            }
            let asked =
                target.addresses.iter().map(|address| async move { (address, self.hello(address).await) });
            for (address, answer) in join_all(asked).await {
                match answer {
                    Ok(standing) if standing.cluster_id != target.cluster_id => {
                        why =
                            format!("{address} is no member of the cluster {} (any more)", target.cluster_id);
                    }
                    Ok(standing) if standing.sealed => {
                        return Some(format!(
                            "the cluster at {address} gives itself up, too: join one after the other"
                        ));
                    }
                    Ok(_) => return None,
                    Err(error) => why = format!("{address}: {error}"),
                }
            }
        }
        Some(format!("no member of the cluster to join could be asked: {why}"))
    }

    /// Unseals everything, group 0 last: until then it is tried again after a crash.
    async fn stay(&self, state: &meta::State, why: String) -> Result<()> {
        for id in state.partitions.keys() {
            self.propose_to(id.group(), kv::encode_unseal(), Instant::now() + STEP_WITHIN).await?;
        }
        crash_point::reached("giving-up.partitions-unsealed");
        self.change(&Command::Unseal, Instant::now() + STEP_WITHIN).await?;
        tracing::warn!("this cluster is not given up after all: {why}");
        self.gave_up.send_replace(GivingUp::Refused(why));
        Ok(())
    }
}

/// Whether this state asks the node with this disk to give its cluster up: a node that joins a cluster goes
/// through all of its past, and must not take an old seal of another node for its own.
fn is_to_give_up(state: &meta::State, disk_id: &str) -> bool {
    state.sealed.is_some()
        && state.members.len() == 1
        && state.members.values().all(|member| member.disk_id == disk_id)
}

fn internal(id: PartitionId, error: &dyn std::fmt::Display) -> Error {
    Error::new(Reason::Internal, format!("partition {id}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_in_the_past_of_a_cluster_is_none_of_a_newcomers() {
        let member = |name: &str| meta::Member {
            name: name.into(),
            address: format!("{name}:8080"),
            zone: String::new(),
            weight: 1,
            disk_id: format!("disk-{name}"),
            state: meta::MemberState::Active,
        };
        let mut state = meta::State::default();
        let form = meta::Form {
            cluster_id: "c".into(),
            cluster_name: "rushkv".into(),
            replicas: 3,
            partitions: 4,
            members: meta::number_members([member("a")]),
        };
        state.apply(Command::Form(form)).unwrap();
        assert!(!is_to_give_up(&state, "disk-a"));
        let target = Sealed { cluster_id: "t".into(), addresses: Vec::new() };
        state.apply(Command::Seal(target)).unwrap();
        assert!(is_to_give_up(&state, "disk-a"));
        assert!(!is_to_give_up(&state, "disk-b"));
    }
}
