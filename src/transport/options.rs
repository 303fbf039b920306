//! What may be set. The defaults are what a node uses; tests shorten the times.

use std::time::Duration;

use super::handshake::index;
use crate::limits::PARTITIONS_MAX;
use crate::raft::Class;

/// Bounds and times of all connections. Arrays are by class: control, append, snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// To a TCP connection. A host in reach answers within milliseconds, and a lost packet is sent again
    /// within a second.
    pub connect_timeout: Duration,
    /// From there to the end of the handshake, and how long a handshake may keep this node waiting.
    pub handshake_timeout: Duration,
    /// A peer that is silent for this long is asked for a sign of life...
    pub keepalive_interval: Duration,
    /// ... and its connection is broken when none comes for this long.
    pub keepalive_timeout: Duration,
    /// Wait after the first failed attempt to connect, doubled with each further one...
    pub backoff_min: Duration,
    /// ... up to this. Both with a jitter.
    pub backoff_max: Duration,
    /// While something waits to be sent, attempts are at least this far apart, whatever the backoff.
    pub eager: Duration,
    /// A connection on which messages are unanswered, and no answer came for this long, is broken: its
    /// peer answers pings and does no work. Control: two election timeouts and more. Append: a stalled
    /// disk there may come back. Snapshot: one that is installed is answered at its end.
    pub stall: [Duration; 3],
    /// Messages that wait to be sent; the next one is refused. Every group may have one on its way, and
    /// as many whose callers gave up.
    pub queue_messages_max: usize,
    /// Bytes that wait to be sent; the next message is refused. At least one message may always wait.
    pub queue_bytes_max: [usize; 3],
    /// Messages, waiting or sent, whose callers wait for an answer; the next one is refused.
    pub callers_max: usize,
    /// Messages that wait while the first connection to a peer is being made.
    pub first_messages_max: usize,
    /// Messages of one incoming connection that are not answered yet; nothing is read beyond (but for
    /// the rest of one frame).
    pub in_flight_messages_max: usize,
    /// Their bytes.
    pub in_flight_bytes_max: [usize; 3],
}

const MIB: usize = 1024 * 1024;

impl Default for Options {
    fn default() -> Options {
        Options {
            connect_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(2),
            keepalive_interval: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(4),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            eager: Duration::from_millis(100),
            stall: [Duration::from_secs(4), Duration::from_secs(30), Duration::from_secs(3600)],
            queue_messages_max: 2 * PARTITIONS_MAX as usize,
            queue_bytes_max: [4 * MIB, 32 * MIB, 16 * MIB],
            callers_max: 4 * PARTITIONS_MAX as usize,
            first_messages_max: 256,
            in_flight_messages_max: 2 * PARTITIONS_MAX as usize,
            in_flight_bytes_max: [4 * MIB, 32 * MIB, 16 * MIB],
        }
    }
}

impl Options {
    pub(super) fn stall(&self, class: Class) -> Duration {
        self.stall[index(class)]
    }

    pub(super) fn queue_bytes_max(&self, class: Class) -> usize {
        self.queue_bytes_max[index(class)]
    }

    pub(super) fn in_flight_bytes_max(&self, class: Class) -> usize {
        self.in_flight_bytes_max[index(class)]
    }
}
