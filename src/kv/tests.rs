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
    match decode_answer(bench.apply(machine, index, encode_command(ops))).unwrap() {
        Answer::Outcomes(outcomes) => outcomes,
        refused => panic!("{refused:?}"),
    }
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
    assert_eq!(decode_answer(bench.apply(&mut machine, 3, op.clone())).unwrap(), Answer::Sealed);
    // Also after a restart, clean or not.
    for redo in [false, true] {
        let mut machine = Machine::new(true);
        bench.load(&mut machine, redo);
        assert!(!written(bench.apply(&mut machine, 4, encode_seal())));
        assert_eq!(decode_answer(bench.apply(&mut machine, 5, op.clone())).unwrap(), Answer::Sealed);
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
        1 => Just(encode_mark_command()),
        1 => Just(encode_verdict(&Verdict::NoMajority { mark: 1 })),
        1 => Just(encode_verdict(&Verdict::Majority { mark: 0, hash: 0 })),
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
        survives in proptest::collection::vec(0usize..40, 6),
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
        let marks = |bench: &Bench| -> Vec<Option<u128>> {
            (1..=commands.len() as u64).map(|index| hash_at(&bench.space(), index).unwrap()).collect()
        };
        let expected_marks = marks(&bench);
        let sums = |bench: &Bench| verify(&bench.space().view().unwrap(), |_| true).unwrap();
        let expected_sums = sums(&bench);

        // Each key comes back as of a moment of its own, at or after the checkpoint.
        let mut mixed = BTreeMap::new();
        for (key, moment) in [&b"ra"[..], b"rb", b"rc", b"s", b"h", b"m"].iter().zip(survives) {
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
        // Whoever leads next begins with an entry of his own.
        bench.apply(&mut machine, commands.len() as u64 + 1, encode_mark_command());
        prop_assert!(machine.totals().is_settled());
        prop_assert_eq!(sums(&bench), expected_sums);
        for (found, expected) in marks(&bench).into_iter().zip(expected_marks) {
            prop_assert!(found.is_none() || found == expected, "a redo noted {found:?}, not {expected:?}");
        }
    }

    /// The summary that writes keep up is that of what is there; over every engine the same.
    #[test]
    fn replicas_of_one_log_come_to_the_same(
        commands in proptest::collection::vec(any_command(), 1..30), restart in 0usize..30,
    ) {
        let mut found = Vec::new();
        for recovers_prefix in [true, false] {
            let mut bench = Bench::new(Kind::Memory);
            let mut machine = Machine::new(recovers_prefix);
            bench.load(&mut machine, false);
            for (at, command) in commands.iter().enumerate() {
                if at == restart {
                    machine = Machine::new(recovers_prefix);
                    bench.load(&mut machine, false);
                }
                bench.apply(&mut machine, at as u64 + 1, command.clone());
            }
            let sums = verify(&bench.space().view().unwrap(), |_| true).unwrap();
            let marked = decode_mark(bench.apply(&mut machine, 99, encode_mark_command())).unwrap();
            prop_assert_eq!(sums.unwrap_or_default().hash, marked.hash);
            prop_assert_eq!(hash_at(&bench.space(), 99).unwrap(), Some(marked.hash));
            found.push((sums, marked));
        }
        prop_assert_eq!(found[0], found[1]);
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

/// A machine with some records, and what its space holds.
fn some_records() -> (Bench, Machine) {
    let mut bench = Bench::new(Kind::Memory);
    let mut machine = Machine::new(true);
    bench.load(&mut machine, false);
    for (index, key) in (1..).zip(["a", "b", "c"]) {
        run(&mut bench, &mut machine, index, &[put(key, "value", Precondition::None)]);
    }
    (bench, machine)
}

fn check(bench: &Bench) -> Result<Option<Summary>, ReadError> {
    verify(&bench.space().view().unwrap(), |_| true)
}

#[test]
fn a_record_that_changed_is_found_whatever_its_checksum_says() {
    let (bench, _) = some_records();
    assert_eq!(check(&bench).unwrap().unwrap().keys, 3);
    let record = Record { value: "other".into(), version: 1, create_revision: 2, mod_revision: 2 };
    let forged = super::codec::encode_stored(b"b", &super::codec::Stored::Live(record));
    let mut changed = bench.raw();
    changed.insert("rb".into(), forged);
    let mut lost = bench.raw();
    lost.remove(&b"rb"[..]);
    for content in [changed, lost] {
        let error = check(&Bench::with(Kind::Memory, &content)).unwrap_err();
        assert!(matches!(error, ReadError::Malformed(_)), "{error}");
    }
    assert_eq!(verify(&bench.space().view().unwrap(), |_| false).unwrap(), None, "it was stopped");
}

#[test]
fn who_is_outvoted_is_damaged_and_nobody_else() {
    let (mut bench, mut machine) = some_records();
    let Mark { index, hash } = decode_mark(bench.apply(&mut machine, 4, encode_mark_command())).unwrap();
    assert_eq!(index, 4);
    let mut tell = |index, verdict| {
        let space = bench.space();
        let mut txn = crate::raft::testing::txn(&space);
        crate::raft::Machine::apply(&mut machine, index, encode_verdict(&verdict), &mut txn)
    };
    tell(5, Verdict::Majority { mark: 4, hash }).unwrap();
    // Of a mark that it did not note it knows nothing.
    tell(6, Verdict::Majority { mark: 3, hash: hash ^ 1 }).unwrap();
    let error = tell(7, Verdict::Majority { mark: 4, hash: hash ^ 1 }).unwrap_err();
    assert!(matches!(error, crate::raft::ApplyError::Malformed(_)), "{error}");
}

#[test]
fn a_halt_refuses_writes_until_the_replicas_agree() {
    let (mut bench, mut machine) = some_records();
    let op = encode_command(&[put("a", "later", Precondition::None)]);
    bench.apply(&mut machine, 4, encode_verdict(&Verdict::NoMajority { mark: 3 }));
    assert!(machine.totals().is_halted());
    assert_eq!(decode_answer(bench.apply(&mut machine, 5, op.clone())).unwrap(), Answer::Halted);
    let mut machine = Machine::new(true);
    bench.load(&mut machine, false);
    assert!(machine.totals().is_halted(), "also after a restart");
    let Mark { index, hash } = decode_mark(bench.apply(&mut machine, 6, encode_mark_command())).unwrap();
    bench.apply(&mut machine, 7, encode_verdict(&Verdict::Majority { mark: index, hash }));
    assert!(!machine.totals().is_halted());
    assert!(matches!(decode_answer(bench.apply(&mut machine, 8, op)).unwrap(), Answer::Outcomes(_)));
    assert_eq!(get(&bench.space(), b"a").unwrap().unwrap().mod_revision, 8);
}
