//! A node that left its cluster says that it did, and refuses to start as what it was.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/process.rs"]
mod process;

use std::time::{Duration, Instant};

use cluster::{Cluster, WAIT_MAX, info};
use rushkv::proto::v1::LeaveRequest;
use rushkv::proto::v1::cluster_client::ClusterClient;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_removed_hears_of_it() {
    let mut cluster = Cluster::start(3, "fjall").await;
    // One that runs on, and, further below, one that was away meanwhile.
    let mut client = ClusterClient::new(cluster.nodes[0].channel());
    client.leave(LeaveRequest { node: "node3".into() }).await.unwrap();
    cluster.settles(0, &["node1", "node2"], |replicas| replicas == 8).await;
    let left = cluster.nodes[2].channel();
    let started = Instant::now();
    loop {
        let told = info(left.clone()).await.unwrap();
        if let [problem] = &told.problems[..]
            && problem.reason == "REMOVED"
        {
            assert!(problem.message.contains("empty data_dir"), "{problem:?}");
            break;
        }
        assert!(started.elapsed() < WAIT_MAX, "it does not hear of it: {told:?}\n{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(cluster.nodes[2].stop(), Some(0), "{}", cluster.nodes[2].log());

    cluster.nodes[2].start();
    assert_eq!(cluster.nodes[2].wait_end(WAIT_MAX), Some(1), "{}", cluster.nodes[2].log());
    let log = cluster.nodes[2].log();
    assert!(log.contains("node \"node3\" was removed from its cluster"), "{log}");

    // With an empty directory it comes again, as another member.
    std::fs::remove_dir_all(&cluster.nodes[2].data_dir).unwrap();
    cluster.nodes[2].start();
    cluster.serve().await;
    cluster.settles(0, &["node1", "node2", "node3"], |replicas| replicas == 8).await;
}
