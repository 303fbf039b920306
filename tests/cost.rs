//! What a put and a get cost a node, in what can be counted: allocations, bytes of the log, fsyncs. No clock is
//! asked, so the machine does not matter.
//!
//! A fixed number of calls is made twice, the second time twice as many, by one client in a process of its own. The
//! difference is what the calls cost; what starting, loading and stopping cost is in both.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

#[path = "support/metrics.rs"]
mod metrics;

use std::alloc::System;
use std::ops::RangeInclusive;
use std::process::Command;

use rushkv::storage::Kind;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use support::TestNode;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CALLS: u64 = 1500;

/// What a number of calls cost.
#[derive(Debug, Clone, Copy)]
struct Cost {
    allocations: f64,
    allocated_bytes: f64,
    wal_bytes: f64,
    fsyncs: f64,
}

async fn count(node: &TestNode) -> Cost {
    let wal_bytes = metrics::sample(node.http.port(), "rushkv_wal_written_bytes_total").await;
    let fsyncs = metrics::sample(node.http.port(), "rushkv_wal_fsync_seconds_count").await;
    let stats = ALLOCATOR.stats();
    Cost {
        allocations: (stats.allocations + stats.reallocations) as f64,
        allocated_bytes: stats.bytes_allocated as f64,
        wal_bytes: wal_bytes as f64,
        fsyncs: fsyncs as f64,
    }
}

impl Cost {
    fn zip(self, other: Cost, combine: impl Fn(f64, f64) -> f64) -> Cost {
        Cost {
            allocations: combine(self.allocations, other.allocations),
            allocated_bytes: combine(self.allocated_bytes, other.allocated_bytes),
            wal_bytes: combine(self.wal_bytes, other.wal_bytes),
            fsyncs: combine(self.fsyncs, other.fsyncs),
        }
    }
}

async fn run(node: &TestNode, work: &str, calls: u64) -> Cost {
    let before = count(node).await;
    let calls = calls.to_string();
    let server = node.grpc.to_string();
    let words = [
        "-s", &server, "bench", work, "-n", &calls, "-d", "5m", "-c", "1", "--keys", "100", "--keep",
        "--reuse",
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_rushkv-cli"));
    command.args(words);
    let ran = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    count(node).await.zip(before, |after, before| after - before)
}

/// Of one call.
async fn cost(node: &TestNode, work: &str) -> Cost {
    // Whatever is allocated once is.
    run(node, work, CALLS).await;
    let once = run(node, work, CALLS).await;
    let twice = run(node, work, 2 * CALLS).await;
    let of_one = twice.zip(once, |twice, once| (twice - once) / CALLS as f64);
    println!("{work}: {of_one:?}");
    of_one
}

/// What a call may cost: some tenth more than the most that was measured when the bound was set. Runs differ by a
/// fiftieth, and allocations of gets by two or three: on a busy machine what comes is taken in more and smaller parts. What
/// makes a call cheaper lowers it.
struct Bound {
    engine: Kind,
    put_allocations: f64,
    put_allocated_bytes: f64,
    get_allocations: f64,
    get_allocated_bytes: f64,
}

const BOUNDS: [Bound; 2] = [
    Bound {
        engine: Kind::Fjall,
        put_allocations: 95.0,
        put_allocated_bytes: 24_300.0,
        get_allocations: 15.0,
        get_allocated_bytes: 10_500.0,
    },
    Bound {
        engine: Kind::Sled,
        put_allocations: 123.0,
        put_allocated_bytes: 36_500.0,
        get_allocations: 15.0,
        get_allocated_bytes: 10_500.0,
    },
];

/// The log takes a record of a put's 128 bytes, its key of 15 and what belongs to them, and fsyncs it: once, and not less.
const PUT_WAL_BYTES: f64 = 265.0;
const PUT_FSYNCS: RangeInclusive<f64> = 0.98..=1.02;

fn is_at_most(what: &str, measured: f64, bound: f64) {
    assert!(measured <= bound, "{what}: {measured:.1}, and {bound} is allowed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_costs_no_more_than_it_did() {
    for bound in BOUNDS {
        let dir = tempfile::tempdir().unwrap();
        let node = TestNode::start(dir.path(), bound.engine).await;
        let put = cost(&node, "put").await;
        let get = cost(&node, "get").await;
        let engine = bound.engine;
        assert!(PUT_FSYNCS.contains(&put.fsyncs), "{engine}: {} fsyncs for a put", put.fsyncs);
        is_at_most(&format!("{engine}: bytes of the log for a put"), put.wal_bytes, PUT_WAL_BYTES);
        is_at_most(&format!("{engine}: allocations of a put"), put.allocations, bound.put_allocations);
        is_at_most(&format!("{engine}: allocated for a put"), put.allocated_bytes, bound.put_allocated_bytes);
        is_at_most(&format!("{engine}: allocations of a get"), get.allocations, bound.get_allocations);
        is_at_most(&format!("{engine}: allocated for a get"), get.allocated_bytes, bound.get_allocated_bytes);
        assert!(get.fsyncs.abs() < 0.02, "{engine}: {} fsyncs for a get", get.fsyncs);
        node.stop().await;
    }
}
