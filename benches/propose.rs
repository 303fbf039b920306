//! A write through a whole node in this process: proposed, fsynced, applied, answered. No RPC, so the
//! difference to `rushkv-cli bench` is what the wire and the client cost.
//!
//! `cargo bench --bench propose`; the data goes to `RUSHKV_BENCH_DIR`, else to the system's temporary
//! directory, which must not be in memory for the figures to mean anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rushkv::kv::{Op, Precondition};
use rushkv::node::{Formation, Node, Options};
use rushkv::storage::{self, Kind};

const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 128;

/// For anything that must not take for ever: opening, one write, stopping.
const WAIT_MAX: Duration = Duration::from_secs(30);

fn directory() -> tempfile::TempDir {
    match std::env::var_os("RUSHKV_BENCH_DIR") {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    }
    .expect("a directory for the bench")
}

/// A node that leads all its partitions, as many as a cluster has by default.
async fn open(dir: &tempfile::TempDir, engine: Kind) -> Arc<Node> {
    let options = Options {
        name: "bench".into(),
        advertise_addr: "localhost:8080".into(),
        peers: Vec::new(),
        data_dir: dir.path().join("data"),
        zone: String::new(),
        weight: 1,
        engine,
        engine_options: storage::Options::default(),
        formation: Formation { cluster_name: "bench".into(), replicas: 3, partitions: 8 },
        disk_reserve_bytes: 0,
    };
    let node = Node::open(options, &prometheus::Registry::new()).await.expect("the node opens");
    let began = Instant::now();
    while !node.problems().is_empty() {
        assert!(began.elapsed() < WAIT_MAX, "not ready: {:?}", node.problems());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node
}

/// Not compressible.
fn value(seed: u64) -> Bytes {
    let mut state = seed;
    let words = (0..VALUE_BYTES / 8).flat_map(|_| {
        state = next(state);
        (state ^ (state >> 29)).to_le_bytes()
    });
    words.collect()
}

fn next(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

/// One client of a closed loop: its next write begins when the last one is answered.
async fn write(node: Arc<Node>, client: u64, count: u64) {
    let mut state = client.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..count {
        state = next(state);
        let op = Op::Put {
            key: format!("bench:{}", (state >> 32) % KEYS).into(),
            value: value(state),
            precondition: Precondition::None,
        };
        node.write(op, tokio::time::Instant::now() + WAIT_MAX).await.expect("the write succeeds");
    }
}

fn propose(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    for engine in [Kind::Fjall, Kind::Sled] {
        let dir = directory();
        let node = runtime.block_on(open(&dir, engine));
        let mut group = criterion.benchmark_group(format!("propose {engine}"));
        group.throughput(Throughput::Elements(1));
        for clients in [1_u64, 64, 256] {
            group.bench_function(BenchmarkId::from_parameter(clients), |bencher| {
                bencher.iter_custom(|iterations| {
                    let each = iterations.div_ceil(clients);
                    let began = Instant::now();
                    runtime.block_on(async {
                        let tasks: Vec<_> = (0..clients)
                            .map(|client| tokio::spawn(write(node.clone(), client, each)))
                            .collect();
                        for task in tasks {
                            task.await.expect("a client does not panic");
                        }
                    });
                    // What was really done may be a little more than was asked for.
                    began.elapsed().mul_f64(iterations as f64 / (each * clients) as f64)
                });
            });
        }
        group.finish();
        let deadline = tokio::time::Instant::now() + WAIT_MAX;
        runtime.block_on(node.shutdown(deadline)).expect("the node stops");
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = propose
}
criterion_main!(benches);
