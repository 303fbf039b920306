//! Every key of the configuration, as data. Validation, the packaged `rushkv.toml`, the reference
//! table and `--print-config` all read [`KEYS`]; a key that is not here does not exist.

use std::fmt::Write as _;

use crate::limits;

/// One key.
#[derive(Debug)]
pub struct Key {
    /// The section, a point and the name; no section at the top level.
    pub name: &'static str,
    pub kind: Kind,
    /// As it stands in the packaged file: a TOML value.
    pub default: &'static str,
    /// What it means, in whole sentences; also the comment in the packaged file.
    pub doc: &'static str,
    pub reload: Reload,
}

/// What a key's value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 1 to 64 letters, digits, `.`, `_` or `-`, the first one a letter or digit.
    Name,
    /// A name, or nothing.
    NameOrEmpty,
    /// `host:port`; the port may be left out.
    Addr,
    /// An address, or nothing.
    AddrOrEmpty,
    /// An address with its port, `auto` or `off`.
    MetricsAddr,
    /// A list of addresses.
    AddrList,
    /// A directory.
    Dir,
    /// A whole number from `min` to `max`, both included.
    Number { min: u64, max: u64 },
    /// A whole number up to `max` that is a power of two.
    PowerOfTwo { max: u64 },
    /// A size of at least `min` bytes: a number of bytes, or a text such as `128MiB`.
    Bytes { min: u64 },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A level, or levels per module: `info,rushkv::raft=debug`.
    LogLevel,
}

/// What a running daemon does with a changed value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// Takes it up on SIGHUP.
    Live,
    /// Says that it needs a restart.
    Restart,
    /// Ignores it: the value counts only while a cluster is formed.
    Formation,
}

impl Reload {
    pub fn as_str(self) -> &'static str {
        match self {
            Reload::Live => "reload",
            Reload::Restart => "restart",
            Reload::Formation => "formation only",
        }
    }
}

/// As group 0 checks it.
pub const REPLICAS_MAX: u64 = crate::limits::REPLICAS_MAX as u64;

/// As group 0 checks it.
pub const WEIGHT_MAX: u64 = crate::limits::WEIGHT_MAX as u64;

/// Smallest cache, in bytes: both engines need a few blocks to make progress.
pub const CACHE_BYTES_MIN: u64 = 1024 * 1024;

/// The section's comment in the packaged file.
pub const SECTIONS: [(&str, &str); 5] = [
    ("", "The node itself."),
    (
        "cluster",
        "Used once, when this node takes part in forming a cluster. Afterwards the cluster itself \
         knows better, and changes here do nothing.",
    ),
    ("storage", "Where the data is kept."),
    ("metrics", "The HTTP endpoint with /metrics, /livez and /readyz."),
    ("log", "What is logged, to standard error."),
];

/// Every key, section by section, in the order of the packaged file.
pub static KEYS: [Key; 15] = [
    Key {
        name: "node_id",
        kind: Kind::NameOrEmpty,
        default: r#""""#,
        doc: "This node's name, unlike any other in the cluster and never changed: the data directory \
              remembers it; up to 64 characters. Empty: the host name.",
        reload: Reload::Restart,
    },
    Key {
        name: "addr",
        kind: Kind::Addr,
        default: r#""localhost:8080""#,
        doc: "Where clients and other nodes are served (gRPC). The port may be left out (8080); IPv6 in \
              brackets: \"[::1]:8080\"; \"0.0.0.0\" or \"[::]\" serve on every interface. Nothing asks \
              for a password: serve only networks that you trust.",
        reload: Reload::Restart,
    },
    Key {
        name: "advertise_addr",
        kind: Kind::AddrOrEmpty,
        default: r#""""#,
        doc: "Where others reach this node. Empty: the same as addr.",
        reload: Reload::Restart,
    },
    Key {
        name: "data_dir",
        kind: Kind::Dir,
        default: r#""/var/lib/rushkv""#,
        doc: "Everything that this node must not lose. One node, one directory.",
        reload: Reload::Restart,
    },
    Key {
        name: "peers",
        kind: Kind::AddrList,
        default: "[]",
        doc: "Addresses of other nodes, to find the cluster by. Empty: this node is a cluster of its own. \
              Used only while it has no cluster.",
        reload: Reload::Restart,
    },
    Key {
        name: "zone",
        kind: Kind::NameOrEmpty,
        default: r#""""#,
        doc: "What fails together with this node (a rack, a site): copies are spread over zones first.",
        reload: Reload::Restart,
    },
    Key {
        name: "weight",
        kind: Kind::Number { min: 1, max: WEIGHT_MAX },
        default: "1",
        doc: "This node's share of the data, relative to the other nodes' weights; 1 to 1000.",
        reload: Reload::Restart,
    },
    Key {
        name: "cluster.name",
        kind: Kind::Name,
        default: r#""rushkv""#,
        doc: "The cluster's name, for people and dashboards.",
        reload: Reload::Formation,
    },
    Key {
        name: "cluster.replicas",
        kind: Kind::Number { min: 1, max: REPLICAS_MAX },
        default: "3",
        doc: "Copies of every key, as far as there are nodes for them; 1 to 7.",
        reload: Reload::Formation,
    },
    Key {
        name: "cluster.partitions",
        kind: Kind::PowerOfTwo { max: limits::PARTITIONS_MAX as u64 },
        default: "8",
        doc: "Pieces that the keys are divided into, a power of two up to 4096. Each is a Raft group: more of them \
              spread better over many nodes and cost more per write.",
        reload: Reload::Formation,
    },
    Key {
        name: "storage.engine",
        kind: Kind::Choice(&["fjall", "sled"]),
        default: r#""fjall""#,
        doc: "\"fjall\" or \"sled\". A data directory keeps the engine that it was made with.",
        reload: Reload::Restart,
    },
    Key {
        name: "storage.cache",
        kind: Kind::Bytes { min: CACHE_BYTES_MIN },
        default: r#""128MiB""#,
        doc: "Memory for cached records and, half of it, for the engine's cache.",
        reload: Reload::Restart,
    },
    Key {
        name: "storage.disk_reserve",
        kind: Kind::Bytes { min: 0 },
        default: r#""512MiB""#,
        doc: "Writes are refused while the disk has less free space than this, so that the log and the \
              engine never run into a full disk, which ends the process; less than 256MiB is too little \
              for that. Deletes work until half of it is used.",
        reload: Reload::Restart,
    },
    Key {
        name: "metrics.addr",
        kind: Kind::MetricsAddr,
        default: r#""auto""#,
        doc: "Host and port; \"auto\" is 127.0.0.1 and addr's port plus 1100 (9180 for 8080); \"off\" turns \
              it off.",
        reload: Reload::Restart,
    },
    Key {
        name: "log.level",
        kind: Kind::LogLevel,
        default: r#""info""#,
        doc: "off, error, warn, info, debug or trace, for RushKV itself; the libraries in it tell warnings and \
              errors only. Also per module: \"info,rushkv::raft=debug,h2=info\".",
        reload: Reload::Live,
    },
];

/// The key with this full name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl Key {
    /// The section; empty at the top level.
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(section, _)| section)
    }

    /// The name within its section.
    pub fn leaf(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, leaf)| leaf)
    }

    /// The environment variable that sets it.
    pub fn env_name(&self) -> String {
        format!("{}{}", super::env::PREFIX, self.name.replace('.', "__").to_uppercase())
    }
}

/// The packaged `rushkv.toml`: every key with its default and what it means.
pub fn packaged_file() -> String {
    let mut out = String::from(
        "# RushKV's configuration: every key, with its default.\n\
         #\n\
         # Later wins: the defaults, this file, conf.d/*.toml beside it in the order of their names,\n\
         # environment variables (RUSHKV__STORAGE__ENGINE for storage.engine), flags.\n\
         # Check a change with: rushkv --config /etc/rushkv/rushkv.toml --check-config\n\
         # Take it up with: systemctl reload rushkv, which says what needs a restart.\n",
    );
    for (section, about) in SECTIONS {
        out.push('\n');
        comment(&mut out, about);
        if !section.is_empty() {
            let _ = writeln!(out, "[{section}]");
        }
        for key in KEYS.iter().filter(|key| key.section() == section) {
            out.push('\n');
            comment(&mut out, key.doc);
            let _ = writeln!(out, "{} = {}", key.leaf(), key.default);
        }
    }
    out
}

/// The reference table, in Markdown.
pub fn markdown_table() -> String {
    let mut out = String::from("| key | default | a change takes | meaning |\n|---|---|---|---|\n");
    for key in &KEYS {
        let doc = key.doc.replace('|', "\\|");
        let _ = writeln!(out, "| `{}` | `{}` | {} | {doc} |", key.name, key.default, key.reload.as_str());
    }
    out
}

/// `text` as comment lines of at most 100 columns.
fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > 100 {
            let _ = writeln!(out, "{line}");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
}
