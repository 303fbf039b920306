//! rushkvctl: see `rushkv::ctl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    rushkv::ctl::main()
}
