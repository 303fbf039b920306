//! For fuzzing: commands of group 0 are read or refused, and applied in any order they leave a state that
//! holds its own rules; states are read or refused.

use bytes::Bytes;

use super::codec::{decode_answer, decode_command, decode_state, encode_command, encode_state};
use super::{Command, Form, Join, Member, MemberState, Sealed, State, number_members};
use crate::placement::check;
use crate::types::{Epoch, GroupId, NodeId, PartitionId, ReplicaId};

/// More would be slow, and show nothing new.
const PARTITIONS_MAX: u32 = 64;

/// Commands in a row, each behind its length in two bytes, on a cluster of three.
pub fn history(input: &[u8]) -> bool {
    let mut state = State::default();
    apply(&mut state, Command::Form(form(&["a", "b", "c"])));
    let mut rest = input;
    let mut any = false;
    while let [low, high, tail @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let bytes = Bytes::copy_from_slice(&tail[..length]);
        rest = &tail[length..];
        let _ = decode_answer(&bytes);
        let Ok(command) = decode_command(bytes) else { continue };
        let written = encode_command(&command);
        assert_eq!(decode_command(written).expect("what is written can be read"), command);
        if matches!(&command, Command::Form(form) if form.partitions > PARTITIONS_MAX) {
            continue;
        }
        any = true;
        apply(&mut state, command);
    }
    any
}

/// Applies a command twice, as a redo may: the second time changes nothing.
fn apply(state: &mut State, command: Command) {
    let before = state.clone();
    let answer = state.apply(command.clone());
    assert!(answer.is_ok() || *state == before, "a refused command has changed something");
    let once = state.clone();
    let again = state.apply(command);
    assert_eq!((&again, &*state), (&answer, &once), "applied again");
    let routing = state.routing().expect("a formed state has its routing");
    check(&state.placement(), &routing, &state.candidates(), state.replicas).expect("the placement holds");
    let written = encode_state(state, 9);
    assert_eq!(decode_state(written).expect("what is written can be read"), (once, 9));
}

/// A state with its checksum made good.
pub fn state(input: &[u8]) -> bool {
    let mut mended = input.to_vec();
    mended.extend(crc32c::crc32c(input).to_le_bytes());
    let _ = decode_state(Bytes::copy_from_slice(input));
    let Ok((state, revision)) = decode_state(mended.into()) else { return false };
    let written = encode_state(&state, revision);
    assert_eq!(decode_state(written).expect("what is written can be read"), (state, revision));
    true
}

fn member(name: &str) -> Member {
    Member {
        name: name.into(),
        address: format!("{name}:1"),
        zone: String::new(),
        weight: 1,
        disk_id: name.repeat(2),
        state: MemberState::Active,
    }
}

fn form(names: &[&str]) -> Form {
    let members = number_members(names.iter().map(|name| member(name)));
    Form { cluster_id: "id".into(), cluster_name: "n".into(), replicas: 2, partitions: 4, members }
}

pub fn history_seeds() -> Vec<Vec<u8>> {
    let Member { name, address, zone, weight, disk_id, .. } = member("d");
    let join = Join { name, address: address.clone(), zone: zone.clone(), weight, disk_id, version_max: 9 };
    let holders = vec![ReplicaId::new(NodeId(1), 1), ReplicaId::new(NodeId(2), 1)];
    let commands = [
        Command::Form(form(&["a"])),
        Command::Created(PartitionId(2)),
        Command::Join(join),
        Command::UpdateMember { number: NodeId(2), address, zone, weight: 3 },
        Command::Moved { group: GroupId(1), holders: holders.clone(), index: 7 },
        Command::Renew { partition: PartitionId(1), replica: holders[0] },
        Command::Leave(NodeId(3)),
        Command::Removed(NodeId(3)),
        Command::SetVersion { version: 1, epoch: Epoch(3) },
        Command::Seal(Sealed { cluster_id: "t".into(), addresses: vec!["t:1".into()] }),
        Command::Unseal,
    ];
    let framed = |command: &Command| {
        let bytes = encode_command(command);
        [&(bytes.len() as u16).to_le_bytes()[..], &bytes].concat()
    };
    let mut seeds: Vec<Vec<u8>> = commands.iter().map(framed).collect();
    seeds.push(seeds.concat());
    seeds
}

pub fn state_seeds() -> Vec<Vec<u8>> {
    let mut formed = State::default();
    apply(&mut formed, Command::Form(form(&["a", "b"])));
    let bodies = [State::default(), formed].map(|state| encode_state(&state, 3));
    bodies.iter().map(|bytes| bytes[..bytes.len() - 4].to_vec()).collect()
}
