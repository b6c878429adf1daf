//! A device's own threads: they do by blocking calls what a ring does not.
//!
//! Each device has at most [`THREADS`], started when they are first needed, so a slow device holds up
//! no other. A job carries its own memory, aligned as direct I/O wants it, and the reactor copies
//! between that and the lent buffers; so a buffer never leaves its reactor's thread, and nothing is
//! left to be returned to it when a queue goes away while a thread is in the kernel. That costs a copy
//! and an allocation per operation.
//!
//! Rejected: the reactors' shared workers (a device that hangs would occupy them all); lending
//! buffers to threads (their counts are not atomic, on purpose).

mod bounce;
mod engine;

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crossbeam::channel::{Receiver, Sender, unbounded};
use reactor::Handle;
use rustix::io::Errno;

use crate::Geometry;
use crate::fault::Fault;

pub(crate) use bounce::Bounce;
pub(crate) use engine::{Cancelled, WorkerEngine};

/// Threads of one device at most.
const THREADS: usize = 4;

/// Bytes that a verify reads, or zeroing writes, at a time.
const PIECE: usize = 256 << 10;

/// How often a call is made again after it was interrupted.
const RETRIES: u8 = 16;

/// A medium by calls that block, each carried out to its end. Offsets and lengths are in bytes and of whole blocks.
pub(crate) trait Blocking: Debug + Send + Sync + 'static {
    /// The name the configuration gave it.
    fn name(&self) -> &str;

    fn geometry(&self) -> Geometry;

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Fault>;

    /// `durable`: when it returns, not only by the next sync.
    fn write(&self, offset: u64, from: &[u8], durable: bool) -> Result<(), Fault>;

    fn zero(&self, offset: u64, len: u64, deallocate: bool) -> Result<(), Fault>;

    fn deallocate(&self, offset: u64, len: u64) -> Result<(), Fault>;

    fn sync(&self) -> Result<(), Fault>;

    fn compare(&self, offset: u64, data: &[u8]) -> Result<(), Fault> {
        self.compare_by_reading(offset, data)
    }

    fn verify(&self, offset: u64, len: u64) -> Result<(), Fault> {
        self.verify_by_reading(offset, len)
    }

    /// Where the medium cannot compare.
    fn compare_by_reading(&self, offset: u64, data: &[u8]) -> Result<(), Fault> {
        let mut found = Bounce::zeroed(data.len());
        self.read(offset, found.as_mut())?;
        if found.as_ref() == data { Ok(()) } else { Err(Fault::Miscompare) }
    }

    /// Where the medium cannot verify.
    fn verify_by_reading(&self, offset: u64, len: u64) -> Result<(), Fault> {
        let mut data = Bounce::zeroed(piece(len));
        each_piece(offset, len, |offset, len| {
            self.read(offset, data.as_mut().get_mut(..len).unwrap_or_default())
        })
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
    Deallocate { offset: u64, len: u64 },
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
pub(crate) struct Workers<M> {
    medium: Arc<M>,
    jobs: Sender<Job>,
    source: Receiver<Job>,
    idle: Arc<AtomicUsize>,
    /// Threads started.
    started: Mutex<usize>,
}

impl<M> fmt::Debug for Workers<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").field("started", &self.started).finish_non_exhaustive()
    }
}

impl<M: Blocking> Workers<M> {
    pub(crate) fn new(medium: Arc<M>) -> Workers<M> {
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
        let name = format!("{}-{started}", self.medium.name());
        let thread = thread::Builder::new().name(name).spawn(move || serve(&jobs, &*medium, &idle));
        match thread {
            Ok(_) => *started += 1,
            // Those that run do the work; if there is none, the next job tries again.
            Err(error) => tracing::warn!(
                "device {}: cannot start a thread ({error}); its I/O is slower: raise the limit on threads",
                self.medium.name()
            ),
        }
    }
}

/// The life of a thread.
fn serve<M: Blocking>(jobs: &Receiver<Job>, medium: &M, idle: &AtomicUsize) {
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
fn perform<M: Blocking>(medium: &M, work: Work) -> Result<Option<Bounce>, Fault> {
    match work {
        Work::Read { offset, len } => {
            let mut data = Bounce::zeroed(len);
            medium.read(offset, data.as_mut())?;
            return Ok(Some(data));
        }
        Work::Write { offset, data, durable } => medium.write(offset, data.as_ref(), durable)?,
        Work::Compare { offset, data } => medium.compare(offset, data.as_ref())?,
        Work::Verify { offset, len } => medium.verify(offset, len)?,
        Work::Zero { offset, len, deallocate, durable } => {
            medium.zero(offset, len, deallocate)?;
            if durable {
                medium.sync()?;
            }
        }
        Work::Deallocate { offset, len } => medium.deallocate(offset, len)?,
        Work::Sync => medium.sync()?,
    }
    Ok(None)
}

/// Zeroes a range by writing to it.
pub(crate) fn write_zeroes<M: Blocking>(medium: &M, offset: u64, len: u64) -> Result<(), Fault> {
    let zeroes = Bounce::zeroed(piece(len));
    each_piece(offset, len, |offset, len| {
        medium.write(offset, zeroes.as_ref().get(..len).unwrap_or_default(), false)
    })
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

/// Makes a call again while it is only interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> Result<T, Fault> {
    let mut left = RETRIES;
    loop {
        match call() {
            Err(Errno::INTR | Errno::AGAIN) if left > 0 => left -= 1,
            result => return result.map_err(Fault::System),
        }
    }
}
