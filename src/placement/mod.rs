//! Where keys and copies go: pure functions from keys to hashes, from hashes to partitions, and from
//! members to the nodes of each partition. `docs/PLACEMENT.md` tells the method.

mod flow;
mod place;
mod ring;
mod routing;
mod share;
#[cfg(test)]
mod tests;

pub use place::{Placement, check, place};
pub use ring::Candidate;
pub use routing::{Route, RoutingTable, hash, routing_key};
