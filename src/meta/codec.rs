//! Group 0's state, commands and answers as bytes. Drawn in `docs/formats/engine.md`.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::command::{Answer, Command, Form, Join};
use super::partition::{Birth, Holders, Partition};
use super::state::{CLUSTER_VERSION, Member, MemberState, Sealed, State, Tombstone};
use crate::codec::{Malformed, Reader, Writer as _};
use crate::types::{Epoch, GroupId, NodeId, PartitionId, ReplicaId};

/// Version of these encodings; the first byte of each.
const VERSION: u8 = 4;

const FORM: u8 = 1;
const CREATED: u8 = 2;
const UPDATE_MEMBER: u8 = 3;
const JOIN: u8 = 4;
const LEAVE: u8 = 5;
const MOVED: u8 = 6;
const REMOVED: u8 = 7;
const SET_VERSION: u8 = 8;
const SEAL: u8 = 9;
const UNSEAL: u8 = 10;
const RENEW: u8 = 11;
const REBUILD: u8 = 12;

const DONE: u8 = 0;
const NUMBER: u8 = 1;
const REFUSED: u8 = 2;

fn start(what: &'static str, bytes: Bytes) -> Result<Reader, Malformed> {
    let mut input = Reader::new(what, bytes);
    match input.u8()? {
        VERSION => Ok(input),
        old @ ..VERSION => Err(input.error(format!(
            "version {old} was written before the first release and can't be read any more: start with an empty \
             data directory"
        ))),
        other => Err(input.error(format!("version {other} is not known to this program"))),
    }
}

/// A cluster version that other nodes may have agreed on, but only among programs that know it.
fn cluster_version(input: &mut Reader) -> Result<u32, Malformed> {
    match input.u32()? {
        version @ ..=CLUSTER_VERSION => Ok(version),
        version => Err(input.error(format!(
            "cluster version {version} is newer than this program, which knows up to {CLUSTER_VERSION}"
        ))),
    }
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u32_le(u32::try_from(count).expect("a cluster has fewer than 4 billion of anything"));
}

pub fn encode_command(command: &Command) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    match command {
        Command::Form(form) => {
            out.put_u8(FORM);
            out.write_bytes(form.cluster_id.as_bytes());
            out.write_bytes(form.cluster_name.as_bytes());
            out.put_u32_le(form.replicas);
            out.put_u32_le(form.partitions);
            put_members(&mut out, &form.members);
        }
        Command::Created(partition) => {
            out.put_u8(CREATED);
            out.put_u32_le(partition.0);
        }
        Command::UpdateMember { number, address, zone, weight } => {
            out.put_u8(UPDATE_MEMBER);
            out.put_u32_le(number.0);
            out.write_bytes(address.as_bytes());
            out.write_bytes(zone.as_bytes());
            out.put_u32_le(*weight);
        }
        Command::Join(join) => {
            out.put_u8(JOIN);
            out.write_bytes(join.name.as_bytes());
            out.write_bytes(join.address.as_bytes());
            out.write_bytes(join.zone.as_bytes());
            out.put_u32_le(join.weight);
            out.write_bytes(join.disk_id.as_bytes());
            out.put_u32_le(join.version_max);
        }
        Command::Leave(number) => {
            out.put_u8(LEAVE);
            out.put_u32_le(number.0);
        }
        Command::Moved { group, holders, index } => {
            out.put_u8(MOVED);
            out.put_u32_le(group.0);
            out.put_u64_le(*index);
            put_replicas(&mut out, holders);
        }
        Command::Rebuild { partition, replica, at } => {
            out.put_u8(REBUILD);
            out.put_u32_le(partition.0);
            out.put_u64_le(replica.0);
            out.put_u64_le(*at);
        }
        Command::Renew { partition, replica } => {
            out.put_u8(RENEW);
            out.put_u32_le(partition.0);
            out.put_u64_le(replica.0);
        }
        Command::Removed(number) => {
            out.put_u8(REMOVED);
            out.put_u32_le(number.0);
        }
        Command::Seal(target) => {
            out.put_u8(SEAL);
            put_sealed(&mut out, target);
        }
        Command::Unseal => out.put_u8(UNSEAL),
        Command::SetVersion { version, epoch } => {
            out.put_u8(SET_VERSION);
            out.put_u32_le(*version);
            out.put_u64_le(epoch.0);
        }
    }
    out.freeze()
}

/// # Errors
/// It is no command that this program knows.
pub fn decode_command(bytes: Bytes) -> Result<Command, Malformed> {
    let mut input = start("metadata command", bytes)?;
    let command = match input.u8()? {
        FORM => Command::Form(Form {
            cluster_id: input.string()?,
            cluster_name: input.string()?,
            replicas: input.u32()?,
            partitions: input.u32()?,
            members: take_members(&mut input)?,
        }),
        CREATED => Command::Created(PartitionId(input.u32()?)),
        UPDATE_MEMBER => Command::UpdateMember {
            number: NodeId(input.u32()?),
            address: input.string()?,
            zone: input.string()?,
            weight: input.u32()?,
        },
        JOIN => Command::Join(Join {
            name: input.string()?,
            address: input.string()?,
            zone: input.string()?,
            weight: input.u32()?,
            disk_id: input.string()?,
            version_max: input.u32()?,
        }),
        LEAVE => Command::Leave(NodeId(input.u32()?)),
        MOVED => {
            let group = GroupId(input.u32()?);
            let index = input.u64()?;
            Command::Moved { group, index, holders: take_replicas(&mut input)? }
        }
        REBUILD => Command::Rebuild {
            partition: PartitionId(input.u32()?),
            replica: ReplicaId(input.u64()?),
            at: input.u64()?,
        },
        RENEW => Command::Renew { partition: PartitionId(input.u32()?), replica: ReplicaId(input.u64()?) },
        REMOVED => Command::Removed(NodeId(input.u32()?)),
        SEAL => Command::Seal(take_sealed(&mut input)?),
        UNSEAL => Command::Unseal,
        SET_VERSION => {
            Command::SetVersion { version: cluster_version(&mut input)?, epoch: Epoch(input.u64()?) }
        }
        other => return Err(input.error(format!("unknown kind {other}"))),
    };
    input.end()?;
    Ok(command)
}

/// The state and the index of the command that made it.
pub(super) fn encode_state(state: &State, revision: u64) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    out.put_u64_le(revision);
    out.write_bytes(state.cluster_id.as_bytes());
    out.write_bytes(state.cluster_name.as_bytes());
    out.put_u32_le(state.version);
    out.put_u64_le(state.epoch.0);
    out.put_u32_le(state.replicas);
    out.put_u32_le(state.next_number.0);
    put_members(&mut out, &state.members);
    put_count(&mut out, state.removed.len());
    for (number, tombstone) in &state.removed {
        out.put_u32_le(number.0);
        out.write_bytes(tombstone.name.as_bytes());
        out.write_bytes(tombstone.disk_id.as_bytes());
    }
    put_holders(&mut out, &state.group0);
    put_count(&mut out, state.partitions.len());
    for (id, partition) in &state.partitions {
        out.put_u32_le(id.0);
        out.put_u64_le(partition.first);
        out.put_u8(match partition.birth {
            Birth::Creating => 0,
            Birth::Created => 1,
        });
        put_replicas(&mut out, &partition.birth_replicas);
        put_replicas(&mut out, &partition.replicas);
        put_holders(&mut out, &partition.holders);
        put_count(&mut out, partition.incarnations.len());
        for (number, incarnation) in &partition.incarnations {
            out.put_u32_le(number.0);
            out.put_u32_le(*incarnation);
        }
        out.put_u64_le(partition.rebuilt_at);
    }
    if let Some(target) = &state.sealed {
        put_sealed(&mut out, target);
    }
    let sum = crc32c::crc32c(&out);
    out.put_u32_le(sum);
    out.freeze()
}

pub(super) fn decode_state(bytes: Bytes) -> Result<(State, u64), Malformed> {
    let what = "metadata state";
    let Some((body, sum)) = bytes.split_last_chunk::<4>() else {
        return Err(Malformed::new(what, "too short"));
    };
    if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
        return Err(Malformed::new(what, "its checksum does not match"));
    }
    let mut input = start(what, bytes.slice(..bytes.len() - 4))?;
    let revision = input.u64()?;
    let mut state = State {
        cluster_id: input.string()?,
        cluster_name: input.string()?,
        version: cluster_version(&mut input)?,
        epoch: Epoch(input.u64()?),
        replicas: input.u32()?,
        next_number: NodeId(input.u32()?),
        members: take_members(&mut input)?,
        ..State::default()
    };
    for _ in 0..input.u32()? {
        let number = NodeId(input.u32()?);
        let tombstone = Tombstone { name: input.string()?, disk_id: input.string()? };
        state.removed.insert(number, tombstone);
    }
    state.group0 = take_holders(&mut input)?;
    for _ in 0..input.u32()? {
        let id = PartitionId(input.u32()?);
        let first = input.u64()?;
        let birth = match input.u8()? {
            0 => Birth::Creating,
            1 => Birth::Created,
            other => return Err(input.error(format!("unknown birth state {other}"))),
        };
        let birth_replicas = take_replicas(&mut input)?;
        let replicas = take_replicas(&mut input)?;
        let holders = take_holders(&mut input)?;
        let mut incarnations = BTreeMap::new();
        for _ in 0..input.u32()? {
            incarnations.insert(NodeId(input.u32()?), input.u32()?);
        }
        let rebuilt_at = input.u64()?;
        let partition =
            Partition { first, birth, birth_replicas, replicas, holders, incarnations, rebuilt_at };
        state.partitions.insert(id, partition);
    }
    if input.remaining() > 0 {
        state.sealed = Some(take_sealed(&mut input)?);
    }
    if state.is_formed() {
        // What changes the placement relies on it.
        state.routing().map_err(|problem| input.error(problem))?;
    }
    input.end()?;
    Ok((state, revision))
}

/// What the command was answered, or why it was refused.
pub(super) fn encode_answer(result: &Result<Answer, String>) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    match result {
        Ok(Answer::Done) => out.put_u8(DONE),
        Ok(Answer::Number(number)) => {
            out.put_u8(NUMBER);
            out.put_u32_le(number.0);
        }
        Err(refusal) => {
            out.put_u8(REFUSED);
            out.write_bytes(refusal.as_bytes());
        }
    }
    out.freeze()
}

/// What group 0 said to a command: its answer, or why it refused.
pub fn decode_answer(bytes: &Bytes) -> Result<Answer, String> {
    let decode = || -> Result<Result<Answer, String>, Malformed> {
        let mut input = start("answer of group 0", bytes.clone())?;
        let answer = match input.u8()? {
            DONE => Ok(Answer::Done),
            NUMBER => Ok(Answer::Number(NodeId(input.u32()?))),
            REFUSED => Err(input.string()?),
            other => return Err(input.error(format!("unknown kind {other}"))),
        };
        input.end()?;
        Ok(answer)
    };
    decode().unwrap_or_else(|malformed| Err(malformed.to_string()))
}

fn put_members(out: &mut BytesMut, members: &BTreeMap<NodeId, Member>) {
    put_count(out, members.len());
    for (number, member) in members {
        out.put_u32_le(number.0);
        out.write_bytes(member.name.as_bytes());
        out.write_bytes(member.address.as_bytes());
        out.write_bytes(member.zone.as_bytes());
        out.put_u32_le(member.weight);
        out.write_bytes(member.disk_id.as_bytes());
        out.put_u8(match member.state {
            MemberState::Active => 0,
            MemberState::Leaving => 1,
        });
    }
}

fn take_members(input: &mut Reader) -> Result<BTreeMap<NodeId, Member>, Malformed> {
    let mut members = BTreeMap::new();
    for _ in 0..input.u32()? {
        let number = NodeId(input.u32()?);
        let member = Member {
            name: input.string()?,
            address: input.string()?,
            zone: input.string()?,
            weight: input.u32()?,
            disk_id: input.string()?,
            state: match input.u8()? {
                0 => MemberState::Active,
                1 => MemberState::Leaving,
                other => return Err(input.error(format!("unknown member state {other}"))),
            },
        };
        members.insert(number, member);
    }
    Ok(members)
}

fn put_sealed(out: &mut BytesMut, target: &Sealed) {
    out.write_bytes(target.cluster_id.as_bytes());
    put_count(out, target.addresses.len());
    for address in &target.addresses {
        out.write_bytes(address.as_bytes());
    }
}

fn take_sealed(input: &mut Reader) -> Result<Sealed, Malformed> {
    let cluster_id = input.string()?;
    let addresses = (0..input.u32()?).map(|_| input.string()).collect::<Result<_, _>>()?;
    Ok(Sealed { cluster_id, addresses })
}

fn put_replicas(out: &mut BytesMut, replicas: &[ReplicaId]) {
    put_count(out, replicas.len());
    for replica in replicas {
        out.put_u64_le(replica.0);
    }
}

fn take_replicas(input: &mut Reader) -> Result<Vec<ReplicaId>, Malformed> {
    (0..input.u32()?).map(|_| input.u64().map(ReplicaId)).collect()
}

fn put_holders(out: &mut BytesMut, holders: &Holders) {
    out.put_u64_le(holders.index);
    put_replicas(out, &holders.replicas);
}

fn take_holders(input: &mut Reader) -> Result<Holders, Malformed> {
    Ok(Holders { index: input.u64()?, replicas: take_replicas(input)? })
}
