//! Whether the operations of one key have an order that explains every answer.
//!
//! After Wing and Gong (1993) and Lowe (2017, "just-in-time linearization"): the history is walked through in
//! time, with all the states that the key may be in by then, each with the operations under way that have
//! taken effect in it already. When an operation is answered, it must have; a state in which it can't is
//! dropped. If none is left, no order explains that answer.
//!
//! A read, or a write that was refused, is put where it fits first: it changes nothing that could be in the
//! way later.
//!
//! An operation whose outcome is unknown stays under way for ever, and need not take effect. Many of them
//! would make many states; those that nobody can tell apart (writes of values that nobody read, deletes, each
//! with equal conditions) are therefore tried in the order of their invocation only: one that was invoked
//! earlier can be put wherever a later one can.

use std::collections::{BTreeMap, HashSet};

use super::Operation;
use super::model::{Answer, Call, Condition, State, UNREAD};

/// What was found of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Linearizable,
    Violated(Unexplained),
    /// Nothing was found within the budget.
    Undecided,
}

/// The first answer that no order explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unexplained {
    /// Its index.
    pub operation: usize,
    /// What the key may have been just before it, some of it.
    pub possible: Vec<State>,
    /// Operations that were under way then, by index.
    pub under_way: Vec<usize>,
}

/// Most possible states that a verdict shows.
const SHOWN_MAX: usize = 8;

/// A state that the key may be in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Candidate {
    state: State,
    /// The operations under way that have taken effect in it, sorted.
    done: Vec<u32>,
}

/// Operations that nobody can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Alike {
    Put(Condition),
    Delete(Condition),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    // In this order if both are of one moment: they may have been under way at once.
    Invoked(usize),
    Answered(usize),
}

/// Searches within `budget`, counted in calls of the model.
pub(super) fn search(operations: &[Operation], budget: u64) -> Verdict {
    Search::new(operations, budget).run()
}

struct Search<'a> {
    operations: &'a [Operation],
    calls: Vec<Call>,
    /// Under way: everybody by itself, and those that are alike, in the order of their invocation.
    single: Vec<u32>,
    alike: BTreeMap<Alike, Vec<u32>>,
    budget: u64,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation], budget: u64) -> Search<'a> {
        let read: HashSet<u64> = (operations.iter())
            .filter_map(|operation| match operation.answer {
                Answer::Found { value, .. } => Some(value),
                _ => None,
            })
            .collect();
        let calls = (operations.iter())
            .map(|operation| match operation.call {
                Call::Put { value, condition } if !read.contains(&value) => {
                    Call::Put { value: UNREAD, condition }
                }
                call => call,
            })
            .collect();
        Search { operations, calls, single: Vec::new(), alike: BTreeMap::new(), budget }
    }

    fn run(mut self) -> Verdict {
        let mut events: Vec<(u64, Event)> = Vec::with_capacity(2 * self.operations.len());
        for (index, operation) in self.operations.iter().enumerate() {
            events.push((operation.invoked_ns, Event::Invoked(index)));
            if operation.answer != Answer::Unknown {
                events.push((operation.answered_ns, Event::Answered(index)));
            }
        }
        events.sort_unstable();
        let mut candidates: HashSet<Candidate> =
            [Candidate { state: State::default(), done: Vec::new() }].into();
        for (_, event) in events {
            match event {
                Event::Invoked(index) => self.invoked(index),
                Event::Answered(index) => {
                    let Some(next) = self.answered(index, &candidates) else { return Verdict::Undecided };
                    if next.is_empty() {
                        return Verdict::Violated(self.unexplained(index, &candidates));
                    }
                    candidates = next;
                }
            }
        }
        Verdict::Linearizable
    }

    fn invoked(&mut self, index: usize) {
        let id = u32::try_from(index).expect("a history has fewer than 4 billion operations");
        let is_unknown = self.operations[index].answer == Answer::Unknown;
        match self.calls[index] {
            Call::Put { value: UNREAD, condition } if is_unknown => {
                self.alike.entry(Alike::Put(condition)).or_default().push(id);
            }
            Call::Delete { condition } if is_unknown => {
                self.alike.entry(Alike::Delete(condition)).or_default().push(id);
            }
            _ => self.single.push(id),
        }
    }

    /// The candidates in which the operation has taken effect; `None`: the budget is spent.
    fn answered(&mut self, index: usize, candidates: &HashSet<Candidate>) -> Option<HashSet<Candidate>> {
        let id = u32::try_from(index).expect("a history has fewer than 4 billion operations");
        let mut next = HashSet::new();
        let mut seen: HashSet<Candidate> = HashSet::new();
        let mut open: Vec<Candidate> = Vec::new();
        for candidate in candidates {
            let candidate = self.with_reads(candidate.clone())?;
            if seen.insert(candidate.clone()) {
                open.push(candidate);
            }
        }
        while let Some(candidate) = open.pop() {
            if let Ok(at) = candidate.done.binary_search(&id) {
                let mut done = candidate.done;
                done.remove(at);
                next.insert(Candidate { state: candidate.state, done });
                continue;
            }
            for other in self.may_follow(&candidate) {
                self.budget = self.budget.checked_sub(1)?;
                let answer = self.operations[other as usize].answer;
                let Some(state) = candidate.state.after(self.calls[other as usize], answer) else { continue };
                let mut done = candidate.done.clone();
                let at = done.binary_search(&other).expect_err("it has not taken effect");
                done.insert(at, other);
                let following = self.with_reads(Candidate { state, done })?;
                if seen.insert(following.clone()) {
                    open.push(following);
                }
            }
        }
        self.single.retain(|other| *other != id);
        Some(next)
    }

    /// The same candidate, with all that changes nothing and fits now.
    fn with_reads(&mut self, mut candidate: Candidate) -> Option<Candidate> {
        for id in &self.single {
            let operation = &self.operations[*id as usize];
            let is_read =
                matches!(operation.answer, Answer::Found { .. } | Answer::Missing | Answer::Refused { .. });
            if !is_read {
                continue;
            }
            let Err(at) = candidate.done.binary_search(id) else { continue };
            self.budget = self.budget.checked_sub(1)?;
            if let Some(state) = candidate.state.after(operation.call, operation.answer) {
                candidate.state = state;
                candidate.done.insert(at, *id);
            }
        }
        Some(candidate)
    }

    /// The operations under way that may take effect next: of those that are alike, only the first; of those
    /// whose revision is known, only that of the lowest, since none can come after a higher one.
    fn may_follow(&self, candidate: &Candidate) -> Vec<u32> {
        let is_open = |id: &&u32| candidate.done.binary_search(id).is_err();
        let alike = self.alike.values().filter_map(|ids| ids.iter().find(is_open)).copied();
        let revision = |id: &u32| match self.operations[*id as usize].answer {
            Answer::Written { revision, .. } | Answer::Deleted { revision, .. } => Some(revision),
            _ => None,
        };
        let open = self.single.iter().filter(is_open);
        let lowest = open.clone().filter_map(revision).min();
        let single = open.filter(|id| revision(id).is_none_or(|own| Some(own) == lowest)).copied();
        single.chain(alike).collect()
    }

    fn unexplained(&self, operation: usize, candidates: &HashSet<Candidate>) -> Unexplained {
        let mut possible: Vec<State> = Vec::new();
        for candidate in candidates {
            if !possible.contains(&candidate.state) && possible.len() < SHOWN_MAX {
                possible.push(candidate.state);
            }
        }
        possible.sort_unstable_by_key(|state| (state.revision, state.record.map(|record| record.version)));
        let alike = self.alike.values().flatten();
        let mut under_way: Vec<usize> = self.single.iter().chain(alike).map(|id| *id as usize).collect();
        // The operation itself was taken off.
        under_way.retain(|index| *index != operation);
        under_way.sort_unstable();
        Unexplained { operation, possible, under_way }
    }
}
