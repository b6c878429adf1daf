//! Peers that break the protocol: each gets the fatal error status that its breach calls for.

use nvme::Sqe;
use nvme::tcp::{
    CapsuleCmd, DigestFlags, FatalErrorStatus as Fes, Flags, H2cData, IcReq, PduType, Receiver,
    Termination,
};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::rig::{Pdu, Rig};
use crate::config::TcpConfig;
use crate::connection::CloseReason;

/// Delivers `bytes` and expects to be told so and nothing else, with a copy of the header.
fn expect(rig: &mut Rig, bytes: &[u8], status: Fes, information: u32) {
    rig.out.clear();
    rig.deliver(bytes);
    let pdus = rig.pdus();
    let [Pdu::Termination(request, copy)] = &pdus[..] else { panic!("{pdus:?}") };
    assert_eq!(request.status(), status, "{:?}", rig.connection.reason());
    assert_eq!(request.fei.get(), information, "{:?}", rig.connection.reason());
    assert!(copy.len() >= 8 && bytes.starts_with(copy), "{copy:x?}");
    assert!(rig.connection.has_said_all());
    assert!(matches!(rig.connection.reason(), Some(CloseReason::Violation(_))));
    assert_eq!(rig.core.queues, 0, "the target has forgotten the queue");
    // What still comes is read away.
    assert!(rig.deliver(&[0xff; 100_000]).is_empty());
    assert!(rig.out.is_empty());
    rig.wait(rig.config.timeouts.close);
    assert!(rig.connection.is_closed());
    assert_eq!(rig.core.bytes_lent(), 0);
}

fn plain() -> Rig {
    Rig::open(TcpConfig::default(), DigestFlags::empty(), 0)
}

/// With one R2T out: command 9, 10,000 bytes, tag 0.
fn with_transfer() -> Rig {
    let mut rig = plain();
    rig.deliver(&rig.write(9, 10_000));
    let [Pdu::Request(request)] = &rig.pdus()[..] else { panic!() };
    assert_eq!(request.ttag.get(), 0);
    rig
}

#[test]
fn the_first_pdu_is_icreq() {
    let mut rig = Rig::new(TcpConfig::default());
    let flush = rig.flush(1);
    expect(&mut rig, &flush, Fes::PduSequence, 0);
    let mut rig = Rig::new(TcpConfig::default());
    let data = rig.data(1, 0, 0, &[0; 8], true);
    expect(&mut rig, &data, Fes::PduSequence, 0);
}

#[test]
fn there_is_one_icreq() {
    let mut rig = plain();
    expect(&mut rig, IcReq::new(0, DigestFlags::empty(), 0).as_bytes(), Fes::PduSequence, 0);
}

#[test]
fn icreq_is_what_it_should_be() {
    let good = IcReq::new(0, DigestFlags::empty(), 0);
    let mut version = good;
    version.pfv.set(1);
    let mut alignment = good;
    alignment.hpda = 32;
    let mut short = good;
    short.header.plen.set(127);
    let mut header = good;
    header.header.hlen = 72;
    for (request, status, information) in [
        (version, Fes::UnsupportedParameter, 8),
        (alignment, Fes::InvalidHeaderField, 10),
        (short, Fes::InvalidHeaderField, 4),
        (header, Fes::InvalidHeaderField, 2),
    ] {
        let mut rig = Rig::new(TcpConfig::default());
        expect(&mut rig, request.as_bytes(), status, information);
    }
}

#[test]
fn types_that_do_not_exist_or_are_ours() {
    for pdu_type in [
        0x08,
        0x0a,
        0xff,
        PduType::IcResp.code(),
        PduType::C2hTermReq.code(),
        PduType::CapsuleResp.code(),
        PduType::C2hData.code(),
        PduType::R2t.code(),
    ] {
        let mut rig = plain();
        let mut bytes = rig.flush(1);
        bytes[0] = pdu_type;
        expect(&mut rig, &bytes, Fes::InvalidHeaderField, 0);
    }
}

#[test]
fn lengths_and_offsets_of_capsules() {
    let flush = plain().flush(1);
    let write = plain().write_in_capsule(2, &[7; 512]);
    let mut cases = Vec::new();
    let mut case = |pdu: &[u8], at: usize, bytes: &[u8], status, information| {
        let mut pdu = pdu.to_vec();
        pdu[at..at + bytes.len()].copy_from_slice(bytes);
        cases.push((pdu, status, information));
    };
    case(&flush, 2, &[24], Fes::InvalidHeaderField, 2);
    case(&flush, 4, &71_u32.to_le_bytes(), Fes::InvalidHeaderField, 4);
    case(&flush, 4, &0_u32.to_le_bytes(), Fes::InvalidHeaderField, 4);
    case(&flush, 1, &[1], Fes::InvalidHeaderField, 1);
    case(&write, 1, &[2], Fes::InvalidHeaderField, 1);
    case(&write, 3, &[0], Fes::InvalidHeaderField, 3);
    case(&write, 3, &[70], Fes::InvalidHeaderField, 3);
    case(&write, 3, &[74], Fes::InvalidHeaderField, 3);
    case(&write, 4, &(72_u32 + 8193).to_le_bytes(), Fes::DataTransferLimit, 0);
    case(&write, 4, &u32::MAX.to_le_bytes(), Fes::DataTransferLimit, 0);
    for (bytes, status, information) in cases {
        expect(&mut plain(), &bytes, status, information);
    }
}

#[test]
fn a_wrong_header_digest_is_fatal() {
    let open = || Rig::open(TcpConfig::default(), DigestFlags::HEADER, 0);
    let mut rig = open();
    let mut bytes = rig.flush(1);
    bytes[20] ^= 4;
    let received = u32::from_le_bytes(*bytes.last_chunk().unwrap());
    expect(&mut rig, &bytes, Fes::HeaderDigest, received);
    let mut rig = open();
    rig.deliver(&rig.write(9, 512));
    rig.pdus();
    let mut bytes = rig.data(9, 0, 0, &[1; 512], true);
    bytes[25] ^= 4;
    let received = u32::from_le_bytes(*bytes[24..].first_chunk().unwrap());
    expect(&mut rig, &bytes, Fes::HeaderDigest, received);
    // And the digest flag that was agreed on is missing.
    let mut rig = open();
    let bytes = CapsuleCmd::new(Sqe::new(0, 1), Flags::empty(), 0, 0);
    expect(&mut rig, bytes.as_bytes(), Fes::InvalidHeaderField, 1);
}

#[test]
fn data_that_nobody_asked_for() {
    let data = [5; 512];
    // No R2T at all, whatever the tag: 0 is a tag like any other.
    for ttag in [0, 1, 0x7fff, 0xffff] {
        let mut rig = plain();
        let bytes = rig.data(1, ttag, 0, &data, true);
        expect(&mut rig, &bytes, Fes::InvalidHeaderField, 10);
    }
    // One R2T: other tags, and another command.
    for ttag in [1, 2, 0xffff] {
        let mut rig = with_transfer();
        let bytes = rig.data(9, ttag, 0, &data, false);
        expect(&mut rig, &bytes, Fes::InvalidHeaderField, 10);
    }
    let mut rig = with_transfer();
    let bytes = rig.data(8, 0, 0, &data, false);
    expect(&mut rig, &bytes, Fes::InvalidHeaderField, 8);
    // A tag whose data has all come.
    let mut rig = with_transfer();
    rig.deliver(&rig.data(9, 0, 0, &[1; 10_000], true));
    let bytes = rig.data(9, 0, 0, &data, false);
    expect(&mut rig, &bytes, Fes::InvalidHeaderField, 10);
}

#[test]
fn data_out_of_order_or_range() {
    for (offset, length, last, status, information) in [
        (4, 512, false, Fes::DataTransferOutOfRange, 0),
        (u32::MAX as usize, 512, false, Fes::DataTransferOutOfRange, 0),
        (0, 10_004, true, Fes::DataTransferOutOfRange, 0),
        (0, 512, true, Fes::InvalidHeaderField, 1),
        (0, 10_000, false, Fes::InvalidHeaderField, 1),
    ] {
        let mut rig = with_transfer();
        let bytes = rig.data(9, 0, offset, &vec![3; length], last);
        expect(&mut rig, &bytes, status, information);
    }
    // The same data twice.
    let mut rig = with_transfer();
    rig.deliver(&rig.data(9, 0, 0, &[1; 512], false));
    let bytes = rig.data(9, 0, 0, &[1; 512], false);
    expect(&mut rig, &bytes, Fes::DataTransferOutOfRange, 0);
}

#[test]
fn data_lengths_that_contradict_each_other() {
    for datal in [0, 511, 513, u32::MAX] {
        let mut rig = with_transfer();
        let mut pdu = H2cData::new(9, 0, 0, 512, Flags::empty(), 0);
        pdu.datal.set(datal);
        let bytes = rig.assemble(pdu.as_bytes(), &[0; 512]);
        expect(&mut rig, &bytes, Fes::InvalidHeaderField, 16);
    }
    let mut rig = with_transfer();
    let empty = H2cData::new(9, 0, 0, 0, Flags::empty(), 0);
    let bytes = rig.assemble(empty.as_bytes(), &[]);
    expect(&mut rig, &bytes, Fes::InvalidHeaderField, 16);
    // More in one PDU than MAXH2CDATA.
    let mut rig = with_transfer();
    let large = H2cData::new(9, 0, 0, 128 * 1024 + 4, Flags::empty(), 0);
    expect(&mut rig, large.as_bytes(), Fes::DataTransferLimit, 0);
}

#[test]
fn a_host_may_end_it_too() {
    for negotiated in [false, true] {
        let mut rig = if negotiated { plain() } else { Rig::new(TcpConfig::default()) };
        let request = Termination::new(Receiver::Host, Fes::DataTransferOutOfRange, 0, &[1; 24]);
        rig.deliver(&request.parts().concat());
        assert!(rig.connection.is_closed());
        assert!(matches!(
            rig.connection.reason(),
            Some(CloseReason::TerminatedByPeer(Fes::DataTransferOutOfRange))
        ));
        assert_eq!(rig.core.queues, 0);
        assert!(rig.out.is_empty());
    }
}

#[test]
fn a_pdu_that_is_half_sent_is_finished_before_the_termination() {
    let mut rig = plain();
    rig.peer_reads = false;
    rig.deliver(&rig.read(1, 5000));
    rig.deliver(&rig.read(2, 5000));
    // The socket takes ten bytes of the first batch.
    let mut head = Vec::new();
    rig.turn(|connection, turn| {
        let batch = connection.batch(turn).unwrap();
        let Some(memory::vectored::Piece::Bytes(first)) = batch.pieces().next() else { panic!() };
        head.extend_from_slice(&first[..10]);
        connection.sent(10, turn);
    });
    rig.deliver(&[0x0b; 64]);
    rig.peer_reads = true;
    rig.out = head;
    rig.work();
    let pdus = rig.pdus();
    let [Pdu::Data(first, _), .., Pdu::Termination(request, _)] = &pdus[..] else { panic!() };
    assert_eq!(first.cccid.get(), 1);
    assert_eq!(request.status(), Fes::InvalidHeaderField);
    assert_eq!(rig.core.bytes_lent(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever comes, there is no panic, nothing is kept, and the connection can be ended.
    #[test]
    fn garbage_is_survived(
        negotiated in any::<bool>(),
        header_digest in any::<bool>(),
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
    ) {
        let digests = if header_digest { DigestFlags::HEADER } else { DigestFlags::empty() };
        let mut rig = if negotiated {
            Rig::open(TcpConfig::default(), digests, 0)
        } else {
            Rig::new(TcpConfig::default())
        };
        for chunk in &chunks {
            rig.deliver(chunk);
        }
        rig.turn(|connection, turn| connection.end(CloseReason::ByPeer, turn));
        prop_assert!(rig.connection.is_closed());
        prop_assert_eq!(rig.core.queues, 0);
        prop_assert_eq!(rig.core.bytes_lent(), 0);
    }

    /// Good traffic with some bytes changed: the same.
    #[test]
    fn corruption_is_survived(
        header_digest in any::<bool>(),
        flips in prop::collection::vec((0..3000_usize, 1..=255_u8), 1..6),
        chunk in 1..2000_usize,
    ) {
        let digests = if header_digest { DigestFlags::HEADER } else { DigestFlags::empty() };
        let mut rig = Rig::open(TcpConfig::default(), digests, 0);
        rig.deliver(&rig.write(1, 700));
        let mut bytes = rig.read(2, 4096);
        bytes.extend(rig.write_in_capsule(3, &[8; 512]));
        bytes.extend(rig.data(1, 0, 0, &[9; 700], true));
        bytes.extend(rig.write(4, 1000));
        bytes.extend(rig.flush(5));
        for (at, change) in flips {
            let at = at % bytes.len();
            bytes[at] ^= change;
        }
        for piece in bytes.chunks(chunk) {
            rig.deliver(piece);
        }
        rig.turn(|connection, turn| connection.end(CloseReason::ByPeer, turn));
        prop_assert_eq!(rig.core.queues, 0);
        prop_assert_eq!(rig.core.bytes_lent(), 0);
    }
}
