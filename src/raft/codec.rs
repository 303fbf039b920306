//! Votes, entries and memberships as bytes: our own encoding, so that the consensus engine can be
//! replaced without touching what is on disk. Drawn in `docs/formats/raft.md`.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};
use openraft::EntryPayload;

use super::types::{Command, Entry, Membership, Payload, StoredMembership, Vote, log_id, raft_log_id};
use crate::codec::{Malformed, Reader};
use crate::types::LogId;
use crate::wal;

const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// A vote: term, the replica voted for, and whether a quorum granted it.
pub(crate) fn encode_vote(vote: &Vote) -> Bytes {
    let mut out = BytesMut::with_capacity(17);
    put_vote(&mut out, vote);
    out.freeze()
}

pub(crate) fn decode_vote(bytes: Bytes) -> Result<Vote, Malformed> {
    let mut input = Reader::new("vote", bytes);
    let vote = take_vote(&mut input)?;
    input.end()?;
    Ok(vote)
}

pub(crate) fn put_vote(out: &mut BytesMut, vote: &Vote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.voted_for);
    out.put_u8(u8::from(vote.committed));
}

pub(crate) fn take_vote(input: &mut Reader) -> Result<Vote, Malformed> {
    let term = input.u64()?;
    let replica = input.u64()?;
    match input.u8()? {
        0 => Ok(Vote::new(term, replica)),
        1 => Ok(Vote::new_committed(term, replica)),
        other => Err(input.error(format!("committed is {other}"))),
    }
}

pub(crate) fn encode_entry(entry: Entry) -> wal::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => Bytes::from_static(&[BLANK]),
        payload => {
            let mut out = BytesMut::with_capacity(payload_bytes(payload));
            put_payload(&mut out, payload);
            out.freeze()
        }
    };
    wal::Entry { id: log_id(&entry.log_id), payload }
}

pub(crate) fn decode_entry(entry: wal::Entry) -> Result<Entry, Malformed> {
    let payload = decode_payload(entry.id, entry.payload)?;
    Ok(Entry { log_id: raft_log_id(entry.id), payload })
}

/// How long an entry's payload is when it is encoded.
pub(crate) fn payload_bytes(payload: &Payload) -> usize {
    match payload {
        EntryPayload::Blank => 1,
        EntryPayload::Normal(command) => 1 + command.0.len(),
        EntryPayload::Membership(membership) => {
            let configs = membership.get_joint_config();
            let ids = configs.iter().map(BTreeSet::len).sum::<usize>() + membership.nodes().count();
            1 + 4 + 4 * (configs.len() + 1) + 8 * ids
        }
    }
}

pub(crate) fn put_payload(out: &mut BytesMut, payload: &Payload) {
    match payload {
        EntryPayload::Blank => out.put_u8(BLANK),
        EntryPayload::Normal(command) => {
            out.put_u8(COMMAND);
            out.put_slice(&command.0);
        }
        EntryPayload::Membership(membership) => {
            out.put_u8(MEMBERSHIP);
            put_membership(out, membership);
        }
    }
}

/// A command is a part of `payload`, not a copy.
pub(crate) fn decode_payload(id: LogId, payload: Bytes) -> Result<Payload, Malformed> {
    let mut input = Reader::new("log entry", payload);
    let payload = match input.u8()? {
        BLANK => EntryPayload::Blank,
        COMMAND => EntryPayload::Normal(Command(input.rest())),
        MEMBERSHIP => EntryPayload::Membership(take_membership(&mut input)?),
        other => return Err(input.error(format!("unknown kind {other} at {id}"))),
    };
    input.end()?;
    Ok(payload)
}

/// The last membership applied, with the log id of its entry.
pub(crate) fn encode_stored_membership(stored: &StoredMembership) -> Bytes {
    let mut out = BytesMut::new();
    put_log_id(&mut out, stored.log_id().as_ref().map(log_id));
    put_membership(&mut out, stored.membership());
    out.freeze()
}

pub(crate) fn decode_stored_membership(bytes: Bytes) -> Result<StoredMembership, Malformed> {
    let mut input = Reader::new("membership", bytes);
    let id = take_log_id(&mut input)?;
    let membership = take_membership(&mut input)?;
    input.end()?;
    Ok(StoredMembership::new(id.map(raft_log_id), membership))
}

/// A log id that may be missing: a flag byte, then term and index.
pub(crate) fn put_log_id(out: &mut BytesMut, id: Option<LogId>) {
    match id {
        None => out.put_u8(0),
        Some(id) => {
            out.put_u8(1);
            out.put_u64_le(id.term);
            out.put_u64_le(id.index);
        }
    }
}

pub(crate) fn take_log_id(input: &mut Reader) -> Result<Option<LogId>, Malformed> {
    match input.u8()? {
        0 => Ok(None),
        1 => Ok(Some(LogId { term: input.u64()?, index: input.u64()? })),
        other => Err(input.error(format!("log id flag is {other}"))),
    }
}

fn put_membership(out: &mut BytesMut, membership: &Membership) {
    let configs = membership.get_joint_config();
    put_count(out, configs.len());
    for config in configs {
        put_replicas(out, config.iter().copied());
    }
    put_replicas(out, membership.nodes().map(|(id, ())| *id));
}

fn put_replicas(out: &mut BytesMut, ids: impl Iterator<Item = u64>) {
    let ids: BTreeSet<u64> = ids.collect();
    put_count(out, ids.len());
    for id in ids {
        out.put_u64_le(id);
    }
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u32_le(u32::try_from(count).expect("a membership has a handful of members"));
}

fn take_membership(input: &mut Reader) -> Result<Membership, Malformed> {
    let configs =
        (0..input.u32()?).map(|_| take_replicas(input)).collect::<Result<Vec<BTreeSet<u64>>, Malformed>>()?;
    let nodes = take_replicas(input)?;
    Membership::new(
        configs,
        nodes.into_iter().map(|id| (id, ())).collect::<std::collections::BTreeMap<_, _>>(),
    )
    .map_err(|error| input.error(error.to_string()))
}

fn take_replicas(input: &mut Reader) -> Result<BTreeSet<u64>, Malformed> {
    (0..input.u32()?).map(|_| input.u64()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(entry: Entry) {
        assert_eq!(encode_entry(entry.clone()).payload.len(), payload_bytes(&entry.payload));
        assert_eq!(decode_entry(encode_entry(entry.clone())).unwrap(), entry);
    }

    #[test]
    fn entries_survive() {
        let id = raft_log_id(LogId { term: 3, index: 7 });
        round_trip(Entry { log_id: id, payload: EntryPayload::Blank });
        round_trip(Entry { log_id: id, payload: EntryPayload::Normal(Command(Bytes::from_static(b"put"))) });
        let membership = Membership::new(
            vec![[1, 2, 3].into(), [2, 3, 4].into()],
            (1..=6).map(|id| (id, ())).collect::<std::collections::BTreeMap<u64, ()>>(),
        )
        .unwrap();
        round_trip(Entry { log_id: id, payload: EntryPayload::Membership(membership.clone()) });
        let stored = StoredMembership::new(Some(id), membership);
        assert_eq!(decode_stored_membership(encode_stored_membership(&stored)).unwrap(), stored);
        let empty = StoredMembership::default();
        assert_eq!(decode_stored_membership(encode_stored_membership(&empty)).unwrap(), empty);
    }

    proptest! {
        #[test]
        fn votes_survive(term: u64, replica: u64, committed: bool) {
            let vote = if committed { Vote::new_committed(term, replica) } else { Vote::new(term, replica) };
            prop_assert_eq!(decode_vote(encode_vote(&vote)).unwrap(), vote);
        }

        #[test]
        fn nonsense_is_an_error_not_a_panic(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let _ = decode_vote(bytes.clone());
            let _ = decode_stored_membership(bytes.clone());
            let _ = decode_entry(wal::Entry { id: LogId::default(), payload: bytes });
        }
    }
}
