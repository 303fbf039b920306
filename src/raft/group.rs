//! One replica of one Raft group: proposing, reading, and looking after it.
//!
//! Both paths merge what arrives together: concurrent proposals become one message to the consensus
//! core, concurrent readers share one confirmation. Queues are bounded; what does not fit is refused
//! before anything happened.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::error::RaftError;
use openraft::storage::RaftLogStorage as _;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::Metrics;
use super::carrier::Carrier;
use super::confirm::Claim;
use super::doubt::Doubt;
use super::incoming;
use super::log_store::LogStore;
use super::machine::Machine;
use super::merge::{Proposal, READERS_MAX, Reader, UnderWay, propose_all, read_all};
use super::network::Peers;
use super::outgoing::Outgoing;
use super::receive::{APPEND_BYTES_MAX, CONTROLS_MAX};
use super::retention::{Asked, Other, Retention};
use super::space::Space;
use super::state_machine::{ApplyOrStoreError, CurrentSpace, Damage, Failure, Lives, StateMachine};
use super::status::{Changes, Heard, Role};
use super::store::Store;
use super::types::{TypeConfig, log_id, raft_log_id};
use crate::limits::{GROUP_PENDING_BYTES_MAX, GROUP_PENDING_MAX};
use crate::types::{LogId, LogKey, NodeId, ReplicaId};
use crate::way_out::START_OVER;
use crate::{runtime, wal};

/// Why a command was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Surely not appended: somebody else leads, or nobody does.
    #[error("{} does not lead here", display_leader(.leader))]
    NotLeader { leader: Option<ReplicaId> },
    /// Surely not appended: this replica's copy can't be read.
    #[error("this replica's copy can't be read: {0}")]
    Damaged(String),
    /// Surely not appended: the queue is full.
    #[error("too many proposals wait already")]
    Overloaded,
    /// Surely not appended: the deadline passed before its turn.
    #[error("the deadline passed before the proposal's turn")]
    DeadlineBefore,
    /// Perhaps appended, perhaps committed, now or later.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

/// Why a group could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("{} does not lead here", display_leader(.leader))]
    NotLeader { leader: Option<ReplicaId> },
    #[error("this replica's copy can't be read: {0}")]
    Damaged(String),
    /// What the log held at start is not applied again yet.
    #[error("this replica is still recovering")]
    Recovering,
    #[error("no majority has confirmed yet that this replica leads")]
    NoQuorum,
    #[error("too many readers wait already")]
    Overloaded,
    #[error("the deadline passed")]
    Deadline,
    #[error("the group stopped: {0}")]
    Stopped(String),
}

fn display_leader(leader: &Option<ReplicaId>) -> String {
    match leader {
        Some(leader) => format!("{leader} leads; this replica"),
        None => "nobody leads; this replica".to_string(),
    }
}

/// A replica of a group. Clones share it.
pub struct Group<M: Machine> {
    pub(super) key: LogKey,
    pub(super) raft: Raft<TypeConfig, StateMachine<M>>,
    pub(super) metrics: Metrics,
    pub(super) space: CurrentSpace,
    damage: Damage,
    failure: Failure,
    pub(super) doubt: Doubt,
    machine_lives: Lives,
    /// The last entry of the log when it was opened.
    tail: Option<LogId>,
    proposals: mpsc::Sender<Proposal>,
    pub(super) under_way: UnderWay,
    room: Arc<Semaphore>,
    readers: mpsc::Sender<Reader>,
    /// Room for appends that arrive, in bytes.
    pub(super) appends: Arc<Semaphore>,
    /// Room for other messages that arrive.
    pub(super) controls: Arc<Semaphore>,
    pub(super) snapshots: mpsc::Sender<incoming::Part>,
    pub(super) heard: Heard,
    pub(super) outgoing: Outgoing,
    pub(super) log: wal::Log,
    kept: Arc<Kept>,
    pub(super) store: Arc<Store>,
}

/// What decides how much of the log stays.
#[derive(Debug)]
pub(super) struct Kept {
    /// The last entry at the last checkpoint.
    last: AtomicU64,
    pub(super) retention: Mutex<Retention>,
}

impl<M: Machine> Clone for Group<M> {
    fn clone(&self) -> Group<M> {
        Group {
            key: self.key,
            raft: self.raft.clone(),
            metrics: self.metrics.clone(),
            space: self.space.clone(),
            damage: self.damage.clone(),
            failure: self.failure.clone(),
            doubt: self.doubt.clone(),
            machine_lives: self.machine_lives.clone(),
            tail: self.tail,
            proposals: self.proposals.clone(),
            under_way: self.under_way.clone(),
            room: self.room.clone(),
            readers: self.readers.clone(),
            appends: self.appends.clone(),
            controls: self.controls.clone(),
            snapshots: self.snapshots.clone(),
            heard: self.heard.clone(),
            outgoing: self.outgoing.clone(),
            log: self.log.clone(),
            kept: self.kept.clone(),
            store: self.store.clone(),
        }
    }
}

impl<M: Machine> fmt::Debug for Group<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Why a replica could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct OpenError {
    pub key: LogKey,
    pub problem: String,
}

impl<M: Machine> Group<M> {
    /// Starts a replica on what the log and the store hold of it, or on nothing. It speaks to the other
    /// replicas of its group through `carrier`, and hears of them by [`Group::receive`].
    pub async fn open(
        key: LogKey,
        store: Arc<Store>,
        log: wal::Log,
        machine: M,
        metrics: &Metrics,
        carrier: Arc<dyn Carrier>,
    ) -> Result<Group<M>, OpenError> {
        let open_error = |problem: String| OpenError { key, problem };
        let mut log_store = LogStore::new(log.clone());
        let durability = log_store.durability();
        let (opening, opening_metrics) = (store.clone(), metrics.clone());
        let kept_store = store.clone();
        let mut state_machine = runtime::spawn_blocking(move || {
            StateMachine::open(key, opening, machine, durability, opening_metrics)
        })
        .await
        .map_err(|error| open_error(error.to_string()))?
        .map_err(|error: ApplyOrStoreError| open_error(error.to_string()))?;
        finish_install(&mut log_store, &log, &state_machine)
            .await
            .map_err(|error| open_error(error.to_string()))?;
        let (log_last, log_purged, has_vote) = (log.last(), log.purged(), log.vote().is_some());
        // Nothing is applied before the log has it durably: an engine ahead of its log means that the log
        // was lost, with everything that was acknowledged and not yet applied, and with the vote.
        let applied = state_machine.applied();
        let furthest = state_machine.furthest();
        let log_ends = log_last.map_or(0, |last| last.index);
        if applied > log_last || furthest > log_ends || (applied.is_some() && !has_vote) {
            return Err(open_error(format!(
                "the engine has applied up to {furthest}, but the write-ahead log ends at {}: the log is incomplete, and \
                 acknowledged writes may be lost: {START_OVER}",
                display(log_last)
            )));
        }
        if applied < log_purged {
            return Err(open_error(format!(
                "the write-ahead log begins after {}, but the engine has applied only up to {}: the engine has \
                 lost what it had made durable: {START_OVER}",
                display(log_purged),
                display(applied)
            )));
        }
        state_machine.expect_contiguous();
        let space = state_machine.current_space();
        let noted = kept_store.suspicion(key).map_err(|error| open_error(error.to_string()))?;
        let doubt = Doubt::noted(space.get().id(), noted);
        let (damage, failure) = (state_machine.damage(), state_machine.failure());
        let machine_lives = state_machine.lives();
        let config = config(key).validate().map_err(|error| open_error(error.to_string()))?;
        let outgoing = Outgoing::default();
        let peers = Peers::new(key, carrier.clone(), metrics.clone(), outgoing.clone());
        let raft = Raft::build(key.replica.0, Arc::new(config), peers, log_store, state_machine)
            .await
            .map_err(|error| open_error(error.to_string()))?;

        let (proposals, queue) = mpsc::channel(GROUP_PENDING_MAX);
        let under_way = UnderWay::default();
        runtime::spawn(propose_all(raft.clone(), queue, under_way.clone(), metrics.clone()));
        let (readers, read_queue) = mpsc::channel(READERS_MAX);
        runtime::spawn(read_all(raft.clone(), read_queue, log.clone(), carrier, metrics.clone()));
        let (snapshots, parts) = mpsc::channel(incoming::QUEUE_MAX);
        let receiver = incoming::Receiver { key, raft: raft.clone(), store, metrics: metrics.clone() };
        runtime::spawn(receiver.run(parts));
        let group = Group {
            key,
            raft,
            metrics: metrics.clone(),
            space,
            damage,
            failure,
            doubt,
            machine_lives,
            tail: log_last,
            proposals,
            under_way,
            room: Arc::new(Semaphore::new(GROUP_PENDING_BYTES_MAX)),
            readers,
            appends: Arc::new(Semaphore::new(APPEND_BYTES_MAX)),
            controls: Arc::new(Semaphore::new(CONTROLS_MAX)),
            snapshots,
            heard: Heard::default(),
            outgoing,
            log,
            kept: Arc::new(Kept { last: AtomicU64::new(0), retention: Mutex::new(Retention::DEFAULT) }),
            store: kept_store,
        };
        runtime::spawn(count_elections(group.changes(), metrics.elections_won.clone()));
        match group.damage() {
            Some(why) => tracing::error!(%key, why, "this replica's copy can't be read; it stays stopped"),
            None => group.raft.run(),
        }
        Ok(group)
    }

    /// Whether both are the same replica as it was opened once, not only of the same key.
    pub fn is_same(&self, other: &Group<M>) -> bool {
        Arc::ptr_eq(&self.kept, &other.kept)
    }

    pub fn key(&self) -> LogKey {
        self.key
    }

    /// Why this replica's copy can't be read, if it can't: it has stopped, and the others of the node
    /// have not.
    pub fn damage(&self) -> Option<&str> {
        self.damage.get().map(String::as_str)
    }

    /// Whether everything that the log held at start is applied again. Until then the records are of no
    /// one moment, and nobody may see them (rule 3).
    pub fn is_recovered(&self) -> bool {
        self.raft.metrics().borrow_watched().last_applied.as_ref().map(log_id) >= self.tail
    }

    /// Whether this replica has ever been part of a group.
    pub async fn is_initialized(&self) -> Result<bool, OpenError> {
        let initialized = self.raft.is_initialized().await;
        initialized.map_err(|error| self.failed(&error))
    }

    /// Gives a new group its first members. Only its birth voters may (rule 8), all with the same members, and doing it
    /// again changes nothing.
    pub async fn initialize(&self, voters: &[ReplicaId]) -> Result<(), OpenError> {
        let members: std::collections::BTreeMap<u64, ()> = voters.iter().map(|id| (id.0, ())).collect();
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(openraft::error::InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Stands for election now if nobody else could: the only voter need not wait out a timeout.
    pub async fn elect_if_alone(&self) {
        if self.damage().is_some() {
            return;
        }
        let status = self.status();
        if status.voters == [self.key.replica] && status.role != Role::Leader {
            // A stopped group is reported by `stopped`.
            let _ = self.raft.trigger().elect(false).await;
        }
    }

    /// Replicates a command and returns the machine's answer, once a majority has it durably and it is
    /// applied here. Dropping the future does not take the command back.
    pub async fn propose(&self, command: Bytes, deadline: Instant) -> Result<Bytes, ProposeError> {
        if let Some(why) = self.damage() {
            return Err(ProposeError::Damaged(why.to_string()));
        }
        let bytes = u32::try_from(command.len()).map_err(|_| ProposeError::Overloaded)?;
        let room = self.room.clone().try_acquire_many_owned(bytes).map_err(|_| ProposeError::Overloaded)?;
        let (answer, answered) = oneshot::channel();
        let proposal = Proposal { command, answer, deadline, room };
        match self.proposals.try_send(proposal) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(ProposeError::Overloaded),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                return Err(ProposeError::NotLeader { leader: None });
            }
        }
        match timeout_at(deadline, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ProposeError::Unknown("the group stopped".into())),
            Err(_) => Err(ProposeError::Unknown("no answer before the deadline".into())),
        }
    }

    /// Resolves once every command that was proposed here is answered, or at the deadline. A replica that has
    /// handed its leadership over answers them when it hears from the new leader that they are committed.
    pub async fn answered(&self, deadline: Instant) {
        // Whoever waits holds a share of the room.
        while self.room.available_permits() < GROUP_PENDING_BYTES_MAX && Instant::now() < deadline {
            sleep(ANSWERED_LOOK).await;
        }
    }

    /// Returns the group's records as of a moment after this call began, so that every write that was
    /// acknowledged before is there.
    pub async fn read(&self, deadline: Instant) -> Result<Space, ReadError> {
        if let Some(why) = self.damage() {
            return Err(ReadError::Damaged(why.to_string()));
        }
        if self.leads_alone() {
            return Ok(self.space.get());
        }
        let (ready, readied) = oneshot::channel();
        match self.readers.try_send(ready) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(ReadError::Overloaded),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(ReadError::Stopped("closed".into())),
        }
        match timeout_at(deadline, readied).await {
            Ok(Ok(result)) => result.map(|()| self.space.get()),
            Ok(Err(_)) => Err(ReadError::Stopped("closed".into())),
            Err(_) => Err(ReadError::Deadline),
        }
    }

    /// Whether this replica leads and nobody else has a vote: then nobody has to be asked.
    fn leads_alone(&self) -> bool {
        let claim = Claim::of(self.key, &self.raft.metrics().borrow_watched(), &self.log);
        claim.is_some_and(|claim| claim.is_alone(self.key.replica))
    }

    /// The records as this replica has them, however old.
    pub fn stale(&self) -> Result<Space, ReadError> {
        match self.damage() {
            Some(why) => Err(ReadError::Damaged(why.to_string())),
            None if !self.is_recovered() => Err(ReadError::Recovering),
            None => Ok(self.space.get()),
        }
    }

    /// Lets the log go up to `upto`, which a checkpoint has made durable, as far as nobody needs it.
    pub async fn checkpointed(&self, upto: LogId) -> Result<(), OpenError> {
        if self.damage().is_some() {
            // Its log stays: it may be what somebody rescues.
            return Ok(());
        }
        self.raft
            .with_state_machine(move |machine| {
                machine.checkpointed(upto.index);
                Box::pin(std::future::ready(()))
            })
            .await
            .map_err(|error| self.failed(&error))?;
        // openraft purges only what a snapshot covers; ours is the live state, which is always newer.
        self.raft.trigger().snapshot().await.map_err(|error| self.failed(&error))?;
        self.raft
            .wait(Some(SNAPSHOT_NOTED_WITHIN))
            .metrics(|metrics| metrics.snapshot.as_ref().map(log_id) >= Some(upto), "snapshot noted")
            .await
            .map_err(|error| self.failed(&error))?;
        match self.purge_to(upto.index) {
            Some(upto) => self.raft.trigger().purge_log(upto).await.map_err(|error| self.failed(&error)),
            None => Ok(()),
        }
    }

    /// How far the log may go; `None` if nothing more may.
    fn purge_to(&self, upto: u64) -> Option<u64> {
        let status = self.status();
        let others = status.matched.iter().map(|(replica, matched)| Other {
            replica: *replica,
            matched: *matched,
            snapshot: self.outgoing.index(*replica),
        });
        let asked = Asked {
            upto,
            alone: status.voters == [self.key.replica] && status.learners.is_empty(),
            idle: self.kept.last.swap(status.last_index, Ordering::Relaxed) == status.last_index,
            others: (status.role == Role::Leader).then(|| others.collect()),
        };
        let retention = *self.kept.retention.lock().unwrap_or_else(PoisonError::into_inner);
        let upto = retention.purge_to(&asked, |bytes| self.log.tail_index(bytes));
        let purged = self.log.purged().map(|purged| purged.index);
        upto.filter(|upto| Some(*upto) > purged)
    }

    /// Whether this is what the replica holds now, and not what a snapshot has replaced.
    pub fn holds(&self, space: &Space) -> bool {
        self.space.get().id() == space.id()
    }

    /// Marks this replica's copy as damaged, durably: it stops, and answers nothing any more (rule 15). The process
    /// must end if this fails.
    pub async fn condemn(&self, why: String) -> Result<(), OpenError> {
        let (store, key, reason) = (self.store.clone(), self.key, why.clone());
        runtime::spawn_blocking(move || store.mark_damaged(key, &reason))
            .await
            .map_err(|error| OpenError { key, problem: error.to_string() })?
            .map_err(|error| OpenError { key, problem: error.to_string() })?;
        self.damage.get_or_init(|| why);
        self.shutdown().await;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn set_retention(&self, retention: Retention) {
        *self.kept.retention.lock().unwrap() = retention;
    }

    /// What openraft says failed; or, if that ended the state machine, why.
    fn failed(&self, openraft_says: &dyn fmt::Display) -> OpenError {
        let problem = self.failure.get().cloned().unwrap_or_else(|| openraft_says.to_string());
        OpenError { key: self.key, problem }
    }

    /// Resolves, with the reason, when the group stopped by itself. If [`Group::damage`] says why, only
    /// this replica is affected; else the process must end.
    pub async fn stopped(&self) -> String {
        let mut metrics = self.raft.metrics();
        loop {
            if let Some(why) = self.damage() {
                return format!("{}: its copy can't be read: {why}", self.key);
            }
            if let Err(fatal) = &metrics.borrow_watched().running_state {
                return self.failed(fatal).to_string();
            }
            if metrics.changed().await.is_err() {
                return format!("{}: its core is gone", self.key);
            }
        }
    }

    /// Goes through the consensus core's loop and back.
    pub async fn probe(&self) -> Result<(), OpenError> {
        if self.damage().is_some() {
            return Ok(());
        }
        let passed = self.raft.with_raft_state(|_| ()).await;
        passed.map_err(|error| self.failed(&error))
    }

    /// Sends what a node's replicas lack now, if this one leads: the node can be reached again, and the pauses
    /// between attempts have grown.
    pub async fn send_at_once(&self, node: NodeId) {
        let status = self.status();
        if status.role != Role::Leader {
            return;
        }
        let its = status.voters.iter().chain(&status.learners).filter(|replica| replica.node() == node);
        let its: Vec<u64> = its.map(|replica| replica.0).collect();
        if its.is_empty() {
            // That would mean all.
            return;
        }
        if let Err(error) = self.raft.trigger().reset_backoff(its).await {
            tracing::debug!(key = %self.key, %error, "nothing is sent any more");
        }
    }

    /// Stops the replica: once this returns, it changes nothing any more. What is under way may or may not have
    /// happened.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(key = %self.key, %error, "the consensus core did not stop cleanly");
        }
        self.machine_lives.clone().ended().await;
    }
}

/// Ends the install of a snapshot that a crash broke off after the engine had flipped to it and before
/// the log was purged up to it. It is known by the space: it was born with a snapshot beyond the log's
/// end, and nothing was applied to it since.
async fn finish_install<M: Machine>(
    log_store: &mut LogStore,
    log: &wal::Log,
    machine: &StateMachine<M>,
) -> std::io::Result<()> {
    let Some(born) = machine.born() else {
        return Ok(());
    };
    let untouched = machine.applied() == Some(born) && machine.furthest() <= born.index;
    if untouched && log.vote().is_some() && ends_before(log.last(), born) {
        tracing::info!(key = %log.key(), upto = %born, "purging the log that an installed snapshot replaces");
        log_store.purge(raft_log_id(born)).await?;
    }
    Ok(())
}

/// Whether a snapshot up to `born` replaces the whole log. Told by the index: the log may end in entries of a
/// later term, which were never committed.
fn ends_before(last: Option<LogId>, born: LogId) -> bool {
    last.is_none_or(|last| last.index < born.index)
}

async fn count_elections(mut changes: Changes, won: prometheus::IntCounter) {
    let mut role = changes.role();
    loop {
        let before = std::mem::replace(&mut role, changes.role());
        if role == Role::Leader && before != Role::Leader {
            won.inc();
        }
        if !changes.changed().await {
            return;
        }
    }
}

fn display(id: Option<LogId>) -> String {
    id.map_or("nothing".to_string(), |id| id.to_string())
}

/// A snapshot is noted without any I/O of its own, but behind an apply that may wait for the engine: this is
/// longer than any write of an engine may take before the process is ended over it (`storage/watched.rs`).
const SNAPSHOT_NOTED_WITHIN: Duration = Duration::from_mins(11);

/// Between two looks at whether all proposals are answered; a stop waits for it.
const ANSWERED_LOOK: Duration = Duration::from_millis(2);

/// Never, but where a test plants it as a bug.
fn is_leader_restored() -> bool {
    #[cfg(test)]
    return runtime::is_planted(runtime::Planted::LeaderRestore);
    #[cfg(not(test))]
    false
}

/// Rules 1, 7 and 16 of the design.
fn config(key: LogKey) -> openraft::Config {
    let paced = |ms| runtime::paced(Duration::from_millis(ms)).as_millis() as u64;
    openraft::Config {
        cluster_name: key.group.to_string(),
        heartbeat_interval: paced(150),
        election_timeout_min: paced(450),
        election_timeout_max: paced(650),
        quorum_loss_probe_interval: Some(paced(1300)),
        enable_pre_vote: Some(true),
        // A leader that comes back before its followers noticed could otherwise give log ids away twice.
        enable_leader_restore: Some(is_leader_restored()),
        // A follower whose disk lost the end of its log gets it again; `network.rs` says so aloud.
        allow_log_reversion: Some(true),
        // The live state is the snapshot, and we purge ourselves, at checkpoints.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        // Small entries go in larger messages; a message's bytes are bounded where entries are read.
        max_payload_entries: 1024,
        ..openraft::Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_replaces_a_tail_of_a_later_term() {
        let id = |term, index| LogId { term, index };
        assert!(ends_before(None, id(2, 100)) && ends_before(Some(id(2, 99)), id(2, 100)));
        assert!(ends_before(Some(id(3, 5)), id(2, 100)), "never committed");
        assert!(!ends_before(Some(id(2, 100)), id(2, 100)) && !ends_before(Some(id(2, 101)), id(2, 100)));
    }
}
