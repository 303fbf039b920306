//! The one owner of a tool's output: data on stdout, everything said about it on stderr.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal as _, Write};

use clap::builder::StyledStr;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::fault::{Fault, Outcome};
use super::table::{self, Cell, Column};
use crate::error::Happened;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs: one JSON value, or one a line
    Json,
    /// For shells: a value is its bytes, rows are lines with tabs
    Plain,
}

pub struct Printer {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    format: Option<Format>,
    out_is_terminal: bool,
    err_is_terminal: bool,
    color: bool,
    about: Option<String>,
}

impl fmt::Debug for Printer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Printer").field("format", &self.format).finish_non_exhaustive()
    }
}

impl Printer {
    /// Prints to the process's stdout and stderr.
    pub fn stdio() -> Printer {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let err_is_terminal = io::stderr().is_terminal();
        Printer {
            out: Box::new(BufWriter::new(io::stdout())),
            err: Box::new(io::stderr()),
            format: None,
            out_is_terminal: io::stdout().is_terminal(),
            err_is_terminal,
            color: err_is_terminal && !no_color,
            about: None,
        }
    }

    /// Prints to anything, as if it were no terminal.
    pub fn to(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Printer {
        Printer {
            out,
            err,
            format: None,
            out_is_terminal: false,
            err_is_terminal: false,
            color: false,
            about: None,
        }
    }

    /// One of the same kind that prints elsewhere.
    pub fn aside(&self, out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Printer {
        Printer {
            out,
            err,
            format: self.format,
            out_is_terminal: self.out_is_terminal,
            err_is_terminal: self.err_is_terminal,
            color: self.color,
            about: None,
        }
    }

    /// What failures are about from now on, where it is not plain to see.
    pub fn set_about(&mut self, about: Option<String>) {
        self.about = about;
    }

    pub fn set_format(&mut self, format: Option<Format>) {
        self.format = format;
    }

    /// The format asked for; else a table on a terminal, and plain where a program reads.
    pub fn format(&self) -> Format {
        self.format.unwrap_or(if self.out_is_terminal { Format::Table } else { Format::Plain })
    }

    /// Whether a person watches stderr: then what takes long shows its progress.
    pub fn is_watched(&self) -> bool {
        self.err_is_terminal
    }

    /// Writes to stdout as it is.
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.out.write_all(bytes).map_err(output_fault)
    }

    pub fn line(&mut self, line: &str) -> Result<(), Fault> {
        self.data(line.as_bytes())?;
        self.data(b"\n")
    }

    /// One JSON value on a line.
    pub fn json(&mut self, value: &Value) -> Result<(), Fault> {
        self.line(&value.to_string())
    }

    pub fn rows(&mut self, columns: &[Column], rows: &[Vec<Cell>]) -> Result<(), Fault> {
        match self.format() {
            Format::Table => self.data(table::rows_table(columns, rows).as_bytes()),
            Format::Plain => self.data(table::rows_plain(rows).as_bytes()),
            Format::Json => self.json(&table::rows_json(columns, rows)),
        }
    }

    pub fn record(&mut self, fields: &[(Column, Cell)]) -> Result<(), Fault> {
        match self.format() {
            Format::Table => self.data(table::record_table(fields).as_bytes()),
            Format::Plain => self.data(table::record_plain(fields).as_bytes()),
            Format::Json => self.json(&table::record_json(fields)),
        }
    }

    /// The end of a command: sends out what is buffered. What it found counts whether or not anybody reads it.
    pub fn ended(&mut self, exit: u8) -> Outcome {
        match self.flush() {
            Err(Fault::Pipe) if exit != 0 => Ok(exit),
            flushed => flushed.map(|()| exit),
        }
    }

    /// Sends out what is buffered.
    pub fn flush(&mut self) -> Result<(), Fault> {
        self.out.flush().map_err(output_fault)
    }

    /// Something about the data, for people: stderr.
    pub fn say(&mut self, text: &str) {
        // If stderr is gone, there is nobody to tell.
        let _ = writeln!(self.err, "{text}");
    }

    /// What another printer has said.
    pub fn said(&mut self, bytes: &[u8]) {
        let _ = self.err.write_all(bytes);
    }

    /// Writes over the current line of stderr, for what goes on; only if somebody watches.
    pub fn progress(&mut self, text: &str) {
        if self.is_watched() {
            let _ = write!(self.err, "\r\x1b[K{text}");
            let _ = self.err.flush();
        }
    }

    /// A bar on stderr for what goes on, hidden if nobody watches. `known` and `open` say how the
    /// position is shown with and without a total.
    pub fn bar(&self, total: Option<u64>, known: &str, open: &str) -> ProgressBar {
        if !self.is_watched() {
            return ProgressBar::hidden();
        }
        let (bar, template) = match total {
            Some(total) => (ProgressBar::new(total), format!("{{bar:30}} {known} {{msg}} {{eta}}")),
            None => (ProgressBar::new_spinner(), format!("{{spinner}} {open} {{msg}} {{elapsed}}")),
        };
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.with_style(style)
    }

    /// What failed and what to do.
    pub fn fault(&mut self, fault: &Fault) {
        if matches!(fault, Fault::Pipe) {
            return;
        }
        let _ = self.out.flush();
        if self.format() == Format::Json {
            let mut error = json!({ "reason": fault.reason(), "message": fault.to_string() });
            if let Some(about) = &self.about {
                error["command"] = about.as_str().into();
            }
            if let Fault::Call(call) = fault {
                error["happened"] = call.happened().as_str().into();
                error["metadata"] = json!(call.metadata);
            }
            self.say(&json!({ "error": error }).to_string());
            return;
        }
        let (red, reset) = if self.color { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        let about = self.about.as_ref().map(|about| format!("{about}: ")).unwrap_or_default();
        self.say(&format!("{red}error:{reset} {about}{fault}"));
        if let Some(way_out) = fault.way_out() {
            let certain = match fault {
                Fault::Call(call) if call.happened() == Happened::Unknown => "outcome unknown; ",
                _ => "",
            };
            self.say(&format!("  {certain}{way_out}"));
        }
    }

    /// A text that clap made: help, version or a complaint.
    pub fn rendered(&mut self, text: &StyledStr, is_error: bool) -> Result<(), Fault> {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = !no_color && if is_error { self.err_is_terminal } else { self.out_is_terminal };
        let text = if color { text.ansi().to_string() } else { text.to_string() };
        if is_error {
            self.say(text.trim_end());
            return Ok(());
        }
        self.data(text.as_bytes())?;
        self.flush()
    }
}

/// A closed pipe is nobody's fault; anything else on stdout is.
fn output_fault(error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Fault::Pipe,
        _ => Fault::local("writing to stdout", error),
    }
}
