//! Hosts of the test's own: network namespaces on a bridge, whose links can be cut both ways or one way.
//! The bridge stands in a namespace, too: nothing of the machine's own network is touched.
//!
//! Needs root, and ip, nsenter and nft; panics, saying so, without them.

#![allow(dead_code)] // each test file uses a part of it

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What a host can't do any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    Both,
    /// It hears nothing of the other hosts, and they hear it.
    Inbound,
    /// It hears the other hosts, and they hear nothing of it.
    Outbound,
}

pub struct Network {
    prefix: String,
    hosts: usize,
}

impl Network {
    /// Makes the hosts 1, 2, ... on one bridge. The test itself is a further one, see [`Network::run`].
    pub fn new(name: &str, hosts: usize) -> Network {
        assert!(rustix::process::geteuid().is_root(), "namespaces need root");
        let network = Network { prefix: format!("rushkv-{name}-{}", std::process::id()), hosts };
        let test = network.namespace(0);
        ip(&["netns", "add", &test]);
        ip(&["-n", &test, "link", "set", "lo", "up"]);
        ip(&["-n", &test, "link", "add", "bridge", "type", "bridge"]);
        ip(&["-n", &test, "address", "add", &format!("{}/24", network.address(0)), "dev", "bridge"]);
        ip(&["-n", &test, "link", "set", "bridge", "up"]);
        for host in 1..=hosts {
            let (namespace, link) = (network.namespace(host), format!("host{host}"));
            ip(&["netns", "add", &namespace]);
            ip(&[
                "-n", &test, "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns",
                &namespace,
            ]);
            ip(&["-n", &test, "link", "set", &link, "master", "bridge", "up"]);
            let address = format!("{}/24", network.address(host));
            ip(&["-n", &namespace, "address", "add", &address, "dev", "eth0"]);
            ip(&["-n", &namespace, "link", "set", "lo", "up"]);
            ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        }
        network
    }

    /// Moves the calling thread, and the threads that it starts from now on, onto the bridge.
    fn enter(&self) {
        let namespace =
            File::open(format!("/run/netns/{}", self.namespace(0))).expect("the namespace is there");
        let moved = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
        moved.expect("a thread may enter a namespace");
    }

    /// Runs a test on the bridge, on a runtime whose threads are all there; its panics are the caller's.
    pub fn run<F: Future<Output = ()>>(&self, test: impl FnOnce() -> F + Send) {
        std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                self.enter();
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
                runtime.expect("a runtime").block_on(test());
            });
            if let Err(panic) = run.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    /// Their numbers.
    pub fn hosts(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.hosts
    }

    /// The name of a host's namespace, under /run/netns.
    pub fn namespace(&self, host: usize) -> String {
        format!("{}-{host}", self.prefix)
    }

    pub fn address(&self, host: usize) -> String {
        // 198.18.0.0/15 is for tests of networks (RFC 2544); 0 is the test's own.
        format!("198.18.0.{}", if host == 0 { 254 } else { host })
    }

    /// Cuts a host off from the other hosts; the test still reaches it.
    pub fn cut(&self, host: usize, cut: Cut) {
        let (first, last) = (self.address(1), self.address(self.hosts));
        let mut rules = "table ip cut {}\ndelete table ip cut\ntable ip cut {\n".to_string();
        if cut != Cut::Outbound {
            rules += "chain heard { type filter hook input priority 0;\n";
            rules += &format!("iifname != lo ip saddr {first}-{last} drop\n}}\n");
        }
        if cut != Cut::Inbound {
            rules += "chain said { type filter hook output priority 0;\n";
            rules += &format!("oifname != lo ip daddr {first}-{last} drop\n}}\n");
        }
        self.filter(host, &(rules + "}\n"));
    }

    /// Ends a cut.
    pub fn heal(&self, host: usize) {
        self.filter(host, "table ip cut {}\ndelete table ip cut\n");
    }

    fn filter(&self, host: usize, rules: &str) {
        let namespace = format!("--net=/run/netns/{}", self.namespace(host));
        run(Command::new("nsenter").args([&namespace, "nft", rules]));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in 0..=self.hosts {
            // A test that failed has made only some of them.
            let _ = Command::new("ip").args(["netns", "delete", &self.namespace(host)]).output();
        }
    }
}

pub fn ip(words: &[&str]) {
    run(Command::new("ip").args(words));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error} (make test-deps)"));
    assert!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
}
