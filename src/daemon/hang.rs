//! Ends a process that hangs. A service manager's watchdog does so too, where there is one; and a call into
//! the engine that never returns leaves the loops running that feed it.
//!
//! A thread of its own looks every second, since the runtime's threads may all be waiting. It counts looks
//! and reads no clock: a process that was stopped for a while has not hung.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::Level;

use super::log;
use crate::storage::UnderWay;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// The loops give no sign of life for so long: longer than a write of sled's may take, which they can wait for,
/// and which is to be named then. fjall's may take longer.
const SILENT_MAX: Duration = Duration::from_secs(150);

/// How long the last words may take: whoever reads standard error may hang as well.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// Counts signs of life.
#[derive(Debug, Clone, Default)]
pub struct Heart(Arc<AtomicU64>);

impl Heart {
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn beats(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Watches until `under_way`, which lists the engine's calls, answers `None`: there is nothing to watch any
/// more. Ends the process when it hangs.
///
/// # Errors
/// The thread could not be started.
pub fn watch(
    heart: Heart,
    under_way: impl Fn() -> Option<Vec<UnderWay>> + Send + 'static,
) -> std::io::Result<()> {
    let looking = move || {
        let mut patience = Patience::default();
        while let Some(calls) = under_way() {
            if let Some(hung) = patience.look(heart.beats(), &calls) {
                abort(&hung);
            }
            std::thread::sleep(LOOK);
        }
    };
    std::thread::Builder::new().name("rushkv-watch".into()).spawn(looking).map(drop)
}

/// At once: nothing can be closed any more, and acknowledged writes are in the log.
fn abort(hung: &str) -> ! {
    let text = format!(
        "{hung}: the process hangs, and is ended; acknowledged writes are in the log and come back at the next start"
    );
    let (said, done) = std::sync::mpsc::sync_channel::<()>(1);
    let saying = std::thread::Builder::new().spawn(move || {
        log::plain(Level::ERROR, &text);
        drop(said);
    });
    if saying.is_ok() {
        let _ = done.recv_timeout(LAST_WORDS_MAX);
    }
    std::process::abort()
}

/// What was seen so far, in looks.
#[derive(Debug, Default)]
struct Patience {
    beats: u64,
    silent: u32,
    /// How often each call was met.
    met: HashMap<u64, u32>,
}

impl Patience {
    /// What hangs, if something does.
    fn look(&mut self, beats: u64, calls: &[UnderWay]) -> Option<String> {
        // Before the first there are no loops yet: a start may take its time.
        self.silent = if beats == self.beats && beats > 0 { self.silent + 1 } else { 0 };
        self.beats = beats;
        self.met =
            calls.iter().map(|call| (call.id, self.met.get(&call.id).map_or(0, |looks| looks + 1))).collect();
        if LOOK * self.silent >= SILENT_MAX {
            return Some(format!("the node's loops have not answered for {} s", SILENT_MAX.as_secs()));
        }
        let hung = calls.iter().find(|call| LOOK * self.met[&call.id] >= call.limit)?;
        Some(format!("the engine has been {} for {} s", hung.doing, hung.limit.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: u64, seconds: u64) -> UnderWay {
        UnderWay { id, doing: "applying a batch", limit: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_beat_now_and_then_is_enough() {
        let mut patience = Patience::default();
        for look in 0..1000 {
            assert_eq!(patience.look(look / 80, &[]), None, "{look}");
        }
    }

    #[test]
    fn loops_without_a_sign_of_life_hang() {
        let mut patience = Patience::default();
        assert_eq!(patience.look(7, &[]), None);
        let looks = (1..).find(|_| patience.look(7, &[]).is_some()).unwrap();
        assert_eq!(looks, SILENT_MAX.as_secs());
    }

    #[test]
    fn a_start_takes_its_time_but_a_call_that_it_makes_may_hang() {
        let mut patience = Patience::default();
        assert!((0..10_000).all(|_| patience.look(0, &[]).is_none()));
        assert!((0..100).any(|_| patience.look(0, &[call(1, 50)]).is_some()));
    }

    #[test]
    fn a_call_hangs_beyond_its_own_limit_only() {
        let mut patience = Patience::default();
        let mut looks = 0;
        // Calls that come and go beside it count for nothing, however many.
        let hung = loop {
            let calls = [call(1000 + looks, 2), call(1, 50), call(2, 120)];
            if let Some(hung) = patience.look(looks, &calls) {
                break hung;
            }
            looks += 1;
        };
        assert_eq!((looks, &*hung), (50, "the engine has been applying a batch for 50 s"));
        assert_eq!(patience.look(looks + 1, &[call(2, 120)]), None);
        assert_eq!(patience.met.len(), 1, "what is over is forgotten");
    }

    #[test]
    fn the_thread_ends_when_there_is_nothing_left_to_watch() {
        let watched = Arc::new(());
        let node = Arc::downgrade(&watched);
        let (asked, was_asked) = std::sync::mpsc::sync_channel(1);
        let under_way = move || {
            let _ = asked.try_send(());
            node.upgrade().map(|_| Vec::new())
        };
        watch(Heart::default(), under_way).unwrap();
        was_asked.recv().unwrap();
        drop(watched);
        while was_asked.recv().is_ok() {}
    }
}
