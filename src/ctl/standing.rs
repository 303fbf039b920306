//! How a cluster's partitions and nodes stand, judged from what their leaders tell. Pure.

use crate::proto::v1;

/// A copy that was silent for this long counts as gone: some ten heartbeats.
const SILENT_MAX_MS: u64 = 2000;

/// A copy that lacks more entries than this is on its way back, not merely a moment behind: a busy
/// partition writes some thousands a second.
const BEHIND_MAX: u64 = 10_000;

/// Whether a partition serves, and what it could bear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// All the copies that it should have, and all of them follow.
    Healthy,
    /// It serves, and a copy is missing, silent or far behind.
    Degraded,
    /// Nobody is known to lead it.
    Leaderless,
}

/// A node, in a word.
pub(super) fn state(node: &v1::Node) -> &'static str {
    match (node.is_reachable, node.state()) {
        (false, _) => "unreachable",
        (true, v1::NodeState::Leaving) => "leaving",
        (true, v1::NodeState::Active | v1::NodeState::Unspecified) => "active",
    }
}

/// How many entries a copy lacks of what is committed.
fn behind(partition: &v1::Partition, replica: &v1::Replica) -> u64 {
    partition.commit_index.saturating_sub(replica.match_index)
}

/// Whether a copy is heard of, and has nearly everything.
fn follows(partition: &v1::Partition, replica: &v1::Replica) -> bool {
    let is_heard = replica.role() == v1::ReplicaRole::Leader
        || replica.silent_ms.is_some_and(|silent| silent <= SILENT_MAX_MS);
    is_heard && behind(partition, replica) <= BEHIND_MAX
}

/// `copies`: how many it should have.
pub(super) fn health(partition: &v1::Partition, copies: usize) -> Health {
    if partition.leader.is_empty() {
        return Health::Leaderless;
    }
    let following = partition.replicas.iter().filter(|one| follows(partition, one)).count();
    match following >= copies && following == partition.replicas.len() {
        true => Health::Healthy,
        false => Health::Degraded,
    }
}

/// How many more of a partition's copies may fail before it can't be written to; none of one that nobody leads.
pub(super) fn tolerates(partition: &v1::Partition) -> usize {
    if partition.leader.is_empty() {
        return 0;
    }
    let votes = |replica: &&v1::Replica| replica.role() != v1::ReplicaRole::Learner;
    let voters = partition.replicas.iter().filter(votes).count();
    let following = partition.replicas.iter().filter(votes).filter(|one| follows(partition, one)).count();
    following.saturating_sub(voters / 2 + 1)
}

/// How many entries the copy that lacks most lacks; of one node only, if it is named.
pub(super) fn lag(partitions: &[v1::Partition], node: Option<&str>) -> u64 {
    let of_node = |replica: &&v1::Replica| node.is_none_or(|node| replica.node == node);
    let lags = partitions
        .iter()
        .filter(|partition| !partition.leader.is_empty())
        .flat_map(|partition| partition.replicas.iter().filter(of_node).map(|one| behind(partition, one)));
    lags.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(node: &str, match_index: u64, silent_ms: Option<u64>) -> v1::Replica {
        let role = match silent_ms {
            None => v1::ReplicaRole::Leader,
            Some(_) => v1::ReplicaRole::Follower,
        };
        v1::Replica { node: node.into(), role: role.into(), match_index, silent_ms, ..v1::Replica::default() }
    }

    fn partition(replicas: Vec<v1::Replica>) -> v1::Partition {
        v1::Partition { leader: "a".into(), commit_index: 50_000, replicas, ..v1::Partition::default() }
    }

    #[test]
    fn a_partition_is_what_its_copies_are() {
        let (a, b) = (copy("a", 50_000, None), copy("b", 49_990, Some(10)));
        let of = |third: v1::Replica| partition(vec![a.clone(), b.clone(), third]);
        assert_eq!(health(&of(copy("c", 50_000, Some(150))), 3), Health::Healthy);
        assert_eq!(health(&of(copy("c", 50_000, Some(2001))), 3), Health::Degraded, "silent");
        assert_eq!(health(&of(copy("c", 0, Some(10))), 3), Health::Degraded, "far behind");
        let never = v1::Replica { silent_ms: None, ..copy("c", 50_000, Some(0)) };
        assert_eq!(health(&of(never), 3), Health::Degraded, "never heard");
        assert_eq!(health(&partition(vec![a.clone(), b.clone()]), 3), Health::Degraded, "one is missing");
        assert_eq!(health(&partition(vec![a.clone(), b.clone()]), 2), Health::Healthy);
        let led_by_nobody = v1::Partition { leader: String::new(), ..of(copy("c", 50_000, Some(10))) };
        assert_eq!(health(&led_by_nobody, 3), Health::Leaderless);
    }

    #[test]
    fn copies_that_do_not_follow_can_not_take_over() {
        let (a, b) = (copy("a", 50_000, None), copy("b", 50_000, Some(10)));
        let of = |rest: &[v1::Replica]| tolerates(&partition([&[a.clone(), b.clone()][..], rest].concat()));
        let well = copy("c", 50_000, Some(10));
        assert_eq!(of(std::slice::from_ref(&well)), 1);
        assert_eq!(of(&[copy("c", 50_000, Some(60_000))]), 0, "stopped or down");
        assert_eq!(of(&[copy("c", 9, Some(10))]), 0, "far behind");
        assert_eq!(of(&[]), 0, "two of two");
        let learner = v1::Replica { role: v1::ReplicaRole::Learner.into(), ..well.clone() };
        assert_eq!(of(&[learner]), 0, "has no vote");
        assert_eq!(of(&[well.clone(), copy("d", 50_000, Some(1)), copy("e", 50_000, Some(1))]), 2);
        let unled = v1::Partition { leader: String::new(), ..partition(vec![a.clone(), b.clone(), well]) };
        assert_eq!(tolerates(&unled), 0);
    }

    #[test]
    fn the_lag_is_that_of_the_copy_furthest_behind() {
        let one = partition(vec![copy("a", 50_000, None), copy("b", 49_990, Some(10))]);
        let two = partition(vec![copy("b", 49_999, Some(10)), copy("c", 49_000, Some(10))]);
        let unled = v1::Partition { leader: String::new(), ..partition(vec![copy("c", 0, Some(1))]) };
        let all = [one, two, unled];
        assert_eq!(lag(&all, None), 1000);
        assert_eq!((lag(&all, Some("a")), lag(&all, Some("b"))), (0, 10));
        assert_eq!(lag(&[], None), 0);
    }
}
