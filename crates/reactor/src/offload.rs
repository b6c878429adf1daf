//! The one way to get blocking work done: a small pool of threads that all reactors share.
//!
//! A job runs on a worker; its result travels home in the reactor's inbox and is consumed there.
//! The queue is bounded. A job that finds it full waits in its own reactor, in order, and is tried
//! again every turn, so none is lost; who may cause many jobs bounds them itself, as everything
//! that arrives from outside is bounded.
//!
//! [`Workers::inline`] runs jobs on the reactor's own thread in the following turn: a simulation
//! stays deterministic.

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use slab::Slab;

use crate::ReactorError;
use crate::handle::Shared;
use crate::inbox::Return;

type Job = Box<dyn FnOnce() + Send>;
type Done = Box<dyn FnOnce(Box<dyn Any + Send>)>;

/// Jobs that wait for a worker, for all reactors together.
const QUEUE: usize = 1024;

/// The worker threads; clones refer to the same ones. They end when the last clone is gone.
#[derive(Clone)]
pub struct Workers {
    queue: Option<Sender<Job>>,
}

impl Workers {
    /// Starts `threads` workers, at least one.
    ///
    /// # Errors
    /// [`ReactorError::Thread`] if the system refuses one.
    pub fn start(threads: usize) -> Result<Workers, ReactorError> {
        let (queue, jobs) = bounded::<Job>(QUEUE);
        for index in 0..threads.max(1) {
            let jobs: Receiver<Job> = jobs.clone();
            let thread = format!("worker-{index}");
            thread::Builder::new()
                .name(thread.clone())
                .spawn(move || {
                    for job in jobs {
                        job();
                    }
                })
                .map_err(|source| ReactorError::Thread { thread, source })?;
        }
        Ok(Workers { queue: Some(queue) })
    }

    /// No threads: each reactor runs its own jobs, a turn after they were given.
    pub fn inline() -> Workers {
        Workers { queue: None }
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").field("inline", &self.queue.is_none()).finish()
    }
}

/// One reactor's jobs: those waiting for room in the workers' queue, and what to do with results.
pub(crate) struct Offload {
    workers: Workers,
    waiting: RefCell<VecDeque<Job>>,
    done: RefCell<Slab<Done>>,
}

impl Offload {
    pub(crate) fn new(workers: Workers) -> Offload {
        Offload { workers, waiting: RefCell::default(), done: RefCell::default() }
    }

    pub(crate) fn start<T: Send + 'static>(
        &self,
        home: &Arc<Shared>,
        job: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(T) + 'static,
    ) {
        let done: Done = Box::new(move |result| match result.downcast::<T>() {
            Ok(result) => done(*result),
            Err(_) => debug_assert!(false, "a job returned another job's type"),
        });
        let number = self.done.borrow_mut().insert(done);
        let home = Arc::clone(home);
        home.counters.offloads.add(1);
        self.waiting.borrow_mut().push_back(Box::new(move || {
            let outcome = catch_unwind(AssertUnwindSafe(job))
                .map(|result| -> Box<dyn Any + Send> { Box::new(result) });
            home.inbox.give_back(Return { job: number, outcome });
        }));
        if self.workers.queue.is_some() {
            self.pass_on();
        }
    }

    /// Gives waiting jobs to the workers as far as there is room, or runs those that wait now if
    /// there are no workers. Whether any was given.
    pub(crate) fn pass_on(&self) -> bool {
        let waiting = self.waiting.borrow().len();
        let mut passed = false;
        for _ in 0..waiting {
            let Some(job) = self.waiting.borrow_mut().pop_front() else {
                break;
            };
            match &self.workers.queue {
                None => job(),
                Some(queue) => match queue.try_send(job) {
                    Ok(()) => {}
                    Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                        self.waiting.borrow_mut().push_front(job);
                        break;
                    }
                },
            }
            passed = true;
        }
        passed
    }

    /// Whether jobs wait for room: nothing announces it, so the reactor must not sleep.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// Consumes a result. A panic of the job goes on here, as if the job had run on this thread.
    pub(crate) fn finish(&self, item: Return) {
        let done = self.done.borrow_mut().try_remove(item.job);
        match (item.outcome, done) {
            (Ok(result), Some(done)) => done(result),
            (Ok(_), None) => debug_assert!(false, "a result of no job"),
            (Err(panic), _) => resume_unwind(panic),
        }
    }

    /// Forgets all jobs and what was to be done with their results.
    pub(crate) fn clear(&self) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        let done = std::mem::take(&mut *self.done.borrow_mut());
        drop((waiting, done));
    }
}
