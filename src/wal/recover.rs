//! Opening: reads every segment that is needed, tells a torn tail from damage, and begins a new segment
//! behind what it found. The argument stands in `docs/formats/wal.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::cache::Cache;
use super::format::{
    self, BadHeader, BadRecord, FRAME_ALIGN, FRAME_HEADER_BYTES, FrameHeader, Record, SEGMENT_HEADER_BYTES,
    SegmentHeader,
};
use super::fs::{File, Fs};
use super::ledger::Ledger;
use super::log::{Cell, Place, Slot, State};
use super::segments::{Name, SPARES_MAX, Segment, Segments, Spare, parse_name, segment_name};
use super::{Cells, Metrics, OpenError, Options};
use crate::types::LogKey;

/// What the writer begins with.
pub(super) struct Recovered {
    pub(super) segments: Segments,
    pub(super) ledger: Ledger,
    pub(super) cache: Cache,
    pub(super) cells: Cells,
    /// Empty.
    pub(super) active: Arc<Segment>,
    pub(super) next_batch: u64,
}

/// A segment as it was found.
struct Found {
    path: PathBuf,
    file: Arc<dyn File>,
    header: SegmentHeader,
    len: u64,
}

/// How a segment ends.
struct End {
    /// Where the next batch would stand.
    offset: u64,
    /// The last batch's frame.
    last_frame: Option<(u64, u64)>,
    closed: bool,
    /// The oldest segment needed, as the last batch says.
    oldest: u64,
    next_batch: u64,
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    move |source| OpenError::Io { doing, path: path.to_path_buf(), source }
}

pub(super) fn recover(fs: Arc<dyn Fs>, options: &Options, metrics: Metrics) -> Result<Recovered, OpenError> {
    let dir = &options.dir;
    fs.create_dir_all(dir).map_err(io("create", dir))?;
    // Names that the process before saw need not be durable yet.
    fs.sync_dir(dir).map_err(io("fsync the directory", dir))?;
    let (mut numbers, mut spare_paths) = (Vec::new(), Vec::new());
    for name in fs.list(dir).map_err(io("list", dir))? {
        match parse_name(&name) {
            Name::Segment(number) => numbers.push(number),
            Name::Spare | Name::New => spare_paths.push((parse_name(&name), dir.join(name))),
            Name::Foreign => tracing::warn!(file = %dir.join(name).display(), "not a file of this log"),
        }
    }
    numbers.sort_unstable();

    let mut replay =
        Replay { cache: Cache::new(options.cache_bytes), ledger: Ledger::default(), cells: Cells::new() };
    let mut used = BTreeMap::new();
    let mut unneeded = Vec::new();
    let (mut previous_end, mut next_batch) = (0, 1);
    let mut begins_after = 0;
    let mut tail = None;
    if let Some(&last) = numbers.last() {
        let last_found = find(&*fs, dir, last)?;
        if last_found.len < last_found.header.bytes {
            return Err(damaged(
                &last_found.path,
                last_found.len,
                format!("the file ends here, and was made with {} bytes", last_found.header.bytes),
            ));
        }
        // The newest batch says which segments must be there.
        let content = read(&last_found)?;
        let end = scan(&last_found, &content, None, |_, _, _| Ok(()))?;
        let needed = end.oldest;
        if needed > last {
            return Err(damaged(
                &last_found.path,
                0,
                format!("it says that segment {needed:016x} is the oldest"),
            ));
        }
        unneeded.extend(numbers.iter().copied().filter(|number| *number < needed));
        let mut found = BTreeMap::new();
        for number in needed..last {
            if numbers.binary_search(&number).is_err() {
                return Err(OpenError::Missing { path: dir.join(segment_name(number)) });
            }
            found.insert(number, find(&*fs, dir, number)?);
        }
        // Each segment's successor says where it ends, and with which batch.
        for number in needed..last {
            let next = found.get(&(number + 1)).unwrap_or(&last_found).header;
            let this = &found[&number];
            let content = read(this)?;
            let segment =
                Arc::new(Segment { salt: this.header.salt, file: this.file.clone(), bytes: this.len });
            let end =
                scan(this, &content, Some((next.previous_end, next.first_batch)), |offset, key, record| {
                    replay.apply(this, &segment, offset, key, record)
                })?;
            debug_assert_eq!(end.next_batch, next.first_batch);
            replay.cache.evict();
            used.insert(number, segment);
        }
        let bytes = last_found.len;
        let segment =
            Arc::new(Segment { salt: last_found.header.salt, file: last_found.file.clone(), bytes });
        // Where it ends is known by now: what stands behind is not searched again.
        scan(&last_found, &content, Some((end.offset, end.next_batch)), |offset, key, record| {
            replay.apply(&last_found, &segment, offset, key, record)
        })?;
        replay.cache.evict();
        used.insert(last, segment);
        (previous_end, next_batch, begins_after) = (end.offset, end.next_batch, last);
        tail = Some((last_found, content, end));
    }
    for cell in replay.cells.values() {
        cell.lock().check().map_err(|problem| damaged(dir, 0, format!("log {}: {problem}", cell.key)))?;
    }

    // Everything is known to be good: from here on files change.
    if let Some((found, content, end)) = &tail {
        make_durable(found, content, end)?;
    }
    let spares = find_spares(&*fs, options, spare_paths)?;
    for number in unneeded {
        let path = dir.join(segment_name(number));
        fs.remove(&path).map_err(io("remove", &path))?;
    }
    let mut segments = Segments::new(fs, dir.clone(), options.segment_bytes, metrics, used, spares);
    let oldest = replay.ledger.oldest().unwrap_or(begins_after + 1);
    let active = segments.begin(0, next_batch, previous_end, oldest)?;
    segments.free_before(oldest)?;
    // What stands behind the last batch is nobody's; the new segment's header says so, durably.
    segments.trim(begins_after, previous_end)?;
    let Replay { cache, ledger, cells } = replay;
    tracing::info!(
        dir = %dir.display(),
        segments = segments.len(),
        logs = cells.len(),
        next_batch,
        "write-ahead log recovered"
    );
    Ok(Recovered { segments, ledger, cache, cells, active, next_batch })
}

fn damaged(path: &Path, offset: u64, found: impl Into<String>) -> OpenError {
    OpenError::Damaged { path: path.to_path_buf(), offset, found: found.into() }
}

fn find(fs: &dyn Fs, dir: &Path, number: u64) -> Result<Found, OpenError> {
    let path = dir.join(segment_name(number));
    let file = fs.open(&path).map_err(io("open", &path))?;
    let len = file.size().map_err(io("get the length of", &path))?;
    if len < SEGMENT_HEADER_BYTES as u64 {
        return Err(damaged(&path, len, "the file ends inside the segment's header"));
    }
    let mut block = vec![0; SEGMENT_HEADER_BYTES];
    file.read_at(&mut block, 0).map_err(io("read", &path))?;
    let header = match SegmentHeader::decode(&block) {
        Ok(header) => header,
        Err(BadHeader::Version(found)) => {
            return Err(OpenError::Version { path, found, known: format::VERSION });
        }
        Err(BadHeader::Magic) => return Err(damaged(&path, 0, "this is not a segment of a write-ahead log")),
        Err(BadHeader::Checksum) => {
            return Err(damaged(&path, 0, "the segment header's checksum does not match"));
        }
    };
    if header.salt.segment != number {
        let found = format!("it is segment {:016x} under another's name", header.salt.segment);
        return Err(damaged(&path, 0, found));
    }
    Ok(Found { path, file, header, len })
}

fn read(found: &Found) -> Result<Bytes, OpenError> {
    let mut content = vec![0; found.len as usize];
    found.file.read_at(&mut content, 0).map_err(io("read", &found.path))?;
    Ok(Bytes::from(content))
}

/// Goes through the batches of a segment. `known_end`: where it ends and the number of the batch that
/// comes next, if another segment follows; without one the end is found, and may be torn.
fn scan(
    found: &Found,
    content: &Bytes,
    known_end: Option<(u64, u64)>,
    mut apply: impl FnMut(u64, LogKey, Record) -> Result<(), OpenError>,
) -> Result<End, OpenError> {
    let Found { path, header: segment, .. } = found;
    let salt = segment.salt;
    let mut at = SEGMENT_HEADER_BYTES as u64;
    let mut end = End {
        offset: at,
        last_frame: None,
        closed: false,
        oldest: segment.oldest,
        next_batch: segment.first_batch,
    };
    let limit = known_end.map_or(content.len() as u64, |(offset, _)| offset);
    if limit > content.len() as u64 {
        let problem = format!("the file ends here, and its batches end at {limit}");
        return Err(damaged(path, content.len() as u64, problem));
    }
    while at < limit {
        let rest = content.slice(at as usize..limit as usize);
        let problem = match FrameHeader::decode(salt, at, &rest) {
            None => "there is no valid batch",
            Some(header) if header.batch != end.next_batch || header.frame_bytes() > rest.len() as u64 => {
                // Its checksum is right: no torn write looks like this.
                let found = format!(
                    "batch {} of {} bytes where batch {} was expected",
                    header.batch,
                    header.frame_bytes(),
                    end.next_batch
                );
                return Err(damaged(path, at, found));
            }
            Some(header) => {
                let body = rest.slice(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + header.body_bytes as usize);
                match format::read_frame(salt, at, &header, &body) {
                    Ok(records) => {
                        for (offset, key, record) in records {
                            apply(offset, key, record)?;
                        }
                        end.last_frame = Some((at, header.frame_bytes()));
                        end.closed = header.closed;
                        end.oldest = header.oldest;
                        end.next_batch += 1;
                        at += header.frame_bytes();
                        end.offset = at;
                        continue;
                    }
                    Err(BadRecord::Torn(problem)) => problem,
                    // To cut it off as torn would lose what a newer version was thanked for.
                    Err(BadRecord::Wrong(problem)) => return Err(damaged(path, at, problem)),
                }
            }
        };
        if known_end.is_some() {
            return Err(damaged(path, at, format!("{problem}, and later segments follow")));
        }
        if let Some((offset, batch)) = find_batch(salt, content, at + FRAME_ALIGN as u64) {
            let found = format!(
                "{problem}, yet batch {batch} stands at offset {offset}, which was written after this one \
                 had been fsynced"
            );
            return Err(damaged(path, at, found));
        }
        if !end.closed {
            tracing::info!(
                segment = %path.display(),
                offset = at,
                batch = end.next_batch,
                "the log ends here: {problem} behind it; a batch that was being written is dropped"
            );
        }
        break;
    }
    if let Some((_, next_batch)) = known_end
        && end.next_batch != next_batch
    {
        let found = format!(
            "the segment ends before batch {}, and the next begins with {next_batch}",
            end.next_batch
        );
        return Err(damaged(path, at, found));
    }
    Ok(end)
}

/// The first batch header at or after `from` that is valid in this segment.
fn find_batch(salt: format::Salt, content: &Bytes, from: u64) -> Option<(u64, u64)> {
    (from as usize..content.len()).step_by(FRAME_ALIGN).find_map(|at| {
        FrameHeader::decode(salt, at as u64, &content[at..]).map(|header| (at as u64, header.batch))
    })
}

/// What was read may be in the page cache only: of a batch that was never acknowledged, or whose fsync
/// failed, after which the kernel takes pages for clean that never reached the disk. Only the last
/// batch can be such, so it is written again, the same bytes in the same place, and fsynced. The closing
/// batch is no exception: like any other it only proves that the one before it was durable.
fn make_durable(found: &Found, content: &Bytes, end: &End) -> Result<(), OpenError> {
    if let Some((offset, bytes)) = end.last_frame {
        let frame = &content[offset as usize..(offset + bytes) as usize];
        found.file.write_at(frame, offset).map_err(io("write", &found.path))?;
    }
    found.file.sync().map_err(io("fsync", &found.path))
}

fn find_spares(fs: &dyn Fs, options: &Options, paths: Vec<(Name, PathBuf)>) -> Result<Vec<Spare>, OpenError> {
    let mut spares = Vec::new();
    for (name, path) in paths {
        if name == Name::Spare && spares.len() < SPARES_MAX {
            let file = fs.open(&path).map_err(io("open", &path))?;
            let bytes = file.size().map_err(io("get the length of", &path))?;
            if bytes == options.segment_bytes {
                spares.push(Spare { path, file, bytes });
                continue;
            }
        }
        fs.remove(&path).map_err(io("remove", &path))?;
    }
    Ok(spares)
}

struct Replay {
    ledger: Ledger,
    cache: Cache,
    cells: Cells,
}

impl Replay {
    fn apply(
        &mut self,
        found: &Found,
        segment: &Arc<Segment>,
        offset: u64,
        key: LogKey,
        record: Record,
    ) -> Result<(), OpenError> {
        let number = segment.salt.segment;
        let new = || Arc::new(Cell::new(key, State::default()));
        let cell = self.cells.entry(key).or_insert_with(new);
        let mut state = cell.lock();
        let mut freed = 0;
        match record {
            Record::Entry { id, payload } => {
                // With nothing before it any index will do: the entries before may have gone with their
                // segments, and so may their purge point, which then comes again later.
                if let Some(last) = state.slots().next_back()
                    && id.index != last.id.index + 1
                {
                    let problem = format!("log {key}: entry {id} follows entry {}", last.id);
                    return Err(damaged(&found.path, offset, problem));
                }
                // A copy, so that one entry does not keep the whole segment in memory.
                let payload = Bytes::copy_from_slice(&payload);
                let payload_bytes = payload.len();
                state.push(Slot {
                    id,
                    payload_bytes: payload_bytes as u32,
                    payload: Some(payload),
                    place: Place::At { segment: segment.clone(), offset },
                });
                drop(state);
                self.cache.bytes().fetch_add(payload_bytes, std::sync::atomic::Ordering::Relaxed);
                self.cache.push(cell, id.index, id.index);
                let bytes = (format::ENTRY_OVERHEAD_BYTES + payload_bytes) as u64;
                self.ledger.append(key, number, id.index, id.index, bytes);
            }
            Record::Vote(vote) => {
                state.vote = Some(Bytes::copy_from_slice(&vote));
                self.ledger.vote(key, number);
            }
            Record::Truncate(from) => {
                freed = state.truncate_from(from);
                self.ledger.truncate(key, from);
            }
            Record::Purge(upto) => {
                freed = state.purge_exactly(Some(upto));
                self.ledger.purge(key, number, upto.index);
            }
            Record::Destroy => {
                freed = state.clear();
                self.ledger.destroy(key);
            }
            Record::State { replaces, vote, purged } => {
                if replaces {
                    freed = state.clear();
                }
                state.vote = vote.map(|vote| Bytes::copy_from_slice(&vote));
                freed += state.purge_exactly(purged);
                self.ledger.state(key, number, replaces, state.vote.is_some(), purged.map(|id| id.index));
            }
        }
        self.cache.bytes().fetch_sub(freed, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}
