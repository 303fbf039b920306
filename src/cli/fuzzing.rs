//! For fuzzing: lines at the prompt, in batches and in files of records are read or refused.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use super::{go_flags, jsonl, line};

/// A batch line, and each command in it.
pub fn line(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let mut read = true;
    for command in line::split(&text) {
        assert!(!command.is_empty() && command.trim() == command);
        if let Err(fault) = line::parse(command) {
            assert!(!fault.to_string().is_empty());
            read = false;
        }
    }
    read
}

/// Arguments between zero bytes, as Go takes them: none is lost, and nothing is done twice.
pub fn flags(input: &[u8]) -> bool {
    let words = || input.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
    let once = go_flags::normalise(words(), &["server", "batch", "if-version"]);
    assert_eq!(once.len(), words().count());
    assert_eq!(go_flags::normalise(once.clone(), &["server", "batch", "if-version"]), once);
    true
}

/// A line of a file of records.
pub fn record(input: &[u8]) -> bool {
    let Ok((key, value)) = jsonl::decode(input) else { return false };
    let mut written = Vec::new();
    jsonl::encode(&key, &value, &mut written);
    assert_eq!(jsonl::decode(&written), Ok((key, value)));
    true
}

pub fn line_seeds() -> Vec<Vec<u8>> {
    let lines = [
        "put k v; get k; delete k; exists k",
        "put --if-version 3 k \"a;b\"; put --if-absent -- -k \\\"",
        "scan p --limit 3 --keys-only --reverse; scan --start a --end b",
        "get --help; cluster; stats; help; q; bench -c 2 -d 1s; import f.jsonl; export -",
    ];
    lines.iter().map(|line| line.as_bytes().to_vec()).collect()
}

pub fn flags_seeds() -> Vec<Vec<u8>> {
    vec![b"rushkv-cli\0-server=a:1\0-batch\0put k v\0--\0-server".to_vec(), b"p\0-h\0-x=1\0--batch".to_vec()]
}

pub fn record_seeds() -> Vec<Vec<u8>> {
    let lines = [
        r#"{"key":"k","value":"v"}"#,
        r#"{"key_base64":"AP8=","value_base64":""}"#,
        r#"{"key":"\ud83d\ude00\n","value":"v","more":[1,{"a":null}]}"#,
    ];
    lines.iter().map(|line| line.as_bytes().to_vec()).collect()
}
