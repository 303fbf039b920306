//! Configuration from its sources: what wins, what is refused and in which words.
//!
//! Each case is files, variables and flags; what comes out is read by people, so it is a snapshot.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use rushkv::config::{self, Flags, Loaded, Sources, keys};
use tempfile::TempDir;

/// One start of the program, in words.
#[derive(Default)]
struct Case<'a> {
    /// Name and text of the files in a directory that stands for `/etc/rushkv`.
    files: &'a [(&'a str, &'a str)],
    /// Whether `--config` names `rushkv.toml`; otherwise it is found, or not, as in `/etc`.
    config: bool,
    env: &'a [(&'a str, &'a str)],
    /// `-id=x` and so on, and `KEY=VALUE` for `--set`.
    flags: &'a [&'a str],
}

fn flags(given: &[&str]) -> Flags {
    let mut flags = Flags::default();
    for flag in given {
        match flag.split_once('=').expect("flag=value") {
            ("-id", value) => flags.id = Some(value.to_string()),
            ("-addr", value) => flags.addr = Some(value.to_string()),
            ("-port", value) => flags.port = Some(value.to_string()),
            ("-data", value) => flags.data = Some(value.to_string()),
            _ => flags.set.push(flag.to_string()),
        }
    }
    flags
}

fn load_in(dir: &Path, case: &Case) -> Result<Loaded, Vec<config::Problem>> {
    for (name, text) in case.files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("in a directory")).expect("create");
        fs::write(path, text).expect("write");
    }
    let main = dir.join("rushkv.toml");
    config::load(&Sources {
        config: case.config.then(|| main.clone()),
        etc: main,
        env: case.env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect(),
        flags: flags(case.flags),
        host_name: "host7".to_string(),
    })
}

fn load(case: &Case) -> Result<Loaded, Vec<config::Problem>> {
    load_in(TempDir::new().expect("temporary directory").path(), case)
}

/// What the program would print: the configuration, or every problem.
fn outcome(case: &Case) -> String {
    let dir = TempDir::new().expect("temporary directory");
    let text = match load_in(dir.path(), case) {
        Ok(loaded) => {
            let mut text = String::new();
            for warning in &loaded.warnings {
                let _ = writeln!(text, "warning: {warning}");
            }
            text + &config::print(&loaded)
        }
        Err(problems) => problems.iter().map(|problem| format!("{problem}\n")).collect(),
    };
    text.replace(&dir.path().display().to_string(), "/etc/rushkv")
}

/// The problems of a file.
fn problems_of(text: &str) -> String {
    outcome(&Case { files: &[("rushkv.toml", text)], ..Case::default() })
}

#[test]
fn each_layer_wins_over_those_below() {
    let file =
        ("rushkv.toml", "zone = 'file'\nweight = 2\n[cluster]\nname = 'file'\n[log]\nlevel = 'warn'\n");
    let second = ("conf.d/20-b.toml", "weight = 4\ncluster.name = 'b'\n");
    let first = ("conf.d/10-a.toml", "weight = 3\nzone = 'a'\n");
    let ignored = ("conf.d/30-c.toml.bak", "nonsense");
    insta::assert_snapshot!(outcome(&Case {
        files: &[file, second, first, ignored],
        env: &[
            ("RUSHKV__CLUSTER__NAME", "env"),
            ("RUSHKV__STORAGE__CACHE", "1 GiB"),
            ("RUSHKV_PORT", "tcp://1")
        ],
        flags: &["storage.cache=2GiB"],
        ..Case::default()
    }));
}

#[test]
fn the_originals_flags_leave_etc_unread() {
    let etc = ("rushkv.toml", "zone = 'etc'\ndata_dir = '/etc-says'");
    for flag in ["-id=node1", "-addr=localhost", "-port=8080", "-data=./data"] {
        let loaded = load(&Case { files: &[etc], flags: &[flag], ..Case::default() }).expect(flag);
        assert_eq!(loaded.files.len(), 0, "{flag}");
        assert_eq!(loaded.config.zone, "", "{flag}");
        assert_eq!(loaded.config.data_dir, Path::new("./data"), "{flag}");
        assert_eq!(loaded.config.node_id, "node1", "{flag}");
        assert_eq!(loaded.config.addr.to_string(), "localhost:8080", "{flag}");
    }
    let loaded = load(&Case { files: &[etc], ..Case::default() }).expect("found");
    assert_eq!(loaded.config.zone, "etc");
    let loaded = load(&Case { files: &[etc], config: true, flags: &["-port=8081"], ..Case::default() })
        .expect("asked for");
    assert_eq!(loaded.config.data_dir, Path::new("/etc-says"), "--config is read whatever the flags");
    assert_eq!(loaded.config.addr.to_string(), "localhost:8081");
}

#[test]
fn without_a_file_it_is_the_originals_node_and_with_one_a_service() {
    let by_hand = load(&Case::default()).expect("defaults").config;
    assert_eq!((by_hand.node_id.as_str(), by_hand.data_dir.as_path()), ("node1", Path::new("./data")));
    let service =
        load(&Case { files: &[("rushkv.toml", "")], ..Case::default() }).expect("empty file").config;
    assert_eq!(
        (service.node_id.as_str(), service.data_dir.as_path()),
        ("host7", Path::new("/var/lib/rushkv"))
    );
}

#[test]
fn addr_and_port_are_halves_of_one_address() {
    let file = [("rushkv.toml", "addr = '10.0.0.1:9000'")];
    for (flags, addr) in [
        (&["-port=8081"][..], "10.0.0.1:8081"),
        (&["-addr=10.0.0.2"][..], "10.0.0.2:9000"),
        (&["-addr=10.0.0.2", "-port=1"][..], "10.0.0.2:1"),
        (&["-addr=10.0.0.2:7", "-port=7"][..], "10.0.0.2:7"),
        (&["-addr=10.0.0.2:7"][..], "10.0.0.2:7"),
        (&["-addr=::1"][..], "[::1]:9000"),
        (&["-addr=[::1]:5"][..], "[::1]:5"),
        (&["-port=0"][..], "10.0.0.1:0"),
    ] {
        let loaded = load(&Case { files: &file, config: true, flags, ..Case::default() }).expect("valid");
        assert_eq!(loaded.config.addr.to_string(), addr, "{flags:?}");
    }
}

#[test]
fn an_address_is_read_as_people_write_it() {
    for (written, addr) in [
        ("localhost", Some("localhost:8080")),
        ("db-1.example.org.:9", Some("db-1.example.org.:9")),
        ("::1", Some("[::1]:8080")),
        ("[fe80::1]", Some("[fe80::1]:8080")),
        ("[::]:65535", Some("[::]:65535")),
        ("0.0.0.0:1", Some("0.0.0.0:1")),
        (":8080", None),
        ("", None),
        ("a:b:c", None),
        ("host:", None),
        ("host:+1", None),
        ("host:65536", None),
        ("[::1", None),
        ("[::1]8080", None),
        ("300.0.0.1:1", None),
        ("http://x:1", None),
        ("a b", None),
    ] {
        let read = config::value::addr(written).ok().map(|addr| addr.to_string());
        assert_eq!(read.as_deref(), addr, "{written}");
    }
}

#[test]
fn every_problem_is_told_at_once_where_it_stands() {
    insta::assert_snapshot!(outcome(&Case {
        files: &[
            (
                "rushkv.toml",
                "nodeid = 'a'\nnode_id = 'näme'\n  addr = 8080\ndata_dir = ''\npeers = 'a'\nzone = \"a b\"\n\
                 weight = 0\nengine = 'sled'\n\
                 [cluster]\nname = ''\nreplicas = 9\npartitions = 12\n\
                 [storge]\nengine = 'sled'\n\
                 [storage]\nengine = 'slde'\ncache = '12 parsecs'\ndisk_reserve = -1\nsize = 3\n\
                 [metrics]\naddr = 'localhost'\n[log]\nlevel = 'inof'\nlevels = 1.5\n",
            ),
            ("conf.d/a.toml", "storage = 3\nweight = 1.5\n[cluster]\nreplicas = 99999999999999999999\n"),
        ],
        env: &[
            ("RUSHKV__STORAGE_ENGINE", "sled"),
            ("RUSHKV__NODEID", "x"),
            ("RUSHKV__WEIGHT", "heavy"),
            ("RUSHKV__PEERS", "10.0.0.2, 10.0.0.2:8080"),
            ("RUSHKV__storage__engine", "sled"),
        ],
        flags: &["cluster.partitions=0", "partitons=4", "zone=-"],
        ..Case::default()
    }));
}

#[test]
fn flags_are_refused_in_their_own_name() {
    insta::assert_snapshot!(outcome(&Case {
        flags: &["-id=", "-addr=a b", "-port=99999", "-data="],
        ..Case::default()
    }));
    insta::assert_snapshot!(outcome(&Case { flags: &["-addr=h:1", "-port=2"], ..Case::default() }));
}

#[test]
fn broken_syntax_is_told_with_its_place() {
    insta::assert_snapshot!(problems_of("node_id = 'a'\naddr = \n[cluster\nname = 'x'\nname = 'y'\n"));
    insta::assert_snapshot!(problems_of("zone = 'a'\nzone = 'b'\n"));
    insta::assert_snapshot!(problems_of("zone = \"\u{e4}\" x\n"));
}

#[test]
fn keys_are_looked_at_together() {
    let cases = [
        "addr = '127.0.0.1:8080'\npeers = ['10.0.0.2']",
        "addr = '0.0.0.0'\npeers = ['10.0.0.2']",
        "addr = '0.0.0.0'\nadvertise_addr = 'localhost:8080'\npeers = ['localhost:8081', '10.0.0.2']",
        "addr = '10.0.0.1'\nadvertise_addr = '10.0.0.1:0'",
        "addr = 'localhost:65000'",
        "addr = 'localhost:9000'\n[metrics]\naddr = '0.0.0.0:9000'",
    ];
    let told: Vec<String> = cases.iter().map(|case| format!("{case}\n=> {}", problems_of(case))).collect();
    insta::assert_snapshot!(told.join("\n"));
    for fine in [
        "addr = '127.0.0.1:8080'\npeers = ['localhost:8081', '[::1]:8082']",
        "addr = '0.0.0.0'\nadvertise_addr = '10.0.0.1'\npeers = ['10.0.0.2']",
        "addr = '10.0.0.1:9000'\nmetrics.addr = '127.0.0.1:9000'",
        "addr = 'localhost:65000'\nmetrics.addr = 'off'",
    ] {
        load(&Case { files: &[("rushkv.toml", fine)], ..Case::default() }).expect(fine);
    }
}

#[test]
fn an_address_that_nobody_can_dial_is_a_warning() {
    insta::assert_snapshot!(outcome(&Case { flags: &["-addr=0.0.0.0"], ..Case::default() }));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    insta::assert_snapshot!(outcome(&Case { config: true, ..Case::default() }));
    let dir = TempDir::new().expect("temporary directory");
    let path = dir.path().join("rushkv.toml");
    fs::write(&path, b"zone = 'a'\n# \xff").expect("write");
    let problems = load_in(dir.path(), &Case::default()).expect_err("not UTF-8");
    assert!(problems[0].to_string().contains("rushkv.toml:2:3: is not UTF-8"), "{}", problems[0]);
    fs::write(&path, vec![b'#'; 2 << 20]).expect("write");
    let problems = load_in(dir.path(), &Case::default()).expect_err("too large");
    assert!(problems[0].to_string().contains("is larger than"), "{}", problems[0]);
    fs::remove_file(&path).expect("remove");
    fs::create_dir(&path).expect("create");
    let problems = load_in(dir.path(), &Case::default()).expect_err("a directory");
    assert!(problems[0].to_string().contains("can't be read"), "{}", problems[0]);
}

#[test]
fn the_packaged_file_is_the_programs_defaults() {
    let packaged = include_str!("../etc/rushkv.toml");
    assert_eq!(packaged, keys::packaged_file(), "make it anew: rushkv --generate config > etc/rushkv.toml");
    let defaults = load(&Case { files: &[("rushkv.toml", "")], ..Case::default() }).expect("empty");
    let from_file = load(&Case { files: &[("rushkv.toml", packaged)], ..Case::default() }).expect("packaged");
    assert_eq!(config::changes(&defaults, &from_file), []);
    assert_eq!(defaults.config, from_file.config);
    assert_eq!(from_file.settings.len(), keys::KEYS.len());
    for setting in &from_file.settings {
        assert!(matches!(setting.origin, config::Origin::File { .. }), "{} is not in it", setting.key.name);
        assert!(!setting.key.doc.is_empty());
    }
}

#[test]
fn what_is_printed_gives_the_same_configuration() {
    let first = load(&Case {
        env: &[("RUSHKV__PEERS", "[::1]:1, localhost:2"), ("RUSHKV__STORAGE__CACHE", "1500001")],
        flags: &["-port=1234"],
        ..Case::default()
    })
    .expect("valid");
    let printed = config::print(&first);
    let second = load(&Case { files: &[("rushkv.toml", &printed)], ..Case::default() }).expect("valid TOML");
    assert_eq!(first.config, second.config);
}

#[test]
fn a_list_in_the_environment_is_written_either_way() {
    let peers = |text: &str| {
        let loaded = load(&Case { env: &[("RUSHKV__PEERS", text)], ..Case::default() }).expect(text);
        loaded.config.peers.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(peers("[::1]:1, localhost:2"), ["[::1]:1", "localhost:2"]);
    assert_eq!(peers(r#"["[::1]:1", 'localhost:2']"#), ["[::1]:1", "localhost:2"]);
    assert_eq!(peers("[::1]:1"), ["[::1]:1"]);
}

#[test]
fn a_reload_tells_what_it_can_change() {
    let old = load(&Case { files: &[("rushkv.toml", "")], ..Case::default() }).expect("valid");
    let text = "zone = 'b'\n[cluster]\nreplicas = 5\n[log]\nlevel = 'debug'\n";
    let new = load(&Case { files: &[("rushkv.toml", text)], ..Case::default() }).expect("valid");
    let told: Vec<(&str, &str)> =
        config::changes(&old, &new).iter().map(|change| (change.key, change.takes.as_str())).collect();
    assert_eq!(told, [("zone", "restart"), ("cluster.replicas", "formation only"), ("log.level", "reload")]);

    let mut running = old.clone();
    running.take_live(&new);
    let left: Vec<&str> = config::changes(&running, &new).iter().map(|change| change.key).collect();
    assert_eq!(left, ["zone", "cluster.replicas"], "named again until the restart");
    assert_eq!(running.config, config::Config { log_level: "debug".to_string(), ..old.config });
}

/// Text that looks enough like a configuration to get past the first check.
fn nearly_toml() -> impl Strategy<Value = String> {
    let names: Vec<&str> = keys::KEYS.iter().map(|key| key.name).collect();
    let name = prop_oneof![
        8 => proptest::sample::select(names),
        1 => Just("cluster"),
        1 => Just("storge"),
    ];
    let value = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        "[-0-9a-zA-Z:.\\[\\]=,]{0,20}".prop_map(|text| format!("'{text}'")),
        any::<String>().prop_map(|text| format!("{text:?}")),
        Just("[[['a']]]".to_string()),
        Just("{ a = 1 }".to_string()),
        Just("1979-05-27".to_string()),
        Just("0x7fffffffffffffffffff".to_string()),
        any::<String>(),
    ];
    let line = (name, value).prop_map(|(name, value)| format!("{name} = {value}\n"));
    proptest::collection::vec(line, 0..6).prop_map(|lines| lines.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is written: a configuration, or problems. Never a panic, never a refusal without a word.
    #[test]
    fn no_input_is_too_strange(
        text in prop_oneof![any::<String>(), nearly_toml()],
        env in nearly_toml(),
        set in any::<String>(),
        addr in "[-0-9a-z:.\\[\\]]{0,12}",
        port in "[-+0-9a-z ]{0,6}",
    ) {
        let variables: Vec<(OsString, OsString)> = env
            .lines()
            .filter_map(|line| line.split_once(" = "))
            .map(|(name, value)| {
                let name = format!("RUSHKV__{}", name.replace('.', "__").to_uppercase());
                (OsString::from(name), OsString::from(value))
            })
            .collect();
        let dir = TempDir::new().expect("temporary directory");
        let path = dir.path().join("rushkv.toml");
        fs::write(&path, text).expect("write");
        let flags = Flags { addr: Some(addr), port: Some(port), set: vec![set], ..Flags::default() };
        let sources = Sources { config: Some(path), env: variables, flags, ..Sources::default() };
        match config::load(&sources) {
            Ok(loaded) => prop_assert_eq!(loaded.settings.len(), keys::KEYS.len()),
            Err(problems) => {
                prop_assert!(!problems.is_empty());
                for problem in problems {
                    prop_assert!(!problem.message.is_empty());
                    prop_assert!(!problem.to_string().contains('\n'), "{}", problem);
                }
            }
        }
    }
}
