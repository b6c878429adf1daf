//! The reactor's ring: operations on files.
//!
//! Invariants:
//! * Vectors are allocated once and never move.
//! * There are as many slots as submission entries and half as many as completion entries, and an
//!   operation is cancelled at most once: the completion queue hardly overflows. When it does, the
//!   kernel keeps the rest and says so, and `submit` fetches it.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::squeue::{Entry, Flags};
use io_uring::{cqueue, opcode, types};
use memory::Pool;

use super::base::Base;
use super::buffers::{self, Buffers};
use super::features::{self, Features};
use super::files::{FileTable, RingFile};
use super::op::{Held, IoVec, MAX_SEGMENTS, Op, Segments};

/// The write is durable when it completes (`linux/fs.h`).
pub(super) const RWF_DSYNC: i32 = 2;

/// The completion of a cancellation itself, which nobody waits for.
const CANCELLATION: u64 = u64::MAX;
/// The completion of the poll that watches epoll, and of its cancellation.
const WATCH: u64 = u64::MAX - 1;
/// `POLLIN`.
const POLL_IN: u32 = 1;

/// How long a ring that ends waits for the kernel to let go.
pub(super) const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

struct Running {
    /// What the kernel may touch; never looked at, dropped when the kernel is done.
    _held: Held,
    cancelled: bool,
}

pub(super) struct Core {
    // First, as in `Base` itself.
    base: Base<Entry, cqueue::Entry, Running>,
    vectors: Box<[[IoVec; MAX_SEGMENTS]]>,
    /// Operations to be cancelled at the next submission, by their user data.
    cancels: VecDeque<u64>,
    cancels_in_flight: usize,
    /// The kernel polls epoll for us, or has found it ready and the completion is to come.
    watching: bool,
    closed: bool,
}

impl Core {
    pub(super) fn new(reactor: usize, entries: u32, without: Features) -> io::Result<Core> {
        let (uring, features) = features::set_up(entries.clamp(8, 32768), without)?;
        let base = Base::new(reactor, uring, features, buffers::FILES);
        let capacity = base.ledger.capacity();
        Ok(Core {
            base,
            vectors: vec![[IoVec::EMPTY; MAX_SEGMENTS]; capacity].into(),
            cancels: VecDeque::with_capacity(capacity),
            cancels_in_flight: 0,
            watching: false,
            closed: false,
        })
    }

    pub(super) fn features(&self) -> Features {
        self.base.features()
    }

    pub(super) fn capacity(&self) -> usize {
        self.base.ledger.capacity()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.base.ledger.in_flight()
    }

    fn outstanding(&self) -> usize {
        self.in_flight() + self.cancels_in_flight
    }

    pub(super) fn register_file(&mut self, file: Arc<OwnedFd>) -> RingFile {
        self.base.register_file(file)
    }

    pub(super) fn register_pool(&mut self, pool: &Pool) -> usize {
        self.base.register_pool(pool, usize::MAX)
    }

    pub(super) fn pools(&self) -> &[Pool] {
        self.base.buffers.pools()
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
    pub(super) fn push(&mut self, port: usize, op: Op, tag: u64) -> Result<(), Op> {
        let base = &mut self.base;
        if self.closed || base.uring.submission().is_full() {
            return Err(op);
        }
        let Some((place, user_data)) = base.ledger.next() else {
            return Err(op);
        };
        let Some(vector) = self.vectors.get_mut(place) else {
            return Err(op);
        };
        let held = Held::new(op)?;
        let entry = prepare(&held.op, vector, &base.files, &base.buffers).user_data(user_data);
        // SAFETY: the entry refers to the file and segments that `held` owns and to this slot's
        // vector. `held` stays in its slot until the completion is reaped (or for good, see
        // `close`), the vector is in a box that does not move and is not written before that, and
        // for segments that the kernel writes, `held` has the leave to do so.
        let pushed = unsafe { base.uring.submission().push(&entry) };
        if pushed.is_err() {
            return Err(held.op);
        }
        base.ledger.begin(port, tag, Running { _held: held, cancelled: false });
        Ok(())
    }

    pub(super) fn cancel(&mut self, port: usize, tag: u64) -> bool {
        self.base.ledger.find(port, tag).is_some_and(|slot| self.cancel_slot(slot))
    }

    /// Has the operation in this slot cancelled with the next submission.
    fn cancel_slot(&mut self, index: usize) -> bool {
        let Some((user_data, running)) = self.base.ledger.get_mut(index) else {
            return false;
        };
        if !mem::replace(&mut running.cancelled, true) {
            self.cancels.push_back(user_data);
        }
        true
    }

    fn push_cancels(&mut self) {
        let mut queue = self.base.uring.submission();
        while let Some(&target) = self.cancels.front() {
            let entry = opcode::AsyncCancel::new(target).build().user_data(CANCELLATION);
            // SAFETY: the entry refers to no memory.
            if unsafe { queue.push(&entry) }.is_err() {
                break;
            }
            self.cancels.pop_front();
            self.cancels_in_flight += 1;
        }
    }

    pub(super) fn reap(&mut self) -> usize {
        let mut count = 0;
        for completion in self.base.uring.completion() {
            match completion.user_data() {
                WATCH => {
                    self.watching = false;
                    continue;
                }
                CANCELLATION => self.cancels_in_flight -= 1,
                user_data => self.base.ledger.finish(user_data, completion.result()),
            }
            count += 1;
        }
        count
    }

    /// Enters the kernel if there is a reason to: submissions, cancellations, or completions that
    /// wait to be worked off. Whether it did.
    pub(super) fn submit(&mut self) -> bool {
        self.base.files.release(&self.base.uring.submitter());
        if !self.cancels.is_empty() {
            self.push_cancels();
        }
        self.outstanding() > 0 && self.base.submit()
    }

    pub(super) fn has_completions(&mut self) -> bool {
        self.base.has_completions()
    }

    /// Whether the sleep must be the ring's: operations are under way. `None`: there is something to
    /// do, so there is no sleep at all.
    pub(super) fn sleeps(&mut self) -> Option<bool> {
        let idle = self.base.ledger.queued_results() == 0
            && self.cancels.is_empty()
            && self.base.uring.submission().is_empty()
            && !self.has_completions();
        idle.then(|| self.outstanding() > 0)
    }

    /// Sleeps until something completes, `epoll` has an event, or `timeout` is over. Whether `epoll`
    /// has to be asked. Completions are in their ports' queues afterwards.
    ///
    /// A thread that waits in the ring is woken by every completion. One that waits in epoll is not
    /// always, if task work is deferred: wakes were lost with the ring's own descriptor in the epoll
    /// set (seen on 6.18), and with a registered eventfd there (seen on 6.12). So the ring watches
    /// epoll, not the other way round: by a poll operation that stays armed until it fires.
    pub(super) fn sleep(&mut self, epoll: BorrowedFd<'_>, timeout: Duration) -> bool {
        if !self.watching {
            let fd = types::Fd(epoll.as_raw_fd());
            let entry = opcode::PollAdd::new(fd, POLL_IN).build().user_data(WATCH);
            // SAFETY: the entry refers to no memory. The descriptor is looked up when the entry is
            // taken, below; the kernel then holds the file.
            if unsafe { self.base.uring.submission().push(&entry) }.is_err() {
                return true;
            }
            self.watching = true;
        }
        self.base.wait(timeout);
        self.reap();
        !self.watching
    }

    pub(super) fn close(&mut self) {
        if mem::replace(&mut self.closed, true) {
            return;
        }
        for index in 0..self.capacity() {
            self.cancel_slot(index);
        }
        if self.watching {
            self.cancels.push_back(WATCH);
        }
        let deadline = Instant::now() + CLOSE_DEADLINE;
        loop {
            self.push_cancels();
            self.reap();
            if (self.outstanding() == 0 && !self.watching) || Instant::now() >= deadline {
                break;
            }
            self.base.wait(Duration::from_millis(100));
        }
        self.base.shut();
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.close();
    }
}

/// Writes the submission entry for an operation, using `vector` if it has several segments.
fn prepare(
    op: &Op,
    vector: &mut [IoVec; MAX_SEGMENTS],
    files: &Rc<FileTable>,
    buffers: &Buffers,
) -> Entry {
    let (entry, registered) = match op {
        Op::Read { file, data, offset } => {
            let (fd, registered) = file.target(files);
            let entry = match layout(data, vector, buffers) {
                Layout::Fixed(base, len, place) => {
                    opcode::ReadFixed::new(fd, base, len, place).offset(*offset).build()
                }
                Layout::Plain(base, len) => {
                    opcode::Read::new(fd, base, len).offset(*offset).build()
                }
                Layout::Vector(list, len) => {
                    opcode::Readv::new(fd, list.cast(), len).offset(*offset).build()
                }
            };
            (entry, registered)
        }
        Op::Write { file, data, offset, dsync } => {
            let (fd, registered) = file.target(files);
            let flags = if *dsync { RWF_DSYNC } else { 0 };
            let entry = match layout(data, vector, buffers) {
                Layout::Fixed(base, len, place) => opcode::WriteFixed::new(fd, base, len, place)
                    .offset(*offset)
                    .rw_flags(flags)
                    .build(),
                Layout::Plain(base, len) => {
                    opcode::Write::new(fd, base, len).offset(*offset).rw_flags(flags).build()
                }
                Layout::Vector(list, len) => opcode::Writev::new(fd, list.cast(), len)
                    .offset(*offset)
                    .rw_flags(flags)
                    .build(),
            };
            (entry, registered)
        }
        Op::Fsync { file, datasync } => {
            let (fd, registered) = file.target(files);
            let mut flags = types::FsyncFlags::empty();
            flags.set(types::FsyncFlags::DATASYNC, *datasync);
            (opcode::Fsync::new(fd).flags(flags).build(), registered)
        }
        Op::Fallocate { file, mode, offset, len } => {
            let (fd, registered) = file.target(files);
            let mode = i32::try_from(mode.bits()).unwrap_or(i32::MAX);
            let entry = opcode::Fallocate::new(fd, *len).offset(*offset).mode(mode).build();
            (entry, registered)
        }
    };
    if registered { entry.flags(Flags::FIXED_FILE) } else { entry }
}

pub(super) enum Layout {
    Fixed(*mut u8, u32, u16),
    Plain(*mut u8, u32),
    Vector(*const IoVec, u32),
}

pub(super) fn layout(
    data: &Segments,
    vector: &mut [IoVec; MAX_SEGMENTS],
    buffers: &Buffers,
) -> Layout {
    let mut count = 0;
    for (slot, segment) in vector.iter_mut().zip(data.iter()) {
        *slot = IoVec { base: segment.as_mut_ptr(), len: segment.len() };
        count += 1;
    }
    let mut segments = data.iter();
    match (segments.next(), segments.next()) {
        (Some(only), None) => {
            // A segment is never longer than a slab.
            let len = u32::try_from(only.len()).unwrap_or(u32::MAX);
            match buffers.place(only) {
                Some(place) => Layout::Fixed(only.as_mut_ptr(), len, place),
                None => Layout::Plain(only.as_mut_ptr(), len),
            }
        }
        _ => Layout::Vector(vector.as_ptr(), count),
    }
}
