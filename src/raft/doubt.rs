//! Doubt about a replica's records: each can be read, but they are not those that were written. It goes on as a
//! member of its group, by a log that is in order. The doubt is of one space: what a snapshot brings ends it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::group::{Group, OpenError};
use super::machine::Machine;
use super::space::{Space, SpaceId};
use crate::runtime;

/// Shared by all handles of a replica.
#[derive(Debug, Clone, Default)]
pub(super) struct Doubt(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Most are never doubted, and every call asks.
    is_any: AtomicBool,
    of: Mutex<Option<(SpaceId, Arc<str>)>>,
}

impl Doubt {
    /// As it was noted before this start.
    pub(super) fn noted(space: SpaceId, why: Option<String>) -> Doubt {
        let doubt = Doubt::default();
        if let Some(why) = why {
            doubt.begin(space, &why);
        }
        doubt
    }

    fn lock(&self) -> MutexGuard<'_, Option<(SpaceId, Arc<str>)>> {
        // Every change under this lock is a single assignment.
        self.0.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why this space is in doubt, if it is.
    fn of(&self, space: SpaceId) -> Option<Arc<str>> {
        let is_any = self.0.is_any.load(Ordering::Acquire);
        is_any.then(|| self.lock().clone()).flatten().filter(|(of, _)| *of == space).map(|(_, why)| why)
    }

    /// Returns whether it was not in doubt before.
    fn begin(&self, space: SpaceId, why: &str) -> bool {
        let mut of = self.lock();
        let is_new = of.as_ref().is_none_or(|(before, _)| *before != space);
        if is_new {
            *of = Some((space, why.into()));
            self.0.is_any.store(true, Ordering::Release);
        }
        is_new
    }
}

impl<M: Machine> Group<M> {
    /// Why this replica's records can't be trusted: it can be counted on for its log, and must serve nothing from its
    /// records as if it were right.
    pub fn doubt(&self) -> Option<Arc<str>> {
        self.doubt.of(self.space.get().id())
    }

    pub fn is_in_doubt(&self) -> bool {
        self.doubt().is_some()
    }

    /// Puts what the replica holds in doubt: at once, and durably when this returns. Nothing if a snapshot has replaced
    /// `space`. Returns whether that is news. The process must end if this fails.
    pub async fn put_in_doubt(&self, space: &Space, why: &str) -> Result<bool, OpenError> {
        if !self.doubt.begin(space.id(), why) {
            return Ok(false);
        }
        let (store, key, of, why) = (self.store.clone(), self.key, space.id(), why.to_string());
        runtime::spawn_blocking(move || store.mark_suspect(key, of, &why))
            .await
            .map_err(|error| OpenError { key, problem: error.to_string() })?
            .map_err(|error| OpenError { key, problem: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_of_one_space() {
        let doubt = Doubt::noted(SpaceId(7), None);
        assert_eq!(doubt.of(SpaceId(7)), None);
        assert!(doubt.begin(SpaceId(7), "the first"));
        assert!(!doubt.begin(SpaceId(7), "the second"));
        assert_eq!(doubt.of(SpaceId(7)).as_deref(), Some("the first"));
        assert_eq!(doubt.of(SpaceId(8)), None, "a snapshot has replaced it");
        assert!(doubt.begin(SpaceId(8), "again"), "so that it is noted again");
        assert_eq!(doubt.of(SpaceId(8)).as_deref(), Some("again"));
        assert_eq!(Doubt::noted(SpaceId(7), Some("noted".into())).of(SpaceId(7)).as_deref(), Some("noted"));
    }
}
