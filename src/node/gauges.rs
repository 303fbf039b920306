//! What a look at the node shows as gauges: its disk and engine, what it holds, the cluster as it knows
//! it, and how the groups stand that it leads.
//!
//! They are set together, now and then, not where things change: a scrape is seconds apart from the next
//! one anyway, and nothing that serves calls has to think of them.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::{IntGauge, Registry};
use tokio::time::Instant;

use super::Node;
use crate::raft::{Role, Status};
use crate::types::{LogKey, ReplicaId};

/// A replica that did not answer for longer is counted as silent: some ten heartbeats. `rushkvctl` and the
/// look for live leaders draw the line there, too.
const SILENT_MAX: Duration = Duration::from_secs(2);

pub(super) struct Gauges {
    disk_free: IntGauge,
    disk_total: IntGauge,
    engine_disk: IntGauge,
    engine_memory: IntGauge,
    keys: IntGauge,
    data_bytes: IntGauge,
    replicas: IntGauge,
    leaders: IntGauge,
    leaderless: IntGauge,
    damaged: IntGauge,
    halted: IntGauge,
    members: IntGauge,
    epoch: IntGauge,
    has_leader: IntGauge,
    lag: IntGauge,
    silent: IntGauge,
    purged: IntGauge,
    followers: Followers,
}

impl Gauges {
    /// # Errors
    /// If `registry` has metrics of these names already.
    pub fn register(registry: &Registry) -> prometheus::Result<Gauges> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        Ok(Gauges {
            disk_free: gauge("rushkv_node_disk_free_bytes", "Free space on the data directory's disk.")?,
            disk_total: gauge("rushkv_node_disk_total_bytes", "Size of the data directory's disk.")?,
            engine_disk: gauge("rushkv_engine_disk_bytes", "What the engine takes up on the disk.")?,
            engine_memory: gauge(
                "rushkv_engine_memory_bytes",
                "What the engine says that it takes up in memory: caches and write buffers.",
            )?,
            keys: gauge("rushkv_node_keys", "Keys in the replicas of this node.")?,
            data_bytes: gauge(
                "rushkv_node_data_bytes",
                "Bytes of keys and values in the replicas of this node.",
            )?,
            replicas: gauge("rushkv_node_replicas", "Partitions that this node holds a replica of.")?,
            leaders: gauge("rushkv_node_leaders", "Partitions that this node leads.")?,
            leaderless: gauge(
                "rushkv_node_partitions_without_leader",
                "Partitions that this node holds a replica of and knows no live leader of.",
            )?,
            damaged: gauge(
                "rushkv_node_replicas_damaged",
                "Replicas of this node that are not what was written to them, or can't be read, and are stopped.",
            )?,
            halted: gauge(
                "rushkv_node_partitions_halted",
                "Partitions that this node holds a replica of, and whose replicas differ with no majority.",
            )?,
            members: gauge("rushkv_cluster_members", "Members of the cluster, those that leave included.")?,
            epoch: gauge("rushkv_cluster_epoch", "Grows with every change of members or of placement.")?,
            has_leader: gauge(
                "rushkv_cluster_has_leader",
                "1 while this node knows a live leader of group 0, else 0.",
            )?,
            lag: gauge(
                "rushkv_raft_replication_lag_entries",
                "Entries that the replica furthest behind lacks, of the groups that this node leads.",
            )?,
            silent: gauge(
                "rushkv_raft_followers_silent",
                "Followers and learners that did not answer this node, their leader, for 2 s.",
            )?,
            purged: gauge(
                "rushkv_raft_purged_index",
                "Last index up to which a log was let go, of the group where it is highest.",
            )?,
            followers: Followers::default(),
        })
    }

    /// Sets them to what `node` is now.
    pub fn set(&mut self, node: &Node) {
        set(&self.disk_free, node.disk.free_bytes());
        set(&self.disk_total, node.disk.total_bytes());
        if let Ok(sizes) = node.store.engine().sizes() {
            set(&self.engine_disk, sizes.disk_bytes);
            set(&self.engine_memory, sizes.memory_bytes);
        }
        let replicas = node.replicas();
        let data: Vec<(LogKey, Status)> =
            replicas.iter().map(|(_, replica)| (replica.group.key(), replica.group.status())).collect();
        set(&self.keys, replicas.iter().map(|(_, replica)| replica.totals.keys()).sum());
        set(&self.data_bytes, replicas.iter().map(|(_, replica)| replica.totals.bytes()).sum());
        set(&self.replicas, data.len() as u64);
        set(&self.leaders, data.iter().filter(|(_, status)| status.role == Role::Leader).count() as u64);
        set(&self.leaderless, node.leaderless().len() as u64);
        let is_damaged =
            |replica: &super::Replica| replica.group.damage().is_some() || replica.group.is_in_doubt();
        let damaged = replicas.iter().filter(|(_, replica)| is_damaged(replica));
        set(&self.damaged, damaged.count() as u64);
        let halted =
            |replica: &super::Replica| replica.totals.is_halted() && replica.group.damage().is_none();
        set(&self.halted, replicas.iter().filter(|(_, replica)| halted(replica)).count() as u64);
        let (members, epoch) = match node.cluster() {
            Some(cluster) => (cluster.state.members.len() as u64, cluster.state.epoch.0),
            None => (0, 0),
        };
        set(&self.members, members);
        set(&self.epoch, epoch);
        let meta = node.seat().map(|seat| (seat.meta.key(), seat.meta.status()));
        let has_leader = meta.as_ref().is_some_and(|(_, status)| status.live_leader().is_some());
        set(&self.has_leader, u64::from(has_leader));
        let groups: Vec<(LogKey, Status)> = data.into_iter().chain(meta).collect();
        let purged = groups.iter().filter_map(|(_, status)| status.purged).map(|id| id.index).max();
        set(&self.purged, purged.unwrap_or(0));
        let led = groups.iter().filter(|(_, status)| status.role == Role::Leader);
        let (lag, silent) = self.followers.look(led.map(|(key, status)| (*key, status)), Instant::now());
        set(&self.lag, lag);
        set(&self.silent, silent);
    }
}

fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// The other replicas of groups led here, each with the term and the time since when it is looked at.
///
/// A new leader knows nothing of the others, and one that was just added has not spoken yet. Neither lags
/// or is silent for that: it is only when it stays so.
#[derive(Debug, Default)]
struct Followers(HashMap<(LogKey, ReplicaId), (u64, Instant)>);

impl Followers {
    /// The largest lag, in entries, and how many are silent.
    fn look<'a>(&mut self, led: impl Iterator<Item = (LogKey, &'a Status)>, now: Instant) -> (u64, u64) {
        let known = std::mem::take(&mut self.0);
        let (mut lag, mut silent) = (0, 0);
        for (key, status) in led {
            for (replica, matched) in &status.matched {
                let id = (key, *replica);
                let since = match known.get(&id) {
                    Some((term, since)) if *term == status.term => *since,
                    _ => now,
                };
                self.0.insert(id, (status.term, since));
                let watched = now.saturating_duration_since(since);
                if *matched > 0 || watched > SILENT_MAX {
                    lag = lag.max(status.last_index.saturating_sub(*matched));
                }
                let answered = status.answered.iter().find(|(id, _)| id == replica).map(|(_, ago)| *ago);
                silent += u64::from(answered.unwrap_or(watched) > SILENT_MAX);
            }
        }
        (lag, silent)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::raft;
    use crate::types::{GroupId, NodeId};

    #[test]
    fn the_document_names_the_metrics() {
        let registry = Registry::new();
        let _groups = raft::Metrics::register(&registry).unwrap();
        let _checkpoints = crate::node::upkeep::register(&registry).unwrap();
        let _gauges = Gauges::register(&registry).unwrap();
        let _checks = crate::node::checking::Metrics::register(&registry).unwrap();
        let _scrub = crate::node::scrub::Metrics::register(&registry).unwrap();
        let registered: BTreeSet<String> =
            registry.gather().iter().map(|family| family.name().to_string()).collect();
        let prefixes = ["rushkv_node_", "rushkv_engine_", "rushkv_cluster_", "rushkv_raft_"];
        let documented: BTreeSet<String> = include_str!("../../docs/metrics.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
            .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
            .map(str::to_string)
            .collect();
        assert_eq!(registered, documented);
    }

    fn replica(node: u32) -> ReplicaId {
        ReplicaId::new(NodeId(node), 1)
    }

    fn key(group: u32) -> LogKey {
        LogKey { group: GroupId(group), replica: replica(1) }
    }

    /// A leader's look at nodes 2 and 3; of each, what it has and how many ms ago it answered.
    fn leader(term: u64, two: (u64, Option<u64>), three: (u64, Option<u64>)) -> Status {
        let others = [(replica(2), two), (replica(3), three)];
        Status {
            role: Role::Leader,
            leader: Some(replica(1)),
            leader_heard: None,
            term,
            last_index: 100,
            committed: None,
            applied: None,
            purged: None,
            membership: None,
            joint: false,
            membership_committed: true,
            voters: vec![replica(1), replica(2), replica(3)],
            next_voters: Vec::new(),
            learners: Vec::new(),
            matched: others.iter().map(|(id, (matched, _))| (*id, *matched)).collect(),
            answered: others
                .iter()
                .filter_map(|(id, (_, ago))| Some((*id, Duration::from_millis((*ago)?))))
                .collect(),
            quorum_acked: None,
        }
    }

    #[test]
    fn the_worst_of_all_groups_is_shown() {
        let (one, two) =
            (leader(1, (100, Some(9)), (97, Some(2001))), leader(1, (90, Some(9)), (99, Some(9))));
        let now = Instant::now();
        let look = |led: &[(LogKey, &Status)]| Followers::default().look(led.iter().copied(), now);
        assert_eq!(look(&[]), (0, 0));
        assert_eq!(look(&[(key(1), &one)]), (3, 1));
        assert_eq!(look(&[(key(1), &one), (key(2), &two)]), (10, 1));
    }

    #[test]
    fn who_was_never_heard_has_two_seconds_in_each_term() {
        let mut followers = Followers::default();
        let start = Instant::now();
        let mut look = |term, second| {
            let status = leader(term, (100, Some(9)), (0, None));
            followers.look([(key(1), &status)].into_iter(), start + Duration::from_secs(second))
        };
        assert_eq!(look(1, 0), (0, 0));
        assert_eq!(look(1, 2), (0, 0));
        assert_eq!(look(1, 3), (100, 1));
        assert_eq!(look(2, 4), (0, 0), "another term");
        assert_eq!(look(2, 7), (100, 1));
        assert_eq!(followers.look(std::iter::empty(), start), (0, 0));
        assert!(followers.0.is_empty(), "what is led no more is forgotten");
    }
}
