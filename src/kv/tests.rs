//! The data state machine against a model, and through redos.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::raft::testing::Bench;
use crate::storage::{Kind, Order};

fn put(key: &str, value: &str, precondition: Precondition) -> Op {
    Op::Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        precondition,
    }
}

fn delete(key: &str, precondition: Precondition) -> Op {
    Op::Delete { key: Bytes::copy_from_slice(key.as_bytes()), precondition }
}

fn run(bench: &mut Bench, machine: &mut Machine, index: u64, ops: &[Op]) -> Vec<Outcome> {
    decode_outcomes(bench.apply(machine, index, encode_command(ops))).unwrap().unwrap()
}

#[test]
fn versions_revisions_and_preconditions() {
    let mut bench = Bench::new(Kind::Memory);
    let mut machine = Machine::new(true);
    bench.load(&mut machine, false);
    let mut run = |index, op| run(&mut bench, &mut machine, index, &[op]).remove(0);
    use Precondition::{Absent, None, Version};
    assert_eq!(run(5, put("k", "a", None)), Outcome::Put { version: 1, revision: 5 });
    assert_eq!(run(6, put("k", "b", None)), Outcome::Put { version: 2, revision: 6 });
    assert_eq!(run(7, put("k", "c", Absent)), Outcome::PreconditionFailed { current_version: 2 });
    assert_eq!(run(8, put("k", "c", Version(1))), Outcome::PreconditionFailed { current_version: 2 });
    assert_eq!(run(9, put("k", "c", Version(2))), Outcome::Put { version: 3, revision: 9 });
    assert_eq!(run(10, delete("k", Version(1))), Outcome::PreconditionFailed { current_version: 3 });
    assert_eq!(run(11, delete("k", Version(3))), Outcome::Deleted { existed: true, revision: 11 });
    assert_eq!(run(12, delete("k", None)), Outcome::Deleted { existed: false, revision: 12 });
    assert_eq!(run(13, put("k", "d", Version(3))), Outcome::PreconditionFailed { current_version: 0 });
    assert_eq!(run(14, put("k", "e", Absent)), Outcome::Put { version: 1, revision: 14 });
    let record = get(&bench.space(), b"k").unwrap().unwrap();
    assert_eq!((record.version, record.create_revision, record.mod_revision), (1, 14, 14));
    assert_eq!(record.value, "e");
    assert_eq!((machine.totals().keys(), machine.totals().bytes()), (1, 2));
}

#[test]
fn operations_of_one_command_see_each_other() {
    let mut bench = Bench::new(Kind::Memory);
    let mut machine = Machine::new(false);
    bench.load(&mut machine, false);
    let ops = [
        put("k", "a", Precondition::Absent),
        put("k", "b", Precondition::Version(1)),
        delete("k", Precondition::Version(2)),
        put("k", "c", Precondition::Absent),
    ];
    let outcomes = run(&mut bench, &mut machine, 3, &ops);
    assert_eq!(outcomes[3], Outcome::Put { version: 1, revision: 3 });
    assert_eq!(get(&bench.space(), b"k").unwrap().unwrap().value, "c");
}

#[test]
fn tombstones_are_not_read_and_go_after_a_checkpoint() {
    let mut bench = Bench::new(Kind::Memory);
    let mut machine = Machine::new(false);
    bench.load(&mut machine, false);
    run(&mut bench, &mut machine, 1, &[put("a", "1", Precondition::None), put("b", "2", Precondition::None)]);
    run(&mut bench, &mut machine, 2, &[delete("a", Precondition::None)]);
    assert_eq!(get(&bench.space(), b"a").unwrap(), None);
    let keys = |bench: &Bench| {
        let view = bench.space().view().unwrap();
        let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        view.scan(all, Order::Ascending).count()
    };
    assert_eq!(keys(&bench), 3, "b, the tombstone of a, and the totals");
    crate::raft::Machine::checkpointed(&mut machine, 2);
    run(&mut bench, &mut machine, 3, &[put("b", "3", Precondition::None)]);
    assert_eq!(keys(&bench), 2);
    let view = bench.space().view().unwrap();
    let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
    assert_eq!(scan(&view, all, Order::Descending).count(), 1);
}

fn any_op() -> impl Strategy<Value = Op> {
    let key = prop_oneof![Just("a"), Just("b"), Just("c")];
    let precondition = prop_oneof![
        3 => Just(Precondition::None),
        2 => (1u64..4).prop_map(Precondition::Version),
        1 => Just(Precondition::Absent),
    ];
    (key, 0..100u32, precondition, any::<bool>()).prop_map(
        |(key, value, precondition, is_put)| match is_put {
            true => put(key, &value.to_string(), precondition),
            false => delete(key, precondition),
        },
    )
}

#[test]
fn a_sealed_partition_takes_no_writes_and_knows_whether_it_ever_did() {
    let mut bench = Bench::new(Kind::Memory);
    let mut machine = Machine::new(true);
    bench.load(&mut machine, false);
    let op = encode_command(&[put("a", "1", Precondition::None)]);
    let written = |answer: Bytes| decode_written(&answer).unwrap();
    run(&mut bench, &mut machine, 1, &[delete("a", Precondition::None)]);
    assert!(!written(bench.apply(&mut machine, 2, encode_seal())), "a delete of nothing is no write");
    assert_eq!(decode_outcomes(bench.apply(&mut machine, 3, op.clone())).unwrap(), None);
    // Also after a restart, clean or not.
    for redo in [false, true] {
        let mut machine = Machine::new(true);
        bench.load(&mut machine, redo);
        assert!(!written(bench.apply(&mut machine, 4, encode_seal())));
        assert_eq!(decode_outcomes(bench.apply(&mut machine, 5, op.clone())).unwrap(), None);
        assert!(!machine.totals().is_written());
    }
    let mut machine = Machine::new(true);
    bench.load(&mut machine, false);
    assert_eq!(get(&bench.space(), b"a").unwrap(), None);
    bench.apply(&mut machine, 6, encode_unseal());
    run(&mut bench, &mut machine, 7, &[put("a", "1", Precondition::None)]);
    run(&mut bench, &mut machine, 8, &[delete("a", Precondition::None)]);
    assert!(machine.totals().is_written());
    bench.load(&mut machine, false);
    assert!(machine.totals().is_written(), "what was deleted since counts");
    assert!(written(bench.apply(&mut machine, 9, encode_seal())));
}

/// Writes, mostly.
fn any_command() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        6 => proptest::collection::vec(any_op(), 1..4).prop_map(|ops| encode_command(&ops)),
        1 => Just(encode_seal()),
        1 => Just(encode_unseal()),
    ]
}

/// Every record of a space, by key.
fn records(bench: &Bench) -> BTreeMap<Bytes, Record> {
    let view = bench.space().view().unwrap();
    let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
    scan(&view, all, Order::Ascending).map(Result::unwrap).collect()
}

proptest! {
    /// An engine may come back with any mix of old and new states of each key; applying the log again
    /// from the last checkpoint must lead to exactly what it led to before.
    #[test]
    fn a_redo_over_any_mix_of_states_ends_the_same(
        commands in proptest::collection::vec(any_command(), 1..30),
        checkpoint in 0usize..30,
        survives in proptest::collection::vec(0usize..40, 4),
    ) {
        let mut bench = Bench::new(Kind::Memory);
        let mut machine = Machine::new(false);
        bench.load(&mut machine, false);
        let checkpoint = checkpoint.min(commands.len());
        let mut snapshots = Vec::new();
        for (at, command) in commands.iter().enumerate() {
            snapshots.push(bench.raw());
            bench.apply(&mut machine, at as u64 + 1, command.clone());
        }
        snapshots.push(bench.raw());
        let expected = records(&bench);
        let expected_totals = (machine.totals().keys(), machine.totals().bytes());

        // Each key comes back as of a moment of its own, at or after the checkpoint.
        let mut mixed = BTreeMap::new();
        for (key, moment) in [&b"ra"[..], b"rb", b"rc", b"s"].iter().zip(survives) {
            let moment = moment.clamp(checkpoint, commands.len());
            if let Some(value) = snapshots[moment].get(&key[..]) {
                mixed.insert(Bytes::copy_from_slice(&key[..]), value.clone());
            }
        }
        let mut bench = Bench::with(Kind::Memory, &mixed);
        let mut machine = Machine::new(false);
        bench.load(&mut machine, true);
        for (at, command) in commands.iter().enumerate().skip(checkpoint) {
            bench.apply(&mut machine, at as u64 + 1, command.clone());
        }
        prop_assert_eq!(records(&bench), expected);
        prop_assert_eq!((machine.totals().keys(), machine.totals().bytes()), expected_totals);
    }
}

#[test]
fn a_record_under_another_key_is_not_served() {
    let mut bench = Bench::new(Kind::Memory);
    let mut machine = Machine::new(true);
    bench.load(&mut machine, false);
    run(&mut bench, &mut machine, 1, &[put("a", "1", Precondition::None)]);
    let moved: BTreeMap<Bytes, Bytes> = bench
        .raw()
        .into_iter()
        .filter(|(key, _)| key == "ra")
        .map(|(_, value)| ("rb".into(), value))
        .collect();
    let bench = Bench::with(Kind::Memory, &moved);
    assert!(matches!(get(&bench.space(), b"b"), Err(ReadError::Malformed(_))));
}
