//! The daemon's command line: the original's flags as Go reads them, and a few of our own.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

use crate::config::Flags;

/// What `--generate` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Generate {
    /// The man page.
    Man,
    /// Completions for a shell.
    Bash,
    Zsh,
    Fish,
    /// The packaged rushkv.toml: every key, with its default.
    Config,
    /// The table of keys, in Markdown.
    Keys,
    /// The compiled protocol, as `grpcurl -protoset` takes it.
    Protoset,
}

const EXAMPLES: &str = "\
Examples:
  rushkv -id=node1 -addr=localhost -port=8080 -data=./data/node1
  rushkv --config /etc/rushkv/rushkv.toml --check-config
  rushkv -port=9090 --set storage.engine=sled --print-config
  rushkv --generate config > rushkv.toml
  RUSHKV__LOG__LEVEL=debug rushkv -data=/tmp/try

Configuration, the later over the earlier: defaults, the file, conf.d/*.toml beside it in the order
of their names, RUSHKV__SECTION__KEY variables, flags. The file is the one of --config; without
--config it is /etc/rushkv/rushkv.toml, if it is there and none of -id, -addr, -port and -data is
given. Without any file the node is node1 and keeps its data in ./data.

Signals: TERM and INT finish the calls under way, then stop; a second one stops at once. HUP reads
the configuration again.

Exit codes: 0 stopped as asked, 1 failed, 2 wrong usage, 78 wrong configuration.";

/// RushKV's daemon: one node of a distributed key-value store.
///
/// Flags may be written with one dash or two.
#[derive(Debug, Clone, Parser)]
#[command(name = "rushkv", version, after_long_help = EXAMPLES, after_help = "--help tells more.")]
pub struct Args {
    /// This node's name [default: node1 without a file, the host name with one]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,

    /// Host name or IP address to serve on [default: localhost]
    #[arg(long, value_name = "HOST")]
    addr: Option<String>,

    /// Port to serve gRPC on; 0 is any free one [default: 8080]
    #[arg(long, value_name = "PORT")]
    port: Option<String>,

    /// Data directory [default: ./data without a file, /var/lib/rushkv with one]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,

    /// Configuration file; the *.toml of conf.d beside it are read after it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Set any key of the configuration, such as storage.engine=sled; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Check the configuration, tell every problem at once, and exit: 0 if it holds, 78 if not
    #[arg(long)]
    pub check_config: bool,

    /// Print every key with its value and where that came from, and exit
    #[arg(long, conflicts_with = "check_config")]
    pub print_config: bool,

    /// For packaging: write a man page, completions or the default file to standard output
    #[arg(long, value_name = "KIND", hide = true)]
    pub generate: Option<Generate>,
}

impl Args {
    /// Reads the arguments, the program's name first.
    pub fn parse_from(argv: impl IntoIterator<Item = OsString>) -> Result<Args, clap::Error> {
        Args::try_parse_from(two_dashes(argv))
    }

    /// The flags that set a value.
    pub fn flags(&self) -> Flags {
        Flags {
            id: self.id.clone(),
            addr: self.addr.clone(),
            port: self.port.clone(),
            data: self.data.clone(),
            set: self.set.clone(),
        }
    }
}

/// Go takes `-port=1` and `--port=1` for the same; clap reads the first as `-p` with a value. So each
/// name of more than a letter gets its second dash: what is not ours is then refused by its whole
/// name. Everything after `--` is left alone.
fn two_dashes(argv: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut ended = false;
    argv.into_iter()
        .map(|arg| {
            ended |= arg == "--";
            let name = arg.to_str().filter(|_| !ended).and_then(|text| text.strip_prefix('-'));
            let name = name.map(|rest| rest.split_once('=').map_or(rest, |(name, _)| name));
            match name {
                Some(name) if name.len() > 1 && !name.starts_with('-') => {
                    let mut long = OsString::from("-");
                    long.push(&arg);
                    long
                }
                _ => arg,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::parse_from(["rushkv"].into_iter().chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        for line in [
            "-id=node1 -addr=localhost -port=8080 -data=./data/node1",
            "--id=node1 --addr=localhost --port=8080 --data=./data/node1",
            "-id node1 -addr localhost -port 8080 -data ./data/node1",
            "--id node1 -addr=localhost --port 8080 -data=./data/node1",
        ] {
            let flags = parse(line).expect(line).flags();
            assert_eq!(flags.id.as_deref(), Some("node1"), "{line}");
            assert_eq!(flags.addr.as_deref(), Some("localhost"), "{line}");
            assert_eq!(flags.port.as_deref(), Some("8080"), "{line}");
            assert_eq!(flags.data.as_deref(), Some("./data/node1"), "{line}");
            assert!(flags.is_original(), "{line}");
        }
        let args = parse("-config=/x.toml -check-config -set zone=a -set zone=b").expect("ours too");
        assert!(args.check_config);
        assert_eq!(args.flags().set, ["zone=a", "zone=b"]);
        assert!(!args.flags().is_original());
        assert_eq!(parse("-id=").expect("empty").flags().id.as_deref(), Some(""));
    }

    #[test]
    fn what_is_not_a_flag_is_refused() {
        for line in ["-prot=1", "serve", "-p 1", "--port", "-id=a -id=b", "--check-config --print-config"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("-prot=1").expect_err("unknown").to_string().contains("--port"));
    }

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
    }
}
