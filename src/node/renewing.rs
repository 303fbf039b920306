//! A start whose engine is damaged makes it anew, from what can be read of it.

use std::sync::Arc;
use std::time::Instant;

use super::open::refused;
use super::{Node, Options};
use crate::error::Result;
use crate::raft;
use crate::storage::{self, DataDir, Engine};

/// Opens the engine, another one if that is due.
pub(super) fn open_engine(data_dir: &DataDir, options: &Options) -> Result<Arc<dyn Engine>> {
    let dir = data_dir.engine_dir();
    let open = |dir| storage::open(options.engine, dir, &options.engine_options).map_err(refused);
    let engine = open(&dir)?;
    let suspicion = storage::suspicion(&dir).map_err(refused)?;
    if let Some(why) = &suspicion {
        tracing::warn!(why, "a write has met what may be damage: reading the whole engine");
    }
    let Some(why) = raft::renewal_is_due(engine.as_ref(), suspicion.is_some()).map_err(refused)? else {
        if suspicion.is_some() {
            tracing::info!("everything can be read");
            storage::dismiss(&dir).map_err(refused)?;
        }
        return Ok(engine);
    };
    renew(data_dir, options, engine, &why)?;
    open(&dir)
}

fn renew(data_dir: &DataDir, options: &Options, old: Arc<dyn Engine>, why: &str) -> Result<()> {
    let (needed, free) = (old.sizes().map_err(refused)?.disk_bytes, data_dir.free_bytes().map_err(refused)?);
    if free < needed {
        return Err(refused(format!(
            "the engine is damaged ({why}), and to make it anew from what can be read of it takes up to {needed} bytes \
             of disk, {free} are free: make room, or let this node leave and join with an empty data_dir"
        )));
    }
    if data_dir.has_old_engine() && !raft::has_damage(old.as_ref()).map_err(refused)? {
        data_dir.remove_old_engine().map_err(refused)?;
    }
    tracing::warn!(why, bytes = needed, "the engine is damaged: copying what can be read of it");
    let started = Instant::now();
    let dir = data_dir.begin_engine().map_err(refused)?;
    let new = storage::open(options.engine, &dir, &options.engine_options).map_err(refused)?;
    let renewed = raft::renew(old.as_ref(), new.as_ref()).map_err(|error| {
        refused(format!(
            "the engine is damaged, and can't be made anew: {error}; let this node leave and join with an empty \
             data_dir"
        ))
    })?;
    new.close().map_err(refused)?;
    if let Err(error) = old.close() {
        // It goes out of use.
        tracing::warn!(%error, "closing the damaged engine");
    }
    drop(old);
    data_dir.replace_engine().map_err(refused)?;
    tracing::warn!(
        records = renewed.records,
        damaged_replicas = ?renewed.damaged,
        seconds = started.elapsed().as_secs_f64(),
        "the engine was made anew; the damaged one is kept in engine.old until no copy is missing here"
    );
    Ok(())
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
