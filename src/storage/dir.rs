//! What the engines' folders have in common: making a whole folder durable, and measuring it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// fsyncs every file below `dir`, then the directories that name them, innermost first. `skip` says
/// which files need none.
///
/// Files that vanish meanwhile are passed over: an engine removes only what it needs no more.
pub(super) fn sync_tree(dir: &Path, skip: &mut dyn FnMut(&Path) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if is_gone(entry.file_type())?.is_some_and(|kind| kind.is_dir()) {
            is_gone(sync_tree(&path, skip))?;
        } else if !skip(&path)
            && let Some(file) = is_gone(File::open(&path))?
        {
            file.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}

/// Bytes that the files below `dir` take up on the disk. Counts allocated blocks: engines preallocate
/// files that are mostly holes.
pub(super) fn disk_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Some(metadata) = is_gone(entry.metadata())? else { continue };
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += is_gone(disk_bytes(&entry.path()))?.unwrap_or(0);
        }
    }
    Ok(bytes)
}

/// `None` if the thing is not there any more.
fn is_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
