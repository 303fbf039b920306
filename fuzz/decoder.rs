//! One decoder of RushKV under libFuzzer: the one that RUSHKV_FUZZ_TARGET names. Without it the names of all
//! are printed. One program for all of them, because each would be a hundred megabytes.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use rushkv::fuzzing::{TARGETS, Target, find};

static TARGET: OnceLock<Target> = OnceLock::new();

/// Chooses the target, and writes its seeds where RUSHKV_FUZZ_SEEDS says, before the corpus is read.
fn begin() {
    let Ok(name) = std::env::var("RUSHKV_FUZZ_TARGET") else {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        std::process::exit(0);
    };
    let target = *TARGET.get_or_init(|| find(&name));
    if let Some(dir) = std::env::var_os("RUSHKV_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            let path = Path::new(&dir).join(format!("seed-{number:02}"));
            std::fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

fuzz_target!(init: begin(), |input: &[u8]| {
    let target = TARGET.get().expect("it was chosen before the first input");
    (target.run)(input);
});
