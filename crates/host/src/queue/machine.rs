//! A queue of an NVMe/TCP host without its socket: commands and bytes in, bytes and completions out.
//!
//! One thread owns a machine. It neither sleeps nor knows the time, so tests drive it with bytes split at any place.
//! The order of calls is: [`Machine::slices`] and [`Machine::sent`] while there is something to send;
//! [`Machine::space`] and [`Machine::received`] when something arrived; [`Machine::next_completion`] until it is empty.
//!
//! It knows what PDUs mean. Their bytes are the business of [`Incoming`], which copies the data of a read at most once, and of
//! [`Outgoing`], which never copies that of a write.
//!
//! Submission queue flow control needs no bookkeeping here: at most as many commands are outstanding as the submission
//! queue has room for, a command the controller has not yet consumed is outstanding, so the submission queue cannot
//! overflow whatever SQHD says. This is also why a controller may answer with the success flag, which carries no SQHD.

use super::data::Data;
use super::incoming::{Arrival, Incoming, Payload};
use super::outgoing::Outgoing;
use super::slots::{Completion, SlotId, Slots, Transfer};
use super::violation::Violation;
use crate::error::{ProtocolError, RequestError};
use nvme::tcp::{
    ALIGNMENT_MAX, C2hData, CapsuleCmd, CapsuleResp, DigestFlags, FatalErrorStatus, Flags, H2cData,
    IcReq, IcResp, Layout, MAXH2CDATA_MIN, PFV, PduType, R2t, Receiver, Rules, TermReq,
    Termination,
};
use nvme::{Cqe, Sgl, Sqe, Status};
use std::collections::TryReserveError;
use std::io::IoSlice;
use zerocopy::IntoBytes;

/// Data that every controller takes in the capsule of an admin or fabrics command.
const ADMIN_IN_CAPSULE: u32 = 8192;

/// What a machine is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Commands outstanding at most, 1..=[`DEPTH_MAX`](super::DEPTH_MAX).
    pub depth: u16,
    /// Bytes of data of one command at most.
    pub slot_bytes: u32,
    /// Bytes of data that an I/O command's capsule may carry; beyond it the controller asks for data. Over TCP fabrics
    /// commands carry up to 8 KiB in any case, over RDMA none.
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

/// See the module's description.
#[derive(Debug)]
pub struct Machine {
    slots: Slots,
    data: Data,
    outgoing: Outgoing,
    incoming: Incoming,
    stage: Stage,
    settings: Settings,
    rules: Rules,
    /// Digest flags of PDUs without and with data.
    header_flags: Flags,
    data_flags: Flags,
    cpda: u8,
    max_h2c_data: u32,
}

impl Machine {
    /// A machine that has its ICReq ready to send. The error is that there is no memory for its slots.
    pub fn new(settings: Settings) -> Result<Self, TryReserveError> {
        let slot_bytes = usize::try_from(settings.slot_bytes).unwrap_or(usize::MAX);
        let slots = Slots::new(settings.depth, slot_bytes);
        let mut digests = DigestFlags::empty();
        digests.set(DigestFlags::HEADER, settings.header_digest);
        digests.set(DigestFlags::DATA, settings.data_digest);
        // Per command: one capsule header, one H2CData header, two digests each.
        let depth = slots.depth();
        let data = Data::new(depth, slot_bytes)?;
        let mut outgoing =
            Outgoing::with_capacity(depth * 128 + IcReq::default().as_bytes().len(), depth * 4);
        outgoing.stage(IcReq::new(0, digests, 0).as_bytes());
        Ok(Self {
            slots,
            data,
            outgoing,
            incoming: Incoming::new(depth, slot_bytes),
            stage: Stage::Greeting,
            settings,
            rules: Rules::new(Receiver::Host, settings.slot_bytes),
            header_flags: Flags::empty(),
            data_flags: Flags::empty(),
            cpda: 0,
            max_h2c_data: MAXH2CDATA_MIN,
        })
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

    pub(crate) fn slots(&self) -> &Slots {
        &self.slots
    }

    pub(crate) fn slots_mut(&mut self) -> &mut Slots {
        &mut self.slots
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
        self.data.of(slot)
    }

    /// The memory of a reserved slot: what a write will send. Empty while a command is using the slot.
    pub fn data_mut(&mut self, slot: SlotId) -> &mut [u8] {
        if self.slots.is_reserved(slot) { self.data.of_mut(slot) } else { &mut [] }
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
        self.outgoing.header(capsule.header, capsule.as_bytes());
        if in_capsule > 0 {
            if let Some((_, state)) = self.slots.find(cid) {
                state.moved = in_capsule;
            }
            let memory = (&mut self.slots, &mut self.data);
            self.outgoing.data(memory, slot, 0, in_capsule, self.rules.data_digest);
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
        self.outgoing.slices(&self.data, slices)
    }

    /// The first `count` bytes of what was to be sent have been.
    pub fn sent(&mut self, count: usize) {
        self.outgoing.sent(count, &mut self.slots);
    }

    /// Where the next bytes of the stream belong: the first part (which may be empty) must be filled before any goes into the second.
    pub fn space(&mut self) -> (&mut [u8], &mut [u8]) {
        self.incoming.space(&mut self.data)
    }

    /// `count` bytes were put where [`Machine::space`] said. After an error the connection is over: send what is still to be
    /// sent, which is the termination request, and close.
    pub fn received(&mut self, count: usize) -> Result<(), ProtocolError> {
        self.incoming.received(count);
        if self.stage == Stage::Ended {
            self.incoming.discard();
            return Ok(());
        }
        while self.step().map_err(|violation| self.end_with(&violation))? {}
        self.incoming.keep_rest();
        Ok(())
    }

    /// Takes in one PDU's header, or the part of its data that is here. False: more bytes are needed.
    fn step(&mut self) -> Result<bool, Violation> {
        match self.incoming.next(&self.rules, &mut self.slots, &mut self.data)? {
            None => return Ok(false),
            Some(Arrival::Header(layout)) => {
                let payload = self.pdu(&layout)?;
                self.incoming.take_header(&layout, payload);
            }
            Some(Arrival::Payload(payload)) => {
                if payload.success {
                    self.slots.complete(payload.slot, Cqe::new(payload.cid, 0, Status::SUCCESS));
                }
            }
        }
        Ok(true)
    }

    /// Does what a PDU asks for; the data that follows its header.
    fn pdu(&mut self, layout: &Layout) -> Result<Option<Payload>, Violation> {
        let pdu = layout.pdu_type;
        match (self.stage, pdu) {
            (_, PduType::C2hTermReq) => {
                let request: TermReq = self.incoming.parse();
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
                let response: IcResp = self.incoming.parse();
                self.greeted(&response)
            }
            (Stage::Greeting, _) => Err(Violation::sequence(pdu, "before the ICResp")),
            (_, PduType::C2hData) => {
                let data: C2hData = self.incoming.parse();
                self.c2h_data(layout, &data)
            }
            (_, PduType::CapsuleResp) => {
                let response: CapsuleResp = self.incoming.parse();
                self.response(&response.cqe)
            }
            (_, PduType::R2t) => {
                let request: R2t = self.incoming.parse();
                self.r2t(&request)
            }
            (_, _) => Err(Violation::sequence(pdu, "a second time")),
        }
    }

    fn greeted(&mut self, response: &IcResp) -> Result<Option<Payload>, Violation> {
        let digests = response.digests();
        let max_h2c_data = response.maxh2cdata.get();
        if response.pfv.get() != PFV {
            return Err(Violation::greeting("a PDU format version that is not 0", 8));
        }
        if response.cpda > ALIGNMENT_MAX {
            return Err(Violation::greeting("a CPDA above 31", 10));
        }
        let (header, data) =
            (digests.contains(DigestFlags::HEADER), digests.contains(DigestFlags::DATA));
        if header && !self.settings.header_digest || data && !self.settings.data_digest {
            return Err(Violation::greeting("digests that were not asked for", 11));
        }
        if max_h2c_data < MAXH2CDATA_MIN || !max_h2c_data.is_multiple_of(4) {
            return Err(Violation::greeting("a MAXH2CDATA below 4096 or not a multiple of 4", 12));
        }
        self.rules.header_digest = header;
        self.rules.data_digest = data;
        self.header_flags.set(Flags::HEADER_DIGEST, header);
        self.data_flags.set(Flags::HEADER_DIGEST, header);
        self.data_flags.set(Flags::DATA_DIGEST, data);
        self.cpda = response.cpda;
        self.max_h2c_data = max_h2c_data;
        self.stage = Stage::Open;
        Ok(None)
    }

    fn c2h_data(&mut self, layout: &Layout, pdu: &C2hData) -> Result<Option<Payload>, Violation> {
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
            return Err(Violation::unknown_command(layout.pdu_type, cid));
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
            return Err(Violation::short(cid, state.moved, expected));
        }
        Ok(Some(Payload::new(layout, slot, cid, offset, length)))
    }

    fn response(&mut self, cqe: &Cqe) -> Result<Option<Payload>, Violation> {
        let cid = cqe.cid.get();
        let Some((slot, state)) = self.slots.find(cid) else {
            return Err(Violation::unknown_command(PduType::CapsuleResp, cid));
        };
        let expected = state.transfer.length();
        if cqe.status().is_success() && state.moved != expected {
            return Err(Violation::short(cid, state.moved, expected));
        }
        self.slots.complete(slot, *cqe);
        Ok(None)
    }

    fn r2t(&mut self, pdu: &R2t) -> Result<Option<Payload>, Violation> {
        let cid = pdu.cccid.get();
        let (offset, length) = (pdu.r2to.get(), pdu.r2tl.get());
        let Some((slot, state)) = self.slots.find(cid) else {
            return Err(Violation::unknown_command(PduType::R2t, cid));
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
            self.outgoing.header(header.header, header.as_bytes());
            let memory = (&mut self.slots, &mut self.data);
            self.outgoing.data(memory, slot, at, piece, self.rules.data_digest);
            at += piece;
        }
        Ok(None)
    }

    /// Ends the connection: the next bytes sent are a termination request about the PDU at the head of the input.
    fn end_with(&mut self, violation: &Violation) -> ProtocolError {
        self.stage = Stage::Ended;
        if !matches!(violation.error, ProtocolError::Terminated { .. }) {
            let input = self.incoming.pending();
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
