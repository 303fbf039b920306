//! Bugs that a store could have, planted into the fake server, to prove that a checker notices them.

use std::collections::BTreeMap;

use bytes::Bytes;
use tonic::Status;

use super::State;
use crate::proto::v1;

/// What the server does wrong, now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A read is answered from a copy that is some calls old.
    StaleRead,
    /// A put is acknowledged, and not there.
    LostWrite,
    /// A put takes effect once more a little later, as one that was sent twice.
    AppliedTwice,
    /// Acknowledged writes are in memory only, and one crash loses those since the last flush.
    AnswersBeforeFsync,
    /// A condition that does not hold does not keep a write from taking place.
    IgnoresPrecondition,
    /// For a while an old leader serves beside the new one, as one that was restarted and goes on leading
    /// without an election (rule 1); what it took is lost.
    TwoLeaders,
    /// Two copies of records differ, and the old ones are taken for right.
    RepairedFromTheWrongSide,
    /// A put of a batch is acknowledged, and not there.
    LostInBatch,
    /// A scan leaves out a key that is there.
    ScanMisses,
}

impl Bug {
    pub(crate) const ALL: [Bug; 9] = [
        Bug::StaleRead,
        Bug::LostWrite,
        Bug::AppliedTwice,
        Bug::AnswersBeforeFsync,
        Bug::IgnoresPrecondition,
        Bug::TwoLeaders,
        Bug::RepairedFromTheWrongSide,
        Bug::LostInBatch,
        Bug::ScanMisses,
    ];
}

type Records = BTreeMap<Bytes, v1::Record>;

/// What a bug needs to know.
#[derive(Debug, Default)]
pub(crate) struct Planted {
    bug: Option<Bug>,
    calls: u64,
    /// The records some calls ago.
    old: Records,
    /// Those of the other leader, while there is one.
    other: Option<Records>,
    /// The call from which on the next one that can be spoiled is.
    next_spoiled: u64,
    /// To be applied once more at that call.
    again: Option<(u64, v1::PutRequest)>,
}

impl Planted {
    pub(crate) fn of(bug: Bug) -> Planted {
        Planted { bug: Some(bug), ..Planted::default() }
    }
}

/// Every so many calls, for bugs that strike now and then.
const EVERY: u64 = 97;

/// The call at which what happens once happens; how long two leaders last.
const ONCE: u64 = 1500;
const LASTS: u64 = 200;

/// Calls between two copies.
const COPIED_EVERY: u64 = 64;

impl State {
    /// Before each key's get, put or delete, and each scan: the bug, if there is one, and the number of the call.
    fn counted(&self) -> (Option<Bug>, u64) {
        let mut planted = self.planted.lock().unwrap();
        let Some(bug) = planted.bug else { return (None, 0) };
        planted.calls += 1;
        let call = planted.calls;
        let mut records = self.records.lock().unwrap();
        match bug {
            Bug::AnswersBeforeFsync if call == ONCE => records.clone_from(&planted.old),
            Bug::RepairedFromTheWrongSide if call == ONCE => {
                for (key, now) in records.iter_mut() {
                    if let Some(old) = planted.old.get(key) {
                        now.clone_from(old);
                    }
                }
            }
            Bug::TwoLeaders if call == ONCE => planted.other = Some(records.clone()),
            Bug::TwoLeaders if call == ONCE + LASTS => planted.other = None,
            _ => {}
        }
        if call.is_multiple_of(COPIED_EVERY) && (call < ONCE || bug == Bug::StaleRead) {
            planted.old.clone_from(&records);
        }
        drop(records);
        if let Some((_, request)) = planted.again.take_if(|(at, _)| *at <= call) {
            // Its answer goes to nobody.
            let _ = self.write_put(request);
        }
        (Some(bug), call)
    }

    /// Runs `work` on the records of whichever leader serves this call.
    fn at_some_leader<R>(&self, call: u64, work: impl FnOnce() -> R) -> R {
        let mut planted = self.planted.lock().unwrap();
        let Some(other) = planted.other.as_mut().filter(|_| call.is_multiple_of(2)) else {
            drop(planted);
            return work();
        };
        std::mem::swap(&mut *self.records.lock().unwrap(), other);
        let result = work();
        std::mem::swap(&mut *self.records.lock().unwrap(), other);
        result
    }

    pub(super) fn buggy_get(&self, key: &Bytes) -> Option<v1::Record> {
        let (bug, call) = self.counted();
        if bug == Some(Bug::StaleRead) && self.spoils(call) {
            return self.planted.lock().unwrap().old.get(key).cloned();
        }
        self.at_some_leader(call, || self.records.lock().unwrap().get(key).cloned())
    }

    /// Whether it is time for another call to go wrong: every so many, whichever of them can.
    fn spoils(&self, call: u64) -> bool {
        let mut planted = self.planted.lock().unwrap();
        let is_due = call >= planted.next_spoiled;
        if is_due {
            planted.next_spoiled = call + EVERY;
        }
        is_due
    }

    pub(super) fn buggy_put(&self, mut request: v1::PutRequest) -> Result<v1::PutResponse, Status> {
        let (bug, call) = self.counted();
        match bug {
            Some(Bug::LostWrite) if self.spoils(call) => return self.lost_put(request),
            Some(Bug::AppliedTwice) if request.precondition.is_none() && self.spoils(call) => {
                self.planted.lock().unwrap().again = Some((call + 20, request.clone()));
            }
            Some(Bug::IgnoresPrecondition) if call.is_multiple_of(20) => request.precondition = None,
            _ => {}
        }
        self.at_some_leader(call, || self.write_put(request))
    }

    fn lost_put(&self, request: v1::PutRequest) -> Result<v1::PutResponse, Status> {
        let before = self.records.lock().unwrap().clone();
        let answer = self.write_put(request);
        *self.records.lock().unwrap() = before;
        answer
    }

    pub(super) fn buggy_put_of_batch(&self, request: v1::PutRequest) -> Result<v1::PutResponse, Status> {
        let (bug, calls) = {
            let planted = self.planted.lock().unwrap();
            (planted.bug, planted.calls)
        };
        match bug {
            Some(Bug::LostInBatch) if self.spoils(calls) => self.lost_put(request),
            _ => self.buggy_put(request),
        }
    }

    /// What a scan finds, which `select` takes from the records.
    pub(super) fn buggy_scan(&self, select: impl Fn(&Records) -> Vec<v1::Record>) -> Vec<v1::Record> {
        let (bug, call) = self.counted();
        if bug == Some(Bug::StaleRead) && self.spoils(call) {
            return select(&self.planted.lock().unwrap().old);
        }
        let mut found = self.at_some_leader(call, || select(&self.records.lock().unwrap()));
        if bug == Some(Bug::ScanMisses) && !found.is_empty() && self.spoils(call) {
            found.remove(0);
        }
        found
    }

    pub(super) fn buggy_delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, Status> {
        let (_, call) = self.counted();
        self.at_some_leader(call, || self.write_delete(request))
    }
}
