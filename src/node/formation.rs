//! Founding a cluster together: what to do next, from what the nodes say of themselves. Pure; `forming`
//! asks and acts.
//!
//! Nodes that name each other in `peers` say Hello until all agree on who founds the cluster: everybody
//! sees the same nodes, under the same settings, no name twice. Then the one with the lowest name draws
//! the founding, and nobody else ever does (`docs/decisions/0009`).

use std::collections::{BTreeMap, BTreeSet};

use crate::proto::v1;

/// What a node without a cluster should do now.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Something is missing that may yet come: what.
    Wait(String),
    /// It can't come to anything until somebody mends it: what and how.
    Refuse(String),
    /// All agree, and this node founds.
    Found { founders: Vec<v1::Founder>, replaces: Option<String> },
    /// There is a cluster already, which this node is no member of.
    Join { address: String },
    /// The cluster that this node is prepared for exists; its log comes by itself.
    Founded,
}

/// A peer's answer to Hello; `None`: it did not answer.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub address: String,
    pub standing: Option<v1::Standing>,
}

fn of(standing: &v1::Standing) -> v1::Founder {
    standing.node.clone().unwrap_or_default()
}

/// Decides from this node's own standing and what each of its peers answered.
pub(super) fn decide(me: &v1::Standing, heard: &[Heard]) -> Step {
    let my = of(me);
    let mut others: BTreeMap<String, (&str, &v1::Standing)> = BTreeMap::new();
    let mut silent = Vec::new();
    for Heard { address, standing } in heard {
        let Some(standing) = standing else {
            silent.push(address.as_str());
            continue;
        };
        let node = of(standing);
        if node.disk_id == my.disk_id {
            if node.address != my.address || node.name != my.name {
                return Step::Refuse(format!(
                    "\"{}\" at {} runs on a copy of this node's data directory: stop one of the two, and start \
                     it with an empty data_dir",
                    node.name, node.address
                ));
            }
            // Its own address among its peers.
            continue;
        }
        if let Some((_, twin)) = others.insert(node.disk_id.clone(), (address, standing))
            && of(twin).address != node.address
        {
            return Step::Refuse(format!(
                "{} and {} run on copies of one data directory: stop one of the two, and start it with an empty \
                 data_dir",
                of(twin).address,
                node.address
            ));
        }
    }
    let standings = || others.values().map(|(_, standing)| *standing);

    let clusters: BTreeSet<&str> =
        standings().map(|one| one.cluster_id.as_str()).filter(|id| !id.is_empty()).collect();
    if clusters.len() > 1 {
        let list: Vec<&str> = clusters.into_iter().collect();
        return Step::Refuse(format!(
            "the peers belong to different clusters ({}): name peers of one cluster only",
            list.join(", ")
        ));
    }
    if let Some(cluster) = clusters.first() {
        if *cluster == me.prepared_id {
            return Step::Founded;
        }
        let member = others.values().find(|(_, one)| one.cluster_id == *cluster);
        return match member {
            Some((_, one)) if cluster_name(one) != cluster_name(me) => Step::Refuse(format!(
                "\"{}\" is a member of a cluster named \"{}\", and cluster.name is \"{}\" here: name peers of the \
                 cluster that is meant",
                of(one).name,
                cluster_name(one),
                cluster_name(me)
            )),
            Some((_, one)) if one.sealed => {
                Step::Wait(format!("\"{}\", whose cluster gives itself up to join another", of(one).name))
            }
            Some((address, _)) => Step::Join { address: (*address).to_string() },
            None => Step::Wait("a member of the cluster to answer".into()),
        };
    }
    for standing in standings() {
        let node = of(standing);
        if node.name == my.name {
            return Step::Refuse(format!(
                "{} calls itself \"{}\" too: give each node a node_id of its own",
                node.address, node.name
            ));
        }
        let twins = standings().filter(|other| of(other).name == node.name).count();
        if twins > 1 {
            return Step::Refuse(format!(
                "{twins} peers call themselves \"{}\": give each node a node_id of its own",
                node.name
            ));
        }
    }
    if !silent.is_empty() {
        return Step::Wait(format!("{} to answer", silent.join(", ")));
    }
    if heard.is_empty() {
        return Step::Wait("peers: there are none to found with, or to look for".into());
    }
    for standing in standings() {
        if let Some(problem) = differing_settings(me, standing) {
            return Step::Wait(problem);
        }
        if standing.protocol_max < me.protocol_min || me.protocol_max < standing.protocol_min {
            return Step::Wait(format!(
                "\"{}\" to be of a version that this one can talk to",
                of(standing).name
            ));
        }
    }
    let everybody: BTreeSet<&str> = others.keys().map(String::as_str).chain([my.disk_id.as_str()]).collect();
    for standing in standings() {
        let seen: BTreeSet<&str> = standing.seen.iter().map(String::as_str).collect();
        if seen == everybody {
            continue;
        }
        let name = of(standing).name;
        let missing: Vec<String> = standings()
            .map(of)
            .chain([my.clone()])
            .filter(|node| !seen.contains(node.disk_id.as_str()))
            .map(|node| format!("\"{}\"", node.name))
            .collect();
        return Step::Wait(match missing.is_empty() {
            true => format!("\"{name}\", which names a peer that this node does not: make their peers equal"),
            false => format!("\"{name}\" to see {} (its peers must name it)", missing.join(", ")),
        });
    }
    let mut founders: Vec<v1::Founder> = standings().map(of).chain([my.clone()]).collect();
    founders.sort_by(|a, b| a.name.cmp(&b.name));
    for (at, founder) in founders.iter_mut().enumerate() {
        founder.number = u32::try_from(at + 1).unwrap_or(u32::MAX);
    }
    if founders[0].name != my.name {
        return Step::Wait(format!("\"{}\" to found the cluster", founders[0].name));
    }
    // A node that has a log may have taken part in a founding that did take place.
    if let Some(standing) = standings().find(|one| one.has_log) {
        return Step::Refuse(format!(
            "\"{}\" holds a log of another founding ({}): start the nodes that took part in it, or empty its \
             data_dir",
            of(standing).name,
            standing.prepared_id
        ));
    }
    let prepared: BTreeSet<&str> = standings()
        .map(|one| one.prepared_id.as_str())
        .filter(|id| !id.is_empty() && *id != me.prepared_id)
        .collect();
    Step::Found { founders, replaces: prepared.first().map(|id| (*id).to_string()) }
}

/// What the member of a cluster makes of its peers.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Met {
    /// Those that answered are of its cluster, or of none.
    Friends,
    /// Those of another cluster are, and this node's is the one to be given up for it.
    GiveUpFor(v1::GiveUpRequest),
    /// They are of a cluster that should give itself up for this one.
    Newcomer(String),
    /// Both clusters are in use: two are not made one.
    Strangers(String),
}

/// Decides for a member whose peers may be of another cluster: two clusters that name each other become
/// one, or it is said why not. Of two that could be given up, the one with the greater id is.
pub(super) fn decide_met(me: &v1::Standing, heard: &[Heard]) -> Met {
    let is_spare = |one: &v1::Standing| one.members.len() == 1 && !one.written;
    let answers = heard.iter().filter_map(|one| Some((&one.address, one.standing.as_ref()?)));
    let mut others = answers.filter(|(_, one)| !one.cluster_id.is_empty() && one.cluster_id != me.cluster_id);
    let Some((address, other)) = others.next() else { return Met::Friends };
    if other.sealed {
        return Met::Newcomer(address.clone());
    }
    let same_name = cluster_name(me) == cluster_name(other);
    let asked = || v1::GiveUpRequest {
        cluster_id: other.cluster_id.clone(),
        cluster_name: cluster_name(other).to_string(),
        addresses: other.members.iter().map(|member| member.address.clone()).collect(),
    };
    match (is_spare(me) && same_name, is_spare(other) && same_name) {
        (true, false) => Met::GiveUpFor(asked()),
        (true, true) if me.cluster_id > other.cluster_id => Met::GiveUpFor(asked()),
        (_, true) => Met::Newcomer(address.clone()),
        (false, false) => Met::Strangers(format!(
            "peers: {address} is of the cluster {} (\"{}\"), and this node is of {} (\"{}\"); neither can be given \
             up for the other: take {address} out of peers, or have one of the two leave its cluster and start it \
             with an empty data_dir",
            other.cluster_id,
            cluster_name(other),
            me.cluster_id,
            cluster_name(me)
        )),
    }
}

/// Decides for a node that has given its own cluster up: it goes where it said, or where those have gone
/// whom it went to. Nothing else will do.
pub(super) fn decide_joining(joining: &v1::Joining, me: &v1::Standing, heard: &[Heard]) -> Step {
    let answers = || heard.iter().filter_map(|one| Some((one.address.as_str(), one.standing.as_ref()?)));
    let members = || answers().filter(|(_, one)| !one.cluster_id.is_empty() && !one.sealed);
    let there = members().find(|(_, one)| one.cluster_id == joining.cluster_id);
    // Whoever is not there any more may have given that cluster up, in turn.
    let Some((address, one)) = there.or_else(|| members().next()) else {
        return Step::Wait(format!("a member of cluster {} to answer", joining.cluster_id));
    };
    if cluster_name(one) != cluster_name(me) {
        return Step::Refuse(format!(
            "{address} is of a cluster named \"{}\", and cluster.name is \"{}\" here: make them equal, or start \
             this node with an empty data_dir to form a cluster of its own",
            cluster_name(one),
            cluster_name(me)
        ));
    }
    Step::Join { address: address.to_string() }
}

fn cluster_name(standing: &v1::Standing) -> &str {
    standing.settings.as_ref().map_or("", |settings| &settings.cluster_name)
}

/// Which setting of the formation differs, and what to do.
fn differing_settings(me: &v1::Standing, other: &v1::Standing) -> Option<String> {
    let (Some(mine), Some(theirs)) = (&me.settings, &other.settings) else {
        return Some(format!("\"{}\" to tell its settings", of(other).name));
    };
    let name = of(other).name;
    let differs = |key: &str, mine: &dyn std::fmt::Display, theirs: &dyn std::fmt::Display| {
        format!("cluster.{key} to be equal: it is {theirs} on \"{name}\" and {mine} here")
    };
    if mine.cluster_name != theirs.cluster_name {
        return Some(differs("name", &mine.cluster_name, &theirs.cluster_name));
    }
    if mine.replicas != theirs.replicas {
        return Some(differs("replicas", &mine.replicas, &theirs.replicas));
    }
    if mine.partitions != theirs.partitions {
        return Some(differs("partitions", &mine.partitions, &theirs.partitions));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(name: &str, seen: &[&str]) -> v1::Standing {
        v1::Standing {
            node: Some(v1::Founder {
                number: 0,
                name: name.into(),
                address: format!("{name}:8080"),
                zone: "default".into(),
                weight: 1,
                disk_id: format!("disk-{name}"),
            }),
            settings: Some(v1::FormationSettings {
                cluster_name: "rushkv".into(),
                replicas: 3,
                partitions: 16,
            }),
            seen: seen.iter().map(|name| format!("disk-{name}")).collect(),
            protocol_min: 1,
            protocol_max: 1,
            ..v1::Standing::default()
        }
    }

    const ALL: [&str; 3] = ["a", "b", "c"];

    fn heard(standing: v1::Standing) -> Heard {
        Heard { address: format!("{}:8080", of(&standing).name), standing: Some(standing) }
    }

    fn decide_with(me: &str, change: impl Fn(&mut v1::Standing)) -> Step {
        let peers: Vec<Heard> = ALL
            .iter()
            .filter(|name| **name != me)
            .map(|name| {
                let mut one = standing(name, &ALL);
                change(&mut one);
                heard(one)
            })
            .collect();
        decide(&standing(me, &ALL), &peers)
    }

    fn wait(step: Step) -> String {
        match step {
            Step::Wait(what) => what,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(step: Step) -> String {
        match step {
            Step::Refuse(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_the_lowest_name_founds_and_numbers_follow_names() {
        let Step::Found { founders, replaces: None } = decide_with("a", |_| {}) else { panic!() };
        let numbered: Vec<_> = founders.iter().map(|one| (one.number, one.name.as_str())).collect();
        assert_eq!(numbered, [(1, "a"), (2, "b"), (3, "c")]);
        for other in ["b", "c"] {
            assert!(wait(decide_with(other, |_| {})).contains("\"a\" to found"));
        }
    }

    #[test]
    fn it_waits_for_the_silent_by_address_and_for_those_who_do_not_see_all() {
        let mut peers = vec![heard(standing("b", &ALL)), heard(standing("c", &["a", "c"]))];
        let me = standing("a", &ALL);
        assert!(wait(decide(&me, &peers)).contains("\"c\" to see \"b\""));
        peers[1].standing = None;
        assert!(wait(decide(&me, &peers)).contains("c:8080"));
        peers[1] = heard(standing("c", &["a", "b", "c", "d"]));
        assert!(wait(decide(&me, &peers)).contains("peers equal"));
    }

    #[test]
    fn its_own_address_among_its_peers_is_dropped_and_a_copy_of_its_disk_refused() {
        let me = standing("a", &["a", "b"]);
        let mut peers = vec![heard(standing("a", &["a", "b"])), heard(standing("b", &["a", "b"]))];
        assert!(matches!(decide(&me, &peers), Step::Found { .. }));
        peers[0].standing.as_mut().unwrap().node.as_mut().unwrap().address = "elsewhere:8080".into();
        assert!(refusal(decide(&me, &peers)).contains("copy of this node's data directory"));
    }

    #[test]
    fn a_node_whose_peers_are_only_itself_founds_alone() {
        let me = standing("a", &["a"]);
        let itself = heard(standing("a", &["a"]));
        let Step::Found { founders, replaces: None } = decide(&me, &[itself.clone(), itself.clone()]) else {
            panic!()
        };
        assert_eq!(
            founders.iter().map(|one| (one.number, one.name.as_str())).collect::<Vec<_>>(),
            [(1, "a")]
        );
        // Whoever does not answer may be somebody else.
        let silent = Heard { address: "b:8080".into(), standing: None };
        assert!(wait(decide(&me, &[itself, silent])).contains("b:8080"));
        assert!(wait(decide(&me, &[])).contains("there are none"));
    }

    #[test]
    fn names_that_are_held_twice_are_refused() {
        let rename = |one: &mut v1::Standing| one.node.as_mut().unwrap().name = "a".into();
        assert!(refusal(decide_with("a", rename)).contains("a node_id of its own"));
        let rename = |one: &mut v1::Standing| one.node.as_mut().unwrap().name = "x".into();
        assert!(refusal(decide_with("a", rename)).contains("2 peers call themselves \"x\""));
    }

    #[test]
    fn settings_must_agree() {
        let change = |one: &mut v1::Standing| one.settings.as_mut().unwrap().partitions = 32;
        assert!(wait(decide_with("a", change)).contains("cluster.partitions"));
    }

    #[test]
    fn a_cluster_is_joined_two_are_not() {
        let joined = |one: &mut v1::Standing| one.cluster_id = "c1".into();
        assert!(matches!(decide_with("a", joined), Step::Join { .. }));
        let two = |one: &mut v1::Standing| one.cluster_id = of(one).name;
        assert!(refusal(decide_with("a", two)).contains("different clusters"));
        let mut me = standing("a", &ALL);
        me.prepared_id = "c1".into();
        let mut member = standing("b", &ALL);
        member.cluster_id = "c1".into();
        assert_eq!(decide(&me, &[heard(member)]), Step::Founded);
        let other_name = |one: &mut v1::Standing| {
            one.cluster_id = "c1".into();
            one.settings.as_mut().unwrap().cluster_name = "other".into();
        };
        assert!(refusal(decide_with("a", other_name)).contains("named \"other\""));
    }

    #[test]
    fn two_peers_on_copies_of_one_disk_are_refused() {
        let me = standing("a", &["a", "b"]);
        let mut copy = heard(standing("b", &["a", "b"]));
        copy.standing.as_mut().unwrap().node.as_mut().unwrap().address = "copy:8080".into();
        let why = refusal(decide(&me, &[heard(standing("b", &["a", "b"])), copy]));
        assert!(why.contains("copies of one data directory"), "{why}");
        // One peer by two of its addresses is one.
        let twice = [heard(standing("b", &["a", "b"])), heard(standing("b", &["a", "b"]))];
        assert!(matches!(decide(&me, &twice), Step::Found { .. }));
    }

    #[test]
    fn of_two_clusters_that_meet_one_is_given_up_or_both_stay() {
        let member = |name: &str, id: &str, members: usize, written: bool| v1::Standing {
            cluster_id: id.into(),
            members: vec![v1::Founder::default(); members],
            written,
            ..standing(name, &[])
        };
        let meet = |me: &v1::Standing, other: &v1::Standing| decide_met(me, &[heard(other.clone())]);
        let (a, b) = (member("a", "c1", 1, false), member("b", "c2", 1, false));
        assert_eq!(meet(&a, &b), Met::Newcomer("b:8080".into()));
        let gives_up_for =
            |met: Met, id: &str| matches!(met, Met::GiveUpFor(asked) if asked.cluster_id == id);
        assert!(gives_up_for(meet(&b, &a), "c1"));
        for used in [member("u", "c3", 1, true), member("u", "c3", 3, false)] {
            assert!(gives_up_for(meet(&a, &used), "c3"));
            assert_eq!(meet(&used, &a), Met::Newcomer("a:8080".into()));
            let other = member("w", "c4", 1, true);
            for (one, other) in [(&used, &other), (&other, &used)] {
                assert!(matches!(meet(one, other), Met::Strangers(why) if why.contains("out of peers")));
            }
        }
        let mut named = a.clone();
        named.settings.as_mut().unwrap().cluster_name = "other".into();
        assert!(matches!(meet(&b, &named), Met::Strangers(_)));
        assert!(matches!(meet(&named, &b), Met::Strangers(_)));
        assert_eq!(meet(&a, &member("x", "c1", 2, true)), Met::Friends);
        assert_eq!(meet(&a, &standing("x", &[])), Met::Friends);
    }

    #[test]
    fn who_gave_a_cluster_up_goes_where_it_said() {
        let joining = v1::Joining { cluster_id: "c1".into(), ..v1::Joining::default() };
        let me = standing("z", &["z"]);
        let of_cluster =
            |name: &str, id: &str| heard(v1::Standing { cluster_id: id.into(), ..standing(name, &ALL) });
        let silent = Heard { address: "s:8080".into(), standing: None };
        assert!(wait(decide_joining(&joining, &me, &[silent])).contains("cluster c1 to answer"));
        assert!(wait(decide_joining(&joining, &me, &[of_cluster("a", "")])).contains("cluster c1"));
        let there = [of_cluster("a", "c2"), of_cluster("b", "c1")];
        assert_eq!(decide_joining(&joining, &me, &there), Step::Join { address: "b:8080".into() });
        assert_eq!(decide_joining(&joining, &me, &there[..1]), Step::Join { address: "a:8080".into() });
        let mut sealed = of_cluster("a", "c1");
        sealed.standing.as_mut().unwrap().sealed = true;
        assert!(wait(decide_joining(&joining, &me, &[sealed.clone()])).contains("cluster c1"));
        assert!(wait(decide(&me, &[sealed])).contains("gives itself up"));
        let mut other = of_cluster("a", "c1");
        other.standing.as_mut().unwrap().settings.as_mut().unwrap().cluster_name = "other".into();
        assert!(refusal(decide_joining(&joining, &me, &[other])).contains("named \"other\""));
    }

    #[test]
    fn an_older_founding_is_replaced_only_while_nobody_has_its_log() {
        let prepared = |one: &mut v1::Standing| one.prepared_id = "old".into();
        let Step::Found { replaces, .. } = decide_with("a", prepared) else { panic!() };
        assert_eq!(replaces.as_deref(), Some("old"));
        let with_log = |one: &mut v1::Standing| {
            one.prepared_id = "old".into();
            one.has_log = true;
        };
        assert!(refusal(decide_with("a", with_log)).contains("another founding (old)"));
    }
}
