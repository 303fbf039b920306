//! Small durable files: written whole or not at all, and there after a power loss once the call has
//! returned.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Where such files are: the seam for a simulated disk.
pub trait Files: fmt::Debug + Send + Sync + 'static {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// See [`write_atomic`].
    fn write_atomic(&self, path: &Path, content: &[u8]) -> io::Result<()>;
}

/// The machine's own file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn write_atomic(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        write_atomic(path, content)
    }
}

/// Makes the names in `dir` durable: files created, renamed or removed in it.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    #[cfg(test)]
    tests::SYNCED.with_borrow_mut(|synced| synced.push(dir.to_path_buf()));
    Ok(())
}

/// Creates `dir` and its missing parents, durably. Those that are there already are made durable, too:
/// who made them may have been killed before it did that.
///
/// # Errors
/// One that names it, if something that is no directory is in the way.
pub fn create_dir_all(dir: &Path) -> io::Result<()> {
    // The root has none, and is there.
    let Some(parent) = dir.parent() else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        create_dir_all(parent)?;
        parent
    };
    if dir.is_dir() {
        return match sync_dir(parent) {
            // A directory that we may not even read, or a file system without fsync: not one that we
            // made anything in.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) =>
            {
                Ok(())
            }
            synced => synced,
        };
    }
    match fs::create_dir(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !dir.is_dir() {
                let what = format!("{} is not a directory", dir.display());
                return Err(io::Error::new(io::ErrorKind::NotADirectory, what));
            }
        }
        Err(error) => return Err(error),
    }
    sync_dir(parent)
}

/// Replaces the file at `path` by `content`: after a crash there is the old one or the new one.
pub fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    // A bare name has the empty path as its parent.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let new = dir.join(name);
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&new, path)?;
    sync_dir(dir)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::path::PathBuf;

    use super::*;

    thread_local! {
        /// The directories that this thread has synced.
        pub(super) static SYNCED: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
    }

    /// The directories that `call` syncs.
    pub(crate) fn synced_by<T>(call: impl FnOnce() -> T) -> Vec<PathBuf> {
        SYNCED.take();
        call();
        SYNCED.take()
    }

    #[test]
    fn directories_are_made_durable_even_if_they_were_there() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        for _ in 0..2 {
            let synced = synced_by(|| create_dir_all(&dir).unwrap());
            assert!(dir.is_dir());
            assert!(synced.ends_with(&[root.path().to_path_buf(), root.path().join("a")]), "{synced:?}");
        }
        create_dir_all(Path::new("/")).unwrap();
        create_dir_all(Path::new(".")).unwrap();
        create_dir_all(Path::new("src")).unwrap();
    }

    #[test]
    fn what_is_in_the_way_of_a_directory_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "x").unwrap();
        for dir in [file.clone(), file.join("a/b")] {
            let error = create_dir_all(&dir).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
            assert_eq!(error.to_string(), format!("{} is not a directory", file.display()));
        }
    }
}
