//! What the READMEs say of the program is what the program is: errors, configuration keys, limits,
//! commands of the Makefile, links.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rushkv::config::keys::{KEYS, markdown_table};
use rushkv::error::TABLE;
use rushkv::limits;

const ENGLISH: &str = include_str!("../README.md");
const CHINESE: &str = include_str!("../README.zh-CN.md");

/// The cells of every table row whose first cell is code, white space trimmed.
fn rows(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

/// `InvalidArgument` as the wire's documents write it: `INVALID_ARGUMENT`.
fn screaming(code: tonic::Code) -> String {
    let mut out = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

/// A row's facts, as both languages have them.
fn facts(row: &rushkv::error::Row) -> [String; 4] {
    [
        format!("`{}`", row.name),
        format!("`{}`", screaming(row.grpc)),
        row.happened.as_str().to_string(),
        row.exit.to_string(),
    ]
}

#[test]
fn the_table_of_errors_is_the_programs() {
    let table: Vec<Vec<&str>> = rows(ENGLISH).into_iter().filter(|row| row.len() == 6).collect();
    let expected: Vec<Vec<String>> = TABLE
        .iter()
        .map(|row| facts(row).into_iter().chain([row.meaning.to_string(), row.way_out.to_string()]).collect())
        .collect();
    assert_eq!(table, expected);
}

#[test]
fn the_chinese_table_of_errors_has_the_same_facts() {
    let table: Vec<Vec<&str>> = rows(CHINESE).into_iter().filter(|row| row.len() == 6).collect();
    assert_eq!(table.len(), TABLE.len());
    for (seen, row) in table.iter().zip(&TABLE) {
        assert_eq!(seen[..4], facts(row));
        assert!(!seen[4].is_empty() && !seen[5].is_empty(), "{seen:?}");
    }
}

#[test]
fn the_table_of_keys_is_the_programs() {
    assert!(ENGLISH.contains(&markdown_table()), "rushkv --generate keys prints:\n{}", markdown_table());
    let expected: Vec<[String; 2]> =
        KEYS.iter().map(|key| [format!("`{}`", key.name), format!("`{}`", key.default)]).collect();
    let table: Vec<Vec<&str>> = rows(CHINESE).into_iter().filter(|row| row.len() == 4).collect();
    let seen: Vec<[String; 2]> = table.iter().map(|row| [row[0].to_string(), row[1].to_string()]).collect();
    assert_eq!(seen, expected);
    assert!(table.iter().all(|row| !row[3].is_empty()));
}

#[test]
fn the_limits_are_the_programs() {
    assert_eq!(
        (
            limits::KEY_BYTES_MAX,
            limits::VALUE_BYTES_MAX,
            limits::BATCH_OPERATIONS_MAX,
            limits::MESSAGE_BYTES_MAX
        ),
        (4 << 10, 1 << 20, 4096, 3 << 20),
        "the READMEs name these"
    );
    for part in ["4 KiB", "1 MiB", "4096", "3 MiB"] {
        assert!(ENGLISH.contains(part) && CHINESE.contains(part), "{part}");
    }
}

#[test]
fn both_readmes_have_the_same_tables_and_sections() {
    // What stands in code in a row's first cell is the same in any language.
    let skeleton = |text: &str| -> Vec<(String, usize)> {
        let code = |cell: &str| cell.split('`').skip(1).step_by(2).collect::<Vec<_>>().join(" ");
        let rows = rows(text);
        rows.iter().map(|row| (code(row[0]), row.len())).filter(|(code, _)| !code.is_empty()).collect()
    };
    assert_eq!(skeleton(CHINESE), skeleton(ENGLISH));
    let sections = |text: &str| text.lines().filter(|line| line.starts_with("## ")).count();
    assert_eq!(sections(CHINESE), sections(ENGLISH));
}

#[test]
fn every_make_command_named_is_there() {
    let makefile = include_str!("../Makefile");
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name)
        .filter(|name| name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-'))
        .collect();
    for (name, text) in [
        ("README.md", ENGLISH),
        ("README.zh-CN.md", CHINESE),
        ("CONTRIBUTING.md", include_str!("../CONTRIBUTING.md")),
        ("tests/system/README.md", include_str!("system/README.md")),
    ] {
        for found in text.split("`make ").skip(1) {
            let end = found.find(|letter: char| !letter.is_ascii_lowercase() && letter != '-').unwrap();
            assert!(targets.contains(&found[..end]), "{name}: make {}", &found[..end]);
        }
    }
}

#[test]
fn every_link_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/system/README.md"]
    {
        let text = fs::read_to_string(root.join(file)).unwrap();
        let directory = root.join(file).parent().unwrap().to_path_buf();
        for found in text.split("](").skip(1) {
            let target = &found[..found.find(')').unwrap()];
            if target.starts_with("http") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            if !path.is_empty() {
                assert!(directory.join(path).exists(), "{file}: {target}");
            } else {
                let slug = |line: &str| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
                let there =
                    text.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor);
                assert!(there, "{file}: {target}");
            }
        }
    }
}
