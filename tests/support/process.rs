//! The real daemon as a process of its own, on loopback, ended by its id.

#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rushkv::proto::v1::InfoRequest;
use rushkv::proto::v1::cluster_client::ClusterClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::{Channel, Endpoint};

#[path = "ports.rs"]
mod ports;
pub use ports::{HTTP_OFFSET, free_port};

/// How long a daemon may take from its start until it serves.
const SERVES_WITHIN: Duration = Duration::from_secs(30);

/// Longer than any call may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(90);

/// How long an answer of the HTTP port may take.
const HTTP_WITHIN: Duration = Duration::from_secs(10);

pub struct Daemon {
    child: Option<Child>,
    pub port: u16,
    pub data_dir: PathBuf,
    pub name: String,
    host: String,
    namespace: Option<String>,
    engine: &'static str,
    log: PathBuf,
    env: Vec<(&'static str, String)>,
    open_files: Option<u32>,
}

/// What is run: the build under test, or, to measure an optimised one, what RUSHKV_PROGRAM names.
fn program() -> String {
    std::env::var("RUSHKV_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_rushkv").to_string())
}

impl Daemon {
    /// Prepares a daemon on `data_dir`; its log goes beside it.
    pub fn new(data_dir: &Path, engine: &'static str) -> Daemon {
        let log = data_dir.with_extension("log");
        Daemon {
            child: None,
            port: free_port(),
            data_dir: data_dir.to_path_buf(),
            name: "node1".into(),
            host: "127.0.0.1".into(),
            namespace: None,
            engine,
            log,
            env: Vec::new(),
            open_files: None,
        }
    }

    /// Puts the log elsewhere.
    pub fn log_to(mut self, path: &Path) -> Daemon {
        self.log = path.to_path_buf();
        self
    }

    /// Gives it another name than node1.
    pub fn named(mut self, name: &str) -> Daemon {
        self.name = name.to_string();
        self
    }

    /// Runs it on another host: in a network namespace, with this address.
    pub fn on_host(mut self, namespace: &str, address: &str) -> Daemon {
        (self.host, self.namespace) = (address.to_string(), Some(namespace.to_string()));
        self
    }

    /// Gives it its HTTP port, which most tests have no use for.
    pub fn with_http(self) -> Daemon {
        let address = format!("{}:{}", self.host, self.port + HTTP_OFFSET);
        self.env("RUSHKV__METRICS__ADDR", &address)
    }

    /// GETs from the HTTP port: status and body.
    pub async fn http(&self, path: &str) -> (u16, String) {
        let answer = self.ask_http(path).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
    }

    async fn ask_http(&self, path: &str) -> std::io::Result<String> {
        let ask = async {
            let address = (self.host.as_str(), self.port + HTTP_OFFSET);
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.map(|_| answer)
        };
        let answer = tokio::time::timeout(HTTP_WITHIN, ask).await;
        answer.unwrap_or_else(|_| panic!("{path} is not answered:\n{}", self.log()))
    }

    /// A series that it counts, by its name and labels; None while its endpoint does not answer.
    pub async fn sample(&self, series: &str) -> Option<u64> {
        let text = self.ask_http("/metrics").await.ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|number| number.parse().ok())
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// SIGSTOP: it is silent, and its connections stay.
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().expect("it runs"));
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &'static str, value: &str) -> Daemon {
        self.env.push((name, value.to_string()));
        self
    }

    /// Lets it have only so many files open at once.
    pub fn open_files(mut self, most: u32) -> Daemon {
        self.open_files = Some(most);
        self
    }

    /// Sets a variable for its next starts, or takes it away.
    pub fn set(&mut self, name: &'static str, value: Option<&str>) {
        self.env.retain(|(known, _)| *known != name);
        self.env.extend(value.map(|value| (name, value.to_string())));
    }

    pub fn start(&mut self) {
        assert!(self.child.is_none());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let program = program();
        let mut command = match &self.namespace {
            // The shell becomes the program: the process keeps its id.
            None if let Some(most) = self.open_files => {
                let mut command = Command::new("sh");
                command.args(["-c", &format!("ulimit -n {most}; exec \"$0\" \"$@\""), &program]);
                command
            }
            None => Command::new(program),
            // It becomes the program: the process keeps its id. `ip netns exec` would copy the mounts, too, and
            // hold what others unmount.
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.args([&format!("--net=/run/netns/{namespace}"), &program]);
                command
            }
        };
        let child = command
            .arg(format!("-id={}", self.name))
            .arg(format!("-addr={}", self.host))
            .arg(format!("-port={}", self.port))
            .arg(format!("-data={}", self.data_dir.display()))
            .env("RUSHKV__STORAGE__ENGINE", self.engine)
            .env("RUSHKV__METRICS__ADDR", "off")
            .env("RUSHKV__STORAGE__DISK_RESERVE", "0")
            .envs(self.env.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// SIGKILL: nothing in the process runs any more.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("the daemon did not stop within a minute:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the process ends by itself, and returns its exit code.
    pub fn wait_end(&mut self, within: Duration) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("the daemon did not end by itself:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some())
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A connection that comes up when it is first used.
    pub fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address())).unwrap();
        // What hangs is to be a failure that says where.
        endpoint.timeout(ANSWERS_WITHIN).connect_lazy()
    }

    /// Waits until every partition has its leader; returns how long that took.
    pub async fn serves(&mut self) -> Duration {
        let started = Instant::now();
        loop {
            let mut client = ClusterClient::new(self.channel());
            match client.info(InfoRequest {}).await.map(tonic::Response::into_inner) {
                Ok(info) if info.partitions_led == info.partition_count && !info.leader.is_empty() => {
                    return started.elapsed();
                }
                answer if started.elapsed() > SERVES_WITHIN => {
                    panic!("the daemon does not serve: {answer:?}\n{}", self.log())
                }
                _ => {}
            }
            if let Some(status) = self.child.as_mut().expect("it runs").try_wait().unwrap() {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A test has failed; the process must not outlive it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
