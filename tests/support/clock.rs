//! A wall clock for a process that jumps while it runs: libfaketime (Debian's package) stands between the process and
//! the C library, and reads from a file how far the clock is off. The monotonic clock goes on as it is.

use std::path::{Path, PathBuf};

/// Sets a clock so many hours ahead, from now on.
pub fn set(clock: &Path, hours: i64) {
    // It is read at any time: never half of it.
    let new = clock.with_extension("new");
    std::fs::write(&new, format!("{hours:+}h\n")).expect("the clock can be written");
    std::fs::rename(new, clock).expect("the clock can be replaced");
}

/// What a process has to be started with.
pub fn env(clock: &Path) -> Vec<(&'static str, String)> {
    vec![
        ("LD_PRELOAD", library().display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("NO_FAKE_STAT", "1".into()),
        // Else each process leaves files behind when it is killed.
        ("FAKETIME_DISABLE_SHM", "1".into()),
    ]
}

fn library() -> PathBuf {
    let architectures = std::fs::read_dir("/usr/lib").expect("/usr/lib can be listed").flatten();
    let mut found = architectures.map(|one| one.path().join("faketime/libfaketime.so.1"));
    found.find(|path| path.exists()).expect("libfaketime is installed (make test-deps)")
}
