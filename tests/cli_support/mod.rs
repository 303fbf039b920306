//! A real node for the tests of the tools, and the tools as processes.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

#[path = "../support/ports.rs"]
mod ports;
use ports::free_port;

/// How long a node may take from its start to its first answer.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// A node with a data directory of its own. Killed when dropped.
pub struct Node {
    pub server: String,
    port: u16,
    dir: tempfile::TempDir,
    process: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    /// Starts a node as the original is started, and waits until it answers.
    pub fn start() -> Node {
        let port = free_port();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut node = Node { server: format!("localhost:{port}"), port, dir, process: None };
        node.restart();
        node
    }

    /// Starts it again with the same data.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "still running");
        let log = File::create(self.dir.path().join("log")).expect("a log file");
        let process = Command::new(env!("CARGO_BIN_EXE_rushkv"))
            .arg("-id=node1")
            .arg("-addr=localhost")
            .arg(format!("-port={}", self.port))
            .arg(format!("-data={}", self.dir.path().join("data").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the same file twice"))
            .stderr(log)
            .spawn()
            .expect("rushkv starts");
        self.process = Some(process);
        let since = Instant::now();
        // 0 is yes and 3 is no: either is an answer.
        while !matches!(cli(self, &["-timeout=500ms", "exists", "k"]).status.code(), Some(0 | 3)) {
            let process = self.process.as_mut().expect("started above");
            let ended = process.try_wait().expect("a child of ours");
            assert!(
                ended.is_none() && since.elapsed() < START_PATIENCE,
                "no answer: {ended:?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// As `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

fn tool(program: &str, node: &Node, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.arg(format!("-server={}", node.server)).args(words);
    command.env_remove("RUSHKV_SERVER").stdin(Stdio::null());
    command
}

pub fn cli_command(node: &Node, words: &[&str]) -> Command {
    tool(env!("CARGO_BIN_EXE_rushkv-cli"), node, words)
}

pub fn cli(node: &Node, words: &[&str]) -> Output {
    cli_command(node, words).output().expect("rushkv-cli runs")
}

pub fn ctl(node: &Node, words: &[&str]) -> Output {
    tool(env!("CARGO_BIN_EXE_rushkvctl"), node, words).output().expect("rushkvctl runs")
}

/// Stdout of a run that must have succeeded.
#[track_caller]
pub fn ok(output: Output) -> String {
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{:?}\n{out}\n{err}", output.status);
    out
}

/// Exit code, stdout, stderr.
pub fn parts(output: Output) -> (i32, String, String) {
    let (out, err) = texts(&output);
    (output.status.code().expect("not killed"), out, err)
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}
