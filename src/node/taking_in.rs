//! Takes a node into this cluster that is a cluster of its own so far: the original's Join. The node does
//! most of it itself (`giving_up`); here it is decided whether it should, and waited for.

use tokio::time::{Instant, sleep};

use super::forming::ROUND;
use super::removed::has_removed;
use super::{Deadline, Joined, Node};
use crate::error::{Error, Reason, Result};
use crate::meta;
use crate::proto::v1;
use crate::proto::v1::peer_client::PeerClient;
use crate::transport::{self, GatedChannel, Kind, Limit};

/// What is to be done about the node that was asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Nothing: it is a member.
    Done(String),
    /// It has given its cluster up, and comes by itself.
    Wait,
    /// It should give its cluster up.
    Ask,
}

fn refuse<T>(reason: Reason, why: String) -> Result<T> {
    Err(Error::new(reason, why))
}

/// The member of this name or address, if it is known by both or only the address was asked for.
fn known(state: &meta::State, address: &str, name: Option<&str>) -> Result<Option<String>> {
    let found = state.members.values().find(|member| match name {
        Some(name) => member.name == name,
        None => member.address == address,
    });
    match found {
        Some(member) if member.address != address => refuse(
            Reason::InvalidArgument,
            format!("{} is a member already, at {}", member.name, member.address),
        ),
        found => Ok(found.map(|member| member.name.clone())),
    }
}

/// Decides from this cluster's state, and what the node says of itself.
fn decide(state: &meta::State, address: &str, name: Option<&str>, node: &v1::Standing) -> Result<Step> {
    let its = node.node.clone().unwrap_or_default();
    if let Some(name) = name
        && its.name != name
    {
        return refuse(
            Reason::InvalidArgument,
            format!("the node at {address} calls itself \"{}\", not \"{name}\"", its.name),
        );
    }
    if has_removed(state, &its.disk_id) {
        let why = format!(
            "\"{}\" was removed from this cluster: stop it, start it with an empty data_dir, and ask again",
            its.name
        );
        return refuse(Reason::ClusterRefused, why);
    }
    if node.cluster_id == state.cluster_id || state.members.values().any(|one| one.disk_id == its.disk_id) {
        return Ok(Step::Done(its.name));
    }
    let refuse = |why: String| refuse(Reason::ClusterRefused, why);
    if state.sealed.is_some() {
        return refuse("this cluster gives itself up to join another, and takes nobody in".into());
    }
    if node.joining_id == state.cluster_id {
        return Ok(Step::Wait);
    }
    if node.cluster_id.is_empty() {
        return refuse(format!(
            "\"{}\" has no cluster yet and looks for its own peers: name a member of this cluster in its peers",
            its.name
        ));
    }
    if node.members.len() > 1 {
        return refuse(format!(
            "\"{}\" is in a cluster of {} nodes: let it leave that one first, and start it with an empty data_dir",
            its.name,
            node.members.len()
        ));
    }
    if state.members.values().any(|member| member.name == its.name) {
        return refuse(format!(
            "this cluster has a member \"{}\" already: give the node a node_id of its own",
            its.name
        ));
    }
    let their_name = node.settings.as_ref().map_or("", |settings| &settings.cluster_name);
    if their_name != state.cluster_name {
        return refuse(format!(
            "\"{}\" is of a cluster named \"{their_name}\", and this one is \"{}\"",
            its.name, state.cluster_name
        ));
    }
    Ok(Step::Ask)
}

impl Node {
    /// Takes the node at `address` in. Answers once it is a member or the deadline is near, and can't be
    /// kept from becoming one; asking again changes nothing. `name`: what it must be called.
    ///
    /// # Errors
    /// [`Reason::ClusterRefused`] if it can't be taken in, [`Reason::Unavailable`] if it does not answer.
    pub async fn join(&self, address: &str, name: Option<&str>, deadline: Deadline) -> Result<Joined> {
        let _call = self.enter()?;
        transport::check_address(address)?;
        let state = self.formed()?.state.clone();
        if let Some(node) = known(&state, address, name)? {
            return Ok(Joined { node, is_member: true });
        }
        let mut comes = None;
        loop {
            let state = self.formed()?.state.clone();
            match self.hello(address).await {
                Ok(standing) => match decide(&state, address, name, &standing)? {
                    Step::Done(node) => return Ok(Joined { node, is_member: true }),
                    Step::Wait => comes = standing.node.map(|node| node.name),
                    // It may not have begun to end yet.
                    Step::Ask if comes.is_some() => {}
                    Step::Ask => {
                        self.ask_to_give_up(&state, address, deadline).await?;
                        comes = standing.node.map(|node| node.name);
                    }
                },
                // It starts anew.
                Err(_) if comes.is_some() => {}
                Err(error) => {
                    return refuse(
                        Reason::Unavailable,
                        format!("no node of a cluster answers at {address}: {}", error.message),
                    );
                }
            }
            if Instant::now() + ROUND >= deadline {
                return match comes {
                    Some(node) => Ok(Joined { node, is_member: false }),
                    None => refuse(
                        Reason::DeadlineExceeded,
                        "the deadline passed before anything happened".into(),
                    ),
                };
            }
            sleep(ROUND).await;
        }
    }

    async fn ask_to_give_up(&self, state: &meta::State, address: &str, deadline: Deadline) -> Result<()> {
        let request = v1::GiveUpRequest {
            cluster_id: state.cluster_id.clone(),
            cluster_name: state.cluster_name.clone(),
            addresses: state.members.values().map(|member| member.address.clone()).collect(),
        };
        // Whoever does not answer may be giving its cluster up.
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Limit { grpc_timeout: left, leaves_within: left, deadline };
        let send = |channel, request| async move { PeerClient::new(channel).give_up(request).await };
        let channel = GatedChannel(transport::dial(address)?);
        let asked =
            transport::attempt(Kind::Write, channel, tonic::Request::new(request), limit, &send).await;
        asked.map(drop).map_err(|failed| failed.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> meta::State {
        let members = ["a", "b"].map(|name| meta::Member {
            name: name.into(),
            address: format!("{name}:8080"),
            zone: String::new(),
            weight: 1,
            disk_id: format!("disk-{name}"),
            state: meta::MemberState::Active,
        });
        let mut state = meta::State::default();
        let form = meta::Form {
            cluster_id: "c".into(),
            cluster_name: "rushkv".into(),
            replicas: 3,
            partitions: 4,
            members: meta::number_members(members),
        };
        state.apply(meta::Command::Form(form)).unwrap();
        state
    }

    /// A cluster of one.
    fn alone(name: &str) -> v1::Standing {
        let node =
            v1::Founder { name: name.into(), disk_id: format!("disk-{name}"), ..v1::Founder::default() };
        v1::Standing {
            node: Some(node.clone()),
            settings: Some(v1::FormationSettings {
                cluster_name: "rushkv".into(),
                replicas: 3,
                partitions: 4,
            }),
            cluster_id: "own".into(),
            members: vec![node],
            ..v1::Standing::default()
        }
    }

    #[test]
    fn a_cluster_of_one_is_asked_and_then_waited_for() {
        let state = cluster();
        assert_eq!(decide(&state, "x:1", None, &alone("x")), Ok(Step::Ask));
        assert_eq!(decide(&state, "x:1", Some("x"), &alone("x")), Ok(Step::Ask));
        let bound = v1::Standing { joining_id: "c".into(), cluster_id: String::new(), ..alone("x") };
        assert_eq!(decide(&state, "x:1", None, &bound), Ok(Step::Wait));
        let member = v1::Standing { cluster_id: "c".into(), ..alone("x") };
        assert_eq!(decide(&state, "x:1", None, &member), Ok(Step::Done("x".into())));
        assert_eq!(decide(&state, "a:1", None, &alone("a")), Ok(Step::Done("a".into())));
    }

    #[test]
    fn what_can_not_come_to_one_cluster_is_refused() {
        let state = cluster();
        let why = |state: &meta::State, name: Option<&str>, standing: v1::Standing| {
            decide(state, "x:1", name, &standing).unwrap_err().message
        };
        assert!(why(&state, Some("y"), alone("x")).contains("calls itself \"x\""));
        let mut sealed = cluster();
        sealed.sealed = Some(meta::Sealed { cluster_id: "t".into(), addresses: Vec::new() });
        assert!(why(&sealed, None, alone("x")).contains("takes nobody in"));
        let waiting = v1::Standing { cluster_id: String::new(), ..alone("x") };
        assert!(why(&state, None, waiting.clone()).contains("in its peers"));
        let elsewhere = v1::Standing { joining_id: "d".into(), ..waiting };
        assert!(why(&state, None, elsewhere).contains("in its peers"));
        let two = v1::Standing { members: vec![v1::Founder::default(); 2], ..alone("x") };
        assert!(why(&state, None, two).contains("cluster of 2 nodes"));
        let mut twin = alone("a");
        twin.node.as_mut().unwrap().disk_id = "another".into();
        assert!(why(&state, None, twin).contains("a member \"a\" already"));
        let mut once = cluster();
        let tombstone = meta::Tombstone { name: "x".into(), disk_id: "disk-x".into() };
        once.removed.insert(crate::types::NodeId(9), tombstone);
        let gone = v1::Standing { cluster_id: "c".into(), ..alone("x") };
        assert!(why(&once, None, gone).contains("was removed from this cluster"));
        let mut other = alone("x");
        other.settings.as_mut().unwrap().cluster_name = "other".into();
        assert!(why(&state, None, other).contains("named \"other\""));
    }

    #[test]
    fn a_member_that_joins_again_is_done() {
        let state = cluster();
        assert_eq!(known(&state, "a:8080", Some("a")), Ok(Some("a".into())));
        assert_eq!(known(&state, "a:8080", None), Ok(Some("a".into())));
        assert_eq!(known(&state, "x:8080", None), Ok(None));
        assert_eq!(known(&state, "x:8080", Some("a")).unwrap_err().reason, Reason::InvalidArgument);
    }
}
