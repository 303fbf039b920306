//! Frames that are allowed one by one, and too many of them. Where the protocol's own limits end the
//! connection, that is checked, too; everywhere else a flood costs no more than the work of reading it.

use std::time::Duration;

use crate::http2::*;
use crate::siege::Siege;
use crate::slack::within;
use crate::{CLOSED_WITHIN, PUT, for_a_while};

/// GOAWAY: the client did too much of something.
const ENHANCE_YOUR_CALM: u32 = 11;

/// Memory that a flood may take, in MiB: buffers of a few connections, and what the allocator keeps.
const FLOOD_MIB: u64 = 48;

const BATCH: u32 = 64;

/// Sends until the server has had enough; true if it has.
fn until_refused(wire: &mut Wire, frames_max: u32, make: impl Fn(u32) -> Vec<u8>) -> bool {
    for first in (0..frames_max).step_by(BATCH as usize) {
        let batch: Vec<u8> = (first..first + BATCH).flat_map(&make).collect();
        if wire.send(&batch).is_err() {
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_opened_and_reset_at_once() {
    // CVE-2023-44487.
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        for_a_while(4, |_| {
            let mut wire = Wire::open(port);
            let refused = until_refused(&mut wire, 100_000, |at| {
                let stream = 2 * at + 1;
                [open(stream, PUT), reset(stream)].concat()
            });
            assert!(refused, "it bears 100000 resets");
        });
        // A reader is told why.
        let mut wire = Wire::open(port);
        let burst: Vec<u8> =
            (0..200).flat_map(|at| [open(2 * at + 1, PUT), reset(2 * at + 1)].concat()).collect();
        let _ = wire.send(&burst);
        assert_eq!(wire.closed(within(CLOSED_WITHIN)), Some(ENHANCE_YOUR_CALM));
    };
    siege.withstands("rapid reset", FLOOD_MIB, attack).await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_make_the_server_reset_them() {
    // CVE-2025-8671: each is opened well, and then broken by its client so that the server resets it.
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        for_a_while(4, |_| {
            let mut wire = Wire::open(port);
            let refused = until_refused(&mut wire, 100_000, |at| {
                let stream = 2 * at + 1;
                [open(stream, PUT), window_update(stream, 0)].concat()
            });
            assert!(refused, "it makes 100000 resets itself");
        });
    };
    siege.withstands("made resets", FLOOD_MIB, attack).await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_given_up_as_soon_as_they_run() {
    // Slower than the rapid reset, so that each call has begun: the work is done, and its slot is free.
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        for_a_while(4, |number| {
            let mut wire = Wire::open(port);
            for at in 0..64 {
                let key = format!("\x0a\x02k{number}\x12\x01v");
                if wire.send(&request(2 * at + 1, PUT, key.as_bytes())).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
                let _ = wire.send(&reset(2 * at + 1));
            }
        });
    };
    siege.withstands("calls given up", FLOOD_MIB, attack).await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_an_end() {
    // The class of CVE-2024-27316: a header block that goes on in CONTINUATION frames for ever.
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        let filler = frame(CONTINUATION, 0, 1, &field("x-filler", &"y".repeat(100)).repeat(100));
        let empty = frame(CONTINUATION, 0, 1, &[]);
        for_a_while(4, |number| {
            let mut wire = Wire::open(port);
            let _ = wire.send(&frame(HEADERS, 0, 1, &call(PUT)));
            let part = if number % 2 == 0 { &filler } else { &empty };
            until_refused(&mut wire, 2000, |_| part.clone());
            wire.closed(within(CLOSED_WITHIN));
        });
    };
    siege.withstands("endless headers", FLOOD_MIB, attack).await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_grow_when_they_are_decompressed() {
    // HPACK: one field goes into the table, and every byte after it names it once more.
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        let mut stored = field("x-bomb", &"y".repeat(120));
        stored[0] = 0x40;
        let once_more = [0x80 | 62; 4000];
        let bomb = [call(PUT), stored, once_more.to_vec()].concat();
        for_a_while(4, |_| {
            let mut wire = Wire::open(port);
            // It answers 431 or resets; the connection may go on.
            until_refused(&mut wire, 256, |at| frame(HEADERS, END_HEADERS | END_STREAM, 2 * at + 1, &bomb));
        });
    };
    siege.withstands("header bomb", FLOOD_MIB, attack).await;
    siege.stop();
}

/// Frames of one connection that ask for nothing: with their answers read, and not read.
async fn idle_flood(name: &str, part: Vec<u8>) {
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        for_a_while(4, |number| {
            let mut wire = Wire::open(port);
            let reader = (number % 2 == 0).then(|| {
                let mut half = wire.0.try_clone().unwrap();
                std::thread::spawn(move || std::io::copy(&mut half, &mut std::io::sink()))
            });
            // Who is not read from stops reading, and this blocks: not for longer than the attack.
            wire.0.set_write_timeout(Some(crate::ATTACK)).unwrap();
            until_refused(&mut wire, 20_000, |_| part.clone());
            let _ = wire.0.shutdown(std::net::Shutdown::Both);
            if let Some(reader) = reader {
                let _ = reader.join().unwrap();
            }
        });
    };
    siege.withstands(name, FLOOD_MIB, attack).await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn pings() {
    idle_flood("pings", frame(PING, 0, 0, &[7; 8])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_again_and_again() {
    idle_flood("settings", settings(&[(WINDOW, 1), (1, 0), (1, 4096), (WINDOW, 65_535)])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn priorities_and_frames_of_no_known_kind() {
    let both = [frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 200]), frame(0xEE, 0xFF, 5, &[0; 512])].concat();
    idle_flood("priorities", both).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn window_updates() {
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        for_a_while(4, |_| {
            let mut wire = Wire::open(port);
            let _ = wire.send(&open(1, PUT));
            // One by one; the window overflows after 2^31 only.
            until_refused(&mut wire, 20_000, |_| [window_update(0, 1), window_update(1, 1)].concat());
        });
    };
    siege.withstands("window updates", FLOOD_MIB, attack).await;
    siege.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn data_frames_of_no_and_of_one_byte() {
    let mut siege = Siege::start().await;
    let port = siege.port();
    let attack = move || {
        for_a_while(4, |number| {
            let mut wire = Wire::open(port);
            // A message of 4 MiB is announced; as much of it comes as the window lets.
            let announced = frame(DATA, 0, 1, b"\0\0\x3f\xff\xff");
            let _ = wire.send(&[open(1, PUT), announced].concat());
            let part = frame(DATA, 0, 1, if number % 2 == 0 { b"" } else { b"x" });
            until_refused(&mut wire, 200_000, |_| part.clone());
        });
    };
    siege.withstands("small data frames", FLOOD_MIB, attack).await;
    siege.stop();
}
