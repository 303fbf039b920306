//! rushkvctl from command line to output and exit code, against an in-memory server.

use clap::CommandFactory as _;

use super::args::Args;
use crate::cli::tests::{Ran, run_program};
use crate::client::testing::{Fake, refusing};

async fn ctl(fake: &Fake, words: &[&str]) -> Ran {
    run_program(super::run, &fake.address, words).await
}

#[test]
fn help_reads_as_written() {
    Args::command().debug_assert();
    for (name, words) in [
        ("help", &["rushkvctl", "--help"][..]),
        ("help_short", &["rushkvctl", "-h"]),
        ("help_partition", &["rushkvctl", "partition", "--help"]),
    ] {
        let error = Args::command().term_width(100).try_get_matches_from(words).unwrap_err();
        insta::assert_snapshot!(name, error.to_string());
    }
}

#[tokio::test]
async fn every_command_in_every_format() {
    let fake = Fake::start().await;
    for (name, words) in [
        ("cluster_info", &["cluster", "info"][..]),
        ("cluster_health", &["cluster", "health"]),
        ("node_list", &["node", "list"]),
        ("partition_list", &["partition", "list"]),
        ("partition_show", &["partition", "show", "user:1"]),
    ] {
        for format in ["table", "plain", "json"] {
            let ran = ctl(&fake, &[words, &["-o", format]].concat()).await;
            assert_eq!((ran.exit, ran.err.as_str()), (0, ""), "{words:?}");
            insta::assert_snapshot!(format!("{name}_{format}"), ran.text());
        }
    }
}

#[tokio::test]
async fn a_join_in_every_format() {
    let fake = Fake::start().await;
    for (name, address) in [("join", "db2:8080"), ("join_alone", "alone:8080")] {
        for format in ["table", "plain", "json"] {
            let ran = ctl(&fake, &["cluster", "join", address, "-o", format]).await;
            assert_eq!((ran.exit, ran.err.as_str()), (0, ""), "{address}");
            insta::assert_snapshot!(format!("{name}_{format}"), ran.text());
        }
    }
    assert_eq!(fake.count("join"), 6);
}

#[tokio::test]
async fn a_leave_that_lowers_the_tolerance_wants_a_yes() {
    let fake = Fake::start().await;
    for format in ["table", "plain", "json"] {
        fake.tell_nodes(3);
        let words = ["cluster", "leave", "node3", "-o", format];
        let refused = ctl(&fake, &words).await;
        assert_eq!((refused.exit, refused.text().as_str()), (2, ""), "{refused:?}");
        let told = "with 2 nodes the cluster tolerates the failure of 0 instead of 1: say --yes";
        assert!(refused.err.contains(told), "{refused:?}");
        let ran = ctl(&fake, &[&words[..], &["--yes"]].concat()).await;
        assert_eq!((ran.exit, ran.err.as_str()), (0, ""));
        insta::assert_snapshot!(format!("leave_{format}"), ran.text());
        // It is leaving by now: asked again, nothing is lowered.
        let again = ctl(&fake, &words).await;
        assert_eq!((again.exit, again.text()), (0, ran.text()), "{again:?}");
    }
    assert_eq!(fake.count("leave"), 6, "what was refused was not asked for");
}

#[tokio::test]
async fn a_leave_that_costs_nothing_is_done_at_once() {
    let fake = Fake::start().await;
    fake.tell_nodes(4);
    let ran = ctl(&fake, &["cluster", "leave", "node4", "-o", "json"]).await;
    let told = "{\"leaving\":true,\"node\":\"node4\",\"tolerated_failures\":1}\n";
    assert_eq!((ran.exit, ran.text().as_str()), (0, told), "{ran:?}");
    // The fourth counts as gone already.
    let ran = ctl(&fake, &["cluster", "leave", "node3"]).await;
    assert!(ran.exit == 2 && ran.err.contains("with 2 nodes"), "{ran:?}");
    let ran = ctl(&fake, &["cluster", "leave", "nobody"]).await;
    assert!(ran.exit != 0 && ran.err.contains("has no node \"nobody\""), "{ran:?}");
}

#[tokio::test]
async fn a_sick_cluster_has_exit_code_5_and_says_why() {
    let fake = Fake::start().await;
    fake.put("sick", "");
    for format in ["table", "plain", "json"] {
        let ran = ctl(&fake, &["cluster", "health", "-o", format]).await;
        assert_eq!(ran.exit, 5);
        insta::assert_snapshot!(format!("sick_{format}"), ran.text());
    }
    let ran = run_program(super::run, &refusing(), &["--timeout=2s", "cluster", "health"]).await;
    assert_eq!(ran.exit, 5);
    assert!(ran.out.is_empty() && ran.err.contains("Connection refused"), "{ran:?}");
}

#[tokio::test]
async fn a_wrong_command_line_is_told() {
    let fake = Fake::start().await;
    for words in
        [&[][..], &["cluster"], &["node", "join"], &["partition", "show"], &["partition", "show", ""]]
    {
        let ran = ctl(&fake, words).await;
        assert_eq!(ran.exit, 2, "{words:?}: {ran:?}");
        assert!(!ran.err.is_empty());
    }
    let ran = ctl(&fake, &["--version"]).await;
    assert_eq!(ran.text(), concat!("rushkvctl ", env!("CARGO_PKG_VERSION"), "\n"));
    for what in ["man", "bash", "zsh", "fish"] {
        let ran = ctl(&fake, &["--generate", what]).await;
        assert!(ran.exit == 0 && ran.text().contains("rushkvctl"), "{what}");
    }
    assert!(ctl(&fake, &["-generate=man"]).await.text().contains("COMMAND: PARTITION SHOW"));
}

#[test]
fn a_partition_is_taken_as_it_is_shown() {
    let parsed = |word| Args::command().try_get_matches_from(["rushkvctl", "debug", "hash", word]).map(drop);
    assert!(parsed("1").is_ok() && parsed("p1").is_ok());
    for word in ["x", "pp1", "p", "-1"] {
        assert!(parsed(word).is_err(), "{word}");
    }
    let error = parsed("one").unwrap_err().to_string();
    assert!(error.contains("a partition is a number, as `rushkvctl partition list` shows it"), "{error}");
}
