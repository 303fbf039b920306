//! What a load came to: a line for each kind of call, and a histogram of its latencies.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::{Load, checked};
use crate::cli::args::Work;
use crate::cli::histogram::{Bar, Histogram};
use crate::cli::tool::table::{column, rows_json};
use crate::cli::tool::{Cell, Fault, Format, Printer};
use crate::error::Error;
use crate::history::Report;

/// Of the longest bar.
const BAR_CHARS: f64 = 40.0;

/// In the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Put,
    Get,
    Batch,
    BatchGet,
    Scan,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Put => "put",
            Kind::Get => "get",
            Kind::Batch => "batch",
            Kind::BatchGet => "batch_get",
            Kind::Scan => "scan",
        }
    }
}

#[derive(Debug)]
struct Calls {
    latencies: Histogram,
    records: u64,
}

#[derive(Debug, Default)]
pub(super) struct Measured {
    kinds: BTreeMap<Kind, Calls>,
    errors: BTreeMap<&'static str, u64>,
    pub(super) last_error: Option<Error>,
}

impl Measured {
    /// Of a call that succeeded, and was about so many records.
    pub(super) fn record(&mut self, kind: Kind, took: Duration, records: u64) {
        let calls = self.calls(kind);
        calls.latencies.record(took);
        calls.records += records;
    }

    fn calls(&mut self, kind: Kind) -> &mut Calls {
        self.kinds.entry(kind).or_insert_with(|| Calls { latencies: Histogram::new(), records: 0 })
    }

    pub(super) fn failed(&mut self, error: Error) {
        *self.errors.entry(error.reason.row().name).or_default() += 1;
        self.last_error = Some(error);
    }

    pub(super) fn merge(&mut self, other: Measured) {
        for (kind, theirs) in &other.kinds {
            let calls = self.calls(*kind);
            calls.latencies.merge(&theirs.latencies);
            calls.records += theirs.records;
        }
        for (reason, count) in other.errors {
            *self.errors.entry(reason).or_default() += count;
        }
        self.last_error = other.last_error.or(self.last_error.take());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    pub(super) fn print(
        &self,
        args: &Load,
        seconds: f64,
        report: Option<&Report>,
        printer: &mut Printer,
    ) -> Result<(), Fault> {
        let mut columns = vec![
            column("WORK", "work"),
            column("CALLS", "calls"),
            column("CALLS/S", "calls_per_s"),
            column("P50 ms", "p50_ms"),
            column("P99 ms", "p99_ms"),
            column("P99.9 ms", "p999_ms"),
            column("MAX ms", "max_ms"),
        ];
        let has_many = matches!(args.work, Work::Batch | Work::Scan);
        if has_many {
            columns.push(column("RECORDS/S", "records_per_s"));
        }
        let per_s = |count: u64| Cell::Number((count as f64 / seconds).round() as u64);
        let ms = |latency: Duration| Cell::Decimal(millis(latency));
        let row = |(kind, calls): (&Kind, &Calls)| {
            let latencies = &calls.latencies;
            let mut row = vec![
                kind.name().into(),
                Cell::Number(latencies.count()),
                per_s(latencies.count()),
                ms(latencies.percentile(0.5)),
                ms(latencies.percentile(0.99)),
                ms(latencies.percentile(0.999)),
                ms(latencies.max()),
            ];
            if has_many {
                row.push(per_s(calls.records));
            }
            row
        };
        let rows: Vec<Vec<Cell>> = self.kinds.iter().map(row).collect();
        if let Some(report) = report {
            checked::tell(report, printer);
        }
        if printer.format() == Format::Json {
            return printer.json(&json!({
                "clients": args.clients,
                "connections": args.connections,
                "value_size": args.value_size,
                "keys": args.keys,
                "records": args.records,
                "zipf": args.zipf,
                "seconds": (seconds * 1000.0).round() / 1000.0,
                "results": rows_json(&columns, &rows),
                "histograms": self.histograms_json(),
                "errors": self.errors,
                "check": report.map(checked::to_json),
            }));
        }
        printer.rows(&columns, &rows)?;
        if printer.format() == Format::Table {
            for (kind, calls) in &self.kinds {
                printer.data(drawn(*kind, &calls.latencies).as_bytes())?;
            }
        }
        if !self.errors.is_empty() {
            let columns = [column("ERROR", "reason"), column("CALLS", "calls")];
            let row = |(reason, count): (&&'static str, &u64)| vec![(*reason).into(), Cell::Number(*count)];
            printer.rows(&columns, &self.errors.iter().map(row).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn histograms_json(&self) -> serde_json::Map<String, serde_json::Value> {
        let bar = |bar: Bar| json!({"up_to_ms": millis(bar.up_to), "calls": bar.calls});
        let of = |(kind, calls): (&Kind, &Calls)| {
            (kind.name().to_string(), calls.latencies.bars().into_iter().map(bar).collect())
        };
        self.kinds.iter().map(of).collect()
    }
}

fn millis(latency: Duration) -> f64 {
    latency.as_secs_f64() * 1000.0
}

/// A line for each bar, the longest as long as the terminal surely is wide.
fn drawn(kind: Kind, latencies: &Histogram) -> String {
    let bars = latencies.bars();
    let most = bars.iter().map(|bar| bar.calls).max().unwrap_or(1) as f64;
    let mut out = format!("\nlatency of {}, ms\n", kind.name());
    for bar in bars {
        // Few are not none.
        let length = (bar.calls as f64 / most * BAR_CHARS).ceil() as usize;
        let share = 100.0 * bar.calls as f64 / latencies.count() as f64;
        let line =
            format!("{:>10} {:>10} {share:>6.2} % {}", millis(bar.up_to), bar.calls, "#".repeat(length));
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
