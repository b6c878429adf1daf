//! One reactor's way to a file: checks operations, gives them to an engine, and answers them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use reactor::Local;

use super::durability::Entry;
use super::medium::{Medium, Sort};
use super::ring_engine::RingEngine;
use crate::fault::Fault;
use crate::inquiry::Inquiry;

use crate::workers::{Cancelled, WorkerEngine, Workers};
use crate::{BlockError, BlockQueue, Completion, ErrorKind, Kind, Operation, Token};

#[derive(Debug)]
pub(super) struct FileQueue {
    medium: Arc<Medium>,
    local: Local,
    ring: Option<RingEngine>,
    workers: WorkerEngine<Medium>,
    answers: Answers,
    /// Flushes and FUA writes that wait for another queue's to end.
    gated: VecDeque<Operation>,
    /// Zeroes to be made in another way than the one that has just turned out not to work.
    redirected: Vec<Operation>,
}

/// The ends of operations, on their way to the submitter.
#[derive(Debug)]
struct Answers {
    medium: Arc<Medium>,
    done: VecDeque<Completion>,
    /// Durable operations of this queue that are with an engine.
    durable: usize,
    /// Failures that may mean that the device was pulled out.
    suspects: Vec<(Token, ErrorKind)>,
    inquiry: Inquiry,
}

impl FileQueue {
    pub(super) fn new(
        medium: Arc<Medium>,
        workers: Arc<Workers<Medium>>,
        local: &Local,
    ) -> Result<FileQueue, BlockError> {
        let Some(home) = local.handle(local.index()) else {
            let problem = "its reactor has no handle of its own".to_owned();
            return Err(BlockError::Unsuitable { device: medium.name.clone(), problem });
        };
        let ring = local.ring().map(|ring| RingEngine::new(Arc::clone(&medium), &ring));
        let workers = WorkerEngine::new(Arc::clone(&medium), workers, home);
        let answers = Answers {
            medium: Arc::clone(&medium),
            done: VecDeque::new(),
            durable: 0,
            suspects: Vec::new(),
            inquiry: Inquiry::default(),
        };
        let (gated, redirected) = (VecDeque::new(), Vec::new());
        Ok(FileQueue { medium, local: local.clone(), ring, workers, answers, gated, redirected })
    }

    /// Gives an operation to its engine, or lets it wait its turn.
    fn start(&mut self, operation: Operation) {
        if is_durable(&operation) {
            match self.medium.durability.enter() {
                Entry::Go => self.answers.durable += 1,
                Entry::Wait => return self.gated.push_back(operation),
                Entry::Fail => {
                    return self.answers.say(operation.token, Err(ErrorKind::MediumWrite));
                }
            }
        }
        self.pass_on(operation);
    }

    fn pass_on(&mut self, operation: Operation) {
        match &mut self.ring {
            Some(ring) if ring.can(&operation) => ring.start(operation),
            _ => self.workers.start(operation),
        }
    }

    fn poll_engines(&mut self) {
        let FileQueue { ring, workers, answers, redirected, .. } = self;
        let mut finished = |operation: Operation, outcome| {
            // The engine has ruled that way out, so the next one is another.
            let unsupported = outcome == Err(Fault::System(rustix::io::Errno::OPNOTSUPP));
            if unsupported && matches!(operation.kind, Kind::WriteZeroes { .. }) {
                redirected.push(operation);
            } else {
                answers.finish(&operation, outcome);
            }
        };
        if let Some(ring) = ring {
            ring.poll(&mut finished);
        }
        workers.poll(&mut finished);
        while let Some(operation) = self.redirected.pop() {
            self.pass_on(operation);
        }
        for _ in 0..self.gated.len() {
            if let Some(operation) = self.gated.pop_front() {
                self.start(operation);
            }
        }
    }

    /// Finds out whether the device is still there, if something makes us doubt it.
    fn inquire(&mut self) {
        let answers = &mut self.answers;
        if let Some(gone) = answers.inquiry.answer() {
            if gone && !self.medium.removed.swap(true, Ordering::AcqRel) {
                tracing::error!(
                    "device {}: {} is gone",
                    self.medium.name,
                    self.medium.path.display()
                );
            }
            for (token, kind) in std::mem::take(&mut answers.suspects) {
                answers.say(token, Err(if gone { ErrorKind::Removed } else { kind }));
            }
        }
        if !answers.suspects.is_empty() {
            let medium = Arc::clone(&self.medium);
            answers.inquiry.start(&self.local, move || medium.is_gone());
        }
    }
}

impl BlockQueue for FileQueue {
    fn submit(&mut self, operation: Operation) {
        // Now, not when they end, perhaps all at once: so growing depends on the depth alone.
        self.answers.done.reserve(self.outstanding() + 1 - self.answers.done.len());
        let medium = &self.medium;
        let verdict = operation.admit(medium.geometry(), &medium.properties);
        let nothing_to_do = match operation.kind {
            Kind::Flush => medium.properties.read_only,
            _ => operation.blocks == 0,
        };
        match verdict {
            Err(kind) => self.answers.say(operation.token, Err(kind)),
            Ok(()) if medium.removed.load(Ordering::Acquire) => {
                self.answers.say(operation.token, Err(ErrorKind::Removed));
            }
            Ok(()) if nothing_to_do => self.answers.say(operation.token, Ok(())),
            Ok(()) => self.start(operation),
        }
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        self.poll_engines();
        self.inquire();
        let count = max.min(self.answers.done.len());
        self.answers.done.drain(..count).for_each(done);
        count
    }

    fn cancel(&mut self, token: Token) -> bool {
        if let Some(place) = self.gated.iter().position(|gated| gated.token == token) {
            self.gated.remove(place);
            self.answers.say(token, Err(ErrorKind::Aborted));
            return true;
        }
        let given_back = self.ring.as_mut().and_then(|ring| ring.cancel(token));
        let given_back = match given_back {
            Some(operation) => Cancelled::GivenBack(operation),
            None => self.workers.cancel(token),
        };
        match given_back {
            Cancelled::GivenBack(operation) => {
                self.answers.finish(&operation, Err(Fault::Aborted));
                true
            }
            Cancelled::WillAbort => true,
            Cancelled::No => false,
        }
    }

    fn outstanding(&self) -> usize {
        let engines =
            self.ring.as_ref().map_or(0, RingEngine::outstanding) + self.workers.outstanding();
        let answers = self.answers.done.len() + self.answers.suspects.len();
        engines + answers + self.gated.len() + self.redirected.len()
    }

    fn needs_poll(&self) -> bool {
        // Those that wait for our own are woken by its end; nothing tells of another queue's.
        let waits_for_another = !self.gated.is_empty() && self.answers.durable == 0;
        !self.answers.done.is_empty()
            || waits_for_another
            || self.answers.inquiry.is_answered()
            || self.ring.as_ref().is_some_and(RingEngine::needs_poll)
    }
}

impl Drop for FileQueue {
    fn drop(&mut self) {
        // Their outcomes will not be seen, so the worst has to be assumed of them.
        for _ in 0..self.answers.durable {
            let unknown = Err(Fault::System(rustix::io::Errno::CANCELED));
            let _ = self.medium.durability.leave(&self.medium.name, unknown);
        }
    }
}

impl Answers {
    /// An operation that was with an engine has come to its end.
    fn finish(&mut self, operation: &Operation, mut outcome: Result<(), Fault>) {
        if is_durable(operation) {
            self.durable -= 1;
            outcome = self.medium.durability.leave(&self.medium.name, outcome);
        }
        let Err(fault) = outcome else {
            return self.say(operation.token, Ok(()));
        };
        let kind = fault.kind(operation.kind);
        if self.medium.sort == Sort::BlockDevice && fault.may_mean_removal() {
            self.suspects.push((operation.token, kind));
        } else {
            self.say(operation.token, Err(kind));
        }
    }

    fn say(&mut self, token: Token, result: Result<(), ErrorKind>) {
        self.done.push_back(Completion::new(token, result));
    }
}

/// Whether the operation ends only when something is durable.
fn is_durable(operation: &Operation) -> bool {
    match operation.kind {
        Kind::Flush => true,
        Kind::Write | Kind::WriteZeroes { .. } => operation.fua,
        Kind::Read | Kind::Deallocate | Kind::Compare | Kind::Verify => false,
    }
}
