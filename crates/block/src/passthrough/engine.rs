//! Operations by the reactor's ring for NVMe commands: each cut into commands as large as are allowed.
//!
//! At most [`DEPTH`] commands are out; operations beyond wait here, in order, so that one slow device cannot fill a ring
//! that others use too. The tables grow to the depth that is used; from then on nothing here allocates.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use nvme::Status;
use nvme::io::BlockRange;
use reactor::Instant;
use reactor::ring::RingFile;
use reactor::ring::nvme::{CommandPort, CommandRing, NvmeOp, Payload, RingNamespace};
use rustix::io::Errno;
use slab::Slab;

use super::medium::{Medium, is_doubtful, is_passing, list};
use super::{RETRIES, patience};
use crate::fault::Fault;
use crate::{Kind, Operation, Token};

/// Commands of one queue in flight at most: one host queue's worth.
const DEPTH: usize = 128;

#[derive(Debug)]
pub(super) struct CommandEngine {
    medium: Arc<Medium>,
    port: CommandPort,
    namespace: RingNamespace,
    _claim: Option<RingFile>,
    operations: Slab<Running>,
    /// Operations of which there are commands to be cut yet.
    uncut: VecDeque<usize>,
    parts: Slab<Part>,
    /// Parts that are to be put into the ring.
    ready: VecDeque<usize>,
    /// Parts that are to be tried again, and when.
    delayed: Vec<(Instant, usize)>,
    /// Parts that cannot be put anywhere: a mistake of ours.
    broken: Vec<usize>,
    /// Something failed since this was last asked that makes one doubt that the device is there.
    doubt: bool,
}

/// An operation of which not all is done.
#[derive(Debug)]
struct Running {
    operation: Operation,
    /// Blocks that there are commands for already.
    cut: u64,
    /// There is nothing left to cut.
    whole: bool,
    /// Commands that are not done.
    parts: usize,
    /// The first.
    fault: Option<Fault>,
}

/// A command.
#[derive(Debug)]
struct Part {
    operation: usize,
    /// Blocks of the operation before it.
    skip: u64,
    blocks: u32,
    tries: u8,
}

impl CommandEngine {
    pub(super) fn new(medium: Arc<Medium>, ring: &Rc<CommandRing>) -> CommandEngine {
        CommandEngine {
            port: ring.port(),
            namespace: ring.register(&medium.namespace),
            _claim: medium.claim.as_ref().map(|claim| ring.register_file(Arc::clone(claim))),
            medium,
            operations: Slab::new(),
            uncut: VecDeque::new(),
            parts: Slab::new(),
            ready: VecDeque::new(),
            delayed: Vec::new(),
            broken: Vec::new(),
            doubt: false,
        }
    }

    pub(super) fn start(&mut self, operation: Operation) {
        let (cut, whole, parts, fault) = (0, false, 0, None);
        let index = self.operations.insert(Running { operation, cut, whole, parts, fault });
        self.uncut.push_back(index);
        self.cut();
    }

    /// Makes commands of what waits, as far as there is room for them.
    fn cut(&mut self) {
        while self.parts.len() < DEPTH
            && let Some(&index) = self.uncut.front()
        {
            let Some(running) = self.operations.get_mut(index) else {
                self.uncut.pop_front();
                continue;
            };
            let Operation { kind, lba, blocks, .. } = running.operation;
            let left = blocks.saturating_sub(running.cut);
            let count = self.medium.limits.first(kind, lba.saturating_add(running.cut), left);
            let part = Part { operation: index, skip: running.cut, blocks: count, tries: 0 };
            running.cut = running.cut.saturating_add(u64::from(count));
            running.parts += 1;
            running.whole = kind == Kind::Flush || running.cut >= blocks;
            if running.whole {
                self.uncut.pop_front();
            }
            let part = self.parts.insert(part);
            self.ready.reserve(self.parts.len() - self.ready.len());
            self.put(part);
        }
    }

    /// Puts a command into the ring, or notes that it is still to be put there.
    fn put(&mut self, index: usize) {
        let Some(op) = self.op(index) else {
            debug_assert!(false, "a command without the memory for it");
            return self.broken.push(index);
        };
        if self.port.submit(op, index as u64).is_err() {
            self.ready.push_back(index);
        }
    }

    fn op(&self, index: usize) -> Option<NvmeOp> {
        let part = self.parts.get(index)?;
        let operation = &self.operations.get(part.operation)?.operation;
        let slba = operation.lba.saturating_add(part.skip);
        let range = BlockRange { slba, blocks: part.blocks };
        let payload = match operation.kind {
            Kind::Read | Kind::Write | Kind::Compare => {
                let size = u64::from(self.medium.namespace.block_size());
                let skip = usize::try_from(part.skip.checked_mul(size)?).ok()?;
                let len = usize::try_from(u64::from(part.blocks).checked_mul(size)?).ok()?;
                Payload::Memory(operation.data.part(skip, len))
            }
            Kind::Deallocate => Payload::Range(list(range)),
            Kind::Flush | Kind::Verify | Kind::WriteZeroes { .. } => Payload::None,
        };
        let command = self.medium.command(operation.kind, range, operation.fua);
        NvmeOp::new(self.namespace.clone(), command, payload)
    }

    /// Takes what the ring has finished and puts more into it. Calls `finished` for each operation that has come to its
    /// end.
    pub(super) fn poll(
        &mut self,
        now: Instant,
        finished: &mut impl FnMut(Operation, Result<(), Fault>),
    ) {
        if self.operations.is_empty() {
            return;
        }
        let CommandEngine { medium, port, parts, operations, uncut, delayed, doubt, .. } = self;
        port.drain(DEPTH, |tag, result| {
            let index = usize::try_from(tag).unwrap_or(usize::MAX);
            let Some(part) = parts.get_mut(index) else {
                return;
            };
            let fault = fault(result);
            *doubt |= fault.is_some_and(is_doubtful);
            if fault.is_some_and(is_passing) && part.tries < RETRIES && !medium.is_removed() {
                delayed.push((now + patience(part.tries), index));
                part.tries += 1;
                return;
            }
            let operation = parts.remove(index).operation;
            if let Some((operation, outcome)) = end_part(operations, uncut, operation, fault) {
                finished(operation, outcome);
            }
        });
        if !self.delayed.is_empty() {
            self.try_again(now, finished);
        }
        while let Some(index) = self.broken.pop() {
            let CommandEngine { parts, operations, uncut, .. } = self;
            let (operation, ours) = (parts.remove(index).operation, Some(Fault::Internal));
            if let Some((operation, outcome)) = end_part(operations, uncut, operation, ours) {
                finished(operation, outcome);
            }
        }
        for _ in 0..self.ready.len() {
            if let Some(index) = self.ready.pop_front() {
                self.put(index);
            }
        }
        self.cut();
    }

    /// Makes the delayed parts ready that are due, or ends all of them if the device is gone.
    fn try_again(&mut self, now: Instant, finished: &mut impl FnMut(Operation, Result<(), Fault>)) {
        let removed = self.medium.is_removed();
        let CommandEngine { parts, operations, uncut, ready, delayed, .. } = self;
        delayed.retain(|&(due, index)| {
            if removed {
                let operation = parts.remove(index).operation;
                let gone = Some(Fault::System(Errno::NODEV));
                if let Some((operation, outcome)) = end_part(operations, uncut, operation, gone) {
                    finished(operation, outcome);
                }
            } else if due <= now {
                ready.push_back(index);
            } else {
                return true;
            }
            false
        });
    }

    /// Gives back an operation of which nothing has begun.
    pub(super) fn cancel(&mut self, token: Token) -> Option<Operation> {
        let waits = |&index: &usize| {
            let running = self.operations.get(index);
            running.is_some_and(|running| running.cut == 0 && running.operation.token == token)
        };
        let place = self.uncut.iter().position(waits)?;
        let index = self.uncut.remove(place)?;
        Some(self.operations.try_remove(index)?.operation)
    }

    pub(super) fn outstanding(&self) -> usize {
        self.operations.len()
    }

    /// Whether a command waits for room in the ring, which nothing announces, or has failed here.
    pub(super) fn needs_poll(&self) -> bool {
        !self.ready.is_empty() || !self.broken.is_empty()
    }

    /// When the next delayed part is due.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.delayed.iter().map(|(due, _)| *due).min()
    }

    /// Whether something failed since this was last asked that makes one doubt that the device is there.
    pub(super) fn take_doubt(&mut self) -> bool {
        std::mem::take(&mut self.doubt)
    }
}

/// A part has come to its end; so has its operation, perhaps.
fn end_part(
    operations: &mut Slab<Running>,
    uncut: &mut VecDeque<usize>,
    index: usize,
    fault: Option<Fault>,
) -> Option<(Operation, Result<(), Fault>)> {
    let running = operations.get_mut(index)?;
    running.parts -= 1;
    if let Some(fault) = fault {
        running.fault.get_or_insert(fault);
        if !running.whole {
            // What has not begun does not begin any more.
            running.whole = true;
            uncut.retain(|uncut| *uncut != index);
        }
    }
    if running.parts > 0 || !running.whole {
        return None;
    }
    let Running { operation, fault, .. } = operations.remove(index);
    Some((operation, fault.map_or(Ok(()), Err)))
}

/// What a result of the ring says.
fn fault(result: i32) -> Option<Fault> {
    match result {
        0 => None,
        ..0 => Some(Fault::System(Errno::from_raw_os_error(result.saturating_neg()))),
        1.. => match u16::try_from(result).map(Status::from_bits) {
            Ok(status) if status.is_success() => None,
            Ok(status) => Some(Fault::Status(status)),
            Err(_) => Some(Fault::Internal),
        },
    }
}
