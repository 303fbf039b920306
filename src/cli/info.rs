//! cluster and stats.

use super::Session;
use super::tool::table::column;
use super::tool::{Cell, Outcome};

pub(super) async fn cluster(session: &mut Session) -> Outcome {
    let mut nodes = session.client.nodes().await?;
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let columns = [column("NODE", "node"), column("ADDRESS", "address"), column("LEADER", "is_leader")];
    let rows: Vec<_> = nodes
        .into_iter()
        .map(|node| {
            vec![Cell::name(&node.name), Cell::name(&node.address), Cell::Flag(node.is_group0_leader)]
        })
        .collect();
    session.printer.rows(&columns, &rows)?;
    Ok(0)
}

pub(super) async fn stats(session: &mut Session) -> Outcome {
    let info = session.client.cluster_info().await?;
    let partitions = session.client.partitions().await?;
    let nodes = session.client.nodes().await?;
    let partition_sum = |field: fn(&crate::proto::v1::Partition) -> u64| partitions.iter().map(field).sum();
    let node_sum = |field: fn(&crate::proto::v1::Node) -> u64| nodes.iter().map(field).sum();
    let problems: Vec<String> = info.problems.iter().map(|problem| problem.reason.clone()).collect();
    session.printer.record(&[
        (column("Cluster", "cluster"), Cell::name(&info.cluster_name)),
        (column("Leader", "leader"), Cell::name(&info.leader)),
        (column("Nodes", "nodes"), Cell::Number(u64::from(info.node_count))),
        (column("Replicas", "replicas"), Cell::Number(u64::from(info.replicas))),
        (column("Partitions", "partitions"), Cell::Number(u64::from(info.partition_count))),
        (column("Partitions led", "partitions_led"), Cell::Number(u64::from(info.partitions_led))),
        (column("Keys", "keys"), Cell::Number(partition_sum(|partition| partition.key_count))),
        (column("Data", "data_bytes"), Cell::Size(partition_sum(|partition| partition.data_bytes))),
        (column("Engine on disk", "engine_disk_bytes"), Cell::Size(node_sum(|node| node.engine_disk_bytes))),
        (column("WAL on disk", "wal_bytes"), Cell::Size(node_sum(|node| node.wal_bytes))),
        (column("Disk free", "disk_free_bytes"), Cell::Size(node_sum(|node| node.disk_free_bytes))),
        (column("Problems", "problems"), Cell::List(problems)),
    ])?;
    Ok(0)
}
