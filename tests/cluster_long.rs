//! What is promised of three nodes, counted: a node killed fifty times, and all of them twenty times, per
//! engine. `RUSHKV_LONG_KILLS` and `RUSHKV_LONG_ALL_KILLS` set how often.

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/failover.rs"]
mod failover;
#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/process.rs"]
mod process;
#[path = "support/register.rs"]
mod register;

use std::time::Duration;

use failover::{Borne, all_killed, one_killed};

/// Until writes go through again, in every partition that the killed node led.
const BORNE: Borne = Borne { median: Duration::from_secs(2), worst: Duration::from_secs(5) };

fn times(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |times| times.parse().expect("a number of times"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_killed_under_load_on_fjall() {
    one_killed("fjall", times("RUSHKV_LONG_KILLS", 50), BORNE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_killed_under_load_on_sled() {
    one_killed("sled", times("RUSHKV_LONG_KILLS", 50), BORNE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_killed_at_once_on_fjall() {
    all_killed("fjall", times("RUSHKV_LONG_ALL_KILLS", 20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_killed_at_once_on_sled() {
    all_killed("sled", times("RUSHKV_LONG_ALL_KILLS", 20)).await;
}
