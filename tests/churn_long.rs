//! Members come and go while nodes are killed, again and again, with other choices each time: see
//! `support/churn.rs`. Errors are borne for as long as is promised. `RUSHKV_LONG_CHURNS` sets how often per
//! engine.

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

/// After a kill, every partition has a leader again within this time, wherever its members are on their way.
const BORNE: Duration = Duration::from_secs(5);

async fn again_and_again(engine: &'static str) {
    let times = std::env::var("RUSHKV_LONG_CHURNS").map_or(3, |times| times.parse().expect("a number"));
    for _ in 0..times {
        churn::churn(engine, slack::within(BORNE)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_while_nodes_are_killed_on_fjall() {
    again_and_again("fjall").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_while_nodes_are_killed_on_sled() {
    again_and_again("sled").await;
}
