//! Real power losses under the real daemon, on ext4: what was acknowledged is there after each, nothing
//! took place twice, and versions are right. And a disk that fills up, and one that fails.
//!
//! Needs root, loop devices and ext4. `RUSHKV_POWER_CUTS` sets how many per engine (default 20).

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/power.rs"]
mod power;
#[path = "support/process.rs"]
mod process;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ledger::{Writer, run_all, under_way, verify_all};
use power::PowerCut;
use process::Daemon;
use rushkv::error::{Happened, Reason, from_status};
use rushkv::proto::v1::kv_client::KvClient;
use rushkv::proto::v1::{DeleteRequest, GetRequest, PutRequest};

fn cuts() -> u64 {
    std::env::var("RUSHKV_POWER_CUTS").map_or(20, |cuts| cuts.parse().expect("RUSHKV_POWER_CUTS is a number"))
}

async fn cut_again_and_again(engine: &'static str) {
    let mut disk = PowerCut::new(1024);
    let logs = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(&disk.path().join("data"), engine).log_to(&logs.path().join("log"));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut writers: Vec<Writer> = (0..16).map(|id| Writer::new(id, 4, acknowledged.clone())).collect();
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    daemon.start();
    daemon.serves().await;
    for round in 0..cuts() {
        let before = acknowledged.load(Ordering::Relaxed);
        let stop = Arc::new(AtomicBool::new(false));
        let load = tokio::spawn(run_all(writers, daemon.channel(), stop.clone()));
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
        under_way(&acknowledged, before).await;
        tokio::time::sleep(Duration::from_millis((random >> 33) % 500)).await;
        disk.cut();
        // The daemon sees its disk fail, and must end by itself: its state is unknown.
        let code = daemon.wait_end(Duration::from_secs(30));
        assert_ne!(code, Some(0), "a failed disk is no orderly stop:\n{}", daemon.log());
        stop.store(true, Ordering::Relaxed);
        writers = load.await.unwrap();
        disk.remount();
        daemon.start();
        daemon.serves().await;
        verify_all(&mut writers, &daemon.channel()).await;
    }
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
    println!(
        "{engine}: {} power losses, {} writes acknowledged and found",
        cuts(),
        acknowledged.load(Ordering::Relaxed)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn power_lost_under_load_on_fjall() {
    cut_again_and_again("fjall").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_lost_under_load_on_sled() {
    cut_again_and_again("sled").await;
}

/// Fills a small disk with puts: they end in a clear refusal, deletes and reads go on, and nothing that
/// was acknowledged is lost; after a restart either.
async fn fill(engine: &'static str) {
    let disk = PowerCut::new(1024);
    let logs = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(&disk.path().join("data"), engine)
        .log_to(&logs.path().join("log"))
        .env("RUSHKV__STORAGE__DISK_RESERVE", "256MiB");
    daemon.start();
    daemon.serves().await;
    let mut client = KvClient::new(daemon.channel());
    let value = bytes::Bytes::from(vec![7u8; 256 * 1024]);
    let mut written = 0u64;
    let refusal = loop {
        let key = format!("k{written}").into();
        match client.put(PutRequest { key, value: value.clone(), precondition: None }).await {
            Ok(_) => written += 1,
            Err(status) => break from_status(&status, Happened::Unknown),
        }
        assert!(written < 10_000, "a disk of 1 GiB took more than it can hold");
    };
    assert_eq!(refusal.reason, Reason::DiskFull, "{refusal:?}\n{}", daemon.log());
    assert!(refusal.message.contains("free or add space"), "{refusal}");
    assert!(written > 100, "refused after {written} writes already");
    for restarted in [false, true] {
        if restarted {
            assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
            daemon.start();
            // Not ready, by its own word, but it serves reads and deletes.
            daemon.serves().await;
        }
        let mut client = KvClient::new(daemon.channel());
        for at in [0, written / 2, written - 2] {
            let key = format!("k{at}").into();
            let record = client.get(GetRequest { key, consistency: 0 }).await.unwrap().into_inner().record;
            assert_eq!(record.map(|record| record.value), Some(value.clone()), "k{at}");
        }
        let key = format!("k{}", written - 1 - u64::from(restarted)).into();
        let deleted = client.delete(DeleteRequest { key, precondition: None }).await.unwrap().into_inner();
        assert!(deleted.existed || restarted);
    }
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_puts_on_fjall() {
    fill("fjall").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_puts_on_sled() {
    fill("sled").await;
}
