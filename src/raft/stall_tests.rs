//! A crash between the submission of an entry and its fsync: the disk stalls, and what it holds at that
//! moment is what the next start finds.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use super::tests::*;
use super::*;
use crate::storage::{self, Kind};
use crate::wal::fs::{Disk, File, Fs};
use crate::wal::{self, Options};

/// A file system whose fsyncs can be held up.
#[derive(Debug, Clone, Default)]
pub(super) struct Stalling {
    stalled: Arc<(Mutex<bool>, Condvar)>,
}

#[derive(Debug)]
struct StallingFile(Arc<dyn File>, Stalling);

impl Stalling {
    pub fn stall(&self, stalled: bool) {
        *self.stalled.0.lock().unwrap() = stalled;
        self.stalled.1.notify_all();
    }

    fn file(&self, file: io::Result<Arc<dyn File>>) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(StallingFile(file?, self.clone())))
    }
}

impl File for StallingFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        let (stalled, changed) = &*self.1.stalled;
        drop(changed.wait_while(stalled.lock().unwrap(), |stalled| *stalled).unwrap());
        self.0.sync()
    }
}

impl Fs for Stalling {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        Disk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        Disk.list(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.file(Disk.create(path))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.file(Disk.open(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        Disk.sync_dir(dir)
    }

    fn random(&self) -> io::Result<u64> {
        Disk.random()
    }
}

/// Opens what a node has on its disk, with its log on `fs`.
pub(super) fn open_stalling(dir: &Path, kind: Kind, fs: &Stalling) -> OpenDisk {
    let options = Options { segment_bytes: 1 << 20, ..Options::new(dir.join("wal")) };
    let metrics = wal::Metrics::register(&prometheus::Registry::new()).unwrap();
    let wal = wal::Wal::open_on(Arc::new(fs.clone()), options, metrics).unwrap();
    let engine = storage::open(kind, &dir.join("engine"), &storage::Options::default()).unwrap();
    OpenDisk { wal, store: Arc::new(Store::open(engine, dir, true).unwrap()) }
}

pub(super) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

pub(super) fn holds(dir: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let content = std::fs::read(entry.unwrap().path()).unwrap();
        content.windows(needle.len()).any(|window| window == needle)
    })
}

async fn killed_between_submit_and_fsync(kind: Kind) {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let fs = Stalling::default();
    let disk = open_stalling(&live, kind, &fs);
    let group = group(&disk).await;
    propose(&group, "acknowledged ").await;
    // What a power loss leaves: nothing of what is submitted from here on.
    copy(&live, &dir.path().join("power"));

    fs.stall(true);
    let submitted = tokio::spawn({
        let group = group.clone();
        async move { group.propose("submitted ".into(), soon()).await }
    });
    let deadline = soon();
    while !holds(&live.join("wal"), b"submitted ") {
        assert!(tokio::time::Instant::now() < deadline, "the entry was never written");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(!submitted.is_finished(), "answered before its fsync");
    // What a kill leaves: everything that was written.
    copy(&live, &dir.path().join("kill"));

    // Both start again at once, under the same replica id, as a service manager would have them.
    for (left, expected) in [("power", "acknowledged after "), ("kill", "acknowledged submitted after ")] {
        for again in 0..2 {
            let disk = open(&dir.path().join(left), kind, false);
            let group = super::tests::group(&disk).await;
            if again == 0 {
                propose(&group, "after ").await;
            }
            assert_eq!(journal(&group).await, expected, "{left}");
            group.shutdown().await;
            drop(group);
            disk.store.engine().close().unwrap();
            disk.wal.close().unwrap();
        }
    }
    fs.stall(false);
    submitted.await.unwrap().unwrap();
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_submit_and_fsync_on_fjall() {
    killed_between_submit_and_fsync(Kind::Fjall).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_submit_and_fsync_on_sled() {
    killed_between_submit_and_fsync(Kind::Sled).await;
}
