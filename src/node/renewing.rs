//! A start whose engine is damaged makes it anew, from what can be read of it, or else goes on with what there is.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::open::refused;
use super::{Node, Options};
use crate::error::{Error, Result};
use crate::raft;
use crate::storage::{self, DataDir, Engine};
use crate::way_out::START_OVER;

/// Opens the engine, another one if that is due. `clean` says that it was left in order the last time.
pub(super) fn open_engine(data_dir: &DataDir, options: &Options, clean: bool) -> Result<Arc<dyn Engine>> {
    let dir = data_dir.engine_dir();
    let open = || {
        storage::open(options.engine, &dir, &options.engine_options).map_err(|error| damaged(&dir, &error))
    };
    let engine = open()?;
    let suspicion = storage::suspicion(&dir).map_err(refused)?;
    if let Some(why) = &suspicion {
        tracing::warn!(why, "a write has met what may be damage: reading the whole engine");
        // First: a start that takes too long must not be followed by another one like it.
        storage::dismiss(&dir).map_err(refused)?;
    }
    let why = match raft::renewal_is_due(engine.as_ref(), suspicion.is_some()) {
        Ok(None) => return Ok(engine),
        Ok(Some(why)) => why,
        Err(error) => {
            tracing::error!(%error, "the engine can't be read from end to end, and is used as it is");
            return Ok(engine);
        }
    };
    if let Some(obstacle) = obstacle(data_dir, engine.as_ref())? {
        tracing::error!(
            why,
            obstacle,
            "the engine is damaged, and is used as it is: it may end this process"
        );
        return Ok(engine);
    }
    if clean {
        // So it is until another one is in its place, however often that is tried.
        data_dir.mark_clean_stop().map_err(refused)?;
    }
    let renewed = renew(data_dir, options, engine.as_ref(), &why)?;
    if clean {
        data_dir.take_clean_stop().map_err(refused)?;
    }
    if !renewed {
        return Ok(engine);
    }
    drop(engine);
    open()
}

/// Names what can't be opened, and the way out where that is not in the error.
fn damaged(dir: &Path, error: &storage::Error) -> Error {
    match error {
        storage::Error::Corrupt { .. } => {
            refused(format!("{}: what is there is damaged: {error}: {START_OVER}", dir.display()))
        }
        _ => refused(error),
    }
}

/// Why the engine can't be made anew now, if it can't.
fn obstacle(data_dir: &DataDir, engine: &dyn Engine) -> Result<Option<String>> {
    if data_dir.has_old_engine() {
        match raft::has_damage(engine) {
            Ok(false) => data_dir.remove_old_engine().map_err(refused)?,
            Ok(true) => {
                let why = "engine.old is kept from the last time, as it may hold the only copy of something: remove it, \
                           or let this node leave and join with an empty data_dir";
                return Ok(Some(why.into()));
            }
            Err(error) => return Ok(Some(error.to_string())),
        }
    }
    let (needed, free) =
        (engine.sizes().map_err(refused)?.disk_bytes, data_dir.free_bytes().map_err(refused)?);
    let lacks_room =
        || format!("to copy what can be read takes up to {needed} bytes of disk, {free} are free");
    Ok((free < needed).then(lacks_room))
}

/// Fills the folder with an engine of what can be read of `old`.
fn copy(options: &Options, old: &dyn Engine, dir: &Path) -> Result<raft::Renewed, String> {
    let new =
        storage::open(options.engine, dir, &options.engine_options).map_err(|error| error.to_string())?;
    let renewed = raft::renew(old, new.as_ref()).map_err(|error| error.to_string())??;
    new.close().map_err(|error| error.to_string())?;
    Ok(renewed)
}

/// False: it can't be done, and nothing has changed.
fn renew(data_dir: &DataDir, options: &Options, old: &dyn Engine, why: &str) -> Result<bool> {
    tracing::warn!(why, "the engine is damaged: copying what can be read of it");
    let started = Instant::now();
    let dir = data_dir.begin_engine().map_err(refused)?;
    let renewed = match copy(options, old, &dir) {
        Ok(renewed) => renewed,
        Err(obstacle) => {
            tracing::error!(
                obstacle,
                "the engine can't be made anew, and is used as it is: it may end this process; let this node leave, \
                 and join with an empty data_dir"
            );
            data_dir.discard_new_engine().map_err(refused)?;
            return Ok(false);
        }
    };
    if let Err(error) = old.close() {
        // It goes out of use.
        tracing::warn!(%error, "closing the damaged engine");
    }
    data_dir.replace_engine().map_err(refused)?;
    tracing::warn!(
        records = renewed.records,
        damaged_replicas = ?renewed.damaged,
        seconds = started.elapsed().as_secs_f64(),
        "the engine was made anew; the damaged one is kept in engine.old until no copy is missing here"
    );
    Ok(true)
}

impl Node {
    /// Removes the engine that was replaced, once no replica here lacks what it may hold. Blocks on the disk.
    pub(super) fn forget_old_engine(&self) -> Result<()> {
        if !self.data_dir.has_old_engine() || self.store.has_damage().map_err(refused)? {
            return Ok(());
        }
        self.data_dir.remove_old_engine().map_err(refused)?;
        tracing::info!("removed the damaged engine: no copy is missing here any more");
        Ok(())
    }
}
