//! bench: a closed loop of puts and gets.
//!
//! Closed means that a client makes its next call when the last one is answered, so a slow server is
//! asked less: latencies are those of this load, not of calls that arrive whatever happens. Failed
//! calls are counted by reason, and are in no latency.

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
use super::tool::table::column;
use super::tool::{Cell, Fault, Format, Outcome, Printer};
use crate::client::{Client, ScanOptions, WriteOp};
use crate::error::{Error, Reason};

/// A client that failed waits before its next call, or a dead server would be a busy loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// Batches under way while keys are written before, or removed after.
const BATCHES_AT_ONCE: usize = 8;

pub(super) async fn run(session: &mut Session, mut args: Bench) -> Outcome {
    // More keys than calls would only be written and removed.
    args.keys = args.keys.min(args.count.unwrap_or(u64::MAX)).max(1);
    let client = session.client.with_connections(usize::from(args.connections))?;
    let printer = &mut session.printer;
    let values = Values::new(args.value_size);
    if !args.reuse {
        refuse_foreign_keys(&client, &args).await?;
    }
    if args.work != Work::Put {
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
    });
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..args.clients {
        clients.spawn(work(shared.clone(), u64::from(number)));
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
    print(&measured, &args, seconds, printer)?;
    match measured.last_error {
        // Nothing was measured.
        Some(error) if measured.puts.count() + measured.gets.count() == 0 => Err(error.into()),
        _ => Ok(0),
    }
}

/// The keys that are measured with are overwritten, and removed afterwards: none may be the user's.
async fn refuse_foreign_keys(client: &Client, args: &Bench) -> Result<(), Fault> {
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
async fn work(shared: Arc<Shared>, number: u64) -> Measured {
    let mut measured = Measured::new();
    let mut random = Random::new(number);
    while shared.take_call() {
        let key = format!("{}{}", shared.prefix, random.below(shared.keys));
        let is_get = random.below(100) < shared.read_percent;
        let started = Instant::now();
        let result = if is_get {
            shared.client.get(key).await.map(drop)
        } else {
            shared.client.put(key, shared.values.pick(random.next())).await.map(drop)
        };
        match result {
            Ok(()) => {
                let histogram = if is_get { &mut measured.gets } else { &mut measured.puts };
                histogram.record(started.elapsed());
                shared.done.fetch_add(1, Ordering::Relaxed);
            }
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

fn print(measured: &Measured, args: &Bench, seconds: f64, printer: &mut Printer) -> Result<(), Fault> {
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
    if printer.format() == Format::Json {
        return printer.json(&json!({
            "clients": args.clients,
            "connections": args.connections,
            "value_size": args.value_size,
            "keys": args.keys,
            "seconds": (seconds * 1000.0).round() / 1000.0,
            "results": super::tool::table::rows_json(&columns, &rows),
            "errors": measured.errors,
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
async fn in_batches(client: &Client, args: &Bench, op: impl Fn(String) -> WriteOp) -> Result<(), Fault> {
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
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
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
