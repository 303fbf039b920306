//! What every engine owes, run on every engine.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use rushkv::storage::{self, Batch, Engine, Error, KeyRange, Kind, Options, Order, Pair, View};

/// One engine in a directory of its own.
struct Fixture {
    kind: Kind,
    dir: tempfile::TempDir,
    engine: Arc<dyn Engine>,
}

impl Fixture {
    fn new(kind: Kind) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(kind, &dir);
        Fixture { kind, dir, engine }
    }

    /// Closes and opens it again; nothing for the memory engine, which forgets by design.
    fn reopen(&mut self) {
        if self.kind != Kind::Memory {
            self.engine.close().unwrap();
            self.engine = open(self.kind, &self.dir);
        }
    }

    fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let mut batch = Batch::default();
        batch.put(bytes(key), bytes(value));
        self.engine.apply(batch).unwrap();
    }

    fn delete(&self, key: impl AsRef<[u8]>) {
        let mut batch = Batch::default();
        batch.delete(bytes(key));
        self.engine.apply(batch).unwrap();
    }

    fn get(&self, key: impl AsRef<[u8]>) -> Option<Bytes> {
        self.engine.get(key.as_ref()).unwrap()
    }

    fn all(&self) -> Vec<Pair> {
        scan(&*self.engine.view().unwrap(), (Unbounded, Unbounded), Order::Ascending)
    }
}

fn open(kind: Kind, dir: &tempfile::TempDir) -> Arc<dyn Engine> {
    storage::open(kind, dir.path(), &Options { cache_bytes: 16 << 20 }).unwrap()
}

fn bytes(data: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(data.as_ref())
}

fn scan(view: &dyn View, range: KeyRange, order: Order) -> Vec<Pair> {
    view.scan(range, order).collect::<Result<_, _>>().unwrap()
}

fn keys(pairs: &[Pair]) -> Vec<&[u8]> {
    pairs.iter().map(|(key, _)| key.as_ref()).collect()
}

fn get_put_delete(kind: Kind) {
    let store = Fixture::new(kind);
    assert_eq!(store.engine.kind(), kind);
    assert_eq!(store.get("k"), None);
    store.put("k", "1");
    store.put("k", "2");
    assert_eq!(store.get("k").as_deref(), Some(b"2".as_slice()));
    store.delete("k");
    store.delete("k");
    assert_eq!(store.get("k"), None);
    store.engine.apply(Batch::default()).unwrap();
    assert!(store.all().is_empty());
}

fn odd_keys_and_values(kind: Kind) {
    let mut store = Fixture::new(kind);
    let keys: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        vec![0, 0],
        vec![0, 0xff],
        vec![1],
        b"text".to_vec(),
        vec![0xff],
        vec![0xff; 300],
        vec![b'x'; 4096 + 64],
    ];
    for key in &keys {
        store.put(key, [key.as_slice(), b"!"].concat());
    }
    store.put("without value", "");
    let mut expected: Vec<Pair> =
        keys.iter().map(|key| (bytes(key), bytes([key.as_slice(), b"!"].concat()))).collect();
    expected.push((bytes("without value"), Bytes::new()));
    expected.sort();
    assert_eq!(store.all(), expected);
    for (key, value) in &expected {
        assert_eq!(store.get(key).as_ref(), Some(value), "{key:?}");
    }
    let view = store.engine.view().unwrap();
    let from_empty = scan(&*view, (Excluded(Bytes::new()), Included(bytes([0, 0]))), Order::Ascending);
    assert_eq!(self::keys(&from_empty), [&[0][..], &[0, 0]]);
    drop(view);
    store.reopen();
    assert_eq!(store.all(), expected);
    store.delete("");
    assert_eq!(store.get(""), None);
    assert_eq!(store.get([0]).as_deref(), Some(b"\0!".as_slice()));
}

fn large_values(kind: Kind) {
    let mut store = Fixture::new(kind);
    let value = |seed: u8| -> Bytes { (0..1 << 20).map(|i: u32| seed ^ ((i * 31) >> 8) as u8).collect() };
    for seed in 0..8 {
        store.put([seed], value(seed));
    }
    store.put([3], value(99));
    store.delete([4]);
    store.engine.checkpoint().unwrap();
    store.put([5], value(100));
    store.reopen();
    assert_eq!(store.get([0]), Some(value(0)));
    assert_eq!(store.get([3]), Some(value(99)));
    assert_eq!(store.get([4]), None);
    assert_eq!(store.get([5]), Some(value(100)));
    assert_eq!(store.all().len(), 7);
}

fn too_long_a_key_is_refused(kind: Kind) {
    let store = Fixture::new(kind);
    let longest = vec![0; storage::ENGINE_KEY_BYTES_MAX];
    store.put(&longest, "fits");
    let mut batch = Batch::default();
    batch.put("other", "x");
    batch.delete(vec![1; storage::ENGINE_KEY_BYTES_MAX + 1]);
    assert!(matches!(store.engine.apply(batch), Err(Error::Refused(_))));
    assert_eq!(store.get("other"), None);
    assert_eq!(store.get(&longest).as_deref(), Some(b"fits".as_slice()));
}

/// Whoever asks for one, on whatever way: nothing is there, and nobody panics.
fn too_long_a_key_is_in_no_engine(kind: Kind) {
    let store = Fixture::new(kind);
    let longest = vec![b'k'; storage::ENGINE_KEY_BYTES_MAX];
    let longer = [&longest[..], b"k"].concat();
    let next = [&longest[..storage::ENGINE_KEY_BYTES_MAX - 1], b"l"].concat();
    for key in [b"a", &longest[..], &next, b"z"] {
        store.put(key, "v");
    }
    let view = store.engine.view().unwrap();
    assert_eq!(store.engine.get(&longer).unwrap(), None);
    assert_eq!(view.get(&longer).unwrap(), None);
    let sizes = |range: KeyRange| -> Vec<(u8, usize)> {
        let pairs = scan(&*view, range, Order::Ascending);
        pairs.iter().map(|(key, _)| (*key.last().unwrap(), key.len())).collect()
    };
    let all = [(b'a', 1), (b'k', longest.len()), (b'l', longest.len()), (b'z', 1)];
    for bound in [Included(bytes(&longer)), Excluded(bytes(&longer))] {
        assert_eq!(sizes((bound.clone(), Unbounded)), all[2..], "from {:?}", bound.as_ref().map(Bytes::len));
        assert_eq!(sizes((Unbounded, bound.clone())), all[..2], "up to {:?}", bound.as_ref().map(Bytes::len));
        assert_eq!(sizes((bound.clone(), Included(bytes([&longer[..], b"k"].concat())))), []);
        assert_eq!(sizes((bound.clone(), Excluded(bytes(&next)))), []);
        assert_eq!(sizes((Excluded(bytes(&longest)), bound)), []);
    }
    store
        .engine
        .delete_range((Included(bytes(&longer)), Excluded(bytes([&next[..], b"l"].concat()))))
        .unwrap();
    drop(view);
    assert_eq!(store.all().len(), 3);
}

fn scans_honour_bounds_and_order(kind: Kind) {
    let store = Fixture::new(kind);
    let names: Vec<String> = (0..700).map(|i| format!("k{i:04}")).collect();
    for name in &names {
        store.put(name, name);
    }
    let view = store.engine.view().unwrap();
    // Bounds on keys that are there, between them, and beyond both ends.
    let marks = ["", "k", "k0000", "k0123", "k0123+", "k0500", "k0699", "k0699+", "z"];
    let mut bounds = vec![Unbounded];
    for mark in marks {
        bounds.extend([Included(bytes(mark)), Excluded(bytes(mark))]);
    }
    for low in &bounds {
        for high in &bounds {
            let mut expected: Vec<&[u8]> = names
                .iter()
                .map(String::as_bytes)
                .filter(|key| match low {
                    Unbounded => true,
                    Included(low) => *key >= low.as_ref(),
                    Excluded(low) => *key > low.as_ref(),
                })
                .filter(|key| match high {
                    Unbounded => true,
                    Included(high) => *key <= high.as_ref(),
                    Excluded(high) => *key < high.as_ref(),
                })
                .collect();
            let range = (low.clone(), high.clone());
            let found = scan(&*view, range.clone(), Order::Ascending);
            assert_eq!(keys(&found), expected, "{range:?} ascending");
            let found = scan(&*view, range.clone(), Order::Descending);
            expected.reverse();
            assert_eq!(keys(&found), expected, "{range:?} descending");
        }
    }
}

fn a_batch_takes_its_writes_in_order(kind: Kind) {
    let mut store = Fixture::new(kind);
    store.put("c", "old");
    let mut batch = Batch::default();
    batch.put("a", "1");
    batch.put("a", "2");
    batch.put("b", "1");
    batch.delete("b");
    batch.delete("c");
    batch.put("c", "new");
    batch.put("a", "3");
    store.engine.apply(batch).unwrap();
    let expected = vec![(bytes("a"), bytes("3")), (bytes("c"), bytes("new"))];
    assert_eq!(store.all(), expected);
    store.reopen();
    assert_eq!(store.all(), expected);
}

fn a_view_stays_what_it_was(kind: Kind) {
    let store = Fixture::new(kind);
    for i in 0..500 {
        store.put(format!("k{i:03}"), "old");
    }
    let before = store.all();
    let view = store.engine.view().unwrap();
    let mut half = view.scan((Unbounded, Unbounded), Order::Ascending);
    let first: Vec<Pair> = half.by_ref().take(100).map(Result::unwrap).collect();

    for i in (0..500).step_by(2) {
        store.put(format!("k{i:03}"), "new");
        store.put(format!("k{i:03}+"), "new");
    }
    for i in (0..500).step_by(5) {
        store.delete(format!("k{i:03}"));
    }
    store.engine.delete_range((Included(bytes("k200")), Excluded(bytes("k250")))).unwrap();
    let later = store.engine.view().unwrap();
    let after = store.all();
    store.put("k001", "newer");

    let rest: Vec<Pair> = half.map(Result::unwrap).collect();
    assert_eq!([first, rest].concat(), before, "a scan that was under way");
    assert_eq!(scan(&*view, (Unbounded, Unbounded), Order::Ascending), before);
    let mut backwards = scan(&*view, (Unbounded, Unbounded), Order::Descending);
    backwards.reverse();
    assert_eq!(backwards, before);
    for (key, value) in &before {
        assert_eq!(view.get(key).unwrap().as_ref(), Some(value));
    }
    assert_eq!(view.get(b"k000+").unwrap(), None);
    assert_eq!(scan(&*later, (Unbounded, Unbounded), Order::Ascending), after);
    drop(view);
    assert_eq!(scan(&*later, (Unbounded, Unbounded), Order::Ascending), after);
    assert_eq!(store.get("k001").as_deref(), Some(b"newer".as_slice()));
}

/// Each batch of a writer rewrites its whole row, keys coming and going, and says which round it was;
/// whatever view is taken meanwhile, each row in it must be whole.
fn views_are_consistent_under_concurrent_applies(kind: Kind) {
    const WRITERS: u8 = 2;
    const ROW: u32 = 400;
    const ROUNDS: u32 = 60;
    let store = Fixture::new(kind);
    let row = |writer: u8, round: u32| {
        let mut batch = Batch::default();
        batch.put(vec![writer], round.to_be_bytes().to_vec());
        for i in 0..ROW {
            let key = format!("{}{i:05}", char::from(b'a' + writer));
            if (i + round).is_multiple_of(3) {
                batch.delete(key);
            } else {
                batch.put(key, vec![round as u8; (i % 50) as usize]);
            }
        }
        batch
    };
    for writer in 0..WRITERS {
        store.engine.apply(row(writer, 0)).unwrap();
    }
    let check = |view: &dyn View, order: Order| {
        for writer in 0..WRITERS {
            let round = view.get(&[writer]).unwrap().unwrap();
            let round = u32::from_be_bytes(round.as_ref().try_into().unwrap());
            let mut expected: Vec<Pair> = row(writer, round).writes[1..]
                .iter()
                .filter_map(|write| match write {
                    storage::Write::Put(key, value) => Some((key.clone(), value.clone())),
                    storage::Write::Delete(_) => None,
                })
                .collect();
            let letter = b'a' + writer;
            let range = (Included(bytes([letter])), Excluded(bytes([letter + 1])));
            let found = scan(view, range, order);
            if order == Order::Descending {
                expected.reverse();
            }
            assert!(found == expected, "writer {writer}, round {round}, {order:?}: a torn view");
        }
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = [Order::Ascending, Order::Descending]
            .into_iter()
            .map(|order| {
                let (done, engine, check) = (&done, &store.engine, &check);
                scope.spawn(move || {
                    let mut views = 0;
                    let mut kept: Option<Box<dyn View>> = None;
                    while !done.load(Relaxed) || views < 5 {
                        let view = engine.view().unwrap();
                        check(&*view, order);
                        // An older one, across some more batches.
                        if let Some(kept) = kept.replace(view) {
                            check(&*kept, order);
                        }
                        views += 1;
                    }
                })
            })
            .collect();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (engine, row) = (&store.engine, &row);
                scope.spawn(move || {
                    for round in 1..=ROUNDS {
                        engine.apply(row(writer, round)).unwrap();
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

/// While one batch after the other rewrites many keys: who has seen a value of a batch, sees all of it from then on,
/// key by key and in views. Enough is written for fjall to flush and to merge meanwhile.
fn reads_see_whole_batches(kind: Kind) {
    const KEYS: u32 = 4000;
    const MORE: [u8; 100] = [7; 100];
    let rounds = if kind == Kind::Fjall { 400 } else { 60 };
    let store = Fixture::new(kind);
    let batch = |round: u32| {
        let mut batch = Batch::default();
        for key in 0..KEYS {
            batch.put(key.to_be_bytes().to_vec(), [&round.to_be_bytes()[..], &MORE].concat());
        }
        batch
    };
    let round_of = |value: Option<Bytes>| u32::from_be_bytes(*value.unwrap().first_chunk().unwrap());
    store.engine.apply(batch(0)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (done, engine) = (&done, &store.engine);
        let reader = scope.spawn(move || {
            let mut newest = 0;
            while !done.load(Relaxed) {
                // In the order in which they are written, and in no order.
                for key in [0, KEYS - 1, KEYS / 2, 1] {
                    let key = key.to_be_bytes();
                    let seen = round_of(engine.get(&key).unwrap());
                    assert!(seen >= newest, "key {key:?} is of round {seen}, and {newest} was seen");
                    let view = engine.view().unwrap();
                    let (last, in_view) = ((KEYS - 1).to_be_bytes(), round_of(view.get(&key).unwrap()));
                    assert!(in_view >= seen, "a view of round {in_view}, and {seen} was seen");
                    assert_eq!(round_of(view.get(&last).unwrap()), in_view);
                    newest = in_view;
                }
            }
        });
        (1..=rounds).for_each(|round| engine.apply(batch(round)).unwrap());
        done.store(true, Relaxed);
        reader.join().unwrap();
    });
}

fn delete_range_removes_just_the_range(kind: Kind) {
    let mut store = Fixture::new(kind);
    for i in 0..3000 {
        let mut batch = Batch::default();
        batch.put(format!("a{i:05}"), "x");
        batch.put(format!("b{i:05}"), "x");
        store.engine.apply(batch).unwrap();
    }
    store.engine.delete_range((Excluded(bytes("a00000")), Included(bytes("a02998")))).unwrap();
    store.engine.delete_range((Included(bytes("b")), Excluded(bytes("b02999")))).unwrap();
    store.engine.delete_range((Included(bytes("z")), Unbounded)).unwrap();
    store.engine.delete_range((Included(bytes("b1")), Excluded(bytes("a")))).unwrap();
    let expected: [&[u8]; 3] = [b"a00000", b"a02999", b"b02999"];
    assert_eq!(keys(&store.all()), expected);
    store.reopen();
    assert_eq!(keys(&store.all()), expected);
    store.engine.delete_range((Unbounded, Unbounded)).unwrap();
    assert!(store.all().is_empty());
}

fn checkpoint_and_reopen_keep_everything(kind: Kind) {
    let mut store = Fixture::new(kind);
    for round in 0..3 {
        for i in 0..200 {
            store.put(format!("k{i:03}"), format!("{round}.{i}"));
            store.delete(format!("k{:03}", (i + round * 7) % 200));
        }
        store.engine.checkpoint().unwrap();
        store.put("after the checkpoint", format!("{round}"));
        let before = store.all();
        store.reopen();
        assert_eq!(store.all(), before);
    }
}

fn a_closed_engine_refuses(kind: Kind) {
    let store = Fixture::new(kind);
    store.put("k", "1");
    let view = store.engine.view().unwrap();
    assert!(store.engine.sizes().unwrap().memory_bytes > 0);
    store.engine.close().unwrap();

    let refused = |result: Result<(), Error>| assert!(matches!(result, Err(Error::Refused(_))), "{result:?}");
    let mut batch = Batch::default();
    batch.put("k", "2");
    refused(store.engine.apply(batch));
    refused(store.engine.get(b"k").map(drop));
    refused(store.engine.view().map(drop));
    refused(store.engine.delete_range((Unbounded, Unbounded)));
    refused(store.engine.checkpoint());
    refused(store.engine.sizes().map(drop));
    refused(store.engine.close());
    refused(view.get(b"k").map(drop));
    refused(view.scan((Unbounded, Unbounded), Order::Ascending).next().unwrap().map(drop));

    // The view does not keep the files from the next one who opens them.
    let again = open(kind, &store.dir);
    drop(view);
    drop(again);
}

fn files_in_use_are_refused(kind: Kind) {
    let store = Fixture::new(kind);
    let second = storage::open(kind, store.dir.path(), &Options::default());
    match (kind, second) {
        (Kind::Memory, Ok(_)) => {}
        (_, Err(Error::Refused(message))) => assert!(message.contains("in use"), "{message}"),
        (_, other) => panic!("{other:?}"),
    }
}

fn sizes_grow_with_the_data(kind: Kind) {
    let store = Fixture::new(kind);
    let empty = store.engine.sizes().unwrap();
    for i in 0..64u32 {
        let noise: Bytes =
            (0..16_384u32).map(|j| ((j + i).wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        store.put(i.to_be_bytes(), noise);
    }
    store.engine.checkpoint().unwrap();
    let full = store.engine.sizes().unwrap();
    let grown = if kind == Kind::Memory {
        full.memory_bytes - empty.memory_bytes
    } else {
        full.disk_bytes - empty.disk_bytes
    };
    assert!(grown > 900_000, "1 MiB was written, but the size grew by {grown}");
}

macro_rules! on_every_engine {
    ($($case:ident),* $(,)?) => {
        mod sled { $(#[test] fn $case() { super::$case(rushkv::storage::Kind::Sled); })* }
        mod fjall { $(#[test] fn $case() { super::$case(rushkv::storage::Kind::Fjall); })* }
        mod memory { $(#[test] fn $case() { super::$case(rushkv::storage::Kind::Memory); })* }
    };
}

on_every_engine! {
    get_put_delete,
    odd_keys_and_values,
    large_values,
    too_long_a_key_is_refused,
    too_long_a_key_is_in_no_engine,
    scans_honour_bounds_and_order,
    a_batch_takes_its_writes_in_order,
    a_view_stays_what_it_was,
    views_are_consistent_under_concurrent_applies,
    reads_see_whole_batches,
    delete_range_removes_just_the_range,
    checkpoint_and_reopen_keep_everything,
    a_closed_engine_refuses,
    files_in_use_are_refused,
    sizes_grow_with_the_data,
}

/// A crash while sled opens leaves part of a snapshot, which sled alone would call corrupt for ever.
#[test]
fn sled_opens_after_a_crash_while_opening() {
    let mut store = Fixture::new(Kind::Sled);
    store.put("k", "1");
    store.reopen();
    store.engine.close().unwrap();
    for part in [&b""[..], b"half a snapshot"] {
        let path = store.dir.path().join("snap.7FFFFFFFFFFFFFFF.generating");
        std::fs::write(&path, part).unwrap();
        store.engine = open(Kind::Sled, &store.dir);
        assert_eq!(store.get("k").as_deref(), Some(b"1".as_slice()));
        store.engine.close().unwrap();
    }
}

/// Only sled's views expire: it keeps in memory what they need.
#[test]
fn sled_gives_up_a_view_that_would_need_too_much_memory() {
    let store = Fixture::new(Kind::Sled);
    let value = vec![7; 1 << 20];
    for i in 0..70u8 {
        store.put([i], &value);
    }
    let old = store.engine.view().unwrap();
    let mut under_way = old.scan((Unbounded, Unbounded), Order::Ascending);
    assert!(under_way.next().unwrap().is_ok());
    for i in 0..70u8 {
        store.put([i], "small");
    }
    let expired = |error: &Error| matches!(error, Error::ViewExpired { .. });
    assert!(expired(&old.get(&[0]).unwrap_err()));
    let rest: Vec<_> = under_way.collect();
    assert!(expired(rest.last().unwrap().as_ref().unwrap_err()), "the scan must not just end");
    let new = store.engine.view().unwrap();
    assert_eq!(scan(&*new, (Unbounded, Unbounded), Order::Ascending).len(), 70);
    assert!(store.engine.sizes().unwrap().memory_bytes < 200 << 20);
}
