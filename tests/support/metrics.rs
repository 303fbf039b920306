//! What a node counts, as its HTTP endpoint tells it.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A series of the node with this HTTP port on loopback, by its name and labels.
pub async fn sample(port: u16, series: &str) -> u64 {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("the endpoint listens");
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.expect("it takes a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("it answers");
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().expect("a whole number")
}
