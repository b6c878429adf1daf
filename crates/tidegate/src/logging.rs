//! Log lines go to standard error, as text or JSON, through `tracing`.

mod bounded;

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{Format, Level, Logging};
use bounded::Bounded;

/// Starts logging for the whole process. `RUST_LOG` overrides the configured level.
pub(crate) fn start(logging: &Logging) {
    let level = match logging.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // It would be said on the standard error that has just failed, by a macro that panics then.
        .log_internal_errors(false)
        .with_writer(Bounded::new(matches!(logging.format, Format::Json)))
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    // A second call, in a test of one process, finds logging started: that is as good.
    let _ = match logging.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().try_init(),
    };
}
