//! Properties of placement over histories of a cluster.

use std::collections::BTreeSet;

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::types::{NodeId, PartitionId};

fn node(number: u32, zone: &str, weight: u32) -> Candidate {
    Candidate { number: NodeId(number), name: format!("node{number}"), zone: zone.into(), weight }
}

fn plain(count: u32) -> Vec<Candidate> {
    (1..=count).map(|number| node(number, "", 1)).collect()
}

/// Copies in `after` that were not where they are in `before`.
fn moved(before: &Placement, after: &Placement) -> usize {
    let new = |partition, nodes: &Vec<NodeId>| {
        let old: &[NodeId] = before.get(partition).map_or(&[], |nodes| nodes);
        nodes.iter().filter(|node| !old.contains(node)).count()
    };
    after.iter().map(|(partition, nodes)| new(partition, nodes)).sum()
}

fn loads(placement: &Placement, members: &[Candidate]) -> Vec<usize> {
    let held = |number| placement.values().filter(|nodes| nodes.contains(&number)).count();
    members.iter().map(|member| held(member.number)).collect()
}

#[test]
fn placements_are_fixed_for_ever() {
    // Every node computes them for itself: a change here needs a new cluster version.
    let routes = RoutingTable::equal(64);
    let mut members: Vec<Candidate> =
        (1..=9).map(|i| node(i, ["a", "b", "c"][i as usize % 3], 1 + i % 2)).collect();
    let mut numbers = Vec::new();
    let mut add = |placement: &Placement| {
        numbers.extend(placement.values().flatten().flat_map(|node| node.0.to_le_bytes()));
    };
    let first = place(&Placement::new(), &routes, &members, 3);
    add(&first);
    members.remove(4);
    let second = place(&first, &routes, &members, 3);
    add(&second);
    members.push(node(10, "d", 5));
    add(&place(&second, &routes, &members, 3));
    assert_eq!(xxh3_64(&numbers), 0xa00c_6b17_851e_9246);
}

#[test]
fn an_empty_cluster_places_nothing_and_a_small_one_what_it_can() {
    let routes = RoutingTable::equal(4);
    let nothing = place(&Placement::new(), &routes, &[], 3);
    assert_eq!(nothing.len(), 4);
    assert!(nothing.values().all(Vec::is_empty));
    check(&nothing, &routes, &[], 3).unwrap();
    let two = place(&nothing, &routes, &plain(2), 3);
    check(&two, &routes, &plain(2), 3).unwrap();
    assert!(two.values().all(|nodes| nodes.len() == 2));
}

#[test]
fn one_joining_moves_its_share_and_no_more() {
    for (count, exponent) in [(3, 4), (4, 6), (9, 8), (20, 8)] {
        let routes = RoutingTable::equal(1 << exponent);
        let before = place(&Placement::new(), &routes, &plain(count), 3);
        let after = place(&before, &routes, &plain(count + 1), 3);
        let share = (3usize << exponent).div_ceil(count as usize + 1);
        assert!(moved(&before, &after) <= share, "{count} nodes: {} > {share}", moved(&before, &after));
    }
}

#[test]
fn check_sees_each_broken_rule() {
    let routes = RoutingTable::equal(16);
    let members: Vec<Candidate> = (1..=6).map(|i| node(i, ["a", "b", "c"][i as usize % 3], 1)).collect();
    let good = place(&Placement::new(), &routes, &members, 3);
    check(&good, &routes, &members, 3).unwrap();
    let broken = |what: &str, change: &dyn Fn(&mut Placement)| {
        let mut placement = good.clone();
        change(&mut placement);
        let wrong = check(&placement, &routes, &members, 3).unwrap_err();
        assert!(wrong.iter().any(|wrong| wrong.contains(what)), "{what}: {wrong:?}");
    };
    let first = PartitionId(0);
    broken("routing table", &|placement| {
        placement.remove(&first);
    });
    broken("2 copies, not 3", &|placement| placement.get_mut(&first).unwrap().truncate(2));
    broken("one node", &|placement| placement.get_mut(&first).unwrap()[1] = placement[&first][0]);
    broken("no member", &|placement| placement.get_mut(&first).unwrap()[1] = NodeId(99));
    broken("in a zone", &|placement| {
        let neighbour = NodeId((placement[&first][0].0 + 2) % 6 + 1);
        placement.get_mut(&first).unwrap()[1] = neighbour;
    });
    broken("holds", &|placement| {
        for nodes in placement.values_mut() {
            *nodes = vec![NodeId(1), NodeId(2), NodeId(3)];
        }
    });
    broken("should lead", &|placement| {
        for nodes in placement.values_mut() {
            nodes.sort();
        }
    });
}

/// One change of a cluster.
#[derive(Debug, Clone)]
enum Change {
    Join { zone: u8, weight: u32 },
    Leave(prop::sample::Index),
    Weigh(prop::sample::Index, u32),
}

fn change(zones: u8, weight_max: u32) -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (0..zones, 1..=weight_max).prop_map(|(zone, weight)| Change::Join { zone, weight }),
        2 => any::<prop::sample::Index>().prop_map(Change::Leave),
        1 => (any::<prop::sample::Index>(), 1..=weight_max).prop_map(|(node, weight)| Change::Weigh(node, weight)),
    ]
}

/// Starts with this many nodes, applies the changes, and calls `see` after each with what was before
/// and what is now.
fn history(
    start: u32,
    changes: &[Change],
    routes: &RoutingTable,
    replicas: u32,
    mut see: impl FnMut(&Placement, &[Candidate], &Placement, &[Candidate]) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut members: Vec<Candidate> = Vec::new();
    let mut placement = Placement::new();
    let mut next = 1;
    let starts = (0..start).map(|at| Change::Join { zone: (at % 3) as u8, weight: 1 });
    for (at, change) in starts.chain(changes.iter().cloned()).enumerate() {
        let before = members.clone();
        match change {
            Change::Join { zone, weight } => {
                members.push(node(next, &format!("zone{zone}"), weight));
                next += 1;
            }
            Change::Leave(which) if members.len() > 1 => drop(members.remove(which.index(members.len()))),
            Change::Leave(_) => {}
            Change::Weigh(which, weight) if !members.is_empty() => {
                let at = which.index(members.len());
                members[at].weight = weight;
            }
            Change::Weigh(..) => {}
        }
        if at + 1 < start as usize {
            continue;
        }
        let after = place(&placement, routes, &members, replicas);
        see(&placement, &before, &after, &members)?;
        placement = after;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_rule_holds_through_every_history(
        start in 1u32..40,
        changes in prop::collection::vec(change(4, 20), 1..10),
        exponent in 0u32..7,
        replicas in 1u32..=7,
    ) {
        let routes = RoutingTable::equal(1 << exponent);
        history(start, &changes, &routes, replicas, |before, _, after, members| {
            prop_assert_eq!(check(after, &routes, members, replicas), Ok(()));
            // The same again, and with the members in another order: the same placement.
            let mut reversed = members.to_vec();
            reversed.reverse();
            prop_assert_eq!(&place(before, &routes, &reversed, replicas), after);
            // Placed once more, nothing moves.
            prop_assert_eq!(&place(after, &routes, members, replicas), after);
            Ok(())
        })?;
    }

    /// The bound of `docs/PLACEMENT.md`: in one zone with equal weights, a join moves at most the new
    /// node's share rounded up, and a leave at most what the node held.
    #[test]
    fn movement_is_bounded(
        start in 2u32..30,
        changes in prop::collection::vec(change(1, 1), 1..8),
        exponent in 3u32..8,
        replicas in 1u32..=5,
    ) {
        let routes = RoutingTable::equal(1 << exponent);
        let one_zone = |members: &[Candidate]| {
            members.iter().map(|member| node(member.number.0, "", 1)).collect::<Vec<_>>()
        };
        let mut placement = Placement::new();
        history(start, &changes, &routes, replicas, |_, before, _, members| {
            let after = place(&placement, &routes, &one_zone(members), replicas);
            if placement.is_empty() {
                placement = after;
                return Ok(());
            }
            let numbers: BTreeSet<NodeId> = members.iter().map(|member| member.number).collect();
            let gone: usize = (before.iter().zip(loads(&placement, before)))
                .filter(|(member, _)| !numbers.contains(&member.number))
                .map(|(_, load)| load)
                .sum();
            let joined = members.iter().filter(|member| !before.contains(member));
            let share = (after.values().map(Vec::len).sum::<usize>()).div_ceil(members.len());
            let ideal = gone.min(after.values().map(Vec::len).sum()) + joined.count() * share;
            let moved = moved(&placement, &after);
            prop_assert!(moved <= ideal, "{moved} > {ideal}, {} nodes", members.len());
            placement = after;
            Ok(())
        })?;
    }
}
