//! bench: a closed loop of puts and gets, or, with `--check`, of all calls, whose answers are checked.
//!
//! Closed means that a client makes its next call when the last one is answered, so a slow server is
//! asked less: latencies are those of this load, not of calls that arrive whatever happens. Failed
//! calls are counted by reason, and are in no latency.

mod checked;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Session;
use super::args::{Bench, Work};
use super::histogram::Histogram;
use super::tool::fault::EXIT_WRONG;
use super::tool::table::column;
use super::tool::{Cell, Fault, Format, Outcome, Printer};
use crate::client::{Client, ScanOptions, WriteOp};
use crate::error::{Error, Reason};
use crate::history::{Recorder, Report};

/// A client that failed waits before its next call, or a dead server would be a busy loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// Keys of a load, and of one that is checked: few, so that calls meet.
const KEYS: u64 = 100_000;
const KEYS_CHECKED: u64 = 10;

/// Batches under way while keys are written before, or removed after.
const BATCHES_AT_ONCE: usize = 8;

pub(super) async fn run(session: &mut Session, args: Bench) -> Outcome {
    let args = Load::new(args)?;
    let client = session.client.with_connections(usize::from(args.connections))?;
    let printer = &mut session.printer;
    let values = Values::new(args.value_size);
    if !args.reuse {
        refuse_foreign_keys(&client, &args).await?;
    }
    if args.check {
        // It begins with nothing there.
        if args.reuse {
            in_batches(&client, &args, WriteOp::delete).await?;
        }
    } else if args.work != Work::Put {
        printer.say(&format!("writing {} keys to read", args.keys));
        in_batches(&client, &args, |key| WriteOp::put(key, values.pick(0))).await?;
    }
    let share = match args.work {
        Work::Put => 0,
        Work::Get => 100,
        Work::Mixed => args.read_percent,
    };
    let shared = Arc::new(Shared {
        client: client.clone(),
        prefix: args.prefix.clone(),
        keys: args.keys,
        read_percent: u64::from(share),
        values,
        until: Instant::now() + args.duration,
        calls_left: AtomicU64::new(args.count.unwrap_or(u64::MAX)),
        done: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        is_stopped: AtomicBool::new(false),
        recorder: args.check.then(Recorder::default),
    });
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..args.clients {
        clients.spawn(work(shared.clone(), number));
    }
    let measured = collect(clients, &shared, printer, started).await?;
    let seconds = started.elapsed().as_secs_f64();
    if !args.keep {
        printer.progress("removing the keys");
        let removed = in_batches(&client, &args, WriteOp::delete).await;
        printer.progress("");
        if let Err(fault) = removed {
            let prefix = &args.prefix;
            printer.say(&format!("the keys that start with {prefix:?} could not be removed: {fault}"));
        }
    }
    // Every client has ended, and let go of it.
    let shared = Arc::into_inner(shared).ok_or_else(|| Fault::Local("a client has not ended".to_string()))?;
    let report = shared.recorder.map(|recorder| checked::check(recorder, printer));
    print(&measured, &args, seconds, report.as_ref(), printer)?;
    match (measured.last_error, report) {
        // Nothing was measured.
        (Some(error), _) if measured.puts.count() + measured.gets.count() == 0 => Err(error.into()),
        (_, Some(report)) if !report.violations.is_empty() => Ok(EXIT_WRONG),
        (_, Some(report)) if !report.undecided.is_empty() => {
            Err(Fault::Local("the history could not be checked to its end".to_string()))
        }
        _ => Ok(0),
    }
}

/// The arguments, with what follows from one another.
struct Load {
    args: Bench,
    keys: u64,
}

impl std::ops::Deref for Load {
    type Target = Bench;

    fn deref(&self) -> &Bench {
        &self.args
    }
}

impl Load {
    fn new(mut args: Bench) -> Result<Load, Fault> {
        if args.check {
            if args.work != Work::Mixed {
                return Err(Fault::Usage("--check has a load of its own: leave out put or get".to_string()));
            }
            if args.value_size < checked::VALUE_BYTES_MIN {
                let least = checked::VALUE_BYTES_MIN;
                return Err(Fault::Usage(format!("--check needs values of at least {least} bytes")));
            }
            if args.count.is_some_and(|count| count > checked::CALLS_MAX) {
                let most = checked::CALLS_MAX;
                return Err(Fault::Usage(format!(
                    "--check keeps every call in memory: --count is at most {most}"
                )));
            }
            args.count.get_or_insert(checked::CALLS_MAX);
        }
        let keys = args.keys.unwrap_or(if args.check { KEYS_CHECKED } else { KEYS });
        // More keys than calls would only be written and removed.
        let keys = keys.min(args.count.unwrap_or(u64::MAX)).max(1);
        Ok(Load { args, keys })
    }
}

/// The keys that are measured with are overwritten, and removed afterwards: none may be the user's.
async fn refuse_foreign_keys(client: &Client, args: &Load) -> Result<(), Fault> {
    let options = ScanOptions { keys_only: true, limit: Some(1), ..ScanOptions::prefix(args.prefix.clone()) };
    let mut found = std::pin::pin!(client.scan(options));
    match found.next().await {
        None => Ok(()),
        Some(Err(error)) => Err(error.into()),
        Some(Ok(record)) => {
            let message = format!(
                "there is a key {:?} already, and bench overwrites and removes what starts with {:?}: choose another \
                 --prefix, or say --reuse",
                record.key.escape_ascii().to_string(),
                args.prefix
            );
            Err(Error::new(Reason::InvalidArgument, message).into())
        }
    }
}

/// What every client of the loop uses.
struct Shared {
    client: Client,
    prefix: String,
    keys: u64,
    read_percent: u64,
    values: Values,
    until: Instant,
    calls_left: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    is_stopped: AtomicBool,
    /// Of a load that is checked.
    recorder: Option<Recorder>,
}

impl Shared {
    /// Whether there is another call to make; takes it.
    fn take_call(&self) -> bool {
        if self.is_stopped.load(Ordering::Relaxed) || Instant::now() >= self.until {
            return false;
        }
        let take = |left: u64| left.checked_sub(1);
        self.calls_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[derive(Debug)]
struct Measured {
    puts: Histogram,
    gets: Histogram,
    errors: BTreeMap<&'static str, u64>,
    last_error: Option<Error>,
}

impl Measured {
    fn new() -> Measured {
        Measured { puts: Histogram::new(), gets: Histogram::new(), errors: BTreeMap::new(), last_error: None }
    }

    fn merge(&mut self, other: Measured) {
        self.puts.merge(&other.puts);
        self.gets.merge(&other.gets);
        for (reason, count) in other.errors {
            *self.errors.entry(reason).or_default() += count;
        }
        self.last_error = other.last_error.or(self.last_error.take());
    }
}

/// One client of the loop.
async fn work(shared: Arc<Shared>, number: u32) -> Measured {
    let mut measured = Measured::new();
    let mut random = Random::new(u64::from(number));
    let mut checked =
        shared.recorder.as_ref().map(|recorder| checked::Client::new(&shared, recorder, number));
    while shared.take_call() {
        let result = match &mut checked {
            Some(client) => client.call(&mut random, &mut measured).await,
            None => call(&shared, &mut random, &mut measured).await,
        };
        match result {
            Ok(()) => drop(shared.done.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                *measured.errors.entry(error.reason.row().name).or_default() += 1;
                measured.last_error = Some(error);
                shared.failed.fetch_add(1, Ordering::Relaxed);
                sleep(FAILURE_PAUSE).await;
            }
        }
    }
    measured
}

async fn call(shared: &Shared, random: &mut Random, measured: &mut Measured) -> crate::error::Result<()> {
    let key = format!("{}{}", shared.prefix, random.below(shared.keys));
    let is_get = random.below(100) < shared.read_percent;
    let started = Instant::now();
    if is_get {
        shared.client.get(key).await?;
        measured.gets.record(started.elapsed());
    } else {
        shared.client.put(key, shared.values.pick(random.next())).await?;
        measured.puts.record(started.elapsed());
    }
    Ok(())
}

/// Waits for every client, telling each second how it goes. Ctrl-C ends the measurement early.
async fn collect(
    mut clients: JoinSet<Measured>,
    shared: &Shared,
    printer: &mut Printer,
    started: Instant,
) -> Result<Measured, Fault> {
    let mut measured = Measured::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut last = 0;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        tokio::select! {
            client = clients.join_next() => match client {
                None => break,
                Some(Ok(one)) => measured.merge(one),
                Some(Err(error)) => return Err(Fault::Local(format!("a client failed: {error}"))),
            },
            _ = tick.tick() => {
                let done = shared.done.load(Ordering::Relaxed);
                let failed = shared.failed.load(Ordering::Relaxed);
                let seconds = started.elapsed().as_secs();
                printer.progress(&format!("{seconds:>4} s  {:>8} calls/s  {failed} failed", done - last));
                last = done;
            },
            _ = &mut interrupted, if !shared.is_stopped.load(Ordering::Relaxed) => {
                shared.is_stopped.store(true, Ordering::Relaxed);
            }
        }
    }
    printer.progress("");
    Ok(measured)
}

fn print(
    measured: &Measured,
    args: &Load,
    seconds: f64,
    report: Option<&Report>,
    printer: &mut Printer,
) -> Result<(), Fault> {
    let columns = [
        column("WORK", "work"),
        column("CALLS", "calls"),
        column("CALLS/S", "calls_per_s"),
        column("P50 ms", "p50_ms"),
        column("P99 ms", "p99_ms"),
        column("P99.9 ms", "p999_ms"),
        column("MAX ms", "max_ms"),
    ];
    let ms = |latency: Duration| Cell::Decimal(latency.as_secs_f64() * 1000.0);
    let rows: Vec<Vec<Cell>> = [("put", &measured.puts), ("get", &measured.gets)]
        .into_iter()
        .filter(|(_, histogram)| histogram.count() > 0)
        .map(|(work, histogram)| {
            vec![
                work.into(),
                Cell::Number(histogram.count()),
                Cell::Number((histogram.count() as f64 / seconds).round() as u64),
                ms(histogram.percentile(0.5)),
                ms(histogram.percentile(0.99)),
                ms(histogram.percentile(0.999)),
                ms(histogram.max()),
            ]
        })
        .collect();
    if let Some(report) = report {
        checked::tell(report, printer);
    }
    if printer.format() == Format::Json {
        return printer.json(&json!({
            "clients": args.clients,
            "connections": args.connections,
            "value_size": args.value_size,
            "keys": args.keys,
            "seconds": (seconds * 1000.0).round() / 1000.0,
            "results": super::tool::table::rows_json(&columns, &rows),
            "errors": measured.errors,
            "check": report.map(checked::to_json),
        }));
    }
    printer.rows(&columns, &rows)?;
    if !measured.errors.is_empty() {
        let columns = [column("ERROR", "reason"), column("CALLS", "calls")];
        let rows: Vec<_> = measured
            .errors
            .iter()
            .map(|(reason, count)| vec![(*reason).into(), Cell::Number(*count)])
            .collect();
        printer.rows(&columns, &rows)?;
    }
    Ok(())
}

/// Writes every key of the benchmark, as `op` has it.
async fn in_batches(client: &Client, args: &Load, op: impl Fn(String) -> WriteOp) -> Result<(), Fault> {
    // A batch stays near one MiB.
    let batch = (1024 * 1024 / (args.value_size + args.prefix.len() as u64 + 64)).clamp(1, 1000);
    let starts = (0..args.keys).step_by(usize::try_from(batch).unwrap_or(1));
    stream::iter(starts)
        .map(|start| {
            let keys = start..(start + batch).min(args.keys);
            let ops: Vec<WriteOp> = keys.map(|n| op(format!("{}{n}", args.prefix))).collect();
            async move {
                for outcome in client.batch_write(&ops).await? {
                    outcome?;
                }
                Ok::<(), Error>(())
            }
        })
        .buffer_unordered(BATCHES_AT_ONCE)
        .try_collect::<()>()
        .await?;
    Ok(())
}

/// Values that do not compress, cut from one piece.
#[derive(Debug)]
struct Values {
    piece: Bytes,
    size: usize,
}

impl Values {
    fn new(size: u64) -> Values {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut random = Random::new(size as u64);
        let piece: Vec<u8> = (0..size + 4096).map(|_| random.next() as u8).collect();
        Values { piece: piece.into(), size }
    }

    fn pick(&self, draw: u64) -> Bytes {
        let start = (draw % 4096) as usize;
        self.piece.slice(start..start + self.size)
    }
}

/// splitmix64: fast, and the same keys in every run.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        // Where one begins must be far from where the others do: they all take the same steps.
        Random(Random(seed).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is at least 1.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}
