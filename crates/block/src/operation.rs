//! An operation on a range of blocks, and its completion.

use memory::Segment;
use reactor::ring::Segments;

use crate::ErrorKind;

/// The most segments an operation carries.
pub const MAX_SEGMENTS: usize = 4;

const _: () = assert!(reactor::ring::MAX_SEGMENTS >= MAX_SEGMENTS);

/// Names an operation for the one who submitted it; given back with the completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// What is to be done with the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Medium to segments.
    Read,
    /// Segments to medium.
    Write,
    /// Everything completed before this was submitted becomes durable. The range is ignored.
    Flush,
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// The blocks may be deallocated, provided that they then read as zeroes.
        deallocate: bool,
    },
    /// The range is not needed any more; what it reads as is in the device's properties.
    Deallocate,
    /// Are medium and segments equal? If not: [`ErrorKind::Miscompare`].
    Compare,
    /// Can the range be read?
    Verify,
}

/// The memory of an operation: up to [`MAX_SEGMENTS`] segments, in order. Or, of a read, what the device lends.
#[derive(Debug, Clone, Default)]
pub struct Data {
    segments: [Option<Segment>; MAX_SEGMENTS],
    count: usize,
    lent: bool,
}

impl Data {
    /// No memory: flush, write zeroes, deallocate, verify.
    pub fn none() -> Data {
        Data::default()
    }

    /// No memory: a read brings the device's own, of which its [medium](crate::BlockDevice::medium) is.
    pub fn lent() -> Data {
        Data { lent: true, ..Data::default() }
    }

    /// Whether the device is to lend its own.
    pub fn is_lent(&self) -> bool {
        self.lent
    }

    /// Adds a segment at the end; gives it back if there is no room.
    ///
    /// # Errors
    /// The segment, if there are [`MAX_SEGMENTS`] already.
    pub fn push(&mut self, segment: Segment) -> Result<(), Segment> {
        match self.segments.get_mut(self.count) {
            Some(slot) => {
                *slot = Some(segment);
                self.count += 1;
                Ok(())
            }
            None => Err(segment),
        }
    }

    /// The segments in order.
    pub fn iter(&self) -> impl Iterator<Item = &Segment> + Clone {
        self.segments.iter().flatten()
    }

    /// Number of segments.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The memory of `len` bytes from byte `skip`, or of as many as there are, as a ring takes it.
    pub(crate) fn part(&self, mut skip: usize, mut len: usize) -> Segments {
        let mut parts = Segments::default();
        for segment in self.iter() {
            let here = segment.len().saturating_sub(skip).min(len);
            if here > 0
                && let Some(part) = segment.part(skip, here)
            {
                // There is room: a list of the ring is as long as one of an operation.
                let _ = parts.push(part);
            }
            skip = skip.saturating_sub(segment.len());
            len -= here;
        }
        parts
    }

    /// Bytes in all segments.
    pub fn len(&self) -> usize {
        self.iter().map(Segment::len).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Segment> for Data {
    fn from(segment: Segment) -> Data {
        Data { segments: [Some(segment), None, None, None], count: 1, lent: false }
    }
}

/// One thing for a device to do.
#[derive(Debug)]
pub struct Operation {
    /// Comes back with the completion.
    pub token: Token,
    /// What to do.
    pub kind: Kind,
    /// First logical block.
    pub lba: u64,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Where the data is or goes: `blocks` times the block size for read, write and compare.
    pub data: Data,
    /// The operation completes only when what it wrote is durable.
    pub fua: bool,
}

/// The end of an operation. Its memory has been let go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The operation's.
    pub token: Token,
    /// How it ended.
    pub result: Result<(), ErrorKind>,
    /// What was read, if the device was to lend it. Writes of the same blocks wait until it is let go.
    pub lent: Option<Segment>,
}

impl Completion {
    /// The end of an operation that nothing is lent for.
    pub fn new(token: Token, result: Result<(), ErrorKind>) -> Completion {
        Completion { token, result, lent: None }
    }
}
