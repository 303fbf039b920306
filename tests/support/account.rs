//! What a run tells of itself: a line of JSON in the ledger.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::faults::Fault;
use crate::slack::within;

/// Service is back this long after a fault is over.
const BACK_WITHIN: Duration = Duration::from_secs(5);

pub struct Account {
    pub engine: &'static str,
    pub seed: u64,
    links_are_poor: bool,
    /// Each fault, its kind, and how long service was away after it.
    faults: Vec<(Fault, String, Duration)>,
}

impl Account {
    pub fn new(engine: &'static str, seed: u64, links_are_poor: bool) -> Account {
        Account { engine, seed, links_are_poor, faults: Vec::new() }
    }

    pub fn add(&mut self, fault: Fault, kind: String, back_after: Duration) {
        self.faults.push((fault, kind, back_after));
    }

    pub fn count(&self) -> u64 {
        self.faults.len() as u64
    }

    /// Those after which service was away for too long.
    pub fn late(&self) -> Vec<String> {
        let late = self.faults.iter().filter(|(_, _, after)| *after > within(BACK_WITHIN));
        late.map(|(fault, _, after)| format!("{fault}: {after:?}")).collect()
    }

    /// Prints it, and adds it to the file that `RUSHKV_LEDGER` names.
    pub fn close(&self, check: &Value, verdict: &str) {
        let mut back_ms: BTreeMap<String, Vec<u128>> = BTreeMap::new();
        for (_, kind, after) in &self.faults {
            back_ms.entry(kind.clone()).or_default().push(after.as_millis());
        }
        let line = json!({
            "commit": std::env::var("RUSHKV_COMMIT").unwrap_or("-".into()),
            "engine": self.engine,
            "seed": self.seed,
            "links_are_poor": self.links_are_poor,
            "back_ms": back_ms,
            "operations": check["operations"],
            "unknown": check["unknown"],
            "verdict": verdict,
        });
        println!("{line}");
        if let Some(ledger) = std::env::var_os("RUSHKV_LEDGER") {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(ledger);
            writeln!(file.expect("the ledger can be opened"), "{line}").expect("the ledger takes a line");
        }
    }
}
