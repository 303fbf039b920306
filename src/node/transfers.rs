//! When a group's leader hands over to somebody else: not at once, and ever more rarely to one that gives the
//! leadership back at once, as one whose copy is in doubt does.

use std::time::Duration;

use tokio::time::Instant;

use crate::types::ReplicaId;

/// Least time between two transfers of one group, and after an election.
const PAUSE: Duration = Duration::from_secs(10);
/// As often as a leader that can't serve is tried at least.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// Who led for less has not led: a leader in doubt of its copy steps down within a second.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(5);

/// One group's transfers, as far as they were made here.
#[derive(Debug)]
pub(super) struct Transfers {
    last: Instant,
    handed_over: Option<Instant>,
    to: Option<ReplicaId>,
    /// Of transfers to that one.
    pause: Duration,
}

impl Transfers {
    pub(super) fn new(now: Instant) -> Transfers {
        Transfers { last: now, handed_over: None, to: None, pause: PAUSE }
    }

    /// This node leads since now.
    pub(super) fn elected(&mut self, now: Instant) {
        // Somebody may just have handed over because he stops.
        self.last = now;
        // Without a transfer nothing was learned: who gave it back may have chosen another one.
        if let Some(then) = self.handed_over.take() {
            let is_back = now - then < GIVEN_BACK_WITHIN;
            self.pause = if is_back { (self.pause * 2).min(PAUSE_MAX) } else { PAUSE };
        }
    }

    /// Whether it is time to hand over to this one; notes that this is done.
    pub(super) fn is_due(&mut self, to: ReplicaId, now: Instant) -> bool {
        let pause = if self.to == Some(to) { self.pause } else { PAUSE };
        let is_due = now - self.last >= pause;
        if is_due {
            *self = Transfers { last: now, handed_over: Some(now), to: Some(to), pause };
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TO: ReplicaId = ReplicaId(7);

    #[test]
    fn a_transfer_waits_for_its_turn() {
        let began = Instant::now();
        let mut transfers = Transfers::new(began);
        assert!(!transfers.is_due(TO, began + 9 * SECOND) && transfers.is_due(TO, began + 10 * SECOND));
        assert!(!transfers.is_due(TO, began + 19 * SECOND), "it failed, and is not tried at once");
        assert!(transfers.is_due(TO, began + 20 * SECOND));
    }

    #[test]
    fn who_gives_it_back_at_once_gets_it_ever_more_rarely() {
        let mut now = Instant::now();
        let mut transfers = Transfers::new(now);
        let mut waits = Vec::new();
        for turn in 0..9 {
            let began = now;
            while !transfers.is_due(TO, now) {
                now += SECOND;
            }
            waits.push((now - began).as_secs());
            now += SECOND;
            transfers.elected(now);
            if turn == 3 {
                // A third one led meanwhile, and was killed.
                transfers.elected(now);
            }
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 600, 600, 600]);
        // It has led for a while in the end.
        assert!(transfers.is_due(TO, now + PAUSE_MAX));
        now += PAUSE_MAX + GIVEN_BACK_WITHIN;
        transfers.elected(now);
        assert!(transfers.is_due(TO, now + PAUSE));
    }

    #[test]
    fn somebody_else_does_not_wait_for_it() {
        let mut now = Instant::now();
        let mut transfers = Transfers::new(now);
        for _ in 0..3 {
            now += 60 * SECOND;
            assert!(transfers.is_due(TO, now));
            transfers.elected(now + SECOND);
        }
        let other = ReplicaId(8);
        assert!(!transfers.is_due(TO, now + 11 * SECOND) && transfers.is_due(other, now + 11 * SECOND));
        // Nor does it, rebuilt, for what it was.
        assert!(transfers.is_due(TO, now + 21 * SECOND));
    }
}
