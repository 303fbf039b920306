//! RushKV: a distributed key-value store, sharded by consistent hashing, every shard replicated by
//! Raft, with an fsync before every answer.
//!
//! This is the map. Modules stand in layers and import downwards only; `tests/tidy.rs` holds the
//! table and fails on an upward import. `ARCHITECTURE.md` tells the two paths through them.

// words: what every layer speaks in
pub mod codec;
pub mod crash_point;
pub mod disk;
pub mod error;
pub mod history;
pub mod limits;
pub mod proto;
pub mod runtime;
pub mod types;
mod way_out;

// leaves: know nothing of each other
pub mod metrics;
pub mod placement;
pub mod storage;
pub mod wal;

// consensus: replicates bytes, knows nothing of keys
pub mod raft;

// between nodes: carries consensus' bytes, knows nothing of what they mean
pub mod transport;

// meaning: state machines
pub mod kv;
pub mod meta;

// node: groups, routing, reconciling
pub mod node;

#[cfg(test)]
mod simulation;

// edges
pub mod client;
pub mod service;

// programs
pub mod cli;
pub mod config;
pub mod ctl;
pub mod daemon;

// every decoder, for fuzz/
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

pub use client::Client;
