//! What recovery finds: torn tails are cut, damage is refused, and the two are told apart.

use std::path::Path;

use super::sim::Fault;
use super::*;
use crate::wal::format::{FRAME_HEADER_BYTES, FrameHeader, SEGMENT_HEADER_BYTES, SegmentHeader};

/// The batches of a segment: offset, bytes without padding, bytes with it.
fn frames(sim: &Sim, path: &Path) -> Vec<(usize, usize, usize)> {
    let content = sim.read(path);
    let salt = SegmentHeader::decode(&content).unwrap().salt;
    let mut at = SEGMENT_HEADER_BYTES;
    let mut frames = Vec::new();
    while let Some(header) = FrameHeader::decode(salt, at as u64, &content[at..]) {
        let bytes = header.frame_bytes() as usize;
        frames.push((at, FRAME_HEADER_BYTES + header.body_bytes as usize, bytes));
        at += bytes;
    }
    frames
}

/// A log of three batches, of which the last holds two groups' records.
fn three_batches(sim: &Arc<Sim>) -> Wal {
    let wal = open(sim);
    let (one, two) = (wal.log(key(1)), wal.log(key(2)));
    append(&one, &[entry(1, 1, "first")]);
    append(&one, &[entry(1, 2, "second")]);
    let held = sim.hold();
    // Held in an fsync of a batch of its own, so that the next two calls share one.
    block_on(one.append(vec![entry(1, 3, "third")], Box::new(drop))).unwrap();
    while wal.writer_stuck_for().is_none() {
        std::thread::yield_now();
    }
    let (done, called) = done();
    block_on(one.append(vec![entry(1, 4, &"fourth ".repeat(100))], Box::new(drop))).unwrap();
    block_on(two.save_vote("vote".into(), done)).unwrap();
    drop(held);
    called.recv().unwrap().unwrap();
    wal
}

fn last_segment(sim: &Sim) -> std::path::PathBuf {
    sim.segments().pop().unwrap()
}

fn refused(sim: &Arc<Sim>, what: &str) -> String {
    match open_with(sim, options()) {
        Ok(_) => panic!("{what} was not noticed"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_torn_tail_of_any_length_is_cut() {
    let sim = Sim::new();
    let wal = three_batches(&sim);
    let path = last_segment(&sim);
    let frames = frames(&sim, &path);
    assert_eq!(frames.len(), 4);
    let (start, used, _) = *frames.last().unwrap();
    for kept in 0..used {
        let torn = sim.kill();
        torn.edit(&path, |bytes| bytes[start + kept..].fill(0));
        let wal = open(&torn);
        assert_eq!(wal.log(key(1)).last(), Some(id(1, 3)), "{kept} bytes left");
        assert_eq!(wal.keys(), [key(1)]);
        // It goes on behind the cut, and the debris never comes back.
        append(&wal.log(key(1)), &[entry(2, 4, "other")]);
        if kept % 50 == 0 {
            let wal = open(&torn.kill());
            assert_eq!(wal.log(key(1)).last(), Some(id(2, 4)));
        }
    }
    drop(wal);
}

/// The closing batch proves that the one before it was durable, and nothing of itself.
#[test]
fn a_close_whose_fsync_did_not_happen_is_no_damage_later() {
    for failing in [true, false] {
        let sim = Sim::new();
        let wal = open(&sim);
        // Too large to be copied forward: the segment is still needed at the end.
        append(&wal.log(key(1)), &[entry(1, 1, &"a".repeat(8000))]);
        let killed = if failing {
            sim.fail(Fault::Sync, 0);
            wal.close().unwrap_err();
            sim.kill()
        } else {
            let held = sim.hold();
            let closing = std::thread::spawn({
                let wal = wal.clone();
                move || wal.close()
            });
            sim.wait_for_held();
            let killed = sim.kill();
            drop(held);
            closing.join().unwrap().unwrap();
            killed
        };
        let wal = open(&killed);
        append(&wal.log(key(1)), &[entry(1, 2, "b")]);
        let wal = open(&killed.power_loss(|| false));
        assert_eq!(wal.log(key(1)).last(), Some(id(1, 2)), "failing: {failing}");
    }
}

#[test]
fn a_last_batch_whose_pages_arrived_out_of_order_is_torn() {
    let sim = Sim::new();
    let _wal = three_batches(&sim);
    let path = last_segment(&sim);
    let (start, used, _) = *frames(&sim, &path).last().unwrap();
    // The header is lost, or bytes in the middle; all that follows is there, second record and all.
    for hole in [0, 4, FRAME_HEADER_BYTES, FRAME_HEADER_BYTES + 100, used - 30] {
        let torn = sim.kill();
        torn.edit(&path, |bytes| bytes[start + hole..start + hole + 4].fill(0xAA));
        assert_eq!(open(&torn).log(key(1)).last(), Some(id(1, 3)), "hole at {hole}");
    }
}

#[test]
fn any_flipped_bit_before_the_last_batch_is_refused() {
    let sim = Sim::new();
    let _wal = three_batches(&sim);
    let path = last_segment(&sim);
    let frames = frames(&sim, &path);
    for &(start, used, _) in &frames[..frames.len() - 1] {
        for at in start..start + used {
            let damaged = sim.kill();
            damaged.edit(&path, |bytes| bytes[at] ^= 1 << (at % 8));
            let error = refused(&damaged, &format!("a flipped bit at {at}"));
            assert!(error.contains(&format!("0001.wal is damaged at offset {start}: ")), "{error}");
            assert!(error.contains("restore the whole data_dir"), "{error}");
        }
    }
}

#[test]
fn after_a_clean_close_damage_of_the_last_batch_is_refused_too() {
    let sim = Sim::new();
    three_batches(&sim).close().unwrap();
    let path = last_segment(&sim);
    let frames = frames(&sim, &path);
    assert_eq!(frames.len(), 5, "the last says that the log was closed");
    let (start, used, _) = frames[3];
    for at in [start, start + 20, start + used - 1] {
        let damaged = sim.kill();
        damaged.edit(&path, |bytes| bytes[at] ^= 1);
        refused(&damaged, "a flipped bit");
    }
}

/// Three segments that are all needed: nothing is cheap to copy, and little is dead.
fn several_segments(sim: &Arc<Sim>) -> Wal {
    let wal = open(sim);
    let log = wal.log(key(1));
    for index in 1..=12 {
        append(&log, &[entry(1, index, &"x".repeat(7000))]);
    }
    assert!(sim.segments().len() >= 3, "{:?}", sim.segments());
    wal
}

#[test]
fn damage_in_a_segment_that_is_not_the_last_is_refused() {
    let sim = Sim::new();
    let _wal = several_segments(&sim);
    let first = &sim.segments()[0];
    let frames = frames(&sim, first);
    // The last batch of a segment that has a successor is no tail that could be torn.
    for (start, used, _) in [frames[0], *frames.last().unwrap()] {
        let damaged = sim.kill();
        damaged.edit(first, |bytes| bytes[start + used - 1] ^= 4);
        let error = refused(&damaged, "a flipped bit");
        assert!(error.contains("later segments follow"), "{error}");
    }
    let damaged = sim.kill();
    damaged.edit(first, |bytes| bytes.truncate(frames.last().unwrap().0));
    assert!(refused(&damaged, "a file cut short").contains("the file ends here"));
}

#[test]
fn a_missing_segment_is_refused() {
    let sim = Sim::new();
    let _wal = several_segments(&sim);
    let segments = sim.segments();
    for gone in &segments[..segments.len() - 1] {
        let damaged = sim.kill();
        fs::Fs::remove(&*damaged, gone).unwrap();
        let error = refused(&damaged, "a missing file");
        assert!(error.contains(&format!("{} is missing", gone.display())), "{error}");
    }
}

#[test]
fn a_bad_segment_header_is_refused() {
    let sim = Sim::new();
    let _wal = several_segments(&sim);
    for path in sim.segments() {
        type Case = (&'static str, fn(&mut Vec<u8>));
        let cases: [Case; 5] = [
            ("is not a segment", |bytes| bytes[0] ^= 1),
            ("format version 2", |bytes| bytes[8] = 2),
            ("header's checksum does not match", |bytes| bytes[20] ^= 1),
            ("header's checksum does not match", |bytes| bytes[SEGMENT_HEADER_BYTES - 1] ^= 1),
            ("inside the segment's header", |bytes| bytes.truncate(100)),
        ];
        for (message, edit) in cases {
            let damaged = sim.kill();
            damaged.edit(&path, edit);
            let error = refused(&damaged, message);
            assert!(error.contains(message), "{error}");
        }
    }
    let damaged = sim.kill();
    let segments = sim.segments();
    let content = sim.read(&segments[0]);
    damaged.edit(&segments[1], |bytes| *bytes = content);
    assert!(refused(&damaged, "another segment").contains("under another's name"));
    let damaged = sim.kill();
    damaged.edit(&last_segment(&sim), |bytes| bytes.truncate(20_000));
    assert!(refused(&damaged, "a truncated file").contains("the file ends here"));
}

#[test]
fn what_a_client_writes_is_never_taken_for_a_batch() {
    // A torn batch whose payload looks like a batch of this very place, but for the segment's salt.
    let sim = Sim::new();
    let wal = open(&sim);
    let log = wal.log(key(1));
    append(&log, &[entry(1, 1, "kept")]);
    let path = last_segment(&sim);
    let (start, _, bytes) = frames(&sim, &path)[0];
    let copied = sim.read(&path)[start..start + bytes].to_vec();
    let payload = Bytes::from(copied.repeat(20));
    append(&log, &[Entry { id: id(1, 2), payload }]);
    let torn = sim.kill();
    torn.edit(&path, |content| content[start + bytes] ^= 1);
    assert_eq!(open(&torn).log(key(1)).last(), Some(id(1, 1)));
}

#[test]
fn what_an_fsync_failed_on_is_durable_once_it_was_seen_again() {
    let sim = Sim::new();
    let wal = open(&sim);
    let log = wal.log(key(1));
    append(&log, &[entry(1, 1, "kept")]);
    sim.fail(super::sim::Fault::Sync, 0);
    sync(|done| log.append(vec![entry(1, 2, "unknown")], done)).unwrap_err();
    // The process ends, and the next one still reads the batch from the page cache.
    let killed = sim.kill();
    let seen = open(&killed).log(key(1)).last();
    assert_eq!(seen, Some(id(1, 2)));
    assert_eq!(open(&killed.power_loss(|| false)).log(key(1)).last(), seen);
}
