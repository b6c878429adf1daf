//! The side of a reactor that other threads see.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

use crate::activity::Activity;
use crate::counters::{Counters, SharedLoad};
use crate::inbox::Inbox;
use crate::{Clock, CounterValues, Load, Local};

/// Something to run on a reactor's thread.
pub type Message = Box<dyn FnOnce(&Local) + Send>;

/// The mailbox had no room; the message comes back.
#[derive(Error)]
#[error("the mailbox is full")]
pub struct Full(pub Message);

impl fmt::Debug for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full")
    }
}

/// What a reactor shares with other threads.
pub(crate) struct Shared {
    pub(crate) index: usize,
    pub(crate) inbox: Inbox,
    pub(crate) counters: Counters,
    pub(crate) load: SharedLoad,
    pub(crate) activity: Activity,
    stop: AtomicBool,
}

impl Shared {
    pub(crate) fn new(index: usize, mailbox: usize, clock: Clock) -> io::Result<Shared> {
        Ok(Shared {
            index,
            inbox: Inbox::new(mailbox)?,
            counters: Counters::default(),
            load: SharedLoad::new(clock),
            activity: Activity::default(),
            stop: AtomicBool::new(false),
        })
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A reactor as seen from any thread; clones refer to the same one.
#[derive(Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

impl Handle {
    /// The reactor's index among its peers.
    pub fn index(&self) -> usize {
        self.shared.index
    }

    /// Runs `message` on the reactor's thread, in order with other messages of the same sender, and
    /// wakes the reactor if it sleeps. A message to a reactor that has stopped is never run.
    ///
    /// # Errors
    /// [`Full`] with the message: try again later, or do without.
    pub fn send(&self, message: impl FnOnce(&Local) + Send + 'static) -> Result<(), Full> {
        self.send_boxed(Box::new(message))
    }

    /// [`Handle::send`] for a message that is boxed already, such as one that came back.
    ///
    /// # Errors
    /// [`Full`] with the message.
    pub fn send_boxed(&self, message: Message) -> Result<(), Full> {
        self.shared.inbox.send(message).map_err(Full)
    }

    /// How loaded the reactor is.
    pub fn load(&self) -> Load {
        self.shared.load.load()
    }

    /// Counts a queue as placed on this reactor, from the moment of the decision on, so that
    /// decisions made close together see each other.
    pub fn queue_added(&self) {
        self.shared.load.queue_added();
    }

    /// A queue counted by [`Handle::queue_added`] is gone.
    pub fn queue_removed(&self) {
        self.shared.load.queue_removed();
    }

    /// The reactor's counters now.
    pub fn counters(&self) -> CounterValues {
        self.shared.counters.values()
    }

    /// The names of its pollers, in the order in which they were added.
    pub fn pollers(&self) -> Vec<&'static str> {
        self.shared.activity.pollers()
    }

    /// Makes [`Reactor::run`](crate::Reactor::run) return after the turn it is in.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.inbox.wake();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("index", &self.shared.index).finish_non_exhaustive()
    }
}
