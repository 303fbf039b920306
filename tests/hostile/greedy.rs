//! Clients that ask for much and take nothing: streams by the thousand, requests without an end, answers
//! that nobody reads.

use std::time::{Duration, Instant};

use rushkv::limits::{
    ANSWER_BYTES_MAX, CONNECTION_WINDOW, PIPELINES_PER_CONNECTION_MAX, REQUEST_BYTES_MAX,
    STREAMS_PER_CONNECTION_MAX,
};
use rushkv::proto::v1::PutRequest;
use rushkv::proto::v1::kv_client::KvClient;

use crate::http2::*;
use crate::siege::Siege;
use crate::{ATTACK, PIPELINE, PUT, SCAN};

const MIB: usize = 1024 * 1024;

/// The largest window there is.
const OPEN_WIDE: u32 = 0x7FFF_FFFF;

fn mib(bytes: usize) -> u64 {
    (bytes / MIB) as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_without_number() {
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        // More than the port lets in altogether, from 40 connections, each with more than it may have.
        let mut wires: Vec<Wire> = (0..40).map(|_| Wire::open(port)).collect();
        for wire in &mut wires {
            for at in 0..STREAMS_PER_CONNECTION_MAX + 100 {
                if wire.send(&open(2 * at + 1, PUT)).is_err() {
                    break;
                }
            }
        }
        std::thread::sleep(ATTACK);
    };
    siege.withstands("many streams", 512, attack).await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_never_end() {
    endless_requests("endless requests", PUT).await;
}

/// A pipeline has no deadline of its own; each of its requests has.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_pipelines_that_never_end() {
    endless_requests("endless requests of pipelines", PIPELINE).await;
}

async fn endless_requests(name: &str, path: &'static str) {
    const WIRES: usize = 100;
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        // 1 MiB of each request is sent, 1.6 GiB in all; then it is left to its deadline.
        let mut wires: Vec<Wire> = (0..WIRES).map(|_| Wire::open(port)).collect();
        let part = vec![0; 16 * 1024];
        for stream in (0..16).map(|at| 2 * at + 1) {
            for wire in &mut wires {
                let _ =
                    wire.send(&[open(stream, path), frame(DATA, 0, stream, b"\0\0\x3f\xff\xff")].concat());
                for _ in 0..64 {
                    if wire.send(&frame(DATA, 0, stream, &part)).is_err() {
                        break;
                    }
                }
            }
        }
        std::thread::sleep(ATTACK);
    };
    // What is counted, twice, for the buffers that grow; and what no request has taken from its connection yet.
    let windows = WIRES * CONNECTION_WINDOW as usize;
    siege.withstands(name, mib(2 * REQUEST_BYTES_MAX + windows) + 64, attack).await;
    siege.stop();
}

/// 640 scans of 32 MiB.
fn scans(wire: &mut Wire) {
    for at in 0..32 {
        let _ = wire.send(&request(2 * at + 1, SCAN, b"\x0a\x05large"));
    }
}

/// As many pipelines as a connection may have, with requests of these bytes after their ids.
fn pipelines(wire: &mut Wire, requests: u16, call: &[u8]) {
    let request = |id: u16| message(&[&[8, id as u8 | 0x80, (id >> 7) as u8], call].concat());
    let all: Vec<u8> = (1..=requests).flat_map(request).collect();
    for stream in (0..PIPELINES_PER_CONNECTION_MAX as u32).map(|at| 2 * at + 1) {
        let frames = all.chunks(16 * 1024).flat_map(|part| frame(DATA, 0, stream, part));
        let _ = wire.send(&open(stream, PIPELINE).into_iter().chain(frames).collect::<Vec<u8>>());
    }
}

/// 20,480 gets of half a MiB.
fn gets(wire: &mut Wire) {
    pipelines(wire, 256, b"\x2a\x09\x0a\x07large-1");
}

/// 80,000 requests for nothing, each of which is refused.
fn nothings(wire: &mut Wire) {
    pipelines(wire, 1000, b"");
}

/// Clients that ask for everything there is, many times, and read nothing.
async fn unread_answers(name: &str, window: u32, ask: fn(&mut Wire)) {
    let mut siege = Siege::start().await;
    let port = siege.port();
    let mut kv = KvClient::new(siege.daemon.channel());
    for number in 0..64 {
        let key = format!("large-{number}").into();
        kv.put(PutRequest { key, value: vec![7; MIB / 2].into(), precondition: None }).await.unwrap();
    }
    let attack = move || {
        let end = Instant::now() + 2 * ATTACK;
        let mut wires = Vec::new();
        while wires.len() < 20 && Instant::now() < end {
            let mut wire = Wire::open_with(port, &[(WINDOW, window)]);
            let _ = wire.send(&window_update(0, OPEN_WIDE - 65_535));
            ask(&mut wire);
            wires.push(wire);
        }
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
    };
    siege.withstands(name, mib(ANSWER_BYTES_MAX) * 3 / 2 + 128, attack).await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads() {
    unread_answers("unread answers", OPEN_WIDE, scans).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_behind_a_closed_window() {
    unread_answers("closed window", 0, scans).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_pipelines_that_nobody_reads() {
    unread_answers("unread answers of pipelines", OPEN_WIDE, gets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_pipelines_behind_a_closed_window() {
    unread_answers("pipelines behind a closed window", 0, gets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_pipelines_that_nobody_reads() {
    unread_answers("unread refusals of pipelines", 0, nothings).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_that_never_read() {
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        let mut wires: Vec<Wire> = (0..20).map(|_| Wire::open_with(port, &[(WINDOW, 0)])).collect();
        for wire in &mut wires {
            for at in 0..200 {
                let path =
                    ["/rushkv.v1.Cluster/WatchTopology", "/grpc.health.v1.Health/Watch"][at as usize % 2];
                let _ = wire.send(&request(2 * at + 1, path, b""));
            }
        }
        std::thread::sleep(ATTACK + Duration::from_millis(500));
    };
    siege.withstands("unread watches", 96, attack).await;
    siege.stop();
}
