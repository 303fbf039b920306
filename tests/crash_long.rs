//! A hundred kills in a row at random moments, per engine; and a quarter as many whose restart is
//! stopped midway. `RUSHKV_LONG_KILLS` sets how often.

#[path = "support/kill.rs"]
mod kill;
#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/process.rs"]
mod process;

use kill::kill_again_and_again;

fn kills() -> u64 {
    std::env::var("RUSHKV_LONG_KILLS")
        .map_or(100, |kills| kills.parse().expect("RUSHKV_LONG_KILLS is a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_on_fjall() {
    kill_again_and_again("fjall", kills(), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_stopped_while_it_recovers_on_fjall() {
    kill_again_and_again("fjall", kills() / 4, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_on_sled() {
    kill_again_and_again("sled", kills(), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_stopped_while_it_recovers_on_sled() {
    kill_again_and_again("sled", kills() / 4, true).await;
}
