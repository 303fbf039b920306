//! Keys to partitions. The table of ranges is the only thing that knows how the hash space is divided:
//! nothing on the wire or on disk derives a partition from the bits of a key, so that one can be split.

use xxhash_rust::xxh3::xxh3_64;

use crate::types::PartitionId;

/// The part of a key that decides its partition: what stands between the first `{` and the next `}`,
/// if both are there and it is not empty, else the whole key. Keys that share it share a partition, as
/// in [Redis Cluster](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).
pub fn routing_key(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&byte| byte == b'{') else {
        return key;
    };
    let rest = &key[open + 1..];
    match rest.iter().position(|&byte| byte == b'}') {
        Some(close) if close > 0 => &rest[..close],
        _ => key,
    }
}

/// Where a key stands in the hash space.
pub fn hash(key: &[u8]) -> u64 {
    xxh3_64(routing_key(key))
}

/// A range of the hash space and its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Both ends inclusive.
    pub first: u64,
    pub last: u64,
    pub partition: PartitionId,
}

/// Which partition holds which hashes.
///
/// Invariants: ranges are in order, leave no gap, do not overlap, and cover all of `u64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingTable {
    routes: Vec<Route>,
}

impl RoutingTable {
    /// `partitions` equal ranges, numbered from 0.
    ///
    /// # Panics
    /// If `partitions` is not a power of two.
    pub fn equal(partitions: u32) -> RoutingTable {
        assert!(partitions.is_power_of_two(), "{partitions} is not a power of two");
        let width = (u128::from(u64::MAX) + 1) / u128::from(partitions);
        let start = |i: u32| (width * u128::from(i)) as u64;
        let routes = (0..partitions)
            .map(|i| Route {
                first: start(i),
                last: if i + 1 == partitions { u64::MAX } else { start(i + 1) - 1 },
                partition: PartitionId(i),
            })
            .collect();
        RoutingTable { routes }
    }

    /// A table of `routes`; says what is wrong if they do not divide the hash space.
    pub fn new(mut routes: Vec<Route>) -> Result<RoutingTable, String> {
        routes.sort_by_key(|route| route.first);
        let mut next = Some(0);
        for route in &routes {
            if Some(route.first) != next || route.last < route.first {
                return Err(format!(
                    "the range {:#018x}..={:#018x} of {} does not follow on the one before",
                    route.first, route.last, route.partition
                ));
            }
            next = route.last.checked_add(1);
        }
        match next {
            None if !routes.is_empty() => Ok(RoutingTable { routes }),
            _ => Err("the ranges do not cover the hash space".into()),
        }
    }

    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    pub fn partition_of(&self, hash: u64) -> PartitionId {
        // The ranges start at 0, so that at least one starts at or before any hash.
        let after = self.routes.partition_point(|route| route.first <= hash);
        self.routes[after - 1].partition
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn braces_choose_the_routing_key() {
        for (key, expected) in [
            ("user:1", "user:1"),
            ("{user:1}:name", "user:1"),
            ("a{b}c{d}", "b"),
            ("a{}b", "a{}b"),
            ("a{}b{c}", "a{}b{c}"),
            ("a{b", "a{b"),
            ("a}b{c}", "c"),
            ("{{x}}", "{x"),
            ("", ""),
        ] {
            assert_eq!(routing_key(key.as_bytes()), expected.as_bytes(), "{key}");
        }
    }

    #[test]
    fn the_hash_is_fixed_for_ever() {
        // On disk and in clients: changing it would lose every key.
        assert_eq!(hash(b"user:1"), 0x3b57_7afd_7fed_9501);
        assert_eq!(hash(b"x{user:1}"), hash(b"user:1"));
    }

    proptest! {
        #[test]
        fn every_hash_has_exactly_one_partition(exponent in 0u32..13, hash: u64) {
            let table = RoutingTable::equal(1 << exponent);
            let partition = table.partition_of(hash);
            let holding: Vec<_> =
                table.routes().iter().filter(|route| (route.first..=route.last).contains(&hash)).collect();
            prop_assert_eq!(holding.len(), 1);
            prop_assert_eq!(holding[0].partition, partition);
            prop_assert_eq!(RoutingTable::new(table.routes().to_vec()).unwrap(), table);
        }
    }

    #[test]
    fn gaps_and_overlaps_are_refused() {
        let mut routes = RoutingTable::equal(4).routes().to_vec();
        routes[1].last -= 1;
        assert!(RoutingTable::new(routes.clone()).is_err());
        routes[1].last += 2;
        assert!(RoutingTable::new(routes.clone()).is_err());
        routes.pop();
        assert!(RoutingTable::new(routes).is_err());
        assert!(RoutingTable::new(Vec::new()).is_err());
    }
}
