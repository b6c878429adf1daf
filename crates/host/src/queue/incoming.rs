//! The bytes that a queue has received and not taken in yet, and where those that come next belong: PDUs one after
//! another, their data on its way to the slots.
//!
//! Data of a read is copied once, from the input buffer to the slot, if it arrived together with other PDUs; the rest of a
//! PDU whose beginning is known is read straight into the slot. What a PDU means is the [`Machine`](super::Machine)'s concern.

use super::data::Data;
use super::slots::{SlotId, Slots};
use super::violation::Violation;
use crate::error::ProtocolError;
use nvme::tcp::{
    CommonHeader, DIGEST_LENGTH, FatalErrorStatus, Flags, HEADER_MAX, Layout, Rules, crc32c,
};
use zerocopy::FromBytes;

/// Longest header with its digest.
const HEADER_AND_DIGEST: usize = HEADER_MAX + 4;
/// Rest of a PDU's data from which it is read past the input buffer, straight into the slot.
const DIRECT_MIN: u32 = 4096;

/// What has arrived in full.
pub(crate) enum Arrival {
    /// A header that obeys the rules and its digest, still at the head of the input: [`Incoming::take_header`].
    Header(Layout),
    /// All data of a PDU.
    Payload(Payload),
}

/// The data of a C2HData: padding, then data, then perhaps a digest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payload {
    pub(crate) slot: SlotId,
    pub(crate) cid: u16,
    /// With it the command succeeds.
    pub(crate) success: bool,
    padding: u32,
    /// Where in the slot the PDU's data begins.
    offset: u32,
    length: u32,
    got: u32,
    digest: bool,
}

impl Payload {
    pub(crate) fn new(layout: &Layout, slot: SlotId, cid: u16, offset: u32, length: u32) -> Self {
        let header_end =
            layout.header_length + if layout.header_digest { DIGEST_LENGTH } else { 0 };
        Self {
            slot,
            cid,
            success: layout.flags.contains(Flags::SUCCESS),
            padding: layout.data_offset - header_end,
            offset,
            length,
            got: 0,
            digest: layout.data_digest,
        }
    }

    fn rest(&self) -> u32 {
        self.length - self.got
    }

    /// Bytes that go straight into the slot.
    fn direct(&self) -> u32 {
        if self.padding == 0 && self.rest() >= DIRECT_MIN { self.rest() } else { 0 }
    }
}

#[derive(Debug)]
pub(crate) struct Incoming {
    input: Box<[u8]>,
    start: usize,
    end: usize,
    /// What the next byte belongs to, if not to a header.
    payload: Option<Payload>,
}

impl Incoming {
    /// Room for what a whole queue of small reads brings at once; for large reads only for what separates their
    /// data, which is read past the buffer.
    pub(crate) fn new(depth: usize, slot_bytes: usize) -> Self {
        const SMALL: usize = 16 * 1024;
        const LIMIT: usize = 256 * 1024;
        let all = depth * (slot_bytes.min(SMALL) + HEADER_AND_DIGEST);
        let bytes = if slot_bytes > SMALL { SMALL } else { all.clamp(SMALL, LIMIT) };
        Self { input: vec![0; bytes].into(), start: 0, end: 0, payload: None }
    }

    /// Where the next bytes of the stream belong: first, if not empty, a part of a slot, then the buffer.
    pub(crate) fn space<'a>(&'a mut self, data: &'a mut Data) -> (&'a mut [u8], &'a mut [u8]) {
        let direct: &mut [u8] = match self.payload {
            Some(payload) if payload.direct() > 0 => {
                data.part_mut(payload.slot, payload.offset + payload.got, payload.direct())
            }
            _ => &mut [],
        };
        (direct, self.input.get_mut(self.end..).unwrap_or_default())
    }

    /// `count` bytes were put where [`Incoming::space`] said.
    pub(crate) fn received(&mut self, mut count: usize) {
        if let Some(payload) = &mut self.payload {
            let direct = count.min(usize::try_from(payload.direct()).unwrap_or(usize::MAX));
            payload.got += u32::try_from(direct).unwrap_or(u32::MAX);
            count -= direct;
        }
        self.end = (self.end + count).min(self.input.len());
    }

    /// What has been received and not taken in.
    pub(crate) fn pending(&self) -> &[u8] {
        self.input.get(self.start..self.end).unwrap_or_default()
    }

    /// Forgets it.
    pub(crate) fn discard(&mut self) {
        self.start = self.end;
    }

    /// The next thing that is there in full; `None` if more bytes are needed.
    pub(crate) fn next(
        &mut self,
        rules: &Rules,
        slots: &mut Slots,
        data: &mut Data,
    ) -> Result<Option<Arrival>, Violation> {
        match self.payload {
            None => Ok(self.header(rules)?.map(Arrival::Header)),
            Some(payload) => Ok(self.take_payload(payload, slots, data).map(Arrival::Payload)),
        }
    }

    fn header(&self, rules: &Rules) -> Result<Option<Layout>, Violation> {
        let input = self.pending();
        let Ok((common, _)) = CommonHeader::ref_from_prefix(input) else {
            return Ok(None);
        };
        let layout = common.check(rules).map_err(|error| Violation {
            error: ProtocolError::Header(error),
            status: error.status(),
            information: error.field_offset(),
        })?;
        let Some((header, rest)) = input.split_at_checked(header_length(&layout)) else {
            return Ok(None);
        };
        if layout.header_digest {
            let Some(received) = rest.first_chunk::<4>() else {
                return Ok(None);
            };
            let received = u32::from_le_bytes(*received);
            if crc32c(header) != received {
                return Err(Violation {
                    error: ProtocolError::HeaderDigest { pdu: layout.pdu_type },
                    status: FatalErrorStatus::HeaderDigest,
                    information: received,
                });
            }
        }
        Ok(Some(layout))
    }

    /// The header at the head of the input, all of which is there.
    pub(crate) fn parse<T: FromBytes + Default>(&self) -> T {
        T::read_from_prefix(self.pending()).map_or_else(|_| T::default(), |(value, _)| value)
    }

    /// The header at the head of the input is done with; this follows it.
    pub(crate) fn take_header(&mut self, layout: &Layout, payload: Option<Payload>) {
        self.start += header_length(layout) + if layout.header_digest { 4 } else { 0 };
        self.payload = payload;
    }

    /// Takes in the part of a PDU's data that is here. The payload, if that was all of it.
    fn take_payload(
        &mut self,
        mut payload: Payload,
        slots: &mut Slots,
        data: &mut Data,
    ) -> Option<Payload> {
        let input = self.input.get(self.start..self.end).unwrap_or_default();
        let skipped = payload.padding.min(u32::try_from(input.len()).unwrap_or(u32::MAX));
        let (_, input) = input.split_at(usize::try_from(skipped).unwrap_or(0));
        payload.padding -= skipped;

        let here = payload.rest().min(u32::try_from(input.len()).unwrap_or(u32::MAX));
        let (bytes, input) = input.split_at(usize::try_from(here).unwrap_or(0));
        let place = data.part_mut(payload.slot, payload.offset + payload.got, here);
        if place.len() == bytes.len() {
            place.copy_from_slice(bytes);
        }
        payload.got += here;
        self.start += bytes.len() + usize::try_from(skipped).unwrap_or(0);
        self.payload = Some(payload);
        if payload.rest() > 0 || payload.padding > 0 {
            return None;
        }
        if payload.digest {
            let digest = input.first_chunk::<4>()?;
            self.start += digest.len();
            let whole = data.part_mut(payload.slot, payload.offset, payload.length);
            // A data digest error concerns one command, not the connection (NVMe/TCP, section 3.5.2).
            if crc32c(whole) != u32::from_le_bytes(*digest)
                && let Some((_, state)) = slots.find(payload.cid)
            {
                state.data_digest_error = true;
            }
        }
        self.payload = None;
        Some(payload)
    }

    /// Makes room behind the bytes that could not be taken in yet, which are less than one header.
    pub(crate) fn keep_rest(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }
}

fn header_length(layout: &Layout) -> usize {
    usize::try_from(layout.header_length).unwrap_or(HEADER_MAX)
}
