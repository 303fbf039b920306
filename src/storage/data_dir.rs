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
use crate::{crash_point, disk};

/// Version of the directory's layout that this program writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

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
            "data directory {}: {FORMAT} can't be read: {problem}; restore it from a copy, or give the node \
             an empty data_dir",
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

    /// Removes, durably, what a half-made directory holds, or one that is made anew.
    fn empty(&self) -> Result<()> {
        for part in [ENGINE, WAL] {
            match fs::remove_dir_all(self.path.join(part)) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(self.io(&format!("removing {part}"), error));
                }
                _ => {}
            }
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
}
