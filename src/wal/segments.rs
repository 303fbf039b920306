//! The files of the log: which there are, making the next one ready, letting old ones go.
//!
//! A segment bears its name only once its header is durable, and loses it only once it is not needed,
//! so a segment that can't be read is damage, never a crash.
//!
//! A new file is filled with zeros rather than only allocated, and used again when its segment goes:
//! blocks that were never written cost a commit of the file system's journal with the fsync. Measured on
//! ext4 (300 B and their fdatasync, no two in one page; medians of 1500, the middle of three runs):
//! growing the file 283 us, after fallocate 265 us, zeros written before 179 us; again with `cargo bench
//! --bench wal -- prepare`. Zeros for 64 MiB take 30 to 60 ms, so they are written in steps while the
//! segment before fills.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::format::{SEGMENT_HEADER_BYTES, Salt, SegmentHeader};
use super::fs::{File, Fs};
use super::metrics::Metrics;
use super::shared::Pulse;
use super::{Failed, failed_io};

/// Zeros written, and synced, in one step of preparing a segment: 1 ms or so.
const ZERO_STEP_BYTES: usize = 1024 * 1024;

/// Spare files kept for the next segments; more are given back to the file system.
pub(super) const SPARES_MAX: usize = 2;

const SEGMENT_SUFFIX: &str = ".wal";
const SPARE_SUFFIX: &str = ".spare";
/// A file that is still being filled with zeros. Worthless after a crash.
const NEW_NAME: &str = "next.new";

/// A segment that records can be read from. Whoever holds one can read on even after the segment went:
/// the file is only used again when nobody else has it.
pub(super) struct Segment {
    pub(super) salt: Salt,
    pub(super) file: Arc<dyn File>,
    /// The file's length.
    pub(super) bytes: u64,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({})", self.salt.segment)
    }
}

pub(super) fn segment_name(segment: u64) -> String {
    format!("{segment:016x}{SEGMENT_SUFFIX}")
}

/// What a file in the log's directory is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Segment(u64),
    Spare,
    New,
    Foreign,
}

pub(super) fn parse_name(name: &str) -> Name {
    let number = |suffix| {
        let digits: &str = name.strip_suffix(suffix)?;
        (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
    };
    if let Some(segment) = number(SEGMENT_SUFFIX) {
        Name::Segment(segment)
    } else if number(SPARE_SUFFIX).is_some() {
        Name::Spare
    } else if name == NEW_NAME {
        Name::New
    } else {
        Name::Foreign
    }
}

/// A file of zeros or of a segment that went, to be used for the next one.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) bytes: u64,
}

/// A file being filled with zeros.
#[derive(Debug)]
struct Preparing {
    file: Arc<dyn File>,
    zeroed: u64,
}

/// The segments in use, oldest first, and the files kept for the next ones.
///
/// Invariants: the numbers are consecutive; batches go to the last; spares all have the usual size.
#[derive(Debug)]
pub(super) struct Segments {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    segment_bytes: u64,
    metrics: Metrics,
    used: BTreeMap<u64, Arc<Segment>>,
    spares: Vec<Spare>,
    preparing: Option<Preparing>,
    disk_bytes: Arc<AtomicU64>,
    pulse: Arc<Pulse>,
}

impl Segments {
    pub(super) fn new(
        fs: Arc<dyn Fs>,
        dir: PathBuf,
        segment_bytes: u64,
        metrics: Metrics,
        used: BTreeMap<u64, Arc<Segment>>,
        spares: Vec<Spare>,
    ) -> Segments {
        let segments = Segments {
            fs,
            dir,
            segment_bytes,
            metrics,
            used,
            spares,
            preparing: None,
            disk_bytes: Arc::default(),
            pulse: Arc::new(Pulse::new()),
        };
        segments.count();
        segments
    }

    /// The bytes of all files; kept up to date.
    pub(super) fn disk_bytes(&self) -> Arc<AtomicU64> {
        self.disk_bytes.clone()
    }

    /// Beats with every call to the disk.
    pub(super) fn pulse(&self) -> Arc<Pulse> {
        self.pulse.clone()
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn path(&self, segment: u64) -> PathBuf {
        self.dir.join(segment_name(segment))
    }

    pub(super) fn oldest(&self) -> Option<u64> {
        self.used.keys().next().copied()
    }

    pub(super) fn usual_bytes(&self) -> u64 {
        self.segment_bytes
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.used.values().map(|segment| segment.bytes).sum()
    }

    pub(super) fn len(&self) -> usize {
        self.used.len()
    }

    /// Begins a segment that has room for `room` bytes of batches, durably.
    pub(super) fn begin(
        &mut self,
        room: u64,
        first_batch: u64,
        previous_end: u64,
        oldest: u64,
    ) -> Result<Arc<Segment>, Failed> {
        let number = self.used.keys().next_back().map_or(1, |last| last + 1);
        let needed = (SEGMENT_HEADER_BYTES as u64 + room).next_multiple_of(SEGMENT_HEADER_BYTES as u64);
        let spare = if needed > self.segment_bytes {
            // A batch larger than a segment gets one of its own size.
            let file = self.create()?;
            self.zero(&file, 0, needed)?;
            Spare { path: self.dir.join(NEW_NAME), file, bytes: needed }
        } else {
            while self.spares.is_empty() {
                self.prepare_step()?;
            }
            self.spares.pop().expect("the loop ends with a spare")
        };
        let random =
            self.fs.random().map_err(|error| failed_io("draw a salt for a segment in", &self.dir, error))?;
        let salt = Salt { segment: number, random };
        let header = SegmentHeader { salt, bytes: spare.bytes, first_batch, previous_end, oldest };
        let path = self.path(number);
        let pulse = &self.pulse;
        pulse
            .in_disk(|| spare.file.write_at(&header.encode(), 0))
            .map_err(|error| failed_io("write the header of", &spare.path, error))?;
        pulse.in_disk(|| spare.file.sync()).map_err(|error| failed_io("fsync", &spare.path, error))?;
        let renamed = pulse.in_disk(|| self.fs.rename(&spare.path, &path));
        renamed.map_err(|error| failed_io("rename a spare to", &path, error))?;
        self.sync_dir()?;
        let segment = Arc::new(Segment { salt, file: spare.file, bytes: spare.bytes });
        self.used.insert(number, segment.clone());
        self.metrics.rotations.inc();
        self.count();
        Ok(segment)
    }

    /// Whether the next segment can begin without filling a file with zeros first.
    pub(super) fn prepared(&self) -> bool {
        !self.spares.is_empty()
    }

    /// Takes the next segment a step nearer, if none is ready.
    pub(super) fn prepare_step(&mut self) -> Result<(), Failed> {
        if self.prepared() {
            return Ok(());
        }
        let Preparing { file, zeroed } = match self.preparing.take() {
            Some(preparing) => preparing,
            None => Preparing { file: self.create()?, zeroed: 0 },
        };
        let step = (self.segment_bytes - zeroed).min(ZERO_STEP_BYTES as u64);
        self.zero(&file, zeroed, step)?;
        let zeroed = zeroed + step;
        if zeroed < self.segment_bytes {
            self.preparing = Some(Preparing { file, zeroed });
        } else {
            self.spares.push(Spare { path: self.dir.join(NEW_NAME), file, bytes: self.segment_bytes });
            self.count();
        }
        Ok(())
    }

    fn create(&mut self) -> Result<Arc<dyn File>, Failed> {
        // An oversized segment takes the name from a file that is half prepared.
        self.preparing = None;
        let path = self.dir.join(NEW_NAME);
        if let Some(at) = self.spares.iter().position(|spare| spare.path == path) {
            self.spares.remove(at);
        }
        match self.pulse.in_disk(|| self.fs.remove(&path)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed_io("remove", &path, error)),
        }
        let created = self.pulse.in_disk(|| self.fs.create(&path));
        created.map_err(|error| failed_io("create", &path, error))
    }

    fn zero(&self, file: &Arc<dyn File>, from: u64, bytes: u64) -> Result<(), Failed> {
        let path = self.dir.join(NEW_NAME);
        let zeros = vec![0; ZERO_STEP_BYTES.min(bytes as usize)];
        let mut at = from;
        while at < from + bytes {
            let step = zeros.len().min((from + bytes - at) as usize);
            let written = self.pulse.in_disk(|| file.write_at(&zeros[..step], at));
            written.map_err(|error| failed_io("fill", &path, error))?;
            at += step as u64;
        }
        self.pulse.in_disk(|| file.sync()).map_err(|error| failed_io("fsync", &path, error))
    }

    /// Lets every segment before `oldest` go: kept for the next one if it has the usual size, nobody
    /// reads it and there are not enough yet, else removed.
    pub(super) fn free_before(&mut self, oldest: u64) -> Result<(), Failed> {
        assert!(self.used.keys().next_back().is_none_or(|last| oldest <= *last), "batches go to the last");
        let kept = self.used.split_off(&oldest);
        let gone = std::mem::replace(&mut self.used, kept);
        if gone.is_empty() {
            return Ok(());
        }
        for (number, segment) in gone {
            let path = self.path(number);
            let usual = segment.bytes == self.segment_bytes;
            // Out of `used` and of every index: the count can't grow again.
            match Arc::try_unwrap(segment) {
                Ok(segment) if usual && self.spares.len() < SPARES_MAX => {
                    let spare = self.dir.join(format!("{number:016x}{SPARE_SUFFIX}"));
                    let renamed = self.pulse.in_disk(|| self.fs.rename(&path, &spare));
                    renamed.map_err(|error| failed_io("set aside", &path, error))?;
                    self.spares.push(Spare { path: spare, file: segment.file, bytes: segment.bytes });
                }
                _ => {
                    let removed = self.pulse.in_disk(|| self.fs.remove(&path));
                    removed.map_err(|error| failed_io("remove", &path, error))?;
                }
            }
        }
        self.sync_dir()?;
        self.count();
        Ok(())
    }

    /// Cuts off what nobody reads of a segment that is not the last: what stands behind `end`.
    pub(super) fn trim(&mut self, number: u64, end: u64) -> Result<(), Failed> {
        let path = self.path(number);
        if let Some(segment) = self.used.get_mut(&number) {
            segment.file.set_len(end).map_err(|error| failed_io("cut the unused end of", &path, error))?;
            let Segment { salt, file, .. } = &**segment;
            let trimmed = Segment { salt: *salt, file: file.clone(), bytes: end };
            *segment = Arc::new(trimmed);
        }
        self.count();
        Ok(())
    }

    fn sync_dir(&self) -> Result<(), Failed> {
        let synced = self.pulse.in_disk(|| self.fs.sync_dir(&self.dir));
        synced.map_err(|error| failed_io("fsync the directory", &self.dir, error))
    }

    fn count(&self) {
        let spares: u64 = self.spares.iter().map(|spare| spare.bytes).sum();
        let bytes = self.used_bytes() + spares;
        self.disk_bytes.store(bytes, Ordering::Relaxed);
        self.metrics.segments.set(self.used.len() as i64);
        self.metrics.bytes.set(bytes as i64);
    }
}
