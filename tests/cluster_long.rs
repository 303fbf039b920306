//! What is promised of three nodes, counted, per engine: a node killed fifty times, all of them twenty times,
//! a node stopped as planned thirty times. `RUSHKV_LONG_NODE_KILLS`, `RUSHKV_LONG_ALL_KILLS` and `RUSHKV_LONG_STOPS` set how often.

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
#[path = "support/slack.rs"]
mod slack;

use std::time::Duration;

use failover::{Borne, all_killed, one_killed, stopped_in_turn};
use slack::within;

/// Until writes go through again, in every partition that the killed node led.
const BORNE: Borne = Borne { median: Duration::from_secs(2), worst: Duration::from_secs(5) };

/// The longest write while a node that is stopped as planned hands over. The worst leaves room for sixteen writers,
/// three unoptimised nodes and whatever else shares two cores.
const STOPPED: Borne = Borne { median: Duration::from_millis(200), worst: Duration::from_millis(400) };

fn borne(promised: Borne) -> Borne {
    Borne { median: within(promised.median), worst: within(promised.worst) }
}

fn times(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |times| times.parse().expect("a number of times"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_killed_under_load_on_fjall() {
    one_killed("fjall", times("RUSHKV_LONG_NODE_KILLS", 50), borne(BORNE)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_killed_under_load_on_sled() {
    one_killed("sled", times("RUSHKV_LONG_NODE_KILLS", 50), borne(BORNE)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_stop_costs_writes_next_to_nothing_on_fjall() {
    stopped_in_turn("fjall", times("RUSHKV_LONG_STOPS", 30), borne(STOPPED)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_stop_costs_writes_next_to_nothing_on_sled() {
    stopped_in_turn("sled", times("RUSHKV_LONG_STOPS", 30), borne(STOPPED)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_killed_at_once_on_fjall() {
    all_killed("fjall", times("RUSHKV_LONG_ALL_KILLS", 20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_killed_at_once_on_sled() {
    all_killed("sled", times("RUSHKV_LONG_ALL_KILLS", 20)).await;
}
