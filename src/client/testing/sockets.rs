//! Listeners that are no servers at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

/// A port where nobody listens, nor will as long as this process lives.
pub(crate) fn refusing() -> String {
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = bound.local_addr().unwrap().to_string();
    std::mem::forget(bound);
    address
}

/// Takes connections, reads what comes until `bytes` have come on one, and closes it. Counts them.
pub(crate) async fn closing_after(bytes: usize) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                let mut got = 0;
                while got < bytes {
                    match connection.read(&mut buffer).await {
                        Ok(0) | Err(_) => return,
                        Ok(n) => got += n,
                    }
                }
            });
        }
    });
    (address, connections)
}

/// Never completes a connection: its backlog is full. Keep what is returned.
pub(crate) async fn unconnectable() -> (String, Vec<tokio::net::TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut fillers = Vec::new();
    let patience = std::time::Duration::from_millis(300);
    while let Ok(Ok(filler)) = tokio::time::timeout(patience, tokio::net::TcpStream::connect(address)).await {
        fillers.push(filler);
        assert!(fillers.len() < 64, "the backlog does not fill");
    }
    // Kept open for the test's life, without anybody who accepts.
    std::mem::forget(listener);
    (address.to_string(), fillers)
}
