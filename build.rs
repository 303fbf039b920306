//! Compiles `proto/` with protox, so that building needs no `protoc`.

use std::path::PathBuf;

const PROTOS: [&str; 6] = [
    "rushkv.proto",
    "rushkv/v1/kv.proto",
    "rushkv/v1/cluster.proto",
    "rushkv/v1/transport.proto",
    "rushkv/v1/debug.proto",
    "rushkv/v1/peer.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // For server reflection, and for `make proto`.
    std::fs::write(out.join("rushkv.pb"), protox::prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::proto::codec::ProstCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
