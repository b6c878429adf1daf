//! Log lines go to standard error, as text or JSON, through `tracing`.

mod bounded;

use std::fmt;
use std::io::{self, IsTerminal};

use control::logs::{self, Log, Logs};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{Format, Level, Logging};
use bounded::Bounded;

/// Replaces the filter of the running log.
type Reload = dyn Fn(EnvFilter) + Send + Sync;

/// The way to change what is logged.
struct Changeable(Box<Reload>);

impl fmt::Debug for Changeable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changeable").finish_non_exhaustive()
    }
}

impl Log for Changeable {
    fn show(&self, level: LevelFilter, debugged: &[&'static str]) {
        let mut filter = EnvFilter::default().add_directive(level.into());
        for name in debugged {
            // A crate's name and a level are a directive.
            if let Ok(directive) = format!("{name}=debug").parse() {
                filter = filter.add_directive(directive);
            }
        }
        (self.0)(filter);
    }
}

/// Starts logging for the whole process. `RUST_LOG` overrides the configured level, until a client sets another.
pub(crate) fn start(logging: &Logging) -> Logs {
    let (level, known_as) = match logging.level {
        Level::Error => (LevelFilter::ERROR, logs::Level::Error),
        Level::Warn => (LevelFilter::WARN, logs::Level::Warning),
        Level::Info => (LevelFilter::INFO, logs::Level::Info),
        Level::Debug => (LevelFilter::DEBUG, logs::Level::Debug),
        Level::Trace => (LevelFilter::TRACE, logs::Level::Debug),
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
    let reload: Box<Reload> = match logging.format {
        Format::Text => {
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            Box::new(move |filter| drop(handle.reload(filter)))
        }
        Format::Json => {
            let builder = builder.json().with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            Box::new(move |filter| drop(handle.reload(filter)))
        }
    };
    Logs::new(Box::new(Changeable(reload)), known_as)
}
