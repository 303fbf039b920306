//! Ports for servers that are started, killed and started again on the same port.

use std::hash::{BuildHasher as _, RandomState};
use std::net::TcpListener;

/// Below the range that Linux takes from for connections going out (32768 and up): such a port could be in
/// use by a client of another test when its server comes back.
const RANGE: std::ops::Range<u16> = 10_000..30_000;

/// A port that is free, and so is the one of the HTTP endpoint that goes with it. Drawn by chance, so that
/// tests that run at once do not meet.
pub fn free_port() -> u16 {
    for attempt in 0..100 {
        let drawn = RandomState::new().hash_one(attempt) % u64::from(RANGE.end - RANGE.start);
        let port = RANGE.start + u16::try_from(drawn).expect("it is below the range's length");
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if is_free(port) && is_free(port + 1100) {
            return port;
        }
    }
    panic!("no free pair of ports in 100 tries");
}
