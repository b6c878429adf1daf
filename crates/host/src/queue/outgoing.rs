//! The bytes that a queue has yet to send, in order: headers and digests, which are copied into one staging
//! buffer, and data, which stays in the slots until the kernel takes it.
//!
//! Headers of commands without data follow one another in the staging buffer, so a batch of reads is one slice and
//! one `send`. Nothing is allocated once both containers have grown to what the depth of the queue asks for.

use super::data::Data;
use super::slots::{SlotId, Slots};
use nvme::tcp::{CommonHeader, Flags, crc32c};
use std::collections::VecDeque;
use std::io::IoSlice;

#[derive(Debug, Clone, Copy)]
enum Source {
    Staged,
    Slot(SlotId),
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    source: Source,
    /// First byte within the staging buffer or the slot.
    offset: usize,
    length: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    staged: Vec<u8>,
    segments: VecDeque<Segment>,
    bytes: usize,
}

impl Outgoing {
    pub(crate) fn with_capacity(staged: usize, segments: usize) -> Self {
        Self {
            staged: Vec::with_capacity(staged),
            segments: VecDeque::with_capacity(segments),
            bytes: 0,
        }
    }

    /// Whether nothing is left to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends a copy of `bytes`.
    pub(crate) fn stage(&mut self, bytes: &[u8]) {
        if self.staged.len() + bytes.len() > self.staged.capacity() {
            self.compact();
        }
        let offset = self.staged.len();
        self.staged.extend_from_slice(bytes);
        self.bytes += bytes.len();
        match self.segments.back_mut() {
            // Staged bytes are contiguous, so what follows staged bytes extends them.
            Some(Segment { source: Source::Staged, length, .. }) => *length += bytes.len(),
            _ => self.segments.push_back(Segment {
                source: Source::Staged,
                offset,
                length: bytes.len(),
            }),
        }
    }

    /// Appends a copy of a header, with its digest and, if data follows, its padding.
    pub(crate) fn header(&mut self, common: CommonHeader, bytes: &[u8]) {
        self.stage(bytes);
        let mut length = bytes.len();
        if common.flags().contains(Flags::HEADER_DIGEST) {
            self.stage(&crc32c(bytes).to_le_bytes());
            length += 4;
        }
        let padding = usize::from(common.pdo).saturating_sub(length);
        if padding > 0 {
            self.stage([0; 128].get(..padding).unwrap_or_default());
        }
    }

    /// Appends part of the data of a slot, which must hold it until it is sent; with its digest, if asked for.
    pub(crate) fn data(
        &mut self,
        (slots, data): (&mut Slots, &mut Data),
        slot: SlotId,
        offset: u32,
        length: u32,
        digest: bool,
    ) {
        let digest = digest.then(|| crc32c(data.part_mut(slot, offset, length)).to_le_bytes());
        slots.data_queued(slot);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.bytes += length;
        self.segments.push_back(Segment { source: Source::Slot(slot), offset, length });
        if let Some(digest) = digest {
            self.stage(&digest);
        }
    }

    /// Slices that it takes to send everything.
    pub(crate) fn slice_count(&self) -> usize {
        self.segments.len()
    }

    /// Fills `slices` with the first bytes to send and says how many slices that are.
    pub(crate) fn slices<'a>(&'a self, data: &'a Data, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slice, segment) in slices.iter_mut().zip(&self.segments) {
            let whole = match segment.source {
                Source::Staged => self.staged.as_slice(),
                Source::Slot(slot) => data.of(slot),
            };
            let end = segment.offset + segment.length;
            *slice = IoSlice::new(whole.get(segment.offset..end).unwrap_or_default());
            count += 1;
        }
        count
    }

    /// Forgets the first `count` bytes, which have been sent; tells `slots` of every piece of their data that is out.
    pub(crate) fn sent(&mut self, mut count: usize, slots: &mut Slots) {
        self.bytes = self.bytes.saturating_sub(count);
        while let Some(segment) = self.segments.front_mut() {
            if count < segment.length {
                segment.offset += count;
                segment.length -= count;
                return;
            }
            count -= segment.length;
            if let Source::Slot(slot) = segment.source {
                slots.data_sent(slot);
            }
            self.segments.pop_front();
        }
        self.staged.clear();
    }

    /// Moves the staged bytes that are still to be sent to the front of the staging buffer.
    fn compact(&mut self) {
        let first = self
            .segments
            .iter()
            .find(|segment| matches!(segment.source, Source::Staged))
            .map_or(self.staged.len(), |segment| segment.offset);
        self.staged.drain(..first);
        for segment in &mut self.segments {
            if matches!(segment.source, Source::Staged) {
                segment.offset -= first;
            }
        }
    }
}
