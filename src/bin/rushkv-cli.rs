//! rushkv-cli: see `rushkv::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    rushkv::cli::main()
}
