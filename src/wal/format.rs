//! The bytes of a segment: its header, the frame of one batch, and the records in it. Drawn, with the
//! reasons, in `docs/formats/wal.md`; nothing here touches a file.

use std::fmt;

use bytes::Bytes;

use crate::types::{GroupId, LogId, LogKey, ReplicaId};

/// Opens every segment.
pub(super) const SEGMENT_MAGIC: &[u8; 8] = b"RUSHKVWL";
/// The one version there is.
pub(super) const VERSION: u32 = 1;
/// The segment header has a block of its own, so that no later write shares a page with it.
pub(super) const SEGMENT_HEADER_BYTES: usize = 4096;

/// Opens every frame.
const FRAME_MAGIC: &[u8; 4] = b"RKVB";
pub(super) const FRAME_HEADER_BYTES: usize = 48;
/// Frames start at multiples of this, so that a search for them looks at few places.
pub(super) const FRAME_ALIGN: usize = 16;
/// The last frame of a log that was closed; no batch follows it in its segment.
const FLAG_CLOSED: u32 = 1;

pub(super) const RECORD_HEADER_BYTES: usize = 24;
pub(super) const LOG_ID_BYTES: usize = 16;
/// What an entry takes on disk beside its payload.
pub(super) const ENTRY_OVERHEAD_BYTES: usize = RECORD_HEADER_BYTES + LOG_ID_BYTES;

/// Reads a little-endian `u32`; the caller has checked the length.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

/// Where something stands. Every checksum starts from it, so that bytes of the file's former life, or
/// of another place, or made up by a client, are not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Salt {
    pub(super) segment: u64,
    pub(super) random: u64,
}

impl Salt {
    fn checksum(self, offset: u64, bytes: &[u8]) -> u32 {
        let mut place = [0; 24];
        place[..8].copy_from_slice(&self.segment.to_le_bytes());
        place[8..16].copy_from_slice(&self.random.to_le_bytes());
        place[16..].copy_from_slice(&offset.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c(&place), bytes)
    }
}

/// The first block of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) salt: Salt,
    /// The file's length when it was made.
    pub(super) bytes: u64,
    /// The number of the first batch that may stand in it.
    pub(super) first_batch: u64,
    /// Where the segment before ends; what stands behind that was never acknowledged. 0: there is none.
    pub(super) previous_end: u64,
    /// The oldest segment that was needed when this one was made.
    pub(super) oldest: u64,
}

/// Why a segment header was not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Magic,
    Version(u32),
    Checksum,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; SEGMENT_HEADER_BYTES];
        block[..8].copy_from_slice(SEGMENT_MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let fields = [
            self.salt.segment,
            self.salt.random,
            self.bytes,
            self.first_batch,
            self.previous_end,
            self.oldest,
        ];
        for (i, field) in fields.into_iter().enumerate() {
            block[16 + i * 8..24 + i * 8].copy_from_slice(&field.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&block[16..]);
        block[12..16].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    pub(super) fn decode(block: &[u8]) -> Result<SegmentHeader, BadHeader> {
        if block.len() < SEGMENT_HEADER_BYTES || &block[..8] != SEGMENT_MAGIC {
            return Err(BadHeader::Magic);
        }
        let version = u32_at(block, 8);
        if version != VERSION {
            return Err(BadHeader::Version(version));
        }
        if u32_at(block, 12) != crc32c::crc32c(&block[16..SEGMENT_HEADER_BYTES]) {
            return Err(BadHeader::Checksum);
        }
        let field = |i: usize| u64_at(block, 16 + i * 8);
        Ok(SegmentHeader {
            salt: Salt { segment: field(0), random: field(1) },
            bytes: field(2),
            first_batch: field(3),
            previous_end: field(4),
            oldest: field(5),
        })
    }
}

/// The head of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Batches are numbered through the log's whole life. That this one exists says that every batch
    /// before it had been fsynced.
    pub(super) batch: u64,
    /// Segments before this one are not needed any more once the batch is durable.
    pub(super) oldest: u64,
    pub(super) body_bytes: u32,
    pub(super) records: u32,
    pub(super) closed: bool,
}

impl FrameHeader {
    /// The bytes from this frame's start to the next one's.
    pub(super) fn frame_bytes(&self) -> u64 {
        frame_bytes(self.body_bytes as usize) as u64
    }

    /// The header that stands at `offset`, if one with a good checksum does.
    pub(super) fn decode(salt: Salt, offset: u64, bytes: &[u8]) -> Option<FrameHeader> {
        if bytes.len() < FRAME_HEADER_BYTES || &bytes[..4] != FRAME_MAGIC {
            return None;
        }
        if u64_at(bytes, 8) != salt.segment
            || u32_at(bytes, 4) != salt.checksum(offset, &bytes[8..FRAME_HEADER_BYTES])
        {
            return None;
        }
        Some(FrameHeader {
            batch: u64_at(bytes, 16),
            oldest: u64_at(bytes, 24),
            body_bytes: u32_at(bytes, 32),
            records: u32_at(bytes, 36),
            closed: u32_at(bytes, 40) & FLAG_CLOSED != 0,
        })
    }
}

/// What a frame with such a body takes in its segment.
pub(super) fn frame_bytes(body_bytes: usize) -> usize {
    (FRAME_HEADER_BYTES + body_bytes).next_multiple_of(FRAME_ALIGN)
}

/// One change of one log, as it is replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Entry {
        id: LogId,
        payload: Bytes,
    },
    Vote(Bytes),
    /// Entries at this index and after it are gone.
    Truncate(u64),
    /// Entries up to here are gone, applied elsewhere.
    Purge(LogId),
    /// The log is gone.
    Destroy,
    /// The log's vote and purge point, written again because their segment is to go. `replaces`: its
    /// entries as well, which follow in the same frame; whatever was replayed before is forgotten.
    State {
        replaces: bool,
        vote: Option<Bytes>,
        purged: Option<LogId>,
    },
}

const KIND_ENTRY: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_TRUNCATE: u8 = 3;
const KIND_PURGE: u8 = 4;
const KIND_DESTROY: u8 = 5;
const KIND_STATE: u8 = 6;

const STATE_REPLACES: u8 = 1;
const STATE_VOTE: u8 = 2;
const STATE_PURGED: u8 = 4;

/// Builds one frame. Records are salted with their own offset, so it must be known where the frame
/// will stand.
#[derive(Debug)]
pub(super) struct FrameWriter<'a> {
    salt: Salt,
    offset: u64,
    records: u32,
    out: &'a mut Vec<u8>,
}

impl<'a> FrameWriter<'a> {
    /// Overwrites `out`, which is only lent to keep its memory.
    pub(super) fn new(salt: Salt, offset: u64, out: &'a mut Vec<u8>) -> FrameWriter<'a> {
        assert_eq!(offset % FRAME_ALIGN as u64, 0, "frames are aligned");
        out.clear();
        out.resize(FRAME_HEADER_BYTES, 0);
        FrameWriter { salt, offset, records: 0, out }
    }

    /// Appends a record and returns its offset in the segment.
    pub(super) fn record(&mut self, key: LogKey, kind: u8, flags: u8, parts: &[&[u8]]) -> u64 {
        let start = self.out.len();
        let body: usize = parts.iter().map(|part| part.len()).sum();
        let body = u32::try_from(body).expect("entries are bounded far below 4 GiB");
        self.out.extend_from_slice(&[0; 4]);
        self.out.extend_from_slice(&body.to_le_bytes());
        self.out.extend_from_slice(&[kind, flags, 0, 0]);
        self.out.extend_from_slice(&key.group.0.to_le_bytes());
        self.out.extend_from_slice(&key.replica.0.to_le_bytes());
        for part in parts {
            self.out.extend_from_slice(part);
        }
        let offset = self.offset + start as u64;
        let checksum = self.salt.checksum(offset, &self.out[start + 4..]);
        self.out[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
        self.records += 1;
        offset
    }

    pub(super) fn entry(&mut self, key: LogKey, id: LogId, payload: &[u8]) -> u64 {
        self.record(key, KIND_ENTRY, 0, &[&encode_id(id), payload])
    }

    pub(super) fn vote(&mut self, key: LogKey, vote: &[u8]) {
        self.record(key, KIND_VOTE, 0, &[vote]);
    }

    pub(super) fn truncate(&mut self, key: LogKey, from: u64) {
        self.record(key, KIND_TRUNCATE, 0, &[&from.to_le_bytes()]);
    }

    pub(super) fn purge(&mut self, key: LogKey, upto: LogId) {
        self.record(key, KIND_PURGE, 0, &[&encode_id(upto)]);
    }

    pub(super) fn destroy(&mut self, key: LogKey) {
        self.record(key, KIND_DESTROY, 0, &[]);
    }

    pub(super) fn state(&mut self, key: LogKey, replaces: bool, vote: Option<&[u8]>, purged: Option<LogId>) {
        let mut flags = if replaces { STATE_REPLACES } else { 0 };
        let mut id = [0; LOG_ID_BYTES];
        if let Some(purged) = purged {
            flags |= STATE_PURGED;
            id = encode_id(purged);
        }
        if vote.is_some() {
            flags |= STATE_VOTE;
        }
        self.record(key, KIND_STATE, flags, &[&id, vote.unwrap_or_default()]);
    }

    /// Completes the frame; `out` then holds what is to be written at `offset`. Returns the records.
    pub(super) fn finish(self, batch: u64, oldest: u64, closed: bool) -> u32 {
        let body = u32::try_from(self.out.len() - FRAME_HEADER_BYTES).expect("batches are bounded");
        self.out.resize(frame_bytes(body as usize), 0);
        let out = &mut self.out[..FRAME_HEADER_BYTES];
        out[..4].copy_from_slice(FRAME_MAGIC);
        out[8..16].copy_from_slice(&self.salt.segment.to_le_bytes());
        out[16..24].copy_from_slice(&batch.to_le_bytes());
        out[24..32].copy_from_slice(&oldest.to_le_bytes());
        out[32..36].copy_from_slice(&body.to_le_bytes());
        out[36..40].copy_from_slice(&self.records.to_le_bytes());
        out[40..44].copy_from_slice(&(if closed { FLAG_CLOSED } else { 0 }).to_le_bytes());
        let checksum = self.salt.checksum(self.offset, &out[8..]);
        out[4..8].copy_from_slice(&checksum.to_le_bytes());
        self.records
    }
}

fn encode_id(id: LogId) -> [u8; LOG_ID_BYTES] {
    let mut out = [0; LOG_ID_BYTES];
    out[..8].copy_from_slice(&id.term.to_le_bytes());
    out[8..].copy_from_slice(&id.index.to_le_bytes());
    out
}

fn decode_id(bytes: &[u8]) -> LogId {
    LogId { term: u64_at(bytes, 0), index: u64_at(bytes, 8) }
}

/// Why records were not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadRecord {
    /// A write that did not get to its end leaves this; so does damage.
    Torn(&'static str),
    /// Every checksum is right: somebody wrote it so, and it may have been acknowledged.
    Wrong(&'static str),
}

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (BadRecord::Torn(found) | BadRecord::Wrong(found)) = self;
        f.write_str(found)
    }
}

/// Reads the record at `offset`, whose bytes open `bytes`: its log, itself, and its length on disk.
/// The error says what was found.
pub(super) fn read_record(
    salt: Salt,
    offset: u64,
    bytes: &Bytes,
) -> Result<(LogKey, Record, usize), BadRecord> {
    use BadRecord::{Torn, Wrong};
    if bytes.len() < RECORD_HEADER_BYTES {
        return Err(Torn("a record header that ends outside its batch"));
    }
    let len = RECORD_HEADER_BYTES + u32_at(bytes, 4) as usize;
    if bytes.len() < len {
        return Err(Torn("a record that ends outside its batch"));
    }
    if u32_at(bytes, 0) != salt.checksum(offset, &bytes[4..len]) {
        return Err(Torn("a record whose checksum does not match"));
    }
    let key = LogKey { group: GroupId(u32_at(bytes, 12)), replica: ReplicaId(u64_at(bytes, 16)) };
    let (kind, flags) = (bytes[8], bytes[9]);
    let body = bytes.slice(RECORD_HEADER_BYTES..len);
    let record = match (kind, body.len()) {
        (KIND_ENTRY, LOG_ID_BYTES..) => {
            Record::Entry { id: decode_id(&body), payload: body.slice(LOG_ID_BYTES..) }
        }
        (KIND_VOTE, _) => Record::Vote(body),
        (KIND_TRUNCATE, 8) => Record::Truncate(u64_at(&body, 0)),
        (KIND_PURGE, LOG_ID_BYTES) => Record::Purge(decode_id(&body)),
        (KIND_DESTROY, 0) => Record::Destroy,
        (KIND_STATE, LOG_ID_BYTES..) => Record::State {
            replaces: flags & STATE_REPLACES != 0,
            vote: (flags & STATE_VOTE != 0).then(|| body.slice(LOG_ID_BYTES..)),
            purged: (flags & STATE_PURGED != 0).then(|| decode_id(&body)),
        },
        _ => return Err(Wrong("a record of a kind this version does not know")),
    };
    match &record {
        // The next one would have no index.
        Record::Entry { id, .. } | Record::Purge(id) | Record::State { purged: Some(id), .. }
            if id.index == u64::MAX =>
        {
            Err(Wrong("a record beyond the last index there is"))
        }
        _ => Ok((key, record, len)),
    }
}

/// The records of a frame, with their offsets; `body` follows the header that stands at `offset`.
pub(super) fn read_frame(
    salt: Salt,
    offset: u64,
    header: &FrameHeader,
    body: &Bytes,
) -> Result<Vec<(u64, LogKey, Record)>, BadRecord> {
    let mut at = 0;
    let mut records = Vec::new();
    while at < body.len() {
        let place = offset + (FRAME_HEADER_BYTES + at) as u64;
        let (key, record, len) = read_record(salt, place, &body.slice(at..))?;
        records.push((place, key, record));
        at += len;
    }
    if records.len() != header.records as usize {
        return Err(BadRecord::Wrong("a batch with another number of records than its header says"));
    }
    Ok(records)
}
