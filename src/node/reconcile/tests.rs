//! Each rule by itself, and a model of a group that is led from one membership to another.

use proptest::prelude::*;

use super::*;
use crate::meta::{Command, Form, Join, Member, MemberState, State, number_members};

fn r(node: u32) -> ReplicaId {
    ReplicaId::new(NodeId(node), 1)
}

fn rs(nodes: &[u32]) -> Vec<ReplicaId> {
    nodes.iter().copied().map(r).collect()
}

fn desired(voters: &[u32], learners: &[u32]) -> Desired {
    let preferred_leader = voters.first().copied().map(r);
    Desired { voters: rs(voters), learners: rs(learners), preferred_leader, is_renewed: true }
}

/// Led by the first voter, committed, reported, and everybody has everything.
fn observed(voters: &[u32], learners: &[u32]) -> Observed {
    let mut holders: Vec<ReplicaId> = rs(voters).into_iter().chain(rs(learners)).collect();
    holders.sort();
    Observed {
        here: r(voters[0]),
        voters: rs(voters),
        learners: rs(learners),
        joint: false,
        membership_committed: true,
        membership_index: 7,
        matched: holders.iter().map(|replica| (*replica, 100)).collect(),
        commit_index: 100,
        reported_holders: holders,
    }
}

/// One with a majority of nobody: who is to go goes, by the steps that there are, and nobody else.
#[test]
fn while_replicas_differ_only_those_of_leaving_nodes_go() {
    type Case = (&'static str, Desired, Observed, &'static [u32], Step);
    let unheard = |mut observed: Observed, node| {
        observed.matched.remove(&r(node));
        observed
    };
    let newer = |node: u32| ReplicaId::new(NodeId(node), 2);
    let rebuilt = Desired { voters: vec![newer(1), r(3), r(4)], ..desired(&[1, 3, 4], &[]) };
    let cases: &[Case] = &[
        ("nobody comes in", desired(&[1, 2, 4], &[]), observed(&[1, 2], &[]), &[], Step::Nothing),
        (
            "a plan that takes a witness away waits",
            desired(&[1, 2, 4], &[]),
            observed(&[1, 2, 3], &[]),
            &[],
            Step::Nothing,
        ),
        (
            "the learner of two copies goes, though another is wanted",
            desired(&[1], &[4]),
            observed(&[1], &[2]),
            &[2],
            Step::RemoveLearner(r(2)),
        ),
        (
            "the voter of two copies lets the other one vote",
            desired(&[4], &[2]),
            observed(&[1], &[2]),
            &[1],
            Step::ChangeVoters(rs(&[2, 1])),
        ),
        (
            "a lost one goes, and the two that differ stay",
            desired(&[1, 2, 4], &[]),
            unheard(observed(&[1, 2, 3], &[]), 3),
            &[3],
            Step::ChangeVoters(rs(&[1, 2])),
        ),
        (
            "then the wrong one",
            desired(&[1, 4, 5], &[]),
            unheard(observed(&[1, 2, 3], &[]), 3),
            &[2, 3],
            Step::ChangeVoters(rs(&[1])),
        ),
        (
            "beside one that is rebuilt and can't be yet",
            rebuilt,
            Observed { here: r(3), ..unheard(observed(&[1, 2, 3], &[]), 1) },
            &[2],
            Step::ChangeVoters(rs(&[3])),
        ),
    ];
    for (name, desired, observed, leaving, step) in cases {
        let leaves = |node: NodeId| leaving.contains(&node.0);
        let desired = desired_while_halted(desired.clone(), observed, leaves);
        assert_eq!(decide(&desired, observed), *step, "{name}: {desired:?}");
    }
}

#[test]
fn each_rule_by_itself() {
    let cases: &[(&str, Desired, Observed, Step)] = &[
        ("nothing to do", desired(&[1, 2, 3], &[]), observed(&[1, 2, 3], &[]), Step::Nothing),
        (
            "a newcomer is added first",
            desired(&[1, 2, 4], &[]),
            observed(&[1, 2, 3], &[]),
            Step::AddLearner(r(4)),
        ),
        (
            "it votes once it has everything",
            desired(&[1, 2, 4], &[]),
            observed(&[1, 2, 3], &[4]),
            Step::ChangeVoters(rs(&[1, 2, 4])),
        ),
        (
            "who leads without a vote hands over to who votes",
            desired(&[1, 2, 4], &[]),
            Observed { here: r(3), ..observed(&[1, 2, 4], &[3]) },
            Step::TransferLeader(r(1)),
        ),
        (
            "the left over goes last",
            desired(&[1, 2, 4], &[]),
            observed(&[1, 2, 4], &[3]),
            Step::RemoveLearner(r(3)),
        ),
        (
            "a leader that goes hands over first",
            desired(&[2, 3, 4], &[]),
            observed(&[1, 2, 3], &[4]),
            Step::TransferLeader(r(2)),
        ),
        (
            "a preferred successor only if it votes",
            desired(&[4, 2, 3], &[]),
            observed(&[1, 2, 3], &[4]),
            Step::TransferLeader(r(2)),
        ),
        (
            "nobody to hand over to: they get the vote beside it",
            desired(&[2], &[1]),
            observed(&[1], &[2]),
            Step::ChangeVoters(rs(&[2, 1])),
        ),
        ("and then it hands over", desired(&[2], &[1]), observed(&[1, 2], &[]), Step::TransferLeader(r(2))),
        ("and steps back", desired(&[2], &[1]), observed(&[2, 1], &[]), Step::ChangeVoters(rs(&[2]))),
        (
            "a preferred leader leads",
            desired(&[2, 1, 3], &[]),
            observed(&[1, 2, 3], &[]),
            Step::TransferLeader(r(2)),
        ),
        ("a second copy is a learner", desired(&[1], &[2]), observed(&[1], &[]), Step::AddLearner(r(2))),
    ];
    for (what, desired, observed, expected) in cases {
        assert_eq!(decide(desired, observed), *expected, "{what}");
    }
}

#[test]
fn what_has_to_come_first() {
    let goal = desired(&[1, 2, 4], &[]);
    let look = |voters: &[u32], learners: &[u32], change: &dyn Fn(&mut Observed)| {
        let mut observed = observed(voters, learners);
        change(&mut observed);
        decide(&goal, &observed)
    };
    let behind = |node: u32| move |o: &mut Observed| o.matched.extend([(r(node), 99)]);
    let silent = |node: u32| move |o: &mut Observed| o.matched.retain(|id, _| *id != r(node));
    assert_eq!(look(&[1, 2, 3], &[], &|o| o.membership_committed = false), Step::Nothing);
    assert_eq!(look(&[1, 2, 3], &[], &|o| o.joint = true), Step::Flatten);
    let outside = |node: u32| move |o: &mut Observed| (o.joint, o.here) = (true, r(node));
    assert_eq!(look(&[2, 3], &[], &outside(1)), Step::TransferLeader(r(2)));
    let nobody = |o: &mut Observed| (o.joint, o.here, o.commit_index) = (true, r(1), 101);
    assert_eq!(look(&[2, 3], &[], &nobody), Step::Nothing);
    let report = Step::Report { holders: rs(&[1, 2, 3, 4]), index: 7 };
    assert_eq!(look(&[1, 2, 3], &[4], &|o| o.reported_holders.truncate(2)), report);
    assert_eq!(look(&[1, 2, 3], &[4], &behind(4)), Step::Nothing);
    assert_eq!(look(&[1, 2, 3], &[4], &silent(4)), Step::Nothing);
    assert_eq!(look(&[1, 2, 4], &[3], &behind(2)), Step::Nothing);
    assert_eq!(look(&[1, 2, 4], &[3], &silent(4)), Step::Nothing);
    assert_eq!(look(&[1, 2, 4], &[3], &behind(3)), Step::RemoveLearner(r(3)));
    assert_eq!(look(&[2, 1, 4], &[], &behind(1)), Step::Nothing);
    assert_eq!(decide(&Desired::default(), &observed(&[1], &[])), Step::Nothing);
}

fn state(names: &[&str]) -> State {
    let member = |name: &&str| Member {
        name: (*name).into(),
        address: format!("{name}:1"),
        zone: String::new(),
        weight: 1,
        disk_id: format!("disk of {name}"),
        state: MemberState::Active,
    };
    let mut state = State::default();
    let members = number_members(names.iter().map(member));
    let (cluster_id, cluster_name) = ("c".into(), "rushkv".into());
    let form = Form { cluster_id, cluster_name, replicas: 3, partitions: 4, members };
    state.apply(Command::Form(form)).unwrap();
    state
}

#[test]
fn a_node_opens_what_names_it_and_never_twice() {
    let mut state = state(&["a", "b", "c"]);
    let none = BTreeSet::new();
    let open = replicas_to_open(&state, NodeId(2), &none, &none);
    assert_eq!(open.len(), 4);
    for it in &open {
        let partition = &state.partitions[&it.partition];
        let founds = partition.birth_replicas[0] == it.replica;
        assert_eq!(it.initialize, founds.then(|| partition.birth_voters()));
    }
    let have = [(open[0].partition, open[0].replica)].into();
    let left = replicas_to_open(&state, NodeId(2), &have, &none);
    assert_eq!(left, open[1..]);
    assert_eq!(replicas_to_open(&state, NodeId(2), &none, &have), open[1..]);
    assert_eq!(replicas_to_renew(&state, NodeId(2), &have), [(open[0].partition, open[0].replica)]);
    assert_eq!(replicas_to_renew(&state, NodeId(1), &have), []);
    assert_eq!(replicas_to_open(&state, NodeId(9), &none, &none), []);
    for id in 0..4 {
        state.apply(Command::Created(PartitionId(id))).unwrap();
    }
    // Its members need it, whatever is desired by now.
    state.apply(Command::Leave(NodeId(2))).unwrap();
    let open = replicas_to_open(&state, NodeId(2), &none, &none);
    assert_eq!(open.len(), 4);
    assert!(open.iter().all(|it| it.initialize.is_none()));
}

#[test]
fn a_node_closes_only_what_its_group_excludes() {
    let mut state = state(&["a", "b", "c"]);
    let it = |committed: Option<&[u32]>, was_member, confirmed: Option<&[u32]>| Present {
        partition: PartitionId(0),
        replica: r(3),
        committed: committed.map(rs),
        was_member,
        named_by: None,
        confirmed: confirmed.map(|members| Confirmed { members: rs(members), term: 5, index: 9 }),
    };
    let closes = |state: &State, it: Present| !replicas_to_close(state, &[it]).is_empty();
    let excluded = it(Some(&[1, 2]), true, Some(&[1, 2]));
    assert!(!closes(&state, excluded.clone()), "it should be there");
    state.apply(Command::Leave(NodeId(3))).unwrap();
    assert!(closes(&state, excluded));
    assert!(closes(&state, it(None, false, Some(&[1, 2]))));
    assert!(closes(&state, it(Some(&[1, 2]), true, None)));
    assert!(!closes(&state, it(Some(&[1, 2]), false, None)), "a newcomer that applies what was before it");
    assert!(!closes(&state, it(None, true, None)), "never from metadata alone");
    assert!(!closes(&state, it(Some(&[1, 2, 3]), true, Some(&[1, 2, 3]))));
    assert!(!closes(&state, it(Some(&[]), true, Some(&[]))), "nothing is known");
    let [name, address, disk_id] = ["d", "d:1", "d"].map(String::from);
    let join = Join { name, address, zone: String::new(), weight: 1, disk_id, version_max: 1 };
    state.apply(Command::Join(join)).unwrap();
    let named =
        |term, index| Present { named_by: Some(LogId { term, index }), ..it(None, true, Some(&[1, 2])) };
    assert!(closes(&state, named(4, 8)) && closes(&state, named(5, 8)));
    assert!(!closes(&state, named(5, 10)), "it was added again since");
    assert!(closes(&state, named(4, 10)), "never committed: it would be in the leader's log");
    let newcomer = Present { replica: r(4), ..it(None, false, Some(&[1, 2, 3])) };
    assert!(!closes(&state, newcomer), "not added yet");
    // A replica that a newer state has opened, looked at with this one.
    let returned = ReplicaId::new(NodeId(3), 2);
    let newer = Present { replica: returned, ..it(None, false, Some(&[1, 2])) };
    assert!(!closes(&state, newer), "this state is from before it");
}

/// One membership in a log.
#[derive(Debug, Clone)]
struct Membership {
    /// One set, or two while joint.
    voters: Vec<BTreeSet<ReplicaId>>,
    members: BTreeSet<ReplicaId>,
    index: u64,
}

/// A group in which the network, nodes and leaders fail. Logs are only their lengths: a leader's log
/// is everybody's future.
#[derive(Debug)]
struct Model {
    history: Vec<Membership>,
    logs: BTreeMap<ReplicaId, u64>,
    commit: u64,
    leader: Option<ReplicaId>,
    down: BTreeSet<NodeId>,
    /// What group 0 says.
    partition: meta::Partition,
    /// Decided and not carried out yet; with who decided it, and for which membership.
    pending: Vec<(Step, ReplicaId, u64)>,
    /// Those that are there: one of each node at a time.
    open: BTreeSet<ReplicaId>,
    destroyed: BTreeSet<ReplicaId>,
}

impl Model {
    fn new(nodes: &[u32]) -> Model {
        let partition = meta::Partition::born(0, &nodes.iter().copied().map(NodeId).collect::<Vec<_>>());
        let voters: BTreeSet<ReplicaId> = partition.birth_voters().into_iter().collect();
        let members = voters.clone();
        let mut model = Model {
            history: vec![Membership { voters: vec![voters], members: members.clone(), index: 1 }],
            logs: members.iter().map(|replica| (*replica, 1)).collect(),
            commit: 1,
            leader: members.first().copied(),
            down: BTreeSet::new(),
            partition,
            pending: Vec::new(),
            open: BTreeSet::new(),
            destroyed: BTreeSet::new(),
        };
        model.tend();
        model
    }

    fn want(&mut self, nodes: &[u32]) {
        self.partition.place(&nodes.iter().copied().map(NodeId).collect::<Vec<_>>());
    }

    /// Every node destroys what its group excludes and nobody wants, and opens what is wanted or may be in
    /// the group, as soon as there is nothing older.
    fn tend(&mut self) {
        let membership = self.membership().clone();
        let wanted: BTreeSet<ReplicaId> = self.partition.replicas.iter().copied().collect();
        if self.commit >= membership.index {
            let gone = |it: &ReplicaId| !membership.members.contains(it) && !wanted.contains(it);
            let gone: Vec<ReplicaId> =
                self.open.iter().copied().filter(|it| gone(it) && self.up(*it)).collect();
            for replica in gone {
                self.open.remove(&replica);
                self.logs.remove(&replica);
                self.destroyed.insert(replica);
            }
        }
        for replica in wanted.intersection(&self.destroyed) {
            self.partition.renew(*replica);
        }
        let wanted = self.partition.replicas.clone();
        for replica in wanted.iter().chain(&self.partition.holders.replicas) {
            let has_place = self.open.iter().all(|other| other.node() != replica.node());
            if has_place && self.up(*replica) && !self.destroyed.contains(replica) {
                self.open.insert(*replica);
            }
        }
    }

    fn membership(&self) -> &Membership {
        self.history.last().unwrap()
    }

    fn up(&self, replica: ReplicaId) -> bool {
        !self.down.contains(&replica.node())
    }

    fn quorum(membership: &Membership, agrees: impl Fn(ReplicaId) -> bool) -> bool {
        let majority = |set: &BTreeSet<ReplicaId>| set.iter().filter(|r| agrees(**r)).count() * 2 > set.len();
        membership.voters.iter().all(majority)
    }

    fn append(&mut self) -> u64 {
        let log = self.logs.get_mut(&self.leader.unwrap()).unwrap();
        *log += 1;
        *log
    }

    /// The leader's entries reach these nodes, and whatever has a quorum is committed.
    fn replicate(&mut self, reaches: impl Fn(ReplicaId) -> bool) {
        let Some(leader) = self.leader else { return };
        let last = self.logs[&leader];
        for replica in self.membership().members.clone() {
            if self.up(replica) && self.open.contains(&replica) && reaches(replica) {
                self.logs.insert(replica, last);
            }
        }
        let has = |replica: ReplicaId, index: u64| self.logs.get(&replica).is_some_and(|log| *log >= index);
        let committed = |index: &u64| Self::quorum(self.membership(), |replica| has(replica, *index));
        self.commit = (self.commit..=last).rev().find(committed).unwrap_or(self.commit);
        let votes = self.membership().voters.iter().any(|set| set.contains(&leader));
        if self.commit >= self.membership().index && !votes {
            // It led the group through the change that took its vote.
            self.leader = None;
        }
    }

    /// A voter becomes leader, if Raft lets it: a majority is up and has no more than it has. What it
    /// does not have never happened, memberships included.
    fn elect(&mut self, candidate: ReplicaId) {
        let Some(&log) = self.logs.get(&candidate) else { return };
        let known = self.history.iter().filter(|membership| membership.index <= log).count();
        let Some(membership) = known.checked_sub(1).map(|at| self.history[at].clone()) else { return };
        let has_no_more = |replica| self.logs.get(&replica).copied().unwrap_or(0) <= log;
        // One that is destroyed does not vote.
        let votes =
            |replica: ReplicaId| self.up(replica) && self.open.contains(&replica) && has_no_more(replica);
        let may = membership.voters.iter().any(|set| set.contains(&candidate)) && self.up(candidate);
        if !may || !Self::quorum(&membership, votes) {
            return;
        }
        assert!(log >= self.commit, "a leader without what was committed");
        self.history.truncate(known);
        self.logs.values_mut().for_each(|other| *other = (*other).min(log));
        self.leader = Some(candidate);
        self.append();
    }

    fn observe(&self) -> Option<Observed> {
        let here = self.leader?;
        let membership = self.membership();
        let voters = membership.voters.last().unwrap();
        Some(Observed {
            here,
            voters: voters.iter().copied().collect(),
            learners: membership.members.difference(voters).copied().collect(),
            joint: membership.voters.len() > 1,
            membership_committed: self.commit >= membership.index,
            membership_index: membership.index,
            matched: (self.logs.iter())
                .filter(|(replica, _)| membership.members.contains(replica) && self.up(**replica))
                .map(|(replica, log)| (*replica, *log))
                .collect(),
            commit_index: self.commit,
            reported_holders: self.partition.holders.replicas.clone(),
        })
    }

    fn think(&mut self) {
        let Some(observed) = self.observe() else { return };
        let step = decide(&self.partition.desired(), &observed);
        self.judge(&step);
        if step != Step::Nothing {
            self.pending.push((step, observed.here, observed.membership_index));
        }
    }

    /// No step may take a copy away while one that is wanted is not complete, or let somebody vote or
    /// lead who has not everything.
    fn judge(&self, step: &Step) {
        let desired = self.partition.desired();
        let complete =
            |replica: &ReplicaId| self.up(*replica) && self.logs.get(replica) >= Some(&self.commit);
        match step {
            Step::RemoveLearner(gone) => {
                let rest = self.membership().members.iter().filter(|replica| *replica != gone);
                let nodes: BTreeSet<NodeId> =
                    rest.filter(|r| complete(r)).map(|replica| replica.node()).collect();
                let bound = desired.voters.len() + desired.learners.len();
                // Who is in the way of a newer one on its node is no voter; the voters stay.
                let is_in_the_way = self.partition.replicas.iter().any(|wanted| wanted.node() == gone.node());
                let count = nodes.len();
                assert!(is_in_the_way || count >= bound, "{gone} is removed, {count} copies of {bound} stay");
                assert!(self.membership().voters.iter().all(|set| !set.contains(gone)));
                assert!(!desired.contains(*gone) && Some(*gone) != self.leader);
            }
            Step::ChangeVoters(voters) => {
                assert!(voters.iter().all(complete));
                assert!(voters.contains(&self.leader.unwrap()), "a leader votes itself out");
            }
            Step::TransferLeader(to) => {
                let sets = &self.membership().voters;
                assert!(complete(to) && sets.last().unwrap().contains(to));
                assert!(sets.len() > 1 || desired.voters.contains(to));
            }
            Step::Flatten => {
                let newer = self.membership().voters.last().unwrap();
                assert!(newer.contains(&self.leader.unwrap()), "a leader votes itself out");
            }
            _ => {}
        }
    }

    fn carry_out(&mut self, (step, by, for_index): (Step, ReplicaId, u64)) {
        if let Step::Report { holders, index } = step {
            self.partition.report(holders, index);
            return;
        }
        let now = self.membership().clone();
        let Some(leader) = self.leader else { return };
        if leader != by || now.index != for_index || self.commit < now.index || !self.up(leader) {
            return;
        }
        let (mut voters, mut members) = (vec![now.voters.last().unwrap().clone()], now.members.clone());
        match step {
            Step::Nothing | Step::Report { .. } => return,
            Step::Flatten => {}
            Step::AddLearner(replica) => {
                assert!(
                    !self.history.iter().any(|was| was.members.contains(&replica)),
                    "an id is used again"
                );
                members.insert(replica);
                self.logs.entry(replica).or_insert(0);
            }
            Step::ChangeVoters(new) => {
                let new: BTreeSet<ReplicaId> = new.into_iter().collect();
                assert!(new.is_subset(&members));
                voters.push(new);
            }
            Step::RemoveLearner(replica) => {
                members.remove(&replica);
            }
            Step::TransferLeader(to) => {
                if self.logs[&to] == self.logs[&leader] {
                    self.elect(to);
                }
                return;
            }
        }
        let index = self.append();
        self.history.push(Membership { voters, members, index });
    }
}

#[derive(Debug, Clone)]
enum Event {
    Want(Vec<u32>),
    Write,
    /// Bit n: it reaches node n.
    Replicate(u8),
    Think,
    CarryOut(prop::sample::Index),
    /// The step is lost, or its outcome is.
    Lose(prop::sample::Index),
    Elect(prop::sample::Index),
    Crash(u32),
    Restart(u32),
}

/// Up to five of seven nodes.
fn nodes() -> impl Strategy<Value = Vec<u32>> {
    (Just((1..=7).collect::<Vec<u32>>()).prop_shuffle(), 1usize..=5).prop_map(|(mut nodes, count)| {
        nodes.truncate(count);
        nodes
    })
}

fn event() -> impl Strategy<Value = Event> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        1 => nodes().prop_map(Event::Want),
        3 => Just(Event::Write),
        8 => any::<u8>().prop_map(Event::Replicate),
        8 => Just(Event::Think),
        8 => index().prop_map(Event::CarryOut),
        1 => index().prop_map(Event::Lose),
        2 => index().prop_map(Event::Elect),
        1 => (1u32..=7).prop_map(Event::Crash),
        3 => (1u32..=7).prop_map(Event::Restart),
    ]
}

impl Model {
    fn happens(&mut self, event: Event) {
        match event {
            Event::Want(nodes) => self.want(&nodes),
            Event::Write if self.leader.is_some() => drop(self.append()),
            Event::Write => {}
            Event::Replicate(reach) => self.replicate(|replica| reach >> replica.node().0 & 1 == 1),
            Event::Think => self.think(),
            Event::CarryOut(_) | Event::Lose(_) if self.pending.is_empty() => {}
            Event::CarryOut(which) => {
                let step = self.pending.remove(which.index(self.pending.len()));
                self.carry_out(step);
            }
            Event::Lose(which) => drop(self.pending.remove(which.index(self.pending.len()))),
            Event::Elect(which) => {
                let replicas: Vec<ReplicaId> = self.logs.keys().copied().collect();
                self.elect(replicas[which.index(replicas.len())]);
            }
            Event::Crash(node) => {
                self.down.insert(NodeId(node));
                self.leader = self.leader.filter(|leader| leader.node() != NodeId(node));
            }
            Event::Restart(node) => drop(self.down.remove(&NodeId(node))),
        }
        self.tend();
    }

    /// Everybody is up and every step succeeds: how many rounds until nothing is left to do.
    fn settle(&mut self) -> Option<usize> {
        self.down.clear();
        // A node may have to open a replica yet.
        let mut quiet = 0;
        for round in 0..100 {
            self.tend();
            if self.leader.is_none() {
                let longest = self.logs.keys().copied().max_by_key(|replica| self.logs[replica]);
                let candidates: Vec<ReplicaId> =
                    longest.into_iter().chain(self.logs.keys().copied()).collect();
                for candidate in candidates {
                    if self.leader.is_none() {
                        self.elect(candidate);
                    }
                }
            }
            self.replicate(|_| true);
            for step in std::mem::take(&mut self.pending) {
                self.carry_out(step);
            }
            self.tend();
            self.replicate(|_| true);
            self.think();
            let observed = self.observe();
            let committed = observed.is_some_and(|observed| observed.membership_committed);
            quiet = if self.pending.is_empty() && committed { quiet + 1 } else { 0 };
            if quiet == 2 {
                return Some(round);
            }
        }
        None
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn any_group_gets_where_it_should_be(
        start in nodes(),
        events in prop::collection::vec(event(), 0..200),
        end in nodes(),
    ) {
        let mut model = Model::new(&start);
        for event in events {
            model.happens(event);
        }
        model.want(&end);
        let rounds = model.settle();
        let wanted = model.partition.desired();
        prop_assert!(rounds.is_some(), "{model:?}");
        let voters: BTreeSet<ReplicaId> = wanted.voters.iter().copied().collect();
        let members: BTreeSet<ReplicaId> = voters.iter().chain(&wanted.learners).copied().collect();
        prop_assert_eq!(&model.membership().voters, &vec![voters]);
        prop_assert_eq!(&model.membership().members, &members);
        prop_assert_eq!(model.leader, wanted.preferred_leader);
        prop_assert_eq!(model.partition.holders.replicas.iter().copied().collect::<BTreeSet<_>>(), members);
    }
}
