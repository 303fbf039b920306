//! A disk in memory: what was not fsynced is lost, torn or kept by the dice when the power goes.
//!
//! Calls take effect at once for who makes them, and by and by for the disk: the operations of a batch stay
//! on the way until its fsync returns. A crash cuts them off anywhere among them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::dice::Dice;
use crate::disk::Files;
use crate::wal::fs::{File, Fs};

/// What a disk writes as one; a torn write mixes old and new ones.
const SECTOR: usize = 512;

#[derive(Debug, Clone, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Bytes)>,
}

/// Which file, whatever it is called.
type Id = u64;

/// What is on a disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    names: BTreeMap<PathBuf, Id>,
    durable_names: BTreeMap<PathBuf, Id>,
    files: BTreeMap<Id, Content>,
    /// Small files, which are replaced as a whole.
    whole: BTreeMap<PathBuf, Bytes>,
    next: Id,
}

#[derive(Debug, Clone)]
enum Operation {
    Create(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncDir,
    Write(Id, usize, Bytes),
    SetLen(Id, usize),
    Sync(Id),
    Replace(PathBuf, Bytes),
}

fn write(at: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if at.len() < end {
        at.resize(end, 0);
    }
    at[offset..end].copy_from_slice(bytes);
}

impl Image {
    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Create(path) => {
                self.next += 1;
                self.files.insert(self.next, Content::default());
                self.names.insert(path.clone(), self.next);
            }
            Operation::Rename(from, to) => {
                if let Some(id) = self.names.remove(from) {
                    self.names.insert(to.clone(), id);
                }
            }
            Operation::Remove(path) => drop(self.names.remove(path)),
            Operation::SyncDir => self.durable_names = self.names.clone(),
            Operation::Write(id, offset, bytes) => {
                let content = self.files.get_mut(id).unwrap();
                write(&mut content.now, *offset, bytes);
                content.unsynced.push((*offset, bytes.clone()));
            }
            Operation::SetLen(id, len) => {
                // Cuts are taken for durable: the log never cuts off what it may still need.
                let content = self.files.get_mut(id).unwrap();
                content.now.resize(*len, 0);
                content.durable.resize(*len, 0);
                content.unsynced.retain(|(offset, bytes)| offset + bytes.len() <= *len);
            }
            Operation::Sync(id) => {
                let content = self.files.get_mut(id).unwrap();
                for (offset, bytes) in std::mem::take(&mut content.unsynced) {
                    write(&mut content.durable, offset, &bytes);
                }
            }
            Operation::Replace(path, bytes) => drop(self.whole.insert(path.clone(), bytes.clone())),
        }
    }

    /// The power goes.
    fn lose_power(&mut self, dice: &Dice) {
        if dice.chance(50) {
            // Directories are journaled: the changes since the last fsync are there, or not.
            self.durable_names = self.names.clone();
        }
        self.names = self.durable_names.clone();
        let named: Vec<Id> = self.names.values().copied().collect();
        self.files.retain(|id, _| named.contains(id));
        // From none of what was not fsynced to nearly all of it.
        let kept = *dice.pick(&[0, 50, 95]);
        for content in self.files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut content.unsynced) {
                let mut at = 0;
                while at < bytes.len() {
                    let end = (((offset + at) / SECTOR + 1) * SECTOR - offset).min(bytes.len());
                    if dice.chance(kept) {
                        write(&mut content.durable, offset + at, &bytes[at..end]);
                    }
                    at = end;
                }
            }
            content.now = content.durable.clone();
        }
    }
}

#[derive(Debug)]
struct State {
    /// As who uses it sees it.
    now: Image,
    /// As of the last operation that has reached the disk.
    reached: Image,
    on_the_way: Vec<Operation>,
    /// Its node crashed: nothing reaches it any more.
    dead: bool,
    random: u64,
}

/// One node's disk, from one start of the node to its crash.
#[derive(Debug, Clone)]
pub(super) struct Disk(Arc<Mutex<State>>);

impl Disk {
    pub(super) fn new(image: Image, random: u64) -> Disk {
        let (now, reached) = (image.clone(), image);
        Disk(Arc::new(Mutex::new(State { now, reached, on_the_way: Vec::new(), dead: false, random })))
    }

    fn run(&self, operation: Operation) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.dead {
            return Err(io::Error::other("the node has crashed"));
        }
        state.now.apply(&operation);
        state.on_the_way.push(operation);
        Ok(())
    }

    fn look<T>(&self, look: impl FnOnce(&Image) -> T) -> T {
        look(&self.0.lock().unwrap().now)
    }

    /// How many operations are on the way.
    pub(super) fn on_the_way(&self) -> usize {
        self.0.lock().unwrap().on_the_way.len()
    }

    /// The first `count` operations have reached the disk: what of them was an fsync is one now.
    pub(super) fn reach(&self, count: usize) {
        let mut state = self.0.lock().unwrap();
        let count = count.min(state.on_the_way.len());
        let reached: Vec<Operation> = state.on_the_way.drain(..count).collect();
        for operation in &reached {
            state.reached.apply(operation);
        }
    }

    /// Ends it; what is left is what a killed process leaves, or a power loss.
    pub(super) fn crash(&self, power_loss: bool, dice: &Dice) -> Image {
        let mut state = self.0.lock().unwrap();
        state.dead = true;
        let made = dice.below(state.on_the_way.len() as u64 + 1) as usize;
        let mut image = std::mem::take(&mut state.reached);
        for operation in &state.on_the_way[..made] {
            image.apply(operation);
        }
        if power_loss {
            image.lose_power(dice);
        }
        image
    }
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.display().to_string())
}

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.look(|image| image.whole.get(path).map(|bytes| bytes.to_vec())).ok_or_else(|| missing(path))
    }

    fn write_atomic(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.run(Operation::Replace(path.to_path_buf(), Bytes::copy_from_slice(content)))
    }
}

impl Fs for Disk {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _dir: &Path) -> io::Result<Vec<String>> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_string();
        Ok(self.look(|image| image.names.keys().map(name).collect()))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.run(Operation::Create(path.to_path_buf()))?;
        self.open(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let id = self.look(|image| image.names.get(path).copied()).ok_or_else(|| missing(path))?;
        Ok(Arc::new(OpenFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.open(from)?;
        self.run(Operation::Rename(from.to_path_buf(), to.to_path_buf()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.open(path)?;
        self.run(Operation::Remove(path.to_path_buf()))
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.run(Operation::SyncDir)
    }

    fn random(&self) -> io::Result<u64> {
        let mut state = self.0.lock().unwrap();
        state.random += 1;
        Ok(state.random)
    }
}

#[derive(Debug)]
struct OpenFile {
    disk: Disk,
    id: Id,
}

impl File for OpenFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.look(|image| image.files[&self.id].now.len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.run(Operation::SetLen(self.id, len as usize))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.run(Operation::Write(self.id, offset as usize, Bytes::copy_from_slice(bytes)))
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let offset = offset as usize;
        self.disk.look(|image| {
            let found = image.files[&self.id].now.get(offset..offset + bytes.len());
            bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.run(Operation::Sync(self.id))
    }
}
