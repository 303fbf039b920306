//! The load of `bench --check`: gets, puts, deletes and conditional writes on few keys, all taken down, and
//! checked for linearizability afterwards.
//!
//! Each put writes a number of its own, in the first bytes of the value, so that a read tells which one it saw.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use serde_json::json;

use super::{Measured, Random, Shared};
use crate::cli::tool::Printer;
use crate::client::{Precondition, Record};
use crate::error::{Error, Happened, Reason, Result};
use crate::history::{self, Answer, Call, Condition, Recorder, Report};

/// Most calls of one history: it is kept in memory, some 100 bytes each.
pub(super) const CALLS_MAX: u64 = 10_000_000;

/// Steps of the search for one key; some seconds.
const BUDGET: u64 = 50_000_000;

/// Bytes of a value that tell it from all others.
pub(super) const VALUE_BYTES_MIN: u64 = 8;

/// What a value is taken for that has no number: no put's.
const NO_NUMBER: u64 = u64::MAX - 1;

/// One client of the load.
pub(super) struct Client<'a> {
    shared: &'a Shared,
    recorder: &'a Recorder,
    number: u32,
    /// Puts so far.
    puts: u64,
    /// The version that each key had when this client last heard of it.
    versions: BTreeMap<u64, u64>,
}

impl<'a> Client<'a> {
    pub(super) fn new(shared: &'a Shared, recorder: &'a Recorder, number: u32) -> Client<'a> {
        Client { shared, recorder, number, puts: 0, versions: BTreeMap::new() }
    }

    /// Makes one call, and takes down what became of it. A condition that does not hold is no failure.
    pub(super) async fn call(&mut self, random: &mut Random, measured: &mut Measured) -> Result<()> {
        let at = random.below(self.shared.keys);
        let key = format!("{}{at}", self.shared.prefix);
        let call = self.draw(at, random);
        let started = self.recorder.start(self.number, call);
        let began = Instant::now();
        let result = self.send(&key, call).await;
        let took = began.elapsed();
        self.recorder.end(&key, started, answer(call, &result));
        match &result {
            Ok(Answer::Found { version, .. } | Answer::Written { version, .. }) => {
                self.versions.insert(at, *version);
            }
            Ok(Answer::Refused { current_version }) => {
                self.versions.insert(at, *current_version);
            }
            Ok(_) => drop(self.versions.remove(&at)),
            Err(_) => {}
        }
        result.map(|_| match call {
            Call::Get => measured.gets.record(took),
            _ => measured.puts.record(took),
        })
    }

    fn draw(&mut self, key: u64, random: &mut Random) -> Call {
        if random.below(100) < self.shared.read_percent {
            return Call::Get;
        }
        let known = self.versions.get(&key).copied().filter(|version| *version > 0);
        let condition = known.map_or(Condition::Absent, Condition::Version);
        let kind = random.below(100);
        if kind < 15 {
            let condition = if kind < 5 && known.is_some() { condition } else { Condition::None };
            return Call::Delete { condition };
        }
        self.puts += 1;
        let value = u64::from(self.number) << 40 | self.puts;
        Call::Put { value, condition: if kind < 50 { condition } else { Condition::None } }
    }

    /// What it was told; a condition that does not hold is an answer.
    async fn send(&self, key: &str, call: Call) -> Result<Answer> {
        let client = &self.shared.client;
        let key = key.to_string();
        let answer = match call {
            Call::Get => client
                .get(key)
                .await
                .map(|record| record.map_or(Answer::Missing, |record| self.found(&record))),
            Call::Put { value, condition } => {
                let value = self.value(value);
                let written = client.put_if(key, value, precondition(condition)).await;
                written.map(|it| Answer::Written { version: it.version, revision: it.revision })
            }
            Call::Delete { condition } => {
                let deleted = client.delete_if(key, precondition(condition)).await;
                deleted.map(|it| Answer::Deleted { existed: it.existed, revision: it.revision })
            }
        };
        answer.or_else(|error| refused(&error).ok_or(error))
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

fn precondition(condition: Condition) -> Precondition {
    match condition {
        Condition::None => Precondition::None,
        Condition::Version(version) => Precondition::Version(version),
        Condition::Absent => Precondition::Absent,
    }
}

fn refused(error: &Error) -> Option<Answer> {
    if error.reason != Reason::PreconditionFailed {
        return None;
    }
    let current_version = error.metadata.get("current_version")?.parse().ok()?;
    Some(Answer::Refused { current_version })
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
