//! The data directory: made once, held by one, refused when it is not ours.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::fs;
use std::path::Path;

use rushkv::storage::{self, Batch, DataDir, Error, FORMAT_VERSION, Kind, Options};

fn refusal(path: &Path, kind: Kind) -> String {
    match DataDir::open(path, kind) {
        Err(Error::Refused(message)) => {
            assert!(message.contains(&path.display().to_string()), "names the directory: {message}");
            message
        }
        other => panic!("not refused: {other:?}"),
    }
}

fn files(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "LOCK")
        .collect();
    names.sort();
    names
}

#[test]
fn it_is_made_once_and_keeps_its_identity() {
    for kind in [Kind::Sled, Kind::Fjall] {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let dir = DataDir::open(&path, kind).unwrap();
        let id = dir.disk_id().to_string();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(files(&path), ["CLEAN", "FORMAT", "engine"]);
        let engine = storage::open(kind, &dir.engine_dir(), &Options::default()).unwrap();
        let mut batch = Batch::default();
        batch.put("k", "1");
        engine.apply(batch).unwrap();
        engine.close().unwrap();
        drop(dir);

        let dir = DataDir::open(&path, kind).unwrap();
        assert_eq!(dir.disk_id(), id);
        let engine = storage::open(kind, &dir.engine_dir(), &Options::default()).unwrap();
        assert_eq!(engine.get(b"k").unwrap().as_deref(), Some(b"1".as_slice()));
    }
    let one = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let ids =
        [&one, &other].map(|dir| DataDir::open(dir.path(), Kind::Memory).unwrap().disk_id().to_string());
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn a_second_user_is_told_who_has_it() {
    let root = tempfile::tempdir().unwrap();
    let held = DataDir::open(root.path(), Kind::Memory).unwrap();
    let message = refusal(root.path(), Kind::Memory);
    assert!(message.contains("in use by another process"), "{message}");
    assert!(message.contains(&format!("(pid {})", std::process::id())), "{message}");
    drop(held);
    DataDir::open(root.path(), Kind::Memory).unwrap();
}

#[test]
fn the_wrong_engine_is_refused_with_the_way_out() {
    let root = tempfile::tempdir().unwrap();
    drop(DataDir::open(root.path(), Kind::Sled).unwrap());
    let message = refusal(root.path(), Kind::Fjall);
    assert!(message.contains("was written with sled, storage.engine says fjall"), "{message}");
    assert!(message.contains("set storage.engine = \"sled\""), "{message}");
    DataDir::open(root.path(), Kind::Sled).unwrap();
}

#[test]
fn a_newer_format_is_refused_even_if_it_is_otherwise_unknown() {
    let root = tempfile::tempdir().unwrap();
    drop(DataDir::open(root.path(), Kind::Memory).unwrap());
    fs::write(root.path().join("FORMAT"), "format = 7\nshape = \"round\"\n").unwrap();
    let message = refusal(root.path(), Kind::Memory);
    assert!(message.contains("newer rushkv (format 7"), "{message}");
}

#[test]
fn a_format_that_was_never_released_is_refused_with_the_way_out() {
    let root = tempfile::tempdir().unwrap();
    drop(DataDir::open(root.path(), Kind::Memory).unwrap());
    let body = "format = 1\nengine = \"memory\"\ndisk_id = \"0d5c1f4e9a7b4f0c8e6a2b3c4d5e6f70\"\n";
    let text = format!("{body}crc32c = \"{:08x}\"\n", crc32c::crc32c(body.as_bytes()));
    fs::write(root.path().join("FORMAT"), text).unwrap();
    let message = refusal(root.path(), Kind::Memory);
    assert!(
        message.contains("before the first release (format 1") && message.contains("export"),
        "{message}"
    );
}

#[test]
fn a_damaged_format_file_is_corrupt() {
    let root = tempfile::tempdir().unwrap();
    drop(DataDir::open(root.path(), Kind::Memory).unwrap());
    let path = root.path().join("FORMAT");
    let good = fs::read(&path).unwrap();
    assert!(String::from_utf8_lossy(&good).contains(&format!("format = {FORMAT_VERSION}\n")));
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x08;
        fs::write(&path, &bad).unwrap();
        match DataDir::open(root.path(), Kind::Memory) {
            Err(Error::Corrupt { message, .. }) => assert!(message.contains("FORMAT"), "{message}"),
            // A flipped bit can make the version look newer.
            Err(Error::Refused(message)) => assert!(message.contains("newer"), "{message}"),
            other => panic!("byte {at}: {other:?}"),
        }
    }
    // All but the last quote and newline count.
    for len in 0..good.len() - 2 {
        fs::write(&path, &good[..len]).unwrap();
        assert!(DataDir::open(root.path(), Kind::Memory).is_err(), "cut to {len} bytes");
    }
    fs::write(&path, &good).unwrap();
    DataDir::open(root.path(), Kind::Memory).unwrap();
}

#[test]
fn somebody_elses_directory_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("thesis.tex"), "x").unwrap();
    let message = refusal(root.path(), Kind::Fjall);
    assert!(message.contains("it holds thesis.tex;"), "{message}");
    for name in ["a", "b", "c"] {
        fs::create_dir(root.path().join(name)).unwrap();
    }
    let message = refusal(root.path(), Kind::Fjall);
    assert!(message.contains("it holds a, b and 2 more;"), "{message}");
    assert_eq!(files(root.path()), ["a", "b", "c", "thesis.tex"]);
    assert!(!root.path().join("LOCK").exists(), "nothing is written into it");

    let file = root.path().join("thesis.tex");
    refusal(&file, Kind::Fjall);
}

#[test]
fn the_root_of_a_fresh_file_system_is_empty_enough() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("lost+found")).unwrap();
    DataDir::open(root.path(), Kind::Memory).unwrap();
}

#[test]
fn making_it_can_be_interrupted_anywhere() {
    for kind in [Kind::Sled, Kind::Fjall] {
        // What is there after each step of making it.
        let steps: [&[&str]; 5] = [
            &["CREATING.new"],
            &["CREATING"],
            &["CREATING", "engine/half"],
            &["CREATING", "engine/half", "CLEAN"],
            &["CREATING", "engine/half", "CLEAN", "FORMAT.new"],
        ];
        for step in steps {
            let root = tempfile::tempdir().unwrap();
            for name in step {
                let path = root.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            let dir = DataDir::open(root.path(), kind).unwrap_or_else(|error| panic!("{step:?}: {error}"));
            assert!(!dir.engine_dir().join("half").exists());
            storage::open(kind, &dir.engine_dir(), &Options::default()).unwrap();
            assert!(!files(root.path()).contains(&"CREATING".into()));
        }
        // After FORMAT, nothing is thrown away.
        let root = tempfile::tempdir().unwrap();
        let id = DataDir::open(root.path(), kind).unwrap().disk_id().to_string();
        fs::write(root.path().join("CREATING"), "").unwrap();
        fs::write(root.path().join("engine/mine"), "").unwrap();
        assert_eq!(DataDir::open(root.path(), kind).unwrap().disk_id(), id);
        assert!(root.path().join("engine/mine").exists());
    }
}

#[test]
fn a_lost_engine_folder_is_not_made_anew() {
    let root = tempfile::tempdir().unwrap();
    let dir = DataDir::open(root.path(), Kind::Fjall).unwrap();
    fs::remove_dir_all(dir.engine_dir()).unwrap();
    drop(dir);
    let message = refusal(root.path(), Kind::Fjall);
    assert!(message.contains("lost its engine folder"), "{message}");
}

#[test]
fn a_crash_shows_at_the_next_start() {
    let root = tempfile::tempdir().unwrap();
    let open = || DataDir::open(root.path(), Kind::Memory).unwrap();
    let dir = open();
    assert!(dir.take_clean_stop().unwrap(), "a new directory is in order");
    assert!(!dir.take_clean_stop().unwrap(), "taken once");
    drop(dir);
    let dir = open();
    assert!(!dir.take_clean_stop().unwrap(), "the last user did not mark it");
    dir.mark_clean_stop().unwrap();
    drop(dir);
    assert!(open().take_clean_stop().unwrap());
}

#[test]
fn space_is_told() {
    let root = tempfile::tempdir().unwrap();
    let dir = DataDir::open(root.path(), Kind::Memory).unwrap();
    let total = storage::total_bytes(root.path()).unwrap();
    assert!(dir.free_bytes().unwrap() <= total && total > 0);
    assert_eq!(dir.wal_dir(), root.path().join("wal"));
    assert!(storage::free_bytes(&root.path().join("missing")).is_err());
}

/// As a node leaves it that has served.
fn used(path: &Path) -> DataDir {
    let dir = DataDir::open(path, Kind::Fjall).unwrap();
    fs::create_dir(dir.wal_dir()).unwrap();
    for file in ["wal/0000000000000001.wal", "IDENTITY", "checkpoint"] {
        fs::write(path.join(file), "old").unwrap();
    }
    // What it is made anew for stays.
    fs::write(path.join("JOINING"), "promise").unwrap();
    dir
}

#[test]
fn made_anew_it_is_another_one_and_empty() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    let dir = used(path);
    let old = dir.disk_id().to_string();
    let dir = dir.begin_anew().unwrap();
    assert_ne!(dir.disk_id(), old);
    assert_eq!(files(path), ["CLEAN", "FORMAT", "JOINING", "engine"]);
    assert!(refusal(path, Kind::Fjall).contains("in use"), "it was held all the while");
    let new = dir.disk_id().to_string();
    drop(dir);
    assert_eq!(DataDir::open(path, Kind::Fjall).unwrap().disk_id(), new);
}

#[test]
fn a_crash_while_it_is_made_anew_is_made_up_for() {
    // Whatever of the parts is gone already.
    for gone in 0..=4 {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        let dir = used(path);
        let old = dir.disk_id().to_string();
        drop(dir);
        fs::write(path.join("CREATING"), "").unwrap();
        fs::remove_file(path.join("FORMAT")).unwrap();
        for part in ["engine", "wal"].iter().take(gone) {
            fs::remove_dir_all(path.join(part)).unwrap();
        }
        for file in ["CLEAN", "IDENTITY"].iter().take(gone.saturating_sub(2)) {
            fs::remove_file(path.join(file)).unwrap();
        }
        let dir = DataDir::open(path, Kind::Fjall).unwrap();
        assert_ne!(dir.disk_id(), old);
        assert_eq!(files(path), ["CLEAN", "FORMAT", "JOINING", "engine"], "{gone} parts were gone");
    }
}
