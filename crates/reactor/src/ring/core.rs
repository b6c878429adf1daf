//! The ring and the operations in flight on it.
//!
//! Invariants:
//! * An operation the kernel may know of is in `slots`, and nowhere else; it leaves when its
//!   completion is reaped. Slots and vectors are allocated once and never move.
//! * There are as many slots as submission entries and half as many as completion entries, and an
//!   operation is cancelled at most once: the completion queue hardly overflows. When it does, the
//!   kernel keeps the rest and says so, and `submit` fetches it.
//! * `queued_results` is the sum of the ports' queue lengths.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::squeue::{Entry, Flags};
use io_uring::{EnterFlags, IoUring, opcode, types};
use memory::Pool;
use rustix::io::Errno;
use slab::Slab;

use super::buffers::{self, Buffers};
use super::features::{self, Features};
use super::files::{self, FileTable, RingFile};
use super::op::{Held, IoVec, MAX_SEGMENTS, Op, Segments};

/// The write is durable when it completes (`linux/fs.h`).
pub(super) const RWF_DSYNC: i32 = 2;

/// The completion of a cancellation itself, which nobody waits for.
const CANCELLATION: u64 = u64::MAX;
/// The completion of the poll that watches epoll, and of its cancellation.
const WATCH: u64 = u64::MAX - 1;
/// `POLLIN`.
const POLL_IN: u32 = 1;

/// How long [`Core::close`] waits for the kernel to let go.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

struct InFlight {
    /// What the kernel may touch; never looked at, dropped when the kernel is done.
    _held: Held,
    tag: u64,
    /// `None`: the port is gone.
    port: Option<usize>,
    cancelled: bool,
}

#[derive(Default)]
struct Slot {
    /// Counts the slot's uses, so that a late cancellation does not hit its next user.
    generation: u32,
    in_flight: Option<InFlight>,
}

/// One port's results, with room for all it has in flight: reaping does not allocate.
#[derive(Default)]
struct PortQueue {
    results: VecDeque<(u64, i32)>,
    in_flight: usize,
}

pub(super) struct Core {
    // First, so that the kernel's side is gone before what it may touch. (`close` has seen to that
    // already, or has given the rest away for good.)
    uring: IoUring,
    reactor: usize,
    features: Features,
    slots: Box<[Slot]>,
    vectors: Box<[[IoVec; MAX_SEGMENTS]]>,
    free: Vec<u32>,
    ports: Slab<PortQueue>,
    queued_results: usize,
    /// Operations to be cancelled at the next submission, by their user data.
    cancels: VecDeque<u64>,
    cancels_in_flight: usize,
    /// The kernel polls epoll for us, or has found it ready and the completion is to come.
    watching: bool,
    files: Rc<FileTable>,
    buffers: Buffers,
    closed: bool,
    /// An error of `io_uring_enter` was reported.
    reported: bool,
}

fn user_data(slot: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(slot)
}

fn slot_of(user_data: u64) -> (usize, u32) {
    let low = user_data & u64::from(u32::MAX);
    let slot = usize::try_from(low).unwrap_or(usize::MAX);
    (slot, u32::try_from(user_data >> 32).unwrap_or_default())
}

impl Core {
    pub(super) fn new(reactor: usize, entries: u32, without: Features) -> io::Result<Core> {
        let (uring, features) = features::set_up(entries.clamp(8, 32768), without)?;
        let count = uring.params().sq_entries();
        let mut slots = Vec::new();
        slots.resize_with(usize::try_from(count).unwrap_or(0), Slot::default);
        let places = |feature, places| {
            if features.contains(feature) { places } else { 0 }
        };
        Ok(Core {
            reactor,
            features,
            vectors: vec![[IoVec::EMPTY; MAX_SEGMENTS]; slots.len()].into(),
            cancels: VecDeque::with_capacity(slots.len()),
            slots: slots.into(),
            free: (0..count).rev().collect(),
            ports: Slab::new(),
            queued_results: 0,
            cancels_in_flight: 0,
            watching: false,
            files: FileTable::new(places(Features::REGISTERED_FILES, files::TABLE)),
            buffers: Buffers::new(reactor, places(Features::FIXED_BUFFERS, buffers::TABLE)),
            closed: false,
            reported: false,
            uring,
        })
    }

    pub(super) fn features(&self) -> Features {
        self.features
    }

    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn outstanding(&self) -> usize {
        self.in_flight() + self.cancels_in_flight
    }

    pub(super) fn register_file(&mut self, file: Arc<OwnedFd>) -> RingFile {
        self.files.register(&self.uring, file)
    }

    pub(super) fn register_pool(&mut self, pool: &Pool) -> usize {
        self.buffers.register(&self.uring, pool)
    }

    pub(super) fn open_port(&mut self) -> usize {
        self.ports.insert(PortQueue::default())
    }

    pub(super) fn close_port(&mut self, port: usize) {
        if let Some(queue) = self.ports.try_remove(port) {
            self.queued_results -= queue.results.len();
        }
        for in_flight in self.slots.iter_mut().filter_map(|slot| slot.in_flight.as_mut()) {
            if in_flight.port == Some(port) {
                in_flight.port = None;
            }
        }
    }

    pub(super) fn pop(&mut self, port: usize) -> Option<(u64, i32)> {
        let result = self.ports.get_mut(port)?.results.pop_front()?;
        self.queued_results -= 1;
        Some(result)
    }

    #[expect(clippy::result_large_err, reason = "a refused operation goes back to its owner")]
    pub(super) fn push(&mut self, port: usize, op: Op, tag: u64) -> Result<(), Op> {
        if self.closed || self.uring.submission().is_full() {
            return Err(op);
        }
        let Some(&index) = self.free.last() else {
            return Err(op);
        };
        let place = usize::try_from(index).unwrap_or(usize::MAX);
        let (Some(slot), Some(vector), Some(queue)) =
            (self.slots.get_mut(place), self.vectors.get_mut(place), self.ports.get_mut(port))
        else {
            return Err(op);
        };
        let held = Held::new(op)?;
        let entry = prepare(&held.op, vector, &self.files, &self.buffers);
        let entry = entry.user_data(user_data(index, slot.generation));
        // SAFETY: the entry refers to the file and segments that `held` owns and to this slot's
        // vector. `held` stays in its slot until the completion is reaped (or for good, see
        // `close`), the vector is in a box that does not move and is not written before that, and
        // for segments that the kernel writes, `held` has the leave to do so.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        if pushed.is_err() {
            return Err(held.op);
        }
        self.free.pop();
        queue.in_flight += 1;
        queue.results.reserve(queue.in_flight);
        slot.in_flight = Some(InFlight { _held: held, tag, port: Some(port), cancelled: false });
        Ok(())
    }

    pub(super) fn cancel(&mut self, port: usize, tag: u64) -> bool {
        let found = self.slots.iter().position(|slot| {
            let in_flight = slot.in_flight.as_ref();
            in_flight.is_some_and(|op| op.port == Some(port) && op.tag == tag)
        });
        found.is_some_and(|slot| self.cancel_slot(slot))
    }

    /// Has the operation in this slot cancelled with the next submission.
    fn cancel_slot(&mut self, index: usize) -> bool {
        let Some(slot) = self.slots.get_mut(index) else {
            return false;
        };
        let Some(in_flight) = &mut slot.in_flight else {
            return false;
        };
        if !in_flight.cancelled {
            in_flight.cancelled = true;
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            self.cancels.push_back(user_data(index, slot.generation));
        }
        true
    }

    fn push_cancels(&mut self) {
        let mut queue = self.uring.submission();
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
        for completion in self.uring.completion() {
            if completion.user_data() == WATCH {
                self.watching = false;
                continue;
            }
            count += 1;
            if completion.user_data() == CANCELLATION {
                self.cancels_in_flight -= 1;
                continue;
            }
            let (index, generation) = slot_of(completion.user_data());
            let slot = self.slots.get_mut(index).filter(|slot| slot.generation == generation);
            let Some((slot, in_flight)) =
                slot.and_then(|slot| slot.in_flight.take().map(|in_flight| (slot, in_flight)))
            else {
                debug_assert!(false, "a completion of nothing in flight");
                continue;
            };
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(u32::try_from(index).unwrap_or(u32::MAX));
            if let Some(queue) = in_flight.port.and_then(|port| self.ports.get_mut(port)) {
                queue.in_flight -= 1;
                queue.results.push_back((in_flight.tag, completion.result()));
                self.queued_results += 1;
            }
        }
        count
    }

    /// Enters the kernel if there is a reason to: submissions, cancellations, or completions that
    /// wait to be worked off. Whether it did.
    pub(super) fn submit(&mut self) -> bool {
        self.files.release(&self.uring);
        if !self.cancels.is_empty() {
            self.push_cancels();
        }
        if self.outstanding() == 0 {
            return false;
        }
        let queue = self.uring.submission();
        let (queued, told) = (queue.len(), queue.taskrun() || queue.cq_overflow());
        drop(queue);
        let ask = told || !self.features.contains(Features::TASKRUN_FLAG);
        if queued == 0 && !ask {
            return false;
        }
        self.enter(u32::try_from(queued).unwrap_or(u32::MAX));
        true
    }

    /// Has the kernel take `queued` entries and work off its completions.
    fn enter(&mut self, queued: u32) {
        // Deferred task work runs only for one who asks for events, be it for none.
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed; the kernel takes no more entries than are in the queue,
        // each of which was pushed under the conditions stated there.
        let entered = unsafe { self.uring.submitter().enter::<u8>(queued, 0, flags, None) };
        if let Err(error) = entered {
            self.report(&error);
        }
    }

    /// The kernel refused to be entered. What was queued stays queued and is tried next turn.
    fn report(&mut self, error: &io::Error) {
        let errno = error.raw_os_error();
        let passing = [Errno::INTR, Errno::AGAIN, Errno::BUSY];
        if !self.reported && !passing.iter().any(|e| errno == Some(e.raw_os_error())) {
            self.reported = true;
            tracing::error!("reactor {}: io_uring_enter fails: {error}", self.reactor);
        }
    }

    pub(super) fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Whether the sleep must be the ring's: operations are under way. `None`: there is something to
    /// do, so there is no sleep at all.
    pub(super) fn sleeps(&mut self) -> Option<bool> {
        let idle = self.queued_results == 0
            && self.cancels.is_empty()
            && self.uring.submission().is_empty()
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
            if unsafe { self.uring.submission().push(&entry) }.is_err() {
                return true;
            }
            self.watching = true;
        }
        self.wait(timeout);
        self.reap();
        !self.watching
    }

    /// Submits what is queued and waits for a completion, up to `timeout`.
    fn wait(&mut self, timeout: Duration) {
        let timeout = types::Timespec::from(timeout);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        match self.uring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(Errno::TIME.raw_os_error()) => {}
            Err(error) => self.report(&error),
        }
    }

    pub(super) fn close(&mut self) {
        if mem::replace(&mut self.closed, true) {
            return;
        }
        for index in 0..self.slots.len() {
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
            self.wait(Duration::from_millis(100));
        }
        if self.in_flight() > 0 {
            tracing::error!(
                "reactor {}: the kernel does not let go of {} operations; their buffers are given up",
                self.reactor,
                self.in_flight(),
            );
            // The kernel may write to these buffers at any later time. Never returned to their pool,
            // they keep it mapped.
            mem::forget(mem::take(&mut self.slots));
            self.free.clear();
        }
        // Closing a ring undoes these too, but at a time of the kernel's choice: until then a
        // registered file would stay open, and locked.
        let _ = self.uring.submitter().unregister_files();
        let _ = self.uring.submitter().unregister_buffers();
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

enum Layout {
    Fixed(*mut u8, u32, u16),
    Plain(*mut u8, u32),
    Vector(*const IoVec, u32),
}

fn layout(data: &Segments, vector: &mut [IoVec; MAX_SEGMENTS], buffers: &Buffers) -> Layout {
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
