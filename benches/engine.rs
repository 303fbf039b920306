//! The engines side by side: applying batches, reading a key, scanning.
//!
//! 24-byte keys and 128-byte values, 200 k of them, as in `docs/decisions/0002-two-engines.md`. Nothing
//! here waits for an fsync: durability is the log's work, measured elsewhere.

#![allow(clippy::unwrap_used)] // there is nothing to do about an error but to stop

use std::hint::black_box;
use std::ops::Bound::{Included, Unbounded};
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rushkv::storage::{self, Batch, Engine, Kind, Options, Order};

const RECORDS: u64 = 200_000;
const BATCH: u64 = 100;
const SCAN: usize = 1000;

/// Spread over the key space, as hashed routing spreads them over partitions.
fn key(n: u64) -> Bytes {
    format!("{:024x}", u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).into()
}

/// Not compressible.
fn value(n: u64) -> Bytes {
    let mut state = n | 1;
    (0..16)
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_le_bytes()
        })
        .collect()
}

fn batch(start: u64) -> Batch {
    let mut batch = Batch::default();
    for n in start..start + BATCH {
        batch.put(key(n % RECORDS), value(n));
    }
    batch
}

fn loaded(kind: Kind, dir: &tempfile::TempDir) -> std::sync::Arc<dyn Engine> {
    let engine = storage::open(kind, dir.path(), &Options::default()).unwrap();
    for start in (0..RECORDS).step_by(BATCH as usize) {
        engine.apply(batch(start)).unwrap();
    }
    engine.checkpoint().unwrap();
    engine
}

fn engines(criterion: &mut Criterion) {
    for kind in [Kind::Fjall, Kind::Sled] {
        let dir = tempfile::tempdir().unwrap();
        let engine = loaded(kind, &dir);

        let mut group = criterion.benchmark_group("engine");
        group
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(3))
            .sample_size(20);
        let mut next = 0u64;
        let mut random = move || {
            next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (next >> 32) % RECORDS
        };

        group.throughput(Throughput::Elements(BATCH));
        let mut apply = |name: &str, view: Option<Box<dyn storage::View>>| {
            group.bench_function(BenchmarkId::new(name, kind), |bencher| {
                bencher.iter_batched(
                    || batch(random()),
                    |batch| engine.apply(batch).unwrap(),
                    BatchSize::SmallInput,
                );
            });
            drop(view);
        };
        apply("overwrite a batch of 100", None);
        apply("the same with a view open", Some(engine.view().unwrap()));

        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("get", kind), |bencher| {
            bencher.iter(|| black_box(engine.get(&key(random())).unwrap().unwrap()));
        });
        group.bench_function(BenchmarkId::new("get a missing key", kind), |bencher| {
            bencher.iter(|| black_box(engine.get(&key(RECORDS + random())).unwrap()));
        });

        group.throughput(Throughput::Elements(SCAN as u64));
        for order in [Order::Ascending, Order::Descending] {
            let name = format!("scan 1000 records, {order:?}");
            group.bench_function(BenchmarkId::new(name, kind), |bencher| {
                bencher.iter(|| {
                    let view = engine.view().unwrap();
                    let start = Included(key(random()));
                    let range = match order {
                        Order::Ascending => (start, Unbounded),
                        Order::Descending => (Unbounded, start),
                    };
                    black_box(view.scan(range, order).take(SCAN).map(Result::unwrap).count())
                });
            });
        }
        group.finish();

        let sizes = engine.sizes().unwrap();
        println!(
            "{kind}: {} MiB on disk, {} MiB in memory",
            sizes.disk_bytes >> 20,
            sizes.memory_bytes >> 20
        );
    }
}

criterion_group!(benches, engines);
criterion_main!(benches);
