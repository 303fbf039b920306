//! Flags as Go's `flag` package takes them: one dash before a long name, the value after `=` or as the
//! next word. The original's scripts are written that way; clap would read `-server=x` as a row of
//! short flags.

use std::ffi::OsString;

/// Gives each known long flag that is written with one dash its second one: `-server=x` becomes
/// `--server=x`, `-batch` becomes `--batch`. `known` are the long names, without dashes; names of one
/// letter are short flags to clap and stay. The first word is the program's name, and nothing after
/// `--` is a flag.
pub fn normalise(args: impl IntoIterator<Item = OsString>, known: &[&str]) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut out: Vec<OsString> = args.next().into_iter().collect();
    let mut is_flag = true;
    for arg in args {
        is_flag &= arg != "--";
        if is_flag && is_known(&arg, known) {
            let mut long = OsString::from("-");
            long.push(&arg);
            out.push(long);
        } else {
            out.push(arg);
        }
    }
    out
}

/// Reads a boolean as Go's `strconv.ParseBool` does.
///
/// # Errors
/// It is none; says what is.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("it is true or false".to_string()),
    }
}

/// Whether `arg` is `-name` or `-name=...` of a known name.
fn is_known(arg: &OsString, known: &[&str]) -> bool {
    let Some(rest) = arg.as_encoded_bytes().strip_prefix(b"-") else { return false };
    let name = rest.split(|byte| *byte == b'=').next().unwrap_or(rest);
    name.len() > 1 && known.iter().any(|known| known.as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str]) -> Vec<String> {
        let args = std::iter::once("prog").chain(args.iter().copied()).map(OsString::from);
        let out = normalise(args, &["server", "batch", "commands", "o"]);
        out.into_iter().skip(1).map(|arg| arg.into_string().unwrap()).collect()
    }

    #[test]
    fn one_dash_becomes_two_for_known_names_only() {
        for (given, want) in [
            (&["-server=localhost:8080", "-batch"][..], &["--server=localhost:8080", "--batch"][..]),
            (&["-server", "a:1"], &["--server", "a:1"]),
            (&["--server=a:1"], &["--server=a:1"]),
            (&["-commands=put k -v=1; get k"], &["--commands=put k -v=1; get k"]),
            (&["-o", "json", "-ojson", "-o=json"], &["-o", "json", "-ojson", "-o=json"]),
            (&["-serverless", "-unknown=1", "-", "server"], &["-serverless", "-unknown=1", "-", "server"]),
            (&["put", "k", "--", "-batch"], &["put", "k", "--", "-batch"]),
            (&[], &[]),
        ] {
            assert_eq!(run(given), want, "{given:?}");
        }
    }

    #[test]
    fn booleans_are_gos() {
        for (text, value) in
            [("1", true), ("T", true), ("True", true), ("0", false), ("f", false), ("FALSE", false)]
        {
            assert_eq!(boolean(text), Ok(value));
        }
        assert!(boolean("yes").is_err() && boolean("").is_err());
    }

    #[test]
    fn a_program_without_a_name_is_no_trouble() {
        assert!(normalise([], &["server"]).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn words_that_are_not_utf8_pass() {
        use std::os::unix::ffi::OsStringExt as _;
        let word = OsString::from_vec(b"-commands=put k \xff".to_vec());
        let out = normalise(["prog".into(), word], &["commands"]);
        assert_eq!(out[1].as_encoded_bytes(), b"--commands=put k \xff");
    }
}
