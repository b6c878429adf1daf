//! Operations by the reactor's `io_uring`: each a sequence of steps, one step in the ring at a time.
//!
//! Most operations are one step. More are needed when the kernel did less than asked for, when a
//! long range is zeroed in pieces, and when zeroes with FUA end with a sync. A step that the ring has
//! no room for is tried again at the next poll. At most [`DEPTH`] operations are in progress; the
//! others wait here, so that one slow device cannot fill a ring that others use too.
//!
//! The tables grow to the depth that is used, as there are many namespaces and most are idle; from then
//! on nothing here allocates.

use std::collections::VecDeque;
use std::sync::Arc;

use reactor::ring::{FallocateFlags, Features, Op, Port, Ring, RingFile, Segments};
use rustix::io::Errno;
use slab::Slab;

use super::medium::{Medium, PUNCH, ZERO};
use crate::fault::Fault;
use crate::{Kind, Operation, Token};

/// Operations of one queue in progress at most: one host queue's worth. More would only wait in
/// the disk's own queue instead of here.
const DEPTH: usize = 128;

/// The most that is zeroed or punched in one step: seconds, at the worst, on a disk that the
/// kernel must write zeroes to.
const RANGE_PIECE: u64 = 64 << 20;

/// How often an operation is begun again after the kernel was interrupted or short of something.
const RETRIES: u8 = 16;

#[derive(Debug)]
pub(super) struct RingEngine {
    medium: Arc<Medium>,
    port: Port,
    file: RingFile,
    fallocate: bool,
    slots: Slab<Slot>,
    /// Slots whose next step is to be put into the ring.
    ready: VecDeque<usize>,
    waiting: VecDeque<Operation>,
}

/// An operation in progress.
#[derive(Debug)]
struct Slot {
    operation: Operation,
    /// Its range, in bytes.
    start: u64,
    len: u64,
    /// How the range is zeroed or punched.
    mode: FallocateFlags,
    /// Bytes of the range that are done.
    done: u64,
    /// The range is done and is being made durable.
    syncing: bool,
    retries: u8,
    cancelled: bool,
}

/// What a finished step means for its operation.
enum After {
    Again,
    Finished(Result<(), Fault>),
}

impl RingEngine {
    pub(super) fn new(medium: Arc<Medium>, ring: &Ring) -> RingEngine {
        let file = ring.register_file(Arc::clone(&medium.file));
        RingEngine {
            medium,
            port: ring.port(),
            file,
            fallocate: ring.features().contains(Features::FALLOCATE),
            slots: Slab::new(),
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Whether this engine can carry out the operation. Comparing and verifying need memory of the
    /// device's own, and zeroes that the file system cannot make must be written: that is rare, and
    /// the workers' job.
    pub(super) fn can(&self, operation: &Operation) -> bool {
        match operation.kind {
            Kind::Read | Kind::Write | Kind::Flush => true,
            Kind::Compare | Kind::Verify => false,
            Kind::Deallocate => self.fallocate,
            Kind::WriteZeroes { deallocate } => {
                self.fallocate && self.medium.zeroing.mode(deallocate).is_some()
            }
        }
    }

    pub(super) fn start(&mut self, operation: Operation) {
        if self.waiting.is_empty() && self.slots.len() < DEPTH {
            self.begin(operation);
        } else {
            self.waiting.push_back(operation);
        }
    }

    fn begin(&mut self, operation: Operation) {
        let slot = Slot::new(operation, &self.medium);
        let index = self.slots.insert(slot);
        self.ready.reserve(self.slots.len() - self.ready.len());
        self.put(index);
    }

    /// Puts the slot's next step into the ring, or notes that it is still to be put there.
    fn put(&mut self, index: usize) {
        let Some(slot) = self.slots.get(index) else {
            return;
        };
        match self.port.submit(slot.step(&self.file), index as u64) {
            Ok(()) => slot.count(&self.medium),
            Err(_) => self.ready.push_back(index),
        }
    }

    /// Takes what the ring has finished and puts more into it. Calls `finished` for each operation
    /// that has come to its end.
    pub(super) fn poll(&mut self, finished: &mut impl FnMut(Operation, Result<(), Fault>)) {
        if self.outstanding() == 0 {
            return;
        }
        let RingEngine { medium, port, slots, ready, .. } = self;
        port.drain(DEPTH, |tag, result| {
            let index = usize::try_from(tag).unwrap_or(usize::MAX);
            let Some(slot) = slots.get_mut(index) else {
                return;
            };
            match slot.after(medium, result) {
                After::Again => ready.push_back(index),
                After::Finished(outcome) => finished(slots.remove(index).operation, outcome),
            }
        });
        for _ in 0..self.ready.len() {
            if let Some(index) = self.ready.pop_front() {
                self.put(index);
            }
        }
        while self.slots.len() < DEPTH
            && let Some(operation) = self.waiting.pop_front()
        {
            self.begin(operation);
        }
    }

    /// Gives back an operation that has not begun; asks the kernel to give up one that has.
    pub(super) fn cancel(&mut self, token: Token) -> Option<Operation> {
        if let Some(place) = self.waiting.iter().position(|waiting| waiting.token == token) {
            return self.waiting.remove(place);
        }
        let (index, slot) =
            self.slots.iter_mut().find(|(_, slot)| slot.operation.token == token)?;
        if let Some(place) = self.ready.iter().position(|&ready| ready == index)
            && slot.done == 0
        {
            self.ready.remove(place);
            return Some(self.slots.remove(index).operation);
        }
        // Its first step may not have begun; then it ends with `ECANCELED` and has done nothing.
        if slot.done == 0 {
            slot.cancelled = true;
            self.port.cancel(u64::try_from(index).ok()?);
        }
        None
    }

    pub(super) fn outstanding(&self) -> usize {
        self.slots.len() + self.waiting.len()
    }

    /// Whether a step waits for room in the ring, which nothing announces.
    pub(super) fn needs_poll(&self) -> bool {
        !self.ready.is_empty()
    }
}

impl Slot {
    fn new(operation: Operation, medium: &Medium) -> Slot {
        let (start, len) = operation.byte_range(medium.geometry());
        let mode = match operation.kind {
            Kind::WriteZeroes { deallocate } => medium.zeroing.mode(deallocate).unwrap_or(ZERO),
            _ => PUNCH,
        };
        let (done, syncing, retries, cancelled) = (0, false, 0, false);
        Slot { operation, start, len, mode, done, syncing, retries, cancelled }
    }

    /// The next step.
    fn step(&self, file: &RingFile) -> Op {
        let (file, offset) = (file.clone(), self.start.saturating_add(self.done));
        match self.operation.kind {
            Kind::Read => Op::Read { file, data: self.rest(), offset },
            Kind::Write => Op::Write { file, data: self.rest(), offset, dsync: self.operation.fua },
            Kind::WriteZeroes { .. } | Kind::Deallocate if !self.syncing => {
                Op::Fallocate { file, mode: self.mode, offset, len: self.piece() }
            }
            _ => Op::Fsync { file, datasync: true },
        }
    }

    /// Counts a step that is on its way.
    fn count(&self, medium: &Medium) {
        match self.operation.kind {
            Kind::Write if self.operation.fua => medium.durability.count_durable_write(),
            Kind::Flush => medium.durability.count_sync(),
            _ if self.syncing => medium.durability.count_sync(),
            _ => {}
        }
    }

    /// What the result of a step means.
    fn after(&mut self, medium: &Medium, result: i32) -> After {
        let Ok(count) = u64::try_from(result) else {
            return self.after_failure(medium, Errno::from_raw_os_error(result.saturating_neg()));
        };
        match self.operation.kind {
            Kind::Read | Kind::Write => {
                // Whole blocks only: direct I/O could not go on in the middle of one.
                let block = u64::from(medium.geometry().block_size);
                let done = self.done.saturating_add(count).min(self.len);
                let done = done - done % block;
                if done == self.done {
                    return After::Finished(Err(Fault::End));
                }
                self.done = done;
            }
            Kind::WriteZeroes { .. } | Kind::Deallocate if !self.syncing => {
                self.done += self.piece();
                if self.done == self.len && self.operation.fua {
                    self.syncing = true;
                    return After::Again;
                }
            }
            _ => return After::Finished(Ok(())),
        }
        if self.done < self.len { After::Again } else { After::Finished(Ok(())) }
    }

    fn after_failure(&mut self, medium: &Medium, errno: Errno) -> After {
        match errno {
            // Only what never began ends so; an interrupted write may have begun.
            Errno::CANCELED if self.cancelled && self.done == 0 && !self.syncing => {
                After::Finished(Err(Fault::Aborted))
            }
            Errno::INTR | Errno::AGAIN | Errno::CANCELED if self.retries < RETRIES => {
                self.retries += 1;
                After::Again
            }
            Errno::OPNOTSUPP if !self.syncing => {
                if matches!(self.operation.kind, Kind::WriteZeroes { .. }) {
                    medium.zeroing.rule_out(self.mode);
                }
                After::Finished(Err(Fault::System(errno)))
            }
            _ => After::Finished(Err(Fault::System(errno))),
        }
    }

    /// Bytes of the range that the next step zeroes or punches.
    fn piece(&self) -> u64 {
        self.len.saturating_sub(self.done).min(RANGE_PIECE)
    }

    /// The memory of what is not done yet.
    fn rest(&self) -> Segments {
        let done = usize::try_from(self.done).unwrap_or(usize::MAX);
        self.operation.data.part(done, usize::MAX)
    }
}
