//! The flags that both tools have.

use std::time::Duration;

use super::fault::Fault;
use super::generate::Generate;
use super::printer::Format;
use super::text;
use crate::client::Client;

/// Asked when neither flag nor environment names a server.
pub const SERVER_DEFAULT: &str = "localhost:8080";

/// Names the servers to ask, as `--server` does.
pub const SERVER_VARIABLE: &str = "RUSHKV_SERVER";

/// While nobody at all can be reached, a call goes on for this long: someone waits at a terminal, and has
/// more likely mistyped than caught a restart.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(1);

/// Sets these apart from a command's own flags.
const HEADING: &str = "Common options";

#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Server to ask; several with commas, or given several times: if one can't be reached, the next is
    /// asked [default: $RUSHKV_SERVER, else localhost:8080]
    #[arg(long, short = 's', global = true, value_name = "HOST:PORT", help_heading = HEADING)]
    pub server: Vec<String>,

    /// How long one call may take, attempts included: 500ms, 5s, 1m
    #[arg(long, global = true, value_name = "TIME", default_value = "5s", value_parser = text::duration, help_heading = HEADING)]
    pub timeout: Duration,

    /// How data is printed: table, json or plain [default: table on a terminal, else plain]
    #[arg(long, short = 'o', global = true, value_name = "FORMAT", value_enum, hide_possible_values = true, help_heading = HEADING)]
    pub output: Option<Format>,

    /// Print a manual page or a shell's completions, for packages
    #[arg(long, hide = true, value_name = "WHAT", value_enum)]
    pub generate: Option<Generate>,
}

impl Common {
    pub fn client(&self) -> Result<Client, Fault> {
        let from_environment =
            std::env::var(SERVER_VARIABLE).ok().filter(|servers| !servers.trim().is_empty());
        let servers = match self.server.is_empty() {
            true => from_environment.unwrap_or_else(|| SERVER_DEFAULT.into()),
            false => self.server.join(","),
        };
        let connect_timeout = crate::client::CONNECT_TIMEOUT_DEFAULT.min(self.timeout);
        let builder = Client::builder().endpoint(&servers).timeout(self.timeout);
        Ok(builder.connect_timeout(connect_timeout).unreachable_after(UNREACHABLE_AFTER).build()?)
    }
}
