//! Notes for a component of a reactor, left by any thread: what has come of connections, and what is to become of them.
//!
//! Looked at in every turn, where an empty one costs a load. Meant for what happens once per connection; per I/O there is
//! nothing that another thread could have to say.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::Handle;

/// Notes for one component on one reactor, in the order in which they were left.
pub struct Notes<T> {
    reactor: Handle,
    left: Mutex<Vec<T>>,
    /// There are some: looked at every turn, where the lock is not.
    noted: AtomicBool,
}

impl<T> Notes<T> {
    /// None yet.
    pub fn new(reactor: Handle) -> Notes<T> {
        Notes { reactor, left: Mutex::default(), noted: AtomicBool::new(false) }
    }

    /// Leaves a note and wakes the reactor.
    pub fn leave(&self, note: T) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).push(note);
        self.noted.store(true, Ordering::Release);
        // The message does nothing: it wakes. A reactor whose mailbox is full is awake.
        let _ = self.reactor.send(|_| {});
    }

    /// Takes all there are.
    pub fn take(&self) -> Vec<T> {
        if self.is_empty() {
            return Vec::new();
        }
        self.noted.store(false, Ordering::Release);
        std::mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        !self.noted.load(Ordering::Acquire)
    }
}

impl<T> fmt::Debug for Notes<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notes").field("empty", &self.is_empty()).finish_non_exhaustive()
    }
}
