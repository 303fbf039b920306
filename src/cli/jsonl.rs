//! Records as lines of JSON: `{"key":"k","value":"v"}`, with `key_base64` and `value_base64` for bytes
//! that are not UTF-8.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limits;

/// Longest line, in bytes: a key and a value at their limits, every byte as a six-character escape,
/// and room for other fields.
pub(super) const LINE_BYTES_MAX: usize = 6 * (limits::KEY_BYTES_MAX + limits::VALUE_BYTES_MAX) + 64 * 1024;

#[derive(Deserialize)]
struct Read<'a> {
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key_base64: Option<Cow<'a, str>>,
    #[serde(borrow)]
    value: Option<Cow<'a, str>>,
    #[serde(borrow)]
    value_base64: Option<Cow<'a, str>>,
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

/// Reads one line. The error says what is wrong with it, without its number.
pub(super) fn decode(line: &[u8]) -> Result<(Bytes, Bytes), String> {
    let read: Read<'_> = serde_json::from_slice(line).map_err(|error| {
        // Its own "at line 1 column N" would be taken for the file's.
        let text = error.to_string();
        let text = text.split(" at line ").next().unwrap_or(&text).to_string();
        format!("{text} (column {}); a line is like {}", error.column(), r#"{"key":"k","value":"v"}"#)
    })?;
    let key = field("key", read.key, read.key_base64)?;
    let value = field("value", read.value, read.value_base64)?;
    Ok((key, value))
}

fn field(name: &str, text: Option<Cow<'_, str>>, base64: Option<Cow<'_, str>>) -> Result<Bytes, String> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into_owned().into()),
        (None, Some(base64)) => match STANDARD.decode(base64.as_bytes()) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => Err(format!("{name}_base64: {error}")),
        },
        (None, None) => Err(format!("neither {name} nor {name}_base64 is there")),
        (Some(_), Some(_)) => Err(format!("both {name} and {name}_base64 are there")),
    }
}

/// Appends a record as one line, the newline included.
pub(super) fn encode(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let (key, key_base64) = text_or_base64(key);
    let (value, value_base64) = text_or_base64(value);
    let line = Written { key, key_base64, value, value_base64 };
    serde_json::to_writer(&mut *out, &line).expect("strings always serialise, and a Vec takes all bytes");
    out.push(b'\n');
}

fn text_or_base64(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_read_as_documented() {
        let good: [(&str, &[u8], &[u8]); 5] = [
            (r#"{"key":"k","value":"v"}"#, b"k", b"v"),
            (r#" {"value":"","version":7,"key":"k"} "#, b"k", b""),
            (r#"{"key":"\u00e9\n","value":"\""}"#, "é\n".as_bytes(), b"\""),
            (r#"{"key_base64":"/w==","value_base64":"AAE="}"#, b"\xff", b"\0\x01"),
            (r#"{"key":"k","value":"{\"a\":1}"}"#, b"k", br#"{"a":1}"#),
        ];
        for (line, key, value) in good {
            let (k, v) = decode(line.as_bytes()).unwrap();
            assert_eq!((&k[..], &v[..]), (key, value), "{line}");
        }
        for (line, says) in [
            ("", "EOF"),
            ("{", "EOF"),
            ("[]", "invalid"),
            (r#"{"key":"k"}"#, "neither value"),
            (r#"{"value":"v"}"#, "neither key"),
            (r#"{"key":"k","key_base64":"aw==","value":"v"}"#, "both key"),
            (r#"{"key":"k","value":1}"#, "invalid type"),
            (r#"{"key_base64":"!","value":"v"}"#, "key_base64"),
            (r#"{"key":"k","value":"v"} x"#, "trailing"),
        ] {
            let error = decode(line.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn the_longest_record_fits_a_line() {
        let mut line = Vec::new();
        encode(&vec![1; limits::KEY_BYTES_MAX], &vec![1; limits::VALUE_BYTES_MAX], &mut line);
        assert!(line.len() <= LINE_BYTES_MAX, "{}", line.len());
    }

    proptest! {
        #[test]
        fn every_record_comes_back(key: Vec<u8>, value: Vec<u8>) {
            let mut line = Vec::new();
            encode(&key, &value, &mut line);
            prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            let (k, v) = decode(&line).unwrap();
            prop_assert_eq!((&k[..], &v[..]), (&key[..], &value[..]));
        }
    }
}
