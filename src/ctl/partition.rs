//! partition list and partition show.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use serde_json::json;

use crate::cli::tool::table::column;
use crate::cli::tool::text::{escape, insert_bytes};
use crate::cli::tool::{Cell, Fault, Format, Outcome, Printer};
use crate::client::Client;
use crate::error::{Error, Reason};
use crate::proto::v1;

pub(super) async fn list(client: &Client, printer: &mut Printer) -> Outcome {
    let mut partitions = client.partitions().await?;
    partitions.sort_by_key(|partition| partition.id);
    let columns = [
        column("PARTITION", "partition"),
        column("FIRST HASH", "first_hash"),
        column("LEADER", "leader"),
        column("REPLICAS", "replicas"),
        column("TERM", "term"),
        column("COMMIT", "commit_index"),
        column("APPLIED", "applied_index"),
        column("KEYS", "keys"),
        column("DATA", "data_bytes"),
    ];
    let rows: Vec<_> = partitions
        .into_iter()
        .map(|partition| {
            vec![
                Cell::Number(u64::from(partition.id)),
                Cell::Text(hash(partition.first_hash)),
                Cell::name(&partition.leader),
                Cell::List(partition.replicas.iter().map(|replica| replica.node.clone()).collect()),
                Cell::Number(partition.term),
                Cell::Number(partition.commit_index),
                Cell::Number(partition.applied_index),
                Cell::Number(partition.key_count),
                Cell::Size(partition.data_bytes),
            ]
        })
        .collect();
    printer.rows(&columns, &rows)?;
    Ok(0)
}

pub(super) async fn show(key: OsString, client: &Client, printer: &mut Printer) -> Outcome {
    let key = key.into_vec();
    let located = client.locate(key.clone()).await?;
    let Some(partition) = located.partition else {
        let message = "the answer makes no sense: a located key without its partition";
        return Err(Fault::Call(Error::new(Reason::Internal, message)));
    };
    if printer.format() == Format::Json {
        let mut object = serde_json::Map::new();
        insert_bytes(&mut object, "key", &key);
        object.insert("hash".into(), hash(located.hash).into());
        object.insert("partition".into(), partition_json(&partition));
        printer.json(&serde_json::Value::Object(object))?;
        return Ok(0);
    }
    printer.record(&[
        (column("Key", "key"), Cell::Text(escape(&key))),
        (column("Hash", "hash"), Cell::Text(hash(located.hash))),
        (column("Partition", "partition"), Cell::Number(u64::from(partition.id))),
        (column("First hash", "first_hash"), Cell::Text(hash(partition.first_hash))),
        (column("Last hash", "last_hash"), Cell::Text(hash(partition.last_hash))),
        (column("Leader", "leader"), Cell::name(&partition.leader)),
        (column("Term", "term"), Cell::Number(partition.term)),
        (column("Commit index", "commit_index"), Cell::Number(partition.commit_index)),
        (column("Applied index", "applied_index"), Cell::Number(partition.applied_index)),
        (column("Keys", "keys"), Cell::Number(partition.key_count)),
        (column("Data", "data_bytes"), Cell::Size(partition.data_bytes)),
        (column("Replicas", "replicas"), Cell::List(partition.replicas.iter().map(replica_text).collect())),
    ])?;
    Ok(0)
}

/// Hashes are compared by their beginnings, and JSON's numbers do not hold 64 bits everywhere.
fn hash(hash: u64) -> String {
    format!("{hash:016x}")
}

fn role(replica: &v1::Replica) -> &'static str {
    match replica.role() {
        v1::ReplicaRole::Leader => "leader",
        v1::ReplicaRole::Follower => "follower",
        v1::ReplicaRole::Learner => "learner",
        v1::ReplicaRole::Candidate => "candidate",
        v1::ReplicaRole::Unspecified => "unknown",
    }
}

fn replica_text(replica: &v1::Replica) -> String {
    format!("{} ({}, at {})", replica.node, role(replica), replica.match_index)
}

fn partition_json(partition: &v1::Partition) -> serde_json::Value {
    let replicas: Vec<_> = partition
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "id": replica.id.to_string(),
                "node": replica.node,
                "role": role(replica),
                "match_index": replica.match_index,
            })
        })
        .collect();
    json!({
        "id": partition.id,
        "first_hash": hash(partition.first_hash),
        "last_hash": hash(partition.last_hash),
        "leader": if partition.leader.is_empty() { None } else { Some(&partition.leader) },
        "term": partition.term,
        "commit_index": partition.commit_index,
        "applied_index": partition.applied_index,
        "keys": partition.key_count,
        "data_bytes": partition.data_bytes,
        "replicas": replicas,
    })
}
