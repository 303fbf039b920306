//! The load and its judge: `rushkv-cli bench --check`, as a process.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// For the last calls, and for the check.
const ENDS_WITHIN: Duration = Duration::from_secs(120);

pub struct Load {
    child: Child,
    dir: tempfile::TempDir,
}

impl Load {
    pub fn start(servers: &str) -> Load {
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

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// As Ctrl-C does: it ends its calls, checks, and says what it found. Its exit code.
    pub async fn end(&mut self) -> Option<i32> {
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

    pub fn out(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("out")).unwrap()
    }

    pub fn talk(&self) -> String {
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
