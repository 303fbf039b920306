//! Consensus over bytes: the only room, with the transport, that knows openraft.
//!
//! A [`Group`] replicates the commands of a [`Machine`]. Its log is a stretch of the node's
//! write-ahead log, its state a [`Space`] of the node's engine; [`Store`] holds what all groups of a
//! node share. What the bytes mean is no business of this module.
//!
//! The replicas of a group speak to each other through a [`Carrier`] that the node provides, and hear of
//! each other by [`Group::receive`]; what they say is encoded here (`message.rs`).
//!
//! ```text
//! propose -> [batch] -> core -> LogStore -> wal: fsync -> commit -> StateMachine -> Machine -> engine -> answer
//! entries -> network: pipelined per replica -> Carrier ... receive -> core -> LogStore -> wal -> answer
//! read    -> [share] -> voters: is this vote the newest? -> Space
//! ```

mod carrier;
#[cfg(test)]
mod change_tests;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod cluster_tests;
mod codec;
mod confirm;
#[cfg(test)]
mod crash_tests;
mod destroy;
mod doubt;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod group;
mod incoming;
mod log_store;
mod machine;
mod membership;
mod merge;
mod message;
mod metrics;
mod network;
mod outgoing;
mod receive;
mod renew;
mod retention;
mod runtime;
mod snapshot;
mod space;
#[cfg(test)]
mod stall_tests;
mod state_machine;
mod status;
mod store;
mod sweep;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod types;

pub use carrier::{Carrier, CarryError, Class, Inbox, NoPeers, Route};
pub use destroy::finish_destroying;
pub use group::{Group, OpenError, ProposeError, ReadError};
pub use machine::{ApplyError, Machine, Txn};
pub use membership::{MembershipError, Removed};
pub use metrics::Metrics;
pub use renew::{Renewed, is_due as renewal_is_due, renew};
pub use space::{Space, SpaceView};
pub use status::{Changes, Role, Status};
pub use store::{Store, StoreError, has_damage};
