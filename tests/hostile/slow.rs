//! Clients that begin and don't go on, or go on a byte at a time, in every part of a call; and many of them.

use std::time::{Duration, Instant};

use crate::http2::*;
use crate::siege::Siege;
use crate::{ATTACK, PUT};

/// What 1000 connections may take, in MiB: some 30 KiB each, and their tasks.
const CONNECTIONS_MIB: u64 = 96;

#[tokio::test(flavor = "multi_thread")]
async fn slow_prefaces_are_closed_in_time() {
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        let mut wires: Vec<Wire> = (0..400).map(|_| Wire::silent(port)).collect();
        // Half of them say nothing, half a byte each second.
        for byte in PREFACE.iter().take(9) {
            for wire in wires.iter_mut().skip(200) {
                let _ = wire.send(&[*byte]);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        let started = Instant::now();
        for mut wire in wires {
            wire.closed(Duration::from_secs(8));
        }
        assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    };
    siege.withstands("slow prefaces", CONNECTIONS_MIB, attack).await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_headers_hold_nobody_up() {
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        let block = call(PUT);
        let mut wires: Vec<Wire> = (0..400).map(|_| Wire::open(port)).collect();
        for wire in &mut wires {
            let _ = wire.send(&frame(HEADERS, 0, 1, &block[..1]));
        }
        let end = Instant::now() + ATTACK;
        for byte in block[1..].chunks(1).cycle().take_while(|_| Instant::now() < end) {
            for wire in &mut wires {
                let _ = wire.send(&frame(CONTINUATION, 0, 1, byte));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    siege.withstands("slow headers", CONNECTIONS_MIB, attack).await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_are_answered_at_their_deadline() {
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        let mut wires: Vec<Wire> = (0..200).map(|_| Wire::open(port)).collect();
        for wire in &mut wires {
            let _ = wire.send(&[open(1, PUT), frame(DATA, 0, 1, b"\0\0\x0f\xff\xff")].concat());
        }
        for _ in 0..9 {
            for wire in &mut wires {
                let _ = wire.send(&frame(DATA, 0, 1, b"x"));
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        // The default deadline has passed: each has its answer, though its request never ended.
        for wire in &mut wires {
            let answered = loop {
                match wire.receive() {
                    Ok(frame) if frame.kind == HEADERS && frame.stream == 1 => break true,
                    Ok(_) => {}
                    Err(_) => break false,
                }
            };
            assert!(answered, "a slow request is waited for longer than its deadline");
        }
    };
    siege.withstands("slow bodies", CONNECTIONS_MIB, attack).await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections() {
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        let mut wires: Vec<Wire> = (0..1000).map(|_| Wire::open(port)).collect();
        let end = Instant::now() + ATTACK;
        while Instant::now() < end {
            for wire in &mut wires {
                let _ = wire.send(&frame(PING, 0, 0, &[0; 8]));
            }
            // Each third one goes and comes back.
            for wire in wires.iter_mut().step_by(3) {
                *wire = Wire::open(port);
            }
        }
    };
    siege.withstands("many connections", CONNECTIONS_MIB, attack).await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_files_may_be_open() {
    // The node needs files of its own: its log's next segment, its engine's tables.
    let mut siege = Siege::start_with(|daemon| daemon.open_files(256)).await;
    let port = siege.port();
    let attack = move || {
        let end = Instant::now() + ATTACK;
        let mut wires = Vec::new();
        for _ in 0..600 {
            wires.push(Wire::silent(port));
        }
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
    };
    siege.withstands("more connections than files", CONNECTIONS_MIB, attack).await;
    let log = siege.daemon.log();
    assert!(!log.contains("Too many open files"), "{log}");
    siege.stop();
}
