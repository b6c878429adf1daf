//! A host that speaks in PDUs, or in any bytes that a test likes: what a well-behaved initiator cannot say.
//!
//! Blocking, on whichever thread the test has. It panics where a test would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::missing_panics_doc)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nvme::fabrics::{
    CNTLID_DYNAMIC, Connect, ConnectAttributes, ConnectData, PropertyGet, PropertySet, PropertySize,
};
use nvme::io::{self as nvme_io, Transfer};
use nvme::sgl::Sgl;
use nvme::tcp::{
    C2hData, CapsuleResp, CommonHeader, DigestFlags, IcReq, IcResp, PduType, R2t, Receiver, Rules,
    TermReq, crc32c,
};
use nvme::{Cqe, HostId, Nqn, Sqe, Status};
use zerocopy::{FromBytes, IntoBytes};

use crate::pdus;

/// The subsystem that [`Admin`] connects to.
pub const SUBSYSTEM: &str = "nqn.2026-11.io.tidegate:test";
/// Bytes of its blocks.
pub const BLOCK: u32 = 512;

/// A PDU that came from the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pdu {
    /// `ICResp`.
    Agreement(IcResp),
    /// `C2HData` with its data.
    Data(C2hData, Vec<u8>),
    /// `CapsuleResp`.
    Response(Cqe),
    /// `R2T`.
    Request(R2t),
    /// `C2HTermReq` with the header that it complains about.
    Termination(TermReq, Vec<u8>),
}

/// A host that speaks in PDUs, or in bytes.
#[derive(Debug)]
pub struct Peer {
    /// To send and receive past all rules.
    pub stream: TcpStream,
    rules: Rules,
}

impl Peer {
    /// Connected, nothing said.
    pub fn connect(address: SocketAddr) -> Peer {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        let rules = Rules::new(Receiver::Host, u32::MAX);
        Peer { stream, rules }
    }

    /// Agreed on digests.
    pub fn negotiated(address: SocketAddr, digests: DigestFlags) -> Peer {
        let mut peer = Peer::connect(address);
        peer.send(IcReq::new(0, digests, 0).as_bytes());
        let Pdu::Agreement(response) = peer.receive() else { panic!() };
        assert_eq!(response.digests(), digests);
        peer.rules.header_digest = digests.contains(DigestFlags::HEADER);
        peer.rules.data_digest = digests.contains(DigestFlags::DATA);
        peer
    }

    /// Sends any bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next PDU, its digests checked.
    pub fn receive(&mut self) -> Pdu {
        self.try_receive().unwrap()
    }

    /// The next PDU, or why there is none.
    pub fn try_receive(&mut self) -> io::Result<Pdu> {
        let mut bytes = vec![0; 8];
        self.stream.read_exact(&mut bytes)?;
        let common = CommonHeader::read_from_bytes(&bytes).unwrap();
        let layout = common.check(&self.rules).unwrap();
        bytes.resize(layout.length as usize, 0);
        self.stream.read_exact(&mut bytes[8..])?;
        let header = &bytes[..layout.header_length as usize];
        if layout.header_digest {
            assert_eq!(bytes[header.len()..header.len() + 4], crc32c(header).to_le_bytes());
        }
        let end = (layout.data_offset + layout.data_length) as usize;
        let data = bytes[layout.data_offset as usize..end].to_vec();
        if layout.data_digest {
            assert_eq!(bytes[end..], crc32c(&data).to_le_bytes());
        }
        Ok(match layout.pdu_type {
            PduType::IcResp => Pdu::Agreement(IcResp::read_from_bytes(header).unwrap()),
            PduType::C2hData => Pdu::Data(C2hData::read_from_bytes(header).unwrap(), data),
            PduType::CapsuleResp => {
                Pdu::Response(CapsuleResp::read_from_bytes(header).unwrap().cqe)
            }
            PduType::R2t => Pdu::Request(R2t::read_from_bytes(header).unwrap()),
            PduType::C2hTermReq => {
                Pdu::Termination(TermReq::read_from_bytes(header).unwrap(), data)
            }
            other => panic!("{other} from a controller"),
        })
    }

    /// Whether the controller has closed its half.
    pub fn at_end(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
    }

    /// A command capsule with data in it.
    pub fn capsule(&self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        pdus::capsule(&self.rules, sqe, data)
    }

    /// An `H2CData`.
    pub fn data(&self, cid: u16, ttag: u16, offset: usize, data: &[u8], last: bool) -> Vec<u8> {
        pdus::h2c_data(&self.rules, cid, ttag, offset as u32, data, last)
    }

    /// Sends a command and waits for its completion, which no data precedes.
    pub fn execute(&mut self, sqe: Sqe, data: &[u8]) -> Cqe {
        let bytes = self.capsule(sqe, data);
        self.send(&bytes);
        let Pdu::Response(cqe) = self.receive() else { panic!() };
        assert_eq!(cqe.cid, sqe.cid);
        cqe
    }
}

/// The host of this number.
pub fn host_nqn(number: usize) -> Nqn {
    format!("nqn.2026-11.io.tidegate:host-{number}").parse().unwrap()
}

/// Its identifier.
pub fn host_id(number: usize) -> HostId {
    let mut id = [7; 16];
    id[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    HostId(id)
}

fn fabrics_connect(
    peer: &mut Peer,
    host: usize,
    qid: u16,
    cntlid: u16,
    no_flow_control: bool,
) -> u16 {
    let cattr = ConnectAttributes {
        disable_sq_flow_control: no_flow_control,
        ..ConnectAttributes::default()
    };
    let sqsize = if qid == 0 { 31 } else { 127 };
    let connect = Connect { recfmt: 0, qid, sqsize, cattr, kato: 0 };
    let subsystem: Nqn = SUBSYSTEM.parse().unwrap();
    let data = ConnectData::new(host_id(host), cntlid, &subsystem, &host_nqn(host));
    let sgl = Sgl::InCapsule { offset: 0, length: 1024 };
    let cqe = peer.execute(connect.to_sqe().with_sgl(sgl), data.as_bytes());
    assert_eq!(cqe.status(), Status::SUCCESS, "{cqe:?}");
    cqe.dw0() as u16
}

/// An admin queue with its controller enabled.
#[derive(Debug)]
pub struct Admin {
    /// The admin queue.
    pub peer: Peer,
    /// Its controller.
    pub cntlid: u16,
    host: usize,
}

impl Admin {
    /// Connects as host number `host` and enables the controller.
    pub fn connect(address: SocketAddr, host: usize, digests: DigestFlags) -> Admin {
        let mut peer = Peer::negotiated(address, digests);
        let cntlid = fabrics_connect(&mut peer, host, 0, CNTLID_DYNAMIC, false);
        // CC: EN, I/O queue entries of 64 and 16 bytes.
        let enable = PropertySet { size: PropertySize::Four, offset: 0x14, value: 0x0046_0001 };
        assert!(peer.execute(enable.to_sqe(), &[]).status().is_success());
        loop {
            let status = PropertyGet { size: PropertySize::Four, offset: 0x1c };
            let cqe = peer.execute(status.to_sqe(), &[]);
            assert!(cqe.status().is_success());
            if cqe.dw0() & 1 == 1 {
                break;
            }
        }
        Admin { peer, cntlid, host }
    }

    /// An I/O queue of this controller.
    pub fn queue(&self, address: SocketAddr, qid: u16, digests: DigestFlags) -> Peer {
        let mut peer = Peer::negotiated(address, digests);
        fabrics_connect(&mut peer, self.host, qid, self.cntlid, false);
        peer
    }
}

/// A read of `length` bytes at `offset`.
pub fn read(cid: u16, offset: u64, length: u32) -> Sqe {
    let transfer = Transfer::new(offset / u64::from(BLOCK), length / BLOCK);
    let sqe = nvme_io::Command::Read(transfer).to_sqe(1);
    sqe.with_cid(cid).with_sgl(Sgl::TransportData { length })
}

/// A write whose data is asked for by R2T.
pub fn write(cid: u16, offset: u64, length: u32) -> Sqe {
    let transfer = Transfer::new(offset / u64::from(BLOCK), length / BLOCK);
    let sqe = nvme_io::Command::Write(transfer).to_sqe(1);
    sqe.with_cid(cid).with_sgl(Sgl::TransportData { length })
}

/// A write whose data is in the capsule.
pub fn write_in_capsule(cid: u16, offset: u64, length: u32) -> Sqe {
    write(cid, offset, length).with_sgl(Sgl::InCapsule { offset: 0, length })
}

/// Bytes that tell their place.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let word = |i: usize| (seed << 32) ^ (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..length.div_ceil(8)).flat_map(|i| word(i).to_le_bytes()).take(length).collect()
}
