//! The HTTP port: metrics and probes, which a supervisor restarts the node by.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::http2::Wire;
use crate::siege::{Dice, Siege};
use crate::slack::within;
use crate::{ATTACK, CLOSED_WITHIN};

/// From the gRPC port.
const OFFSET: u16 = 1100;

/// How long a probe may take while others attack. A kubelet's default is 1 s; the machine may be busy.
const PROBED_WITHIN: Duration = Duration::from_secs(4);

/// GETs `/livez` on a connection of its own.
fn probe(port: u16) -> Duration {
    let started = Instant::now();
    // Refused when it falls into a burst of new ones; a prober asks again.
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(within(PROBED_WITHIN))).unwrap();
        let mut answer = String::new();
        let asked = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        if asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200") {
            return started.elapsed();
        }
    }
    panic!("the probe is not answered");
}

/// Holds the port to what it must do while `attack` runs: probes are answered.
async fn probed_during(name: &'static str, mib_max: u64, attack: impl FnOnce(u16) + Send + 'static) {
    let mut siege = Siege::start().await;
    let port = siege.port() + OFFSET;
    let over = Arc::new(AtomicBool::new(false));
    let prober = {
        let over = over.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            let mut slowest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                slowest = slowest.max(probe(port));
                std::thread::sleep(Duration::from_millis(20));
            }
            slowest
        })
    };
    let ended = over.clone();
    let attack = move || {
        attack(port);
        ended.store(true, Ordering::Relaxed);
    };
    siege.withstands(name, mib_max, attack).await;
    over.store(true, Ordering::Relaxed);
    let slowest = prober.join().expect("every probe is answered");
    assert!(slowest < within(PROBED_WITHIN), "{name}: a probe took {slowest:?}");
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_requests_over_the_limit() {
    probed_during("HTTP garbage", 32, |port| {
        let line = |length| format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(length)).into_bytes();
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(10_000)).into_bytes();
        let long = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "y".repeat(1 << 20)).into_bytes();
        let chunks =
            b"POST /metrics HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n".to_vec();
        let twice = b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nx".to_vec();
        let preface = crate::http2::PREFACE.to_vec();
        for round in 0..60 {
            let noise = Dice(round).bytes(8 * 1024);
            let wrong = [line(1 << 20), many.clone(), long.clone(), chunks.clone(), twice.clone()];
            for bytes in wrong.iter().chain([&noise, &preface]) {
                let mut wire = Wire::silent(port);
                // It may hang up before it has taken everything.
                let _ = wire.send(bytes);
                wire.finish();
                let mut answer = Vec::new();
                wire.0.set_read_timeout(Some(within(CLOSED_WITHIN))).unwrap();
                let _ = (&wire.0).take(1 << 20).read_to_end(&mut answer);
                assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(bytes));
            }
        }
    })
    .await;
}

/// More clients than the port has connections for; another one comes every `pause`.
fn crowd(port: u16, say: &[u8], pause: Duration) {
    let mut wires: Vec<Wire> = Vec::new();
    let end = Instant::now() + 2 * ATTACK;
    while Instant::now() < end {
        let mut wire = Wire::silent(port);
        let _ = wire.send(say);
        wires.push(wire);
        if wires.len() > 100 {
            wires.remove(0);
            std::thread::sleep(pause);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_says_nothing() {
    probed_during("HTTP silence", 32, |port| crowd(port, b"", Duration::from_millis(2))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_is_slow() {
    probed_during("HTTP slow headers", 32, |port| {
        crowd(port, b"GET /metrics HTTP/1.1\r\nhost: ", Duration::from_millis(2))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_never_reads() {
    let requests = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(200);
    // Not too often: to write metrics is work, and whoever asks for enough of it gets all there is.
    let pause = Duration::from_millis(100);
    probed_during("HTTP unread answers", 96, move |port| crowd(port, &requests, pause)).await;
}
