//! PDUs that are ready for the socket: headers in a buffer of the batch, data where it is.
//!
//! ```text
//!   headers  [ C2HData | C2HData | digest, CapsuleResp, R2T | ... ]
//!   pieces     header, data, header, data, header ...            -> one sendmsg
//! ```
//!
//! Headers that follow each other without data between them are one piece. A batch that the socket
//! took in part is continued, never rebuilt: what has been sent cannot change any more.

use std::ops::Range;

use memory::Segment;
use memory::vectored::{MAX_PIECES, Piece};
use nvme::tcp::crc32c;
use reactor::Instant;
use target::RequestId;

/// Bytes of headers and digests in a batch: 128 bare headers of 24 bytes with digests and room.
const HEADER_BYTES: usize = 8 * 1024;
/// The most that one entry of the send queue adds: a termination request (152 bytes), or a
/// `C2HData` header padded to at most 128 + 4 bytes, a data digest and a `CapsuleResp` with digest.
const ENTRY_BYTES: usize = 192;
/// The most pieces that one entry adds: header, data, digest and response.
const ENTRY_PIECES: usize = 3;
/// Data in a batch: beyond this nothing is added, so that the time a peer may take for a batch
/// means something. It is more than a socket takes at once by default.
const DATA_BYTES: usize = 1024 * 1024;

/// A batch of PDUs.
#[derive(Debug)]
pub(crate) struct Batch {
    headers: Box<[u8]>,
    used: usize,
    pieces: Vec<Part>,
    /// The first piece of which the socket has not taken all, and what it has taken of it.
    first: usize,
    offset: usize,
    /// Requests whose response ends at this many bytes from the batch's start.
    ends: Vec<(usize, RequestId)>,
    /// How many of them have ended.
    ended: usize,
    /// PDUs in it.
    pdus: u64,
    /// Bytes in it, and bytes of it that the socket has taken.
    total: usize,
    sent: usize,
    data: usize,
    since: Instant,
}

#[derive(Debug)]
enum Part {
    Header(Range<usize>),
    Data(Data),
}

/// Data of a request from an offset on.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) segment: Segment,
    pub(crate) request: RequestId,
    pub(crate) offset: u32,
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Part::Header(range) => range.len(),
            Part::Data(data) => data.segment.len(),
        }
    }
}

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            headers: vec![0; HEADER_BYTES].into_boxed_slice(),
            used: 0,
            pieces: Vec::with_capacity(MAX_PIECES),
            first: 0,
            offset: 0,
            ends: Vec::with_capacity(HEADER_BYTES / 24),
            ended: 0,
            pdus: 0,
            total: 0,
            sent: 0,
            data: 0,
            since: Instant::ZERO,
        }
    }
}

impl Batch {
    /// Empties it and ends its loans.
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.ends.clear();
        (self.used, self.pdus, self.total) = (0, 0, 0);
        (self.first, self.offset, self.ended) = (0, 0, 0);
        (self.sent, self.data) = (0, 0);
    }

    /// When it was begun.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Notes when it was begun.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.since = now;
    }

    /// Whether one more entry of the send queue fits, whatever it is.
    pub(crate) fn has_room(&self) -> bool {
        self.used.saturating_add(ENTRY_BYTES) <= HEADER_BYTES
            && self.pieces.len().saturating_add(ENTRY_PIECES) <= MAX_PIECES
            && self.data < DATA_BYTES
    }

    /// Whether nothing is left to send.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent == self.total
    }

    /// Bytes left to send.
    pub(crate) fn left(&self) -> usize {
        self.total.saturating_sub(self.sent)
    }

    /// Whether the socket has taken some of it.
    pub(crate) fn is_begun(&self) -> bool {
        self.sent > 0
    }

    /// PDUs in it.
    pub(crate) fn pdus(&self) -> u64 {
        self.pdus
    }

    /// Adds a PDU's header, with its digest if there are such.
    pub(crate) fn header(&mut self, header: &[u8], digest: bool) {
        self.pdus = self.pdus.saturating_add(1);
        self.bytes(header);
        if digest {
            self.bytes(&crc32c(header).to_le_bytes());
        }
    }

    /// Adds zeroes up to where the data of the PDU begins, `count` of them.
    pub(crate) fn padding(&mut self, count: usize) {
        const ZEROES: [u8; 128] = [0; 128];
        self.bytes(ZEROES.get(..count).unwrap_or(&ZEROES));
    }

    /// Adds data; false if it cannot be read for its digest, which leaves the batch useless.
    #[must_use]
    pub(crate) fn data(&mut self, data: Data, digest: bool) -> bool {
        let segment = &data.segment;
        let digest = if digest { Some(segment.view(crc32c)) } else { None };
        self.total = self.total.saturating_add(segment.len());
        self.data = self.data.saturating_add(segment.len());
        self.pieces.push(Part::Data(data));
        match digest {
            None => true,
            Some(None) => false,
            Some(Some(digest)) => {
                self.bytes(&digest.to_le_bytes());
                true
            }
        }
    }

    /// Adds plain bytes: part of a header, or a digest.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let start = self.used;
        let end = start.saturating_add(bytes.len());
        let Some(room) = self.headers.get_mut(start..end) else { return };
        room.copy_from_slice(bytes);
        self.used = end;
        self.total = self.total.saturating_add(bytes.len());
        if let Some(Part::Header(range)) = self.pieces.last_mut()
            && range.end == start
        {
            range.end = end;
        } else {
            self.pieces.push(Part::Header(start..end));
        }
    }

    /// The response of `request` ends here.
    pub(crate) fn end(&mut self, request: RequestId) {
        self.ends.push((self.total, request));
    }

    /// Those whose response ends in it and is not out.
    pub(crate) fn requests(&self) -> impl Iterator<Item = RequestId> {
        self.ends.iter().skip(self.ended).map(|(_, request)| *request)
    }

    /// Memory that a device has lent and a write waits for. What takes its place has to be the same bytes.
    pub(crate) fn wanted(&mut self) -> impl Iterator<Item = &mut Data> {
        let left = self.pieces.iter_mut().skip(self.first);
        left.filter_map(|part| match part {
            Part::Data(data) if data.segment.is_wanted() => Some(data),
            Part::Data(_) | Part::Header(_) => None,
        })
    }

    /// What is left, in order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let mut skip = self.offset;
        self.pieces.iter().skip(self.first).map(move |part| {
            let offset = std::mem::take(&mut skip);
            match part {
                Part::Header(range) => {
                    let range = range.start.saturating_add(offset)..range.end;
                    Piece::Bytes(self.headers.get(range).unwrap_or(&[]))
                }
                Part::Data(Data { segment, .. }) => {
                    Piece::Part(segment, offset, segment.len().saturating_sub(offset))
                }
            }
        })
    }

    /// The socket has taken `count` bytes more; `ended` is told of every response that is out.
    pub(crate) fn advance(&mut self, count: usize, mut ended: impl FnMut(RequestId)) {
        self.sent = self.sent.saturating_add(count).min(self.total);
        let ends = self.ends.get(self.ended..).unwrap_or(&[]);
        for &(_, request) in ends.iter().take_while(|(at, _)| *at <= self.sent) {
            self.ended += 1;
            ended(request);
        }
        if self.is_sent() {
            // The usual case: it is cleared as a whole.
            return;
        }
        self.offset = self.offset.saturating_add(count);
        while let Some(part) = self.pieces.get_mut(self.first)
            && part.len() <= self.offset
        {
            self.offset -= part.len();
            self.first += 1;
            // Its loan ends with it.
            *part = Part::Header(0..0);
        }
    }
}
