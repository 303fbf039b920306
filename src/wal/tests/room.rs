//! Segments come, go and are used again; laggards are copied forward.

use super::*;
use crate::wal::format::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::wal::log::Place;
use crate::wal::segments::segment_name;

/// Appends to a log and purges behind, so that segments fill and go.
fn churn(wal: &Wal, group: u32, indexes: std::ops::Range<u64>) {
    let log = wal.log(key(group));
    for index in indexes {
        append(&log, &[entry(1, index, &"c".repeat(3000))]);
        if index % 4 == 0 {
            sync(|done| log.purge(id(1, index), done)).unwrap();
        }
    }
}

/// The writer frees segments after its callbacks: waits until it has.
fn settle(wal: &Wal) {
    let log = wal.log(key(9999));
    for _ in 0..20 {
        sync(|done| log.barrier(done)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn an_idle_groups_vote_survives_the_segment_it_was_in() {
    let sim = Sim::new();
    let wal = open(&sim);
    for group in 1..=50 {
        let log = wal.log(key(group));
        sync(|done| log.save_vote(format!("vote of {group}").into(), done)).unwrap();
    }
    let idle = wal.log(key(1));
    append(&idle, &[entry(1, 1, "idle a"), entry(1, 2, "idle b")]);
    sync(|done| idle.purge(id(1, 1), done)).unwrap();
    let destroyed = wal.log(key(50));
    sync(|done| destroyed.destroy(done)).unwrap();
    churn(&wal, 100, 1..400);
    settle(&wal);
    assert!(sim.segments().len() <= 3, "{:?}", sim.segments());
    assert!(wal.disk_bytes() <= 5 * options().segment_bytes, "{}", wal.disk_bytes());
    for wal in [wal, open(&sim.kill()), open(&sim.power_loss(|| false))] {
        for group in 1..=49 {
            assert_eq!(wal.log(key(group)).vote(), Some(format!("vote of {group}").into()));
        }
        assert_eq!(wal.log(key(50)).vote(), None);
        assert_eq!(wal.log(key(1)).purged(), Some(id(1, 1)));
        assert_eq!(wal.log(key(1)).entries(2, 3, 0).unwrap(), [entry(1, 2, "idle b")]);
    }
}

#[test]
fn laggards_are_copied_forward_under_load() {
    let sim = Sim::new();
    // Nothing in memory: what is copied comes from the old segment.
    let options = Options { cache_bytes: 0, ..options() };
    let wal = open_with(&sim, options.clone()).unwrap();
    let laggards = [1, 2, 3].map(|group| wal.log(key(group)));
    std::thread::scope(|scope| {
        let churning = scope.spawn(|| churn(&wal, 100, 1..300));
        for index in 1..=40 {
            for laggard in &laggards {
                append(laggard, &[entry(1, index, &format!("laggard {index}"))]);
            }
        }
        // While copies are made, the log goes on changing.
        sync(|done| laggards[0].truncate_from(31, done)).unwrap();
        append(&laggards[0], &[entry(2, 31, "instead")]);
        sync(|done| laggards[1].purge(id(1, 20), done)).unwrap();
        churning.join().unwrap();
    });
    settle(&wal);
    assert!(sim.segments().len() <= 4, "{:?}", sim.segments());
    for laggard in &laggards {
        // Nothing holds on to a file that went.
        let cell = wal.shared().cell(laggard.key());
        for slot in cell.lock().slots() {
            let Place::At { segment, .. } = &slot.place else { panic!("{slot:?} is not durable") };
            let name = segment_name(segment.salt.segment);
            assert!(sim.segments().iter().any(|path| path.ends_with(&name)), "{name} is gone");
        }
    }
    for wal in [wal, open_with(&sim.kill(), options).unwrap()] {
        let expected = |from: u64, to: u64| -> Vec<Entry> {
            (from..=to).map(|index| entry(1, index, &format!("laggard {index}"))).collect()
        };
        let mut first = expected(1, 30);
        first.push(entry(2, 31, "instead"));
        assert_eq!(wal.log(key(1)).entries(1, 99, usize::MAX).unwrap(), first);
        assert_eq!(wal.log(key(2)).entries(21, 99, usize::MAX).unwrap(), expected(21, 40));
        assert_eq!(wal.log(key(3)).entries(1, 99, usize::MAX).unwrap(), expected(1, 40));
    }
}

#[test]
fn a_log_too_large_to_copy_keeps_its_segments_until_it_is_purged() {
    let sim = Sim::new();
    let wal = open(&sim);
    let large = wal.log(key(1));
    for index in 1..=20 {
        append(&large, &[entry(1, index, &"l".repeat(4000))]);
    }
    churn(&wal, 2, 1..200);
    settle(&wal);
    let pinned = sim.segments().len();
    assert!(pinned > 10, "the large log keeps them: {pinned}");
    assert_eq!(open(&sim.kill()).log(key(1)).entries(1, 99, usize::MAX).unwrap().len(), 20);
    sync(|done| large.purge(id(1, 20), done)).unwrap();
    settle(&wal);
    assert!(sim.segments().len() <= 2, "{:?}", sim.segments());
}

#[test]
fn used_files_serve_again_and_their_old_records_are_not_seen() {
    let sim = Sim::new();
    let wal = open(&sim);
    churn(&wal, 1, 1..200);
    settle(&wal);
    assert!(sim.creates() <= 4, "{} files made", sim.creates());
    let last = sim.segments().pop().unwrap();
    let content = sim.read(&last);
    let salt = SegmentHeader::decode(&content).unwrap().salt;
    assert!(salt.segment > 10, "{salt:?}");
    // The file is full of batches of an earlier life; the log still ends where it ends.
    let debris = content[SEGMENT_HEADER_BYTES..].windows(4).filter(|window| window == b"RKVB").count();
    assert!(debris >= 3);
    for crashed in [sim.kill(), sim.power_loss(|| false)] {
        let recovered = open(&crashed);
        assert_eq!(recovered.log(key(1)).last(), wal.log(key(1)).last());
        churn(&recovered, 1, 200..260);
        let log = open(&crashed.kill()).log(key(1));
        assert_eq!(log.last(), Some(id(1, 259)));
    }
}

#[test]
fn a_batch_larger_than_a_segment_gets_one_of_its_size() {
    let sim = Sim::new();
    let wal = open(&sim);
    let log = wal.log(key(1));
    append(&log, &[entry(1, 1, "small")]);
    let large = [entry(1, 2, &"a".repeat(100_000)), entry(1, 3, &"b".repeat(50_000))];
    append(&log, &large);
    append(&log, &[entry(1, 4, "small again")]);
    assert_eq!(open(&sim.kill()).log(key(1)).entries(2, 4, usize::MAX).unwrap(), large);
    sync(|done| log.purge(id(1, 4), done)).unwrap();
    churn(&wal, 1, 5..40);
    settle(&wal);
    assert!(wal.disk_bytes() < 150_000, "{}", wal.disk_bytes());
}

#[test]
fn thousands_of_groups_share_the_log() {
    let sim = Sim::new();
    let wal = open_with(&sim, Options { segment_bytes: 256 * 1024, ..options() }).unwrap();
    let groups = 2000;
    let mut last = None;
    for round in 1..=3 {
        for group in 0..groups {
            let log = wal.log(key(group));
            let (done, called) = done();
            block_on(log.append(vec![entry(1, round, &format!("{group}/{round}"))], done)).unwrap();
            if group % 2 == 0 {
                block_on(log.purge(id(1, round - 1), Box::new(drop))).unwrap();
            }
            last = Some(called);
        }
    }
    last.unwrap().recv().unwrap().unwrap();
    settle(&wal);
    let wal = open(&sim.kill());
    assert_eq!(wal.keys().len(), groups as usize);
    for group in 0..groups {
        let log = wal.log(key(group));
        let from = if group % 2 == 0 { 3 } else { 1 };
        let expected: Vec<_> = (from..=3).map(|round| entry(1, round, &format!("{group}/{round}"))).collect();
        assert_eq!(log.entries(from, 9, usize::MAX).unwrap(), expected);
    }
}

#[test]
fn many_crashes_do_not_pile_up_segments() {
    let mut sim = Sim::new();
    for round in 1..=30 {
        let wal = open(&sim);
        let log = wal.log(key(1));
        append(&log, &[entry(round, round, "one per life")]);
        settle(&wal);
        sim = sim.kill();
    }
    let wal = open(&sim);
    assert_eq!(wal.log(key(1)).entries(1, 99, usize::MAX).unwrap().len(), 30);
    assert!(sim.segments().len() <= 4, "{:?}", sim.segments());
}
