//! The write-ahead log on a real disk: one append and its fsync, group commit by many appenders, and
//! what preparing a segment's blocks is worth.
//!
//! `cargo bench --bench wal`; the files go to `RUSHKV_BENCH_DIR`, else to the system's temporary
//! directory, which must not be in memory for the figures to mean anything.

use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rushkv::types::{GroupId, LogId, LogKey, ReplicaId};
use rushkv::wal::{Entry, Log, Metrics, Options, Wal};

/// Groups that the appenders are spread over, as on a node with the default number of partitions.
const GROUPS: u32 = 16;
/// About a record of the size that peers are compared with.
const PAYLOAD_BYTES: usize = 200;
const PURGE_EVERY: u64 = 1024;

fn directory() -> tempfile::TempDir {
    match std::env::var_os("RUSHKV_BENCH_DIR") {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    }
    .expect("a directory for the bench")
}

/// Appends one entry at a time and waits for it to be durable.
async fn append(log: Log, count: u64) {
    let payload = Bytes::from(vec![b'p'; PAYLOAD_BYTES]);
    for _ in 0..count {
        let index = log.last().map_or(1, |last| last.index + 1);
        let id = LogId { term: 1, index };
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result| drop(sender.send(result)));
        log.append(vec![Entry { id, payload: payload.clone() }], done).await.expect("the log works");
        receiver.await.expect("every callback is called").expect("the log works");
        if index.is_multiple_of(PURGE_EVERY) {
            log.purge(id, Box::new(drop)).await.expect("the log works");
        }
    }
}

fn appends(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let mut group = criterion.benchmark_group("append");
    group.throughput(Throughput::Elements(1));
    for appenders in [1_u64, 64, 256] {
        let dir = directory();
        let metrics = Metrics::register(&prometheus::Registry::new()).expect("a new registry");
        let wal = Wal::open(Options::new(dir.path().join("wal")), metrics).expect("a new log");
        // One log per appender: an appender is the only one to say what comes next in its log. They
        // share groups' numbers only in name.
        let log = |appender: u64| {
            let group = GroupId(appender as u32 % GROUPS);
            wal.log(LogKey { group, replica: ReplicaId(appender + 1) })
        };
        group.bench_function(BenchmarkId::from_parameter(appenders), |bencher| {
            bencher.iter_custom(|iterations| {
                let each = iterations.div_ceil(appenders);
                let began = Instant::now();
                runtime.block_on(async {
                    let tasks: Vec<_> =
                        (0..appenders).map(|appender| tokio::spawn(append(log(appender), each))).collect();
                    for task in tasks {
                        task.await.expect("an appender does not panic");
                    }
                });
                // What was really done may be a little more than was asked for.
                began.elapsed().mul_f64(iterations as f64 / (each * appenders) as f64)
            });
        });
        wal.close().expect("the log works");
    }
    group.finish();
}

/// A small write and its fdatasync, in a file of 16 MiB made in three ways. No two writes share a page.
fn prepare(criterion: &mut Criterion) {
    const FILE_BYTES: u64 = 16 * 1024 * 1024;
    let dir = directory();
    let mut group = criterion.benchmark_group("prepare");
    for how in ["grown", "fallocated", "zeroed"] {
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.path().join(how))
            .expect("a file");
        match how {
            "fallocated" => rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, FILE_BYTES)
                .expect("room"),
            "zeroed" => file.write_all_at(&vec![0; FILE_BYTES as usize], 0).expect("room"),
            _ => {}
        }
        file.sync_all().expect("a working disk");
        let mut at = 0;
        group.bench_function(how, |bencher| {
            bencher.iter(|| {
                file.write_all_at(&[b'w'; PAYLOAD_BYTES], at).expect("a working disk");
                file.sync_data().expect("a working disk");
                // Every page once: 4096 writes are more than a run makes.
                at += 4096;
            });
        });
        assert!(how == "grown" || at <= FILE_BYTES, "the run left the part that was prepared");
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = appends, prepare
}
criterion_main!(benches);
