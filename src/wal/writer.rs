//! The one thread that writes: batches, their fsync, their callbacks, and keeping the log short.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::cache::Cache;
use super::format::{self, ENTRY_OVERHEAD_BYTES, FRAME_ALIGN, FRAME_HEADER_BYTES, FrameWriter};
use super::ledger::Ledger;
use super::log::{Place, State, read_entries};
use super::queue::{Change, Item, Phase, Source, Taken};
use super::recover::Recovered;
use super::segments::{Segment, Segments};
use super::shared::Shared;
use super::{Failed, failed_io};
use crate::types::{LogId, LogKey};

/// Most bytes of one batch, unless a single call is larger: beyond it the fsync's fixed price has
/// long been shared, and everybody's answer would wait for the transfer.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Copies that are queued at once when an old segment is emptied: bounded by bytes and by logs, so that
/// groups at work wait for one such step at most between two batches of theirs.
const COPY_STEP_BYTES: u64 = 4 * 1024 * 1024;
const COPY_STEP_LOGS: usize = 256;

/// Entries are copied out of the oldest segment when they are this small a part of a segment: it then
/// costs an eighth more writing, at most, to keep the log short.
const COPY_PART: u64 = 8;

/// With more segments than this, more is copied: until half of the log is live.
const SEGMENTS_RELAXED: usize = 4;

/// A batch's buffer is kept for the next one if it is not larger than this.
const BUFFER_BYTES_KEPT: usize = 8 * 1024 * 1024;

/// Invariants: a batch is begun only after the one before it was fsynced; `at` is where the next one
/// begins, with room for an empty one at least; the ledger is as of the last batch.
pub(super) struct Writer {
    shared: Arc<Shared>,
    segments: Segments,
    ledger: Ledger,
    cache: Cache,
    active: Arc<Segment>,
    at: u64,
    next_batch: u64,
    buffer: Vec<u8>,
    /// Logs whose copies are in the queue.
    copying: HashSet<LogKey>,
    /// Something happened that may let the oldest segment go.
    look: bool,
    /// The segment about whose pinned logs was warned already.
    warned: Option<u64>,
}

/// What is left for records of a batch in `room` bytes of a segment, with an empty batch behind it.
fn body_room(room: u64) -> usize {
    (room as usize).saturating_sub(2 * FRAME_HEADER_BYTES + FRAME_ALIGN)
}

/// Where the entries of one item went; empty for other items.
type Offsets = Vec<u64>;

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, recovered: Recovered) -> Writer {
        Writer {
            shared,
            active: recovered.active,
            segments: recovered.segments,
            ledger: recovered.ledger,
            cache: recovered.cache,
            at: format::SEGMENT_HEADER_BYTES as u64,
            next_batch: recovered.next_batch,
            buffer: Vec::new(),
            copying: HashSet::new(),
            look: true,
            warned: None,
        }
    }

    pub(super) fn run(mut self) {
        // Whoever waits must learn of it even if this thread panics (where that does not end the process).
        struct Ended(Arc<Shared>);
        impl Drop for Ended {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.fail(Failed::new("the writer's thread panicked"));
                }
            }
        }
        let _ended = Ended(self.shared.clone());
        self.begin();
        loop {
            self.shared.pulse().bump();
            let items = match self.shared.queue.take(self.room(), BATCH_BYTES_MAX) {
                Taken::Batch(items) => items,
                Taken::Nothing => continue,
                Taken::Closed => break,
            };
            let Some(written) = self.written(items) else { break };
            if !self.settled(written) {
                break;
            }
        }
        self.end();
    }

    /// The same as a task of a simulation, whose disk says with `synced` when an fsync returns.
    #[cfg(test)]
    pub(super) async fn pump(mut self, synced: super::Synced) {
        self.begin();
        loop {
            self.shared.pulse().bump();
            let items = match self.shared.queue.taken(self.room(), BATCH_BYTES_MAX).await {
                Taken::Batch(items) => items,
                Taken::Nothing => continue,
                Taken::Closed => break,
            };
            let Some(written) = self.written(items) else { break };
            synced().await;
            if !self.settled(written) {
                break;
            }
        }
        self.end();
    }

    fn begin(&mut self) {
        if let Err(failed) = self.maintain() {
            self.shared.fail(failed);
        }
    }

    /// For records of the next batch, in the segment where it begins.
    fn room(&self) -> usize {
        body_room(self.active.bytes - self.at)
    }

    /// Makes what was taken durable; `None`: the log has failed.
    fn written(&mut self, mut items: Vec<Item>) -> Option<(Vec<Item>, Vec<Offsets>)> {
        self.shared.release(items.iter().map(|item| item.permits).sum());
        match self.write(&mut items, false) {
            Ok(offsets) => Some((items, offsets)),
            Err(failed) => {
                self.shared.fail_after(failed, items);
                None
            }
        }
    }

    /// Says so, and tidies up; `false`: the log has failed.
    fn settled(&mut self, (items, offsets): (Vec<Item>, Vec<Offsets>)) -> bool {
        self.settle(items, offsets);
        self.tidy().map_err(|failed| self.shared.fail(failed)).is_ok()
    }

    /// Says on disk that the log was closed: its last batch is then known to be durable.
    fn end(&mut self) {
        if self.shared.queue.lock().phase == Phase::Closing {
            if let Err(failed) = self.write(&mut [], true) {
                self.shared.fail(failed);
            }
            self.shared.queue.end();
        }
        self.shared.pulse().bump();
    }

    /// Writes one batch and fsyncs it. Returns where each item's entries stand.
    fn write(&mut self, items: &mut [Item], closed: bool) -> Result<Vec<Offsets>, Failed> {
        let mut offsets = Vec::with_capacity(items.len());
        if !closed && items.iter().all(|item| matches!(item.change, Change::Barrier)) {
            // All that it waits for was fsynced before this batch began.
            offsets.resize(items.len(), Offsets::new());
            return Ok(offsets);
        }
        let bytes: usize = items.iter().map(|item| item.bytes).sum();
        if bytes > body_room(self.active.bytes - self.at) && !closed {
            self.rotate(bytes)?;
        }
        let segment = self.active.salt.segment;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut frame = FrameWriter::new(self.active.salt, self.at, &mut buffer);
        for item in items {
            offsets.push(encode(item, segment, &mut frame, &mut self.ledger, &self.shared)?);
        }
        let oldest = self.ledger.oldest().unwrap_or(segment).min(segment);
        let records = frame.finish(self.next_batch, oldest, closed);
        assert!(self.at + buffer.len() as u64 <= self.active.bytes, "the batch fits into its segment");
        let path = || self.segments.path(segment);
        let pulse = self.shared.pulse();
        let written = pulse.in_disk(|| self.active.file.write_at(&buffer, self.at));
        written.map_err(|error| failed_io("write", &path(), error))?;
        let began = Instant::now();
        let synced = pulse.in_disk(|| self.active.file.sync());
        let took = began.elapsed();
        synced.map_err(|error| failed_io("fsync", &path(), error))?;

        let metrics = &self.shared.metrics;
        metrics.fsync_seconds.observe(took.as_secs_f64());
        metrics.batch_records.observe(f64::from(records));
        metrics.batch_bytes.observe(buffer.len() as f64);
        metrics.written_bytes.inc_by(buffer.len() as u64);
        self.at += buffer.len() as u64;
        self.next_batch += 1;
        if buffer.capacity() <= BUFFER_BYTES_KEPT {
            self.buffer = buffer;
        }
        Ok(offsets)
    }

    fn rotate(&mut self, bytes: usize) -> Result<(), Failed> {
        let room = (format::frame_bytes(bytes) + format::frame_bytes(0)) as u64;
        let oldest = self.segments.oldest().unwrap_or(self.active.salt.segment);
        self.active = self.segments.begin(room + FRAME_ALIGN as u64, self.next_batch, self.at, oldest)?;
        self.at = format::SEGMENT_HEADER_BYTES as u64;
        self.look = true;
        Ok(())
    }

    /// The batch is durable: says so to memory, then to those who wait, in order.
    fn settle(&mut self, items: Vec<Item>, offsets: Vec<Offsets>) {
        for (item, offsets) in items.iter().zip(&offsets) {
            match &item.change {
                Change::Append(entries) => {
                    let mut state = item.cell.lock();
                    for (entry, offset) in entries.iter().zip(offsets) {
                        // It may be gone, or be another of the same index, by a change that is still queued.
                        if let Some(slot) = state.slot_mut(entry.id.index)
                            && matches!(slot.place, Place::Waiting(number) if number == item.number)
                        {
                            slot.place = Place::At { segment: self.active.clone(), offset: *offset };
                        }
                    }
                    drop(state);
                    if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
                        self.cache.push(&item.cell, first.id.index, last.id.index);
                    }
                }
                Change::Copy { entries: Some(entries), .. } => {
                    let mut state = item.cell.lock();
                    for ((id, _), offset) in entries.iter().zip(offsets) {
                        // What waits was put there after the copy was taken.
                        if let Some(slot) = state.slot_mut(id.index)
                            && matches!(slot.place, Place::At { .. })
                        {
                            assert_eq!(slot.id, *id, "{}: a copy is in order with appends", item.cell.key);
                            slot.place = Place::At { segment: self.active.clone(), offset: *offset };
                        }
                    }
                }
                Change::Vote(_) | Change::Barrier | Change::Copy { entries: None, .. } => {}
                Change::Truncate(_) | Change::Purge(_) | Change::Destroy => self.look = true,
            }
        }
        for item in items {
            if matches!(item.change, Change::Copy { .. }) {
                self.copying.remove(&item.cell.key);
                self.look = true;
            }
            if let Some(done) = item.done {
                done(Ok(()));
            }
        }
    }

    /// What is to be done between two batches.
    fn tidy(&mut self) -> Result<(), Failed> {
        self.cache.evict();
        self.shared.metrics.cached_bytes.set(self.cache.used() as i64);
        if self.at > self.active.bytes / 2 {
            self.segments.prepare_step()?;
        }
        self.maintain()
    }

    /// Lets segments go that are not needed, and takes the emptying of the oldest a step further.
    fn maintain(&mut self) -> Result<(), Failed> {
        if !std::mem::take(&mut self.look) {
            return Ok(());
        }
        let active = self.active.salt.segment;
        // The batch before said so, durably: that is what makes their absence no damage.
        self.segments.free_before(self.ledger.oldest().unwrap_or(active).min(active))?;
        let oldest = self.segments.oldest().unwrap_or(active);
        if oldest == active || !self.copying.is_empty() {
            return Ok(());
        }
        let mut votes = Vec::new();
        let mut entries = Vec::new();
        for key in self.ledger.logs_of(oldest) {
            let cost = self.ledger.cost(key, oldest);
            if cost.entries { entries.push((key, cost.bytes)) } else { votes.push(key) }
        }
        let pinned = entries.iter().filter(|(_, bytes)| *bytes > self.segments.usual_bytes()).count();
        self.shared.metrics.pinned.set(pinned as i64);
        if !votes.is_empty() {
            for key in votes.into_iter().take(COPY_STEP_LOGS) {
                self.copy(key, false);
            }
            return Ok(());
        }
        let cheap =
            entries.iter().map(|(_, bytes)| bytes).sum::<u64>() <= self.segments.usual_bytes() / COPY_PART;
        let sparse = self.segments.len() > SEGMENTS_RELAXED
            && self.ledger.live_bytes() < self.segments.used_bytes() / 2;
        if !cheap && !sparse {
            return Ok(());
        }
        if pinned > 0 {
            if self.warned != Some(oldest) {
                self.warned = Some(oldest);
                let (key, bytes) = entries.iter().max_by_key(|(_, bytes)| bytes).expect("some are pinned");
                tracing::warn!(
                    log = %key,
                    bytes,
                    segments = self.segments.len(),
                    dir = %self.segments.dir().display(),
                    "a log holds too many entries to be copied forward: old segments stay until it is purged"
                );
            }
            return Ok(());
        }
        let mut step = 0;
        for (key, bytes) in entries.into_iter().take(COPY_STEP_LOGS) {
            if step > 0 && step + bytes > COPY_STEP_BYTES {
                break;
            }
            step += bytes;
            self.copy(key, true);
        }
        Ok(())
    }

    /// Queues a copy of the log's state as it is in memory now; it takes its place in the order of the
    /// log's changes like any of them.
    fn copy(&mut self, key: LogKey, with_entries: bool) {
        let take = |state: &State| {
            let entries: Option<Vec<(LogId, Source)>> =
                with_entries.then(|| state.slots().map(|slot| (slot.id, Source::of(slot))).collect());
            let payloads = state.slots().map(|slot| ENTRY_OVERHEAD_BYTES + slot.payload_bytes as usize);
            let bytes = if with_entries { payloads.sum() } else { 0 };
            let vote = state.vote.as_ref().map_or(0, |vote| vote.len());
            let copy = Change::Copy { vote: state.vote.clone(), purged: state.purged, entries };
            (copy, ENTRY_OVERHEAD_BYTES + vote + bytes)
        };
        if self.shared.submit_copy(&self.shared.cell(key), take) {
            self.copying.insert(key);
        }
    }
}

/// Puts an item's records into the frame, and into the books.
fn encode(
    item: &mut Item,
    segment: u64,
    frame: &mut FrameWriter<'_>,
    ledger: &mut Ledger,
    shared: &Shared,
) -> Result<Offsets, Failed> {
    let key = item.cell.key;
    let mut offsets = Offsets::new();
    let mut append = |frame: &mut FrameWriter<'_>, ledger: &mut Ledger, id: LogId, payload: &[u8]| {
        offsets.push(frame.entry(key, id, payload));
        let bytes = (ENTRY_OVERHEAD_BYTES + payload.len()) as u64;
        ledger.append(key, segment, id.index, id.index, bytes);
    };
    match &item.change {
        Change::Append(entries) => {
            for entry in entries {
                append(frame, ledger, entry.id, &entry.payload);
            }
        }
        Change::Vote(vote) => {
            frame.vote(key, vote);
            ledger.vote(key, segment);
        }
        Change::Truncate(from) => {
            frame.truncate(key, *from);
            ledger.truncate(key, *from);
        }
        Change::Purge(upto) => {
            frame.purge(key, *upto);
            ledger.purge(key, segment, upto.index);
        }
        Change::Destroy => {
            frame.destroy(key);
            ledger.destroy(key);
        }
        Change::Barrier => {}
        Change::Copy { vote, purged, entries } => {
            let replaces = entries.is_some();
            frame.state(key, replaces, vote.as_deref(), *purged);
            ledger.state(key, segment, replaces, vote.is_some(), purged.map(|id| id.index));
            let read = || read_entries(key, entries.clone().unwrap_or_default());
            for entry in shared.pulse().in_disk(read)? {
                append(frame, ledger, entry.id, &entry.payload);
            }
            shared.metrics.copied_bytes.inc_by(item.bytes as u64);
        }
    }
    Ok(offsets)
}
