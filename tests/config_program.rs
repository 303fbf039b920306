//! The program's own words: help, checks, and what it refuses before it starts.

use std::fs;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Runs the daemon in `dir`, as `/etc/rushkv` has no say and the terminal no width.
fn rushkv(dir: &TempDir, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rushkv"));
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"RUSHKV") {
            command.env_remove(name);
        }
    }
    let command = command.args(args).current_dir(dir).env_remove("JOURNAL_STREAM").env("COLUMNS", "100");
    command.output().expect("the program runs")
}

/// Exit code, standard output and standard error, without what differs from run to run.
fn told(dir: &TempDir, args: &[&str]) -> String {
    let output = rushkv(dir, args);
    let text = format!(
        "$ rushkv {}\nexit code {}\n-- stdout\n{}-- stderr\n{}",
        args.join(" "),
        output.status.code().map_or("none".to_string(), |code| code.to_string()),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    text.replace(env!("CARGO_PKG_VERSION"), "VERSION")
}

fn dir_with(text: &str) -> TempDir {
    let dir = TempDir::new().expect("temporary directory");
    fs::write(dir.path().join("rushkv.toml"), text).expect("write");
    dir
}

#[test]
fn help_and_version() {
    let dir = dir_with("");
    insta::assert_snapshot!("help", told(&dir, &["--help"]));
    insta::assert_snapshot!("help_short", told(&dir, &["-h"]));
    insta::assert_snapshot!("version", told(&dir, &["-version"]));
    insta::assert_snapshot!("usage", told(&dir, &["-prot=8080"]));
    assert_eq!(rushkv(&dir, &["-help"]).stdout, rushkv(&dir, &["--help"]).stdout);
}

#[test]
fn check_config_tells_everything_and_exits_78() {
    let dir = dir_with("node_id = 'a b'\nadrr = 'x'\n[storage]\nengine = 'redb'\n");
    insta::assert_snapshot!("check_config", told(&dir, &["--config", "rushkv.toml", "--check-config"]));
    let dir = dir_with("node_id = 'a'\naddr = '0.0.0.0'\n");
    insta::assert_snapshot!("check_config_holds", told(&dir, &["--config=rushkv.toml", "--check-config"]));
}

#[test]
fn print_config_tells_where_each_value_came_from() {
    let dir = dir_with("node_id = 'a'\n[cluster]\npartitions = 64\n");
    insta::assert_snapshot!(
        "print_config",
        told(
            &dir,
            &["--config", "rushkv.toml", "-port", "8081", "--set", "log.level=debug", "--print-config"]
        )
    );
    insta::assert_snapshot!(
        "print_config_original",
        told(&dir, &["-id=node1", "-addr=localhost", "-port=8080", "-data=./data/node1", "--print-config"])
    );
}

#[test]
fn a_port_in_use_is_named_before_any_data_is_touched() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let dir = dir_with("");
    let output = rushkv(&dir, &["-addr=127.0.0.1", &format!("-port={port}"), "--set", "metrics.addr=off"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains(&format!("addr = \"127.0.0.1:{port}\": can't listen")), "{error}");
    assert!(error.contains("choose another port"), "{error}");
    assert!(!dir.path().join("data").exists());
}

#[test]
fn the_journal_gets_priorities_where_it_is_the_one_that_reads() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = dir_with("zoone = 'a'\n");
    let journal = fs::File::create(dir.path().join("journal")).expect("create");
    let meta = journal.metadata().expect("metadata");
    let stream = format!("{}:{}", meta.dev(), meta.ino());
    for (stream, expected) in
        [(stream.as_str(), "<3>rushkv.toml:1:1: zoone"), ("1:2", "rushkv.toml:1:1: zoone")]
    {
        journal.set_len(0).expect("emptied");
        let mut command = Command::new(env!("CARGO_BIN_EXE_rushkv"));
        let args = ["--config", "rushkv.toml", "--check-config"];
        let command = command.args(args).current_dir(&dir).env("JOURNAL_STREAM", stream);
        let append = fs::File::options().append(true).open(dir.path().join("journal")).expect("open");
        let status = command.stderr(append).status().expect("the program runs");
        assert_eq!(status.code(), Some(78));
        let text = fs::read_to_string(dir.path().join("journal")).expect("read");
        assert!(text.starts_with(expected), "{stream}: {text}");
        let prefixed = text.lines().filter(|line| line.starts_with("<3>")).count();
        assert_eq!(prefixed, if expected.starts_with('<') { text.lines().count() } else { 0 });
    }
}

#[test]
fn what_packaging_asks_for_is_made() {
    let dir = dir_with("");
    for kind in ["man", "bash", "zsh", "fish", "config", "keys", "protoset"] {
        let output = rushkv(&dir, &["--generate", kind]);
        assert!(output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty(), "{kind}");
    }
    let packaged = rushkv(&dir, &["--generate", "config"]).stdout;
    assert_eq!(String::from_utf8_lossy(&packaged), include_str!("../etc/rushkv.toml"));
}
