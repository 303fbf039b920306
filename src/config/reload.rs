//! What a reload changes, and what it can't.

use super::keys::Reload;
use super::print::shown;
use super::{Loaded, Setting};

/// A key whose value is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: &'static str,
    pub old: String,
    pub new: String,
    /// What it takes for the new value to count.
    pub takes: Reload,
}

/// What differs between two configurations, in the order of the keys.
pub fn changes(old: &Loaded, new: &Loaded) -> Vec<Change> {
    let pairs = old.settings.iter().zip(&new.settings);
    pairs
        .filter(|(old, new)| old.value != new.value)
        .map(|(old, new)| Change {
            key: new.key.name,
            old: shown(old),
            new: shown(new),
            takes: new.key.reload,
        })
        .collect()
}

impl Loaded {
    /// Takes over from `new` what counts without a restart. The rest stays as the program runs with
    /// it, so that the next reload names it again.
    pub fn take_live(&mut self, new: &Loaded) {
        let live = |setting: &Setting| setting.key.reload == Reload::Live;
        for (old, new) in self.settings.iter_mut().zip(&new.settings).filter(|(_, new)| live(new)) {
            *old = new.clone();
        }
        // One line for each key whose `Reload` is `Live`; a test reads both.
        self.config.log_level = new.config.log_level.clone();
    }
}
