//! A bit of a node's files flips while it does not run. Whatever it is: what changed is never served, the node says
//! what is wrong with it, and it gets what it lost from the others.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rushkv::Client;
use rushkv::client::WriteOp;
use rushkv::proto::v1::Agreement;

use crate::cluster::{WAIT_MAX, info};
use crate::faults::Dice;
use crate::ordeals::{is_whole, replaced};
use crate::process::Daemon;
use crate::rig::Rig;

/// Enough that each node's engine has written tables.
const COLD_KEYS: usize = 12_000;
const COLD_BYTES: usize = 3000;

/// In one call.
const BATCH: usize = 500;

/// Until a node serves, or has refused to.
const STARTS_WITHIN: Duration = Duration::from_secs(40);

/// Kinds of files, each with what its path looks like.
pub fn kinds(engine: &str) -> Vec<&'static str> {
    let ours = ["FORMAT", "IDENTITY", "checkpoint", "write-ahead log"];
    let engines: &[&str] = match engine {
        "sled" => &["sled log", "sled snapshot", "sled configuration"],
        _ => &["fjall journal", "fjall table", "fjall version", "fjall current", "fjall marker"],
    };
    ours.iter().chain(engines).copied().collect()
}

fn is_of(kind: &str, path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let numbered = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.parse::<u64>().is_ok());
    match kind {
        "write-ahead log" => path.starts_with("wal/") && name.ends_with(".wal"),
        "sled log" => path == "engine/db",
        "sled snapshot" => path.starts_with("engine/snap."),
        "sled configuration" => path == "engine/conf",
        "fjall journal" => name.ends_with(".jnl"),
        "fjall table" => path.contains("/tables/"),
        "fjall version" => path.starts_with("engine/keyspaces/") && numbered("v"),
        "fjall current" => name == "current",
        "fjall marker" => path == "engine/version",
        whole => path == whole,
    }
}

/// Whether a copy of the file alone, from before, is a way out; else the node starts over.
fn can_be_restored(kind: &str) -> bool {
    matches!(kind, "FORMAT" | "IDENTITY" | "checkpoint" | "write-ahead log")
}

/// Whether each bit of it counts.
fn is_whole_checked(kind: &str) -> bool {
    matches!(kind, "FORMAT" | "IDENTITY" | "checkpoint")
}

fn files(dir: &Path, under: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, under, found),
            false => found.push(path.strip_prefix(under).unwrap().to_path_buf()),
        }
    }
}

struct Flipped {
    path: PathBuf,
    at: u64,
    byte: u8,
}

/// Flips one of the file's bits; behind the last byte that is not zero nothing was written.
fn flip(data_dir: &Path, kind: &str, dice: &mut Dice) -> Flipped {
    let mut all = Vec::new();
    files(data_dir, data_dir, &mut all);
    let mut of_kind: Vec<(PathBuf, u64)> = (all.into_iter())
        .filter(|path| is_of(kind, path.to_str().unwrap()))
        .map(|path| data_dir.join(path))
        .map(|path| {
            let content = std::fs::read(&path).unwrap();
            let end = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
            (path, end)
        })
        .filter(|(_, end)| *end > 0)
        .collect();
    of_kind.sort();
    assert!(!of_kind.is_empty(), "no file is a {kind}");
    let (path, end) = of_kind.swap_remove(usize::try_from(dice.roll(of_kind.len() as u64)).unwrap());
    let (at, bit) = (dice.roll(end), dice.roll(8));
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    let flipped = Flipped { path, at, byte: byte[0] };
    write(&flipped, byte[0] ^ (1 << bit));
    println!("bit {bit} of byte {at} of {}", flipped.path.display());
    flipped
}

fn write(flipped: &Flipped, byte: u8) {
    let mut file = std::fs::OpenOptions::new().write(true).open(&flipped.path).unwrap();
    file.seek(SeekFrom::Start(flipped.at)).unwrap();
    file.write_all(&[byte]).unwrap();
    file.sync_all().unwrap();
}

fn cold_key(number: usize) -> Bytes {
    Bytes::from(format!("cold-{number:06}"))
}

fn cold_value(number: usize) -> Bytes {
    let mut dice = Dice(number as u64);
    (0..COLD_BYTES / 8).flat_map(|_| dice.roll(u64::MAX).to_le_bytes()).collect::<Vec<u8>>().into()
}

fn client(rig: &Rig<'_>) -> Client {
    let addresses: Vec<String> = rig.cluster.nodes.iter().map(Daemon::address).collect();
    Client::connect(&addresses.join(",")).unwrap()
}

async fn has_cold_data(rig: &Rig<'_>) {
    let client = client(rig);
    if client.get(cold_key(COLD_KEYS - 1)).await.unwrap().is_some() {
        return;
    }
    for first in (0..COLD_KEYS).step_by(BATCH) {
        let puts: Vec<WriteOp> =
            (first..first + BATCH).map(|number| WriteOp::put(cold_key(number), cold_value(number))).collect();
        for written in client.batch_write(&puts).await.unwrap() {
            written.unwrap();
        }
    }
}

/// A write that meets a damaged page ends the node, perhaps long after: what sled has in memory it does not read. The
/// service manager starts it again, and it makes its engine anew.
async fn all_run_again(rig: &mut Rig<'_>) {
    for node in 0..rig.cluster.nodes.len() {
        if rig.cluster.nodes[node].has_ended() {
            runs_again(rig, node).await;
        }
    }
}

async fn runs_again(rig: &mut Rig<'_>, node: usize) {
    let victim = &mut rig.cluster.nodes[node];
    victim.wait_end(STARTS_WITHIN);
    let log = victim.log();
    let said = &log[log.rfind(" starts node=").unwrap_or_default()..];
    let last = said.lines().rfind(|line| line.contains("ERROR")).unwrap_or_default();
    println!("it ended: {last}");
    if said.contains("can't be made anew") {
        // What is damaged is what it knows of its replicas, or group 0's copy: the operator does what it says.
        std::fs::remove_dir_all(&victim.data_dir).unwrap();
        replaced(rig, node).await;
        return;
    }
    let is_damage = ["checksum", "an earlier write"].iter().any(|why| last.contains(why));
    assert!(is_damage, "it does not say why it ended:\n{said}");
    victim.start();
}

/// Every cold key, read through this node, is what was written.
async fn cold_data_is_right(rig: &mut Rig<'_>, node: usize) {
    let client = Client::connect(&rig.cluster.nodes[node].address()).unwrap();
    for first in (0..COLD_KEYS).step_by(BATCH) {
        let keys: Vec<Bytes> = (first..first + BATCH).map(cold_key).collect();
        let started = Instant::now();
        let found = loop {
            let found = client
                .batch_get(&keys)
                .await
                .and_then(|found| found.into_iter().collect::<Result<Vec<_>, _>>());
            match found {
                Ok(found) => break found,
                // A replica that can't read it refuses, and stops; another one leads in a moment.
                Err(error) => assert!(started.elapsed() < WAIT_MAX, "{error}\n{}", rig.cluster.logs()),
            }
            all_run_again(rig).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(found.len(), keys.len());
        for (number, record) in (first..).zip(found) {
            let value = record.map(|record| record.value);
            assert!(value == Some(cold_value(number)), "cold-{number:06} is wrong\n{}", rig.cluster.logs());
        }
    }
}

/// The node is killed or stopped, a bit of such a file flips, it starts; or it refuses to, and the operator does what
/// it says.
pub async fn flipped_bit(rig: &mut Rig<'_>, node: usize, kind: &'static str, seed: u64) {
    all_run_again(rig).await;
    has_cold_data(rig).await;
    let mut dice = Dice(seed);
    let victim = &mut rig.cluster.nodes[node];
    match dice.roll(2) {
        0 => victim.kill(),
        _ => assert_eq!(victim.stop(), Some(0), "{}", victim.log()),
    }
    let said_before = victim.log().len();
    let flipped = flip(&victim.data_dir, kind, &mut dice);
    victim.start();
    let started = Instant::now();
    loop {
        if rig.cluster.nodes[node].has_ended() {
            break;
        }
        let told = info(rig.cluster.nodes[node].channel()).await;
        if told.is_ok_and(|told| told.partitions_led == told.partition_count && told.partition_count > 0) {
            assert!(!is_whole_checked(kind), "a flipped bit in {kind} is not seen\n{}", rig.cluster.logs());
            println!("it serves");
            return;
        }
        assert!(started.elapsed() < STARTS_WITHIN, "it hangs\n{}", rig.cluster.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let victim = &mut rig.cluster.nodes[node];
    if !victim.log()[said_before..].contains("can't be opened")
        && victim.log()[said_before..].contains("checksum")
    {
        // It was open, and a write has met it: what follows sees to it.
        runs_again(rig, node).await;
        rig.cluster.serve().await;
        return;
    }
    victim.wait_end(STARTS_WITHIN);
    let said = victim.log()[said_before..].to_string();
    println!("it refuses: {}", said.lines().find(|line| line.contains("ERROR")).unwrap_or_default());
    let sleds = said.contains("The engine, sled, can't make sense of its files");
    assert!(said.contains("can't be opened") || sleds, "it does not say why it ended:\n{said}");
    assert!(sleds || !said.contains("panicked"), "{said}");
    if can_be_restored(kind) {
        write(&flipped, flipped.byte);
        victim.start();
        rig.cluster.serve().await;
        return;
    }
    std::fs::remove_dir_all(&victim.data_dir).unwrap();
    replaced(rig, node).await;
}

/// Hours that the nodes' clocks are ahead: a partition is rebuilt once an hour at most.
static AHEAD: AtomicI64 = AtomicI64::new(0);

/// After [`flipped_bit`]: nothing wrong is served, and what was damaged is found and made anew.
pub async fn bit_is_mended(rig: &mut Rig<'_>, node: usize) {
    let started = Instant::now();
    while info(rig.cluster.nodes[node].channel()).await.is_err() {
        all_run_again(rig).await;
        assert!(started.elapsed() < WAIT_MAX, "it does not come back\n{}", rig.cluster.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    is_whole(rig).await;
    cold_data_is_right(rig, node).await;
    let mut passes = Vec::new();
    for one in &rig.cluster.nodes {
        passes.push(one.sample("rushkv_node_scrub_passes_total").await.unwrap());
    }
    let client = client(rig);
    assert_eq!(client.scrub().await.unwrap().not_reached, [""; 0]);
    let started = Instant::now();
    let mut last = String::new();
    loop {
        all_run_again(rig).await;
        let mut is_done = true;
        for (one, before) in rig.cluster.nodes.iter().zip(&passes) {
            is_done &= one.sample("rushkv_node_scrub_passes_total").await.is_some_and(|now| now > *before);
            is_done &= one.sample("rushkv_node_replicas_damaged").await == Some(0);
        }
        if is_done {
            match client.compare(Vec::new()).await {
                Ok(all)
                    if all
                        .iter()
                        .all(|one| one.agreement() == Agreement::Same && one.replicas.len() == 3) =>
                {
                    break;
                }
                told => last = format!("{told:?}"),
            }
        }
        assert!(started.elapsed() < WAIT_MAX, "not mended: {last}\n{}", rig.cluster.logs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What was damaged may still be in the engine, though nobody needs it: one start finds that it can't be deleted,
    // the next one makes the engine anew.
    for _ in 0..2 {
        let said_before = rig.cluster.nodes[node].log().len();
        all_run_again(rig).await;
        rig.cluster.serve().await;
        let mended = &mut rig.cluster.nodes[node];
        let code = mended.stop();
        // A write may meet it at this very moment, too.
        let has_met_it = || mended.log()[said_before..].contains("checksum");
        assert!(code == Some(0) || has_met_it(), "{code:?} {}", mended.log());
        mended.start();
        rig.cluster.serve().await;
    }
    let old_engine = rig.cluster.nodes[node].data_dir.join("engine.old");
    while old_engine.exists() {
        assert!(started.elapsed() < WAIT_MAX, "{} stays\n{}", old_engine.display(), rig.cluster.logs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ahead = AHEAD.fetch_add(2, Ordering::Relaxed) + 2;
    (0..rig.cluster.nodes.len()).for_each(|node| rig.set_clock(node, ahead));
}
