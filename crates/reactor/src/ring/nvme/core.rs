//! The ring for NVMe commands and the commands in flight on it.
//!
//! Invariants: as of the reactor's own ring (`ring/core.rs`); places are allocated once and never move. There is no
//! cancelling: the kernel cannot take a command back from a controller.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{cqueue, squeue};
use memory::Pool;

use super::command::{Held, NvmeOp, Place, prepare};
use crate::ring::base::Base;
use crate::ring::buffers;
use crate::ring::core::CLOSE_DEADLINE;
use crate::ring::features::{self, Features};
use crate::ring::files::RingFile;

pub(super) struct CommandCore {
    // First, as in `Base` itself.
    base: Base<squeue::Entry128, cqueue::Entry32, Held>,
    places: Box<[Place]>,
    closed: bool,
}

impl CommandCore {
    /// One with all of the features `wanted` that the kernel has.
    pub(super) fn new(reactor: usize, entries: u32, wanted: Features) -> io::Result<CommandCore> {
        let (uring, features) = features::set_up_commands(entries, wanted)?;
        let base = Base::new(reactor, uring, features, buffers::COMMANDS);
        let places = vec![Place::new(); base.ledger.capacity()].into();
        Ok(CommandCore { base, places, closed: false })
    }

    pub(super) fn features(&self) -> Features {
        self.base.features()
    }

    fn is_polled(&self) -> bool {
        self.features().contains(Features::POLLED_COMMANDS)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.base.ledger.in_flight()
    }

    pub(super) fn register_file(&mut self, file: Arc<OwnedFd>) -> RingFile {
        self.base.register_file(file)
    }

    /// Registers `at_most` of the pool's slabs that are new; the number registered in all.
    pub(super) fn register_pool(&mut self, pool: &Pool, at_most: usize) -> usize {
        self.base.register_pool(pool, at_most)
    }

    pub(super) fn registered_slabs(&self) -> usize {
        self.base.buffers.count()
    }

    pub(super) fn open_port(&mut self) -> usize {
        self.base.ledger.open_port()
    }

    pub(super) fn close_port(&mut self, port: usize) {
        self.base.ledger.close_port(port);
    }

    pub(super) fn pop(&mut self, port: usize) -> Option<(u64, i32)> {
        self.base.ledger.pop(port)
    }

    #[expect(clippy::result_large_err, reason = "a refused operation goes back to its owner")]
    pub(super) fn push(&mut self, port: usize, op: NvmeOp, tag: u64) -> Result<(), NvmeOp> {
        let base = &mut self.base;
        if self.closed || base.uring.submission().is_full() {
            return Err(op);
        }
        let Some((place, user_data)) = base.ledger.next() else {
            return Err(op);
        };
        let Some(place) = self.places.get_mut(place) else {
            return Err(op);
        };
        let held = Held::new(op)?;
        let entry = prepare(&held.op, place, &base.files, &base.buffers).user_data(user_data);
        // SAFETY: the entry refers to the file and segments that `held` owns and to this slot's
        // place. `held` stays in its slot until the completion is reaped (or for good, see
        // `close`), the place is in a box that does not move and is not written before that, and
        // for segments that the kernel writes, `held` has the leave to do so. The controller
        // transfers no more than the segments have room for: `NvmeOp::new` has seen to that.
        let pushed = unsafe { base.uring.submission().push(&entry) };
        if pushed.is_err() {
            return Err(held.op);
        }
        base.ledger.begin(port, tag, held);
        Ok(())
    }

    /// Moves what the kernel has finished into the ports' queues; the number of completions.
    pub(super) fn reap(&mut self) -> usize {
        let mut count = 0;
        for completion in self.base.uring.completion() {
            self.base.ledger.finish(completion.user_data(), completion.result());
            count += 1;
        }
        count
    }

    /// Enters the kernel if there is a reason to. Whether it did.
    pub(super) fn submit(&mut self) -> bool {
        self.base.files.release(&self.base.uring.submitter());
        if self.in_flight() == 0 {
            return false;
        }
        if self.is_polled() {
            // Nothing completes unless it is asked for.
            self.base.enter();
            return true;
        }
        self.base.submit()
    }

    /// Whether nothing but an event of the ring's descriptor can make work here.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.base.ledger.queued_results() == 0
            && self.base.uring.submission().is_empty()
            && !self.base.has_completions()
            && (self.in_flight() == 0 || !self.is_polled())
    }

    /// Submits, and waits for a completion a while.
    pub(super) fn wait(&mut self) {
        if self.is_polled() {
            self.base.enter();
            thread::yield_now();
        } else {
            self.base.wait(Duration::from_millis(100));
        }
    }

    /// Refuses further commands and waits for those in flight.
    pub(super) fn close(&mut self) {
        if mem::replace(&mut self.closed, true) {
            return;
        }
        let deadline = Instant::now() + CLOSE_DEADLINE;
        self.reap();
        while self.in_flight() > 0 && Instant::now() < deadline {
            self.wait();
            self.reap();
        }
        self.base.shut();
    }
}

impl AsFd for CommandCore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps its descriptor open, and is borrowed as long.
        unsafe { BorrowedFd::borrow_raw(self.base.uring.as_raw_fd()) }
    }
}

impl Drop for CommandCore {
    fn drop(&mut self) {
        self.close();
    }
}
