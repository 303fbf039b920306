//! Faults drawn from a seed, made for real: processes are killed and stopped, packets dropped between network
//! namespaces.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::Cluster;
use crate::network::{Cut, Network};
use crate::process::Daemon;

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
}

impl Fault {
    /// A class, for counting.
    pub fn kind(self) -> &'static str {
        match self {
            Fault::Kill { .. } => "kill",
            Fault::KillAll => "kill all",
            Fault::Pause { .. } => "pause",
            Fault::Cut { cut: Cut::Both, .. } => "partition",
            Fault::Cut { .. } => "partition one way",
            Fault::Stop { .. } => "stop",
        }
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
    fn roll(&mut self, sides: u64) -> u64 {
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
        match self.roll(10) {
            0..=3 => Fault::Kill { node, away_ms: self.pick(&[0, 300, 2000]) },
            4 => Fault::KillAll,
            5 => Fault::Pause { node, seconds: self.pick(&[1, 1, 5, 15]) },
            6 | 7 => Fault::Cut { node, cut: Cut::Both, seconds: self.pick(&[1, 5, 5]) },
            8 => Fault::Cut {
                node,
                cut: self.pick(&[Cut::Inbound, Cut::Outbound]),
                seconds: self.pick(&[1, 5]),
            },
            _ => Fault::Stop { node },
        }
    }

    /// Until the next fault.
    pub fn quiet(&mut self) -> Duration {
        Duration::from_millis(500 + self.roll(1500))
    }
}

fn signal(node: &Daemon, signal: Signal) {
    let pid = i32::try_from(node.pid()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("it runs");
}

/// Lets it happen, and ends it.
pub async fn strike(fault: Fault, cluster: &mut Cluster, network: &Network) {
    let seconds = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
    match fault {
        Fault::Kill { node, away_ms } => {
            cluster.nodes[node].kill();
            tokio::time::sleep(Duration::from_millis(away_ms)).await;
            cluster.nodes[node].start();
        }
        Fault::KillAll => {
            cluster.nodes.iter_mut().for_each(Daemon::kill);
            cluster.nodes.iter_mut().for_each(Daemon::start);
        }
        Fault::Pause { node, seconds: time } => {
            signal(&cluster.nodes[node], Signal::STOP);
            seconds(time).await;
            signal(&cluster.nodes[node], Signal::CONT);
        }
        Fault::Cut { node, cut, seconds: time } => {
            network.cut(node + 1, cut);
            seconds(time).await;
            network.heal(node + 1);
        }
        Fault::Stop { node } => {
            let code = cluster.nodes[node].stop();
            assert_eq!(code, Some(0), "{}", cluster.nodes[node].log());
            cluster.nodes[node].start();
        }
    }
}

/// How often each kind struck, in words.
pub fn counts(faults: &[Fault]) -> String {
    let mut counts: BTreeMap<&'static str, u32> = BTreeMap::new();
    for fault in faults {
        *counts.entry(fault.kind()).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    counts.join(", ")
}
