//! What `build.rs` made of `proto/`: messages, servers and clients.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

mod codec;

/// The original's six calls.
pub mod original {
    tonic::include_proto!("rushkv");
}

/// `rushkv.v1`: Kv and Cluster.
pub mod v1 {
    tonic::include_proto!("rushkv.v1");
}

/// All of it as an encoded `FileDescriptorSet`, for reflection and for grpcurl.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rushkv.pb"));
