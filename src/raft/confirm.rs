//! Confirms for readers that this replica leads, past the consensus core: what ReadIndex comes to (Ongaro 2014, 6.4)
//! when what is applied here is all that a reader has to see.
//!
//! Why a read of what is applied here, after this, is linearizable:
//! - What this leader acknowledged, it had applied. What the leaders before it acknowledged was committed before its
//!   term began, and is applied once the first entry of its term is.
//! - What a later leader acknowledges comes later than the read's beginning. Such a leader needs the votes of a
//!   majority; of any majority one replica has confirmed here, after the reader came, that it had not voted for
//!   anybody newer. That this holds while members change, too, is Raft's own argument: sets of voters that
//!   follow on each other share a voter in any two majorities, and here a majority of each is asked.
//!
//! A vote is looked up where it is saved, in memory of the log: it stands there before it is durable, and nobody is
//! told of it before that. What the consensus core publishes comes later, and is used only for what can't be
//! taken back within a term: that this replica was elected, and what is applied.
//!
//! Whoever can't be confirmed in this way takes the consensus core's own way, which also says what is wrong.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use openraft::ServerState;
use openraft::metrics::RaftMetrics;
use tokio::time::timeout;

use super::carrier::{Carrier, Class, Route};
use super::codec::decode_vote;
use super::message::{decode_confirm_answer, encode_confirm};
use super::status::is_alone;
use super::types::{TypeConfig, Vote};
use crate::types::{LogKey, ReplicaId};
use crate::wal;

/// Longer than any answer takes that does not wait for a disk, which none of these does.
const ANSWERS_WITHIN: Duration = Duration::from_millis(100);

/// What a leader needs to have confirmed.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) vote: Vote,
    /// Of each a majority is needed; two while members change.
    voters: Vec<BTreeSet<u64>>,
}

/// Whether `vote` is the newest that this log's replica gave.
pub(super) fn is_newest(log: &wal::Log, vote: &Vote) -> bool {
    log.vote().is_some_and(|saved| decode_vote(saved).is_ok_and(|saved| saved == *vote))
}

impl Claim {
    /// `None` if this replica does not lead, or has not applied an entry of its term yet.
    pub fn of(key: LogKey, metrics: &RaftMetrics<TypeConfig>, log: &wal::Log) -> Option<Claim> {
        let vote = metrics.vote;
        let leads = metrics.state == ServerState::Leader
            && vote.committed
            && vote.leader_id.voted_for == key.replica.0
            && metrics.last_applied.is_some_and(|applied| applied.leader_id.term == vote.leader_id.term);
        if !leads || !is_newest(log, &vote) {
            return None;
        }
        Some(Claim { vote, voters: metrics.membership_config.membership().get_joint_config().clone() })
    }

    /// Whether nobody else has a vote.
    pub fn is_alone(&self, this: ReplicaId) -> bool {
        is_alone(this, &self.voters)
    }

    fn is_confirmed_by(&self, replicas: &BTreeSet<u64>) -> bool {
        !self.voters.is_empty()
            && self.voters.iter().all(|set| set.intersection(replicas).count() > set.len() / 2)
    }

    /// Whether a majority of each set of voters says, from now on, that it voted for nobody newer.
    pub async fn is_confirmed(&self, key: LogKey, carrier: &Arc<dyn Carrier>) -> bool {
        let mut confirmed = BTreeSet::from([key.replica.0]);
        if self.is_confirmed_by(&confirmed) {
            return true;
        }
        let others: BTreeSet<u64> =
            self.voters.iter().flatten().copied().filter(|id| *id != key.replica.0).collect();
        let message = encode_confirm(&self.vote);
        let ask = |to: u64| {
            let route = Route { group: key.group, from: key.replica, to: ReplicaId(to) };
            let answer = carrier.send(route, Class::Control, message.clone());
            async move {
                let answer = answer.await.ok()?;
                decode_confirm_answer(answer).is_ok_and(|confirmed| confirmed).then_some(to)
            }
        };
        let mut answers: FuturesUnordered<_> = others.into_iter().map(ask).collect();
        let counted = async {
            while let Some(answer) = answers.next().await {
                confirmed.extend(answer);
                if self.is_confirmed_by(&confirmed) {
                    return true;
                }
            }
            false
        };
        timeout(ANSWERS_WITHIN, counted).await.unwrap_or(false)
    }
}
