//! openraft's own storage suite on our log and state machine, and groups through restarts.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;
use tokio::time::Instant;

use super::log_store::LogStore;
use super::state_machine::StateMachine;
use super::types::TypeConfig;
use super::*;
use crate::storage::{self, Kind};
use crate::types::{GroupId, LogKey, ReplicaId};
use crate::wal;

/// Appends every command to one record, so that applying twice or out of order shows.
#[derive(Debug, Default)]
pub(super) struct Journal {
    revision: u64,
}

const RECORD: &[u8] = b"journal";

/// A command that starts so is not part of the journal: it gets a record of its own.
pub(super) const BULK: &[u8] = b"#";

/// A command that starts so can't be applied, by a fault of the engine that is not of this copy.
const FAULTY: &[u8] = b"!";

/// A command that starts so takes a while, of which [`SLOW_BEGUN`] tells.
pub(super) const SLOW: &[u8] = b"~";
pub(super) static SLOW_BEGUN: AtomicBool = AtomicBool::new(false);

impl Machine for Journal {
    fn load(&mut self, space: &Space, _redo: bool) -> Result<u64, ApplyError> {
        self.revision = revision(&space.get(RECORD)?);
        let view = space.view()?;
        let bulk = storage::prefix_range(b"bulk ");
        if let Some(last) = view.scan(bulk, storage::Order::Descending).next() {
            let key = String::from_utf8_lossy(&last?.0).into_owned();
            self.revision = self.revision.max(key["bulk ".len()..].parse().unwrap());
        }
        Ok(self.revision)
    }

    fn apply(&mut self, index: u64, command: Bytes, txn: &mut Txn<'_>) -> Result<Bytes, ApplyError> {
        if index <= self.revision {
            return Ok(Bytes::new());
        }
        self.revision = index;
        if command.starts_with(FAULTY) {
            std::thread::sleep(Duration::from_millis(100));
            return Err(storage::Error::Refused("the disk of the test is gone".into()).into());
        }
        if command.starts_with(SLOW) {
            SLOW_BEGUN.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(300));
        }
        if command.starts_with(BULK) {
            txn.put(txn.key([format!("bulk {index:020}").as_bytes()]), command);
            return Ok(Bytes::new());
        }
        let mut record = index.to_le_bytes().to_vec();
        if let Some(old) = txn.get(&txn.key([RECORD]))? {
            record.extend_from_slice(&old[8..]);
        }
        record.extend_from_slice(&command);
        txn.put(txn.key([RECORD]), record.into());
        Ok(command)
    }

    fn finish(&mut self, _txn: &mut Txn<'_>) -> Result<(), ApplyError> {
        Ok(())
    }

    fn published(&mut self, _index: u64) {}

    fn checkpointed(&mut self, _index: u64) {}
}

fn revision(record: &Option<Bytes>) -> u64 {
    record.as_ref().and_then(|record| record.first_chunk()).map_or(0, |index| u64::from_le_bytes(*index))
}

fn key() -> LogKey {
    LogKey { group: GroupId(1), replica: ReplicaId(0) }
}

/// What a node has on its disk, opened.
pub(super) struct OpenDisk {
    pub wal: wal::Wal,
    pub store: Arc<Store>,
}

pub(super) fn open(dir: &Path, kind: Kind, clean: bool) -> OpenDisk {
    let registry = prometheus::Registry::new();
    let options = wal::Options { segment_bytes: 1 << 20, ..wal::Options::new(dir.join("wal")) };
    let wal = wal::Wal::open(options, wal::Metrics::register(&registry).unwrap()).unwrap();
    let engine = storage::open(kind, &dir.join("engine"), &storage::Options::default()).unwrap();
    OpenDisk { wal, store: Arc::new(Store::open(engine, dir, clean).unwrap()) }
}

struct Stores(Kind);

type Guard = (wal::Wal, TempDir);

impl StoreBuilder<TypeConfig, LogStore, StateMachine<Journal>, Guard> for Stores {
    async fn build(&self) -> Result<(Guard, LogStore, StateMachine<Journal>), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let disk = open(dir.path(), self.0, true);
        let log_store = LogStore::new(disk.wal.log(key()));
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        // The suite applies what it never appended: durability is tested through whole groups.
        let durability = log_store.durability().always();
        let machine = StateMachine::open(key(), disk.store, Journal { revision: 0 }, durability, metrics);
        Ok(((disk.wal, dir), log_store, machine.unwrap()))
    }
}

#[tokio::test]
async fn openraft_storage_suite_on_memory() {
    Suite::test_all(Stores(Kind::Memory)).await.unwrap();
}

#[tokio::test]
async fn openraft_storage_suite_on_fjall() {
    Suite::test_all(Stores(Kind::Fjall)).await.unwrap();
}

#[tokio::test]
async fn openraft_storage_suite_on_sled() {
    Suite::test_all(Stores(Kind::Sled)).await.unwrap();
}

pub(super) async fn group(disk: &OpenDisk) -> Group<Journal> {
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let machine = Journal { revision: 0 };
    let log = disk.wal.log(key());
    let peers = Arc::new(NoPeers);
    let group = Group::open(key(), disk.store.clone(), log, machine, &metrics, peers).await.unwrap();
    if !group.is_initialized().await.unwrap() {
        group.initialize(&[key().replica]).await.unwrap();
    }
    group.elect_if_alone().await;
    group
}

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

pub(super) async fn propose(group: &Group<Journal>, command: &'static str) {
    loop {
        match group.propose(Bytes::from_static(command.as_bytes()), soon()).await {
            Ok(answer) => return assert_eq!(answer, command),
            Err(ProposeError::NotLeader { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

pub(super) async fn journal(group: &Group<Journal>) -> String {
    let space = loop {
        match group.read(soon()).await {
            Ok(space) => break space,
            Err(ReadError::NotLeader { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
    };
    content(&space)
}

/// All commands that were applied, in order.
pub(super) fn content(space: &Space) -> String {
    let record = space.get(RECORD).unwrap().unwrap_or_default();
    String::from_utf8(record.get(8..).unwrap_or_default().to_vec()).unwrap()
}

/// Writes, stops without closing the engine, and starts again, with a checkpoint at different places.
async fn restart(kind: Kind) {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let disk = open(dir.path(), kind, false);
        let group = group(&disk).await;
        assert_eq!(journal(&group).await, "abc".repeat(round));
        propose(&group, "a").await;
        if round % 2 == 1 {
            disk.store.checkpoint().unwrap();
        }
        propose(&group, "b").await;
        if round >= 2 {
            let reached = disk.store.checkpoint().unwrap();
            group.checkpointed(reached[&key()].unwrap()).await.unwrap();
        }
        propose(&group, "c").await;
        assert_eq!(journal(&group).await, "abc".repeat(round + 1));
        group.shutdown().await;
        drop(group);
        if kind == Kind::Fjall {
            // Within one process its folder stays locked until it is closed.
            disk.store.engine().close().unwrap();
        }
        disk.wal.close().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_applied_twice_over_restarts_on_fjall() {
    restart(Kind::Fjall).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_applied_twice_over_restarts_on_sled() {
    restart(Kind::Sled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_lets_the_log_go() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path(), Kind::Fjall, true);
    let group = group(&disk).await;
    for _ in 0..10 {
        propose(&group, "x").await;
    }
    let reached = disk.store.checkpoint().unwrap()[&key()].unwrap();
    propose(&group, "y").await;
    group.checkpointed(reached).await.unwrap();
    let log = disk.wal.log(key());
    let deadline = soon();
    while log.purged() != Some(reached) {
        assert!(Instant::now() < deadline, "purged {:?}, not {reached}", log.purged());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(log.last().unwrap().index, reached.index + 1, "what came after the checkpoint stays");
    assert_eq!(journal(&group).await, "xxxxxxxxxxy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passed_deadline_means_not_proposed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path(), Kind::Memory, true);
    let group = group(&disk).await;
    propose(&group, "a").await;
    let late = group.propose(Bytes::from_static(b"b"), Instant::now() - Duration::from_millis(1)).await;
    // Either the caller saw its deadline first, or the queue did; in both cases nothing was proposed.
    assert!(matches!(late, Err(ProposeError::DeadlineBefore | ProposeError::Unknown(_))), "{late:?}");
    assert_eq!(journal(&group).await, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_group_says_unknown_or_refuses_and_reports() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path(), Kind::Memory, true);
    let group = group(&disk).await;
    propose(&group, "a").await;
    group.shutdown().await;
    let after = group.propose(Bytes::from_static(b"b"), soon()).await;
    assert!(matches!(after, Err(ProposeError::Unknown(_))), "{after:?}");
    assert!(group.read(soon()).await.is_err());
    tokio::time::timeout(Duration::from_secs(10), group.stopped()).await.unwrap();
}

/// openraft's core finds its state machine's task gone before it hears why: it stands still while that ends, and has a
/// command for it next.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_group_whose_engine_fails_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path(), Kind::Memory, true);
    let group = group(&disk).await;
    propose(&group, "a").await;
    let faulty = group.propose(Bytes::from_static(FAULTY), soon());
    let still = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        group.raft.with_raft_state(|_| std::thread::sleep(Duration::from_millis(200))).await
    };
    let command = async {
        tokio::time::sleep(Duration::from_millis(40)).await;
        group.raft.trigger().snapshot().await
    };
    let (faulty, _, _) = tokio::join!(faulty, still, command);
    assert!(matches!(faulty, Err(ProposeError::Unknown(_))), "{faulty:?}");
    let why = tokio::time::timeout(Duration::from_secs(10), group.stopped()).await.unwrap();
    assert!(why.ends_with("the disk of the test is gone"), "{why}");
    let why = group.probe().await.unwrap_err().to_string();
    assert!(why.ends_with("the disk of the test is gone"), "{why}");
    assert_eq!(group.damage(), None, "it is not this copy's alone");
}
