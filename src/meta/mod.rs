//! Group 0: what the cluster consists of. Members, placement, routing and births are one small state,
//! changed by commands and published whole after each apply.
//!
//! The state says what *should* be (`replicas`); the leader of each group makes it so, and reports who
//! is in the group (`holders`).

mod codec;
mod command;
mod machine;
mod state;
#[cfg(test)]
mod tests;
mod version;

pub use codec::{decode_answer, encode_command};
pub use command::{Answer, Command, Form, Join};
pub use machine::Machine;
pub use state::{
    Birth, CLUSTER_VERSION, Desired, Holders, Member, MemberState, Partition, Sealed, State, Tombstone,
    group0_replica, group0_voters, number_members,
};
