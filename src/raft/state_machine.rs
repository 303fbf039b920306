//! openraft's state machine on a [`Machine`] and a space of the engine.
//!
//! Invariants:
//! - nothing is applied before the log holds it durably (rule 2): otherwise a crash could leave the
//!   engine ahead of the log;
//! - one engine batch carries the records of an apply together with the applied log id and membership;
//! - answers leave only after that batch is in the engine.

use std::io;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use futures_util::{Stream, TryStreamExt as _};
use openraft::EntryPayload;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};

use tokio::sync::watch;

use super::Metrics;
use super::log_store::Durability;
use super::machine::{ApplyError, Machine, Txn};
use super::snapshot::{Pinned, RaftSnapshot, Received, SnapshotBuilder, SnapshotData};
use super::space::Space;
use super::store::{Found, Store, StoreError};
use super::types::{
    Entry, RaftLogId, Reply, SnapshotMeta, StoredMembership, TypeConfig, log_id, raft_log_id,
};
use crate::codec::Malformed;
use crate::storage;
use crate::types::{LogId, LogKey};

/// Most entries in one engine batch: answers of an apply wait for its whole batch.
const BATCH_ENTRIES_MAX: usize = 1024;

/// About the most bytes in one engine batch.
const BATCH_BYTES_MAX: usize = 512 * 1024;

/// Commands that take no more than this are applied where they are, if the engine is ready and most of what they read is
/// cached: giving the thread's other tasks away costs as much as applying a few dozen of them.
const INLINE_BYTES_MAX: usize = 8 * 1024;

/// How much of an installed snapshot is written at once.
const INSTALL_BYTES: usize = 512 * 1024;

/// The space that readers of a group use; replaced when a snapshot is installed.
#[derive(Debug, Clone)]
pub(crate) struct CurrentSpace(Arc<RwLock<Space>>);

impl CurrentSpace {
    fn new(space: Space) -> CurrentSpace {
        CurrentSpace(Arc::new(RwLock::new(space)))
    }

    pub(crate) fn get(&self) -> Space {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, space: Space) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = space;
    }
}

/// Why a replica's copy can't be read, once that was found.
pub(crate) type Damage = Arc<OnceLock<String>>;

/// Why openraft's task for the state machine ended, once it has: its core may learn first that the task is gone, and
/// would report that alone.
pub(crate) type Failure = Arc<OnceLock<String>>;

/// Marks a replica's copy as one that can't be read, here and durably: only this replica ends (rule 15).
#[derive(Debug, Clone)]
pub(crate) struct DamageMark {
    key: LogKey,
    store: Arc<Store>,
    damage: Damage,
}

impl DamageMark {
    pub(crate) fn set(&self, why: String) -> Result<(), StoreError> {
        self.store.mark_damaged(self.key, &why)?;
        self.damage.get_or_init(|| why);
        Ok(())
    }

    /// The same if `error` says so; after any other error the process has to end.
    pub(crate) fn note(&self, error: &storage::Error) {
        if !matches!(error, storage::Error::Corrupt { .. }) {
            return;
        }
        if let Err(failed) = self.set(error.to_string()) {
            tracing::error!(key = %self.key, %error, %failed, "the damage could not be noted");
        }
    }
}

type Waiting = Vec<(Entry, Option<ApplyResponder<TypeConfig>>)>;

pub(crate) struct StateMachine<M> {
    key: LogKey,
    store: Arc<Store>,
    machine: M,
    space: Space,
    current: CurrentSpace,
    durability: Durability,
    applied: Option<LogId>,
    /// What the space held from its birth on: the snapshot that was installed.
    born: Option<LogId>,
    /// The newest index whose effect was found at start.
    furthest: u64,
    /// The log is whole, as every real one is: what is applied follows on what was.
    contiguous: bool,
    membership: StoredMembership,
    damage: DamageMark,
    failure: Failure,
    metrics: Metrics,
    lives: watch::Sender<()>,
}

/// Tells when the state machine is gone. openraft applies and installs in a task of its own, which ends after
/// the core has: what it has begun, it finishes.
#[derive(Debug, Clone)]
pub(crate) struct Lives(watch::Receiver<()>);

impl Lives {
    pub(crate) async fn ended(mut self) {
        // An error: the sender is gone.
        while self.0.changed().await.is_ok() {}
    }
}

impl<M: Machine> StateMachine<M> {
    pub(crate) fn open(
        key: LogKey,
        store: Arc<Store>,
        mut machine: M,
        durability: Durability,
        metrics: Metrics,
    ) -> Result<StateMachine<M>, ApplyOrStoreError> {
        let Found { space, born, applied, claimed, membership, redo, damage } = store.replica(key)?;
        let mut furthest = claimed.max(applied).map_or(0, |id| id.index);
        let found_before = damage;
        let damage = DamageMark { key, store: store.clone(), damage: Damage::default() };
        let loaded = match found_before {
            Some(why) => Err(why),
            None => match machine.load(&space, redo) {
                Err(error) if error.is_damage() => Err(error.to_string()),
                Err(error) => return Err(error.into()),
                Ok(newest) => {
                    furthest = furthest.max(newest);
                    Ok(())
                }
            },
        };
        if let Err(why) = loaded {
            damage.set(why)?;
        }
        let current = CurrentSpace::new(space.clone());
        Ok(StateMachine {
            key,
            store,
            machine,
            space,
            current,
            durability,
            applied,
            born,
            furthest,
            contiguous: false,
            membership,
            damage,
            failure: Failure::default(),
            metrics,
            lives: watch::Sender::new(()),
        })
    }

    pub(crate) fn lives(&self) -> Lives {
        Lives(self.lives.subscribe())
    }

    pub(crate) fn damage(&self) -> Damage {
        self.damage.damage.clone()
    }

    pub(crate) fn failure(&self) -> Failure {
        self.failure.clone()
    }

    /// Remembers the first error that ends openraft's task.
    fn ending<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            self.failure.get_or_init(|| error.to_string());
        })
    }

    async fn apply_all<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        let mut waiting: Waiting = Vec::new();
        let mut bytes = 0;
        while let Some((entry, responder)) = entries.try_next().await? {
            if let EntryPayload::Normal(command) = &entry.payload {
                bytes += command.0.len();
            }
            waiting.push((entry, responder));
            if waiting.len() >= BATCH_ENTRIES_MAX || bytes >= BATCH_BYTES_MAX {
                self.apply_waiting(&mut waiting).await?;
                bytes = 0;
            }
        }
        self.apply_waiting(&mut waiting).await
    }

    /// The snapshot that this replica's space was born with.
    pub(crate) fn born(&self) -> Option<LogId> {
        self.born
    }

    pub(crate) fn current_space(&self) -> CurrentSpace {
        self.current.clone()
    }

    pub(crate) fn applied(&self) -> Option<LogId> {
        self.applied
    }

    pub(crate) fn furthest(&self) -> u64 {
        self.furthest
    }

    /// From now on, what is applied must follow without a gap.
    pub(crate) fn expect_contiguous(&mut self) {
        self.contiguous = true;
    }

    /// Called through openraft between two applies.
    pub(crate) fn checkpointed(&mut self, index: u64) {
        self.machine.checkpointed(index);
    }

    /// Applies entries as one engine batch; returns an answer for each.
    fn apply_batch(&mut self, entries: &[Entry]) -> Result<Vec<Reply>, ApplyError> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return Ok(Vec::new());
        };
        let next = self.applied.map_or(0, |applied| applied.index + 1);
        if self.contiguous && first.log_id.index != next {
            let problem = format!("entry {} comes where {next} should be applied", first.log_id.index);
            return Err(ApplyError::Command(Malformed::new("log", problem)));
        }
        let _timer = self.metrics.apply_seconds.start_timer();
        let mut txn = Txn::new(&self.space);
        let mut replies = Vec::with_capacity(entries.len());
        let mut membership = None;
        for entry in entries {
            replies.push(match &entry.payload {
                EntryPayload::Blank => Reply::default(),
                EntryPayload::Normal(command) => {
                    Reply(self.machine.apply(entry.log_id.index, command.0.clone(), &mut txn)?)
                }
                EntryPayload::Membership(new) => {
                    membership = Some(StoredMembership::new(Some(entry.log_id), new.clone()));
                    Reply::default()
                }
            });
        }
        self.machine.finish(&mut txn)?;
        let mut batch = txn.into_batch();
        let applied = log_id(&last.log_id);
        assert!(self.applied < Some(applied), "{}: {applied} comes after {:?}", self.key, self.applied);
        Store::record_applied(&mut batch, self.key, applied);
        if let Some(membership) = &membership {
            Store::record_membership(&mut batch, self.key, membership);
        }
        self.store.engine().apply(batch)?;
        self.applied = Some(applied);
        if let Some(membership) = membership {
            self.membership = membership;
        }
        self.store.progressed(self.key, self.space.id(), self.applied, self.membership.clone());
        self.machine.published(applied.index);
        Ok(replies)
    }

    /// Ends this replica: openraft stops a group whose state machine fails. Damage is noted, durably,
    /// so that only this replica ends; after any other error the process must.
    fn stop_for(&self, error: ApplyError) -> io::Error {
        if error.is_damage()
            && let Err(error) = self.damage.set(error.to_string())
        {
            return io::Error::other(error);
        }
        io::Error::other(error)
    }

    async fn apply_waiting(&mut self, waiting: &mut Waiting) -> io::Result<()> {
        let Some((last, _)) = waiting.last() else {
            return Ok(());
        };
        self.durability.reached(last.log_id.index).await?;
        let (entries, responders): (Vec<Entry>, Vec<_>) = std::mem::take(waiting).into_iter().unzip();
        let is_short = entries.iter().map(payload_bytes).sum::<usize>() <= INLINE_BYTES_MAX;
        let is_ready = is_short && self.store.engine().is_ready();
        let mut apply = || self.apply_batch(&entries).map_err(|error| self.stop_for(error));
        let replies = if is_ready { apply()? } else { blocking(apply)? };
        for (responder, reply) in responders.into_iter().zip(replies) {
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    fn snapshot_meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied.map(raft_log_id), last_membership: self.membership.clone() }
    }

    /// The state as it is now, to be read while later entries are applied.
    fn pin(&self) -> storage::Result<SnapshotData> {
        if self.applied.map_or(0, |id| id.index) < self.furthest {
            return Ok(SnapshotData::Recovering);
        }
        Ok(SnapshotData::Pinned(Pinned::new(self.space.view()?, self.damage.clone())))
    }

    /// A space that holds the snapshot.
    fn filled(&self, snapshot: SnapshotData) -> Result<Space, ApplyOrStoreError> {
        let mut pinned = match snapshot {
            SnapshotData::Received(received) => return Ok(received.take()),
            SnapshotData::Pinned(pinned) => pinned,
            SnapshotData::Recovering => {
                let problem = "a replica that recovers has no snapshot".to_string();
                return Err(storage::Error::Refused(problem).into());
            }
        };
        let received = Received::new(self.store.clone());
        loop {
            let records = pinned.read(INSTALL_BYTES)?;
            if records.is_empty() {
                return Ok(received.take());
            }
            received.write(records)?;
        }
    }

    /// Makes a snapshot durable in a space of its own, and flips to it.
    fn install(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), ApplyOrStoreError> {
        let space = self.filled(snapshot)?;
        self.store.engine().checkpoint()?;
        let applied = meta.last_log_id.as_ref().map(log_id);
        self.store.flip(self.key, &self.space, &space, applied, &meta.last_membership)?;
        self.machine.load(&space, false)?;
        self.furthest = applied.map_or(0, |id| id.index);
        self.applied = applied;
        self.born = applied;
        self.membership = meta.last_membership.clone();
        self.metrics.snapshots_installed.inc();
        self.current.replace(space.clone());
        self.space = space;
        tracing::info!(key = %self.key, applied = ?applied, "a snapshot was installed");
        Ok(())
    }
}

fn payload_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(command) => command.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

/// Runs what may block on the disk so that other tasks of this thread go on elsewhere.
pub(super) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Why a replica could not be opened or replaced.
#[derive(Debug, thiserror::Error)]
pub enum ApplyOrStoreError {
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Storage(#[from] crate::storage::Error),
}

impl<M: Machine> RaftStateMachine<TypeConfig> for StateMachine<M> {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        Ok((self.applied.map(raft_log_id), self.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        let applied = self.apply_all(entries).await;
        self.ending(applied)
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<SnapshotBuilder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        match self.pin() {
            Ok(snapshot) => SnapshotBuilder::new(self.snapshot_meta(), snapshot),
            Err(error) => {
                tracing::error!(group = %self.key.group, %error, "no view for a snapshot");
                SnapshotBuilder::default()
            }
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        // openraft purges the log to the snapshot afterwards; every earlier write of this log must be
        // durable before the engine says that it holds more (rule 2).
        let settled = self.durability.settled().await;
        self.ending(settled)?;
        let installed = blocking(|| self.install(meta, snapshot)).map_err(io::Error::other);
        self.ending(installed)
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        if self.applied.is_none() {
            return Ok(None);
        }
        let snapshot = self.ending(self.pin().map_err(io::Error::other))?;
        Ok(Some(RaftSnapshot { meta: self.snapshot_meta(), snapshot }))
    }
}

impl<M> std::fmt::Debug for StateMachine<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateMachine")
            .field("key", &self.key)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}
