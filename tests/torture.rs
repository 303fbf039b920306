//! Three nodes under faults by the dice, and a history of every call that is checked for linearizability: the
//! load and the check are `rushkv-cli bench --check`, 16 clients on 10 keys, as an operator would run it.
//!
//! `RUSHKV_TORTURE_SEED` begins with that seed (a failure names its own), `RUSHKV_TORTURE_MINUTES` goes on with
//! further ones for so long; without, each engine has one, of [`FAULTS`] faults. `RUSHKV_LEDGER` names a file
//! that gets a line for each. The same seed brings the same faults, not the same moments.
//!
//! Needs root, ip and nft.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/faults.rs"]
mod faults;
#[path = "support/network.rs"]
mod network;
#[path = "support/process.rs"]
mod process;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster::Cluster;
use faults::{Dice, Fault, counts, strike};
use network::Network;
use process::Daemon;
use rustix::process::{Pid, Signal, kill_process};

/// Of one seed.
const FAULTS: usize = 8;

/// For the last calls, and for the check.
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// Calls that have to have been answered for each fault, on the average: the load goes on all the time.
const CALLS_MIN: u64 = 100;

/// `rushkv-cli bench --check`, as a process.
struct Load {
    child: Child,
    dir: tempfile::TempDir,
}

impl Load {
    fn start(servers: &str) -> Load {
        let dir = tempfile::tempdir().unwrap();
        let file = |name| std::fs::File::create(dir.path().join(name)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_rushkv-cli"))
            .args(["-s", servers, "--timeout", "3s", "-o", "json"])
            .args(["bench", "--check", "-c", "16", "--keys", "10", "-d", "1h"])
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("talk"))
            .spawn()
            .unwrap();
        Load { child, dir }
    }

    /// As Ctrl-C does: it ends its calls, checks, and says what it found. Its exit code.
    async fn end(&mut self) -> Option<i32> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < ENDS_WITHIN, "the check does not end: {}", self.talk());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn out(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("out")).unwrap()
    }

    fn talk(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("talk")).unwrap()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Without effect on one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn torture(network: &Network, engine: &'static str, seed: u64) {
    let hosts = (1..=3).map(|host| (network.namespace(host), network.address(host))).collect();
    let mut cluster = Cluster::start_on(hosts, 3, engine).await;
    let servers: Vec<String> = cluster.nodes.iter().map(Daemon::address).collect();
    let mut load = Load::start(&servers.join(","));
    let mut dice = Dice(seed);
    let mut struck: Vec<Fault> = Vec::new();
    for _ in 0..FAULTS {
        tokio::time::sleep(dice.quiet()).await;
        assert!(load.child.try_wait().unwrap().is_none(), "seed {seed}: the load has ended: {}", load.talk());
        let fault = dice.fault();
        println!("{engine}, seed {seed}: {fault}");
        struck.push(fault);
        strike(fault, &mut cluster, network).await;
        cluster.serve().await;
    }
    tokio::time::sleep(dice.quiet()).await;
    let code = load.end().await;
    let told: serde_json::Value = serde_json::from_str(&load.out()).unwrap_or_default();
    let (operations, unknown) = (&told["check"]["operations"], &told["check"]["unknown"]);
    let verdict = match code {
        Some(0) => "linearizable",
        Some(7) => "NOT linearizable",
        _ => "no verdict",
    };
    let line = format!(
        "{} | {engine} | {seed} | {} | {operations} | {unknown} | {verdict}",
        std::env::var("RUSHKV_COMMIT").unwrap_or("-".into()),
        counts(&struck)
    );
    println!("| {line} |");
    if let Some(ledger) = std::env::var_os("RUSHKV_LEDGER") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(ledger);
        writeln!(file.unwrap(), "| {line} |").unwrap();
    }
    assert_eq!(code, Some(0), "seed {seed}, {struck:?}:\n{}\n{}", load.talk(), cluster.logs());
    let least = CALLS_MIN * (FAULTS as u64 + 1);
    assert!(
        operations.as_u64().is_some_and(|count| count >= least),
        "too few were answered: {told}\n{}",
        load.talk()
    );
}

fn on_a_network(name: &str, engine: &'static str) {
    let network = Network::new(name, 3);
    network.run(|| seeds(&network, engine));
}

async fn seeds(network: &Network, engine: &'static str) {
    let number =
        |variable: &str| std::env::var(variable).ok().map(|text| text.parse::<u64>().expect("a number"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let mut seed = number("RUSHKV_TORTURE_SEED").unwrap_or(u64::try_from(now).unwrap());
    let minutes = Duration::from_secs(60 * number("RUSHKV_TORTURE_MINUTES").unwrap_or(0));
    let started = Instant::now();
    loop {
        torture(network, engine, seed).await;
        seed += 1;
        if started.elapsed() >= minutes {
            return;
        }
    }
}

#[test]
fn every_answer_is_right_under_faults_on_fjall() {
    on_a_network("tf", "fjall");
}

#[test]
fn every_answer_is_right_under_faults_on_sled() {
    on_a_network("ts", "sled");
}
