//! Links between hosts of a [`Network`] that delay, lose and reorder packets: while they are slow, the packets
//! go through the test itself, by way of a tun device on each host.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::task::JoinSet;

use crate::network::{Network, ip};

/// `TUNSETIFF`, what it takes (a struct ifreq), and the flags: packets of IP, nothing before them.
const SET_INTERFACE: rustix::ioctl::Opcode = 0x4004_54ca;
type InterfaceRequest = [u8; 40];
const TUN_WITHOUT_INFO: u16 = 0x1001;

const DEVICE: &str = "slow";

/// How long a device may stay after its last descriptor was closed.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Longest packet; nothing on these hosts is configured to send a longer one.
const PACKET_BYTES: usize = 2048;

/// How often an empty queue is looked at: what comes meanwhile is late, which it is to be.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quality {
    /// Each is late by a time between these, so that they overtake each other.
    pub delay_ms: (u64, u64),
    pub loss_percent: u64,
}

/// Links that are slow until this is dropped; what is on its way then is lost.
pub struct SlowLinks {
    _carriers: JoinSet<()>,
    carried: Arc<AtomicU64>,
}

impl SlowLinks {
    /// Between one host and the others, or between all of them.
    pub fn new(network: &Network, host: Option<usize>, quality: Quality) -> SlowLinks {
        let hosts: Vec<usize> = network.hosts().collect();
        let tuns: Vec<Arc<File>> = hosts.iter().map(|at| Arc::new(tun(&network.namespace(*at)))).collect();
        for from in &hosts {
            let namespace = network.namespace(*from);
            ip(&["-n", &namespace, "link", "set", DEVICE, "up"]);
            for to in hosts.iter().filter(|to| *to != from) {
                if host.is_none_or(|host| host == *from || host == *to) {
                    let (to, from) = (network.address(*to), network.address(*from));
                    ip(&["-n", &namespace, "route", "add", &to, "dev", DEVICE, "src", &from]);
                }
            }
        }
        let carried = Arc::new(AtomicU64::new(0));
        let mut carriers = JoinSet::new();
        for from in 0..tuns.len() {
            carriers.spawn(carry(from, tuns.clone(), quality, carried.clone()));
        }
        SlowLinks { _carriers: carriers, carried }
    }

    /// Packets so far.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

async fn carry(from: usize, tuns: Vec<Arc<File>>, quality: Quality, carried: Arc<AtomicU64>) {
    // Packets that are on their way end with this.
    let mut on_their_way = JoinSet::new();
    let mut dice = crate::faults::Dice(from as u64);
    loop {
        while on_their_way.try_join_next().is_some() {}
        let mut packet = [0; PACKET_BYTES];
        let packet = match rustix::io::read(&*tuns[from], &mut packet) {
            Ok(bytes) => &packet[..bytes],
            Err(Errno::AGAIN) => {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) => panic!("a tun can be read: {error}"),
        };
        // The last byte of where an IPv4 packet goes to is the number of the host. The kernel has others to send,
        // too (IPv6 looks for routers).
        let to = match packet {
            [0x40..=0x4f, ..] if packet.len() >= 20 => usize::from(packet[19]),
            _ => continue,
        };
        let Some(to) = to.checked_sub(1).and_then(|to| tuns.get(to)).cloned() else { continue };
        carried.fetch_add(1, Ordering::Relaxed);
        if dice.roll(100) < quality.loss_percent {
            continue;
        }
        let (least, most) = quality.delay_ms;
        let late = Duration::from_millis(least + dice.roll(most - least + 1));
        let packet = packet.to_vec();
        on_their_way.spawn(async move {
            tokio::time::sleep(late).await;
            // A queue that is full loses it, as a real one does.
            let _ = rustix::io::write(&*to, &packet);
        });
    }
}

/// Makes a host's device; it goes when the file is closed.
fn tun(namespace: &str) -> File {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            let namespace = File::open(format!("/run/netns/{namespace}")).expect("the namespace is there");
            let moved = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
            moved.expect("a thread may enter a namespace");
            let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
            let tun =
                rustix::fs::open("/dev/net/tun", flags, rustix::fs::Mode::empty()).expect("/dev/net/tun");
            let mut request: InterfaceRequest = [0; 40];
            request[..DEVICE.len()].copy_from_slice(DEVICE.as_bytes());
            request[16..18].copy_from_slice(&TUN_WITHOUT_INFO.to_ne_bytes());
            let asked = Instant::now();
            loop {
                // SAFETY: the opcode takes a pointer to a struct ifreq of 40 bytes, which lives through the call.
                #[allow(unsafe_code)] // no safe wrapper knows this ioctl
                let result = unsafe {
                    let set = rustix::ioctl::Setter::<SET_INTERFACE, InterfaceRequest>::new(request);
                    rustix::ioctl::ioctl(&tun, set)
                };
                match result {
                    Ok(()) => return File::from(tun),
                    Err(Errno::BUSY) if asked.elapsed() < GONE_WITHIN => {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    Err(error) => panic!("a tun device can't be made: {error}"),
                }
            }
        });
        made.join().expect("it does not panic")
    })
}
