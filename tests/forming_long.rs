//! Three nodes found a cluster, and each of them crashes at each step that it takes, on both engines; all of
//! them are killed at each pair of steps of Prepare. See `forming.rs`.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/forming.rs"]
mod forming;
#[path = "support/process.rs"]
mod process;

use forming::{
    Engine, STEPS_OF_ANOTHER, STEPS_OF_EACH, STEPS_OF_THE_FIRST, all_are_killed_in_prepare, at_each,
    founder_crashes,
};

/// Clusters that are founded side by side.
const AT_ONCE: usize = 4;

async fn each_founder_crashes_at_each_step(engine: Engine) {
    let of_the_first = STEPS_OF_THE_FIRST.iter().chain(&STEPS_OF_EACH).map(|step| (0, *step));
    let of_others = STEPS_OF_ANOTHER.iter().chain(&STEPS_OF_EACH).flat_map(|step| [(1, *step), (2, *step)]);
    let all: Vec<(usize, &str)> = of_the_first.chain(of_others).collect();
    for some in all.chunks(AT_ONCE) {
        at_each(some.to_vec(), |(victim, step)| founder_crashes(engine, victim, step)).await;
    }
    println!("{engine}: {} crashes, one cluster after each", all.len());
}

async fn all_are_killed_at_each_step_of_prepare(engine: Engine) {
    let of_another = [None, Some("forming.asked-to-prepare"), Some("forming.prepared")];
    let mut all = vec![
        [Some("forming.first-prepared"), None, None],
        [Some("forming.another-prepared"), None, None],
        [Some("forming.all-prepared"), None, None],
    ];
    for second in of_another {
        let others = of_another.iter().map(|third| [None, second, *third]);
        all.extend(others.filter(|steps| steps.iter().any(Option::is_some)));
    }
    for some in all.chunks(AT_ONCE) {
        at_each(some.to_vec(), |steps| all_are_killed_in_prepare(engine, steps)).await;
    }
    println!("{engine}: all were killed {} times, one cluster after each", all.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_founder_crashes_at_each_step_on_fjall() {
    each_founder_crashes_at_each_step("fjall").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_founder_crashes_at_each_step_on_sled() {
    each_founder_crashes_at_each_step("sled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_are_killed_at_each_step_of_prepare_on_fjall() {
    all_are_killed_at_each_step_of_prepare("fjall").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_are_killed_at_each_step_of_prepare_on_sled() {
    all_are_killed_at_each_step_of_prepare("sled").await;
}
