//! Group 0: what the cluster consists of. Members, placement, routing and births are one small state,
//! changed by commands and published whole after each apply.
//!
//! The state says what *should* be (`replicas`); the leader of each group makes it so, and reports who
//! is in the group (`holders`).

mod bounds;
mod codec;
mod command;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod machine;
mod partition;
mod state;
#[cfg(test)]
mod tests;
mod version;

pub use bounds::{check_bounds, check_id, check_member};
pub use codec::{decode_answer, decode_command, encode_command};
pub use command::{Answer, Command, Form, Join};
pub use machine::Machine;
pub use partition::{Birth, Desired, Holders, Partition};
pub use state::{
    CLUSTER_VERSION, Member, MemberState, Sealed, State, Tombstone, group0_replica, group0_voters,
    number_members,
};
