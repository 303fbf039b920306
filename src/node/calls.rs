//! Reads and writes from anybody: route, do it here or pass it on, and try again what surely did not
//! happen, until the deadline. `local` and `forward` do one attempt each.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::{Consistency, Deadline, Node, Routed, RoutedBatch};
use crate::error::{Error, Reason, Result};
use crate::kv::{self, Op, Outcome};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::placement;
use crate::raft;
use crate::transport::{Kind, Leader};
use crate::types::{GroupId, NodeId, PartitionId};

/// Between two attempts while nobody is known to lead: an election takes about a second.
const PAUSE: Duration = Duration::from_millis(25);

/// Where a group is to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Here,
    There(NodeId),
}

/// The node that leads a group, as far as its replica here knows; if that is none, whether this replica votes.
fn look<M: raft::Machine>(group: &raft::Group<M>, here: NodeId) -> (Option<NodeId>, bool) {
    match group.live_leader() {
        Some(leader) => (Some(leader.node()), true),
        None => (None, group.status().voters.iter().any(|voter| voter.node() == here)),
    }
}

/// Whether the call surely did not take place, and may well do so a little later.
pub(super) fn is_worth_repeating(error: &Error) -> bool {
    matches!(error.reason, Reason::Unavailable | Reason::ShuttingDown)
}

impl Node {
    /// Writes one key; answers once it is durable and applied.
    pub async fn write(&self, op: Op, deadline: Deadline) -> Result<Outcome> {
        self.write_routed(op, deadline).await.result
    }

    /// The same; also tells who leads, if that is another node.
    pub async fn write_routed(&self, op: Op, deadline: Deadline) -> Routed<Outcome> {
        let mut tried = None;
        let result = async {
            let _call = self.enter()?;
            let (_, partition) = self.locate(op.key())?;
            let ops = std::slice::from_ref(&op);
            let mut outcomes = self.write_partition(partition, ops, deadline, &mut tried).await?;
            let outcome = outcomes.pop().ok_or_else(|| unanswered(partition))?;
            checked(outcome)
        };
        let result = result.await;
        self.routed(op.key(), result, tried)
    }

    /// Writes many keys: atomic per partition, one outcome per operation, in order.
    pub async fn write_batch(&self, ops: Vec<Op>, deadline: Deadline) -> Vec<Result<Outcome>> {
        self.write_batch_routed(ops, deadline).await.results
    }

    /// The same; also tells who leads the partition of the first key, if that is another node.
    pub async fn write_batch_routed(&self, ops: Vec<Op>, deadline: Deadline) -> RoutedBatch<Outcome> {
        let count = ops.len();
        let refused = |error: Error| RoutedBatch { results: vec![Err(error); count], leader: None };
        let _call = match self.enter() {
            Ok(call) => call,
            Err(error) => return refused(error),
        };
        let first = ops.first().map(|op| op.key().clone()).unwrap_or_default();
        let mut parts: BTreeMap<PartitionId, (Vec<usize>, Vec<Op>)> = BTreeMap::new();
        for (position, op) in ops.into_iter().enumerate() {
            match self.locate(op.key()) {
                Ok((_, partition)) => {
                    let part = parts.entry(partition).or_default();
                    part.0.push(position);
                    part.1.push(op);
                }
                Err(error) => return refused(error),
            }
        }
        // What a partition gets takes place together, or not at all: a refused put takes the deletes
        // beside it along.
        let written = parts.into_iter().map(|(partition, (positions, ops))| async move {
            let mut tried = None;
            let results = match self.write_partition(partition, &ops, deadline, &mut tried).await {
                Ok(outcomes) if outcomes.len() == ops.len() => {
                    Ok(outcomes.into_iter().map(checked).collect())
                }
                Ok(_) => Err(unanswered(partition)),
                Err(error) => Err(error),
            };
            Part { positions, tried, results }
        });
        let (results, tried) = in_order(count, join_all(written).await);
        let missing = || Err(Error::new(Reason::Internal, "an operation of the batch was not carried out"));
        let results: Vec<Result<Outcome>> =
            results.into_iter().map(|result| result.unwrap_or_else(missing)).collect();
        let leader = results.first().and_then(|result| self.told_by(&first, result, tried));
        RoutedBatch { results, leader }
    }

    pub async fn get(&self, key: Bytes, how: Consistency, deadline: Deadline) -> Result<Option<kv::Record>> {
        self.get_routed(key, how, deadline).await.result
    }

    /// The same; also tells who leads, if that is another node and it was asked.
    pub async fn get_routed(
        &self,
        key: Bytes,
        how: Consistency,
        deadline: Deadline,
    ) -> Routed<Option<kv::Record>> {
        let mut tried = None;
        let result = async {
            let _call = self.enter()?;
            let (_, partition) = self.locate(&key)?;
            let keys = vec![key.clone()];
            let mut found = self.read_partition(partition, keys, how, deadline, &mut tried).await?;
            found.pop().unwrap_or_else(|| Err(unanswered(partition)))
        };
        let result = result.await;
        let tried = tried.filter(|_| how == Consistency::Linearizable);
        self.routed(&key, result, tried)
    }

    fn routed<T>(&self, key: &[u8], result: Result<T>, tried: Option<Place>) -> Routed<T> {
        let leader = self.told_by(key, &result, tried);
        Routed { result, leader }
    }

    /// Who was asked leads if it did what only a leader does.
    fn told_by<T>(&self, key: &[u8], result: &Result<T>, tried: Option<Place>) -> Option<Leader> {
        let done = match result {
            Ok(_) => true,
            Err(error) => error.reason == Reason::PreconditionFailed,
        };
        tried.filter(|_| done).and_then(|place| self.leader_at(key, place))
    }

    fn leader_at(&self, key: &[u8], place: Place) -> Option<Leader> {
        let Place::There(node) = place else { return None };
        let cluster = self.cluster()?;
        Some(Leader {
            cluster_id: cluster.state.cluster_id.clone(),
            epoch: cluster.state.epoch,
            partition: cluster.routing.partition_of(placement::hash(key)),
            address: cluster.state.members.get(&node)?.address.clone(),
        })
    }

    /// Whether this node is of the cluster with this id. One that has no cluster yet does not say no: it
    /// has its own refusal.
    pub fn is_of_cluster(&self, id: &str) -> bool {
        self.seat().is_none_or(|seat| seat.identity.cluster_id == id)
    }

    /// Reads many keys: one consistent view per partition, one result per key, in order. Stops when the
    /// records fill a message: then there are fewer results than keys, those of the first ones.
    pub async fn get_batch(
        &self,
        keys: Vec<Bytes>,
        how: Consistency,
        deadline: Deadline,
    ) -> Vec<Result<Option<kv::Record>>> {
        self.get_batch_routed(keys, how, deadline).await.results
    }

    /// The same; also tells who leads the partition of the first key, if that is another node and it was asked.
    pub async fn get_batch_routed(
        &self,
        keys: Vec<Bytes>,
        how: Consistency,
        deadline: Deadline,
    ) -> RoutedBatch<Option<kv::Record>> {
        let refused = |error: Error| {
            let results = keys.iter().map(|_| Err(error.clone())).collect();
            RoutedBatch { results, leader: None }
        };
        let _call = match self.enter() {
            Ok(call) => call,
            Err(error) => return refused(error),
        };
        let mut parts: BTreeMap<PartitionId, (Vec<usize>, Vec<Bytes>)> = BTreeMap::new();
        for (position, key) in keys.iter().enumerate() {
            match self.locate(key) {
                Ok((_, partition)) => {
                    let part = parts.entry(partition).or_default();
                    part.0.push(position);
                    part.1.push(key.clone());
                }
                Err(error) => return refused(error),
            }
        }
        let reads = parts.into_iter().map(|(partition, (positions, keys))| async move {
            let mut tried = None;
            let results = self.read_partition(partition, keys, how, deadline, &mut tried).await;
            Part { positions, tried, results }
        });
        let (found, tried) = in_order(keys.len(), join_all(reads).await);
        let results = first_that_fit(&keys, found);
        let tried = tried.filter(|_| how == Consistency::Linearizable);
        let leader = keys.first().zip(results.first());
        let leader = leader.and_then(|(key, result)| self.told_by(key, result, tried));
        RoutedBatch { results, leader }
    }

    /// A key's hash and the partition that holds it.
    pub fn locate(&self, key: &[u8]) -> Result<(u64, PartitionId)> {
        let hash = placement::hash(key);
        Ok((hash, self.formed()?.routing.partition_of(hash)))
    }

    async fn write_partition(
        &self,
        partition: PartitionId,
        ops: &[Op],
        deadline: Deadline,
        tried: &mut Option<Place>,
    ) -> Result<Vec<Outcome>> {
        let answer =
            self.propose_somewhere(partition.group(), kv::encode_command(ops), deadline, tried).await?;
        match kv::decode_answer(answer) {
            Ok(kv::Answer::Outcomes(outcomes)) => Ok(outcomes),
            Ok(kv::Answer::Sealed) => {
                let message = format!(
                    "node \"{}\" gives its cluster up to join another: the write did not take place; try again \
                     shortly",
                    self.options.name
                );
                Err(Error::new(Reason::Unavailable, message))
            }
            Ok(kv::Answer::Halted) => Err(super::checking::halted(partition)),
            Err(error) => Err(Error::new(Reason::Internal, error.to_string())),
        }
    }

    /// Proposes a command to a group, wherever it is led.
    pub(super) async fn propose_to(
        &self,
        group: GroupId,
        command: Bytes,
        deadline: Deadline,
    ) -> Result<Bytes> {
        self.propose_somewhere(group, command, deadline, &mut None).await
    }

    async fn propose_somewhere(
        &self,
        group: GroupId,
        command: Bytes,
        deadline: Deadline,
        tried: &mut Option<Place>,
    ) -> Result<Bytes> {
        let attempt = |place| {
            let command = command.clone();
            async move {
                match place {
                    Place::Here => self.propose_here(group, command, deadline).await,
                    Place::There(node) => self.propose_there(node, group, command, deadline).await,
                }
            }
        };
        self.at_leader(group, Kind::Write, deadline, attempt, tried).await
    }

    async fn read_partition(
        &self,
        partition: PartitionId,
        keys: Vec<Bytes>,
        how: Consistency,
        deadline: Deadline,
        tried: &mut Option<Place>,
    ) -> Result<Vec<Result<Option<kv::Record>>>> {
        let attempt = |place| {
            let keys = keys.clone();
            async move {
                match place {
                    Place::Here => self.read_here(partition, keys, how, deadline).await,
                    Place::There(node) => self.read_there(node, keys, how, deadline).await,
                }
            }
        };
        match how {
            Consistency::Linearizable => {
                self.at_leader(partition.group(), Kind::Read, deadline, attempt, tried).await
            }
            Consistency::Stale => {
                let place = self.holder_of(partition)?;
                self.routing_metrics.tried(place);
                attempt(place).await
            }
        }
    }

    /// Makes attempts where the group is led, until one is answered, fails in a way that is not worth
    /// repeating, or the deadline is near. `tried`: where the last one was made.
    pub(super) async fn at_leader<T, F>(
        &self,
        group: GroupId,
        kind: Kind,
        deadline: Deadline,
        attempt: impl Fn(Place) -> F,
        tried: &mut Option<Place>,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        loop {
            let place = self.leader_of(group);
            *tried = place.as_ref().ok().copied();
            if let Some(place) = tried.filter(|_| group != GroupId::META) {
                self.routing_metrics.tried(place);
            }
            let result = match &place {
                Ok(Place::Here) => attempt(Place::Here).await,
                Ok(there @ Place::There(node)) => tokio::select! {
                    biased;
                    result = attempt(*there) => result,
                    error = self.superseded(group, *node, kind) => Err(error),
                },
                Err(error) => Err(error.clone()),
            };
            let error = match result {
                Err(error) if is_worth_repeating(&error) => error,
                done => return done,
            };
            self.note_leader(group, place.ok(), &error);
            if Instant::now() + PAUSE >= deadline || self.calls.is_closed() {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Where a group is led, as far as is known here.
    pub(super) fn leader_of(&self, group: GroupId) -> Result<Place> {
        let seat = self.seat().ok_or_else(|| self.no_leader(group))?;
        let number = seat.number();
        let mut damaged = false;
        let (known, votes) = match group {
            GroupId::META => look(&seat.meta, number),
            GroupId(of) => {
                let replica = self.replica(PartitionId(of - 1));
                damaged = replica.as_ref().is_some_and(|replica| replica.group.damage().is_some());
                replica.filter(|_| !damaged).map_or((None, false), |replica| look(&replica.group, number))
            }
        };
        if let Some(leader) = known {
            return Ok(match leader == number {
                true => Place::Here,
                false => Place::There(leader),
            });
        }
        if votes {
            return Err(self.no_leader(group));
        }
        // No voter here hears of leaders: somebody else has to be asked.
        let hint = self.hints.lock().unwrap_or_else(PoisonError::into_inner).get(&group).copied();
        match hint.or_else(|| self.next_holder(group, None)) {
            Some(node) => Ok(Place::There(node)),
            // Which says what is wrong with it.
            None if damaged => Ok(Place::Here),
            None => Err(self.no_leader(group)),
        }
    }

    /// Learns from a refusal who is to be asked next.
    pub(super) fn note_leader(&self, group: GroupId, asked: Option<Place>, error: &Error) {
        let Some(Place::There(asked)) = asked else { return };
        let told = error.metadata.get(LEADER).and_then(|number| number.parse().ok()).map(NodeId);
        let next = told.filter(|node| *node != asked).or_else(|| self.next_holder(group, Some(asked)));
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        match next {
            Some(node) => hints.insert(group, node),
            None => hints.remove(&group),
        };
    }

    /// The holder of a replica after `node`, in their order and round again.
    fn next_holder(&self, group: GroupId, node: Option<NodeId>) -> Option<NodeId> {
        let cluster = self.cluster()?;
        let me = self.seat()?.number();
        let holders: Vec<NodeId> = match group {
            GroupId::META => cluster.state.members.keys().copied().collect(),
            GroupId(number) => {
                let partition = cluster.state.partitions.get(&PartitionId(number - 1))?;
                // Who is to leave it may lead it yet.
                partition
                    .replicas
                    .iter()
                    .chain(&partition.holders.replicas)
                    .map(|replica| replica.node())
                    .collect()
            }
        };
        let mut others: Vec<NodeId> = Vec::with_capacity(holders.len());
        for holder in holders {
            if holder != me && !others.contains(&holder) {
                others.push(holder);
            }
        }
        let after = node.and_then(|node| others.iter().position(|holder| *holder == node));
        let next = after.map_or(0, |at| at + 1);
        others.get(next).or(others.first()).copied()
    }

    /// Where some replica of the partition is, here if there is one.
    pub(super) fn holder_of(&self, partition: PartitionId) -> Result<Place> {
        let here = self.replica(partition);
        // One that was never in the group has nothing.
        if here.as_ref().is_some_and(|replica| replica.group.status().membership.is_some()) {
            return Ok(Place::Here);
        }
        match self.next_holder(partition.group(), None) {
            Some(holder) => Ok(Place::There(holder)),
            // It says what is wrong with it.
            None if here.is_some() => Ok(Place::Here),
            None => Err(self.no_leader(partition.group())),
        }
    }

    pub(super) fn no_leader(&self, group: GroupId) -> Error {
        let message = match group {
            GroupId::META => "group 0 has no leader that node".to_string(),
            GroupId(number) => format!("partition {} has no leader that node", PartitionId(number - 1)),
        };
        Error::new(Reason::Unavailable, format!("{message} \"{}\" knows of", self.options.name))
    }

    /// Counts a call in, so that a stop waits for it; refused while stopping.
    pub(super) fn enter(&self) -> Result<OwnedSemaphorePermit> {
        self.calls.clone().try_acquire_owned().map_err(|_| {
            Error::new(Reason::ShuttingDown, format!("node \"{}\" is stopping", self.options.name))
        })
    }
}

/// Metadata of a refusal: the number of the node that leads.
pub(super) const LEADER: &str = "leader_node";

/// Metadata of a refusal: the number of the group that it is about.
pub(super) const GROUP: &str = "group";

/// What came of one partition's share of a call on several keys.
struct Part<T> {
    /// Of its keys, in the call.
    positions: Vec<usize>,
    /// Where it was asked for.
    tried: Option<Place>,
    results: Result<Vec<Result<T>>>,
}

/// The results in the order of the call's keys, and where the first of them was asked for. `None`: its partition
/// answered less than it was asked for.
fn in_order<T: Clone>(count: usize, parts: Vec<Part<T>>) -> (Vec<Option<Result<T>>>, Option<Place>) {
    let mut results: Vec<Option<Result<T>>> = vec![None; count];
    let mut first = None;
    for Part { positions, tried, results: part } in parts {
        if positions.first() == Some(&0) {
            first = tried;
        }
        match part {
            Ok(part) => {
                for (position, result) in positions.into_iter().zip(part) {
                    results[position] = Some(result);
                }
            }
            Err(error) => {
                for position in positions {
                    results[position] = Some(Err(error.clone()));
                }
            }
        }
    }
    (results, first)
}

/// The results of the first keys, as many as fit in a message.
fn first_that_fit(
    keys: &[Bytes],
    found: Vec<Option<Result<Option<kv::Record>>>>,
) -> Vec<Result<Option<kv::Record>>> {
    let mut bytes = 0;
    let mut results = Vec::with_capacity(found.len());
    for (key, found) in keys.iter().zip(found) {
        // A partition whose records filled a message of their own has none for its later keys.
        let Some(found) = found else { break };
        if bytes >= MESSAGE_BYTES_MAX {
            break;
        }
        if let Ok(Some(record)) = &found {
            bytes += key.len() + record.value.len();
        }
        results.push(found);
    }
    results
}

fn checked(outcome: Outcome) -> Result<Outcome> {
    match outcome {
        Outcome::PreconditionFailed { current_version } => Err(Error::new(
            Reason::PreconditionFailed,
            match current_version {
                0 => "the key is not there".to_string(),
                version => format!("the key is there with version {version}"),
            },
        )
        .with("current_version", current_version)),
        done => Ok(done),
    }
}

fn unanswered(partition: PartitionId) -> Error {
    Error::new(
        Reason::Internal,
        format!("partition {partition} answered for fewer operations than it was given"),
    )
}
