//! A disk in memory, driven from a seed, that does to its user all that a real one may: it delays
//! and reorders, it fails, and when the power is cut it forgets what was not flushed, whole writes or
//! parts of them.
//!
//! ```text
//!   submit -> in flight -> completed, in the volatile cache -> durable
//!                |  poll by poll                |  flush, FUA     |
//!                +------ cut: nothing, all or part ----+     stays
//! ```
//!
//! Time is counted in polls of a queue: an operation is due after a random number of them. The same
//! seed and the same sequence of calls, on however many queues, give the same results. Blocks are
//! never torn; a write of several may be, at any of them, if it is cut off or fails.
//!
//! The disk also watches its user: memory that changes while it is lent for a write, and operations
//! that do not fit the disk, are panics.

mod cells;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::{
    BlockDevice, BlockError, BlockQueue, Completion, Deallocation, ErrorKind, Geometry, Kind,
    Operation, Properties, Token,
};

use crate::Random;

use cells::Cells;

/// How the disk is to be.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// The device's name.
    pub name: String,
    /// What all its randomness comes from.
    pub seed: u64,
    /// Bytes in a block: 512 or 4096.
    pub block_size: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// Whether completed writes may be lost until a flush.
    pub volatile_write_cache: bool,
    /// Polls that an operation takes at most, at least 1.
    pub delay: u64,
    /// Reads, compares and verifies that fail, in thousandths.
    pub failing_reads: u16,
    /// Writes, zeroes and deallocations that fail, in thousandths. Any of their blocks may have been
    /// changed all the same.
    pub failing_writes: u16,
    /// Flushes that fail, in thousandths. They make nothing durable.
    pub failing_flushes: u16,
}

impl DiskOptions {
    /// A disk of 1,024 blocks with a volatile cache, that delays and reorders and does not fail.
    pub fn new(seed: u64) -> DiskOptions {
        DiskOptions {
            name: "simulated".to_owned(),
            seed,
            block_size: 512,
            blocks: 1024,
            volatile_write_cache: true,
            delay: 8,
            failing_reads: 0,
            failing_writes: 0,
            failing_flushes: 0,
        }
    }
}

/// What the disk has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskCounts {
    /// Operations completed, failed and cancelled ones included.
    pub completed: u64,
    /// Of them, flushes that succeeded.
    pub flushes: u64,
    /// Of them, writes with FUA that succeeded.
    pub durable_writes: u64,
    /// Of them, failures that the disk made up.
    pub failures: u64,
    /// Times the power was cut.
    pub cuts: u64,
    /// Writes that a cut left whole, though they were not flushed.
    pub kept: u64,
    /// Writes that a cut took away.
    pub lost: u64,
    /// Writes of which a cut left a part.
    pub torn: u64,
}

/// A simulated disk; clones are the same one.
#[derive(Clone)]
pub struct SimulatedDisk {
    shape: Arc<Shape>,
    core: Arc<Mutex<Core>>,
}

/// What does not change.
#[derive(Debug)]
struct Shape {
    geometry: Geometry,
    properties: Properties,
    options: DiskOptions,
}

#[derive(Debug)]
struct Core {
    random: Random,
    cells: Cells,
    counts: DiskCounts,
    stalled: bool,
    failing: Option<ErrorKind>,
    /// Cuts so far: queues of an earlier era are dead.
    era: u64,
}

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedDisk")
            .field("options", &self.shape.options)
            .finish_non_exhaustive()
    }
}

impl SimulatedDisk {
    /// A new disk, all zeroes.
    ///
    /// # Panics
    /// If the block size is odd or the disk too large for memory.
    pub fn new(options: DiskOptions) -> SimulatedDisk {
        let block_size = usize::try_from(options.block_size).unwrap_or(0);
        assert!(matches!(block_size, 512 | 4096), "block size {block_size}");
        let blocks = usize::try_from(options.blocks).unwrap_or(usize::MAX);
        let core = Core {
            random: Random::new(options.seed),
            cells: Cells::new(block_size, blocks, options.volatile_write_cache),
            counts: DiskCounts::default(),
            stalled: false,
            failing: None,
            era: 0,
        };
        let geometry =
            Geometry { block_size: options.block_size, blocks: options.blocks, generation: 0 };
        let properties = Properties {
            read_only: false,
            volatile_write_cache: options.volatile_write_cache,
            deallocation: Some(Deallocation { reads_zero: true, granularity: 1 }),
            memory_alignment: 1,
            optimal_blocks: 1,
            description: format!("simulated from seed {}", options.seed),
        };
        let shape = Arc::new(Shape { geometry, properties, options });
        SimulatedDisk { shape, core: Arc::new(Mutex::new(core)) }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A queue; it needs nothing of a reactor.
    pub fn queue(&self) -> Box<dyn BlockQueue> {
        let era = self.core().era;
        Box::new(SimulatedQueue { disk: self.clone(), era, pending: Vec::new() })
    }

    /// Cuts the power. Of each write that is in flight, or completed and not flushed, nothing, all or
    /// any of its blocks stay. Queues opened before are dead: what is in them, and what they are given
    /// from now on, ends with [`ErrorKind::Removed`].
    pub fn cut(&self) {
        let mut core = self.core();
        let Core { random, cells, counts, era, .. } = &mut *core;
        cells.cut(random, counts);
        counts.cuts += 1;
        *era += 1;
    }

    /// Whether nothing completes any more, until it is told otherwise.
    pub fn stall(&self, stalled: bool) {
        self.core().stalled = stalled;
    }

    /// Whether everything fails, with this error and without effect, until it is told otherwise.
    pub fn fail(&self, failing: Option<ErrorKind>) {
        self.core().failing = failing;
    }

    /// The bytes of all blocks, as reads see them.
    pub fn contents(&self) -> Vec<u8> {
        self.core().cells.current().to_vec()
    }

    /// The bytes of all blocks, as they are certain to be after a cut that keeps nothing else.
    pub fn durable(&self) -> Vec<u8> {
        self.core().cells.durable().to_vec()
    }

    /// What it has done so far.
    pub fn counts(&self) -> DiskCounts {
        self.core().counts
    }
}

impl BlockDevice for SimulatedDisk {
    fn name(&self) -> &str {
        &self.shape.options.name
    }

    fn geometry(&self) -> Geometry {
        self.shape.geometry
    }

    fn properties(&self) -> &Properties {
        &self.shape.properties
    }

    fn open_queue(&self, _local: &reactor::Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        Ok(self.queue())
    }
}

#[derive(Debug)]
struct SimulatedQueue {
    disk: SimulatedDisk,
    era: u64,
    pending: Vec<Pending>,
}

/// An operation in flight.
#[derive(Debug)]
struct Pending {
    operation: Operation,
    /// Polls until it is due.
    due: u64,
    /// What a write changes, known to the cells from the start: a cut may come at any time.
    write: Option<u64>,
    /// What a flush covers.
    covers: u64,
    aborted: bool,
}

impl BlockQueue for SimulatedQueue {
    fn submit(&mut self, operation: Operation) {
        let shape = &self.disk.shape;
        let verdict = operation.admit(shape.geometry, &shape.properties);
        assert!(verdict != Err(ErrorKind::Internal), "memory does not fit {operation:?}");
        let mut core = self.disk.core();
        let due = 1 + core.random.below(shape.options.delay);
        let covers = core.cells.completed();
        let changes =
            matches!(operation.kind, Kind::Write | Kind::WriteZeroes { .. } | Kind::Deallocate);
        let alive = core.era == self.era && verdict.is_ok();
        let write = (changes && alive).then(|| {
            let (start, bytes) = bytes_of(&operation, shape.geometry);
            core.cells.begin(start, &bytes)
        });
        drop(core);
        self.pending.push(Pending { operation, due, write, covers, aborted: false });
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        for pending in &mut self.pending {
            pending.due = pending.due.saturating_sub(1);
        }
        let mut count = 0;
        while count < max {
            let mut core = self.disk.core();
            let dead = core.era != self.era;
            if core.stalled && !dead {
                break;
            }
            let due = |pending: &&Pending| pending.due == 0 || dead;
            let number = self.pending.iter().filter(due).count();
            if number == 0 {
                break;
            }
            let chosen = core.random.index(number);
            let (place, _) = self
                .pending
                .iter()
                .enumerate()
                .filter(|(_, pending)| due(pending))
                .nth(chosen)
                .unwrap_or_else(|| unreachable!("one of those counted"));
            // Not `swap_remove`: the order of the rest decides later choices.
            let pending = self.pending.remove(place);
            let shape = &self.disk.shape;
            let result = if dead { Err(ErrorKind::Removed) } else { core.end(&pending, shape) };
            core.counts.completed += 1;
            drop(core);
            let token = pending.operation.token;
            drop(pending);
            count += 1;
            done(Completion { token, result });
        }
        count
    }

    fn cancel(&mut self, token: Token) -> bool {
        let mut core = self.disk.core();
        let found = self.pending.iter_mut().find(|pending| pending.operation.token == token);
        // Like a real one, it cannot always.
        match found {
            Some(pending) if core.era == self.era && core.random.permille(500) => {
                if let Some(write) = pending.write.take() {
                    core.cells.forget(write);
                }
                pending.aborted = true;
                true
            }
            _ => false,
        }
    }

    fn outstanding(&self) -> usize {
        self.pending.len()
    }

    fn needs_poll(&self) -> bool {
        !self.pending.is_empty()
    }
}

impl Drop for SimulatedQueue {
    /// The process went away, the power did not: what it had in flight has happened or has not,
    /// wholly or in part, by the time that anybody else may open the disk.
    fn drop(&mut self) {
        let mut core = self.disk.core();
        if core.era != self.era {
            return;
        }
        let Core { random, cells, .. } = &mut *core;
        for write in self.pending.iter().filter_map(|pending| pending.write) {
            cells.fail(write, random);
        }
    }
}

impl Core {
    /// Carries out an operation that is due.
    fn end(&mut self, pending: &Pending, shape: &Shape) -> Result<(), ErrorKind> {
        let Pending { operation, write, covers, aborted, .. } = pending;
        if *aborted {
            return Err(ErrorKind::Aborted);
        }
        operation.admit(shape.geometry, &shape.properties)?;
        if let Some(failing) = self.failing {
            if let Some(write) = *write {
                self.cells.forget(write);
            }
            return Err(failing);
        }
        let options = &shape.options;
        let (start, bytes) = bytes_of(operation, shape.geometry);
        match operation.kind {
            Kind::Flush => {
                if self.random.permille(options.failing_flushes.into()) {
                    self.counts.failures += 1;
                    return Err(ErrorKind::MediumWrite);
                }
                self.counts.flushes += 1;
                self.cells.flush(*covers);
            }
            Kind::Write | Kind::WriteZeroes { .. } | Kind::Deallocate => {
                let Some(write) = *write else {
                    return Err(ErrorKind::Internal);
                };
                let unchanged = self.cells.bytes_in_flight(write) == bytes;
                assert!(unchanged, "memory lent to a write was changed: {operation:?}");
                if self.random.permille(options.failing_writes.into()) {
                    self.counts.failures += 1;
                    self.cells.fail(write, &mut self.random);
                    return Err(ErrorKind::MediumWrite);
                }
                self.counts.durable_writes += u64::from(operation.fua);
                self.cells.complete(write, operation.fua);
            }
            Kind::Read | Kind::Compare | Kind::Verify => {
                if self.random.permille(options.failing_reads.into()) {
                    self.counts.failures += 1;
                    return Err(ErrorKind::MediumRead);
                }
                let (_, len) = operation.byte_range(shape.geometry);
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                let found = self.cells.current().get(start..start + len).unwrap_or_default();
                match operation.kind {
                    Kind::Compare if found != bytes => return Err(ErrorKind::Miscompare),
                    Kind::Read => scatter(operation, found),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Where the operation's range begins, in bytes, and what it brings: its memory, or zeroes.
fn bytes_of(operation: &Operation, geometry: Geometry) -> (usize, Vec<u8>) {
    let (start, len) = operation.byte_range(geometry);
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    let len = match operation.kind {
        Kind::Write | Kind::Compare | Kind::WriteZeroes { .. } | Kind::Deallocate => len,
        Kind::Read | Kind::Flush | Kind::Verify => 0,
    };
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let mut rest = bytes.as_mut_slice();
    for segment in operation.data.iter() {
        let (part, behind) = rest.split_at_mut(segment.len().min(rest.len()));
        segment.copy_to(0, part);
        rest = behind;
    }
    (start, bytes)
}

fn scatter(operation: &Operation, mut from: &[u8]) {
    for segment in operation.data.iter() {
        let (part, behind) = from.split_at(segment.len().min(from.len()));
        let copied = segment.copy_from(0, part);
        assert!(copied == segment.len(), "memory lent to a read is being looked at");
        from = behind;
    }
}
