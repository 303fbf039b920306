//! The original's calls, `rushkv.v1.Cluster`, health and the HTTP endpoint against a whole node.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::time::Duration;

use rushkv::proto::original::rush_kv_client::RushKvClient;
use rushkv::proto::original::{
    ClusterInfoRequest, DeleteRequest, GetRequest, JoinRequest, LeaveRequest, PutRequest,
};
use rushkv::proto::v1;
use rushkv::proto::v1::cluster_client::ClusterClient;
use support::{ENGINES, TestNode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

async fn http_get(node: &TestNode, path: &str) -> String {
    let mut stream = TcpStream::connect(node.http).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn the_originals_calls_mean_what_they_say() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let node = TestNode::start(dir.path(), engine).await;
        let mut client = RushKvClient::new(node.channel().await);
        let put = client.put(PutRequest { key: "user:1".into(), value: "Alice".into() }).await.unwrap();
        assert!(put.get_ref().success, "{engine}: {put:?}");
        let get = client.get(GetRequest { key: "user:1".into() }).await.unwrap().into_inner();
        assert_eq!((get.success, &get.value[..]), (true, &b"Alice"[..]));
        let delete = || DeleteRequest { key: "user:1".into() };
        assert!(client.delete(delete()).await.unwrap().into_inner().success);
        let again = client.delete(delete()).await.unwrap().into_inner();
        assert_eq!((again.success, again.error.as_str()), (false, "key not found"));
        let get = client.get(GetRequest { key: "user:1".into() }).await.unwrap().into_inner();
        assert_eq!((get.success, get.error.as_str()), (false, "key not found"));

        let info = client.get_cluster_info(ClusterInfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.leader.as_str(), info.nodes.len()), ("node1", 1));
        let itself = &info.nodes[0];
        assert_eq!((itself.id.as_str(), itself.is_leader), ("node1", true));
        assert_eq!((itself.address.as_str(), itself.port), ("127.0.0.1", i32::from(node.grpc.port())));

        let join =
            |id: &str| JoinRequest { node_id: id.into(), address: itself.address.clone(), port: itself.port };
        assert!(client.join(join("node1")).await.unwrap().into_inner().success);
        let other = client.join(join("node2")).await.unwrap().into_inner();
        assert!(!other.success && other.error.contains("calls itself \"node1\""), "{other:?}");
        let leave = client.leave(LeaveRequest { node_id: "node1".into() }).await.unwrap().into_inner();
        assert!(!leave.success && leave.error.contains("last member"), "{leave:?}");
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_is_whole_and_keys_are_where_they_belong() {
    let dir = tempfile::tempdir().unwrap();
    let node = TestNode::start(dir.path(), ENGINES[0]).await;
    let mut client = ClusterClient::new(node.channel().await);
    let info = client.info(v1::InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.cluster_name.as_str(), info.leader.as_str()), ("test", "node1"));
    assert!(!info.cluster_id.is_empty());
    assert_eq!((info.node_count, info.partition_count, info.partitions_led), (1, 4, 4));
    assert_eq!(info.problems, []);
    let nodes = client.list_nodes(v1::ListNodesRequest {}).await.unwrap().into_inner().nodes;
    let named = |node: &v1::Node| (node.name.clone(), node.number, node.address.clone());
    assert_eq!(nodes.iter().map(named).collect::<Vec<_>>(), [named(info.answered_by.as_ref().unwrap())]);
    assert!(nodes[0].is_group0_leader && nodes[0].disk_total_bytes > 0 && nodes[0].engine == "fjall");

    let mut partitions =
        client.list_partitions(v1::ListPartitionsRequest {}).await.unwrap().into_inner().partitions;
    partitions.sort_by_key(|partition| partition.first_hash);
    assert_eq!((partitions[0].first_hash, partitions[3].last_hash), (0, u64::MAX));
    for pair in partitions.windows(2) {
        assert_eq!(pair[0].last_hash + 1, pair[1].first_hash);
    }
    for partition in &partitions {
        assert_eq!((partition.leader.as_str(), partition.replicas.len()), ("node1", 1));
        assert_eq!(partition.replicas[0].role(), v1::ReplicaRole::Leader);
    }
    for key in ["a", "user:1", "{tag}x", "{tag}y", ""] {
        let located = client.locate_key(v1::LocateKeyRequest { key: key.as_bytes().to_vec().into() }).await;
        if key.is_empty() {
            assert_eq!(located.unwrap_err().code(), tonic::Code::InvalidArgument);
            continue;
        }
        let located = located.unwrap().into_inner();
        let partition = located.partition.unwrap();
        assert!((partition.first_hash..=partition.last_hash).contains(&located.hash), "{key}");
    }

    let mut watch = client.watch_topology(v1::WatchTopologyRequest {}).await.unwrap().into_inner();
    let topology = watch.message().await.unwrap().unwrap();
    assert_eq!((topology.epoch, topology.nodes.len(), topology.partitions.len()), (info.epoch, 1, 4));
    // The watch is open still: it must not hold up the stop.
    tokio::time::timeout(Duration::from_secs(8), node.stop()).await.expect("the node stops in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_node_says_so_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let node = TestNode::start(dir.path(), ENGINES[0]).await;
    assert!(http_get(&node, "/livez").await.starts_with("HTTP/1.1 200 "));
    assert!(http_get(&node, "/readyz").await.starts_with("HTTP/1.1 200 "));
    let mut client = HealthClient::new(node.channel().await);
    for service in ["", "rushkv.RushKV", "rushkv.v1.Kv", "rushkv.v1.Cluster"] {
        let mut watch =
            client.watch(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        let serving =
            async { while watch.message().await.unwrap().unwrap().status() != ServingStatus::Serving {} };
        tokio::time::timeout(Duration::from_secs(5), serving).await.expect(service);
    }
    let text = http_get(&node, "/metrics").await;
    for name in
        ["rushkv_build_info{", "process_open_fds ", "rushkv_grpc_requests_total{", "rushkv_grpc_connections "]
    {
        assert!(text.contains(&format!("\n{name}")), "{name} is missing:\n{text}");
    }
    node.stop().await;
}
