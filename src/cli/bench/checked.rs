//! The load of `bench --check`: gets, puts, deletes and conditional writes on few keys, by themselves and several together,
//! and scans, all taken down, and checked for linearizability afterwards.
//!
//! The check is key by key: of a call on several keys, each has its part, which took effect at some moment of the call. That
//! those of one partition take effect at the same moment is not checked.
//!
//! Each put writes a number of its own, in the first bytes of the value, so that a read tells which one it saw.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use serde_json::json;

use super::report::{Kind, Measured};
use super::{Dice, Shared};
use crate::cli::load::key;
use crate::cli::tool::Printer;
use crate::client::{Deleted, Precondition, Record, ScanOptions, WriteOp, WriteOutcome, Written};
use crate::error::{Error, Happened, Reason, Result};
use crate::history::{self, Answer, Call, Condition, Recorder, Report, Started};

/// Most calls of one history: it is kept in memory, some 100 bytes for each and for each of its keys.
pub(super) const CALLS_MAX: u64 = 10_000_000;

/// Steps of the search for one key; some seconds.
const BUDGET: u64 = 50_000_000;

/// Bytes of a value that tell it from all others.
pub(super) const VALUE_BYTES_MIN: u64 = 8;

/// Of so many clients one makes only calls on several keys.
const ONE_IN: u32 = 8;

/// Keys of a call on several, at most.
const TOGETHER_MAX: u64 = 4;

/// A version that no key has.
const NO_VERSION: u64 = u64::MAX;

/// What a value is taken for that has no number: no put's.
const NO_NUMBER: u64 = u64::MAX - 1;

/// One client of the load.
pub(super) struct Client<'a> {
    shared: &'a Shared,
    /// What it makes its calls with.
    client: &'a crate::client::Client,
    recorder: &'a Recorder,
    number: u32,
    /// Of one batch: no more than fit into it.
    writes_max: u64,
    /// Puts so far.
    puts: u64,
    /// The version that each key had when this client last heard of it.
    versions: BTreeMap<u64, u64>,
}

impl<'a> Client<'a> {
    pub(super) fn new(shared: &'a Shared, recorder: &'a Recorder, number: u32) -> Client<'a> {
        let writes_max = shared.batch_max.min(TOGETHER_MAX);
        let client = if makes_many(number) { &shared.client_of_many } else { &shared.client };
        Client { shared, client, recorder, number, writes_max, puts: 0, versions: BTreeMap::new() }
    }

    /// Makes one call, and takes down what became of it on each of its keys. A condition that does not hold is no
    /// failure.
    pub(super) async fn call(&mut self, dice: &mut Dice, measured: &mut Measured) -> Result<()> {
        let kind = if makes_many(self.number) { dice.below(20) } else { dice.below(100) };
        match kind {
            0..10 => self.write_together(dice, measured).await,
            10..15 => self.read_together(dice, measured).await,
            15..20 => self.scan(dice, measured).await,
            _ => self.single(dice, measured).await,
        }
    }

    async fn single(&mut self, dice: &mut Dice, measured: &mut Measured) -> Result<()> {
        let is_get = dice.below(100) < self.shared.read_percent;
        let at = dice.below(self.shared.keys);
        let call = if is_get { Call::Get } else { self.draw_write(at, dice) };
        let asked = self.ask(at, call);
        let began = Instant::now();
        let result = self.send(&asked.key, call).await;
        let took = began.elapsed();
        let kind = if is_get { Kind::Get } else { Kind::Put };
        self.take_down(vec![(asked, result)])?;
        measured.record(kind, took, 1);
        Ok(())
    }

    async fn write_together(&mut self, dice: &mut Dice, measured: &mut Measured) -> Result<()> {
        let numbers: Vec<u64> = self.together(dice, self.writes_max).collect();
        let calls: Vec<Call> = numbers.iter().map(|at| self.draw_write(*at, dice)).collect();
        let asked: Vec<Asked> = numbers.iter().zip(&calls).map(|(at, call)| self.ask(*at, *call)).collect();
        let ops: Vec<WriteOp> = asked.iter().filter_map(|one| self.op(one)).collect();
        let began = Instant::now();
        let outcomes = self.client.batch_write(&ops).await;
        let took = began.elapsed();
        let answered = |outcome| match outcome {
            Ok(WriteOutcome::Put(it)) => Ok(written(it)),
            Ok(WriteOutcome::Deleted(it)) => Ok(deleted(it)),
            Err(error) => refused(&error).ok_or(error),
        };
        self.take_down(each(asked, outcomes, answered))?;
        measured.record(Kind::Batch, took, ops.len() as u64);
        Ok(())
    }

    async fn read_together(&mut self, dice: &mut Dice, measured: &mut Measured) -> Result<()> {
        let asked: Vec<Asked> = self.together(dice, TOGETHER_MAX).map(|at| self.ask(at, Call::Get)).collect();
        let keys: Vec<Bytes> = asked.iter().map(|one| one.key.clone().into()).collect();
        let began = Instant::now();
        let found = self.client.batch_get(&keys).await;
        let took = began.elapsed();
        let read = each(asked, found, |found| found.map(|record| self.read(record.as_ref())));
        self.take_down(read)?;
        measured.record(Kind::BatchGet, took, keys.len() as u64);
        Ok(())
    }

    /// Of a few keys that follow on each other: what is not found is not there.
    async fn scan(&mut self, dice: &mut Dice, measured: &mut Measured) -> Result<()> {
        let first = dice.below(self.shared.keys);
        let end = (first + TOGETHER_MAX).min(self.shared.keys);
        let asked: Vec<Asked> = (first..end).map(|at| self.ask(at, Call::Get)).collect();
        let bound = |at| Bytes::from(key(&self.shared.prefix, at));
        let options = ScanOptions { start: bound(first), end: bound(end), ..ScanOptions::default() };
        let mut records: Vec<Record> = Vec::new();
        let began = Instant::now();
        let scanned = self.client.scan(options).try_for_each(|record| {
            records.push(record);
            std::future::ready(Ok(()))
        });
        let ended = scanned.await;
        let took = began.elapsed();
        let answers = self.scanned(asked, &records, &ended);
        self.take_down(answers)?;
        measured.record(Kind::Scan, took, end - first);
        Ok(())
    }

    /// What came before a failure counts; that something did not come says nothing then. Keys out of order, twice, or that
    /// nobody asked for are what no store answers.
    fn scanned(
        &self,
        asked: Vec<Asked>,
        records: &[Record],
        ended: &Result<()>,
    ) -> Vec<(Asked, Result<Answer>)> {
        let is_asked = |record: &Record| asked.iter().any(|one| record.key == one.key.as_bytes());
        let is_right = records.is_sorted_by(|one, next| one.key < next.key) && records.iter().all(is_asked);
        let of = |one: Asked| {
            let record = records.iter().find(|record| record.key == one.key.as_bytes());
            let answer = match (record, ended) {
                _ if !is_right => Ok(Answer::Found { value: NO_NUMBER, version: 0, revision: 0 }),
                (None, Err(error)) => Err(error.clone()),
                (record, _) => Ok(self.read(record)),
            };
            (one, answer)
        };
        asked.into_iter().map(of).collect()
    }

    /// Some keys for one call, none twice.
    fn together(&self, dice: &mut Dice, most: u64) -> impl Iterator<Item = u64> + use<> {
        let keys = self.shared.keys;
        let first = dice.below(keys);
        let count = (2 + dice.below(TOGETHER_MAX - 1)).min(keys).min(most);
        (first..first + count).map(move |at| at % keys)
    }

    fn ask(&self, at: u64, call: Call) -> Asked {
        let started = self.recorder.start(self.number, call);
        Asked { at, key: key(&self.shared.prefix, at), call, started }
    }

    /// Returns the first failure.
    fn take_down(&mut self, answers: Vec<(Asked, Result<Answer>)>) -> Result<()> {
        let mut failed = Ok(());
        for (Asked { at, key, call, started }, result) in answers {
            self.recorder.end(&key, started, answer(call, &result));
            match result {
                Ok(Answer::Found { version, .. } | Answer::Written { version, .. }) => {
                    self.versions.insert(at, version);
                }
                Ok(Answer::Refused { current_version }) => {
                    self.versions.insert(at, current_version);
                }
                Ok(_) => drop(self.versions.remove(&at)),
                Err(error) => failed = failed.and(Err(error)),
            }
        }
        failed
    }

    fn draw_write(&mut self, key: u64, dice: &mut Dice) -> Call {
        let known = self.versions.get(&key).copied().filter(|version| *version > 0);
        let condition = known.map_or(Condition::Absent, Condition::Version);
        let kind = dice.below(100);
        if kind < 15 {
            let condition = if kind < 5 && known.is_some() { condition } else { Condition::None };
            return Call::Delete { condition };
        }
        self.puts += 1;
        let value = u64::from(self.number) << 40 | self.puts;
        Call::Put { value, condition: if kind < 50 { condition } else { Condition::None } }
    }

    /// A write as a batch has it.
    fn op(&self, asked: &Asked) -> Option<WriteOp> {
        let key = asked.key.clone().into();
        match asked.call {
            Call::Get => None,
            Call::Put { value, condition } => {
                Some(WriteOp::Put { key, value: self.value(value), precondition: precondition(condition) })
            }
            Call::Delete { condition } => {
                Some(WriteOp::Delete { key, precondition: precondition(condition) })
            }
        }
    }

    /// What it was told; a condition that does not hold is an answer.
    async fn send(&self, key: &str, call: Call) -> Result<Answer> {
        let client = self.client;
        let key = key.to_string();
        let answer = match call {
            Call::Get => client.get(key).await.map(|record| self.read(record.as_ref())),
            Call::Put { value, condition } => {
                client.put_if(key, self.value(value), precondition(condition)).await.map(written)
            }
            Call::Delete { condition } => client.delete_if(key, precondition(condition)).await.map(deleted),
        };
        answer.or_else(|error| refused(&error).ok_or(error))
    }

    fn read(&self, record: Option<&Record>) -> Answer {
        record.map_or(Answer::Missing, |record| self.found(record))
    }

    /// All of it follows from the number: one that is mixed from two, or cut short, is no put's.
    fn value(&self, number: u64) -> Bytes {
        let mut value = self.shared.values.pick(number).to_vec();
        value[..8].copy_from_slice(&number.to_le_bytes());
        value.into()
    }

    fn found(&self, record: &Record) -> Answer {
        let number = record.value.first_chunk().map_or(NO_NUMBER, |bytes| u64::from_le_bytes(*bytes));
        let is_whole = number < NO_NUMBER && record.value == self.value(number);
        let value = if is_whole { number } else { NO_NUMBER };
        Answer::Found { value, version: record.version, revision: record.mod_revision }
    }
}

/// Whether a client makes only calls on several keys, with a table of leaders that no call on one key mends.
fn makes_many(number: u32) -> bool {
    number % ONE_IN == ONE_IN - 1
}

/// A call on one key, under way.
struct Asked {
    at: u64,
    key: String,
    call: Call,
    started: Started,
}

/// What each key's part of a call came to: if the call failed, the same for all.
fn each<T>(
    asked: Vec<Asked>,
    outcomes: Result<Vec<Result<T>>>,
    answer: impl Fn(Result<T>) -> Result<Answer>,
) -> Vec<(Asked, Result<Answer>)> {
    match outcomes {
        Ok(outcomes) => asked.into_iter().zip(outcomes.into_iter().map(answer)).collect(),
        Err(error) => asked.into_iter().map(|one| (one, Err(error.clone()))).collect(),
    }
}

fn written(it: Written) -> Answer {
    Answer::Written { version: it.version, revision: it.revision }
}

fn deleted(it: Deleted) -> Answer {
    Answer::Deleted { existed: it.existed, revision: it.revision }
}

fn precondition(condition: Condition) -> Precondition {
    match condition {
        Condition::None => Precondition::None,
        Condition::Version(version) => Precondition::Version(version),
        Condition::Absent => Precondition::Absent,
    }
}

/// A condition that did not hold, with the version that was found. Without one, it is what no store answers.
fn refused(error: &Error) -> Option<Answer> {
    if error.reason != Reason::PreconditionFailed {
        return None;
    }
    let told = error.metadata.get("current_version").and_then(|version| version.parse().ok());
    Some(Answer::Refused { current_version: told.unwrap_or(NO_VERSION) })
}

/// What is known of the call. `None`: it surely had no effect.
fn answer(call: Call, result: &Result<Answer>) -> Option<Answer> {
    match result {
        Ok(answer) => Some(*answer),
        Err(error) if error.reason.row().happened == Happened::Unknown && call != Call::Get => {
            Some(Answer::Unknown)
        }
        Err(_) => None,
    }
}

/// Checks what was taken down.
pub(super) fn check(recorder: Recorder, printer: &mut Printer) -> Report {
    let history = recorder.operations();
    let operations: usize = history.values().map(Vec::len).sum();
    printer.progress(&format!("checking {operations} operations"));
    let report = history::check(&history, BUDGET);
    printer.progress("");
    report
}

/// Says what was found, but for [`to_json`].
pub(super) fn tell(report: &Report, printer: &mut Printer) {
    for violation in &report.violations {
        printer.say(violation.text.trim_end());
    }
    let looked_at = format!(
        "{} operations on {} keys, {} of unknown outcome",
        report.operations, report.keys, report.unknown
    );
    if !report.violations.is_empty() {
        printer.say(&format!("NOT linearizable: {looked_at}; {} keys are wrong", report.violations.len()));
    } else if !report.undecided.is_empty() {
        printer.say(&format!(
            "no verdict on {}: too much was under way at once; try fewer clients or more keys ({looked_at})",
            report.undecided.join(", ")
        ));
    } else {
        printer.say(&format!("linearizable: {looked_at}"));
    }
}

pub(super) fn to_json(report: &Report) -> serde_json::Value {
    json!({
        "linearizable": report.is_linearizable(),
        "operations": report.operations,
        "keys": report.keys,
        "unknown": report.unknown,
        "undecided": report.undecided,
        "violations": report.violations.iter().map(|one| json!({"key": one.key, "text": one.text})).collect::<Vec<_>>(),
    })
}
