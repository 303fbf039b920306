//! Receiving a snapshot: its records go into a new space as they come, and the space is installed at
//! the end. One transfer at a time for each group; a newer one replaces it.

use std::sync::Arc;
use std::time::Duration;

use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::storage::Snapshot;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Metrics;
use super::machine::Machine;
use super::message::{SnapshotAnswer, SnapshotRequest};
use super::snapshot::{Received, SnapshotData};
use super::state_machine::StateMachine;
use super::store::Store;
use super::types::{SnapshotMeta, TypeConfig, Vote};
use crate::types::{LogKey, ReplicaId};
use crate::{crash_point, runtime};

/// Parts that may wait; a sender has fewer under way.
pub(super) const QUEUE_MAX: usize = 16;

/// A transfer of which nothing comes for this long is given up: longer than a sender waits for any one
/// answer but the last, which is ours to give.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// A part of a snapshot on its way to the group's receiver.
pub(super) struct Part {
    pub from: ReplicaId,
    pub request: SnapshotRequest,
    pub answer: oneshot::Sender<Result<SnapshotAnswer, String>>,
}

struct Transfer {
    from: ReplicaId,
    session: u64,
    vote: Vote,
    meta: SnapshotMeta,
    received: Arc<Received>,
    /// The sequence number that is due.
    next: u64,
}

/// Takes the snapshots of one group, part by part, until its queue is closed.
pub(super) struct Receiver<M: Machine> {
    pub key: LogKey,
    pub raft: Raft<TypeConfig, StateMachine<M>>,
    pub store: Arc<Store>,
    pub metrics: Metrics,
}

impl<M: Machine> Receiver<M> {
    pub async fn run(self, mut queue: mpsc::Receiver<Part>) {
        let mut transfer: Option<Transfer> = None;
        loop {
            let part = match &transfer {
                Some(_) => timeout(IDLE_MAX, queue.recv()).await,
                None => Ok(queue.recv().await),
            };
            match part {
                Ok(Some(part)) => {
                    let answer = self.take(&mut transfer, part.from, part.request).await;
                    // The sender may have given up.
                    let _ = part.answer.send(answer);
                }
                Ok(None) => return,
                Err(_) => self.abandon(&mut transfer, "its sender is silent"),
            }
        }
    }

    fn abandon(&self, transfer: &mut Option<Transfer>, why: &str) {
        if let Some(transfer) = transfer.take() {
            self.metrics.snapshots_abandoned.inc();
            let (from, pieces) = (transfer.from, transfer.next);
            tracing::info!(key = %self.key, %from, pieces, why, "an incoming snapshot is given up");
        }
    }

    async fn take(
        &self,
        transfer: &mut Option<Transfer>,
        from: ReplicaId,
        request: SnapshotRequest,
    ) -> Result<SnapshotAnswer, String> {
        let session = match request {
            SnapshotRequest::Begin { session, vote, meta } => {
                let mine = self.raft.server_metrics().borrow_watched().vote;
                // Votes are not totally ordered: two candidates of one term.
                let follows = vote >= mine;
                if !follows {
                    return Ok(SnapshotAnswer::Ended(mine));
                }
                self.abandon(transfer, "a newer one begins");
                let received = Arc::new(Received::new(self.store.clone()));
                *transfer = Some(Transfer { from, session, vote, meta, received, next: 0 });
                return Ok(SnapshotAnswer::Taken);
            }
            SnapshotRequest::Records { session, .. } | SnapshotRequest::End { session, .. } => session,
        };
        let Some(current) = transfer.as_mut().filter(|t| t.from == from && t.session == session) else {
            return Err("this snapshot is not being received".to_string());
        };
        match request {
            SnapshotRequest::Begin { .. } => unreachable!("it was answered above"),
            SnapshotRequest::Records { sequence, records, .. } => {
                if sequence != current.next {
                    let next = current.next;
                    self.abandon(transfer, "a piece is missing");
                    return Err(format!("piece {sequence} comes where {next} is due"));
                }
                let count = records.len() as u64;
                let bytes: usize = records.iter().map(|(key, value)| key.len() + value.len()).sum();
                let received = current.received.clone();
                let written = runtime::spawn_blocking(move || received.write(records)).await;
                match written {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        self.abandon(transfer, "a piece could not be written");
                        return Err(error.to_string());
                    }
                    Err(error) => return Err(error.to_string()),
                }
                current.next += 1;
                self.metrics.snapshot_records_received.inc_by(count);
                self.metrics.snapshot_bytes_received.inc_by(bytes as u64);
                crash_point::reached("snapshot.piece-written");
                Ok(SnapshotAnswer::Taken)
            }
            SnapshotRequest::End { messages, .. } => {
                if messages != current.next {
                    self.abandon(transfer, "it ends early");
                    return Err(format!("it ends after {messages} pieces, which are not here"));
                }
                match transfer.take() {
                    Some(whole) => self.install(whole).await,
                    None => Err("this snapshot is not being received".to_string()),
                }
            }
        }
    }

    async fn install(&self, transfer: Transfer) -> Result<SnapshotAnswer, String> {
        let Transfer { vote, meta, received, from, .. } = transfer;
        let received = Arc::into_inner(received).ok_or("a piece is still being written")?;
        if let Some(space) = received.space() {
            let verified = runtime::spawn_blocking(move || M::verify(&space)).await;
            if let Err(error) = verified.map_err(|error| error.to_string())? {
                self.metrics.snapshots_abandoned.inc();
                match error.is_damage() {
                    true => {
                        tracing::error!(key = %self.key, %from, %error, "a snapshot is not taken: its sender's copy is damaged");
                    }
                    false => tracing::warn!(key = %self.key, %from, %error, "a snapshot is not taken"),
                }
                return Err(format!("the snapshot is not what was written: {error}"));
            }
        }
        let snapshot = Snapshot { meta, snapshot: SnapshotData::Received(received) };
        match self.raft.install_full_snapshot(vote, snapshot).await {
            Ok(answer) => Ok(SnapshotAnswer::Ended(answer.vote)),
            Err(error) => Err(error.to_string()),
        }
    }
}
