//! A device's own threads: they do by blocking calls what the ring does not.
//!
//! Each device has at most [`THREADS`], started when they are first needed, so a slow device holds up
//! no other. A job carries its own memory, aligned as direct I/O wants it, and the reactor copies
//! between that and the lent buffers; so a buffer never leaves its reactor's thread, and nothing is
//! left to be returned to it when a queue goes away while a thread is in the kernel. That costs a copy
//! and an allocation per operation.
//!
//! Rejected: the reactors' shared workers (a device that hangs would occupy them all); lending
//! buffers to threads (their counts are not atomic, on purpose).

use std::fmt;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crossbeam::channel::{Receiver, Sender, unbounded};
use memory::Segment;
use reactor::Handle;
use rustix::fs::{fallocate, fdatasync};
use rustix::io::{Errno, ReadWriteFlags, pread, pwritev2};

use super::fault::Fault;
use super::medium::{Medium, PUNCH};

/// Threads of one device at most.
const THREADS: usize = 4;

/// The alignment of a job's memory, enough for every medium that is accepted.
const ALIGNMENT: usize = 4096;

/// Bytes that a verify reads, or zeroing writes, at a time.
const PIECE: usize = 256 << 10;

/// The most that is zeroed or punched by one call.
const RANGE_PIECE: u64 = 64 << 20;

/// How often a call is made again after it was interrupted.
const RETRIES: u8 = 16;

/// Memory of a job's own.
#[derive(Debug)]
pub(super) struct Bounce {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Bounce {
    fn zeroed(len: usize) -> Bounce {
        let bytes = vec![0; len.saturating_add(ALIGNMENT)];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Bounce { bytes, start, len }
    }

    /// The segments' bytes, in order.
    pub(super) fn gather<'a>(segments: impl Iterator<Item = &'a Segment> + Clone) -> Bounce {
        let mut bounce = Bounce::zeroed(segments.clone().map(Segment::len).sum());
        let mut rest = bounce.as_mut();
        for segment in segments {
            let (part, behind) = rest.split_at_mut(segment.len().min(rest.len()));
            segment.copy_to(0, part);
            rest = behind;
        }
        bounce
    }

    /// Copies the bytes into the segments; whether all of them found their place.
    pub(super) fn scatter<'a>(&self, segments: impl Iterator<Item = &'a Segment>) -> bool {
        let mut rest = self.as_ref();
        for segment in segments {
            let (part, behind) = rest.split_at(segment.len().min(rest.len()));
            if segment.copy_from(0, part) != segment.len() {
                return false;
            }
            rest = behind;
        }
        rest.is_empty()
    }
}

impl AsRef<[u8]> for Bounce {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl AsMut<[u8]> for Bounce {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }
}

/// What a job is to do. Offsets and lengths are in bytes.
#[derive(Debug)]
pub(super) enum Work {
    Read { offset: u64, len: usize },
    Write { offset: u64, data: Bounce, durable: bool },
    Compare { offset: u64, data: Bounce },
    Verify { offset: u64, len: u64 },
    Zero { offset: u64, len: u64, deallocate: bool, durable: bool },
    Punch { offset: u64, len: u64 },
    Sync,
}

/// A job on its way to a thread.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) slot: usize,
    pub(super) work: Work,
    /// Set by whoever comes first: the thread that begins, or the queue that gives up.
    pub(super) claimed: Arc<AtomicBool>,
    pub(super) home: Home,
}

/// Where a job's outcome goes.
#[derive(Debug, Clone)]
pub(super) struct Home {
    pub(super) outcomes: Sender<Outcome>,
    pub(super) reactor: Handle,
    /// The reactor has been woken, and the queue has not looked since.
    pub(super) woken: Arc<AtomicBool>,
}

impl Home {
    fn deliver(&self, outcome: Outcome) {
        // The queue may be gone; then nobody waits for this.
        let _ = self.outcomes.send(outcome);
        if !self.woken.swap(true, Ordering::AcqRel) {
            // A full mailbox means that its reactor is awake, or about to be.
            let _ = self.reactor.send(|_| {});
        }
    }
}

/// A job that is done.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) slot: usize,
    /// What was read, if the work was to read.
    pub(super) result: Result<Option<Bounce>, Fault>,
}

/// A device's threads; they end with the device and the last of its queues.
pub(super) struct Workers {
    medium: Arc<Medium>,
    jobs: Sender<Job>,
    source: Receiver<Job>,
    idle: Arc<AtomicUsize>,
    /// Threads started.
    started: Mutex<usize>,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").field("started", &self.started).finish_non_exhaustive()
    }
}

impl Workers {
    pub(super) fn new(medium: Arc<Medium>) -> Workers {
        let (jobs, source) = unbounded();
        Workers { medium, jobs, source, idle: Arc::default(), started: Mutex::new(0) }
    }

    /// Gives a job to a thread. Queues bound what they give.
    pub(super) fn give(&self, job: Job) {
        self.start_thread_if_needed();
        // Cannot fail: a receiver is right here.
        let _ = self.jobs.send(job);
    }

    fn start_thread_if_needed(&self) {
        if self.idle.load(Ordering::Acquire) > self.jobs.len() {
            return;
        }
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if *started == THREADS {
            return;
        }
        let (jobs, medium, idle) =
            (self.source.clone(), Arc::clone(&self.medium), Arc::clone(&self.idle));
        let name = format!("{}-{started}", self.medium.name);
        let thread = thread::Builder::new().name(name).spawn(move || serve(&jobs, &medium, &idle));
        match thread {
            Ok(_) => *started += 1,
            // Those that run do the work; if there is none, the next job tries again.
            Err(error) => tracing::warn!(
                "device {}: cannot start a thread ({error}); its I/O is slower: raise the limit on threads",
                self.medium.name
            ),
        }
    }
}

/// The life of a thread.
fn serve(jobs: &Receiver<Job>, medium: &Medium, idle: &AtomicUsize) {
    loop {
        idle.fetch_add(1, Ordering::AcqRel);
        let next = jobs.recv();
        idle.fetch_sub(1, Ordering::AcqRel);
        let Ok(Job { slot, work, claimed, home }) = next else {
            return;
        };
        let given_up = claimed.swap(true, Ordering::AcqRel);
        let result = if given_up { Err(Fault::Aborted) } else { perform(medium, work) };
        home.deliver(Outcome { slot, result });
    }
}

/// Does the work, to its end.
fn perform(medium: &Medium, work: Work) -> Result<Option<Bounce>, Fault> {
    match work {
        Work::Read { offset, len } => {
            let mut data = Bounce::zeroed(len);
            read(medium, offset, data.as_mut())?;
            return Ok(Some(data));
        }
        Work::Write { offset, data, durable } => write(medium, offset, data.as_ref(), durable)?,
        Work::Compare { offset, data } => {
            let mut found = Bounce::zeroed(data.len);
            read(medium, offset, found.as_mut())?;
            if found.as_ref() != data.as_ref() {
                return Err(Fault::Miscompare);
            }
        }
        Work::Verify { offset, len } => {
            let mut data = Bounce::zeroed(piece(len));
            each_piece(offset, len, |offset, len| {
                read(medium, offset, data.as_mut().get_mut(..len).unwrap_or_default())
            })?;
        }
        Work::Zero { offset, len, deallocate, durable } => {
            zero(medium, offset, len, deallocate)?;
            if durable {
                sync(medium)?;
            }
        }
        Work::Punch { offset, len } => range(medium, PUNCH, offset, len)?,
        Work::Sync => sync(medium)?,
    }
    Ok(None)
}

fn read(medium: &Medium, mut offset: u64, mut into: &mut [u8]) -> Result<(), Fault> {
    while !into.is_empty() {
        let count = whole_blocks(medium, retry(|| pread(&medium.file, &mut *into, offset))?);
        if count == 0 {
            return Err(Fault::End);
        }
        into = into.get_mut(count..).unwrap_or_default();
        offset = offset.saturating_add(count as u64);
    }
    Ok(())
}

fn write(medium: &Medium, mut offset: u64, mut from: &[u8], durable: bool) -> Result<(), Fault> {
    let flags = if durable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
    while !from.is_empty() {
        if durable {
            medium.durability.count_durable_write();
        }
        let call = || pwritev2(&medium.file, &[IoSlice::new(from)], offset, flags);
        let count = whole_blocks(medium, retry(call)?);
        if count == 0 {
            return Err(Fault::End);
        }
        from = from.get(count..).unwrap_or_default();
        offset = offset.saturating_add(count as u64);
    }
    Ok(())
}

/// Direct I/O cannot go on in the middle of a block.
fn whole_blocks(medium: &Medium, count: usize) -> usize {
    let block = usize::try_from(medium.geometry().block_size).unwrap_or(1);
    count - count % block
}

fn zero(medium: &Medium, offset: u64, len: u64, deallocate: bool) -> Result<(), Fault> {
    while let Some(mode) = medium.zeroing.mode(deallocate) {
        match range(medium, mode, offset, len) {
            Err(Fault::System(Errno::OPNOTSUPP)) => medium.zeroing.rule_out(mode),
            result => return result,
        }
    }
    let zeroes = Bounce::zeroed(piece(len));
    each_piece(offset, len, |offset, len| {
        write(medium, offset, zeroes.as_ref().get(..len).unwrap_or_default(), false)
    })
}

fn range(
    medium: &Medium,
    mode: rustix::fs::FallocateFlags,
    mut offset: u64,
    mut len: u64,
) -> Result<(), Fault> {
    while len > 0 {
        let count = len.min(RANGE_PIECE);
        retry(|| fallocate(&medium.file, mode, offset, count))?;
        offset = offset.saturating_add(count);
        len -= count;
    }
    Ok(())
}

fn sync(medium: &Medium) -> Result<(), Fault> {
    medium.durability.count_sync();
    retry(|| fdatasync(&medium.file))
}

/// The size of a piece of a range of `len` bytes.
fn piece(len: u64) -> usize {
    usize::try_from(len).map_or(PIECE, |len| len.min(PIECE))
}

fn each_piece(
    mut offset: u64,
    mut len: u64,
    mut act: impl FnMut(u64, usize) -> Result<(), Fault>,
) -> Result<(), Fault> {
    while len > 0 {
        let count = piece(len);
        act(offset, count)?;
        offset = offset.saturating_add(count as u64);
        len -= count as u64;
    }
    Ok(())
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> Result<T, Fault> {
    let mut left = RETRIES;
    loop {
        match call() {
            Err(Errno::INTR | Errno::AGAIN) if left > 0 => left -= 1,
            result => return result.map_err(Fault::System),
        }
    }
}
