//! Where arriving bytes go.
//!
//! Headers and capsules land in a receive buffer, which is borrowed while it holds part of a PDU.
//! The data of an `H2CData` goes straight into the request's buffer: what came along with its
//! header is copied, the rest is read from the socket in one call with what follows it,
//!
//! ```text
//!   readv( [ rest of the data -> request's buffer ][ next PDUs -> receive buffer ] )
//! ```

use memory::Segment;
use memory::vectored::Space;

use crate::buffers::Buffers;

/// The receive buffer, and the data that is arriving for a request.
#[derive(Debug, Default)]
pub(crate) struct Input {
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    arriving: Option<Arriving>,
}

/// The data of one `H2CData`.
#[derive(Debug)]
pub(crate) struct Arriving {
    /// The transfer it belongs to.
    pub(crate) ttag: u16,
    /// Where it goes; `None`: the request is gone, and the data is thrown away.
    pub(crate) into: Option<Segment>,
    /// Bytes of it in all.
    pub(crate) length: usize,
    /// Bytes that have come.
    pub(crate) done: usize,
    /// A digest follows.
    pub(crate) digest: bool,
}

impl Arriving {
    fn left(&self) -> usize {
        self.length.saturating_sub(self.done)
    }
}

impl Input {
    /// The bytes that lie in the receive buffer.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.as_deref().and_then(|buffer| buffer.get(self.start..self.end)).unwrap_or(&[])
    }

    /// Whether nothing has come of the next PDU.
    pub(crate) fn at_boundary(&self) -> bool {
        self.start == self.end && self.arriving.is_none()
    }

    /// Drops `count` bytes from the front.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    /// Drops everything, also what was to go to a request.
    pub(crate) fn discard(&mut self) {
        self.start = self.end;
        self.arriving = None;
    }

    /// Returns the receive buffer if nothing is in it.
    pub(crate) fn rest(&mut self, buffers: &mut Buffers) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if let Some(buffer) = self.buffer.take() {
                buffers.give_receive(buffer);
            }
        }
    }

    /// From here on bytes are data for a request.
    pub(crate) fn begin_data(&mut self, arriving: Arriving) {
        self.arriving = Some(arriving);
    }

    /// Whether data for a request is arriving.
    pub(crate) fn has_data(&self) -> bool {
        self.arriving.is_some()
    }

    /// Moves what has come of the data out of the receive buffer. `Some((data, copied))` once all
    /// of it is there.
    pub(crate) fn take_data(&mut self) -> (Option<Arriving>, usize) {
        let Some(arriving) = &mut self.arriving else { return (None, 0) };
        let bytes = self
            .buffer
            .as_deref()
            .and_then(|buffer| buffer.get(self.start..self.end))
            .unwrap_or(&[]);
        let count = arriving.left().min(bytes.len());
        let mut copied = 0;
        if let (Some(segment), Some(bytes)) = (&arriving.into, bytes.get(..count)) {
            copied = segment.copy_from(arriving.done, bytes);
        }
        arriving.done = arriving.done.saturating_add(count);
        let complete = arriving.left() == 0;
        self.start = self.start.saturating_add(count).min(self.end);
        (if complete { self.arriving.take() } else { None }, copied)
    }

    /// Where the next bytes from the socket go, in order.
    pub(crate) fn spaces(&mut self, buffers: &mut Buffers) -> (Option<Space<'_>>, Space<'_>) {
        let buffer = self.buffer.get_or_insert_with(|| buffers.take_receive());
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 && self.end.saturating_mul(2) > buffer.len() {
            buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let direct = self.arriving.as_ref().and_then(|arriving| {
            let segment = arriving.into.as_ref()?;
            (self.end == 0 && arriving.left() > 0)
                .then(|| Space::Part(segment, arriving.done, arriving.left()))
        });
        (direct, Space::Bytes(buffer.get_mut(self.end..).unwrap_or(&mut [])))
    }

    /// Takes note of `count` bytes that were put into the spaces.
    pub(crate) fn filled(&mut self, count: usize) {
        let mut direct = 0;
        if let Some(arriving) = &mut self.arriving
            && arriving.into.is_some()
            && self.end == 0
        {
            direct = arriving.left().min(count);
            arriving.done = arriving.done.saturating_add(direct);
        }
        let buffered = count.saturating_sub(direct);
        let len = self.buffer.as_deref().map_or(0, <[u8]>::len);
        self.end = self.end.saturating_add(buffered).min(len);
    }
}
