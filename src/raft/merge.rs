//! What waits goes together: proposals to the consensus core as one message, readers as one question to the voters.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::error::ClientWriteError;
use openraft::metrics::RaftMetrics;
use openraft::{Raft, ServerState};
use tokio::sync::{OwnedSemaphorePermit, RwLock, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::Metrics;
use super::carrier::Carrier;
use super::confirm::{Claim, Confirmer, Verdict};
use super::group::{ProposeError, ReadError};
use super::machine::Machine;
use super::state_machine::StateMachine;
use super::types::{Command, TypeConfig};
use crate::types::ReplicaId;
use crate::{runtime, wal};

/// Most proposals in one message to the consensus core.
const PROPOSALS_PER_MESSAGE: usize = 512;

/// Readers that may wait for a confirmation; the next one is refused.
pub(super) const READERS_MAX: usize = 16 * 1024;

/// How long a new leader may take to apply an entry of its term, before which nobody reads there. The readers behind wait
/// as long: it is less than a call has, and more than any batch takes.
const APPLIED_WITHIN: Duration = Duration::from_secs(2);

/// A command that waits for its turn.
pub(super) struct Proposal {
    pub command: Bytes,
    pub answer: oneshot::Sender<Result<Bytes, ProposeError>>,
    pub deadline: Instant,
    /// Its share of the bytes that may wait; given back when it is answered.
    pub room: OwnedSemaphorePermit,
}

/// Somebody who waits to read.
pub(super) type Reader = oneshot::Sender<Result<(), ReadError>>;

/// Read by what was given to the core and is not answered yet; written by who needs that there is none of it,
/// and that nothing more is given: a leader that hands over. Proposals wait meanwhile, and surely did not happen.
pub(super) type UnderWay = Arc<RwLock<()>>;

/// How long a group's proposals wait for the ones before them, to go together in one message: each message costs the
/// core, the network and the other replicas as much as many proposals do. What takes longer than this is far away, or slow,
/// and is not waited for. Where there are no others nothing is: then the log and the apply gather what comes.
const GATHERED_WITHIN: Duration = Duration::from_millis(5);

/// Feeds proposals to the core: all that wait in one message.
pub(super) async fn propose_all<M: Machine>(
    raft: Raft<TypeConfig, StateMachine<M>>,
    mut queue: mpsc::Receiver<Proposal>,
    under_way: UnderWay,
    metrics: Metrics,
) {
    let raft_metrics = raft.metrics();
    let mut batch = Vec::with_capacity(PROPOSALS_PER_MESSAGE);
    while queue.recv_many(&mut batch, PROPOSALS_PER_MESSAGE).await > 0 {
        let given = under_way.clone().read_owned().await;
        let now = Instant::now();
        let mut commands = Vec::with_capacity(batch.len());
        let mut waiting = Vec::with_capacity(batch.len());
        for Proposal { command, answer, deadline, room } in batch.drain(..) {
            if deadline <= now {
                // If nobody waits any more, nothing is lost: it was not submitted.
                let _ = answer.send(Err(ProposeError::DeadlineBefore));
            } else if !answer.is_closed() {
                commands.push(Command(command));
                waiting.push((answer, room));
            }
        }
        if commands.is_empty() {
            continue;
        }
        metrics.proposals_per_message.observe(commands.len() as f64);
        let results = raft.client_write_many(commands).await;
        let propose_seconds = metrics.propose_seconds.clone();
        let mut answering = Box::pin(async move {
            let _given = given;
            let mut results = match results {
                Ok(results) => results,
                Err(fatal) => {
                    for (answer, _room) in waiting {
                        let _ = answer.send(Err(ProposeError::Unknown(fatal.to_string())));
                    }
                    return;
                }
            };
            for (answer, _room) in waiting {
                let result = match results.next().await {
                    Some(Ok(Ok(written))) => Ok(written.response.0),
                    Some(Ok(Err(error))) => Err(propose_error(error)),
                    Some(Err(fatal)) => Err(ProposeError::Unknown(fatal.to_string())),
                    None => Err(ProposeError::Unknown("the group stopped".into())),
                };
                propose_seconds.observe(now.elapsed().as_secs_f64());
                // The caller may have given up; the write stands all the same.
                let _ = answer.send(result);
            }
        });
        let is_alone = has_one_replica(&raft_metrics.borrow_watched());
        if is_alone || timeout(GATHERED_WITHIN, &mut answering).await.is_err() {
            runtime::spawn(answering);
        }
    }
}

/// Whether the group has one replica, learners included: nothing is sent for a proposal.
fn has_one_replica(metrics: &RaftMetrics<TypeConfig>) -> bool {
    metrics.membership_config.membership().nodes().count() == 1
}

/// Only a refusal before appending means "did not happen" (rule 10).
fn propose_error(error: ClientWriteError<TypeConfig>) -> ProposeError {
    match error {
        ClientWriteError::ForwardToLeader(forward) => {
            ProposeError::NotLeader { leader: forward.leader_id.map(ReplicaId) }
        }
        other => ProposeError::Unknown(other.to_string()),
    }
}

/// Confirms leadership for readers: all that wait share one round.
pub(super) async fn read_all<M: Machine>(
    raft: Raft<TypeConfig, StateMachine<M>>,
    mut queue: mpsc::Receiver<Reader>,
    log: wal::Log,
    carrier: Arc<dyn Carrier>,
    metrics: Metrics,
) {
    let mut confirmer = Confirmer::new(log.key(), carrier);
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, READERS_MAX).await > 0 {
        metrics.readers_per_round.observe(batch.len() as f64);
        #[cfg(test)]
        let is_planted = runtime::is_planted(runtime::Planted::UnconfirmedRead);
        #[cfg(not(test))]
        let is_planted = false;
        let result = match claimed(&raft, &log).await {
            Ok(_) if is_planted => Ok(()),
            Ok(claim) => match confirmer.confirm(&claim).await {
                Verdict::Confirmed => Ok(()),
                Verdict::Superseded => Err(ReadError::NotLeader { leader: None }),
                Verdict::Unknown => Err(ReadError::NoQuorum),
            },
            Err(error) => Err(error),
        };
        if result == Err(ReadError::NoQuorum) {
            metrics.read_rounds_unconfirmed.inc();
        }
        for reader in batch.drain(..) {
            // A reader may have given up.
            let _ = reader.send(result.clone());
        }
    }
}

/// The claim of a replica that leads, once it has applied an entry of its term.
async fn claimed<M: Machine>(
    raft: &Raft<TypeConfig, StateMachine<M>>,
    log: &wal::Log,
) -> Result<Claim, ReadError> {
    let this = log.key().replica;
    let mut metrics = raft.metrics();
    let claim = async {
        loop {
            {
                let now = metrics.borrow_watched();
                if let Some(claim) = Claim::of(log.key(), &now, log) {
                    return Ok(claim);
                }
                if let Err(fatal) = &now.running_state {
                    return Err(ReadError::Stopped(fatal.to_string()));
                }
                if now.state != ServerState::Leader {
                    let leader = now.current_leader.map(ReplicaId).filter(|leader| *leader != this);
                    return Err(ReadError::NotLeader { leader });
                }
            }
            if metrics.changed().await.is_err() {
                return Err(ReadError::Stopped("closed".into()));
            }
        }
    };
    timeout(APPLIED_WITHIN, claim).await.unwrap_or(Err(ReadError::NoQuorum))
}
