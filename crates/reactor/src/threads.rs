//! Reactors on threads of their own: started together, stopped together, and named when stuck.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant as WallInstant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use thiserror::Error;
use tracing::warn;

use crate::ReactorError;
use crate::handle::Handle;
use crate::limits;
use crate::offload::Workers;
use crate::reactor::{Reactor, ReactorConfig, share};

/// Why not every reactor has ended.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum JoinError {
    /// These did not come back within the deadline; one line about each.
    #[error("{}", .0.join("; "))]
    Stuck(Vec<String>),
    /// These ended by a panic.
    #[error("{}", .0.iter().map(|index| format!("reactor {index} panicked")).collect::<Vec<_>>().join("; "))]
    Panicked(Vec<usize>),
}

/// Reactors that run on threads.
#[derive(Debug)]
pub struct Reactors {
    handles: Arc<[Handle]>,
    ended: Receiver<Ended>,
    /// For each reactor whether it has ended.
    done: Vec<bool>,
    panicked: Vec<usize>,
}

#[derive(Debug)]
struct Ended {
    index: usize,
    panicked: bool,
}

/// Starts one thread per configuration, and as many worker threads as asked for.
///
/// A core that is not allowed to this process is no error: one line says so, and the reactor runs
/// where the system puts it.
///
/// # Errors
/// [`ReactorError`] if a reactor could not be made; those already started are stopped.
pub fn spawn(configs: Vec<ReactorConfig>, workers: usize) -> Result<Reactors, ReactorError> {
    let handles = share(&configs)?;
    limits::raise();
    let workers = Workers::start(workers)?;
    let (end, ended) = channel();
    let (ready, started) = channel();
    let mut reactors = Reactors {
        handles: Arc::clone(&handles),
        ended,
        done: vec![true; configs.len()],
        panicked: Vec::new(),
    };
    let count = configs.len();
    for (index, config) in configs.into_iter().enumerate() {
        let thread = format!("reactor-{index}");
        let (handles, workers) = (Arc::clone(&handles), workers.clone());
        let (ready, end) = (ready.clone(), end.clone());
        let body = move || {
            let run = || run_thread(index, &config, &handles, &workers, &ready);
            let panicked = catch_unwind(AssertUnwindSafe(run)).is_err();
            let _ = end.send(Ended { index, panicked });
        };
        let spawned = thread::Builder::new().name(thread.clone()).spawn(body);
        if let Err(source) = spawned {
            reactors.stop();
            return Err(ReactorError::Thread { thread, source });
        }
        if let Some(done) = reactors.done.get_mut(index) {
            *done = false;
        }
    }
    drop(ready);
    for _ in 0..count {
        // A thread that panics before it is ready drops its sender; `join` will name it.
        if let Ok(Err(error)) = started.recv() {
            reactors.stop();
            return Err(error);
        }
    }
    Ok(reactors)
}

fn run_thread(
    index: usize,
    config: &ReactorConfig,
    handles: &Arc<[Handle]>,
    workers: &Workers,
    ready: &Sender<Result<(), ReactorError>>,
) {
    if let Some(core) = config.core {
        pin(index, core);
    }
    match Reactor::with_peers(index, config, handles, workers) {
        Ok(mut reactor) => {
            let _ = ready.send(Ok(()));
            reactor.run();
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

/// Pins this thread, if that is allowed.
fn pin(reactor: usize, core: usize) {
    let allowed =
        sched_getaffinity(None).is_ok_and(|cores| core < CpuSet::MAX_CPU && cores.is_set(core));
    let pinned = allowed && {
        let mut cores = CpuSet::new();
        cores.set(core);
        sched_setaffinity(None, &cores).is_ok()
    };
    if !pinned {
        warn!("reactor {reactor}: core {core} is not allowed to this process; it runs unpinned");
    }
}

impl Reactors {
    /// The reactors in order of their indices.
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// Makes every reactor end after the turn it is in.
    pub fn stop(&self) {
        for handle in self.handles.iter() {
            handle.stop();
        }
    }

    /// Waits until every reactor has ended, up to `deadline` from now. May be called again after
    /// [`JoinError::Stuck`].
    ///
    /// # Errors
    /// [`JoinError`], naming the reactors and what holds them.
    pub fn join(&mut self, deadline: Duration) -> Result<(), JoinError> {
        let until = WallInstant::now().checked_add(deadline);
        while self.done.iter().any(|done| !done) {
            let left =
                until.map_or(deadline, |until| until.saturating_duration_since(WallInstant::now()));
            match self.ended.recv_timeout(left) {
                Ok(ended) => {
                    if let Some(done) = self.done.get_mut(ended.index) {
                        *done = true;
                    }
                    if ended.panicked {
                        self.panicked.push(ended.index);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(JoinError::Stuck(self.stuck()));
                }
            }
        }
        if self.panicked.is_empty() {
            Ok(())
        } else {
            Err(JoinError::Panicked(self.panicked.clone()))
        }
    }

    /// One line per reactor that runs.
    fn stuck(&self) -> Vec<String> {
        let running = self.handles.iter().zip(&self.done).filter(|(_, done)| !**done);
        running
            .map(|(handle, _)| {
                let what = handle.shared.activity.describe();
                format!("reactor {} is stuck {what}", handle.index())
            })
            .collect()
    }
}

impl Drop for Reactors {
    fn drop(&mut self) {
        self.stop();
    }
}
