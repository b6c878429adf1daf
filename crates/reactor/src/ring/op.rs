//! What can be asked of the ring, as types that own everything the kernel will touch.

use memory::{DeviceWrite, Segment};
use rustix::fs::FallocateFlags;

use super::files::RingFile;

/// The most segments in one operation: a 1 MiB command in 256 KiB pieces.
pub const MAX_SEGMENTS: usize = 4;

/// A scatter list of up to [`MAX_SEGMENTS`] segments, without a heap allocation.
#[derive(Debug, Clone, Default)]
pub struct Segments {
    list: [Option<Segment>; MAX_SEGMENTS],
}

impl Segments {
    /// Appends a segment.
    ///
    /// # Errors
    /// The segment if the list is full.
    pub fn push(&mut self, segment: Segment) -> Result<(), Segment> {
        match self.list.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => {
                *slot = Some(segment);
                Ok(())
            }
            None => Err(segment),
        }
    }

    /// The segments in order.
    pub fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.list.iter().flatten()
    }

    /// The bytes of all segments together.
    pub fn bytes(&self) -> usize {
        self.iter().map(Segment::len).sum()
    }
}

impl From<Segment> for Segments {
    fn from(segment: Segment) -> Segments {
        Segments { list: [Some(segment), None, None, None] }
    }
}

/// One operation.
#[derive(Debug)]
pub enum Op {
    /// Reads from the file into the segments. Result: bytes read, fewer than asked for at the end of
    /// the file or by the kernel's choice.
    Read {
        /// Where to read.
        file: RingFile,
        /// Where to put the bytes.
        data: Segments,
        /// The first byte in the file.
        offset: u64,
    },
    /// Writes the segments to the file. Result: bytes written.
    Write {
        /// Where to write.
        file: RingFile,
        /// The bytes.
        data: Segments,
        /// The first byte in the file.
        offset: u64,
        /// Finishes only when the bytes are on the medium (`RWF_DSYNC`).
        dsync: bool,
    },
    /// Makes everything written so far durable. Result: 0.
    Fsync {
        /// Which file.
        file: RingFile,
        /// The data and what is needed to read it back, but no further metadata (`fdatasync`).
        datasync: bool,
    },
    /// Allocates, zeroes or punches out a range. Result: 0. Only with [`super::Features::FALLOCATE`].
    Fallocate {
        /// Which file.
        file: RingFile,
        /// What to do with the range.
        mode: FallocateFlags,
        /// Its first byte.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
}

/// One element of a scatter list as the kernel reads it: `struct iovec`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct IoVec {
    pub(super) base: *mut u8,
    pub(super) len: usize,
}

impl IoVec {
    pub(super) const EMPTY: IoVec = IoVec { base: std::ptr::null_mut(), len: 0 };
}

/// The leave to write to segments: while it is held, nobody looks at the bytes that the kernel may
/// be writing.
#[derive(Debug, Default)]
pub(super) struct Writes {
    _segments: [Option<DeviceWrite>; MAX_SEGMENTS],
}

impl Writes {
    /// `None` if somebody is looking into one of them.
    pub(super) fn to(segments: &Segments) -> Option<Writes> {
        let mut writes = [const { None }; MAX_SEGMENTS];
        for (write, segment) in writes.iter_mut().zip(segments.iter()) {
            *write = Some(segment.clone().device_write()?);
        }
        Some(Writes { _segments: writes })
    }
}

/// An operation that the kernel may be working on, with the leave to write it needs.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) op: Op,
    _writes: Writes,
}

impl Held {
    /// Takes the operation over.
    ///
    /// # Errors
    /// The operation, if it would write to a buffer that somebody is looking into.
    #[expect(clippy::result_large_err, reason = "a refused operation goes back to its owner")]
    pub(super) fn new(op: Op) -> Result<Held, Op> {
        let writes = match &op {
            Op::Read { data, .. } => Writes::to(data),
            _ => Some(Writes::default()),
        };
        match writes {
            Some(writes) => Ok(Held { op, _writes: writes }),
            None => Err(op),
        }
    }
}
