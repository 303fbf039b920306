//! The daemon.

/// The system's takes a fifth of what a batch of writes costs; see docs/decisions/0023-allocator.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    rushkv::daemon::run()
}
