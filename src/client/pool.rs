//! Where requests go: the endpoints, a few connections to each, and which endpoint is asked next.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint as Dial};

use crate::error::{Error, Reason, Result};
use crate::limits;
use crate::transport::GatedChannel;

/// The port of an endpoint that names none.
pub const PORT_DEFAULT: u16 = 8080;

/// HTTP/2 windows: one batch may be on its way in each stream, and several streams' batches on a
/// connection, before anybody waits for a window update.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// A peer that is silent for this long while calls are under way is asked whether it lives.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests that wait in one connection for their turn; more wait in their callers.
const CONNECTION_QUEUE: usize = 256;

/// A server's address, and the connections to it, opened when they are first used.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// host:port, as errors name it.
    pub(super) name: String,
    dial: Dial,
    channels: Vec<OnceLock<Channel>>,
    turn: AtomicUsize,
}

impl Endpoint {
    fn new(text: &str, connections: usize, connect_timeout: Duration) -> Result<Endpoint> {
        let name = normalise(text)?;
        let dial = Dial::from_shared(format!("http://{name}"))
            .map_err(|_| malformed(text, "that is not host:port"))?
            .connect_timeout(connect_timeout)
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
        let channels = (0..connections.max(1)).map(|_| OnceLock::new()).collect();
        Ok(Endpoint { name, dial, channels, turn: AtomicUsize::new(0) })
    }

    /// One of the connections, in turn. Must be called inside a Tokio runtime: the connection's task
    /// runs there.
    pub(super) fn channel(&self) -> GatedChannel {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        GatedChannel(self.channels[turn].get_or_init(|| self.dial.connect_lazy()).clone())
    }
}

/// Every endpoint, and the one that is asked now: the same one until it fails.
pub(super) struct Pool {
    endpoints: Vec<Endpoint>,
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
        let endpoints = endpoints
            .iter()
            .map(|text| Endpoint::new(text, connections, connect_timeout))
            .collect::<Result<Vec<_>>>()?;
        Ok(Pool { endpoints, current: AtomicUsize::new(0) })
    }

    pub(super) fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// The endpoint to ask, and its number for [`Pool::leave`].
    pub(super) fn current(&self) -> (usize, &Endpoint) {
        let number = self.current.load(Ordering::Relaxed) % self.endpoints.len();
        (number, &self.endpoints[number])
    }

    pub(super) fn endpoint(&self, number: usize) -> &Endpoint {
        &self.endpoints[number]
    }

    /// Turns from an endpoint that failed to the next, unless somebody has already.
    pub(super) fn leave(&self, number: usize) {
        let next = (number + 1) % self.endpoints.len();
        let _ = self.current.compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(|endpoint| endpoint.name.as_str())
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
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
    // Colons inside brackets belong to an IPv6 address.
    let after_address = host.rfind(']').map_or(0, |at| at + 1);
    match host[after_address..].split_once(':') {
        None if host.starts_with('[') == (after_address > 0) => Ok(format!("{host}:{PORT_DEFAULT}")),
        Some((_, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(host.to_string()),
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

    #[test]
    fn a_failed_endpoint_is_left_once() {
        let names = ["a:1".to_string(), "b:1".to_string()];
        let pool = Pool::new(&names, 1, Duration::from_secs(1)).unwrap();
        let (number, endpoint) = pool.current();
        assert_eq!(endpoint.name, "a:1");
        pool.leave(number);
        pool.leave(number);
        assert_eq!(pool.current().1.name, "b:1", "the second caller to notice changes nothing");
    }
}
