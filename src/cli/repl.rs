//! The prompt: `rushkv> `, with history, completion and hints.

use std::path::PathBuf;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};

use super::Session;
use super::tool::{Fault, Outcome};

const PROMPT: &str = "rushkv> ";

/// Lines of history kept.
const HISTORY_MAX: usize = 1000;

/// Longest line kept in the history, in bytes: a pasted value does not belong there.
const HISTORY_LINE_BYTES_MAX: usize = 4096;

/// The commands, each with what may follow.
const COMMANDS: [(&str, &str); 13] = [
    ("put", "KEY VALUE"),
    ("get", "KEY"),
    ("delete", "KEY"),
    ("del", "KEY"),
    ("exists", "KEY"),
    ("scan", "[PREFIX] [--limit N] [--keys-only] [--reverse]"),
    ("cluster", ""),
    ("stats", ""),
    ("bench", "[put|get|mixed] [--duration 10s]"),
    ("import", "FILE"),
    ("export", "FILE"),
    ("help", ""),
    ("exit", ""),
];

pub(super) async fn run(session: &mut Session) -> Outcome {
    let config =
        Config::builder().max_history_size(HISTORY_MAX).and_then(|config| config.history_ignore_dups(true));
    let config = config.map_err(readline_fault)?.build();
    let mut editor: Editor<Prompt, FileHistory> = Editor::with_config(config).map_err(readline_fault)?;
    editor.set_helper(Some(Prompt));
    let history = history_file();
    if let Some(file) = &history {
        // No history yet is no trouble, and neither is one that can't be read.
        let _ = editor.load_history(file);
    }
    let servers = session.client.endpoints().join(", ");
    session
        .printer
        .say(&format!("RushKV {} at {servers}. help lists the commands.", env!("CARGO_PKG_VERSION")));
    loop {
        let line = match editor.readline(PROMPT) {
            Ok(line) => line,
            // Ctrl-C drops the line, Ctrl-D leaves.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(readline_fault(error)),
        };
        if !line.trim().is_empty() && line.len() <= HISTORY_LINE_BYTES_MAX {
            let _ = editor.add_history_entry(line.trim());
        }
        let ended = tokio::select! {
            ended = session.line(&line) => ended?,
            _ = tokio::signal::ctrl_c() => {
                session.printer.say("interrupted; a write under way may have taken place");
                Some(0)
            }
        };
        if ended.is_none() {
            break;
        }
    }
    if let Some(file) = &history
        && let Err(error) = save(&mut editor, file)
    {
        session.printer.say(&format!("the history could not be saved in {}: {error}", file.display()));
    }
    Ok(0)
}

fn save(editor: &mut Editor<Prompt, FileHistory>, file: &std::path::Path) -> rustyline::Result<()> {
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    editor.save_history(file)
}

/// `$XDG_STATE_HOME/rushkv/cli_history`, by default below `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("rushkv/cli_history"))
}

fn readline_fault(error: ReadlineError) -> Fault {
    Fault::Local(format!("the terminal: {error}"))
}

/// Completes command names, and shows what a command takes.
struct Prompt;

impl Helper for Prompt {}
impl Highlighter for Prompt {}
impl Validator for Prompt {}

impl Completer for Prompt {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..pos];
        if typed.contains(char::is_whitespace) {
            return Ok((pos, Vec::new()));
        }
        Ok((0, completions(typed)))
    }
}

impl Hinter for Prompt {
    type Hint = String;

    fn hint(&self, line: &str, pos: usize, _: &Context<'_>) -> Option<String> {
        if pos < line.len() { None } else { hint(line) }
    }
}

fn completions(typed: &str) -> Vec<String> {
    let typed = typed.to_ascii_lowercase();
    let fits = COMMANDS.iter().filter(|(name, _)| name.starts_with(&typed));
    fits.map(|(name, _)| format!("{name} ")).collect()
}

/// What a command takes, once its name stands and nothing after it.
fn hint(line: &str) -> Option<String> {
    let word = line.trim_end();
    let (_, takes) = COMMANDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word))?;
    let gap = if line.len() > word.len() { "" } else { " " };
    (!takes.is_empty()).then(|| format!("{gap}{takes}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_completed_and_explained() {
        assert_eq!(completions("e"), ["exists ", "export ", "exit "]);
        assert_eq!(completions("DEL"), ["delete ", "del "]);
        assert!(completions("x").is_empty());
        assert_eq!(hint("put").as_deref(), Some(" KEY VALUE"));
        assert_eq!(hint("put ").as_deref(), Some("KEY VALUE"));
        assert_eq!(hint("put k"), None);
        assert_eq!(hint("stats"), None);
    }

    #[test]
    fn every_command_at_the_prompt_is_one() {
        for (name, takes) in COMMANDS {
            // Placeholders stand for words; flags are left out.
            let words = takes.split('[').next().unwrap_or_default();
            let parsed = super::super::line::parse(&format!("{name} {words}"));
            assert!(matches!(parsed, Ok(Some(_))), "{name} {words}: {parsed:?}");
        }
    }
}
