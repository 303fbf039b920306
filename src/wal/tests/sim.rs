//! A disk in memory that fails on demand, and that can be asked what a power loss would leave: what was
//! fsynced for sure, and of everything since, page by page, this or that.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use crate::wal::fs::{File, Fs};

/// What a disk writes as one; a torn write mixes old and new ones.
const SECTOR: usize = 512;

#[derive(Debug, Default, Clone)]
struct Content {
    /// What a reader sees.
    now: Vec<u8>,
    /// What a power loss leaves for sure.
    durable: Vec<u8>,
    /// Writes since the last fsync.
    unsynced: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct Names {
    now: BTreeMap<PathBuf, Arc<SimFile>>,
    durable: BTreeMap<PathBuf, Arc<SimFile>>,
}

/// When the disk fails, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Write,
    Sync,
}

#[derive(Debug, Default)]
struct Faults {
    armed: Mutex<Option<(Fault, u64)>>,
    /// How many fsyncs may pass before they wait; None: all.
    held: Mutex<Option<u64>>,
    released: Condvar,
    /// What is to be synced by the fsync that waits. There is one writer, hence one at most.
    waiting: Mutex<Option<&'static str>>,
    syncs: AtomicU64,
    /// Held during every change, so that a crash is one moment for all files.
    moment: Mutex<()>,
}

impl Faults {
    fn pass(&self, what: Fault) -> io::Result<()> {
        let mut armed = self.armed.lock().unwrap();
        match &mut *armed {
            Some((fault, after)) if *fault == what => {
                if *after == 0 {
                    return Err(io::Error::other("the simulated disk fails"));
                }
                *after -= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn wait_if_held(&self, what: &'static str) {
        let mut held = self.held.lock().unwrap();
        while *held == Some(0) {
            *self.waiting.lock().unwrap() = Some(what);
            held = self.released.wait(held).unwrap();
        }
        *self.waiting.lock().unwrap() = None;
        if let Some(passes) = held.as_mut() {
            *passes -= 1;
        }
    }
}

pub(super) struct Held(Arc<Faults>);

impl Held {
    pub(super) fn let_one_pass(&self) {
        *self.0.held.lock().unwrap().as_mut().unwrap() += 1;
        self.0.released.notify_all();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.held.lock().unwrap() = None;
        self.0.released.notify_all();
    }
}

#[derive(Debug, Default)]
pub(super) struct Sim {
    names: Mutex<Names>,
    faults: Arc<Faults>,
    random: AtomicU64,
    creates: AtomicU64,
}

#[derive(Debug)]
pub(super) struct SimFile {
    content: Mutex<Content>,
    faults: Arc<Faults>,
}

impl SimFile {
    fn new(content: Content, faults: &Arc<Faults>) -> SimFile {
        SimFile { content: Mutex::new(content), faults: faults.clone() }
    }
}

impl Sim {
    pub(super) fn new() -> Arc<Sim> {
        Arc::default()
    }

    /// After `after` more of them, every write or fsync fails.
    pub(super) fn fail(&self, fault: Fault, after: u64) {
        *self.faults.armed.lock().unwrap() = Some((fault, after));
    }

    /// Fsyncs hang until what is returned is dropped.
    pub(super) fn hold(&self) -> Held {
        *self.faults.held.lock().unwrap() = Some(0);
        Held(self.faults.clone())
    }

    /// Waits until an fsync is held.
    pub(super) fn wait_for_held(&self) {
        while self.held().is_none() {
            std::thread::yield_now();
        }
    }

    /// What the fsync that is held now is to sync: "a file" or "the directory".
    pub(super) fn held(&self) -> Option<&'static str> {
        let held = self.faults.held.lock().unwrap();
        // One that was let pass may not have woken up yet.
        (*held == Some(0)).then(|| *self.faults.waiting.lock().unwrap())?
    }

    pub(super) fn syncs(&self) -> u64 {
        self.faults.syncs.load(Ordering::SeqCst)
    }

    /// The disk after a power loss now. `choose` is asked for each sector that was not fsynced whether
    /// it got there, and for each name.
    pub(super) fn power_loss(&self, mut choose: impl FnMut() -> bool) -> Arc<Sim> {
        let _moment = self.faults.moment.lock().unwrap();
        let names = self.names.lock().unwrap();
        let mut left: BTreeMap<&PathBuf, &Arc<SimFile>> = names.durable.iter().collect();
        if choose() {
            // Directories are journaled: the changes since the last fsync are there, or not.
            left = names.now.iter().collect();
        }
        let left = left.into_iter().map(|(path, file)| {
            let content = file.content.lock().unwrap();
            let mut bytes = content.durable.clone();
            for (offset, written) in &content.unsynced {
                if bytes.len() < offset + written.len() {
                    bytes.resize(offset + written.len(), 0);
                }
                let mut at = 0;
                while at < written.len() {
                    let next = ((offset + at) / SECTOR + 1) * SECTOR - offset;
                    let end = next.min(written.len());
                    if choose() {
                        bytes[offset + at..offset + end].copy_from_slice(&written[at..end]);
                    }
                    at = end;
                }
            }
            let content = Content { now: bytes.clone(), durable: bytes, unsynced: Vec::new() };
            (path.clone(), content)
        });
        let faults: Arc<Faults> = Arc::default();
        let now: BTreeMap<_, _> =
            left.map(|(path, content)| (path, Arc::new(SimFile::new(content, &faults)))).collect();
        self.successor(Names { durable: now.clone(), now }, faults)
    }

    /// The disk as a killed process leaves it: everything written is there, and no more of it is durable
    /// than before.
    pub(super) fn kill(&self) -> Arc<Sim> {
        let _moment = self.faults.moment.lock().unwrap();
        let names = self.names.lock().unwrap();
        let faults: Arc<Faults> = Arc::default();
        let mut copies: BTreeMap<*const SimFile, Arc<SimFile>> = BTreeMap::new();
        let mut copy = |names: &BTreeMap<PathBuf, Arc<SimFile>>| {
            let copied = names.iter().map(|(path, file)| {
                let new = || Arc::new(SimFile::new(file.content.lock().unwrap().clone(), &faults));
                (path.clone(), copies.entry(Arc::as_ptr(file)).or_insert_with(new).clone())
            });
            copied.collect()
        };
        let names = Names { now: copy(&names.now), durable: copy(&names.durable) };
        self.successor(names, faults)
    }

    fn successor(&self, names: Names, faults: Arc<Faults>) -> Arc<Sim> {
        let random = AtomicU64::new(self.random.load(Ordering::SeqCst) + 1000);
        Arc::new(Sim { names: Mutex::new(names), faults, random, creates: AtomicU64::new(0) })
    }

    /// Files made.
    pub(super) fn creates(&self) -> u64 {
        self.creates.load(Ordering::SeqCst)
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.names.lock().unwrap().now.keys().cloned().collect()
    }

    pub(super) fn segments(&self) -> Vec<PathBuf> {
        self.paths().into_iter().filter(|path| path.extension().is_some_and(|e| e == "wal")).collect()
    }

    /// Changes a file behind the log's back, durably.
    pub(super) fn edit(&self, path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
        let file = self.names.lock().unwrap().now[path].clone();
        let mut content = file.content.lock().unwrap();
        edit(&mut content.now);
        content.durable = content.now.clone();
        content.unsynced.clear();
    }

    pub(super) fn read(&self, path: &Path) -> Vec<u8> {
        self.names.lock().unwrap().now[path].content.lock().unwrap().now.clone()
    }
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.display().to_string())
}

impl Fs for Sim {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _dir: &Path) -> io::Result<Vec<String>> {
        Ok(self.paths().iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_string()).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let _moment = self.faults.moment.lock().unwrap();
        self.creates.fetch_add(1, Ordering::SeqCst);
        let file = Arc::new(SimFile::new(Content::default(), &self.faults));
        self.names.lock().unwrap().now.insert(path.to_path_buf(), file.clone());
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let names = self.names.lock().unwrap();
        Ok(names.now.get(path).ok_or_else(|| missing(path))?.clone())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _moment = self.faults.moment.lock().unwrap();
        let mut names = self.names.lock().unwrap();
        let file = names.now.remove(from).ok_or_else(|| missing(from))?;
        names.now.insert(to.to_path_buf(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let _moment = self.faults.moment.lock().unwrap();
        self.names.lock().unwrap().now.remove(path).map(drop).ok_or_else(|| missing(path))
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.faults.wait_if_held("the directory");
        self.faults.pass(Fault::Sync)?;
        let _moment = self.faults.moment.lock().unwrap();
        let mut names = self.names.lock().unwrap();
        names.durable = names.now.clone();
        Ok(())
    }

    fn random(&self) -> io::Result<u64> {
        Ok(self.random.fetch_add(1, Ordering::SeqCst))
    }
}

impl File for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().now.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let _moment = self.faults.moment.lock().unwrap();
        let mut content = self.content.lock().unwrap();
        // Cuts are taken for durable: the log never cuts off what it may still need.
        content.now.resize(len as usize, 0);
        content.durable.resize(len as usize, 0);
        content.unsynced.retain(|(offset, bytes)| offset + bytes.len() <= len as usize);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let failed = self.faults.pass(Fault::Write);
        // A write that fails may have written a part.
        let bytes = if failed.is_err() { &bytes[..bytes.len() / 2] } else { bytes };
        let _moment = self.faults.moment.lock().unwrap();
        let mut content = self.content.lock().unwrap();
        let (offset, end) = (offset as usize, offset as usize + bytes.len());
        if content.now.len() < end {
            content.now.resize(end, 0);
        }
        content.now[offset..end].copy_from_slice(bytes);
        content.unsynced.push((offset, bytes.to_vec()));
        failed
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.content.lock().unwrap();
        let offset = offset as usize;
        let part = content.now.get(offset..offset + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(part);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.wait_if_held("a file");
        if let Err(error) = self.faults.pass(Fault::Sync) {
            // As kernels do: the pages count as clean now, and are not on the disk.
            self.content.lock().unwrap().unsynced.clear();
            return Err(error);
        }
        self.faults.syncs.fetch_add(1, Ordering::SeqCst);
        let _moment = self.faults.moment.lock().unwrap();
        let mut content = self.content.lock().unwrap();
        for (offset, bytes) in std::mem::take(&mut content.unsynced) {
            let end = offset + bytes.len();
            if content.durable.len() < end {
                content.durable.resize(end, 0);
            }
            content.durable[offset..end].copy_from_slice(&bytes);
        }
        Ok(())
    }
}
