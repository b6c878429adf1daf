//! The slots of a queue: one per command that may be outstanding. Each has its own piece of memory for data, which is the
//! transport's to keep.
//!
//! A command identifier is the number of its slot and a small count that advances with every use of the slot, so that a
//! completion which comes twice, or late, is recognised instead of ending the slot's next command.

use crate::error::RequestError;
use nvme::Cqe;
use std::collections::VecDeque;

/// Bits of a command identifier that name the slot.
const SLOT_BITS: u32 = 12;
const SLOT_MASK: u16 = (1 << SLOT_BITS) - 1;
/// Most slots of a queue: one less than the bits allow, so that no command identifier is all ones, which stands for "no
/// command" in the error information log.
pub const DEPTH_MAX: u16 = SLOT_MASK;

/// A place for one command, its number below the depth of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotId(pub(crate) u16);

impl SlotId {
    /// The number, to index what the caller keeps per slot.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The data of a command: which way it goes and how many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// No data.
    None,
    /// The controller sends this many bytes.
    Read(u32),
    /// The host sends this many bytes.
    Write(u32),
}

impl Transfer {
    /// Bytes of data.
    pub fn length(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Read(length) | Self::Write(length) => length,
        }
    }
}

/// A command that has ended. Its slot is reserved again: submit the next command in it, or release it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The slot of the command.
    pub slot: SlotId,
    /// The controller's answer; all zero but for the command identifier if the controller answered with the success
    /// flag on the data.
    pub cqe: Cqe,
    /// Bytes of data that came (read) or that the controller fetched (write).
    pub transferred: u32,
    /// The data of a read did not match its digest: what is in the slot is damaged, whatever the status says.
    pub data_digest_error: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Reserved,
    Outstanding,
    /// Answered, but data of it is still to be sent.
    Answered,
}

/// What a queue knows of a slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) state: State,
    pub(crate) transfer: Transfer,
    /// Bytes of data that have moved, or, if written by R2T, that were asked for.
    pub(crate) moved: u32,
    pub(crate) data_digest_error: bool,
    /// Pieces of data in the outgoing stream.
    queued: u32,
    /// How often the slot was used, in the bits of the command identifier above the slot's number.
    usage: u16,
    /// The answer, while the state is `Answered`.
    cqe: Cqe,
}

/// All slots of a queue.
#[derive(Debug)]
pub(crate) struct Slots {
    table: Box<[Slot]>,
    free: Vec<u16>,
    slot_bytes: usize,
    completions: VecDeque<Completion>,
    outstanding: usize,
}

impl Slots {
    /// `depth` slots, cut to [`DEPTH_MAX`], for commands of at most `slot_bytes` of data each.
    pub(crate) fn new(depth: u16, slot_bytes: usize) -> Self {
        let depth = depth.clamp(1, DEPTH_MAX);
        let empty = Slot {
            state: State::Free,
            transfer: Transfer::None,
            moved: 0,
            data_digest_error: false,
            queued: 0,
            usage: 0,
            cqe: Cqe::default(),
        };
        Self {
            table: vec![empty; usize::from(depth)].into(),
            free: (0..depth).rev().collect(),
            slot_bytes,
            completions: VecDeque::with_capacity(usize::from(depth)),
            outstanding: 0,
        }
    }

    pub(crate) fn depth(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    pub(crate) fn reserve(&mut self) -> Option<SlotId> {
        let number = self.free.pop()?;
        if let Some(slot) = self.table.get_mut(usize::from(number)) {
            slot.state = State::Reserved;
        }
        Some(SlotId(number))
    }

    pub(crate) fn release(&mut self, id: SlotId) {
        if let Some(slot) = self.table.get_mut(id.index())
            && slot.state == State::Reserved
        {
            slot.state = State::Free;
            self.free.push(id.0);
        }
    }

    /// Whether the slot is the caller's.
    pub(crate) fn is_reserved(&self, id: SlotId) -> bool {
        matches!(self.table.get(id.index()), Some(Slot { state: State::Reserved, .. }))
    }

    /// Takes a reserved slot for a command and returns the command identifier.
    pub(crate) fn begin(&mut self, id: SlotId, transfer: Transfer) -> Result<u16, RequestError> {
        let limit = self.slot_bytes;
        let asked = usize::try_from(transfer.length()).unwrap_or(usize::MAX);
        let slot = self
            .table
            .get_mut(id.index())
            .filter(|slot| slot.state == State::Reserved)
            .ok_or(RequestError::Slot(id.0))?;
        if asked > limit {
            return Err(RequestError::TooLong { asked, limit });
        }
        slot.state = State::Outstanding;
        slot.transfer = transfer;
        slot.moved = 0;
        slot.data_digest_error = false;
        slot.usage = slot.usage.wrapping_add(1 << SLOT_BITS);
        self.outstanding += 1;
        Ok(id.0 | slot.usage)
    }

    /// Notes that a piece of the slot's data was put into the outgoing stream.
    pub(crate) fn data_queued(&mut self, id: SlotId) {
        if let Some(slot) = self.table.get_mut(id.index()) {
            slot.queued += 1;
        }
    }

    /// Notes that a piece of the slot's data has left.
    pub(crate) fn data_sent(&mut self, id: SlotId) {
        let Some(slot) = self.table.get_mut(id.index()) else {
            return;
        };
        slot.queued = slot.queued.saturating_sub(1);
        if slot.queued == 0 && slot.state == State::Answered {
            let cqe = slot.cqe;
            self.finish(id, cqe);
        }
    }

    /// The slot whose outstanding command has this identifier.
    pub(crate) fn find(&mut self, cid: u16) -> Option<(SlotId, &mut Slot)> {
        let number = cid & SLOT_MASK;
        let slot = self.table.get_mut(usize::from(number))?;
        (slot.state == State::Outstanding && slot.usage == cid & !SLOT_MASK)
            .then_some((SlotId(number), slot))
    }

    /// Ends an outstanding command; it shows as completed once none of its data is still to be sent.
    pub(crate) fn complete(&mut self, id: SlotId, cqe: Cqe) {
        let Some(slot) = self.table.get_mut(id.index()) else {
            return;
        };
        if slot.queued == 0 {
            self.finish(id, cqe);
        } else {
            slot.cqe = cqe;
            slot.state = State::Answered;
        }
    }

    fn finish(&mut self, id: SlotId, cqe: Cqe) {
        if let Some(slot) = self.table.get_mut(id.index()) {
            slot.state = State::Reserved;
            self.outstanding -= 1;
            self.completions.push_back(Completion {
                slot: id,
                cqe,
                transferred: slot.moved,
                data_digest_error: slot.data_digest_error,
            });
        }
    }

    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// The completion of one slot, out of turn.
    pub(crate) fn take_completion(&mut self, id: SlotId) -> Option<Completion> {
        let at = self.completions.iter().position(|completion| completion.slot == id)?;
        self.completions.remove(at)
    }
}
