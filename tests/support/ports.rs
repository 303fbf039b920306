//! Ports for servers that are started, killed and started again on the same port.

use std::hash::{BuildHasher as _, RandomState};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Below the range that Linux takes from for connections going out (32768 and up): such a port could be in
/// use by a client of another test when its server comes back.
const RANGE: std::ops::Range<u16> = 10_000..30_000;

/// From a gRPC port to the HTTP port that goes with it.
pub const HTTP_OFFSET: u16 = 1100;

/// A port that is free, and so is the one of the HTTP endpoint that goes with it. No other test gets either of
/// them while this process runs, though nobody listens there yet, or not just now.
pub fn free_port() -> u16 {
    for attempt in 0..100 {
        let drawn = RandomState::new().hash_one(attempt) % u64::from(RANGE.end - RANGE.start);
        let port = RANGE.start + u16::try_from(drawn).expect("it is below the range's length");
        let Some(claims) = claim(port).zip(claim(port + HTTP_OFFSET)) else { continue };
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if is_free(port) && is_free(port + HTTP_OFFSET) {
            // Held until the process ends, as the server may come back at any time.
            std::mem::forget(claims);
            return port;
        }
    }
    panic!("no free pair of ports in 100 tries");
}

/// Takes a name that one socket at a time may have, and that is given back with the process.
fn claim(port: u16) -> Option<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("rushkv-test-port-{port}")).ok()?;
    UnixListener::bind_addr(&name).ok()
}
