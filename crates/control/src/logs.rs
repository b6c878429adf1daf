//! What is logged, changed while the process runs.
//!
//! SPDK has two levels, one for the system's log and one for standard error, and flags that show the debugging lines
//! of a module. Here is one log, so both levels are the same; a flag shows a module's debugging lines whatever the level is.
//! Nothing of it is kept: the next start logs as its configuration file says.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::level_filters::LevelFilter;

/// The process's log, which is somebody else's.
pub trait Log: Send + Sync + fmt::Debug {
    /// From now on shows lines of this level and above, and those of these crates from `debug` on.
    fn show(&self, level: LevelFilter, debugged: &[&'static str]);
}

/// Clients' levels, the most silent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Nothing at all.
    Disabled,
    /// What failed.
    Error,
    /// What may fail.
    Warning,
    /// SPDK's usual level; ours knows no difference to the next.
    Notice,
    /// What happens.
    Info,
    /// Everything.
    Debug,
}

impl Level {
    const ALL: [(Self, &'static str, LevelFilter); 6] = [
        (Self::Disabled, "DISABLED", LevelFilter::OFF),
        (Self::Error, "ERROR", LevelFilter::ERROR),
        (Self::Warning, "WARNING", LevelFilter::WARN),
        (Self::Notice, "NOTICE", LevelFilter::INFO),
        (Self::Info, "INFO", LevelFilter::INFO),
        (Self::Debug, "DEBUG", LevelFilter::DEBUG),
    ];

    /// The level of this name, in letters of any size.
    pub fn of(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter();
        all.find(|(_, own, _)| own.eq_ignore_ascii_case(name)).map(|(level, ..)| *level)
    }

    fn entry(self) -> (&'static str, LevelFilter) {
        let found = Self::ALL.iter().find(|(level, ..)| *level == self);
        found.map_or(("INFO", LevelFilter::INFO), |(_, name, filter)| (name, *filter))
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.entry().0
    }
}

/// SPDK's flags for what there is here, and the crates that they are about.
const FLAGS: &[(&str, &str)] = &[
    ("bdev", "block"),
    ("nvmf", "target"),
    ("nvmf_rdma", "transport_rdma"),
    ("nvmf_tcp", "transport_tcp"),
    ("reactor", "reactor"),
    ("rpc", "control"),
];
/// Stands for all of them.
const ALL_FLAGS: &str = "all";

/// The log and what clients have asked of it.
#[derive(Debug)]
pub struct Logs {
    log: Box<dyn Log>,
    asked: Mutex<Asked>,
}

#[derive(Debug)]
struct Asked {
    level: Level,
    flags: BTreeSet<&'static str>,
}

impl Logs {
    /// A log that shows lines from this level on.
    pub fn new(log: Box<dyn Log>, level: Level) -> Self {
        Self { log, asked: Mutex::new(Asked { level, flags: BTreeSet::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is asked, and shows it.
    fn ask(&self, change: impl FnOnce(&mut Asked)) {
        let mut asked = self.lock();
        change(&mut asked);
        let crates = FLAGS.iter().filter(|(flag, _)| asked.flags.contains(flag));
        let crates: Vec<_> = crates.map(|(_, name)| *name).collect();
        self.log.show(asked.level.entry().1, &crates);
    }

    /// The level in force.
    pub fn level(&self) -> Level {
        self.lock().level
    }

    /// Sets the level.
    pub fn set_level(&self, level: Level) {
        self.ask(|asked| asked.level = level);
    }

    /// Every flag, and whether it is set.
    pub fn flags(&self) -> Vec<(&'static str, bool)> {
        let asked = self.lock();
        FLAGS.iter().map(|(flag, _)| (*flag, asked.flags.contains(flag))).collect()
    }

    /// Sets or clears a flag, or all; whether there is such a flag.
    pub fn set_flag(&self, name: &str, on: bool) -> bool {
        let named = FLAGS.iter().map(|(flag, _)| *flag);
        let named: Vec<_> = named.filter(|flag| name == ALL_FLAGS || *flag == name).collect();
        self.ask(|asked| {
            for flag in &named {
                if on {
                    asked.flags.insert(flag);
                } else {
                    asked.flags.remove(flag);
                }
            }
        });
        !named.is_empty()
    }
}
