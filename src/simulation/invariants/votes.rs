//! A replica votes for one candidate in a term, and remembers that through every crash.

use std::collections::BTreeMap;

use crate::types::{LogKey, ReplicaId};

/// For whom each replica voted, as it told them.
#[derive(Debug, Default)]
pub(in crate::simulation) struct Votes(BTreeMap<LogKey, BTreeMap<u64, ReplicaId>>);

impl Votes {
    pub(in crate::simulation) fn granted(&mut self, voter: LogKey, term: u64, candidate: ReplicaId) {
        let first = *self.0.entry(voter).or_default().entry(term).or_insert(candidate);
        assert!(first == candidate, "votes: {voter} votes for {first} and for {candidate} in term {term}");
    }

    /// The replica is opened again, and its log knows this term.
    pub(in crate::simulation) fn remembered(&self, voter: LogKey, term: u64) {
        let told = self.0.get(&voter).and_then(|votes| votes.keys().next_back()).copied().unwrap_or_default();
        assert!(
            told <= term,
            "votes: {voter} voted in term {told}, and knows only of term {term} after a crash"
        );
    }
}
