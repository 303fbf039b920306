//! The daemon as a process, seen by a service manager: what it says, when, and how it ends.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Longest wait for anything: a debug build on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon under a service manager.
struct Daemon {
    child: Child,
    manager: UnixDatagram,
    said: String,
    dir: TempDir,
}

impl Daemon {
    fn start(args: &[&str]) -> Daemon {
        Daemon::start_in(TempDir::new().expect("temporary directory"), args)
    }

    fn start_in(dir: TempDir, args: &[&str]) -> Daemon {
        let path = dir.path().join("notify");
        let _ = std::fs::remove_file(&path);
        let manager = UnixDatagram::bind(&path).expect("a socket");
        manager.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let log =
            std::fs::File::options().create(true).append(true).open(dir.path().join("log")).expect("log");
        let child = Command::new(env!("CARGO_BIN_EXE_rushkv"))
            .args(["-addr=127.0.0.1", "-port=0"])
            .args(args)
            .current_dir(&dir)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "400000")
            .env_remove("WATCHDOG_PID")
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        Daemon { child, manager, said: String::new(), dir }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).expect("log")
    }

    fn listen(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.manager.recv(&mut buffer) {
            self.said.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }

    /// Waits until the service manager has heard `part`, from `from` on.
    fn hear(&mut self, from: usize, part: &str) {
        let start = Instant::now();
        let mut ended = false;
        while start.elapsed() < PATIENCE && !ended {
            // Asked first: what it said before its end is still heard.
            ended = self.child.try_wait().expect("our child").is_some();
            self.listen();
            if self.said[from..].contains(part) {
                return;
            }
        }
        panic!("{part:?} was not said; said:\n{}\nlog:\n{}", &self.said[from..], self.log());
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("it runs");
    }

    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().expect("our child") {
                self.listen();
                return status;
            }
            // It would wait for a service manager that does not listen.
            self.listen();
        }
        panic!("it does not end; log:\n{}", self.log());
    }

    /// The address after `what` in the log.
    fn address(&self, what: &str) -> String {
        let log = self.log();
        let line = log.lines().find(|line| line.contains(what)).expect("it says where it listens");
        line.rsplit_once("addr=").expect("an address").1.to_string()
    }

    fn http(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address("listening for HTTP")).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ended already in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_says_ready_serves_and_stops_when_asked() {
    let mut daemon = Daemon::start(&[]);
    daemon.hear(0, "READY=1\nSTATUS=serving");
    daemon.hear(0, "WATCHDOG=1\n");
    assert!(daemon.http("/readyz").starts_with("HTTP/1.1 200"), "{}", daemon.log());
    assert!(daemon.http("/livez").starts_with("HTTP/1.1 200"));
    assert!(daemon.http("/metrics").contains("rushkv_build_info"));
    TcpStream::connect(daemon.address("listening for gRPC")).expect("gRPC is served");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    assert!(daemon.said.contains("STOPPING=1"), "{}", daemon.said);
    let ready = daemon.said.find("READY=1").expect("ready");
    assert!(daemon.said.find("STATUS=opening").expect("opening") < ready, "{}", daemon.said);
    assert!(daemon.log().contains("stopped"), "{}", daemon.log());
}

#[test]
fn a_reload_changes_the_level_and_keeps_the_old_on_a_mistake() {
    let dir = TempDir::new().expect("temporary directory");
    let file = dir.path().join("rushkv.toml");
    std::fs::write(&file, "node_id = 'node1'\ndata_dir = './data'\n").expect("write");
    let mut daemon = Daemon::start_in(dir, &["--config", "rushkv.toml"]);
    daemon.hear(0, "READY=1");
    std::fs::write(&file, "node_id = 'node1'\ndata_dir = './other'\nlog.level = 'debug'\n").expect("write");
    let from = daemon.said.len();
    daemon.signal(Signal::HUP);
    daemon.hear(from, "RELOADING=1\nMONOTONIC_USEC=");
    daemon.hear(from, "READY=1\nSTATUS=reloaded: log.level; needs a restart: data_dir");
    std::fs::write(&file, "nodeid = 'a'\n").expect("write");
    let from = daemon.said.len();
    daemon.signal(Signal::HUP);
    daemon.hear(from, "READY=1\nSTATUS=not reloaded, the old configuration stays: rushkv.toml:1:1: nodeid");
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
}

#[test]
fn a_second_daemon_on_the_same_data_is_refused() {
    let mut first = Daemon::start(&["-data=data"]);
    first.hear(0, "READY=1");
    let data = format!("-data={}", first.dir.path().join("data").display());
    let mut second = Daemon::start(&[&data]);
    assert_eq!(second.wait().code(), Some(1), "{}", second.log());
    let log = second.log();
    assert!(log.contains("ERROR") && log.contains(data.trim_start_matches("-data=")), "{log}");
    assert!(log.contains("use"), "{log}");
    assert!(!second.said.contains("READY"), "{}", second.said);
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code(), Some(0));
}

#[test]
fn killed_at_any_time_it_starts_again() {
    let mut dir = TempDir::new().expect("temporary directory");
    for _ in 0..3 {
        let mut daemon = Daemon::start_in(dir, &[]);
        daemon.hear(0, "READY=1");
        daemon.signal(Signal::KILL);
        daemon.wait();
        dir = std::mem::replace(&mut daemon.dir, TempDir::new().expect("temporary directory"));
    }
    let mut daemon = Daemon::start_in(dir, &[]);
    daemon.hear(0, "READY=1");
}
