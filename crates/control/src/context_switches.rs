//! How often the system takes the processor from a reactor, or a reactor gives it away: lines in the log, while a client
//! wants them.
//!
//! Once in a second the system's own count of each reactor's thread is read, on a thread that may block; a reactor is not
//! asked and does nothing for it. A line is written for each reactor that has been switched since.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// How the threads of reactors are called, before their number.
const REACTOR: &str = "reactor-";

/// Whether it is looked at.
#[derive(Debug, Default)]
pub(crate) struct ContextSwitches(Mutex<Option<AbortHandle>>);

/// The switches of one thread since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    voluntary: u64,
    involuntary: u64,
}

impl ContextSwitches {
    fn watch(&self) -> MutexGuard<'_, Option<AbortHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether lines are written.
    pub(crate) fn is_enabled(&self) -> bool {
        self.watch().is_some()
    }

    /// Has lines be written from now on, or no more. Within a tokio runtime.
    pub(crate) fn enable(&self, enabled: bool) {
        let mut watch = self.watch();
        match (&*watch, enabled) {
            (None, true) => *watch = Some(tokio::spawn(report()).abort_handle()),
            (Some(running), false) => {
                running.abort();
                *watch = None;
            }
            (None, false) | (Some(_), true) => {}
        }
    }
}

impl Drop for ContextSwitches {
    fn drop(&mut self) {
        self.enable(false);
    }
}

/// Writes lines for as long as it is polled.
async fn report() {
    let look = || tokio::task::spawn_blocking(|| of_reactors(Path::new("/proc/self/task")));
    let mut before: BTreeMap<u32, Counts> = BTreeMap::new();
    loop {
        match look().await {
            Ok(Ok(now)) => {
                for (reactor, counts) in &now {
                    if let Some(known) = before.get(reactor)
                        && known != counts
                    {
                        tracing::info!(
                            "reactor {reactor}: {} voluntary and {} involuntary context switches in the last second",
                            counts.voluntary.saturating_sub(known.voluntary),
                            counts.involuntary.saturating_sub(known.involuntary),
                        );
                    }
                }
                before = now;
            }
            Ok(Err(error)) => {
                tracing::warn!("context switches cannot be read: {error}; they are not looked at");
                return;
            }
            Err(_) => return,
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The counts of this process's reactors by their numbers.
fn of_reactors(threads: &Path) -> io::Result<BTreeMap<u32, Counts>> {
    let mut found = BTreeMap::new();
    for thread in fs::read_dir(threads)? {
        // A thread may end meanwhile.
        if let Ok(status) = fs::read_to_string(thread?.path().join("status")) {
            found.extend(of_reactor(&status));
        }
    }
    Ok(found)
}

/// What the system says of a thread, if that is a reactor.
fn of_reactor(status: &str) -> Option<(u32, Counts)> {
    let field = |name: &str| {
        let mut lines = status.lines().filter_map(|line| line.split_once(':'));
        lines.find_map(|(key, value)| (key == name).then_some(value.trim()))
    };
    let number = field("Name")?.strip_prefix(REACTOR)?.parse().ok()?;
    let count = |name| field(name)?.parse().ok();
    let voluntary = count("voluntary_ctxt_switches")?;
    Some((number, Counts { voluntary, involuntary: count("nonvoluntary_ctxt_switches")? }))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn reactors_are_told_from_other_threads() {
        let status = |name: &str| {
            format!(
                "Name:\t{name}\nState:\tR\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n"
            )
        };
        let counts = Counts { voluntary: 12, involuntary: 3 };
        assert_eq!(of_reactor(&status("reactor-7")), Some((7, counts)));
        assert_eq!(of_reactor(&status("tokio-rt-worker")), None);
        assert_eq!(of_reactor(&status("reactor-x")), None);
        assert_eq!(of_reactor("Name:\treactor-1\n"), None);
    }

    #[test]
    fn a_thread_that_waits_is_switched() {
        let (wake, waits) = channel::<()>();
        let (answer, answers) = channel();
        let body = move || waits.iter().for_each(|()| answer.send(()).unwrap());
        let thread = thread::Builder::new().name("reactor-4711".to_owned()).spawn(body).unwrap();
        let count = || of_reactors(Path::new("/proc/self/task")).unwrap().get(&4711).copied();
        let turn = || {
            wake.send(()).unwrap();
            answers.recv().unwrap();
        };
        turn();
        let before = count().unwrap();
        (0..100).for_each(|_| turn());
        let after = count().unwrap();
        assert!(after.voluntary > before.voluntary, "{before:?} {after:?}");
        drop(wake);
        thread.join().unwrap();
    }
}
