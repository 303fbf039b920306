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
//! earlier can be put wherever a later one can. And of two states that differ only in which of them have taken
//! effect, the one in which fewer have is enough.

use std::collections::{BTreeMap, HashMap, HashSet};

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
    /// The operations under way that have taken effect in it and will be answered, sorted.
    done: Vec<u32>,
    /// Those that have taken effect and will not be answered, sorted.
    spent: Vec<u32>,
}

impl Candidate {
    fn has(&self, id: u32) -> bool {
        self.done.binary_search(&id).is_ok() || self.spent.binary_search(&id).is_ok()
    }

    /// The same in another state, after an operation has taken effect.
    fn after(&self, state: State, id: u32, is_unknown: bool) -> Candidate {
        let Candidate { mut done, mut spent, .. } = self.clone();
        let taken = if is_unknown { &mut spent } else { &mut done };
        if let Err(at) = taken.binary_search(&id) {
            taken.insert(at, id);
        }
        Candidate { state, done, spent }
    }
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
            [Candidate { state: State::default(), done: Vec::new(), spent: Vec::new() }].into();
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
        let mut next = Undominated::default();
        let mut seen = Undominated::default();
        // By how many have been spent, so that those that do without come first.
        let mut open: BTreeMap<usize, Vec<Candidate>> = BTreeMap::new();
        for candidate in candidates {
            let candidate = self.with_reads(candidate.clone())?;
            if seen.add(&candidate) {
                open.entry(candidate.spent.len()).or_default().push(candidate);
            }
        }
        while let Some(mut least) = open.first_entry() {
            let Some(mut candidate) = least.get_mut().pop() else {
                least.remove();
                continue;
            };
            if let Ok(at) = candidate.done.binary_search(&id) {
                candidate.done.remove(at);
                next.add(&candidate);
                continue;
            }
            for other in self.may_follow(&candidate) {
                self.budget = self.budget.checked_sub(1)?;
                let answer = self.operations[other as usize].answer;
                let Some(state) = candidate.state.after(self.calls[other as usize], answer) else { continue };
                let following = candidate.after(state, other, answer == Answer::Unknown);
                let following = self.with_reads(following)?;
                if seen.add(&following) {
                    open.entry(following.spent.len()).or_default().push(following);
                }
            }
        }
        self.single.retain(|other| *other != id);
        Some(next.into_candidates())
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
        let is_open = |id: &&u32| !candidate.has(**id);
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

/// Candidates without those that can do no more than another one: the same state with the same operations done,
/// and of those that will never be answered, all that the other has spent are spent, too.
#[derive(Default)]
struct Undominated(HashMap<(State, Vec<u32>), Vec<Vec<u32>>>);

impl Undominated {
    /// False: another one can do as much.
    fn add(&mut self, candidate: &Candidate) -> bool {
        let is_part = |small: &[u32], large: &[u32]| small.iter().all(|id| large.binary_search(id).is_ok());
        let all = self.0.entry((candidate.state, candidate.done.clone())).or_default();
        if all.iter().any(|other| is_part(other, &candidate.spent)) {
            return false;
        }
        all.retain(|other| !is_part(&candidate.spent, other));
        all.push(candidate.spent.clone());
        true
    }

    fn into_candidates(self) -> HashSet<Candidate> {
        let mut candidates = HashSet::new();
        for ((state, done), all) in self.0 {
            candidates.extend(all.into_iter().map(|spent| Candidate { state, done: done.clone(), spent }));
        }
        candidates
    }
}
