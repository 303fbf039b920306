//! Records, commands and answers as bytes. Drawn in `docs/formats/engine.md`.

use bytes::{Buf as _, BufMut, Bytes, BytesMut};

use super::{Answer, Command, Mark, Op, Outcome, Precondition, Record, Verdict};
use crate::codec::{Malformed, Reader, Writer as _};

/// What is kept of a key: its record, or, until the next checkpoint, that it was deleted and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stored {
    Live(Record),
    /// Kept only over engines that do not recover a prefix: a redo must see that the delete at
    /// `mod_revision` took effect already.
    Tombstone {
        mod_revision: u64,
    },
}

impl Stored {
    pub(super) fn mod_revision(&self) -> u64 {
        match self {
            Stored::Live(record) => record.mod_revision,
            Stored::Tombstone { mod_revision } => *mod_revision,
        }
    }
}

const LIVE: u8 = 1;
const TOMBSTONE: u8 = 2;

/// kind, version, create revision, mod revision, expiry (0: none), checksum.
const RECORD_HEADER_BYTES: usize = 1 + 8 + 8 + 8 + 8 + 4;

/// The checksum covers the key, so that a record that turns up under another key is found too.
pub(super) fn encode_stored(key: &[u8], stored: &Stored) -> Bytes {
    let (kind, version, create, value) = match stored {
        Stored::Live(record) => (LIVE, record.version, record.create_revision, &record.value[..]),
        Stored::Tombstone { .. } => (TOMBSTONE, 0, 0, &[][..]),
    };
    let mut out = BytesMut::with_capacity(RECORD_HEADER_BYTES + value.len());
    out.put_u8(kind);
    out.put_u64_le(version);
    out.put_u64_le(create);
    out.put_u64_le(stored.mod_revision());
    out.put_u64_le(0);
    let sum = checksum(key, &out, value);
    out.put_u32_le(sum);
    out.put_slice(value);
    out.freeze()
}

pub(super) fn decode_stored(key: &[u8], bytes: &Bytes) -> Result<Stored, Malformed> {
    let short = || Malformed::new("record", format!("{} bytes are less than its header", bytes.len()));
    let (header, value) = bytes.split_at_checked(RECORD_HEADER_BYTES).ok_or_else(short)?;
    let (header, mut sum) = header.split_at(RECORD_HEADER_BYTES - 4);
    let (mut fields, sum) = (header, sum.get_u32_le());
    let kind = fields.get_u8();
    let (version, create_revision) = (fields.get_u64_le(), fields.get_u64_le());
    let (mod_revision, expiry) = (fields.get_u64_le(), fields.get_u64_le());
    let value = bytes.slice_ref(value);
    let bad = |problem: String| Malformed::new("record", format!("{problem} (key {})", key.escape_ascii()));
    if sum != checksum(key, header, &value) {
        return Err(bad("its checksum does not match".into()));
    }
    match kind {
        LIVE if expiry == 0 => Ok(Stored::Live(Record { value, version, create_revision, mod_revision })),
        LIVE => Err(bad(format!("it expires at {expiry}, which this version does not know"))),
        TOMBSTONE => Ok(Stored::Tombstone { mod_revision }),
        other => Err(bad(format!("unknown kind {other}"))),
    }
}

fn checksum(key: &[u8], header: &[u8], value: &[u8]) -> u32 {
    let sum = crc32c::crc32c(key);
    let sum = crc32c::crc32c_append(sum, header);
    crc32c::crc32c_append(sum, value)
}

/// First byte of a command, in version 1: writes; that from here on none takes effect, or again does; a mark,
/// and what came of comparing the replicas at one.
const WRITES: u8 = 1;
const SEAL: u8 = 2;
const UNSEAL: u8 = 3;
const MARK: u8 = 4;
const MAJORITY: u8 = 5;
const NO_MAJORITY: u8 = 6;

const PUT: u8 = 1;
const DELETE: u8 = 2;

/// The command that applies `ops`, in order, at one index.
pub fn encode_command(ops: &[Op]) -> Bytes {
    let bytes: usize = ops.iter().map(op_bytes).sum();
    let mut out = BytesMut::with_capacity(5 + bytes);
    out.put_u8(WRITES);
    out.put_u32_le(u32::try_from(ops.len()).expect("batches are limited"));
    for op in ops {
        let (kind, precondition) = match op {
            Op::Put { precondition, .. } => (PUT, precondition),
            Op::Delete { precondition, .. } => (DELETE, precondition),
        };
        out.put_u8(kind);
        match precondition {
            Precondition::None => out.put_u8(0),
            Precondition::Version(version) => {
                out.put_u8(1);
                out.put_u64_le(*version);
            }
            Precondition::Absent => out.put_u8(2),
        }
        out.write_bytes(op.key());
        if let Op::Put { value, .. } = op {
            out.write_bytes(value);
        }
    }
    out.freeze()
}

/// No version may allow longer keys, in bytes: with what is put before them, an engine must be able to hold them. What may be
/// asked for is less ([`crate::limits::KEY_BYTES_MAX`]), and is looked at before it gets into a log: that limit may change.
const KEY_BYTES_EVER: usize = 32 * 1024;

/// Kind, precondition, the length of the key.
const OP_BYTES_MIN: usize = 6;

/// About how many bytes `op` takes in a command.
fn op_bytes(op: &Op) -> usize {
    let value = match op {
        Op::Put { value, .. } => value.len(),
        Op::Delete { .. } => 0,
    };
    18 + op.key().len() + value
}

/// The command after which no write takes effect.
pub fn encode_seal() -> Bytes {
    Bytes::from_static(&[SEAL])
}

/// The command after which writes take effect again.
pub fn encode_unseal() -> Bytes {
    Bytes::from_static(&[UNSEAL])
}

/// The command at which every replica notes what its records come to.
pub fn encode_mark_command() -> Bytes {
    Bytes::from_static(&[MARK])
}

/// The command that tells the replicas what they came to.
pub fn encode_verdict(verdict: &Verdict) -> Bytes {
    let mut out = BytesMut::with_capacity(25);
    match verdict {
        Verdict::Majority { mark, hash } => {
            out.put_u8(MAJORITY);
            out.put_u64_le(*mark);
            out.put_u128_le(*hash);
        }
        Verdict::NoMajority { mark } => {
            out.put_u8(NO_MAJORITY);
            out.put_u64_le(*mark);
        }
    }
    out.freeze()
}

/// What a command asks for.
///
/// # Errors
/// If the bytes are no command of a version that this program knows.
pub fn decode_command(bytes: Bytes) -> Result<Command, Malformed> {
    let mut input = Reader::new("command", bytes);
    let command = match input.u8()? {
        WRITES => Command::Writes(take_ops(&mut input)?),
        SEAL => Command::Seal,
        UNSEAL => Command::Unseal,
        MARK => Command::Mark,
        MAJORITY => Command::Verdict(Verdict::Majority { mark: input.u64()?, hash: input.u128()? }),
        NO_MAJORITY => Command::Verdict(Verdict::NoMajority { mark: input.u64()? }),
        other => return Err(input.error(format!("unknown kind {other}"))),
    };
    input.end()?;
    Ok(command)
}

fn take_ops(input: &mut Reader) -> Result<Vec<Op>, Malformed> {
    let count = input.u32()?;
    let mut ops = Vec::with_capacity((count as usize).min(input.remaining() / OP_BYTES_MIN));
    for _ in 0..count {
        let kind = input.u8()?;
        let precondition = match input.u8()? {
            0 => Precondition::None,
            1 => Precondition::Version(input.u64()?),
            2 => Precondition::Absent,
            other => return Err(input.error(format!("unknown precondition {other}"))),
        };
        let key = input.bytes()?;
        if key.len() > KEY_BYTES_EVER {
            return Err(input.error(format!("a key of {} bytes, which no version allows", key.len())));
        }
        ops.push(match kind {
            PUT => Op::Put { key, value: input.bytes()?, precondition },
            DELETE => Op::Delete { key, precondition },
            other => return Err(input.error(format!("unknown operation {other}"))),
        });
    }
    Ok(ops)
}

pub(super) fn encode_outcomes(outcomes: &[Outcome]) -> Bytes {
    let mut out = BytesMut::with_capacity(outcomes.len() * 17);
    for outcome in outcomes {
        match outcome {
            Outcome::Put { version, revision } => {
                out.put_u8(1);
                out.put_u64_le(*version);
                out.put_u64_le(*revision);
            }
            Outcome::Deleted { existed, revision } => {
                out.put_u8(2);
                out.put_u8(u8::from(*existed));
                out.put_u64_le(*revision);
            }
            Outcome::PreconditionFailed { current_version } => {
                out.put_u8(3);
                out.put_u64_le(*current_version);
            }
        }
    }
    out.freeze()
}

/// The answer to writes of a sealed partition.
const SEALED: u8 = 4;

pub(super) fn encode_sealed() -> Bytes {
    Bytes::from_static(&[SEALED])
}

/// The answer to writes of a halted partition.
const HALTED: u8 = 5;

pub(super) fn encode_halted() -> Bytes {
    Bytes::from_static(&[HALTED])
}

/// The answer to a mark.
pub(super) fn encode_mark(index: u64, hash: u128) -> Bytes {
    let mut out = BytesMut::with_capacity(24);
    out.put_u64_le(index);
    out.put_u128_le(hash);
    out.freeze()
}

/// What a mark was answered.
pub fn decode_mark(bytes: Bytes) -> Result<Mark, Malformed> {
    let mut input = Reader::new("answer to a mark", bytes);
    let mark = Mark { index: input.u64()?, hash: input.u128()? };
    input.end()?;
    Ok(mark)
}

/// The answer to a seal.
pub(super) fn encode_written(written: bool) -> Bytes {
    Bytes::copy_from_slice(&[u8::from(written)])
}

/// What a seal was answered: whether any write ever took effect before it.
pub fn decode_written(bytes: &Bytes) -> Result<bool, Malformed> {
    match bytes[..] {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(Malformed::new("answer to a seal", "it is neither yes nor no")),
    }
}

/// What writes were answered.
pub fn decode_answer(bytes: Bytes) -> Result<Answer, Malformed> {
    match bytes[..] {
        [SEALED] => return Ok(Answer::Sealed),
        [HALTED] => return Ok(Answer::Halted),
        _ => {}
    }
    let mut input = Reader::new("answer", bytes);
    let mut outcomes = Vec::new();
    while input.remaining() > 0 {
        outcomes.push(match input.u8()? {
            1 => Outcome::Put { version: input.u64()?, revision: input.u64()? },
            2 => Outcome::Deleted { existed: input.u8()? != 0, revision: input.u64()? },
            3 => Outcome::PreconditionFailed { current_version: input.u64()? },
            other => return Err(input.error(format!("unknown outcome {other}"))),
        });
    }
    Ok(Answer::Outcomes(outcomes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn any_op() -> impl Strategy<Value = Op> {
        let precondition = prop_oneof![
            Just(Precondition::None),
            any::<u64>().prop_map(Precondition::Version),
            Just(Precondition::Absent)
        ];
        (any_bytes(), proptest::option::of(any_bytes()), precondition).prop_map(
            |(key, value, precondition)| match value {
                Some(value) => Op::Put { key, value, precondition },
                None => Op::Delete { key, precondition },
            },
        )
    }

    /// A leader that lies may send it: then the group is damaged, and the node goes on.
    #[test]
    fn a_key_that_no_engine_can_hold_is_in_no_command() {
        let delete =
            |key: usize| Op::Delete { key: vec![b'k'; key].into(), precondition: Precondition::None };
        let ops = vec![delete(KEY_BYTES_EVER)];
        assert_eq!(decode_command(encode_command(&ops)), Ok(Command::Writes(ops)));
        let error = decode_command(encode_command(&[delete(1), delete(KEY_BYTES_EVER + 1)])).unwrap_err();
        assert!(error.to_string().contains("a key of 32769 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn commands_survive(ops in proptest::collection::vec(any_op(), 0..20)) {
            prop_assert_eq!(decode_command(encode_command(&ops)).unwrap(), Command::Writes(ops));
        }

        #[test]
        fn verdicts_survive(mark: u64, hash: u128, majority: bool) {
            let verdict =
                if majority { Verdict::Majority { mark, hash } } else { Verdict::NoMajority { mark } };
            prop_assert_eq!(decode_command(encode_verdict(&verdict)).unwrap(), Command::Verdict(verdict));
            prop_assert_eq!(decode_mark(encode_mark(mark, hash)).unwrap(), Mark { index: mark, hash });
        }

        #[test]
        fn records_survive_and_no_flipped_bit_is_served(
            key in any_bytes(), value in any_bytes(), version: u64, create: u64, modified: u64, bit: usize,
        ) {
            let record = Record { value, version, create_revision: create, mod_revision: modified };
            let bytes = encode_stored(&key, &Stored::Live(record.clone()));
            prop_assert_eq!(decode_stored(&key, &bytes).unwrap(), Stored::Live(record));
            let mut changed = bytes.to_vec();
            let bit = bit % (changed.len() * 8);
            changed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_stored(&key, &changed.into()).is_err());
            let mut other = key.to_vec();
            other.push(0);
            prop_assert!(decode_stored(&other, &bytes).is_err());
        }

        #[test]
        fn nonsense_is_an_error_not_a_panic(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let _ = decode_command(bytes.clone());
            let _ = decode_answer(bytes.clone());
            let _ = decode_mark(bytes.clone());
            let _ = decode_stored(b"key", &bytes);
        }
    }
}
