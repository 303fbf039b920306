//! For fuzzing: commands, their outcomes and what stands in the engine are read or refused, and what is read
//! is written back the same.

use bytes::Bytes;

use super::codec::{
    decode_command, decode_outcomes, decode_stored, decode_written, encode_command, encode_outcomes,
    encode_seal, encode_stored, encode_unseal,
};
use super::seals::Seals;
use super::{Command, Op, Outcome, Precondition};

pub fn command(input: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(input);
    let command = decode_command(bytes.clone());
    if let Ok(command) = &command {
        let written = match command {
            Command::Writes(ops) => encode_command(ops),
            Command::Seal => encode_seal(),
            Command::Unseal => encode_unseal(),
        };
        assert_eq!(written, bytes);
    }
    let _ = decode_written(&bytes);
    let outcomes = decode_outcomes(bytes);
    if let Ok(Some(outcomes)) = &outcomes {
        assert_eq!(decode_outcomes(encode_outcomes(outcomes)).as_ref(), Ok(&Some(outcomes.clone())));
    }
    command.is_ok() || outcomes.is_ok()
}

/// A record under a key of one byte, with its checksum made good; and the seals.
pub fn record(input: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(input);
    let seals = Seals::decode(bytes.clone());
    if let Ok(seals) = &seals {
        assert_eq!(seals.encode(), bytes);
    }
    let Some((key, record)) = bytes.split_first() else { return false };
    let key = &[*key];
    let _ = decode_stored(key, &bytes.slice(1..));
    if record.len() < 37 {
        return seals.is_ok();
    }
    let mut mended = record.to_vec();
    let sum = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(key), &record[..33]), &record[37..]);
    mended[33..37].copy_from_slice(&sum.to_le_bytes());
    let stored = decode_stored(key, &mended.into());
    if let Ok(stored) = &stored {
        assert_eq!(decode_stored(key, &encode_stored(key, stored)).as_ref(), Ok(stored));
    }
    stored.is_ok() || seals.is_ok()
}

pub fn command_seeds() -> Vec<Vec<u8>> {
    let key = Bytes::from_static(b"key");
    let put = |precondition| Op::Put { key: key.clone(), value: "value".into(), precondition };
    let delete = Op::Delete { key: key.clone(), precondition: Precondition::Version(3) };
    let ops = [put(Precondition::None), put(Precondition::Absent), put(Precondition::Version(7)), delete];
    let outcomes = [
        Outcome::Put { version: 1, revision: 2 },
        Outcome::Deleted { existed: true, revision: 3 },
        Outcome::PreconditionFailed { current_version: 4 },
    ];
    let all = [encode_command(&ops), encode_command(&[]), encode_seal(), encode_outcomes(&outcomes)];
    all.iter().map(|bytes| bytes.to_vec()).collect()
}

pub fn record_seeds() -> Vec<Vec<u8>> {
    let live = |kind: u8| [&[b'k', kind][..], &[1; 24], &[0; 8], &[0; 4], b"value"].concat();
    vec![live(1), live(2), vec![1; 32]]
}
