//! Reads one value as its key wants it, whatever it was written in.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::keys::Kind;
use super::problem::suggest;
use crate::limits::{HOST_BYTES_MAX, NAME_BYTES_MAX};

/// The port where none is given, as in the original.
pub const PORT_DEFAULT: u16 = 8080;

/// A value as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    Text(String),
    /// A whole number; the parser leaves its range to us.
    Integer(i128),
    List(Vec<Written>),
    /// A type that no key takes (float, boolean, date, table): its name and how it was written.
    Other(&'static str, String),
    /// What an environment variable or a flag holds: a text whose type its key decides.
    Untyped(String),
}

/// A value that its key accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(u64),
    List(Vec<String>),
}

/// Why a value is not accepted, and what would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub message: String,
    pub way_out: String,
}

fn wrong<T>(message: impl Into<String>, way_out: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { message: message.into(), way_out: way_out.into() })
}

impl fmt::Display for Written {
    /// As TOML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Written::Text(text) | Written::Untyped(text) => f.write_str(&quote(text)),
            Written::Integer(number) => number.fmt(f),
            Written::List(items) => {
                let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Written::Other(_, text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Value {
    /// As TOML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => f.write_str(&quote(text)),
            Value::Number(number) => number.fmt(f),
            Value::List(items) => {
                let items: Vec<String> = items.iter().map(|item| quote(item)).collect();
                write!(f, "[{}]", items.join(", "))
            }
        }
    }
}

/// A TOML basic string.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value that `kind` makes of what was written.
pub fn accept(kind: Kind, written: &Written) -> Result<Value, Wrong> {
    match kind {
        Kind::Name => text(written).and_then(name).map(Value::Text),
        Kind::NameOrEmpty => match text(written)? {
            "" => Ok(Value::Text(String::new())),
            given => name(given).map(Value::Text),
        },
        Kind::Addr => addr(text(written)?).map(|addr| Value::Text(addr.to_string())),
        Kind::AddrOrEmpty => match text(written)? {
            "" => Ok(Value::Text(String::new())),
            given => addr(given).map(|addr| Value::Text(addr.to_string())),
        },
        Kind::MetricsAddr => metrics_addr(text(written)?).map(Value::Text),
        Kind::AddrList => addr_list(written).map(Value::List),
        Kind::Dir => dir(text(written)?).map(Value::Text),
        Kind::Number { min, max } => number(written, min, max).map(Value::Number),
        Kind::PowerOfTwo { max } => power_of_two(written, max).map(Value::Number),
        Kind::Bytes { min } => bytes(written, min).map(Value::Number),
        Kind::Choice(words) => choice(text(written)?, words).map(Value::Text),
        Kind::LogLevel => log_level(text(written)?).map(Value::Text),
    }
}

fn text(written: &Written) -> Result<&str, Wrong> {
    match written {
        Written::Text(text) | Written::Untyped(text) => Ok(text),
        Written::Integer(number) => {
            wrong("is a number where a text belongs", format!("put it in quotes: \"{number}\""))
        }
        Written::List(_) => wrong("is a list where a text belongs", "give one value, in quotes"),
        Written::Other(kind, _) => wrong(format!("is a {kind} where a text belongs"), "put it in quotes"),
    }
}

fn name(given: &str) -> Result<String, Wrong> {
    let way_out = format!(
        "use 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or '-', the first one a letter or digit"
    );
    if given.is_empty() {
        return wrong("is empty", way_out);
    }
    if given.len() > NAME_BYTES_MAX {
        return wrong(format!("has {} bytes", given.len()), way_out);
    }
    if !given.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return wrong("does not begin with a letter or digit", way_out);
    }
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match given.chars().find(|c| !is_allowed(*c)) {
        Some(c) => wrong(format!("has {c:?} in it"), way_out),
        None => Ok(given.to_string()),
    }
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A host name, an IPv4 address or an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl HostPort {
    /// Whether only this host itself gets there.
    pub fn is_loopback(&self) -> bool {
        match IpAddr::from_str(&self.host) {
            Ok(ip) => ip.to_canonical().is_loopback(),
            Err(_) => {
                let host = self.host.to_ascii_lowercase();
                host == "localhost" || host.ends_with(".localhost")
            }
        }
    }

    /// Whether it stands for every interface, which nobody can dial.
    pub fn is_wildcard(&self) -> bool {
        IpAddr::from_str(&self.host).is_ok_and(|ip| ip.to_canonical().is_unspecified())
    }
}

/// Reads `host:port`, `host`, `[v6]:port`, `[v6]` or a bare IPv6 address.
pub fn addr(given: &str) -> Result<HostPort, Wrong> {
    let (host, port) = split_addr(given)?;
    let port = match port {
        Some(port) => parse_port(port)?,
        None => PORT_DEFAULT,
    };
    Ok(HostPort { host, port })
}

/// The host and, if there is one, the text of the port.
pub fn split_addr(given: &str) -> Result<(String, Option<&str>), Wrong> {
    const WAY_OUT: &str = "write host:port, such as \"10.0.0.1:8080\" or \"[::1]:8080\"";
    if given.is_empty() {
        return wrong("is empty", WAY_OUT);
    }
    if Ipv6Addr::from_str(given).is_ok() {
        return Ok((given.to_string(), None));
    }
    let (host, port) = match given.strip_prefix('[') {
        Some(rest) => {
            let Some((inside, after)) = rest.split_once(']') else {
                return wrong("has a '[' without its ']'", WAY_OUT);
            };
            if Ipv6Addr::from_str(inside).is_err() {
                return wrong(format!("{inside:?} is not an IPv6 address"), WAY_OUT);
            }
            match after.strip_prefix(':') {
                Some(port) => (inside, Some(port)),
                None if after.is_empty() => (inside, None),
                None => return wrong(format!("has {after:?} after the ']'"), WAY_OUT),
            }
        }
        None => match given.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return wrong("has more than one ':' and is not an IPv6 address", WAY_OUT);
            }
            Some((host, port)) => (host, Some(port)),
            None => (given, None),
        },
    };
    check_host(host)?;
    Ok((host.to_string(), port))
}

fn check_host(host: &str) -> Result<(), Wrong> {
    const WAY_OUT: &str = "give a host name or an IP address";
    if IpAddr::from_str(host).is_ok() {
        return Ok(());
    }
    if host.is_empty() {
        return wrong("has no host", "for every interface write 0.0.0.0 or [::] before the port");
    }
    if host.len() > HOST_BYTES_MAX {
        return wrong(format!("the host has {} bytes", host.len()), WAY_OUT);
    }
    let labels = host.strip_suffix('.').unwrap_or(host).split('.');
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    if !labels.clone().all(is_label) {
        return wrong(format!("{host:?} is not a host name"), WAY_OUT);
    }
    // No name's last label is a number: this is an IPv4 address with a mistake in it.
    if labels.clone().next_back().is_some_and(|label| label.chars().all(|c| c.is_ascii_digit())) {
        return wrong(format!("{host:?} is not an IPv4 address"), "give four numbers from 0 to 255");
    }
    Ok(())
}

/// Reads a port. 0 is any free one.
pub fn parse_port(given: &str) -> Result<u16, Wrong> {
    let is_number = !given.is_empty() && given.chars().all(|c| c.is_ascii_digit());
    match (is_number, given.parse()) {
        (true, Ok(port)) => Ok(port),
        (true, Err(_)) => {
            wrong(format!("port {given} is too large"), "use a port from 1 to 65535, or 0 for any free one")
        }
        (false, _) => wrong(
            format!("port {given:?} is not a number"),
            "use a port from 1 to 65535, or 0 for any free one",
        ),
    }
}

fn metrics_addr(given: &str) -> Result<String, Wrong> {
    match given {
        "auto" => return Ok(given.to_string()),
        "off" | "" => return Ok("off".to_string()),
        _ => {}
    }
    let (host, port) = split_addr(given)?;
    match port {
        Some(port) => Ok(HostPort { host, port: parse_port(port)? }.to_string()),
        None => wrong("has no port", "write host:port, or \"auto\" or \"off\""),
    }
}

/// Of a variable or a flag: a,b or, as in the file, ["a", "b"].
fn untyped_list(list: &str) -> Vec<&str> {
    let quotes = ['"', '\''];
    let bare = list.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    // An IPv6 address has brackets, too, but no quotes.
    let items = bare.filter(|bare| bare.contains(quotes)).unwrap_or(list);
    items.split(',').map(|item| item.trim().trim_matches(quotes)).filter(|item| !item.is_empty()).collect()
}

fn addr_list(written: &Written) -> Result<Vec<String>, Wrong> {
    const WAY_OUT: &str = "write [\"10.0.0.2:8080\", \"10.0.0.3:8080\"]";
    let items: Vec<&str> = match written {
        Written::List(items) => items.iter().map(text).collect::<Result<_, _>>()?,
        Written::Untyped(list) => untyped_list(list),
        Written::Text(_) => return wrong("is a text where a list belongs", WAY_OUT),
        Written::Integer(_) => return wrong("is a number where a list belongs", WAY_OUT),
        Written::Other(kind, _) => return wrong(format!("is a {kind} where a list belongs"), WAY_OUT),
    };
    let mut peers: Vec<String> = Vec::with_capacity(items.len());
    for item in items {
        let peer = addr(item).map_err(|wrong| Wrong {
            message: format!("{}: {}", quote(item), wrong.message),
            way_out: wrong.way_out,
        })?;
        if peer.port == 0 || peer.is_wildcard() {
            return wrong(
                format!("{} can't be dialled", quote(item)),
                "give the address that the node serves",
            );
        }
        let peer = peer.to_string();
        if peers.contains(&peer) {
            return wrong(format!("{} is there twice", quote(&peer)), "name each node once");
        }
        peers.push(peer);
    }
    Ok(peers)
}

fn dir(given: &str) -> Result<String, Wrong> {
    if given.trim().is_empty() {
        return wrong("is empty", "give a directory for this node alone, such as \"/var/lib/rushkv\"");
    }
    if given.contains('\0') {
        return wrong("has a zero byte in it", "give a directory's path");
    }
    Ok(given.to_string())
}

fn integer(written: &Written) -> Result<i128, Wrong> {
    const WAY_OUT: &str = "give a whole number, without quotes";
    match written {
        Written::Integer(number) => Ok(*number),
        Written::Untyped(text) => match text.trim().parse() {
            Ok(number) => Ok(number),
            Err(_) => wrong("is not a whole number", "give a whole number"),
        },
        Written::Text(_) => wrong("is a text where a number belongs", WAY_OUT),
        Written::List(_) => wrong("is a list where a number belongs", WAY_OUT),
        Written::Other(kind, _) => wrong(format!("is a {kind} where a whole number belongs"), WAY_OUT),
    }
}

fn number(written: &Written, min: u64, max: u64) -> Result<u64, Wrong> {
    match u64::try_from(integer(written)?) {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => wrong("is out of range", format!("give a number from {min} to {max}")),
    }
}

fn power_of_two(written: &Written, max: u64) -> Result<u64, Wrong> {
    let given = number(written, 1, max)?;
    if given.is_power_of_two() {
        return Ok(given);
    }
    let above = given.next_power_of_two();
    match above <= max {
        true => wrong("is not a power of two", format!("use {} or {above}", above / 2)),
        false => wrong("is not a power of two", format!("use {}", above / 2)),
    }
}

/// Units of size. Decimal ones as disk makers count, binary ones as memory is counted.
const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1000),
    ("MB", 1000 * 1000),
    ("GB", 1000 * 1000 * 1000),
    ("TB", 1000 * 1000 * 1000 * 1000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

fn bytes(written: &Written, min: u64) -> Result<u64, Wrong> {
    const WAY_OUT: &str = "give a number of bytes, or a text such as \"128MiB\" or \"1GiB\"";
    let size = match written {
        Written::Integer(number) => u64::try_from(*number).ok(),
        Written::Text(text) | Written::Untyped(text) => {
            let text = text.trim();
            let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let (count, unit) = (&text[..digits], text[digits..].trim());
            let factor = match unit {
                "" => 1,
                unit => match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
                    Some((_, factor)) => *factor,
                    None => return wrong(format!("has no unit {unit:?} that is known"), WAY_OUT),
                },
            };
            if count.is_empty() {
                return wrong("has no number in front", WAY_OUT);
            }
            count.parse::<u64>().ok().and_then(|count| count.checked_mul(factor))
        }
        Written::List(_) => return wrong("is a list where a size belongs", WAY_OUT),
        Written::Other(kind, _) => return wrong(format!("is a {kind} where a size belongs"), WAY_OUT),
    };
    // The upper bound is what TOML's integers hold, so that every accepted size can be printed back.
    match size.filter(|size| i64::try_from(*size).is_ok()) {
        Some(size) if size >= min => Ok(size),
        Some(_) => wrong("is too small", format!("give at least {}", show_bytes(min))),
        None => wrong("is not a possible size", WAY_OUT),
    }
}

/// A size in its largest binary unit that leaves no rest.
pub fn show_bytes(size: u64) -> String {
    for (unit, factor) in UNITS.iter().rev().filter(|(unit, _)| unit.ends_with("iB")) {
        if size > 0 && size.is_multiple_of(*factor) {
            return format!("{}{unit}", size / factor);
        }
    }
    format!("{size}B")
}

fn choice(given: &str, words: &[&'static str]) -> Result<String, Wrong> {
    if words.contains(&given) {
        return Ok(given.to_string());
    }
    let list = words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" or ");
    match suggest(given, words.iter().copied()) {
        Some(word) => wrong("is not known", format!("did you mean {}? It may be {list}", quote(word))),
        None => wrong("is not known", format!("use {list}")),
    }
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Stricter than the filter's own syntax, which takes a mistyped level for a module's name.
fn log_level(given: &str) -> Result<String, Wrong> {
    const WAY_OUT: &str = "use error, warn, info, debug, trace or off, or a list such as \
                           \"info,rushkv::raft=debug\"";
    for part in given.split(',') {
        let (module, level) = match part.split_once('=') {
            Some((module, level)) => (Some(module), level),
            None => (None, part),
        };
        if let Some(module) = module {
            let is_module = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
            if module.is_empty() || !module.chars().all(is_module) {
                return wrong(format!("{module:?} is not a module's name"), WAY_OUT);
            }
        }
        if !LEVELS.contains(&level) {
            let way_out = match suggest(level, LEVELS) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => WAY_OUT.to_string(),
            };
            return wrong(format!("{level:?} is not a level"), way_out);
        }
    }
    Ok(given.to_string())
}
