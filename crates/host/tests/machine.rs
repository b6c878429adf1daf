//! The sans-socket queue against a scripted controller that is only bytes: whatever way the stream is cut, the same
//! commands complete with the same data.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod wire;

use host::{Machine, ProtocolError, Settings, SlotId, Transfer};
use nvme::tcp::{
    C2hData, CapsuleCmd, CapsuleResp, CommonHeader, DigestFlags, FatalErrorStatus, Flags, H2cData,
    IcReq, IcResp, PduType, R2t, TermReq, crc32c,
};
use nvme::{Cqe, Sgl, Sqe, Status};
use proptest::prelude::*;
use std::io::IoSlice;
use wire::Wire;
use zerocopy::{FromBytes, IntoBytes};

const SLOT: u32 = 16 * 1024;
const READ: u8 = 2;
const WRITE: u8 = 1;

fn settings(header_digest: bool, data_digest: bool) -> Settings {
    Settings { depth: 4, slot_bytes: SLOT, in_capsule: 8192, header_digest, data_digest }
}

/// Everything the machine has to send, at most `piece` bytes at a time.
fn drain(machine: &mut Machine, piece: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while machine.wants_to_send() {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = machine.slices(&mut slices);
        let bytes: Vec<u8> =
            slices[..count].iter().flat_map(|slice| slice.iter().copied()).take(piece).collect();
        machine.sent(bytes.len());
        all.extend(bytes);
    }
    all
}

/// Hands bytes to the machine in pieces whose lengths `cuts` repeats.
fn feed(machine: &mut Machine, mut bytes: &[u8], cuts: &[usize]) -> Result<(), ProtocolError> {
    let mut cuts = cuts.iter().cycle();
    while !bytes.is_empty() {
        let wanted = (*cuts.next().unwrap()).clamp(1, bytes.len());
        let (first, second) = machine.space();
        let head = wanted.min(first.len());
        first[..head].copy_from_slice(&bytes[..head]);
        let tail = (wanted - head).min(second.len());
        second[..tail].copy_from_slice(&bytes[head..head + tail]);
        machine.received(head + tail)?;
        bytes = &bytes[head + tail..];
    }
    Ok(())
}

impl Wire {
    fn response(self, cqe: Cqe) -> Vec<u8> {
        self.pdu(CapsuleResp::new(cqe, self.flags(false)).as_bytes(), &[])
    }

    fn data(self, cid: u16, offset: usize, data: &[u8], more: Flags) -> Vec<u8> {
        let header = C2hData::new(
            cid,
            offset.try_into().unwrap(),
            data.len().try_into().unwrap(),
            self.flags(true) | more,
            0,
        );
        self.pdu(header.as_bytes(), data)
    }

    fn r2t(self, cid: u16, ttag: u16, offset: u32, length: u32) -> Vec<u8> {
        self.pdu(R2t::new(cid, ttag, offset, length, self.flags(false)).as_bytes(), &[])
    }

    /// Splits what the host sent into headers and data, checking every digest.
    fn parse(mut bytes: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut pdus = Vec::new();
        while !bytes.is_empty() {
            let (common, _) = CommonHeader::read_from_prefix(bytes).unwrap();
            let (pdu, rest) = bytes.split_at(usize::try_from(common.plen.get()).unwrap());
            let header = usize::from(common.hlen);
            if common.flags().contains(Flags::HEADER_DIGEST) {
                assert_eq!(pdu[header..header + 4], crc32c(&pdu[..header]).to_le_bytes());
            }
            let mut data = if common.pdo == 0 { &[][..] } else { &pdu[usize::from(common.pdo)..] };
            if common.flags().contains(Flags::DATA_DIGEST) && !data.is_empty() {
                let (payload, digest) = data.split_at(data.len() - 4);
                assert_eq!(digest, crc32c(payload).to_le_bytes());
                data = payload;
            }
            pdus.push((pdu[..header].to_vec(), data.to_vec()));
            bytes = rest;
        }
        pdus
    }
}

/// A machine past the greeting.
fn open(header_digest: bool, data_digest: bool) -> (Machine, Wire) {
    let mut machine = Machine::new(settings(header_digest, data_digest)).unwrap();
    let greeting = drain(&mut machine, usize::MAX);
    let request = IcReq::read_from_bytes(&greeting).unwrap();
    assert_eq!(request.digests().contains(DigestFlags::HEADER), header_digest);
    let response = IcResp::new(0, request.digests(), 4096);
    feed(&mut machine, response.as_bytes(), &[usize::MAX]).unwrap();
    assert!(machine.is_open());
    let wire = Wire { header_digest, data_digest };
    (machine, wire)
}

fn submit(machine: &mut Machine, opcode: u8, transfer: Transfer) -> SlotId {
    let slot = machine.reserve().unwrap();
    machine.submit(slot, Sqe::new(opcode, 1), transfer).unwrap();
    slot
}

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7 + usize::from(seed)) % 251).unwrap()).collect()
}

fn sqe(pdu: &(Vec<u8>, Vec<u8>)) -> Sqe {
    CapsuleCmd::read_from_bytes(&pdu.0).unwrap().sqe
}

proptest! {
    /// Reads answered out of order, in several PDUs, with and without the success flag, the stream cut anywhere.
    #[test]
    fn reads_complete_whatever_the_cuts(
        header_digest: bool,
        data_digest: bool,
        lengths in prop::collection::vec(1..=usize::try_from(SLOT).unwrap(), 1..=4),
        pieces in 1..4_usize,
        success: bool,
        cuts in prop::collection::vec(1..9000_usize, 1..12),
        sends in 1..500_usize,
    ) {
        let (mut machine, wire) = open(header_digest, data_digest);
        let slots: Vec<SlotId> = lengths
            .iter()
            .map(|&length| submit(&mut machine, READ, Transfer::Read(length.try_into().unwrap())))
            .collect();
        let commands = Wire::parse(&drain(&mut machine, sends));
        prop_assert_eq!(commands.len(), lengths.len());
        let mut stream = Vec::new();
        for (index, command) in commands.iter().enumerate().rev() {
            let cid = sqe(command).cid.get();
            let data = pattern(u8::try_from(index).unwrap(), lengths[index]);
            let step = data.len().div_ceil(pieces);
            for (at, piece) in data.chunks(step).enumerate() {
                let mut flags = Flags::empty();
                if (at + 1) * step >= data.len() {
                    flags = if success { Flags::LAST | Flags::SUCCESS } else { Flags::LAST };
                }
                stream.extend(wire.data(cid, at * step, piece, flags));
            }
            if !success {
                stream.extend(wire.response(Cqe::new(cid, 3, Status::SUCCESS)));
            }
        }
        feed(&mut machine, &stream, &cuts).unwrap();
        let mut ended = Vec::new();
        while let Some(completion) = machine.next_completion() {
            prop_assert!(completion.cqe.status().is_success());
            prop_assert!(!completion.data_digest_error);
            ended.push(completion.slot);
        }
        prop_assert_eq!(ended, slots.iter().rev().copied().collect::<Vec<_>>());
        for (index, &slot) in slots.iter().enumerate() {
            let expected = pattern(u8::try_from(index).unwrap(), lengths[index]);
            prop_assert_eq!(&machine.data(slot)[..expected.len()], &expected[..]);
        }
        prop_assert_eq!(machine.outstanding(), 0);
    }

    /// A write's data arrives once and in order, in the capsule or as R2T asks for it, however little the socket takes.
    #[test]
    fn writes_deliver_their_data(
        header_digest: bool,
        data_digest: bool,
        length in 1..=SLOT,
        asks in 1..4_u32,
        sends in 1..3000_usize,
        cuts in prop::collection::vec(1..40_usize, 1..4),
    ) {
        let (mut machine, wire) = open(header_digest, data_digest);
        let slot = machine.reserve().unwrap();
        let data = pattern(9, usize::try_from(length).unwrap());
        machine.data_mut(slot)[..data.len()].copy_from_slice(&data);
        machine.submit(slot, Sqe::new(WRITE, 1), Transfer::Write(length)).unwrap();
        let sent = Wire::parse(&drain(&mut machine, sends));
        prop_assert_eq!(sent.len(), 1);
        let command = sqe(&sent[0]);
        let cid = command.cid.get();
        if length <= 8192 {
            prop_assert_eq!(command.sgl(), Sgl::InCapsule { offset: 0, length });
            prop_assert_eq!(&sent[0].1, &data);
        } else {
            prop_assert_eq!(command.sgl(), Sgl::TransportData { length });
            let step = length.div_ceil(asks);
            let mut got = Vec::new();
            while u32::try_from(got.len()).unwrap() < length {
                let offset = u32::try_from(got.len()).unwrap();
                let ask = step.min(length - offset);
                feed(&mut machine, &wire.r2t(cid, 77, offset, ask), &cuts).unwrap();
                let pdus = Wire::parse(&drain(&mut machine, sends));
                let count = pdus.len();
                for (index, (header, data)) in pdus.into_iter().enumerate() {
                    let header = H2cData::read_from_bytes(&header).unwrap();
                    prop_assert_eq!(header.ttag.get(), 77);
                    prop_assert_eq!(header.cccid.get(), cid);
                    prop_assert_eq!(usize::try_from(header.datao.get()).unwrap(), got.len());
                    prop_assert!(data.len() <= 4096);
                    prop_assert_eq!(header.header.flags().contains(Flags::LAST), index + 1 == count);
                    got.extend(data);
                }
                prop_assert_eq!(got.len(), usize::try_from(offset + ask).unwrap());
            }
            prop_assert_eq!(&got, &data);
        }
        feed(&mut machine, &wire.response(Cqe::new(cid, 1, Status::SUCCESS)), &cuts).unwrap();
        prop_assert_eq!(machine.next_completion().unwrap().slot, slot);
    }

    /// No bytes from the wire make it panic, and after an error nothing more completes.
    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 8..600), cuts in prop::collection::vec(1..200_usize, 1..4)) {
        let (mut machine, _) = open(false, false);
        submit(&mut machine, READ, Transfer::Read(512));
        drain(&mut machine, usize::MAX);
        if feed(&mut machine, &bytes, &cuts).is_err() {
            prop_assert!(!machine.is_open());
            prop_assert!(machine.next_completion().is_none());
        }
    }
}

/// Feeds one PDU after a read of 4 KiB was sent and returns the error and the termination request.
fn provoke(make: impl FnOnce(Wire, u16) -> Vec<u8>) -> (ProtocolError, TermReq) {
    let (mut machine, wire) = open(true, false);
    submit(&mut machine, READ, Transfer::Read(4096));
    let command = Wire::parse(&drain(&mut machine, usize::MAX));
    let bytes = make(wire, sqe(&command[0]).cid.get());
    let error = feed(&mut machine, &bytes, &[13]).unwrap_err();
    assert!(!machine.is_open());
    let last = drain(&mut machine, usize::MAX);
    let request = TermReq::read_from_prefix(&last).unwrap().0;
    assert_eq!(request.header.kind(), Ok(PduType::H2cTermReq));
    (error, request)
}

#[test]
fn wrong_data_ends_the_connection_with_a_reason() {
    let (error, request) = provoke(|wire, cid| wire.data(cid, 512, &[0; 512], Flags::LAST));
    assert!(matches!(error, ProtocolError::Range { offset: 512, .. }));
    assert_eq!(request.status(), FatalErrorStatus::DataTransferOutOfRange);

    let (error, _) = provoke(|wire, cid| wire.data(cid, 0, &[0; 8192], Flags::LAST));
    assert!(matches!(error, ProtocolError::Range { length: 8192, .. }));

    let (error, _) = provoke(|wire, cid| wire.data(cid ^ 0x1000, 0, &[0; 512], Flags::LAST));
    assert!(matches!(error, ProtocolError::UnknownCommand { .. }));

    let (error, _) = provoke(|wire, cid| wire.r2t(cid, 0, 0, 4096));
    assert!(matches!(error, ProtocolError::Range { .. }));

    let (error, _) = provoke(|wire, cid| wire.response(Cqe::new(cid, 0, Status::SUCCESS)));
    assert!(matches!(error, ProtocolError::Short { moved: 0, expected: 4096, .. }));

    let (error, request) = provoke(|wire, cid| {
        let mut bytes = wire.response(Cqe::new(cid, 0, Status::SUCCESS));
        bytes[9] ^= 1;
        bytes
    });
    assert!(matches!(error, ProtocolError::HeaderDigest { .. }));
    assert_eq!(request.status(), FatalErrorStatus::HeaderDigest);
}

#[test]
fn a_completion_that_comes_twice_is_noticed() {
    let (mut machine, wire) = open(false, false);
    let slot = submit(&mut machine, WRITE, Transfer::None);
    let first = sqe(&Wire::parse(&drain(&mut machine, usize::MAX))[0]).cid.get();
    let response = wire.response(Cqe::new(first, 1, Status::SUCCESS));
    feed(&mut machine, &response, &[99]).unwrap();
    assert_eq!(machine.next_completion().unwrap().slot, slot);
    machine.submit(slot, Sqe::new(WRITE, 1), Transfer::None).unwrap();
    let error = feed(&mut machine, &response, &[99]).unwrap_err();
    assert!(matches!(error, ProtocolError::UnknownCommand { cid, .. } if cid == first));
}

#[test]
fn damaged_data_fails_its_command_alone() {
    let (mut machine, wire) = open(false, true);
    let bad = submit(&mut machine, READ, Transfer::Read(512));
    let good = submit(&mut machine, READ, Transfer::Read(512));
    let commands = Wire::parse(&drain(&mut machine, usize::MAX));
    let success = Flags::LAST | Flags::SUCCESS;
    let mut stream = wire.data(sqe(&commands[0]).cid.get(), 0, &[1; 512], success);
    stream[100] ^= 0x80;
    stream.extend(wire.data(sqe(&commands[1]).cid.get(), 0, &[2; 512], success));
    feed(&mut machine, &stream, &[600, 3]).unwrap();
    let first = machine.next_completion().unwrap();
    assert_eq!((first.slot, first.data_digest_error), (bad, true));
    let second = machine.next_completion().unwrap();
    assert_eq!((second.slot, second.data_digest_error), (good, false));
}

#[test]
fn an_early_answer_waits_for_data_still_to_be_sent() {
    let (mut machine, wire) = open(false, false);
    let slot = submit(&mut machine, WRITE, Transfer::Write(SLOT));
    let cid = sqe(&Wire::parse(&drain(&mut machine, usize::MAX))[0]).cid.get();
    feed(&mut machine, &wire.r2t(cid, 1, 0, SLOT), &[99]).unwrap();
    let refusal = wire.response(Cqe::new(cid, 1, Status::CAPACITY_EXCEEDED));
    feed(&mut machine, &refusal, &[99]).unwrap();
    assert!(machine.next_completion().is_none());
    drain(&mut machine, 1000);
    let completion = machine.next_completion().unwrap();
    assert_eq!(completion.slot, slot);
    assert!(completion.cqe.status().same_code(Status::CAPACITY_EXCEEDED));
}
