//! debug hash and debug scrub.

use crate::cli::tool::table::column;
use crate::cli::tool::{Cell, Outcome, Printer};
use crate::client::Client;
use crate::proto::v1;

/// Some replicas differ, or could not be compared.
const NOT_WELL: u8 = 5;

pub(super) async fn hash(partitions: Vec<u32>, client: &Client, printer: &mut Printer) -> Outcome {
    let mut comparisons = client.compare(partitions).await?;
    comparisons.sort_by_key(|comparison| comparison.partition);
    let columns = [
        column("PARTITION", "partition"),
        column("MARK", "mark"),
        column("AGREEMENT", "agreement"),
        column("NODE", "node"),
        column("REPLICA", "replica"),
        column("HASH", "hash"),
    ];
    let rows: Vec<Vec<Cell>> = comparisons.iter().flat_map(rows).collect();
    printer.rows(&columns, &rows)?;
    for comparison in &comparisons {
        if !comparison.problem.is_empty() {
            printer.say(&format!("partition {}: {}", comparison.partition, comparison.problem));
        }
        for replica in comparison.replicas.iter().filter(|replica| !replica.problem.is_empty()) {
            printer
                .say(&format!("partition {}, {}: {}", comparison.partition, replica.node, replica.problem));
        }
    }
    let all_same = comparisons.iter().all(|comparison| comparison.agreement() == v1::Agreement::Same);
    Ok(if all_same { 0 } else { NOT_WELL })
}

fn agreement(comparison: &v1::Comparison) -> &'static str {
    match comparison.agreement() {
        v1::Agreement::Same => "same",
        v1::Agreement::Incomplete => "incomplete",
        v1::Agreement::Majority => "majority",
        v1::Agreement::None => "none",
        v1::Agreement::Unspecified => "unknown",
    }
}

fn rows(comparison: &v1::Comparison) -> Vec<Vec<Cell>> {
    let row = |node: Cell, replica: Cell, hash: Cell| {
        let mark = if comparison.mark == 0 { Cell::Missing } else { Cell::Number(comparison.mark) };
        vec![
            Cell::Number(comparison.partition.into()),
            mark,
            agreement(comparison).into(),
            node,
            replica,
            hash,
        ]
    };
    let known = |replica: &v1::ReplicaHash| {
        row(Cell::name(&replica.node), Cell::Text(replica.replica.to_string()), Cell::name(&replica.hash))
    };
    match comparison.replicas.is_empty() {
        true => vec![row(Cell::Missing, Cell::Missing, Cell::Missing)],
        false => comparison.replicas.iter().map(known).collect(),
    }
}

pub(super) async fn scrub(client: &Client, printer: &mut Printer) -> Outcome {
    let v1::ScrubResponse { nodes, not_reached } = client.scrub().await?;
    for node in &not_reached {
        printer.say(&format!("not asked: {node}"));
    }
    let asked = u64::from(nodes).saturating_sub(not_reached.len() as u64);
    printer.record(&[(column("Nodes that check what they hold", "nodes"), Cell::Number(asked))])?;
    Ok(if not_reached.is_empty() { 0 } else { NOT_WELL })
}
