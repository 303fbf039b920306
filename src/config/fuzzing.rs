//! For fuzzing: any text of a configuration file, any variables and flags make a configuration or problems
//! that can be told.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use super::layer::Layers;
use super::{Flags, check, defaults, env, file, original_flags, set_flags};

/// Whether it holds.
fn checked(layers: &Layers, mut problems: Vec<super::Problem>) -> bool {
    let mut warnings = Vec::new();
    let config = check::check(layers, "host", &mut problems, &mut warnings);
    for problem in problems.iter().chain(&warnings) {
        assert!(!problem.to_string().is_empty());
    }
    assert!(config.is_some() || !problems.is_empty(), "it is refused without a word");
    let config = config.filter(|_| problems.is_empty());
    config.map(|config| config.node_options(8080)).is_some()
}

/// The text of a file, over the defaults.
pub fn text(input: &[u8]) -> bool {
    let mut layers = Layers::default();
    layers.push(defaults(true));
    let mut problems = Vec::new();
    let parsed = file::parse(Path::new("rushkv.toml"), &String::from_utf8_lossy(input), &mut problems);
    layers.push(parsed.entries);
    checked(&layers, problems)
}

/// Values between zero bytes: the original's flags, `--set`, then variables by name and value.
pub fn given(input: &[u8]) -> bool {
    let words: Vec<&[u8]> = input.split(|byte| *byte == 0).collect();
    let text = |at: usize| {
        words.get(at).filter(|word| !word.is_empty()).map(|word| String::from_utf8_lossy(word).into_owned())
    };
    let flags = Flags {
        id: text(0),
        addr: text(1),
        port: text(2),
        data: text(3),
        set: text(4).into_iter().collect(),
    };
    let os = |word: &[u8]| OsString::from_vec(word.to_vec());
    let variables: Vec<(OsString, OsString)> = words
        .get(5..)
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|pair| (os(&[b"RUSHKV__", pair[0]].concat()), os(pair[1])))
        .collect();
    let mut layers = Layers::default();
    layers.push(defaults(false));
    let mut problems = Vec::new();
    layers.push(env::read(&variables, &mut problems));
    layers.push(set_flags(&flags.set, &mut problems));
    let flags = original_flags(&flags, &layers, &mut problems);
    layers.push(flags);
    checked(&layers, problems)
}

pub fn text_seeds() -> Vec<Vec<u8>> {
    let whole = "node_id = \"node1\"\naddr = \"10.0.0.1:8080\"\nadvertise_addr = \"[fd00::1]:9\"\n\
                 data_dir = \"/d\"\npeers = [\"10.0.0.2:8080\", \"b\"]\nzone = \"z\"\nweight = 2\n\
                 [cluster]\nname = \"c\"\nreplicas = 3\npartitions = 16\n\
                 [storage]\nengine = \"sled\"\ncache = \"64MiB\"\ndisk_reserve = \"1GiB\"\n\
                 [metrics]\naddr = \"auto\"\n[log]\nlevel = \"info,rushkv=debug\"\n";
    let parts = ["", "weight = 3\n", "[storage]\nengine = 'fjall'\ncache = 1073741824\n", whole];
    parts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub fn given_seeds() -> Vec<Vec<u8>> {
    vec![
        b"node1\0localhost\x008081\0./d\0cluster.replicas=5\0STORAGE__ENGINE\0sled\0PEERS\0localhost:9"
            .to_vec(),
        b"\0[::1]:80\0\0\0storage.cache=1GiB\0METRICS__ADDR\0off\0LOG__LEVEL\0debug".to_vec(),
    ]
}
