//! The original README's program, in Rust: connects, stores a value, reads it back.
//!
//! Start a node first (`make run`), then: `cargo run --example quickstart [HOST:PORT]`

use rushkv::Client;

#[tokio::main]
async fn main() -> rushkv::error::Result<()> {
    let server = std::env::args().nth(1).unwrap_or_else(|| "localhost:8080".to_string());

    // Make a client. Its connections open with the first call, and close with the last clone.
    let client = Client::connect(&server)?;

    // Store a value. When this returns it is on stable storage.
    client.put("key1", "value1").await?;

    // Read it back.
    match client.get("key1").await? {
        Some(record) => println!("Value: {}", String::from_utf8_lossy(&record.value)),
        None => println!("key1 is not there: somebody removed it in between"),
    }
    Ok(())
}
