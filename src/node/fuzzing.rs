//! For fuzzing: whatever nodes say of themselves while a cluster is formed, there is a next step.

use prost::Message as _;

use super::formation::{Heard, decide, decide_joining, decide_met};
use crate::proto::v1;

/// Standings in a row, each behind its length in one byte: this node's own, then its peers'. A length of 0
/// is a peer that is silent.
pub fn forming(input: &[u8]) -> bool {
    let mut rest = input;
    let mut standings = Vec::new();
    while let [length, tail @ ..] = rest {
        let (bytes, after) = tail.split_at(tail.len().min(usize::from(*length)));
        standings.push(v1::Standing::decode(bytes).ok().filter(|_| *length > 0));
        rest = after;
    }
    let mut standings = standings.into_iter();
    let Some(Some(me)) = standings.next() else { return false };
    let heard: Vec<Heard> =
        standings.zip(0..8).map(|(standing, at)| Heard { address: format!("h{at}:1"), standing }).collect();
    decide(&me, &heard);
    decide_met(&me, &heard);
    let joining = v1::Joining { cluster_id: "c1".into(), addresses: vec![], left_disk_id: "d0".into() };
    decide_joining(&joining, &me, &heard);
    true
}

fn standing(name: &str, cluster_id: &str) -> v1::Standing {
    let node = v1::Founder {
        name: name.into(),
        address: format!("{name}:1"),
        weight: 1,
        disk_id: name.repeat(2),
        ..Default::default()
    };
    let settings = v1::FormationSettings { cluster_name: "n".into(), replicas: 3, partitions: 4 };
    let members = if cluster_id.is_empty() { vec![] } else { vec![node.clone()] };
    v1::Standing {
        node: Some(node),
        settings: Some(settings),
        seen: vec!["aa".into(), "bb".into()],
        cluster_id: cluster_id.into(),
        members,
        protocol_min: 1,
        protocol_max: 1,
        process_id: name.into(),
        ..Default::default()
    }
}

pub fn forming_seeds() -> Vec<Vec<u8>> {
    let framed = |standing: v1::Standing| {
        let bytes = standing.encode_to_vec();
        [vec![bytes.len() as u8], bytes].concat()
    };
    let meeting = |clusters: [&str; 2]| {
        [framed(standing("a", clusters[0])), framed(standing("b", clusters[1])), vec![0]].concat()
    };
    vec![meeting(["", ""]), meeting(["", "c1"]), meeting(["c1", "c2"]), meeting(["c1", ""])]
}
