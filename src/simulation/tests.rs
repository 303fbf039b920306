//! Seeds that run, and bugs that they must catch.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::{Ended, run};
use crate::runtime::Planted;

/// Seeds of the short form.
const SEEDS: u64 = 20;

/// Seeds within which a planted bug must show.
const SEEDS_TO_CATCH: u64 = 30;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}: {value}")))
}

/// Runs a seed; a violation tells how to see it again.
fn replayable(seed: u64, loud: bool) -> Ended {
    let ran = catch_unwind(AssertUnwindSafe(|| run(seed, None, loud)));
    ran.unwrap_or_else(|violation| {
        let text =
            violation.downcast::<String>().map_or_else(|_| "a panic without words".into(), |text| *text);
        panic!(
            "seed {seed}: {text}\nTo see it again: RUSHKV_SIM_SEED={seed} cargo test --lib \
             simulation::tests::seeds -- --nocapture"
        )
    })
}

/// `RUSHKV_SIM_SEED` runs one seed and tells all that happens; `RUSHKV_SIM_SEEDS` says how many, from
/// `RUSHKV_SIM_FROM` on.
#[test]
fn seeds() {
    if let Some(seed) = number("RUSHKV_SIM_SEED") {
        let ended = replayable(seed, true);
        println!("{ended:?}");
        return;
    }
    let from = number("RUSHKV_SIM_FROM").unwrap_or(1);
    let count = number("RUSHKV_SIM_SEEDS").unwrap_or(SEEDS);
    let began = Instant::now();
    let mut sum = (0, 0, 0, 0, 0, 0);
    for seed in from..from + count {
        let ended = replayable(seed, false);
        println!("{seed}: {ended:?}, {:.1} s", began.elapsed().as_secs_f64());
        sum.0 += ended.operations;
        sum.1 += ended.faults;
        sum.2 += ended.steps;
        sum.3 += ended.leaders;
        sum.4 += ended.snapshots;
        sum.5 += ended.compared;
    }
    let (operations, faults, steps, leaders, snapshots, compared) = sum;
    println!(
        "{count} seeds in {:.1} s: {operations} operations, {faults} faults, {steps} steps of members, {leaders} \
         leaders, {snapshots} snapshots, {compared} states compared",
        began.elapsed().as_secs_f64()
    );
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    let (first, second) = (run(7, None, false), run(7, None, false));
    assert_eq!(first, second);
    assert_ne!(first.hash, run(8, None, false).hash);
}

fn is_caught(bug: Planted) {
    for seed in 1..=SEEDS_TO_CATCH {
        if catch_unwind(AssertUnwindSafe(|| run(seed, Some(bug), false))).is_err() {
            println!("{bug:?} was caught by seed {seed}");
            return;
        }
    }
    panic!("{bug:?} was not caught by {SEEDS_TO_CATCH} seeds");
}

#[test]
fn an_answer_before_the_fsync_is_caught() {
    is_caught(Planted::AnswerBeforeFsync);
}

#[test]
fn a_vote_that_is_not_durable_is_caught() {
    is_caught(Planted::VoteNotDurable);
}

#[test]
fn a_read_that_is_not_confirmed_is_caught() {
    is_caught(Planted::UnconfirmedRead);
}

#[test]
fn a_leader_that_is_restored_is_caught() {
    is_caught(Planted::LeaderRestore);
}
