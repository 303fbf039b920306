//! One TOML file to entries, each with its line and column.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{self, SECTIONS};
use super::layer::{Entry, suggest_key};
use super::problem::{Origin, Problem, suggest};
use super::value::{Written, accept};

/// Largest file that is read, in bytes: a thousand times what every key needs.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What a file says, or why it says nothing.
#[derive(Debug)]
pub struct Parsed {
    pub entries: Vec<Entry>,
    /// False if a part of the file could not be read at all, so that absent keys mean nothing.
    pub complete: bool,
}

/// Reads the file at `path`.
pub fn read(path: &Path, problems: &mut Vec<Problem>) -> Parsed {
    match read_text(path) {
        Ok(text) => parse(path, &text, problems),
        Err(problem) => {
            problems.push(*problem);
            Parsed { entries: Vec::new(), complete: false }
        }
    }
}

/// The `*.toml` files of `dir` in lexical order; none if there is no such directory.
pub fn list(dir: &Path, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return files,
        Err(error) => {
            problems.push(unreadable(dir, &error));
            return files;
        }
    };
    for entry in entries {
        match entry {
            Ok(entry) => files.push(entry.path()),
            Err(error) => problems.push(unreadable(dir, &error)),
        }
    }
    files.retain(|path| {
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        path.extension().is_some_and(|extension| extension == "toml") && !is_hidden
    });
    files.sort();
    files
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    use std::io::ErrorKind;
    let way_out = match error.kind() {
        ErrorKind::NotFound => "give the path of a file that exists",
        ErrorKind::PermissionDenied => {
            "let this user read it, or run as the user that may; without --config, the flags -id, -addr, \
             -port or -data leave /etc unread"
        }
        _ => "give the path of a readable file",
    };
    whole(path, format!("can't be read: {error}"), way_out)
}

fn read_text(path: &Path) -> Result<String, Box<Problem>> {
    let open = |path: &Path| -> std::io::Result<Vec<u8>> {
        let file = File::open(path)?;
        let mut content = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
        Ok(content)
    };
    let content = open(path).map_err(|error| Box::new(unreadable(path, &error)))?;
    if content.len() as u64 > FILE_BYTES_MAX {
        let message = format!("is larger than {FILE_BYTES_MAX} bytes");
        return Err(Box::new(whole(path, message, "this is not a configuration file")));
    }
    String::from_utf8(content).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let start = String::from_utf8_lossy(&error.as_bytes()[..valid]).into_owned();
        let message = "is not UTF-8 from here on".to_string();
        Box::new(at(path, &start, valid, None, message, "save the file as UTF-8"))
    })
}

/// A problem of the file as a whole.
fn whole(path: &Path, message: String, way_out: &str) -> Problem {
    let origin = Origin::File { path: path.to_path_buf(), line: 0, column: 0 };
    Problem { origin, setting: None, message, way_out: way_out.to_string() }
}

/// A problem at a byte offset of the file's text.
fn at(
    path: &Path,
    text: &str,
    offset: usize,
    setting: Option<(String, String)>,
    message: String,
    way_out: impl Into<String>,
) -> Problem {
    Problem { origin: origin(path, text, offset), setting, message, way_out: way_out.into() }
}

fn origin(path: &Path, text: &str, offset: usize) -> Origin {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    Origin::File {
        path: path.to_path_buf(),
        line: before.iter().filter(|b| **b == b'\n').count() + 1,
        // Characters, not bytes: what does not continue a character begins one.
        column: before[line_start..].iter().filter(|b| (**b & 0xC0) != 0x80).count() + 1,
    }
}

/// Reads a file's text. A file with a mistake in its syntax gives no entries, only its problems.
pub fn parse(path: &Path, text: &str, problems: &mut Vec<Problem>) -> Parsed {
    let first = problems.len();
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let offset = error.span().map_or(0, |span| span.start);
        let message = error.message().trim().replace('\n', ", ");
        problems.push(at(path, text, offset, None, message, "see https://toml.io for the syntax"));
    }
    let mut walk = Walk { path, text, entries: Vec::new(), problems };
    if errors.is_empty() {
        walk.table("", table.get_ref());
    }
    let entries = walk.entries;
    // The parser's tables are sorted by name; people read from top to bottom.
    problems[first..].sort_by_key(|problem| match problem.origin {
        Origin::File { line, column, .. } => (line, column),
        _ => (0, 0),
    });
    Parsed { entries, complete: errors.is_empty() }
}

struct Walk<'a> {
    path: &'a Path,
    text: &'a str,
    entries: Vec<Entry>,
    problems: &'a mut Vec<Problem>,
}

impl Walk<'_> {
    fn table(&mut self, section: &str, table: &DeTable<'_>) {
        for (name, value) in table.iter() {
            let full = match section {
                "" => name.get_ref().to_string(),
                section => format!("{section}.{}", name.get_ref()),
            };
            let key_at = name.span().start;
            if let Some(key) = keys::find(&full) {
                self.value(key, value.get_ref(), value.span().start);
            } else if SECTIONS.iter().any(|(known, _)| !known.is_empty() && *known == full) {
                match value.get_ref() {
                    DeValue::Table(inner) => self.table(&full, inner),
                    _ => {
                        let way_out = format!("write [{full}] once, and its keys below it");
                        self.push(key_at, &full, "", "is a section, not a key".to_string(), way_out);
                    }
                }
            } else {
                self.unknown(&full, matches!(value.get_ref(), DeValue::Table(_)), key_at);
            }
        }
    }

    fn value(&mut self, key: &'static keys::Key, value: &DeValue<'_>, offset: usize) {
        let written = written(value);
        match accept(key.kind, &written) {
            Ok(value) => {
                let origin = origin(self.path, self.text, offset);
                self.entries.push(Entry { key, value, origin });
            }
            Err(wrong) => self.push(offset, key.name, &written.to_string(), wrong.message, wrong.way_out),
        }
    }

    fn unknown(&mut self, full: &str, is_table: bool, offset: usize) {
        let (what, meant) = match is_table && !full.contains('.') {
            true => {
                let sections = SECTIONS.iter().map(|(name, _)| *name).filter(|name| !name.is_empty());
                ("unknown section", suggest(full, sections).map(|name| format!("[{name}]")))
            }
            false => ("unknown key", suggest_key(full).map(|key| key.name.to_string())),
        };
        let way_out = match meant {
            Some(meant) => format!("did you mean {meant}?"),
            None => "take it out; rushkv --generate config lists every key".to_string(),
        };
        self.push(offset, full, "", what.to_string(), way_out);
    }

    fn push(&mut self, offset: usize, key: &str, value: &str, message: String, way_out: String) {
        let key = match key.chars().all(|c| c.is_ascii_graphic()) {
            true => key.to_string(),
            false => format!("{key:?}"),
        };
        let setting = Some((key, value.to_string()));
        self.problems.push(at(self.path, self.text, offset, setting, message, way_out));
    }
}

/// The value as it was written, out of the parser's types.
pub fn written(value: &DeValue<'_>) -> Written {
    match value {
        DeValue::String(text) => Written::Text(text.to_string()),
        // What does not even fit here is out of every range as well.
        DeValue::Integer(number) => {
            Written::Integer(i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX))
        }
        DeValue::Float(number) => Written::Other("float", number.as_str().to_string()),
        DeValue::Boolean(value) => Written::Other("boolean", value.to_string()),
        DeValue::Datetime(value) => Written::Other("date", value.to_string()),
        DeValue::Array(items) => Written::List(items.iter().map(|item| written(item.get_ref())).collect()),
        DeValue::Table(_) => Written::Other("table", "{ ... }".to_string()),
    }
}
