//! What all groups of a node share: the engine, divided into spaces, and the checkpoint file.
//!
//! Engine layout (`docs/formats/engine.md`): `s` group replica → the replica's space and the state it
//! was born with; `a` group replica → last applied log id; `m` group replica → last applied membership;
//! `x` group replica → why this copy can't be read; `q` group replica → why it is in doubt; `t` group replica
//! → it was destroyed; `u` space → it may be damaged, and nobody needs it; `d` space key → the machine's
//! records. One batch carries an apply's records together with its `a`.
//!
//! A checkpoint makes the engine durable and writes down, in a file beside it, how far every replica
//! had applied before. The log is purged only up to there (rule 6), and an engine that does not
//! recover a prefix is redone from there after an unclean stop (rule 3).

mod layout;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};

use layout::{
    APPLIED, DAMAGE, MEMBERSHIP, STATE, SUSPECT, TOMBSTONE, applied_key, decode_applied, decode_birth,
    decode_checkpoint, decode_replica_key, encode_birth, encode_checkpoint, replica_key, state_key,
};
pub(super) use layout::{damage_key, membership_key};

use super::codec::{decode_stored_membership, encode_stored_membership, put_log_id};
use super::space::{Space, SpaceId};
use super::sweep;
use super::types::StoredMembership;
use crate::codec::Malformed;
use crate::storage::{self, Batch, Engine};
use crate::types::{LogId, LogKey};
use crate::way_out::START_OVER;
use crate::{disk, runtime};

/// Why the store could not be opened, or stopped working.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: std::io::Error },
}

/// How far a replica has applied, and where.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub space: SpaceId,
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
}

/// A replica as it was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub space: Space,
    /// The snapshot that the space was born with, if any.
    pub born: Option<LogId>,
    pub applied: Option<LogId>,
    /// The newest entry whose effect the engine claims to hold; past `applied` in a redo.
    pub claimed: Option<LogId>,
    pub membership: StoredMembership,
    /// The log will be applied again on a state that may be ahead of it.
    pub redo: bool,
    /// Why this copy must not be used any more, if it was marked so.
    pub damage: Option<String>,
}

/// Shared by every group of a node.
#[derive(Debug)]
pub struct Store {
    engine: Arc<dyn Engine>,
    files: Arc<dyn disk::Files>,
    checkpoint_path: PathBuf,
    /// The engine may hold something else than a prefix of what was applied.
    redo: bool,
    /// What the last checkpoint said before this start, of the replicas that are still here.
    at_start: BTreeMap<LogKey, Progress>,
    inner: Mutex<Inner>,
    /// Held while a checkpoint is taken.
    checkpointing: Mutex<()>,
    /// Held while a replica's space is replaced, or put in doubt.
    replacing: Mutex<()>,
}

#[derive(Debug)]
struct Inner {
    next_space: u32,
    /// Of the replicas that were opened since the start.
    progress: BTreeMap<LogKey, Progress>,
    /// Replicas that are here and were not opened since the start.
    unopened: BTreeSet<LogKey>,
    /// Spaces that were replaced, until their last reader has gone.
    retired: Vec<Space>,
}

/// The replica's space, and what its state was when the space was born.
pub(super) struct Birth {
    pub space: SpaceId,
    applied: Option<LogId>,
    pub membership: StoredMembership,
}

impl Store {
    /// Opens the store over `engine`, with its checkpoint file in `dir`. `clean` says that the engine
    /// was closed properly the last time. Sweeps spaces that belong to nobody.
    pub fn open(engine: Arc<dyn Engine>, dir: &Path, clean: bool) -> Result<Store, StoreError> {
        Store::open_on(Arc::new(disk::Disk), engine, dir, clean)
    }

    /// The same with the checkpoint file on a disk of the caller's.
    pub fn open_on(
        files: Arc<dyn disk::Files>,
        engine: Arc<dyn Engine>,
        dir: &Path,
        clean: bool,
    ) -> Result<Store, StoreError> {
        let checkpoint_path = dir.join("checkpoint");
        let redo = !clean && !engine.recovers_prefix();
        forget_destroyed(engine.as_ref())?;
        let mut at_start = read_checkpoint(files.as_ref(), &checkpoint_path)?;
        let owned = births(engine.as_ref())?;
        at_start.retain(|key, progress| owned.get(key).is_some_and(|birth| birth.space == progress.space));
        let used: BTreeSet<SpaceId> = owned.values().map(|birth| birth.space).collect();
        let next_space = sweep::sweep(engine.as_ref(), &used)?;
        let unopened = owned.into_keys().collect();
        let inner = Inner { next_space, progress: BTreeMap::new(), unopened, retired: Vec::new() };
        Ok(Store {
            engine,
            files,
            checkpoint_path,
            redo,
            at_start,
            inner: Mutex::new(inner),
            checkpointing: Mutex::new(()),
            replacing: Mutex::new(()),
        })
    }

    /// Whether the log is applied again, after an unclean stop, on an engine that may be ahead of it.
    pub fn is_redo(&self) -> bool {
        self.redo
    }

    /// Replicas that are here and were not opened since the start, in order.
    pub fn unopened(&self) -> Vec<LogKey> {
        self.lock().unopened.iter().copied().collect()
    }

    /// Replicas that were opened since the start and are still here, in order.
    pub fn opened(&self) -> Vec<LogKey> {
        self.lock().progress.keys().copied().collect()
    }

    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change under this lock is a single assignment or push.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the replica's state, or creates an empty one.
    pub(crate) fn replica(&self, key: LogKey) -> Result<Found, StoreError> {
        let birth = match self.engine.get(&state_key(key))? {
            Some(bytes) => decode_birth(bytes)?,
            None => self.bear(key)?,
        };
        let space = Space::new(self.engine.clone(), birth.space);
        let claimed = match self.engine.get(&applied_key(key))? {
            Some(bytes) => decode_applied(bytes)?,
            None => birth.applied,
        };
        let (applied, membership) = if self.redo {
            match self.at_start.get(&key).filter(|progress| progress.space == birth.space) {
                Some(progress) => (progress.applied, progress.membership.clone()),
                None => (birth.applied, birth.membership),
            }
        } else {
            let membership = match self.engine.get(&membership_key(key))? {
                Some(bytes) => decode_stored_membership(bytes)?,
                None => birth.membership,
            };
            (claimed, membership)
        };
        let damage = self.engine.get(&damage_key(key))?;
        let damage = damage.map(|why| String::from_utf8_lossy(&why).into_owned());
        self.progressed(key, space.id(), applied, membership.clone());
        Ok(Found { space, born: birth.applied, applied, claimed, membership, redo: self.redo, damage })
    }

    /// Marks the replica's copy as one that can't be read, durably: it is not used again (rule 15).
    pub(crate) fn mark_damaged(&self, key: LogKey, why: &str) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        batch.put(damage_key(key), Bytes::copy_from_slice(why.as_bytes()));
        self.engine.apply(batch)?;
        Ok(self.engine.checkpoint()?)
    }

    /// Notes, durably, that the records in this space of the replica's can be read but are not those that were
    /// written: until they are replaced, they are not counted on. False: they are no longer its. Blocks on the disk.
    pub(crate) fn mark_suspect(&self, key: LogKey, space: SpaceId, why: &str) -> Result<bool, StoreError> {
        let _not_meanwhile = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.engine.get(&state_key(key))?.map(decode_birth).transpose()?;
        if held.is_none_or(|birth| birth.space != space) {
            return Ok(false);
        }
        let mut batch = Batch::default();
        batch.put(replica_key(SUSPECT, key), Bytes::copy_from_slice(why.as_bytes()));
        self.engine.apply(batch)?;
        self.engine.checkpoint()?;
        Ok(true)
    }

    /// What [`Self::mark_suspect`] noted.
    pub(super) fn suspicion(&self, key: LogKey) -> Result<Option<String>, StoreError> {
        let why = self.engine.get(&replica_key(SUSPECT, key))?;
        Ok(why.map(|why| String::from_utf8_lossy(&why).into_owned()))
    }

    /// Whether the copy of any replica here is marked as one that can't be read. Blocks on the disk.
    pub fn has_damage(&self) -> Result<bool, StoreError> {
        has_damage(self.engine.as_ref())
    }

    /// Replicas that were destroyed here: their ids must not be used again.
    pub fn tombstones(&self) -> Result<Vec<LogKey>, StoreError> {
        tombstones(self.engine.as_ref())
    }

    /// Forgets a replica that has stopped, durably, but for its tombstone. Blocks on the disk.
    pub(crate) fn destroy(&self, key: LogKey, space: Space) -> Result<(), StoreError> {
        let _not_meanwhile = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = Batch::default();
        if self.engine.get(&damage_key(key))?.is_some() {
            sweep::note(&mut batch, space.id());
        }
        delete_state(&mut batch, key);
        batch.put(replica_key(TOMBSTONE, key), Bytes::new());
        self.engine.apply(batch)?;
        self.engine.checkpoint()?;
        let mut inner = self.lock();
        inner.progress.remove(&key);
        inner.unopened.remove(&key);
        // Its records go when the last reader has: see `sweep_retired`.
        inner.retired.push(space);
        Ok(())
    }

    fn bear(&self, key: LogKey) -> Result<Birth, StoreError> {
        let birth = Birth { space: self.new_space(), applied: None, membership: StoredMembership::default() };
        let mut batch = Batch::default();
        batch.put(state_key(key), encode_birth(&birth));
        self.engine.apply(batch)?;
        Ok(birth)
    }

    pub(crate) fn new_space(&self) -> SpaceId {
        let mut inner = self.lock();
        let id = SpaceId(inner.next_space);
        inner.next_space += 1;
        id
    }

    /// Adds to `batch` what says that `key` has applied up to `applied`.
    pub(crate) fn record_applied(batch: &mut Batch, key: LogKey, applied: LogId) {
        let mut value = BytesMut::with_capacity(17);
        put_log_id(&mut value, Some(applied));
        batch.put(applied_key(key), value.freeze());
    }

    pub(crate) fn record_membership(batch: &mut Batch, key: LogKey, membership: &StoredMembership) {
        batch.put(membership_key(key), encode_stored_membership(membership));
    }

    /// Makes `space`, already filled and durable, the replica's state, in one durable batch.
    pub(crate) fn flip(
        &self,
        key: LogKey,
        old: &Space,
        new: &Space,
        applied: Option<LogId>,
        membership: &StoredMembership,
    ) -> Result<(), StoreError> {
        let birth = Birth { space: new.id(), applied, membership: membership.clone() };
        let mut batch = Batch::default();
        batch.put(state_key(key), encode_birth(&birth));
        match applied {
            Some(applied) => Store::record_applied(&mut batch, key, applied),
            None => batch.delete(applied_key(key)),
        }
        Store::record_membership(&mut batch, key, membership);
        let _not_meanwhile = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        // Whatever was wrong with the records is gone with them.
        batch.delete(replica_key(SUSPECT, key));
        self.engine.apply(batch)?;
        self.engine.checkpoint()?;
        self.progressed(key, new.id(), applied, membership.clone());
        self.lock().retired.push(old.clone());
        Ok(())
    }

    /// Deletes a space that nobody needs any more, soon and apart from the caller.
    pub(crate) fn discard(self: &Arc<Self>, space: Space) {
        self.lock().retired.push(space);
        // Outside of a runtime, the next sweep does it.
        if tokio::runtime::Handle::try_current().is_ok() {
            let store = self.clone();
            runtime::spawn_blocking(move || {
                if let Err(error) = store.sweep_retired() {
                    tracing::error!(%error, "a space could not be deleted; the next sweep tries again");
                }
            });
        }
    }

    /// Notes what the next checkpoint may claim: called after the engine has it.
    pub(crate) fn progressed(
        &self,
        key: LogKey,
        space: SpaceId,
        applied: Option<LogId>,
        membership: StoredMembership,
    ) {
        let mut inner = self.lock();
        inner.unopened.remove(&key);
        inner.progress.insert(key, Progress { space, applied, membership });
    }

    /// Makes everything applied so far durable and writes down how far that was. Blocks on the disk.
    /// Returns what the log of each opened replica may be purged to.
    pub fn checkpoint(&self) -> Result<BTreeMap<LogKey, Option<LogId>>, StoreError> {
        let _one_at_a_time = self.checkpointing.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken before the engine's checkpoint: it covers at least this. What was not opened yet stands where
        // the last checkpoint left it: its log is purged up to there, and a redo has to begin there.
        let (progress, mut written) = {
            let inner = self.lock();
            let unopened = inner.unopened.iter();
            let carried = unopened.filter_map(|key| Some((*key, self.at_start.get(key)?.clone())));
            (inner.progress.clone(), carried.collect::<BTreeMap<_, _>>())
        };
        written.extend(progress.iter().map(|(key, progress)| (*key, progress.clone())));
        self.engine.checkpoint()?;
        self.files
            .write_atomic(&self.checkpoint_path, &encode_checkpoint(&written))
            .map_err(|source| StoreError::File { path: self.checkpoint_path.clone(), source })?;
        Ok(progress.into_iter().map(|(key, progress)| (key, progress.applied)).collect())
    }

    /// Deletes the spaces that were replaced and that nobody reads any more. Takes long where they are large: not for
    /// what somebody waits for. Blocks on the disk.
    pub fn sweep_retired(&self) -> Result<(), StoreError> {
        let free: Vec<Space> = {
            let mut inner = self.lock();
            let (free, kept) = std::mem::take(&mut inner.retired).into_iter().partition(|s| !s.is_shared());
            inner.retired = kept;
            free
        };
        let mut free = free.into_iter();
        while let Some(space) = free.next() {
            if let Err(error) = sweep::delete(self.engine.as_ref(), space.id()) {
                self.lock().retired.extend([space].into_iter().chain(free));
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// Whether the copy of any replica in the engine is marked as one that can't be read. Blocks on the disk.
pub fn has_damage(engine: &dyn Engine) -> Result<bool, StoreError> {
    let view = engine.view()?;
    let first = view.scan(storage::prefix_range(&[DAMAGE]), storage::Order::Ascending).next();
    Ok(first.transpose()?.is_some())
}

fn tombstones(engine: &dyn Engine) -> Result<Vec<LogKey>, StoreError> {
    let view = engine.view()?;
    let range = storage::prefix_range(&Bytes::from_static(&[TOMBSTONE]));
    let mut found = Vec::new();
    for pair in view.scan(range, storage::Order::Ascending) {
        found.push(decode_replica_key(pair?.0)?);
    }
    Ok(found)
}

/// A destroyed replica has no state, whatever was still under way when it was destroyed: opened, it would be one
/// that has lost its log.
fn forget_destroyed(engine: &dyn Engine) -> Result<(), StoreError> {
    let mut batch = Batch::default();
    for key in tombstones(engine)? {
        if engine.get(&state_key(key))?.is_some() {
            tracing::warn!(%key, "removing what was left of a destroyed replica");
            delete_state(&mut batch, key);
        }
    }
    if batch.is_empty() {
        return Ok(());
    }
    engine.apply(batch)?;
    Ok(engine.checkpoint()?)
}

fn delete_state(batch: &mut Batch, key: LogKey) {
    for kind in [STATE, APPLIED, MEMBERSHIP, DAMAGE, SUSPECT] {
        batch.delete(replica_key(kind, key));
    }
}

pub(super) fn births(engine: &dyn Engine) -> Result<BTreeMap<LogKey, Birth>, StoreError> {
    let view = engine.view()?;
    let range = storage::prefix_range(&Bytes::from_static(&[STATE]));
    let mut found = BTreeMap::new();
    for pair in view.scan(range, storage::Order::Ascending) {
        let (key, value) = pair?;
        found.insert(decode_replica_key(key)?, decode_birth(value)?);
    }
    Ok(found)
}

fn read_checkpoint(files: &dyn disk::Files, path: &Path) -> Result<BTreeMap<LogKey, Progress>, StoreError> {
    let content = match files.read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => return Err(StoreError::File { path: path.to_path_buf(), source }),
    };
    decode_checkpoint(&content).map_err(|malformed| {
        let problem = format!("{}: {}; {START_OVER}", path.display(), malformed.problem);
        StoreError::from(Malformed::new(malformed.what, problem))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{GroupId, ReplicaId};

    #[test]
    fn a_checkpoint_survives_and_any_flipped_bit_is_found() {
        let key = LogKey { group: GroupId(3), replica: ReplicaId(9) };
        let entry = Progress {
            space: SpaceId(7),
            applied: Some(LogId { term: 2, index: 11 }),
            membership: StoredMembership::default(),
        };
        let bytes = encode_checkpoint(&[(key, entry)].into());
        let read = decode_checkpoint(&bytes).unwrap();
        assert_eq!(read[&key].applied, Some(LogId { term: 2, index: 11 }));
        assert_eq!(read[&key].space, SpaceId(7));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_checkpoint(&changed).is_err(), "bit {bit}");
        }
    }

    const FIRST: LogKey = LogKey { group: GroupId(1), replica: ReplicaId(1) };
    const SECOND: LogKey = LogKey { group: GroupId(2), replica: ReplicaId(1) };

    fn open(dir: &Path) -> Store {
        let engine = dir.join("engine");
        std::fs::create_dir_all(&engine).unwrap();
        let engine = storage::open(storage::Kind::Sled, &engine, &storage::Options::default()).unwrap();
        Store::open(engine, dir, false).unwrap()
    }

    fn applied(store: &Store, key: LogKey) -> Option<u64> {
        store.replica(key).unwrap().applied.map(|id| id.index)
    }

    fn progress(store: &Store, key: LogKey, index: u64) {
        let space = store.replica(key).unwrap().space.id();
        let at = Some(LogId { term: 1, index });
        store.progressed(key, space, at, StoredMembership::default());
    }

    #[test]
    fn doubt_is_of_what_a_replica_holds_now() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let id = store.replica(FIRST).unwrap().space.id();
        assert!(store.mark_suspect(FIRST, id, "a sum differs").unwrap());
        drop(store);
        let store = open(dir.path());
        let old = store.replica(FIRST).unwrap().space;
        let new = Space::new(store.engine().clone(), store.new_space());
        assert_eq!(store.suspicion(FIRST).unwrap().as_deref(), Some("a sum differs"));
        store.flip(FIRST, &old, &new, None, &StoredMembership::default()).unwrap();
        assert_eq!(store.suspicion(FIRST).unwrap(), None, "it went with the records");
        assert!(!store.mark_suspect(FIRST, old.id(), "found while it was replaced").unwrap());
        assert_eq!(store.suspicion(FIRST).unwrap(), None);
        assert!(store.mark_suspect(FIRST, new.id(), "again").unwrap());
        assert_eq!(store.suspicion(FIRST).unwrap().as_deref(), Some("again"));
        assert!(!store.mark_suspect(SECOND, new.id(), "it was never here").unwrap());
    }

    /// Group 0 is opened first, and a checkpoint may be taken then: the logs of the others are purged.
    #[test]
    fn a_checkpoint_keeps_the_place_of_what_is_not_opened_yet() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        progress(&store, FIRST, 5);
        progress(&store, SECOND, 7);
        store.checkpoint().unwrap();
        drop(store);

        let store = open(dir.path());
        assert_eq!(store.unopened(), [FIRST, SECOND]);
        assert_eq!(applied(&store, FIRST), Some(5));
        assert_eq!(store.unopened(), [SECOND]);
        progress(&store, FIRST, 6);
        let purgeable: Vec<LogKey> = store.checkpoint().unwrap().into_keys().collect();
        assert_eq!(purgeable, [FIRST], "the other is none of this checkpoint's");
        drop(store);

        let store = open(dir.path());
        assert_eq!((applied(&store, FIRST), applied(&store, SECOND)), (Some(6), Some(7)));
        let space = store.replica(SECOND).unwrap().space;
        store.destroy(SECOND, space).unwrap();
        store.checkpoint().unwrap();
        drop(store);
        let store = open(dir.path());
        assert_eq!(store.unopened(), [FIRST]);
    }
}
