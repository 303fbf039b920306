//! How nodes (and, for single calls, clients) reach nodes.
//!
//! [`Transport`] carries the messages of consensus: [`Carrier`] on one side, [`Inbox`] on the
//! other. To each peer there is one connection for each class of messages, so that heartbeats never wait
//! behind bulk, and on it one stream of frames; answers come back on the same stream. What waits is
//! sent together. Each pair of nodes thus has connections in both directions, and each direction is
//! kept by the side that dials.
//!
//! What it promises beyond the [`Carrier`]'s doc: every queue is bounded, and a full one refuses; a
//! connection that breaks, stalls or is refused fails everybody who waits for it at once; the first
//! frame each way says who speaks with whom, and a mismatch closes the connection. What it does not: it
//! knows neither what a message means nor when it is too late for one, and it sends nothing twice.
//!
//! | file | what |
//! |---|---|
//! | `link` | one peer and class: queue, callers, frames |
//! | `session` | its task: connect, shake hands, take answers, again |
//! | `serve` | the receiving side |
//! | `handshake` | who may speak with whom |
//! | `dial` | connections and their settings |
//! | `attempt`, `gate` | apart from all that: one unary call, and what its failure means |
//! | `leader` | and what its answer says about routing |

mod attempt;
mod dial;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gate;
mod handshake;
mod leader;
mod link;
mod metrics;
mod options;
mod serve;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::limits::PEER_FRAME_BYTES_MAX;
use crate::proto::v1::transport_server::TransportServer;
use crate::raft::{Carrier, CarryError, Class, Inbox, Route};
use crate::types::NodeId;
use handshake::{CLASSES, Local, index};
use link::Link;
use serve::Incomers;
use session::{LastSaid, Target};

pub use attempt::{Failed, Kind, Limit, attempt, judge, late};
pub use dial::{check_address, dial};
pub use gate::{Gate, GatedChannel};
pub use handshake::{PROTOCOL_MAX, PROTOCOL_MIN};
pub use leader::{CLUSTER, Leader, OF_ANOTHER_CLUSTER};
pub use metrics::Metrics;
pub use options::Options;
pub use serve::{Answers, Server};

/// The connections of this node to all others, and from them.
#[derive(Debug)]
pub struct Transport {
    options: Options,
    metrics: Metrics,
    local: watch::Sender<Option<Arc<Local>>>,
    peers: RwLock<BTreeMap<NodeId, Peer>>,
    incoming: Incomers,
    stopping: AtomicBool,
    reached: watch::Sender<Reached>,
}

/// How often each peer's connection for entries came up.
pub type Reached = BTreeMap<NodeId, u64>;

/// One peer at one address.
#[derive(Debug)]
struct Peer {
    address: Arc<str>,
    links: [Arc<Link>; 3],
    tasks: [JoinHandle<()>; 3],
    options: Options,
    channel: OnceLock<Option<Channel>>,
}

impl Transport {
    /// A node without a place in a cluster and without peers.
    pub fn new(options: Options, metrics: Metrics) -> Arc<Transport> {
        Arc::new(Transport {
            options,
            metrics,
            local: watch::Sender::new(None),
            peers: RwLock::default(),
            incoming: Incomers::default(),
            stopping: AtomicBool::new(false),
            reached: watch::Sender::default(),
        })
    }

    /// Says who this node is. Before, nothing is sent and every handshake is refused; when it changes,
    /// all connections are made anew.
    pub fn set_local(&self, cluster_id: &str, number: NodeId) {
        let new = Arc::new(Local { cluster_id: cluster_id.to_string(), number });
        let changed = self.local.send_if_modified(|local| {
            let changed = local.as_ref() != Some(&new);
            *local = Some(new.clone());
            changed
        });
        if changed {
            self.incoming.clear("this node has become another one");
            if let Some(own) = self.peers_mut().remove(&number) {
                self.drop_peer(number, own, "it is this node itself");
            }
        }
    }

    fn local(&self) -> Option<Arc<Local>> {
        self.local.borrow().clone()
    }

    /// Tells of connections that came up.
    pub fn reached(&self) -> watch::Receiver<Reached> {
        self.reached.subscribe()
    }

    /// Says who the others are, and their addresses (`host:port`): connects to new ones, and anew to
    /// those that moved; drops those that are gone. This node itself is left out. Must be called inside
    /// a Tokio runtime.
    pub fn set_peers(&self, new: BTreeMap<NodeId, String>) {
        let own = self.local().map(|local| local.number);
        let mut peers = self.peers_mut();
        if self.is_stopping() {
            return;
        }
        let stays = |number: &NodeId| new.contains_key(number) && Some(*number) != own;
        let gone: Vec<NodeId> = peers.keys().filter(|number| !stays(number)).copied().collect();
        for number in gone {
            if let Some(peer) = peers.remove(&number) {
                self.drop_peer(number, peer, "it is no peer any more");
            }
        }
        for (number, address) in new {
            if Some(number) == own || peers.get(&number).is_some_and(|peer| *peer.address == *address) {
                continue;
            }
            // Closed before the new one begins: they share their series.
            if let Some(old) = peers.remove(&number) {
                old.close("its address has changed");
            }
            peers.insert(number, self.new_peer(number, &address));
        }
    }

    fn new_peer(&self, number: NodeId, address: &str) -> Peer {
        let address: Arc<str> = address.into();
        let target = Arc::new(Target {
            address: address.clone(),
            options: self.options,
            local: self.local.subscribe(),
            refusal: LastSaid::default(),
            reached: self.reached.clone(),
        });
        let links =
            CLASSES.map(|class| Link::new(number, class, self.options, self.metrics.outgoing(number, class)));
        if self.local().is_some() {
            // So that what is sent right now may wait for the first connection.
            for link in &links {
                link.begin(true);
            }
        }
        let tasks = [0, 1, 2].map(|class| tokio::spawn(session::run(links[class].clone(), target.clone())));
        Peer { address, links, tasks, options: self.options, channel: OnceLock::new() }
    }

    fn drop_peer(&self, number: NodeId, peer: Peer, why: &str) {
        peer.close(why);
        self.metrics.remove(number);
    }

    fn peers(&self) -> RwLockReadGuard<'_, BTreeMap<NodeId, Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn peers_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<NodeId, Peer>> {
        self.peers.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The service that the others dial, with limits that fit its frames. Its calls last as long as
    /// their connections: whoever mounts it must not give them a deadline.
    pub fn server(self: &Arc<Transport>, inbox: Arc<dyn Inbox>) -> TransportServer<Server> {
        TransportServer::new(Server::new(self.clone(), inbox))
            .max_decoding_message_size(PEER_FRAME_BYTES_MAX)
            .max_encoding_message_size(PEER_FRAME_BYTES_MAX)
    }

    /// A channel to a peer's present address for other calls: one for each peer, made when it is first
    /// asked for. `None` if there is no such peer, or its address is none. Must be called inside a Tokio
    /// runtime.
    pub fn channel(&self, node: NodeId) -> Option<Channel> {
        let peers = self.peers();
        let peer = peers.get(&node)?;
        let make = || Some(dial::endpoint(&peer.address, &peer.options).ok()?.connect_lazy());
        peer.channel.get_or_init(make).clone()
    }

    /// Ends every connection and refuses new ones, for good. Incoming streams hold this transport and
    /// their inbox until then.
    pub fn shutdown(&self) {
        let mut peers = self.peers_mut();
        self.stopping.store(true, Ordering::SeqCst);
        for (number, peer) in std::mem::take(&mut *peers) {
            self.drop_peer(number, peer, "this node is stopping");
        }
        drop(peers);
        self.incoming.clear("this node is stopping");
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// A node has just dialled this one.
    fn seen(&self, node: NodeId) {
        if let Some(peer) = self.peers().get(&node) {
            peer.links.iter().for_each(|link| link.seen());
        }
    }
}

impl Carrier for Transport {
    fn send(
        &self,
        route: Route,
        class: Class,
        message: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, CarryError>> {
        let node = route.to.node();
        if let Some(peer) = self.peers().get(&node) {
            return peer.links[index(class)].send(route, message);
        }
        let why = match self.is_stopping() {
            true => format!("{node}: this node is stopping"),
            false => format!("{node} is no peer of this node"),
        };
        Box::pin(std::future::ready(Err(CarryError::Unreachable(why))))
    }
}

impl Peer {
    fn close(&self, why: &str) {
        for (link, task) in self.links.iter().zip(&self.tasks) {
            link.close(why);
            task.abort();
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.close("the transport has ended");
    }
}
