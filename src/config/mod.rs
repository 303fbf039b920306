//! Configuration: raw text to validated [`Config`], in layers.
//!
//! Defaults < `rushkv.toml` < `conf.d/*.toml` beside it, in lexical order < `RUSHKV__SECTION__KEY`
//! variables < flags. Every value is read by its key's rule in [`keys::KEYS`], wherever it was written,
//! so that a mistake is reported with its file, line and column, variable or flag, even where a higher
//! layer covers it up; then figment lays the layers over each other; then [`check`] looks at the keys
//! together. All problems are collected, none stops the search for the next one.
//!
//! Nothing here touches the network or the data directory, and nothing reads the process's arguments:
//! the daemon hands them over in [`Sources`].

mod check;
mod env;
mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod keys;
mod layer;
mod print;
mod problem;
mod reload;
pub mod value;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use check::Config;
pub use print::print;
pub use problem::{Origin, Problem};
pub use reload::{Change, changes};
pub use value::HostPort;

use keys::{KEYS, Key};
use layer::{Entry, Layers};
use value::{Value, Written, accept};

/// Read without `--config`, if it is there and none of the original's flags is given.
pub const ETC_FILE: &str = "/etc/rushkv/rushkv.toml";

/// Everything that a configuration is made of.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config`: must exist.
    pub config: Option<PathBuf>,
    /// The file to read where no `--config` is given; [`ETC_FILE`] but in tests.
    pub etc: PathBuf,
    pub env: Vec<(OsString, OsString)>,
    pub flags: Flags,
    pub host_name: String,
}

/// The flags that set a value, as they were given.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub id: Option<String>,
    pub addr: Option<String>,
    pub port: Option<String>,
    pub data: Option<String>,
    /// `--set KEY=VALUE`, in order.
    pub set: Vec<String>,
}

impl Flags {
    /// Whether one of the original's flags was given.
    pub fn is_original(&self) -> bool {
        self.id.is_some() || self.addr.is_some() || self.port.is_some() || self.data.is_some()
    }
}

/// A key's value and where it came from.
#[derive(Debug, Clone)]
pub struct Setting {
    pub key: &'static Key,
    pub value: Value,
    pub origin: Origin,
}

/// A configuration that holds, and how it came about.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    /// One for each key, in the order of [`KEYS`].
    pub settings: Vec<Setting>,
    /// What holds but is probably not meant.
    pub warnings: Vec<Problem>,
    /// The files that were read, in order.
    pub files: Vec<PathBuf>,
}

/// Reads every layer and checks the whole. On failure: every problem, in the order of the layers.
pub fn load(sources: &Sources) -> Result<Loaded, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut layers = Layers::default();
    let mut complete = true;

    let file = match &sources.config {
        Some(path) => Some(path.clone()),
        None if sources.flags.is_original() => None,
        // Whatever keeps a file that is there from being read is reported by reading it.
        None => Some(sources.etc.clone()).filter(|path| path.symlink_metadata().is_ok()),
    };
    layers.push(defaults(file.is_some()));
    let mut files = Vec::new();
    if let Some(file) = file {
        let conf_d = file.parent().unwrap_or(Path::new("")).join("conf.d");
        files.push(file);
        files.extend(file::list(&conf_d, &mut problems));
    }
    for path in &files {
        let parsed = file::read(path, &mut problems);
        complete &= parsed.complete;
        layers.push(parsed.entries);
    }
    layers.push(env::read(&sources.env, &mut problems));
    layers.push(set_flags(&sources.flags.set, &mut problems));
    let flags = original_flags(&sources.flags, &layers, &mut problems);
    layers.push(flags);

    let settings: Vec<Setting> = KEYS
        .iter()
        .filter_map(|key| layers.find(key.name))
        .map(|entry| Setting { key: entry.key, value: entry.value.clone(), origin: entry.origin.clone() })
        .collect();
    let mut warnings = Vec::new();
    // Where a part could not be read, how the keys fit together is not known.
    let config = match complete {
        true => check::check(&layers, &sources.host_name, &mut problems, &mut warnings),
        false => None,
    };
    match config {
        Some(config) if problems.is_empty() => Ok(Loaded { config, settings, warnings, files }),
        _ => Err(problems),
    }
}

/// The lowest layer. Without a file the node is started by hand, as the original was: in `./data`, as
/// `node1`. With one it is a service.
fn defaults(with_file: bool) -> Vec<Entry> {
    let value_of = |key: &Key| match (key.name, with_file) {
        ("node_id", false) => Value::Text("node1".to_string()),
        ("data_dir", false) => Value::Text("./data".to_string()),
        _ => default_value(key),
    };
    KEYS.iter().map(|key| Entry { key, value: value_of(key), origin: Origin::Default }).collect()
}

fn default_value(key: &Key) -> Value {
    let parsed = toml::de::DeValue::parse(key.default).ok();
    parsed
        .and_then(|value| accept(key.kind, &file::written(value.get_ref())).ok())
        .expect("each default in the table is a value that its own key accepts; a test reads them all")
}

/// `--set KEY=VALUE`.
fn set_flags(set: &[String], problems: &mut Vec<Problem>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for given in set {
        let origin = Origin::Flag("--set".to_string());
        let mut fail = |setting: Option<(String, String)>, message: String, way_out: String| {
            problems.push(Problem { origin: origin.clone(), setting, message, way_out });
        };
        let Some((name, text)) = given.split_once('=') else {
            let way_out = "write --set KEY=VALUE, such as --set storage.engine=sled".to_string();
            fail(None, format!("{given:?} has no '='"), way_out);
            continue;
        };
        let Some(key) = keys::find(name.trim()) else {
            let way_out = match layer::suggest_key(name.trim()) {
                Some(key) => format!("did you mean {}?", key.name),
                None => "rushkv --generate config lists every key".to_string(),
            };
            fail(None, format!("unknown key {name:?}"), way_out);
            continue;
        };
        let written = Written::Untyped(text.to_string());
        match accept(key.kind, &written) {
            Ok(value) => entries.push(Entry { key, value, origin: origin.clone() }),
            Err(wrong) => {
                fail(Some((key.name.to_string(), written.to_string())), wrong.message, wrong.way_out)
            }
        }
    }
    entries
}

/// The original's flags. `-addr` and `-port` are the two halves of `addr`: a half that is not given
/// stays as the layers below have it.
fn original_flags(flags: &Flags, below: &Layers, problems: &mut Vec<Problem>) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut take = |flag: &str, name: &str, shown: &str, value: Result<Value, value::Wrong>| {
        let origin = Origin::Flag(flag.to_string());
        match (keys::find(name), value) {
            (Some(key), Ok(value)) => entries.push(Entry { key, value, origin }),
            (_, Err(wrong)) => problems.push(Problem {
                origin,
                setting: Some((name.to_string(), value::quote(shown))),
                message: wrong.message,
                way_out: wrong.way_out,
            }),
            (None, Ok(_)) => {}
        }
    };
    let untyped = |text: &str| Written::Untyped(text.to_string());
    if let Some(id) = &flags.id {
        // Unlike in a file, where nothing means the host name: an empty `-id=` is a script's mistake.
        take("-id", "node_id", id, accept(keys::Kind::Name, &untyped(id)));
    }
    if let Some(data) = &flags.data {
        take("-data", "data_dir", data, accept(keys::Kind::Dir, &untyped(data)));
    }
    let base = || match below.find("addr").map(|entry| &entry.value) {
        Some(Value::Text(text)) => value::addr(text),
        _ => value::addr("localhost"),
    };
    let host_flag = flags.addr.as_deref().map(|text| (text, value::split_addr(text)));
    let port_flag = flags.port.as_deref().map(|text| (text, value::parse_port(text.trim())));
    match (host_flag, port_flag) {
        (None, None) => {}
        (Some((shown, Err(wrong))), port) => {
            take("-addr", "addr", shown, Err(wrong));
            if let Some((shown, Err(wrong))) = port {
                take("-port", "addr", shown, Err(wrong));
            }
        }
        (_, Some((shown, Err(wrong)))) => take("-port", "addr", shown, Err(wrong)),
        (None, Some((shown, Ok(port)))) => {
            let addr = base().map(|base| HostPort { port, ..base });
            take("-port", "addr", shown, addr.map(|addr| Value::Text(addr.to_string())));
        }
        (Some((shown, Ok((host, inner)))), port) => {
            let inner = inner.map(value::parse_port).transpose();
            let port = port.and_then(|(_, port)| port.ok());
            let addr = match (inner, port) {
                (Err(wrong), _) => Err(wrong),
                (Ok(Some(inner)), Some(port)) if inner != port => Err(value::Wrong {
                    message: format!("has port {inner}, and -port says {port}"),
                    way_out: "give the port once".to_string(),
                }),
                (Ok(inner), port) => match inner.or(port) {
                    Some(port) => Ok(HostPort { host, port }),
                    None => base().map(|base| HostPort { host, port: base.port }),
                },
            };
            take("-addr", "addr", shown, addr.map(|addr| Value::Text(addr.to_string())));
        }
    }
    entries
}

impl Sources {
    /// What this process was started with.
    pub fn of_process(config: Option<PathBuf>, flags: Flags) -> Sources {
        Sources {
            config,
            etc: PathBuf::from(ETC_FILE),
            env: std::env::vars_os().collect(),
            flags,
            host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }
}
