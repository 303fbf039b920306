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
async fn a_sick_cluster_has_exit_code_5_and_says_why() {
    let fake = Fake::start().await;
    fake.put("sick", "");
    for format in ["table", "plain", "json"] {
        let ran = ctl(&fake, &["cluster", "health", "-o", format]).await;
        assert_eq!(ran.exit, 5);
        insta::assert_snapshot!(format!("sick_{format}"), ran.text());
    }
    let ran = run_program(super::run, &refusing().await, &["--timeout=200ms", "cluster", "health"]).await;
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
