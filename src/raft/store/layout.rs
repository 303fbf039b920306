//! The keys and the values that the store itself has in the engine, and the content of the checkpoint file, as bytes.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::super::codec::{decode_stored_membership, encode_stored_membership, put_log_id, take_log_id};
use super::super::space::SpaceId;
use super::{Birth, Progress};
use crate::codec::{Malformed, Reader, Writer as _};
use crate::types::{GroupId, LogId, LogKey, ReplicaId};

/// Whose a key of kind, group and replica is.
pub(super) fn decode_replica_key(key: Bytes) -> Result<LogKey, Malformed> {
    let mut input = Reader::new("engine key", key.slice(1..));
    // Big-endian in keys, so that they sort by number.
    let group = GroupId(input.u32()?.swap_bytes());
    let replica = ReplicaId(input.u64()?.swap_bytes());
    Ok(LogKey { group, replica })
}

pub(super) const STATE: u8 = b's';
pub(super) const APPLIED: u8 = b'a';
pub(super) const MEMBERSHIP: u8 = b'm';
pub(super) const DAMAGE: u8 = b'x';
pub(super) const SUSPECT: u8 = b'q';
pub(super) const TOMBSTONE: u8 = b't';

pub(super) fn replica_key(kind: u8, key: LogKey) -> Bytes {
    let mut out = BytesMut::with_capacity(13);
    out.put_u8(kind);
    out.put_u32(key.group.0);
    out.put_u64(key.replica.0);
    out.freeze()
}

pub(super) fn state_key(key: LogKey) -> Bytes {
    replica_key(STATE, key)
}

pub(super) fn applied_key(key: LogKey) -> Bytes {
    replica_key(APPLIED, key)
}

pub(in crate::raft) fn membership_key(key: LogKey) -> Bytes {
    replica_key(MEMBERSHIP, key)
}

pub(in crate::raft) fn damage_key(key: LogKey) -> Bytes {
    replica_key(DAMAGE, key)
}

pub(super) fn decode_applied(bytes: Bytes) -> Result<Option<LogId>, Malformed> {
    let mut input = Reader::new("applied log id", bytes);
    let id = take_log_id(&mut input)?;
    input.end()?;
    Ok(id)
}

pub(super) fn encode_birth(birth: &Birth) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u32_le(birth.space.0);
    put_log_id(&mut out, birth.applied);
    out.write_bytes(&encode_stored_membership(&birth.membership));
    out.freeze()
}

pub(super) fn decode_birth(bytes: Bytes) -> Result<Birth, Malformed> {
    let mut input = Reader::new("replica state", bytes);
    let space = SpaceId(input.u32()?);
    let applied = take_log_id(&mut input)?;
    let membership = decode_stored_membership(input.bytes()?)?;
    input.end()?;
    Ok(Birth { space, applied, membership })
}

/// First bytes of the checkpoint file: its name and version.
pub(super) const CHECKPOINT_MAGIC: &[u8; 8] = b"RKVCKPT1";

pub(super) fn encode_checkpoint(progress: &BTreeMap<LogKey, Progress>) -> Bytes {
    let mut out = BytesMut::new();
    out.put_slice(CHECKPOINT_MAGIC);
    out.put_u32_le(u32::try_from(progress.len()).expect("a node has fewer than 4 billion replicas"));
    for (key, progress) in progress {
        out.put_u32_le(key.group.0);
        out.put_u64_le(key.replica.0);
        out.put_u32_le(progress.space.0);
        put_log_id(&mut out, progress.applied);
        out.write_bytes(&encode_stored_membership(&progress.membership));
    }
    let sum = crc32c::crc32c(&out);
    out.put_u32_le(sum);
    out.freeze()
}

pub(super) fn decode_checkpoint(content: &[u8]) -> Result<BTreeMap<LogKey, Progress>, Malformed> {
    let bad = |problem: &str| Malformed::new("checkpoint file", problem);
    let Some((body, sum)) = content.split_last_chunk::<4>() else {
        return Err(bad("too short"));
    };
    if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
        return Err(bad("its checksum does not match: the file was changed or the disk is failing"));
    }
    let Some(body) = body.strip_prefix(CHECKPOINT_MAGIC.as_slice()) else {
        return Err(bad("not a checkpoint of this version"));
    };
    let mut input = Reader::new("checkpoint file", Bytes::copy_from_slice(body));
    let mut progress = BTreeMap::new();
    for _ in 0..input.u32()? {
        let key = LogKey { group: GroupId(input.u32()?), replica: ReplicaId(input.u64()?) };
        let space = SpaceId(input.u32()?);
        let applied = take_log_id(&mut input)?;
        let membership = decode_stored_membership(input.bytes()?)?;
        progress.insert(key, Progress { space, applied, membership });
    }
    input.end()?;
    Ok(progress)
}
