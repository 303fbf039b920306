//! Members come and go while nodes are killed, once per engine: see `support/churn.rs`. `RUSHKV_BORNE_S`
//! says for how many seconds after a kill errors are borne; the default leaves room for a machine that
//! builds and tests at once, `churn_long.rs` holds what is promised.

#[path = "support/churn.rs"]
mod churn;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/process.rs"]
mod process;
#[path = "support/register.rs"]
mod register;
#[path = "support/slack.rs"]
mod slack;

use std::time::Duration;

/// Errors are borne for this long after a kill.
fn borne() -> Duration {
    let seconds = std::env::var("RUSHKV_BORNE_S").map_or(15, |seconds| seconds.parse().expect("a number"));
    slack::within(Duration::from_secs(seconds))
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_while_nodes_are_killed_on_fjall() {
    churn::churn("fjall", borne()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_while_nodes_are_killed_on_sled() {
    churn::churn("sled", borne()).await;
}
