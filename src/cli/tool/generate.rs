//! Manual pages and completions, made from the same definitions as the help.

use std::io;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Generate {
    Man,
    Bash,
    Zsh,
    Fish,
}

/// The text of `what` for the program that `command` defines.
pub fn generate(mut command: Command, what: Generate) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let shell = match what {
        Generate::Man => return man(command),
        Generate::Bash => Shell::Bash,
        Generate::Zsh => Shell::Zsh,
        Generate::Fish => Shell::Fish,
    };
    let name = command.get_name().to_string();
    clap_complete::generate(shell, &mut command, name, &mut out);
    Ok(out)
}

/// One page for the program and all its commands.
fn man(command: Command) -> io::Result<Vec<u8>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let page = Man::new(command.clone());
    let mut out = Vec::new();
    page.render_title(&mut out)?;
    page.render_name_section(&mut out)?;
    page.render_synopsis_section(&mut out)?;
    page.render_description_section(&mut out)?;
    page.render_options_section(&mut out)?;
    for subcommand in command.get_subcommands() {
        commands(subcommand, subcommand.get_name(), &mut out)?;
    }
    page.render_extra_section(&mut out)?;
    page.render_version_section(&mut out)?;
    Ok(out)
}

/// A section for a command, or for each of its own commands.
fn commands(command: &Command, path: &str, out: &mut Vec<u8>) -> io::Result<()> {
    if command.is_hide_set() {
        return Ok(());
    }
    if command.has_subcommands() {
        for subcommand in command.get_subcommands() {
            commands(subcommand, &format!("{path} {}", subcommand.get_name()), out)?;
        }
        return Ok(());
    }
    let page = Man::new(command.clone());
    let mut body = Vec::new();
    page.render_synopsis_section(&mut body)?;
    page.render_description_section(&mut body)?;
    page.render_options_section(&mut body)?;
    page.render_extra_section(&mut body)?;
    // Its sections are subsections here.
    let body = String::from_utf8_lossy(&body).replace(".SH ", ".SS ");
    out.extend(format!(".SH \"COMMAND: {}\"\n", path.to_uppercase()).into_bytes());
    out.extend(body.into_bytes());
    Ok(())
}
