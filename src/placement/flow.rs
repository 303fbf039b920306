//! Minimum-cost flow with bounds on every edge, by successive shortest paths from a warm start.
//!
//! Whole numbers only and every tie is broken by the order in which vertices and edges were added, so
//! that the same network gives the same flow on every machine.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// One direction of an edge; its reverse stands next to it (index ^ 1).
#[derive(Debug, Clone, Copy)]
struct Arc {
    to: usize,
    /// How much more it can carry.
    room: i64,
    cost: i64,
}

/// An edge, to ask for its flow afterwards.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge {
    arc: usize,
    lower: i64,
}

/// Invariants: `excess` sums to 0 when all supply is in, and no arc with room has a negative cost
/// reduced by `potential`.
#[derive(Debug)]
pub(super) struct Network {
    arcs: Vec<Arc>,
    out: Vec<Vec<usize>>,
    /// What each vertex has too much of (or, negative, too little).
    excess: Vec<i64>,
    potential: Vec<i64>,
}

impl Network {
    pub(super) fn new(vertices: usize) -> Network {
        Network {
            arcs: Vec::new(),
            out: vec![Vec::new(); vertices],
            excess: vec![0; vertices],
            potential: vec![0; vertices],
        }
    }

    /// `amount` flows in at `vertex` (out, if negative).
    pub(super) fn supply(&mut self, vertex: usize, amount: i64) {
        self.excess[vertex] += amount;
    }

    /// An edge that carries between `lower` and `upper`, each unit for `cost`. It starts with what is
    /// cheapest in itself: `upper` if the cost is negative, `lower` if positive, and if it is 0 with
    /// whatever is nearest to `start`.
    pub(super) fn edge(
        &mut self,
        from: usize,
        to: usize,
        (lower, upper): (i64, i64),
        cost: i64,
        start: i64,
    ) -> Edge {
        let flow = match cost {
            ..0 => upper,
            0 => start.clamp(lower, upper),
            1.. => lower,
        };
        self.excess[from] -= flow;
        self.excess[to] += flow;
        let arc = self.arcs.len();
        self.out[from].push(arc);
        self.out[to].push(arc + 1);
        self.arcs.push(Arc { to, room: upper - flow, cost });
        self.arcs.push(Arc { to: from, room: flow - lower, cost: -cost });
        Edge { arc, lower }
    }

    pub(super) fn flow(&self, edge: Edge) -> i64 {
        self.arcs[edge.arc + 1].room + edge.lower
    }

    /// Moves all excess to where it is missing, for the least cost. False if the bounds leave no way.
    pub(super) fn solve(&mut self) -> bool {
        let mut search = Search::new(self.out.len());
        for source in 0..self.excess.len() {
            while self.excess[source] > 0 {
                let Some(sink) = self.shortest(source, &mut search) else {
                    return false;
                };
                self.augment(source, sink, &search);
            }
        }
        true
    }

    /// Dijkstra over reduced costs, up to the first vertex that lacks something.
    fn shortest(&mut self, source: usize, search: &mut Search) -> Option<usize> {
        search.clear();
        search.reach(source, 0, None);
        while let Some(Reverse((distance, vertex))) = search.heap.pop() {
            if search.done[vertex] {
                continue;
            }
            search.done[vertex] = true;
            if self.excess[vertex] < 0 {
                // Only what is nearer than the sink moves, by the difference: what was not reached
                // counts as being as far as the sink, and every reduced cost stays >= 0.
                for &near in &search.touched {
                    if search.done[near] {
                        self.potential[near] += search.distance[near] - distance;
                    }
                }
                return Some(vertex);
            }
            for &at in &self.out[vertex] {
                let arc = self.arcs[at];
                if arc.room > 0 && !search.done[arc.to] {
                    let reduced = arc.cost + self.potential[vertex] - self.potential[arc.to];
                    debug_assert!(reduced >= 0, "a reduced cost is negative");
                    search.reach(arc.to, distance + reduced, Some(at));
                }
            }
        }
        None
    }

    /// Sends what the path has room for, and what is there and missing, along it.
    fn augment(&mut self, source: usize, sink: usize, search: &Search) {
        let path: Vec<usize> =
            std::iter::successors(search.via[sink], |at| search.via[self.arcs[at ^ 1].to]).collect();
        let narrowest = path.iter().map(|at| self.arcs[*at].room).min().unwrap_or(0);
        let amount = narrowest.min(self.excess[source]).min(-self.excess[sink]);
        for at in path {
            self.arcs[at].room -= amount;
            self.arcs[at ^ 1].room += amount;
        }
        self.excess[source] -= amount;
        self.excess[sink] += amount;
    }
}

/// What one search found; reused, so that a search costs what it touches.
struct Search {
    distance: Vec<i64>,
    via: Vec<Option<usize>>,
    done: Vec<bool>,
    touched: Vec<usize>,
    heap: BinaryHeap<Reverse<(i64, usize)>>,
}

impl Search {
    fn new(vertices: usize) -> Search {
        Search {
            distance: vec![i64::MAX; vertices],
            via: vec![None; vertices],
            done: vec![false; vertices],
            touched: Vec::new(),
            heap: BinaryHeap::new(),
        }
    }

    fn clear(&mut self) {
        for vertex in self.touched.drain(..) {
            self.distance[vertex] = i64::MAX;
            self.via[vertex] = None;
            self.done[vertex] = false;
        }
        self.heap.clear();
    }

    fn reach(&mut self, vertex: usize, distance: i64, via: Option<usize>) {
        if distance < self.distance[vertex] {
            if self.distance[vertex] == i64::MAX {
                self.touched.push(vertex);
            }
            self.distance[vertex] = distance;
            self.via[vertex] = via;
            self.heap.push(Reverse((distance, vertex)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every flow of a small network, tried one by one: the least cost, if any is possible.
    fn by_trying(edges: &[(usize, usize, i64, i64, i64)], supply: &[i64]) -> Option<i64> {
        fn go(edges: &[(usize, usize, i64, i64, i64)], left: &mut Vec<i64>, cost: i64) -> Option<i64> {
            let Some(((from, to, lower, upper, price), rest)) = edges.split_first() else {
                return left.iter().all(|left| *left == 0).then_some(cost);
            };
            (*lower..=*upper)
                .filter_map(|flow| {
                    left[*from] -= flow;
                    left[*to] += flow;
                    let found = go(rest, left, cost + flow * price);
                    left[*from] += flow;
                    left[*to] -= flow;
                    found
                })
                .min()
        }
        go(edges, &mut supply.to_vec(), 0)
    }

    proptest! {
        #[test]
        fn the_flow_is_the_cheapest_there_is(
            edges in prop::collection::vec((0usize..3, 3usize..6, 0i64..2, 0i64..3, -3i64..4, 0i64..3), 1..8),
            amounts in prop::collection::vec(0i64..4, 5),
        ) {
            // Edges lead from lower to higher vertices: no cycle of negative cost that would be free.
            let mut supply = amounts;
            supply.push(-supply.iter().sum::<i64>());
            let mut network = Network::new(6);
            for (vertex, amount) in supply.iter().enumerate() {
                network.supply(vertex, *amount);
            }
            let edges: Vec<_> = (edges.into_iter())
                .chain([(3, 5, 0, 3, 0, 1), (4, 5, 0, 3, 0, 2), (0, 1, 0, 2, 1, 0)])
                .map(|(from, to, lower, more, cost, start)| (from, to, lower, lower + more, cost, start))
                .collect();
            let kept: Vec<Edge> = (edges.iter())
                .map(|(from, to, lower, upper, cost, start)| {
                    network.edge(*from, *to, (*lower, *upper), *cost, *start)
                })
                .collect();
            let plain: Vec<_> = edges.iter().map(|(f, t, l, u, c, _)| (*f, *t, *l, *u, *c)).collect();
            let expected = by_trying(&plain, &supply);
            let solved = network.solve();
            prop_assert_eq!(solved, expected.is_some());
            if solved {
                let cost: i64 =
                    kept.iter().zip(&edges).map(|(edge, (.., cost, _))| network.flow(*edge) * cost).sum();
                prop_assert_eq!(Some(cost), expected);
                for (edge, (_, _, lower, upper, ..)) in kept.iter().zip(&edges) {
                    prop_assert!((*lower..=*upper).contains(&network.flow(*edge)));
                }
            }
        }
    }
}
