//! For fuzzing: a directory of segments made of any bytes is opened or refused, and opened again it holds
//! the same.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::format::{FRAME_ALIGN, FrameWriter, Salt, SegmentHeader};
use super::fs::{File, Fs};
use super::recover::recover;
use super::segments::segment_name;
use super::{Metrics, OpenError, Options};
use crate::types::{GroupId, LogId, LogKey, ReplicaId};

/// What a log holds: its vote, its purge point, its entries.
type Held = (Option<Bytes>, Option<LogId>, Vec<(LogId, u32)>);

/// Files in memory, none of which ever fails.
#[derive(Debug, Default)]
struct Memory(Mutex<BTreeMap<PathBuf, Arc<MemoryFile>>>);

#[derive(Debug, Default)]
struct MemoryFile(Mutex<Vec<u8>>);

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Memory {
    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Arc<MemoryFile>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fs for Memory {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _dir: &Path) -> io::Result<Vec<String>> {
        let files = self.files();
        let names = files.keys().filter_map(|path| path.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = Arc::<MemoryFile>::default();
        self.files().insert(path.to_path_buf(), file.clone());
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.files().get(path).ok_or_else(missing)?.clone())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let file = self.files().remove(from).ok_or_else(missing)?;
        self.files().insert(to.to_path_buf(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files().remove(path).map(drop).ok_or_else(missing)
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn random(&self) -> io::Result<u64> {
        Ok(77)
    }
}

impl MemoryFile {
    fn content(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl File for MemoryFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.content().len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.content().resize(len as usize, 0);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut content, offset) = (self.content(), offset as usize);
        if content.len() < offset + bytes.len() {
            content.resize(offset + bytes.len(), 0);
        }
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.content();
        let part = content.get(offset as usize..).and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A segment, where its last batch ends, and the number of the next one.
struct Made {
    content: Vec<u8>,
    end: u64,
    next_batch: u64,
}

/// A segment whose checksums are good, so that what they cover is looked at: `script` is records, each of
/// kind, flags, log, length, and body. Kind 0 begins another batch; what is left over stands behind the
/// last one as it is.
fn segment(number: u64, before: Option<&Made>, script: &[u8]) -> Made {
    let salt = Salt { segment: number, random: 7 };
    let (previous_end, mut batch) = before.map_or((0, 1), |before| (before.end, before.next_batch));
    let header = SegmentHeader { salt, bytes: 0, first_batch: batch, previous_end, oldest: 1 };
    let (mut content, mut rest, mut frame) = (header.encode(), script, Vec::new());
    loop {
        let mut writer = FrameWriter::new(salt, content.len() as u64, &mut frame);
        let mut closed = false;
        while let [kind, flags, log, length, tail @ ..] = rest {
            let body = &tail[..tail.len().min(usize::from(*length))];
            rest = &tail[body.len()..];
            if *kind == 0 {
                closed = flags % 8 == 7;
                break;
            }
            let key =
                LogKey { group: GroupId(u32::from(log % 3)), replica: ReplicaId(u64::from(log / 3 % 2)) };
            writer.record(key, *kind, *flags, &[body]);
        }
        writer.finish(batch, 1, closed);
        content.extend_from_slice(&frame);
        batch += 1;
        if rest.len() < 4 {
            let end = content.len() as u64;
            content.extend_from_slice(rest);
            content.resize(content.len().next_multiple_of(FRAME_ALIGN), 0);
            return Made { content, end, next_batch: batch };
        }
    }
}

fn open(fs: &Arc<Memory>) -> Result<BTreeMap<LogKey, Held>, OpenError> {
    let options = Options { segment_bytes: Options::SEGMENT_BYTES_MIN, ..Options::new("/wal") };
    let metrics = Metrics::register(&prometheus::Registry::new()).expect("nothing else is registered there");
    let recovered = recover(fs.clone(), &options, metrics)?;
    let held = recovered.cells.iter().map(|(key, cell)| {
        let state = cell.lock();
        let entries = state.slots().map(|slot| (slot.id, slot.payload_bytes)).collect();
        (*key, (state.vote.clone(), state.purged, entries))
    });
    Ok(held.filter(|(_, held)| *held != Held::default()).collect())
}

/// The first byte says what the rest is: a script, one with damage by its last bytes, or whole files.
pub fn run(input: &[u8]) -> bool {
    let Some((&mode, input)) = input.split_first() else { return false };
    let fs = Arc::new(Memory::default());
    let add = |number: u64, content: Vec<u8>| {
        let path = Path::new("/wal").join(segment_name(number));
        fs.files().insert(path, Arc::new(MemoryFile(Mutex::new(content))));
    };
    match mode % 4 {
        0 => add(1, segment(1, None, input).content),
        1 => {
            let (script, damage) = input.split_at(input.len().saturating_sub(6));
            let mut content = segment(1, None, script).content;
            for at in damage.chunks_exact(3) {
                let place = usize::from(u16::from_le_bytes([at[0], at[1]])) % content.len();
                content[place] ^= at[2];
            }
            add(1, content);
        }
        2 => {
            let (one, other) = input.split_at(input.len() / 2);
            let one = segment(1, None, one);
            add(2, segment(2, Some(&one), other).content);
            add(1, one.content);
        }
        _ => add(1, input.to_vec()),
    }
    let Ok(found) = open(&fs) else { return false };
    // A replay after a crash right now finds no more and no less.
    let again = open(&fs).expect("what was opened once can be opened again");
    assert_eq!(found, again);
    true
}

/// Records of every kind, in one batch and in several.
pub fn seeds() -> Vec<Vec<u8>> {
    let id = |term: u64, index: u64| [term.to_le_bytes(), index.to_le_bytes()].concat();
    let record = |kind: u8, flags: u8, body: &[u8]| [&[kind, flags, 1, body.len() as u8], body].concat();
    let all = [
        record(2, 0, b"a vote"),
        record(1, 0, &[id(1, 1), b"payload".to_vec()].concat()),
        record(1, 0, &[id(1, 2), b"payload".to_vec()].concat()),
        record(0, 0, b""),
        record(3, 0, &2u64.to_le_bytes()),
        record(4, 0, &id(1, 1)),
        record(6, 7, &[id(1, 1), b"vote".to_vec()].concat()),
        record(1, 0, &[id(2, 2), vec![]].concat()),
        record(0, 7, b""),
    ];
    let script = all.concat();
    let one_log = [record(1, 0, &id(1, 5)), record(5, 0, b"")].concat();
    let whole = segment(1, None, &script).content;
    let seeds: [(u8, &[&[u8]]); 4] =
        // Damage to nothing, and one script as two: in the first half of it another one ends.
        [(0, &[&script]), (1, &[&script, &[0; 6]]), (2, &[&one_log, &one_log]), (3, &[&whole])];
    seeds.into_iter().map(|(mode, parts)| [&[mode][..], &parts.concat()].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
        [&[kind, flags, 1, body.len() as u8], body].concat()
    }

    fn id(index: u64) -> Vec<u8> {
        [1u64.to_le_bytes(), index.to_le_bytes()].concat()
    }

    /// Found by fuzzing: the purge point stayed, and the segment that it stood in went.
    #[test]
    fn a_state_without_a_purge_point_takes_it_back() {
        let no_vote_no_purge = record(6, 0, &id(0));
        assert!(run(&[vec![0], record(4, 0, &id(5)), no_vote_no_purge].concat()));
        // Nor does one that goes back leave the further one behind.
        assert!(run(&[vec![2], record(4, 0, &id(5)), record(4, 0, &id(3))].concat()));
    }

    /// Found by fuzzing: the ledger still had the entries that such a point takes away, and what came after
    /// them was a gap, which ended the process.
    #[test]
    fn a_state_purges_beyond_the_last_entry() {
        let (purged, entry) = (record(6, 4, &id(5)), |index| record(1, 0, &id(index)));
        assert!(run(&[vec![0], entry(1), entry(2), purged.clone(), entry(6)].concat()));
        assert!(!run(&[vec![0], entry(1), entry(2), purged, entry(9)].concat()));
    }

    /// A batch whose checksums are right was written so, and perhaps acknowledged: it is refused, also where
    /// a torn one would be cut off.
    #[test]
    fn what_is_whole_and_makes_no_sense_is_not_taken_for_torn() {
        let last = id(u64::MAX);
        let beyond = [record(1, 0, &last), record(4, 0, &last), record(6, 4, &last)];
        let unknown = [record(9, 0, b""), record(3, 0, b"short"), record(5, 0, b"long")];
        for record in beyond.into_iter().chain(unknown) {
            assert!(!run(&[vec![0], record.clone()].concat()), "{record:?}");
        }
    }
}
