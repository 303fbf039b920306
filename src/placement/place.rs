//! Which nodes hold which partition. `docs/PLACEMENT.md` tells the method and its figures.
//!
//! [`place`] solves one minimum-cost flow: every partition sends its copies through zones to nodes,
//! every bound is a bound of an edge, and what costs is moving a copy. Fractional shares satisfy all
//! bounds together, so whole numbers do too (a flow with whole bounds has a whole solution): there is
//! always a placement that keeps every rule. A second flow spreads preferred leaders the same way.
//!
//! Every node computes it for itself when it applies a command of group 0: **whatever changes a result
//! needs a new cluster version**.

use std::collections::{BTreeMap, BTreeSet};

use super::flow::{Edge, Network};
use super::ring::{Candidate, Ring};
use super::routing::{Route, RoutingTable};
use super::share::Shares;
use crate::types::{NodeId, PartitionId};

/// The nodes of each partition, the preferred leader first.
pub type Placement = BTreeMap<PartitionId, Vec<NodeId>>;

/// Places `replicas` copies of every partition (at most one a node) on `members`.
///
/// A pure function that does not depend on the order of `members`. Without a previous placement a
/// partition's copies are on the nodes that follow clockwise on its range's first hash, as far as the
/// rules of [`check`] allow. From a previous one as few copies move as the rules allow, and those to
/// the next nodes clockwise. Copies that stay keep their order; new ones stand last, unless the
/// preferred leader, who stands first, has to be one.
///
/// No members: every partition has no copies. Names and numbers of members must be unique.
pub fn place(previous: &Placement, routes: &RoutingTable, members: &[Candidate], replicas: u32) -> Placement {
    let members = sorted(members);
    let routes = routes.routes();
    if members.is_empty() {
        return routes.iter().map(|route| (route.partition, Vec::new())).collect();
    }
    let shares = Shares::new(&members, routes.len(), replicas);
    let ring = Ring::new(&members);
    let index: BTreeMap<NodeId, usize> =
        members.iter().enumerate().map(|(at, member)| (member.number, at)).collect();
    let wishes: Vec<Wish> = routes.iter().map(|route| Wish::new(route, previous, &index, &ring)).collect();
    let held = spread_copies(&wishes, &shares);
    let led = spread_leaders(&wishes, &held, members.len(), shares.copies);
    let number = |at: &usize| members[*at].number;
    (routes.iter().zip(held.iter().zip(&led)))
        .map(|(route, (held, leader))| {
            let mut nodes: Vec<usize> = held.clone();
            if let Some(at) = nodes.iter().position(|node| node == leader) {
                nodes[..=at].rotate_right(1);
            }
            (route.partition, nodes.iter().map(number).collect())
        })
        .collect()
}

/// Verifies every rule, and says which are broken:
/// - each partition has min(replicas, members) copies, on distinct members;
/// - zones hold as even a number of a partition's copies as their sizes allow;
/// - each node holds its share of all copies, rounded down or up: by weight, as far as distinct nodes
///   and zones allow;
/// - each node is the preferred leader of its copies divided by copies a partition, rounded down or up.
pub fn check(
    placement: &Placement,
    routes: &RoutingTable,
    members: &[Candidate],
    replicas: u32,
) -> Result<(), Vec<String>> {
    let members = sorted(members);
    let shares = Shares::new(&members, routes.routes().len(), replicas);
    let mut wrong = Vec::new();
    let partitions: BTreeSet<PartitionId> = routes.routes().iter().map(|route| route.partition).collect();
    if !placement.keys().eq(partitions.iter()) {
        wrong.push("the partitions are not those of the routing table".to_string());
    }
    let index: BTreeMap<NodeId, usize> =
        members.iter().enumerate().map(|(at, member)| (member.number, at)).collect();
    let mut held = vec![0u64; members.len()];
    let mut led = vec![0u64; members.len()];
    for (partition, nodes) in placement {
        if nodes.len() != shares.copies as usize {
            wrong.push(format!("{partition} has {} copies, not {}", nodes.len(), shares.copies));
        }
        if nodes.iter().collect::<BTreeSet<_>>().len() != nodes.len() {
            wrong.push(format!("{partition} has two copies on one node"));
        }
        let mut zones = vec![0u32; shares.spreads.len()];
        for (at, node) in nodes.iter().enumerate() {
            let Some(&member) = index.get(node) else {
                wrong.push(format!("{partition} is on {node}, which is no member"));
                continue;
            };
            held[member] += 1;
            led[member] += u64::from(at == 0);
            zones[shares.zone_of[member]] += 1;
        }
        for (spread, copies) in shares.spreads.iter().zip(zones) {
            if !(spread.least..=spread.most).contains(&copies) {
                let (least, most) = (spread.least, spread.most);
                wrong.push(format!("{partition} has {copies} copies in a zone, not {least} to {most}"));
            }
        }
    }
    for (at, member) in members.iter().enumerate() {
        let (least, most) = (shares.shares[at].floor(), shares.shares[at].ceil());
        if !(least..=most).contains(&held[at]) {
            wrong.push(format!("{} holds {} copies, not {least} to {most}", member.number, held[at]));
        }
        let copies = u64::from(shares.copies.max(1));
        let (least, most) = (held[at] / copies, held[at].div_ceil(copies));
        if !(least..=most).contains(&led[at]) {
            wrong
                .push(format!("{} should lead {} partitions, not {least} to {most}", member.number, led[at]));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// By name, so that the order in which members are given does not matter.
fn sorted(members: &[Candidate]) -> Vec<&Candidate> {
    let mut sorted: Vec<&Candidate> = members.iter().collect();
    sorted.sort_by_key(|member| (&member.name, member.number));
    sorted
}

/// What a partition would have if it were alone. Nodes are indexes into the sorted members.
struct Wish {
    /// Those that hold it and are still members, in their order.
    kept: Vec<usize>,
    /// Whether it was placed before at all.
    placed: bool,
    /// Each member's place clockwise from the partition's range.
    rank: Vec<i64>,
}

impl Wish {
    fn new(route: &Route, previous: &Placement, index: &BTreeMap<NodeId, usize>, ring: &Ring) -> Wish {
        let before = previous.get(&route.partition);
        let mut kept = Vec::new();
        for node in before.into_iter().flatten().filter_map(|node| index.get(node)) {
            if !kept.contains(node) {
                kept.push(*node);
            }
        }
        let mut rank = vec![0; index.len()];
        for (at, node) in (0..).zip(ring.clockwise(route.first)) {
            rank[node] = at;
        }
        Wish { kept, placed: before.is_some_and(|nodes| !nodes.is_empty()), rank }
    }

    /// What it costs to have a copy on this node. `move_cost` outweighs all ranks together.
    fn cost(&self, node: usize, copies: i64, move_cost: i64) -> i64 {
        match (self.placed, self.kept.contains(&node)) {
            (true, true) => -move_cost,
            (true, false) => self.rank[node] + 1,
            // Below 0 for the next `copies` nodes clockwise, above for those behind: every partition
            // has as many copies, so that a constant changes nothing but where the flow starts.
            (false, _) => 2 * self.rank[node] - (2 * copies - 1),
        }
    }
}

/// The nodes of each partition: those that keep their copy first, in their order, then new ones in
/// clockwise order.
fn spread_copies(wishes: &[Wish], shares: &Shares) -> Vec<Vec<usize>> {
    let (partitions, zones, nodes) = (wishes.len(), shares.spreads.len(), shares.shares.len());
    let copies = i64::from(shares.copies);
    let move_cost = (partitions * nodes * (nodes + 1) * 4) as i64;
    // Vertices: partitions, then each partition's zones, then nodes, then the end.
    let zone_vertex = |partition: usize, zone: usize| partitions + partition * zones + zone;
    let node_vertex = |node: usize| partitions * (1 + zones) + node;
    let end = node_vertex(nodes);
    let mut network = Network::new(end + 1);
    let mut edges: Vec<Vec<Edge>> = Vec::with_capacity(partitions);
    let mut load = vec![0i64; nodes];
    for (partition, wish) in wishes.iter().enumerate() {
        network.supply(partition, copies);
        let mut in_zone = vec![0i64; zones];
        let mut node_edges = Vec::with_capacity(nodes);
        for (node, load) in load.iter_mut().enumerate() {
            let zone = shares.zone_of[node];
            let cost = wish.cost(node, copies, move_cost);
            let edge = network.edge(zone_vertex(partition, zone), node_vertex(node), (0, 1), cost, 0);
            let flow = network.flow(edge);
            *load += flow;
            in_zone[zone] += flow;
            node_edges.push(edge);
        }
        for (zone, spread) in shares.spreads.iter().enumerate() {
            let bounds = (i64::from(spread.least), i64::from(spread.most));
            network.edge(partition, zone_vertex(partition, zone), bounds, 0, in_zone[zone]);
        }
        edges.push(node_edges);
    }
    for (node, share) in shares.shares.iter().enumerate() {
        let bounds = (share.floor() as i64, share.ceil() as i64);
        network.edge(node_vertex(node), end, bounds, 0, load[node]);
    }
    network.supply(end, -copies * partitions as i64);
    let solved = network.solve();
    debug_assert!(solved, "the shares are a fractional solution, so there is a whole one");
    (wishes.iter().zip(edges))
        .map(|(wish, edges)| {
            let mut held: Vec<usize> = (0..nodes).filter(|node| network.flow(edges[*node]) == 1).collect();
            let stays = |node: &usize| wish.kept.iter().position(|kept| kept == node).unwrap_or(nodes);
            held.sort_by_key(|node| (stays(node), wish.rank[*node]));
            held
        })
        .collect()
}

/// The preferred leader of each partition, one of its holders. Leaders change only where the balance
/// needs it, and then to the holder that stands nearest to the front.
fn spread_leaders(wishes: &[Wish], held: &[Vec<usize>], nodes: usize, copies: u32) -> Vec<usize> {
    let partitions = held.len();
    let end = partitions + nodes;
    let move_cost = (partitions * (nodes + 1) * 4) as i64;
    let mut network = Network::new(end + 1);
    let mut load = vec![0i64; nodes];
    let mut led = vec![0i64; nodes];
    let mut edges: Vec<Vec<(usize, Edge)>> = Vec::with_capacity(partitions);
    for (partition, (wish, held)) in wishes.iter().zip(held).enumerate() {
        network.supply(partition, 1);
        let mut holder_edges = Vec::with_capacity(held.len());
        for (at, &node) in held.iter().enumerate() {
            load[node] += 1;
            // Who led keeps leading, and without one the first holder leads.
            let leads = wish.kept.first().map_or(at == 0, |first| *first == node);
            let cost = if leads { -move_cost } else { at as i64 + 1 };
            let edge = network.edge(partition, partitions + node, (0, 1), cost, 0);
            led[node] += network.flow(edge);
            holder_edges.push((node, edge));
        }
        edges.push(holder_edges);
    }
    for (node, (load, led)) in load.into_iter().zip(led).enumerate() {
        let copies = i64::from(copies.max(1));
        let bounds = (load / copies, (load + copies - 1) / copies);
        network.edge(partitions + node, end, bounds, 0, led);
    }
    network.supply(end, -(partitions as i64));
    let solved = network.solve();
    debug_assert!(solved, "every holder leading its part is a fractional solution, so there is a whole one");
    (edges.iter())
        .map(|edges| {
            let leader = edges.iter().find(|(_, edge)| network.flow(*edge) == 1);
            leader.or(edges.first()).map_or(0, |(node, _)| *node)
        })
        .collect()
}
