//! A queue of an NVMe/TCP host without its socket: commands and bytes in, bytes and completions out.
//!
//! One thread owns a machine. It neither sleeps nor knows the time, so tests drive it with bytes split at any place.
//! The order of calls is: [`Machine::slices`] and [`Machine::sent`] while there is something to send;
//! [`Machine::space`] and [`Machine::received`] when something arrived; [`Machine::next_completion`] until it is empty.
//!
//! Data of a read is copied once, from the input buffer to the slot, if it arrived together with other PDUs; the rest of a PDU
//! whose beginning is known is read straight into the slot. Data of a write is never copied.
//!
//! Submission queue flow control needs no bookkeeping here: at most as many commands are outstanding as the submission
//! queue has room for, a command the controller has not yet consumed is outstanding, so the submission queue cannot
//! overflow whatever SQHD says. This is also why a controller may answer with the success flag, which carries no SQHD.

use super::outgoing::Outgoing;
use super::slots::{Completion, SlotId, Slots, Transfer};
use crate::error::{ProtocolError, RequestError};
use nvme::tcp::{
    ALIGNMENT_MAX, C2hData, CapsuleCmd, CapsuleResp, CommonHeader, DIGEST_LENGTH, DigestFlags,
    FatalErrorStatus, Flags, H2cData, HEADER_MAX, IcReq, IcResp, Layout, MAXH2CDATA_MIN, PFV,
    PduType, R2t, Receiver, Rules, TermReq, Termination, crc32c,
};
use nvme::{Cqe, Sgl, Sqe, Status};
use std::io::IoSlice;
use zerocopy::{FromBytes, IntoBytes};

/// Longest header with its digest.
const HEADER_AND_DIGEST: usize = HEADER_MAX + 4;
/// Rest of a PDU's data from which it is read past the input buffer, straight into the slot.
const DIRECT_MIN: u32 = 4096;
/// Data that every controller takes in the capsule of an admin or fabrics command.
const ADMIN_IN_CAPSULE: u32 = 8192;

/// What a machine is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Commands outstanding at most, 1..=[`DEPTH_MAX`](super::DEPTH_MAX).
    pub depth: u16,
    /// Bytes of data of one command at most.
    pub slot_bytes: u32,
    /// Bytes of data that an I/O command's capsule may carry; beyond it data waits for R2T. Fabrics commands carry up to 8 KiB in any case.
    pub in_capsule: u32,
    /// Ask for header digests.
    pub header_digest: bool,
    /// Ask for data digests.
    pub data_digest: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// ICReq is sent or to be sent; ICResp is awaited.
    Greeting,
    Open,
    Ended,
}

/// Where in the stream of PDUs the next byte belongs.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Header,
    /// Padding, then data, then perhaps a digest of the PDU that `C2hData` began.
    Payload(Payload),
}

#[derive(Debug, Clone, Copy)]
struct Payload {
    slot: SlotId,
    cid: u16,
    padding: u32,
    /// Where in the slot the PDU's data begins.
    offset: u32,
    length: u32,
    got: u32,
    digest: bool,
    last: bool,
    success: bool,
}

/// See the module's description.
#[derive(Debug)]
pub struct Machine {
    slots: Slots,
    outgoing: Outgoing,
    input: Box<[u8]>,
    start: usize,
    end: usize,
    phase: Phase,
    stage: Stage,
    settings: Settings,
    rules: Rules,
    /// Digest flags of PDUs without and with data.
    header_flags: Flags,
    data_flags: Flags,
    cpda: u8,
    max_h2c_data: u32,
}

/// A PDU that ends the connection: what to say to the caller, and to the controller.
struct Violation {
    error: ProtocolError,
    status: FatalErrorStatus,
    information: u32,
}

impl Machine {
    /// A machine that has its ICReq ready to send.
    pub fn new(settings: Settings) -> Self {
        let slot_bytes = usize::try_from(settings.slot_bytes).unwrap_or(usize::MAX);
        let slots = Slots::new(settings.depth, slot_bytes);
        let mut digests = DigestFlags::empty();
        digests.set(DigestFlags::HEADER, settings.header_digest);
        digests.set(DigestFlags::DATA, settings.data_digest);
        // Per command: one capsule header, one H2CData header, two digests each.
        let depth = slots.depth();
        let mut outgoing =
            Outgoing::with_capacity(depth * 128 + IcReq::default().as_bytes().len(), depth * 4);
        outgoing.stage(IcReq::new(0, digests, 0).as_bytes());
        Self {
            input: vec![0; input_bytes(depth, slot_bytes)].into(),
            slots,
            outgoing,
            start: 0,
            end: 0,
            phase: Phase::Header,
            stage: Stage::Greeting,
            settings,
            rules: Rules {
                receiver: Receiver::Host,
                header_digest: false,
                data_digest: false,
                alignment: 0,
                max_capsule_data: 0,
                max_data: settings.slot_bytes,
            },
            header_flags: Flags::empty(),
            data_flags: Flags::empty(),
            cpda: 0,
            max_h2c_data: MAXH2CDATA_MIN,
        }
    }

    /// Whether the connection is initialised: commands may be submitted.
    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Digests that the controller granted: of headers, of data.
    pub fn digests(&self) -> (bool, bool) {
        (self.rules.header_digest, self.rules.data_digest)
    }

    /// Most bytes of one H2CData that the controller takes (MAXH2CDATA).
    pub fn max_h2c_data(&self) -> u32 {
        self.max_h2c_data
    }

    /// Commands submitted and not completed.
    pub fn outstanding(&self) -> usize {
        self.slots.outstanding()
    }

    /// A free slot, now the caller's; `None` if all are in use.
    pub fn reserve(&mut self) -> Option<SlotId> {
        self.slots.reserve()
    }

    /// Gives a reserved slot back.
    pub fn release(&mut self, slot: SlotId) {
        self.slots.release(slot);
    }

    /// The memory of a slot: what a read brought.
    pub fn data(&self, slot: SlotId) -> &[u8] {
        self.slots.data(slot)
    }

    /// The memory of a reserved slot: what a write will send. Empty while a command is using the slot.
    pub fn data_mut(&mut self, slot: SlotId) -> &mut [u8] {
        self.slots.reserved_data_mut(slot)
    }

    /// The next command that ended.
    pub fn next_completion(&mut self) -> Option<Completion> {
        self.slots.next_completion()
    }

    /// The completion of this slot's command, if it has ended, ahead of the others.
    pub fn take_completion(&mut self, slot: SlotId) -> Option<Completion> {
        self.slots.take_completion(slot)
    }

    /// Puts a command into a reserved slot. Command identifier and data pointer of `sqe` are set here.
    pub fn submit(
        &mut self,
        slot: SlotId,
        mut sqe: Sqe,
        transfer: Transfer,
    ) -> Result<(), RequestError> {
        if self.stage != Stage::Open {
            return Err(RequestError::Ended);
        }
        let cid = self.slots.begin(slot, transfer)?;
        sqe.cid = cid.into();
        let limit = if sqe.is_fabrics() { ADMIN_IN_CAPSULE } else { self.settings.in_capsule };
        let in_capsule = match transfer {
            Transfer::Write(length) if length <= limit => length,
            _ => 0,
        };
        sqe.dptr = if in_capsule > 0 {
            Sgl::InCapsule { offset: 0, length: in_capsule }
        } else {
            Sgl::TransportData { length: transfer.length() }
        }
        .into();
        let flags = if in_capsule > 0 { self.data_flags } else { self.header_flags };
        let capsule = CapsuleCmd::new(sqe, flags, self.cpda, in_capsule);
        self.stage_header(capsule.header, capsule.as_bytes());
        if in_capsule > 0 {
            if let Some((_, state)) = self.slots.find(cid) {
                state.moved = in_capsule;
            }
            self.stage_data(slot, 0, in_capsule);
        }
        Ok(())
    }

    /// Whether there is something to send.
    pub fn wants_to_send(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Slices that it takes to send everything.
    pub fn slice_count(&self) -> usize {
        self.outgoing.slice_count()
    }

    /// The first bytes to send, as slices; how many.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.outgoing.slices(&self.slots, slices)
    }

    /// The first `count` bytes of what was to be sent have been.
    pub fn sent(&mut self, count: usize) {
        self.outgoing.sent(count, &mut self.slots);
    }

    /// Where the next bytes of the stream belong: the first part (which may be empty) must be filled before any goes into the second.
    pub fn space(&mut self) -> (&mut [u8], &mut [u8]) {
        let direct: &mut [u8] = match self.phase {
            Phase::Payload(payload) if payload.padding == 0 && payload.rest() >= DIRECT_MIN => {
                self.slots.part_mut(payload.slot, payload.offset + payload.got, payload.rest())
            }
            _ => &mut [],
        };
        (direct, self.input.get_mut(self.end..).unwrap_or_default())
    }

    /// `count` bytes were put where [`Machine::space`] said. After an error the connection is over: send what is still to be
    /// sent, which is the termination request, and close.
    pub fn received(&mut self, count: usize) -> Result<(), ProtocolError> {
        let mut count = count;
        if let Phase::Payload(payload) = &mut self.phase
            && payload.padding == 0
            && payload.rest() >= DIRECT_MIN
        {
            let direct = count.min(usize::try_from(payload.rest()).unwrap_or(usize::MAX));
            payload.got += u32::try_from(direct).unwrap_or(u32::MAX);
            count -= direct;
        }
        self.end = (self.end + count).min(self.input.len());
        if self.stage == Stage::Ended {
            self.start = self.end;
            return Ok(());
        }
        while self.step()? {}
        self.keep_rest();
        Ok(())
    }

    /// Takes in one PDU's header, or the part of its data that is here. False: more bytes are needed.
    fn step(&mut self) -> Result<bool, ProtocolError> {
        match self.phase {
            Phase::Header => self.header(),
            Phase::Payload(payload) => Ok(self.payload(payload)),
        }
    }

    fn header(&mut self) -> Result<bool, ProtocolError> {
        let input = self.input.get(self.start..self.end).unwrap_or_default();
        let Ok((common, _)) = CommonHeader::ref_from_prefix(input) else {
            return Ok(false);
        };
        let layout = match common.check(&self.rules) {
            Ok(layout) => layout,
            Err(error) => {
                let violation = Violation {
                    error: ProtocolError::Header(error),
                    status: error.status(),
                    information: error.field_offset(),
                };
                return Err(self.end_with(&violation));
            }
        };
        let length = usize::try_from(layout.header_length).unwrap_or(HEADER_MAX);
        let digest = if layout.header_digest { 4 } else { 0 };
        let Some((header, rest)) = input.split_at_checked(length) else {
            return Ok(false);
        };
        if layout.header_digest {
            let Some(received) = rest.first_chunk::<4>() else {
                return Ok(false);
            };
            let received = u32::from_le_bytes(*received);
            if crc32c(header) != received {
                let violation = Violation {
                    error: ProtocolError::HeaderDigest { pdu: layout.pdu_type },
                    status: FatalErrorStatus::HeaderDigest,
                    information: received,
                };
                return Err(self.end_with(&violation));
            }
        }
        match self.pdu(&layout) {
            Ok(phase) => {
                self.start += length + digest;
                self.phase = phase;
                Ok(true)
            }
            Err(violation) => Err(self.end_with(&violation)),
        }
    }

    fn pdu(&mut self, layout: &Layout) -> Result<Phase, Violation> {
        let pdu = layout.pdu_type;
        let sequence = |what| Violation {
            error: ProtocolError::Sequence { pdu, what },
            status: FatalErrorStatus::PduSequence,
            information: 0,
        };
        match (self.stage, pdu) {
            (_, PduType::C2hTermReq) => {
                let request: TermReq = self.parse();
                // The controller has spoken its last word; there is nothing to answer.
                Err(Violation {
                    error: ProtocolError::Terminated {
                        status: request.status(),
                        information: request.fei.get(),
                    },
                    status: FatalErrorStatus::Unknown(0),
                    information: 0,
                })
            }
            (Stage::Greeting, PduType::IcResp) => {
                let response: IcResp = self.parse();
                self.greeted(&response)
            }
            (Stage::Greeting, _) => Err(sequence("before the ICResp")),
            (_, PduType::C2hData) => {
                let data: C2hData = self.parse();
                self.c2h_data(layout, &data)
            }
            (_, PduType::CapsuleResp) => {
                let response: CapsuleResp = self.parse();
                self.response(&response.cqe)
            }
            (_, PduType::R2t) => {
                let request: R2t = self.parse();
                self.r2t(&request)
            }
            (_, _) => Err(sequence("a second time")),
        }
    }

    /// The header at the head of the input, all of which is there.
    fn parse<T: FromBytes + Default>(&self) -> T {
        let input = self.input.get(self.start..self.end).unwrap_or_default();
        T::read_from_prefix(input).map_or_else(|_| T::default(), |(value, _)| value)
    }

    fn greeted(&mut self, response: &IcResp) -> Result<Phase, Violation> {
        let unsupported = |what, offset| Violation {
            error: ProtocolError::Greeting { what },
            status: FatalErrorStatus::UnsupportedParameter,
            information: offset,
        };
        let digests = response.digests();
        let max_h2c_data = response.maxh2cdata.get();
        if response.pfv.get() != PFV {
            return Err(unsupported("a PDU format version that is not 0", 8));
        }
        if response.cpda > ALIGNMENT_MAX {
            return Err(unsupported("a CPDA above 31", 10));
        }
        let (header, data) =
            (digests.contains(DigestFlags::HEADER), digests.contains(DigestFlags::DATA));
        if header && !self.settings.header_digest || data && !self.settings.data_digest {
            return Err(unsupported("digests that were not asked for", 11));
        }
        if max_h2c_data < MAXH2CDATA_MIN || !max_h2c_data.is_multiple_of(4) {
            return Err(unsupported("a MAXH2CDATA below 4096 or not a multiple of 4", 12));
        }
        self.rules.header_digest = header;
        self.rules.data_digest = data;
        self.header_flags.set(Flags::HEADER_DIGEST, header);
        self.data_flags.set(Flags::HEADER_DIGEST, header);
        self.data_flags.set(Flags::DATA_DIGEST, data);
        self.cpda = response.cpda;
        self.max_h2c_data = max_h2c_data;
        self.stage = Stage::Open;
        Ok(Phase::Header)
    }

    fn c2h_data(&mut self, layout: &Layout, pdu: &C2hData) -> Result<Phase, Violation> {
        let cid = pdu.cccid.get();
        let (offset, length) = (pdu.datao.get(), pdu.datal.get());
        let (last, success) =
            (layout.flags.contains(Flags::LAST), layout.flags.contains(Flags::SUCCESS));
        let out_of_range = |what| Violation {
            error: ProtocolError::Range { cid, what, offset, length },
            status: FatalErrorStatus::DataTransferOutOfRange,
            information: 0,
        };
        let Some((slot, state)) = self.slots.find(cid) else {
            return Err(unknown(layout.pdu_type, cid));
        };
        let Transfer::Read(expected) = state.transfer else {
            return Err(out_of_range("data for a command that reads none"));
        };
        if length != layout.data_length || length == 0 {
            return Err(Violation {
                error: ProtocolError::Range {
                    cid,
                    what: "DATAL is not the length of the PDU's data",
                    offset,
                    length,
                },
                status: FatalErrorStatus::InvalidHeaderField,
                information: 16,
            });
        }
        if offset != state.moved {
            return Err(out_of_range("data out of order"));
        }
        if length > expected - state.moved {
            return Err(out_of_range("data beyond the end of the command"));
        }
        if success && !last {
            return Err(Violation {
                error: ProtocolError::Range {
                    cid,
                    what: "success before the last data",
                    offset,
                    length,
                },
                status: FatalErrorStatus::InvalidHeaderField,
                information: 1,
            });
        }
        state.moved += length;
        if success && state.moved != expected {
            return Err(short(cid, state.moved, expected));
        }
        let header_end =
            layout.header_length + if layout.header_digest { DIGEST_LENGTH } else { 0 };
        Ok(Phase::Payload(Payload {
            slot,
            cid,
            padding: layout.data_offset - header_end,
            offset,
            length,
            got: 0,
            digest: layout.data_digest,
            last,
            success,
        }))
    }

    fn response(&mut self, cqe: &Cqe) -> Result<Phase, Violation> {
        let cid = cqe.cid.get();
        let Some((slot, state)) = self.slots.find(cid) else {
            return Err(unknown(PduType::CapsuleResp, cid));
        };
        let expected = state.transfer.length();
        if cqe.status().is_success() && state.moved != expected {
            return Err(short(cid, state.moved, expected));
        }
        self.slots.complete(slot, *cqe);
        Ok(Phase::Header)
    }

    fn r2t(&mut self, pdu: &R2t) -> Result<Phase, Violation> {
        let cid = pdu.cccid.get();
        let (offset, length) = (pdu.r2to.get(), pdu.r2tl.get());
        let Some((slot, state)) = self.slots.find(cid) else {
            return Err(unknown(PduType::R2t, cid));
        };
        let out_of_range = |what| Violation {
            error: ProtocolError::Range { cid, what, offset, length },
            status: FatalErrorStatus::DataTransferOutOfRange,
            information: 0,
        };
        let Transfer::Write(expected) = state.transfer else {
            return Err(out_of_range("R2T for a command that writes nothing"));
        };
        if offset != state.moved {
            return Err(out_of_range("R2T out of order"));
        }
        if length == 0 || length > expected - state.moved {
            return Err(out_of_range("R2T for nothing, or beyond the end of the command"));
        }
        state.moved += length;
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let piece = (end - at).min(self.max_h2c_data);
            let mut flags = self.data_flags;
            flags.set(Flags::LAST, at + piece == end);
            let header = H2cData::new(cid, pdu.ttag.get(), at, piece, flags, self.cpda);
            self.stage_header(header.header, header.as_bytes());
            self.stage_data(slot, at, piece);
            at += piece;
        }
        Ok(Phase::Header)
    }

    fn payload(&mut self, mut payload: Payload) -> bool {
        let input = self.input.get(self.start..self.end).unwrap_or_default();
        let skipped = payload.padding.min(u32::try_from(input.len()).unwrap_or(u32::MAX));
        let (_, input) = input.split_at(usize::try_from(skipped).unwrap_or(0));
        payload.padding -= skipped;

        let here = payload.rest().min(u32::try_from(input.len()).unwrap_or(u32::MAX));
        let (data, input) = input.split_at(usize::try_from(here).unwrap_or(0));
        let place = self.slots.part_mut(payload.slot, payload.offset + payload.got, here);
        if place.len() == data.len() {
            place.copy_from_slice(data);
        }
        payload.got += here;
        self.start += data.len() + usize::try_from(skipped).unwrap_or(0);
        self.phase = Phase::Payload(payload);
        if payload.rest() > 0 || payload.padding > 0 {
            return false;
        }
        if payload.digest {
            let Some(digest) = input.first_chunk::<4>() else {
                return false;
            };
            self.start += digest.len();
            let whole = self.slots.part_mut(payload.slot, payload.offset, payload.length);
            // A data digest error concerns one command, not the connection (NVMe/TCP, section 3.5.2).
            if crc32c(whole) != u32::from_le_bytes(*digest)
                && let Some((_, state)) = self.slots.find(payload.cid)
            {
                state.data_digest_error = true;
            }
        }
        self.phase = Phase::Header;
        if payload.last && payload.success {
            self.slots.complete(payload.slot, Cqe::new(payload.cid, 0, Status::SUCCESS));
        }
        true
    }

    /// Makes room behind the bytes that could not be taken in yet, which are less than one header.
    fn keep_rest(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Stages a header with its digest and, if data follows, its padding.
    fn stage_header(&mut self, common: CommonHeader, bytes: &[u8]) {
        self.outgoing.stage(bytes);
        let mut length = bytes.len();
        if common.flags().contains(Flags::HEADER_DIGEST) {
            self.outgoing.stage(&crc32c(bytes).to_le_bytes());
            length += 4;
        }
        let padding = usize::from(common.pdo).saturating_sub(length);
        if padding > 0 {
            self.outgoing.stage([0; 128].get(..padding).unwrap_or_default());
        }
    }

    /// Appends data of a slot with its digest.
    fn stage_data(&mut self, slot: SlotId, offset: u32, length: u32) {
        let digest = self
            .rules
            .data_digest
            .then(|| crc32c(self.slots.part_mut(slot, offset, length)).to_le_bytes());
        self.slots.data_queued(slot);
        self.outgoing.data(
            slot,
            usize::try_from(offset).unwrap_or(usize::MAX),
            usize::try_from(length).unwrap_or(usize::MAX),
        );
        if let Some(digest) = digest {
            self.outgoing.stage(&digest);
        }
    }

    /// Ends the connection: the next bytes sent are a termination request about the PDU at the head of the input.
    fn end_with(&mut self, violation: &Violation) -> ProtocolError {
        self.stage = Stage::Ended;
        if !matches!(violation.error, ProtocolError::Terminated { .. }) {
            let input = self.input.get(self.start..self.end).unwrap_or_default();
            let request = Termination::new(
                Receiver::Host,
                violation.status,
                violation.information,
                input.get(..input.len().min(24)).unwrap_or_default(),
            );
            for part in request.parts() {
                self.outgoing.stage(part);
            }
        }
        violation.error
    }
}

impl Payload {
    fn rest(&self) -> u32 {
        self.length - self.got
    }
}

/// Bytes of the input buffer: what a whole queue of small reads brings at once; for large reads only what
/// separates their data, which is read past the buffer.
fn input_bytes(depth: usize, slot_bytes: usize) -> usize {
    const SMALL: usize = 16 * 1024;
    const LIMIT: usize = 256 * 1024;
    let all = depth * (slot_bytes.min(SMALL) + HEADER_AND_DIGEST);
    if slot_bytes > SMALL { SMALL } else { all.clamp(SMALL, LIMIT) }
}

fn unknown(pdu: PduType, cid: u16) -> Violation {
    Violation {
        error: ProtocolError::UnknownCommand { pdu, cid },
        status: FatalErrorStatus::InvalidHeaderField,
        information: match pdu {
            // The CID of a response is in the completion queue entry.
            PduType::CapsuleResp => 20,
            _ => 8,
        },
    }
}

fn short(cid: u16, moved: u32, expected: u32) -> Violation {
    Violation {
        error: ProtocolError::Short { cid, moved, expected },
        status: FatalErrorStatus::PduSequence,
        information: 0,
    }
}
