//! Who leads what, as far as this client has heard.
//!
//! It begins empty: calls go to any endpoint, and any node answers for any key. An answer that tells of
//! another leader (see [`Leader`]) means that a table pays: it is fetched once, beside the calls, and from
//! then on each such answer mends what it is about. Nothing here is relied on: an entry that is wrong
//! costs the call a detour.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::{Instant, timeout_at};

use super::call::{Caller, Kind, jittered, name};
use super::pool::{Endpoint, Pool};
use super::{Inner, cluster_client};
use crate::error::{Error, Happened, Reason, Result};
use crate::placement::{Route, RoutingTable};
use crate::proto::v1;
use crate::transport::{Leader, judge};
use crate::types::{Epoch, PartitionId};

/// How long fetching the table may take.
const FETCH_MAX: Duration = Duration::from_secs(3);

/// Between two fetches; doubled while they fail. A table costs the cluster a question to every node.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Table {
    cluster_id: String,
    epoch: Epoch,
    routing: RoutingTable,
    leaders: BTreeMap<PartitionId, Arc<Endpoint>>,
}

/// The table, and the care for it.
#[derive(Debug, Default)]
pub(super) struct Routes {
    table: RwLock<Option<Table>>,
    fetching: Mutex<Fetching>,
}

#[derive(Debug)]
struct Fetching {
    under_way: bool,
    not_before: Option<Instant>,
    pause: Duration,
}

impl Default for Fetching {
    fn default() -> Fetching {
        Fetching { under_way: false, not_before: None, pause: PAUSE_FIRST }
    }
}

impl Routes {
    /// Who leads the partition of the key with this hash.
    pub(super) fn leader_of(&self, hash: u64) -> Option<Arc<Endpoint>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let table = table.as_ref()?;
        table.leaders.get(&table.routing.partition_of(hash)).cloned()
    }

    /// The places of these hashes, parted by who leads the partitions of their keys: no partition is in two parts.
    /// Those of which nobody is known to lead are together.
    pub(super) fn by_leader(&self, hashes: impl ExactSizeIterator<Item = u64>) -> Vec<Vec<usize>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let Some(table) = table.as_ref() else { return vec![(0..hashes.len()).collect()] };
        let mut parts: Vec<(Option<&Arc<Endpoint>>, Vec<usize>)> = Vec::new();
        for (place, hash) in hashes.enumerate() {
            let leader = table.leaders.get(&table.routing.partition_of(hash));
            match parts.iter_mut().find(|(of, _)| *of == leader) {
                Some((_, part)) => part.push(place),
                None => parts.push((leader, vec![place])),
            }
        }
        parts.into_iter().map(|(_, part)| part).collect()
    }

    /// `endpoint` did, by itself, what only a leader does.
    pub(super) fn leads(&self, hash: u64, endpoint: &Arc<Endpoint>) {
        if self.leader_of(hash).as_ref() != Some(endpoint) {
            self.change(hash, |leaders, partition| {
                leaders.insert(partition, endpoint.clone());
            });
        }
    }

    /// `endpoint` can't be asked any more.
    pub(super) fn forget(&self, hash: u64, endpoint: &Arc<Endpoint>) {
        if self.leader_of(hash).as_ref() == Some(endpoint) {
            self.change(hash, |leaders, partition| {
                leaders.remove(&partition);
            });
        }
    }

    /// An answer told who leads. Returns whether the table as a whole should be fetched.
    pub(super) fn told(&self, hash: u64, leader: &Leader, pool: &Pool) -> bool {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let Some(table) = table.as_mut().filter(|table| table.cluster_id == leader.cluster_id) else {
            return true;
        };
        if table.routing.partition_of(hash) != leader.partition {
            // One of the two is older.
            return leader.epoch > table.epoch;
        }
        if let Some(endpoint) = pool.learn(&leader.address, &leader.cluster_id) {
            table.leaders.insert(leader.partition, endpoint);
        }
        leader.epoch > table.epoch
    }

    fn change(&self, hash: u64, change: impl FnOnce(&mut BTreeMap<PartitionId, Arc<Endpoint>>, PartitionId)) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = table.as_mut() {
            let partition = table.routing.partition_of(hash);
            change(&mut table.leaders, partition);
        }
    }

    fn replace(&self, topology: v1::Topology, pool: &Pool) -> Result<(), String> {
        let new = Table::from_wire(&topology, pool)?;
        let addresses: BTreeSet<&str> = topology.nodes.iter().map(|node| node.address.as_str()).collect();
        pool.keep(&addresses, &new.cluster_id);
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let is_older = |old: &Table| old.cluster_id == new.cluster_id && old.epoch > new.epoch;
        if !table.as_ref().is_some_and(is_older) {
            *table = Some(new);
        }
        Ok(())
    }
}

impl Table {
    fn from_wire(topology: &v1::Topology, pool: &Pool) -> Result<Table, String> {
        let addresses: BTreeMap<&str, &str> =
            topology.nodes.iter().map(|node| (node.name.as_str(), node.address.as_str())).collect();
        let mut routes = Vec::with_capacity(topology.partitions.len());
        let mut leaders = BTreeMap::new();
        for one in &topology.partitions {
            let partition = PartitionId(one.id);
            routes.push(Route { first: one.first_hash, last: one.last_hash, partition });
            let address = addresses.get(one.leader.as_str());
            if let Some(endpoint) = address.and_then(|address| pool.learn(address, &topology.cluster_id)) {
                leaders.insert(partition, endpoint);
            }
        }
        Ok(Table {
            cluster_id: topology.cluster_id.clone(),
            epoch: Epoch(topology.epoch),
            routing: RoutingTable::new(routes)?,
            leaders,
        })
    }
}

/// A fetch under way; ends it when dropped, whatever became of it.
struct Turn {
    inner: Arc<Inner>,
    done: bool,
}

impl Turn {
    /// One at a time, and not too often.
    fn take(inner: &Arc<Inner>) -> Option<Turn> {
        let mut fetching = inner.routes.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        let is_early = fetching.not_before.is_some_and(|not_before| Instant::now() < not_before);
        if fetching.under_way || is_early {
            return None;
        }
        fetching.under_way = true;
        Some(Turn { inner: inner.clone(), done: false })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut fetching = self.inner.routes.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        fetching.under_way = false;
        fetching.not_before = Some(Instant::now() + jittered(fetching.pause));
        fetching.pause = if self.done { PAUSE_FIRST } else { (fetching.pause * 2).min(PAUSE_MAX) };
    }
}

/// Fetches the table from an endpoint that has just answered, beside the calls. Does nothing if that is
/// under way, or was a moment ago.
pub(super) fn fetch(inner: &Arc<Inner>, from: Arc<Endpoint>) {
    let Some(turn) = Turn::take(inner) else { return };
    tokio::spawn(async move {
        // As a whole: its end must be dropped with the task.
        let mut turn = turn;
        // Without a table, calls take a detour; the next answer that says so asks for it again.
        turn.done = match ask(&turn.inner, &from).await {
            Ok(topology) => turn.inner.routes.replace(topology, &turn.inner.pool).is_ok(),
            Err(_) => false,
        };
    });
}

async fn ask(inner: &Arc<Inner>, from: &Endpoint) -> Result<v1::Topology> {
    let deadline = Instant::now() + FETCH_MAX;
    let send = |channel, request| async move { cluster_client(channel).watch_topology(request).await };
    let caller = Caller { inner };
    let request = v1::WatchTopologyRequest {};
    let mut watch = caller
        .attempt(Kind::Read, from, &request, FETCH_MAX, deadline, &send)
        .await
        .map_err(|failed| failed.error)?
        .into_inner();
    match timeout_at(deadline, watch.next()).await {
        Ok(Some(Ok(topology))) => Ok(topology),
        Ok(Some(Err(status))) => Err(name(from, judge(Kind::Read, &status, Happened::No, false))),
        Ok(None) => Err(Error::new(Reason::Internal, "the watch ended without a table")),
        Err(_) => Err(Error::new(Reason::DeadlineExceeded, "no table in time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: u64 = u64::MAX / 2;

    fn topology(epoch: u64, leaders: [&str; 2]) -> v1::Topology {
        let node =
            |name: &str| v1::Node { name: name.into(), address: format!("{name}:1"), ..v1::Node::default() };
        let partition = |id: u32, leader: &str| v1::Partition {
            id,
            first_hash: if id == 0 { 0 } else { HALF + 1 },
            last_hash: if id == 0 { HALF } else { u64::MAX },
            leader: leader.into(),
            ..v1::Partition::default()
        };
        v1::Topology {
            epoch,
            nodes: vec![node("a"), node("b"), node("c")],
            partitions: vec![partition(0, leaders[0]), partition(1, leaders[1])],
            cluster_id: "c1".into(),
        }
    }

    fn leader(epoch: u64, partition: u32, address: &str) -> Leader {
        Leader {
            cluster_id: "c1".into(),
            epoch: Epoch(epoch),
            partition: PartitionId(partition),
            address: address.into(),
        }
    }

    struct Known {
        pool: Pool,
        routes: Routes,
    }

    impl Known {
        fn new() -> Known {
            let pool = Pool::new(&["a:1".to_string()], 1, Duration::from_secs(1)).unwrap();
            Known { pool, routes: Routes::default() }
        }

        fn leader(&self, hash: u64) -> Option<String> {
            self.routes.leader_of(hash).map(|endpoint| endpoint.name.clone())
        }
    }

    #[test]
    fn it_begins_empty_and_asks_for_a_table_when_one_pays() {
        let known = Known::new();
        assert_eq!(known.leader(0), None);
        known.routes.leads(0, &known.pool.current());
        assert_eq!(known.leader(0), None, "where the partitions are is not known yet");
        assert!(known.routes.told(0, &leader(1, 0, "b:1"), &known.pool));
        known.routes.replace(topology(1, ["b", ""]), &known.pool).unwrap();
        assert_eq!((known.leader(HALF).as_deref(), known.leader(HALF + 1)), (Some("b:1"), None));
    }

    #[test]
    fn one_answer_mends_what_it_is_about() {
        let known = Known::new();
        known.routes.replace(topology(5, ["a", "b"]), &known.pool).unwrap();
        assert!(!known.routes.told(0, &leader(5, 0, "c:1"), &known.pool));
        assert_eq!(
            (known.leader(0).as_deref(), known.leader(u64::MAX).as_deref()),
            (Some("c:1"), Some("b:1"))
        );
        // A node that is behind knows who did what it was asked all the same.
        assert!(!known.routes.told(0, &leader(4, 0, "b:1"), &known.pool));
        assert_eq!(known.leader(0).as_deref(), Some("b:1"));
        // A newer table: fetched, and what it surely says is taken at once.
        assert!(known.routes.told(0, &leader(6, 0, "d:1"), &known.pool));
        assert_eq!(known.leader(0).as_deref(), Some("d:1"));
        // The key has moved into a partition that this table does not know.
        assert!(known.routes.told(0, &leader(6, 7, "c:1"), &known.pool));
        assert!(!known.routes.told(0, &leader(4, 7, "c:1"), &known.pool), "or had not yet");
        assert_eq!(known.leader(0).as_deref(), Some("d:1"));
    }

    #[test]
    fn a_leader_that_fails_is_forgotten_unless_it_was_replaced() {
        let known = Known::new();
        known.routes.replace(topology(5, ["a", "b"]), &known.pool).unwrap();
        let (a, b) = (known.routes.leader_of(0).unwrap(), known.routes.leader_of(u64::MAX).unwrap());
        known.routes.forget(0, &b);
        assert_eq!(known.leader(0).as_deref(), Some("a:1"));
        known.routes.forget(0, &a);
        assert_eq!(known.leader(0), None);
        known.routes.leads(0, &b);
        assert_eq!(known.leader(0).as_deref(), Some("b:1"));
    }

    #[test]
    fn another_cluster_at_the_same_address_replaces_the_table() {
        let known = Known::new();
        known.routes.replace(topology(5, ["a", "b"]), &known.pool).unwrap();
        let old = known.routes.leader_of(u64::MAX).unwrap();
        let other = Leader { cluster_id: "c2".into(), ..leader(1, 0, "b:1") };
        assert!(known.routes.told(0, &other, &known.pool));
        let other = v1::Topology { cluster_id: "c2".into(), ..topology(1, ["b", "b"]) };
        known.routes.replace(other, &known.pool).unwrap();
        assert_ne!(known.routes.leader_of(u64::MAX).unwrap(), old);
        assert!(!known.pool.all().contains(&old));
        known.routes.replace(topology(1, ["a", "a"]), &known.pool).unwrap();
        known.routes.replace(topology(3, ["b", "a"]), &known.pool).unwrap();
        known.routes.replace(topology(2, ["c", "c"]), &known.pool).unwrap();
        assert_eq!(known.leader(0).as_deref(), Some("b:1"), "an older table is not taken");
    }

    #[test]
    fn a_table_with_a_hole_is_refused() {
        let known = Known::new();
        let mut broken = topology(1, ["a", "b"]);
        broken.partitions.pop();
        assert!(known.routes.replace(broken, &known.pool).is_err());
        assert_eq!(known.leader(0), None);
    }
}
