//! What the daemon does around the node: reloads, and directories that can't be used.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::config::Flags;

fn sources(dir: &Path) -> Sources {
    Sources {
        config: Some(dir.join("rushkv.toml")),
        etc: PathBuf::new(),
        env: Vec::new(),
        flags: Flags::default(),
        host_name: "host7".to_string(),
    }
}

#[test]
fn a_reload_takes_what_it_can_and_keeps_the_old_on_any_problem() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources(dir.path());
    let file = dir.path().join("rushkv.toml");
    fs::write(&file, "").unwrap();
    let mut running = config::load(&sources).unwrap();
    let level = log::init(&running.config.log_level).unwrap();
    assert_eq!(reload(&sources, &mut running, &level), "reloaded: nothing changed");

    fs::write(&file, "weight = 2\nlog.level = 'debug'\n").unwrap();
    assert_eq!(reload(&sources, &mut running, &level), "reloaded: log.level; needs a restart: weight");
    assert!(tracing::enabled!(target: "rushkv::x", Level::DEBUG));
    assert_eq!(reload(&sources, &mut running, &level), "reloaded; needs a restart: weight");
    assert_eq!((running.config.weight, running.config.log_level.as_str()), (1, "debug"));

    fs::write(&file, "weight = 1\nlog.level = 'trace'\nzoone = 'a'\n").unwrap();
    let told = reload(&sources, &mut running, &level);
    assert!(told.starts_with("not reloaded, the old configuration stays: "), "{told}");
    assert!(told.ends_with("rushkv.toml:3:1: zoone: unknown key; did you mean zone?"), "{told}");
    assert!(!tracing::enabled!(target: "rushkv::x", Level::TRACE));
    assert_eq!(running.config.log_level, "debug");
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    prepare_data_dir(&dir.path().join("a/b")).unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = prepare_data_dir(&path).unwrap_err();
        assert!(error.starts_with(&format!("data_dir = \"{}\": can't be used: ", path.display())), "{error}");
        assert!(error.contains("choose a directory"), "{error}");
    }
}
