//! Holds the architecture: imports point down, every dependency has its home, files stay readable.
//!
//! It reads source as text. What it can't see (a path built by a macro) it does not judge.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Layers from the ground up; a module imports from its own line's modules only itself, and anything
/// below. See `ARCHITECTURE.md`.
const LAYERS: &[&[&str]] = &[
    &["types", "limits", "error", "codec", "crash_point", "disk", "proto", "runtime", "way_out"],
    &["wal", "storage", "placement", "metrics", "history"],
    &["raft"],
    &["transport"],
    &["kv", "meta"],
    &["node"],
    &["simulation"],
    &["service", "client"],
    &["config", "cli", "ctl"],
    &["daemon"],
    &["fuzzing"],
];

/// Modules that may import from their own layer: words know each other, and the two tools share the
/// terminal side of things.
const NEIGHBOURS: &[(&str, &[&str])] = &[("error", &["types"]), ("limits", &["types"]), ("ctl", &["cli"])];

/// External crates that have one home each, as prefixes of paths under `src/`.
const HOMES: &[(&str, &[&str])] = &[
    ("openraft", &["raft/"]),
    ("sled", &["storage/sled"]),
    ("fjall", &["storage/fjall.rs"]),
    ("figment", &["config/"]),
    ("toml", &["config/"]),
    ("clap", &["daemon/", "cli/", "ctl/"]),
    ("clap_complete", &["daemon/", "cli/", "ctl/"]),
    ("clap_mangen", &["daemon/", "cli/", "ctl/"]),
    ("rustyline", &["cli/"]),
    ("indicatif", &["cli/"]),
    ("base64", &["cli/"]),
    ("axum", &["service/"]),
    ("tonic_health", &["service/"]),
    ("tonic_reflection", &["service/"]),
    ("tonic_types", &["error/", "service/tests/"]),
    ("sd_notify", &["daemon/"]),
    ("tracing_subscriber", &["daemon/"]),
    // Placement's hash is for ever; the others only tell files and queries apart.
    (
        "xxhash_rust",
        &["placement/", "cli/", "service/", "storage/", "raft/network.rs", "raft/renew/", "kv/summary.rs"],
    ),
    // A clock that may jump: it says when a node started and when a scrub ended, and keeps rebuilds apart; nothing
    // else goes by it.
    ("SystemTime", &["node/open.rs", "node/scrub.rs", "node/rebuilding.rs"]),
    ("crc32c", &["wal/", "storage/", "raft/", "kv/", "meta/", "node/promise.rs", "node/identity.rs"]),
    ("rand_core", &["runtime.rs"]),
];

/// What a simulation owns: code that it runs reaches none of this but through a seam.
const OWNED: &[&str] = &[
    "std::time::Instant",
    "std::time::{Duration, Instant}",
    "SystemTime",
    "tokio::spawn",
    "tokio::task::spawn",
    "thread::",
    "std::fs",
    "fs::File",
    "std::net",
    "tokio::net",
    "tokio::fs",
    "env::var",
    "getrandom",
    "rand::",
    "RandomState",
];

/// Layers that `src/simulation/` runs as they are, and the files in them that may reach for the machine.
const SIMULATED: &[(&str, &[(&str, &str)])] = &[
    (
        "wal",
        &[
            ("wal/fs.rs", "the machine's side of the disk's seam"),
            ("wal/mod.rs", "starts the writer's thread, which is a task in the simulation"),
            ("wal/writer.rs", "says that its thread panicked"),
        ],
    ),
    ("raft", &[]),
    ("kv", &[]),
    ("meta", &[]),
    ("placement", &[]),
    ("codec", &[]),
    ("types", &[]),
    ("limits", &[]),
    ("runtime", &[("runtime.rs", "the seam of tasks and random numbers itself")]),
];

/// Layers that it does not run, and why.
const NOT_SIMULATED: &[(&str, &str)] = &[
    ("fuzzing", "decoders alone, on bytes alone"),
    ("storage", "engines on files and threads of their own: a simulated engine stands in"),
    ("disk", "the machine's side of a seam"),
    ("crash_point", "ends the process: a simulated node ends otherwise"),
    ("error", "what callers are told on the wire"),
    ("way_out", "what operators are told"),
    ("proto", "what callers are told on the wire"),
    ("metrics", "only counted, never read back"),
    ("history", "measures real clients; its check is pure, and used"),
    ("transport", "sockets: a simulated carrier stands in"),
    ("node", "reads files and dials peers; its decisions are pure"),
    ("simulation", "owns what the others must not reach for"),
    ("service", "HTTP/2"),
    ("client", "HTTP/2"),
    ("config", "a program"),
    ("cli", "a program"),
    ("ctl", "a program"),
    ("daemon", "a program"),
];

/// Longest file, in lines: past it a file has usually more than one subject.
const LINES_MAX: usize = 700;

struct Source {
    /// Relative to `src/`.
    path: String,
    module: String,
    /// Without comments, so that prose does not count as code.
    code: String,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    let sources: Vec<Source> = files.iter().map(|path| source(&root, path)).collect();
    assert!(sources.len() > 20, "the sources were not found in {}", root.display());
    sources
}

fn source(root: &Path, path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap();
    let relative = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
    let module = relative.split('/').next().unwrap().trim_end_matches(".rs").to_string();
    let code = text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
    Source { path: relative, module, code, lines: text.lines().count() }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Top-level modules that `code` names as `crate::module`, also within braces.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(std::mem::take(&mut name)),
                    c if depth == 0 => name.push(c),
                    _ => {}
                }
            }
            found.push(name);
        } else {
            found.push(rest.to_string());
        }
    }
    let word = |text: &String| {
        text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
    };
    found.iter().map(word).filter(|name| !name.is_empty()).collect()
}

#[test]
fn imports_point_down() {
    let layer: BTreeMap<&str, usize> =
        LAYERS.iter().enumerate().flat_map(|(at, names)| names.iter().map(move |name| (*name, at))).collect();
    let mut wrong = Vec::new();
    for source in sources() {
        if source.module == "lib" || source.module == "bin" {
            continue;
        }
        let Some(own) = layer.get(source.module.as_str()) else {
            wrong.push(format!("{}: module {} stands in no layer", source.path, source.module));
            continue;
        };
        for import in imports(&source.code) {
            let Some(other) = layer.get(import.as_str()) else {
                continue;
            };
            let neighbour = NEIGHBOURS
                .iter()
                .any(|(module, may)| *module == source.module && may.contains(&import.as_str()));
            if import != source.module && other >= own && !neighbour {
                wrong.push(format!("{}: {} may not import {import}", source.path, source.module));
            }
        }
    }
    assert!(wrong.is_empty(), "imports must point down:\n{}", wrong.join("\n"));
}

#[test]
fn dependencies_stay_at_home() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (name, homes) in HOMES {
            if homes.iter().any(|home| source.path.starts_with(home)) {
                continue;
            }
            let path = format!("{name}::");
            let named = source.code.match_indices(&path).any(|(at, _)| {
                let before = source.code[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
            });
            if named {
                wrong.push(format!("{}: {name} belongs into {}", source.path, homes.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "a dependency is used outside its home:\n{}", wrong.join("\n"));
}

/// What is built for tests only, by the names of files and modules.
fn without_tests(source: &Source) -> &str {
    let is_test = |part: &str| part == "tests" || part == "testing" || part.ends_with("_tests");
    if source.path.trim_end_matches(".rs").split('/').any(is_test) || source.path == "raft/cluster.rs" {
        return "";
    }
    source.code.split("#[cfg(test)]\nmod tests {").next().unwrap()
}

/// What of the machine `code` reaches for.
fn reaches(code: &str) -> Vec<&'static str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let stands = |at: usize| !code[..at].ends_with(is_word);
    let mut found: Vec<&str> =
        (OWNED.iter().copied()).filter(|owned| code.match_indices(owned).any(|(at, _)| stands(at))).collect();
    // Without it, tokio asks its branches in a random order.
    let is_random = |(at, _): (usize, &str)| {
        !code[at..].trim_start_matches("select! {").trim_start().starts_with("biased;")
    };
    if code.match_indices("select! {").any(is_random) {
        found.push("select! without biased;");
    }
    found
}

#[test]
fn a_simulation_owns_what_it_runs() {
    for layer in LAYERS.iter().copied().flatten() {
        let is_simulated = SIMULATED.iter().any(|(name, _)| name == layer);
        let is_not = NOT_SIMULATED.iter().any(|(name, _)| name == layer);
        assert!(is_simulated != is_not, "{layer}: say whether src/simulation/ runs it, and why not");
    }
    let mut wrong = Vec::new();
    for source in sources() {
        let Some((_, may)) = SIMULATED.iter().find(|(name, _)| *name == source.module) else { continue };
        if may.iter().any(|(path, _)| *path == source.path) {
            continue;
        }
        for found in reaches(without_tests(&source)) {
            wrong.push(format!("{}: {found}", source.path));
        }
    }
    assert!(
        wrong.is_empty(),
        "only through a seam (docs/decisions/0016-simulation.md):\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_checks_would_notice() {
    assert_eq!(reaches("tokio::spawn(x); std::time::Instant::now()"), ["std::time::Instant", "tokio::spawn"]);
    assert_eq!(reaches("select! {\n  a = b => c }"), ["select! without biased;"]);
    assert_eq!(reaches("select! {\n  biased;\n a = b => c }; runtime::spawn(x); operand::new()"), [""; 0]);
    assert_eq!(imports("use crate::{kv::{Op, Outcome}, raft};"), ["kv", "raft"]);
    assert_eq!(imports("use crate::node::Node; crate::wal::Wal::open()"), ["node", "wal"]);
    assert_eq!(imports("mycrate::x"), Vec::<String>::new());
}

#[test]
fn files_are_short_and_begin_with_their_subject() {
    let mut wrong = Vec::new();
    for source in sources() {
        if source.lines > LINES_MAX {
            wrong.push(format!("{}: {} lines, more than {LINES_MAX}", source.path, source.lines));
        }
        let text =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(&source.path)).unwrap();
        if !text.starts_with("//!") {
            wrong.push(format!("{}: begins without a module doc", source.path));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_undone_in_the_sources() {
    // Put together here so that this file does not find itself.
    let marks = [
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
        ["todo", "!("].concat(),
        ["unimplemented", "!("].concat(),
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        for mark in &marks {
            assert!(!text.contains(mark.as_str()), "{}: {mark}", path.display());
        }
    }
}
