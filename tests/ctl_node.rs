//! rushkvctl as a process against a real node.

#[path = "cli_support/mod.rs"]
mod support;

use serde_json::Value;
use support::{Node, cli, ctl, ok, parts};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_cluster_of_one_is_described() {
    let mut node = Node::start();
    ok(cli(&node, &["put", "user:1", "v"]));

    assert!(ok(ctl(&node, &["cluster", "health"])).starts_with("healthy"));
    let info = json(&ok(ctl(&node, &["cluster", "info", "-o", "json"])));
    assert_eq!((&info["leader"], &info["nodes"]), (&"node1".into(), &1.into()), "{info}");
    assert!(!info["cluster_id"].as_str().unwrap().is_empty());

    let nodes = json(&ok(ctl(&node, &["node", "list", "-o", "json"])));
    assert_eq!(nodes[0]["node"], "node1", "{nodes}");
    assert_eq!(nodes[0]["address"], node.server.as_str());
    assert!(nodes[0]["disk_total_bytes"].as_u64().unwrap() > 0, "{nodes}");

    let partitions = json(&ok(ctl(&node, &["partition", "list", "-o=json"])));
    let partitions = partitions.as_array().unwrap();
    assert_eq!(partitions.len() as u64, info["partitions"].as_u64().unwrap());
    assert_eq!(partitions[0]["first_hash"], "0000000000000000");
    let keys: u64 = partitions.iter().map(|partition| partition["keys"].as_u64().unwrap()).sum();
    assert_eq!(keys, 1);

    let shown = json(&ok(ctl(&node, &["partition", "show", "user:1", "-o", "json"])));
    let hash = shown["hash"].as_str().unwrap();
    let partition = &shown["partition"];
    assert!(
        partition["first_hash"].as_str().unwrap() <= hash && hash <= partition["last_hash"].as_str().unwrap()
    );
    assert_eq!((&partition["keys"], &partition["leader"]), (&1.into(), &"node1".into()), "{shown}");
    assert_eq!(partition["replicas"][0]["role"], "leader");

    node.kill();
    let (exit, out, err) = parts(ctl(&node, &["-timeout=300ms", "cluster", "health"]));
    assert_eq!((exit, out.as_str()), (5, ""), "{err}");
}
