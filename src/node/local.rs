//! One attempt of a call on this node's own replicas.

use bytes::Bytes;

use super::calls::{GROUP, LEADER};
use super::{Consistency, DataGroup, Deadline, Node};
use crate::codec::Malformed;
use crate::error::{Error, Reason, Result};
use crate::kv;
use crate::limits::MESSAGE_BYTES_MAX;
use crate::meta;
use crate::raft::{ProposeError, ReadError, Space};
use crate::storage;
use crate::types::{GroupId, PartitionId, ReplicaId};

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
            meta::decode_command(command.clone()).map_err(unreadable)?;
            seat.meta.propose(command, deadline).await
        } else {
            let partition = PartitionId(number - 1);
            let replica = self.replica(partition).ok_or_else(|| self.no_replica(partition))?;
            if let kv::Command::Writes(ops) = kv::decode_command(command.clone()).map_err(unreadable)? {
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
