//! Inputs that a fuzzer starts from: valid exchanges, from which small changes lead everywhere.

use nvme::admin::{self, Identify};
use nvme::fabrics::{
    CNTLID_DYNAMIC, Connect, ConnectAttributes, ConnectData, PropertyGet, PropertySet, PropertySize,
};
use nvme::identify::Cns;
use nvme::io;
use nvme::sgl::Sgl;
use nvme::tcp::{CapsuleCmd, DigestFlags, Flags, H2cData, IcReq};
use nvme::{HostId, Nqn, Sqe};
use zerocopy::IntoBytes;

use crate::peer::{SUBSYSTEM, host_nqn, read, write, write_in_capsule};

/// An input with a name, and how many commands succeed in it.
#[derive(Debug)]
pub struct Seed {
    /// Name of its file.
    pub name: &'static str,
    /// The input.
    pub bytes: Vec<u8>,
    /// What the target returns.
    pub succeeded: u32,
}

/// The seeds of a target, by its name.
pub fn seeds(target: &str) -> Vec<Seed> {
    match target {
        "pdus" => pdus(),
        "capsules" => capsules(),
        "connections" => connections(),
        "rdma" => rdma(),
        other => panic!("there is no target {other}"),
    }
}

fn connect_capsule(qid: u16, cntlid: u16) -> (Sqe, ConnectData) {
    let connect =
        Connect { recfmt: 0, qid, sqsize: 15, cattr: ConnectAttributes::default(), kato: 0 };
    let subsystem: Nqn = SUBSYSTEM.parse().unwrap();
    let data = ConnectData::new(HostId([7; 16]), cntlid, &subsystem, &host_nqn(1));
    (connect.to_sqe().with_sgl(Sgl::InCapsule { offset: 0, length: 1024 }), data)
}

fn enable() -> Sqe {
    PropertySet { size: PropertySize::Four, offset: 0x14, value: 0x0046_0001 }.to_sqe()
}

fn identify() -> Sqe {
    let identify = admin::Command::Identify(Identify::new(Cns::Controller));
    identify.to_sqe(0).with_sgl(Sgl::TransportData { length: 4096 })
}

fn pdu(header: &[u8], data: &[u8]) -> Vec<u8> {
    [header, data].concat()
}

fn capsule(sqe: Sqe, data: &[u8]) -> Vec<u8> {
    pdu(CapsuleCmd::new(sqe, Flags::empty(), 0, data.len() as u32).as_bytes(), data)
}

fn pdus() -> Vec<Seed> {
    // 64 KiB of data in a capsule are allowed by the first byte; no digests, alignment 0.
    let seed = |name, bytes: Vec<u8>| Seed {
        name,
        bytes: [&[0xf8, 0][..], &bytes].concat(),
        succeeded: 0,
    };
    let (connect, data) = connect_capsule(0, CNTLID_DYNAMIC);
    let flush = io::Command::Flush.to_sqe(1);
    vec![
        seed("icreq", IcReq::new(0, DigestFlags::all(), 0).as_bytes().to_vec()),
        seed("connect", capsule(connect, data.as_bytes())),
        seed("write-in-capsule", capsule(write_in_capsule(1, 0, 512), &[7; 512])),
        seed("data", pdu(H2cData::new(1, 0, 0, 64, Flags::LAST, 0).as_bytes(), &[7; 64])),
        seed("sqe-read", read(1, 0, 512).as_bytes().to_vec()),
        seed("sqe-flush", flush.as_bytes().to_vec()),
        seed("sqe-identify", identify().as_bytes().to_vec()),
        seed("sqe-property-set", enable().as_bytes().to_vec()),
        seed("connect-data", data.as_bytes().to_vec()),
        seed("nqn", host_nqn(1).to_wire().to_vec()),
    ]
}

/// Steps of the target `capsules`; see its `step`.
fn capsules() -> Vec<Seed> {
    let any = |sqe: Sqe| [&[1][..], sqe.as_bytes(), &[0, 0, 0]].concat();
    let on_io = |sqe: Sqe| [&[1][..], sqe.as_bytes(), &[0, 0, 1]].concat();
    let admin: Vec<u8> = [&[0, 2, 0, 8, 11, 4, 0, 0, 8, 11][..]].concat();
    let io: Vec<u8> = [&admin[..], &[0, 3, 1, 1, 8, 11]].concat();
    let version = PropertyGet { size: PropertySize::Four, offset: 8 }.to_sqe();
    let script = |parts: &[&[u8]]| parts.concat();
    vec![
        Seed { name: "admin", bytes: script(&[&admin, &any(version), &[11]]), succeeded: 3 },
        Seed { name: "identify", bytes: script(&[&admin, &any(identify()), &[11]]), succeeded: 3 },
        Seed {
            name: "write-and-read",
            bytes: script(&[
                &io,
                &on_io(write(1, 0, 512)),
                &[8, 4, 1, 2, 3, 4, 11],
                &on_io(read(2, 0, 512)),
                &[11],
            ]),
            succeeded: 5,
        },
        Seed {
            name: "closed-while-data-is-owed",
            bytes: script(&[&io, &on_io(write(1, 0, 4096)), &[13, 1]]),
            succeeded: 3,
        },
        Seed {
            name: "reset-while-data-is-owed",
            bytes: script(&[&io, &on_io(write(1, 0, 4096)), &[4, 1, 0, 8, 8]]),
            succeeded: 4,
        },
        Seed { name: "nothing-comes", bytes: vec![0, 0, 14, 0xff, 0xff], succeeded: 0 },
    ]
}

/// A stream as steps of the target `connections`: pieces of bytes as they are.
fn stream(connection: u8, bytes: &[u8], piece: usize) -> Vec<u8> {
    let step = |piece: &[u8]| {
        let length = (piece.len() as u16).to_le_bytes();
        [&[connection][..], &length, piece].concat()
    };
    bytes.chunks(piece).flat_map(step).collect()
}

fn connections() -> Vec<Seed> {
    let opening = |digests| IcReq::new(0, digests, 0).as_bytes().to_vec();
    let (connect, data) = connect_capsule(0, CNTLID_DYNAMIC);
    let plain = opening(DigestFlags::empty());
    let connect = capsule(connect, data.as_bytes());
    let admin = [&plain[..], &connect, &capsule(enable(), &[])].concat();
    // The first controller of a shard that is alone has identifier 1.
    let (connect_io, data_io) = connect_capsule(1, 1);
    let io = [&plain[..], &capsule(connect_io, data_io.as_bytes())].concat();
    let both = |piece| [stream(0, &admin, piece), stream(1, &io, piece)].concat();
    let in_capsule = capsule(write_in_capsule(1, 0, 1024), &[9; 1024]);
    let request = capsule(write(2, 0, 8192), &[]);
    let reading = capsule(read(3, 0, 8192), &[]);
    let digest_capsule = |sqe: Sqe, data: &[u8]| {
        let length = (data.len() as u16).to_le_bytes();
        [&[80 << 1][..], sqe.as_bytes(), &length, data].concat()
    };
    let (connect_sqe, connect_data) = connect_capsule(0, CNTLID_DYNAMIC);
    vec![
        Seed { name: "admin", bytes: stream(0, &admin, 2047), succeeded: 2 },
        Seed { name: "admin-byte-by-byte", bytes: stream(0, &admin[..290], 1), succeeded: 0 },
        Seed {
            name: "write-and-read",
            bytes: [
                both(700),
                stream(1, &[&in_capsule[..], &request].concat(), 500),
                vec![96 << 1 | 1, 0],
                stream(1, &reading, 10),
            ]
            .concat(),
            succeeded: 6,
        },
        Seed {
            name: "digests",
            bytes: [
                stream(0, &opening(DigestFlags::all()), 128),
                digest_capsule(connect_sqe, connect_data.as_bytes()),
                digest_capsule(enable(), &[]),
                digest_capsule(identify(), &[]),
            ]
            .concat(),
            succeeded: 3,
        },
        Seed {
            name: "not-read",
            bytes: [both(2047), vec![116 << 1 | 1], stream(1, &reading.repeat(12), 2047)].concat(),
            succeeded: 3,
        },
        Seed {
            name: "cut-while-data-is-owed",
            bytes: [both(2047), stream(1, &request, 72), vec![0xff]].concat(),
            succeeded: 3,
        },
        Seed {
            name: "data-that-is-wrong",
            bytes: [both(2047), stream(1, &request, 72), vec![96 << 1 | 1, 2]].concat(),
            succeeded: 3,
        },
        Seed {
            name: "data-that-does-not-come",
            bytes: [both(2047), stream(1, &request, 72), vec![112 << 1, 0xff, 0xff]].concat(),
            succeeded: 3,
        },
    ]
}

/// Instructions to [`rdma`](super::rdma): the kind of device, then steps.
fn rdma() -> Vec<Seed> {
    let seed = |name, kind: u8, steps: &[&[u8]], succeeded| Seed {
        name,
        bytes: [&[kind], steps.concat().as_slice()].concat(),
        succeeded,
    };
    let (controller, queue): (&[u8], &[u8]) = (&[1, 0], &[1, 0]);
    // What, CID, blocks less one, LBA; then which queue.
    let read: &[u8] = &[3, 0, 1, 0, 7, 8, 0, 0];
    let write: &[u8] = &[3, 1, 2, 0, 7, 8, 0, 0];
    let in_capsule: &[u8] = &[3, 5, 3, 0, 3, 8, 0, 0, 0, 8, 0];
    let listed: &[u8] = &[3, 6, 4, 0, 7, 8, 0, 0, 4, 0, 0];
    let settle: &[u8] = &[8];
    let mut request = vec![0, 32];
    request.extend(nvme::rdma::Request::new(0, 32, 0).as_bytes());
    request.extend([16, 7, 0]);
    let mut raw = vec![2, 64, 0];
    raw.extend(identify().as_bytes());
    raw.push(0);
    let all: &[&[u8]] = &[controller, queue, read, write, in_capsule, listed, settle, settle];
    vec![
        seed("commands", 0, all, 4),
        seed("own-receives", 1, &[controller, queue, read, write, listed, settle, settle], 3),
        seed("short-queues", 30, all, 4),
        seed("raw", 0, &[&request, settle, &raw, settle, settle], 0),
        seed("vanishing", 4, &[controller, queue, read, write, &[12, 0], settle, &[15]], 0),
        seed("held", 8, &[controller, queue, &[13, 1, 0, 0], read, write, settle, &[10, 200]], 0),
    ]
}
