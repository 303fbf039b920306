//! The daemon.

/// The system's own takes a quarter of what a batch of writes costs, and less of it back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    rushkv::daemon::run()
}
