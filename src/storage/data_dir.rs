//! The data directory: whose it is, who uses it, and whether it was left in order.
//!
//! `docs/formats/data-dir.md` draws it. This module knows the directory's own files and the names of
//! the parts; what is inside `wal/` and `engine/` belongs to those.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statvfs};

use super::{Error, Kind, Options, Result, dir};
use crate::way_out::START_OVER;
use crate::{crash_point, disk};

/// Version of the directory's layout that this program writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 2;

/// The oldest that it reads. Version 1 had longer keys in its engine, and was never released.
const FORMAT_VERSION_MIN: u32 = 2;

const FORMAT: &str = "FORMAT";
const LOCK: &str = "LOCK";
/// There while the directory is being made: nothing in it was ever served.
const CREATING: &str = "CREATING";
/// What an interrupted start can leave in an otherwise empty directory, and what a fresh file system
/// has at its root.
const OURS_BEFORE_CREATING: [&str; 3] = [LOCK, "CREATING.new", "lost+found"];
/// There after a clean stop, until the next start.
const CLEAN: &str = "CLEAN";
const WAL: &str = "wal";
const ENGINE: &str = "engine";
/// A copy of what can be read of the engine, while it is being made.
const ENGINE_NEW: &str = "engine.new";
/// The engine whose place the copy took.
const ENGINE_OLD: &str = "engine.old";
/// What the layers above keep beside the parts, and is of no use without them.
const OTHERS_OF_OURS: [&str; 4] = [CLEAN, "IDENTITY", "PREPARED", "checkpoint"];

/// A data directory that this process holds; others are refused until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    engine: Kind,
    disk_id: String,
    /// Holds the lock.
    _lock: File,
}

impl DataDir {
    /// Takes the directory at `path` for this process, and makes it, durably, if it is missing or
    /// empty: its identity and an empty engine of the given kind. Then the engine is opened by
    /// [`super::open`] with [`DataDir::engine_dir`]; the log makes its own folder.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is in use, not ours, written with another engine or by a newer
    /// version, incomplete, or not accessible; [`Error::Corrupt`] if its identity can't be read.
    pub fn open(path: &Path, engine: Kind) -> Result<DataDir> {
        let context = Context { path, engine };
        disk::create_dir_all(path).map_err(|error| context.io("creating it", error))?;
        context.refuse_foreign()?;
        let lock = context.lock()?;
        let disk_id = match read(&path.join(FORMAT)).map_err(|error| context.io("reading FORMAT", error))? {
            Some(text) => context.check_format(&text)?,
            None => context.create()?,
        };
        Ok(DataDir { path: path.to_path_buf(), engine, disk_id, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn engine(&self) -> Kind {
        self.engine
    }

    /// Drawn at random when the directory was made: 32 hexadecimal digits. A copied directory has the
    /// id of its original.
    pub fn disk_id(&self) -> &str {
        &self.disk_id
    }

    pub fn wal_dir(&self) -> PathBuf {
        self.path.join(WAL)
    }

    pub fn engine_dir(&self) -> PathBuf {
        self.path.join(ENGINE)
    }

    /// Makes an empty folder for an engine that is to take the place of the one there.
    ///
    /// # Errors
    /// [`Error::Refused`] if the one that was replaced the last time is still there.
    pub fn begin_engine(&self) -> Result<PathBuf> {
        if self.has_old_engine() {
            return Err(self.context().refused(format_args!(
                "has a damaged engine for the second time, and the first one is kept in {ENGINE_OLD}, as it may hold \
                 the only copy of something; remove {ENGINE_OLD} to go on without it, or give this node an empty \
                 data_dir"
            )));
        }
        let dir = self.path.join(ENGINE_NEW);
        let made = remove_dir(&dir).and_then(|()| fs::create_dir(&dir));
        made.map_err(|error| self.context().io("making engine.new", error))?;
        Ok(dir)
    }

    /// Removes what [`DataDir::begin_engine`] began.
    pub fn discard_new_engine(&self) -> Result<()> {
        remove_dir(&self.path.join(ENGINE_NEW))
            .map_err(|error| self.context().io("removing engine.new", error))
    }

    /// Puts the engine in the folder of [`DataDir::begin_engine`], which was closed, in the other's place,
    /// durably; the other is kept. After a crash on the way either one is in its place.
    pub fn replace_engine(&self) -> Result<()> {
        let (engine, new) = (self.path.join(ENGINE), self.path.join(ENGINE_NEW));
        let replaced = dir::sync_tree(&new, &mut |_| false)
            .and_then(|()| disk::sync_dir(&self.path))
            .and_then(|()| fs::rename(&engine, self.path.join(ENGINE_OLD)))
            .and_then(|()| disk::sync_dir(&self.path))
            .and_then(|()| {
                crash_point::reached("data-dir.engine-set-aside");
                fs::rename(&new, &engine)
            })
            .and_then(|()| disk::sync_dir(&self.path));
        replaced.map_err(|error| self.context().io("replacing its engine", error))
    }

    /// Whether an engine that was replaced is kept.
    pub fn has_old_engine(&self) -> bool {
        self.path.join(ENGINE_OLD).exists()
    }

    pub fn remove_old_engine(&self) -> Result<()> {
        remove_dir(&self.path.join(ENGINE_OLD))
            .map_err(|error| self.context().io("removing engine.old", error))
    }

    /// Whether the last user of the directory stopped in order, or it is new. Forgets it, durably, so
    /// that a crash from here on shows: call it once, before the engine or the log is written to.
    pub fn take_clean_stop(&self) -> Result<bool> {
        let taken = match fs::remove_file(self.path.join(CLEAN)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        };
        // Also if it was not there: the start that removed it may have been killed before this.
        let taken = taken.and_then(|taken| disk::sync_dir(&self.path).map(|()| taken));
        taken.map_err(|error| self.context().io("removing CLEAN", error))
    }

    /// Notes, durably, that everything was stopped in order: the last call before the process ends,
    /// after the engine's checkpoint.
    pub fn mark_clean_stop(&self) -> Result<()> {
        disk::write_atomic(&self.path.join(CLEAN), b"")
            .map_err(|error| self.context().io("writing CLEAN", error))
    }

    /// Empties the directory and makes it anew, with another id: for a node that gives itself up. What is
    /// in it is lost. A crash on the way leaves a directory whose next opening goes on with it.
    ///
    /// # Errors
    /// If a step can't be taken; the next opening tries again.
    pub fn begin_anew(self) -> Result<DataDir> {
        let DataDir { path, engine, _lock, .. } = self;
        let context = Context { path: &path, engine };
        disk::write_atomic(&path.join(CREATING), b"")
            .map_err(|error| context.io("writing CREATING", error))?;
        crash_point::reached("data-dir.to-be-made-anew");
        fs::remove_file(path.join(FORMAT)).map_err(|error| context.io("removing FORMAT", error))?;
        disk::sync_dir(&path).map_err(|error| context.io("syncing it", error))?;
        crash_point::reached("data-dir.format-removed");
        let disk_id = context.create()?;
        Ok(DataDir { path, engine, disk_id, _lock })
    }

    /// Bytes that we can still write on its file system.
    pub fn free_bytes(&self) -> Result<u64> {
        free_bytes(&self.path).map_err(|error| self.context().io("asking for free space", error))
    }

    fn context(&self) -> Context<'_> {
        Context { path: &self.path, engine: self.engine }
    }
}

/// Bytes on the file system of `path` that processes like ours may still write (root's reserve is not
/// counted).
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Size of the file system of `path`, in bytes.
pub fn total_bytes(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path)?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Which directory and engine the messages are about.
struct Context<'a> {
    path: &'a Path,
    engine: Kind,
}

impl Context<'_> {
    fn io(&self, doing: &str, source: io::Error) -> Error {
        let path = self.path.display();
        match source.kind() {
            ErrorKind::PermissionDenied => Error::Refused(format!(
                "data directory {path}: {doing}: {source}; it must belong to the user that runs rushkv"
            )),
            ErrorKind::NotADirectory | ErrorKind::ReadOnlyFilesystem => {
                Error::Refused(format!("data directory {path}: {doing}: {source}; choose another data_dir"))
            }
            _ => Error::Io { engine: self.engine, doing: format!("data directory {path}: {doing}"), source },
        }
    }

    fn refused(&self, what: impl std::fmt::Display) -> Error {
        Error::Refused(format!("data directory {} {what}", self.path.display()))
    }

    fn corrupt(&self, problem: &str) -> Error {
        let message = format!(
            "data directory {}: {FORMAT} can't be read: {problem}; restore this file from a copy of it, or {START_OVER}",
            self.path.display()
        );
        Error::Corrupt { engine: self.engine, message }
    }

    /// Names in the directory, sorted.
    fn names(&self) -> Result<Vec<String>> {
        let names = fs::read_dir(self.path).and_then(|entries| {
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        });
        let mut names: Vec<String> = names.map_err(|error| self.io("listing it", error))?;
        names.sort();
        Ok(names)
    }

    /// Before anything is written: a directory without our FORMAT must be empty, or one that we were
    /// just making.
    fn refuse_foreign(&self) -> Result<()> {
        let names = self.names()?;
        if names.iter().any(|name| name == FORMAT || name == CREATING) {
            return Ok(());
        }
        let foreign: Vec<&str> =
            names.iter().map(String::as_str).filter(|name| !OURS_BEFORE_CREATING.contains(name)).collect();
        match foreign[..] {
            [] => Ok(()),
            [first] => Err(self.refused(not_ours(first))),
            [first, second] => Err(self.refused(not_ours(&format!("{first} and {second}")))),
            [first, second, ..] => {
                let rest = foreign.len() - 2;
                Err(self.refused(not_ours(&format!("{first}, {second} and {rest} more"))))
            }
        }
    }

    fn lock(&self) -> Result<File> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path.join(LOCK))
            .map_err(|error| self.io("opening LOCK", error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Only for the message; a holder that has just begun may not have written it yet.
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => String::new(),
                    pid => format!(" (pid {pid})"),
                };
                return Err(self.refused(format_args!(
                    "is in use by another process{holder}; stop that one, or give this node a data_dir of \
                     its own"
                )));
            }
            Err(errno) => return Err(self.io("locking LOCK", errno.into())),
        }
        let written = file.set_len(0).and_then(|()| {
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        });
        written.map_err(|error| self.io("writing LOCK", error))?;
        Ok(file)
    }

    /// Makes an empty directory ours. FORMAT comes last: where it is, everything is.
    fn create(&self) -> Result<String> {
        let io = |doing: &'static str| move |error| self.io(doing, error);
        disk::write_atomic(&self.path.join(CREATING), b"").map_err(io("writing CREATING"))?;
        self.empty()?;
        crash_point::reached("data-dir.emptied");
        let engine_dir = self.path.join(ENGINE);
        if self.engine != Kind::Memory {
            fs::create_dir(&engine_dir).map_err(io("creating engine"))?;
            super::open(self.engine, &engine_dir, &Options::default())?.close()?;
            // The engines don't sync all of what they make at first.
            dir::sync_tree(&engine_dir, &mut |_| false).map_err(io("syncing engine"))?;
        }
        disk::write_atomic(&self.path.join(CLEAN), b"").map_err(io("writing CLEAN"))?;
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|error| self.io("drawing its id", io::Error::other(error.to_string())))?;
        let disk_id = id.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        let text = format_text(self.engine, &disk_id);
        disk::write_atomic(&self.path.join(FORMAT), text.as_bytes()).map_err(io("writing FORMAT"))?;
        fs::remove_file(self.path.join(CREATING)).map_err(io("removing CREATING"))?;
        disk::sync_dir(self.path).map_err(io("syncing it"))?;
        Ok(disk_id)
    }

    /// Where a crash broke [`DataDir::replace_engine`] off: the copy is whole once the other was set aside.
    fn finish_replacing(&self) -> Result<()> {
        let (engine, new) = (self.path.join(ENGINE), self.path.join(ENGINE_NEW));
        let finished = if engine.exists() {
            remove_dir(&new)
        } else if new.exists() && self.path.join(ENGINE_OLD).exists() {
            fs::rename(&new, &engine).and_then(|()| disk::sync_dir(self.path))
        } else {
            Ok(())
        };
        finished.map_err(|error| self.io("finishing the replacement of its engine", error))
    }

    /// Removes, durably, what a half-made directory holds, or one that is made anew.
    fn empty(&self) -> Result<()> {
        for part in [ENGINE, ENGINE_NEW, ENGINE_OLD, WAL] {
            remove_dir(&self.path.join(part)).map_err(|error| self.io(&format!("removing {part}"), error))?;
        }
        for file in OTHERS_OF_OURS {
            match fs::remove_file(self.path.join(file)) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(self.io(&format!("removing {file}"), error));
                }
                _ => {}
            }
        }
        disk::sync_dir(self.path).map_err(|error| self.io("syncing it", error))
    }

    /// Returns the disk id.
    fn check_format(&self, text: &str) -> Result<String> {
        let format = parse(text).map_err(|problem| self.corrupt(&problem))?;
        if format.version > FORMAT_VERSION {
            return Err(self.refused(format_args!(
                "was written by a newer rushkv (format {}, this one reads up to {FORMAT_VERSION}); start that \
                 version",
                format.version
            )));
        }
        if !format.checksum_matches {
            return Err(self.corrupt("its checksum does not match"));
        }
        if format.version < FORMAT_VERSION_MIN {
            return Err(self.refused(format_args!(
                "was written by a build before the first release (format {}, this one reads {FORMAT_VERSION}); take its \
                 records along with that build's `rushkv-cli export`, and `import` them into a new directory",
                format.version
            )));
        }
        let (Some(engine), Some(disk_id)) = (format.engine, format.disk_id) else {
            return Err(self.corrupt("a line is missing"));
        };
        if engine != self.engine.to_string() {
            return Err(self.refused(format_args!(
                "was written with {engine}, storage.engine says {}; set storage.engine = \"{engine}\", or give \
                 this node an empty data_dir",
                self.engine
            )));
        }
        self.finish_replacing()?;
        if self.engine != Kind::Memory && !self.path.join(ENGINE).is_dir() {
            return Err(self.refused(format_args!(
                "has lost its {ENGINE} folder, and with it this node's data; put it back, or give this node an \
                 empty data_dir"
            )));
        }
        // Left over if the last step of making it was interrupted.
        match fs::remove_file(self.path.join(CREATING)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.io("removing CREATING", error)),
            _ => Ok(disk_id),
        }
    }
}

/// Removes a folder and what is in it, if it is there.
fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn not_ours(found: &str) -> String {
    format!("is not empty and not ours: it holds {found}; choose an empty or a new directory as data_dir")
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read(path) {
        // Damage that is not even text is for the checksum to find.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn format_text(engine: Kind, disk_id: &str) -> String {
    let body = format!(
        "# A data directory of RushKV. Not to be edited.\nformat = {FORMAT_VERSION}\nengine = \"{engine}\"\n\
         disk_id = \"{disk_id}\"\n"
    );
    format!("{body}crc32c = \"{:08x}\"\n", crc32c::crc32c(body.as_bytes()))
}

struct Format {
    version: u32,
    engine: Option<String>,
    disk_id: Option<String>,
    checksum_matches: bool,
}

/// Reads what it knows, so that a newer version's file still says that it is one.
fn parse(text: &str) -> Result<Format, String> {
    let value_of = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().trim_matches('"').to_string())
        })
    };
    let version = value_of("format").ok_or("there is no line \"format = ...\"")?;
    let version = version.parse().map_err(|_| format!("format = {version:?} is not a number"))?;
    let checksum_matches = text.rfind("crc32c").is_some_and(|end| {
        value_of("crc32c") == Some(format!("{:08x}", crc32c::crc32c(&text.as_bytes()[..end])))
    });
    Ok(Format { version, engine: value_of("engine"), disk_id: value_of("disk_id"), checksum_matches })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_stop_is_forgotten_durably_even_if_it_was_forgotten_before() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(root.path(), Kind::Memory).unwrap();
        for clean in [true, false] {
            let synced = disk::tests::synced_by(|| assert_eq!(dir.take_clean_stop().unwrap(), clean));
            assert_eq!(synced, [root.path()]);
        }
    }

    /// Which engine is in its place, by a file in its folder.
    fn engine_there(path: &Path) -> Vec<String> {
        let names = fs::read_dir(path.join(ENGINE)).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).filter(|name| name.starts_with("is-")).collect()
    }

    #[test]
    fn after_a_crash_either_engine_is_in_its_place() {
        let root = tempfile::tempdir().unwrap();
        let open = || DataDir::open(root.path(), Kind::Fjall).unwrap();
        fs::write(open().engine_dir().join("is-old"), b"").unwrap();
        let begin = || {
            let dir = open();
            let new = dir.begin_engine().unwrap();
            fs::write(new.join("is-new"), b"").unwrap();
            dir
        };
        // While it was made, and from the beginning once more.
        drop(begin());
        drop(open());
        assert_eq!(engine_there(root.path()), ["is-old"]);
        assert!(!root.path().join(ENGINE_NEW).exists());
        // Between the two renames.
        drop(begin());
        fs::rename(root.path().join(ENGINE), root.path().join(ENGINE_OLD)).unwrap();
        drop(open());
        assert_eq!(engine_there(root.path()), ["is-new"]);

        let refused = open().begin_engine().unwrap_err().to_string();
        assert!(refused.contains("remove engine.old"), "{refused}");
        open().remove_old_engine().unwrap();
        begin().replace_engine().unwrap();
        assert_eq!(engine_there(root.path()), ["is-new"]);
        assert!(open().has_old_engine());
        // Nothing of it is left in a directory that is made anew.
        let anew = open().begin_anew().unwrap();
        assert!(!anew.has_old_engine());
    }
}
