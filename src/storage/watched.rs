//! An engine whose writing calls are listed while they run, so that one that never returns is noticed.

use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::{Batch, Engine, KeyRange, Kind, Result, Sizes, View, Write};

/// A call that has not returned yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderWay {
    /// No other call has the same.
    pub id: u64,
    pub doing: &'static str,
    /// What takes longer is taken for a hang.
    pub limit: Duration,
}

/// A batch, or the opening of a view, waits for a flush at most: as long as an fsync may take.
const WRITE_MAX: Duration = Duration::from_mins(2);
/// fjall lets a batch wait for merges, too, of a GB and more; it looks itself whether those still go on.
const WRITE_MAX_FJALL: Duration = Duration::from_mins(10);
/// A checkpoint syncs whatever was written since the last one, file by file.
const CHECKPOINT_MAX: Duration = Duration::from_mins(10);

/// Of all engines of this process: also while one is opened, or made anew, and nobody has it yet, whoever watches
/// the process sees what it does.
pub(super) static PROCESS: LazyLock<Calls> = LazyLock::new(Calls::default);

/// The writing calls of this process's engines that have not returned yet.
pub fn under_way() -> Vec<UnderWay> {
    PROCESS.list()
}

#[derive(Debug, Clone, Default)]
pub(super) struct Calls(Arc<Mutex<Listing>>);

#[derive(Debug, Default)]
struct Listing {
    last_id: u64,
    calls: Vec<UnderWay>,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Listing> {
        // Every change under this lock is a single push or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self) -> Vec<UnderWay> {
        self.lock().calls.clone()
    }

    fn begin(&self, doing: &'static str, limit: Duration) -> Listed {
        let mut listing = self.lock();
        listing.last_id += 1;
        let id = listing.last_id;
        listing.calls.push(UnderWay { id, doing, limit });
        Listed { id, calls: self.clone() }
    }
}

pub(super) struct Watched<E> {
    engine: E,
    write_max: Duration,
    calls: Calls,
}

/// Takes its call off the list, even if that panics.
struct Listed {
    id: u64,
    calls: Calls,
}

impl<E: Engine> Watched<E> {
    pub(super) fn new(engine: E, calls: Calls) -> Watched<E> {
        let write_max = match engine.kind() {
            Kind::Fjall => WRITE_MAX_FJALL,
            Kind::Sled | Kind::Memory => WRITE_MAX,
        };
        Watched { engine, write_max, calls }
    }

    fn list(&self, doing: &'static str, limit: Duration) -> Listed {
        self.calls.begin(doing, limit)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.calls.lock().calls.retain(|call| call.id != self.id);
    }
}

impl<E: Engine> Engine for Watched<E> {
    fn kind(&self) -> Kind {
        self.engine.kind()
    }

    fn recovers_prefix(&self) -> bool {
        self.engine.recovers_prefix()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.engine.get(key)
    }

    fn cached(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.engine.cached(key)
    }

    fn reads_at_once(&self) -> bool {
        self.engine.reads_at_once()
    }

    fn is_ready(&self) -> bool {
        self.engine.is_ready()
    }

    fn apply(&self, batch: Batch) -> Result<()> {
        let _listed = self.list("applying a batch", self.write_max);
        self.engine.apply(batch)
    }

    fn write(&self, writes: &[Write]) -> Result<()> {
        let _listed = self.list("applying a batch", self.write_max);
        self.engine.write(writes)
    }

    fn view(&self) -> Result<Box<dyn View>> {
        let _listed = self.list("opening a view", self.write_max);
        self.engine.view()
    }

    fn view_of(&self, prefix: Bytes) -> Result<Box<dyn View>> {
        let _listed = self.list("opening a view", self.write_max);
        self.engine.view_of(prefix)
    }

    /// As the engines do it, but so that each batch is listed.
    fn delete_range(&self, range: KeyRange) -> Result<()> {
        super::delete_by_batches(self, range)
    }

    fn checkpoint(&self) -> Result<()> {
        let _listed = self.list("making a checkpoint", CHECKPOINT_MAX);
        self.engine.checkpoint()
    }

    fn sizes(&self) -> Result<Sizes> {
        self.engine.sizes()
    }

    fn close(&self) -> Result<()> {
        let _listed = self.list("closing", CHECKPOINT_MAX);
        self.engine.close()
    }
}

impl<E: Engine> fmt::Debug for Watched<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::storage::memory::Memory;

    /// Applies when it is let, checkpoints never.
    #[derive(Debug)]
    struct Held(Memory, Mutex<mpsc::Receiver<()>>);

    impl Engine for Held {
        fn kind(&self) -> Kind {
            Kind::Memory
        }
        fn recovers_prefix(&self) -> bool {
            true
        }
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
            self.0.get(key)
        }
        fn write(&self, writes: &[Write]) -> Result<()> {
            self.1.lock().unwrap().recv().unwrap();
            self.0.write(writes)
        }
        fn view(&self) -> Result<Box<dyn View>> {
            self.0.view()
        }
        fn delete_range(&self, range: KeyRange) -> Result<()> {
            self.0.delete_range(range)
        }
        fn checkpoint(&self) -> Result<()> {
            panic!("as sled does")
        }
        fn sizes(&self) -> Result<Sizes> {
            self.0.sizes()
        }
        fn close(&self) -> Result<()> {
            self.0.close()
        }
    }

    #[test]
    fn a_call_is_listed_until_it_returns() {
        let (let_go, held) = mpsc::sync_channel(1);
        let calls = Calls::default();
        let engine = Arc::new(Watched::new(Held(Memory::default(), Mutex::new(held)), calls.clone()));
        assert!(calls.list().is_empty());
        let applying = {
            let engine = engine.clone();
            std::thread::spawn(move || engine.apply(Batch::default()))
        };
        let listed = loop {
            match &calls.list()[..] {
                [] => std::thread::yield_now(),
                [one] => break one.clone(),
                more => panic!("{more:?}"),
            }
        };
        assert_eq!((listed.doing, listed.limit), ("applying a batch", WRITE_MAX));
        drop(engine.view().unwrap());
        assert_eq!(calls.list(), [listed], "the others came and went");
        let_go.send(()).unwrap();
        applying.join().unwrap().unwrap();
        assert!(calls.list().is_empty());
        let checkpoint = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| engine.checkpoint()));
        assert!(checkpoint.is_err() && calls.list().is_empty());
    }
}
