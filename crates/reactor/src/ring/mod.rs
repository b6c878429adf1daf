//! The only `io_uring` code: one ring per reactor, shared by the components on it; and one more for [NVMe
//! commands](nvme), where there are devices that take them.
//!
//! A component opens a [`Port`], submits typed [`Op`]s through it and finds the results in the
//! port's own queue. What the kernel touches is owned by the operation, and the operation by the
//! ring until the kernel has reported its end, whatever becomes of the port, the component or the
//! reactor meanwhile. Submissions are collected and given to the kernel by the reactor, once at the
//! end of a turn.
//!
//! All of it runs on the reactor's thread: the ring is set up for a single issuer.
//!
//! Rejected: a ring per component (an `io_uring_enter` each per turn), submission-queue polling (a
//! second busy core), a callback per operation (an allocation, and recursion into components).

#![allow(unsafe_code)]

mod base;
mod buffers;
mod core;
mod features;
mod files;
mod ledger;
pub mod nvme;
mod op;

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Once};
use std::time::Duration;

use memory::Pool;

use self::core::Core;

pub use self::features::Features;
pub use self::files::RingFile;
pub use self::op::{MAX_SEGMENTS, Op, Segments};
pub use rustix::fs::FallocateFlags;

/// The reactor's ring; clones refer to the same one.
#[derive(Clone)]
pub struct Ring {
    core: Rc<RefCell<Core>>,
    without: Features,
}

impl Ring {
    /// Sets up a ring for up to `entries` operations in flight; `None` if `io_uring` cannot be used here. One line
    /// says why, once for all reactors of the process.
    pub(crate) fn probe(reactor: usize, entries: u32, without: Features) -> Option<Ring> {
        match Core::new(reactor, entries, without) {
            Ok(core) => Some(Ring { core: Rc::new(RefCell::new(core)), without }),
            Err(error) => {
                static SAID: Once = Once::new();
                SAID.call_once(|| {
                    let limit = match error.kind() {
                        io::ErrorKind::OutOfMemory => {
                            "; raise the limit of locked memory (ulimit -l)"
                        }
                        _ => "",
                    };
                    tracing::warn!(
                        "io_uring cannot be used ({error}{limit}); \
                         files are served by worker threads instead, which is slower"
                    );
                });
                None
            }
        }
    }

    /// Moves what the kernel has finished into the ports' queues; the number of completions.
    pub(crate) fn reap(&self) -> usize {
        self.core.borrow_mut().reap()
    }

    /// Gives the kernel what was submitted and lets it work; whether that took a system call.
    pub(crate) fn submit(&self) -> bool {
        self.core.borrow_mut().submit()
    }

    /// Whether there is something to reap.
    pub(crate) fn has_completions(&self) -> bool {
        self.core.borrow_mut().has_completions()
    }

    /// Whether a sleep must be [`Ring::sleep`]; `None`: there is something to do instead.
    pub(crate) fn sleeps(&self) -> Option<bool> {
        self.core.borrow_mut().sleeps()
    }

    /// Sleeps until something completes, `epoll` has an event, or `timeout` is over. Whether `epoll`
    /// has to be asked.
    pub(crate) fn sleep(&self, epoll: BorrowedFd<'_>, timeout: Duration) -> bool {
        self.core.borrow_mut().sleep(epoll, timeout)
    }

    /// Refuses further operations, cancels those in flight and waits for them.
    pub(crate) fn close(&self) {
        self.core.borrow_mut().close();
    }

    /// A new port, for one component.
    pub fn port(&self) -> Port {
        let index = self.core.borrow_mut().open_port();
        Port { core: Rc::clone(&self.core), index }
    }

    /// Makes `file` known to the ring, so that operations need not look the descriptor up each time.
    /// Where that is not possible the descriptor itself is used, which is slower by a little.
    ///
    /// It is closed when the returned handle, its clones, every operation on them and the
    /// caller's own copies of `file` are gone, and the reactor has finished that turn.
    pub fn register_file(&self, file: Arc<OwnedFd>) -> RingFile {
        self.core.borrow_mut().register_file(file)
    }

    /// Registers the slabs of a pool of this reactor, those not yet known, as fixed buffers: the kernel
    /// then need not pin and map the pages for each operation. It pins them all now, which takes
    /// milliseconds per slab, so not under load. Segments elsewhere are transferred as plain memory.
    ///
    /// The number of slabs now registered.
    pub fn register_pool(&self, pool: &Pool) -> usize {
        self.core.borrow_mut().register_pool(pool)
    }

    /// Features to leave unused on this reactor, whatever works.
    fn without(&self) -> Features {
        self.without
    }

    /// The pools that were to be registered.
    fn pools(&self) -> Vec<Pool> {
        self.core.borrow().pools().to_vec()
    }

    /// The features in use.
    pub fn features(&self) -> Features {
        self.core.borrow().features()
    }

    /// Operations in flight at most.
    pub fn capacity(&self) -> usize {
        self.core.borrow().capacity()
    }

    /// Operations in flight now, those submitted this turn included.
    pub fn in_flight(&self) -> usize {
        self.core.borrow().in_flight()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

/// One component's access to the ring. Dropped, its operations go on to their end and their results
/// are discarded.
pub struct Port {
    core: Rc<RefCell<Core>>,
    index: usize,
}

impl Port {
    /// Queues an operation; it starts at the end of the turn. Its result will carry `tag`, which
    /// should be unique among the port's operations in flight, as [`Port::cancel`] goes by it.
    ///
    /// # Errors
    /// The operation itself when the ring is full (try again next turn) or closed.
    #[expect(clippy::result_large_err, reason = "the caller gets back what it would have to keep")]
    pub fn submit(&self, op: Op, tag: u64) -> Result<(), Op> {
        self.core.borrow_mut().push(self.index, op, tag)
    }

    /// Calls `done` with the tag and the result (a count of bytes, or a negated error number) of up
    /// to `max` finished operations; the port may be used from within. The number of calls.
    pub fn drain(&self, max: usize, mut done: impl FnMut(u64, i32)) -> usize {
        let mut count = 0;
        while count < max {
            let Some((tag, result)) = self.core.borrow_mut().pop(self.index) else {
                break;
            };
            count += 1;
            done(tag, result);
        }
        count
    }

    /// Asks the kernel to give up the operation with this tag; `false` if none is in flight. It
    /// still finishes through [`Port::drain`]: with `-ECANCELED`, or with its result if it was too
    /// far on.
    pub fn cancel(&self, tag: u64) -> bool {
        self.core.borrow_mut().cancel(self.index, tag)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.core.borrow_mut().close_port(self.index);
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("index", &self.index).finish_non_exhaustive()
    }
}
