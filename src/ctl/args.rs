//! The command line of rushkvctl.

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use crate::cli::tool::{self, Common};

const EXAMPLES: &str = "Examples:
  rushkvctl cluster info
  rushkvctl cluster health && echo all is well
  rushkvctl --server db1:8080,db2:8080 node list
  rushkvctl partition list -o json
  rushkvctl partition show user:1
  rushkvctl cluster join db4:8080
  rushkvctl cluster leave node4
  rushkvctl debug hash && echo all replicas hold the same

Health ends with exit code 0 if the cluster is healthy and 5 if it is not, or can't be asked.";

/// Look after a RushKV cluster.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "rushkvctl",
    version,
    max_term_width = 100,
    after_help = "--help tells more, with examples and exit codes."
)]
#[command(after_long_help = format!("{}\n\n{}", EXAMPLES, tool::fault::exit_code_help()))]
pub struct Args {
    #[command(flatten)]
    pub common: Common,

    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Command {
    /// The cluster as a whole
    #[command(subcommand)]
    Cluster(Cluster),
    /// Its nodes
    #[command(subcommand)]
    Node(Node),
    /// Its partitions
    #[command(subcommand)]
    Partition(Partition),
    /// Whether what is stored is what was written
    #[command(subcommand)]
    Debug(Debug),
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Cluster {
    /// Its nodes with their roles, partitions by health, replication lag, epoch
    Info,
    /// Every problem that is known: exit code 0 if there is none, else 5
    Health,
    /// Takes a node in that is a cluster of one so far, and was never written to
    Join {
        /// The node's host:port
        address: String,
    },
    /// Moves everything away from a node, then drops it from the cluster
    Leave {
        /// The node's name
        node: String,
        /// Do it even if the cluster then tolerates fewer failures
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Node {
    /// Every node, with its disk and what it leads
    List,
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Partition {
    /// Every partition, with its leader and replicas
    List,
    /// The partition that holds a key
    Show {
        /// The key
        key: OsString,
    },
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Debug {
    /// Compares what the replicas hold: exit code 0 if it is the same, else 5
    ///
    /// One line per replica, with a hash of all records of its partition, taken by every replica at the same
    /// place of its log. "same": nobody differs. "incomplete": nobody who could be asked does. "majority":
    /// some differ from the majority, and are stopped and rebuilt. "none": some differ, nobody can say who is
    /// right, and the partition serves stale reads only. The cluster compares by itself, too, every minute.
    Hash {
        /// Partitions by their number; all if there is none
        #[arg(value_parser = partition)]
        partitions: Vec<u32>,
    },
    /// Lets every node read all that it holds, and check it, from now on
    ///
    /// Each node does so by itself once a day. A replica whose records are not what was written stops, and is
    /// rebuilt if its partition has three copies or more; rushkvctl cluster health and the metrics
    /// rushkv_node_scrub_* tell.
    Scrub,
}

/// A partition as it is given, or as it is shown: `1` or `p1`.
fn partition(given: &str) -> Result<u32, String> {
    let number = given.strip_prefix('p').unwrap_or(given);
    number.parse().map_err(|_| "a partition is a number, as `rushkvctl partition list` shows it".to_string())
}
