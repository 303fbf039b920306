//! The data directory's disk: how much of it is free, and whether puts may still be accepted.
//!
//! A log or an engine that meets a full disk ends the process, so puts are refused while there is still
//! room for what they cause later: the log's next segment, the engine's write buffers and its compaction.
//! Below half of that, deletes are refused, too, and what other nodes send for this one's logs: a follower
//! must not fill its disk because its leader has a larger one.
//! The disk is asked on a clock and again after every [`LOOK_BYTES`] of accepted writes, since a fast disk
//! takes more in a second than the reserve holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Reason, Result};
use crate::kv::Op;
use crate::storage::{self, DataDir};

/// Writes accepted between two looks may add up to this much.
const LOOK_BYTES: u64 = 4 * 1024 * 1024;

/// What was last seen of the disk.
#[derive(Debug)]
pub(super) struct Disk {
    data_dir: Arc<DataDir>,
    free_bytes: AtomicU64,
    total_bytes: AtomicU64,
    /// Below this much free space, puts are refused. Can change while the node runs.
    reserve_bytes: AtomicU64,
    low: AtomicBool,
    /// Accepted since the last look.
    accepted_bytes: AtomicU64,
}

impl Disk {
    pub(super) fn new(data_dir: Arc<DataDir>, reserve_bytes: u64) -> Disk {
        let disk = Disk {
            data_dir,
            free_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            reserve_bytes: AtomicU64::new(reserve_bytes),
            low: AtomicBool::new(false),
            accepted_bytes: AtomicU64::new(0),
        };
        disk.look();
        disk
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn reserve_bytes(&self) -> u64 {
        self.reserve_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn set_reserve_bytes(&self, bytes: u64) {
        self.reserve_bytes.store(bytes, Ordering::Relaxed);
        self.look();
    }

    pub(super) fn is_low(&self) -> bool {
        self.low.load(Ordering::Relaxed)
    }

    /// Asks the file system; one system call.
    pub(super) fn look(&self) {
        self.accepted_bytes.store(0, Ordering::Relaxed);
        match (self.data_dir.free_bytes(), storage::total_bytes(self.data_dir.path())) {
            (Ok(free), Ok(total)) => {
                self.free_bytes.store(free, Ordering::Relaxed);
                self.total_bytes.store(total, Ordering::Relaxed);
                let low = free < self.reserve_bytes();
                if self.low.swap(low, Ordering::Relaxed) != low {
                    let free_mib = free >> 20;
                    match low {
                        true => tracing::error!(free_mib, "the disk is low: puts are refused"),
                        false => tracing::info!(free_mib, "the disk has room again: puts are accepted"),
                    }
                }
            }
            (Err(error), _) => tracing::warn!(%error, "free disk space can't be read"),
            (_, Err(error)) => tracing::warn!(%error, "disk size can't be read"),
        }
    }

    /// Refuses a put while the disk is low, and a delete while less than half of the reserve is free: a delete
    /// is written, too, before it frees anything.
    pub(super) fn check(&self, op: &Op) -> Result<()> {
        match op {
            Op::Put { key, value, .. } => self.count((key.len() + value.len()) as u64),
            Op::Delete { key, .. } => {
                self.count(key.len() as u64);
                return self.check_delete();
            }
        }
        if !self.is_low() {
            return Ok(());
        }
        let deletes = match self.check_delete() {
            Ok(()) => "deletes still work",
            Err(_) => "deletes are refused, too",
        };
        Err(Error::new(
            Reason::DiskFull,
            format!(
                "the disk of {} has {} MiB free, and writes must leave {} MiB (storage.disk_reserve): free \
                 or add space; {deletes}",
                self.data_dir.path().display(),
                self.free_bytes() >> 20,
                self.reserve_bytes() >> 20,
            ),
        ))
    }

    fn check_delete(&self) -> Result<()> {
        let least = self.reserve_bytes() / 2;
        if self.free_bytes() >= least {
            return Ok(());
        }
        Err(Error::new(
            Reason::DiskFull,
            format!(
                "the disk of {} has {} MiB free, and deletes must leave {} MiB (half of storage.disk_reserve): \
                 free or add space",
                self.data_dir.path().display(),
                self.free_bytes() >> 20,
                least >> 20,
            ),
        ))
    }

    /// Refuses entries and snapshots from other nodes while less than half of the reserve is free.
    pub(super) fn check_received(&self, bytes: usize) -> std::result::Result<(), String> {
        self.count(bytes as u64);
        let least = self.reserve_bytes() / 2;
        if self.free_bytes() >= least {
            return Ok(());
        }
        Err(format!(
            "the disk of {} has {} MiB free, and what others send must leave {} MiB (half of \
             storage.disk_reserve)",
            self.data_dir.path().display(),
            self.free_bytes() >> 20,
            least >> 20,
        ))
    }

    fn count(&self, bytes: u64) {
        if self.accepted_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes >= LOOK_BYTES {
            self.look();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::Precondition;
    use crate::storage::Kind;

    #[test]
    fn puts_are_refused_first_then_deletes_and_what_others_send() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = Arc::new(DataDir::open(dir.path(), Kind::Memory).unwrap());
        let disk = Disk::new(data_dir, 0);
        let free = disk.free_bytes();
        let put = Op::Put { key: "k".into(), value: "v".into(), precondition: Precondition::None };
        let delete = Op::Delete { key: "k".into(), precondition: Precondition::None };
        for (reserve, puts, others) in
            [(0, true, true), (free / 2 * 3, false, true), (free * 3, false, false)]
        {
            disk.set_reserve_bytes(reserve);
            assert_eq!(disk.check(&put).is_ok(), puts, "{reserve}");
            assert_eq!(disk.check_received(100).is_ok(), others, "{reserve}");
            assert_eq!(disk.check(&delete).is_ok(), others, "{reserve}");
        }
    }
}
