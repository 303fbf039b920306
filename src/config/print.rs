//! What people see of a configuration: `--print-config`.

use std::fmt::Write as _;

use super::keys::{Key, Kind, SECTIONS};
use super::value::{Value, show_bytes};
use super::{Loaded, Setting};

/// Every key with its value, where it came from, and what it comes to. Valid TOML: written to a file,
/// it gives the same configuration.
pub fn print(loaded: &Loaded) -> String {
    let mut out = String::new();
    match loaded.files.is_empty() {
        true => out.push_str("# no file was read\n"),
        false => {
            for path in &loaded.files {
                let _ = writeln!(out, "# read: {}", path.display());
            }
        }
    }
    let shown = |setting: &Setting| format!("{} = {}", setting.key.leaf(), shown(setting));
    let width = loaded.settings.iter().map(|setting| shown(setting).chars().count()).max().unwrap_or(0);
    for (section, _) in SECTIONS {
        if !section.is_empty() {
            let _ = writeln!(out, "\n[{section}]");
        }
        for setting in loaded.settings.iter().filter(|setting| setting.key.section() == section) {
            let line = shown(setting);
            let pad = " ".repeat(width.saturating_sub(line.chars().count()));
            let _ = write!(out, "{line}{pad}  # {}", setting.origin);
            if let Some(meaning) = meaning(loaded, setting.key) {
                let _ = write!(out, "; {meaning}");
            }
            out.push('\n');
        }
    }
    out
}

pub(super) fn shown(setting: &Setting) -> String {
    match (setting.key.kind, &setting.value) {
        (Kind::Bytes { .. }, Value::Number(size)) => format!("\"{}\"", show_bytes(*size)),
        (_, value) => value.to_string(),
    }
}

/// What a value that stands for another one comes to.
fn meaning(loaded: &Loaded, key: &Key) -> Option<String> {
    let config = &loaded.config;
    let value = &loaded.settings.iter().find(|setting| setting.key.name == key.name)?.value;
    match (key.name, value) {
        ("node_id", Value::Text(text)) if text.is_empty() => Some(format!("here {}", config.node_id)),
        ("advertise_addr", Value::Text(text)) if text.is_empty() => Some(format!("here {}", config.addr)),
        ("metrics.addr", Value::Text(text)) if text == "auto" => {
            config.metrics_addr.as_ref().map(|addr| format!("here {addr}"))
        }
        _ => None,
    }
}
