//! Sending a snapshot: a pinned view is read piece by piece, a few pieces under way at a time.
//!
//! [`Outgoing`] remembers what is being sent, so that the log that follows on it stays meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::StorageError;
use openraft::errors::{ErrorSource as _, StreamingError, Unreachable};
use openraft::impls::BoxedErrorSource;
use openraft::network::RPCTypes;
use openraft::raft::SnapshotResponse;
use tokio::time::{Instant, timeout};

use super::carrier::{CarryError, Class};
use super::message::{SnapshotAnswer, SnapshotRequest, decode_snapshot_answer, encode_snapshot};
use super::network::{NoAnswer, Peer, unreachable};
use super::snapshot::{Pinned, RaftSnapshot, SnapshotData};
use super::types::{TypeConfig, Vote};
use crate::runtime;
use crate::storage::{self, Pair};
use crate::types::ReplicaId;

/// About how many bytes of records go into one message: large enough that its fixed costs do not
/// count, small enough that a few of them are no burden on either side.
const PIECE_BYTES: usize = 512 * 1024;

/// Pieces under way: one is written by the receiver, one travels, one is read, one in reserve.
const IN_FLIGHT_MAX: usize = 4;

/// How long the receiver may take for one piece: a write into its engine, which can stall on its disk.
const PIECE_WITHIN: Duration = Duration::from_secs(30);

/// How long the receiver may take to read through everything, to make it durable and to install it: longer
/// than the longest stall that a node bears (two minutes) ...
const INSTALL_WITHIN: Duration = Duration::from_secs(150);
/// ... and a second more for this much, since a large snapshot that is given up begins anew, and takes as
/// long again. A slow disk does ten times that.
const INSTALL_BYTES_PER_SECOND: u64 = 4 * 1024 * 1024;
/// The transport gives a connection up after an hour without an answer.
const INSTALL_WITHIN_MAX: Duration = Duration::from_secs(3500);

/// How long the log after a sent snapshot is kept for its receiver to catch up.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(60);

type Error = StreamingError<TypeConfig>;

/// The snapshots that a group sends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outgoing(Arc<State>);

#[derive(Debug, Default)]
struct State {
    sessions: AtomicU64,
    sent: Mutex<BTreeMap<ReplicaId, Sent>>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    /// The last entry that the snapshot holds.
    index: u64,
    /// Past which the receiver is not waited for any more; `None` while the snapshot is being sent.
    until: Option<Instant>,
}

/// While it lives, a snapshot is being sent.
struct Sending {
    state: Arc<State>,
    to: ReplicaId,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Sent>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outgoing {
    fn begin(&self, to: ReplicaId, index: u64) -> Sending {
        self.0.lock().insert(to, Sent { index, until: None });
        Sending { state: self.0.clone(), to }
    }

    /// The last entry of the snapshot that `to` gets or has just got.
    pub(crate) fn index(&self, to: ReplicaId) -> Option<u64> {
        let now = Instant::now();
        let mut sent = self.0.lock();
        sent.retain(|_, sent| sent.until.is_none_or(|until| now < until));
        sent.get(&to).map(|sent| sent.index)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(sent) = self.state.lock().get_mut(&self.to) {
            sent.until = Some(Instant::now() + CATCH_UP_WITHIN);
        }
    }
}

/// Sends a snapshot and waits until it is installed, or refused because of a higher vote. Dropped, it
/// breaks off; the receiver notices by the next one, or by the silence.
pub(super) async fn send(
    peer: &Peer,
    vote: Vote,
    snapshot: RaftSnapshot,
) -> Result<SnapshotResponse<TypeConfig>, Error> {
    let pinned = match snapshot.snapshot {
        SnapshotData::Pinned(pinned) => pinned,
        SnapshotData::Recovering | SnapshotData::Received(_) => {
            // Asked for again after the backoff.
            return Err(Unreachable::from_string("this replica is still recovering").into());
        }
    };
    let index = snapshot.meta.last_log_id.map_or(0, |last| last.index);
    let _sending = peer.outgoing.begin(peer.route.to, index);
    let session = peer.outgoing.0.sessions.fetch_add(1, Ordering::Relaxed);
    let mut pieces = Pieces { peer, session, in_flight: VecDeque::new() };
    let sent = pieces.send_all(vote, snapshot.meta, pinned).await?;
    if sent == vote {
        peer.metrics.snapshots_sent.inc();
    }
    Ok(SnapshotResponse::new(sent))
}

struct Pieces<'a> {
    peer: &'a Peer,
    session: u64,
    in_flight: VecDeque<BoxFuture<'static, Result<Bytes, CarryError>>>,
}

impl Pieces<'_> {
    /// Returns the receiver's vote.
    async fn send_all(
        &mut self,
        vote: Vote,
        meta: super::types::SnapshotMeta,
        mut pinned: Pinned,
    ) -> Result<Vote, Error> {
        let session = self.session;
        if let Some(higher) = self.ask(&SnapshotRequest::Begin { session, vote, meta }, PIECE_WITHIN).await? {
            return Ok(higher);
        }
        let metrics = &self.peer.metrics;
        let mut sequence = 0;
        let mut all_bytes = 0;
        loop {
            let (rest, records) = read(pinned).await.map_err(read_error)?;
            pinned = rest;
            if records.is_empty() {
                break;
            }
            while self.in_flight.len() >= IN_FLIGHT_MAX {
                if let Some(higher) = self.answered(PIECE_WITHIN).await? {
                    return Ok(higher);
                }
            }
            metrics.snapshot_records_sent.inc_by(records.len() as u64);
            let bytes: usize = records.iter().map(|(key, value)| key.len() + value.len()).sum();
            metrics.snapshot_bytes_sent.inc_by(bytes as u64);
            all_bytes += bytes as u64;
            self.send(&SnapshotRequest::Records { session, sequence, records });
            sequence += 1;
        }
        while !self.in_flight.is_empty() {
            if let Some(higher) = self.answered(PIECE_WITHIN).await? {
                return Ok(higher);
            }
        }
        drop(pinned);
        let end = SnapshotRequest::End { session, messages: sequence };
        match self.ask(&end, install_within(all_bytes)).await? {
            Some(vote) => Ok(vote),
            None => Err(Unreachable::from_string("the receiver did not say how the snapshot ended").into()),
        }
    }

    fn send(&mut self, request: &SnapshotRequest) {
        let message = encode_snapshot(request);
        self.in_flight.push_back(self.peer.carrier.send(self.peer.route, Class::Snapshot, message));
    }

    async fn ask(&mut self, request: &SnapshotRequest, within: Duration) -> Result<Option<Vote>, Error> {
        self.send(request);
        self.answered(within).await
    }

    /// Waits for the oldest answer; returns the receiver's vote if that ends the transfer.
    async fn answered(&mut self, within: Duration) -> Result<Option<Vote>, Error> {
        let Some(oldest) = self.in_flight.pop_front() else {
            return Ok(None);
        };
        let answer = match timeout(within, oldest).await {
            Ok(Ok(answer)) => decode_snapshot_answer(answer).map_err(NoAnswer::from),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => return Err(self.peer.timeout(RPCTypes::InstallSnapshot, within).into()),
        };
        match answer {
            Ok(SnapshotAnswer::Taken) => Ok(None),
            Ok(SnapshotAnswer::Ended(vote)) => Ok(Some(vote)),
            Err(error) => Err(unreachable(&error).into()),
        }
    }
}

fn install_within(bytes: u64) -> Duration {
    let more = Duration::from_secs(bytes / INSTALL_BYTES_PER_SECOND);
    (INSTALL_WITHIN + more).min(INSTALL_WITHIN_MAX)
}

async fn read(mut pinned: Pinned) -> storage::Result<(Pinned, Vec<Pair>)> {
    let reading = runtime::spawn_blocking(move || {
        let records = pinned.read(PIECE_BYTES)?;
        Ok((pinned, records))
    });
    // It is cancelled only when the runtime ends.
    reading.await.unwrap_or_else(|error| Err(storage::Error::Refused(error.to_string())))
}

/// A view that expired is asked for again; after any other error this group stops here.
fn read_error(error: storage::Error) -> Error {
    match error {
        storage::Error::ViewExpired { .. } | storage::Error::Refused(_) => {
            Unreachable::from_string(error).into()
        }
        error => StorageError::read_snapshot(None, BoxedErrorSource::from_error(&error)).into(),
    }
}
