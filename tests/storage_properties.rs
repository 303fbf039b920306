//! Random histories: sled and fjall, each call mirrored, against a map that can't be wrong.
//!
//! Views are held across writes, range deletes, checkpoints and reopening, and checked again and again
//! against the map as it was when they were taken.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::collections::BTreeMap;
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use rushkv::storage::testing::Mirror;
use rushkv::storage::{self, Batch, Engine, KeyRange, Kind, Options, Order, Pair, View};

type Model = BTreeMap<Bytes, Bytes>;

#[derive(Debug, Clone)]
enum Step {
    Apply(Vec<(Bytes, Option<Bytes>)>),
    DeleteRange(KeyRange),
    Get(Bytes),
    /// Takes a view into this slot; the one that was there is dropped.
    View(usize),
    /// Of the view in this slot, if any.
    ViewGet(usize, Bytes),
    ViewScan(usize, KeyRange, Order),
    Checkpoint,
    /// Drops all views.
    Reopen,
}

const SLOTS: usize = 3;

/// Few different bytes and short, so that keys meet, neighbour and prefix each other.
fn key() -> impl Strategy<Value = Bytes> {
    let byte = prop_oneof![Just(0u8), Just(1), Just(b'a'), Just(b'b'), Just(0xff)];
    prop::collection::vec(byte, 0..4).prop_map(Bytes::from)
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from),
        1 => (any::<u8>(), 1usize..200_000).prop_map(|(byte, len)| Bytes::from(vec![byte; len])),
    ]
}

fn bound() -> impl Strategy<Value = Bound<Bytes>> {
    prop_oneof![Just(Unbounded), key().prop_map(Included), key().prop_map(Excluded)]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::Ascending), Just(Order::Descending)]
}

fn step() -> impl Strategy<Value = Step> {
    let write = (key(), prop::option::weighted(0.7, value()));
    prop_oneof![
        10 => prop::collection::vec(write, 1..12).prop_map(Step::Apply),
        1 => (bound(), bound()).prop_map(Step::DeleteRange),
        3 => key().prop_map(Step::Get),
        3 => (0..SLOTS).prop_map(Step::View),
        3 => (0..SLOTS, key()).prop_map(|(slot, key)| Step::ViewGet(slot, key)),
        6 => (0..SLOTS, bound(), bound(), order())
            .prop_map(|(slot, low, high, order)| Step::ViewScan(slot, (low, high), order)),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Reopen),
    ]
}

/// Written without `BTreeMap::range`, which has opinions about bounds.
fn in_range(model: &Model, (low, high): &KeyRange, order: Order) -> Vec<Pair> {
    let above = |key: &Bytes| match low {
        Unbounded => true,
        Included(low) => key >= low,
        Excluded(low) => key > low,
    };
    let below = |key: &Bytes| match high {
        Unbounded => true,
        Included(high) => key <= high,
        Excluded(high) => key < high,
    };
    let mut pairs: Vec<Pair> = model
        .iter()
        .filter(|(key, _)| above(key) && below(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if order == Order::Descending {
        pairs.reverse();
    }
    pairs
}

struct Stores {
    sled: tempfile::TempDir,
    fjall: tempfile::TempDir,
}

impl Stores {
    fn open(&self) -> Mirror {
        let options = Options { cache_bytes: 8 << 20 };
        let open = |kind, dir: &tempfile::TempDir| -> Arc<dyn Engine> {
            storage::open(kind, dir.path(), &options).unwrap()
        };
        Mirror::new(open(Kind::Sled, &self.sled), open(Kind::Fjall, &self.fjall))
    }
}

fn run(steps: Vec<Step>) {
    let stores = Stores { sled: tempfile::tempdir().unwrap(), fjall: tempfile::tempdir().unwrap() };
    let mut engine = stores.open();
    let mut model = Model::new();
    let mut views: [Option<(Box<dyn View>, Model)>; SLOTS] = Default::default();
    for step in steps {
        match step {
            Step::Apply(writes) => {
                let mut batch = Batch::default();
                for (key, value) in writes {
                    match value {
                        Some(value) => {
                            model.insert(key.clone(), value.clone());
                            batch.put(key, value);
                        }
                        None => {
                            model.remove(&key);
                            batch.delete(key);
                        }
                    }
                }
                engine.apply(batch).unwrap();
            }
            Step::DeleteRange(range) => {
                for (key, _) in in_range(&model, &range, Order::Ascending) {
                    model.remove(&key);
                }
                engine.delete_range(range).unwrap();
            }
            Step::Get(key) => assert_eq!(engine.get(&key).unwrap().as_ref(), model.get(&key)),
            Step::View(slot) => views[slot] = Some((engine.view().unwrap(), model.clone())),
            Step::ViewGet(slot, key) => {
                if let Some((view, model)) = &views[slot] {
                    assert_eq!(view.get(&key).unwrap().as_ref(), model.get(&key));
                }
            }
            Step::ViewScan(slot, range, order) => {
                if let Some((view, model)) = &views[slot] {
                    let found: Vec<Pair> = view.scan(range.clone(), order).collect::<Result<_, _>>().unwrap();
                    assert!(found == in_range(model, &range, order), "{range:?} {order:?} of view {slot}");
                }
            }
            Step::Checkpoint => engine.checkpoint().unwrap(),
            Step::Reopen => {
                views = Default::default();
                engine.close().unwrap();
                engine = stores.open();
            }
        }
    }
    for (view, model) in views.iter().flatten() {
        let found: Vec<Pair> =
            view.scan((Unbounded, Unbounded), Order::Ascending).collect::<Result<_, _>>().unwrap();
        assert!(found == in_range(model, &(Unbounded, Unbounded), Order::Ascending), "at the end");
    }
    let view = engine.view().unwrap();
    let found: Vec<Pair> =
        view.scan((Unbounded, Unbounded), Order::Descending).collect::<Result<_, _>>().unwrap();
    assert!(found == in_range(&model, &(Unbounded, Unbounded), Order::Descending), "the present");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64),
        ..ProptestConfig::default()
    })]

    #[test]
    fn both_engines_do_what_the_map_does(steps in prop::collection::vec(step(), 1..80)) {
        run(steps);
    }
}
