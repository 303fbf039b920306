//! rushkv-cli as a process against a real node.

#[path = "cli_support/mod.rs"]
mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::{Node, cli, cli_command, ok, parts};

#[test]
fn the_originals_commands_work_as_they_stand() {
    let node = Node::start();
    let put = r#"-commands=put user:1 {"name":"Alice","age":30}"#;
    assert_eq!(ok(cli(&node, &["-batch", put])), "OK\n");
    assert_eq!(ok(cli(&node, &["-batch", "-commands=get user:1"])), "{\"name\":\"Alice\",\"age\":30}\n");
    assert_eq!(ok(cli(&node, &["-batch", "-commands", "delete user:1"])), "OK\n");
    let (exit, out, err) = parts(cli(&node, &["-batch", "-commands=get user:1; put a 1; get a"]));
    assert_eq!((exit, out.as_str()), (3, "OK\n1\n"), "{err}");
    assert!(err.contains("key not found: user:1"), "{err}");
}

#[test]
fn exit_codes_tell_failures_apart() {
    let mut node = Node::start();
    let exit = |node: &Node, words: &[&str]| parts(cli(node, words)).0;
    assert_eq!(exit(&node, &["put", "k", "1", "--if-absent"]), 0);
    assert_eq!(exit(&node, &["put", "k", "2", "--if-absent"]), 4);
    assert_eq!(exit(&node, &["put", "k", "2", "--if-version", "9"]), 4);
    assert_eq!(exit(&node, &["put", "k", "2", "--if-version", "1"]), 0);
    assert_eq!(exit(&node, &["exists", "k"]), 0);
    assert_eq!(exit(&node, &["exists", "other"]), 3);
    assert_eq!(exit(&node, &["get", "other"]), 3);
    assert_eq!(exit(&node, &["get"]), 2);
    assert_eq!(exit(&node, &["put", &"k".repeat(4097), "v"]), 2);
    node.kill();
    assert_eq!(exit(&node, &["-timeout=300ms", "exists", "k"]), 5);
    node.restart();
    let (exit, out, err) = parts(cli(&node, &["get", "k"]));
    assert_eq!((exit, out.as_str()), (0, "2"), "what was acknowledged outlives kill -9: {err}");
}

/// `| head`: as if SIGPIPE had ended it.
#[test]
fn a_batch_whose_reader_leaves_does_not_say_that_all_was_done() {
    let node = Node::start();
    assert_eq!(parts(cli(&node, &["put", "k", "1"])).0, 0);
    for command in ["-commands=get k; delete k", "-commands=get other; get k; delete k"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = cli_command(&node, &["-batch", command]).stdout(writer).status().unwrap();
        assert_eq!(status.code(), Some(141), "{command}");
        assert_eq!(parts(cli(&node, &["exists", "k"])).0, 0, "{command}: what came after was done");
    }
}

#[test]
fn bytes_go_through_pipes_unchanged() {
    let node = Node::start();
    let value: Vec<u8> = (0..=255u8).cycle().take(1024 * 1024).collect();
    let mut put = cli_command(&node, &["put", "blob", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    put.stdin.take().unwrap().write_all(&value).unwrap();
    assert!(put.wait().unwrap().success());
    assert_eq!(cli(&node, &["get", "blob"]).stdout, value);
}

#[test]
fn the_prompts_commands_work_from_a_pipe() {
    let node = Node::start();
    let mut process = cli_command(&node, &[])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = b"put k a value; with \"quotes\n\nget k\nexists none\nDEL k\nhelp\nq\nput late 1\n";
    process.stdin.take().unwrap().write_all(lines).unwrap();
    let (exit, out, err) = parts(process.wait_with_output().unwrap());
    assert!(out.starts_with("OK\na value; with \"quotes\nno\nOK\nCommands:\n"), "{out}\n{err}");
    assert_eq!(exit, 3, "exists said no");
    assert_eq!(parts(cli(&node, &["exists", "late"])).0, 3, "nothing after quit");
}

#[test]
fn scans_and_stats_tell_what_is_there() {
    let node = Node::start();
    for n in 0..30 {
        ok(cli(&node, &["put", &format!("user:{n:02}"), &format!("v{n}")]));
    }
    let keys = ok(cli(&node, &["scan", "--prefix", "user:1", "--keys-only"]));
    let want: String = (10..20).map(|n| format!("user:{n}\n")).collect();
    assert_eq!(keys, want, "in key order over all partitions");
    let reverse = ok(cli(&node, &["scan", "user:", "--reverse", "--limit", "2"]));
    assert_eq!(reverse, "user:29\tv29\nuser:28\tv28\n");
    let range = ok(cli(&node, &["scan", "--start", "user:28", "--end", "user:29", "-o", "json"]));
    let record: serde_json::Value = serde_json::from_str(&range).unwrap();
    assert_eq!((&record["key"], &record["value"]), (&"user:28".into(), &"v28".into()));
    assert_eq!(ok(cli(&node, &["get", "user:03", "--stale"])), "v3");

    let stats: serde_json::Value = serde_json::from_str(&ok(cli(&node, &["stats", "-o=json"]))).unwrap();
    assert_eq!(stats["keys"], 30, "{stats}");
    assert_eq!(stats["nodes"], 1);
    assert_eq!(stats["partitions"], stats["partitions_led"]);
    assert!(stats["data_bytes"].as_u64().unwrap() > 0 && stats["wal_bytes"].as_u64().unwrap() > 0, "{stats}");
    let cluster = ok(cli(&node, &["cluster"]));
    assert!(cluster.starts_with("node1\t") && cluster.ends_with("\ttrue\n"), "{cluster}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let node = Node::start();
    let lines: String =
        (0..5000).map(|n| format!("{{\"key\":\"k{n:05}\",\"value\":\"{n:0200}\"}}\n")).collect();
    let input = node.dir().join("in.jsonl");
    std::fs::write(&input, lines).unwrap();
    ok(cli(&node, &["import", input.to_str().unwrap()]));
    let mut scan =
        cli_command(&node, &["scan"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(scan.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("k00000\t"), "{first}");
    let (exit, _, err) = parts(scan.wait_with_output().unwrap());
    assert_eq!((exit, err.as_str()), (0, ""));
}

#[test]
fn an_import_killed_on_the_way_is_resumed() {
    let node = Node::start();
    let count = 60_000;
    let lines: String = (0..count).map(|n| format!("{{\"key\":\"k{n:06}\",\"value\":\"v{n}\"}}\n")).collect();
    let input = node.dir().join("in.jsonl");
    std::fs::write(&input, &lines).unwrap();
    let input = input.to_str().unwrap();
    let note = node.dir().join("in.jsonl.progress");

    let words = ["import", input, "--batch-keys", "20", "--in-flight", "2"];
    let mut import = cli_command(&node, &words).stderr(Stdio::null()).spawn().unwrap();
    let since = Instant::now();
    while !note.exists() && import.try_wait().unwrap().is_none() {
        assert!(since.elapsed() < Duration::from_secs(60), "no progress is noted");
        std::thread::sleep(Duration::from_millis(5));
    }
    let is_on_the_way = import.try_wait().unwrap().is_none();
    import.kill().unwrap();
    import.wait().unwrap();
    let (exit, _, err) = parts(cli(&node, &["import", input, "--resume"]));
    assert_eq!(exit, 0, "{err}");
    if is_on_the_way {
        assert!(err.contains("going on after line "), "{err}");
    }

    let output = node.dir().join("out.jsonl");
    ok(cli(&node, &["export", output.to_str().unwrap()]));
    let exported = std::fs::read_to_string(&output).unwrap();
    assert!(exported == lines, "{} lines of {count} came back", exported.lines().count());
}

#[test]
fn an_import_outlives_its_node() {
    let mut node = Node::start();
    let count = 40_000;
    let lines: String = (0..count).map(|n| format!("{{\"key\":\"k{n:06}\",\"value\":\"v{n}\"}}\n")).collect();
    let input = node.dir().join("in.jsonl");
    std::fs::write(&input, &lines).unwrap();
    let words = ["import", input.to_str().unwrap(), "--batch-keys", "50"];
    let started = Instant::now();
    let import = cli_command(&node, &words).stderr(Stdio::piped()).spawn().unwrap();
    while parts(cli(&node, &["exists", "k000000"])).0 != 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "nothing is imported");
    }
    node.kill();
    node.restart();
    let (exit, _, err) = parts(import.wait_with_output().unwrap());
    assert_eq!(exit, 0, "{err}");
    let keys = ok(cli(&node, &["scan", "--keys-only"]));
    assert_eq!(keys.lines().count(), count);
}

#[test]
fn bench_runs_against_a_node() {
    let node = Node::start();
    let words = ["bench", "mixed", "--clients", "8", "--keys", "500", "-d", "1s", "-o", "json"];
    let told: serde_json::Value = serde_json::from_str(&ok(cli(&node, &words))).unwrap();
    assert_eq!(told["results"].as_array().unwrap().len(), 2, "{told}");
    assert_eq!(told["errors"], serde_json::json!({}));
    assert_eq!(ok(cli(&node, &["scan", "--keys-only"])), "", "it cleans up");
}

#[test]
fn the_demo_runs() {
    let node = Node::start();
    let output = std::process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/cli_demo.sh"))
        .arg(&node.server)
        .env("RUSHKV_CLI", env!("CARGO_BIN_EXE_rushkv-cli"))
        .output()
        .unwrap();
    let out = ok(output);
    assert!(out.contains("(exit code 4)") && out.contains("Bob; the builder"), "{out}");
    assert_eq!(ok(cli(&node, &["scan", "--keys-only"])), "", "it cleans up");
}

#[test]
fn an_import_of_a_bare_file_name_that_is_broken_off_says_how_to_go_on() {
    let mut node = Node::start();
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("users.jsonl.progress");
    std::fs::write(dir.path().join("users.jsonl"), "{\"key\":\"a\",\"value\":\"1\"}\nnonsense\n").unwrap();
    let import = |node: &Node, words: &[&str]| {
        let command = cli_command(node, words).current_dir(dir.path()).output();
        parts(command.expect("it runs"))
    };
    // Once its line is mended, the file is another one.
    let (exit, _, err) = import(&node, &["import", "users.jsonl"]);
    assert!(exit == 2 && err.contains("mend the line") && !err.contains("--resume"), "{exit}: {err}");
    assert!(err.contains("line 2") && !note.exists(), "{err}");

    let lines: String = (0..60_000).map(|n| format!("{{\"key\":\"k{n}\",\"value\":\"v\"}}\n")).collect();
    std::fs::write(dir.path().join("users.jsonl"), lines).unwrap();
    let words = [
        "import",
        "users.jsonl",
        "--batch-keys",
        "2",
        "--in-flight",
        "1",
        "--retry-for",
        "1s",
        "--timeout",
        "1s",
    ];
    let mut command = cli_command(&node, &words);
    let running = command.current_dir(dir.path()).stderr(Stdio::piped()).spawn().unwrap();
    let since = Instant::now();
    while !note.exists() {
        assert!(since.elapsed() < Duration::from_secs(60), "no progress is noted");
        std::thread::sleep(Duration::from_millis(5));
    }
    node.kill();
    let (exit, _, err) = parts(running.wait_with_output().unwrap());
    assert!(exit != 0 && err.contains("--resume") && !err.contains("No such file"), "{exit}: {err}");
    assert!(note.exists());
    node.restart();
    let (exit, _, err) = import(&node, &["import", "users.jsonl", "--resume"]);
    assert!(exit == 0 && !note.exists(), "{exit}: {err}");
}
