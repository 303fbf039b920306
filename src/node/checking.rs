//! Compares replicas (rule 11): their leader marks a place in the log, each replica notes there what its
//! records come to, the leader asks them, and tells what `divergence` makes of it through the log. Who is
//! outvoted stops when it applies that; `rebuilding` replaces it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Weak;
use std::time::Duration;

use futures_util::future::join_all;
use prometheus::{IntCounter, Registry};
use tokio::time::{Instant, sleep};

use super::calls::Place;
use super::divergence::{Agreement, judge, others_agree};
use super::{Deadline, Node, Replica};
use crate::error::{Error, Reason, Result};
use crate::kv::{self, Verdict};
use crate::proto::v1;
use crate::raft::Role;
use crate::transport::Kind;
use crate::types::{PartitionId, ReplicaId};

/// From one comparison of a partition that is written to, to the next one.
const INTERVAL: Duration = Duration::from_secs(60);

/// From the beginning of a leadership to its first one.
const FIRST_WITHIN: Duration = Duration::from_secs(5);

/// From one in which somebody was missing to the next one.
const AGAIN_AFTER: Duration = Duration::from_secs(20);

/// Between two looks at what this node leads.
const LOOK: Duration = Duration::from_secs(2);

/// For one comparison; who has not come as far as the mark by then is compared the next time.
const COMPARED_WITHIN: Duration = Duration::from_secs(10);

/// What a replica has to come as far as the mark, within that.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// Between two looks whether it has.
const AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Metrics {
    compared: IntCounter,
    diverged: IntCounter,
}

impl Metrics {
    /// # Errors
    /// If `registry` has metrics of these names already.
    pub fn register(registry: &Registry) -> prometheus::Result<Metrics> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        Ok(Metrics {
            compared: counter(
                "rushkv_node_comparisons_total",
                "Comparisons of all replicas of a partition that this node led, and in which nobody was missing.",
            )?,
            diverged: counter(
                "rushkv_node_divergences_total",
                "Comparisons in which replicas of a partition differed.",
            )?,
        })
    }
}

/// Of a led partition.
struct Checked {
    due: Instant,
    /// The last mark.
    index: u64,
    /// Everybody was compared there, and nobody differed.
    complete: bool,
}

impl Checked {
    /// Of a group that this node just began to lead, perhaps with what an unclean start has left of its copy: soon,
    /// though not all of them at once.
    fn begun(partition: PartitionId) -> Checked {
        let part = partition.0 % PARTS + 1;
        Checked { due: Instant::now() + FIRST_WITHIN * part / PARTS, index: 0, complete: false }
    }
}

/// Moments over which first comparisons are spread.
const PARTS: u32 = 32;

pub(super) async fn run(node: Weak<Node>) {
    let mut memory: HashMap<PartitionId, Checked> = HashMap::new();
    loop {
        sleep(LOOK).await;
        let Some(node) = node.upgrade() else { return };
        let led: BTreeMap<PartitionId, Replica> = (node.replicas().into_iter())
            .filter(|(_, replica)| replica.group.status().role == Role::Leader)
            .collect();
        memory.retain(|partition, _| led.contains_key(partition));
        let due = led.into_iter().filter(|(partition, replica)| {
            let last = memory.entry(*partition).or_insert_with(|| Checked::begun(*partition));
            let is_news = !last.complete || applied(replica) > last.index;
            last.due <= Instant::now() && is_news && replica.totals.is_written()
        });
        let deadline = Instant::now() + COMPARED_WITHIN;
        let node = &node;
        let compared = due.map(|(partition, _)| async move {
            let compared = node.compare_here(partition, deadline).await;
            let (complete, index) = match compared {
                Ok(comparison) => (comparison.agreement() == v1::Agreement::Same, comparison.mark),
                Err(error) => {
                    tracing::debug!(%partition, %error, "the replicas were not compared; later again");
                    (false, 0)
                }
            };
            let pause = if complete { INTERVAL } else { AGAIN_AFTER };
            (partition, Checked { due: Instant::now() + pause, index, complete })
        });
        let compared = join_all(compared.collect::<Vec<_>>()).await;
        memory.extend(compared);
    }
}

fn applied(replica: &Replica) -> u64 {
    replica.group.status().applied.map_or(0, |applied| applied.index)
}

/// What reads and writes of a halted partition are answered.
pub(super) fn halted(partition: PartitionId) -> Error {
    let message = format!(
        "the replicas of partition {partition} differ, and no majority says which is right: rushkvctl debug hash shows \
         them; nothing was changed"
    );
    Error::new(Reason::Diverged, message)
}

/// What a leader answers whose own copy is not what was written, while nobody can take its place.
pub(super) fn suspect(partition: PartitionId) -> Error {
    let message = format!(
        "the leader's copy of partition {partition} is not what was written, and no others are known that agree: see \
         rushkvctl cluster health; nothing was changed"
    );
    Error::new(Reason::Diverged, message)
}

impl Node {
    /// Compares the replicas of these partitions, or of all, wherever they are led.
    pub async fn compare(
        &self,
        partitions: Vec<PartitionId>,
        deadline: Deadline,
    ) -> Result<Vec<v1::Comparison>> {
        let _call = self.enter()?;
        let state = self.formed()?;
        let known = &state.state.partitions;
        if let Some(unknown) = partitions.iter().find(|partition| !known.contains_key(partition)) {
            return Err(Error::new(Reason::NotFound, format!("there is no partition {unknown}")));
        }
        // Each once, however often it is named: a comparison writes to the log.
        let asked: BTreeSet<PartitionId> = match partitions.is_empty() {
            true => known.keys().copied().collect(),
            false => partitions.into_iter().collect(),
        };
        let compared = asked.into_iter().map(|partition| async move {
            self.compare_somewhere(partition, deadline).await.unwrap_or_else(|error| v1::Comparison {
                partition: partition.0,
                problem: error.to_string(),
                ..v1::Comparison::default()
            })
        });
        Ok(join_all(compared).await)
    }

    /// Whether all voters but this replica were heard just now, are a majority, and hold the same.
    pub(super) async fn others_agree(&self, partition: PartitionId, replica: ReplicaId) -> bool {
        let Ok(compared) = self.compare_somewhere(partition, Instant::now() + COMPARED_WITHIN).await else {
            return false;
        };
        let of = |one: &v1::ReplicaHash| ReplicaId(one.replica);
        let voters: Vec<ReplicaId> = compared.replicas.iter().filter(|one| one.is_voter).map(of).collect();
        let hashes = compared.replicas.iter();
        let hashes = hashes.filter_map(|one| Some((of(one), u128::from_str_radix(&one.hash, 16).ok()?)));
        others_agree(replica, &voters, &hashes.collect())
    }

    async fn compare_somewhere(&self, partition: PartitionId, deadline: Deadline) -> Result<v1::Comparison> {
        let attempt = |place| async move {
            match place {
                Place::Here => self.compare_here(partition, deadline).await,
                Place::There(node) => self.compare_there(node, partition, deadline).await,
            }
        };
        // A mark more or less changes nothing.
        self.at_leader(partition.group(), Kind::Read, deadline, attempt, &mut None).await
    }

    /// Compares the replicas of a partition that this node leads, and lets the log tell what came of it.
    pub(super) async fn compare_here(
        &self,
        partition: PartitionId,
        deadline: Deadline,
    ) -> Result<v1::Comparison> {
        let replica = self.replica(partition).ok_or_else(|| self.no_leader(partition.group()))?;
        // Before a mark is written: this is worth repeating.
        if replica.group.status().joint {
            return Err(Error::new(Reason::Unavailable, "its voters are being changed: try again"));
        }
        let marked = self.propose_here(partition.group(), kv::encode_mark_command(), deadline).await?;
        let kv::Mark { index: mark, hash: own } =
            kv::decode_mark(marked).map_err(|error| Error::new(Reason::Internal, error.to_string()))?;
        let status = replica.group.status();
        let here = replica.group.key().replica;
        let heard_by = deadline.min(Instant::now() + HEARD_WITHIN);
        let members: Vec<ReplicaId> = status.voters.iter().chain(&status.learners).copied().collect();
        let replica = &replica;
        let asked = members.iter().map(|member| async move {
            let said = match *member == here {
                true if replica.group.is_in_doubt() => Err(suspect(partition)),
                true => Ok(own),
                false => self.hash_there(partition, *member, mark, heard_by).await,
            };
            (*member, said)
        });
        let said = join_all(asked).await;
        let hashes =
            said.iter().filter_map(|(replica, said)| Some((*replica, *said.as_ref().ok()?))).collect();
        let agreement = match status.joint {
            // They began to change meanwhile.
            true => Agreement::Incomplete,
            false => judge(&status.voters, &status.learners, &hashes),
        };
        let verdict = match agreement {
            Agreement::Same(_) | Agreement::Incomplete => None,
            Agreement::Majority(hash) => Some(Verdict::Majority { mark, hash }),
            Agreement::None => Some(Verdict::NoMajority { mark }),
        };
        let resumed = match agreement {
            Agreement::Same(hash) if replica.totals.is_halted() => Some(Verdict::Majority { mark, hash }),
            _ => None,
        };
        if verdict.is_some() {
            self.check_metrics.diverged.inc();
            tracing::error!(%partition, mark, ?agreement, ?hashes, "the replicas differ");
        }
        if matches!(agreement, Agreement::Same(_)) {
            self.check_metrics.compared.inc();
        }
        let already_halted = matches!(agreement, Agreement::None) && replica.totals.is_halted();
        if let Some(verdict) = verdict.or(resumed).filter(|_| !already_halted) {
            let told = self.propose_here(partition.group(), kv::encode_verdict(&verdict), deadline).await;
            // A leader that is outvoted stops over it; whoever leads next compares again.
            if let Err(error) = told {
                tracing::warn!(%partition, %error, ?verdict, "it is not known whether the verdict was applied");
            }
        }
        // Of voters that are changing nobody can say that they are a majority.
        let voters = if status.joint { &[][..] } else { &status.voters };
        Ok(self.comparison(partition, mark, agreement, said, voters))
    }

    fn comparison(
        &self,
        partition: PartitionId,
        mark: u64,
        agreement: Agreement,
        said: Vec<(ReplicaId, Result<u128>)>,
        voters: &[ReplicaId],
    ) -> v1::Comparison {
        let agreement = match agreement {
            Agreement::Same(_) => v1::Agreement::Same,
            Agreement::Incomplete => v1::Agreement::Incomplete,
            Agreement::Majority(_) => v1::Agreement::Majority,
            Agreement::None => v1::Agreement::None,
        };
        let replicas = said.into_iter().map(|(replica, said)| {
            let (hash, problem) = match said {
                Ok(hash) => (format!("{hash:032x}"), String::new()),
                Err(error) => (String::new(), error.message),
            };
            let is_voter = voters.contains(&replica);
            v1::ReplicaHash {
                replica: replica.0,
                node: self.member_name(replica.node()),
                hash,
                problem,
                is_voter,
            }
        });
        v1::Comparison {
            partition: partition.0,
            mark,
            agreement: agreement.into(),
            replicas: replicas.collect(),
            problem: String::new(),
        }
    }

    /// What a replica of this node came to at a mark, once it has applied it.
    pub(super) async fn hash_here(
        &self,
        partition: PartitionId,
        replica: ReplicaId,
        mark: u64,
        deadline: Deadline,
    ) -> Result<u128> {
        loop {
            let held = self.replica(partition).filter(|held| held.group.key().replica == replica);
            let held = held.ok_or_else(|| {
                Error::new(
                    Reason::Unavailable,
                    format!("replica {replica} of partition {partition} is not here"),
                )
            })?;
            if let Some(why) = held.group.damage() {
                let message = format!("its copy is damaged: {why}");
                return Err(Error::new(Reason::ReplicaFailed, message));
            }
            if held.group.is_in_doubt() {
                return Err(suspect(partition));
            }
            let applied = applied(&held);
            if applied >= mark {
                let space = held.group.stale();
                let space = space.map_err(|error| Error::new(Reason::Unavailable, error.to_string()))?;
                let hash =
                    kv::hash_at(&space, mark).map_err(|error| super::local::unreadable(partition, &error))?;
                return hash.ok_or_else(|| {
                    Error::new(Reason::Unavailable, format!("it did not note what it came to at {mark}"))
                });
            }
            if Instant::now() + AGAIN >= deadline {
                let message = format!("it has applied {applied} of {mark} log entries");
                return Err(Error::new(Reason::DeadlineExceeded, message));
            }
            sleep(AGAIN).await;
        }
    }

    /// The answer to a leader's question.
    pub async fn peer_hash_at(
        &self,
        asked: v1::HashAtRequest,
        deadline: Deadline,
    ) -> Result<v1::HashAtResponse> {
        let _call = self.enter()?;
        self.same_cluster(&asked.cluster_id)?;
        let (partition, replica) = (PartitionId(asked.partition), ReplicaId(asked.replica));
        let hash = self.hash_here(partition, replica, asked.mark, deadline).await?;
        Ok(v1::HashAtResponse { hash: format!("{hash:032x}") })
    }

    pub async fn peer_compare(
        &self,
        cluster_id: &str,
        partition: PartitionId,
        deadline: Deadline,
    ) -> Result<v1::Comparison> {
        let _call = self.enter()?;
        self.same_cluster(cluster_id)?;
        self.compare_here(partition, deadline).await
    }
}
