//! Breaches of the protocol: each is answered by a termination request with the fatal error status that it
//! calls for, and costs nobody but its connection anything.

use std::net::SocketAddr;

use nvme::Status;
use nvme::sgl::Sgl;
use nvme::tcp::{CapsuleCmd, DigestFlags, FatalErrorStatus as Fes, Flags, H2cData, IcReq, PduType};
use testkit::Random;
use testkit::peer::{Admin, Pdu, Peer, pattern, read, write, write_in_capsule};
use zerocopy::IntoBytes;

use crate::bystander::Bystander;
use crate::support::node::Plan;
use crate::{ends_clean, read_to_end, start};

/// How far a connection has come when it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing was said.
    Connected,
    /// `ICReq` and `ICResp`.
    Negotiated(DigestFlags),
    /// An I/O queue that owes 16 KiB for command 9 under tag 0.
    OwesData,
}

const PLAIN: Stage = Stage::Negotiated(DigestFlags::empty());
const OWED: usize = 16 << 10;

/// The PDU with some of its bytes replaced.
fn altered(pdu: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut pdu = pdu.to_vec();
    pdu[at..at + bytes.len()].copy_from_slice(bytes);
    pdu
}

fn h2c_data(cid: u16, ttag: u16, offset: usize, length: usize, last: bool) -> Vec<u8> {
    let flags = if last { Flags::LAST } else { Flags::empty() };
    let pdu = H2cData::new(cid, ttag, offset as u32, length as u32, flags, 0);
    let mut bytes = pdu.as_bytes().to_vec();
    bytes.resize(bytes.len() + length, 0x5a);
    bytes
}

/// Every breach, by name: where it happens, the bytes, and the answer.
fn breaches() -> Vec<(&'static str, Stage, Vec<u8>, Fes)> {
    let ic_req = IcReq::new(0, DigestFlags::empty(), 0);
    let ic_req = ic_req.as_bytes();
    let capsule = CapsuleCmd::new(read(1, 0, 512), Flags::empty(), 0, 0);
    let capsule = capsule.as_bytes();
    let mut full =
        CapsuleCmd::new(write_in_capsule(2, 0, 512), Flags::empty(), 0, 512).as_bytes().to_vec();
    full.extend(pattern(1, 512));
    let digest = CapsuleCmd::new(read(1, 0, 512), Flags::HEADER_DIGEST, 0, 0);
    let mut digest = digest.as_bytes().to_vec();
    digest.extend([1, 2, 3, 4]);
    let header = Stage::Negotiated(DigestFlags::HEADER);
    let field = Fes::InvalidHeaderField;
    let first = |byte: u8| altered(capsule, 0, &[byte]);
    let length = |plen: u32| altered(capsule, 4, &plen.to_le_bytes());
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hello".to_vec();
    vec![
        ("garbage first", Stage::Connected, vec![0xff; 4096], field),
        ("HTTP", Stage::Connected, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), field),
        ("TLS", Stage::Connected, tls_hello, field),
        ("a command first", Stage::Connected, capsule.to_vec(), Fes::PduSequence),
        ("data first", Stage::Connected, h2c_data(1, 0, 0, 512, true), Fes::PduSequence),
        ("PFV", Stage::Connected, altered(ic_req, 8, &[1]), Fes::UnsupportedParameter),
        ("HPDA", Stage::Connected, altered(ic_req, 10, &[200]), field),
        ("a short ICReq", Stage::Connected, altered(ic_req, 4, &[127]), field),
        ("a long ICReq", Stage::Connected, altered(ic_req, 4, &[0, 0, 0, 0x7f]), field),
        ("ICReq twice", PLAIN, ic_req.to_vec(), Fes::PduSequence),
        ("garbage later", PLAIN, vec![0xff; 100_000], field),
        ("an unknown type", PLAIN, first(0x0a), field),
        ("ICResp from a host", PLAIN, first(PduType::IcResp.code()), field),
        ("a response from a host", PLAIN, first(PduType::CapsuleResp.code()), field),
        ("an R2T from a host", PLAIN, first(PduType::R2t.code()), field),
        ("C2HData from a host", PLAIN, first(PduType::C2hData.code()), field),
        ("HLEN", PLAIN, altered(capsule, 2, &[73]), field),
        ("PDO", PLAIN, altered(&full, 3, &[8]), field),
        ("PDO beyond the PDU", PLAIN, altered(&full, 3, &[255]), field),
        ("PLEN 0", PLAIN, length(0), field),
        ("PLEN below the header", PLAIN, length(71), field),
        ("PLEN 4 GiB", PLAIN, length(u32::MAX), field),
        ("a digest not agreed on", PLAIN, altered(capsule, 1, &[1]), field),
        ("a header digest missing", header, capsule.to_vec(), field),
        ("a header digest wrong", header, digest, Fes::HeaderDigest),
        ("data nobody asked for", PLAIN, h2c_data(1, 0, 0, 512, true), field),
        ("another tag", Stage::OwesData, h2c_data(9, 1, 0, 512, false), field),
        ("another command", Stage::OwesData, h2c_data(8, 0, 0, 512, false), field),
        ("no data", Stage::OwesData, h2c_data(9, 0, 0, 0, false), field),
        ("LAST early", Stage::OwesData, h2c_data(9, 0, 0, 512, true), field),
        ("LAST missing", Stage::OwesData, h2c_data(9, 0, 0, OWED, false), field),
        (
            "data out of order",
            Stage::OwesData,
            h2c_data(9, 0, 512, 512, false),
            Fes::DataTransferOutOfRange,
        ),
        (
            "too much data",
            Stage::OwesData,
            h2c_data(9, 0, 0, OWED + 512, true),
            Fes::DataTransferOutOfRange,
        ),
        (
            "more than MAXH2CDATA",
            Stage::OwesData,
            h2c_data(9, 0, 0, (128 << 10) + 4, true),
            Fes::DataTransferLimit,
        ),
    ]
}

fn reach(stage: Stage, address: SocketAddr, admin: &Admin) -> Peer {
    match stage {
        Stage::Connected => Peer::connect(address),
        Stage::Negotiated(digests) => Peer::negotiated(address, digests),
        Stage::OwesData => {
            let mut queue = admin.queue(address, 1, DigestFlags::empty());
            let command = queue.capsule(write(9, 0, OWED as u32), &[]);
            queue.send(&command);
            let Pdu::Request(request) = queue.receive() else { panic!("no R2T") };
            assert_eq!((request.ttag.get(), request.r2tl.get()), (0, OWED as u32));
            queue
        }
    }
}

#[test]
fn each_breach_gets_its_termination_request() {
    let (node, address) = start(&Plan::default());
    let bystander = Bystander::start(address, 9, 16 << 10);
    let breaches = breaches();
    for (index, (name, stage, bytes, status)) in breaches.iter().enumerate() {
        let admin = Admin::connect(address, 0, DigestFlags::empty());
        let mut peer = reach(*stage, address, &admin);
        // All at once, and every third one in pieces that cut the header.
        let cut = if index % 3 == 0 { bytes.len().min(5) } else { 0 };
        peer.send(&bytes[..cut]);
        // The node may end the connection before it has everything.
        let _ = std::io::Write::write_all(&mut peer.stream, &bytes[cut..]);
        match peer.receive() {
            Pdu::Termination(request, copy) => {
                assert_eq!(request.status(), *status, "{name}");
                assert!(!copy.is_empty() && bytes.starts_with(&copy), "{name}: {copy:x?}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(read_to_end(&mut peer), 0, "{name}: nothing follows");
        bystander.goes_on(1);
    }
    let counters = node.tcp_counters();
    let terminations = counters.terminations_header_field
        + counters.terminations_sequence
        + counters.terminations_header_digest
        + counters.terminations_range
        + counters.terminations_limit
        + counters.terminations_parameter;
    assert_eq!(terminations, breaches.len() as u64);
    bystander.stop();
    ends_clean(&node);
}

#[test]
fn wrong_data_costs_its_command_only() {
    let (node, address) = start(&Plan::default());
    let admin = Admin::connect(address, 0, DigestFlags::empty());
    let mut queue = admin.queue(address, 1, DigestFlags::DATA);
    let mut damaged = queue.capsule(write_in_capsule(1, 0, 512), &pattern(1, 512));
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    queue.send(&damaged);
    let Pdu::Response(cqe) = queue.receive() else { panic!("no response") };
    assert!(cqe.status().same_code(Status::TRANSIENT_TRANSPORT_ERROR), "{cqe:?}");
    // More, or less, in the capsule than the command says; a data pointer that leads elsewhere.
    for (cid, sqe, data) in [
        (2, write_in_capsule(2, 0, 1024), 512),
        (3, write_in_capsule(3, 0, 512), 1024),
        (4, write(4, 0, 512).with_sgl(Sgl::InCapsule { offset: 512, length: 512 }), 512),
        (5, write(5, 0, 512).with_sgl(Sgl::InCapsule { offset: u64::MAX, length: 512 }), 512),
        (6, write(6, 0, 512).with_sgl(Sgl::TransportData { length: u32::MAX }), 0),
        (7, write(7, !511, 512), 0),
    ] {
        let capsule = queue.capsule(sqe, &pattern(2, data));
        queue.send(&capsule);
        let Pdu::Response(cqe) = queue.receive() else { panic!("no response to command {cid}") };
        assert_eq!(cqe.cid.get(), cid);
        assert!(!cqe.status().is_success(), "command {cid}: {cqe:?}");
    }
    let capsule = queue.capsule(write_in_capsule(8, 0, 512), &pattern(3, 512));
    queue.send(&capsule);
    let Pdu::Response(cqe) = queue.receive() else { panic!("no response") };
    assert!(cqe.status().is_success(), "the queue still works: {cqe:?}");
    drop((queue, admin));
    ends_clean(&node);
}

/// Valid PDUs with random damage, random bytes, random cuts: whatever happens, it is the peer's connection
/// that suffers.
#[test]
fn random_damage_harms_nobody_else() {
    let (node, address) = start(&Plan::default());
    let bystander = Bystander::start(address, 9, 8192);
    let mut random = Random::new(1);
    for round in 0..300 {
        let admin = (round % 2 == 0).then(|| Admin::connect(address, 0, DigestFlags::empty()));
        let mut peer = match &admin {
            Some(admin) => admin.queue(address, 1, DigestFlags::empty()),
            None => Peer::negotiated(address, DigestFlags::empty()),
        };
        let mut bytes: Vec<u8> = (0..8)
            .flat_map(|cid| match random.below(4) {
                0 => peer.capsule(read(cid, 0, 4096), &[]),
                1 => peer.capsule(write(cid, 0, 16 << 10), &[]),
                2 => peer.capsule(write_in_capsule(cid, 0, 4096), &pattern(1, 4096)),
                _ => h2c_data(cid, cid, 0, 512, false),
            })
            .collect();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.below(256) as u8;
        }
        bytes.truncate(random.below(bytes.len() as u64) as usize);
        let _ = std::io::Write::write_all(&mut peer.stream, &bytes);
        if round % 3 == 0 {
            // Rudely: what comes meanwhile is not read.
            continue;
        }
        peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
        read_to_end(&mut peer);
    }
    bystander.goes_on(5);
    bystander.stop();
    ends_clean(&node);
}
