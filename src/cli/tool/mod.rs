//! What both tools share: their common flags, how they print, how they fail, and the texts that
//! packages carry (manual pages and completions).

pub mod fault;
pub mod generate;
pub mod options;
pub mod printer;
pub mod table;
pub mod text;

pub use fault::{EXIT_PIPE, Fault, Outcome};
pub use options::Common;
pub use printer::{Format, Printer};
pub use table::{Cell, Column};

use std::ffi::OsString;

use super::go_flags;

/// Parses a command line that may have Go-style flags. What clap has to say is printed, and the exit
/// code is returned: 0 for help and version, 2 for a wrong command line.
pub fn parse<A: clap::Parser>(
    args: impl IntoIterator<Item = OsString>,
    printer: &mut Printer,
) -> Result<A, u8> {
    let command = A::command();
    let known = long_flags(&command);
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    A::try_parse_from(go_flags::normalise(args, &known)).map_err(|error| {
        let is_error = error.use_stderr();
        // Nothing is left to tell if this fails too.
        let _ = printer.rendered(&error.render(), is_error);
        u8::from(is_error) * fault::EXIT_USAGE
    })
}

/// Every long flag of `command` and of its subcommands.
pub fn long_flags(command: &clap::Command) -> Vec<String> {
    let mut names: Vec<String> = vec!["help".into(), "version".into()];
    let mut todo = vec![command];
    while let Some(command) = todo.pop() {
        names.extend(command.get_arguments().filter_map(|arg| arg.get_long()).map(String::from));
        todo.extend(command.get_subcommands());
    }
    names.sort();
    names.dedup();
    names
}

/// Runs a tool's future to its end, on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Fault> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Fault::local("starting", error))?;
    Ok(runtime.block_on(future))
}
