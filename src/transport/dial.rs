//! Connecting to another node: settings of the connection, and connections that can be cut.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::task::AtomicWaker;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

use super::options::Options;
use crate::error::{Error, Reason, Result};
use crate::limits;

/// HTTP/2 windows: what one call's answer, and all of them together, may have on its way to us before
/// we take it.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// A channel to another node's calls, for `host:port`: connects when it is first used, and again when it
/// has to; a peer that has vanished is noticed within seconds. Must be called inside a Tokio runtime.
///
/// # Errors
/// `address` is no `host:port`.
pub fn dial(address: &str) -> Result<Channel> {
    Ok(endpoint(address, &Options::default())?.connect_lazy())
}

/// Whether there can be a node at `address`.
///
/// # Errors
/// It is no `host:port`.
pub fn check_address(address: &str) -> Result<()> {
    uri(address).map(drop)
}

fn uri(address: &str) -> Result<Endpoint> {
    let malformed =
        || Error::new(Reason::InvalidArgument, format!("{address:?} is no address: write host:port"));
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_none_or(|port| port == 0) {
        return Err(malformed());
    }
    Endpoint::from_shared(format!("http://{address}")).map_err(|_| malformed())
}

pub(super) fn endpoint(address: &str, options: &Options) -> Result<Endpoint> {
    uri(address)?
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        // So that the first call after a pause does not run into a peer that vanished meanwhile.
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(limits::HEADER_BYTES_MAX)
        .user_agent(concat!("rushkv/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| Error::new(Reason::Internal, error.to_string()))
}

/// Cuts a connection when dropped, whatever HTTP/2 still has to say on it: one to a peer that does not
/// read would otherwise stay until its keepalive.
#[derive(Debug)]
pub(super) struct Cutter(Arc<Cut>);

#[derive(Debug, Default)]
struct Cut {
    cut: AtomicBool,
    reader: AtomicWaker,
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.0.cut.store(true, Ordering::Release);
        // The connection's task always waits for something to read.
        self.0.reader.wake();
    }
}

/// Makes one TCP connection to `address`, that ends with the [`Cutter`].
#[derive(Debug)]
pub(super) struct Connector {
    address: Arc<str>,
    cut: Arc<Cut>,
}

impl Connector {
    pub(super) fn new(address: Arc<str>) -> (Connector, Cutter) {
        let cut = Arc::new(Cut::default());
        (Connector { address, cut: cut.clone() }, Cutter(cut))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Cuttable>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Cuttable>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (address, cut) = (self.address.clone(), self.cut.clone());
        Box::pin(async move {
            let stream = TcpStream::connect(&*address).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(Cuttable { stream, cut }))
        })
    }
}

/// A TCP connection that fails once it is cut.
#[derive(Debug)]
pub(super) struct Cuttable {
    stream: TcpStream,
    cut: Arc<Cut>,
}

impl Cuttable {
    fn alive(&self) -> io::Result<()> {
        match self.cut.cut.load(Ordering::Acquire) {
            true => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "this node cut the connection")),
            false => Ok(()),
        }
    }
}

impl AsyncRead for Cuttable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Registered before looking, so that a cut in between is seen.
        self.cut.reader.register(cx.waker());
        self.alive()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.alive()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.alive()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cut_wakes_the_reader_and_fails_every_use() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (mut connector, cutter) = Connector::new(address.into());
        let stream = connector.call(Uri::from_static("http://unused")).await.unwrap().into_inner();
        let (mut read, mut write) = tokio::io::split(stream);
        write.write_all(b"before").await.unwrap();
        let reading = tokio::spawn(async move { read.read_u8().await });
        // So that it waits already.
        tokio::task::yield_now().await;
        drop(cutter);
        let error = tokio::time::timeout(std::time::Duration::from_secs(5), reading).await.unwrap().unwrap();
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(write.write(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn only_host_and_port_is_an_address() {
        for good in ["127.0.0.1:8080", "db.example:1", "[::1]:8080"] {
            assert!(dial(good).is_ok(), "{good}");
        }
        for bad in ["", "db", "db:", "db:0", "db:70000", "db:x", "a b:1", "[::1]"] {
            let error = dial(bad).unwrap_err();
            assert!(error.to_string().contains("host:port"), "{bad}: {error}");
        }
    }
}
