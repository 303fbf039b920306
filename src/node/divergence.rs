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

/// Voters decide; where they are fewer than three, all copies do, and one of two is no majority. Who could not
/// be asked counts as one that might say anything.
pub fn judge(voters: &[ReplicaId], learners: &[ReplicaId], hashes: &BTreeMap<ReplicaId, u128>) -> Agreement {
    let members: BTreeSet<ReplicaId> = voters.iter().chain(learners).copied().collect();
    let electorate: BTreeSet<ReplicaId> = match voters.len() {
        ..3 => members.clone(),
        _ => voters.iter().copied().collect(),
    };
    let mut counts: BTreeMap<u128, usize> = BTreeMap::new();
    let said = |replica: &ReplicaId| hashes.get(replica).copied();
    for hash in electorate.iter().filter_map(said) {
        *counts.entry(hash).or_default() += 1;
    }
    let all: BTreeSet<u128> = members.iter().filter_map(said).collect();
    let winner = counts.iter().find(|(_, count)| **count * 2 > electorate.len()).map(|(hash, _)| *hash);
    match (all.len(), winner) {
        (0, _) => Agreement::Incomplete,
        (1, _) if members.iter().all(|member| said(member).is_some()) => {
            all.first().map_or(Agreement::Incomplete, |hash| Agreement::Same(*hash))
        }
        (1, _) => Agreement::Incomplete,
        (_, Some(hash)) => Agreement::Majority(hash),
        (_, None) => Agreement::None,
    }
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
    }

    #[test]
    fn one_of_two_is_no_majority() {
        assert_eq!(judged(&[7], &[8]), Agreement::None);
        assert_eq!(judged(&[7], &[7]), Agreement::Same(7));
        assert_eq!(judged(&[7], &[]), Agreement::Same(7));
        assert_eq!(judged(&[7], &[8, 7]), Agreement::Majority(7));
        assert_eq!(judged(&[7, 8], &[]), Agreement::None);
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
