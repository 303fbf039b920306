//! What is measured, behind one interface. etcd's messages are declared here field by field, as far as they
//! are used.

use bytes::Bytes;
use futures_util::StreamExt as _;
use rushkv::client::{Client, Precondition, ScanOptions, WriteOp};
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::redis::Redis;
use crate::{Result, Server, TargetKind};

/// etcd's PutRequest; RangeRequest has its key in the same place; and the echo's message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// etcd's RangeRequest.
#[derive(Clone, PartialEq, prost::Message)]
struct Range {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    range_end: Bytes,
    #[prost(int64, tag = "3")]
    limit: i64,
}

/// etcd's RequestOp: what is here an optional field is a variant there, the same on the wire.
#[derive(Clone, PartialEq, prost::Message)]
struct RequestOp {
    #[prost(message, optional, tag = "2")]
    put: Option<KeyValue>,
}

/// etcd's TxnRequest without conditions; the echo's batch too.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Txn {
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

/// etcd's RangeResponse.
#[derive(Clone, PartialEq, prost::Message)]
struct Found {
    #[prost(message, repeated, tag = "2")]
    records: Vec<Stored>,
}

/// etcd's KeyValue.
#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

/// An answer of which nothing is looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct Ignored {}

type Record = (Bytes, Bytes);

/// One client's way to a server.
pub enum Target {
    RushKv(Client),
    Etcd(Grpc<Channel>),
    Redis(Redis),
    Echo(Grpc<Channel>),
}

/// The connections that clients share; Redis serves one call after another on each, so there each client has its
/// own.
pub enum Targets {
    RushKv(Vec<Client>),
    Grpc(TargetKind, Vec<Grpc<Channel>>),
    Redis(String),
}

impl Targets {
    pub async fn connect(server: &Server) -> Result<Targets> {
        let addresses: Vec<&str> = server.address.split(',').collect();
        let count = server.connections.max(addresses.len());
        match server.target {
            TargetKind::Rushkv => {
                // A client has a connection to each node.
                let connect = |_| {
                    let client = Client::builder().endpoint(&server.address).connections(1);
                    client.pipelined(!server.unary).build()
                };
                let clients = (0..count.div_ceil(addresses.len())).map(connect);
                Ok(Targets::RushKv(clients.collect::<std::result::Result<_, _>>()?))
            }
            TargetKind::Redis => Ok(Targets::Redis(server.address.clone())),
            kind => {
                let mut channels = Vec::new();
                for number in 0..count {
                    let address = addresses[number % addresses.len()];
                    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
                    channels.push(Grpc::new(endpoint.connect().await?));
                }
                Ok(Targets::Grpc(kind, channels))
            }
        }
    }

    /// The one of a client.
    pub async fn of(&self, client: u64) -> Result<Target> {
        let at = |length: usize| client as usize % length;
        Ok(match self {
            Targets::RushKv(clients) => Target::RushKv(clients[at(clients.len())].clone()),
            Targets::Grpc(TargetKind::Etcd, all) => Target::Etcd(all[at(all.len())].clone()),
            Targets::Grpc(_, all) => Target::Echo(all[at(all.len())].clone()),
            Targets::Redis(address) => Target::Redis(Redis::connect(address).await?),
        })
    }
}

impl Target {
    pub async fn put(&mut self, (key, value): Record) -> Result<()> {
        match self {
            Target::RushKv(client) => {
                client.put(key, value).await?;
            }
            Target::Etcd(grpc) => {
                let _: Ignored = unary(grpc, "/etcdserverpb.KV/Put", KeyValue { key, value }).await?;
            }
            Target::Redis(redis) => redis.set(&[(key, value)]).await?,
            Target::Echo(grpc) => {
                let _: KeyValue = unary(grpc, "/bench.Echo/One", KeyValue { key, value }).await?;
            }
        }
        Ok(())
    }

    /// A key that was written; linearizable where the server can.
    pub async fn get(&mut self, (key, like): Record) -> Result<()> {
        let found = match self {
            Target::RushKv(client) => client.get(key).await?.map(|record| record.value.len()),
            Target::Etcd(grpc) => {
                let asked = KeyValue { key, value: Bytes::new() };
                let found: Found = unary(grpc, "/etcdserverpb.KV/Range", asked).await?;
                found.records.first().map(|record| record.value.len())
            }
            Target::Redis(redis) => redis.get(&key).await?,
            // It answers with what it is sent: its request is as large as a get's answer.
            Target::Echo(grpc) => {
                let value = like.clone();
                let echo: KeyValue = unary(grpc, "/bench.Echo/One", KeyValue { key, value }).await?;
                Some(echo.value.len())
            }
        };
        match found {
            Some(length) if length == like.len() => Ok(()),
            found => Err(format!("a key that was written has {found:?} bytes").into()),
        }
    }

    /// Keys that differ from each other.
    pub async fn batch(&mut self, records: Vec<Record>) -> Result<()> {
        match self {
            Target::RushKv(client) => {
                let put = |(key, value)| WriteOp::Put { key, value, precondition: Precondition::None };
                let ops: Vec<WriteOp> = records.into_iter().map(put).collect();
                for outcome in client.batch_write(&ops).await? {
                    outcome?;
                }
            }
            Target::Etcd(grpc) => {
                let _: Ignored = unary(grpc, "/etcdserverpb.KV/Txn", txn(records)).await?;
            }
            Target::Redis(redis) => redis.set(&records).await?,
            Target::Echo(grpc) => {
                let _: Txn = unary(grpc, "/bench.Echo/Many", txn(records)).await?;
            }
        }
        Ok(())
    }

    /// So many records from `key` on, or as many as there are; how many those were.
    pub async fn scan(&mut self, key: Bytes, limit: u64) -> Result<u64> {
        match self {
            Target::RushKv(client) => {
                let options = ScanOptions { start: key, limit: Some(limit), ..ScanOptions::default() };
                let mut records = client.scan(options);
                let mut count = 0;
                while let Some(record) = records.next().await {
                    record?;
                    count += 1;
                }
                Ok(count)
            }
            Target::Etcd(grpc) => {
                let range_end = Bytes::from_static(b"bench;");
                let asked = Range { key, range_end, limit: i64::try_from(limit)? };
                let found: Found = unary(grpc, "/etcdserverpb.KV/Range", asked).await?;
                Ok(found.records.len() as u64)
            }
            Target::Redis(_) | Target::Echo(_) => Err("it has no order of keys".into()),
        }
    }
}

async fn unary<Q, A>(grpc: &mut Grpc<Channel>, path: &'static str, message: Q) -> Result<A>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    grpc.ready().await?;
    let codec = ProstCodec::<Q, A>::default();
    Ok(grpc.unary(Request::new(message), PathAndQuery::from_static(path), codec).await?.into_inner())
}

fn txn(records: Vec<Record>) -> Txn {
    let put = |(key, value)| RequestOp { put: Some(KeyValue { key, value }) };
    Txn { success: records.into_iter().map(put).collect() }
}
