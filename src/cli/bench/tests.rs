//! bench from command line to output and exit code, against an in-memory server.

use crate::cli::tests::{cli, records};
use crate::client::testing::{Act, Bug, Fake};
use crate::error::{Error, Reason, to_status};

#[tokio::test]
async fn bench_measures_and_cleans_up() {
    let fake = Fake::start().await;
    fake.put("mine", "v");
    let words = ["bench", "mixed", "-n", "500", "--keys", "50", "--clients", "4", "--value-size", "1k"];
    let ran = cli(&fake, &[&words[..], &["-o", "json"]].concat()).await;
    assert_eq!(ran.exit, 0, "{ran:?}");
    let told: serde_json::Value = serde_json::from_str(&ran.text()).unwrap();
    let calls: u64 =
        told["results"].as_array().unwrap().iter().map(|row| row["calls"].as_u64().unwrap()).sum();
    assert_eq!(calls, 500, "{told}");
    assert_eq!(told["errors"], serde_json::json!({}));
    assert_eq!(records(&fake).len(), 1, "only what was there before");

    let ran = cli(&fake, &["bench", "put", "-n", "60", "--keys", "10", "--keep", "-o", "table"]).await;
    assert!(
        ran.text().starts_with("WORK  CALLS  CALLS/S  P50 ms  P99 ms  P99.9 ms  MAX ms\nput "),
        "{ran:?}"
    );
    let kept = records(&fake).len();
    assert!(kept > 1);
    let before = fake.calls().len();
    let ran = cli(&fake, &["bench", "get", "-n", "1", "--prefix", "few:"]).await;
    assert_eq!(ran.exit, 0, "{ran:?}");
    assert!(fake.calls().len() - before < 10, "no more keys are written than are read: {:?}", fake.calls());
    let ran = cli(&fake, &["bench", "put", "-n", "5"]).await;
    assert_eq!(ran.exit, 2, "keys that it would overwrite are there: {ran:?}");
    assert_eq!(records(&fake).len(), kept);

    let dead =
        Fake::with(Box::new(|_, _| Act::Fail(to_status(&Error::new(Reason::OutcomeUnknown, ""))))).await;
    let ran = cli(&dead, &["bench", "put", "-n", "5", "--keys", "2", "--reuse"]).await;
    assert_eq!(ran.exit, 6, "{ran:?}");
    assert!(ran.text().contains("OUTCOME_UNKNOWN\t5"), "{ran:?}");
}

#[tokio::test]
async fn bench_of_many_records_and_its_histogram() {
    let fake = Fake::start().await;
    let json = async |words: &[&str]| -> serde_json::Value {
        let ran = cli(&fake, &[&["bench"], words, &["-c", "4", "-o", "json"]].concat()).await;
        assert_eq!(ran.exit, 0, "{ran:?}");
        assert_eq!(records(&fake).len(), 0, "the keys are removed");
        serde_json::from_str(&ran.text()).unwrap()
    };
    let told = json(&["batch", "-n", "20", "--keys", "2000"]).await;
    let row = &told["results"][0];
    assert_eq!((&row["work"], &row["calls"], &told["records"]), (&"batch".into(), &20.into(), &128.into()));
    let per_call = row["records_per_s"].as_f64().unwrap() / row["calls_per_s"].as_f64().unwrap();
    assert!((120.0..136.0).contains(&per_call), "{told}");
    let in_bars: u64 = told["histograms"]["batch"]
        .as_array()
        .unwrap()
        .iter()
        .map(|bar| {
            assert!(bar["up_to_ms"].as_f64().unwrap() > 0.0, "{bar}");
            bar["calls"].as_u64().unwrap()
        })
        .sum();
    assert_eq!(in_bars, 20, "{told}");

    let told = json(&["scan", "-n", "10", "--keys", "50", "--records", "7"]).await;
    let row = &told["results"][0];
    assert_eq!((&row["work"], &row["calls"], &told["keys"]), (&"scan".into(), &10.into(), &50.into()));
    assert!(row["records_per_s"].as_f64() > row["calls_per_s"].as_f64(), "{told}");
    let told = json(&["mixed", "-n", "300", "--keys", "50", "--zipf", "--read-percent", "80"]).await;
    assert_eq!((told["results"].as_array().unwrap().len(), &told["zipf"]), (2, &true.into()), "{told}");

    let ran = cli(&fake, &["bench", "get", "-n", "30", "--keys", "10", "-o", "table"]).await;
    let text = ran.text();
    let (_, histogram) = text.split_once("\nlatency of get, ms\n").unwrap();
    let calls: u64 = histogram
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert!(words[0].parse::<f64>().is_ok() && words[3] == "%", "{line}");
            words[1].parse::<u64>().unwrap()
        })
        .sum();
    assert!(calls == 30 && histogram.contains(&"#".repeat(40)), "{text}");

    for words in [
        &["bench", "put", "--records", "5"][..],
        &["bench", "batch", "--keys", "100"],
        &["bench", "--check", "--zipf"],
        &["bench", "scan", "--zipf"],
        &["bench", "batch", "--value-size", "32k"],
    ] {
        assert_eq!(cli(&fake, words).await.exit, 2, "{words:?}");
    }
}

#[tokio::test]
async fn bench_checks_the_answers() {
    let load = ["bench", "--check", "-n", "2000", "-c", "8", "-o", "json"];
    let fake = Fake::start().await;
    let ran = cli(&fake, &load).await;
    assert_eq!(ran.exit, 0, "{ran:?}");
    let told: serde_json::Value = serde_json::from_str(&ran.text()).unwrap();
    let check = &told["check"];
    assert_eq!((&check["linearizable"], &check["keys"]), (&true.into(), &10.into()), "{told}");
    assert!(check["operations"].as_u64().unwrap() > 1900 && check["unknown"] == 0, "{told}");
    assert_eq!(records(&fake).len(), 0, "the keys are removed");

    // Some of what took place is answered as unknown: that is no violation.
    let unsure = |call: &str, number: usize| match call {
        "put" | "delete" | "batch_write" if number.is_multiple_of(7) => {
            Act::WorkThenFail(to_status(&Error::new(Reason::OutcomeUnknown, "")))
        }
        _ => Act::Work,
    };
    let ran = cli(&Fake::with(Box::new(unsure)).await, &load).await;
    assert_eq!(ran.exit, 0, "{ran:?}");
    assert!(!ran.text().contains("\"unknown\": 0") && ran.text().contains("OUTCOME_UNKNOWN"), "{ran:?}");

    // Some acknowledged writes are lost.
    let loses = |call: &str, number: usize| match call {
        "put" if number.is_multiple_of(50) => Act::Lose,
        _ => Act::Work,
    };
    let loses = Fake::with(Box::new(loses)).await;
    let ran = cli(&loses, &["bench", "--check", "-n", "4000", "-c", "8"]).await;
    assert_eq!(ran.exit, 7, "{ran:?}");
    assert!(ran.err.contains("nothing explains") && ran.err.contains("NOT linearizable"), "{ran:?}");

    for (words, exit) in [
        (&["bench", "put", "--check"][..], 2),
        (&["bench", "--check", "--value-size", "7"], 2),
        (&["bench", "--check", "-n", "100000000"], 2),
    ] {
        assert_eq!(cli(&fake, words).await.exit, exit, "{words:?}");
    }
}

/// With the settings of the long runs: 16 clients on 10 keys.
#[tokio::test(flavor = "multi_thread")]
async fn every_planted_bug_is_caught() {
    let load = ["bench", "--check", "-c", "16", "--keys", "10", "-n", "4000"];
    let mut caught = 0;
    for bug in Bug::ALL {
        let ran = cli(&Fake::with_bug(bug).await, &load).await;
        assert_eq!(ran.exit, 7, "{bug:?} is not caught: {ran:?}");
        caught += 1;
    }
    println!("{caught} of {} planted bugs were caught", Bug::ALL.len());
}
