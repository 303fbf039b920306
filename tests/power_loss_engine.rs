//! Real power losses and full disks under real engines: what was checkpointed comes back, and what
//! comes back is whole.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/power.rs"]
mod power;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use power::PowerCut;
use rushkv::storage::{self, Batch, Engine, Error, Kind, Options};

/// Tell a test that it is the process that writes: into which directory, and which of the [`LOADS`].
const WRITER_DIR: &str = "RUSHKV_TEST_WRITER_DIR";
const WRITER_LOAD: &str = "RUSHKV_TEST_WRITER_LOAD";

const OPTIONS: Options = Options { cache_bytes: 16 << 20 };

/// Batch `n` puts three keys, their values made from `n`, and deletes one of an earlier batch. With
/// `large`, some values are larger than a page, and some than what engines keep with the others.
fn batch(n: u64, large: bool) -> Batch {
    let mut batch = Batch::default();
    for part in 0..3u64 {
        batch.put(key(n, part), value(n, part, large));
    }
    if n > 10 {
        batch.delete(key(n - 10, 2));
    }
    batch.put("last", n.to_be_bytes().to_vec());
    batch
}

fn key(n: u64, part: u64) -> Vec<u8> {
    format!("{part}/{:08}", n.wrapping_mul(7919) % 100_000_000).into_bytes()
}

fn value(n: u64, part: u64, large: bool) -> Bytes {
    let len = match (n + part) % 50 {
        0 if large => 200_000,
        1..5 if large => 9_000,
        _ => 100,
    };
    (0..len).map(|i: u64| (((n * 31 + part + i) * 2_654_435_761) >> 16) as u8).collect()
}

/// Which of the batches up to `newest` are there; panics if one is there in part.
fn batches_found(engine: &dyn Engine, newest: u64, large: bool) -> Vec<u64> {
    let mut found = Vec::new();
    for n in 1..=newest {
        let parts: Vec<Option<Bytes>> = (0..3).map(|part| engine.get(&key(n, part)).unwrap()).collect();
        for (part, found) in parts.iter().enumerate() {
            if let Some(found) = found {
                assert!(*found == value(n, part as u64, large), "batch {n}, part {part}: another value");
            }
        }
        match (&parts[0], &parts[1]) {
            (Some(_), Some(_)) => found.push(n),
            (None, None) => assert!(parts[2].is_none(), "batch {n} is there in part"),
            _ => panic!("batch {n} is there in part"),
        }
    }
    // Part 2 goes with the batch ten later.
    let contains = |n: u64| found.binary_search(&n).is_ok();
    for n in 1..=newest {
        let is_there = engine.get(&key(n, 2)).unwrap().is_some();
        let expected = contains(n) && !contains(n + 10);
        assert_eq!(is_there, expected, "batch {n}, the part that batch {} deletes", n + 10);
    }
    found
}

/// What is written: so many batches, a checkpoint, and so many more.
#[derive(Debug, Clone, Copy)]
struct Load {
    before: u64,
    after: u64,
    large: bool,
}

/// From a few batches in a buffer to several memtables and segments, and segments that are used again.
const LOADS: [Load; 8] = [
    Load { before: 1, after: 0, large: true },
    Load { before: 50, after: 10, large: true },
    Load { before: 300, after: 200, large: true },
    Load { before: 20, after: 500, large: true },
    Load { before: 2000, after: 700, large: true },
    Load { before: 500, after: 2000, large: true },
    Load { before: 3000, after: 3000, large: false },
    Load { before: 30_000, after: 3000, large: false },
];

/// In a process of its own, which the power loss ends: writes until the disk fails.
fn write_until_the_disk_fails(kind: Kind, dir: &Path, load: Load) {
    let engine = storage::open(kind, dir, &OPTIONS).unwrap();
    let is_disk_error =
        |error: Error| assert!(matches!(error, Error::Io { .. }), "a disk error is Io: {error}");
    for n in 1.. {
        println!("\napplying {n}");
        if let Err(error) = engine.apply(batch(n, load.large)) {
            is_disk_error(error);
            break;
        }
        if n == load.before {
            engine.checkpoint().unwrap();
            println!("\ncheckpointed");
        }
        // An engine may take writes into its buffers for long; its checkpoint must tell.
        if n % 16 == 0 && std::fs::write(dir.join("../probe"), "").is_err() {
            break;
        }
    }
    is_disk_error(engine.checkpoint().unwrap_err());
    is_disk_error(engine.checkpoint().unwrap_err()); // a failed fsync is not forgotten
    is_disk_error(engine.close().unwrap_err());
    drop(engine);
}

/// Runs the test `name` again as the process that writes, cuts the power under it, and returns the
/// newest batch that may have been applied.
fn write_and_cut(power: &PowerCut, name: &str, dir: &Path, number: usize) -> u64 {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(WRITER_DIR, dir)
        .env(WRITER_LOAD, number.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let load = LOADS[number];
    let (mut newest, mut checkpointed, mut is_cut) = (0, false, false);
    for line in BufReader::new(writer.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(n) = line.strip_prefix("applying ") {
            newest = n.parse().unwrap();
        }
        checkpointed |= line == "checkpointed";
        if checkpointed && newest >= load.before + load.after && !is_cut {
            power.cut();
            is_cut = true;
        }
    }
    assert!(writer.wait().unwrap().success(), "the writer did not fare as it should; its output says why");
    assert!(is_cut);
    newest
}

/// Returns how many batches were lost.
fn lose_power(kind: Kind, name: &str, number: usize) -> u64 {
    let load = LOADS[number];
    eprintln!("{kind}: {load:?}");
    let mut power = PowerCut::new(512);
    let dir = power.path().join("engine");
    let newest = write_and_cut(&power, name, &dir, number);

    power.remount();
    let engine =
        storage::open(kind, &dir, &OPTIONS).unwrap_or_else(|error| panic!("{kind} does not open: {error}"));
    let found = batches_found(&*engine, newest, load.large);
    let missing: Vec<u64> = (1..=load.before).filter(|n| found.binary_search(n).is_err()).collect();
    if let [first, ..] = missing[..] {
        panic!("{kind}: checkpointed, and lost: {} batches, the first of them {first}", missing.len());
    }
    if engine.recovers_prefix() {
        let last = found.last().copied().unwrap_or(0);
        assert_eq!(found.len() as u64, last, "{kind}: what comes back is not a prefix");
        let noted = engine.get(b"last").unwrap().unwrap();
        assert_eq!(noted[..], last.to_be_bytes());
    }
    // It works on from there.
    engine.apply(batch(newest + 1, load.large)).unwrap();
    engine.close().unwrap();
    let engine = storage::open(kind, &dir, &OPTIONS).unwrap();
    assert_eq!(engine.get(&key(newest + 1, 0)).unwrap(), Some(value(newest + 1, 0, load.large)));
    newest - found.len() as u64
}

/// In a process of its own: checkpoints every 20 batches, until the disk is full.
fn write_until_the_disk_is_full(kind: Kind, dir: &Path) {
    let engine = storage::open(kind, dir, &OPTIONS).unwrap();
    for n in 1.. {
        let written = engine.apply(batch(n, true)).and_then(|()| {
            if n % 20 == 0 {
                engine.checkpoint()?;
                println!("\ncheckpointed {n}");
            }
            Ok(())
        });
        if let Err(error) = written {
            assert!(matches!(error, Error::Io { .. }), "a full disk is Io: {error}");
            return;
        }
    }
}

/// On a disk of twice `mib`, half of which is freed afterwards.
fn fill_the_disk(kind: Kind, name: &str, mib: usize) {
    if let Some(dir) = std::env::var_os(WRITER_DIR) {
        return write_until_the_disk_is_full(kind, Path::new(&dir));
    }
    let power = PowerCut::new(2 * mib as u64);
    let dir = power.path().join("engine");
    let ballast = power.path().join("ballast");
    std::fs::write(&ballast, vec![1; mib << 20]).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(WRITER_DIR, &dir)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    let checkpointed: u64 =
        printed.lines().filter_map(|line| line.strip_prefix("checkpointed ")?.parse().ok()).max().unwrap();

    std::fs::remove_file(ballast).unwrap();
    let engine = storage::open(kind, &dir, &OPTIONS).unwrap();
    let found = batches_found(&*engine, checkpointed + 30, true);
    assert!((1..=checkpointed).all(|n| found.binary_search(&n).is_ok()), "checkpointed, and lost");
    engine.apply(batch(checkpointed + 100, true)).unwrap();
    engine.close().unwrap();
}

fn lose_power_repeatedly(kind: Kind, name: &str) {
    if let Some(dir) = std::env::var_os(WRITER_DIR) {
        let number: usize = std::env::var(WRITER_LOAD).unwrap().parse().unwrap();
        return write_until_the_disk_fails(kind, Path::new(&dir), LOADS[number]);
    }
    let lost: u64 = (0..LOADS.len()).map(|number| lose_power(kind, name, number)).sum();
    assert!(lost > 0, "nothing was ever lost: the power was not really cut");
    eprintln!("{kind}: {lost} batches without a checkpoint were lost, none with one");
}

#[test]
fn sled_keeps_what_was_checkpointed() {
    lose_power_repeatedly(Kind::Sled, "sled_keeps_what_was_checkpointed");
}

#[test]
fn fjall_keeps_what_was_checkpointed_and_comes_back_with_a_prefix() {
    lose_power_repeatedly(Kind::Fjall, "fjall_keeps_what_was_checkpointed_and_comes_back_with_a_prefix");
}

#[test]
fn sled_survives_a_full_disk() {
    fill_the_disk(Kind::Sled, "sled_survives_a_full_disk", 32);
}

#[test]
fn fjall_survives_a_full_disk() {
    fill_the_disk(Kind::Fjall, "fjall_survives_a_full_disk", 256);
}

/// Of the tests themselves: a mount that somebody else has copied outlives ours, and what the kernel writes back to it
/// must not reach the disk that is mounted next.
#[test]
fn a_disk_that_somebody_else_holds_keeps_what_was_fsynced() {
    let mut power = PowerCut::new(64);
    let write = |power: &PowerCut, round: usize| {
        for number in 0..200 {
            let mut file = File::create(power.path().join(format!("{round}-{number}"))).unwrap();
            file.write_all(format!("{round}").repeat(number).as_bytes()).unwrap();
            file.sync_all().unwrap();
        }
        File::open(power.path()).and_then(|dir| dir.sync_all()).unwrap();
    };
    write(&power, 1);
    let mut holder = Command::new("unshare")
        .args(["--mount", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It answers once it has its copy.
    holder.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    holder.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    power.cut();
    power.remount();
    write(&power, 2);
    // Everything is where it belongs, and the journal explains nothing any more.
    power.stall(Duration::ZERO);
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    power.cut();
    power.remount();
    for (round, number) in (1..=2).flat_map(|round| (0..200).map(move |number| (round, number))) {
        let path = power.path().join(format!("{round}-{number}"));
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            format!("{round}").repeat(number),
            "{round}-{number}"
        );
    }
}
