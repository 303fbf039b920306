//! Commands, one by one and in histories, and their encodings.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::codec::{decode_command, decode_state, encode_answer, encode_state};
use super::*;
use crate::placement::{RoutingTable, check};
use crate::types::{Epoch, GroupId, NodeId, PartitionId, ReplicaId};

fn member(name: &str) -> Member {
    Member {
        name: name.into(),
        address: format!("{name}:8080"),
        zone: String::new(),
        weight: 1,
        disk_id: format!("disk of {name}"),
        state: MemberState::Active,
    }
}

fn form(cluster_id: &str, names: &[&str]) -> Form {
    Form {
        cluster_id: cluster_id.into(),
        cluster_name: "rushkv".into(),
        replicas: 3,
        partitions: 16,
        members: number_members(names.iter().map(|name| member(name))),
    }
}

fn formed(names: &[&str]) -> State {
    let mut state = State::default();
    assert_eq!(state.apply(Command::Form(form("a", names))), Ok(Answer::Done));
    state
}

fn join(name: &str) -> Join {
    let Member { name, address, zone, weight, disk_id, .. } = member(name);
    Join { name, address, zone, weight, disk_id, version_max: CLUSTER_VERSION }
}

/// Applied twice, a command answers the same and changes nothing the second time.
fn apply(state: &mut State, command: Command) -> Result<Answer, String> {
    let answer = state.apply(command.clone());
    let once = state.clone();
    assert_eq!(state.apply(command), answer);
    assert_eq!(*state, once);
    answer
}

fn refused(state: &mut State, command: Command, why: &str) {
    let before = state.clone();
    let refusal = state.apply(command).unwrap_err();
    assert!(refusal.contains(why), "{refusal}");
    assert_eq!(*state, before, "a refused command changes nothing");
}

fn replica(node: u32, incarnation: u32) -> ReplicaId {
    ReplicaId::new(NodeId(node), incarnation)
}

/// Every leader makes it so, and reports it.
fn settle(state: &mut State) {
    let groups: Vec<GroupId> =
        [GroupId::META].into_iter().chain(state.partitions.keys().map(|id| id.group())).collect();
    // Group 0's own membership follows on the partitions'.
    for group in groups.iter().chain([&GroupId::META]) {
        let Desired { mut voters, learners, .. } = state.desired(*group).unwrap();
        voters.extend(learners);
        let index = state.holders(*group).unwrap().index + 1;
        apply(state, Command::Moved { group: *group, holders: voters, index }).unwrap();
    }
}

#[test]
fn a_damaged_replica_is_replaced_once_an_hour_and_only_beside_a_majority() {
    let mut three = Partition::born(0, &[NodeId(1), NodeId(2), NodeId(3)]);
    assert_eq!(three.rebuild(replica(2, 1), 10_000), Ok(true));
    assert_eq!(three.replicas, [replica(1, 1), replica(2, 2), replica(3, 1)]);
    assert!(
        three.holders.replicas.contains(&replica(2, 1)),
        "it may be in the group until a report says otherwise"
    );
    // Told twice; and what is not wanted needs no other.
    assert_eq!(three.rebuild(replica(2, 1), 10_001), Ok(false));
    let early = three.rebuild(replica(3, 1), 10_000 + 3599).unwrap_err();
    assert!(early.contains("has to wait"), "{early}");
    assert_eq!(three.rebuild(replica(3, 1), 10_000 + 3600), Ok(true));
    // A node whose clock was wrong does not put it off for good.
    assert_eq!(three.rebuild(replica(1, 1), 1 << 40), Ok(true));
    assert_eq!(three.rebuild(replica(2, 2), 30_000), Ok(true));
    let mut two = Partition::born(0, &[NodeId(1), NodeId(2)]);
    let alone = two.rebuild(replica(2, 1), 10_000).unwrap_err();
    assert!(alone.contains("no majority"), "{alone}");
    assert_eq!(two.replicas, [replica(1, 1), replica(2, 1)]);
}

#[test]
fn a_cluster_forms_once() {
    let mut state = State::default();
    refused(&mut state, Command::Leave(NodeId(1)), "not formed");
    apply(&mut state, Command::Form(form("a", &["node1"]))).unwrap();
    assert_eq!(state.routing().unwrap(), RoutingTable::equal(16));
    assert_eq!(state.epoch, Epoch(1));
    for partition in state.partitions.values() {
        assert_eq!(partition.birth_voters(), [replica(1, 1)]);
    }
    refused(&mut state, Command::Form(form("b", &["node1"])), "formed already");
}

#[test]
fn a_founding_must_make_sense() {
    let broken = |why: &str, change: &dyn Fn(&mut Form)| {
        let mut form = form("a", &["x", "y"]);
        change(&mut form);
        refused(&mut State::default(), Command::Form(form), why);
    };
    broken("id", &|form| form.cluster_id.clear());
    broken("power of two", &|form| form.partitions = 12);
    broken("power of two", &|form| form.partitions = 8192);
    broken("replicas", &|form| form.replicas = 0);
    broken("members", &|form| form.members.clear());
    broken("same name", &|form| form.members.get_mut(&NodeId(2)).unwrap().name = "x".into());
    broken("same disk", &|form| form.members.get_mut(&NodeId(2)).unwrap().disk_id = "disk of x".into());
    broken("numbered", &|form| form.members.get_mut(&NodeId(1)).unwrap().name = "z".into());
    broken("numbered", &|form| {
        let member = form.members.remove(&NodeId(2)).unwrap();
        form.members.insert(NodeId(3), member);
    });
    broken("weight", &|form| form.members.get_mut(&NodeId(1)).unwrap().weight = 0);
    broken("found", &|form| form.members.get_mut(&NodeId(1)).unwrap().state = MemberState::Leaving);
}

#[test]
fn members_found_together() {
    let state = formed(&["c", "a", "b", "d"]);
    let names: Vec<&str> = state.members.values().map(|member| &*member.name).collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
    assert_eq!(group0_voters(&state), [1, 2, 3].map(NodeId));
    let group0 = state.desired(GroupId::META).unwrap();
    assert_eq!((group0.voters.len(), &group0.learners[..]), (3, &[replica(4, 1)][..]));
    check(&state.placement(), &state.routing().unwrap(), &state.candidates(), 3).unwrap();
    for partition in state.partitions.values() {
        assert_eq!(partition.birth_voters().len(), 3);
        assert_eq!(partition.desired().preferred_leader, Some(partition.replicas[0]));
        assert!(partition.holders.replicas.is_sorted());
    }
}

#[test]
fn an_even_number_of_copies_has_a_learner() {
    let state = formed(&["a", "b"]);
    for partition in state.partitions.values() {
        let desired = partition.desired();
        assert_eq!((desired.voters.len(), desired.learners.len()), (1, 1));
        assert_eq!(partition.birth_voters(), desired.voters);
    }
    let counts = [1, 2, 3, 4, 5, 6, 9].map(|count| {
        let names: Vec<String> = (0..count).map(|i| format!("n{i}")).collect();
        group0_voters(&formed(&names.iter().map(|name| &**name).collect::<Vec<_>>())).len()
    });
    assert_eq!(counts, [1, 1, 3, 3, 5, 5, 5]);
}

#[test]
fn births_and_members_change() {
    let mut state = formed(&["a"]);
    apply(&mut state, Command::Created(PartitionId(3))).unwrap();
    assert_eq!(state.partitions[&PartitionId(3)].birth, Birth::Created);
    refused(&mut state, Command::Created(PartitionId(99)), "no partition");
    let update = |number, weight| Command::UpdateMember {
        number: NodeId(number),
        address: "h:1".into(),
        zone: "z".into(),
        weight,
    };
    apply(&mut state, update(1, 2)).unwrap();
    assert_eq!(state.members[&NodeId(1)].address, "h:1");
    assert_eq!(state.epoch, Epoch(2));
    refused(&mut state, update(2, 2), "no member");
    refused(&mut state, update(1, 0), "weight");
    refused(&mut state, update(1, 1001), "weight");
}

#[test]
fn a_heavier_member_gets_more() {
    let mut state = formed(&["a", "b", "c", "d"]);
    let held = |state: &State| state.placement().values().filter(|nodes| nodes.contains(&NodeId(4))).count();
    assert_eq!(held(&state), 12);
    let (address, zone) = ("d:8080".to_string(), String::new());
    apply(&mut state, Command::UpdateMember { number: NodeId(4), address, zone, weight: 9 }).unwrap();
    assert_eq!(held(&state), 16);
}

#[test]
fn a_node_joins_with_a_number_of_its_own() {
    let mut state = formed(&["a", "b", "c"]);
    assert_eq!(apply(&mut state, Command::Join(join("d"))), Ok(Answer::Number(NodeId(4))));
    assert_eq!(
        apply(&mut state, Command::Join(join("b"))),
        Ok(Answer::Number(NodeId(2))),
        "it is one already"
    );
    refused(&mut state, Command::Join(Join { disk_id: "new".into(), ..join("d") }), "another data directory");
    refused(&mut state, Command::Join(Join { name: "e".into(), ..join("d") }), "is d's");
    refused(&mut state, Command::Join(Join { weight: 0, ..join("e") }), "weight");
    check(&state.placement(), &state.routing().unwrap(), &state.candidates(), 3).unwrap();
    assert!(state.group0.replicas.contains(&replica(4, 1)));
    // Who lost a copy to the new node counts as a holder until its leader says otherwise.
    for partition in state.partitions.values() {
        assert!(partition.birth_replicas.iter().all(|replica| partition.holders.replicas.contains(replica)));
    }
}

#[test]
fn who_may_still_be_in_a_group_comes_back_as_it_is() {
    let mut partition = Partition::born(0, &[1, 2, 3].map(NodeId));
    let moved_away = |partition: &mut Partition| partition.place(&[1, 2, 4].map(NodeId));
    moved_away(&mut partition);
    partition.place(&[3, 1, 2].map(NodeId));
    assert_eq!(partition.replicas, [replica(3, 1), replica(1, 1), replica(2, 1)]);
    assert_eq!(partition.holders.replicas, [1, 2, 3, 4].map(|node| replica(node, 1)));
    // Its leader excluded it before it heard of that: it may be destroyed by now.
    assert!(partition.report([1, 2, 4].map(|node| replica(node, 1)).into(), 9));
    assert_eq!(partition.replicas, [replica(3, 2), replica(1, 1), replica(2, 1)]);
    assert!(!partition.report(vec![replica(1, 1)], 8), "an older report");
    assert!(!partition.report(partition.holders.replicas.clone(), 9));
    assert_eq!(partition.replicas[0], replica(3, 2));
    // Group 0 knows that it is not in it.
    moved_away(&mut partition);
    assert!(partition.report([1, 2, 4].map(|node| replica(node, 1)).into(), 10));
    partition.place(&[1, 2, 3].map(NodeId));
    assert_eq!(partition.replicas[2], replica(3, 3));
    // Its node has destroyed it meanwhile.
    assert!(partition.renew(replica(3, 3)) && !partition.renew(replica(3, 3)));
    assert_eq!(partition.replicas[2], replica(3, 4));
    assert!(partition.holders.replicas.contains(&replica(3, 3)), "its group may know it");
}

#[test]
fn a_node_leaves_in_order() {
    let mut state = formed(&["a", "b", "c", "d"]);
    settle(&mut state);
    refused(&mut state, Command::Removed(NodeId(1)), "not been asked");
    apply(&mut state, Command::Leave(NodeId(1))).unwrap();
    assert_eq!(group0_voters(&state), [2, 3, 4].map(NodeId));
    assert!(state.desired(GroupId::META).unwrap().learners.contains(&replica(1, 1)), "it still has copies");
    assert!(state.placement().values().all(|nodes| !nodes.contains(&NodeId(1))));
    refused(&mut state, Command::Removed(NodeId(1)), "still in partition");
    refused(&mut state, Command::Join(join("a")), "leaving");
    assert_eq!(state.removable(), []);
    settle(&mut state);
    assert!(!state.desired(GroupId::META).unwrap().contains(replica(1, 1)));
    assert_eq!(state.removable(), [NodeId(1)]);
    apply(&mut state, Command::Removed(NodeId(1))).unwrap();
    apply(&mut state, Command::Leave(NodeId(1))).unwrap();
    refused(&mut state, Command::Leave(NodeId(9)), "no member");
    refused(&mut state, Command::Join(join("a")), "was removed");
    assert_eq!(state.number_of_disk("disk of a"), Some(NodeId(1)));
    let again = Join { disk_id: "new".into(), ..join("a") };
    assert_eq!(apply(&mut state, Command::Join(again)), Ok(Answer::Number(NodeId(5))));
}

#[test]
fn the_last_member_stays() {
    let mut state = formed(&["a", "b"]);
    apply(&mut state, Command::Leave(NodeId(1))).unwrap();
    refused(&mut state, Command::Leave(NodeId(2)), "last member");
}

#[test]
fn a_cluster_of_one_gives_itself_up_and_takes_nobody_in_meanwhile() {
    let target = |id: &str| Sealed { cluster_id: id.into(), addresses: vec!["t:1".into(), "t:2".into()] };
    let mut state = formed(&["a"]);
    refused(&mut state, Command::Seal(target("a")), "join itself");
    apply(&mut state, Command::Seal(target("t"))).unwrap();
    apply(&mut state, Command::Seal(target("t"))).unwrap();
    refused(&mut state, Command::Seal(target("u")), "already, to join t");
    refused(&mut state, Command::Join(join("d")), "at t:1 or t:2");
    assert_eq!(decode_state(encode_state(&state, 9)).unwrap(), (state.clone(), 9));
    apply(&mut state, Command::Unseal).unwrap();
    apply(&mut state, Command::Unseal).unwrap();
    apply(&mut state, Command::Join(join("d"))).unwrap();
    refused(&mut state, Command::Seal(target("t")), "2 members");
}

#[test]
fn a_group0_report_is_needed_for_a_removal() {
    let mut state = formed(&["a", "b"]);
    settle(&mut state);
    apply(&mut state, Command::Leave(NodeId(2))).unwrap();
    for id in state.partitions.keys().copied().collect::<Vec<_>>() {
        let moved = Command::Moved { group: id.group(), holders: vec![replica(1, 1)], index: 9 };
        apply(&mut state, moved).unwrap();
    }
    refused(&mut state, Command::Removed(NodeId(2)), "still in group 0");
}

#[test]
fn reports_are_taken_in_order() {
    let mut state = formed(&["a", "b", "c"]);
    let group = PartitionId(3).group();
    let report = |nodes: &[u32], index| Command::Moved {
        group,
        holders: nodes.iter().map(|node| replica(*node, 1)).collect(),
        index,
    };
    let epoch = state.epoch;
    apply(&mut state, report(&[3, 2, 1], 5)).unwrap();
    assert_eq!(state.epoch, epoch, "nothing moved");
    apply(&mut state, report(&[2, 1], 7)).unwrap();
    assert_eq!(state.epoch.0, epoch.0 + 1);
    apply(&mut state, report(&[1, 2, 3], 6)).unwrap();
    assert_eq!(state.holders(group).unwrap().replicas, [replica(1, 1), replica(2, 1)]);
    refused(&mut state, report(&[], 8), "nobody");
    let unknown = Command::Moved { group: GroupId(99), holders: vec![replica(1, 1)], index: 1 };
    refused(&mut state, unknown, "no group");
}

#[test]
fn versions_only_grow() {
    let mut state = formed(&["a"]);
    assert_eq!(state.version, 1, "of whichever program founds it");
    let raise = |state: &State, version| Command::SetVersion { version, epoch: state.epoch };
    let asked_before = raise(&state, 4);
    let command = raise(&state, 3);
    apply(&mut state, command).unwrap();
    refused(&mut state, asked_before, "ask its members again");
    let command = raise(&state, 2);
    apply(&mut state, command).unwrap();
    assert_eq!(state.version, 3);
    refused(&mut state, Command::Join(join("b")), "install a newer one");
    let newer = decode_command(encode_command(&raise(&state, CLUSTER_VERSION + 1))).unwrap_err();
    assert!(newer.to_string().contains("newer than this program"), "{newer}");
    let newer = decode_state(encode_state(&state, 1)).unwrap_err();
    assert!(newer.to_string().contains("newer than this program"), "{newer}");
}

#[test]
fn commands_and_answers_survive() {
    let update =
        Command::UpdateMember { number: NodeId(1), address: "h:1".into(), zone: "z".into(), weight: 3 };
    let holders = vec![replica(1, 1), replica(2, 7)];
    for command in [
        Command::Form(form("a", &["x", "y"])),
        Command::Created(PartitionId(2)),
        update,
        Command::Join(join("d")),
        Command::Leave(NodeId(4)),
        Command::Moved { group: GroupId(3), holders, index: 77 },
        Command::Renew { partition: PartitionId(3), replica: replica(4, 2) },
        Command::Rebuild { partition: PartitionId(3), replica: replica(4, 2), at: 1 << 40 },
        Command::Removed(NodeId(4)),
        Command::SetVersion { version: 1, epoch: Epoch(7) },
        Command::Seal(Sealed { cluster_id: "t".into(), addresses: vec!["t:1".into(), String::new()] }),
        Command::Unseal,
    ] {
        assert_eq!(decode_command(encode_command(&command)).unwrap(), command);
    }
    for answer in [Ok(Answer::Done), Ok(Answer::Number(NodeId(7))), Err("no".to_string()), Err(String::new())]
    {
        assert_eq!(decode_answer(&encode_answer(&answer)), answer);
    }
    decode_answer(&Bytes::new()).unwrap_err();
}

#[test]
fn what_was_never_released_is_refused_clearly() {
    let sealed = |mut body: Vec<u8>| {
        body.extend(crc32c::crc32c(&body).to_le_bytes());
        Bytes::from(body)
    };
    let old = decode_state(sealed(vec![1; 60])).unwrap_err();
    assert!(old.to_string().contains("start with an empty data directory"), "{old}");
    let future = decode_state(sealed(vec![5; 60])).unwrap_err();
    assert!(future.to_string().contains("not known to this program"), "{future}");
    let unknown = decode_command(Bytes::from_static(&[4, 99])).unwrap_err();
    assert!(unknown.to_string().contains("unknown kind 99"), "{unknown}");
}

#[derive(Debug, Clone)]
enum Event {
    Join,
    Leave(prop::sample::Index),
    Weigh(prop::sample::Index, u32),
    /// Some groups are made so, and reported.
    Settle,
    Removed,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Join),
        any::<prop::sample::Index>().prop_map(Event::Leave),
        (any::<prop::sample::Index>(), 1u32..5).prop_map(|(at, weight)| Event::Weigh(at, weight)),
        Just(Event::Settle),
        Just(Event::Removed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn ids_are_never_used_again(founders in 1u32..6, events in prop::collection::vec(event(), 1..30)) {
        let names: Vec<String> = (0..founders).map(|at| format!("f{at}")).collect();
        let mut state = formed(&names.iter().map(|name| &**name).collect::<Vec<_>>());
        // Per partition: every replica that ever was desired, and those that are now.
        let mut ever: BTreeMap<PartitionId, BTreeSet<ReplicaId>> = BTreeMap::new();
        let mut now: BTreeMap<PartitionId, BTreeSet<ReplicaId>> = BTreeMap::new();
        let mut numbers: BTreeSet<NodeId> = state.members.keys().copied().collect();
        for (at, event) in events.into_iter().enumerate() {
            let active: Vec<NodeId> = state.active().map(|(number, _)| number).collect();
            let epoch = state.epoch;
            let before = state.clone();
            match event {
                Event::Join => {
                    let answer = apply(&mut state, Command::Join(join(&format!("j{at}")))).unwrap();
                    let Answer::Number(number) = answer else { panic!("{answer:?}") };
                    prop_assert!(numbers.insert(number), "{number} was given twice");
                }
                Event::Leave(which) => {
                    let left = state.apply(Command::Leave(active[which.index(active.len())]));
                    prop_assert_eq!(left.is_err(), active.len() == 1);
                }
                Event::Weigh(which, weight) => {
                    let number = active[which.index(active.len())];
                    let Member { address, zone, .. } = state.members[&number].clone();
                    apply(&mut state, Command::UpdateMember { number, address, zone, weight }).unwrap();
                }
                Event::Settle => settle(&mut state),
                Event::Removed => {
                    for number in state.removable() {
                        apply(&mut state, Command::Removed(number)).unwrap();
                    }
                }
            }
            let topology = |state: &State| (state.members.clone(), state.placement());
            prop_assert!(state.epoch > epoch || topology(&state) == topology(&before));
            check(&state.placement(), &state.routing().unwrap(), &state.candidates(), state.replicas).unwrap();
            for (id, partition) in &state.partitions {
                let desired: BTreeSet<ReplicaId> = partition.replicas.iter().copied().collect();
                let (ever, now) = (ever.entry(*id).or_default(), now.entry(*id).or_default());
                for replica in desired.difference(now) {
                    // Unless it may have been in the group all the time.
                    let held = before.partitions[id].holders.replicas.contains(replica);
                    prop_assert!(ever.insert(*replica) || held, "{replica} of {id} is used again");
                }
                for gone in now.difference(&desired) {
                    prop_assert!(partition.holders.replicas.contains(gone), "{gone} may still be in {id}");
                }
                *now = desired;
            }
            prop_assert_eq!(decode_state(encode_state(&state, 9)).unwrap(), (state.clone(), 9));
        }
    }

    #[test]
    fn nonsense_is_an_error_not_a_panic(bytes: Vec<u8>) {
        let mut sealed = bytes.clone();
        sealed.extend(crc32c::crc32c(&bytes).to_le_bytes());
        let _ = decode_command(Bytes::from(bytes.clone()));
        let _ = decode_answer(&Bytes::from(bytes));
        let _ = decode_state(Bytes::from(sealed));
    }
}
