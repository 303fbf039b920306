//! The consistent-hash ring: in which order the nodes follow on a place in the hash space.

use xxhash_rust::xxh3::xxh3_64;

use crate::types::NodeId;

/// Points on the ring per unit of weight: with 128 the arcs of two equal nodes differ by some 9 %
/// (1 / sqrt(128)); the bounds of [`place`](super::place) take care of the rest.
const POINTS_PER_WEIGHT: u32 = 128;

/// Between name and number in what is hashed. No UTF-8 text holds this byte, so that `node1` + 11 and
/// `node11` + 1 are two points.
const SEPARATOR: u8 = 0xff;

/// A node that may hold replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub number: NodeId,
    /// Unique; it alone decides where the node stands on the ring.
    pub name: String,
    /// What fails together (a rack, a site); nodes without one share the empty zone.
    pub zone: String,
    /// The node's share of the data, relative to the others'; 0 counts as 1.
    pub weight: u32,
}

impl Candidate {
    pub(super) fn weight(&self) -> u32 {
        self.weight.max(1)
    }
}

/// Each candidate's points, sorted.
pub(super) struct Ring {
    points: Vec<Vec<u64>>,
}

impl Ring {
    pub(super) fn new(members: &[&Candidate]) -> Ring {
        Ring { points: members.iter().map(|member| points(member)).collect() }
    }

    /// All candidates, as indexes, in the order in which one meets them first going clockwise (towards
    /// larger hashes, around the end) from `place`.
    pub(super) fn clockwise(&self, place: u64) -> Vec<usize> {
        let mut order: Vec<(u64, usize)> = (self.points.iter().enumerate())
            .map(|(member, points)| {
                let next = points.partition_point(|point| *point < place);
                // Past the last point comes the first one again.
                let point = points.get(next).unwrap_or(&points[0]);
                (point.wrapping_sub(place), member)
            })
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(_, member)| member).collect()
    }
}

/// Where a node stands: `weight x 128` points, never none.
fn points(member: &Candidate) -> Vec<u64> {
    let mut hashed = member.name.clone().into_bytes();
    hashed.push(SEPARATOR);
    let stem = hashed.len();
    let mut points: Vec<u64> = (0..member.weight().saturating_mul(POINTS_PER_WEIGHT))
        .map(|i| {
            hashed.truncate(stem);
            hashed.extend_from_slice(&i.to_le_bytes());
            xxh3_64(&hashed)
        })
        .collect();
    points.sort_unstable();
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, weight: u32) -> Candidate {
        Candidate { number: NodeId(1), name: name.into(), zone: String::new(), weight }
    }

    #[test]
    fn points_are_fixed_for_ever() {
        // Every node of every version must place alike.
        let points = points(&candidate("node1", 1));
        assert_eq!(points.len(), 128);
        assert_eq!((points[0], points[127]), (0x0094_0860_53d5_2aa7, 0xfd9a_d9a8_edcf_20a2));
    }

    #[test]
    fn names_that_end_in_digits_share_no_point() {
        let (one, eleven) = (points(&candidate("node1", 1)), points(&candidate("node11", 1)));
        assert!(one.iter().all(|point| !eleven.contains(point)));
    }

    #[test]
    fn clockwise_is_what_a_walk_over_all_points_finds() {
        let members = [candidate("a", 1), candidate("b", 3), candidate("c", 2)];
        let ring = Ring::new(&members.iter().collect::<Vec<_>>());
        let mut all: Vec<(u64, usize)> = Vec::new();
        for (member, points) in ring.points.iter().enumerate() {
            all.extend(points.iter().map(|point| (*point, member)));
        }
        all.sort_unstable();
        for place in [0, 1 << 60, all[5].0, all[5].0 + 1, u64::MAX] {
            let start = all.partition_point(|(point, _)| *point < place);
            let mut walked = Vec::new();
            for (_, member) in all[start..].iter().chain(&all[..start]) {
                if !walked.contains(member) {
                    walked.push(*member);
                }
            }
            assert_eq!(ring.clockwise(place), walked, "from {place:#x}");
        }
    }
}
