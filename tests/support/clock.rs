//! A wall clock for a process that jumps while it runs: libfaketime (Debian's package) stands between the process and
//! the C library, and reads from a file how far the clock is off. The monotonic clock goes on as it is.

use std::path::{Path, PathBuf};

/// Where the library keeps what the threads of a process share, in files that bear its id.
const SHARED: &str = "/dev/shm";
const PREFIXES: [&str; 2] = ["faketime_shm_", "sem.faketime_sem_"];

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
    ]
}

/// Removes what the library of a killed process has left behind: a process of the same id would fail on it.
pub fn sweep() {
    for left in std::fs::read_dir(SHARED).expect("shared memory can be listed").flatten() {
        let name = left.file_name();
        let pid = PREFIXES.iter().find_map(|prefix| name.to_str()?.strip_prefix(prefix));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Somebody else may sweep, too.
            let _ = std::fs::remove_file(left.path());
        }
    }
}

fn library() -> PathBuf {
    let architectures = std::fs::read_dir("/usr/lib").expect("/usr/lib can be listed").flatten();
    let mut found = architectures.map(|one| one.path().join("faketime/libfaketime.so.1"));
    found.find(|path| path.exists()).expect("libfaketime is installed (make test-deps)")
}
