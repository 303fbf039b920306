//! The edge: gRPC services and the HTTP endpoint, thin adapters between the wire and the node.
//!
//! A request is checked against the limits, turned into the node's values, and its answer turned
//! back. Nothing is decided here and nothing is retried.
//!
//! - [`grpc`]: one port for `rushkv.RushKV` (the original's six calls), `rushkv.v1.Kv`,
//!   `rushkv.v1.Cluster`, `grpc.health.v1` and reflection.
//! - [`http`]: `/metrics`, `/livez`, `/readyz`.

pub mod grpc;
pub mod http;

mod answer;
mod backend;
mod body;
mod cluster;
mod deadline;
mod debug;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod health;
mod kv;
mod linger;
mod listen;
mod original;
mod page;
mod peer;
mod pipeline;
mod request;
mod share;

pub use backend::Backend;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
