//! A note in an engine's folder that a write has met what can't be read.
//!
//! Engines read what they write beside, and what they merge. So damage can end each process that opens them, though
//! nobody asks for what is damaged: the note makes the next start look for it (`raft/renew.rs`). A disk on which it
//! can't be written has another problem first.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::Error;
use crate::disk;

const NOTE: &str = "suspect.rushkv";

pub(super) fn note(dir: &Path, error: &Error) {
    // Several threads may meet damage at once, and the note is one file.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(failed) = disk::write_atomic(&dir.join(NOTE), error.to_string().as_bytes()) {
        tracing::error!(%error, %failed, "the next start will not know that a write has met damage");
    }
}

/// What the engine in `dir` met, if there is a note.
pub fn suspicion(dir: &Path) -> io::Result<Option<String>> {
    match std::fs::read(dir.join(NOTE)) {
        Ok(why) => Ok(Some(String::from_utf8_lossy(&why).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes the note away, durably.
pub fn dismiss(dir: &Path) -> io::Result<()> {
    std::fs::remove_file(dir.join(NOTE))?;
    disk::sync_dir(dir)
}
