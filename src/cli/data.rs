//! put, get, delete, exists and scan.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};

use super::Session;
use super::args::{Delete, Exists, Get, Put, Scan};
use super::tool::text::{escape, insert_bytes};
use super::tool::{Fault, Format, Outcome};
use crate::client::{Precondition, Record, ScanOptions};
use crate::error::Reason;
use crate::limits;

/// A table of a scan is as wide as these many first records need; later ones stand where they fall.
const TABLE_HEAD: usize = 200;

/// Widest key column; longer keys push their values to the right.
const KEY_WIDTH_MAX: usize = 60;

pub(super) fn bytes(text: OsString) -> Bytes {
    text.into_vec().into()
}

pub(super) async fn put(session: &mut Session, put: Put) -> Outcome {
    let key = bytes(put.key);
    let value = match (put.value, put.value_file) {
        (_, Some(file)) => read_value(&file)?,
        (Some(value), None) if !put.raw && value == "-" => read_value(Path::new("-"))?,
        (Some(value), None) => bytes(value),
        (None, None) => return Err(Fault::Usage("the value is missing".into())),
    };
    let written = session.client.put_if(key.clone(), value, put.condition.precondition()).await?;
    match session.printer.format() {
        Format::Table | Format::Plain => session.printer.line("OK")?,
        Format::Json => {
            let mut object = key_object(&key);
            object.insert("version".into(), written.version.into());
            object.insert("revision".into(), written.revision.into());
            session.printer.json(&Value::Object(object))?;
        }
    }
    Ok(0)
}

/// Reads a value, but not much more than a value may have.
fn read_value(file: &Path) -> Result<Bytes, Fault> {
    let mut value = Vec::new();
    let limit = limits::VALUE_BYTES_MAX as u64 + 1;
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut value)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(limit).read_to_end(&mut value))
    };
    read.map_err(|error| Fault::local(format!("reading the value from {}", file.display()), error))?;
    if value.len() as u64 == limit {
        let limit = limits::VALUE_BYTES_MAX;
        let message = format!("the value in {} has more than {limit} bytes, the limit", file.display());
        return Err(Fault::Call(crate::error::Error::new(Reason::TooLarge, message)));
    }
    Ok(value.into())
}

pub(super) async fn get(session: &mut Session, get: Get) -> Outcome {
    let key = bytes(get.key);
    let client = &session.client;
    let record =
        if get.stale { client.get_stale(key.clone()).await? } else { client.get(key.clone()).await? };
    let Some(record) = record else { return Err(no_such_key(&key)) };
    match session.printer.format() {
        Format::Table => session.printer.line(&escape_value(&record.value))?,
        // Alone, a value is its bytes and nothing more; among others, each has its line.
        Format::Plain if session.is_alone => session.printer.data(&record.value)?,
        Format::Plain => {
            session.printer.data(&record.value)?;
            session.printer.line("")?;
        }
        Format::Json => session.printer.json(&record_json(&record, false))?,
    }
    Ok(0)
}

pub(super) async fn delete(session: &mut Session, delete: Delete) -> Outcome {
    let key = bytes(delete.key);
    let precondition = delete.if_version.map_or(Precondition::None, Precondition::Version);
    let deleted = session.client.delete_if(key.clone(), precondition).await?;
    if !deleted.existed {
        return Err(no_such_key(&key));
    }
    match session.printer.format() {
        Format::Table | Format::Plain => session.printer.line("OK")?,
        Format::Json => {
            let mut object = key_object(&key);
            object.insert("deleted".into(), true.into());
            object.insert("revision".into(), deleted.revision.into());
            session.printer.json(&Value::Object(object))?;
        }
    }
    Ok(0)
}

pub(super) async fn exists(session: &mut Session, exists: Exists) -> Outcome {
    let key = bytes(exists.key);
    let found = session.client.exists(key.clone()).await?;
    match session.printer.format() {
        Format::Table | Format::Plain => session.printer.line(if found { "yes" } else { "no" })?,
        Format::Json => {
            let mut object = key_object(&key);
            object.insert("exists".into(), found.into());
            session.printer.json(&Value::Object(object))?;
        }
    }
    Ok(if found { 0 } else { Reason::NotFound.row().exit })
}

pub(super) async fn scan(session: &mut Session, scan: Scan) -> Outcome {
    let keys_only = scan.keys_only;
    let mut options = match scan.prefix.or(scan.positional) {
        Some(prefix) => ScanOptions::prefix(bytes(prefix)),
        None => ScanOptions {
            start: scan.start.map(bytes).unwrap_or_default(),
            end: scan.end.map(bytes).unwrap_or_default(),
            ..ScanOptions::all()
        },
    };
    options.limit = scan.limit;
    options.keys_only = keys_only;
    options.reverse = scan.reverse;
    options.stale = scan.stale;

    let mut records = session.client.scan(options);
    let printer = &mut session.printer;
    let mut count: u64 = 0;
    if printer.format() == Format::Table {
        let mut head = Vec::new();
        while head.len() < TABLE_HEAD
            && let Some(record) = records.next().await
        {
            head.push(record?);
        }
        let longest = head.iter().map(|record| escape(&record.key).chars().count()).max().unwrap_or(0);
        let width = longest.clamp(3, KEY_WIDTH_MAX);
        let heading =
            if keys_only { "KEY".to_string() } else { format!("{:<width$}  VERSION  VALUE", "KEY") };
        printer.line(&heading)?;
        let mut records = futures_util::stream::iter(head.into_iter().map(Ok)).chain(records);
        while let Some(record) = records.next().await {
            let record = record?;
            let key = escape(&record.key);
            let line = if keys_only {
                key
            } else {
                format!("{key:<width$}  {:>7}  {}", record.version, escape(&record.value))
            };
            printer.line(line.trim_end())?;
            count += 1;
        }
        printer.flush()?;
        printer.say(&format!("{count} {}", if count == 1 { "key" } else { "keys" }));
        return Ok(0);
    }
    while let Some(record) = records.next().await {
        let record = record?;
        match printer.format() {
            Format::Json => printer.json(&record_json(&record, keys_only))?,
            _ if keys_only => printer.line(&escape(&record.key))?,
            _ => printer.line(&format!("{}\t{}", escape(&record.key), escape(&record.value)))?,
        }
    }
    Ok(0)
}

/// A value for a terminal: like [`escape`], but lines and tabs stay.
fn escape_value(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') => text.to_string(),
        _ => escape(value),
    }
}

fn no_such_key(key: &[u8]) -> Fault {
    Fault::not_found(format!("key not found: {}", escape(key)))
}

fn key_object(key: &[u8]) -> Map<String, Value> {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", key);
    object
}

fn record_json(record: &Record, keys_only: bool) -> Value {
    let mut object = key_object(&record.key);
    if !keys_only {
        insert_bytes(&mut object, "value", &record.value);
    }
    object.insert("version".into(), record.version.into());
    object.insert("create_revision".into(), record.create_revision.into());
    object.insert("mod_revision".into(), json!(record.mod_revision));
    Value::Object(object)
}
