//! What clients asked of keys and what they were told, and whether one store that never fails could have
//! told them the same: linearizability, checked key by key.
//!
//! Linearizability is local (Herlihy and Wing, 1990): a history is linearizable if and only if that of each
//! key by itself is. So [`check`] splits by key, and [`search`](search::search) looks at one.

mod model;
mod recorder;
mod report;
mod search;
#[cfg(test)]
mod tests;

pub use model::{Answer, Call, Condition};
pub use recorder::{Recorder, Started};
pub use report::{Report, Violation, check};

/// One call of one client on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Which client; it makes one call at a time.
    pub client: u32,
    pub call: Call,
    pub answer: Answer,
    /// Nanoseconds since some moment, the same for all operations of a history, by a clock that never goes
    /// back.
    pub invoked_ns: u64,
    /// Not before `invoked_ns`; without meaning if the answer is [`Answer::Unknown`], since that operation may
    /// take effect at any later time.
    pub answered_ns: u64,
}
