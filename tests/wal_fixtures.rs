//! Every version of the write-ahead log's format that was ever released can be read.
//!
//! The fixtures are files, never made anew by a change of the code. `RUSHKV_WRITE_FIXTURES=1 cargo test
//! --test wal_fixtures version_1` writes those of the present version, which is for a new version only.

// Helpers of a test may unwrap as tests do; the lint only knows functions marked as tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use bytes::Bytes;
use rushkv::types::{GroupId, LogId, LogKey, ReplicaId};
use rushkv::wal::{Done, Entry, Failed, Metrics, OpenError, Options, Wal};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wal").join(name)
}

fn key(group: u32) -> LogKey {
    LogKey { group: GroupId(group), replica: ReplicaId(0x2_0000_0003) }
}

fn entry(term: u64, index: u64) -> Entry {
    let payload = Bytes::from(format!("entry {index} of term {term}"));
    Entry { id: LogId { term, index }, payload }
}

fn open(dir: &Path) -> Result<Wal, OpenError> {
    let options = Options { segment_bytes: Options::SEGMENT_BYTES_MIN, ..Options::new(dir) };
    Wal::open(options, Metrics::register(&prometheus::Registry::new()).unwrap())
}

/// Makes a call and waits until it is durable.
async fn sync<F: Future<Output = Result<(), Failed>>>(call: impl FnOnce(Done) -> F) {
    let (sender, receiver) = sync_channel(1);
    call(Box::new(move |result| sender.send(result).unwrap())).await.unwrap();
    receiver.recv().unwrap().unwrap();
}

/// Writes records of every kind: into `records` as a crash leaves them, the last batch torn, and into
/// `copied` as they are once the first segments went and their logs were copied forward.
async fn write(dir: &Path, records: &Path, copied: &Path) {
    let wal = open(dir).unwrap();
    let (one, two, three, four) = (wal.log(key(1)), wal.log(key(2)), wal.log(key(3)), wal.log(key(4)));
    sync(|done| one.save_vote("vote 1".into(), done)).await;
    sync(|done| one.append((1..=9).map(|index| entry(1, index)).collect(), done)).await;
    sync(|done| one.truncate_from(7, done)).await;
    sync(|done| one.append(vec![entry(2, 7), entry(2, 8)], done)).await;
    sync(|done| one.purge(LogId { term: 1, index: 4 }, done)).await;
    sync(|done| two.save_vote("vote 2".into(), done)).await;
    sync(|done| two.purge(LogId { term: 5, index: 100 }, done)).await;
    sync(|done| three.append(vec![entry(1, 0)], done)).await;
    sync(|done| three.destroy(done)).await;
    sync(|done| four.append(vec![entry(3, 1)], done)).await;
    copy(dir, records);
    for segment in fs::read_dir(records).unwrap() {
        let path = segment.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let torn = b"entry 1 of term 3";
        if let Some(at) = bytes.windows(torn.len()).position(|window| window == torn) {
            bytes[at..at + 5].fill(0);
            fs::write(&path, bytes).unwrap();
        }
    }
    for index in 2..=12 {
        let payload = Bytes::from(vec![b'f'; 3000]);
        sync(|done| four.append(vec![Entry { id: LogId { term: 3, index }, payload }], done)).await;
        sync(|done| four.purge(LogId { term: 3, index: index - 1 }, done)).await;
    }
    wal.close().unwrap();
    copy(dir, copied);
}

/// Keeps only the segments.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "wal") {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

fn check(wal: &Wal) {
    let one = wal.log(key(1));
    assert_eq!(one.vote(), Some("vote 1".into()));
    assert_eq!(one.purged(), Some(LogId { term: 1, index: 4 }));
    let entries = [entry(1, 5), entry(1, 6), entry(2, 7), entry(2, 8)];
    assert_eq!(one.entries(5, 99, usize::MAX).unwrap(), entries);
    let two = wal.log(key(2));
    assert_eq!(two.vote(), Some("vote 2".into()));
    assert_eq!(two.last(), Some(LogId { term: 5, index: 100 }));
    assert_eq!(two.first_index(), None);
}

#[tokio::test]
async fn version_1_is_read() {
    let scratch = tempfile::tempdir().unwrap();
    if std::env::var_os("RUSHKV_WRITE_FIXTURES").is_some() {
        let _ = fs::remove_dir_all(fixture("v1"));
        write(&scratch.path().join("new"), &fixture("v1/records"), &fixture("v1/copied")).await;
    }
    for name in ["records", "copied"] {
        let dir = scratch.path().join(name);
        copy(&fixture("v1").join(name), &dir);
        let wal = open(&dir).unwrap();
        check(&wal);
        if name == "records" {
            assert_eq!(wal.keys(), [key(1), key(2)], "the torn batch was the fourth log's only one");
        } else {
            assert_eq!(wal.keys(), [key(1), key(2), key(4)]);
            let four = wal.log(key(4));
            assert_eq!(four.purged(), Some(LogId { term: 3, index: 11 }));
            assert_eq!(four.entries(12, 99, 0).unwrap()[0].payload, vec![b'f'; 3000]);
        }
        // It is not only read, but gone on with.
        let one = wal.log(key(1));
        sync(|done| one.append(vec![entry(3, 9)], done)).await;
        wal.close().unwrap();
        let wal = open(&dir).unwrap();
        assert_eq!(wal.log(key(1)).last(), Some(LogId { term: 3, index: 9 }));
    }
}

#[test]
fn a_version_of_the_future_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("v1");
    copy(&fixture("v1/copied"), &dir);
    let segment = fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path()).max().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[8] = 2;
    fs::write(&segment, bytes).unwrap();
    let error = open(&dir).unwrap_err().to_string();
    assert!(error.contains("has format version 2, and this program knows version 1"), "{error}");
}
