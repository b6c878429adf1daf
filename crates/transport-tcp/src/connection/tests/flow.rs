//! What goes right: negotiation, reads, writes, digests, alignment, success flag, back-pressure.

use nvme::tcp::{DigestFlags, Flags, IcReq};
use nvme::{Sqe, Status};
use zerocopy::IntoBytes;

use super::rig::{FLUSH, Pdu, Rig, WRITE, read_data};
use crate::config::{SuccessFlag, TcpConfig};

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

fn every_terms() -> impl Iterator<Item = (DigestFlags, u8)> {
    let digests = [
        DigestFlags::empty(),
        DigestFlags::HEADER,
        DigestFlags::DATA,
        DigestFlags::HEADER | DigestFlags::DATA,
    ];
    digests.into_iter().flat_map(|digests| [0, 1, 6, 31].map(|hpda| (digests, hpda)))
}

#[test]
fn grants_the_digests_that_were_asked_for() {
    for (digests, hpda) in every_terms() {
        let mut rig = Rig::new(TcpConfig::default());
        rig.deliver(IcReq::new(hpda, digests, 0).as_bytes());
        let [Pdu::Agreement(response)] = &rig.pdus()[..] else { panic!() };
        assert_eq!(response.header.plen.get(), 128);
        assert_eq!(response.pfv.get(), 0);
        assert_eq!(response.cpda, 0);
        assert_eq!(response.digests(), digests);
        assert_eq!(response.maxh2cdata.get(), 128 * 1024);
        assert_eq!(rig.core.queues, 1);
    }
}

#[test]
fn a_read_is_data_with_the_success_flag() {
    for (digests, hpda) in every_terms() {
        let mut rig = Rig::open(TcpConfig::default(), digests, hpda);
        rig.deliver(&rig.read(7, 4096));
        let pdus = rig.pdus();
        let [Pdu::Data(header, data)] = &pdus[..] else { panic!("{pdus:?}") };
        assert_eq!(header.cccid.get(), 7);
        assert_eq!(header.header.pdo % ((hpda + 1) * 4), 0);
        assert!(header.header.flags().contains(Flags::LAST | Flags::SUCCESS));
        assert_eq!(data, &read_data(7, 4096));
        assert_eq!(rig.core.sent, 1);
        assert_eq!(rig.core.bytes_lent(), 0);
    }
}

#[test]
fn a_long_read_comes_in_several_pdus_in_order() {
    let config = TcpConfig { max_c2h_data: 4096, ..TcpConfig::default() };
    let both = DigestFlags::HEADER | DigestFlags::DATA;
    let mut rig = Rig::open(config, both, 0);
    rig.chunk = 1000;
    rig.deliver(&rig.read(9, 10_000));
    let mut all = Vec::new();
    let pdus = rig.pdus();
    for (index, pdu) in pdus.iter().enumerate() {
        let Pdu::Data(header, data) = pdu else { panic!() };
        assert_eq!(header.datao.get() as usize, all.len());
        let last = index == 2;
        assert_eq!(header.header.flags().contains(Flags::LAST), last);
        assert_eq!(header.header.flags().contains(Flags::SUCCESS), last);
        all.extend_from_slice(data);
    }
    assert_eq!(pdus.len(), 3);
    assert_eq!(all, read_data(9, 10_000));
}

#[test]
fn the_success_flag_is_used_only_where_it_says_everything() {
    // (flag, SQ flow control, result of the command) -> silent
    let cases = [
        (SuccessFlag::Always, true, 0, true),
        (SuccessFlag::Always, true, 5, false),
        (SuccessFlag::Strict, true, 0, false),
        (SuccessFlag::Strict, false, 0, true),
        (SuccessFlag::Strict, false, 1, false),
        (SuccessFlag::Never, false, 0, false),
    ];
    for (success_flag, flow_control, result, silent) in cases {
        let config = TcpConfig { success_flag, ..TcpConfig::default() };
        let mut rig = Rig::open(config, DigestFlags::empty(), 0);
        rig.core.flow_control = flow_control;
        rig.core.read_result = result;
        rig.deliver(&rig.read(1, 512));
        let pdus = rig.pdus();
        let Pdu::Data(header, _) = &pdus[0] else { panic!() };
        assert_eq!(header.header.flags().contains(Flags::SUCCESS), silent);
        assert!(header.header.flags().contains(Flags::LAST));
        if silent {
            assert_eq!(pdus.len(), 1);
        } else {
            let [_, Pdu::Response(response)] = &pdus[..] else { panic!() };
            assert_eq!(response.cqe.dw0(), result);
        }
    }
}

#[test]
fn in_capsule_data_reaches_the_request_with_one_copy() {
    for (digests, hpda) in every_terms() {
        let mut rig = Rig::open(TcpConfig::default(), digests, hpda);
        let data = payload(8192);
        rig.deliver(&rig.write_in_capsule(3, &data));
        assert_eq!(rig.core.seen[0].data, data);
        assert_eq!(rig.core.seen[0].result, Ok(()));
        assert!(matches!(rig.pdus()[..], [Pdu::Response(_)]));
        assert_eq!(rig.counters.values().bytes_copied, 8192);
    }
}

#[test]
fn a_large_write_is_asked_for_and_read_in_place() {
    for (digests, hpda) in every_terms() {
        let mut rig = Rig::open(TcpConfig::default(), digests, hpda);
        let data = payload(100_000);
        rig.deliver(&rig.write(5, 100_000));
        let pdus = rig.pdus();
        let [Pdu::Request(request)] = &pdus[..] else { panic!("{pdus:?}") };
        assert_eq!((request.cccid.get(), request.r2to.get()), (5, 0));
        assert_eq!(request.r2tl.get(), 100_000);
        let ttag = request.ttag.get();
        let (first, second) = data.split_at(60_000);
        // Headers by themselves, as a socket gives them when it is read early: then nothing is copied.
        for pdu in [rig.data(5, ttag, 0, first, false), rig.data(5, ttag, 60_000, second, true)] {
            let head = usize::from(pdu[3]);
            rig.deliver(&pdu[..head]);
            rig.deliver(&pdu[head..]);
        }
        assert_eq!(rig.core.seen[0].data, data);
        assert!(matches!(rig.pdus()[..], [Pdu::Response(_)]));
        assert_eq!(rig.counters.values().bytes_copied, 0);
        assert_eq!(rig.core.outstanding(), 0);
    }
}

#[test]
fn a_wrong_data_digest_fails_its_command_alone() {
    let mut rig = Rig::open(TcpConfig::default(), DigestFlags::DATA, 0);
    let mut bad = rig.write_in_capsule(1, &payload(512));
    *bad.last_mut().unwrap() ^= 1;
    rig.deliver(&bad);
    rig.deliver(&rig.write(2, 1000));
    let [Pdu::Response(response), Pdu::Request(request)] = &rig.pdus()[..] else { panic!() };
    assert!(response.cqe.status().same_code(Status::TRANSIENT_TRANSPORT_ERROR));
    let ttag = request.ttag.get();
    let mut bad = rig.data(2, ttag, 0, &payload(600), false);
    bad[30] ^= 0x80;
    rig.deliver(&bad);
    rig.deliver(&rig.data(2, ttag, 600, &payload(400), true));
    let [Pdu::Response(response)] = &rig.pdus()[..] else { panic!() };
    assert!(response.cqe.status().same_code(Status::TRANSIENT_TRANSPORT_ERROR));
    rig.deliver(&rig.flush(3));
    let [Pdu::Response(response)] = &rig.pdus()[..] else { panic!() };
    assert!(response.cqe.status().is_success());
    assert_eq!(rig.counters.values().data_digest_errors, 2);
}

#[test]
fn a_busy_target_pauses_the_stream_and_loses_nothing() {
    let mut rig = Rig::open(TcpConfig::default(), DigestFlags::empty(), 0);
    rig.core.slots = 2;
    rig.peer_reads = false;
    let mut bytes = Vec::new();
    for cid in 0..10 {
        bytes.extend(rig.flush(cid));
    }
    assert!(rig.deliver(&bytes).is_empty(), "it is all in the receive buffer");
    assert!(!rig.connection.wants_bytes());
    assert_eq!(rig.core.seen.len(), 2);
    rig.peer_reads = true;
    rig.work();
    assert_eq!(
        rig.core.seen.iter().map(|seen| seen.cid).collect::<Vec<_>>(),
        (0..10).collect::<Vec<_>>()
    );
    assert_eq!(rig.pdus().len(), 10);
    assert!(rig.connection.wants_bytes());
}

#[test]
fn data_behind_a_capsule_that_waits_for_a_buffer_comes_in() {
    // The one buffer is held by a write whose data is behind an in-capsule write in the stream.
    let mut rig = Rig::open(TcpConfig::default(), DigestFlags::DATA, 0);
    rig.core.buffers = 1;
    rig.deliver(&rig.write(1, 5000));
    let [Pdu::Request(request)] = &rig.pdus()[..] else { panic!() };
    let ttag = request.ttag.get();
    let small = payload(700);
    let large = payload(5000);
    rig.deliver(&rig.write_in_capsule(2, &small));
    assert_eq!(rig.core.seen.len(), 0);
    rig.deliver(&rig.data(1, ttag, 0, &large, true));
    let seen: Vec<_> = rig.core.seen.iter().map(|seen| (seen.cid, seen.data.clone())).collect();
    assert_eq!(seen, [(1, large), (2, small)]);
    assert_eq!(rig.counters.values().capsules_parked, 1);
    assert_eq!(rig.pdus().len(), 2);
}

#[test]
fn data_behind_commands_that_are_refused_comes_in() {
    let mut rig = Rig::open(TcpConfig::default(), DigestFlags::HEADER, 0);
    rig.core.slots = 1;
    rig.deliver(&rig.write(1, 5000));
    let [Pdu::Request(request)] = &rig.pdus()[..] else { panic!() };
    let ttag = request.ttag.get();
    let small = payload(700);
    rig.deliver(&rig.flush(2));
    rig.deliver(&rig.write_in_capsule(3, &small));
    rig.deliver(&rig.flush(4));
    assert_eq!(rig.core.outstanding(), 1);
    rig.deliver(&rig.data(1, ttag, 0, &payload(5000), true));
    let order: Vec<_> = rig.core.seen.iter().map(|seen| seen.cid).collect();
    assert_eq!(order, [1, 2, 3, 4]);
    assert_eq!(rig.core.seen[2].data, small);
    assert_eq!(rig.counters.values().capsules_parked, 3);
    assert_eq!(rig.pdus().len(), 4);
}

#[test]
fn a_full_parking_only_stalls() {
    let config = TcpConfig { parked_capsules: 1, ..TcpConfig::default() };
    let mut rig = Rig::open(config, DigestFlags::empty(), 0);
    rig.core.slots = 1;
    rig.deliver(&rig.write(1, 512));
    let [Pdu::Request(request)] = &rig.pdus()[..] else { panic!() };
    let ttag = request.ttag.get();
    rig.deliver(&rig.flush(2));
    assert!(rig.connection.wants_bytes());
    rig.deliver(&rig.flush(3));
    assert!(!rig.connection.wants_bytes());
    let data = rig.data(1, ttag, 0, &payload(512), true);
    assert_eq!(rig.deliver(&data), data, "nothing more is taken in");
}

#[test]
fn data_of_a_command_answered_early_goes_nowhere() {
    let mut rig = Rig::open(TcpConfig::default(), DigestFlags::DATA, 0);
    rig.deliver(&rig.write(1, 1000));
    let [Pdu::Request(request)] = &rig.pdus()[..] else { panic!() };
    let ttag = request.ttag.get();
    rig.core.respond(target::RequestId { slot: 0, generation: 0 }, Status::ABORT_REQUESTED, 0);
    rig.work();
    assert!(matches!(rig.pdus()[..], [Pdu::Response(_)]));
    assert_eq!(rig.core.outstanding(), 0);
    rig.deliver(&rig.data(1, ttag, 0, &payload(1000), true));
    rig.deliver(&rig.flush(2));
    assert!(matches!(rig.pdus()[..], [Pdu::Response(_)]));
    assert_eq!(rig.core.bytes_lent(), 0);
}

#[test]
fn an_in_capsule_command_answered_without_its_data_is_skipped() {
    let mut rig = Rig::open(TcpConfig::default(), DigestFlags::empty(), 0);
    // An SGL that says nothing: the scripted target answers at once and asks for no data.
    let sqe = Sqe::new(WRITE, 1).with_cid(4);
    let mut bytes = rig.capsule(sqe, &payload(512));
    bytes.extend(rig.flush(5));
    rig.core.read_result = 0;
    rig.deliver(&bytes);
    let answers: Vec<_> = rig.core.seen.iter().map(|seen| seen.cid).collect();
    assert_eq!(answers, [4, 5]);
    assert_eq!(rig.pdus().len(), 2);
}

#[test]
fn a_slow_reader_gets_everything_in_order() {
    for chunk in [1, 7, 24, 4096] {
        let mut rig = Rig::open(TcpConfig::default(), DigestFlags::HEADER, 3);
        rig.chunk = chunk;
        rig.peer_reads = false;
        for cid in 0..8 {
            rig.deliver(&rig.read(cid, 600));
            rig.deliver(&rig.flush(100 + cid));
        }
        rig.peer_reads = true;
        rig.work();
        let pdus = rig.pdus();
        assert_eq!(pdus.len(), 16);
        for (cid, pair) in pdus.chunks(2).enumerate() {
            let [Pdu::Data(header, data), Pdu::Response(response)] = pair else { panic!() };
            assert_eq!(usize::from(header.cccid.get()), cid);
            assert_eq!(data, &read_data(cid as u16, 600));
            assert_eq!(usize::from(response.cqe.cid.get()), 100 + cid);
        }
        assert_eq!(rig.core.sent, 16);
        assert_eq!(rig.core.bytes_lent(), 0);
    }
}

#[test]
fn nothing_is_held_at_rest() {
    let mut rig = Rig::open(TcpConfig::default(), DigestFlags::empty(), 0);
    rig.deliver(&rig.read(1, 4096));
    rig.deliver(&rig.write_in_capsule(2, &payload(4096)));
    // One receive buffer and one batch were ever needed, and both are back.
    assert_eq!(rig.buffers.idle(), (1, 1));
    let flush = rig.flush(FLUSH.into());
    rig.deliver(&flush[..10]);
    assert_eq!(rig.buffers.idle(), (0, 1));
    rig.deliver(&flush[10..]);
    assert_eq!(rig.buffers.idle(), (1, 1));
}
