//! Clients: what they ask for, and what they are told, for the history.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::dice::Dice;
use super::trace::{Event, hash_of};
use super::{PARTITIONS, sim};
use crate::history::{Answer, Call, Condition, Operation};
use crate::kv::{self, Op, Outcome, Precondition};
use crate::raft::{ProposeError, ReadError};
use crate::types::{GroupId, NodeId, ReplicaId};

const KEYS: u64 = 12;

/// How long a call may take on the node, and how long its client waits.
const CALL_WITHIN: Duration = Duration::from_millis(1500);
const WAIT: Duration = Duration::from_millis(1800);

/// Nodes asked before a call that surely did nothing is given up.
const ATTEMPTS: usize = 12;

/// What a node answers.
enum Told {
    Answer(Answer),
    /// Surely nothing happened.
    Nothing(Option<ReplicaId>),
    Unknown,
}

/// One client, with one call at a time.
pub(super) struct Client {
    number: u32,
    dice: Dice,
    puts: u64,
    /// Versions that it saw last, by key.
    versions: BTreeMap<u64, u64>,
    leaders: BTreeMap<GroupId, NodeId>,
}

fn group_of(key: u64) -> GroupId {
    GroupId(1 + (key % u64::from(PARTITIONS)) as u32)
}

impl Client {
    pub(super) fn new(number: u32, dice: Dice) -> Client {
        Client { number, dice, puts: 0, versions: BTreeMap::new(), leaders: BTreeMap::new() }
    }

    /// Makes `calls` calls, spread over the time until `end`.
    pub(super) async fn run(mut self, calls: u64, end: Instant) {
        for left in (1..=calls).rev() {
            let pause = end.saturating_duration_since(Instant::now()) / u32::try_from(left).unwrap();
            sleep(pause.mul_f64(self.dice.below(200) as f64 / 100.0)).await;
            let key = self.dice.below(KEYS);
            let call = self.draw(key);
            self.call(key, call).await;
        }
    }

    /// Reads every key.
    pub(super) async fn read_all(&mut self) {
        for key in 0..KEYS {
            self.call(key, Call::Get).await;
        }
    }

    fn draw(&mut self, key: u64) -> Call {
        if self.dice.chance(35) {
            return Call::Get;
        }
        let condition = match self.versions.get(&key) {
            Some(0) | None => Condition::Absent,
            Some(version) => Condition::Version(*version),
        };
        match self.dice.below(100) {
            0..8 => Call::Delete { condition: Condition::None },
            8..16 if condition != Condition::Absent => Call::Delete { condition },
            kind => {
                self.puts += 1;
                let value = u64::from(self.number) << 32 | self.puts;
                Call::Put { value, condition: if kind < 50 { condition } else { Condition::None } }
            }
        }
    }

    async fn call(&mut self, key: u64, call: Call) {
        let invoked_ns = sim().trace.count();
        sim().note(Event::Called(self.number, format!("{key} {call:?}")));
        let answer = self.send(key, call).await;
        sim().note(Event::Heard(self.number, format!("{key} {answer:?}")));
        let answered_ns = sim().trace.count();
        match answer {
            Some(Answer::Found { version, .. } | Answer::Written { version, .. }) => {
                self.versions.insert(key, version);
            }
            Some(Answer::Refused { current_version }) => drop(self.versions.insert(key, current_version)),
            Some(Answer::Missing | Answer::Deleted { .. }) => drop(self.versions.insert(key, 0)),
            Some(Answer::Unknown) | None => {}
        }
        let says_something = |answer: &Answer| call != Call::Get || *answer != Answer::Unknown;
        if let Some(answer) = answer.filter(says_something) {
            let operation = Operation { client: self.number, call, answer, invoked_ns, answered_ns };
            sim().history.borrow_mut().entry(format!("key{key}")).or_default().push(operation);
        }
    }

    /// `None`: surely nothing happened.
    async fn send(&mut self, key: u64, call: Call) -> Option<Answer> {
        let group = group_of(key);
        for _ in 0..ATTEMPTS {
            let all: Vec<NodeId> = sim().nodes.borrow().keys().copied().collect();
            let known = self.leaders.get(&group).copied();
            let node = known.unwrap_or_else(|| *self.dice.pick(&all));
            sleep(self.dice.ms(1, 3)).await;
            let told = ask(node, group, key, call);
            match timeout(WAIT, told).await {
                Ok(Ok(Told::Answer(answer))) => {
                    self.leaders.insert(group, node);
                    sleep(self.dice.ms(1, 3)).await;
                    return Some(answer);
                }
                Ok(Ok(Told::Nothing(leader))) => {
                    match leader {
                        Some(leader) if leader.node() != node => {
                            self.leaders.insert(group, leader.node());
                        }
                        _ => drop(self.leaders.remove(&group)),
                    }
                    sleep(self.dice.ms(20, 200)).await;
                }
                // Also if the node crashed meanwhile.
                Ok(Ok(Told::Unknown) | Err(_)) | Err(_) => {
                    self.leaders.remove(&group);
                    return Some(Answer::Unknown);
                }
            }
        }
        None
    }
}

/// Has a node answer a call.
fn ask(node: NodeId, group: GroupId, key: u64, call: Call) -> oneshot::Receiver<Told> {
    let (tell, told) = oneshot::channel();
    let sim = sim();
    let found = {
        let nodes = sim.nodes.borrow();
        let running = nodes.get(&node).and_then(|node| node.running.as_ref());
        running.and_then(|running| running.groups.get(&group).cloned())
    };
    let Some(found) = found else {
        drop(tell.send(Told::Nothing(None)));
        return told;
    };
    let answering = async move {
        let deadline = Instant::now() + CALL_WITHIN;
        let answer = match call {
            Call::Get => match found.read(deadline).await {
                Ok(space) => Told::Answer(match kv::get(&space, &name(key)).unwrap() {
                    Some(record) => Answer::Found {
                        value: u64::from_le_bytes(record.value[..8].try_into().unwrap()),
                        version: record.version,
                        revision: record.mod_revision,
                    },
                    None => Answer::Missing,
                }),
                Err(ReadError::NotLeader { leader }) => Told::Nothing(leader),
                Err(_) => Told::Nothing(None),
            },
            Call::Put { .. } | Call::Delete { .. } => {
                let command = kv::encode_command(&[operation(key, call)]);
                let hash = hash_of(&command);
                match found.propose(command, deadline).await {
                    Ok(answer) => Told::Answer(outcome(group, hash, answer)),
                    Err(ProposeError::NotLeader { leader }) => Told::Nothing(leader),
                    Err(ProposeError::Unknown(_)) => Told::Unknown,
                    Err(_) => Told::Nothing(None),
                }
            }
        };
        drop(tell.send(answer));
    };
    sim.executor.on(Some(node), || sim.executor.spawn(answering.boxed_local()));
    told
}

fn name(key: u64) -> Bytes {
    Bytes::from(format!("key{key}"))
}

fn operation(key: u64, call: Call) -> Op {
    let precondition = |condition| match condition {
        Condition::None => Precondition::None,
        Condition::Version(version) => Precondition::Version(version),
        Condition::Absent => Precondition::Absent,
    };
    match call {
        Call::Put { value, condition } => {
            // As long as values are, so that logs grow.
            let mut bytes = vec![0; 120];
            bytes[..8].copy_from_slice(&value.to_le_bytes());
            Op::Put { key: name(key), value: bytes.into(), precondition: precondition(condition) }
        }
        Call::Delete { condition } => Op::Delete { key: name(key), precondition: precondition(condition) },
        Call::Get => unreachable!("a read is no operation of the log"),
    }
}

fn outcome(group: GroupId, command: u64, answer: Bytes) -> Answer {
    let kv::Answer::Outcomes(outcomes) = kv::decode_answer(answer).unwrap() else {
        unreachable!("nothing is sealed or halted")
    };
    let acknowledged = |revision| {
        let sim = sim();
        let mut invariants = sim.invariants.borrow_mut();
        let invariants = &mut *invariants;
        invariants.acknowledged.write(&invariants.safety, group, revision, command);
    };
    match outcomes[..] {
        [Outcome::Put { version, revision }] => {
            acknowledged(revision);
            Answer::Written { version, revision }
        }
        [Outcome::Deleted { existed, revision }] => {
            acknowledged(revision);
            Answer::Deleted { existed, revision }
        }
        [Outcome::PreconditionFailed { current_version }] => Answer::Refused { current_version },
        _ => panic!("one operation has one outcome: {outcomes:?}"),
    }
}
