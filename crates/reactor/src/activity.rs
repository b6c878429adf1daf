//! What a reactor is doing at this moment, readable from other threads, so that a reactor that does
//! not come back can be named together with the poller that holds it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::PollerId;

/// The steps of a turn that may hold it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Runtime,
    Messages,
    Results,
    Poll(PollerId),
    Flush(PollerId),
    Sleep,
    RingDrop,
}

/// One relaxed store per step; the names are under a lock that only adding a poller takes.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    step: AtomicU64,
    names: Mutex<Vec<(PollerId, &'static str)>>,
}

const POLLER_BITS: u32 = 32;

impl Activity {
    pub(crate) fn enter(&self, step: Step) {
        let (kind, poller) = match step {
            Step::Runtime => (0, 0),
            Step::Messages => (1, 0),
            Step::Results => (2, 0),
            Step::Poll(id) => (3, id.0),
            Step::Flush(id) => (4, id.0),
            Step::Sleep => (5, 0),
            Step::RingDrop => (6, 0),
        };
        self.step.store(kind << POLLER_BITS | u64::from(poller), Ordering::Relaxed);
    }

    pub(crate) fn add(&self, id: PollerId, name: &'static str) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).push((id, name));
    }

    pub(crate) fn remove(&self, id: PollerId) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.retain(|(known, _)| *known != id);
    }

    /// The names of the pollers.
    pub(crate) fn pollers(&self) -> Vec<&'static str> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().map(|(_, name)| *name).collect()
    }

    /// In words, to follow "reactor 0 is stuck ".
    pub(crate) fn describe(&self) -> String {
        let step = self.step.load(Ordering::Relaxed);
        let name = || {
            let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            let found = names.iter().find(|(id, _)| u64::from(id.0) == step & u64::from(u32::MAX));
            found.map_or("that is gone", |(_, name)| *name)
        };
        match step >> POLLER_BITS {
            1 => "in a mailbox message".to_owned(),
            2 => "in the result of an offloaded job".to_owned(),
            3 => format!("in poll of poller {}", name()),
            4 => format!("in flush of poller {}", name()),
            5 => "asleep".to_owned(),
            6 => "waiting for its last io_uring operations".to_owned(),
            _ => "between two pollers".to_owned(),
        }
    }
}
