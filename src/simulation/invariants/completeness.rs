//! Leader completeness: who is elected has every entry that was committed in an earlier term. A leader that comes late,
//! from behind a disk that stalled, may lack what was committed in newer ones.

use super::Safety;
use crate::types::LogKey;
use crate::wal;

/// Looks through the log of who begins to lead `term`.
pub(in crate::simulation) fn check(safety: &Safety, key: LogKey, term: u64, log: &wal::Log) {
    let purged = log.purged().map_or(0, |purged| purged.index);
    for (committed, committed_in) in safety.committed(key.group) {
        if committed_in >= term || committed.index <= purged {
            continue;
        }
        let found = log.id_at(committed.index);
        assert!(
            found == Some(committed),
            "leader completeness: {key} leads term {term} with {found:?} in the place of {committed}, which \
             was committed"
        );
    }
}
