//! Named places where a test can end the process, to see what a crash there leaves behind.
//!
//! `RUSHKV_CRASH_AT=name` in the environment ends a debug build at that place as SIGKILL would: nothing
//! is flushed, nothing is dropped. In a release build there are no such places.

/// The process has come to the place of this name.
#[cfg(debug_assertions)]
pub fn reached(name: &str) {
    if std::env::var_os(VARIABLE).is_none_or(|wanted| wanted != name) {
        return;
    }
    // The signal takes effect before the call returns; a process that may not send it aborts.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort();
}

/// The process has come to the place of this name; nothing happens there.
#[cfg(not(debug_assertions))]
#[inline]
pub fn reached(_name: &str) {}

/// Names the place to end at.
#[cfg(debug_assertions)]
const VARIABLE: &str = "RUSHKV_CRASH_AT";
