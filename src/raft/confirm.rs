//! Confirms for readers that this replica leads, past the consensus core: what ReadIndex comes to (Ongaro 2014, 6.4)
//! when what is applied here is all that a reader has to see.
//!
//! Why a read of what is applied here, after this, is linearizable:
//! - What this leader acknowledged, it had applied. What the leaders before it acknowledged, or will yet, stands
//!   before the first entry of its term, and is applied once that is.
//! - What a later leader acknowledges comes later than the read's beginning. Such a leader needs the votes of a
//!   majority; of any majority one replica has confirmed here, after the reader came, that it had not voted for
//!   anybody newer. That this holds while members change, too, is Raft's own argument: sets of voters that
//!   follow on each other share a voter in any two majorities, and here a majority of each is asked.
//!
//! A vote is looked up where it is saved, in memory of the log: it stands there before it is durable, and nobody is
//! told of it before that. What the consensus core publishes comes later, and is used only for what is no less true
//! then: that this replica was elected, what is applied, and who votes. The core publishes a membership before it appends the
//! next one, if not always before this one is committed (the next one's append needs the news of that commit, which comes
//! in a later round of the core's loop, and each round begins with publishing): so it is the one in force or its
//! neighbour, as Raft's argument needs it.
//!
//! Whoever can't be confirmed in this way does not read: openraft's own ReadIndex is not asked instead, since it may
//! take answers from before the question for later ones (decision 20).

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
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

/// About an election timeout (`group.rs`). An answer waits for no disk and no core, only for the queues on its way: a
/// majority that takes longer is gone, or farther away than the group's elections are made for.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// A peer whose answer takes longer is taken to owe none, and may be asked again: what swallows questions gets one each
/// time this has passed. Shorter than it takes the transport to give a silent connection up.
const OWED_FOR: Duration = Duration::from_secs(2);

/// What a voter says of a leader's vote, and what all of them together come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No newer one was given.
    Confirmed,
    /// A newer one was given: this leader is none any more, or will not be for long.
    Superseded,
    /// The voter has not heard of this vote yet, or not of the question, or too few have.
    Unknown,
}

/// What this log's replica says of `vote`.
pub(super) fn verdict(log: &wal::Log, vote: &Vote) -> Verdict {
    let saved = log.vote().and_then(|saved| decode_vote(saved).ok());
    saved.map_or(Verdict::Unknown, |saved| compare(&saved, vote))
}

fn compare(saved: &Vote, claimed: &Vote) -> Verdict {
    match saved.partial_cmp(claimed) {
        Some(Ordering::Equal) => Verdict::Confirmed,
        Some(Ordering::Greater) => Verdict::Superseded,
        // Nothing says which of two is newer only if both are of one term: that is not more than not knowing.
        Some(Ordering::Less) | None => Verdict::Unknown,
    }
}

/// What a leader needs to have confirmed.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) vote: Vote,
    /// Of each a majority is needed; two while members change.
    voters: Vec<BTreeSet<u64>>,
}

impl Claim {
    /// `None` if this replica does not lead, or has not applied an entry of its term yet.
    pub fn of(key: LogKey, metrics: &RaftMetrics<TypeConfig>, log: &wal::Log) -> Option<Claim> {
        let vote = metrics.vote;
        let leads = metrics.state == ServerState::Leader
            && vote.committed
            && vote.leader_id.voted_for == key.replica.0
            && metrics.last_applied.is_some_and(|applied| applied.leader_id.term == vote.leader_id.term);
        if !leads || verdict(log, &vote) != Verdict::Confirmed {
            return None;
        }
        Some(Claim { vote, voters: metrics.membership_config.membership().get_joint_config().clone() })
    }

    /// Whether nobody else has a vote.
    pub fn is_alone(&self, this: ReplicaId) -> bool {
        is_alone(this, &self.voters)
    }

    fn others(&self, this: ReplicaId) -> BTreeSet<u64> {
        self.voters.iter().flatten().copied().filter(|id| *id != this.0).collect()
    }

    fn is_confirmed_by(&self, replicas: &BTreeSet<u64>) -> bool {
        !self.voters.is_empty()
            && self.voters.iter().all(|set| set.intersection(replicas).count() > set.len() / 2)
    }
}

/// Has one claim after the other confirmed. A round ends with the first majority, and the next may begin at once: a
/// peer that is slower than the others is asked again only when it has answered, so that it owes one answer at most.
pub(super) struct Confirmer {
    key: LogKey,
    carrier: Arc<dyn Carrier>,
    round: u64,
    /// Answers that are owed, in this round and from those before.
    owed: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// By whom.
    owing: BTreeSet<u64>,
}

struct Answer {
    from: u64,
    /// In which it was asked for.
    round: u64,
    verdict: Verdict,
}

impl Confirmer {
    pub fn new(key: LogKey, carrier: Arc<dyn Carrier>) -> Confirmer {
        Confirmer { key, carrier, round: 0, owed: FuturesUnordered::new(), owing: BTreeSet::new() }
    }

    /// Whether a majority of each set of voters says, from now on, that it voted for nobody newer.
    pub async fn confirm(&mut self, claim: &Claim) -> Verdict {
        self.round += 1;
        timeout(ANSWERS_WITHIN, self.confirm_in_round(claim)).await.unwrap_or(Verdict::Unknown)
    }

    async fn confirm_in_round(&mut self, claim: &Claim) -> Verdict {
        let message = encode_confirm(&claim.vote);
        let others = claim.others(self.key.replica);
        let mut unasked = others.clone();
        let mut confirmed = BTreeSet::from([self.key.replica.0]);
        while !claim.is_confirmed_by(&confirmed) {
            unasked.retain(|peer| !self.ask(*peer, &message));
            if self.owing.is_disjoint(&others) {
                return Verdict::Unknown;
            }
            let Some(answer) = self.answer().await else { return Verdict::Unknown };
            // What a peer was asked before this round, it may have answered before the readers came: that only frees
            // it. Answers that came between the rounds are here at once.
            if answer.round != self.round {
                continue;
            }
            match answer.verdict {
                Verdict::Confirmed => {
                    confirmed.insert(answer.from);
                }
                Verdict::Superseded => return Verdict::Superseded,
                Verdict::Unknown => {}
            }
        }
        Verdict::Confirmed
    }

    /// Asks a peer, unless it owes an answer already.
    fn ask(&mut self, peer: u64, message: &Bytes) -> bool {
        if !self.owing.insert(peer) {
            return false;
        }
        let route = Route { group: self.key.group, from: self.key.replica, to: ReplicaId(peer) };
        let answer = timeout(OWED_FOR, self.carrier.send(route, Class::Control, message.clone()));
        let round = self.round;
        self.owed.push(Box::pin(async move {
            let answered = match answer.await {
                Ok(Ok(answer)) => decode_confirm_answer(answer).ok(),
                Ok(Err(_)) | Err(_) => None,
            };
            Answer { from: peer, round, verdict: answered.unwrap_or(Verdict::Unknown) }
        }));
        true
    }

    /// The next answer, of whatever round; its peer owes none any more.
    async fn answer(&mut self) -> Option<Answer> {
        let answer = self.owed.next().await?;
        self.owing.remove(&answer.from);
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt as _;
    use tokio::sync::oneshot;
    use tokio::time::{Instant, advance};

    use super::super::carrier::CarryError;
    use super::super::message::{Request, encode_confirm_answer};
    use super::*;
    use crate::types::GroupId;

    type Carried = Result<Bytes, CarryError>;

    /// Keeps what is asked until the test answers it.
    #[derive(Debug, Default)]
    struct Held(Mutex<Vec<(u64, oneshot::Sender<Carried>)>>);

    impl Carrier for Held {
        fn send(&self, route: Route, class: Class, message: Bytes) -> BoxFuture<'static, Carried> {
            let request = Request::decode(route.from, message).unwrap();
            assert!(matches!((request, class), (Request::Confirm(_), Class::Control)));
            let (answer, answered) = oneshot::channel();
            self.0.lock().unwrap().push((route.to.0, answer));
            answered.map(|answer| answer.unwrap()).boxed()
        }
    }

    impl Held {
        /// Who was asked and is not answered for, in the order of asking.
        fn asked(&self) -> Vec<u64> {
            self.0.lock().unwrap().iter().map(|(peer, _)| *peer).collect()
        }

        fn answer(&self, peer: u64, answer: Carried) {
            let mut asked = self.0.lock().unwrap();
            let at = asked.iter().position(|(asked, _)| *asked == peer).expect("it was asked");
            // It may be too late.
            let _ = asked.remove(at).1.send(answer);
        }

        fn say(&self, peer: u64, verdict: Verdict) {
            self.answer(peer, Ok(encode_confirm_answer(verdict)));
        }
    }

    fn confirmer() -> (Confirmer, Arc<Held>) {
        let carrier = Arc::new(Held::default());
        let key = LogKey { group: GroupId(1), replica: ReplicaId(1) };
        (Confirmer::new(key, carrier.clone()), carrier)
    }

    fn claim(voters: &[&[u64]]) -> Claim {
        let voters = voters.iter().map(|set| set.iter().copied().collect()).collect();
        Claim { vote: Vote::new_committed(3, 1), voters }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_owes_an_answer_is_not_asked_again() {
        let (mut confirmer, peers) = confirmer();
        let claim = claim(&[&[1, 2, 3]]);
        for _ in 0..5 {
            let mut round = Box::pin(confirmer.confirm(&claim));
            assert_eq!((&mut round).now_or_never(), None);
            peers.say(2, Verdict::Confirmed);
            assert_eq!(round.now_or_never(), Some(Verdict::Confirmed));
            assert_eq!(peers.asked(), [3]);
        }
        // It answers between two rounds: that frees it, and says nothing of the next one.
        peers.say(3, Verdict::Confirmed);
        let mut round = Box::pin(confirmer.confirm(&claim));
        assert_eq!((&mut round).now_or_never(), None);
        assert_eq!(peers.asked(), [2, 3]);
        peers.say(2, Verdict::Confirmed);
        assert_eq!(round.now_or_never(), Some(Verdict::Confirmed));
        // It never does: it is given up.
        advance(OWED_FOR).await;
        let mut round = Box::pin(confirmer.confirm(&claim));
        assert_eq!((&mut round).now_or_never(), None);
        assert_eq!(peers.asked(), [3, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_an_older_round_does_not_count() {
        let (mut confirmer, peers) = confirmer();
        let claim = claim(&[&[1, 2, 3]]);
        assert_eq!(confirmer.confirm(&claim).await, Verdict::Unknown, "nobody answers in time");
        assert_eq!(peers.asked(), [2, 3]);
        let mut round = Box::pin(confirmer.confirm(&claim));
        assert_eq!((&mut round).now_or_never(), None);
        assert_eq!(peers.asked(), [2, 3], "both owe one");
        for late in [Verdict::Confirmed, Verdict::Superseded] {
            let peer = peers.asked()[0];
            peers.say(peer, late);
            assert_eq!((&mut round).now_or_never(), None);
            assert_eq!(peers.asked().last(), Some(&peer), "it is asked for this round");
        }
        assert_eq!(peers.asked(), [2, 3]);
        peers.say(3, Verdict::Confirmed);
        assert_eq!(round.now_or_never(), Some(Verdict::Confirmed));
    }

    #[tokio::test(start_paused = true)]
    async fn one_newer_vote_ends_a_round() {
        let (mut confirmer, peers) = confirmer();
        let claim = claim(&[&[1, 2, 3, 4, 5]]);
        let mut round = Box::pin(confirmer.confirm(&claim));
        assert_eq!((&mut round).now_or_never(), None);
        peers.say(4, Verdict::Confirmed);
        assert_eq!((&mut round).now_or_never(), None);
        peers.say(2, Verdict::Superseded);
        assert_eq!(round.now_or_never(), Some(Verdict::Superseded));
    }

    #[tokio::test(start_paused = true)]
    async fn each_set_of_voters_needs_a_majority() {
        let (mut confirmer, peers) = confirmer();
        let joint = claim(&[&[1, 2, 3], &[4, 5, 6]]);
        let mut round = Box::pin(confirmer.confirm(&joint));
        assert_eq!((&mut round).now_or_never(), None);
        assert_eq!(peers.asked(), [2, 3, 4, 5, 6]);
        for peer in [2, 3, 4] {
            peers.say(peer, Verdict::Confirmed);
            assert_eq!((&mut round).now_or_never(), None, "of the second set this leader is none");
        }
        peers.say(6, Verdict::Confirmed);
        assert_eq!(round.now_or_never(), Some(Verdict::Confirmed));

        // Who votes no more and owes an answer is not waited for.
        assert_eq!(confirmer.confirm(&claim(&[&[1]])).await, Verdict::Confirmed);
        assert_eq!(confirmer.confirm(&claim(&[])).await, Verdict::Unknown);
        assert_eq!(peers.asked(), [5]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_majority_nothing_is_known() {
        let (mut confirmer, peers) = confirmer();
        let claim = claim(&[&[1, 2, 3]]);
        let mut round = Box::pin(confirmer.confirm(&claim));
        assert_eq!((&mut round).now_or_never(), None);
        peers.say(2, Verdict::Unknown);
        peers.answer(3, Err(CarryError::Refused("unknown kind 8".to_string())));
        assert_eq!(round.now_or_never(), Some(Verdict::Unknown), "all have spoken");
        let began = Instant::now();
        assert_eq!(confirmer.confirm(&claim).await, Verdict::Unknown);
        assert_eq!(began.elapsed(), ANSWERS_WITHIN);
    }

    #[test]
    fn a_vote_of_another_term_or_replica_confirms_nothing() {
        let claimed = Vote::new_committed(3, 1);
        for (saved, verdict) in [
            (claimed, Verdict::Confirmed),
            (Vote::new(3, 1), Verdict::Unknown),
            (Vote::new(3, 2), Verdict::Unknown),
            (Vote::new_committed(2, 2), Verdict::Unknown),
            (Vote::new_committed(3, 2), Verdict::Unknown),
            (Vote::new(4, 1), Verdict::Superseded),
            (Vote::new(4, 2), Verdict::Superseded),
            (Vote::new_committed(4, 2), Verdict::Superseded),
        ] {
            assert_eq!(compare(&saved, &claimed), verdict, "{saved}");
        }
    }
}
