//! rushkvctl: commands for operators.

mod args;
mod cluster;
mod debug;
mod node;
mod partition;
mod standing;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::cli::tool::{self, Fault, Outcome, Printer};
use crate::client::Client;
use args::{Args, Cluster, Command, Debug, Node, Partition};

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
    let ran = execute(args, &mut printer).and_then(|exit| printer.ended(exit));
    ran.unwrap_or_else(|fault| {
        printer.fault(&fault);
        fault.exit()
    })
}

fn execute(args: Args, printer: &mut Printer) -> Outcome {
    if let Some(what) = args.common.generate {
        let text = tool::generate::generate(Args::command(), what);
        printer.data(&text.map_err(|error| Fault::local("generating", error))?)?;
        return Ok(0);
    }
    let Some(command) = args.command else {
        return Err(Fault::Usage("a command is missing; --help lists them".into()));
    };
    let client = args.common.client()?;
    tool::block_on(command_outcome(command, &client, printer))?
}

async fn command_outcome(command: Command, client: &Client, printer: &mut Printer) -> Outcome {
    match command {
        Command::Cluster(Cluster::Info) => cluster::info(client, printer).await,
        Command::Cluster(Cluster::Health) => cluster::health(client, printer).await,
        Command::Cluster(Cluster::Join { address }) => cluster::join(&address, client, printer).await,
        Command::Cluster(Cluster::Leave { node, yes }) => cluster::leave(&node, yes, client, printer).await,
        Command::Node(Node::List) => node::list(client, printer).await,
        Command::Debug(Debug::Hash { partitions }) => debug::hash(partitions, client, printer).await,
        Command::Debug(Debug::Scrub) => debug::scrub(client, printer).await,
        Command::Partition(Partition::List) => partition::list(client, printer).await,
        Command::Partition(Partition::Show { key }) => partition::show(key, client, printer).await,
    }
}
