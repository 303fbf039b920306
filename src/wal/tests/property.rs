//! Random histories of several logs, ended by crashes at any moment, against a model: what was
//! acknowledged is there, each log is in a state that it really had, and nothing removed comes back.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::sim::Fault;
use super::*;

const LOGS: u32 = 4;

#[derive(Debug, Clone)]
enum Step {
    Append {
        log: u32,
        entries: u8,
        bytes: u16,
    },
    Vote {
        log: u32,
    },
    Truncate {
        log: u32,
        back: u8,
    },
    Purge {
        log: u32,
        ahead: i8,
    },
    Destroy {
        log: u32,
    },
    /// Waits until everything so far is durable.
    Barrier {
        log: u32,
    },
    Close,
    /// The closing batch is written, and then its fsync fails.
    CloseFails,
    /// The process is killed in the fsync of the closing batch.
    CloseKilled,
    Kill,
    PowerLoss {
        seed: u64,
        luck: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let log = 0..LOGS;
    prop_oneof![
        12 => (log.clone(), 1..5_u8, prop_oneof![4 => 0..200_u16, 1 => 200..6000_u16])
            .prop_map(|(log, entries, bytes)| Step::Append { log, entries, bytes }),
        3 => log.clone().prop_map(|log| Step::Vote { log }),
        2 => (log.clone(), 0..6_u8).prop_map(|(log, back)| Step::Truncate { log, back }),
        5 => (log.clone(), -6..4_i8).prop_map(|(log, ahead)| Step::Purge { log, ahead }),
        1 => log.clone().prop_map(|log| Step::Destroy { log }),
        3 => log.prop_map(|log| Step::Barrier { log }),
        1 => Just(Step::Close),
        1 => Just(Step::CloseFails),
        1 => Just(Step::CloseKilled),
        1 => Just(Step::Kill),
        2 => (any::<u64>(), 0..=4_u8).prop_map(|(seed, luck)| Step::PowerLoss { seed, luck }),
    ]
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    vote: Option<Bytes>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

impl Model {
    fn of(log: &Log) -> Model {
        let entries = log.first_index().map(|first| log.entries(first, u64::MAX, usize::MAX).unwrap());
        Model { vote: log.vote(), purged: log.purged(), entries: entries.unwrap_or_default() }
    }

    fn last(&self) -> u64 {
        self.entries.last().map(|entry| entry.id.index).or(self.purged.map(|id| id.index)).unwrap_or(0)
    }
}

/// Every state of a log, and up to which it was acknowledged.
struct History {
    states: Vec<Model>,
    acknowledged: Arc<AtomicUsize>,
}

impl History {
    /// A new state, and the callback that acknowledges it.
    fn push(&mut self, state: Model) -> Done {
        let number = self.states.len();
        self.states.push(state);
        let acknowledged = self.acknowledged.clone();
        Box::new(move |result| {
            result.unwrap();
            let before = acknowledged.swap(number, Ordering::SeqCst);
            assert!(before < number, "callbacks come in order");
        })
    }

    fn now(&self) -> Model {
        self.states.last().unwrap().clone()
    }
}

struct World {
    sim: Arc<Sim>,
    wal: Wal,
    options: Options,
    histories: Vec<History>,
    /// Makes every payload and vote another.
    count: u64,
}

impl World {
    fn new(cache_bytes: usize) -> World {
        let options = Options { segment_bytes: 16 * 1024, cache_bytes, ..options() };
        let sim = Sim::new();
        let wal = open_with(&sim, options.clone()).unwrap();
        let history = || History { states: vec![Model::default()], acknowledged: Arc::default() };
        World { sim, wal, options, histories: (0..LOGS).map(|_| history()).collect(), count: 0 }
    }

    fn run(&mut self, step: Step) {
        self.count += 1;
        let count = self.count;
        match step {
            Step::Append { log, entries, bytes } => {
                let history = &mut self.histories[log as usize];
                let mut model = history.now();
                let first = model.last() + 1;
                let new: Vec<Entry> = (first..first + u64::from(entries))
                    .map(|index| entry(count, index, &format!("{count}.").repeat(usize::from(bytes) / 3 + 1)))
                    .collect();
                model.entries.extend(new.clone());
                let done = history.push(model);
                block_on(self.wal.log(key(log)).append(new, done)).unwrap();
            }
            Step::Vote { log } => {
                let history = &mut self.histories[log as usize];
                let vote = Bytes::from(format!("vote {count}"));
                let done = history.push(Model { vote: Some(vote.clone()), ..history.now() });
                block_on(self.wal.log(key(log)).save_vote(vote, done)).unwrap();
            }
            Step::Truncate { log, back } => {
                let history = &mut self.histories[log as usize];
                let mut model = history.now();
                let purged = model.purged.map_or(0, |id| id.index);
                let after = model.last().saturating_sub(u64::from(back)).max(purged);
                model.entries.retain(|entry| entry.id.index <= after);
                let done = history.push(model);
                block_on(self.wal.log(key(log)).truncate_from(after + 1, done)).unwrap();
            }
            Step::Purge { log, ahead } => {
                let history = &mut self.histories[log as usize];
                let mut model = history.now();
                let upto = LogId { term: count, index: model.last().saturating_add_signed(i64::from(ahead)) };
                model.entries.retain(|entry| entry.id.index > upto.index);
                if model.purged.is_none_or(|purged| purged.index < upto.index) {
                    model.purged = Some(upto);
                }
                let done = history.push(model);
                block_on(self.wal.log(key(log)).purge(upto, done)).unwrap();
            }
            Step::Destroy { log } => {
                let done = self.histories[log as usize].push(Model::default());
                block_on(self.wal.log(key(log)).destroy(done)).unwrap();
            }
            Step::Barrier { log } => {
                let history = &mut self.histories[log as usize];
                let log = self.wal.log(key(log));
                sync(|done| log.barrier(done)).unwrap();
                let acknowledged = history.acknowledged.load(Ordering::SeqCst);
                assert_eq!(acknowledged, history.states.len() - 1, "a barrier is behind everything");
            }
            Step::Close => {
                self.wal.close().unwrap();
                for history in &self.histories {
                    assert_eq!(history.acknowledged.load(Ordering::SeqCst), history.states.len() - 1);
                }
                let sim = self.sim.clone();
                self.restart(sim, &self.acknowledged());
            }
            Step::CloseFails => {
                self.settle();
                self.sim.fail(Fault::Sync, 0);
                self.wal.close().unwrap_err();
                self.restart(self.sim.kill(), &self.acknowledged());
            }
            Step::CloseKilled => {
                self.settle();
                let held = self.sim.hold();
                let closing = std::thread::spawn({
                    let wal = self.wal.clone();
                    move || wal.close()
                });
                self.sim.wait_for_held();
                let killed = self.sim.kill();
                drop(held);
                closing.join().unwrap().unwrap();
                self.restart(killed, &self.acknowledged());
            }
            Step::Kill => {
                let acknowledged = self.acknowledged();
                let sim = self.sim.kill();
                self.restart(sim, &acknowledged);
            }
            Step::PowerLoss { seed, luck } => {
                let acknowledged = self.acknowledged();
                let mut random = seed | 1;
                let sim = self.sim.power_loss(|| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random % 4 < u64::from(luck)
                });
                self.restart(sim, &acknowledged);
            }
        }
        for (log, history) in self.histories.iter().enumerate() {
            assert_eq!(Model::of(&self.wal.log(key(log as u32))), history.now(), "memory, log {log}");
        }
    }

    /// Waits until nothing is queued or being written: what was asked for before, and copies.
    fn settle(&self) {
        for log in 0..LOGS {
            let log = self.wal.log(key(log));
            sync(|done| log.barrier(done)).unwrap();
        }
    }

    /// Taken before the crash: what is acknowledged later may be lost with it.
    fn acknowledged(&self) -> Vec<usize> {
        self.histories.iter().map(|history| history.acknowledged.load(Ordering::SeqCst)).collect()
    }

    fn restart(&mut self, sim: Arc<Sim>, acknowledged: &[usize]) {
        self.wal = open_with(&sim, self.options.clone()).unwrap();
        self.sim = sim;
        for (log, history) in self.histories.iter_mut().enumerate() {
            let found = Model::of(&self.wal.log(key(log as u32)));
            let at = (acknowledged[log]..history.states.len()).rev().find(|at| history.states[*at] == found);
            let Some(at) = at else {
                let expected = &history.states[acknowledged[log]..];
                panic!("log {log}: {found:#?} is none of the states since the acknowledged: {expected:#?}");
            };
            let state = history.states[at].clone();
            *history = History { states: vec![state], acknowledged: Arc::default() };
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_crash_each_log_is_in_a_state_it_had_and_no_older_than_acknowledged(
        steps in prop::collection::vec(step(), 1..120),
        cache_bytes in prop_oneof![Just(0), Just(3000), Just(1 << 20)],
    ) {
        let mut world = World::new(cache_bytes);
        for step in steps {
            world.run(step);
        }
    }
}
