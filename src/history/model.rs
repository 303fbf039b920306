//! One key as the store promises it: what a call does to it, and what it answers.

/// What must hold for a write to take place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Condition {
    None,
    /// The key is there, with this version.
    Version(u64),
    /// The key is not there.
    Absent,
}

/// What a client asked of the key. A value is a number here; each put of a history has one of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Get,
    Put { value: u64, condition: Condition },
    Delete { condition: Condition },
}

/// What it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Found {
        value: u64,
        version: u64,
        revision: u64,
    },
    Missing,
    Written {
        version: u64,
        revision: u64,
    },
    Deleted {
        existed: bool,
        revision: u64,
    },
    /// The condition did not hold; the version is 0 if the key was not there.
    Refused {
        current_version: u64,
    },
    /// Of a write: it may take effect at any time after it was invoked, or never.
    Unknown,
}

/// The value of a put that nobody read: which one it was makes no difference.
pub(super) const UNREAD: u64 = u64::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub value: u64,
    /// Modifications since it was created.
    pub version: u64,
    /// `None`: nobody was told yet.
    pub revision: Option<u64>,
}

/// The key between two operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct State {
    pub record: Option<Record>,
    /// The last revision that is known. Every write has a higher one than those before it.
    pub revision: u64,
}

impl State {
    fn version(&self) -> u64 {
        self.record.map_or(0, |record| record.version)
    }

    fn allows(&self, condition: Condition) -> bool {
        match condition {
            Condition::None => true,
            Condition::Version(version) => self.record.is_some_and(|record| record.version == version),
            Condition::Absent => self.record.is_none(),
        }
    }

    fn written(self, value: u64, revision: Option<u64>) -> State {
        let record = Record { value, version: self.version() + 1, revision };
        State { record: Some(record), revision: revision.unwrap_or(self.revision) }
    }

    /// The state after the call, if this one can answer so; `None`: it can't. An operation without effect
    /// whose outcome is unknown is `None`, too: that it took place changes nothing.
    pub(super) fn after(self, call: Call, answer: Answer) -> Option<State> {
        let is_newer = |revision: u64| revision > self.revision;
        match (call, answer) {
            (Call::Get, Answer::Missing) => self.record.is_none().then_some(self),
            (Call::Get, Answer::Found { value, version, revision }) => {
                let record =
                    self.record.filter(|record| record.value == value && record.version == version)?;
                match record.revision {
                    Some(known) => (known == revision).then_some(self),
                    None if is_newer(revision) => {
                        let record = Some(Record { revision: Some(revision), ..record });
                        Some(State { record, revision })
                    }
                    None => None,
                }
            }
            (
                Call::Put { condition, .. } | Call::Delete { condition },
                Answer::Refused { current_version },
            ) => (!self.allows(condition) && self.version() == current_version).then_some(self),
            (Call::Put { condition, .. } | Call::Delete { condition }, _) if !self.allows(condition) => None,
            (Call::Put { value, .. }, Answer::Written { version, revision }) => {
                let next = self.written(value, Some(revision));
                (next.version() == version && is_newer(revision)).then_some(next)
            }
            (Call::Put { value, .. }, Answer::Unknown) => Some(self.written(value, None)),
            (Call::Delete { .. }, Answer::Deleted { existed, revision }) => {
                let is_so = self.record.is_some() == existed && is_newer(revision);
                is_so.then_some(State { record: None, revision })
            }
            (Call::Delete { .. }, Answer::Unknown) => {
                self.record.map(|_| State { record: None, revision: self.revision })
            }
            // An answer to something else.
            _ => None,
        }
    }
}
