//! The memory of a queue's slots where it is the host's alone: bytes that are copied into and out of a socket.

use super::slots::SlotId;
use std::collections::TryReserveError;

/// A piece of memory for each slot.
#[derive(Debug)]
pub(crate) struct Data {
    bytes: Box<[u8]>,
    slot_bytes: usize,
}

impl Data {
    /// `depth` pieces of `slot_bytes` each. It is what a queue needs most memory for: not to have it is an error.
    pub(crate) fn new(depth: usize, slot_bytes: usize) -> Result<Self, TryReserveError> {
        let all = depth.saturating_mul(slot_bytes);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(all)?;
        bytes.resize(all, 0);
        Ok(Self { bytes: bytes.into(), slot_bytes })
    }

    /// The memory of a slot.
    pub(crate) fn of(&self, id: SlotId) -> &[u8] {
        let start = id.index() * self.slot_bytes;
        self.bytes.get(start..start + self.slot_bytes).unwrap_or_default()
    }

    /// The memory of a slot, to be changed.
    pub(crate) fn of_mut(&mut self, id: SlotId) -> &mut [u8] {
        let start = id.index() * self.slot_bytes;
        self.bytes.get_mut(start..start + self.slot_bytes).unwrap_or_default()
    }

    /// Part of the memory of a slot, empty if there is no such part.
    pub(crate) fn part_mut(&mut self, id: SlotId, offset: u32, length: u32) -> &mut [u8] {
        let range = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(length).ok())
            .and_then(|(offset, length)| Some(offset..offset.checked_add(length)?));
        range.and_then(|range| self.of_mut(id).get_mut(range)).unwrap_or_default()
    }
}
