//! Prints the figures of `docs/PLACEMENT.md`: how even placements are, how much moves when nodes come
//! and go, and how long it takes. `cargo run --release --example placement_figures`
//!
//! All but the times follow from the code alone: they are the same on every machine.

use std::time::{Duration, Instant};

use rushkv::placement::{Candidate, Placement, RoutingTable, check, place};
use rushkv::types::NodeId;

const REPLICAS: u32 = 3;

fn node(number: u32) -> Candidate {
    Candidate { number: NodeId(number), name: format!("node{number}"), zone: String::new(), weight: 1 }
}

/// What was seen of something, each time it was seen.
#[derive(Default)]
struct Seen {
    count: u32,
    sum: f64,
    max: f64,
}

impl Seen {
    fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.max = self.max.max(value);
    }

    fn mean(&self) -> f64 {
        self.sum / f64::from(self.count.max(1))
    }
}

/// Copies on nodes that did not have them before.
fn moved(before: &Placement, after: &Placement) -> usize {
    let new = |(partition, nodes): (_, &Vec<NodeId>)| {
        nodes.iter().filter(|node| !before.get(partition).is_some_and(|old| old.contains(node))).count()
    };
    after.iter().map(new).sum()
}

/// The fullest node's copies, and the one that leads most, each divided by the mean.
fn balance(placement: &Placement, members: &[Candidate]) -> (f64, f64) {
    let most =
        |of: &dyn Fn(NodeId) -> usize| members.iter().map(|member| of(member.number)).max().unwrap_or(0);
    let held = most(&|node| placement.values().filter(|nodes| nodes.contains(&node)).count());
    let led = most(&|node| placement.values().filter(|nodes| nodes.first() == Some(&node)).count());
    let copies: usize = placement.values().map(Vec::len).sum();
    let mean = |total: usize| total as f64 / members.len() as f64;
    (held as f64 / mean(copies), led as f64 / mean(placement.len()))
}

fn main() {
    println!(
        "Equal nodes, one zone, {REPLICAS} copies. From 3 nodes to 50 by joins, and back by leaves (each time the \
         oldest).\n"
    );
    println!(
        "| partitions | fullest / mean, worst | nodes' copies differ by at most | leads / mean, worst | moved / ideal, \
         mean | worst | beyond ideal at most |"
    );
    println!("|---|---|---|---|---|---|---|");
    for partitions in [16, 64, 256] {
        row(partitions);
    }
    println!("\n| partitions | nodes | first placement | one joins | one leaves |\n|---|---|---|---|---|");
    for (partitions, nodes) in [(16, 3), (256, 50), (4096, 50), (4096, 256)] {
        times(partitions, nodes);
    }
}

fn row(partitions: u32) {
    let routes = RoutingTable::equal(partitions);
    let mut members: Vec<Candidate> = (1..=3).map(node).collect();
    let mut placement = place(&Placement::new(), &routes, &members, REPLICAS);
    let (mut full, mut lead, mut ratio) = (Seen::default(), Seen::default(), Seen::default());
    let (mut differ, mut beyond) = (0, 0);
    for next in 4..=97 {
        // What must move: a newcomer's share, or what the leaver held.
        let ideal = if next <= 50 {
            members.push(node(next));
            f64::from(partitions * REPLICAS) / members.len() as f64
        } else {
            let gone = members.remove(0).number;
            placement.values().filter(|nodes| nodes.contains(&gone)).count() as f64
        };
        let after = place(&placement, &routes, &members, REPLICAS);
        if let Err(wrong) = check(&after, &routes, &members, REPLICAS) {
            println!("a rule is broken: {wrong:?}");
        }
        let moved = moved(&placement, &after);
        ratio.add(moved as f64 / ideal);
        beyond = beyond.max(moved.saturating_sub(ideal.ceil() as usize));
        placement = after;
        let (held, led) = balance(&placement, &members);
        full.add(held);
        lead.add(led);
        let held = |member: &Candidate| placement.values().filter(|n| n.contains(&member.number)).count();
        let held: Vec<usize> = members.iter().map(held).collect();
        let spread = held.iter().max().zip(held.iter().min()).map_or(0, |(most, least)| most - least);
        differ = differ.max(spread);
    }
    println!(
        "| {partitions} | {:.2} | {differ} | {:.2} | {:.2} | {:.2} | {beyond} |",
        full.max,
        lead.max,
        ratio.mean(),
        ratio.max
    );
}

fn times(partitions: u32, nodes: u32) {
    let routes = RoutingTable::equal(partitions);
    let mut members: Vec<Candidate> = (1..=nodes).map(node).collect();
    let timed = |previous: &Placement, members: &[Candidate]| -> (Placement, Duration) {
        let started = Instant::now();
        let placement = place(previous, &routes, members, REPLICAS);
        (placement, started.elapsed())
    };
    let (first, forming) = timed(&Placement::new(), &members);
    members.push(node(nodes + 1));
    let (second, joining) = timed(&first, &members);
    members.remove(0);
    let (_, leaving) = timed(&second, &members);
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    println!("| {partitions} | {nodes} | {} | {} | {} |", ms(forming), ms(joining), ms(leaving));
}
