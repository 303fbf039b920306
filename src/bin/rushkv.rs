//! The daemon.

fn main() -> std::process::ExitCode {
    rushkv::daemon::run()
}
