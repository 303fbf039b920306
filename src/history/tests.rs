//! Small histories by hand; random ones against a search that tries every order.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::model::State;
use super::search::{Verdict, search};
use super::*;

const BUDGET: u64 = 1_000_000;

fn operation(client: u32, times: (u64, u64), call: Call, answer: Answer) -> Operation {
    Operation { client, call, answer, invoked_ns: times.0, answered_ns: times.1 }
}

fn put(value: u64) -> Call {
    Call::Put { value, condition: Condition::None }
}

fn put_if(value: u64, condition: Condition) -> Call {
    Call::Put { value, condition }
}

const DELETE: Call = Call::Delete { condition: Condition::None };

fn written(version: u64, revision: u64) -> Answer {
    Answer::Written { version, revision }
}

fn found(value: u64, version: u64, revision: u64) -> Answer {
    Answer::Found { value, version, revision }
}

fn is_fine(operations: &[Operation]) -> bool {
    match search(operations, BUDGET) {
        Verdict::Linearizable => true,
        Verdict::Violated(_) => false,
        Verdict::Undecided => panic!("the budget is too small"),
    }
}

#[test]
fn what_one_after_the_other_may_answer() {
    let fine = [
        operation(1, (0, 1), Call::Get, Answer::Missing),
        operation(1, (2, 3), put(7), written(1, 5)),
        operation(2, (4, 5), Call::Get, found(7, 1, 5)),
        operation(1, (6, 7), put_if(8, Condition::Absent), Answer::Refused { current_version: 1 }),
        operation(1, (8, 9), put_if(9, Condition::Version(1)), written(2, 8)),
        operation(1, (10, 11), DELETE, Answer::Deleted { existed: true, revision: 9 }),
        operation(1, (12, 13), DELETE, Answer::Deleted { existed: false, revision: 10 }),
        operation(1, (14, 15), put(10), written(1, 11)),
    ];
    assert!(is_fine(&fine));
    let broken = |at: usize, answer: Answer| {
        let mut operations = fine.to_vec();
        operations[at].answer = answer;
        !is_fine(&operations)
    };
    assert!(broken(2, Answer::Missing), "a lost write");
    assert!(broken(2, found(9, 1, 5)), "a value from the future");
    assert!(broken(2, found(7, 2, 5)), "another version");
    assert!(broken(2, found(7, 1, 6)), "another revision");
    assert!(broken(3, written(2, 6)), "a condition that was ignored");
    assert!(broken(3, Answer::Refused { current_version: 2 }));
    assert!(broken(4, written(3, 8)), "one write too much");
    assert!(broken(4, written(2, 5)), "a revision that is no newer");
    assert!(broken(6, Answer::Deleted { existed: true, revision: 10 }));
    assert!(broken(7, written(3, 11)), "versions begin anew");
}

#[test]
fn what_overlaps_may_come_in_any_order() {
    let reads = |first: Answer, second: Answer| {
        is_fine(&[
            operation(1, (0, 1), put(1), written(1, 1)),
            operation(1, (2, 9), put(2), written(2, 2)),
            operation(2, (3, 4), Call::Get, first),
            operation(2, (5, 6), Call::Get, second),
        ])
    };
    assert!(reads(found(1, 1, 1), found(1, 1, 1)));
    assert!(reads(found(1, 1, 1), found(2, 2, 2)));
    assert!(reads(found(2, 2, 2), found(2, 2, 2)));
    assert!(!reads(found(2, 2, 2), found(1, 1, 1)), "back in time");
    // Of one moment: they may overlap.
    assert!(is_fine(&[
        operation(1, (0, 5), put(1), written(1, 1)),
        operation(2, (5, 6), Call::Get, Answer::Missing),
    ]));
}

#[test]
fn an_unknown_outcome_may_come_late_or_never() {
    let unknown = operation(1, (0, 1), put(1), Answer::Unknown);
    let ends = |rest: &[Operation]| is_fine(&[std::slice::from_ref(&unknown), rest].concat());
    assert!(ends(&[operation(2, (2, 3), Call::Get, Answer::Missing)]));
    assert!(ends(&[operation(2, (2, 3), Call::Get, found(1, 1, 9))]));
    let late = [
        operation(2, (2, 3), put(2), written(1, 1)),
        operation(2, (4, 5), Call::Get, found(2, 1, 1)),
        operation(2, (6, 7), Call::Get, found(1, 2, 2)),
    ];
    assert!(ends(&late), "long after");
    let twice =
        [operation(2, (8, 9), put(3), written(3, 3)), operation(2, (10, 11), Call::Get, found(1, 4, 4))];
    assert!(!ends(&[&late[..], &twice].concat()), "a write that was applied twice");
    assert!(ends(&[operation(2, (2, 3), put(2), written(2, 7))]), "only its version tells");
    assert!(!ends(&[operation(2, (2, 3), put(2), written(3, 7))]));
}

#[test]
fn many_unknown_outcomes_are_no_many_states() {
    let mut operations: Vec<Operation> = (0..60)
        .map(|at| operation(at, (u64::from(at), 0), put(1000 + u64::from(at)), Answer::Unknown))
        .collect();
    operations.push(operation(99, (100, 101), put(1), written(31, 50)));
    operations.push(operation(99, (102, 103), Call::Get, found(1, 31, 50)));
    assert_eq!(search(&operations, 100_000), Verdict::Linearizable);
    operations.push(operation(99, (104, 105), put(2), written(63, 60)));
    assert!(matches!(search(&operations, 1_000_000), Verdict::Violated(_)), "there are not as many");
    assert_eq!(search(&operations, 10), Verdict::Undecided);
}

/// Each can hide before any delete: without a trace, and so at little cost.
#[test]
fn writes_that_leave_no_trace_cost_little() {
    let mut operations = Vec::new();
    for at in 0..3 {
        let condition = Condition::Version(1 + 3 * at);
        operations.push(operation(50, (at, 0), Call::Delete { condition }, Answer::Unknown));
        operations.push(operation(51, (at, 0), put_if(900 + at, condition), Answer::Unknown));
        operations.push(operation(52, (at, 0), put(800 + at), Answer::Unknown));
    }
    for round in 0..500 {
        let (time, revision) = (100 + 40 * round, 10 * round);
        for version in 1..=8 {
            let answer = written(version, revision + version);
            operations.push(operation(1, (time + 2 * version, time + 2 * version + 1), put(version), answer));
        }
        let deleted = Answer::Deleted { existed: true, revision: revision + 9 };
        operations.push(operation(1, (time + 20, time + 21), DELETE, deleted));
    }
    assert_eq!(search(&operations, 2_000_000), Verdict::Linearizable);
}

#[test]
fn a_violation_says_what_and_why() {
    let operations = vec![
        operation(1, (1_000_000, 2_500_000), put(7), written(1, 5)),
        operation(3, (2_000_000, 0), put_if(8, Condition::Version(1)), Answer::Unknown),
        operation(2, (3_000_000, 4_000_000), Call::Get, Answer::Missing),
    ];
    let fine = vec![operation(1, (0, 1), Call::Get, Answer::Missing)];
    let report = check(&BTreeMap::from([("a".to_string(), fine), ("b".to_string(), operations)]), BUDGET);
    assert_eq!((report.keys, report.operations, report.unknown), (2, 4, 1));
    assert!(!report.is_linearizable() && report.undecided.is_empty());
    insta::assert_snapshot!(report.violations[0].text, @r#"
    key "b": nothing explains
      [3.000 - 4.000 ms] client 2: get -> not there
    it was, before that answer: a value that nobody read, version 1, revision 5
    answered before:
      [1.000 - 2.500 ms] client 1: put 7 -> done, version 1, revision 5
    under way at the time:
      [2.000 ms -] client 3: put 8 if version is 1 -> outcome unknown
    "#);
}

/// Every order of the operations that time allows, one after the other: slow, and surely right.
fn is_fine_by_trying_all(operations: &[Operation]) -> bool {
    fn some_order(operations: &[Operation], taken: u32, state: State) -> bool {
        let open = |at: usize| taken >> at & 1 == 0;
        let is_known = |at: usize| operations[at].answer != Answer::Unknown;
        if (0..operations.len()).all(|at| !open(at) || !is_known(at)) {
            return true;
        }
        (0..operations.len()).filter(|at| open(*at)).any(|at| {
            let one = &operations[at];
            let overtakes = |other: usize| {
                open(other) && is_known(other) && operations[other].answered_ns < one.invoked_ns
            };
            let next = state.after(one.call, one.answer);
            !(0..operations.len()).any(overtakes)
                && next.is_some_and(|next| some_order(operations, taken | 1 << at, next))
        })
    }
    some_order(operations, 0, State::default())
}

fn any_call() -> impl Strategy<Value = Call> {
    let condition = prop_oneof![
        3 => Just(Condition::None),
        1 => Just(Condition::Absent),
        2 => (1u64..3).prop_map(Condition::Version),
    ];
    prop_oneof![
        Just(Call::Get),
        condition.clone().prop_map(|condition| Call::Put { value: 0, condition }),
        condition.prop_map(|condition| Call::Delete { condition }),
    ]
}

/// What a store that never fails may have answered: each call takes effect somewhere between its two moments,
/// in the order of `effects`; some callers never hear of it.
fn real_history(calls: &[(Call, u64, u64, u64, bool)]) -> Vec<Operation> {
    let mut order: Vec<usize> = (0..calls.len()).collect();
    order.sort_by_key(|at| calls[*at].1 + calls[*at].2);
    let mut operations: Vec<Option<Operation>> = vec![None; calls.len()];
    let mut state = State::default();
    for (revision, at) in order.into_iter().enumerate() {
        let (call, invoked, until, more, is_lost) = calls[at];
        let call = match call {
            Call::Put { condition, .. } => Call::Put { value: at as u64 + 1, condition },
            other => other,
        };
        let version = state.record.map_or(0, |record| record.version);
        let revision = revision as u64 + 1;
        let candidates = [
            state.record.map_or(Answer::Missing, |record| {
                found(record.value, record.version, record.revision.unwrap())
            }),
            Answer::Refused { current_version: version },
            written(version + 1, revision),
            Answer::Deleted { existed: version > 0, revision },
        ];
        let fits = |answer: &&Answer| state.after(call, **answer).is_some();
        let answer = *candidates.iter().find(fits).unwrap();
        state = state.after(call, answer).unwrap();
        let answer = if is_lost && call != Call::Get { Answer::Unknown } else { answer };
        let times = (invoked, invoked + until + more);
        operations[at] = Some(operation(at as u32, times, call, answer));
    }
    operations.into_iter().map(Option::unwrap).collect()
}

fn any_calls(count: usize) -> impl Strategy<Value = Vec<(Call, u64, u64, u64, bool)>> {
    let one = (any_call(), 0..5 * count as u64, 0u64..10, 0u64..10, prop::bool::weighted(0.2));
    prop::collection::vec(one, 1..count)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn what_a_real_store_answers_is_fine(calls in any_calls(60)) {
        prop_assert!(is_fine(&real_history(&calls)));
    }

    #[test]
    fn the_search_agrees_with_trying_all_orders(
        calls in any_calls(8),
        at: prop::sample::Index,
        wrong in prop_oneof![
            Just(Answer::Missing),
            (0u64..8, 1u64..3, 0u64..8).prop_map(|(value, version, revision)| found(value, version, revision)),
            (1u64..4, 0u64..8).prop_map(|(version, revision)| written(version, revision)),
            (any::<bool>(), 0u64..8).prop_map(|(existed, revision)| Answer::Deleted { existed, revision }),
            (0u64..3).prop_map(|current_version| Answer::Refused { current_version }),
        ],
    ) {
        let mut operations = real_history(&calls);
        let at = at.index(operations.len());
        operations[at].answer = wrong;
        prop_assert_eq!(is_fine(&operations), is_fine_by_trying_all(&operations), "{:?}", operations);
    }
}
