//! What must be refused, is: with an error that names the thing and the way out, nothing lost, and no
//! panic. The real daemon on data directories that were tampered with.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

#[path = "support/process.rs"]
mod process;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use process::Daemon;
use rushkv::error::{Happened, Reason, from_status};
use rushkv::proto::v1::kv_client::KvClient;
use rushkv::proto::v1::{GetRequest, PutRequest};

const RECORDS: u64 = 200;

/// Writes some records, and kills the daemon: all of them are in the log only.
async fn written(daemon: &mut Daemon) {
    daemon.start();
    daemon.serves().await;
    let mut client = KvClient::new(daemon.channel());
    for at in 0..RECORDS {
        let key = format!("k{at}").into();
        let value = format!("value {at}").into();
        client.put(PutRequest { key, value, precondition: None }).await.unwrap();
    }
    daemon.kill();
}

async fn all_there(daemon: &mut Daemon) {
    daemon.start();
    daemon.serves().await;
    let mut client = KvClient::new(daemon.channel());
    for at in 0..RECORDS {
        let key = format!("k{at}").into();
        let record = client.get(GetRequest { key, consistency: 0 }).await.unwrap().into_inner().record;
        assert_eq!(record.expect("it is there").value, format!("value {at}"));
    }
}

/// It must end by itself, without a panic; returns what it said.
fn refused(daemon: &mut Daemon) -> String {
    let before = daemon.log().len();
    daemon.start();
    let code = daemon.wait_end(Duration::from_secs(30));
    let log = daemon.log()[before..].to_string();
    assert!(matches!(code, Some(1 | 78)), "{code:?}:\n{log}");
    assert!(!log.contains("panicked"), "{log}");
    log
}

/// The log's segments, by name.
fn segments(data_dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(data_dir.join("wal")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The file that holds `needle`, and where.
fn find(files: &[PathBuf], needle: &[u8]) -> (PathBuf, usize) {
    for file in files {
        let content = fs::read(file).unwrap();
        if let Some(at) = content.windows(needle.len()).position(|window| window == needle) {
            return (file.clone(), at);
        }
    }
    panic!("{} is in no segment", needle.escape_ascii());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_middle_of_the_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(&dir.path().join("data"), "fjall");
    written(&mut daemon).await;
    let (file, at) = find(&segments(&daemon.data_dir), b"value 77");
    let mut content = fs::read(&file).unwrap();
    content[at] ^= 4;
    fs::write(&file, &content).unwrap();
    for _ in 0..2 {
        let log = refused(&mut daemon);
        assert!(log.contains("damaged at offset"), "{log}");
        assert!(log.contains(file.file_name().unwrap().to_str().unwrap()), "{log}");
        assert!(log.contains("restore the whole data_dir"), "{log}");
    }
    // Refusing changed nothing: with the bit set right everything is there.
    content[at] ^= 4;
    fs::write(&file, &content).unwrap();
    all_there(&mut daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(&dir.path().join("data"), "fjall");
    written(&mut daemon).await;
    // A second life, so that the first segment is followed by another.
    all_there(&mut daemon).await;
    daemon.kill();
    let (file, at) = find(&segments(&daemon.data_dir), b"value 100");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..at]).unwrap();
    let log = refused(&mut daemon);
    assert!(log.contains("damaged at offset"), "{log}");
    fs::remove_file(&file).unwrap();
    let log = refused(&mut daemon);
    assert!(log.contains("missing") || log.contains("the log is incomplete"), "{log}");
    fs::write(&file, &whole).unwrap();
    all_there(&mut daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(&dir.path().join("data"), "fjall");
    written(&mut daemon).await;
    all_there(&mut daemon).await;
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
    fs::rename(daemon.data_dir.join("wal"), dir.path().join("away")).unwrap();
    let log = refused(&mut daemon);
    assert!(log.contains("the log is incomplete") && log.contains("restore"), "{log}");
    let _ = fs::remove_dir_all(daemon.data_dir.join("wal"));
    fs::rename(dir.path().join("away"), daemon.data_dir.join("wal")).unwrap();
    all_there(&mut daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_engine_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut daemon = Daemon::new(&data, "sled");
    written(&mut daemon).await;
    let log = refused(&mut Daemon::new(&data, "fjall"));
    assert!(log.contains("sled") && log.contains("storage.engine"), "{log}");
    all_there(&mut daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_nodes_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut daemon = Daemon::new(&data, "fjall");
    written(&mut daemon).await;
    daemon.start();
    daemon.serves().await;
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
    let identity = data.join("IDENTITY");
    let text = fs::read_to_string(&identity).unwrap();
    let body = text[..text.rfind("crc32c").unwrap()].replace("node1", "node7");
    fs::write(&identity, format!("{body}crc32c = {:08x}\n", crc32c::crc32c(body.as_bytes()))).unwrap();
    let log = refused(&mut daemon);
    assert!(log.contains("node7") && log.contains("node1"), "{log}");
    assert!(data.join("CLEAN").exists(), "a refused start changes nothing");
    fs::write(&identity, text).unwrap();
    all_there(&mut daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port_hurts_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(&dir.path().join("data"), "fjall");
    daemon.start();
    daemon.serves().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4096],
        &[0xFF; 100_000],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xFF",
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // It may hang up before it has taken everything.
        let _ = stream.write_all(garbage);
        let mut answer = Vec::new();
        let _ = stream.take(1 << 20).read_to_end(&mut answer);
    }
    let mut client = KvClient::new(daemon.channel());
    let long = PutRequest { key: vec![b'k'; 4097].into(), value: "v".into(), precondition: None };
    let error = from_status(&client.put(long).await.unwrap_err(), Happened::Unknown);
    assert_eq!((error.reason, error.happened()), (Reason::TooLarge, Happened::No));
    assert!(error.message.contains("4096"), "{error}");
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}
