//! Nodes on loopback, an inbox that records, and a proxy between them that can fail.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prometheus::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::server::TcpIncoming;

use super::super::{Metrics, Options, Transport};
use crate::raft::{Carrier, CarryError, Class, Inbox, Route};
use crate::types::{GroupId, NodeId, ReplicaId};

pub(super) const CLUSTER: &str = "cluster-1";
const DEADLINE: Duration = Duration::from_secs(10);

/// Waits until `what` holds; a condition that never does is a failed test.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until a count that has begun to grow grows no more.
pub(super) async fn standstill(what: &str, mut count: impl FnMut() -> u64) {
    let mut last = (0, Instant::now());
    until(what, || {
        let now = count();
        if now != last.0 {
            last = (now, Instant::now());
        }
        now > 0 && last.1.elapsed() > Duration::from_millis(250)
    })
    .await;
}

/// The outcome of something that must come to one.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it takes too long")
}

pub(super) fn route(from: u32, to: u32, group: u32) -> Route {
    Route { group: GroupId(group), from: ReplicaId::new(NodeId(from), 1), to: ReplicaId::new(NodeId(to), 1) }
}

/// Records what arrives, and answers with the message itself: at once, or when the gate is open.
#[derive(Debug)]
pub(super) struct Recorder {
    pub received: Mutex<Vec<(Route, Class, Bytes)>>,
    /// Closed for these classes only, or for none.
    gate: watch::Sender<Option<Class>>,
    held: AtomicUsize,
    held_bytes: AtomicUsize,
    pub held_most: AtomicUsize,
    pub held_bytes_most: AtomicUsize,
    /// If not 0: answers have this many bytes.
    pub answer_bytes: AtomicUsize,
    pub refuse: AtomicBool,
}

impl Recorder {
    fn new() -> Arc<Recorder> {
        Arc::new(Recorder {
            received: Mutex::default(),
            gate: watch::Sender::new(None),
            held: AtomicUsize::new(0),
            held_bytes: AtomicUsize::new(0),
            held_most: AtomicUsize::new(0),
            held_bytes_most: AtomicUsize::new(0),
            answer_bytes: AtomicUsize::new(0),
            refuse: AtomicBool::new(false),
        })
    }

    /// Messages of `class` are not answered from now on.
    pub(super) fn hold(&self, class: Class) {
        self.gate.send_replace(Some(class));
    }

    pub(super) fn release(&self) {
        self.gate.send_replace(None);
    }

    pub(super) fn count(&self) -> usize {
        self.received.lock().unwrap().len()
    }

    /// The messages of a class as numbers, as [`number`] wrote them.
    pub(super) fn numbers(&self, class: Class) -> Vec<u64> {
        let received = self.received.lock().unwrap();
        let of_class = received.iter().filter(|(_, of, _)| *of == class);
        of_class.map(|(_, _, body)| u64::from_le_bytes(body[..8].try_into().unwrap())).collect()
    }
}

/// A message that holds a number, and is as long as asked.
pub(super) fn number(number: u64, len: usize) -> Bytes {
    let mut body = number.to_le_bytes().to_vec();
    body.resize(len.max(8), 0);
    body.into()
}

/// Takes back what a message held when its future is dropped, answered or not.
struct Held(Arc<Recorder>, usize);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::SeqCst);
        self.0.held_bytes.fetch_sub(self.1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct Recording(Arc<Recorder>);

impl Inbox for Recording {
    fn receive(
        &self,
        route: Route,
        class: Class,
        message: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, String>> {
        let this = self.0.clone();
        this.received.lock().unwrap().push((route, class, message.clone()));
        let held = this.held.fetch_add(1, Ordering::SeqCst) + 1;
        let bytes = this.held_bytes.fetch_add(message.len(), Ordering::SeqCst) + message.len();
        this.held_most.fetch_max(held, Ordering::SeqCst);
        this.held_bytes_most.fetch_max(bytes, Ordering::SeqCst);
        let guard = Held(this.clone(), message.len());
        let mut gate = this.gate.subscribe();
        Box::pin(async move {
            let _guard = guard;
            gate.wait_for(|held| *held != Some(class)).await.map_err(|error| error.to_string())?;
            if this.refuse.load(Ordering::SeqCst) {
                return Err(format!("no replica {}", route.to));
            }
            match this.answer_bytes.load(Ordering::SeqCst) {
                0 => Ok(message),
                len => Ok(vec![0; len].into()),
            }
        })
    }
}

/// A node: a transport, and its server in a runtime of its own, so that it can be killed as a process is.
#[derive(Debug)]
pub(super) struct Host {
    pub number: u32,
    pub transport: Arc<Transport>,
    pub inbox: Arc<Recorder>,
    pub address: SocketAddr,
    registry: Registry,
    runtime: Option<Runtime>,
}

impl Host {
    pub(super) fn start(number: u32, options: Options) -> Host {
        Host::start_at(number, options, "127.0.0.1:0".parse().unwrap())
    }

    pub(super) fn start_at(number: u32, options: Options, address: SocketAddr) -> Host {
        let registry = Registry::new();
        let transport = Transport::new(options, Metrics::register(&registry).unwrap());
        transport.set_local(CLUSTER, NodeId(number));
        let inbox = Recorder::new();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let service = transport.server(Arc::new(Recording(inbox.clone())));
        // Tokio listens with SO_REUSEADDR, so that the same port may be taken again at once.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(std_listener(socket)).unwrap()
        };
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
        });
        Host { number, transport, inbox, address, registry, runtime: Some(runtime) }
    }

    /// Its connections break and its port is free.
    pub(super) fn kill(mut self) -> SocketAddr {
        self.end();
        self.address
    }

    fn end(&mut self) {
        self.transport.shutdown();
        if let Some(runtime) = self.runtime.take() {
            // In a thread, since a runtime can't be waited for inside of another.
            std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5))).join().unwrap();
        }
    }

    pub(super) fn dials(&self, peers: &[(u32, SocketAddr)]) {
        self.transport.set_peers(peers.iter().map(|(n, a)| (NodeId(*n), a.to_string())).collect());
    }

    pub(super) fn dials_nobody(&self) {
        self.transport.set_peers(BTreeMap::new());
    }

    pub(super) fn send(
        &self,
        to: u32,
        class: Class,
        message: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, CarryError>> {
        self.transport.send(route(self.number, to, 1), class, message)
    }

    /// A series' value; `None` if there is no such series.
    pub(super) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == format!("rushkv_transport_{name}"))?;
        let metric = family.get_metric().iter().find(|metric| {
            labels.iter().all(|(name, value)| {
                metric.get_label().iter().any(|label| label.name() == *name && label.value() == *value)
            })
        })?;
        Some(metric.get_counter().get_value() + metric.get_gauge().get_value())
    }

    pub(super) fn of(&self, name: &str, peer: u32, class: &str) -> Option<f64> {
        self.metric(name, &[("peer", &peer.to_string()), ("class", class)])
    }

    pub(super) async fn connected(&self, peer: u32) {
        until("connected in every class", || {
            ["control", "append", "snapshot"]
                .iter()
                .all(|class| self.of("connected", peer, class) == Some(1.0))
        })
        .await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
    }
}

fn std_listener(socket: tokio::net::TcpSocket) -> std::net::TcpListener {
    socket.listen(1024).unwrap().into_std().unwrap()
}

/// Two hosts, 1 dialling 2, connected.
pub(super) async fn pair(options: Options) -> (Host, Host) {
    let (one, two) = (Host::start(1, options), Host::start(2, options));
    one.dials(&[(2, two.address)]);
    one.connected(2).await;
    (one, two)
}

/// A TCP proxy that can stall or break its connections.
#[derive(Debug)]
pub(super) struct Proxy {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mode {
    /// Connections of an older generation are closed.
    generation: u64,
    /// Nothing passes.
    stalled: bool,
}

impl Proxy {
    pub(super) async fn start(to: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = watch::Sender::new(Mode { generation: 0, stalled: false });
        let modes = mode.clone();
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let mode = modes.subscribe();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    let generation = mode.borrow().generation;
                    let (near_read, near_write) = near.into_split();
                    let (far_read, far_write) = far.into_split();
                    tokio::select! {
                        // First: what is broken carries nothing more.
                        biased;
                        () = async {
                            let _ = mode.clone().wait_for(|mode| mode.generation != generation).await;
                        } => {}
                        () = pump(near_read, far_write, mode.clone()) => {}
                        () = pump(far_read, near_write, mode.clone()) => {}
                    }
                });
            }
        });
        Proxy { address, mode, task }
    }

    /// Breaks every connection; new ones pass.
    pub(super) fn cut(&self) {
        self.mode.send_modify(|mode| mode.generation += 1);
    }

    /// Nothing is read from either side any more, nor written.
    pub(super) fn stall(&self) {
        self.mode.send_modify(|mode| mode.stalled = true);
    }

    /// Everything passes again, on new connections only.
    pub(super) fn heal(&self) {
        self.mode.send_modify(|mode| *mode = Mode { generation: mode.generation + 1, stalled: false });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if mode.wait_for(|mode| !mode.stalled).await.is_err() {
            return;
        }
        tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(len) => {
                    if mode.wait_for(|mode| !mode.stalled).await.is_err() {
                        return;
                    }
                    if to.write_all(&buffer[..len]).await.is_err() {
                        return;
                    }
                }
            },
            changed = mode.changed() => if changed.is_err() { return },
        }
    }
}

/// Something printable about a value that should not be.
pub(super) fn refused_with<T: Debug>(result: Result<T, CarryError>) -> String {
    match result {
        Err(CarryError::Unreachable(why)) => why,
        other => panic!("Unreachable was expected: {other:?}"),
    }
}
