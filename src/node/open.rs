//! Starting and stopping: recovery of the data directory, and what runs on it.
//!
//! A directory that remembers a cluster takes its seat there at once and opens the replicas that group 0
//! named last; one that is prepared for a founding goes on with it; an empty one founds a cluster alone,
//! or looks for its peers (`forming`). What can be refused is refused here, before anything runs.

use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::disk::Disk;
use super::giving_up::{self, GivingUp};
use super::identity::Identity;
use super::promise::{JOINING, PREPARED};
use super::seat::Beginning;
use super::{
    CALLS_MAX, Deadline, Node, Options, checking, follow, forming, forward, reached, rebuilding, reconciling,
    removed, renewing, scrub, upkeep,
};
use crate::error::{Error, Reason, Result};
use crate::proto::v1::{Founding, Joining};
use crate::storage::DataDir;
use crate::transport::{self, Transport};
use crate::types::{GroupId, LogKey, NodeId};
use crate::way_out::START_OVER;
use crate::{raft, wal};

/// The number of a node that founds a cluster alone.
const FIRST: NodeId = NodeId(1);

pub(super) fn refused(message: impl std::fmt::Display) -> Error {
    Error::new(Reason::Unavailable, message.to_string())
}

/// What was recovered from the disk, before any group runs.
struct Opened {
    data_dir: Arc<DataDir>,
    wal: wal::Wal,
    store: Arc<raft::Store>,
    identity: Option<Identity>,
    founding: Option<Founding>,
    joining: Option<Joining>,
}

impl Node {
    /// Opens the data directory, recovers, and starts what runs on it. Returns once that runs, not yet
    /// once it serves: see [`Node::problems`].
    pub async fn open(options: Options, metrics: &prometheus::Registry) -> Result<Arc<Node>> {
        let register = |error: prometheus::Error| Error::new(Reason::Internal, error.to_string());
        let raft_metrics = raft::Metrics::register(metrics).map_err(register)?;
        let wal_metrics = wal::Metrics::register(metrics).map_err(register)?;
        let opening = options.clone();
        let opened = tokio::task::spawn_blocking(move || recover(&opening, wal_metrics))
            .await
            .map_err(|error| Error::new(Reason::Internal, error.to_string()))??;
        let Opened { data_dir, wal, store, identity, founding, joining } = opened;
        raft::finish_destroying(&store, &wal).await.map_err(refused)?;
        let routing_metrics = forward::Metrics::register(metrics).map_err(register)?;
        let check_metrics = checking::Metrics::register(metrics).map_err(register)?;
        let scrub_metrics = scrub::Metrics::register(metrics).map_err(register)?;
        let transport_metrics = transport::Metrics::register(metrics).map_err(register)?;
        let transport = Transport::new(transport::Options::default(), transport_metrics);
        let node = Arc::new(Node {
            disk: Disk::new(data_dir.clone(), options.disk_reserve_bytes),
            options,
            started_at_unix_ms: unix_ms(),
            process_id: draw_id()?,
            data_dir,
            wal,
            store,
            raft_metrics,
            routing_metrics,
            transport,
            seat: watch::Sender::new(None),
            cluster: watch::Sender::new(None),
            seen: watch::Sender::new(Vec::new()),
            joining,
            gave_up: watch::Sender::new(GivingUp::Open),
            preparing: tokio::sync::Mutex::default(),
            following: tokio::sync::Mutex::default(),
            waiting: watch::Sender::new("the node to start".to_string()),
            replicas: RwLock::default(),
            hints: Mutex::default(),
            calls: Arc::new(Semaphore::new(CALLS_MAX as usize)),
            failure: watch::Sender::new(None),
            removed: watch::Sender::new(false),
            tasks: Mutex::new(Vec::new()),
            check_metrics,
            scrub_asked: scrub::Asked::default(),
        });
        match (identity, founding) {
            (Some(identity), _) => {
                PREPARED.remove(node.data_dir.path()).map_err(refused)?;
                JOINING.remove(node.data_dir.path()).map_err(refused)?;
                let beginning = match identity.founded_alone {
                    true => Beginning::Alone,
                    false => Beginning::Others,
                };
                node.take_seat(identity, None, beginning, &[]).await?;
                // Before anybody is dialled as this member.
                node.refuse_copies().await?;
            }
            (None, Some(founding)) => node.prepare_for(founding).await?,
            (None, None) if node.options.peers.is_empty() && node.joining.is_none() => {
                let identity = found_alone(&node.data_dir, &node.options)?;
                node.take_seat(identity, None, Beginning::Alone, &[]).await?;
            }
            (None, None) => {}
        }
        follow::catch_up(&node).await?;
        node.keep_task(tokio::spawn(follow::run(Arc::downgrade(&node))));
        node.keep_task(tokio::spawn(forming::run(Arc::downgrade(&node))));
        node.keep_task(tokio::spawn(reconciling::run(Arc::downgrade(&node))));
        node.keep_task(tokio::spawn(giving_up::run(Arc::downgrade(&node))));
        node.keep_task(tokio::spawn(removed::run(Arc::downgrade(&node))));
        node.keep_task(tokio::spawn(reached::run(Arc::downgrade(&node))));
        node.keep_task(tokio::spawn(checking::run(Arc::downgrade(&node))));
        node.keep_task(tokio::spawn(scrub::run(Arc::downgrade(&node), scrub_metrics)));
        node.keep_task(tokio::spawn(rebuilding::run(Arc::downgrade(&node))));
        upkeep::start(&node, metrics)?;
        Ok(node)
    }

    /// Hands every group that this node leads to another voter, as far as there is one that has
    /// everything: what a planned stop costs is then a message and not an election (rule 12).
    pub async fn hand_over(&self, deadline: Deadline) {
        let seat = self.seat();
        let replicas = self.replicas();
        let meta = async {
            if let Some(seat) = &seat {
                hand_over(&seat.meta, deadline).await;
            }
        };
        let data = replicas.iter().map(|(_, replica)| hand_over(&replica.group, deadline));
        tokio::join!(meta, futures_util::future::join_all(data));
    }

    /// Refuses new calls, finishes those under way, checkpoints the engine and closes everything. What
    /// is not finished at `deadline` is left to recovery.
    pub async fn shutdown(&self, deadline: Deadline) -> Result<()> {
        let all = self.calls.clone().acquire_many_owned(CALLS_MAX);
        // New calls see that nothing is left, or find the semaphore closed. A call that hangs must not
        // take the time that closing needs.
        let now = Instant::now();
        let drained = tokio::time::timeout_at(now + deadline.saturating_duration_since(now) / 2, all).await;
        self.calls.close();
        if drained.is_err() {
            tracing::warn!("calls were still under way at the deadline; their outcome is unknown to callers");
        }
        let tasks = match self.tasks.lock() {
            Ok(mut tasks) => std::mem::take(&mut *tasks),
            Err(poisoned) => std::mem::take(&mut *poisoned.into_inner()),
        };
        for task in tasks {
            task.abort();
            // An aborted task ends with an error by design.
            let _ = task.await;
        }
        // In a redo the engine holds a mixture of moments until the log is applied to its end: the next
        // start must redo it again, and must not trust what the engine says of itself.
        let seat = self.seat();
        let replicas = self.replicas();
        // An unopened replica of group 0 is of a founding that came to nothing: nothing reads it any more.
        let recovered = self.store.unopened().iter().all(|key| key.group == GroupId::META)
            && seat.as_ref().is_none_or(|seat| seat.meta.is_recovered())
            && replicas.iter().all(|(_, replica)| replica.group.is_recovered());
        // Nor is one redone that was just being opened.
        let recovered = recovered && {
            let meta = seat.as_ref().map(|seat| seat.meta.key());
            let held: Vec<LogKey> =
                replicas.iter().map(|(_, replica)| replica.group.key()).chain(meta).collect();
            self.store.opened().iter().all(|key| held.contains(key))
        };
        let whole = recovered || !self.store.is_redo();
        let stopping = async {
            if let Some(seat) = &seat {
                seat.meta.shutdown().await;
            }
            for (_, replica) in &replicas {
                replica.group.shutdown().await;
            }
            self.transport.shutdown();
        };
        if tokio::time::timeout_at(deadline, stopping).await.is_err() {
            return Err(refused("the groups did not stop before the deadline; the next start will recover"));
        }
        let (store, wal, data_dir) = (self.store.clone(), self.wal.clone(), self.data_dir.clone());
        let closing = tokio::task::spawn_blocking(move || -> Result<()> {
            store.checkpoint().map_err(refused)?;
            store.engine().close().map_err(refused)?;
            wal.close().map_err(refused)?;
            if whole {
                data_dir.mark_clean_stop().map_err(refused)?;
            }
            Ok(())
        });
        match tokio::time::timeout_at(deadline, closing).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(Error::new(Reason::Internal, error.to_string())),
            Err(_) => Err(refused("closing took longer than the deadline; the next start will recover")),
        }
    }
}

/// For the new leader to commit what the old one took, and to say so.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

async fn hand_over<M: raft::Machine>(group: &raft::Group<M>, deadline: Deadline) {
    let status = group.status();
    if status.role != raft::Role::Leader || status.voters.len() < 2 {
        return;
    }
    match group.step_down(deadline).await {
        Ok(true) => {}
        // Another one than was asked, or that one, late.
        Ok(false) if group.status().leader.is_some_and(|leader| leader != group.key().replica) => {}
        Ok(false) => tracing::warn!(key = %group.key(), "nobody took over in time: the others will elect"),
        Err(error) => tracing::warn!(key = %group.key(), %error, "the leadership stays until the end"),
    }
    // The doors close next, and behind them nobody hears what became of the last writes.
    group.answered(deadline.min(Instant::now() + ANSWERED_WITHIN)).await;
}

fn recover(options: &Options, wal_metrics: wal::Metrics) -> Result<Opened> {
    let mut data_dir = DataDir::open(&options.data_dir, options.engine).map_err(refused)?;
    let joining = JOINING.read(data_dir.path()).map_err(refused)?;
    if let Some(joining) = joining.as_ref().filter(|joining| joining.left_disk_id == data_dir.disk_id()) {
        tracing::info!(
            cluster_id = joining.cluster_id,
            "emptying the data directory to join another cluster"
        );
        data_dir = data_dir.begin_anew().map_err(refused)?;
    }
    let data_dir = Arc::new(data_dir);
    let identity = match Identity::read(data_dir.path()).map_err(refused)? {
        Some(identity) => {
            identity.check(data_dir.path(), &options.name, data_dir.disk_id()).map_err(refused)?;
            Some(identity)
        }
        None => None,
    };
    // Of no meaning, and removed, where there is an identity.
    let founding = match identity {
        Some(_) => None,
        None => PREPARED.read(data_dir.path()).map_err(refused)?,
    };
    let founder = founding.iter().flat_map(|founding| &founding.founders);
    if let Some(me) = founder.into_iter().find(|one| one.disk_id == data_dir.disk_id())
        && me.name != options.name
    {
        return Err(refused(format!(
            "the data directory {} is prepared to found a cluster as \"{2}\", but node_id is \"{1}\": set node_id = \"{2}\", or \
             start with an empty data_dir",
            options.data_dir.display(),
            options.name,
            me.name
        )));
    }
    // After every refusal that leaves the directory as it was: from here on it is written to.
    let clean = data_dir.take_clean_stop().map_err(refused)?;
    let started = Instant::now();
    let wal_options = wal::Options::new(data_dir.wal_dir());
    let wal = wal::Wal::open(wal_options, wal_metrics).map_err(refused)?;
    tracing::info!(seconds = started.elapsed().as_secs_f64(), "write-ahead log recovered");
    if identity.is_none() && founding.is_none() && !wal.keys().is_empty() {
        return Err(refused(format!(
            "{}: the file IDENTITY is missing, but there is a log: {START_OVER}",
            options.data_dir.display()
        )));
    }
    let started = Instant::now();
    let engine = renewing::open_engine(&data_dir, options, clean)?;
    let store = raft::Store::open(engine, data_dir.path(), clean).map_err(refused)?;
    tracing::info!(engine = %options.engine, clean, seconds = started.elapsed().as_secs_f64(), "engine opened");
    Ok(Opened { data_dir, wal, store: Arc::new(store), identity, founding, joining })
}

/// Gives an empty data directory its identity, durably, before anything else is written.
fn found_alone(data_dir: &DataDir, options: &Options) -> Result<Identity> {
    let identity = Identity {
        cluster_id: draw_id()?,
        number: FIRST,
        name: options.name.clone(),
        disk_id: data_dir.disk_id().to_string(),
        founded_alone: true,
    };
    identity.write(data_dir.path()).map_err(refused)?;
    tracing::info!(cluster_id = identity.cluster_id, "forming a cluster of one");
    Ok(identity)
}

/// 128 random bits, hexadecimal.
pub(super) fn draw_id() -> Result<String> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| Error::new(Reason::Internal, error.to_string()))?;
    Ok(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Node {
    /// Sets the free space that puts must leave, from now on.
    pub fn set_disk_reserve_bytes(&self, bytes: u64) {
        self.disk.set_reserve_bytes(bytes);
    }
}
