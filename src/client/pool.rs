//! Where requests go: the endpoints, a few connections to each, and which of them are worth asking.
//!
//! There are those that the caller gave, and those that the cluster's nodes tell of. The pool is bounded:
//! what is learned goes again when the cluster does not name it any more. One that can't be reached is
//! left alone for a while, longer each time; then one call tries it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint as Dial};

use super::call::jittered;
use super::pipeline::{Asked, Pipeline};
use crate::error::{Error, Reason, Result};
use crate::limits;
use crate::proto::v1::pipeline_request::Call;
use crate::transport::GatedChannel;

/// The port of an endpoint that names none.
pub const PORT_DEFAULT: u16 = 8080;

/// The host of an endpoint that names only a port.
const HOST_DEFAULT: &str = "localhost";

/// HTTP/2 windows: one batch may be on its way in each stream, and several streams' batches on a
/// connection, before anybody waits for a window update.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// A peer that is silent for this long while calls are under way is asked whether it lives.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests that wait in one connection for their turn; more wait in their callers.
const CONNECTION_QUEUE: usize = 256;

/// How long an endpoint that failed is left alone, doubled with each failure in a row. The first is
/// below what an election takes, the longest below what a node's restart does.
const ILL_FIRST: Duration = Duration::from_millis(250);
const ILL_MAX: Duration = Duration::from_secs(4);

/// A server's address, and the connections to it, opened when they are first used.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// host:port, as errors name it.
    pub(super) name: String,
    /// The cluster whose nodes told of it; `None`: the caller did.
    pub(super) cluster: Option<MetadataValue<Ascii>>,
    dial: Dial,
    channels: Vec<OnceLock<Channel>>,
    /// One for each channel.
    pipelines: Vec<Pipeline>,
    turn: AtomicUsize,
    health: Health,
}

impl Endpoint {
    fn new(name: String, cluster: Option<MetadataValue<Ascii>>, settings: Settings) -> Result<Endpoint> {
        let dial = Dial::from_shared(format!("http://{name}"))
            .map_err(|_| malformed(&name, "that is not host:port"))?
            .connect_timeout(settings.connect_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .http2_max_header_list_size(limits::HEADER_BYTES_MAX)
            .buffer_size(CONNECTION_QUEUE)
            .user_agent(concat!("rushkv/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| Error::new(Reason::Internal, error.to_string()))?;
        let connections = settings.connections.max(1);
        let channels = (0..connections).map(|_| OnceLock::new()).collect();
        let pipelines = (0..connections).map(|_| Pipeline::default()).collect();
        let (turn, health) = (AtomicUsize::new(0), Health::new());
        Ok(Endpoint { name, cluster, dial, channels, pipelines, turn, health })
    }

    /// One of the connections, in turn. Must be called inside a Tokio runtime: the connection's task
    /// runs there.
    pub(super) fn channel(&self) -> GatedChannel {
        self.channel_at(self.turn())
    }

    fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed) % self.channels.len()
    }

    fn channel_at(&self, turn: usize) -> GatedChannel {
        GatedChannel(self.channels[turn].get_or_init(|| self.dial.connect_lazy()).clone())
    }

    /// Sends a call by the pipeline of one of the connections, in turn; `None`: it has to go alone.
    pub(super) fn pipeline(
        &self,
        call: impl FnOnce() -> Call,
        bytes: usize,
        timeout: Duration,
    ) -> Option<Asked> {
        let turn = self.turn();
        let channel = || (self.channel_at(turn), self.cluster.clone());
        self.pipelines[turn].start(call, bytes, timeout, channel)
    }

    #[cfg(test)]
    pub(super) fn has_pipeline(&self) -> bool {
        self.pipelines.iter().any(Pipeline::is_open)
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.pipelines.iter().map(Pipeline::waiting).sum()
    }

    /// Whether to ask it now. After a failure, once its time has come, only one caller hears yes.
    pub(super) fn is_worth_asking(&self) -> bool {
        self.health.is_worth_asking(Instant::now())
    }

    /// It answered.
    pub(super) fn is_well(&self) {
        self.health.well();
    }

    /// It can't be reached, or is silent.
    pub(super) fn is_ill(&self) {
        self.health.ill(Instant::now());
    }
}

/// Two of the same name may differ in their cluster.
impl PartialEq for Endpoint {
    fn eq(&self, other: &Endpoint) -> bool {
        std::ptr::eq(self, other)
    }
}

/// How an endpoint did lately.
#[derive(Debug)]
struct Health {
    since: Instant,
    /// In milliseconds since `since`; 0: it is well.
    ill_until: AtomicU64,
    failures: AtomicU32,
}

impl Health {
    fn new() -> Health {
        Health { since: Instant::now(), ill_until: AtomicU64::new(0), failures: AtomicU32::new(0) }
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn is_worth_asking(&self, now: Instant) -> bool {
        let until = self.ill_until.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        if self.millis(now) < until {
            return false;
        }
        // Who gets here first tries it; the others wait for what comes of that.
        let next = self.millis(now + ILL_MAX);
        self.ill_until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn well(&self) {
        if self.ill_until.load(Ordering::Relaxed) != 0 {
            self.ill_until.store(0, Ordering::Relaxed);
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    fn ill(&self, now: Instant) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(16);
        let pause = jittered((ILL_FIRST * (1 << failures.min(8))).min(ILL_MAX));
        self.ill_until.store(self.millis(now + pause), Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    connections: usize,
    connect_timeout: Duration,
}

/// Every endpoint, and the one that is asked now by calls that may go anywhere: the same one until it
/// fails.
pub(super) struct Pool {
    settings: Settings,
    /// The first so many of `endpoints` are the caller's.
    given: usize,
    endpoints: RwLock<Arc<[Arc<Endpoint>]>>,
    current: AtomicUsize,
}

impl Pool {
    pub(super) fn new(endpoints: &[String], connections: usize, connect_timeout: Duration) -> Result<Pool> {
        if endpoints.is_empty() {
            return Err(Error::new(
                Reason::InvalidArgument,
                "no endpoint given; name at least one host:port",
            ));
        }
        let settings = Settings { connections, connect_timeout };
        let endpoints = endpoints
            .iter()
            .map(|text| Ok(Arc::new(Endpoint::new(normalise(text)?, None, settings)?)))
            .collect::<Result<Arc<[_]>>>()?;
        let given = endpoints.len();
        Ok(Pool { settings, given, endpoints: RwLock::new(endpoints), current: AtomicUsize::new(0) })
    }

    pub(super) fn all(&self) -> Arc<[Arc<Endpoint>]> {
        self.endpoints.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the caller gave.
    pub(super) fn given(&self) -> Vec<Arc<Endpoint>> {
        self.all()[..self.given].to_vec()
    }

    /// The endpoint that calls go to which may go anywhere.
    pub(super) fn current(&self) -> Arc<Endpoint> {
        let endpoints = self.all();
        endpoints[self.current.load(Ordering::Relaxed) % endpoints.len()].clone()
    }

    /// The next one from the current one on that is worth asking and not among `tried`.
    pub(super) fn pick(&self, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let endpoints = self.all();
        let first = self.current.load(Ordering::Relaxed);
        let in_turn = (0..endpoints.len()).map(|at| &endpoints[(first + at) % endpoints.len()]);
        in_turn.filter(|one| !tried.contains(one)).find(|one| one.is_worth_asking()).cloned()
    }

    /// Turns from an endpoint that failed to the next, unless somebody has already.
    pub(super) fn leave(&self, endpoint: &Arc<Endpoint>) {
        let endpoints = self.all();
        let current = self.current.load(Ordering::Relaxed);
        if endpoints[current % endpoints.len()] == *endpoint {
            let next = (current + 1) % endpoints.len();
            let _ = self.current.compare_exchange(current, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The endpoint at an address that the nodes of `cluster` tell; a new one if need be. `None`: it is
    /// no address, or there are too many.
    pub(super) fn learn(&self, address: &str, cluster: &str) -> Option<Arc<Endpoint>> {
        let find = |endpoints: &[Arc<Endpoint>]| {
            let same = |id: &MetadataValue<Ascii>| id.as_bytes() == cluster.as_bytes();
            let fits = |one: &&Arc<Endpoint>| one.name == address && one.cluster.as_ref().is_none_or(same);
            endpoints.iter().find(fits).cloned()
        };
        if let Some(known) = find(&self.all()) {
            return Some(known);
        }
        let new = Endpoint::new(normalise(address).ok()?, Some(cluster.parse().ok()?), self.settings);
        let new = Arc::new(new.ok()?);
        let mut endpoints = self.endpoints.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been faster.
        if let Some(known) = find(&endpoints) {
            return Some(known);
        }
        if endpoints.len() - self.given >= limits::MEMBERS_MAX {
            return None;
        }
        *endpoints = endpoints.iter().cloned().chain([new.clone()]).collect();
        Some(new)
    }

    /// Drops every learned endpoint whose address is not among these, or that is of another cluster.
    pub(super) fn keep(&self, addresses: &BTreeSet<&str>, cluster: &str) {
        let mut endpoints = self.endpoints.write().unwrap_or_else(PoisonError::into_inner);
        let stays = |one: &Endpoint| match &one.cluster {
            None => true,
            Some(id) => id.as_bytes() == cluster.as_bytes() && addresses.contains(one.name.as_str()),
        };
        if !endpoints.iter().all(|one| stays(one)) {
            *endpoints = endpoints.iter().filter(|one| stays(one)).cloned().collect();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all().iter().map(|endpoint| &endpoint.name)).finish()
    }
}

fn malformed(text: &str, why: &str) -> Error {
    Error::new(Reason::InvalidArgument, format!("endpoint {text:?}: {why}; write host:port"))
}

/// host:port of an endpoint as people write it: the port may be left out, `http://` may be there.
fn normalise(text: &str) -> Result<String> {
    let trimmed = text.trim();
    if trimmed.starts_with("https://") {
        return Err(malformed(text, "TLS is not supported yet"));
    }
    let host = trimmed.strip_prefix("http://").unwrap_or(trimmed).trim_end_matches('/');
    if host.is_empty() || host.contains(['/', ' ', '@', '?', '#']) {
        return Err(malformed(text, "that is not host:port"));
    }
    let host = match host.strip_prefix(':') {
        // As servers write the address they listen on; "::1" is an IPv6 address without its brackets.
        Some(port) if !port.starts_with(':') => format!("{HOST_DEFAULT}:{port}"),
        _ => host.to_string(),
    };
    // Colons inside brackets belong to an IPv6 address.
    let after_address = host.rfind(']').map_or(0, |at| at + 1);
    match host[after_address..].split_once(':') {
        None if host.starts_with('[') == (after_address > 0) => Ok(format!("{host}:{PORT_DEFAULT}")),
        Some((_, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(host),
        Some((_, port)) if port.contains(':') => Err(malformed(text, "an IPv6 address stands in brackets")),
        _ => Err(malformed(text, "its port is not a number from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_taken_as_people_write_them() {
        for (text, want) in [
            ("localhost:8080", Some("localhost:8080")),
            ("localhost", Some("localhost:8080")),
            (" http://db.example:9000/ ", Some("db.example:9000")),
            ("[::1]:8081", Some("[::1]:8081")),
            ("[::1]", Some("[::1]:8080")),
            ("127.0.0.1:1", Some("127.0.0.1:1")),
            (":8081", Some("localhost:8081")),
            (":", None),
            ("", None),
            ("https://db:1", None),
            ("db:0", None),
            ("db:65536", None),
            ("db:port", None),
            ("::1", None),
            ("user@db:1", None),
            ("db:1/path", None),
        ] {
            assert_eq!(normalise(text).ok().as_deref(), want, "{text:?}");
        }
    }

    fn pool(names: &[&str]) -> Pool {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        Pool::new(&names, 1, Duration::from_secs(1)).unwrap()
    }

    fn names(pool: &Pool) -> Vec<String> {
        pool.all().iter().map(|one| one.name.clone()).collect()
    }

    #[test]
    fn a_failed_endpoint_is_left_once() {
        let pool = pool(&["a:1", "b:1"]);
        let endpoint = pool.current();
        assert_eq!(endpoint.name, "a:1");
        pool.leave(&endpoint);
        pool.leave(&endpoint);
        assert_eq!(pool.current().name, "b:1", "the second caller to notice changes nothing");
    }

    #[test]
    fn what_is_ill_is_not_picked() {
        let pool = pool(&["a:1", "b:1"]);
        let a = pool.pick(&[]).unwrap();
        assert_eq!(a.name, "a:1");
        a.is_ill();
        let b = pool.pick(&[]).unwrap();
        assert_eq!(b.name, "b:1");
        assert!(pool.pick(&[b]).is_none(), "nobody is left that is worth asking");
    }

    #[test]
    fn what_failed_is_left_alone_for_longer_each_time_and_then_tried_by_one() {
        let health = Health::new();
        let mut now = health.since + Duration::from_secs(1);
        assert!(health.is_worth_asking(now) && health.is_worth_asking(now));
        let mut alone = ILL_FIRST;
        for _ in 0..8 {
            health.ill(now);
            assert!(!health.is_worth_asking(now + alone / 2 - Duration::from_millis(1)), "{alone:?}");
            now += alone + Duration::from_millis(1);
            assert!(health.is_worth_asking(now), "{alone:?}");
            assert!(!health.is_worth_asking(now), "one caller tries it, the others don't");
            alone = (alone * 2).min(ILL_MAX);
        }
        health.well();
        assert!(health.is_worth_asking(now) && health.is_worth_asking(now));
        health.ill(now);
        assert!(health.is_worth_asking(now + ILL_FIRST + Duration::from_millis(1)), "it begins anew");
    }

    #[test]
    fn what_is_learned_is_bounded_and_goes_with_its_cluster() {
        let pool = pool(&["a:1"]);
        assert_eq!(pool.learn("a:1", "c1").unwrap(), pool.current(), "the caller's own, not a second one");
        let b = pool.learn("b:1", "c1").unwrap();
        assert_eq!(pool.learn("b:1", "c1").unwrap(), b);
        assert!(pool.learn("not an address", "c1").is_none());
        assert_ne!(pool.learn("b:1", "c2").unwrap(), b, "another cluster's may be another node");
        assert_eq!(names(&pool), ["a:1", "b:1", "b:1"]);
        pool.keep(&BTreeSet::from(["b:1"]), "c1");
        assert_eq!(pool.all()[1..], [b]);
        pool.keep(&BTreeSet::new(), "c1");
        assert_eq!(names(&pool), ["a:1"], "the caller's stay");
        for port in 1..=limits::MEMBERS_MAX + 10 {
            pool.learn(&format!("n:{port}"), "c1");
        }
        assert_eq!(pool.all().len(), 1 + limits::MEMBERS_MAX);
    }
}
