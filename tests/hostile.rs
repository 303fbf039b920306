//! Enemies at the ports of the real daemon: while each attacks, another client is served within a stated
//! time, memory stays under a stated bound, nothing panics, and every descriptor is given back. The limits
//! behind it, and what is not defended, stand in `docs/decisions/0017-hostile-input.md`.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/http2.rs"]
mod http2;
#[path = "support/process.rs"]
mod process;
#[path = "support/siege.rs"]
mod siege;
#[path = "support/slack.rs"]
mod slack;

#[path = "hostile/floods.rs"]
mod floods;
#[path = "hostile/garbage.rs"]
mod garbage;
#[path = "hostile/greedy.rs"]
mod greedy;
#[path = "hostile/http.rs"]
mod http;
#[path = "hostile/peers.rs"]
mod peers;
#[path = "hostile/slow.rs"]
mod slow;

use std::time::{Duration, Instant};

/// How long each attack goes on that has no end of its own.
const ATTACK: Duration = Duration::from_millis(1200);

/// A server that is told nonsense closes at once; the machine may be busy.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

const PUT: &str = "/rushkv.v1.Kv/Put";
const SCAN: &str = "/rushkv.v1.Kv/Scan";
const PIPELINE: &str = "/rushkv.v1.Kv/Pipeline";

/// Runs `attack` on `count` threads until the time is over; each gets its number.
fn for_a_while(count: u64, attack: impl Fn(u64) + Sync) {
    let end = Instant::now() + ATTACK;
    std::thread::scope(|scope| {
        for number in 0..count {
            let attack = &attack;
            scope.spawn(move || {
                while Instant::now() < end {
                    attack(number);
                }
            });
        }
    });
}
