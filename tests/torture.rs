//! Three nodes under faults by the dice, and a history of every call that is checked for linearizability: the
//! load and the check are `rushkv-cli bench --check`, 16 clients on 10 keys, as an operator would run it. Each
//! fault strikes while writes are committed, and once it is over every node has to answer for every partition
//! within seconds.
//!
//! `RUSHKV_TORTURE_SEED` begins with that seed (a failure names its own), `RUSHKV_TORTURE_MINUTES` goes on with
//! further ones for so long; without, each engine has one, of [`FAULTS`] faults. `RUSHKV_TORTURE_KINDS`
//! draws only faults whose kinds begin so (`power,fsync error`). `RUSHKV_LEDGER` names a file that gets a line of
//! JSON for each run. The same seed brings the same faults, not the same moments.
//!
//! Needs root, ip, nft, nsenter, loop devices, ext4 and libfaketime.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/account.rs"]
mod account;
#[path = "support/bits.rs"]
mod bits;
#[path = "support/clock.rs"]
mod clock;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/faults.rs"]
mod faults;
#[path = "support/load.rs"]
mod load;
#[path = "support/network.rs"]
mod network;
#[path = "support/ordeals.rs"]
mod ordeals;
#[path = "support/power.rs"]
mod power;
#[path = "support/process.rs"]
mod process;
#[path = "support/rig.rs"]
mod rig;
#[path = "support/slack.rs"]
mod slack;
#[path = "support/slow_link.rs"]
mod slow_link;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use account::Account;
use faults::{Dice, Fault, mends, strike};
use load::Load;
use network::Network;
use process::Daemon;
use rig::{NODES, Rig};
use slow_link::{Quality, SlowLinks};

/// Of one seed.
const FAULTS: usize = 8;

/// Draws until there are so many of the kinds that are wanted.
const DRAWS_MAX: usize = 10_000;

/// Calls that have to have been answered for each fault, on the average: the load goes on all the time.
const CALLS_MIN: u64 = 100;

/// Of the links between nodes, in one run of so many: all through it packets are late and lost.
const POOR: Quality = Quality { delay_ms: (1, 10), loss_percent: 1 };
const POOR_EVERY: u64 = 4;

async fn torture(
    network: &Network,
    engine: &'static str,
    seed: u64,
    faults: &[Fault],
    links_are_poor: bool,
    mut dice: Dice,
) {
    let _links = links_are_poor.then(|| SlowLinks::new(network, None, POOR));
    let mut rig = Rig::start(network, engine).await;
    let servers: Vec<String> = rig.cluster.nodes.iter().map(Daemon::address).collect();
    let mut load = Load::start(&servers.join(","));
    let mut account = Account::new(engine, seed, links_are_poor);
    for fault in faults {
        tokio::time::sleep(dice.quiet()).await;
        assert!(!load.has_ended(), "seed {seed}: the load has ended: {}", load.talk());
        rig.is_written_to().await;
        println!("{engine}, seed {seed}: {fault}");
        let (kind, over) = strike(*fault, &mut rig).await;
        let last = rig.answers().await;
        println!("{engine}, seed {seed}: back after {} ms, at last {last}", over.elapsed().as_millis());
        account.add(*fault, kind, over.elapsed());
        mends(*fault, &mut rig).await;
    }
    tokio::time::sleep(dice.quiet()).await;
    let code = load.end().await;
    let told: serde_json::Value = serde_json::from_str(&load.out()).unwrap_or_default();
    let verdict = match code {
        Some(0) => "linearizable",
        Some(7) => "NOT linearizable",
        _ => "no verdict",
    };
    account.close(&told["check"], verdict);
    assert_eq!(code, Some(0), "seed {seed}, {faults:?}:\n{}\n{}", load.talk(), rig.cluster.logs());
    let least = CALLS_MIN * (account.count() + 1);
    assert!(
        told["check"]["operations"].as_u64().is_some_and(|count| count >= least),
        "too few were answered: {told}\n{}",
        load.talk()
    );
    assert!(account.late().is_empty(), "back too late: {:?}\n{}", account.late(), rig.cluster.logs());
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// What is to happen only: beginnings of faults' names, or, of flipped bits, parts of files' kinds; or all.
fn kinds() -> String {
    std::env::var("RUSHKV_TORTURE_KINDS").unwrap_or_default()
}

async fn seeds(network: &Network, engine: &'static str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let mut seed = number("RUSHKV_TORTURE_SEED").unwrap_or(u64::try_from(now).unwrap());
    let minutes = Duration::from_secs(60 * number("RUSHKV_TORTURE_MINUTES").unwrap_or(0));
    let kinds = kinds();
    let started = Instant::now();
    loop {
        let mut dice = Dice(seed);
        let links_are_poor = dice.roll(POOR_EVERY) == 0;
        let is_wanted = |fault: &Fault| {
            // Links are made slow once.
            let may_be = !links_are_poor || !matches!(fault, Fault::SlowLinks { .. });
            may_be && kinds.split(',').any(|kind| fault.kind().starts_with(kind))
        };
        let drawn = (0..DRAWS_MAX).map(|_| dice.fault()).filter(is_wanted);
        let faults: Vec<Fault> = drawn.take(FAULTS).collect();
        assert_eq!(faults.len(), FAULTS, "RUSHKV_TORTURE_KINDS = {kinds:?}: there are hardly any such");
        torture(network, engine, seed, &faults, links_are_poor, dice).await;
        seed += 1;
        if started.elapsed() >= minutes {
            return;
        }
    }
}

fn by_the_dice(name: &str, engine: &'static str) {
    let network = Network::new(name, NODES);
    network.run(|| seeds(&network, engine));
}

#[test]
fn every_answer_is_right_under_faults_on_fjall() {
    by_the_dice("tf", "fjall");
}

#[test]
fn every_answer_is_right_under_faults_on_sled() {
    by_the_dice("ts", "sled");
}

/// So that none is left to chance. Both engines at once: most of it is waiting.
#[test]
fn every_answer_is_right_under_each_kind_of_fault() {
    std::thread::scope(|scope| {
        for (name, engine) in [("kf", "fjall"), ("ks", "sled")] {
            scope.spawn(move || {
                let network = Network::new(name, NODES);
                network.run(|| async {
                    torture(&network, engine, 0, &Fault::of_each_kind(), false, Dice(0)).await
                });
            });
        }
    });
}

/// One in each kind of file; `RUSHKV_TORTURE_BITS` times, each time on another cluster.
#[test]
fn every_answer_is_right_after_flipped_bits() {
    let seed = number("RUSHKV_TORTURE_SEED").unwrap_or(1);
    let times = number("RUSHKV_TORTURE_BITS").unwrap_or(1);
    std::thread::scope(|scope| {
        for (name, engine) in [("bf", "fjall"), ("bs", "sled")] {
            if kinds().contains(if engine == "fjall" { "sled" } else { "fjall" }) {
                continue;
            }
            scope.spawn(move || {
                let network = Network::new(name, NODES);
                for seed in seed..seed + times {
                    let kinds = kinds();
                    let is_wanted = |fault: &Fault| kinds.split(',').any(|kind| fault.kind().contains(kind));
                    let faults: Vec<Fault> =
                        Fault::bits(engine, seed).into_iter().filter(is_wanted).collect();
                    assert!(!faults.is_empty(), "RUSHKV_TORTURE_KINDS = {kinds:?}: there are no such");
                    network
                        .run(|| async { torture(&network, engine, seed, &faults, false, Dice(seed)).await });
                }
            });
        }
    });
}
