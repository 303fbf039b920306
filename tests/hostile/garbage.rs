//! Bytes that make no sense, at every stage of a connection.

use std::io::Write as _;

use crate::http2::*;
use crate::siege::{Dice, Siege};
use crate::slack::within;
use crate::{CLOSED_WITHIN, PUT, SCAN};

const SEED: u64 = 0x5eed_6a7b;

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes() {
    let mut siege = Siege::start().await;
    let port = siege.port();
    siege
        .withstands("random bytes", 32, move || {
            for round in 0..300 {
                let mut dice = Dice(SEED + round);
                let length = 1 + dice.below(32 * 1024) as usize;
                let mut wire = if round % 3 == 0 { Wire::silent(port) } else { Wire::open(port) };
                let mut bytes = dice.bytes(length);
                if round % 3 == 2 {
                    // Within frames that are well-formed, so that it gets further in.
                    let (kind, flags) = (dice.below(11) as u8, dice.next() as u8);
                    bytes.truncate(16 * 1024);
                    bytes = [open(1, PUT), frame(kind, flags, dice.below(4) as u32, &bytes)].concat();
                }
                // It may hang up before it has taken everything.
                let _ = wire.send(&bytes);
                wire.finish();
                wire.closed(within(CLOSED_WITHIN));
            }
        })
        .await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_the_protocol_forbids() {
    let large = vec![0; 16 * 1024 + 1];
    // Ends the connection, or at least its stream; never more than that.
    let wrong: Vec<(&str, Vec<u8>)> = vec![
        ("a frame over the largest", frame(DATA, 0, 1, &large)),
        ("a frame of 16 MiB", vec![0xFF, 0xFF, 0xFF, DATA, 0, 0, 0, 0, 1]),
        ("data on stream 0", frame(DATA, 0, 0, b"x")),
        ("data on a stream that is not open", frame(DATA, 0, 7, b"x")),
        ("headers on stream 0", frame(HEADERS, END_HEADERS, 0, &call(PUT))),
        ("headers on the server's stream", frame(HEADERS, END_HEADERS, 2, &call(PUT))),
        ("headers of which nothing decompresses", frame(HEADERS, END_HEADERS, 1, &[0xFF; 64])),
        ("more padding than there is", frame(HEADERS, END_HEADERS | 8, 1, &[0xFF, 1, 2])),
        ("a stream below the last", [open(9, PUT), open(3, PUT)].concat()),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &call(PUT))),
        ("a ping amid headers", [frame(HEADERS, 0, 1, &call(PUT)), frame(PING, 0, 0, &[0; 8])].concat()),
        ("a ping of seven bytes", frame(PING, 0, 0, &[0; 7])),
        ("settings of five bytes", frame(SETTINGS, 0, 0, &[0; 5])),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[0; 6])),
        ("a window over the largest", settings(&[(WINDOW, u32::MAX)])),
        ("frames over the largest", settings(&[(5, u32::MAX)])),
        ("a reset of stream 0", reset(0)),
        ("a reset of a stream that is not open", reset(77)),
        ("a window update by nothing", window_update(0, 0)),
        ("windows that overflow", window_update(0, 0x7FFF_FFFF).repeat(2)),
        ("a promise", frame(5, END_HEADERS, 1, &call(PUT))),
        ("a priority of one byte", frame(PRIORITY, 0, 1, &[0])),
    ];
    let mut siege = Siege::start().await;
    let port = siege.port();
    siege
        .withstands("forbidden frames", 32, move || {
            for (what, bytes) in wrong {
                let mut wire = Wire::open(port);
                let _ = wire.send(&bytes);
                let mut wire = std::panic::AssertUnwindSafe(wire);
                let closed = std::panic::catch_unwind(move || wire.closed(within(CLOSED_WITHIN)));
                let said = closed.unwrap_or_else(|_| panic!("{what} is tolerated"));
                assert_ne!(said, Some(0), "{what} is no error");
            }
        })
        .await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_at_every_byte() {
    let whole =
        [&PREFACE[..], &settings(&[(WINDOW, 65_535)]), &request(1, PUT, b"\x0a\x01k\x12\x01v")].concat();
    let mut siege = Siege::start().await;
    let port = siege.port();
    siege
        .withstands("cut connections", 32, move || {
            for at in 0..whole.len() {
                let mut wire = Wire::silent(port);
                let _ = wire.send(&whole[..at]);
                wire.finish();
                wire.closed(within(CLOSED_WITHIN));
            }
        })
        .await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_lie() {
    let lies: [&[u8]; 6] = [
        // gRPC: longer than any message; compressed by nothing that is known; no such flag.
        b"\0\xFF\xFF\xFF\xFF",
        b"\x01\0\0\0\x02xx",
        b"\x77\0\0\0\x02xx",
        // Protobuf: a length over the end, a number without an end, groups in groups.
        b"\0\0\0\0\x04\x0a\x7Fxx",
        b"\0\0\0\0\x0c\x08\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF",
        b"\0\0\0\0\x08\x1b\x1b\x1b\x1b\x1b\x1b\x1b\x1b",
    ];
    let paths = [
        PUT,
        SCAN,
        "/rushkv.v1.Kv/BatchWrite",
        "/rushkv.RushKV/Join",
        "/rushkv.v1.Cluster/Join",
        "/rushkv.v1.Peer/Hello",
        "/rushkv.v1.Peer/Prepare",
        "/rushkv.v1.Peer/Propose",
        "/rushkv.v1.Transport/Exchange",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.Health/Watch",
        "/",
        "//",
        "*",
    ];
    let mut siege = Siege::start().await;
    let port = siege.port();
    siege
        .withstands("lying messages", 32, move || {
            for path in paths {
                let mut wire = Wire::open(port);
                for (at, lie) in (0u32..).zip(lies) {
                    let stream = 2 * at + 1;
                    let bytes = [open(stream, path), frame(DATA, END_STREAM, stream, lie)].concat();
                    // A path that is none ends the connection.
                    if wire.send(&bytes).is_err() {
                        break;
                    }
                }
                let _ = wire.0.flush();
                wire.finish();
                wire.closed(within(CLOSED_WITHIN));
            }
        })
        .await;
    siege.stop();
}
