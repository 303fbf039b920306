//! `--generate`: what packaging makes from the program itself, so that it can't drift from it.

use std::io::{self, Write};

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::roff::{Roff, bold, roman};

use super::args::{Args, Generate};
use crate::config::keys;

/// Writes it to `out`.
pub fn write(kind: Generate, out: &mut impl Write) -> io::Result<()> {
    match kind {
        Generate::Man => man(out),
        Generate::Bash => completions(Shell::Bash, out),
        Generate::Zsh => completions(Shell::Zsh, out),
        Generate::Fish => completions(Shell::Fish, out),
        Generate::Config => out.write_all(keys::packaged_file().as_bytes()),
        Generate::Keys => out.write_all(keys::markdown_table().as_bytes()),
        Generate::Protoset => out.write_all(crate::proto::DESCRIPTORS),
    }
}

fn completions(shell: Shell, out: &mut impl Write) -> io::Result<()> {
    // The generator completes hidden flags as well.
    let all = Args::command();
    let visible = all.get_arguments().filter(|arg| !arg.is_hide_set()).cloned();
    let mut command = clap::Command::new("rushkv").args(visible);
    // Through a buffer: the generator itself panics where a pipe is closed.
    let mut buffer = Vec::new();
    clap_complete::generate(shell, &mut command, "rushkv", &mut buffer);
    out.write_all(&buffer)
}

fn man(out: &mut impl Write) -> io::Result<()> {
    clap_mangen::Man::new(Args::command()).title("rushkv").section("1").render(out)?;
    let mut roff = Roff::new();
    roff.control("SH", ["CONFIGURATION KEYS"]);
    for key in &keys::KEYS {
        roff.control("TP", []);
        roff.text([bold(key.name), roman(format!(" = {}", key.default))]);
        let takes = match key.reload {
            keys::Reload::Live => "A change takes a reload.",
            keys::Reload::Restart => "A change takes a restart.",
            keys::Reload::Formation => "Counts only while a cluster is formed.",
        };
        roff.text([roman(format!("{} {takes} Variable: {}", key.doc, key.env_name()))]);
    }
    roff.control("SH", ["FILES"]);
    for (file, about) in [
        ("/etc/rushkv/rushkv.toml", "The configuration."),
        ("/etc/rushkv/conf.d/*.toml", "Read after it, in the order of their names."),
        ("/var/lib/rushkv", "The data, unless data_dir says otherwise."),
    ] {
        roff.control("TP", []);
        roff.text([bold(file)]);
        roff.text([roman(about)]);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("rushkvctl"), roman("(1), "), bold("rushkv-cli"), roman("(1)")]);
    roff.to_writer(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_made_and_names_what_it_must() {
        for (kind, part) in [
            (Generate::Man, "storage.disk_reserve"),
            (Generate::Man, "RUSHKV__STORAGE__DISK_RESERVE"),
            (Generate::Man, "check\\-config"),
            (Generate::Bash, "--check-config"),
            (Generate::Zsh, "--check-config"),
            (Generate::Fish, "check-config"),
            (Generate::Config, "disk_reserve = \"512MiB\""),
            (Generate::Keys, "| `storage.disk_reserve` |"),
        ] {
            let mut out = Vec::new();
            write(kind, &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(text.contains(part), "{kind:?} lacks {part}:\n{text}");
            assert!(!text.contains("--generate"), "{kind:?} shows what is hidden");
        }
        let mut out = Vec::new();
        write(Generate::Protoset, &mut out).unwrap();
        assert_eq!(out, crate::proto::DESCRIPTORS);
    }
}
