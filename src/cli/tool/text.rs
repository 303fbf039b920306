//! Bytes, sizes and durations as people read and write them.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// Bytes for a terminal or a line of text: UTF-8 stays, control characters and stray bytes become
/// escapes, so that nothing in a key can move the cursor or break a line.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if c.is_control() => out.extend(c.escape_unicode()),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// Adds bytes to a JSON object: as text under `name`, or, where they are not UTF-8, under
/// `name_base64`.
pub fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.into(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

/// A number of bytes in the largest unit that leaves at least 1.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Reads `5s`, `500ms`, `2m`, `1h`, `1.5s` or plain seconds. Go writes durations like that.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{unit:?} is no unit of time; write ms, s, m or h")),
    };
    let seconds =
        number.parse::<f64>().map_err(|_| "write a number and a unit, like 5s".to_string())? * factor;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() && duration <= Duration::from_secs(86_400) => Ok(duration),
        _ => Err("it must be more than 0 and at most 24h".to_string()),
    }
}

/// Reads a number of bytes: `128`, `4k`, `1m`, `1MiB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err(format!("{unit:?} is no unit; write k, m or g")),
    };
    let number = number.parse::<u64>().map_err(|_| "write a number, like 128 or 4k".to_string())?;
    number.checked_mul(factor).ok_or_else(|| "that is too large".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_key_reaches_the_terminal_raw() {
        assert_eq!(escape("clé\\".as_bytes()), "clé\\\\");
        assert_eq!(escape(b"a\nb\tc\x1b[2J\xff\x00"), "a\\nb\\tc\\u{1b}[2J\\xff\\u{0}");
    }

    #[test]
    fn sizes_have_one_unit() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_048_575, "1.0 MiB"), (5 << 30, "5.0 GiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn durations_and_sizes_are_read_as_written() {
        for (text, ms) in [("5s", 5000), ("500ms", 500), ("2m", 120_000), ("3", 3000), ("1.5s", 1500)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "0s", "-1s", "5 s", "5d", "99h", "1.2.3s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(bytes("4k"), Ok(4096));
        assert_eq!(bytes("1MiB"), Ok(1 << 20));
        assert!(bytes("k").is_err() && bytes("1x").is_err() && bytes("99999999999999999999g").is_err());
        assert!(bytes("18446744073709551615k").is_err());
    }
}
