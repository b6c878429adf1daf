//! What a ring consists of, whatever the size of its entries: the kernel's queues, what is in flight on them, its tables.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use io_uring::{EnterFlags, IoUring, cqueue, squeue, types};
use memory::Pool;
use rustix::io::Errno;

use super::buffers::{Buffers, Table};
use super::features::Features;
use super::files::{self, FileTable, RingFile};
use super::ledger::Ledger;

/// `H`: what the kernel may touch of an operation.
pub(super) struct Base<S: squeue::EntryMarker, C: cqueue::EntryMarker, H> {
    // First, so that the kernel's side is gone before what it may touch. (`shut` has seen to that
    // already, or has given the rest away for good.)
    pub(super) uring: IoUring<S, C>,
    pub(super) ledger: Ledger<H>,
    pub(super) files: Rc<FileTable>,
    pub(super) buffers: Buffers,
    reactor: usize,
    features: Features,
    /// An error of `io_uring_enter` was reported.
    reported: bool,
}

impl<S: squeue::EntryMarker, C: cqueue::EntryMarker, H> Base<S, C, H> {
    pub(super) fn new(
        reactor: usize,
        uring: IoUring<S, C>,
        features: Features,
        mut table: Table,
    ) -> Self {
        let count = uring.params().sq_entries();
        let files = features.contains(Features::REGISTERED_FILES);
        if !features.contains(Features::FIXED_BUFFERS) {
            table.places = 0;
        }
        Base {
            reactor,
            features,
            ledger: Ledger::new(count),
            files: FileTable::new(if files { files::TABLE } else { 0 }),
            buffers: Buffers::new(reactor, table),
            reported: false,
            uring,
        }
    }

    pub(super) fn features(&self) -> Features {
        self.features
    }

    pub(super) fn register_file(&self, file: Arc<OwnedFd>) -> RingFile {
        self.files.register(&self.uring.submitter(), file)
    }

    pub(super) fn register_pool(&mut self, pool: &Pool, at_most: usize) -> usize {
        self.buffers.register(&self.uring.submitter(), pool, at_most)
    }

    pub(super) fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Enters the kernel if there is a reason to: submissions, or completions that wait to be worked
    /// off. Whether it did.
    pub(super) fn submit(&mut self) -> bool {
        let queue = self.uring.submission();
        let (queued, told) = (queue.len(), queue.taskrun() || queue.cq_overflow());
        drop(queue);
        let ask = told || !self.features.contains(Features::TASKRUN_FLAG);
        if queued == 0 && !ask {
            return false;
        }
        self.enter();
        true
    }

    /// Has the kernel take what is queued and work off its completions.
    pub(super) fn enter(&mut self) {
        let queued = u32::try_from(self.uring.submission().len()).unwrap_or(u32::MAX);
        // Deferred task work runs only for one who asks for events, be it for none.
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed; the kernel takes no more entries than are in the queue,
        // each of which was pushed under the conditions stated there.
        let entered = unsafe { self.uring.submitter().enter::<u8>(queued, 0, flags, None) };
        if let Err(error) = entered {
            self.report(&error);
        }
    }

    /// Submits what is queued and waits for a completion, up to `timeout`.
    pub(super) fn wait(&mut self, timeout: Duration) {
        let timeout = types::Timespec::from(timeout);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        match self.uring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(Errno::TIME.raw_os_error()) => {}
            Err(error) => self.report(&error),
        }
    }

    /// The kernel refused to be entered. What was queued stays queued and is tried next turn.
    fn report(&mut self, error: &io::Error) {
        let errno = error.raw_os_error();
        let passing = [Errno::INTR, Errno::AGAIN, Errno::BUSY];
        let passing = passing.iter().any(|e| errno == Some(e.raw_os_error()));
        if !passing && !mem::replace(&mut self.reported, true) {
            tracing::error!("reactor {}: io_uring_enter fails: {error}", self.reactor);
        }
    }

    /// The ring is to end, and the kernel has been waited for.
    pub(super) fn shut(&mut self) {
        if self.ledger.in_flight() > 0 {
            tracing::error!(
                "reactor {}: the kernel does not let go of {} operations; their buffers are given up",
                self.reactor,
                self.ledger.in_flight(),
            );
            self.ledger.give_up();
        }
        // Closing a ring undoes these too, but at a time of the kernel's choice: until then a
        // registered file would stay open, and locked.
        let _ = self.uring.submitter().unregister_files();
        let _ = self.uring.submitter().unregister_buffers();
    }
}
