//! What becomes of damaged engines, made by hand and by both real ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::raft::Store;
use crate::raft::space::{Space, SpaceId};
use crate::raft::types::{Membership, StoredMembership};
use crate::storage::testing::Damaged;
use crate::storage::{Kind, Options};
use crate::types::{LogId, ReplicaId};

const META: LogKey = LogKey { group: GroupId::META, replica: ReplicaId(1) };
const FIRST: LogKey = LogKey { group: GroupId(1), replica: ReplicaId(1) };
const SECOND: LogKey = LogKey { group: GroupId(2), replica: ReplicaId(1) };
const THIRD: LogKey = LogKey { group: GroupId(3), replica: ReplicaId(1) };

/// More than one chunk.
const RECORDS: u32 = 3000;

fn open(kind: Kind, dir: &Path) -> Arc<dyn Engine> {
    storage::open(kind, dir, &Options { cache_bytes: 1 << 20 }).unwrap()
}

fn fill(engine: &dyn Engine, space: &Space) {
    let mut batch = Batch::default();
    for number in 0..RECORDS {
        batch.put(space.key(&number.to_be_bytes()), "value");
    }
    engine.apply(batch).unwrap();
}

fn of_voters(count: u64) -> StoredMembership {
    let voters: BTreeSet<u64> = (1..=count).collect();
    StoredMembership::new(
        None,
        Membership::new(vec![voters], BTreeMap::from_iter((1..=count).map(|id| (id, ())))).unwrap(),
    )
}

/// An engine with these four replicas, and what belongs to none; returns their spaces.
fn populated(engine: &Arc<dyn Engine>, dir: &Path) -> BTreeMap<LogKey, Space> {
    let store = Store::open(engine.clone(), dir, true).unwrap();
    let mut spaces = BTreeMap::new();
    for key in [META, FIRST, SECOND, THIRD] {
        let space = store.replica(key).unwrap().space;
        fill(engine.as_ref(), &space);
        let mut batch = Batch::default();
        Store::record_applied(&mut batch, key, LogId { term: 1, index: 7 });
        Store::record_membership(&mut batch, key, &of_voters(3));
        engine.apply(batch).unwrap();
        spaces.insert(key, space);
    }
    store.mark_damaged(THIRD, "it was found before").unwrap();
    let unknown = Space::new(engine.clone(), store.new_space());
    fill(engine.as_ref(), &unknown);
    let mut batch = Batch::default();
    sweep::note(&mut batch, unknown.id());
    engine.apply(batch).unwrap();
    spaces
}

fn records(engine: &dyn Engine, space: &Space) -> usize {
    let view = engine.view().unwrap();
    view.scan(whole(space.id()), Order::Ascending).map(Result::unwrap).count()
}

fn damaged(engine: &Arc<dyn Engine>, space: &Space) -> Damaged {
    let from = Bytes::copy_from_slice(&(RECORDS / 2).to_be_bytes());
    Damaged::new(engine.clone(), Bound::Included(space.key(&from)), whole(space.id()).1)
}

#[test]
fn what_can_be_read_is_copied_and_what_can_not_is_marked() {
    for kind in [Kind::Fjall, Kind::Sled] {
        let root = tempfile::tempdir().unwrap();
        let (old, new) = (open(kind, &root.path().join("old")), open(kind, &root.path().join("new")));
        let spaces = populated(&old, root.path());
        let renewed = renew(&damaged(&old, &spaces[&SECOND]), new.as_ref()).unwrap().unwrap();
        assert_eq!(renewed.damaged, [SECOND]);
        let counts: Vec<usize> = spaces.values().map(|space| records(new.as_ref(), space)).collect();
        let all = RECORDS as usize;
        assert_eq!(counts, [all, all, 0, 0], "{kind}: one is damaged, one was before");
        assert_eq!(births(new.as_ref()).unwrap().len(), 4);
        assert!(!sweep::leaves(new.as_ref()).unwrap());
        assert_eq!(is_due(new.as_ref(), true).unwrap(), None);

        let store = Store::open(new.clone(), root.path(), true).unwrap();
        assert!(store.has_damage().unwrap());
        for (key, space) in &spaces {
            let found = store.replica(*key).unwrap();
            assert_eq!((found.space.id(), found.applied.unwrap().index), (space.id(), 7));
            assert_eq!(found.damage.is_some(), [SECOND, THIRD].contains(key), "{key}");
        }
    }
}

#[test]
fn where_a_copy_could_not_be_made_anew_it_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let (old, new) = (open(Kind::Memory, root.path()), open(Kind::Memory, root.path()));
    let spaces = populated(&old, root.path());
    let obstacle = |engine: &dyn Engine| renew(engine, new.as_ref()).unwrap().unwrap_err();
    assert!(obstacle(&damaged(&old, &spaces[&META])).contains("g0/"));
    let list = Damaged::new(old.clone(), Bound::Included(Bytes::from_static(b"s")), Bound::Unbounded);
    assert!(obstacle(&list).contains("of its replicas"));
    // Of two voters, or one, nobody could replace it.
    for voters in [1, 2] {
        let mut batch = Batch::default();
        Store::record_membership(&mut batch, SECOND, &of_voters(voters));
        old.apply(batch).unwrap();
        assert!(obstacle(&damaged(&old, &spaces[&SECOND])).contains("g2/"));
    }
}

#[test]
fn it_is_due_where_something_damaged_is_left_and_where_a_suspicion_holds() {
    let root = tempfile::tempdir().unwrap();
    let engine = open(Kind::Memory, root.path());
    let spaces = populated(&engine, root.path());
    let damaged = damaged(&engine, &spaces[&FIRST]);
    assert_eq!(is_due(&damaged, false).unwrap(), None, "nobody looked");
    assert!(is_due(&damaged, true).unwrap().is_some());
    assert_eq!(is_due(engine.as_ref(), true).unwrap(), None);
    // A replica that was rebuilt leaves its damaged space.
    let store = Store::open(engine.clone(), root.path(), true).unwrap();
    store.mark_damaged(FIRST, "a test says so").unwrap();
    store.destroy(FIRST, spaces[&FIRST].clone()).unwrap();
    sweep::delete(&damaged, spaces[&FIRST].id()).unwrap();
    assert!(is_due(engine.as_ref(), false).unwrap().is_some());
}

/// What is in `dir`: the length of each file, and when it was last written.
fn files(dir: &Path) -> BTreeMap<std::path::PathBuf, (u64, std::time::SystemTime)> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .flat_map(|entry| match entry.file_type().unwrap().is_dir() {
            true => files(&entry.path()),
            false => {
                let stat = entry.metadata().unwrap();
                BTreeMap::from([(entry.path(), (stat.len(), stat.modified().unwrap()))])
            }
        })
        .collect()
}

/// Waits until nothing is written there any more: engines write by threads of their own, for a while after a write has
/// failed, too, and a copy made meanwhile has files of different times, as no process leaves them.
fn wait_until_quiet(dir: &Path) {
    let is_quiet = || {
        let before = files(dir);
        std::thread::sleep(std::time::Duration::from_millis(200));
        files(dir) == before
    };
    assert!((0..100).any(|_| is_quiet()), "{} is written to without an end", dir.display());
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

const PARTS: usize = 16;

/// What each large value begins with.
const NEEDLE: [u8; 16] = *b"a value to flip ";

/// Flips a bit of some large values, one of so many parts, in the files that engines read from.
fn flip(dir: &Path, part: usize) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let is_read = path.ends_with("db") || dir.ends_with("tables");
        if path.is_dir() {
            flip(&path, part);
        } else if is_read {
            let mut content = std::fs::read(&path).unwrap();
            let found: Vec<usize> = content
                .windows(16)
                .enumerate()
                .filter(|(_, there)| *there == NEEDLE)
                .map(|(at, _)| at)
                .collect();
            let some = found.len() * part / PARTS..found.len() * (part + 1) / PARTS;
            found[some].iter().for_each(|at| content[*at] ^= 1);
            std::fs::write(&path, &content).unwrap();
        }
    }
}

/// A copy of the engine with damage that it does not look at when it opens, and that is none of what it has written
/// anew since: which part of its files that is depends on when it wrote.
fn with_latent_damage(
    kind: Kind,
    dir: &Path,
    copies: &Path,
) -> Option<(std::path::PathBuf, Arc<dyn Engine>)> {
    for part in 0..PARTS {
        let copy = copies.join(part.to_string());
        copy_dir(dir, &copy);
        flip(&copy, part);
        if let Ok(engine) = storage::open(kind, &copy, &Options { cache_bytes: 1 << 20 })
            && is_due(engine.as_ref(), true).unwrap().is_some()
        {
            return Some((copy, engine));
        }
    }
    None
}

/// Puts large values, among those of [`FIRST`]: pages and blocks of their own.
fn put_large(
    engine: &dyn Engine,
    space: &Space,
    words: u64,
    seeds: std::ops::Range<u64>,
) -> storage::Result<()> {
    for seed in seeds {
        // Nothing that could be compressed.
        let words = (0..words).map(|word| xxhash_rust::xxh3::xxh3_64_with_seed(&word.to_le_bytes(), seed));
        let value: Vec<u8> = NEEDLE.into_iter().chain(words.flat_map(u64::to_le_bytes)).collect();
        let key = [&(RECORDS / 2).to_be_bytes()[..], &(seed % 100).to_be_bytes()].concat();
        let mut batch = Batch::default();
        batch.put(space.key(&key), value);
        engine.apply(batch)?;
    }
    engine.checkpoint()
}

/// Which of these spaces can't be read to their ends, and why.
fn unreadable(engine: &dyn Engine, ids: &BTreeMap<LogKey, SpaceId>) -> BTreeMap<LogKey, String> {
    let view = engine.view().unwrap();
    let error_of = |id| view.scan(whole(id), Order::Ascending).find_map(Result::err);
    ids.iter().filter_map(|(key, id)| Some((*key, error_of(*id)?.to_string()))).collect()
}

/// The write that meets damage ends the process; the next start knows why, and makes the engine anew.
#[test]
fn a_write_that_meets_damage_makes_the_next_start_look() {
    for (kind, puts, words) in [(Kind::Sled, 1000, 128), (Kind::Fjall, 5000, 2048)] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("engine");
        let engine = open(kind, &dir);
        let ids: BTreeMap<LogKey, SpaceId> =
            populated(&engine, root.path()).into_iter().map(|(key, space)| (key, space.id())).collect();
        let first = ids[&FIRST];
        // fjall: enough for a table.
        put_large(engine.as_ref(), &Space::new(engine.clone(), first), words, 0..puts).unwrap();
        engine.close().unwrap();
        drop(engine);
        // sled reads the whole log when it opens, and leaves out what is damaged, unless it has read that before.
        let mut latent = (1..10).find_map(|attempt| {
            let engine = open(kind, &dir);
            fill(engine.as_ref(), &Space::new(engine.clone(), SpaceId(attempt * 100)));
            engine.close().unwrap();
            drop(engine);
            with_latent_damage(kind, &dir, &root.path().join(attempt.to_string()))
        });
        let (dir, engine) = latent.take().expect("there is damage that is not looked at");
        assert_eq!(storage::suspicion(&dir).unwrap(), None);
        let space = Space::new(engine.clone(), first);
        let failed = (1..8).find_map(|round| {
            put_large(engine.as_ref(), &space, words, round * puts..(round + 1) * puts).err()
        });
        let why = storage::suspicion(&dir).unwrap();
        assert!(why.is_some(), "{kind}: {failed:?}");
        // As after the process has ended: what failed may keep its lock.
        let after = root.path().join("after");
        wait_until_quiet(&dir);
        copy_dir(&dir, &after);
        let engine = open(kind, &after);
        assert!(is_due(engine.as_ref(), true).unwrap().is_some(), "{kind}");
        let new = open(kind, &root.path().join("new"));
        let before = unreadable(engine.as_ref(), &ids);
        assert!(before.contains_key(&FIRST), "{kind}: {before:?}");
        match renew(engine.as_ref(), new.as_ref()).unwrap() {
            Ok(renewed) => {
                // What stands in the way of a read in sled may be gone at the next, of another page (`READS_MAX`
                // there).
                let after = unreadable(engine.as_ref(), &ids);
                let is_marked = |key| renewed.damaged.contains(key);
                let can_be = |key: &LogKey| [FIRST, SECOND].contains(key) && before.contains_key(key);
                assert!(renewed.damaged.iter().all(can_be), "{kind}: {renewed:?}, {before:?}");
                assert!(
                    after.keys().filter(|key| **key != THIRD).all(is_marked),
                    "{kind}: {renewed:?}, {after:?}"
                );
                assert_eq!(is_due(new.as_ref(), true).unwrap(), None);
            }
            // Whoever reads a damaged log may lose more than what was damaged.
            Err(obstacle) => assert!(before.contains_key(&META), "{kind}: {obstacle}"),
        }
    }
}
