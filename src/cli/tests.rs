//! rushkv-cli from command line to output and exit code, against an in-memory server.

use std::io::Write;
use std::sync::{Arc, Mutex};

use super::tool::Printer;
use crate::client::testing::{Act, Fake, refusing};
use crate::error::{Error, Reason, to_status};

/// What a program printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
    pub(crate) exit: u8,
}

impl Ran {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.out.clone()).unwrap()
    }
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs `program` with words after its name, asking the server at `address`.
pub(crate) async fn run_program(
    program: fn(Vec<std::ffi::OsString>, Printer) -> u8,
    address: &str,
    words: &[&str],
) -> Ran {
    let mut args: Vec<std::ffi::OsString> = vec!["program".into(), format!("-server={address}").into()];
    args.extend(words.iter().map(Into::into));
    let (out, err) = (Sink::default(), Sink::default());
    let printer = Printer::to(Box::new(out.clone()), Box::new(err.clone()));
    let exit = tokio::task::spawn_blocking(move || program(args, printer)).await.unwrap();
    let (out, err) = (out.0.lock().unwrap().clone(), err.0.lock().unwrap().clone());
    Ran { out, err: String::from_utf8(err).unwrap().replace(address, "SERVER"), exit }
}

pub(crate) async fn cli(fake: &Fake, words: &[&str]) -> Ran {
    run_program(super::run, &fake.address, words).await
}

#[tokio::test]
async fn put_get_and_delete_as_subcommands() {
    let fake = Fake::start().await;
    let ran = cli(&fake, &["put", "k", "v 1"]).await;
    assert_eq!((ran.text().as_str(), ran.exit), ("OK\n", 0), "{ran:?}");
    let ran = cli(&fake, &["get", "k"]).await;
    assert_eq!((ran.text().as_str(), ran.exit), ("v 1", 0), "plain is the value's bytes and nothing more");
    let ran = cli(&fake, &["get", "k", "-o", "table"]).await;
    assert_eq!(ran.text(), "v 1\n");
    let ran = cli(&fake, &["get", "k", "-o", "json", "--stale"]).await;
    let want = r#"{"create_revision":1,"key":"k","mod_revision":1,"value":"v 1","version":1}"#;
    assert_eq!(ran.text().trim_end(), want);
    let ran = cli(&fake, &["exists", "k"]).await;
    assert_eq!((ran.text().as_str(), ran.exit), ("yes\n", 0));
    assert_eq!(cli(&fake, &["del", "k"]).await.exit, 0);
    for words in [["get", "k"], ["delete", "k"]] {
        let ran = cli(&fake, &words).await;
        assert_eq!(ran.exit, 3);
        assert!(ran.out.is_empty());
        assert_eq!(ran.err, "error: key not found: k\n");
    }
    let ran = cli(&fake, &["exists", "k"]).await;
    assert_eq!((ran.text().as_str(), ran.exit, ran.err.as_str()), ("no\n", 3, ""));
}

#[tokio::test]
async fn values_come_from_files_byte_for_byte() {
    let fake = Fake::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("value");
    let value = b"\x00\xff\r\nraw\n";
    std::fs::write(&file, value).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(cli(&fake, &["put", "k", "--value-file", file]).await.exit, 0);
    assert_eq!(cli(&fake, &["get", "k"]).await.out, value);
    let ran = cli(&fake, &["get", "k", "-ojson"]).await;
    assert!(ran.text().contains(r#""value_base64":"AP8NCnJhdwo=""#), "{ran:?}");
    let ran = cli(&fake, &["get", "k", "-o=table"]).await;
    assert_eq!(ran.text(), "\\u{0}\\xff\\r\\nraw\\n\n");

    std::fs::write(file, vec![0; crate::limits::VALUE_BYTES_MAX + 1]).unwrap();
    let ran = cli(&fake, &["put", "k", "--value-file", file]).await;
    assert_eq!(ran.exit, 2);
    assert!(ran.err.contains("1048576"), "{ran:?}");
    let ran = cli(&fake, &["put", "k", "--value-file", "/does/not/exist"]).await;
    assert_eq!(ran.exit, 1);
    assert!(ran.err.contains("/does/not/exist"), "{ran:?}");
}

#[tokio::test]
async fn preconditions_hold() {
    let fake = Fake::start().await;
    assert_eq!(cli(&fake, &["put", "k", "1", "--if-absent"]).await.exit, 0);
    let ran = cli(&fake, &["put", "k", "2", "--if-absent"]).await;
    assert_eq!(ran.exit, 4);
    insta::assert_snapshot!("conflict", ran.err);
    let ran = cli(&fake, &["put", "k", "2", "--if-version", "7", "-o", "json"]).await;
    assert_eq!(ran.exit, 4);
    insta::assert_snapshot!("conflict_json", ran.err.replace(&fake.address, "SERVER"));
    assert_eq!(cli(&fake, &["put", "k", "2", "-if-version=1"]).await.exit, 0);
    assert_eq!(cli(&fake, &["delete", "k", "--if-version", "1"]).await.exit, 4);
    assert_eq!(cli(&fake, &["delete", "k", "--if-version", "2"]).await.exit, 0);
}

#[tokio::test]
async fn failures_have_their_exit_codes() {
    for (reason, exit) in [
        (Reason::InvalidArgument, 2),
        (Reason::DiskFull, 5),
        (Reason::OutcomeUnknown, 6),
        (Reason::ReplicaFailed, 5),
        (Reason::Unimplemented, 1),
        (Reason::Internal, 1),
    ] {
        let fake =
            Fake::with(Box::new(move |_, _| Act::Fail(to_status(&Error::new(reason, "said so"))))).await;
        let ran = cli(&fake, &["put", "k", "v"]).await;
        assert_eq!(ran.exit, exit, "{reason:?}");
        assert!(ran.err.contains("SERVER: said so"), "{ran:?}");
    }
    let ran = run_program(super::run, &refusing(), &["--timeout", "1s", "exists", "k"]).await;
    assert_eq!(ran.exit, 5, "can't tell is not no");
    assert!(ran.out.is_empty());
    assert!(ran.err.contains("Connection refused"), "{ran:?}");
    let ran = run_program(super::run, "no:port:here", &["get", "k"]).await;
    assert_eq!(ran.exit, 2, "{ran:?}");
}

#[tokio::test]
async fn several_servers_are_asked_and_nobody_there_is_told_soon() {
    let fake = Fake::start().await;
    fake.put("k", "v");
    let dead = refusing();
    let both = format!("{dead},{}", fake.address);
    let started = std::time::Instant::now();
    for (address, words) in [(&both, &["get", "k"][..]), (&dead, &["-s", &fake.address, "get", "k"])] {
        let ran = run_program(super::run, address, words).await;
        assert_eq!((ran.text().as_str(), ran.exit), ("v", 0), "{ran:?}");
    }
    let ran = run_program(super::run, &dead, &["put", "k", "v"]).await;
    assert_eq!(ran.exit, 5);
    assert!(ran.err.contains("SERVER") && ran.err.contains("Connection refused"), "{ran:?}");
    let took = started.elapsed();
    assert!(took < std::time::Duration::from_secs(4), "{took:?}, and a call may take 5 s");
}

#[tokio::test]
async fn a_wrong_command_line_is_told() {
    let fake = Fake::start().await;
    for words in
        [&["get"][..], &["put", "k"], &["frobnicate"], &["-batch", "get", "k"], &["-batch", "-commands= ; "]]
    {
        let ran = cli(&fake, words).await;
        assert_eq!(ran.exit, 2, "{words:?}: {ran:?}");
        assert!(ran.out.is_empty() && !ran.err.is_empty());
    }
    let ran = cli(&fake, &["--version"]).await;
    assert_eq!((ran.text().as_str(), ran.exit), (concat!("rushkv-cli ", env!("CARGO_PKG_VERSION"), "\n"), 0));
    assert_eq!(cli(&fake, &["-help"]).await.exit, 0);
    assert!(fake.calls().is_empty());
}

#[tokio::test]
async fn a_batch_at_once_prints_in_its_order() {
    let fake = Fake::start().await;
    let puts: Vec<String> = (0..200).map(|n| format!("put k{n} v{n}")).collect();
    let ran = cli(&fake, &["--at-once=64", "-commands", &puts.join(";")]).await;
    assert_eq!((ran.text(), ran.exit), ("OK\n".repeat(200), 0), "{ran:?}");
    let line = "get k1; get none; bogus; scan k19 --keys-only; get k2; exists k3; exit; put k1 x";
    let ran = cli(&fake, &["-batch", "--at-once", "8", "-commands", line]).await;
    let scanned: String =
        std::iter::once("k19\n".into()).chain((190..200).map(|n| format!("k{n}\n"))).collect();
    assert_eq!((ran.text(), ran.exit), (format!("v1\n{scanned}v2\nyes\n"), 3), "{ran:?}");
    let said: Vec<&str> = ran.err.lines().filter(|line| line.starts_with("error")).collect();
    assert!(said[0].contains("none") && said[1].contains("bogus") && said.len() == 2, "{ran:?}");
    assert_eq!(cli(&fake, &["get", "k1"]).await.text(), "v1", "what comes after exit does not run");
    assert_eq!(cli(&fake, &["--at-once=2", "get", "k1"]).await.exit, 2);
    let ran = cli(&fake, &["--at-once=2", "-commands", "import -; put a 1;; get k2"]).await;
    assert_eq!((ran.text().as_str(), ran.exit), ("OK\nv2\n", 2), "{ran:?}");
}

#[tokio::test]
async fn at_once_means_so() {
    // Each is answered only when all have come.
    let all = Arc::new(tokio::sync::Barrier::new(32));
    let fake = Fake::with(Box::new(move |_, _| Act::Meet(all.clone()))).await;
    let gets: Vec<String> = (0..32).map(|n| format!("exists k{n}")).collect();
    let ran = cli(&fake, &["--timeout=5s", "--at-once=32", "-commands", &gets.join(";")]).await;
    assert_eq!((ran.text(), ran.exit), ("no\n".repeat(32), 3), "{ran:?}");
}

#[tokio::test]
async fn the_originals_batch_mode() {
    let fake = Fake::start().await;
    let put = r#"-commands=put user:1 {"name":"Alice","age":30}"#;
    let ran = cli(&fake, &["-batch", put]).await;
    assert_eq!((ran.text().as_str(), ran.exit), ("OK\n", 0), "{ran:?}");
    let ran = cli(&fake, &["-batch", "-commands=get user:1"]).await;
    assert_eq!(ran.text(), "{\"name\":\"Alice\",\"age\":30}\n");
    let ran = cli(&fake, &["-batch=true", "-commands", "put a \"x;y\"; get a; exists b"]).await;
    assert_eq!((ran.text().as_str(), ran.exit), ("OK\n\"x;y\"\nno\n", 3));

    let ran = cli(&fake, &["-batch", "-commands=get none; bogus; get a; put b 1; exit; put c 1"]).await;
    assert_eq!(ran.exit, 3, "the first failure's");
    assert_eq!(ran.text(), "\"x;y\"\nOK\n", "the others run all the same, up to exit");
    insta::assert_snapshot!("batch_failures", ran.err);
    let ran = cli(&fake, &["-batch", "-commands=bogus; get none"]).await;
    assert_eq!(ran.exit, 2);
    let ran = cli(&fake, &["-batch", "-commands=help"]).await;
    insta::assert_snapshot!("batch_help", ran.text());
}

#[tokio::test]
async fn scans_in_every_format() {
    let fake = Fake::start().await;
    for (key, value) in [("a", "1"), ("user:1", "Alice"), ("user:2", "Bob\twith\ttabs"), ("z", "")] {
        fake.put(key, value);
    }
    for (name, words) in [
        ("scan_table", &["scan", "-o", "table"][..]),
        ("scan_plain", &["scan", "--prefix", "user:"]),
        ("scan_json", &["scan", "user:", "-o", "json", "--reverse"]),
        ("scan_keys", &["scan", "--keys-only", "--limit", "3", "-o", "table"]),
        ("scan_range", &["scan", "--start", "b", "--end", "z", "--keys-only"]),
    ] {
        let ran = cli(&fake, words).await;
        assert_eq!(ran.exit, 0, "{ran:?}");
        insta::assert_snapshot!(name, ran.text());
    }
    let ran = cli(&fake, &["scan", "--prefix", "u", "--start", "a"]).await;
    assert_eq!(ran.exit, 2);
}

#[tokio::test]
async fn cluster_and_stats_in_every_format() {
    let fake = Fake::start().await;
    for command in ["cluster", "stats"] {
        for format in ["table", "plain", "json"] {
            let ran = cli(&fake, &[command, "-o", format]).await;
            assert_eq!(ran.exit, 0, "{ran:?}");
            insta::assert_snapshot!(format!("{command}_{format}"), ran.text());
        }
    }
}

#[tokio::test]
async fn packages_get_their_texts() {
    let fake = Fake::start().await;
    for (what, has) in [
        ("man", ".SH \"COMMAND: IMPORT\""),
        ("bash", "_rushkv__cli()"),
        ("zsh", "#compdef rushkv-cli"),
        ("fish", "complete -c rushkv-cli"),
    ] {
        let ran = cli(&fake, &["--generate", what]).await;
        assert_eq!(ran.exit, 0);
        assert!(ran.text().contains(has), "{what}: {}", ran.text());
    }
}

/// A reader that goes away, as `head` does.
struct ClosedPipe;

impl Write for ClosedPipe {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_closed_pipe_ends_quietly() {
    let fake = Fake::start().await;
    fake.put("a", "1");
    let batch = ["-batch", "-commands=get a; get a"];
    for (words, expected) in [(&["scan"][..], 0), (&batch, super::tool::EXIT_PIPE)] {
        let (exit, err) = unread(&fake, words, ClosedPipe).await;
        assert_eq!(exit, expected, "{words:?}");
        assert_eq!(err, "");
    }
    assert_eq!(fake.calls(), ["scan", "get"], "nothing more is asked for");
}

/// Its exit code, and what it says, of a program whose output goes to `out`.
async fn unread(fake: &Fake, words: &[&str], out: impl Write + Send + 'static) -> (u8, String) {
    let mut args: Vec<std::ffi::OsString> = vec!["p".into(), "--server".into(), (&fake.address).into()];
    args.extend(words.iter().map(Into::into));
    let err = Sink::default();
    let printer = Printer::to(Box::new(out), Box::new(err.clone()));
    let exit = tokio::task::spawn_blocking(move || super::run(args, printer)).await.unwrap();
    let said = String::from_utf8(err.0.lock().unwrap().clone()).unwrap();
    (exit, said)
}

/// As stdout is: what is printed is noticed to be unread only when it is sent out.
#[tokio::test]
async fn a_verdict_counts_whether_or_not_it_is_read() {
    let loses = |call: &str, number: usize| match call {
        "put" if number.is_multiple_of(50) => Act::Lose,
        _ => Act::Work,
    };
    let fake = Fake::with(Box::new(loses)).await;
    for (words, expected) in [
        (&["exists", "other"][..], 3),
        (&["bench", "--check", "-n", "4000", "-c", "8"], 7),
        (&["bench", "put", "-n", "10"], 0),
    ] {
        let (exit, err) = unread(&fake, words, std::io::BufWriter::new(ClosedPipe)).await;
        assert_eq!(exit, expected, "{words:?}: {err}");
    }
}

/// `count` records as import reads them; every fourth key is not UTF-8.
fn lines(count: u32) -> String {
    let line = |n: u32| match n % 4 {
        0 => format!(
            "{{\"key_base64\":\"{}\",\"value\":\"v{n}\"}}\n",
            base64(format!("k{n}\u{ff}").as_bytes())
        ),
        _ => format!("{{\"key\":\"k{n}\",\"value\":\"v{n}\"}}\n"),
    };
    (0..count).map(line).collect()
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::STANDARD.encode(bytes)
}

struct Files {
    _dir: tempfile::TempDir,
    input: String,
    output: String,
    note: String,
}

fn files(content: &str) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (input, output, note) = (path("in.jsonl"), path("out.jsonl"), path("in.jsonl.progress"));
    std::fs::write(&input, content).unwrap();
    Files { _dir: dir, input, output, note }
}

pub(super) fn records(fake: &Fake) -> Vec<(Vec<u8>, Vec<u8>)> {
    let records = fake.state.records.lock().unwrap();
    records.values().map(|record| (record.key.to_vec(), record.value.to_vec())).collect()
}

#[tokio::test]
async fn what_is_imported_is_exported() {
    let files = files(&lines(2500));
    let fake = Fake::start().await;
    let ran = cli(&fake, &["import", &files.input, "--batch-keys", "100", "-o", "json"]).await;
    assert_eq!(ran.exit, 0, "{ran:?}");
    let told: serde_json::Value = serde_json::from_str(&ran.text()).unwrap();
    assert_eq!((&told["written"], &told["complete"]), (&2500.into(), &true.into()));
    assert!(ran.err.contains("2500 keys written"), "{ran:?}");
    assert!(!std::path::Path::new(&files.note).exists(), "no note is left");

    assert_eq!(cli(&fake, &["export", &files.output]).await.exit, 0);
    let exported = std::fs::read_to_string(&files.output).unwrap();
    let to_stdout = cli(&fake, &["export", "-"]).await;
    assert_eq!(to_stdout.text(), exported);
    let other = Fake::start().await;
    assert_eq!(cli(&other, &["import", &files.output]).await.exit, 0);
    assert_eq!(records(&other), records(&fake));
    assert_eq!(records(&fake).len(), 2500);

    let again = cli(&fake, &["export", &files.output]).await;
    assert_eq!(again.exit, 2, "nothing is overwritten unasked");
    assert!(again.err.contains("--force"), "{again:?}");
    assert_eq!(cli(&fake, &["export", &files.output, "--force", "--prefix", "k1"]).await.exit, 0);
    assert!(std::fs::read_to_string(&files.output).unwrap().lines().count() < 2500);
}

#[tokio::test]
async fn an_export_goes_on_after_its_last_whole_line() {
    let fake = Fake::start().await;
    for n in 0..50 {
        fake.put(&format!("k{n:02}"), "v");
    }
    let files = files("");
    assert_eq!(cli(&fake, &["export", &files.output]).await.exit, 0);
    let whole = std::fs::read(&files.output).unwrap();
    for cut in [0, 1, 25, 26, 700, whole.len() - 1, whole.len()] {
        std::fs::write(&files.output, &whole[..cut]).unwrap();
        let ran = cli(&fake, &["export", &files.output, "--resume"]).await;
        assert_eq!(ran.exit, 0, "{ran:?}");
        assert_eq!(std::fs::read(&files.output).unwrap(), whole, "cut at {cut}");
    }
    std::fs::write(&files.output, "not json\n").unwrap();
    assert_eq!(cli(&fake, &["export", &files.output, "--resume"]).await.exit, 2);
    assert_eq!(std::fs::read(&files.output).unwrap(), b"not json\n", "left alone");
}

#[tokio::test]
async fn a_key_that_occurs_twice_keeps_its_last_value() {
    let content: String =
        (0..3000).map(|n| format!("{{\"key\":\"k{}\",\"value\":\"{n}\"}}\n", n % 7)).collect();
    let files = files(&content);
    let fake = Fake::start().await;
    let ran = cli(&fake, &["import", &files.input, "--batch-keys", "3"]).await;
    assert_eq!(ran.exit, 0, "{ran:?}");
    for (key, value) in records(&fake) {
        let number: u32 = String::from_utf8(key[1..].to_vec()).unwrap().parse().unwrap();
        let last = (0..3000).rev().find(|n| n % 7 == number).unwrap();
        assert_eq!(value, last.to_string().into_bytes(), "k{number}");
    }
}

#[tokio::test]
async fn an_import_that_fails_is_resumed_where_all_is_written() {
    let files = files(&lines(2000));
    let unwilling = Fake::with(Box::new(|call, number| match call {
        // The first call asks who the cluster is.
        "batch_write" if number > 40 => Act::Fail(to_status(&Error::new(Reason::DiskFull, "full"))),
        _ => Act::Work,
    }))
    .await;
    let ran = cli(&unwilling, &["import", &files.input, "--batch-keys", "10", "--in-flight", "4"]).await;
    assert_eq!(ran.exit, 5, "{ran:?}");
    assert!(ran.err.contains("in.jsonl: line ") && ran.err.contains("full"), "{ran:?}");
    let note: serde_json::Value = serde_json::from_slice(&std::fs::read(&files.note).unwrap()).unwrap();
    let done = note["lines"].as_u64().unwrap() as usize;
    assert!(done > 100 && done < 500, "{note}");
    // Everything before the noted line is there.
    let there = records(&unwilling);
    for n in 0..done {
        assert!(there.iter().any(|(_, value)| *value == format!("v{n}").into_bytes()), "line {n} of {done}");
    }

    let other = Fake::start().await;
    let ran = cli(&other, &["import", &files.input, "--resume", "-o", "json"]).await;
    assert_eq!(ran.exit, 0, "{ran:?}");
    assert!(ran.err.contains(&format!("going on after line {done}")), "{ran:?}");
    assert_eq!(records(&other).len(), 2000 - done);
    assert!(!std::path::Path::new(&files.note).exists());
    let ran = cli(&other, &["import", &files.input, "--resume"]).await;
    assert_eq!(ran.exit, 0);
    assert!(ran.err.contains("no progress is noted"), "{ran:?}");
    assert_eq!(records(&other).len(), 2000);
}

#[tokio::test]
async fn a_bad_line_is_named_and_those_before_it_are_written() {
    let good = lines(120);
    for (bad, says) in [
        ("{\"key\":\"k\"}\n", "neither value"),
        ("nonsense\n", "expected"),
        ("{\"key\":\"\",\"value\":\"v\"}\n", "at least one byte"),
    ] {
        let files = files(&format!("{good}\n{bad}{good}"));
        let fake = Fake::start().await;
        let ran = cli(&fake, &["import", &files.input, "--batch-keys", "7"]).await;
        assert_eq!(ran.exit, 2, "{ran:?}");
        assert!(ran.err.contains("in.jsonl: line 122: ") && ran.err.contains(says), "{ran:?}");
        assert!(ran.err.contains("everything up to line 121 is written"), "{ran:?}");
        assert_eq!(records(&fake).len(), 120);
    }
}

#[tokio::test]
async fn an_import_outlasts_failures_and_unknown_outcomes() {
    let files = files(&lines(300));
    let fake = Fake::with(Box::new(|call, number| match (call, number % 5) {
        ("batch_write", 2) => Act::WorkThenFail(to_status(&Error::new(Reason::OutcomeUnknown, "who knows"))),
        ("batch_write", 4) => Act::Fail(to_status(&Error::new(Reason::Overloaded, "busy"))),
        _ => Act::Work,
    }))
    .await;
    let words = ["--timeout=2s", "import", &files.input, "--batch-keys", "20"];
    let ran = cli(&fake, &words).await;
    assert_eq!(ran.exit, 0, "{ran:?}");
    assert_eq!(records(&fake).len(), 300);

    let dead = Fake::with(Box::new(|call, _| match call {
        "batch_write" => Act::Fail(to_status(&Error::new(Reason::OutcomeUnknown, "who knows"))),
        _ => Act::Work,
    }))
    .await;
    let words = ["--timeout=2s", "import", &files.input, "--retry-for", "500ms"];
    let ran = cli(&dead, &words).await;
    assert_eq!(ran.exit, 6, "{ran:?}");
}

#[tokio::test]
async fn import_and_export_refuse_what_makes_no_sense() {
    let fake = Fake::start().await;
    for (words, exit) in [
        (&["import", "-", "--resume"][..], 2),
        (&["export", "-", "--resume"], 2),
        (&["import", "/does/not/exist"], 1),
        (&["export", "/does/not/exist/f"], 1),
        (&["import"], 2),
    ] {
        let ran = cli(&fake, words).await;
        assert_eq!(ran.exit, exit, "{words:?}: {ran:?}");
    }
}
