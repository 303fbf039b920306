//! Keys that are only ever overwritten, one version after another, and read all the time: nothing that
//! was acknowledged may be missing, nothing that is read may be older than what was acknowledged before.
//!
//! Every write asks for the version before it. So one whose outcome is unknown can't take place any more
//! once a later one has, whatever node it was delayed in.

#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rushkv::proto::v1::kv_client::KvClient;
use rushkv::proto::v1::precondition::Condition;
use rushkv::proto::v1::{GetRequest, Precondition, PutRequest};
use tokio::sync::watch;
use tonic::transport::Channel;

/// For one read, and for one write.
const READ_WITHIN: Duration = Duration::from_millis(1500);
const WRITE_WITHIN: Duration = Duration::from_secs(3);

/// After an error, before the next attempt.
const PAUSE: Duration = Duration::from_millis(20);

type Answer<T> = Result<T, tonic::Status>;

#[derive(Debug)]
pub struct Register {
    key: String,
    /// The last version that was acknowledged.
    acknowledged: AtomicU64,
    /// Of each version: what was written as it, and whether that was acknowledged.
    written: Mutex<BTreeMap<u64, Vec<(String, bool)>>>,
    errors: Mutex<Vec<(Instant, String)>>,
}

impl Register {
    pub fn new(key: String) -> Arc<Register> {
        Arc::new(Register {
            key,
            acknowledged: AtomicU64::new(0),
            written: Mutex::default(),
            errors: Mutex::default(),
        })
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// What went wrong, and when.
    pub fn errors(&self) -> Vec<(Instant, String)> {
        self.errors.lock().unwrap().clone()
    }

    /// Reads the version and checks it. Panics if it is older than what was acknowledged before, or has
    /// another value than the one that was written.
    pub async fn read(&self, channel: &Channel) -> Answer<u64> {
        let floor = self.acknowledged();
        let mut request = tonic::Request::new(GetRequest { key: self.key.clone().into(), consistency: 0 });
        request.set_timeout(READ_WITHIN);
        let answer = KvClient::new(channel.clone()).get(request).await?.into_inner();
        let Some(record) = answer.record else {
            assert_eq!(floor, 0, "{}: not there, {floor} versions were acknowledged", self.key);
            return Ok(0);
        };
        let (version, value) = (record.version, String::from_utf8(record.value.to_vec()).unwrap());
        assert!(version >= floor, "{}: read version {version}, {floor} was acknowledged", self.key);
        let written = self.written.lock().unwrap();
        let candidates =
            written.get(&version).unwrap_or_else(|| panic!("{}: nobody wrote {version}", self.key));
        match candidates.iter().find(|(_, acknowledged)| *acknowledged) {
            Some((acknowledged, _)) => assert_eq!(value, *acknowledged, "{} at {version}", self.key),
            None => assert!(candidates.iter().any(|(one, _)| *one == value), "{}: {value}", self.key),
        }
        Ok(version)
    }

    /// Reads until there is an answer, or for so long: a leadership may just move.
    pub async fn read_at_last(&self, channel: &Channel, within: Duration) -> Answer<u64> {
        let started = Instant::now();
        loop {
            let answer = self.read(channel).await;
            if answer.is_ok() || started.elapsed() >= within {
                return answer;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn write(&self, channel: &Channel, before: u64, attempt: u64) -> Answer<()> {
        let (version, value) = (before + 1, format!("{}-{attempt}", self.key));
        let condition = match before {
            0 => Condition::Absent(true),
            version => Condition::Version(version),
        };
        // Noted first: it may be read before it is acknowledged.
        self.written.lock().unwrap().entry(version).or_default().push((value.clone(), false));
        let precondition = Some(Precondition { condition: Some(condition) });
        let (key, bytes) = (self.key.clone().into(), value.clone().into());
        let mut request = tonic::Request::new(PutRequest { key, value: bytes, precondition });
        request.set_timeout(WRITE_WITHIN);
        let answer = KvClient::new(channel.clone()).put(request).await?.into_inner();
        assert_eq!(answer.version, version, "{}", self.key);
        for one in self.written.lock().unwrap().entry(version).or_default() {
            assert!(!one.1, "{}: version {version} was acknowledged twice", self.key);
            one.1 = one.0 == value;
        }
        self.acknowledged.fetch_max(version, Ordering::SeqCst);
        Ok(())
    }

    /// Writes and reads until it is told to stop, through one of `channels` after the other, whatever
    /// goes wrong.
    pub async fn run(self: Arc<Register>, channels: watch::Receiver<Vec<Channel>>, stop: Arc<AtomicBool>) {
        let mut attempt = 0;
        let mut version = None;
        while !stop.load(Ordering::Relaxed) {
            attempt += 1;
            let channel = {
                let channels = channels.borrow();
                channels[usize::try_from(attempt).unwrap() % channels.len()].clone()
            };
            let done = match version {
                None => self.read(&channel).await.map(|read| version = Some(read)),
                Some(before) => {
                    version = None;
                    self.write(&channel, before, attempt).await
                }
            };
            // An earlier write, whose outcome was unknown, took place after the read.
            if let Err(status) = done
                && status.code() != tonic::Code::FailedPrecondition
            {
                self.errors.lock().unwrap().push((Instant::now(), status.to_string()));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Registers under load.
pub struct Running {
    pub registers: Vec<Arc<Register>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Running {
    pub fn start(name: &str, count: usize, channels: &watch::Receiver<Vec<Channel>>) -> Running {
        let registers: Vec<Arc<Register>> =
            (0..count).map(|at| Register::new(format!("{name}-{at}"))).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let run =
            |register: &Arc<Register>| tokio::spawn(register.clone().run(channels.clone(), stop.clone()));
        let tasks = registers.iter().map(run).collect();
        Running { registers, stop, tasks }
    }

    /// Waits until every register was written `times` more.
    pub async fn advance(&self, times: u64) {
        let before: Vec<u64> = self.registers.iter().map(|register| register.acknowledged()).collect();
        let started = Instant::now();
        for (register, before) in self.registers.iter().zip(before) {
            while register.acknowledged() < before + times {
                assert!(!self.tasks.iter().any(tokio::task::JoinHandle::is_finished), "a check has failed");
                let why = "is not written any more";
                assert!(started.elapsed() < Duration::from_secs(30), "{register:?} {why}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Ends the load; every register has been checked by then.
    pub async fn end(self) -> Vec<Arc<Register>> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("every check holds");
        }
        self.registers
    }
}
