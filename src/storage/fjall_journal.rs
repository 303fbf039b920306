//! What fjall 3.1 leaves to be done about its journal: mending one kind of torn tail, which it refuses
//! to open, and making durable what a failed fsync left in memory ([`rewrite_undurable`]).
//!
//! A power loss may leave out any page that was not fsynced. Where a page is missing, fjall's replay
//! meets zeros, which are no tag, and rightly takes that for the journal's end. But a page missing from
//! the middle of a *value*, while the rest of its batch reached the disk, leaves a batch that reads well
//! and fails its checksum: fjall answers that with an error, and the database can't be opened any more.
//! It is a torn tail all the same, and the journal is to be cut before that batch, provided that the
//! batch was never checkpointed. That is what the [`Mark`] is for; without it a flipped bit in
//! checkpointed batches could pass for a torn tail.
//!
//! # The journal's format
//! As `journal/entry.rs` of fjall 3.1.13 writes it without compression; integers are little-endian. A
//! batch is a start, `count` items, and an end, whose checksum is the XXH3 of the items' bytes.
//! ```text
//! start  01 | count u32 | sequence number u64
//! item   02 | value type u8 | compression u8 | keyspace u64 | key length u16 | value length u32
//!           | stored value length u32 | key | stored value
//! end    03 | checksum u64 | "FJL" 03
//! clear  04 | keyspace u64          (never written by us)
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::disk;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
/// Read and written as one by [`rewrite_undurable`].
const REWRITE_STEP_BYTES: usize = 1 << 20;

const TRAILER: [u8; 4] = *b"FJL\x03";

/// A file beside the journals that says up to which sequence number they are known to be durable. It is
/// written after a checkpoint without an fsync, so it may be older than the truth, never newer.
#[derive(Debug)]
pub(super) struct Mark(File);

impl Mark {
    pub(super) fn open(dir: &Path) -> io::Result<Mark> {
        let path = dir.join("checkpoint.rushkv");
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map(Mark)
    }

    /// Batches with a smaller sequence number were durable. 0 if there is no mark, or it is torn.
    pub(super) fn read(&self) -> io::Result<u64> {
        let mut bytes = [0; 12];
        match self.0.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
            read => read?,
        }
        let [number @ .., c0, c1, c2, c3] = bytes;
        let is_whole = crc32c::crc32c(&number) == u32::from_le_bytes([c0, c1, c2, c3]);
        Ok(if is_whole { u64::from_le_bytes(number) } else { 0 })
    }

    pub(super) fn write(&self, number: u64) -> io::Result<()> {
        let number = number.to_le_bytes();
        let checksum = crc32c::crc32c(&number).to_le_bytes();
        self.0.write_all_at(&[&number[..], &checksum].concat(), 0)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

/// What [`cut_torn_batch`] found in the active journal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Every batch up to the journal's end, or to what fjall itself takes for it, is whole.
    NothingTorn,
    /// The journal was cut, durably, before the batch with this sequence number.
    Cut { sequence_number: u64, at: u64 },
    /// This batch is broken, but was durable once: the disk is at fault, not a power loss.
    Damaged { sequence_number: u64, at: u64 },
}

/// Cuts the active journal in `dir` before its first broken batch, if that one is not `durable`.
///
/// Sealed journals are left alone: they were fsynced before their successor was created.
pub(super) fn cut_torn_batch(dir: &Path, durable: u64) -> io::Result<Found> {
    let Some(path) = active_journal(dir)? else { return Ok(Found::NothingTorn) };
    let Whole { end: at, broken, .. } = whole_batches(&path, durable)?;
    match broken {
        None => Ok(Found::NothingTorn),
        Some(sequence_number) if sequence_number < durable => Ok(Found::Damaged { sequence_number, at }),
        Some(sequence_number) => {
            let file = OpenOptions::new().write(true).open(&path)?;
            file.set_len(at)?;
            file.sync_all()?;
            Ok(Found::Cut { sequence_number, at })
        }
    }
}

/// Makes the journals' batches that are not known to be `durable` so: writes their bytes again, the same
/// in the same place, and fsyncs them. Returns how many bytes that were.
///
/// An fsync alone would prove nothing. After one that failed, the kernel takes the pages for clean
/// although they never reached the disk: the next process reads them, and its fsync finds nothing to do
/// and succeeds. A checkpoint on top of that would let the log's copy go. Sealed journals are no
/// exception: fjall may seal one between the failure and the end of the process.
///
/// Nothing is written after a clean stop, whose checkpoint covers all batches.
pub(super) fn rewrite_undurable(dir: &Path, durable: u64) -> io::Result<u64> {
    // A new journal's name may be in memory only.
    disk::sync_dir(dir)?;
    let mut buffer = vec![0; REWRITE_STEP_BYTES];
    let mut written = 0;
    for path in journals(dir)?.into_values() {
        let Whole { undurable: from, end, .. } = whole_batches(&path, durable)?;
        if from == end {
            continue;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut at = from;
        while at < end {
            let step = buffer.len().min((end - at) as usize);
            file.read_exact_at(&mut buffer[..step], at)?;
            file.write_all_at(&buffer[..step], at)?;
            at += step as u64;
        }
        file.sync_all()?;
        written += end - from;
    }
    Ok(written)
}

/// A journal's whole batches, which begin at its first byte.
struct Whole {
    /// Where the first of them begins that is not known to be durable; `end` if there is none.
    undurable: u64,
    end: u64,
    /// The sequence number of a broken batch behind them, if that is what ends them.
    broken: Option<u64>,
}

fn whole_batches(path: &Path, durable: u64) -> io::Result<Whole> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
    let (mut undurable, mut end) = (None, 0);
    let broken = loop {
        match read_batch(&mut reader)? {
            Batch::Whole { sequence_number, bytes } => {
                if sequence_number >= durable {
                    undurable.get_or_insert(end);
                }
                end += bytes;
            }
            Batch::Unreadable => break None,
            Batch::Broken { sequence_number } => break Some(sequence_number),
        }
    };
    Ok(Whole { undurable: undurable.unwrap_or(end), end, broken })
}

/// The journal with the highest number.
fn active_journal(dir: &Path) -> io::Result<Option<PathBuf>> {
    Ok(journals(dir)?.pop_last().map(|(_, path)| path))
}

/// The journals by their numbers.
fn journals(dir: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut journals = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jnl")
            && let Some(number) = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok())
        {
            journals.insert(number, path);
        }
    }
    Ok(journals)
}

enum Batch {
    Whole {
        sequence_number: u64,
        bytes: u64,
    },
    /// Its parts can be read, but are not what was written.
    Broken {
        sequence_number: u64,
    },
    /// The end of the file, or bytes that fjall takes for the end.
    Unreadable,
}

fn read_batch(reader: &mut impl Read) -> io::Result<Batch> {
    let mut hasher = Xxh3::new();
    let mut item = Vec::new();
    let Some([START, start @ ..]) = read_array::<13>(reader)? else { return Ok(Batch::Unreadable) };
    let [c0, c1, c2, c3, sequence_number @ ..] = start;
    let count = u32::from_le_bytes([c0, c1, c2, c3]);
    let sequence_number = u64::from_le_bytes(sequence_number);
    let (mut bytes, mut items) = (13, 0);
    loop {
        match read_array(reader)? {
            Some([ITEM]) => {
                let Some(head) = read_array::<20>(reader)? else { return Ok(Batch::Unreadable) };
                let compression = head[1];
                if compression != 0 {
                    return Ok(Batch::Unreadable);
                }
                let key_len = u64::from(u16::from_le_bytes([head[10], head[11]]));
                let value_len = u64::from(u32::from_le_bytes([head[16], head[17], head[18], head[19]]));
                item.clear();
                item.push(ITEM);
                item.write_all(&head)?;
                let wanted = key_len + value_len;
                if reader.by_ref().take(wanted).read_to_end(&mut item)? as u64 != wanted {
                    return Ok(Batch::Unreadable);
                }
                hasher.update(&item);
                bytes += item.len() as u64;
                items += 1;
                if items > count {
                    return Ok(Batch::Broken { sequence_number });
                }
            }
            Some([END]) => {
                let Some([checksum @ .., t0, t1, t2, t3]) = read_array::<12>(reader)? else {
                    return Ok(Batch::Unreadable);
                };
                if [t0, t1, t2, t3] != TRAILER {
                    return Ok(Batch::Unreadable);
                }
                bytes += 13;
                let is_whole = items == count && hasher.digest() == u64::from_le_bytes(checksum);
                return Ok(if is_whole {
                    Batch::Whole { sequence_number, bytes }
                } else {
                    Batch::Broken { sequence_number }
                });
            }
            _ => return Ok(Batch::Unreadable),
        }
    }
}

/// `None` at the end of the file.
fn read_array<const N: usize>(reader: &mut impl Read) -> io::Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    match reader.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}
