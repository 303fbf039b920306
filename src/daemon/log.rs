//! Logs, to standard error: for people with time and colour, for the journal with a priority.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Changes the level while the program runs.
#[derive(Debug, Clone)]
pub struct Switch {
    handle: reload::Handle<EnvFilter, Registry>,
}

impl Switch {
    /// Takes up the value of `log.level`.
    pub fn set(&self, level: &str) -> Result<(), String> {
        self.handle.reload(filter(level)?).map_err(|error| error.to_string())
    }
}

/// Starts logging with the value of `log.level`. Once in a process.
pub fn init(level: &str) -> Result<Switch, String> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let started = match is_journal() {
        true => registry.with(layer.with_ansi(false).event_format(Journal)).try_init(),
        false => registry.with(layer.with_ansi(wants_colour())).try_init(),
    };
    started.map_err(|error| error.to_string())?;
    ::log::set_logger(&Libraries).map_err(|error| error.to_string())?;
    ::log::set_max_level(::log::LevelFilter::Warn);
    Ok(Switch { handle })
}

/// What libraries say by way of the crate `log`: fjall tells there, and nowhere else, why a flush failed.
struct Libraries;

impl ::log::Log for Libraries {
    fn enabled(&self, metadata: &::log::Metadata<'_>) -> bool {
        metadata.level() <= ::log::Level::Warn
    }

    fn log(&self, record: &::log::Record<'_>) {
        let from = record.target();
        match record.level() {
            ::log::Level::Error => tracing::error!(target: "library", from, "{}", record.args()),
            ::log::Level::Warn => tracing::warn!(target: "library", from, "{}", record.args()),
            _ => {}
        }
    }

    fn flush(&self) {}
}

/// A level without a module is for RushKV; the libraries below it then tell warnings and errors only,
/// and openraft only errors: it warns of each message that an absent peer does not answer, five a second
/// for each group, where `transport` says once that the peer is gone.
fn directives(level: &str) -> String {
    let own = |part: &str| match part {
        "info" | "debug" | "trace" => format!("warn,openraft=error,rushkv={part}"),
        part => part.to_string(),
    };
    level.split(',').map(own).collect::<Vec<_>>().join(",")
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(directives(level)).map_err(|error| format!("log.level {level:?}: {error}"))
}

/// Colour for a terminal, unless <https://no-color.org> is asked for.
fn wants_colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether standard error goes to the journal: systemd names the stream's device and inode, so that a
/// program whose output was redirected since then can tell.
pub fn is_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// Writes lines before logging has started, or where it may not work any more.
pub fn plain(level: Level, text: &str) {
    let text = match is_journal() {
        true => prefixed(priority(level), text),
        false => text.to_string(),
    };
    // Where nobody reads it, nobody can be told that either.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// As syslog numbers them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Each line with its priority: the journal takes every line for a message of its own.
fn prefixed(priority: u8, text: &str) -> String {
    let lines: Vec<String> = text.trim_end().lines().map(|line| format!("<{priority}>{line}")).collect();
    lines.join("\n")
}

/// `<priority>module: message field=value`; the journal knows the time and the process.
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        use fmt::Write as _;
        let mut text = String::new();
        let meta = event.metadata();
        write!(text, "{}: ", meta.target())?;
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            match extensions.get::<FormattedFields<N>>() {
                Some(fields) if !fields.is_empty() => write!(text, "{}{{{fields}}}: ", span.name())?,
                _ => write!(text, "{}: ", span.name())?,
            }
        }
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        writeln!(writer, "{}", prefixed(priority(*meta.level()), &text))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[test]
    fn the_journal_gets_a_priority_on_every_line_and_no_time() {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .event_format(Journal)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!("reload", files = 2);
            let _entered = span.enter();
            tracing::warn!(zone = "a", "two\nlines");
            tracing::error!("bad");
            tracing::debug!("small");
        });
        assert_eq!(
            sink.text(),
            "<4>rushkv::daemon::log::tests: reload{files=2}: two\n<4>lines zone=\"a\"\n\
             <3>rushkv::daemon::log::tests: reload{files=2}: bad\n\
             <7>rushkv::daemon::log::tests: reload{files=2}: small\n"
        );
    }

    #[test]
    fn the_level_changes_while_it_runs() {
        let sink = Sink::default();
        let writer = sink.clone();
        let (first, handle) = reload::Layer::new(filter("warn").unwrap());
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let level = Switch { handle };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(first).with(layer), || {
            tracing::info!("hidden");
            level.set("info,rushkv::daemon=debug").unwrap();
            tracing::debug!("shown");
            tracing::info!(target: "library", "hidden");
            level.set("off").unwrap();
            tracing::error!("hidden");
        });
        let text = sink.text();
        assert!(text.contains("shown") && !text.contains("hidden"), "{text}");
    }

    #[test]
    fn what_libraries_warn_of_is_told() {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .event_format(Journal)
            .with_writer(move || writer.clone());
        let registry = tracing_subscriber::registry().with(filter("info").unwrap()).with(layer);
        tracing::subscriber::with_default(registry, || {
            for level in [::log::Level::Error, ::log::Level::Warn, ::log::Level::Info] {
                let mut record = ::log::Record::builder();
                let record = record.level(level).target("engine::flush");
                ::log::Log::log(&Libraries, &record.args(format_args!("disk")).build());
            }
        });
        assert_eq!(
            sink.text(),
            "<3>library: disk from=\"engine::flush\"\n<4>library: disk from=\"engine::flush\"\n"
        );
    }

    #[test]
    fn every_level_that_the_configuration_accepts_is_a_filter() {
        for level in ["off", "error", "info", "info,rushkv::raft=debug", "trace,h2=off", "a::b=warn"] {
            let written = crate::config::value::Written::Text(level.to_string());
            crate::config::value::accept(crate::config::keys::Kind::LogLevel, &written).expect(level);
            filter(level).expect(level);
        }
        assert_eq!(
            directives("info,rushkv::raft=debug"),
            "warn,openraft=error,rushkv=info,rushkv::raft=debug"
        );
        assert_eq!(directives("error"), "error");
    }
}
