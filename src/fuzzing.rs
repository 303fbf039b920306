//! What reads bytes that others made, each with inputs to begin from.
//!
//! `fuzz/` runs them under libFuzzer, which looks for inputs that reach new code (`make fuzz`). The tests
//! below run each on its seeds and on some thousand mutations of them, with no more than a toolchain.

use crate::{cli, config, daemon, kv, meta, node, raft, service, transport, wal};

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// Takes any bytes, and panics if something is wrong. Whether they could be read.
    pub run: fn(&[u8]) -> bool,
    /// All of them can be read.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($name:literal: $run:path, $seeds:path;)*) => {
        [$(Target { name: $name, run: $run, seeds: $seeds }),*]
    };
}

pub const TARGETS: [Target; 18] = targets! {
    "wal": wal::fuzzing::run, wal::fuzzing::seeds;
    "raft_message": raft::fuzzing::message, raft::fuzzing::message_seeds;
    "raft_answer": raft::fuzzing::answer, raft::fuzzing::answer_seeds;
    "raft_stored": raft::fuzzing::stored, raft::fuzzing::stored_seeds;
    "kv_command": kv::fuzzing::command, kv::fuzzing::command_seeds;
    "kv_record": kv::fuzzing::record, kv::fuzzing::record_seeds;
    "meta_history": meta::fuzzing::history, meta::fuzzing::history_seeds;
    "meta_state": meta::fuzzing::state, meta::fuzzing::state_seeds;
    "forming": node::fuzzing::forming, node::fuzzing::forming_seeds;
    "request": service::fuzzing::run, service::fuzzing::seeds;
    "frame": transport::fuzzing::frame, transport::fuzzing::frame_seeds;
    "leader": transport::fuzzing::leader, transport::fuzzing::leader_seeds;
    "config_text": config::fuzzing::text, config::fuzzing::text_seeds;
    "config_given": config::fuzzing::given, config::fuzzing::given_seeds;
    "arguments": daemon::fuzzing::arguments, daemon::fuzzing::arguments_seeds;
    "cli_line": cli::fuzzing::line, cli::fuzzing::line_seeds;
    "cli_flags": cli::fuzzing::flags, cli::fuzzing::flags_seeds;
    "cli_record": cli::fuzzing::record, cli::fuzzing::record_seeds;
};

/// The target of this name.
///
/// # Panics
/// If there is none.
pub fn find(name: &str) -> Target {
    let found = TARGETS.into_iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("there is no target {name}"))
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::{Duration, Instant};

    use super::*;

    /// Mutations of each target's seeds.
    const MUTATIONS: u64 = 3000;

    /// Those of one target take no longer, however slow the machine is.
    const TIME_MAX: Duration = Duration::from_secs(4);

    /// SplitMix64: the same numbers for the same seed.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (z ^ (z >> 31)) as usize % end.max(1)
        }
    }

    /// One to four changes, of the kinds that decoders stumble over; now and then a part of another seed.
    fn mutated(seeds: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
        let mut input = seeds[dice.below(seeds.len())].clone();
        for _ in 0..=dice.below(4) {
            let at = dice.below(input.len());
            let upto = at + dice.below(1 + (input.len() - at).min(16));
            match dice.below(8) {
                0 if !input.is_empty() => input[at] ^= 1 << dice.below(8),
                1 if !input.is_empty() => {
                    input[at] = [0, 1, 0x7F, 0x80, 0xFF, b'"', b'-', b'='][dice.below(8)]
                }
                2 => input.truncate(at),
                3 => drop(input.drain(at..upto)),
                4 => drop(input.splice(at..at, input[at..upto].to_vec())),
                5 if input.len() >= at + 4 => input[at..at + 4].fill([0, 0xFF][dice.below(2)]),
                6 => {
                    let other = &seeds[dice.below(seeds.len())];
                    let from = dice.below(other.len());
                    input.truncate(at);
                    input.extend_from_slice(&other[from..]);
                }
                _ => input.insert(at, dice.below(256) as u8),
            }
        }
        input
    }

    #[test]
    fn every_seed_can_be_read() {
        let unreadable = TARGETS.iter().flat_map(|target| {
            let seeds = (target.seeds)().into_iter().filter(|seed| !(target.run)(seed));
            seeds.map(|seed| format!("{}: b\"{}\"\n", target.name, seed.escape_ascii()))
        });
        let unreadable: String = unreadable.collect();
        assert!(unreadable.is_empty(), "{unreadable}");
    }

    #[test]
    fn mutations_of_seeds_pass() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            let started = Instant::now();
            let mut dice = Dice(1);
            let mutations = (0..MUTATIONS).map(|_| mutated(&seeds, &mut dice));
            for input in [Vec::new()].into_iter().chain(mutations) {
                // The panic's own message says where; this one says which input does it.
                if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
                    panic!("{}: b\"{}\"", target.name, input.escape_ascii());
                }
                if started.elapsed() > TIME_MAX {
                    break;
                }
            }
        }
    }
}
