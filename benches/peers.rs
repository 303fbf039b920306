//! One closed loop for RushKV and for what it is compared with: etcd, and a bare tonic echo, which is
//! the ceiling of unary gRPC. The same runtime, connections, keys and values for all.
//!
//! `cargo bench --bench peers` measures the echo alone. `benches/first_figures` starts the servers and
//! calls `peers TARGET ADDRESS WORK CLIENTS SECONDS` (`rushkv|etcd|echo`, `put|get|batch|fill`), which
//! prints one line of JSON; ADDRESS may be several with commas, each of which gets a connection; `peers serve-echo ADDRESS` is the echo's server.
//!
//! etcd's messages are declared here field by field, as far as they are used.

use std::convert::Infallible;
use std::future::Ready;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rushkv::client::{Client, Precondition, WriteOp};
use serde_json::json;
use tonic::client::Grpc;
use tonic::codegen::http::{self, uri::PathAndQuery};
use tonic::codegen::{Body, BoxFuture, Service, StdError};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 128;
const BATCH: u64 = 128; // etcd takes no more operations in a transaction
const CONNECTIONS: usize = 2; // as `rushkv-cli bench`

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// etcd's PutRequest; RangeRequest has its key in the same place; and the echo's message.
#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// etcd's RequestOp: what is here an optional field is a variant there, the same on the wire.
#[derive(Clone, PartialEq, prost::Message)]
struct RequestOp {
    #[prost(message, optional, tag = "2")]
    put: Option<KeyValue>,
}

/// etcd's TxnRequest without conditions; the echo's batch too.
#[derive(Clone, PartialEq, prost::Message)]
struct Txn {
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

#[derive(Clone, Copy, PartialEq)]
enum Work {
    Put,
    Get,
    Batch,
}

#[derive(Clone)]
enum Target {
    RushKv(Client),
    Etcd(Grpc<Channel>),
    Echo(Grpc<Channel>),
}

impl Target {
    async fn connect(name: &str, address: &str) -> Result<Vec<Target>, Failure> {
        let mut targets = Vec::new();
        let addresses: Vec<&str> = address.split(',').collect();
        for number in 0..CONNECTIONS.max(addresses.len()) {
            let address = addresses[number % addresses.len()];
            targets.push(match name {
                "rushkv" => Target::RushKv(Client::connect(address)?.with_connections(1)?),
                "etcd" => Target::Etcd(grpc(address).await?),
                "echo" => Target::Echo(grpc(address).await?),
                other => return Err(format!("there is no target {other:?}").into()),
            });
        }
        Ok(targets)
    }

    async fn call(&mut self, work: Work, keys: &[u64]) -> Result<(), Failure> {
        match (self, work) {
            (Target::RushKv(client), Work::Put) => {
                client.put(key(keys[0]), value(keys[0])).await?;
            }
            (Target::RushKv(client), Work::Get) => {
                client.get(key(keys[0])).await?.ok_or("a key that was written is not there")?;
            }
            (Target::RushKv(client), Work::Batch) => {
                let put = |&n: &u64| WriteOp::Put {
                    key: key(n),
                    value: value(n),
                    precondition: Precondition::None,
                };
                let ops: Vec<WriteOp> = keys.iter().map(put).collect();
                for outcome in client.batch_write(&ops).await? {
                    outcome?;
                }
            }
            (Target::Etcd(grpc), Work::Put) => {
                let _: Ignored = unary(grpc, "/etcdserverpb.KV/Put", record(keys[0])).await?;
            }
            (Target::Etcd(grpc), Work::Get) => {
                let asked = KeyValue { key: key(keys[0]), value: Bytes::new() };
                let found: Found = unary(grpc, "/etcdserverpb.KV/Range", asked).await?;
                if found.records.len() != 1 || found.records[0].value.len() != VALUE_BYTES {
                    return Err("a key that was written is not there".into());
                }
            }
            (Target::Etcd(grpc), Work::Batch) => {
                let _: Ignored = unary(grpc, "/etcdserverpb.KV/Txn", txn(keys)).await?;
            }
            (Target::Echo(grpc), Work::Put | Work::Get) => {
                let _: KeyValue = unary(grpc, "/bench.Echo/One", record(keys[0])).await?;
            }
            (Target::Echo(grpc), Work::Batch) => {
                let _: Txn = unary(grpc, "/bench.Echo/Many", txn(keys)).await?;
            }
        }
        Ok(())
    }
}

async fn grpc(address: &str) -> Result<Grpc<Channel>, Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    Ok(Grpc::new(endpoint.connect().await?))
}

async fn unary<Q, A>(grpc: &mut Grpc<Channel>, path: &'static str, message: Q) -> Result<A, Failure>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    grpc.ready().await?;
    let codec = ProstCodec::<Q, A>::default();
    Ok(grpc.unary(Request::new(message), PathAndQuery::from_static(path), codec).await?.into_inner())
}

fn key(n: u64) -> Bytes {
    format!("bench:{n}").into()
}

/// Not compressible.
fn value(n: u64) -> Bytes {
    let mut state = next(n | 1);
    let words = (0..VALUE_BYTES / 8).flat_map(|_| {
        state = next(state);
        (state ^ (state >> 29)).to_le_bytes()
    });
    words.collect()
}

fn next(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

fn record(n: u64) -> KeyValue {
    KeyValue { key: key(n), value: value(n) }
}

fn txn(keys: &[u64]) -> Txn {
    Txn { success: keys.iter().map(|&n| RequestOp { put: Some(record(n)) }).collect() }
}

/// One client: its next call begins when the last one is answered. Returns each call's latency.
async fn client(
    mut target: Target,
    work: Work,
    number: u64,
    until: Instant,
) -> Result<Vec<Duration>, Failure> {
    let mut latencies = Vec::new();
    let mut state = next(number);
    while Instant::now() < until {
        let count = if work == Work::Batch { BATCH } else { 1 };
        let first = {
            state = next(state);
            (state >> 32) % KEYS
        };
        // A transaction of etcd must not name a key twice.
        let keys: Vec<u64> = (0..count).map(|n| (first + n * 769) % KEYS).collect();
        let began = Instant::now();
        target.call(work, &keys).await?;
        latencies.push(began.elapsed());
    }
    Ok(latencies)
}

async fn measure(name: &str, address: &str, work: Work, clients: u64, seconds: u64) -> Result<(), Failure> {
    let targets = Target::connect(name, address).await?;
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..clients)
        .map(|number| {
            let target = targets[number as usize % targets.len()].clone();
            tokio::spawn(client(target, work, number, until))
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let elapsed = began.elapsed().as_secs_f64();
    if latencies.is_empty() {
        return Err("no call was answered in that time".into());
    }
    latencies.sort_unstable();
    let percentile = |share: f64| {
        let at = ((latencies.len() - 1) as f64 * share) as usize;
        (latencies[at].as_secs_f64() * 1e6).round() / 1e3
    };
    let keys_each = if work == Work::Batch { BATCH } else { 1 };
    let line = json!({
        "clients": clients,
        "seconds": (elapsed * 1e3).round() / 1e3,
        "per_s": (latencies.len() as f64 * keys_each as f64 / elapsed).round(),
        "p50_ms": percentile(0.5),
        "p99_ms": percentile(0.99),
        "max_ms": percentile(1.0),
    });
    println!("{line}");
    Ok(())
}

/// Writes every key once.
async fn fill(name: &str, address: &str) -> Result<(), Failure> {
    let mut target = Target::connect(name, address).await?.swap_remove(0);
    let keys: Vec<u64> = (0..KEYS).collect();
    for batch in keys.chunks(BATCH as usize) {
        target.call(Work::Batch, batch).await?;
    }
    Ok(())
}

/// Answers with what it was sent.
#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

impl<M: Send + 'static> UnaryService<M> for Echo {
    type Response = M;
    type Future = Ready<Result<Response<M>, Status>>;

    fn call(&mut self, request: Request<M>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_inner())))
    }
}

impl<B> Service<http::Request<B>> for Echo
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        Box::pin(async move {
            Ok(if request.uri().path().ends_with("/Many") {
                tonic::server::Grpc::new(ProstCodec::<Txn, Txn>::default()).unary(Echo, request).await
            } else {
                tonic::server::Grpc::new(ProstCodec::<KeyValue, KeyValue>::default())
                    .unary(Echo, request)
                    .await
            })
        })
    }
}

/// The echo in a process of its own, ended with this one.
struct EchoProcess(std::process::Child);

impl EchoProcess {
    fn start(address: &str) -> Result<EchoProcess, Failure> {
        let program = std::env::current_exe()?;
        Ok(EchoProcess(std::process::Command::new(program).args(["serve-echo", address]).spawn()?))
    }
}

impl Drop for EchoProcess {
    fn drop(&mut self) {
        // It is gone already, or it is ours to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn echo_alone() -> Result<(), Failure> {
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let address = free.to_string();
    let _server = EchoProcess::start(&address)?;
    let began = Instant::now();
    while let Err(error) = grpc(&address).await {
        if began.elapsed() > Duration::from_secs(10) {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for clients in [1, 64, 256] {
        measure("echo", &address, Work::Put, clients, 2).await?;
    }
    measure("echo", &address, Work::Batch, 64, 2).await
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["serve-echo", address] => {
            Ok(Server::builder().tcp_nodelay(true).add_service(Echo).serve(address.parse()?).await?)
        }
        [target, address, "fill"] => fill(target, address).await,
        [target, address, work, clients, seconds] => {
            let work = match work {
                "put" => Work::Put,
                "get" => Work::Get,
                "batch" => Work::Batch,
                other => return Err(format!("there is no work {other:?}").into()),
            };
            measure(target, address, work, clients.parse()?, seconds.parse()?).await
        }
        _ => echo_alone().await,
    }
}
