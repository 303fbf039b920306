//! What a power loss can make of the journal, done by hand.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::storage::Batch;

const PAGE: usize = 4096;
const OPTIONS: Options = Options { cache_bytes: 1 << 20 };

/// Batches of one small and one larger value each; in a journal they take some 9 KiB.
fn batch(n: u32) -> Batch {
    let mut batch = Batch::default();
    batch.put(format!("small {n}"), n.to_le_bytes().to_vec());
    batch.put(format!("large {n}"), vec![0x40 + n as u8; 9000]);
    batch
}

fn journal(dir: &Path) -> PathBuf {
    let mut journals: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .collect();
    assert_eq!(journals.len(), 1);
    journals.remove(0)
}

/// A database with batches 1 to 3 checkpointed in an earlier life and 4 to 8 not; with the length of
/// the journal's checkpointed part.
fn database() -> (tempfile::TempDir, usize) {
    let dir = tempfile::tempdir().unwrap();
    let engine = Fjall::open(dir.path(), &OPTIONS).unwrap();
    for n in 1..=3 {
        engine.apply(batch(n)).unwrap();
    }
    engine.close().unwrap();
    let engine = Fjall::open(dir.path(), &OPTIONS).unwrap();
    let durable = fs::metadata(journal(dir.path())).unwrap().len() as usize;
    for n in 4..=8 {
        engine.apply(batch(n)).unwrap();
    }
    drop(engine);
    (dir, durable)
}

/// How many batches there are; panics unless they are a prefix, each of them whole.
fn prefix(engine: &Fjall) -> u32 {
    let count = (1..).find(|n| engine.get(format!("small {n}").as_bytes()).unwrap().is_none()).unwrap() - 1;
    for n in 1..=8 {
        for write in batch(n).writes {
            let Write::Put(key, value) = write else { unreachable!() };
            assert_eq!(engine.get(&key).unwrap(), (n <= count).then_some(value), "batch {n} of {count}");
        }
    }
    count
}

#[test]
fn any_page_that_was_not_synced_may_be_missing() {
    let (original, durable) = database();
    let whole = fs::read(journal(original.path())).unwrap();
    assert!(whole.len() - durable > 10 * PAGE);
    let mut refused_by_fjall = 0;
    for page in durable.div_ceil(PAGE)..whole.len() / PAGE {
        let (dir, _) = database();
        let mut torn = whole.clone();
        torn[page * PAGE..(page + 1) * PAGE].fill(0);
        fs::write(journal(dir.path()), &torn).unwrap();
        if let Err(error) = Database::builder(dir.path()).open() {
            assert!(matches!(error, FjallError::JournalRecovery(_)), "{error}");
            refused_by_fjall += 1;
        }
        fs::write(journal(dir.path()), &torn).unwrap();
        let engine = Fjall::open(dir.path(), &OPTIONS).unwrap_or_else(|error| panic!("page {page}: {error}"));
        let count = prefix(&engine);
        assert!((3..8).contains(&count), "page {page}: {count} batches");
        // It goes on from there, and comes back again.
        engine.apply(batch(count + 1)).unwrap();
        engine.close().unwrap();
        assert_eq!(prefix(&Fjall::open(dir.path(), &OPTIONS).unwrap()), count + 1);
    }
    assert!(refused_by_fjall > 0, "fjall mends this itself now: fjall_journal can go");
}

#[test]
fn the_journal_may_end_anywhere() {
    let (original, durable) = database();
    let whole = fs::read(journal(original.path())).unwrap();
    for len in (durable..whole.len()).step_by(1499) {
        let (dir, _) = database();
        // As after a crash of the process, and as after a power loss, which leaves zeros.
        for zeros in [0, 3 * PAGE] {
            let torn = [&whole[..len], &vec![0; zeros]].concat();
            fs::write(journal(dir.path()), &torn).unwrap();
            let rewritten = fjall_journal::rewrite_undurable(dir.path(), 0).unwrap();
            assert!((durable as u64..=len as u64).contains(&rewritten), "{rewritten} of {len}");
            assert!(fs::read(journal(dir.path())).unwrap() == torn, "the same bytes");
            assert!((3..8).contains(&prefix(&Fjall::open(dir.path(), &OPTIONS).unwrap())));
        }
    }
}

/// Writing is what makes the kernel bring to the disk what it takes for clean since an fsync failed.
#[test]
fn the_journals_end_is_written_again_unless_it_was_checkpointed() {
    let (dir, durable) = database();
    let path = journal(dir.path());
    let whole = fs::read(&path).unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let age = || fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    let is_old = || fs::metadata(&path).unwrap().modified().unwrap() == long_ago;
    let mark = Mark::open(dir.path()).unwrap().read().unwrap();
    let rewritten = fjall_journal::rewrite_undurable(dir.path(), mark).unwrap();
    assert_eq!(rewritten, (whole.len() - durable) as u64, "batches 4 to 8");

    age();
    let engine = Fjall::open(dir.path(), &OPTIONS).unwrap();
    assert!(!is_old(), "not written again");
    assert!(fs::read(&path).unwrap() == whole, "the same bytes");
    assert_eq!(prefix(&engine), 8);
    engine.close().unwrap();

    age();
    let engine = Fjall::open(dir.path(), &OPTIONS).unwrap();
    assert!(is_old(), "written again after a clean stop");
    assert_eq!(prefix(&engine), 8);
}

#[test]
fn damage_to_what_was_checkpointed_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Fjall::open(dir.path(), &OPTIONS).unwrap();
    for n in 1..=5 {
        engine.apply(batch(n)).unwrap();
        if n == 4 {
            engine.checkpoint().unwrap();
        }
    }
    drop(engine);
    let path = journal(dir.path());
    let whole = fs::read(&path).unwrap();
    let value_of = |n: u8| whole.windows(9000).position(|bytes| bytes == [0x40 + n; 9000]).unwrap();

    let mut damaged = whole.clone();
    damaged[value_of(4) + 100] ^= 1;
    fs::write(&path, &damaged).unwrap();
    for _ in 0..2 {
        match Fjall::open(dir.path(), &OPTIONS) {
            Err(Error::Corrupt { message, .. }) => assert!(message.contains("was durable"), "{message}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), whole.len() as u64, "nothing was cut");

    let mut torn = whole.clone();
    torn[value_of(5) + 100] ^= 1;
    fs::write(&path, &torn).unwrap();
    assert_eq!(prefix(&Fjall::open(dir.path(), &OPTIONS).unwrap()), 4);
}
