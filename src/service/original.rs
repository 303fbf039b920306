//! `rushkv.RushKV`: the original's six calls. Failures travel in the body, with gRPC status OK, as the
//! original's clients expect; each call is answered before they give up.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::Backend;
use super::deadline::{Clock, Limit};
use super::request;
use crate::error::{Error, Reason, Result};
use crate::kv::{Op, Outcome, Precondition};
use crate::limits::ORIGINAL_CALL_DEADLINE;
use crate::node::{ClusterInfo, Consistency};
use crate::proto::original::rush_kv_server::RushKv;
use crate::proto::original::{
    ClusterInfoRequest, ClusterInfoResponse, DeleteRequest, DeleteResponse, GetRequest, GetResponse,
    JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, NodeInfo, PutRequest, PutResponse,
};
use crate::proto::v1;

/// The original's own words; its clients compare them.
const KEY_NOT_FOUND: &str = "key not found";

#[derive(Debug)]
pub(super) struct Service<N> {
    node: Arc<N>,
}

impl<N> Service<N> {
    pub fn new(node: Arc<N>) -> Service<N> {
        Service { node }
    }
}

type Answer<T> = std::result::Result<Response<T>, Status>;

fn limit<T>(request: &Request<T>) -> Limit {
    Clock::of(request).limit(ORIGINAL_CALL_DEADLINE, ORIGINAL_CALL_DEADLINE)
}

/// An error as the body carries it: what is missing in the original's own words, anything else with
/// the name of its reason, so that a script can tell an unknown outcome from a refusal.
fn text(error: &Error) -> String {
    match error.reason {
        Reason::NotFound => error.message.clone(),
        reason => format!("{}: {}", reason.row().name, error.message),
    }
}

fn not_found() -> Error {
    Error::new(Reason::NotFound, KEY_NOT_FOUND)
}

#[tonic::async_trait]
impl<N: Backend> RushKv for Service<N> {
    async fn put(&self, request: Request<PutRequest>) -> Answer<PutResponse> {
        let limit = limit(&request);
        let PutRequest { key, value } = request.into_inner();
        let result = async {
            let op = request::put(v1::PutRequest { key: Bytes::from(key), value, precondition: None })?;
            limit.write(async { self.node.write(op, limit.node).await.result }).await
        };
        let (success, error) = body(result).await;
        Ok(Response::new(PutResponse { success, error }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Answer<GetResponse> {
        let limit = limit(&request);
        let key = request.into_inner().key;
        let result = async {
            let key = request::key(Bytes::from(key))?;
            let get = self.node.get(key, Consistency::Linearizable, limit.node);
            let found = limit.read(async { get.await.result }).await?;
            found.map(|record| record.value).ok_or_else(not_found)
        };
        Ok(Response::new(match result.await {
            Ok(value) => GetResponse { success: true, value, error: String::new() },
            Err(error) => GetResponse { success: false, value: Bytes::new(), error: text(&error) },
        }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Answer<DeleteResponse> {
        let limit = limit(&request);
        let key = request.into_inner().key;
        let result = async {
            let key = request::key(Bytes::from(key))?;
            let op = Op::Delete { key, precondition: Precondition::None };
            match limit.write(async { self.node.write(op, limit.node).await.result }).await? {
                Outcome::Deleted { existed: false, .. } => Err(not_found()),
                Outcome::Deleted { existed: true, .. } => Ok(()),
                other => Err(Error::new(Reason::Internal, format!("a delete was answered by {other:?}"))),
            }
        };
        let (success, error) = body(result).await;
        Ok(Response::new(DeleteResponse { success, error }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Answer<JoinResponse> {
        let limit = limit(&request);
        let request = request.into_inner();
        let result = async {
            let address = join_address(&request)?;
            limit.write(self.node.join(&address, Some(&request.node_id), limit.node)).await
        };
        let (success, error) = body(result).await;
        Ok(Response::new(JoinResponse { success, error }))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Answer<LeaveResponse> {
        let limit = limit(&request);
        let request = request.into_inner();
        let result = limit.write(self.node.leave(&request.node_id, limit.node));
        let (success, error) = body(result).await;
        Ok(Response::new(LeaveResponse { success, error }))
    }

    async fn get_cluster_info(&self, request: Request<ClusterInfoRequest>) -> Answer<ClusterInfoResponse> {
        let limit = limit(&request);
        // This answer has no room for an error, in the original neither: a status says it.
        match limit.read(self.node.cluster_info()).await {
            Ok(info) => Ok(Response::new(cluster_info(info))),
            Err(error) => Err(crate::error::to_status(&error)),
        }
    }
}

async fn body<T>(result: impl Future<Output = Result<T>>) -> (bool, String) {
    match result.await {
        Ok(_) => (true, String::new()),
        Err(error) => (false, text(&error)),
    }
}

/// Host and port in one; an IPv6 host gets its brackets.
fn join_address(request: &JoinRequest) -> Result<String> {
    let JoinRequest { address: host, port, .. } = request;
    if host.is_empty() || !(1..=65535).contains(port) {
        let message = format!("\"{host}\" and {port} are not the host and port of a node");
        return Err(Error::new(Reason::InvalidArgument, message));
    }
    Ok(match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    })
}

fn cluster_info(info: ClusterInfo) -> ClusterInfoResponse {
    let leader = info.leader.unwrap_or_default();
    let node = |node: crate::node::NodeInfo| {
        let (address, port) = split(&node.address);
        NodeInfo { address: address.into(), port, is_leader: node.name == leader, id: node.name }
    };
    ClusterInfoResponse { nodes: info.nodes.into_iter().map(node).collect(), leader }
}

/// `host:port` in two; an IPv6 host loses its brackets. An address without a port has port 0.
fn split(address: &str) -> (&str, i32) {
    let Some((host, port)) = address.rsplit_once(':') else { return (address, 0) };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (host, port.parse().unwrap_or(0))
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::service::fake;

    #[test]
    fn addresses_are_split() {
        let cases = [
            ("localhost:8080", ("localhost", 8080)),
            ("10.0.0.1:65535", ("10.0.0.1", 65535)),
            ("[::1]:8080", ("::1", 8080)),
            ("nowhere", ("nowhere", 0)),
        ];
        for (address, expected) in cases {
            assert_eq!(split(address), expected, "{address}");
        }
    }

    #[test]
    fn exactly_one_node_leads() {
        let mut info = fake::cluster_info();
        let mut second = info.nodes[0].clone();
        second.name = "node2".into();
        info.nodes.push(second);
        let answer = cluster_info(info);
        assert_eq!(answer.leader, "node1");
        let leaders: Vec<_> =
            answer.nodes.iter().filter(|node| node.is_leader).map(|node| &node.id).collect();
        assert_eq!(leaders, ["node1"]);
        assert_eq!((answer.nodes[0].address.as_str(), answer.nodes[0].port), ("localhost", 8080));
    }

    #[test]
    fn a_join_names_an_address() {
        let address = |host: &str, port| {
            join_address(&JoinRequest { node_id: "n".into(), address: host.into(), port })
                .map_err(|error| error.reason)
        };
        assert_eq!(address("localhost", 8081), Ok("localhost:8081".into()));
        assert_eq!(address("::1", 8081), Ok("[::1]:8081".into()));
        assert_eq!(address("[::1]", 8081), Ok("[::1]:8081".into()));
        for (host, port) in [("", 8081), ("h", 0), ("h", -1), ("h", 65536)] {
            assert_eq!(address(host, port), Err(Reason::InvalidArgument), "{host} {port}");
        }
    }
}
