//! bench: a closed loop of puts, gets, batches or scans, or, with `--check`, of all calls, whose answers are checked.
//!
//! Closed means that a client makes its next call when the last one is answered, so a slow server is
//! asked less: latencies are those of this load, not of calls that arrive whatever happens. Failed
//! calls are counted by reason, and are in no latency.

mod checked;
mod report;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Session;
use super::args::{Bench, Work};
use super::load::{Dice, Values, Zipf, key, spread};
use super::tool::fault::EXIT_WRONG;
use super::tool::{Fault, Outcome, Printer};
use crate::client::{Client, ScanOptions, WriteOp};
use crate::error::{Error, Happened, Reason};
use crate::history::Recorder;
use crate::limits::{BATCH_OPERATIONS_MAX, MESSAGE_BYTES_MAX};
use report::{Kind, Measured};

/// A client that failed waits before its next call, or a dead server would be a busy loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// Keys of a load, and of one that is checked: few, so that calls meet.
const KEYS: u64 = 100_000;
const KEYS_CHECKED: u64 = 10;

/// Of a batch or a scan, as `benches/peers` has them: etcd takes no more operations in a transaction.
const BATCH_RECORDS: u64 = 128;
const SCAN_RECORDS: u64 = 100;

/// Share of gets in mixed work.
const READ_PERCENT: u8 = 50;

/// Batches under way while keys are written before, or removed after.
const BATCHES_AT_ONCE: usize = 8;

/// How often its keys are removed where the outcome stays unknown.
const REMOVALS_MAX: usize = 5;

pub(super) async fn run(session: &mut Session, args: Bench) -> Outcome {
    let args = Load::new(args)?;
    let client = session.client.with_connections(usize::from(args.connections))?;
    let printer = &mut session.printer;
    let values = Values::new(usize::try_from(args.value_size).unwrap_or(usize::MAX));
    if !args.reuse {
        refuse_foreign_keys(&client, &args).await?;
    }
    if args.check {
        // It begins with nothing there.
        if args.reuse {
            in_batches(&client, &args, 1, |_, key| WriteOp::delete(key)).await?;
        }
    } else if matches!(args.work, Work::Get | Work::Mixed | Work::Scan) {
        printer.say(&format!("writing {} keys to read", args.keys));
        in_batches(&client, &args, 1, |number, key| WriteOp::put(key, values.pick(number))).await?;
    }
    let shared = Arc::new(Shared {
        client: client.clone(),
        client_of_many: client.with_connections(usize::from(args.connections))?,
        prefix: args.prefix.clone(),
        keys: args.keys,
        work: args.work,
        read_percent: u64::from(args.read_percent.unwrap_or(READ_PERCENT)),
        records: args.records,
        batch_max: args.batch_max,
        zipf: args.zipf.then(|| Zipf::new(args.keys)),
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
    let mut keys_left = None;
    if !args.keep {
        printer.progress("removing the keys");
        let removed = in_batches(&client, &args, REMOVALS_MAX, |_, key| WriteOp::delete(key)).await;
        printer.progress("");
        if let Err(fault) = removed {
            let Load { args: Bench { prefix, .. }, keys, .. } = &args;
            printer.say(&format!(
                "some keys that start with {prefix:?} could not be removed ({fault}); the same command with --reuse, \
                 and with {keys} for --keys, removes them, too"
            ));
            keys_left = Some(fault);
        }
    }
    // Every client has ended, and let go of it.
    let shared = Arc::into_inner(shared).ok_or_else(|| Fault::Local("a client has not ended".to_string()))?;
    let report = shared.recorder.map(|recorder| checked::check(recorder, printer));
    let printed = measured.print(&args, seconds, report.as_ref(), printer);
    let is_nothing_measured = measured.is_empty();
    // Whether or not anybody read it.
    match (measured.last_error, report) {
        (Some(error), _) if is_nothing_measured => Err(error.into()),
        (_, Some(report)) if !report.violations.is_empty() => Ok(EXIT_WRONG),
        (_, Some(report)) if !report.undecided.is_empty() => {
            Err(Fault::Local("the history could not be checked to its end".to_string()))
        }
        _ => keys_left.map_or(printed.map(|()| 0), Err),
    }
}

/// The arguments, with what follows from one another.
struct Load {
    args: Bench,
    keys: u64,
    /// Of each call.
    records: u64,
    /// Writes that one batch can hold.
    batch_max: u64,
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
                return Err(Fault::Usage("--check has a load of its own: leave the work out".to_string()));
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
        if args.read_percent.is_some() && args.work != Work::Mixed {
            return Err(Fault::Usage("--read-percent is of mixed".to_string()));
        }
        let records = match args.work {
            Work::Batch | Work::Scan if args.zipf => {
                return Err(Fault::Usage("--zipf is of put, get and mixed".to_string()));
            }
            Work::Batch => args.records.unwrap_or(BATCH_RECORDS),
            Work::Scan => args.records.unwrap_or(SCAN_RECORDS),
            Work::Put | Work::Get | Work::Mixed if args.records.is_some() => {
                return Err(Fault::Usage("--records is of batch or scan".to_string()));
            }
            Work::Put | Work::Get | Work::Mixed => 1,
        };
        let record_bytes = args.value_size + key(&args.prefix, 0).len() as u64;
        let batch_max = (MESSAGE_BYTES_MAX as u64 / record_bytes).min(BATCH_OPERATIONS_MAX as u64);
        if args.work == Work::Batch && records > batch_max {
            return Err(Fault::Usage(format!(
                "a batch holds {batch_max} such records: lower --records or --value-size"
            )));
        }
        let keys = args.keys.unwrap_or(if args.check { KEYS_CHECKED } else { KEYS });
        if records > keys {
            return Err(Fault::Usage(format!("a call of {records} records needs as many --keys")));
        }
        // More keys than the calls are about would only be written and removed.
        let keys = keys.min(args.count.unwrap_or(u64::MAX).saturating_mul(records)).max(1);
        Ok(Load { args, keys, records, batch_max })
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
                "there is a key {:?} already, and bench overwrites and removes keys that start with {:?}: choose another \
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
    /// Of the checked load's clients that make only calls on several keys.
    client_of_many: Client,
    prefix: String,
    keys: u64,
    work: Work,
    read_percent: u64,
    /// Of a batch or a scan.
    records: u64,
    batch_max: u64,
    zipf: Option<Zipf>,
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

/// One client of the loop.
async fn work(shared: Arc<Shared>, number: u32) -> Measured {
    let mut measured = Measured::default();
    let mut dice = Dice::new(u64::from(number));
    let mut checked =
        shared.recorder.as_ref().map(|recorder| checked::Client::new(&shared, recorder, number));
    while shared.take_call() {
        let result = match &mut checked {
            Some(client) => client.call(&mut dice, &mut measured).await,
            None => call(&shared, &mut dice, &mut measured).await,
        };
        match result {
            Ok(()) => drop(shared.done.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                measured.failed(error);
                shared.failed.fetch_add(1, Ordering::Relaxed);
                sleep(FAILURE_PAUSE).await;
            }
        }
    }
    measured
}

async fn call(shared: &Shared, dice: &mut Dice, measured: &mut Measured) -> crate::error::Result<()> {
    match shared.work {
        Work::Batch => batch(shared, dice, measured).await,
        Work::Scan => scan(shared, dice, measured).await,
        Work::Put | Work::Get | Work::Mixed => single(shared, dice, measured).await,
    }
}

async fn single(shared: &Shared, dice: &mut Dice, measured: &mut Measured) -> crate::error::Result<()> {
    let number = match &shared.zipf {
        Some(zipf) => zipf.key(dice),
        None => dice.below(shared.keys),
    };
    let key = key(&shared.prefix, number);
    let is_get = match shared.work {
        Work::Mixed => dice.below(100) < shared.read_percent,
        work => work == Work::Get,
    };
    let started = Instant::now();
    if is_get {
        shared.client.get(key).await?;
        measured.record(Kind::Get, started.elapsed(), 1);
    } else {
        shared.client.put(key, shared.values.pick(dice.roll())).await?;
        measured.record(Kind::Put, started.elapsed(), 1);
    }
    Ok(())
}

async fn batch(shared: &Shared, dice: &mut Dice, measured: &mut Measured) -> crate::error::Result<()> {
    let numbers = spread(dice.below(shared.keys), shared.records, shared.keys);
    let put = |number| WriteOp::put(key(&shared.prefix, number), shared.values.pick(dice.roll()));
    let puts: Vec<WriteOp> = numbers.map(put).collect();
    let started = Instant::now();
    for outcome in shared.client.batch_write(&puts).await? {
        outcome?;
    }
    measured.record(Kind::Batch, started.elapsed(), shared.records);
    Ok(())
}

async fn scan(shared: &Shared, dice: &mut Dice, measured: &mut Measured) -> crate::error::Result<()> {
    // Where as many follow.
    let start = key(&shared.prefix, dice.below(shared.keys - shared.records + 1)).into();
    let options =
        ScanOptions { start, limit: Some(shared.records), ..ScanOptions::prefix(shared.prefix.clone()) };
    let started = Instant::now();
    let records = shared.client.scan(options).try_fold(0, async |count, _| Ok(count + 1)).await?;
    measured.record(Kind::Scan, started.elapsed(), records);
    Ok(())
}

/// Waits for every client, telling each second how it goes. Ctrl-C, or SIGTERM, ends the measurement early.
async fn collect(
    mut clients: JoinSet<Measured>,
    shared: &Shared,
    printer: &mut Printer,
    started: Instant,
) -> Result<Measured, Fault> {
    let mut measured = Measured::default();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut last = 0;
    let mut ended = std::pin::pin!(asked_to_end());
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
            _ = &mut ended, if !shared.is_stopped.load(Ordering::Relaxed) => {
                shared.is_stopped.store(true, Ordering::Relaxed);
            }
        }
    }
    printer.progress("");
    Ok(measured)
}

/// Where neither can be listened for, both end the process as they always do.
async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Writes every key of the benchmark, as `op` has it for its number and itself. A batch of which some outcome is
/// unknown is written again, so many times in all: more than once only if nothing comes after it here that a
/// late one of them could undo.
async fn in_batches(
    client: &Client,
    args: &Load,
    times_max: usize,
    op: impl Fn(u64, String) -> WriteOp,
) -> Result<(), Fault> {
    // A batch stays near one MiB.
    let batch = (1024 * 1024 / (args.value_size + args.prefix.len() as u64 + 64)).clamp(1, 1000);
    let starts = (0..args.keys).step_by(usize::try_from(batch).unwrap_or(1));
    stream::iter(starts)
        .map(|start| {
            let keys = start..(start + batch).min(args.keys);
            let ops: Vec<WriteOp> = keys.map(|number| op(number, key(&args.prefix, number))).collect();
            async move {
                let mut times = 1;
                loop {
                    let failed: Vec<Error> = match client.batch_write(&ops).await {
                        Ok(all) => all.into_iter().filter_map(Result::err).collect(),
                        Err(error) => vec![error],
                    };
                    if times == times_max || failed.iter().all(|error| error.happened() != Happened::Unknown)
                    {
                        return failed.into_iter().next().map_or(Ok(()), Err);
                    }
                    times += 1;
                }
            }
        })
        .buffer_unordered(BATCHES_AT_ONCE)
        .try_collect::<()>()
        .await?;
    Ok(())
}
