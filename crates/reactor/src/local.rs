//! A reactor's services for the pollers on its thread.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::events::{Epoll, EventSource};
use crate::handle::{Handle, Shared};
use crate::offload::Offload;
use crate::residents::Residents;
use crate::{CounterValues, IdlePolicy, Instant, Poller, PollerId, Ring};

/// A change to the list of pollers; made between two passes over it.
pub(crate) enum Change {
    Add(PollerId, Box<dyn Poller>),
    Remove(PollerId),
}

pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) peers: Arc<[Handle]>,
    pub(crate) now: Cell<Instant>,
    pub(crate) changes: RefCell<Vec<Change>>,
    pub(crate) next_poller: Cell<u32>,
    pub(crate) epoll: Rc<Epoll>,
    pub(crate) ring: Option<Ring>,
    pub(crate) idle: IdlePolicy,
    pub(crate) offload: Offload,
    pub(crate) residents: Residents,
}

/// A handle to the services of the reactor on this thread; clones refer to the same one.
#[derive(Clone)]
pub struct Local {
    pub(crate) inner: Rc<Inner>,
}

impl Local {
    /// The time at which this turn began.
    pub fn now(&self) -> Instant {
        self.inner.now.get()
    }

    /// This reactor's index among its peers.
    pub fn index(&self) -> usize {
        self.inner.shared.index
    }

    /// How many reactors there are.
    pub fn reactors(&self) -> usize {
        self.inner.peers.len()
    }

    /// Has the reactor poll `poller`, after those added before it, from the next pass over the
    /// pollers on (this turn's, if it is added by a mailbox message or an offloaded job's result).
    pub fn add_poller(&self, poller: Box<dyn Poller>) -> PollerId {
        let id = PollerId(self.inner.next_poller.get());
        self.inner.next_poller.set(id.0.wrapping_add(1));
        self.inner.shared.activity.add(id, poller.name());
        self.inner.changes.borrow_mut().push(Change::Add(id, poller));
        id
    }

    /// Drops the poller before the next pass over the pollers. In the pass that is under way it may
    /// be called once more; an id that is not known is ignored.
    pub fn remove_poller(&self, id: PollerId) {
        self.inner.changes.borrow_mut().push(Change::Remove(id));
    }

    /// A new view of the reactor's epoll instance, for one component.
    pub fn source(&self) -> EventSource {
        EventSource::new(Rc::clone(&self.inner.epoll))
    }

    /// The reactor's `io_uring`; `None` where it is forbidden or unavailable.
    pub fn ring(&self) -> Option<Ring> {
        self.inner.ring.clone()
    }

    /// Whether the reactor ever sleeps: whether whoever has no other way to be heard must wake it.
    pub fn may_sleep(&self) -> bool {
        self.inner.idle != IdlePolicy::Poll
    }

    /// What the components of this reactor share of this type under `key`: the one that somebody has already, or a
    /// new one by `make`, which may ask for others. It is held weakly here, so it is gone with the last who has it.
    ///
    /// # Errors
    /// That of `make`; the next to ask tries again.
    pub fn resident<T: 'static, E>(
        &self,
        key: u64,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<Rc<T>, E> {
        self.inner.residents.get_or_make(key, make)
    }

    /// Runs `job`, which may block, on a worker thread, and then `done` with its result on this
    /// reactor. `done` is dropped unused if the reactor ends first.
    pub fn offload<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(T) + 'static,
    ) {
        self.inner.offload.start(&self.inner.shared, job, done);
    }

    /// The reactor with this index, which may be this one.
    pub fn handle(&self, index: usize) -> Option<Handle> {
        self.inner.peers.get(index).cloned()
    }

    /// All reactors in order of their indices.
    pub fn handles(&self) -> &[Handle] {
        &self.inner.peers
    }

    /// A ring of this reactor has entered the kernel, or has not.
    pub(crate) fn count_ring_enter(&self, entered: bool) {
        self.inner.shared.counters.ring_enters.add(u64::from(entered));
    }

    /// This reactor's counters now.
    pub fn counters(&self) -> CounterValues {
        self.inner.shared.counters.values()
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("index", &self.index()).finish_non_exhaustive()
    }
}
