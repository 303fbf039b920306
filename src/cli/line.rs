//! Commands written as text: the original's batch lines, and lines at the prompt.
//!
//! A batch line is commands separated by `;`. The parser never interprets a value: what follows the key
//! of a `put` is the value, up to the end of the command, quotes and backslashes included, white space
//! around it excluded. So a value can't begin or end with white space here; `rushkv-cli put k VALUE`
//! takes any.

use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind;

use super::args::{Command, Put, PutCondition};
use super::go_flags;
use super::tool::{Fault, long_flags};

/// What a line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    Run(Box<Command>),
    Help,
    /// Text that answers `get --help` and the like.
    Text(String),
    Exit,
}

/// The commands of a batch line, without those that are empty. A `;` inside double quotes does not
/// separate; inside them, a backslash takes the next character's meaning, as in JSON. A quote that is
/// never closed is a character like any other.
pub fn split(line: &str) -> Vec<&str> {
    let bytes = line.as_bytes();
    let mut segments = Vec::new();
    let mut start = 0;
    let mut at = 0;
    let mut may_close = true;
    while at < bytes.len() {
        match bytes[at] {
            b'"' if may_close => match closing_quote(bytes, at + 1) {
                Some(close) => at = close,
                // Neither does any later one: what an open quote skips does not depend on where it is.
                None => may_close = false,
            },
            b';' => {
                segments.push(&line[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    segments.push(&line[start..]);
    segments.into_iter().map(str::trim).filter(|segment| !segment.is_empty()).collect()
}

fn closing_quote(bytes: &[u8], mut at: usize) -> Option<usize> {
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    None
}

/// Reads one command. `None`: the line is empty.
pub fn parse(line: &str) -> Result<Option<Line>, Fault> {
    let line = line.trim();
    let (word, rest) = first_word(line);
    let line = match word.to_ascii_lowercase().as_str() {
        "" => return Ok(None),
        "exit" | "quit" | "q" => Line::Exit,
        "help" | "h" | "?" => Line::Help,
        "put" if !matches!(rest, "--help" | "-h" | "-help") => Line::Run(Box::new(parse_put(rest)?)),
        word => parse_words(word, rest)?,
    };
    Ok(Some(line))
}

/// The first word, and what follows the white space after it.
fn first_word(text: &str) -> (&str, &str) {
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

fn parse_put(mut rest: &str) -> Result<Command, Fault> {
    let usage =
        |why: &str| Fault::Usage(format!("{why}; usage: put [--if-version N | --if-absent] KEY VALUE"));
    let mut condition = PutCondition::default();
    let key = loop {
        let (word, after) = first_word(rest);
        let flag = word.strip_prefix("--").or(word.strip_prefix('-')).unwrap_or("");
        rest = after;
        let version = match flag {
            "if-absent" => {
                condition.if_absent = true;
                continue;
            }
            "if-version" => {
                let (version, after) = first_word(rest);
                rest = after;
                version
            }
            _ if word == "--" => {
                let (key, after) = first_word(rest);
                rest = after;
                break key;
            }
            _ => match flag.strip_prefix("if-version=") {
                Some(version) => version,
                None => break word,
            },
        };
        let version = version.parse().map_err(|_| usage("a version is a number"))?;
        condition.if_version = Some(version);
    };
    if condition.if_absent && condition.if_version.is_some() {
        return Err(usage("--if-version and --if-absent exclude each other"));
    }
    if key.is_empty() {
        return Err(usage("the key is missing"));
    }
    if rest.is_empty() {
        return Err(usage("the value is missing"));
    }
    let value = Some(OsString::from(rest));
    Ok(Command::Put(Put { key: key.into(), value, value_file: None, condition, raw: true }))
}

/// A command without the program's own flags: those were given when it started.
#[derive(Debug, Parser)]
#[command(name = "", no_binary_name = true, disable_help_subcommand = true, infer_subcommands = false)]
struct Words {
    #[command(subcommand)]
    command: Command,
}

fn parse_words(word: &str, rest: &str) -> Result<Line, Fault> {
    let definition = <Words as clap::CommandFactory>::command();
    if definition.find_subcommand(word).is_none() {
        return Err(Fault::Usage(format!("{word:?} is no command; help lists them")));
    }
    let known = long_flags(&definition);
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let words = std::iter::once(word).chain(rest.split_whitespace()).map(OsString::from);
    // The command stands where normalising expects the program's name.
    match Words::try_parse_from(go_flags::normalise(words, &known)) {
        Ok(words) => Ok(Line::Run(Box::new(words.command))),
        Err(error) if error.kind() == ErrorKind::DisplayHelp => Ok(Line::Text(error.to_string())),
        Err(error) => {
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let text = text.split("\n\nFor more information").next().unwrap_or(text);
            Err(Fault::Usage(text.trim_end().to_string()))
        }
    }
}

/// The help of the prompt and of batch lines.
pub const HELP: &str = "\
Commands:
  put KEY VALUE        set a key; the value is the rest of the line
                       put --if-absent KEY VALUE, put --if-version N KEY VALUE
  get KEY              print its value            (--stale)
  delete KEY, del KEY  remove it                  (--if-version N)
  exists KEY           tell whether it is there
  scan [PREFIX]        list keys and values       (--start, --end, --limit N, --keys-only, --reverse)
  cluster              list the nodes
  stats                keys, bytes, disk, health
  bench, benchmark     measure                    (bench --help)
  import FILE          write the keys of a file   (import --help)
  export FILE          save keys to a file        (export --help)
  help, h              this
  exit, quit, q        leave";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Get, Scan};
    use proptest::prelude::*;

    #[test]
    fn only_balanced_quotes_shield_a_semicolon() {
        for (line, want) in [
            ("put a 1; get a", &["put a 1", "get a"][..]),
            ("put a 1;get a;", &["put a 1", "get a"]),
            (" ; ;; ", &[]),
            ("", &[]),
            (r#"put a "x;y"; get a"#, &[r#"put a "x;y""#, "get a"]),
            (r#"put a {"n":"x;y","m":"z"};get a"#, &[r#"put a {"n":"x;y","m":"z"}"#, "get a"]),
            (r#"put a 5" pipe; get a"#, &[r#"put a 5" pipe"#, "get a"]),
            (r#"put a "say \"hi; there\""; get a"#, &[r#"put a "say \"hi; there\"""#, "get a"]),
            (r#"put a "x;y" "; get a"#, &[r#"put a "x;y" ""#, "get a"]),
            (r#"put a \"; get a"#, &[r#"put a \""#, "get a"]),
            (r#"put a "\"; get a"#, &[r#"put a "\""#, "get a"]),
            ("put a 'x;y'", &["put a 'x", "y'"]),
            ("put ключ знач;get ключ", &["put ключ знач", "get ключ"]),
            ("\"", &["\""]),
            ("\\", &["\\"]),
        ] {
            assert_eq!(split(line), want, "{line}");
        }
    }

    fn put(key: &str, value: &str, condition: PutCondition) -> Line {
        let value = Some(value.into());
        Line::Run(Box::new(Command::Put(Put {
            key: key.into(),
            value,
            value_file: None,
            condition,
            raw: true,
        })))
    }

    #[test]
    fn a_value_is_the_raw_rest() {
        let none = PutCondition::default();
        let version = PutCondition { if_version: Some(7), if_absent: false };
        let absent = PutCondition { if_version: None, if_absent: true };
        for (line, key, value, condition) in [
            ("put k v", "k", "v", none),
            ("  PUT   k   two  words  ", "k", "two  words", none),
            (r#"put user:1 {"name":"Alice","age":30}"#, "user:1", r#"{"name":"Alice","age":30}"#, none),
            (r#"put k "quoted""#, "k", r#""quoted""#, none),
            ("put k --if-absent", "k", "--if-absent", none),
            ("put k -", "k", "-", none),
            ("put --if-absent k v", "k", "v", absent),
            ("put -if-version 7 k v", "k", "v", version),
            ("put --if-version=7 k v", "k", "v", version),
            ("put -- --if-absent v", "--if-absent", "v", none),
            ("put -k v", "-k", "v", none),
            ("put k\tv\tw", "k", "v\tw", none),
        ] {
            assert_eq!(parse(line).unwrap(), Some(put(key, value, condition)), "{line}");
        }
    }

    #[test]
    fn other_commands_are_words() {
        let get = |key: &str, stale| Line::Run(Box::new(Command::Get(Get { key: key.into(), stale })));
        let run = |command| Line::Run(Box::new(command));
        for (line, want) in [
            ("get k", Some(get("k", false))),
            ("GET k --stale", Some(get("k", true))),
            ("get -stale k", Some(get("k", true))),
            ("get -- -k", Some(get("-k", false))),
            ("scan", Some(run(Command::Scan(Scan::default())))),
            (
                "scan user: -limit=3 --keys-only",
                Some(run(Command::Scan(Scan {
                    positional: Some("user:".into()),
                    limit: Some(3),
                    keys_only: true,
                    ..Scan::default()
                }))),
            ),
            ("cluster", Some(run(Command::Cluster))),
            ("stats", Some(run(Command::Stats))),
            ("q", Some(Line::Exit)),
            ("Quit", Some(Line::Exit)),
            ("h", Some(Line::Help)),
            ("   ", None),
        ] {
            assert_eq!(parse(line).unwrap(), want, "{line}");
        }
        assert!(matches!(parse("get --help"), Ok(Some(Line::Text(_)))));
        assert!(matches!(parse("put --help"), Ok(Some(Line::Text(_)))));
        for line in
            ["benchmark", "bench put -n 5", "del k", "delete k --if-version 2", "export f", "import f"]
        {
            assert!(matches!(parse(line), Ok(Some(Line::Run(_)))), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, says) in [
            ("put", "the key is missing"),
            ("put k", "the value is missing"),
            ("put --if-version x k v", "a version is a number"),
            ("put --if-version 1 --if-absent k v", "exclude each other"),
            ("get", "required"),
            ("get a b", "unexpected argument"),
            ("scan --limit x", "invalid value"),
            ("frobnicate", "is no command"),
        ] {
            let fault = parse(line).unwrap_err();
            assert!(fault.to_string().contains(says), "{line}: {fault}");
            assert_eq!(fault.exit(), 2, "{line}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_nothing_is_lost(line in "[a-z\"\\\\; \t{}:é-]{0,60}") {
            let segments = split(&line);
            for segment in &segments {
                let _ = parse(segment);
            }
            let kept: String = segments.concat().chars().filter(|c| !c.is_whitespace() && *c != ';').collect();
            let given: String = line.chars().filter(|c| !c.is_whitespace() && *c != ';').collect();
            prop_assert_eq!(kept, given);
        }

        #[test]
        fn arbitrary_text_does_not_panic(line in any::<String>()) {
            for segment in split(&line) {
                let _ = parse(segment);
            }
        }

        #[test]
        fn puts_come_out_as_they_went_in(puts in prop::collection::vec(
            ("[a-z:]{1,8}", "[a-z0-9{}:,=\\[\\] ]{0,12}", any::<bool>()), 1..6)) {
            // Values as JSON strings or as bare text without quotes and semicolons.
            let puts: Vec<(String, String)> = puts
                .into_iter()
                .map(|(key, text, quote)| {
                    let value = if quote { serde_json::to_string(&format!("{text};\"{text}")).unwrap() } else { format!("x{}y", text) };
                    (key, value)
                })
                .collect();
            let line: Vec<String> = puts.iter().map(|(key, value)| format!("put {key} {value}")).collect();
            let line = line.join(" ;");
            let segments = split(&line);
            prop_assert_eq!(segments.len(), puts.len());
            for (segment, (key, value)) in segments.into_iter().zip(puts) {
                prop_assert_eq!(parse(segment).unwrap(), Some(put(&key, &value, PutCondition::default())));
            }
        }
    }
}
