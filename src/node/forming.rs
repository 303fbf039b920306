//! Getting a node into a cluster: asks its peers, founds with them or joins them, and follows the founding
//! to its end. [`super::formation`] decides; every step here can be repeated after a crash.
//!
//! Founding together:
//! 1. the first node (lowest name) writes the founding to its disk, then has every other one do so
//!    (Prepare); a node that is prepared accepts no other founding unless this one can't take place any
//!    more;
//! 2. when all have it, the first one, and only it, gives group 0 its voters;
//! 3. whoever leads group 0 proposes Form, made from the founding;
//! 4. each node that sees the cluster formed writes its identity and forgets the founding.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use super::formation::{Heard, Step, decide, decide_joining};
use super::identity::Identity;
use super::open::refused;
use super::promise::{JOINING, PREPARED};
use super::seat::{Beginning, Seat, leads};
use super::{Deadline, Node, meeting};
use crate::error::{Error, Reason, Result};
use crate::proto::v1::{self, Founder};
use crate::transport::{Kind, PROTOCOL_MAX, PROTOCOL_MIN};
use crate::types::NodeId;
use crate::{crash_point, meta, transport};

/// Between two rounds of Hello.
pub(super) const ROUND: Duration = Duration::from_millis(300);

/// For one answer of a peer while a cluster is formed.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// For one attempt of a command to group 0.
const CHANGE_WITHIN: Duration = Duration::from_secs(5);

/// Channels to peers by their addresses, kept from round to round.
pub(super) type Dialled = HashMap<String, transport::GatedChannel>;

pub(super) async fn run(node: Weak<Node>) {
    let mut dialled = Dialled::new();
    loop {
        let Some(node) = node.upgrade() else { return };
        let done = match node.seat() {
            None => node.find_cluster(&mut dialled).await.map(|()| false),
            Some(seat) => node.go_on_founding(&seat, &mut dialled).await,
        };
        match done {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => node.waits_for(format!("{error}")),
        }
        drop(node);
        sleep(ROUND).await;
    }
    meeting::run(node, dialled).await;
}

impl Node {
    /// Says what this node waits for, once each time it changes.
    fn waits_for(&self, what: String) {
        let changed = self.waiting.send_if_modified(|waiting| {
            let changed = *waiting != what;
            waiting.clone_from(&what);
            changed
        });
        if changed {
            tracing::info!("waiting for {what}");
        }
    }

    fn myself(&self) -> Founder {
        Founder {
            number: self.seat().map_or(0, |seat| seat.number().0),
            name: self.options.name.clone(),
            address: self.options.advertise_addr.clone(),
            zone: self.options.zone.clone(),
            weight: self.options.weight,
            disk_id: self.data_dir.disk_id().to_string(),
        }
    }

    pub(super) fn settings(&self) -> v1::FormationSettings {
        let wanted = &self.options.formation;
        v1::FormationSettings {
            cluster_name: wanted.cluster_name.clone(),
            replicas: wanted.replicas,
            partitions: wanted.partitions,
        }
    }

    /// How this node stands to a cluster, for its peers.
    pub(super) fn standing(&self) -> v1::Standing {
        let mut standing = v1::Standing {
            node: Some(self.myself()),
            settings: Some(self.settings()),
            seen: self.seen.borrow().clone(),
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            process_id: self.process_id.clone(),
            written: self.replicas().iter().any(|(_, replica)| replica.totals.is_written()),
            ..v1::Standing::default()
        };
        let Some(seat) = self.seat() else {
            standing.joining_id = self.joining.as_ref().map_or(String::new(), |it| it.cluster_id.clone());
            return standing;
        };
        standing.has_log = seat.meta.status().last_index > 0 || !seat.meta.status().voters.is_empty();
        if let Some(founding) = &seat.founding {
            standing.prepared_id = founding.cluster_id.clone();
        }
        let state = seat.state.borrow().clone();
        if state.is_formed() {
            standing.cluster_id = state.cluster_id.clone();
            standing.sealed = state.sealed.is_some();
            standing.members = founders(&state);
            if let Some(settings) = &mut standing.settings {
                settings.cluster_name = state.cluster_name.clone();
            }
        }
        standing
    }

    /// One round of Hello with every peer, and what follows from it.
    async fn find_cluster(self: &Arc<Node>, dialled: &mut Dialled) -> Result<()> {
        let heard = self.ask_peers(dialled).await;
        let step = match &self.joining {
            Some(joining) => decide_joining(joining, &self.standing(), &heard),
            None => decide(&self.standing(), &heard),
        };
        match step {
            Step::Wait(what) => self.waits_for(what),
            Step::Refuse(why) => self.fail(why),
            Step::Found { founders, replaces } => self.found(founders, replaces, dialled).await?,
            Step::Join { address } => self.ask_admission(&address, dialled).await?,
            // Only a prepared node can be, and it has a seat.
            Step::Founded => {}
        }
        Ok(())
    }

    pub(super) async fn ask_peers(&self, dialled: &mut Dialled) -> Vec<Heard> {
        let standing = self.standing();
        let addresses = self.joining.as_ref().map_or(&self.options.peers, |joining| &joining.addresses);
        let asked = addresses.iter().map(|address| {
            let channel = self.dialled(dialled, address);
            let request = v1::HelloRequest { from: Some(standing.clone()) };
            async move {
                let answer = ask(channel, |mut peer| async move { peer.hello(request).await });
                Heard {
                    address: address.clone(),
                    standing: answer.await.ok().and_then(|hello| hello.standing),
                }
            }
        });
        let heard: Vec<Heard> = join_all(asked.collect::<Vec<_>>()).await;
        let disks = heard.iter().filter_map(|one| one.standing.as_ref()?.node.as_ref());
        let mut seen: Vec<String> = disks.map(|node| node.disk_id.clone()).collect();
        seen.push(self.data_dir.disk_id().to_string());
        seen.sort();
        seen.dedup();
        self.seen.send_replace(seen);
        if heard.iter().all(|one| one.standing.is_some()) {
            crash_point::reached("forming.all-heard");
        }
        heard
    }

    pub(super) fn dialled(&self, dialled: &mut Dialled, address: &str) -> Result<transport::GatedChannel> {
        if let Some(channel) = dialled.get(address) {
            return Ok(channel.clone());
        }
        let channel = transport::GatedChannel(transport::dial(address)?);
        dialled.insert(address.to_string(), channel.clone());
        Ok(channel)
    }

    /// What is left to do with a seat; true: nothing.
    async fn go_on_founding(self: &Arc<Node>, seat: &Arc<Seat>, dialled: &mut Dialled) -> Result<bool> {
        let state = seat.state.borrow().clone();
        if state.is_formed() {
            self.finish_founding(seat).await?;
            return self.tell_changes(seat, &state).await;
        }
        if leads(&seat.meta) {
            let form = self.form_of(seat);
            self.waits_for("group 0 to accept the founding".into());
            self.change(&meta::Command::Form(form), Instant::now() + CHANGE_WITHIN).await?;
            crash_point::reached("forming.form-committed");
            return Ok(false);
        }
        match &seat.founding {
            // The first one goes on until group 0 has its voters.
            Some(founding)
                if founding.founders.first().is_some_and(|one| one.disk_id == self.data_dir.disk_id())
                    && !seat.meta.is_initialized().await.map_err(refused)? =>
            {
                self.find_cluster(dialled).await?;
            }
            // Another one may have to be prepared anew, and must be seen by its peers.
            Some(_) => {
                self.ask_peers(dialled).await;
                self.waits_for("the other founders".into());
            }
            None => self.waits_for("the members to send the log of group 0".into()),
        }
        Ok(false)
    }

    /// What this node would propose as the founding.
    fn form_of(&self, seat: &Seat) -> meta::Form {
        let (settings, founders) = match &seat.founding {
            Some(founding) => (founding.settings.clone(), founding.founders.clone()),
            None => (None, vec![self.myself()]),
        };
        let settings = settings.unwrap_or_else(|| self.settings());
        let members = founders.into_iter().map(|one| (NodeId(one.number), member(one)));
        meta::Form {
            cluster_id: seat.identity.cluster_id.clone(),
            cluster_name: settings.cluster_name,
            replicas: settings.replicas,
            partitions: settings.partitions,
            members: members.collect(),
        }
    }

    /// Once the cluster is formed, the founding has done its work.
    async fn finish_founding(&self, seat: &Seat) -> Result<()> {
        if seat.founding.is_none() {
            return Ok(());
        }
        let dir = self.data_dir.path();
        if Identity::read(dir).map_err(refused)?.is_none() {
            // The founding says where the others are: group 0 must, before it goes.
            self.remember_addresses().await?;
            crash_point::reached("forming.formed");
            seat.identity.write(dir).map_err(refused)?;
            tracing::info!(
                cluster_id = seat.identity.cluster_id,
                number = seat.identity.number.0,
                "the cluster is formed"
            );
            crash_point::reached("forming.identity-written");
        }
        PREPARED.remove(dir).map_err(refused)
    }

    /// Tells group 0 what has changed of this node since it last said; true: nothing is left to tell.
    async fn tell_changes(&self, seat: &Seat, state: &meta::State) -> Result<bool> {
        let mine = member(self.myself());
        let Some(known) = state.members.get(&seat.number()) else {
            return Ok(true);
        };
        if (&known.address, &known.zone, known.weight) == (&mine.address, &mine.zone, mine.weight) {
            return Ok(true);
        }
        if let Err(copy) = self.refuse_copies().await {
            self.fail(copy.to_string());
            return Ok(false);
        }
        let command = meta::Command::UpdateMember {
            number: seat.number(),
            address: mine.address,
            zone: mine.zone,
            weight: mine.weight,
        };
        self.change(&command, Instant::now() + CHANGE_WITHIN).await?;
        Ok(true)
    }

    /// Asks a member for a place in its cluster, and takes it.
    async fn ask_admission(self: &Arc<Node>, address: &str, dialled: &mut Dialled) -> Result<()> {
        self.waits_for(format!("{address} to let this node in"));
        let channel = self.dialled(dialled, address);
        let request = v1::AdmitRequest {
            node: Some(self.myself()),
            settings: Some(self.settings()),
            cluster_version_max: meta::CLUSTER_VERSION,
        };
        let answer = ask(channel, |mut peer| async move { peer.admit(request).await });
        let admitted = match answer.await {
            Ok(admitted) => admitted,
            Err(error) if error.reason == Reason::ClusterRefused => {
                if self.hello(address).await.is_ok_and(|standing| standing.sealed) {
                    // It may stay what it is after all, and then takes this node in.
                    return Err(error);
                }
                self.fail(format!("the cluster does not let this node in: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let identity = Identity {
            cluster_id: admitted.cluster_id,
            number: NodeId(admitted.number),
            name: self.options.name.clone(),
            disk_id: self.data_dir.disk_id().to_string(),
            founded_alone: false,
        };
        crash_point::reached("joining.admitted");
        let (dir, content) = (self.data_dir.path().to_path_buf(), identity.clone());
        let written = tokio::task::spawn_blocking(move || {
            content.write(&dir)?;
            crash_point::reached("joining.identity-written");
            JOINING.remove(&dir)
        });
        let written = written.await.map_err(|error| Error::new(Reason::Internal, error.to_string()))?;
        written.map_err(refused)?;
        tracing::info!(cluster_id = identity.cluster_id, number = identity.number.0, "joining a cluster");
        self.take_seat(identity, None, Beginning::Others, &admitted.members).await?;
        Ok(())
    }

    /// Has a member leave: everything moves away from it, then it is dropped. Answers once that is
    /// committed; repeating it changes nothing.
    ///
    /// # Errors
    /// [`Reason::NotFound`] if there is no such member, [`Reason::InvalidArgument`] if it may not leave.
    pub async fn leave(&self, name: &str, deadline: Instant) -> Result<()> {
        let _call = self.enter()?;
        let cluster = self.formed()?;
        let member = cluster.state.members.iter().find(|(_, member)| member.name == name);
        let Some((number, _)) = member else {
            return Err(Error::new(Reason::NotFound, format!("the cluster has no node \"{name}\"")));
        };
        self.change(&meta::Command::Leave(*number), deadline).await.map(drop)
    }

    /// Gives a node a place: what Admit does here.
    pub(super) async fn admit(
        &self,
        node: Founder,
        version_max: u32,
        deadline: Instant,
    ) -> Result<v1::AdmitResponse> {
        let cluster = self.formed()?;
        // A program from before the field says nothing, and knows the first.
        let version_max = version_max.max(1);
        let member = member(node);
        let command = meta::Command::Join(meta::Join {
            name: member.name,
            address: member.address,
            zone: member.zone,
            weight: member.weight,
            disk_id: member.disk_id,
            version_max,
        });
        let meta::Answer::Number(number) = self.change(&command, deadline).await? else {
            return Err(Error::new(Reason::Internal, "group 0 gave the joining node no number"));
        };
        Ok(v1::AdmitResponse {
            cluster_id: cluster.state.cluster_id.clone(),
            number: number.0,
            members: founders(&cluster.state),
        })
    }
}

impl Node {
    /// How the node at an address stands to a cluster.
    pub(super) async fn hello(&self, address: &str) -> Result<v1::Standing> {
        let answer = self.hello_answer(address).await?;
        answer.standing.ok_or_else(|| Error::new(Reason::Internal, "the answer is empty"))
    }

    /// All that it answers.
    pub(super) async fn hello_answer(&self, address: &str) -> Result<v1::HelloResponse> {
        let request = v1::HelloRequest { from: Some(self.standing()) };
        let deadline = Instant::now() + ANSWER_WITHIN;
        self.ask_at(address, deadline, |mut peer| async move { peer.hello(request).await }).await
    }

    /// Makes one call to a node by its address, member or not, that may be repeated.
    pub(super) async fn ask_at<R, F>(
        &self,
        address: &str,
        deadline: Deadline,
        call: impl FnOnce(v1::peer_client::PeerClient<transport::GatedChannel>) -> F,
    ) -> Result<R>
    where
        F: Future<Output = std::result::Result<tonic::Response<R>, tonic::Status>>,
    {
        let channel = transport::GatedChannel(transport::dial(address)?);
        ask_within(channel, deadline.saturating_duration_since(Instant::now()), call).await
    }
}

/// Makes one call to a peer whose outcome does not matter: every call here may be repeated.
pub(super) async fn ask<R, F>(
    channel: Result<transport::GatedChannel>,
    call: impl FnOnce(v1::peer_client::PeerClient<transport::GatedChannel>) -> F,
) -> Result<R>
where
    F: Future<Output = std::result::Result<tonic::Response<R>, tonic::Status>>,
{
    ask_within(channel?, ANSWER_WITHIN, call).await
}

async fn ask_within<R, F>(
    channel: transport::GatedChannel,
    within: Duration,
    call: impl FnOnce(v1::peer_client::PeerClient<transport::GatedChannel>) -> F,
) -> Result<R>
where
    F: Future<Output = std::result::Result<tonic::Response<R>, tonic::Status>>,
{
    let peer = v1::peer_client::PeerClient::new(channel);
    match timeout(within, call(peer)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(transport::judge(Kind::Read, &status, crate::error::Happened::No, false)),
        Err(_) => Err(Error::new(Reason::DeadlineExceeded, format!("no answer within {within:?}"))),
    }
}

pub(super) fn member(one: Founder) -> meta::Member {
    meta::Member {
        name: one.name,
        address: one.address,
        zone: one.zone,
        weight: one.weight,
        disk_id: one.disk_id,
        state: meta::MemberState::Active,
    }
}

fn founders(state: &meta::State) -> Vec<Founder> {
    let one = |(number, member): (&NodeId, &meta::Member)| Founder {
        number: number.0,
        name: member.name.clone(),
        address: member.address.clone(),
        zone: member.zone.clone(),
        weight: member.weight,
        disk_id: member.disk_id.clone(),
    };
    let members: &BTreeMap<NodeId, meta::Member> = &state.members;
    members.iter().map(one).collect()
}
