//! How far an import has come: the prefix of the file that is surely written, and the note of it that
//! `--resume` goes on from.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::tool::Fault;
use crate::disk;

/// Version of the note's format.
const FORMAT: u32 = 1;

/// How much of the file's beginning, and of what comes before the position, tells it from others.
const SAMPLE_BYTES: u64 = 64 * 1024;

/// A place between two lines of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Position {
    /// Bytes before it.
    pub(super) offset: u64,
    /// Lines before it.
    pub(super) lines: u64,
}

/// Which lines are under way. Each lane writes its batches one after the other, so the first batch of
/// each lane that is not acknowledged holds the lane's first unwritten line; everything before the
/// earliest of these is written.
#[derive(Debug)]
pub(super) struct Tracker {
    /// Where the batches begin that are not acknowledged, by lane, oldest first.
    lanes: Vec<VecDeque<Position>>,
    /// How far the file is read.
    read: Position,
    written: u64,
}

impl Tracker {
    pub(super) fn new(lanes: usize, start: Position) -> Tracker {
        Tracker { lanes: vec![VecDeque::new(); lanes], read: start, written: 0 }
    }

    /// A batch of `lane` begins with the line at `start`.
    pub(super) fn begin(&mut self, lane: usize, start: Position) {
        self.lanes[lane].push_back(start);
    }

    /// Everything before `position` is in some batch.
    pub(super) fn read_to(&mut self, position: Position) {
        self.read = position;
    }

    /// The oldest batch of `lane` is written, with `keys` keys.
    pub(super) fn acknowledge(&mut self, lane: usize, keys: u64) {
        self.lanes[lane].pop_front();
        self.written += keys;
    }

    /// Everything before this is written.
    pub(super) fn prefix(&self) -> Position {
        self.lanes.iter().filter_map(|lane| lane.front()).min().copied().unwrap_or(self.read)
    }

    /// Keys written since the start.
    pub(super) fn written(&self) -> u64 {
        self.written
    }
}

/// The note: what is written of which file into which cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    format: u32,
    cluster_id: String,
    size: u64,
    /// Of the file's beginning.
    head_xxh3: u64,
    /// Of what comes before the position.
    tail_xxh3: u64,
    #[serde(flatten)]
    position: Position,
}

/// The note's place, and what it must agree on.
#[derive(Debug)]
pub(super) struct Notebook {
    file: PathBuf,
    note: PathBuf,
    cluster_id: String,
}

impl Notebook {
    pub(super) fn new(file: &Path, cluster_id: String) -> Notebook {
        let mut note = file.as_os_str().to_os_string();
        note.push(".progress");
        Notebook { file: file.into(), note: note.into(), cluster_id }
    }

    pub(super) fn path(&self) -> &Path {
        &self.note
    }

    fn note_at(&self, position: Position) -> io::Result<Note> {
        let mut file = File::open(&self.file)?;
        let size = file.metadata()?.len();
        let head_xxh3 = sample(&mut file, 0, size.min(SAMPLE_BYTES))?;
        let tail = position.offset.min(SAMPLE_BYTES);
        let tail_xxh3 = sample(&mut file, position.offset - tail, tail)?;
        let cluster_id = self.cluster_id.clone();
        Ok(Note { format: FORMAT, cluster_id, size, head_xxh3, tail_xxh3, position })
    }

    /// Notes that everything before `position` is written.
    pub(super) fn save(&self, position: Position) -> io::Result<()> {
        let note = serde_json::to_vec(&self.note_at(position)?)?;
        disk::write_atomic(&self.note, &note)
    }

    /// Where to go on; `None`: nothing is noted.
    ///
    /// # Errors
    /// The note speaks of another file or cluster.
    pub(super) fn load(&self) -> Result<Option<Position>, Fault> {
        let doing = |what: &str, path: &Path| format!("{what} {}", path.display());
        let text = match std::fs::read(&self.note) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Fault::local(doing("reading", &self.note), error)),
        };
        let refuse = |why: &str| {
            Err(Fault::Usage(format!(
                "{}: {why}; import from the beginning, without --resume",
                self.note.display()
            )))
        };
        let note: Note = match serde_json::from_slice(&text) {
            Ok(note) => note,
            Err(_) => return refuse("this is no note of an import's progress"),
        };
        if note.format != FORMAT {
            return refuse("another version of rushkv-cli wrote it");
        }
        if note.cluster_id != self.cluster_id {
            return refuse("it is about an import into another cluster");
        }
        let now = match self.note_at(note.position) {
            Ok(now) => now,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return refuse("the file has changed since");
            }
            Err(error) => return Err(Fault::local(doing("reading", &self.file), error)),
        };
        if now != note {
            return refuse("the file has changed since");
        }
        Ok(Some(note.position))
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.note) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn sample(file: &mut File, offset: u64, len: u64) -> io::Result<u64> {
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; len as usize];
    file.read_exact(&mut bytes)?;
    Ok(xxh3_64(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lines: u64) -> Position {
        Position { offset: lines * 10, lines }
    }

    #[test]
    fn the_prefix_ends_before_the_first_unwritten_line_of_any_lane() {
        let mut tracker = Tracker::new(2, at(0));
        assert_eq!(tracker.prefix(), at(0));
        tracker.begin(0, at(0));
        tracker.begin(1, at(1));
        tracker.read_to(at(5));
        tracker.begin(0, at(5));
        tracker.read_to(at(9));
        assert_eq!(tracker.prefix(), at(0));
        tracker.acknowledge(1, 2);
        assert_eq!(tracker.prefix(), at(0), "the other lane's first batch is still under way");
        tracker.acknowledge(0, 3);
        assert_eq!(tracker.prefix(), at(5));
        tracker.acknowledge(0, 4);
        assert_eq!(tracker.prefix(), at(9), "all that was read");
        assert_eq!(tracker.written(), 9);
    }

    #[test]
    fn a_note_is_good_for_its_file_and_cluster_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("data");
        std::fs::write(&file, b"0123456789".repeat(10)).unwrap();
        let book = Notebook::new(&file, "c1".into());
        assert_eq!(book.load().unwrap(), None);
        book.save(at(3)).unwrap();
        assert_eq!(book.load().unwrap(), Some(at(3)));

        let other = Notebook::new(&file, "c2".into()).load().unwrap_err();
        assert!(other.to_string().contains("another cluster"), "{other}");
        for content in [b"0123456789".repeat(11), b"9876543210".repeat(10), b"01".to_vec()] {
            std::fs::write(&file, content).unwrap();
            let changed = book.load().unwrap_err();
            assert!(changed.to_string().contains("has changed"), "{changed}");
            assert_eq!(changed.exit(), 2);
        }
        std::fs::write(book.path(), "{}").unwrap();
        assert!(book.load().is_err());
        book.remove().unwrap();
        book.remove().unwrap();
        assert_eq!(book.load().unwrap(), None);
    }
}
