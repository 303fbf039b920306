//! For tests elsewhere: machines without a log, and a look into what replicas say.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::codec::{decode_vote, encode_entry};
use super::group::Group;
use super::machine::{Machine, Txn};
use super::message::{Request, decode_vote_answer};
use super::retention::Retention;
use super::space::{Space, SpaceId};
use super::types::log_id;
use crate::storage::{self, Batch, Engine, Kind, Order};
use crate::types::{LogId, ReplicaId};
use crate::wal;

/// What a message says of its sender, if only leaders send it.
#[derive(Debug)]
pub struct Claim {
    pub term: u64,
    /// The entry that those of the message follow.
    pub previous: Option<LogId>,
    pub entries: Vec<(LogId, Bytes)>,
}

/// Reads an append or a heartbeat.
pub fn claim(from: ReplicaId, message: Bytes) -> Option<Claim> {
    let Ok(Request::Append(append)) = Request::decode(from, message) else { return None };
    let entries = append.entries.into_iter().map(encode_entry).map(|entry| (entry.id, entry.payload));
    let previous = append.prev_log_id.as_ref().map(log_id);
    Some(Claim { term: append.vote.leader_id.term, previous, entries: entries.collect() })
}

/// The term in which a replica says that the candidate `from` has its vote; `None`: it does not, or was not asked.
pub fn granted(from: ReplicaId, request: Bytes, answer: Bytes) -> Option<u64> {
    let Ok(Request::Vote(vote)) = Request::decode(from, request) else { return None };
    let answer = decode_vote_answer(answer).ok()?;
    answer.vote_granted.then_some(vote.vote.leader_id.term)
}

/// The term of the vote that a log holds; 0 if it holds none.
pub fn voted_term(log: &wal::Log) -> u64 {
    let vote = log.vote().map(|vote| decode_vote(vote).expect("it was written by us"));
    vote.map_or(0, |vote| vote.leader_id.term)
}

/// Sets how many bytes of a group's log stay after a checkpoint: at least, for one that lags, and for one that
/// gets a snapshot.
pub fn retain<M: Machine>(group: &Group<M>, tail_bytes: u64, lag_bytes: u64, snapshot_bytes: u64) {
    group.set_retention(Retention { tail_bytes, lag_bytes, snapshot_bytes });
}

/// A batch that is thrown away.
pub fn txn(space: &Space) -> Txn<'_> {
    Txn::new(space)
}

/// A space of its own to try a machine on.
#[derive(Debug)]
pub struct Bench {
    engine: Arc<dyn Engine>,
    space: Space,
    _dir: tempfile::TempDir,
}

impl Bench {
    pub fn new(kind: Kind) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let engine = storage::open(kind, &dir.path().join("engine"), &storage::Options::default()).unwrap();
        let space = Space::new(engine.clone(), SpaceId(0));
        Bench { engine, space, _dir: dir }
    }

    /// A space that holds `content` already.
    pub fn with(kind: Kind, content: &BTreeMap<Bytes, Bytes>) -> Bench {
        let bench = Bench::new(kind);
        let mut batch = Batch::default();
        for (key, value) in content {
            batch.put(bench.space.key(key), value.clone());
        }
        bench.engine.apply(batch).unwrap();
        bench
    }

    pub fn space(&self) -> Space {
        self.space.clone()
    }

    pub fn load(&self, machine: &mut impl Machine, redo: bool) {
        machine.load(&self.space, redo).unwrap();
    }

    /// Applies one command as a batch of its own.
    pub fn apply(&mut self, machine: &mut impl Machine, index: u64, command: Bytes) -> Bytes {
        let mut txn = Txn::new(&self.space);
        let answer = machine.apply(index, command, &mut txn).unwrap();
        machine.finish(&mut txn).unwrap();
        self.engine.apply(txn.into_batch()).unwrap();
        machine.published(index);
        answer
    }

    /// Everything in the space.
    pub fn raw(&self) -> BTreeMap<Bytes, Bytes> {
        let view = self.space.view().unwrap();
        view.scan((Bound::Unbounded, Bound::Unbounded), Order::Ascending).map(Result::unwrap).collect()
    }
}
