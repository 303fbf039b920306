//! For fuzzing: commands, their outcomes and what stands in the engine are read or refused, and what is read
//! is written back the same.

use bytes::Bytes;

use super::codec::{
    decode_answer, decode_command, decode_mark, decode_stored, decode_written, encode_command, encode_mark,
    encode_mark_command, encode_outcomes, encode_seal, encode_stored, encode_unseal, encode_verdict,
};
use super::marks::Marks;
use super::seals::Seals;
use super::summary::Summary;
use super::{Answer, Command, Op, Outcome, Precondition, Verdict};

pub fn command(input: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(input);
    let command = decode_command(bytes.clone());
    if let Ok(command) = &command {
        let written = match command {
            Command::Writes(ops) => encode_command(ops),
            Command::Seal => encode_seal(),
            Command::Unseal => encode_unseal(),
            Command::Mark => encode_mark_command(),
            Command::Verdict(verdict) => encode_verdict(verdict),
        };
        assert_eq!(written, bytes);
    }
    let _ = decode_written(&bytes);
    let mark = decode_mark(bytes.clone());
    if let Ok(mark) = mark {
        assert_eq!(encode_mark(mark.index, mark.hash), bytes);
    }
    let answer = decode_answer(bytes);
    if let Ok(Answer::Outcomes(outcomes)) = &answer {
        assert_eq!(
            decode_answer(encode_outcomes(outcomes)).as_ref(),
            Ok(&Answer::Outcomes(outcomes.clone()))
        );
    }
    command.is_ok() || answer.is_ok() || mark.is_ok()
}

/// A record under a key of one byte, with its checksum made good; and what else stands beside records.
pub fn record(input: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(input);
    let seals = Seals::decode(bytes.clone());
    if let Ok(seals) = &seals {
        assert_eq!(seals.encode(), bytes);
    }
    let marks = Marks::decode(bytes.clone());
    if let Ok(marks) = &marks {
        assert_eq!(marks.encode(), bytes);
    }
    let summary = Summary::decode(bytes.clone());
    if let Ok((summary, tombstones)) = &summary {
        assert_eq!(summary.encode(*tombstones), bytes);
    }
    let beside = seals.is_ok() || marks.is_ok() || summary.is_ok();
    let Some((key, record)) = bytes.split_first() else { return false };
    let key = &[*key];
    let _ = decode_stored(key, &bytes.slice(1..));
    if record.len() < 37 {
        return beside;
    }
    let mut mended = record.to_vec();
    let sum = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(key), &record[..33]), &record[37..]);
    mended[33..37].copy_from_slice(&sum.to_le_bytes());
    let stored = decode_stored(key, &mended.into());
    if let Ok(stored) = &stored {
        assert_eq!(decode_stored(key, &encode_stored(key, stored)).as_ref(), Ok(stored));
    }
    stored.is_ok() || beside
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
    let verdict = encode_verdict(&Verdict::Majority { mark: 9, hash: 1 << 100 });
    let all = [
        encode_command(&ops),
        encode_command(&[]),
        encode_seal(),
        encode_outcomes(&outcomes),
        encode_mark(9, 1 << 100),
        verdict,
    ];
    all.iter().map(|bytes| bytes.to_vec()).collect()
}

pub fn record_seeds() -> Vec<Vec<u8>> {
    let live = |kind: u8| [&[b'k', kind][..], &[1; 24], &[0; 8], &[0; 4], b"value"].concat();
    vec![live(1), live(2), vec![1; 32], vec![1; 24], vec![1; 40]]
}
