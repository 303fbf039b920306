//! kill -9 under load, again and again: every acknowledged write is there after each restart, nothing
//! took place twice, and versions are right.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::ledger::{Writer, run_all, under_way, verify_all};
use crate::process::Daemon;

const WRITERS: usize = 16;
const KEYS_PER_WRITER: usize = 4;

/// Kills under load; with `stop_midway`, the next start is asked to stop at once, wherever it is.
pub async fn kill_again_and_again(engine: &'static str, kills: u64, stop_midway: bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(&dir.path().join("data"), engine);
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut writers: Vec<Writer> =
        (0..WRITERS).map(|id| Writer::new(id, KEYS_PER_WRITER, acknowledged.clone())).collect();
    let mut random: u64 = 0x2545_f491_4f6c_dd1d;
    let mut slowest = Duration::ZERO;
    daemon.start();
    daemon.serves().await;
    for round in 0..kills {
        let before = acknowledged.load(Ordering::Relaxed);
        let stop = Arc::new(AtomicBool::new(false));
        let load = tokio::spawn(run_all(writers, daemon.channel(), stop.clone()));
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
        under_way(&acknowledged, before).await;
        tokio::time::sleep(Duration::from_millis((random >> 33) % 380)).await;
        daemon.kill();
        stop.store(true, Ordering::Relaxed);
        writers = load.await.unwrap();
        if stop_midway {
            daemon.start();
            tokio::time::sleep(Duration::from_millis((random >> 40) % 400)).await;
            // Stopped before it could serve, it may say that it failed; the data must not care.
            daemon.stop();
        }
        daemon.start();
        slowest = slowest.max(daemon.serves().await);
        verify_all(&mut writers, &daemon.channel()).await;
    }
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
    daemon.start();
    daemon.serves().await;
    verify_all(&mut writers, &daemon.channel()).await;
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
    println!(
        "{engine}: {kills} kills, {} writes acknowledged and found, slowest restart {slowest:?}",
        acknowledged.load(Ordering::Relaxed)
    );
}
