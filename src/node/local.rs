//! One attempt of a call on this node's own replicas.

use bytes::Bytes;

use super::calls::{GROUP, LEADER};
use super::{Consistency, DataGroup, Deadline, Node};
use crate::codec::Malformed;
use crate::error::{Error, Reason, Result};
use crate::kv::{self, Op};
use crate::limits::{BATCH_OPERATIONS_MAX, KEY_BYTES_MAX, MESSAGE_BYTES_MAX, VALUE_BYTES_MAX};
use crate::meta;
use crate::raft::{ProposeError, ReadError, Space};
use crate::storage;
use crate::types::{GroupId, PartitionId, ReplicaId};

/// What clients are held to holds for what another node passes on, too.
fn check_limits(ops: &[Op]) -> Result<()> {
    let refuse = |why: String| Err(Error::new(Reason::InvalidArgument, why));
    if ops.len() > BATCH_OPERATIONS_MAX {
        return refuse(format!("{} operations; the limit is {BATCH_OPERATIONS_MAX}", ops.len()));
    }
    for op in ops {
        let key = op.key().len();
        if !(1..=KEY_BYTES_MAX).contains(&key) {
            return refuse(format!("a key of {key} bytes; it has 1 to {KEY_BYTES_MAX}"));
        }
        match op {
            Op::Put { value, .. } if value.len() > VALUE_BYTES_MAX => {
                return refuse(format!("a value of {} bytes; the limit is {VALUE_BYTES_MAX}", value.len()));
            }
            Op::Put { .. } | Op::Delete { .. } => {}
        }
    }
    Ok(())
}

impl Node {
    /// Proposes a command to a group that this node leads.
    pub(super) async fn propose_here(
        &self,
        group: GroupId,
        command: Bytes,
        deadline: Deadline,
    ) -> Result<Bytes> {
        let GroupId(number) = group;
        // Also what another node passes on is looked at before it goes into a log: whoever applies a command
        // that can't be read stops that group for good, and so would every node.
        let unreadable = |error: Malformed| Error::new(Reason::InvalidArgument, error.to_string());
        let answer = if group == GroupId::META {
            let seat = self.seat().ok_or_else(|| self.no_leader(group))?;
            let decoded = meta::decode_command(command.clone()).map_err(unreadable)?;
            meta::check_bounds(&decoded).map_err(|why| Error::new(Reason::InvalidArgument, why))?;
            seat.meta.propose(command, deadline).await
        } else {
            let partition = PartitionId(number - 1);
            let replica = self.replica(partition).ok_or_else(|| self.no_replica(partition))?;
            if let kv::Command::Writes(ops) = kv::decode_command(command.clone()).map_err(unreadable)? {
                check_limits(&ops)?;
                // On a condition, it would answer by what is wrong.
                if replica.group.is_in_doubt() {
                    return Err(super::checking::suspect(partition));
                }
                ops.iter().try_for_each(|op| self.disk.check(op))?;
            }
            replica.group.propose(command, deadline).await
        };
        answer.map_err(|error| self.not_proposed(group, error))
    }

    fn not_proposed(&self, group: GroupId, error: ProposeError) -> Error {
        let what = match group {
            GroupId::META => "group 0".to_string(),
            GroupId(number) => format!("partition {}", PartitionId(number - 1)),
        };
        match error {
            ProposeError::NotLeader { leader } => led_by(self.no_leader(group), leader),
            ProposeError::Damaged(_) => Error::new(Reason::ReplicaFailed, format!("{what}: {error}")),
            ProposeError::Overloaded => {
                Error::new(Reason::Overloaded, format!("too many writes wait for {what}"))
            }
            ProposeError::DeadlineBefore => Error::new(
                Reason::DeadlineExceeded,
                "the deadline passed while the write waited for its turn",
            ),
            ProposeError::Unknown(why) => Error::new(
                Reason::OutcomeUnknown,
                format!("the write to {what} may have taken place, or may yet: {why}"),
            ),
        }
    }

    /// Reads keys of one partition, of one moment; stops when the records fill a message.
    pub(super) async fn read_here(
        &self,
        partition: PartitionId,
        keys: Vec<Bytes>,
        how: Consistency,
        deadline: Deadline,
    ) -> Result<Vec<Result<Option<kv::Record>>>> {
        let space = self.readable(partition, how, deadline).await?;
        if let [key] = &keys[..] {
            let record = kv::get(&space, key).map_err(|error| self.doubted(partition, &error));
            return Ok(vec![record]);
        }
        let read = tokio::task::spawn_blocking(move || read_keys(partition, &space, &keys));
        let read = read.await;
        let read =
            read.map_err(|error| Error::new(Reason::Internal, format!("the read was broken off: {error}")));
        let records = read??;
        if records
            .iter()
            .any(|record| record.as_ref().is_err_and(|error| error.reason == Reason::ReplicaFailed))
        {
            self.doubt(partition);
        }
        Ok(records)
    }

    /// What a read is told that met something unreadable; its copy is looked at.
    pub(super) fn doubted(&self, partition: PartitionId, error: &kv::ReadError) -> Error {
        let error = unreadable(partition, error);
        if error.reason == Reason::ReplicaFailed {
            self.doubt(partition);
        }
        error
    }

    /// The records of a partition here, as fresh as asked.
    pub(super) async fn readable(
        &self,
        partition: PartitionId,
        how: Consistency,
        deadline: Deadline,
    ) -> Result<Space> {
        let replica = self.replica(partition).ok_or_else(|| self.no_replica(partition))?;
        let space = self.space(partition, &replica.group, how, deadline).await?;
        match how {
            // Looked at after the space: what is served is from before the halt, then.
            Consistency::Linearizable if replica.totals.is_halted() => {
                Err(super::checking::halted(partition))
            }
            Consistency::Linearizable if replica.group.is_in_doubt() => {
                Err(super::checking::suspect(partition))
            }
            _ => Ok(space),
        }
    }

    /// The same, whether it is halted or not.
    pub(super) async fn space(
        &self,
        partition: PartitionId,
        group: &DataGroup,
        how: Consistency,
        deadline: Deadline,
    ) -> Result<Space> {
        let space = match how {
            Consistency::Stale => group.stale(),
            Consistency::Linearizable => group.read(deadline).await,
        };
        space.map_err(|error| match error {
            ReadError::NotLeader { leader } => {
                led_by(self.no_leader(partition.group()), leader).with(GROUP, partition.group().0)
            }
            ReadError::Damaged(_) => {
                Error::new(Reason::ReplicaFailed, format!("partition {partition}: {error}"))
            }
            ReadError::NoQuorum | ReadError::Recovering | ReadError::Stopped(_) => {
                Error::new(Reason::Unavailable, format!("partition {partition}: {error}"))
            }
            ReadError::Overloaded => {
                Error::new(Reason::Overloaded, format!("too many reads wait for partition {partition}"))
            }
            ReadError::Deadline => Error::new(
                Reason::DeadlineExceeded,
                format!("the deadline passed while partition {partition} confirmed its leader"),
            ),
        })
    }

    fn no_replica(&self, partition: PartitionId) -> Error {
        Error::new(
            Reason::Unavailable,
            format!("node \"{}\" holds no replica of partition {partition}", self.options.name),
        )
        .with(GROUP, partition.group().0)
    }
}

fn led_by(error: Error, leader: Option<ReplicaId>) -> Error {
    match leader {
        Some(leader) => error.with(LEADER, leader.node().0),
        None => error,
    }
}

pub(super) fn unreadable(partition: PartitionId, error: &kv::ReadError) -> Error {
    if let kv::ReadError::Storage(storage::Error::ViewExpired { .. }) = error {
        let message = format!("partition {partition}: the view expired under the load of writes; try again");
        return Error::new(Reason::Overloaded, message);
    }
    tracing::error!(%partition, %error, "a record can't be read");
    Error::new(
        Reason::ReplicaFailed,
        format!("this node's copy of partition {partition} can't be read: {error}"),
    )
}

fn read_keys(
    partition: PartitionId,
    space: &Space,
    keys: &[Bytes],
) -> Result<Vec<Result<Option<kv::Record>>>> {
    let view = space.view().map_err(|error| unreadable(partition, &error.into()))?;
    let mut results = Vec::with_capacity(keys.len());
    let mut bytes = 0;
    for key in keys {
        if bytes >= MESSAGE_BYTES_MAX {
            break;
        }
        let record = kv::get_in(&view, key).map_err(|error| unreadable(partition, &error));
        if let Ok(Some(record)) = &record {
            bytes += key.len() + record.value.len();
        }
        results.push(record);
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_client_may_ask_for_gets_into_no_log() {
        let put = |key: usize, value: usize| Op::Put {
            key: vec![b'k'; key].into(),
            value: vec![b'v'; value].into(),
            precondition: kv::Precondition::None,
        };
        let delete =
            |key: usize| Op::Delete { key: vec![b'k'; key].into(), precondition: kv::Precondition::None };
        for ops in [
            vec![put(KEY_BYTES_MAX, VALUE_BYTES_MAX), delete(KEY_BYTES_MAX), put(1, 0)],
            vec![put(1, 1); BATCH_OPERATIONS_MAX],
        ] {
            assert_eq!(check_limits(&ops), Ok(()));
        }
        for (ops, why) in [
            (vec![put(1, 1), put(0, 1)], "a key of 0 bytes"),
            (vec![delete(0)], "a key of 0 bytes"),
            (vec![put(KEY_BYTES_MAX + 1, 1)], "a key of 4097 bytes"),
            (vec![put(1, 1), delete(70_000)], "a key of 70000 bytes"),
            (vec![put(1, VALUE_BYTES_MAX + 1)], "a value of 1048577 bytes"),
            (vec![put(1, 1); BATCH_OPERATIONS_MAX + 1], "4097 operations"),
        ] {
            let error = check_limits(&ops).unwrap_err();
            assert_eq!(error.reason, Reason::InvalidArgument);
            assert!(error.message.starts_with(why), "{error}");
        }
    }
}
