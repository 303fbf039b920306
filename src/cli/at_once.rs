//! The commands of a batch, several at once: what `--at-once` asks for.
//!
//! put, get, delete and exists run beside each other, in no order, and share streams (`Kv.Pipeline`); what each prints is
//! kept until the commands before it have printed theirs. Any other command waits for those before it, and those after
//! it wait for it.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt as _, StreamExt as _, future::LocalBoxFuture};
use tokio::sync::mpsc;

use super::Session;
use super::args::Command;
use super::line::{self, Line};
use super::tool::{Fault, Outcome, Printer};

/// Commands that were read and not begun.
const READ_AHEAD: usize = 64;

type Commands = mpsc::Receiver<Result<String, Fault>>;

/// The commands of a batch line.
pub(super) fn given(line: &str) -> Result<Commands, Fault> {
    let commands: Vec<String> = line::split(line).into_iter().map(String::from).collect();
    if commands.is_empty() {
        return Err(Fault::Usage("-commands holds no command".into()));
    }
    Ok(read(move |send| {
        let _all_were_sent = commands.into_iter().all(|command| send(Ok(command)));
    }))
}

/// The lines of stdin, each a batch line or a single command.
pub(super) fn stdin(is_batch: bool) -> Commands {
    read(move |send| {
        let mut line = String::new();
        loop {
            line.clear();
            let sent = match std::io::stdin().read_line(&mut line) {
                Ok(0) => return,
                Ok(_) if is_batch => line::split(&line).into_iter().all(|one| send(Ok(one.to_string()))),
                Ok(_) => send(Ok(line.clone())),
                Err(error) => {
                    send(Err(Fault::local("reading stdin", error)));
                    return;
                }
            };
            if !sent {
                return;
            }
        }
    })
}

/// In a thread that nobody waits for: `exit` ends the program although stdin goes on.
fn read(from: impl FnOnce(&dyn Fn(Result<String, Fault>) -> bool) + Send + 'static) -> Commands {
    let (sender, commands) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || from(&|command| sender.blocking_send(command).is_ok()));
    commands
}

/// Whether it is a call on one key.
fn is_single(command: &Command) -> bool {
    matches!(command, Command::Put(_) | Command::Get(_) | Command::Delete(_) | Command::Exists(_))
}

/// Commands are read ahead: what one of them would read of stdin is gone by then.
fn reads_stdin(command: &Command) -> bool {
    let is_stdin = |file: &Path| file == Path::new("-");
    match command {
        Command::Put(put) => put.value_file.as_deref().is_some_and(is_stdin),
        Command::Import(import) => is_stdin(&import.file),
        _ => false,
    }
}

/// Runs them, `at_once` at a time; ends with the exit code of the first that failed.
pub(super) async fn run(session: &mut Session, mut commands: Commands, at_once: usize) -> Outcome {
    let mut under_way: FuturesOrdered<LocalBoxFuture<'static, Ran>> = FuturesOrdered::new();
    let mut first_failure = 0;
    let mut is_read = false;
    let mut note = |exit: u8| {
        if first_failure == 0 {
            first_failure = exit;
        }
    };
    while !is_read || !under_way.is_empty() {
        tokio::select! {
            biased;
            Some(ran) = under_way.next() => note(ran.show(session)?),
            command = commands.recv(), if !is_read && under_way.len() < at_once => {
                let Some(command) = command else {
                    is_read = true;
                    continue;
                };
                let parsed = command.as_deref().map(line::parse);
                let about = command.as_deref().map(super::about).ok();
                match parsed {
                    Ok(Ok(None)) => continue,
                    Ok(Ok(Some(Line::Run(single)))) if is_single(&single) && !reads_stdin(&single) => {
                        under_way.push_back(aside(session, *single, about).boxed_local());
                        continue;
                    }
                    _ => {}
                }
                while let Some(ran) = under_way.next().await {
                    note(ran.show(session)?);
                }
                match parsed {
                    Ok(Ok(Some(Line::Run(reader)))) if reads_stdin(&reader) => {
                        let why = "with --at-once no command can read stdin; name a file";
                        note(super::fail(&mut session.printer, &Fault::Usage(why.into())));
                        continue;
                    }
                    _ => {}
                }
                match session.line(&command?).await? {
                    Some(exit) => note(exit),
                    None => break,
                }
            }
        }
    }
    Ok(first_failure)
}

/// A command that has run, and what it printed.
struct Ran {
    ended: Outcome,
    printer: Printer,
    kept: Kept,
}

impl Ran {
    /// Prints it, and returns its exit code.
    fn show(mut self, session: &mut Session) -> Outcome {
        let exit = match self.ended {
            Ok(exit) => exit,
            Err(Fault::Pipe) => return Err(Fault::Pipe),
            Err(fault) => super::fail(&mut self.printer, &fault),
        };
        session.printer.data(&self.kept.out.take())?;
        session.printer.flush()?;
        session.printer.said(&self.kept.err.take());
        Ok(exit)
    }
}

fn aside(session: &Session, command: Command, about: Option<String>) -> impl Future<Output = Ran> + use<> {
    let kept = Kept::default();
    let mut printer = session.printer.aside(Box::new(kept.out.clone()), Box::new(kept.err.clone()));
    printer.set_about(about);
    let mut session = Session { client: session.client.clone(), printer, is_alone: false, is_batch: true };
    async move {
        let ended = session.run(command).await;
        Ran { ended, printer: session.printer, kept }
    }
}

#[derive(Debug, Default)]
struct Kept {
    out: Buffer,
    err: Buffer,
}

#[derive(Debug, Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
