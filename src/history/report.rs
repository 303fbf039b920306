//! The verdict over a whole history, and what a violation looks like to who has to find its cause.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Operation;
use super::model::{Answer, Call, Condition, State, UNREAD};
use super::search::{Unexplained, Verdict, search};

/// Operations that a violation shows from before the one that can't be explained.
const SHOWN_BEFORE: usize = 12;

/// What [`check`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    pub keys: usize,
    /// All that were looked at.
    pub operations: usize,
    /// Writes among them whose outcome nobody knows.
    pub unknown: usize,
    pub violations: Vec<Violation>,
    /// Keys whose budget was spent before there was a verdict.
    pub undecided: Vec<String>,
}

impl Report {
    /// Whether every key was looked at to the end, and none is wrong.
    pub fn is_linearizable(&self) -> bool {
        self.violations.is_empty() && self.undecided.is_empty()
    }
}

/// A key whose answers no order of its operations explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub key: String,
    /// The first answer that can't be explained, what the key may have been, and what happened before: for
    /// people, in several lines.
    pub text: String,
}

/// Checks each key by itself. `budget` bounds the work for one key, in steps of the search: some ten million
/// a second.
pub fn check(history: &BTreeMap<String, Vec<Operation>>, budget: u64) -> Report {
    let mut report = Report { keys: history.len(), ..Report::default() };
    for (key, operations) in history {
        report.operations += operations.len();
        report.unknown += operations.iter().filter(|one| one.answer == Answer::Unknown).count();
        match search(operations, budget) {
            Verdict::Linearizable => {}
            Verdict::Undecided => report.undecided.push(key.clone()),
            Verdict::Violated(found) => {
                let text = describe(key, operations, &found);
                report.violations.push(Violation { key: key.clone(), text });
            }
        }
    }
    report
}

fn describe(key: &str, operations: &[Operation], found: &Unexplained) -> String {
    let culprit = &operations[found.operation];
    let mut text = format!("key {key:?}: nothing explains\n  {}\n", line(culprit));
    let possible: Vec<String> = found.possible.iter().map(show).collect();
    let _ = writeln!(text, "it was, before that answer: {}", possible.join("; or "));
    let mut before: Vec<&Operation> = (operations.iter())
        .filter(|one| one.answer != Answer::Unknown && one.answered_ns <= culprit.answered_ns)
        .filter(|one| *one != culprit)
        .collect();
    before.sort_unstable_by_key(|one| one.answered_ns);
    let _ = writeln!(text, "answered before:");
    for one in &before[before.len().saturating_sub(SHOWN_BEFORE)..] {
        let _ = writeln!(text, "  {}", line(one));
    }
    if !found.under_way.is_empty() {
        let _ = writeln!(text, "under way at the time:");
    }
    for index in found.under_way.iter().rev().take(SHOWN_BEFORE) {
        let _ = writeln!(text, "  {}", line(&operations[*index]));
    }
    text
}

fn line(operation: &Operation) -> String {
    let ms = |ns: u64| ns as f64 / 1e6;
    let times = match operation.answer {
        Answer::Unknown => format!("{:.3} ms -", ms(operation.invoked_ns)),
        _ => format!("{:.3} - {:.3} ms", ms(operation.invoked_ns), ms(operation.answered_ns)),
    };
    let condition = |condition: Condition| match condition {
        Condition::None => String::new(),
        Condition::Version(version) => format!(" if version is {version}"),
        Condition::Absent => " if absent".to_string(),
    };
    let call = match operation.call {
        Call::Get => "get".to_string(),
        Call::Put { value, condition: only } => format!("put {value}{}", condition(only)),
        Call::Delete { condition: only } => format!("delete{}", condition(only)),
    };
    let answer = match operation.answer {
        Answer::Found { value, version, revision } => {
            format!("{value}, version {version}, revision {revision}")
        }
        Answer::Missing => "not there".to_string(),
        Answer::Written { version, revision } => format!("done, version {version}, revision {revision}"),
        Answer::Deleted { existed: true, revision } => format!("done, revision {revision}"),
        Answer::Deleted { existed: false, revision } => format!("there was nothing, revision {revision}"),
        Answer::Refused { current_version: 0 } => "refused: not there".to_string(),
        Answer::Refused { current_version } => format!("refused: version {current_version}"),
        Answer::Unknown => "outcome unknown".to_string(),
    };
    format!("[{times}] client {}: {call} -> {answer}", operation.client)
}

fn show(state: &State) -> String {
    match state.record {
        None => "not there".to_string(),
        Some(record) => {
            let value = match record.value {
                UNREAD => "a value that nobody read".to_string(),
                value => value.to_string(),
            };
            let revision = record.revision.map_or(String::new(), |revision| format!(", revision {revision}"));
            format!("{value}, version {}{revision}", record.version)
        }
    }
}
