//! node list.

use super::standing;
use crate::cli::tool::table::column;
use crate::cli::tool::{Cell, Outcome, Printer};
use crate::client::Client;

pub(super) async fn list(client: &Client, printer: &mut Printer) -> Outcome {
    let mut nodes = client.nodes().await?;
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let columns = [
        column("NODE", "node"),
        column("NUMBER", "number"),
        column("ADDRESS", "address"),
        column("STATE", "state"),
        column("ZONE", "zone"),
        column("WEIGHT", "weight"),
        column("LEADER", "is_leader"),
        column("REPLICAS", "replicas"),
        column("LEADS", "leads"),
        column("ENGINE", "engine"),
        column("DATA", "engine_disk_bytes"),
        column("WAL", "wal_bytes"),
        column("FREE", "disk_free_bytes"),
        column("DISK", "disk_total_bytes"),
        column("VERSION", "version"),
    ];
    let rows: Vec<_> = nodes
        .into_iter()
        .map(|node| {
            vec![
                Cell::name(&node.name),
                Cell::Number(node.number),
                Cell::name(&node.address),
                standing::state(&node).into(),
                Cell::name(&node.zone),
                Cell::Number(u64::from(node.weight)),
                Cell::Flag(node.is_group0_leader),
                Cell::Number(u64::from(node.replica_count)),
                Cell::Number(u64::from(node.leader_count)),
                Cell::name(&node.engine),
                Cell::Size(node.engine_disk_bytes),
                Cell::Size(node.wal_bytes),
                Cell::Size(node.disk_free_bytes),
                Cell::Size(node.disk_total_bytes),
                Cell::name(&node.version),
            ]
        })
        .collect();
    printer.rows(&columns, &rows)?;
    Ok(0)
}
