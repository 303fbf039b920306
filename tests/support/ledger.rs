//! Writers that know what they were promised: each owns its keys, writes them one after another, and
//! remembers what each may be now. After a crash every key must be in one of its possible states.

#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rushkv::error::{Error, Happened, from_status};
use rushkv::proto::v1::kv_client::KvClient;
use rushkv::proto::v1::precondition::Condition;
use rushkv::proto::v1::{
    BatchWriteRequest, DeleteRequest, GetRequest, Precondition, PutRequest, WriteOperation, write_operation,
    write_outcome,
};
use tonic::transport::Channel;

/// What a key is: its version and value, or not there.
type State = Option<(u64, String)>;

/// One key, written by one task at a time.
#[derive(Debug, Clone)]
struct Key {
    name: String,
    /// Exactly one while nothing is in doubt.
    possible: Vec<State>,
}

/// A writer with its keys.
#[derive(Debug)]
pub struct Writer {
    id: usize,
    keys: Vec<Key>,
    /// Counts this writer's operations, so that no two values are the same.
    counter: u64,
    random: u64,
    pub acknowledged: Arc<AtomicU64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Put(String),
    PutIfVersion(u64, String),
    PutIfAbsent(String),
    Delete,
    DeleteIfVersion(u64),
}

impl Step {
    /// What the key is after the step has taken place on `state`; `None` if its precondition fails.
    fn on(&self, state: &State) -> Option<State> {
        let version = state.as_ref().map_or(0, |(version, _)| *version);
        match self {
            Step::Put(value) => Some(Some((version + 1, value.clone()))),
            Step::PutIfVersion(wanted, value) => {
                (version == *wanted).then(|| Some((version + 1, value.clone())))
            }
            Step::PutIfAbsent(value) => (version == 0).then(|| Some((1, value.clone()))),
            Step::Delete => Some(None),
            Step::DeleteIfVersion(wanted) => (version == *wanted).then_some(None),
        }
    }

    fn operation(&self, key: &str) -> write_operation::Operation {
        let precondition = match self {
            Step::PutIfVersion(version, _) | Step::DeleteIfVersion(version) => {
                Some(Condition::Version(*version))
            }
            Step::PutIfAbsent(_) => Some(Condition::Absent(true)),
            Step::Put(_) | Step::Delete => None,
        };
        let precondition = precondition.map(|condition| Precondition { condition: Some(condition) });
        let key = key.to_string().into();
        match self {
            Step::Put(value) | Step::PutIfVersion(_, value) | Step::PutIfAbsent(value) => {
                write_operation::Operation::Put(PutRequest { key, value: value.clone().into(), precondition })
            }
            Step::Delete | Step::DeleteIfVersion(_) => {
                write_operation::Operation::Delete(DeleteRequest { key, precondition })
            }
        }
    }
}

impl Writer {
    pub fn new(id: usize, keys: usize, acknowledged: Arc<AtomicU64>) -> Writer {
        let keys = (0..keys).map(|at| Key { name: format!("w{id}-k{at}"), possible: vec![None] }).collect();
        Writer { id, keys, counter: 0, random: 0x9e37_79b9_7f4a_7c15 ^ (id as u64 + 1), acknowledged }
    }

    /// xorshift: repeatable, and good enough to choose operations.
    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn step(&mut self, key: usize) -> Step {
        self.counter += 1;
        let value = format!("w{}-{}", self.id, self.counter);
        let version = self.keys[key].possible[0].as_ref().map_or(0, |(version, _)| *version);
        match (self.random(10), version) {
            (0, _) => Step::Delete,
            (1, 1..) => Step::DeleteIfVersion(version),
            (2 | 3, 1..) => Step::PutIfVersion(version, value),
            (2 | 3, 0) => Step::PutIfAbsent(value),
            // Sometimes one that must fail.
            (4, _) => Step::PutIfVersion(version + 7, value),
            _ => Step::Put(value),
        }
    }

    /// Writes until `stop`, or until an answer says that the outcome is unknown or the node is gone.
    pub async fn run(&mut self, channel: Channel, stop: Arc<AtomicBool>) {
        let mut client = KvClient::new(channel);
        while !stop.load(Ordering::Relaxed) {
            let done = match self.random(5) {
                0 => self.write_batch(&mut client).await,
                _ => self.write_one(&mut client).await,
            };
            if !done {
                return;
            }
        }
    }

    async fn write_one(&mut self, client: &mut KvClient<Channel>) -> bool {
        let key = self.random(self.keys.len() as u64) as usize;
        let step = self.step(key);
        let name = self.keys[key].name.clone();
        let answer = match step.operation(&name) {
            write_operation::Operation::Put(put) => client.put(put).await.map(|answer| {
                let answer = answer.into_inner();
                Some(answer.version)
            }),
            write_operation::Operation::Delete(delete) => client.delete(delete).await.map(|_| None),
        };
        let error = answer.as_ref().err().map(|status| from_status(status, Happened::Unknown));
        self.learn(key, &step, answer.ok(), error.as_ref())
    }

    async fn write_batch(&mut self, client: &mut KvClient<Channel>) -> bool {
        let steps: Vec<Step> = (0..self.keys.len()).map(|key| self.step(key)).collect();
        let operations = steps
            .iter()
            .zip(&self.keys)
            .map(|(step, key)| WriteOperation { operation: Some(step.operation(&key.name)) })
            .collect();
        let answer = client.batch_write(BatchWriteRequest { operations }).await;
        let mut go_on = true;
        match answer {
            Ok(answer) => {
                let outcomes = answer.into_inner().outcomes;
                assert_eq!(outcomes.len(), steps.len());
                for (key, (step, outcome)) in steps.iter().zip(outcomes).enumerate() {
                    let (version, error) = match outcome.outcome.expect("every outcome is set") {
                        write_outcome::Outcome::Put(put) => (Some(Some(put.version)), None),
                        write_outcome::Outcome::Delete(_) => (Some(None), None),
                        write_outcome::Outcome::Error(error) => {
                            let reason =
                                rushkv::error::Reason::from_name(&error.reason).expect("a known reason");
                            (None, Some(Error::new(reason, error.message)))
                        }
                    };
                    go_on &= self.learn(key, step, version, error.as_ref());
                }
            }
            Err(status) => {
                let error = from_status(&status, Happened::Unknown);
                for (key, step) in steps.iter().enumerate() {
                    go_on &= self.learn(key, step, None, Some(&error));
                }
            }
        }
        go_on
    }

    /// Takes in an answer: the version after a put, `None` after a delete, or an error. Returns whether
    /// to go on.
    fn learn(&mut self, key: usize, step: &Step, answer: Option<Option<u64>>, error: Option<&Error>) -> bool {
        let key = &mut self.keys[key];
        let [before] = &key.possible[..] else {
            panic!("{}: written while in doubt", key.name);
        };
        let after = step.on(before);
        match (answer, error) {
            (Some(version), _) => {
                let after = after.unwrap_or_else(|| panic!("{}: {step:?} succeeded on {before:?}", key.name));
                assert_eq!(version, after.as_ref().map(|(version, _)| *version), "{}: {step:?}", key.name);
                key.possible = vec![after];
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
                true
            }
            (None, Some(error)) if error.reason == rushkv::error::Reason::PreconditionFailed => {
                assert_eq!(after, None, "{}: {step:?} was refused on {before:?}", key.name);
                true
            }
            (None, Some(error)) if error.happened() == Happened::No => false,
            (None, _) => {
                if let Some(after) = after {
                    key.possible.push(after);
                }
                false
            }
        }
    }

    /// Reads every key; each must be in a possible state, which is then the only one.
    pub async fn verify(&mut self, channel: Channel) {
        let mut client = KvClient::new(channel);
        for key in &mut self.keys {
            let request = GetRequest { key: key.name.clone().into(), consistency: 0 };
            let answer = tokio::time::timeout(Duration::from_secs(20), client.get(request)).await;
            let answer = answer.expect("a read is answered in time").expect("a read succeeds").into_inner();
            let state: State = answer.record.map(|record| {
                (record.version, String::from_utf8(record.value.to_vec()).expect("values are text"))
            });
            assert!(
                key.possible.contains(&state),
                "{} is {state:?}, and may only be one of {:?}",
                key.name,
                key.possible
            );
            key.possible = vec![state];
        }
    }
}

/// Runs every writer until `stop`; gives them back.
pub async fn run_all(writers: Vec<Writer>, channel: Channel, stop: Arc<AtomicBool>) -> Vec<Writer> {
    let tasks = writers.into_iter().map(|mut writer| {
        let (channel, stop) = (channel.clone(), stop.clone());
        tokio::spawn(async move {
            writer.run(channel, stop).await;
            writer
        })
    });
    let mut back = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        back.push(task.await.expect("no writer panics"));
    }
    back
}

/// Waits until the load is under way: more was acknowledged than `before`.
pub async fn under_way(acknowledged: &AtomicU64, before: u64) {
    let started = std::time::Instant::now();
    while acknowledged.load(Ordering::Relaxed) <= before {
        assert!(started.elapsed() < Duration::from_secs(30), "nothing is written");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub async fn verify_all(writers: &mut [Writer], channel: &Channel) {
    for writer in writers {
        writer.verify(channel.clone()).await;
    }
}
