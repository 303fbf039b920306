//! cluster info, health, join and leave.

use serde_json::json;

use super::standing::{self, Health};
use crate::cli::tool::table::{self, Column, column};
use crate::cli::tool::{Cell, Fault, Format, Outcome, Printer};
use crate::client::Client;
use crate::error::Reason;
use crate::proto::v1;

/// Prints the cluster, and below it its nodes: lines that begin with `node` in plain output, `members` in
/// JSON.
pub(super) async fn info(client: &Client, printer: &mut Printer) -> Outcome {
    let info = client.cluster_info().await?;
    let mut nodes = client.nodes().await?;
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let partitions = client.partitions().await?;
    let down = nodes.iter().filter(|node| !node.is_reachable).count();
    let cluster = summary(&info, &partitions, down);
    let rows: Vec<Vec<Cell>> = nodes.iter().map(|node| member(node, &partitions)).collect();
    match printer.format() {
        Format::Json => {
            let mut object = table::record_json(&cluster);
            object["members"] = table::rows_json(&MEMBER, &rows);
            printer.json(&object)?;
        }
        Format::Table => {
            printer.record(&cluster)?;
            printer.line("")?;
            printer.rows(&MEMBER, &rows)?;
        }
        Format::Plain => {
            printer.record(&cluster)?;
            let named = |row: Vec<Cell>| [vec![Cell::from("node")], row].concat();
            printer.rows(&[], &rows.into_iter().map(named).collect::<Vec<_>>())?;
        }
    }
    Ok(0)
}

/// `down`: nodes that have failed already.
fn summary(info: &v1::InfoResponse, partitions: &[v1::Partition], down: usize) -> Vec<(Column, Cell)> {
    let answered_by = info.answered_by.clone().unwrap_or_default();
    let copies = info.replicas.min(info.node_count) as usize;
    let count = |wanted: Health| {
        let is = |partition: &&v1::Partition| standing::health(partition, copies) == wanted;
        Cell::Number(partitions.iter().filter(is).count() as u64)
    };
    // What nodes and copies allow when all are well, and what they allow now.
    let at_best = tolerated(info.replicas, info.node_count as usize).saturating_sub(down);
    let tolerates = partitions.iter().map(standing::tolerates).min().unwrap_or(0).min(at_best);
    vec![
        (column("Cluster", "cluster"), Cell::name(&info.cluster_name)),
        (column("Id", "cluster_id"), Cell::name(&info.cluster_id)),
        (column("Version", "cluster_version"), Cell::Number(u64::from(info.cluster_version))),
        (column("Epoch", "epoch"), Cell::Number(info.epoch)),
        (column("Leader", "leader"), Cell::name(&info.leader)),
        (column("Nodes", "nodes"), Cell::Number(u64::from(info.node_count))),
        (column("Replicas", "replicas"), Cell::Number(u64::from(info.replicas))),
        (column("Tolerates failures", "tolerated_failures"), Cell::Number(tolerates as u64)),
        (column("Partitions", "partitions"), Cell::Number(u64::from(info.partition_count))),
        (column("- healthy", "partitions_healthy"), count(Health::Healthy)),
        (column("- degraded", "partitions_degraded"), count(Health::Degraded)),
        (column("- leaderless", "partitions_leaderless"), count(Health::Leaderless)),
        (column("Replication lag", "replication_lag"), Cell::Number(standing::lag(partitions, None))),
        (column("Answered by", "answered_by"), Cell::name(&answered_by.name)),
        (column("Program", "program_version"), Cell::name(&answered_by.version)),
        (column("Engine", "engine"), Cell::name(&answered_by.engine)),
        (column("Problems", "problems"), Cell::Number(info.problems.len() as u64)),
    ]
}

/// A node in `cluster info`. The lag is the number of entries that its copy furthest behind lacks.
const MEMBER: [Column; 7] = [
    column("NODE", "node"),
    column("ADDRESS", "address"),
    column("STATE", "state"),
    column("GROUP 0", "group0_role"),
    column("LEADS", "leads"),
    column("REPLICAS", "replicas"),
    column("LAG", "lag"),
];

fn member(node: &v1::Node, partitions: &[v1::Partition]) -> Vec<Cell> {
    let is_its = |replica: &v1::Replica| replica.node == node.name;
    let held = partitions.iter().filter(|partition| partition.replicas.iter().any(is_its)).count();
    let led = partitions.iter().filter(|partition| partition.leader == node.name).count();
    let role = match node.group0_role() {
        v1::ReplicaRole::Leader => "leader",
        v1::ReplicaRole::Follower | v1::ReplicaRole::Candidate => "voter",
        v1::ReplicaRole::Learner => "learner",
        v1::ReplicaRole::Unspecified => "",
    };
    vec![
        Cell::name(&node.name),
        Cell::name(&node.address),
        standing::state(node).into(),
        Cell::name(role),
        Cell::Number(led as u64),
        Cell::Number(held as u64),
        Cell::Number(standing::lag(partitions, Some(&node.name))),
    ]
}

/// Takes a node in.
pub(super) async fn join(address: &str, client: &Client, printer: &mut Printer) -> Outcome {
    let v1::JoinResponse { node, is_member } = client.join(address).await?;
    match printer.format() {
        Format::Json => printer.json(&json!({ "node": node, "is_member": is_member }))?,
        Format::Table | Format::Plain if is_member => printer.line(&format!("{node} is a member"))?,
        Format::Table | Format::Plain => printer.line(&format!(
            "{node} is joining: it has given its own cluster up and starts anew; rushkvctl node list shows when it \
             has come"
        ))?,
    }
    Ok(0)
}

/// Has a node leave, and says what that costs; what lowers the tolerance of failures wants `--yes`. Nodes
/// that are leaving already count as gone.
pub(super) async fn leave(node: &str, yes: bool, client: &Client, printer: &mut Printer) -> Outcome {
    let replicas = client.cluster_info().await?.replicas;
    let mut members = client.nodes().await?;
    members.retain(|member| member.state() != v1::NodeState::Leaving);
    let before = tolerated(replicas, members.len());
    members.retain(|member| member.name != node);
    let after = tolerated(replicas, members.len());
    let down = |member: &&v1::Node| !member.is_reachable;
    let down: Vec<&str> = members.iter().filter(down).map(|member| &*member.name).collect();
    let count = members.len();
    if !yes && !down.is_empty() {
        return Err(Fault::Usage(format!(
            "{} can't be reached now: of the {count} nodes that stay, {} would serve, and the cluster tolerates the \
             failure of {after}; bring it back first, or say --yes if that is meant",
            down.join(", "),
            count - down.len()
        )));
    }
    if !yes && after < before {
        return Err(Fault::Usage(format!(
            "with {count} nodes the cluster tolerates the failure of {after} instead of {before}: say --yes if that \
             is meant"
        )));
    }
    client.leave(node).await?;
    match printer.format() {
        Format::Json => {
            printer.json(&json!({ "node": node, "leaving": true, "tolerated_failures": after }))?;
        }
        Format::Table | Format::Plain => printer.line(&format!(
            "{node} is leaving: its copies move to the others, then it is dropped and the cluster tolerates the \
             failure of {after} node{}; rushkvctl node list shows when it is gone",
            if after == 1 { "" } else { "s" }
        ))?,
    }
    Ok(0)
}

/// How many nodes may fail before some key can't be written: each partition has the largest odd number
/// of voters that copies and nodes allow.
fn tolerated(replicas: u32, nodes: usize) -> usize {
    (replicas as usize).min(nodes).saturating_sub(1) / 2
}

/// Prints every problem. One that the node does not list, but that its figures show, is listed too.
pub(super) async fn health(client: &Client, printer: &mut Printer) -> Outcome {
    let info = client.cluster_info().await?;
    let problems = problems(&info);
    let is_healthy = problems.is_empty();
    match printer.format() {
        Format::Json => {
            let problems: Vec<_> = problems
                .iter()
                .map(|problem| json!({ "reason": problem.reason, "message": problem.message, "nodes": problem.nodes }))
                .collect();
            printer.json(&json!({ "healthy": is_healthy, "problems": problems }))?;
        }
        Format::Table if is_healthy => printer.line(&format!(
            "healthy: {} of {} partitions led, {} node{}",
            info.partitions_led,
            info.partition_count,
            info.node_count,
            if info.node_count == 1 { "" } else { "s" },
        ))?,
        Format::Plain if is_healthy => printer.line("healthy")?,
        Format::Table | Format::Plain => {
            let columns = [column("PROBLEM", "reason"), column("NODES", "nodes"), column("WHAT", "message")];
            let row = |problem: &v1::Problem| {
                vec![
                    problem.reason.as_str().into(),
                    Cell::List(problem.nodes.clone()),
                    problem.message.as_str().into(),
                ]
            };
            let rows: Vec<_> = problems.iter().map(row).collect();
            printer.rows(&columns, &rows)?;
        }
    }
    Ok(if is_healthy { 0 } else { Reason::Unavailable.row().exit })
}

fn problems(info: &v1::InfoResponse) -> Vec<v1::Problem> {
    let mut problems = info.problems.clone();
    if crate::client::removed(info).is_some() {
        // Whatever else it tells of the cluster is old.
        return problems;
    }
    let mut notice = |reason: &str, is_so: bool, message: String| {
        if is_so && !problems.iter().any(|problem| problem.reason == reason) {
            problems.push(v1::Problem { reason: reason.into(), message, nodes: Vec::new() });
        }
    };
    let (led, all) = (info.partitions_led, info.partition_count);
    let message =
        format!("{} of {all} partitions have no leader known to the asked node", all.saturating_sub(led));
    notice("PARTITION_WITHOUT_LEADER", led < all, message);
    let message = "nobody leads the cluster's metadata".to_string();
    notice("GROUP0_WITHOUT_LEADER", info.leader.is_empty(), message);
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_removed_tells_that_alone() {
        let problem =
            v1::Problem { reason: "REMOVED".into(), nodes: vec!["node1".into()], ..v1::Problem::default() };
        let node = v1::Node { name: "node1".into(), ..v1::Node::default() };
        let info = v1::InfoResponse {
            problems: vec![problem],
            answered_by: Some(node),
            partition_count: 4,
            ..v1::InfoResponse::default()
        };
        assert_eq!(problems(&info).len(), 1);
    }

    #[test]
    fn figures_are_believed_where_no_problem_is_listed() {
        let healthy = v1::InfoResponse {
            leader: "node1".into(),
            partition_count: 4,
            partitions_led: 4,
            ..v1::InfoResponse::default()
        };
        assert!(problems(&healthy).is_empty());
        let mut sick = v1::InfoResponse { partitions_led: 3, leader: String::new(), ..healthy };
        let reasons = |info: &v1::InfoResponse| -> Vec<String> {
            problems(info).into_iter().map(|problem| problem.reason).collect()
        };
        assert_eq!(reasons(&sick), ["PARTITION_WITHOUT_LEADER", "GROUP0_WITHOUT_LEADER"]);
        sick.problems = vec![v1::Problem {
            reason: "PARTITION_WITHOUT_LEADER".into(),
            message: "partition 2".into(),
            nodes: vec!["node2".into()],
        }];
        assert_eq!(reasons(&sick).len(), 2, "told once");
    }
}
