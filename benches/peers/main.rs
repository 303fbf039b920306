//! One load for RushKV and for what it is compared with: etcd, Redis, and a bare tonic echo, which is the
//! ceiling of unary gRPC. The same runtime, connections, keys and values for all; [`load`] makes it, [`target`]
//! speaks to each of them.
//!
//! `cargo bench --bench peers` measures the echo alone; `benches/compare` starts the servers and calls this for
//! each sample.

mod echo;
mod load;
mod redis;
mod target;

use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::load::Load;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Failure>;

#[derive(Debug, Parser)]
struct Cli {
    /// cargo gives it to every bench.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answers with what it is sent
    ServeEcho { address: String },
    /// Writes every key once
    Fill {
        #[command(flatten)]
        server: Server,
    },
    /// Makes a load, and prints one line of JSON about it
    Run {
        #[command(flatten)]
        server: Server,
        work: Work,
        /// Calls under way at once; each begins when the last one of its client is answered
        #[arg(long, default_value_t = 64)]
        clients: u64,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Calls per second, of all clients, that begin when it is their time; latencies count from then
        #[arg(long)]
        rate: Option<f64>,
    },
}

#[derive(Debug, Clone, Args)]
pub struct Server {
    target: TargetKind,
    /// HOST:PORT, several with commas
    address: String,
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    #[arg(long, default_value_t = 128)]
    value_bytes: usize,
    /// To each gRPC server, and no fewer in all; Redis gets one for each client
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// Each call of RushKV's client on a stream of its own
    #[arg(long)]
    unary: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TargetKind {
    Rushkv,
    Etcd,
    Redis,
    Echo,
}

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    Put,
    /// Linearizable
    Get,
    /// Four gets for each put, keys by a zipfian distribution
    Mixed,
    /// 128 puts: a batch, a transaction, a pipeline
    Batch,
    /// 16 SETs in one write (Redis)
    Pipeline,
    /// 100 records one after another
    Scan,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Some(Command::ServeEcho { address }) => echo::serve(&address).await,
        Some(Command::Fill { server }) => load::fill(&server).await,
        Some(Command::Run { server, work, clients, seconds, rate }) => {
            let lasts = Duration::from_secs_f64(seconds);
            println!("{}", Load { server, work, clients, lasts, rate }.run().await?);
            Ok(())
        }
        None => echo_alone().await,
    }
}

/// The echo in a process of its own, ended with this one.
struct EchoProcess(std::process::Child);

impl EchoProcess {
    fn start(address: &str) -> Result<EchoProcess> {
        let program = std::env::current_exe()?;
        Ok(EchoProcess(std::process::Command::new(program).args(["serve-echo", address]).spawn()?))
    }
}

impl Drop for EchoProcess {
    fn drop(&mut self) {
        // It is gone already, or it is ours to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn echo_alone() -> Result<()> {
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let _server = EchoProcess::start(&address)?;
    let server = Server {
        target: TargetKind::Echo,
        address,
        keys: 100_000,
        value_bytes: 128,
        connections: 2,
        unary: false,
    };
    let began = Instant::now();
    while let Err(error) = load::fill(&server).await {
        if began.elapsed() > Duration::from_secs(10) {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (work, clients) in [(Work::Put, 1), (Work::Put, 64), (Work::Put, 256), (Work::Batch, 64)] {
        let lasts = Duration::from_secs(2);
        println!("{}", Load { server: server.clone(), work, clients, lasts, rate: None }.run().await?);
    }
    Ok(())
}
