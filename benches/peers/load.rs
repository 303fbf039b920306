//! The load: clients that call one after another, or when it is their time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use rushkv::cli::load::{Dice, Values, Zipf, spread};

use crate::target::{Target, Targets};
use crate::{Result, Server, Work};

const PREFIX: &str = "bench:";

/// etcd takes no more operations in a transaction.
const BATCH: u64 = 128;
const PIPELINED: u64 = 16;
const SCANNED: u64 = 100;

#[derive(Debug, Clone)]
pub struct Load {
    pub server: Server,
    pub work: Work,
    pub clients: u64,
    pub lasts: Duration,
    /// Calls per second of all clients together.
    pub rate: Option<f64>,
}

struct Shared {
    load: Load,
    values: Values,
    zipf: Option<Zipf>,
    began: Instant,
}

impl Load {
    /// Returns what came of it.
    pub async fn run(self) -> Result<Value> {
        let targets = Targets::connect(&self.server).await?;
        let mut own = Vec::new();
        for client in 0..self.clients {
            own.push(targets.of(client).await?);
        }
        let values = Values::new(self.server.value_bytes);
        let zipf = (self.work == Work::Mixed).then(|| Zipf::new(self.server.keys));
        let shared = Arc::new(Shared { load: self, values, zipf, began: Instant::now() });
        let each = |(number, target)| tokio::spawn(client(shared.clone(), target, number));
        let tasks: Vec<_> = (0..).zip(own).map(each).collect();
        let (mut latencies, mut items) = (Vec::new(), 0);
        for task in tasks {
            let (of_one, items_of_one) = task.await??;
            latencies.extend(of_one);
            items += items_of_one;
        }
        let elapsed = shared.began.elapsed().as_secs_f64();
        if latencies.is_empty() {
            return Err("no call was answered in that time".into());
        }
        latencies.sort_unstable();
        let ms = |share: f64| {
            let at = ((latencies.len() - 1) as f64 * share) as usize;
            (latencies[at].as_secs_f64() * 1e6).round() / 1e3
        };
        Ok(json!({
            "clients": shared.load.clients,
            "seconds": (elapsed * 1e3).round() / 1e3,
            "calls": latencies.len(),
            "items": items,
            "per_s": (items as f64 / elapsed).round(),
            "p50_ms": ms(0.5),
            "p99_ms": ms(0.99),
            "p999_ms": ms(0.999),
            "max_ms": ms(1.0),
        }))
    }
}

/// Each call's latency, and how many records all calls were about.
async fn client(shared: Arc<Shared>, mut target: Target, number: u64) -> Result<(Vec<Duration>, u64)> {
    let load = &shared.load;
    let mut dice = Dice::new(number);
    let (mut latencies, mut items) = (Vec::new(), 0);
    let between = load.rate.map(|rate| Duration::from_secs_f64(load.clients as f64 / rate));
    // Not all at once.
    let mut due = shared.began + between.unwrap_or_default().mul_f64(number as f64 / load.clients as f64);
    let end = shared.began + load.lasts;
    loop {
        let began = match between {
            Some(between) => {
                tokio::time::sleep_until(due.into()).await;
                let this = due;
                due += between;
                this
            }
            None => Instant::now(),
        };
        if began >= end {
            return Ok((latencies, items));
        }
        items += shared.call(&mut target, &mut dice).await?;
        latencies.push(began.elapsed());
    }
}

impl Shared {
    /// Returns how many records it was about.
    async fn call(&self, target: &mut Target, dice: &mut Dice) -> Result<u64> {
        let keys = self.load.server.keys;
        match self.load.work {
            Work::Put => target.put(self.record(dice.below(keys), dice)).await.map(|()| 1),
            Work::Get => target.get(self.record(dice.below(keys), dice)).await.map(|()| 1),
            Work::Mixed => {
                let number = self.zipf.as_ref().map_or(0, |zipf| zipf.key(dice));
                let record = self.record(number, dice);
                match dice.below(5) {
                    0 => target.put(record).await.map(|()| 1),
                    _ => target.get(record).await.map(|()| 1),
                }
            }
            Work::Batch => self.batch(target, dice, BATCH).await,
            Work::Pipeline => self.batch(target, dice, PIPELINED).await,
            Work::Scan => {
                let scanned = target.scan(key(dice.below(keys - SCANNED)), SCANNED).await?;
                if scanned != SCANNED {
                    return Err(format!("a scan of {SCANNED} records gave {scanned}").into());
                }
                Ok(scanned)
            }
        }
    }

    fn record(&self, number: u64, dice: &mut Dice) -> (Bytes, Bytes) {
        (key(number), self.values.pick(dice.roll()))
    }

    async fn batch(&self, target: &mut Target, dice: &mut Dice, count: u64) -> Result<u64> {
        let keys = self.load.server.keys;
        // A transaction of etcd must not name a key twice.
        let records = spread(dice.below(keys), count, keys).map(|number| self.record(number, dice)).collect();
        target.batch(records).await.map(|()| count)
    }
}

fn key(number: u64) -> Bytes {
    rushkv::cli::load::key(PREFIX, number).into()
}

/// Writes every key once.
pub async fn fill(server: &Server) -> Result<()> {
    let mut target = Targets::connect(server).await?.of(0).await?;
    let values = Values::new(server.value_bytes);
    let mut dice = Dice::new(1);
    let numbers: Vec<u64> = (0..server.keys).collect();
    for batch in numbers.chunks(BATCH as usize) {
        target.batch(batch.iter().map(|&n| (key(n), values.pick(dice.roll()))).collect()).await?;
    }
    Ok(())
}
