//! The client library.
//!
//! ```no_run
//! # async fn example() -> rushkv::error::Result<()> {
//! let client = rushkv::Client::connect("localhost:8080")?;
//! client.put("key1", "value1").await?;
//! let record = client.get("key1").await?;
//! # Ok(())
//! # }
//! ```
//!
//! Every call has a deadline, which the server is told. Within it, a call that fails is made again, at
//! the next endpoint if there are several, as long as that can do no harm: reads always, writes only if
//! they surely did not take place. A write whose outcome is open fails with
//! [`Reason::OutcomeUnknown`](crate::error::Reason::OutcomeUnknown); nothing here writes it twice.
//!
//! Every error names the endpoint it comes from, in its message and as metadata `endpoint`.
//!
//! Any node answers for any key. An answer that had to come from elsewhere says from where, and the client
//! goes straight to the nodes that lead from then on. Batches are parted by leader, and their parts sent at once;
//! scans go to any node.

mod batch;
mod call;
mod pipeline;
mod pool;
mod scan;
mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod types;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::time::Instant;

pub use call::UNREACHED;
use call::{Caller, Kind};
pub use pool::PORT_DEFAULT;
use pool::Pool;
use table::Routes;
pub use types::{
    Deleted, Precondition, Record, ScanOptions, WriteOp, WriteOutcome, Written, check, prefix_end,
};

use crate::error::Result;
use crate::limits;
use crate::proto::v1;
use crate::proto::v1::debug_client::DebugClient;
use crate::transport::GatedChannel;
use v1::cluster_client::ClusterClient;
use v1::kv_client::KvClient;

/// How long a node is asked what the cluster is like, after one that does not belong to it any more.
const SECOND_OPINION_WITHIN: Duration = Duration::from_secs(1);

/// A call's deadline, from now, unless the builder is told otherwise.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// How long a connection may take to open.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);

/// Connections to each endpoint. One connection is one task at either end; a second one lets two cores
/// work, more only split batches of frames.
pub const CONNECTIONS_DEFAULT: usize = 2;

/// What a client is made with.
#[derive(Debug, Clone)]
pub struct Builder {
    endpoints: Vec<String>,
    timeout: Duration,
    connect_timeout: Duration,
    unreachable_after: Duration,
    connections: usize,
    pipelined: bool,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            endpoints: Vec::new(),
            timeout: TIMEOUT_DEFAULT,
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            unreachable_after: Duration::MAX,
            connections: CONNECTIONS_DEFAULT,
            pipelined: true,
        }
    }
}

impl Builder {
    /// Adds a server: host:port, or host for port 8080. Several may stand in one text, with commas.
    #[must_use]
    pub fn endpoint(mut self, endpoint: &str) -> Builder {
        let names = endpoint.split(',').map(str::trim).filter(|name| !name.is_empty());
        self.endpoints.extend(names.map(String::from));
        self
    }

    /// How long each call may take, all its attempts together; between messages in a scan.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Builder {
        self.timeout = timeout;
        self
    }

    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.connect_timeout = timeout;
        self
    }

    /// How long a call goes on while no server at all can be reached; at most, and unless this is called,
    /// its whole timeout, so that it outlives a restart.
    #[must_use]
    pub fn unreachable_after(mut self, patience: Duration) -> Builder {
        self.unreachable_after = patience;
        self
    }

    /// Connections to each endpoint; at least one.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Builder {
        self.connections = connections;
        self
    }

    /// Whether calls on single keys share a stream to each server, once there were a few (the default), or each has
    /// its own.
    #[must_use]
    pub fn pipelined(mut self, pipelined: bool) -> Builder {
        self.pipelined = pipelined;
        self
    }

    /// Makes the client. Opens no connection yet: the first call does.
    ///
    /// # Errors
    /// `InvalidArgument`: there is no endpoint, or one is not host:port.
    pub fn build(self) -> Result<Client> {
        let pool = Pool::new(&self.endpoints, self.connections, self.connect_timeout)?;
        let timeout = self.timeout;
        let Builder { connect_timeout, unreachable_after, endpoints, pipelined, .. } = self;
        let routes = Routes::default();
        let inner = Inner { pool, routes, connect_timeout, unreachable_after, endpoints, pipelined };
        Ok(Client { inner: Arc::new(inner), timeout })
    }
}

struct Inner {
    pool: Pool,
    routes: Routes,
    connect_timeout: Duration,
    unreachable_after: Duration,
    endpoints: Vec<String>,
    pipelined: bool,
}

/// A client. Cheap to clone; clones share their connections. Its calls must be made inside a Tokio
/// runtime, the same one for all.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    timeout: Duration,
}

impl Client {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A client of this server, or of these (with commas), with the defaults. Opens no connection yet.
    pub fn connect(endpoints: &str) -> Result<Client> {
        Client::builder().endpoint(endpoints).build()
    }

    /// The same client, with another deadline for its calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Client {
        Client { inner: self.inner.clone(), timeout }
    }

    /// A client of the same endpoints with connections of its own, this many to each.
    pub fn with_connections(&self, connections: usize) -> Result<Client> {
        let Inner { connect_timeout, unreachable_after, pipelined, .. } = *self.inner;
        let (endpoints, timeout) = (self.inner.endpoints.clone(), self.timeout);
        Builder { endpoints, timeout, connect_timeout, unreachable_after, connections, pipelined }.build()
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The endpoints, as errors name them.
    pub fn endpoints(&self) -> Vec<String> {
        self.inner.pool.given().iter().map(|endpoint| endpoint.name.clone()).collect()
    }

    /// Sets a key. It is on stable storage of a majority of its replicas when this returns.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written> {
        self.put_if(key, value, Precondition::None).await
    }

    /// Sets a key if the precondition holds.
    ///
    /// # Errors
    /// `PreconditionFailed`, with metadata `current_version`: nothing was written.
    pub async fn put_if(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        precondition: Precondition,
    ) -> Result<Written> {
        let op = WriteOp::Put { key: key.into(), value: value.into(), precondition };
        types::check(&op)?;
        let WriteOp::Put { key, value, .. } = op else { unreachable!("made above") };
        let request = v1::PutRequest { key, value, precondition: precondition.to_wire() };
        let send = |channel, request| async move { kv_client(channel).put(request).await };
        let call = self.caller().call_leader(Kind::Write, &request.key, &request, self.deadline(), send);
        Ok(call.await?.into())
    }

    /// Reads a key; `None`: there is no such key. Reflects every write acknowledged before the call.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Record>> {
        self.get_as(key.into(), false).await
    }

    /// Reads what the asked node has, which may lag behind; needs no quorum.
    pub async fn get_stale(&self, key: impl Into<Bytes>) -> Result<Option<Record>> {
        self.get_as(key.into(), true).await
    }

    async fn get_as(&self, key: Bytes, stale: bool) -> Result<Option<Record>> {
        types::check_key(&key)?;
        let request = v1::GetRequest { key, consistency: consistency(stale).into() };
        let send = |channel, request| async move { kv_client(channel).get(request).await };
        let deadline = self.deadline();
        let response: v1::GetResponse = match stale {
            true => self.caller().call(Kind::Read, &request, deadline, send).await?.0,
            false => self.caller().call_leader(Kind::Read, &request.key, &request, deadline, send).await?,
        };
        Ok(response.record.map(Record::from))
    }

    /// Whether there is such a key. Its value is read on the way.
    pub async fn exists(&self, key: impl Into<Bytes>) -> Result<bool> {
        Ok(self.get(key).await?.is_some())
    }

    /// Removes a key; one that is not there is no error.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Deleted> {
        self.delete_if(key, Precondition::None).await
    }

    /// Removes a key if the precondition holds.
    ///
    /// # Errors
    /// `PreconditionFailed`, with metadata `current_version`: nothing was removed.
    pub async fn delete_if(&self, key: impl Into<Bytes>, precondition: Precondition) -> Result<Deleted> {
        let op = WriteOp::Delete { key: key.into(), precondition };
        types::check(&op)?;
        let WriteOp::Delete { key, .. } = op else { unreachable!("made above") };
        let request = v1::DeleteRequest { key, precondition: precondition.to_wire() };
        let send = |channel, request| async move { kv_client(channel).delete(request).await };
        let call = self.caller().call_leader(Kind::Write, &request.key, &request, self.deadline(), send);
        Ok(call.await?.into())
    }

    /// Reads a range in key order. The stream outlives broken connections, and ends after its first
    /// error. Partitions, and the pages of one, are separate consistent views.
    pub fn scan(&self, options: ScanOptions) -> impl Stream<Item = Result<Record>> + Send + Unpin + 'static {
        Box::pin(scan::scan(self.clone(), options))
    }

    /// Writes many keys: atomic within a partition, not across. One outcome per operation, in order.
    ///
    /// # Errors
    /// No operation was done, as far as is known: there was no answer, or each failed for a while until the deadline. If
    /// the error's `happened()` is `Unknown`, each of them may have taken place, or may yet; else none did.
    pub async fn batch_write(&self, ops: &[WriteOp]) -> Result<Vec<Result<WriteOutcome>>> {
        batch::write(self, ops).await
    }

    /// Reads many keys, each partition's from one consistent view; but what one answer has no room for, some 3 MiB of
    /// records, is asked for again, and comes from a later view. One result per key, in order.
    pub async fn batch_get(&self, keys: &[Bytes]) -> Result<Vec<Result<Option<Record>>>> {
        batch::get(self, keys, false).await
    }

    /// The cluster as the asked node knows it.
    pub async fn cluster_info(&self) -> Result<v1::InfoResponse> {
        let send = |channel, request| async move { cluster_client(channel).info(request).await };
        let (request, deadline) = (v1::InfoRequest {}, self.deadline());
        let (info, asked) = self.caller().call(Kind::Read, &request, deadline, send).await?;
        if removed(&info).is_none() {
            return Ok(info);
        }
        // Who was removed knows only what was. Another one may know better, and later calls better ask that.
        for endpoint in self.inner.pool.all().iter() {
            if endpoint.name == asked {
                self.inner.pool.leave(endpoint);
                continue;
            }
            let until = deadline.min(Instant::now() + SECOND_OPINION_WITHIN);
            let left = until.saturating_duration_since(Instant::now());
            let answer = self.caller().attempt(Kind::Read, endpoint, &request, left, until, &send).await;
            if let Some(better) = answer.ok().map(tonic::Response::into_inner)
                && removed(&better).is_none()
            {
                return Ok(better);
            }
        }
        Ok(info)
    }

    pub async fn nodes(&self) -> Result<Vec<v1::Node>> {
        let send = |channel, request| async move { cluster_client(channel).list_nodes(request).await };
        Ok(self.ask(v1::ListNodesRequest {}, send).await?.nodes)
    }

    pub async fn partitions(&self) -> Result<Vec<v1::Partition>> {
        let send = |channel, request| async move { cluster_client(channel).list_partitions(request).await };
        Ok(self.ask(v1::ListPartitionsRequest {}, send).await?.partitions)
    }

    /// A key's hash, and the partition that holds it.
    pub async fn locate(&self, key: impl Into<Bytes>) -> Result<v1::LocateKeyResponse> {
        let key = key.into();
        types::check_key(&key)?;
        let send = |channel, request| async move { cluster_client(channel).locate_key(request).await };
        self.ask(v1::LocateKeyRequest { key }, send).await
    }

    /// Takes the node at `address` in, which is a cluster of one so far and was never written to; asking
    /// again changes nothing. Answers once that is decided: [`v1::JoinResponse::is_member`] says whether it
    /// is done.
    ///
    /// # Errors
    /// `ClusterRefused`: it can't be taken in. `Unavailable`: it does not answer.
    pub async fn join(&self, address: &str) -> Result<v1::JoinResponse> {
        let request = v1::JoinRequest { address: address.to_string() };
        let send = |channel, request| async move { cluster_client(channel).join(request).await };
        Ok(self.caller().call(Kind::Write, &request, self.deadline(), send).await?.0)
    }

    /// Has a node leave the cluster; asking again changes nothing. Answers once that is decided: moving
    /// its copies away goes on by itself.
    ///
    /// # Errors
    /// `NotFound`: there is no such node. `ClusterRefused`: it can't leave.
    pub async fn leave(&self, node: &str) -> Result<()> {
        let request = v1::LeaveRequest { node: node.to_string() };
        let send = |channel, request| async move { cluster_client(channel).leave(request).await };
        self.caller().call(Kind::Write, &request, self.deadline(), send).await?;
        Ok(())
    }

    /// Compares the replicas of these partitions, or of all.
    pub async fn compare(&self, partitions: Vec<u32>) -> Result<Vec<v1::Comparison>> {
        let send = |channel, request| async move { debug_client(channel).compare(request).await };
        let answer: v1::CompareResponse = self.ask(v1::CompareRequest { partitions }, send).await?;
        Ok(answer.comparisons)
    }

    /// Lets every node check all that its engine holds, from now on.
    pub async fn scrub(&self) -> Result<v1::ScrubResponse> {
        let send = |channel, request| async move { debug_client(channel).scrub(request).await };
        self.ask(v1::ScrubRequest {}, send).await
    }

    async fn ask<M, R, S, F>(&self, message: M, send: S) -> Result<R>
    where
        M: Clone,
        S: Fn(GatedChannel, tonic::Request<M>) -> F,
        F: Future<Output = Result<tonic::Response<R>, tonic::Status>>,
    {
        Ok(self.caller().call(Kind::Read, &message, self.deadline(), send).await?.0)
    }

    fn caller(&self) -> Caller<'_> {
        Caller { inner: &self.inner }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoints", &self.inner.pool).field("timeout", &self.timeout).finish()
    }
}

/// That who answered is no member any more, if so.
pub(crate) fn removed(info: &v1::InfoResponse) -> Option<&v1::Problem> {
    let name = &info.answered_by.as_ref()?.name;
    info.problems.iter().find(|problem| problem.reason == "REMOVED" && problem.nodes.contains(name))
}

fn kv_client(channel: GatedChannel) -> KvClient<GatedChannel> {
    KvClient::new(channel)
        .max_decoding_message_size(limits::DECODE_BYTES_MAX)
        .max_encoding_message_size(limits::DECODE_BYTES_MAX)
}

fn debug_client(channel: GatedChannel) -> DebugClient<GatedChannel> {
    DebugClient::new(channel)
        .max_decoding_message_size(limits::DECODE_BYTES_MAX)
        .max_encoding_message_size(limits::DECODE_BYTES_MAX)
}

fn cluster_client(channel: GatedChannel) -> ClusterClient<GatedChannel> {
    ClusterClient::new(channel)
        .max_decoding_message_size(limits::DECODE_BYTES_MAX)
        .max_encoding_message_size(limits::DECODE_BYTES_MAX)
}

fn consistency(stale: bool) -> v1::Consistency {
    if stale { v1::Consistency::Stale } else { v1::Consistency::Linearizable }
}
