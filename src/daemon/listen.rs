//! Binds ports, and says what is wrong where one can't be had.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use tokio::net::{TcpListener, lookup_host};

use crate::config::HostPort;

/// Listens on `addr`; `key` is what sets it. Of a name's addresses one is taken, IPv4 first, as Go
/// does: who was told "localhost" finds the original's clients there.
pub async fn bind(key: &str, addr: &HostPort) -> Result<TcpListener, String> {
    let found = lookup_host((addr.host.as_str(), addr.port)).await;
    let mut candidates: Vec<SocketAddr> = match found {
        Ok(found) => found.collect(),
        Err(error) => {
            return Err(format!(
                "{key} = \"{addr}\": the host name {} is not known: {error}; give one that is, or an IP address",
                addr.host
            ));
        }
    };
    candidates.sort_by_key(SocketAddr::is_ipv6);
    let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
    for candidate in candidates {
        match TcpListener::bind(candidate).await {
            Ok(listener) => return Ok(listener),
            // Not on to the next one: half of the clients would find the other program.
            Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(explain(key, addr, &error)),
            Err(error) => last = error,
        }
    }
    Err(explain(key, addr, &last))
}

fn explain(key: &str, addr: &HostPort, error: &io::Error) -> String {
    let port = addr.port;
    let way_out = match error.kind() {
        ErrorKind::AddrInUse => format!(
            "another program listens there (ss -ltnp 'sport = :{port}' shows which); stop it, or choose \
             another port"
        ),
        ErrorKind::AddrNotAvailable => {
            "this host has no such address (ip addr shows those it has); choose one of them".to_string()
        }
        ErrorKind::PermissionDenied => "choose a port from 1024 on".to_string(),
        _ => "choose another address".to_string(),
    };
    format!("{key} = \"{addr}\": can't listen: {error}; {way_out}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_port(text: &str) -> HostPort {
        crate::config::value::addr(text).unwrap()
    }

    #[tokio::test]
    async fn a_name_means_its_ipv4_address() {
        let listener = bind("addr", &host_port("localhost:0")).await.unwrap();
        assert!(listener.local_addr().unwrap().is_ipv4());
    }

    #[tokio::test]
    async fn what_is_wrong_is_named_with_the_way_out() {
        let taken = bind("addr", &host_port("127.0.0.1:0")).await.unwrap();
        let addr = HostPort { host: "127.0.0.1".to_string(), port: taken.local_addr().unwrap().port() };
        let error = bind("addr", &addr).await.unwrap_err();
        assert!(
            error.contains(&format!("addr = \"{addr}\"")) && error.contains("another program"),
            "{error}"
        );
        // TEST-NET-1 is nobody's.
        let error = bind("metrics.addr", &host_port("192.0.2.1:0")).await.unwrap_err();
        assert!(error.contains("metrics.addr") && error.contains("no such address"), "{error}");
    }
}
