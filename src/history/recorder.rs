//! Takes down a history while it happens.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::{Answer, Call, Operation};

/// Collects the operations of many clients.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    operations: Mutex<BTreeMap<String, Vec<Operation>>>,
}

/// A call that is under way.
#[derive(Debug)]
pub struct Started {
    client: u32,
    call: Call,
    invoked_ns: u64,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder { began: Instant::now(), operations: Mutex::default() }
    }
}

impl Recorder {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// To be called before the call is sent.
    pub fn start(&self, client: u32, call: Call) -> Started {
        Started { client, call, invoked_ns: self.now_ns() }
    }

    /// To be called once it is answered. `None`: it surely took no effect, and says nothing.
    pub fn end(&self, key: &str, started: Started, answer: Option<Answer>) {
        let answered_ns = self.now_ns();
        let Started { client, call, invoked_ns } = started;
        // A read of which nothing was heard says nothing either.
        let Some(answer) = answer.filter(|answer| call != Call::Get || *answer != Answer::Unknown) else {
            return;
        };
        let operation = Operation { client, call, answer, invoked_ns, answered_ns };
        let mut operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        match operations.get_mut(key) {
            Some(of_key) => of_key.push(operation),
            None => drop(operations.insert(key.to_string(), vec![operation])),
        }
    }

    /// What was recorded so far, by key.
    pub fn operations(self) -> BTreeMap<String, Vec<Operation>> {
        self.operations.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
