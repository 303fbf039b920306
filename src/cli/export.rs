//! export: keys and values to a file of JSON lines, in key order.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use indicatif::ProgressBar;
use serde_json::json;
use tokio::time::Instant;

use super::Session;
use super::args::Export;
use super::data::bytes;
use super::jsonl;
use super::tool::{Fault, Format, Outcome};
use crate::client::ScanOptions;

/// How often the progress bar learns of keys.
const BAR_EVERY: u64 = 1024;

pub(super) async fn run(session: &mut Session, args: Export) -> Outcome {
    if args.file == Path::new("-") {
        return to_stdout(session, args).await;
    }
    let doing = |what: &str| format!("{what} {}", args.file.display());
    let (mut file, last_key) = open(&args)?;
    let mut options = options(&args);
    if let Some(key) = last_key {
        session.printer.say(&format!("going on after key {}", super::tool::text::escape(&key)));
        if options.end.is_empty() || key < options.end {
            options.start = options.start.max(after(&key));
        } else {
            return Err(Fault::Usage(format!("{} holds keys beyond the prefix", args.file.display())));
        }
    }
    // How many there are is known only for all of them.
    let total = match args.prefix {
        None => session.client.partitions().await.ok().map(|all| all.iter().map(|p| p.key_count).sum()),
        Some(_) => None,
    };
    let bar = session.printer.bar(total, "{pos}/{len} keys", "{pos} keys");
    let started = Instant::now();
    let mut writer = BufWriter::with_capacity(256 * 1024, &mut file);
    let (count, copied) = copy(session, options, &bar, &mut writer).await;
    bar.finish_and_clear();
    // Whole lines stay whatever happened: --resume goes on after them.
    let flushed = writer.flush().map_err(|error| Fault::local(doing("writing"), error));
    drop(writer);
    let synced = file.sync_all().map_err(|error| Fault::local(doing("writing"), error));
    let seconds = started.elapsed().as_secs_f64();
    let rate = count as f64 / seconds.max(0.001);
    session.printer.say(&format!("{count} keys read in {seconds:.1} s ({rate:.0}/s)"));
    let ended = copied.and(flushed).and(synced);
    if ended.is_err() {
        session.printer.say("the same command with --resume goes on from there");
    }
    if session.printer.format() == Format::Json {
        let seconds = (seconds * 1000.0).round() / 1000.0;
        session.printer.json(&json!({ "read": count, "complete": ended.is_ok(), "seconds": seconds }))?;
    }
    ended.map(|()| 0)
}

async fn to_stdout(session: &mut Session, args: Export) -> Outcome {
    if args.resume {
        return Err(Fault::Usage("stdout can't be resumed; export to a file".into()));
    }
    let mut records = session.client.scan(options(&args));
    let mut line = Vec::new();
    while let Some(record) = records.next().await {
        let record = record?;
        line.clear();
        jsonl::encode(&record.key, &record.value, &mut line);
        session.printer.data(&line)?;
    }
    Ok(0)
}

fn options(args: &Export) -> ScanOptions {
    match args.prefix.clone() {
        Some(prefix) => ScanOptions::prefix(bytes(prefix)),
        None => ScanOptions::all(),
    }
}

/// The smallest key after `key`.
fn after(key: &Bytes) -> Bytes {
    let mut next = BytesMut::from(&key[..]);
    next.extend_from_slice(&[0]);
    next.freeze()
}

/// Writes what the scan reads; tells how many, also when it fails.
async fn copy(
    session: &Session,
    options: ScanOptions,
    bar: &ProgressBar,
    writer: &mut impl io::Write,
) -> (u64, Result<(), Fault>) {
    let mut records = session.client.scan(options);
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let mut line = Vec::new();
    let mut count = 0;
    loop {
        let record = tokio::select! {
            record = records.next() => record,
            _ = &mut interrupted => return (count, Err(Fault::Local("interrupted".into()))),
        };
        match record {
            None => return (count, Ok(())),
            Some(Err(error)) => return (count, Err(error.into())),
            Some(Ok(record)) => {
                line.clear();
                jsonl::encode(&record.key, &record.value, &mut line);
                if let Err(error) = writer.write_all(&line) {
                    return (count, Err(Fault::local("writing the file", error)));
                }
            }
        }
        count += 1;
        if count % BAR_EVERY == 0 {
            bar.set_position(count);
        }
    }
}

/// The file to write to, at its end, and the last key in it if it is to be continued.
fn open(args: &Export) -> Result<(File, Option<Bytes>), Fault> {
    let path = &args.file;
    let fault = |error| Fault::local(format!("opening {}", path.display()), error);
    let mut how = OpenOptions::new();
    how.write(true).read(true);
    if !args.resume {
        let opened =
            if args.force { how.create(true).truncate(true) } else { how.create_new(true) }.open(path);
        return match opened {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Fault::Usage(format!(
                "{} is there already; --resume goes on with it, --force replaces it",
                path.display()
            ))),
            opened => Ok((opened.map_err(fault)?, None)),
        };
    }
    let mut file = how.create(true).truncate(false).open(path).map_err(fault)?;
    let (end, last_line) = last_whole_line(&mut file).map_err(fault)?;
    let last_key = match last_line {
        None => None,
        Some(line) => match jsonl::decode(&line) {
            Ok((key, _)) => Some(key),
            Err(why) => {
                let message = format!(
                    "{}: the last line is no record: {why}; --force replaces the file",
                    path.display()
                );
                return Err(Fault::Usage(message));
            }
        },
    };
    file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(fault)?;
    Ok((file, last_key))
}

/// Where the last whole line ends, and the line; an unfinished one after it is to be dropped.
fn last_whole_line(file: &mut File) -> io::Result<(u64, Option<Vec<u8>>)> {
    const CHUNK: u64 = 64 * 1024;
    let size = file.metadata()?.len();
    let mut tail = Vec::new();
    let mut start = size;
    // Read backwards until the newline at the end of the last line and the one before it are seen.
    loop {
        let newlines = tail.iter().filter(|byte| **byte == b'\n').count();
        if start == 0 || newlines >= 2 {
            break;
        }
        let from = start.saturating_sub(CHUNK);
        let mut chunk = vec![0; (start - from) as usize];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(&mut chunk)?;
        chunk.append(&mut tail);
        tail = chunk;
        start = from;
    }
    let Some(newline) = tail.iter().rposition(|byte| *byte == b'\n') else { return Ok((0, None)) };
    let line_start = tail[..newline].iter().rposition(|byte| *byte == b'\n').map_or(0, |before| before + 1);
    Ok((start + newline as u64 + 1, Some(tail[line_start..newline].to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_line_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let long = "x".repeat(200_000);
        for (content, end, line) in [
            (String::new(), 0, None),
            ("unfinished".into(), 0, None),
            ("one\n".into(), 4, Some("one")),
            ("one\ntwo\n".into(), 8, Some("two")),
            ("one\ntwo\nthr".into(), 8, Some("two")),
            (format!("one\n{long}\n"), 200_005, Some(long.as_str())),
            (format!("{long}\none\n{long}"), 200_005, Some("one")),
        ] {
            std::fs::write(&path, &content).unwrap();
            let mut file = File::open(&path).unwrap();
            let found = last_whole_line(&mut file).unwrap();
            assert_eq!(found, (end, line.map(|line| line.as_bytes().to_vec())), "{} bytes", content.len());
        }
    }
}
