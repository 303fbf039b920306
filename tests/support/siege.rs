//! A daemon under attack, and what must hold meanwhile: somebody else is served, its memory has a bound, it
//! lives, it does not panic, and afterwards it has given back every file descriptor.

#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rushkv::proto::v1::kv_client::KvClient;
use rushkv::proto::v1::{GetRequest, InfoRequest, PutRequest, cluster_client::ClusterClient};

use crate::process::Daemon;
use crate::slack::within;

/// How long a call of a well-behaved client may take while others attack. The machine may be busy with
/// other tests; a call takes milliseconds on an idle one.
const SERVED_WITHIN: Duration = Duration::from_secs(4);

/// How long after an attack connections and their memory may stay: what waits for a deadline of 10 s does.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(15);

/// File descriptors that may be more than before: an engine opens files as it goes.
const DESCRIPTORS_MORE: usize = 8;

const MIB: u64 = 1024 * 1024;

/// What an attack did to the daemon.
#[derive(Debug)]
pub struct Outcome {
    /// Calls of the well-behaved client, and the longest of them.
    pub calls: u64,
    pub slowest: Duration,
    /// How much memory the daemon had more than before, at its worst, in MiB.
    pub grown_mib: u64,
}

pub struct Siege {
    pub daemon: Daemon,
    _dir: tempfile::TempDir,
}

impl Siege {
    /// A daemon of its own, alone in its cluster.
    pub async fn start() -> Siege {
        Siege::start_with(|daemon| daemon).await
    }

    pub async fn start_with(prepare: impl FnOnce(Daemon) -> Daemon) -> Siege {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::new(&dir.path().join("data"), "fjall");
        let mut daemon = prepare(daemon.env("RUSHKV__CLUSTER__PARTITIONS", "4").with_http());
        daemon.start();
        daemon.serves().await;
        Siege { daemon, _dir: dir }
    }

    pub fn port(&self) -> u16 {
        self.daemon.port
    }

    /// The id of its cluster, which it tells anybody.
    pub async fn cluster_id(&self) -> String {
        let mut client = ClusterClient::new(self.daemon.channel());
        client.info(InfoRequest {}).await.unwrap().into_inner().cluster_id
    }

    /// Runs an attack, which ends by itself, and holds the daemon to what must hold. `mib_max`: how much
    /// memory it may take for it.
    pub async fn withstands(
        &mut self,
        name: &str,
        mib_max: u64,
        attack: impl FnOnce() + Send + 'static,
    ) -> Outcome {
        // A first call, so that what is made once is there before anything is counted.
        let mut bystander = Bystander::new(&self.daemon).await;
        bystander.call(0).await;
        let pid = self.daemon.pid();
        let descriptors = descriptors(pid);
        let before = resident(pid);
        let over = Arc::new(AtomicBool::new(false));
        let most = Arc::new(AtomicU64::new(before));
        let watcher = {
            let (over, most) = (over.clone(), most.clone());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    most.fetch_max(resident(pid), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        };
        let attack = tokio::task::spawn_blocking(attack);
        let mut slowest = Duration::ZERO;
        let mut calls = 0;
        while !attack.is_finished() || calls < 3 {
            calls += 1;
            slowest = slowest.max(bystander.call(calls).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        over.store(true, Ordering::Relaxed);
        watcher.join().unwrap();
        if let Err(failed) = attack.await {
            std::panic::resume_unwind(failed.into_panic());
        }
        let grown_mib = most.load(Ordering::Relaxed).saturating_sub(before) / MIB;
        let outcome = Outcome { calls, slowest, grown_mib };
        println!("{name}: {outcome:?}");
        assert!(grown_mib <= mib_max, "{name}: {grown_mib} MiB more, and {mib_max} are allowed");
        self.descriptors_return(name, descriptors).await;
        assert!(!self.daemon.has_ended(), "{name}: the daemon ended:\n{}", self.daemon.log());
        self.no_panic(name);
        outcome
    }

    async fn descriptors_return(&self, name: &str, before: usize) {
        let started = Instant::now();
        loop {
            let now = descriptors(self.daemon.pid());
            if now <= before + DESCRIPTORS_MORE {
                return;
            }
            assert!(
                started.elapsed() < within(GIVEN_BACK_WITHIN),
                "{name}: {now} file descriptors are open, and {before} were before"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn no_panic(&self, name: &str) {
        let log = self.daemon.log();
        assert!(!log.contains("panicked"), "{name}:\n{log}");
    }

    /// Ends the daemon as an operator would.
    pub fn stop(mut self) {
        assert_eq!(self.daemon.stop(), Some(0), "{}", self.daemon.log());
        self.no_panic("the end");
    }
}

/// A client that does nothing wrong, with a connection of its own.
struct Bystander {
    kv: KvClient<tonic::transport::Channel>,
}

impl Bystander {
    async fn new(daemon: &Daemon) -> Bystander {
        Bystander { kv: KvClient::new(daemon.channel()) }
    }

    /// Writes and reads back; how long the slower of the two took. Fails if it takes too long.
    async fn call(&mut self, number: u64) -> Duration {
        let (key, mut value) = ("bystander", String::new());
        write!(value, "{number}").unwrap();
        let started = Instant::now();
        let put = PutRequest { key: key.into(), value: value.clone().into(), precondition: None };
        let put = tokio::time::timeout(within(SERVED_WITHIN), self.kv.put(put)).await;
        put.expect("a put takes too long while others attack").expect("a put fails while others attack");
        let written = started.elapsed();
        let get = GetRequest { key: key.into(), consistency: 0 };
        let got = tokio::time::timeout(within(SERVED_WITHIN), self.kv.get(get)).await;
        let got = got.expect("a get takes too long").expect("a get fails").into_inner();
        assert_eq!(got.record.expect("it was put").value, value.as_bytes());
        written.max(started.elapsed() - written)
    }
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Numbers by the dice (SplitMix64), the same for the same seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}
