//! The command line of rushkv-cli. The same commands are understood in batch lines and at the prompt,
//! see [`super::line`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use super::tool::{self, Common, text};
use crate::client::Precondition;

const EXAMPLES: &str = r#"Examples:
  rushkv-cli put user:1 '{"name":"Alice","age":30}'
  rushkv-cli get user:1
  rushkv-cli put photo --value-file photo.jpg --if-absent
  rushkv-cli scan --prefix user: --limit 10 -o json
  rushkv-cli export --prefix user: users.jsonl
  rushkv-cli import users.jsonl --resume
  rushkv-cli -server=localhost:8080 -batch -commands="put k 1; get k; exists other"
  rushkv-cli -batch --at-once 256 < commands.txt
  rushkv-cli                       (a prompt; help tells its commands)

Flags may be written with one dash, as Go programs take them.

In a batch line commands are separated by `;`. A value is the raw rest of its command, quotes
and all; a `;` inside balanced double quotes does not separate. Every command runs, whatever
becomes of the others; the exit code is that of the first one that failed."#;

/// Put, get and scan keys of a RushKV cluster; load, save and measure it.
#[derive(Debug, Clone, Parser)]
#[command(name = "rushkv-cli", version, max_term_width = 100, after_long_help = format!("{}\n\n{}", EXAMPLES, tool::fault::exit_code_help()))]
#[command(after_help = "--help tells more, with examples and exit codes.")]
pub struct Args {
    #[command(flatten)]
    pub common: Common,

    /// Run the commands of --commands, or, without that, each line of stdin
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = super::go_flags::boolean, action = clap::ArgAction::Set)]
    pub batch: bool,

    /// Commands for --batch, separated by `;`
    #[arg(long, value_name = "LINE", allow_hyphen_values = true)]
    pub commands: Option<String>,

    /// Run up to N commands of a batch at once; puts, gets and deletes among them in no order
    ///
    /// What they print stands in their order all the same, and is kept until it is their turn. Any other command waits
    /// for those before it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub at_once: Option<u16>,

    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Command {
    /// Set a key
    Put(Put),
    /// Print a key's value; exit code 3 if there is no such key
    Get(Get),
    /// Remove a key; exit code 3 if there is no such key
    #[command(visible_alias = "del")]
    Delete(Delete),
    /// Tell whether there is such a key: exit code 0 yes, 3 no, anything else: can't tell
    Exists(Exists),
    /// List keys and values in key order
    Scan(Scan),
    /// List the cluster's nodes
    Cluster,
    /// Keys, bytes, disk and health of the cluster
    Stats,
    /// Measure puts, gets, batches and scans
    ///
    /// Closed loop: each client makes its next call when the last one is answered. Keys are PREFIX and a
    /// number; they are removed afterwards, whatever was in them. As a table or JSON with a histogram of the latencies.
    #[command(visible_alias = "benchmark")]
    Bench(Bench),
    /// Write the keys and values of a file
    ///
    /// Reads JSON lines: {"key":"k","value":"v"}, with "key_base64" or "value_base64" for what is not UTF-8;
    /// other fields are ignored. A key that occurs twice keeps its last value.
    ///
    /// A batch whose outcome is unknown is put again after its deadline: putting the same value twice
    /// leaves the same value, only versions count on. What somebody else writes to the same keys in the
    /// meantime may be overwritten: do not import over keys that others write.
    ///
    /// While it runs, FILE.progress says how much is surely written; --resume goes on from there. It is
    /// removed at the end.
    Import(Import),
    /// Save keys and values to a file
    ///
    /// Writes JSON lines in key order, as import reads them. Every key that is there from beginning to end
    /// is in it; of keys written meanwhile, it has the old state or the new one.
    Export(Export),
}

#[derive(Debug, Clone, PartialEq, ClapArgs)]
pub struct Put {
    /// The key
    pub key: OsString,
    /// The value; `-` reads it from stdin
    #[arg(required_unless_present = "value_file", allow_hyphen_values = true)]
    pub value: Option<OsString>,
    /// Read the value from this file; `-` is stdin
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    pub value_file: Option<PathBuf>,
    #[command(flatten)]
    pub condition: PutCondition,
    /// The value is taken from the command line as it is, even `-`.
    #[arg(skip)]
    pub raw: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, ClapArgs)]
pub struct PutCondition {
    /// Write only if the key is there, with this version
    #[arg(long, value_name = "VERSION", conflicts_with = "if_absent")]
    pub if_version: Option<u64>,
    /// Write only if there is no such key
    #[arg(long)]
    pub if_absent: bool,
}

impl PutCondition {
    pub fn precondition(self) -> Precondition {
        match (self.if_version, self.if_absent) {
            (Some(version), _) => Precondition::Version(version),
            (None, true) => Precondition::Absent,
            (None, false) => Precondition::None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, ClapArgs)]
pub struct Get {
    /// The key
    pub key: OsString,
    /// Take what the asked node has, which may lag behind
    #[arg(long)]
    pub stale: bool,
}

#[derive(Debug, Clone, PartialEq, ClapArgs)]
pub struct Delete {
    /// The key
    pub key: OsString,
    /// Remove only if the key has this version
    #[arg(long, value_name = "VERSION")]
    pub if_version: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, ClapArgs)]
pub struct Exists {
    /// The key
    pub key: OsString,
}

#[derive(Debug, Clone, Default, PartialEq, ClapArgs)]
pub struct Scan {
    /// Keys that start with this; the same as --prefix
    #[arg(value_name = "PREFIX", conflicts_with_all = ["prefix", "start", "end"])]
    pub positional: Option<OsString>,
    /// Keys that start with this
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["start", "end"])]
    pub prefix: Option<OsString>,
    /// First key of the range
    #[arg(long, value_name = "KEY")]
    pub start: Option<OsString>,
    /// End of the range, itself not in it
    #[arg(long, value_name = "KEY")]
    pub end: Option<OsString>,
    /// At most this many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Leave the values out
    #[arg(long)]
    pub keys_only: bool,
    /// From the end to the beginning
    #[arg(long)]
    pub reverse: bool,
    /// Take what the asked node has, which may lag behind
    #[arg(long)]
    pub stale: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    Put,
    /// Linearizable
    Get,
    /// As many puts as gets, unless --read-percent says otherwise
    Mixed,
    /// Puts of --records keys together
    Batch,
    /// --records keys one after another, with their values
    Scan,
}

#[derive(Debug, Clone, PartialEq, ClapArgs)]
pub struct Bench {
    #[arg(value_enum, default_value = "mixed")]
    pub work: Work,
    /// Calls at once
    #[arg(long, short = 'c', default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub clients: u32,
    /// Bytes of each value: 128, 4k
    #[arg(long, default_value = "128", value_name = "BYTES", value_parser = value_size)]
    pub value_size: u64,
    /// How many different keys; no more than --count [default: 100000, with --check 10]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub keys: Option<u64>,
    /// Share of gets in mixed work, and among the calls on single keys of --check [default: 50]
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_percent: Option<u8>,
    /// Keys of a batch or a scan [default: 128 of a batch, 100 of a scan]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub records: Option<u64>,
    /// Puts and gets are of few keys most of the time (zipfian, 0.99), instead of all alike
    #[arg(long, conflicts_with = "check")]
    pub zipf: bool,
    /// How long to measure
    #[arg(long, short = 'd', default_value = "10s", value_name = "TIME", value_parser = text::duration)]
    pub duration: Duration,
    /// Stop after this many calls, even before --duration
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Write, read, delete and write on conditions, by single calls and batches, and scan, and check afterwards that all
    /// answers are those of a store that never fails (linearizability); exit code 7 if not. To be run while nodes are
    /// killed and cables pulled
    #[arg(long)]
    pub check: bool,
    /// Connections to each server
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub connections: u8,
    /// What the keys start with
    #[arg(long, default_value = "bench:")]
    pub prefix: String,
    /// Leave the keys there
    #[arg(long)]
    pub keep: bool,
    /// Go on although there are keys with that prefix: those of the same numbers are overwritten, and removed unless
    /// --keep; others stay
    #[arg(long)]
    pub reuse: bool,
}

fn value_size(text: &str) -> Result<u64, String> {
    let bytes = text::bytes(text)?;
    let limit = crate::limits::VALUE_BYTES_MAX as u64;
    if bytes > limit {
        return Err(format!("a value has at most {limit} bytes"));
    }
    Ok(bytes)
}

#[derive(Debug, Clone, PartialEq, ClapArgs)]
pub struct Import {
    /// The file; `-` is stdin
    pub file: PathBuf,
    /// Go on where an interrupted import of the same file stopped (noted in FILE.progress)
    #[arg(long)]
    pub resume: bool,
    /// Batches under way at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub in_flight: u8,
    /// Keys in a batch
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub batch_keys: u16,
    /// How long a batch that fails is tried again
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = text::duration)]
    pub retry_for: Duration,
}

#[derive(Debug, Clone, PartialEq, ClapArgs)]
pub struct Export {
    /// The file; `-` is stdout
    pub file: PathBuf,
    /// Keys that start with this
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<OsString>,
    /// Go on after the last whole line of the file
    #[arg(long, conflicts_with = "force")]
    pub resume: bool,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definitions_are_sound() {
        Args::command().debug_assert();
    }

    fn help(words: &[&str]) -> String {
        let error = Args::command().term_width(100).try_get_matches_from(words).unwrap_err();
        error.to_string()
    }

    #[test]
    fn help_reads_as_written() {
        insta::assert_snapshot!("help", help(&["rushkv-cli", "--help"]));
        for command in ["put", "get", "delete", "exists", "scan", "bench", "import", "export"] {
            insta::assert_snapshot!(format!("help_{command}"), help(&["rushkv-cli", command, "--help"]));
        }
    }
}
