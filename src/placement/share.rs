//! How much each node should hold: its share of all copies by weight, within what zones and distinct
//! nodes allow. Exact: fractions, no floating point.

use std::collections::BTreeMap;

use super::ring::Candidate;

/// How many copies of one partition a zone may hold: the evenest spread that the zones' sizes allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spread {
    pub(super) least: u32,
    pub(super) most: u32,
}

/// A node's share of all copies, as a fraction: a load is at least its floor and at most its ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    numerator: u128,
    denominator: u128,
}

impl Share {
    pub(super) fn floor(self) -> u64 {
        u64::try_from(self.numerator / self.denominator).unwrap_or(u64::MAX)
    }

    pub(super) fn ceil(self) -> u64 {
        u64::try_from(self.numerator.div_ceil(self.denominator)).unwrap_or(u64::MAX)
    }
}

/// What a placement of `copies` copies of each of `partitions` partitions on these members must keep.
#[derive(Debug)]
pub(super) struct Shares {
    /// Copies of each partition: as many as wanted, at most one a node.
    pub(super) copies: u32,
    /// Each member's zone, as an index into `spreads`.
    pub(super) zone_of: Vec<usize>,
    pub(super) spreads: Vec<Spread>,
    /// Each member's share of `partitions x copies`.
    pub(super) shares: Vec<Share>,
}

impl Shares {
    pub(super) fn new(members: &[&Candidate], partitions: usize, replicas: u32) -> Shares {
        let copies = replicas.min(u32::try_from(members.len()).unwrap_or(u32::MAX));
        let mut zones: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (member, candidate) in members.iter().enumerate() {
            zones.entry(&candidate.zone).or_default().push(member);
        }
        let mut zone_of = vec![0; members.len()];
        for (zone, nodes) in zones.values().enumerate() {
            for node in nodes {
                zone_of[*node] = zone;
            }
        }
        let sizes: Vec<u32> =
            zones.values().map(|nodes| u32::try_from(nodes.len()).unwrap_or(u32::MAX)).collect();
        let spreads = spread(&sizes, copies);
        let weights: Vec<u128> = members.iter().map(|member| u128::from(member.weight())).collect();
        let shares = divide(&weights, &zone_of, &spreads, partitions as u128, copies);
        Shares { copies, zone_of, spreads, shares }
    }
}

/// The smallest number that no zone needs to exceed, and so also what none may fall short of by more
/// than one: `most` is the least q with sum(min(size, q)) >= copies, and every zone holds min(size,
/// q - 1) or min(size, q) copies.
fn spread(sizes: &[u32], copies: u32) -> Vec<Spread> {
    let within = |most: u32| sizes.iter().map(|size| u64::from((*size).min(most))).sum::<u64>();
    let most = (0..=copies).find(|most| within(*most) >= u64::from(copies)).unwrap_or(copies);
    sizes
        .iter()
        .map(|size| Spread { least: (*size).min(most.saturating_sub(1)), most: (*size).min(most) })
        .collect()
}

/// Water-filling: every node's share is proportional to its weight, except that no node holds more
/// than every partition once, and no zone less or more than its spread. What one may not hold goes to
/// the others.
fn divide(
    weights: &[u128],
    zone_of: &[usize],
    spreads: &[Spread],
    partitions: u128,
    copies: u32,
) -> Vec<Share> {
    let mut shares = vec![Share { numerator: 0, denominator: 1 }; weights.len()];
    let mut free: Vec<bool> = vec![true; spreads.len()];
    let mut total = partitions * u128::from(copies);
    let nodes_in =
        |zone: usize| -> Vec<usize> { (0..weights.len()).filter(|n| zone_of[*n] == zone).collect() };
    loop {
        let nodes: Vec<usize> = (0..weights.len()).filter(|node| free[zone_of[*node]]).collect();
        fill(weights, &nodes, total, partitions, &mut shares);
        // By how much each free zone is beyond its bounds; all free shares have one denominator.
        let mut over = Vec::new();
        let mut under = Vec::new();
        for zone in (0..spreads.len()).filter(|zone| free[*zone]) {
            let nodes = nodes_in(zone);
            let denominator = shares[nodes[0]].denominator;
            let held: u128 = nodes.iter().map(|node| shares[*node].numerator).sum();
            let most = partitions * u128::from(spreads[zone].most) * denominator;
            let least = partitions * u128::from(spreads[zone].least) * denominator;
            if held > most {
                over.push((zone, held - most));
            } else if held < least {
                under.push((zone, least - held));
            }
        }
        if over.is_empty() && under.is_empty() {
            return shares;
        }
        let sum = |zones: &[(usize, u128)]| zones.iter().map(|(_, by)| by).sum::<u128>();
        // What the larger side gives up goes to, or comes from, the others, so that the zones of this
        // side stay at their bound in the end.
        let (fixed, at_most) = if sum(&over) >= sum(&under) { (over, true) } else { (under, false) };
        for (zone, _) in fixed {
            let per_partition = if at_most { spreads[zone].most } else { spreads[zone].least };
            let zone_total = partitions * u128::from(per_partition);
            fill(weights, &nodes_in(zone), zone_total, partitions, &mut shares);
            free[zone] = false;
            total -= zone_total;
        }
    }
}

/// Divides `total` over `nodes` by weight, at most `cap` each. All get the same denominator.
fn fill(weights: &[u128], nodes: &[usize], total: u128, cap: u128, shares: &mut [Share]) {
    let mut capped = vec![false; nodes.len()];
    loop {
        let weight: u128 = (0..nodes.len()).filter(|at| !capped[*at]).map(|at| weights[nodes[at]]).sum();
        let denominator = weight.max(1);
        let full = capped.iter().filter(|capped| **capped).count() as u128;
        let left = total.saturating_sub(full * cap);
        let mut again = false;
        for (at, node) in nodes.iter().enumerate() {
            if !capped[at] && left * weights[*node] > cap * denominator {
                capped[at] = true;
                again = true;
            }
            let numerator = if capped[at] { cap * denominator } else { left * weights[*node] };
            shares[*node] = Share { numerator, denominator };
        }
        if !again {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::NodeId;

    fn members(nodes: &[(&str, u32)]) -> Vec<Candidate> {
        nodes
            .iter()
            .zip(1..)
            .map(|((zone, weight), i)| Candidate {
                number: NodeId(i),
                name: format!("node{i}"),
                zone: (*zone).into(),
                weight: *weight,
            })
            .collect()
    }

    fn shares(nodes: &[(&str, u32)], partitions: usize, replicas: u32) -> Vec<f64> {
        let members = members(nodes);
        let shares = Shares::new(&members.iter().collect::<Vec<_>>(), partitions, replicas);
        shares.shares.iter().map(|share| share.numerator as f64 / share.denominator as f64).collect()
    }

    #[test]
    fn shares_follow_weights_within_what_zones_allow() {
        assert_eq!(shares(&[("", 1), ("", 1), ("", 2)], 16, 1), [4.0, 4.0, 8.0]);
        // No node holds a partition twice: the heavy one is full, the others take the rest.
        assert_eq!(shares(&[("", 1), ("", 1), ("", 10)], 16, 2), [8.0, 8.0, 16.0]);
        // Two copies, two zones: each zone holds one of each, however small it is.
        assert_eq!(shares(&[("a", 1), ("a", 1), ("a", 1), ("b", 1)], 12, 2), [4.0, 4.0, 4.0, 12.0]);
        // Three copies, two zones: each zone at least one and at most two of each.
        assert_eq!(shares(&[("a", 1), ("a", 1), ("b", 1), ("b", 1)], 16, 3), [12.0; 4]);
        // A heavy zone stops at one copy of each.
        assert_eq!(shares(&[("a", 8), ("b", 1), ("c", 1), ("d", 2)], 16, 2), [16.0, 4.0, 4.0, 8.0]);
        assert_eq!(shares(&[("", 1)], 16, 3), [16.0]);
    }

    #[test]
    fn copies_spread_evenly_over_zones() {
        let of = |sizes: &[u32], copies| {
            spread(sizes, copies).iter().map(|spread| (spread.least, spread.most)).collect::<Vec<_>>()
        };
        assert_eq!(of(&[3, 3, 3], 3), [(0, 1); 3]);
        assert_eq!(of(&[3, 3], 3), [(1, 2); 2]);
        assert_eq!(of(&[5, 1], 4), [(2, 3), (1, 1)]);
        assert_eq!(of(&[4], 3), [(2, 3)]);
        assert_eq!(of(&[1, 1, 1, 1], 3), [(0, 1); 4]);
    }

    proptest! {
        #[test]
        fn shares_are_whole_and_within_bounds(
            nodes in prop::collection::vec((0u8..5, 1u32..1000), 1..50),
            exponent in 0u32..9,
            replicas in 1u32..8,
        ) {
            let zones = ["a", "b", "c", "d", "e"];
            let nodes: Vec<_> = nodes.iter().map(|(zone, weight)| (zones[*zone as usize], *weight)).collect();
            let partitions = 1usize << exponent;
            let members = members(&nodes);
            let shares = Shares::new(&members.iter().collect::<Vec<_>>(), partitions, replicas);
            let real: Vec<f64> =
                shares.shares.iter().map(|share| share.numerator as f64 / share.denominator as f64).collect();
            let total = (partitions * shares.copies as usize) as f64;
            let near = |a: f64, b: f64| (a - b).abs() < 1e-6 * total;
            prop_assert!(near(real.iter().sum(), total));
            // Water-filling: a node has less per weight than another only if it is full, its zone is
            // full, or the other's zone must have that much.
            let held = |zone: usize| {
                (0..nodes.len()).filter(|n| shares.zone_of[*n] == zone).map(|n| real[n]).sum::<f64>()
            };
            for zone in 0..shares.spreads.len() {
                let most = (partitions * shares.spreads[zone].most as usize) as f64;
                let least = (partitions * shares.spreads[zone].least as usize) as f64;
                prop_assert!(held(zone) <= most || near(held(zone), most));
                prop_assert!(held(zone) >= least || near(held(zone), least));
            }
            for a in 0..nodes.len() {
                prop_assert!(real[a] <= partitions as f64);
                for b in 0..nodes.len() {
                    let less = real[a] / f64::from(nodes[a].1) + 1e-6 < real[b] / f64::from(nodes[b].1);
                    if !less || near(real[a], partitions as f64) {
                        continue;
                    }
                    let (za, zb) = (shares.zone_of[a], shares.zone_of[b]);
                    let full = near(held(za), (partitions * shares.spreads[za].most as usize) as f64);
                    let bare = near(held(zb), (partitions * shares.spreads[zb].least as usize) as f64);
                    prop_assert!(za != zb && (full || bare), "{nodes:?} {real:?} {a} {b}");
                }
            }
        }
    }
}
