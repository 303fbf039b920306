//! `RUSHKV__SECTION__KEY` variables to entries.
//!
//! Two underscores, because Kubernetes injects `RUSHKV_PORT` and its like into every container that
//! runs beside a service called `rushkv`.

use std::ffi::OsString;

use super::keys::KEYS;
use super::layer::{Entry, suggest_key};
use super::problem::{Origin, Problem};
use super::value::{Written, accept};

pub const PREFIX: &str = "RUSHKV__";

/// Reads every variable that begins with [`PREFIX`]; the others are not ours.
pub fn read(variables: &[(OsString, OsString)], problems: &mut Vec<Problem>) -> Vec<Entry> {
    let mut ours: Vec<(String, &OsString)> = variables
        .iter()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    ours.sort();
    let mut entries = Vec::new();
    for (name, value) in ours {
        let origin = Origin::Env(name.clone());
        let Some(key) = KEYS.iter().find(|key| key.env_name() == name) else {
            let full = name[PREFIX.len()..].replace("__", ".").to_lowercase();
            let way_out = match suggest_key(&full) {
                Some(key) => format!("did you mean {}?", key.env_name()),
                None => "unset it; rushkv --generate config lists every key".to_string(),
            };
            problems.push(Problem { origin, setting: None, message: "unknown key".to_string(), way_out });
            continue;
        };
        let Some(text) = value.to_str() else {
            problems.push(Problem {
                origin,
                setting: Some((key.name.to_string(), String::new())),
                message: "is not UTF-8".to_string(),
                way_out: "give the value as UTF-8".to_string(),
            });
            continue;
        };
        let written = Written::Untyped(text.to_string());
        match accept(key.kind, &written) {
            Ok(value) => entries.push(Entry { key, value, origin }),
            Err(wrong) => problems.push(Problem {
                origin,
                setting: Some((key.name.to_string(), written.to_string())),
                message: wrong.message,
                way_out: wrong.way_out,
            }),
        }
    }
    entries
}
