//! import: a file of JSON lines into the cluster, fast and in bounded memory.
//!
//! A thread reads and decodes; each key goes to the lane that its hash chooses, and each lane writes its
//! batches one after the other. So a key's lines are written in the order of the file, while lanes do
//! not wait for each other. Memory is bounded by lanes times (a batch being filled, one waiting, one
//! under way).

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use xxhash_rust::xxh3::xxh3_64;

use super::Session;
use super::args::Import;
use super::jsonl;
use super::progress::{Notebook, Position, Tracker};
use super::tool::{Fault, Format, Outcome};
use crate::client::{Client, WriteOp};
use crate::error::{Error, Happened, Reason};

/// A batch is sent when it holds this many bytes, even if it could hold more keys.
const BATCH_BYTES: usize = 1024 * 1024;

/// How often the note of the progress is written.
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// How much longer a request may have been on its way than any that comes after it.
const ON_THE_WAY_MAX: Duration = Duration::from_secs(2);

/// First and longest pause before a failed batch is tried again.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

struct Batch {
    ops: Vec<WriteOp>,
    /// The line of each.
    lines: Vec<u64>,
    bytes: usize,
    /// Lines before it.
    start: u64,
}

pub(super) async fn run(session: &mut Session, args: Import) -> Outcome {
    let is_stdin = args.file == Path::new("-");
    if is_stdin && args.resume {
        return Err(Fault::Usage("stdin can't be resumed; import a file".into()));
    }
    let cluster_id = session.client.cluster_info().await?.cluster_id;
    let notebook = (!is_stdin).then(|| Notebook::new(&args.file, cluster_id));
    let mut start = Position::default();
    if let Some(notebook) = &notebook
        && args.resume
    {
        match notebook.load()? {
            Some(position) => {
                session.printer.say(&format!("going on after line {}", position.lines));
                start = position;
            }
            None => session.printer.say("no progress is noted; importing from the beginning"),
        }
    }
    let (input, size) = open(&args.file, start)?;
    let bar = session.printer.bar(size, "{bytes}/{total_bytes}", "{bytes}");
    let started = Instant::now();
    let mut import = Running::start(&session.client, &args, input, start);
    let ended = import.finish(notebook.as_ref(), &bar).await;
    bar.finish_and_clear();

    let tracker = import.tracker.lock().unwrap_or_else(PoisonError::into_inner);
    let (written, prefix) = (tracker.written(), tracker.prefix());
    drop(tracker);
    let seconds = started.elapsed().as_secs_f64();
    let is_done = ended.is_ok();
    let rate = written as f64 / seconds.max(0.001);
    session.printer.say(&format!("{written} keys written in {seconds:.1} s ({rate:.0}/s)"));
    match &notebook {
        Some(notebook) if is_done => {
            notebook.remove().map_err(|error| Fault::local("removing the note of the progress", error))?;
        }
        // With the line mended, the file is another one.
        Some(notebook) if matches!(ended, Err(Fault::Usage(_))) => {
            if let Err(error) = notebook.remove() {
                session.printer.say(&format!("{}: {error}", notebook.path().display()));
            }
            session.printer.say(&format!(
                "everything up to line {} is written; mend the line, and import the file from the beginning",
                prefix.lines
            ));
        }
        Some(notebook) => match notebook.save(prefix) {
            Ok(()) => session.printer.say(&format!(
                "everything up to line {} is written; the same command with --resume goes on from there",
                prefix.lines
            )),
            Err(error) => session.printer.say(&format!("{}: {error}", notebook.path().display())),
        },
        None if !is_done => {
            session.printer.say(&format!("everything up to line {} is written", prefix.lines));
        }
        None => {}
    }
    if session.printer.format() == Format::Json {
        let seconds = (seconds * 1000.0).round() / 1000.0;
        let object =
            json!({ "written": written, "lines": prefix.lines, "complete": is_done, "seconds": seconds });
        session.printer.json(&object)?;
    }
    ended.map(|()| 0)
}

/// The input from `start` on, and the whole size if it is known.
fn open(path: &Path, start: Position) -> Result<(Box<dyn BufRead + Send>, Option<u64>), Fault> {
    if path == Path::new("-") {
        return Ok((Box::new(BufReader::new(std::io::stdin())), None));
    }
    let opened = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(start.offset))?;
        let metadata = file.metadata()?;
        Ok((file, metadata.is_file().then_some(metadata.len())))
    });
    let (file, size) = opened.map_err(|error| Fault::local(format!("opening {}", path.display()), error))?;
    Ok((Box::new(BufReader::with_capacity(256 * 1024, file)), size))
}

/// An import under way: its reader and its lanes.
struct Running {
    tracker: Arc<Mutex<Tracker>>,
    lanes: JoinSet<Result<(), Fault>>,
    reader: oneshot::Receiver<Result<(), Fault>>,
}

impl Running {
    fn start(client: &Client, args: &Import, input: Box<dyn BufRead + Send>, start: Position) -> Running {
        let count = usize::from(args.in_flight);
        let tracker = Arc::new(Mutex::new(Tracker::new(count, start)));
        let mut lanes = JoinSet::new();
        let mut senders = Vec::new();
        for number in 0..count {
            let (sender, batches) = mpsc::channel(1);
            senders.push(sender);
            let lane = Lane {
                number,
                client: client.clone(),
                retry_for: args.retry_for,
                file: args.file.clone(),
                tracker: tracker.clone(),
            };
            lanes.spawn(lane.run(batches));
        }
        let (done, reader) = oneshot::channel();
        let mut source = Reader {
            input,
            position: start,
            batches: (0..count).map(|_| None).collect(),
            batch_keys: usize::from(args.batch_keys),
            senders,
            tracker: tracker.clone(),
            file: args.file.clone(),
        };
        // A thread of its own: it may wait for stdin for ever, which must not keep anybody.
        std::thread::spawn(move || {
            let read = source.run();
            drop(source);
            // Nobody listens any more if a lane has failed first.
            let _ = done.send(read);
        });
        Running { tracker, lanes, reader }
    }

    /// Waits for the end, noting the progress on the way.
    async fn finish(&mut self, notebook: Option<&Notebook>, bar: &ProgressBar) -> Result<(), Fault> {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let mut noted = Instant::now();
        let mut first_fault = Ok(());
        loop {
            tokio::select! {
                lane = self.lanes.join_next() => match lane {
                    None => break,
                    Some(ended) => {
                        let ended = ended.unwrap_or_else(|error| Err(Fault::Local(format!("a lane failed: {error}"))));
                        first_fault = first_fault.and(ended);
                    }
                },
                _ = tick.tick() => {
                    let tracker = self.tracker.lock().unwrap_or_else(PoisonError::into_inner);
                    let (prefix, written) = (tracker.prefix(), tracker.written());
                    drop(tracker);
                    bar.set_position(prefix.offset);
                    bar.set_message(format!("{written} keys"));
                    if let Some(notebook) = notebook && noted.elapsed() >= NOTE_EVERY {
                        // Without a note the import is merely not resumable; the end tells if it matters.
                        let _ = notebook.save(prefix);
                        noted = Instant::now();
                    }
                },
                _ = tokio::signal::ctrl_c() => {
                    self.lanes.abort_all();
                    first_fault = first_fault.and(Err(Fault::Local("interrupted".into())));
                }
            }
        }
        first_fault?;
        // The lanes end when the reader has, so it has something to say; silence is a panic.
        (&mut self.reader).await.unwrap_or_else(|_| Err(Fault::Local("the reader failed".into())))
    }
}

struct Reader {
    input: Box<dyn BufRead + Send>,
    position: Position,
    /// The batch that each lane is filling.
    batches: Vec<Option<Batch>>,
    batch_keys: usize,
    senders: Vec<mpsc::Sender<Batch>>,
    tracker: Arc<Mutex<Tracker>>,
    file: PathBuf,
}

impl Reader {
    fn run(&mut self) -> Result<(), Fault> {
        let read = self.read_all();
        // What came before a bad line is written all the same.
        for lane in 0..self.senders.len() {
            if !self.send(lane) {
                break;
            }
        }
        read
    }

    /// Reads to the end, the first bad line, or the failure of a lane.
    fn read_all(&mut self) -> Result<(), Fault> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let limit = jsonl::LINE_BYTES_MAX as u64;
            let len = (&mut self.input).take(limit).read_until(b'\n', &mut line);
            let len = len.map_err(|error| Fault::local(format!("reading {}", self.file.display()), error))?;
            if len == 0 {
                return Ok(());
            }
            let number = self.position.lines + 1;
            if len as u64 == limit && !line.ends_with(b"\n") {
                return Err(self.bad_line(number, &format!("it has more than {limit} bytes")));
            }
            if !line.trim_ascii().is_empty() {
                let (key, value) = jsonl::decode(&line).map_err(|why| self.bad_line(number, &why))?;
                let op = WriteOp::put(key, value);
                crate::client::check(&op).map_err(|error| self.bad_line(number, &error.message))?;
                if !self.add(op, number) {
                    return Ok(());
                }
            }
            self.position = Position { offset: self.position.offset + len as u64, lines: number };
            self.tracker.lock().unwrap_or_else(PoisonError::into_inner).read_to(self.position);
        }
    }

    fn bad_line(&self, number: u64, why: &str) -> Fault {
        Fault::Usage(format!("{}: line {number}: {why}", self.file.display()))
    }

    /// Puts an operation into its lane's batch, which is sent when it is full. False: the lane is gone.
    fn add(&mut self, op: WriteOp, line: u64) -> bool {
        let lane = (xxh3_64(op.key()) % self.senders.len() as u64) as usize;
        let bytes = op.key().len() + if let WriteOp::Put { value, .. } = &op { value.len() } else { 0 };
        if self.batches[lane].as_ref().is_some_and(|batch| batch.bytes + bytes > BATCH_BYTES)
            && !self.send(lane)
        {
            return false;
        }
        if self.batches[lane].is_none() {
            self.tracker.lock().unwrap_or_else(PoisonError::into_inner).begin(lane, self.position);
        }
        let batch = self.batches[lane].get_or_insert_with(|| Batch {
            ops: Vec::with_capacity(self.batch_keys),
            lines: Vec::with_capacity(self.batch_keys),
            bytes: 0,
            start: self.position.lines,
        });
        batch.ops.push(op);
        batch.lines.push(line);
        batch.bytes += bytes;
        if batch.ops.len() < self.batch_keys {
            return true;
        }
        self.send(lane) && self.send_old(line)
    }

    /// Sends batches that began long ago: with few different keys a lane may be seldom chosen, and the
    /// progress could not be noted beyond its first line.
    fn send_old(&mut self, line: u64) -> bool {
        let age_max = (4 * self.batch_keys * self.senders.len()) as u64;
        let old = |batch: &Option<Batch>| batch.as_ref().is_some_and(|batch| batch.start + age_max < line);
        (0..self.senders.len()).all(|lane| !old(&self.batches[lane]) || self.send(lane))
    }

    fn send(&mut self, lane: usize) -> bool {
        match self.batches[lane].take() {
            Some(batch) => self.senders[lane].blocking_send(batch).is_ok(),
            None => true,
        }
    }
}

struct Lane {
    number: usize,
    client: Client,
    retry_for: Duration,
    file: PathBuf,
    tracker: Arc<Mutex<Tracker>>,
}

impl Lane {
    async fn run(self, mut batches: mpsc::Receiver<Batch>) -> Result<(), Fault> {
        while let Some(batch) = batches.recv().await {
            let keys = batch.ops.len() as u64;
            self.write(batch).await?;
            self.tracker.lock().unwrap_or_else(PoisonError::into_inner).acknowledge(self.number, keys);
        }
        Ok(())
    }

    /// Writes a batch, again and again if need be. What was surely not written and what perhaps was are
    /// put again alike: it is the same value. But a write that may yet happen must not come after later
    /// lines of its key, so it is given its deadline first, and as long as it may have been on its way: a server counts
    /// from when the request comes, and begins none that is too late.
    async fn write(&self, mut batch: Batch) -> Result<(), Fault> {
        let mut failing_since = None;
        let mut pause = PAUSE_FIRST;
        loop {
            let deadline = Instant::now() + self.client.timeout();
            let failed = match self.client.batch_write(&batch.ops).await {
                Ok(outcomes) => {
                    let failed = outcomes.into_iter().enumerate();
                    failed.filter_map(|(at, outcome)| outcome.err().map(|error| (at, error))).collect()
                }
                Err(error) => (0..batch.ops.len()).map(|at| (at, error.clone())).collect::<Vec<_>>(),
            };
            let Some((first, error)) = failed.first().cloned() else { return Ok(()) };
            if let Some((at, error)) = failed.iter().find(|(_, error)| !is_transient(error)) {
                return Err(self.name(batch.lines[*at], error));
            }
            let since = *failing_since.get_or_insert_with(Instant::now);
            if since.elapsed() + pause > self.retry_for {
                return Err(self.name(batch.lines[first], &error));
            }
            if failed.iter().any(|(_, error)| error.happened() == Happened::Unknown) {
                sleep_until(deadline + ON_THE_WAY_MAX).await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            batch.ops = failed.iter().map(|(at, _)| batch.ops[*at].clone()).collect();
            batch.lines = failed.iter().map(|(at, _)| batch.lines[*at]).collect();
        }
    }

    fn name(&self, line: u64, error: &Error) -> Fault {
        let mut error = error.clone();
        error.message = format!("{}: line {line}: {}", self.file.display(), error.message);
        Fault::Call(error)
    }
}

/// Whether waiting may help.
fn is_transient(error: &Error) -> bool {
    use Reason::*;
    matches!(
        error.reason,
        Unavailable | Overloaded | ShuttingDown | DeadlineExceeded | OutcomeUnknown | ReplicaFailed
    )
}
