//! A device whose medium is memory: as fast as a copy, gone with the process.
//!
//! A queue carries out its operations in [`BlockQueue::poll`], on the reactor that asked, and stops
//! after `BYTES_PER_POLL`. Deallocating pages is slow work for the kernel, so a long range is done
//! in slices of `SLICE`, and the operation goes to the back of the queue after each: it holds up
//! nothing behind it. Operations that are out at the same time have no order anyway.
//!
//! It lends its own memory for reads ([`Data::lent`](crate::Data::lent)): nothing is copied. A write of what is lent claims
//! it and goes to the back of the queue until it is free, by [`memory::lease`]; what is read there meanwhile is copied. On
//! whichever reactor the lease ends, the queue finds it at its next poll, which it asks for as long as a write waits. The
//! medium of a deleted device is freed by a worker, not by the reactor that lets go of the last lease.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use memory::{Claim, Lender, MemoryError, Segment, SharedMemory};

use crate::{
    BlockDevice, BlockError, BlockQueue, Completion, Deallocation, ErrorKind, Geometry, Kind,
    Operation, Properties, Token,
};

/// The most that is deallocated at a time: 256 pages, some tens of microseconds.
const SLICE: u64 = 1 << 20;

/// A poll begins no further operation once it has moved or deallocated this many bytes.
const BYTES_PER_POLL: u64 = 1 << 20;

/// The unit in which the system gives memory back.
const PAGE: u32 = 4096;

/// What a RAM device is to be.
#[derive(Debug, Clone)]
pub struct RamOptions {
    /// The name the configuration gives it.
    pub name: String,
    /// Its size in bytes, rounded down to whole blocks.
    pub size: u64,
    /// Bytes in a block: 512 or 4096.
    pub block_size: u32,
    /// Writes are refused; it reads as zeroes for ever.
    pub read_only: bool,
}

/// A device that holds its blocks in memory. Pages are taken when they are first written.
#[derive(Debug)]
pub struct RamDevice {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    geometry: Geometry,
    properties: Properties,
    medium: Arc<SharedMemory>,
}

impl RamDevice {
    /// A new device, all zeroes.
    ///
    /// # Errors
    /// [`BlockError::Unsuitable`] if the shape is odd, [`BlockError::NoMemory`] if the system has no
    /// room for the mapping.
    pub fn new(options: &RamOptions) -> Result<RamDevice, BlockError> {
        let RamOptions { name, size, block_size, read_only } = options;
        let geometry = Geometry::of_new_device(name, *size, *block_size)?;
        let no_memory = |source| {
            let bytes = geometry.bytes();
            BlockError::NoMemory { device: name.clone(), bytes, source }
        };
        // More than there are addresses for.
        let too_many = |_| no_memory(io::ErrorKind::OutOfMemory.into());
        let bytes = usize::try_from(geometry.bytes()).map_err(too_many)?;
        let medium = SharedMemory::new(name, bytes).map_err(|error| {
            no_memory(match error {
                MemoryError::Map { source, .. } => source,
                other @ MemoryError::Exhausted { .. } => io::Error::other(other),
            })
        })?;
        let granularity = (PAGE / block_size).max(1);
        let properties = Properties {
            read_only: *read_only,
            volatile_write_cache: false,
            deallocation: Some(Deallocation { reads_zero: true, granularity }),
            memory_alignment: 1,
            optimal_blocks: granularity,
            description: "ram: in memory, lost when the process ends".to_owned(),
        };
        Ok(RamDevice {
            inner: Arc::new(Inner {
                name: name.clone(),
                geometry,
                properties,
                medium: Arc::new(medium),
            }),
        })
    }

    /// A queue that is no reactor's: its thread may block.
    pub fn queue(&self) -> Box<dyn BlockQueue> {
        self.queue_of(Lender::new(Arc::clone(&self.inner.medium)))
    }

    fn queue_of(&self, lender: Lender) -> Box<dyn BlockQueue> {
        let device = Arc::clone(&self.inner);
        Box::new(RamQueue { device, lender, waiting: VecDeque::new() })
    }
}

impl BlockDevice for RamDevice {
    fn name(&self) -> &str {
        &self.inner.name
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry
    }

    fn properties(&self) -> &Properties {
        &self.inner.properties
    }

    fn open_queue(&self, local: &reactor::Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        let (medium, local) = (Arc::clone(&self.inner.medium), local.clone());
        let free = move |last| local.offload(move || drop(last), |()| ());
        Ok(self.queue_of(Lender::freed_by(medium, free)))
    }

    fn medium(&self) -> Option<&Arc<SharedMemory>> {
        Some(&self.inner.medium)
    }
}

/// An operation and how far it has come.
#[derive(Debug)]
struct Waiting {
    operation: Operation,
    /// Bytes of a range to be deallocated that have been.
    deallocated: u64,
    /// Of what it writes next, while some of that is lent.
    claim: Option<Claim>,
    /// Has been cancelled.
    aborted: bool,
}

#[derive(Debug)]
struct RamQueue {
    // Before the lender, which knows what to do if it is the last to have the medium.
    device: Arc<Inner>,
    lender: Lender,
    waiting: VecDeque<Waiting>,
}

impl BlockQueue for RamQueue {
    fn submit(&mut self, operation: Operation) {
        let (deallocated, claim, aborted) = (0, None, false);
        self.waiting.push_back(Waiting { operation, deallocated, claim, aborted });
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        let mut count = 0;
        let mut moved = 0;
        // Each is looked at once: all of them may be waiting for leases.
        for _ in 0..self.waiting.len() {
            if count == max || moved >= BYTES_PER_POLL {
                break;
            }
            let Some(mut next) = self.waiting.pop_front() else {
                break;
            };
            match self.advance(&mut next, &mut moved) {
                Some(result) => {
                    let token = next.operation.token;
                    drop(next);
                    count += 1;
                    let (result, lent) = match result {
                        Ok(lent) => (Ok(()), lent),
                        Err(kind) => (Err(kind), None),
                    };
                    done(Completion { token, result, lent });
                }
                None => self.waiting.push_back(next),
            }
        }
        count
    }

    fn cancel(&mut self, token: Token) -> bool {
        let named = self.waiting.iter_mut().find(|waiting| waiting.operation.token == token);
        match named {
            Some(waiting) if waiting.deallocated == 0 => {
                waiting.aborted = true;
                true
            }
            _ => false,
        }
    }

    fn outstanding(&self) -> usize {
        self.waiting.len()
    }

    fn needs_poll(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl RamQueue {
    /// Carries the operation on by one bounded piece of work, and adds its bytes to `moved`. `None`:
    /// there is more to do.
    fn advance(
        &self,
        next: &mut Waiting,
        moved: &mut u64,
    ) -> Option<Result<Option<Segment>, ErrorKind>> {
        let Inner { geometry, properties, medium, .. } = &*self.device;
        let operation = &next.operation;
        if next.aborted {
            return Some(Err(ErrorKind::Aborted));
        }
        let (start, len) = operation.byte_range(*geometry);
        if operation.kind == Kind::Read && operation.data.is_lent() {
            return Some(self.lend(operation, start, len).map(Some));
        }
        if let Err(refusal) = operation.admit(*geometry, properties) {
            return Some(Err(refusal));
        }
        match operation.kind {
            Kind::Flush | Kind::Verify => Some(Ok(None)),
            Kind::Read | Kind::Compare => {
                *moved += len;
                Some(transfer(medium, operation, start).map(|()| None))
            }
            Kind::Write => {
                let mut claim = self.claim(&mut next.claim, start, len)?;
                *moved += len;
                Some(write(&mut claim, operation, start).map(|()| None))
            }
            Kind::WriteZeroes { .. } | Kind::Deallocate => {
                let left = len - next.deallocated;
                let count = left.min(SLICE);
                let mut claim = self.claim(&mut next.claim, start + next.deallocated, count)?;
                *moved += count;
                if claim.zero().is_err() {
                    return Some(Err(ErrorKind::MediumWrite));
                }
                next.deallocated += count;
                (count == left).then_some(Ok(None))
            }
        }
    }

    /// A claim of the range by which it can be written now; otherwise it is put where the operation waits with it.
    fn claim(&self, waiting: &mut Option<Claim>, start: u64, len: u64) -> Option<Claim> {
        let new = || self.lender.claim(start, usize::try_from(len).ok()?);
        let mut claim = waiting.take().or_else(new)?;
        if claim.is_free() {
            return Some(claim);
        }
        *waiting = Some(claim);
        None
    }

    fn lend(&self, operation: &Operation, start: u64, len: u64) -> Result<Segment, ErrorKind> {
        if !self.device.geometry.contains(operation.lba, operation.blocks) {
            return Err(ErrorKind::OutOfRange);
        }
        let len = usize::try_from(len).map_err(|_| ErrorKind::OutOfRange)?;
        self.lender.lend(start, len).ok_or(ErrorKind::NotLent)
    }
}

/// Reads or compares.
fn transfer(medium: &SharedMemory, operation: &Operation, start: u64) -> Result<(), ErrorKind> {
    let mut at = start;
    for segment in operation.data.iter() {
        let inside = match operation.kind {
            Kind::Read => medium.read_at(at, segment),
            _ => match medium.equals(at, segment) {
                Some(false) => return Err(ErrorKind::Miscompare),
                Some(true) => true,
                None => false,
            },
        };
        if !inside {
            return Err(ErrorKind::Internal);
        }
        at = behind(at, segment);
    }
    Ok(())
}

fn write(claim: &mut Claim, operation: &Operation, start: u64) -> Result<(), ErrorKind> {
    let mut at = start;
    for segment in operation.data.iter() {
        if !claim.write(at, segment) {
            return Err(ErrorKind::Internal);
        }
        at = behind(at, segment);
    }
    Ok(())
}

/// Where the next segment's bytes are.
fn behind(at: u64, segment: &Segment) -> u64 {
    at.saturating_add(u64::try_from(segment.len()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Data;

    fn device(size: u64) -> RamDevice {
        let name = "ram0".to_owned();
        RamDevice::new(&RamOptions { name, size, block_size: 512, read_only: false }).unwrap()
    }

    fn submit(queue: &mut dyn BlockQueue, token: u64, kind: Kind, blocks: u64) {
        let (token, data) = (Token(token), Data::none());
        queue.submit(Operation { token, kind, lba: 0, blocks, data, fua: false });
    }

    fn poll(queue: &mut dyn BlockQueue) -> Vec<(u64, Result<(), ErrorKind>)> {
        let mut seen = Vec::new();
        queue.poll(100, &mut |done| seen.push((done.token.0, done.result)));
        seen
    }

    #[test]
    fn a_long_deallocation_is_sliced_and_holds_up_nothing() {
        let device = device(10 << 20);
        let mut queue = device.queue();
        submit(&mut *queue, 1, Kind::Deallocate, device.geometry().blocks);
        submit(&mut *queue, 2, Kind::Flush, 0);
        assert_eq!(poll(&mut *queue), []);
        assert_eq!(poll(&mut *queue), [(2, Ok(()))]);
        let mut polls = 2;
        while queue.outstanding() > 0 {
            assert!(queue.needs_poll());
            polls += 1;
            poll(&mut *queue);
        }
        assert_eq!(polls, 10);
        assert!(!queue.needs_poll());
    }

    #[test]
    fn what_has_begun_is_not_cancelled() {
        let device = device(2 << 20);
        let mut queue = device.queue();
        submit(&mut *queue, 1, Kind::Deallocate, device.geometry().blocks);
        submit(&mut *queue, 2, Kind::Deallocate, 1);
        poll(&mut *queue);
        assert!(!queue.cancel(Token(1)));
        assert!(queue.cancel(Token(2)));
        assert!(!queue.cancel(Token(3)));
        assert_eq!(poll(&mut *queue), [(2, Err(ErrorKind::Aborted)), (1, Ok(()))]);
    }

    #[test]
    fn a_device_too_large_for_the_machine_is_refused_by_name() {
        let name = "ram0".to_owned();
        let options = RamOptions { name, size: !511, block_size: 512, read_only: false };
        let error = RamDevice::new(&options).unwrap_err();
        assert!(matches!(error, BlockError::NoMemory { .. }), "{error:?}");
        assert!(error.to_string().contains("ram0"), "{error}");
    }
}
