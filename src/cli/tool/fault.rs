//! How a command ends: its exit code, and what is said when it fails.

use std::fmt;
use std::io;

use crate::client::UNREACHED;
use crate::error::{Error, Happened, Reason, TABLE};

/// The command line is wrong.
pub const EXIT_USAGE: u8 = 2;
/// What was to be checked is wrong.
pub const EXIT_WRONG: u8 = 7;
/// Something on this side failed: a file, the terminal.
pub const EXIT_LOCAL: u8 = 1;

/// Of a batch whose output nobody reads any more, as a shell says that SIGPIPE ended a program: the commands after it were not run.
pub const EXIT_PIPE: u8 = 128 + 13;

/// Why a command failed.
#[derive(Debug)]
pub enum Fault {
    /// The call did.
    Call(Error),
    /// The command is not one, or its arguments are wrong.
    Usage(String),
    /// Something on this side.
    Local(String),
    /// Nobody reads our output any more: no fault of anybody, and nothing to say.
    Pipe,
}

/// The exit code of a command that did its work; it may still be an answer, like "no" to `exists`.
pub type Outcome = Result<u8, Fault>;

impl Fault {
    /// A failure on this side, of `doing` something.
    pub fn local(doing: impl fmt::Display, error: io::Error) -> Fault {
        Fault::Local(format!("{doing}: {error}"))
    }

    pub fn not_found(message: impl Into<String>) -> Fault {
        Fault::Call(Error::new(Reason::NotFound, message))
    }

    pub fn exit(&self) -> u8 {
        match self {
            Fault::Call(error) => error.reason.row().exit,
            Fault::Usage(_) => EXIT_USAGE,
            Fault::Local(_) => EXIT_LOCAL,
            Fault::Pipe => 0,
        }
    }

    /// The reason's name, as in the table of errors.
    pub fn reason(&self) -> &'static str {
        match self {
            Fault::Call(error) => error.reason.row().name,
            Fault::Usage(_) => Reason::InvalidArgument.row().name,
            Fault::Local(_) => "LOCAL",
            Fault::Pipe => "PIPE",
        }
    }

    /// What to do about it, if the table knows more than the message says.
    pub fn way_out(&self) -> Option<&'static str> {
        match self {
            Fault::Call(error) => match error.reason {
                // The message has it.
                Reason::NotFound
                | Reason::InvalidArgument
                | Reason::TooLarge
                | Reason::PreconditionFailed
                | Reason::ClusterRefused => None,
                _ if error.metadata.contains_key(UNREACHED) && error.happened() == Happened::No => {
                    Some("is rushkv running there? another node is named with -s, or in RUSHKV_SERVER")
                }
                reason => Some(reason.row().way_out),
            },
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Call(error) => write!(f, "{error}"),
            Fault::Usage(message) | Fault::Local(message) => f.write_str(message),
            Fault::Pipe => f.write_str("nobody reads the output"),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Call(error)
    }
}

/// The exit codes for the tools' help, from the table of errors.
pub fn exit_code_help() -> String {
    let mut lines = vec!["Exit codes:".to_string(), "  0  done".to_string()];
    lines.push("  1  something on this side failed (a file, the terminal), or an internal error".into());
    for code in 2..=6 {
        let names: Vec<&str> = TABLE.iter().filter(|row| row.exit == code).map(|row| row.name).collect();
        lines.push(format!("  {code}  {}", names.join(", ")));
    }
    lines.push(format!("  {EXIT_WRONG}  rushkv-cli bench --check found an answer that is wrong"));
    lines.push(format!(
        "  {EXIT_PIPE}  nobody reads the output of a batch of rushkv-cli any more: what comes after is not run"
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_of_the_table_is_in_the_help() {
        let help = exit_code_help();
        for row in TABLE.iter().filter(|row| row.exit != EXIT_LOCAL) {
            let line =
                help.lines().find(|line| line.trim_start().starts_with(&row.exit.to_string())).unwrap();
            assert!(line.contains(row.name), "{line}");
        }
    }
}
