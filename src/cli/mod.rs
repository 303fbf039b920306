//! rushkv-cli: commands for data.
//!
//! Three ways in, one set of commands: subcommands, the original's batch lines, and its prompt. Stdout
//! carries data, stderr what is said about it, and the exit code tells failures apart by the table of
//! errors.

mod args;
mod at_once;
mod bench;
mod data;
mod export;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod go_flags;
mod histogram;
mod import;
mod info;
mod jsonl;
mod line;
pub mod load;
mod progress;
mod repl;
#[cfg(test)]
pub(crate) mod tests;
pub mod tool;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::client::Client;
use args::{Args, Command};
use line::Line;
use tool::{Fault, Outcome, Printer};

/// The program: reads the process's arguments, ends with its exit code.
pub fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os().collect(), Printer::stdio()))
}

/// Runs one command line and returns its exit code.
pub fn run(args: Vec<OsString>, mut printer: Printer) -> u8 {
    let args: Args = match tool::parse(args, &mut printer) {
        Ok(args) => args,
        Err(exit) => return exit,
    };
    printer.set_format(args.common.output);
    if let Some(what) = args.common.generate {
        let text = tool::generate::generate(Args::command(), what);
        let printed = text.map_err(|error| Fault::local("generating", error)).and_then(|text| {
            printer.data(&text)?;
            printer.flush()?;
            Ok(0)
        });
        return printed.unwrap_or_else(|fault| fail(&mut printer, &fault));
    }
    let client = match args.common.client() {
        Ok(client) => client,
        Err(fault) => return fail(&mut printer, &fault),
    };
    let mut session = Session { client, printer, is_alone: false, is_batch: false };
    let at_once = args.at_once.map(usize::from);
    let ended = tool::block_on(async {
        session.is_batch = args.command.is_none();
        match (args.command, args.batch, args.commands) {
            (Some(_), _, _) if at_once.is_some() => {
                Err(Fault::Usage("--at-once is for a batch, not for one command".into()))
            }
            (Some(_), true, _) | (Some(_), _, Some(_)) => {
                Err(Fault::Usage("a batch has no subcommand; write its commands in -commands".into()))
            }
            (Some(command), false, None) => {
                session.is_alone = true;
                session.run(command).await
            }
            // The original needs -batch with -commands; that it is meant is clear without.
            (None, _, Some(commands)) => match at_once {
                Some(count) => at_once::run(&mut session, at_once::given(&commands)?, count).await,
                None => session.batch(&commands).await,
            },
            (None, false, None) if std::io::stdin().is_terminal() && at_once.is_none() => {
                session.is_batch = false;
                repl::run(&mut session).await
            }
            (None, is_batch, None) => match at_once {
                Some(count) => at_once::run(&mut session, at_once::stdin(is_batch), count).await,
                None => session.stdin(is_batch).await,
            },
        }
    });
    match ended.and_then(|ended| ended).and_then(|exit| session.printer.ended(exit)) {
        Ok(exit) => exit,
        Err(Fault::Pipe) if session.is_batch => tool::EXIT_PIPE,
        Err(fault) => fail(&mut session.printer, &fault),
    }
}

fn fail(printer: &mut Printer, fault: &Fault) -> u8 {
    printer.fault(fault);
    fault.exit()
}

/// What commands run with.
struct Session {
    client: Client,
    printer: Printer,
    /// This command is the only one: its output may be a value and nothing else.
    is_alone: bool,
    /// It is one of many that nobody watches: a failure says which.
    is_batch: bool,
}

/// What a failure in a batch names its command by: its first two words, of which the second is mostly a key.
fn about(command: &str) -> String {
    let words = command.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    words.chars().map(|one| if one.is_control() { char::REPLACEMENT_CHARACTER } else { one }).collect()
}

impl Session {
    async fn run(&mut self, command: Command) -> Outcome {
        let exit = match command {
            Command::Put(args) => data::put(self, args).await?,
            Command::Get(args) => data::get(self, args).await?,
            Command::Delete(args) => data::delete(self, args).await?,
            Command::Exists(args) => data::exists(self, args).await?,
            Command::Scan(args) => data::scan(self, args).await?,
            Command::Cluster => info::cluster(self).await?,
            Command::Stats => info::stats(self).await?,
            Command::Bench(args) => bench::run(self, args).await?,
            Command::Import(args) => import::run(self, args).await?,
            Command::Export(args) => export::run(self, args).await?,
        };
        self.printer.ended(exit)
    }

    /// Runs every command of a batch line; ends with the first failure's exit code.
    async fn batch(&mut self, line: &str) -> Outcome {
        let commands = line::split(line);
        if commands.is_empty() {
            return Err(Fault::Usage("-commands holds no command".into()));
        }
        let mut first_failure = 0;
        for command in commands {
            match self.line(command).await? {
                Some(exit) if first_failure == 0 => first_failure = exit,
                Some(_) => {}
                None => break,
            }
        }
        Ok(first_failure)
    }

    /// Runs the lines of stdin, each a batch line or a single command.
    async fn stdin(&mut self, is_batch: bool) -> Outcome {
        let mut first_failure = 0;
        let mut line = String::new();
        loop {
            line.clear();
            // Not locked for longer: a command may read stdin too.
            let read = std::io::stdin().read_line(&mut line);
            if read.map_err(|error| Fault::local("reading stdin", error))? == 0 {
                return Ok(first_failure);
            }
            let commands = if is_batch { line::split(&line) } else { vec![line.as_str()] };
            for command in commands {
                match self.line(command).await? {
                    Some(exit) if first_failure == 0 => first_failure = exit,
                    Some(_) => {}
                    None => return Ok(first_failure),
                }
            }
        }
    }

    /// Runs one command in text; `None`: it was `exit`. Failures are told, and are exit codes; only
    /// that nobody reads any more ends everything.
    async fn line(&mut self, text: &str) -> Result<Option<u8>, Fault> {
        let ran = match line::parse(text) {
            Ok(None) => Ok(0),
            Ok(Some(Line::Exit)) => return Ok(None),
            Ok(Some(Line::Help)) => self.printer.line(line::HELP).map(|()| 0),
            Ok(Some(Line::Text(text))) => self.printer.line(text.trim_end()).map(|()| 0),
            Ok(Some(Line::Run(command))) => Box::pin(self.run(*command)).await,
            Err(fault) => Err(fault),
        };
        self.printer.flush()?;
        match ran {
            Ok(exit) => Ok(Some(exit)),
            Err(Fault::Pipe) => Err(Fault::Pipe),
            Err(fault) => {
                self.printer.set_about(self.is_batch.then(|| about(text)));
                let exit = fail(&mut self.printer, &fault);
                self.printer.set_about(None);
                Ok(Some(exit))
            }
        }
    }
}
