//! Tests of the log; each file has one subject.

mod basic;
mod damage;
mod property;
mod room;
mod sim;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use bytes::Bytes;

use super::*;
use crate::types::{GroupId, ReplicaId};
use sim::Sim;

fn key(group: u32) -> LogKey {
    LogKey { group: GroupId(group), replica: ReplicaId((7 << 32) | u64::from(group)) }
}

fn id(term: u64, index: u64) -> LogId {
    LogId { term, index }
}

fn entry(term: u64, index: u64, payload: &str) -> Entry {
    Entry { id: id(term, index), payload: Bytes::copy_from_slice(payload.as_bytes()) }
}

fn options() -> Options {
    Options { segment_bytes: 32 * 1024, cache_bytes: 1 << 20, queue_bytes: 1 << 20, ..Options::new("/wal") }
}

fn metrics() -> Metrics {
    Metrics::register(&prometheus::Registry::new()).unwrap()
}

fn open(sim: &Arc<Sim>) -> Wal {
    open_with(sim, options()).unwrap()
}

fn open_with(sim: &Arc<Sim>, options: Options) -> Result<Wal, OpenError> {
    Wal::open_on(sim.clone(), options, metrics())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// A callback, and where its result arrives.
fn done() -> (Done, Receiver<Result<(), Failed>>) {
    let (sender, receiver) = sync_channel(1);
    (Box::new(move |result| drop(sender.send(result))), receiver)
}

/// Makes a call and waits until it is durable.
fn sync<F: Future<Output = Result<(), Failed>>>(call: impl FnOnce(Done) -> F) -> Result<(), Failed> {
    let (done, receiver) = done();
    let returned = block_on(call(done));
    let called = receiver.recv().unwrap();
    assert!(returned.is_ok() || called.is_err(), "a call that failed is never durable");
    called
}

fn append(log: &Log, entries: &[Entry]) {
    sync(|done| log.append(entries.to_vec(), done)).unwrap();
}
