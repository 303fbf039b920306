//! Faults drawn from a seed, made for real: processes are killed and stopped, packets dropped and delayed
//! between network namespaces, file systems lose their power, fail and stall.

use std::fmt;
use std::time::{Duration, Instant};

use crate::bits;
use crate::network::Cut;
use crate::ordeals::{self, Lost};
use crate::process::Daemon;
use crate::rig::{NODES, Rig};
use crate::slow_link::{Quality, SlowLinks};

/// A process whose disk fails has ended by itself after this.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// What happens to a cluster of three; nodes by index.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// kill -9, and a start after that many milliseconds.
    Kill {
        node: usize,
        away_ms: u64,
    },
    /// All three at once.
    KillAll,
    /// SIGSTOP, and SIGCONT after that.
    Pause {
        node: usize,
        seconds: u64,
    },
    Cut {
        node: usize,
        cut: Cut,
        seconds: u64,
    },
    /// SIGTERM and a start.
    Stop {
        node: usize,
    },
    /// Packets late and lost, between one node and the others or between all.
    SlowLinks {
        node: Option<usize>,
        quality: Quality,
        seconds: u64,
    },
    /// What was not fsynced is gone.
    PowerLoss {
        node: usize,
    },
    /// All three at once.
    PowerLossOfAll,
    /// The file system returns EIO from each write and fsync.
    WriteError {
        node: usize,
    },
    /// The device below fails: it is an fsync that returns EIO, unless a write comes first for which the file system
    /// has to read something.
    FsyncError {
        node: usize,
    },
    /// Each write waits up to so long.
    SlowDisk {
        node: usize,
        stall_ms: u64,
        seconds: u64,
    },
    /// Less room than a node keeps in reserve: that many quarters of it.
    LowDisk {
        node: usize,
        quarters: u64,
    },
    /// ENOSPC.
    NoSpace {
        node: usize,
    },
    Clock {
        node: usize,
        hours: i64,
    },
    /// What a node keeps is lost, or a part of it; the operator has it leave and join anew.
    Wiped {
        node: usize,
        lost: Lost,
    },
    /// Until it needs a snapshot; and a kill in the middle of it.
    Away {
        node: usize,
    },
    /// In a file of that kind, while the node does not run.
    FlippedBit {
        node: usize,
        kind: &'static str,
        seed: u64,
    },
}

impl Fault {
    /// A class, for counting.
    pub fn kind(self) -> String {
        match self {
            Fault::Kill { .. } => "kill".into(),
            Fault::KillAll => "kill of all".into(),
            Fault::Pause { seconds, .. } => format!("pause of {seconds} s"),
            Fault::Cut { cut: Cut::Both, seconds, .. } => format!("partition of {seconds} s"),
            Fault::Cut { cut: Cut::Inbound, seconds, .. } => format!("partition of {seconds} s, inbound"),
            Fault::Cut { cut: Cut::Outbound, seconds, .. } => format!("partition of {seconds} s, outbound"),
            Fault::Stop { .. } => "stop".into(),
            Fault::SlowLinks { node: Some(_), .. } => "slow links of a node".into(),
            Fault::SlowLinks { node: None, .. } => "slow links of all".into(),
            Fault::PowerLoss { .. } => "power loss".into(),
            Fault::PowerLossOfAll => "power loss of all".into(),
            Fault::WriteError { .. } => "write error".into(),
            Fault::FsyncError { .. } => "fsync error".into(),
            Fault::SlowDisk { .. } => "slow disk".into(),
            Fault::LowDisk { quarters: 2.., .. } => "low disk".into(),
            Fault::LowDisk { .. } => "very low disk".into(),
            Fault::NoSpace { .. } => "no space".into(),
            Fault::Clock { hours, .. } => format!("clock jump of {hours:+} h"),
            Fault::Wiped { lost: Lost::All, .. } => "wiped data directory".into(),
            Fault::Wiped { lost: Lost::Log, .. } => "wiped log".into(),
            Fault::Wiped { lost: Lost::Engine, .. } => "wiped engine".into(),
            Fault::Away { .. } => "killed while it receives a snapshot".into(),
            Fault::FlippedBit { kind, .. } => format!("flipped bit: {kind}"),
        }
    }

    /// Those that need a disk, or links, that a test can spoil: one of each.
    pub fn of_each_kind() -> Vec<Fault> {
        let quality = Quality { delay_ms: (20, 60), loss_percent: 2 };
        vec![
            Fault::PowerLoss { node: 0 },
            Fault::SlowLinks { node: None, quality, seconds: 3 },
            Fault::WriteError { node: 1 },
            Fault::PowerLossOfAll,
            Fault::FsyncError { node: 2 },
            Fault::SlowDisk { node: 0, stall_ms: 200, seconds: 3 },
            Fault::LowDisk { node: 1, quarters: 1 },
            Fault::NoSpace { node: 2 },
            Fault::Clock { node: 0, hours: 1 },
            Fault::Clock { node: 1, hours: -1 },
            Fault::Wiped { node: 1, lost: Lost::Log },
            Fault::Wiped { node: 2, lost: Lost::All },
            Fault::Away { node: 0 },
        ]
    }

    /// A flipped bit in each kind of file.
    pub fn bits(engine: &str, seed: u64) -> Vec<Fault> {
        let mut dice = Dice(seed);
        let flipped =
            |kind| Fault::FlippedBit { node: dice.pick(&[0, 1, 2]), kind, seed: dice.roll(u64::MAX) };
        bits::kinds(engine).into_iter().map(flipped).collect()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// splitmix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.roll(of.len() as u64)).expect("an index")]
    }

    pub fn fault(&mut self) -> Fault {
        let node = self.pick(&[0, 1, 2]);
        match self.roll(41) {
            0..=13 => Fault::Kill { node, away_ms: self.pick(&[0, 300, 2000]) },
            14 | 15 => Fault::KillAll,
            16..=19 => Fault::Pause { node, seconds: self.pick(&[1, 5, 15]) },
            20..=24 => Fault::Cut {
                node,
                cut: self.pick(&[Cut::Both, Cut::Both, Cut::Inbound, Cut::Outbound]),
                seconds: self.pick(&[1, 5, 30]),
            },
            25 => Fault::Stop { node },
            26 | 27 => Fault::SlowLinks {
                node: self.pick(&[None, Some(node)]),
                quality: self.pick(&[
                    Quality { delay_ms: (1, 5), loss_percent: 10 },
                    Quality { delay_ms: (20, 60), loss_percent: 2 },
                    Quality { delay_ms: (100, 200), loss_percent: 0 },
                ]),
                seconds: 5,
            },
            28 | 29 => Fault::PowerLoss { node },
            30 | 31 => Fault::PowerLossOfAll,
            32 => Fault::WriteError { node },
            33 => Fault::FsyncError { node },
            34 | 35 => Fault::SlowDisk { node, stall_ms: self.pick(&[20, 200, 2000]), seconds: 5 },
            36 => Fault::LowDisk { node, quarters: self.pick(&[1, 3]) },
            37 => Fault::NoSpace { node },
            38 => Fault::Clock { node, hours: self.pick(&[1, -1]) },
            39 => Fault::Wiped { node, lost: self.pick(&[Lost::All, Lost::Log, Lost::Engine]) },
            _ => Fault::Away { node },
        }
    }

    /// Until the next fault.
    pub fn quiet(&mut self) -> Duration {
        Duration::from_millis(500 + self.roll(1500))
    }
}

/// Lets it happen, and ends it. Returns its kind, and since when it is over.
pub async fn strike(fault: Fault, rig: &mut Rig<'_>) -> (String, Instant) {
    let mut kind = fault.kind();
    let sleep = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
    let nodes = &mut rig.cluster.nodes;
    match fault {
        Fault::Kill { node, away_ms } => {
            nodes[node].kill();
            tokio::time::sleep(Duration::from_millis(away_ms)).await;
            nodes[node].start();
        }
        Fault::KillAll => {
            nodes.iter_mut().for_each(Daemon::kill);
            nodes.iter_mut().for_each(Daemon::start);
        }
        Fault::Pause { node, seconds } => {
            nodes[node].pause();
            sleep(seconds).await;
            nodes[node].resume();
        }
        Fault::Cut { node, cut, seconds } => {
            rig.network.cut(node + 1, cut);
            sleep(seconds).await;
            rig.network.heal(node + 1);
        }
        Fault::Stop { node } => {
            let code = nodes[node].stop();
            assert_eq!(code, Some(0), "{}", nodes[node].log());
            nodes[node].start();
        }
        Fault::SlowLinks { node, quality, seconds } => {
            let links = SlowLinks::new(rig.network, node.map(|node| node + 1), quality);
            sleep(seconds).await;
            assert!(links.carried() > 100, "the nodes spoke by other ways: {}", links.carried());
        }
        Fault::PowerLoss { node } => lose_power(rig, &[node]),
        Fault::PowerLossOfAll => lose_power(rig, &Vec::from_iter(0..NODES)),
        Fault::WriteError { node } => {
            ends_by_itself(&mut nodes[node], || rig.disks[node].cut(), DISK_FAILED);
            rig.disks[node].remount();
            nodes[node].start();
        }
        Fault::FsyncError { node } => {
            let said = ends_by_itself(&mut nodes[node], || rig.disks[node].fail(), DISK_FAILED);
            if !said.contains("can't fsync") {
                kind = Fault::WriteError { node }.kind();
            }
            rig.disks[node].mend();
            rig.disks[node].cut();
            rig.disks[node].remount();
            nodes[node].start();
        }
        Fault::SlowDisk { node, stall_ms, seconds } => {
            let disk = &rig.disks[node];
            let until = Instant::now() + Duration::from_secs(seconds);
            while Instant::now() < until {
                tokio::task::block_in_place(|| disk.stall(Duration::from_millis(stall_ms)));
                // Enough for a write or two of those that wait.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Fault::LowDisk { node, quarters } => ordeals::low_disk(rig, node, quarters).await,
        Fault::NoSpace { node } => ordeals::no_space(rig, node).await,
        Fault::Clock { node, hours } => ordeals::clock_jump(rig, node, hours).await,
        Fault::Wiped { node, lost } => ordeals::wiped(rig, node, lost).await,
        Fault::FlippedBit { node, kind, seed } => bits::flipped_bit(rig, node, kind, seed).await,
        Fault::Away { node } => ordeals::away(rig, node).await,
    }
    (kind, Instant::now())
}

/// Once service is back: waits for what takes longer, so that the next fault strikes a whole cluster.
pub async fn mends(fault: Fault, rig: &mut Rig<'_>) {
    rig.cluster.serve().await;
    match fault {
        Fault::Wiped { .. } => ordeals::is_whole(rig).await,
        Fault::Away { node } => ordeals::has_caught_up(rig, node).await,
        Fault::FlippedBit { node, .. } => bits::bit_is_mended(rig, node).await,
        Fault::LowDisk { node, .. } => rig.cluster.catches_up(node).await,
        _ => {}
    }
}

/// The disks first: the processes have no chance to write anything more.
fn lose_power(rig: &mut Rig<'_>, of: &[usize]) {
    of.iter().for_each(|node| rig.disks[*node].cut());
    of.iter().for_each(|node| rig.cluster.nodes[*node].kill());
    of.iter().for_each(|node| rig.disks[*node].remount());
    of.iter().for_each(|node| rig.cluster.nodes[*node].start());
}

/// What a failed disk answers; the second if its file system noticed first.
const DISK_FAILED: &[&str] = &["Input/output error", "Read-only file system"];

/// A process that sees its disk fail does not know what is on it: it ends, and says why: one of `whys`. Returns
/// what it said.
pub fn ends_by_itself(node: &mut Daemon, spoil: impl FnOnce(), whys: &[&str]) -> String {
    let said_before = node.log().len();
    spoil();
    let code = tokio::task::block_in_place(|| node.wait_end(ENDS_WITHIN));
    let log = node.log();
    assert_eq!(code, Some(1), "{log}");
    let said = &log[said_before..];
    let says_why = whys.iter().any(|why| said.contains(why));
    assert!(says_why && !said.contains("panicked"), "it does not say {whys:?}:\n{log}");
    said.to_string()
}
