//! For fuzzing: any arguments are read or refused.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use clap::error::ErrorKind;

use super::args::Args;

/// Arguments between zero bytes.
pub fn arguments(input: &[u8]) -> bool {
    let words = input.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
    match Args::parse_from(words) {
        Ok(args) => {
            args.flags();
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
        }
    }
}

pub fn arguments_seeds() -> Vec<Vec<u8>> {
    vec![
        b"rushkv\0-id=node1\0-addr\0localhost\0-port=8080\0-data=./d".to_vec(),
        b"rushkv\0--config\0f\0--set\0a=b\0--check-config".to_vec(),
        b"rushkv\0-h\0--\0-id".to_vec(),
    ]
}
