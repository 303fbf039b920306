//! What a comparison of replicas comes to (rule 11): pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::ReplicaId;

/// What the replicas of a group hold, by their hashes at one index of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// All hold the same.
    Same(u128),
    /// Nobody differs, but some could not be asked.
    Incomplete,
    /// A strict majority holds this, and somebody something else.
    Majority(u128),
    /// Some differ, and nobody can say who is right.
    None,
}

/// Voters alone are witnesses: a learner may have got all it has from the leader, so that it can lose, and never
/// outvote. A strict majority of the voters decides, and a single one is none. Who could not be asked counts as
/// one that might say anything.
pub fn judge(voters: &[ReplicaId], learners: &[ReplicaId], hashes: &BTreeMap<ReplicaId, u128>) -> Agreement {
    let said = |replica: &ReplicaId| hashes.get(replica).copied();
    let mut counts: BTreeMap<u128, usize> = BTreeMap::new();
    for hash in voters.iter().filter_map(said) {
        *counts.entry(hash).or_default() += 1;
    }
    let winner = counts.iter().find(|(_, count)| **count * 2 > voters.len() && **count > 1);
    let all: BTreeSet<u128> = voters.iter().chain(learners).filter_map(said).collect();
    let is_whole = voters.iter().chain(learners).all(|member| said(member).is_some());
    match (all.first(), winner) {
        (Some(hash), _) if all.len() == 1 && is_whole => Agreement::Same(*hash),
        (_, Some((hash, _))) if all.len() > 1 => Agreement::Majority(*hash),
        // Voters differ; or the only one does from a learner.
        _ if counts.len() > 1 || (all.len() > 1 && voters.len() == 1) => Agreement::None,
        _ => Agreement::Incomplete,
    }
}

/// Whether a majority of the voters is left without this replica, each was heard, and all hold the same: then
/// nothing is lost with it.
pub fn others_agree(replica: ReplicaId, voters: &[ReplicaId], hashes: &BTreeMap<ReplicaId, u128>) -> bool {
    let others: Vec<ReplicaId> = voters.iter().copied().filter(|voter| *voter != replica).collect();
    let said: BTreeSet<Option<u128>> = others.iter().map(|other| hashes.get(other).copied()).collect();
    others.len() * 2 > voters.len() && said.len() == 1 && !said.contains(&None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::NodeId;

    fn replica(node: u32) -> ReplicaId {
        ReplicaId::new(NodeId(node), 1)
    }

    /// Voters and then learners, each with what it says; 0: nothing.
    fn judged(voters: &[u128], learners: &[u128]) -> Agreement {
        let said: Vec<u128> = voters.iter().chain(learners).copied().collect();
        let ids: Vec<ReplicaId> = (1..).take(said.len()).map(replica).collect();
        let hashes = ids.iter().copied().zip(said).filter(|(_, hash)| *hash > 0).collect();
        judge(&ids[..voters.len()], &ids[voters.len()..], &hashes)
    }

    #[test]
    fn a_strict_majority_of_the_voters_decides() {
        assert_eq!(judged(&[7, 7, 7], &[]), Agreement::Same(7));
        assert_eq!(judged(&[7, 8, 7], &[]), Agreement::Majority(7));
        assert_eq!(judged(&[8, 7, 9], &[]), Agreement::None);
        assert_eq!(judged(&[7, 7, 0], &[]), Agreement::Incomplete);
        assert_eq!(judged(&[7, 8, 0], &[]), Agreement::None);
        assert_eq!(judged(&[7, 7, 8, 0, 0], &[]), Agreement::None);
        assert_eq!(judged(&[7, 7, 7, 8, 8], &[]), Agreement::Majority(7));
        assert_eq!(judged(&[0, 0, 0], &[]), Agreement::Incomplete);
    }

    #[test]
    fn learners_can_lose_but_never_outvote() {
        assert_eq!(judged(&[7, 7, 7], &[8, 8, 8, 8]), Agreement::Majority(7));
        assert_eq!(judged(&[7, 7, 8], &[8, 8]), Agreement::Majority(7));
        assert_eq!(judged(&[7, 7, 7], &[0]), Agreement::Incomplete);
        // They differ from nobody who could say something against them.
        assert_eq!(judged(&[7, 7, 0, 0, 0], &[8]), Agreement::Incomplete);
        assert_eq!(judged(&[7, 0, 0], &[8]), Agreement::Incomplete);
        // Between two steps of a rebuild: the copy of one voter is no witness against the other one.
        assert_eq!(judged(&[7, 8], &[7]), Agreement::None);
        assert_eq!(judged(&[7, 7], &[8]), Agreement::Majority(7));
    }

    #[test]
    fn one_is_no_majority() {
        assert_eq!(judged(&[7], &[8]), Agreement::None);
        assert_eq!(judged(&[7], &[7]), Agreement::Same(7));
        assert_eq!(judged(&[7], &[]), Agreement::Same(7));
        assert_eq!(judged(&[7], &[8, 7]), Agreement::None);
        assert_eq!(judged(&[7], &[8, 8]), Agreement::None);
        assert_eq!(judged(&[7, 8], &[]), Agreement::None);
        assert_eq!(judged(&[7, 0], &[]), Agreement::Incomplete);
    }

    #[test]
    fn a_replica_can_be_spared_if_a_majority_agrees_without_it() {
        let ids: Vec<ReplicaId> = (1..=3).map(replica).collect();
        let spared = |said: &[u128], voters: &[ReplicaId], whom| {
            let hashes = ids.iter().copied().zip(said.iter().copied()).filter(|(_, hash)| *hash > 0);
            others_agree(whom, voters, &hashes.collect())
        };
        assert!(spared(&[7, 7, 0], &ids, ids[2]));
        assert!(spared(&[7, 7, 8], &ids, ids[2]));
        assert!(!spared(&[7, 8, 0], &ids, ids[2]), "the others differ");
        assert!(!spared(&[7, 0, 0], &ids, ids[2]), "one of them was not heard");
        assert!(!spared(&[7, 0, 0], &ids[..2], ids[1]), "one of two is no majority");
        assert!(spared(&[7, 0, 0], &ids[..1], ids[1]), "a learner is none of the voters");
    }

    proptest! {
        /// Whatever those say that could not be asked, a majority stays one.
        #[test]
        fn what_is_unheard_can_not_turn_a_verdict(
            mut voters in prop::collection::vec(0_u128..4, 3..8), rest in prop::collection::vec(1_u128..4, 8),
        ) {
            let Agreement::Majority(hash) = judged(&voters, &[]) else { return Ok(()) };
            for (voter, later) in voters.iter_mut().zip(rest) {
                if *voter == 0 {
                    *voter = later;
                }
            }
            prop_assert_eq!(judged(&voters, &[]), Agreement::Majority(hash));
        }
    }
}
