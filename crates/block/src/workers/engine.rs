//! Operations by the device's own threads: each is one job, carried out to its end.
//!
//! At most [`DEPTH`] of a queue's operations are with the threads, which bounds their memory; the
//! others wait here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::channel::{Receiver, unbounded};
use reactor::Handle;
use slab::Slab;

use super::{Blocking, Bounce, Home, Job, Outcome, Work, Workers};
use crate::fault::Fault;
use crate::{Kind, Operation, Token};

/// Operations of one queue with the threads at most: some for each thread, so that none idles
/// while the reactor is between two polls.
const DEPTH: usize = 16;

#[derive(Debug)]
pub(crate) struct WorkerEngine<M> {
    medium: Arc<M>,
    workers: Arc<Workers<M>>,
    home: Home,
    outcomes: Receiver<Outcome>,
    slots: Slab<Slot>,
    waiting: VecDeque<Operation>,
}

/// An operation that is with the threads.
#[derive(Debug)]
struct Slot {
    operation: Operation,
    claimed: Arc<AtomicBool>,
}

/// What became of a wish to cancel.
#[derive(Debug)]
pub(crate) enum Cancelled {
    /// It is not here, or has begun.
    No,
    /// It had not been given to a thread; here it is.
    GivenBack(Operation),
    /// No thread will begin it; it finishes with [`Fault::Aborted`].
    WillAbort,
}

impl<M: Blocking> WorkerEngine<M> {
    pub(crate) fn new(
        medium: Arc<M>,
        workers: Arc<Workers<M>>,
        reactor: Handle,
    ) -> WorkerEngine<M> {
        let (sender, outcomes) = unbounded();
        let home = Home { outcomes: sender, reactor, woken: Arc::default() };
        let (slots, waiting) = (Slab::new(), VecDeque::new());
        WorkerEngine { medium, workers, home, outcomes, slots, waiting }
    }

    pub(crate) fn start(&mut self, operation: Operation) {
        if self.waiting.is_empty() && self.slots.len() < DEPTH {
            self.begin(operation);
        } else {
            self.waiting.push_back(operation);
        }
    }

    fn begin(&mut self, operation: Operation) {
        let work = self.work(&operation);
        let claimed = Arc::new(AtomicBool::new(false));
        let slot = self.slots.insert(Slot { operation, claimed: Arc::clone(&claimed) });
        self.workers.give(Job { slot, work, claimed, home: self.home.clone() });
    }

    fn work(&self, operation: &Operation) -> Work {
        let (offset, len) = operation.byte_range(self.medium.geometry());
        let data = || Bounce::gather(operation.data.iter());
        let durable = operation.fua;
        match operation.kind {
            Kind::Read => Work::Read { offset, len: operation.data.len() },
            Kind::Write => Work::Write { offset, data: data(), durable },
            Kind::Compare => Work::Compare { offset, data: data() },
            Kind::Verify => Work::Verify { offset, len },
            Kind::WriteZeroes { deallocate } => Work::Zero { offset, len, deallocate, durable },
            Kind::Deallocate => Work::Deallocate { offset, len },
            Kind::Flush => Work::Sync,
        }
    }

    /// Takes what the threads have finished and gives them more. Calls `finished` for each operation
    /// that has come to its end.
    pub(crate) fn poll(&mut self, finished: &mut impl FnMut(Operation, Result<(), Fault>)) {
        if self.outstanding() == 0 {
            return;
        }
        // Before looking: what is sent after the look wakes the reactor again.
        self.home.woken.swap(false, Ordering::AcqRel);
        for _ in 0..DEPTH {
            let Ok(Outcome { slot, result }) = self.outcomes.try_recv() else {
                break;
            };
            let Some(Slot { operation, .. }) = self.slots.try_remove(slot) else {
                continue;
            };
            let outcome = match result {
                Ok(Some(data)) if !data.scatter(operation.data.iter()) => Err(Fault::Internal),
                Ok(_) => Ok(()),
                Err(fault) => Err(fault),
            };
            finished(operation, outcome);
        }
        while self.slots.len() < DEPTH
            && let Some(operation) = self.waiting.pop_front()
        {
            self.begin(operation);
        }
    }

    /// Gives up an operation that no thread has begun.
    pub(crate) fn cancel(&mut self, token: Token) -> Cancelled {
        if let Some(place) = self.waiting.iter().position(|waiting| waiting.token == token)
            && let Some(operation) = self.waiting.remove(place)
        {
            return Cancelled::GivenBack(operation);
        }
        let slot = self.slots.iter().find(|(_, slot)| slot.operation.token == token);
        match slot {
            Some((_, slot)) if !slot.claimed.swap(true, Ordering::AcqRel) => Cancelled::WillAbort,
            _ => Cancelled::No,
        }
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.slots.len() + self.waiting.len()
    }
}
