//! A few kills under load, for every day; `crash_long.rs` has a hundred.
//! `RUSHKV_KILLS` sets how often per engine.

#[path = "support/kill.rs"]
mod kill;
#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/process.rs"]
mod process;

use kill::kill_again_and_again;

fn kills() -> u64 {
    std::env::var("RUSHKV_KILLS").map_or(6, |kills| kills.parse().expect("RUSHKV_KILLS is a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_on_fjall() {
    kill_again_and_again("fjall", kills(), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_stopped_while_it_recovers_on_fjall() {
    kill_again_and_again("fjall", kills(), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_on_sled() {
    kill_again_and_again("sled", kills(), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_stopped_while_it_recovers_on_sled() {
    kill_again_and_again("sled", kills(), true).await;
}
