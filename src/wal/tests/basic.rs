//! Each call does what it says, in memory and after a restart.

use std::time::Duration;

use super::sim::Fault;
use super::*;

#[test]
fn what_was_written_is_there_at_once_and_after_a_restart() {
    let sim = Sim::new();
    let wal = open(&sim);
    let log = wal.log(key(1));
    assert!(wal.keys().is_empty());
    assert_eq!((log.last(), log.purged(), log.vote(), log.first_index()), (None, None, None, None));
    let held = sim.hold();
    let (done, called) = done();
    block_on(log.append(vec![entry(1, 1, "a"), entry(1, 2, ""), entry(1, 3, "ccc")], done)).unwrap();
    assert_eq!(log.last(), Some(id(1, 3)), "before it is durable");
    assert_eq!(all_from_one(&wal).len(), 3);
    assert!(called.recv_timeout(Duration::from_millis(50)).is_err(), "not before the fsync");
    drop(held);
    called.recv().unwrap().unwrap();
    sync(|done| log.save_vote("me".into(), done)).unwrap();
    sync(|done| log.truncate_from(3, done)).unwrap();
    append(&log, &[entry(2, 3, "new"), entry(2, 4, "d")]);
    sync(|done| log.purge(id(1, 1), done)).unwrap();
    let check = |wal: &Wal| {
        let log = wal.log(key(1));
        assert_eq!(wal.keys(), [key(1)]);
        assert_eq!(log.entries(0, 9, 9).unwrap(), [], "index 0 is a gap");
        let entries = log.entries(2, 9, usize::MAX).unwrap();
        assert_eq!(entries, [entry(1, 2, ""), entry(2, 3, "new"), entry(2, 4, "d")]);
        assert_eq!(log.entries(3, 4, 0).unwrap(), [entry(2, 3, "new")], "at least one");
        assert_eq!(log.entries(2, 5, 3).unwrap().len(), 2);
        assert_eq!(log.entries(5, 9, 9).unwrap(), []);
        assert_eq!((log.id_at(1), log.id_at(3), log.id_at(5)), (Some(id(1, 1)), Some(id(2, 3)), None));
        assert_eq!((log.first_index(), log.last()), (Some(2), Some(id(2, 4))));
        assert_eq!([0, 1, 3, 4, 99].map(|bytes| log.tail_index(bytes)), [5, 4, 4, 2, 2]);
        assert_eq!((log.purged(), log.vote()), (Some(id(1, 1)), Some("me".into())));
    };
    check(&wal);
    check(&open(&sim.kill()));
    wal.close().unwrap();
    check(&open(&sim));
}

#[test]
fn a_snapshots_purge_point_lies_beyond_the_last_entry() {
    let sim = Sim::new();
    let wal = open(&sim);
    let log = wal.log(key(1));
    append(&log, &[entry(1, 1, "a")]);
    sync(|done| log.purge(id(5, 100), done)).unwrap();
    assert_eq!((log.last(), log.first_index()), (Some(id(5, 100)), None));
    assert_eq!(log.tail_index(9), 101);
    sync(|done| log.purge(id(1, 50), done)).unwrap();
    assert_eq!(log.purged(), Some(id(5, 100)), "never back");
    append(&log, &[entry(6, 101, "b")]);
    let wal = open(&sim.kill());
    assert_eq!(wal.log(key(1)).entries(101, 102, 0).unwrap(), [entry(6, 101, "b")]);
    assert_eq!(wal.log(key(1)).purged(), Some(id(5, 100)));
}

#[test]
fn a_destroyed_log_does_not_come_back() {
    let sim = Sim::new();
    let wal = open(&sim);
    let log = wal.log(key(1));
    append(&log, &[entry(1, 1, "a")]);
    sync(|done| log.save_vote("v".into(), done)).unwrap();
    sync(|done| log.destroy(done)).unwrap();
    assert!(wal.keys().is_empty());
    let wal = open(&sim.kill());
    assert!(wal.keys().is_empty());
    assert_eq!(wal.log(key(1)).last(), None);
}

#[test]
fn an_fsync_that_fails_fails_everything_once_and_for_all() {
    for fault in [Fault::Sync, Fault::Write] {
        let sim = Sim::new();
        let wal = open(&sim);
        let log = wal.log(key(1));
        append(&log, &[entry(1, 1, "kept")]);
        sim.fail(fault, 0);
        let failed = sync(|done| log.append(vec![entry(1, 2, "unknown")], done)).unwrap_err();
        assert!(failed.to_string().contains("the simulated disk fails"), "{failed}");
        assert_eq!(block_on(wal.failed()).to_string(), failed.to_string());
        let other = wal.log(key(2));
        sync(|done| other.save_vote("v".into(), done)).unwrap_err();
        sync(|done| log.barrier(done)).unwrap_err();
        assert!(wal.close().is_err());
        assert!(block_on(wal.probe(Duration::from_secs(1))).is_err());
        assert_eq!(all_from_one(&open(&sim.power_loss(|| false)))[..1], [entry(1, 1, "kept")]);
    }
}

fn all_from_one(wal: &Wal) -> Vec<Entry> {
    wal.log(key(1)).entries(1, u64::MAX, usize::MAX).unwrap()
}

#[test]
fn what_waits_together_shares_one_fsync_in_order() {
    let sim = Sim::new();
    let wal = open(&sim);
    let held = sim.hold();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut last = None;
    // The first goes alone; the writer is then held in its fsync while the others queue.
    for group in 0..100 {
        let log = wal.log(key(group));
        let (order, (done, called)) = (order.clone(), done());
        let note: Done = Box::new(move |result| {
            order.lock().unwrap().push(group);
            done(result);
        });
        block_on(log.append(vec![entry(1, 1, "x")], note)).unwrap();
        last = Some(called);
        while group == 0 && wal.writer_stuck_for().is_none() {
            std::thread::yield_now();
        }
    }
    let before = sim.syncs();
    drop(held);
    last.unwrap().recv().unwrap().unwrap();
    assert_eq!(sim.syncs() - before, 2);
    assert_eq!(*order.lock().unwrap(), (0..100).collect::<Vec<_>>());
}

#[test]
fn a_full_queue_makes_callers_wait_and_a_caller_that_goes_leaves_nothing() {
    let sim = Sim::new();
    let wal = open_with(&sim, Options { queue_bytes: 1000, ..options() }).unwrap();
    let log = wal.log(key(1));
    let held = sim.hold();
    block_on(log.append(vec![entry(1, 1, "first")], Box::new(drop))).unwrap();
    while wal.writer_stuck_for().is_none() {
        std::thread::yield_now();
    }
    block_on(log.append(vec![entry(1, 2, &"x".repeat(900))], Box::new(drop))).unwrap();
    let waiting = async {
        let call = log.append(vec![entry(1, 3, &"y".repeat(900))], Box::new(drop));
        tokio::time::timeout(Duration::from_millis(20), call).await
    };
    assert!(block_on(waiting).is_err(), "no room");
    assert_eq!(log.last(), Some(id(1, 2)));
    drop(held);
    // Larger than the whole queue, and still possible.
    append(&log, &[entry(1, 3, &"z".repeat(5000))]);
    assert_eq!(log.entries(3, 4, 0).unwrap(), [entry(1, 3, &"z".repeat(5000))]);
}

#[test]
fn a_barrier_comes_after_everything_before_it_and_writes_nothing() {
    let sim = Sim::new();
    let wal = open(&sim);
    let log = wal.log(key(1));
    append(&log, &[entry(1, 1, "a")]);
    let before = sim.syncs();
    sync(|done| log.barrier(done)).unwrap();
    assert_eq!(sim.syncs(), before);
    let held = sim.hold();
    let (late, called) = done();
    block_on(log.append(vec![entry(1, 2, "b")], Box::new(drop))).unwrap();
    block_on(log.barrier(late)).unwrap();
    assert!(called.recv_timeout(Duration::from_millis(30)).is_err());
    drop(held);
    called.recv().unwrap().unwrap();
}

#[test]
fn a_stalled_fsync_does_not_trip_the_probe_until_it_is_too_long() {
    let sim = Sim::new();
    let wal = open(&sim);
    block_on(wal.probe(Duration::ZERO)).unwrap();
    assert_eq!(wal.writer_stuck_for(), None);
    let held = sim.hold();
    block_on(wal.log(key(1)).save_vote("v".into(), Box::new(drop))).unwrap();
    while wal.writer_stuck_for().is_none() {
        std::thread::yield_now();
    }
    block_on(wal.probe(Duration::from_secs(60))).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let probe =
        async { tokio::time::timeout(Duration::from_millis(20), wal.probe(Duration::from_millis(1))).await };
    assert!(block_on(probe).is_err(), "stuck for longer than the bound");
    drop(held);
}

/// Those of a batch, of a file being prepared, of a new segment's header, and of the directory.
#[test]
fn no_fsync_that_stalls_looks_like_a_dead_writer() {
    let sim = Sim::new();
    let wal = open(&sim);
    let log = wal.log(key(1));
    let held = sim.hold();
    let (done, called) = done();
    // Fills the segment, so that the log's next one begins.
    for index in 1..=6 {
        block_on(log.append(vec![entry(1, index, &"x".repeat(6000))], Box::new(drop))).unwrap();
    }
    block_on(log.barrier(done)).unwrap();
    let mut stalls = Vec::new();
    while called.try_recv().is_err() {
        if let Some(what) = sim.held() {
            assert!(wal.writer_stuck_for().is_some(), "{what}, after {stalls:?}");
            block_on(wal.probe(Duration::from_secs(60))).unwrap();
            stalls.push(what);
            held.let_one_pass();
        }
    }
    // Batches, zeros, a header.
    assert!(stalls.iter().filter(|what| **what == "a file").count() >= 4, "{stalls:?}");
    assert!(stalls.contains(&"the directory"), "{stalls:?}");
    drop(held);
}

#[test]
fn closing_writes_what_is_queued_and_refuses_what_comes_later() {
    let sim = Sim::new();
    let wal = open(&sim);
    let log = wal.log(key(1));
    let (queued, called) = done();
    block_on(log.append(vec![entry(1, 1, "a")], queued)).unwrap();
    wal.close().unwrap();
    called.recv().unwrap().unwrap();
    let failed = sync(|done| log.append(vec![entry(1, 2, "b")], done)).unwrap_err();
    assert_eq!(failed.to_string(), "write-ahead log: it was closed");
    wal.close().unwrap();
    assert_eq!(all_from_one(&open(&sim)).len(), 1);
}

#[test]
fn memory_holds_the_newest_payloads_and_the_disk_gives_the_rest() {
    let sim = Sim::new();
    let options = Options { cache_bytes: 10_000, ..options() };
    let wal = open_with(&sim, options.clone()).unwrap();
    let payload = |group: u32, index: u64| format!("{group}-{index}-").repeat(100);
    for index in 1..=50 {
        for group in 1..=2 {
            append(&wal.log(key(group)), &[entry(1, index, &payload(group, index))]);
        }
    }
    // Appended in parts, so that some spans of the cache's list are stale.
    let check = |wal: &Wal| {
        for group in 1..=2 {
            let log = wal.log(key(group));
            assert!(log.entries_cached(1, 2, 0).is_none());
            assert!(log.entries_cached(50, 51, 0).is_some());
            let entries = log.entries(1, 51, usize::MAX).unwrap();
            assert_eq!(entries.len(), 50);
            for (i, found) in entries.iter().enumerate() {
                assert_eq!(*found, entry(1, i as u64 + 1, &payload(group, i as u64 + 1)));
            }
        }
    };
    let log = wal.log(key(1));
    sync(|done| log.barrier(done)).unwrap();
    check(&wal);
    check(&open_with(&sim.kill(), options).unwrap());
}

#[test]
fn an_entry_that_can_not_be_read_back_is_fatal() {
    let sim = Sim::new();
    let wal = open_with(&sim, Options { cache_bytes: 0, ..options() }).unwrap();
    let log = wal.log(key(1));
    append(&log, &[entry(1, 1, "payload-to-be-damaged")]);
    append(&log, &[entry(1, 2, "other")]);
    let segment = sim.segments().pop().unwrap();
    sim.edit(&segment, |bytes| {
        let at = bytes.windows(7).position(|window| window == b"payload").unwrap();
        bytes[at] ^= 1;
    });
    let failed = log.entries(1, 2, usize::MAX).unwrap_err();
    assert!(failed.to_string().contains("can't be read back"), "{failed}");
    block_on(wal.failed());
}

#[test]
#[should_panic(expected = "an append must follow Some(LogId { term: 1, index: 1 })")]
fn an_append_that_leaves_a_gap_is_a_bug() {
    let wal = open(&Sim::new());
    let log = wal.log(key(1));
    append(&log, &[entry(1, 1, "a")]);
    append(&log, &[entry(1, 3, "c")]);
}

#[test]
fn an_entry_in_place_of_one_that_is_being_written_stays_in_memory() {
    let sim = Sim::new();
    let wal = open_with(&sim, Options { cache_bytes: 0, ..options() }).unwrap();
    let log = wal.log(key(1));
    let held = sim.hold();
    let (done, called) = done();
    block_on(log.append(vec![entry(1, 1, "old")], done)).unwrap();
    while wal.writer_stuck_for().is_none() {
        std::thread::yield_now();
    }
    block_on(log.truncate_from(1, Box::new(drop))).unwrap();
    block_on(log.append(vec![entry(2, 1, "new")], Box::new(drop))).unwrap();
    held.let_one_pass();
    called.recv().unwrap().unwrap();
    while wal.writer_stuck_for().is_none() {
        std::thread::yield_now();
    }
    assert_eq!(all_from_one(&wal), [entry(2, 1, "new")]);
    drop(held);
    sync(|done| log.barrier(done)).unwrap();
    assert_eq!(all_from_one(&wal), [entry(2, 1, "new")]);
}
