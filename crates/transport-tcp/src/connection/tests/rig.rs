//! A connection between a scripted target and bytes that a test makes up.

use std::collections::VecDeque;
use std::time::Duration;

use memory::vectored::{Piece, Space};
use memory::{Arena, ArenaConfig, Buffer, Hugepages, Pool, SLAB_SIZE, Segment};
use nvme::sgl::Sgl;
use nvme::tcp::{
    C2hData, CapsuleCmd, CapsuleResp, CommonHeader, DigestFlags, Flags, H2cData, IcReq, IcResp,
    Layout, PduType, R2t, Receiver, Rules, TermReq, crc32c,
};
use nvme::{Cqe, Sqe, Status};
use reactor::Instant;
use target::{Action, CommandRefused, Lease, QueueId, RequestId};
use zerocopy::{FromBytes, IntoBytes};

use crate::buffers::Buffers;
use crate::config::TcpConfig;
use crate::connection::{Addresses, Advance, CommandIds, Connection, Core, Turn};
use crate::counters::Counters;

pub(super) const QUEUE: QueueId = QueueId { slot: 3, generation: 1 };
pub(super) const WRITE: u8 = 0x01;
pub(super) const READ: u8 = 0x02;
pub(super) const FLUSH: u8 = 0x00;

/// A command as the scripted target saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) cid: u16,
    pub(super) data: Vec<u8>,
    pub(super) result: Result<(), Status>,
}

#[derive(Debug)]
struct Held {
    sqe: Sqe,
    length: u32,
    in_capsule: bool,
    buffer: Option<Buffer>,
}

/// A target that does what its fields say: a few slots and buffers, answers at once.
#[derive(Debug)]
pub(super) struct Script {
    pool: Pool,
    held: Vec<Option<Held>>,
    pub(super) actions: VecDeque<Action>,
    /// Commands taken at a time.
    pub(super) slots: usize,
    /// Buffers lent at a time.
    pub(super) buffers: usize,
    waiting: VecDeque<RequestId>,
    refused: bool,
    pub(super) seen: Vec<Seen>,
    pub(super) sent: usize,
    pub(super) queues: usize,
    pub(super) flow_control: bool,
    pub(super) read_result: u32,
    pub(super) answer: bool,
}

impl Script {
    fn new() -> Script {
        let config = ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never };
        Script {
            pool: Arena::new(config).pool(SLAB_SIZE).unwrap(),
            held: Vec::new(),
            actions: VecDeque::new(),
            slots: 16,
            buffers: 16,
            waiting: VecDeque::new(),
            refused: false,
            seen: Vec::new(),
            sent: 0,
            queues: 0,
            flow_control: true,
            read_result: 0,
            answer: true,
        }
    }

    pub(super) fn outstanding(&self) -> usize {
        self.held.iter().flatten().count()
    }

    pub(super) fn bytes_lent(&self) -> usize {
        self.pool.capacity() - self.pool.available()
    }

    fn lent(&self) -> usize {
        self.held.iter().flatten().filter(|held| held.buffer.is_some()).count()
    }

    /// Lends buffers to those that wait, oldest first.
    fn lend(&mut self) {
        while self.lent() < self.buffers
            && let Some(request) = self.waiting.pop_front()
        {
            let Some(held) = &mut self.held[request.slot as usize] else { continue };
            held.buffer = self.pool.take(held.length as usize);
            if held.buffer.is_none() {
                self.waiting.push_front(request);
                return;
            }
            let (length, in_capsule) = (held.length, held.in_capsule);
            if held.sqe.opcode == READ {
                let cid = held.sqe.cid.get();
                let buffer = held.buffer.as_mut().unwrap();
                buffer.bytes_mut().unwrap().copy_from_slice(&read_data(cid, length));
                self.respond(request, Status::SUCCESS, length);
            } else {
                let queue = QUEUE;
                self.actions.push_back(Action::Receive { queue, request, length, in_capsule });
            }
        }
    }

    pub(super) fn respond(&mut self, request: RequestId, status: Status, data: u32) {
        let held = self.held[request.slot as usize].as_ref().unwrap();
        let cqe = Cqe::new(held.sqe.cid.get(), 1, status).with_dw0(self.read_result);
        let flow_control = self.flow_control;
        self.actions.push_back(Action::Respond { queue: QUEUE, request, cqe, data, flow_control });
    }
}

/// What a read of command `cid` returns.
pub(super) fn read_data(cid: u16, length: u32) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(7) ^ u32::from(cid)) as u8).collect()
}

impl Core for Script {
    fn open_queue(&mut self, _: &Addresses, _: u32) -> Option<QueueId> {
        self.queues += 1;
        Some(QUEUE)
    }

    fn command(
        &mut self,
        queue: QueueId,
        sqe: &Sqe,
        data: u32,
    ) -> Result<RequestId, CommandRefused> {
        assert_eq!(queue, QUEUE);
        if self.outstanding() >= self.slots {
            self.refused = true;
            return Err(CommandRefused::Busy);
        }
        let slot = self.held.iter().position(Option::is_none).unwrap_or(self.held.len());
        if slot == self.held.len() {
            self.held.push(None);
        }
        let length = sqe.sgl().length();
        self.held[slot] = Some(Held { sqe: *sqe, length, in_capsule: data > 0, buffer: None });
        let request = RequestId { slot: slot as u32, generation: 0 };
        if length > 1 << 20 {
            self.respond(request, Status::INVALID_FIELD, 0);
        } else if length > 0 {
            self.waiting.push_back(request);
            self.lend();
        } else {
            let none = Seen { cid: sqe.cid.get(), data: Vec::new(), result: Ok(()) };
            self.seen.push(none);
            self.respond(request, Status::SUCCESS, 0);
        }
        Ok(request)
    }

    fn data_received(&mut self, request: RequestId, result: Result<(), Status>) {
        let held = self.held[request.slot as usize].as_ref().unwrap();
        let segment = held.buffer.as_ref().unwrap().segment(0, held.length as usize).unwrap();
        let mut data = vec![0; held.length as usize];
        segment.copy_to(0, &mut data);
        self.seen.push(Seen { cid: held.sqe.cid.get(), data, result });
        if self.answer {
            self.respond(request, result.err().unwrap_or(Status::SUCCESS), 0);
        }
    }

    fn response_sent(&mut self, request: RequestId) {
        self.sent += 1;
        assert!(self.held[request.slot as usize].take().is_some());
        self.lend();
        if std::mem::take(&mut self.refused) {
            self.actions.push_back(Action::Resume { queue: QUEUE });
        }
    }

    fn close_queue(&mut self, queue: QueueId) {
        assert_eq!(queue, QUEUE);
        self.queues -= 1;
        self.held.clear();
        self.actions.clear();
        self.waiting.clear();
    }

    fn segment(&self, request: RequestId, offset: u32, length: u32) -> Option<Segment> {
        let held = self.held.get(request.slot as usize)?.as_ref()?;
        held.buffer.as_ref()?.segment(offset as usize, length as usize)
    }

    fn give_back(&mut self, _: RequestId) -> Lease {
        Lease::None
    }

    fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }
}

/// A PDU that came from the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pdu {
    Agreement(IcResp),
    Data(C2hData, Vec<u8>),
    Response(CapsuleResp),
    Request(R2t),
    Termination(TermReq, Vec<u8>),
}

/// Everything around one connection.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) connection: Connection,
    pub(super) core: Script,
    pub(super) buffers: Buffers,
    ids: CommandIds,
    pub(super) config: TcpConfig,
    pub(super) counters: Counters,
    pub(super) now: Instant,
    /// Whether the peer reads; bytes that the socket takes at a time.
    pub(super) peer_reads: bool,
    pub(super) chunk: usize,
    pub(super) out: Vec<u8>,
    rules: Rules,
    cpda: u8,
}

impl Rig {
    pub(super) fn new(config: TcpConfig) -> Rig {
        let config = config.clamped();
        let now = Instant::from_nanos(1_000_000);
        let end = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let addresses = Addresses { local: end(4420), peer: end(50_000) };
        Rig {
            connection: Connection::new(addresses, &config, now),
            core: Script::new(),
            buffers: Buffers::new(config.receive_buffer),
            ids: CommandIds::default(),
            config,
            counters: Counters::default(),
            now,
            peer_reads: true,
            chunk: usize::MAX,
            out: Vec::new(),
            rules: Rules {
                receiver: Receiver::Host,
                header_digest: false,
                data_digest: false,
                alignment: 0,
                max_capsule_data: 0,
                max_data: u32::MAX,
            },
            cpda: 0,
        }
    }

    /// One that has agreed with its host.
    pub(super) fn open(config: TcpConfig, digests: DigestFlags, hpda: u8) -> Rig {
        let mut rig = Rig::new(config);
        rig.deliver(IcReq::new(hpda, digests, 0).as_bytes());
        rig.agree(digests, hpda);
        let pdus = rig.pdus();
        assert!(matches!(pdus[..], [Pdu::Agreement(_)]), "{pdus:?}");
        rig
    }

    /// From now on PDUs are read by these rules.
    pub(super) fn agree(&mut self, digests: DigestFlags, hpda: u8) {
        self.rules.header_digest = digests.contains(DigestFlags::HEADER);
        self.rules.data_digest = digests.contains(DigestFlags::DATA);
        self.rules.alignment = hpda;
    }

    pub(super) fn turn<R>(
        &mut self,
        act: impl FnOnce(&mut Connection, &mut Turn<'_, Script>) -> R,
    ) -> R {
        let mut turn = Turn {
            core: &mut self.core,
            buffers: &mut self.buffers,
            command_ids: &mut self.ids,
            config: &self.config,
            counters: &self.counters,
            now: self.now,
        };
        act(&mut self.connection, &mut turn)
    }

    /// As the transport does it: bytes in while they are wanted, actions, bytes out. Returns what
    /// was not wanted.
    pub(super) fn deliver<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        loop {
            self.work();
            if bytes.is_empty() || !self.connection.wants_bytes() {
                return bytes;
            }
            let (direct, buffer) = self.connection.spaces(&mut self.buffers);
            let mut count = 0;
            for space in direct.into_iter().chain([buffer]) {
                count += put(space, &bytes[count..]);
            }
            assert!(count > 0, "there is room where bytes are wanted");
            self.connection.filled(count, &mut self.buffers);
            bytes = &bytes[count..];
        }
    }

    /// Everything that can be done without more bytes.
    pub(super) fn work(&mut self) {
        loop {
            let mut budget = self.config.pdus_per_turn;
            let outcome = self.turn(|connection, turn| connection.advance(turn, &mut budget));
            let acted = self.act();
            let sent = self.send();
            if !acted && !sent && !matches!(outcome, Advance::Spent | Advance::Offered) {
                return;
            }
        }
    }

    fn act(&mut self) -> bool {
        let mut acted = false;
        while let Some(action) = self.core.next_action() {
            acted = true;
            self.turn(|connection, turn| connection.act(action, turn));
        }
        acted
    }

    fn send(&mut self) -> bool {
        let mut sent = false;
        while self.peer_reads {
            let chunk = self.chunk;
            let mut bytes = Vec::new();
            self.turn(|connection, turn| {
                let Some(batch) = connection.batch(turn) else { return };
                for piece in batch.pieces() {
                    match piece {
                        Piece::Bytes(plain) => bytes.extend_from_slice(plain),
                        Piece::Part(segment, offset, len) => {
                            let start = bytes.len();
                            bytes.resize(start + len, 0);
                            assert_eq!(segment.copy_to(offset, &mut bytes[start..]), len);
                        }
                    }
                }
                assert_eq!(bytes.len(), batch.left());
                bytes.truncate(chunk);
                connection.sent(bytes.len(), turn);
            });
            if bytes.is_empty() {
                break;
            }
            sent = true;
            self.out.append(&mut bytes);
        }
        if !self.peer_reads {
            // The socket is asked, and takes nothing.
            self.turn(|connection, turn| connection.batch(turn).map(|_| ()));
        }
        sent
    }

    /// Time passes; deadlines are looked at when they say so.
    pub(super) fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        if self.connection.wake_at().is_some_and(|at| at <= self.now) {
            self.turn(Connection::check_deadlines);
        }
    }

    // ---- the host's PDUs ----

    fn flags(&self, data: usize) -> Flags {
        let mut flags = Flags::empty();
        flags.set(Flags::HEADER_DIGEST, self.rules.header_digest);
        flags.set(Flags::DATA_DIGEST, self.rules.data_digest && data > 0);
        flags
    }

    /// The bytes of a PDU with this header.
    pub(super) fn assemble(&self, header: &[u8], data: &[u8]) -> Vec<u8> {
        let (common, _) = CommonHeader::ref_from_prefix(header).unwrap();
        let mut pdu = header.to_vec();
        if self.rules.header_digest {
            pdu.extend_from_slice(&crc32c(header).to_le_bytes());
        }
        if !data.is_empty() {
            pdu.resize(usize::from(common.pdo), 0xee);
            pdu.extend_from_slice(data);
            if self.rules.data_digest {
                pdu.extend_from_slice(&crc32c(data).to_le_bytes());
            }
        }
        assert_eq!(pdu.len(), common.plen.get() as usize);
        pdu
    }

    pub(super) fn capsule(&self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        let pdu = CapsuleCmd::new(sqe, self.flags(data.len()), self.cpda, data.len() as u32);
        self.assemble(pdu.as_bytes(), data)
    }

    pub(super) fn flush(&self, cid: u16) -> Vec<u8> {
        self.capsule(Sqe::new(FLUSH, 1).with_cid(cid), &[])
    }

    pub(super) fn read(&self, cid: u16, length: u32) -> Vec<u8> {
        let sgl = Sgl::TransportData { length };
        self.capsule(Sqe::new(READ, 1).with_cid(cid).with_sgl(sgl), &[])
    }

    pub(super) fn write(&self, cid: u16, length: u32) -> Vec<u8> {
        let sgl = Sgl::TransportData { length };
        self.capsule(Sqe::new(WRITE, 1).with_cid(cid).with_sgl(sgl), &[])
    }

    pub(super) fn write_in_capsule(&self, cid: u16, data: &[u8]) -> Vec<u8> {
        let sgl = Sgl::InCapsule { offset: 0, length: data.len() as u32 };
        self.capsule(Sqe::new(WRITE, 1).with_cid(cid).with_sgl(sgl), data)
    }

    pub(super) fn data(
        &self,
        cid: u16,
        ttag: u16,
        offset: usize,
        data: &[u8],
        last: bool,
    ) -> Vec<u8> {
        let mut flags = self.flags(data.len());
        flags.set(Flags::LAST, last);
        let length = data.len() as u32;
        let pdu = H2cData::new(cid, ttag, offset as u32, length, flags, self.cpda);
        self.assemble(pdu.as_bytes(), data)
    }

    // ---- the controller's PDUs ----

    /// Takes every PDU that has come, digests checked; all of it must be PDUs.
    pub(super) fn pdus(&mut self) -> Vec<Pdu> {
        let out = std::mem::take(&mut self.out);
        self.parse(&out)
    }

    pub(super) fn parse(&self, mut bytes: &[u8]) -> Vec<Pdu> {
        let mut pdus = Vec::new();
        while !bytes.is_empty() {
            let (common, _) = CommonHeader::ref_from_prefix(bytes).unwrap();
            let layout = common.check(&self.rules).unwrap();
            let (pdu, rest) = bytes.split_at(layout.length as usize);
            pdus.push(parse_one(pdu, &layout));
            bytes = rest;
        }
        pdus
    }
}

fn parse_one(pdu: &[u8], layout: &Layout) -> Pdu {
    let header = &pdu[..layout.header_length as usize];
    if layout.header_digest {
        let digest = &pdu[header.len()..header.len() + 4];
        assert_eq!(digest, crc32c(header).to_le_bytes());
    }
    let end = (layout.data_offset + layout.data_length) as usize;
    let data = pdu[layout.data_offset as usize..end].to_vec();
    if layout.data_digest {
        assert_eq!(pdu[end..], crc32c(&data).to_le_bytes());
    }
    match layout.pdu_type {
        PduType::IcResp => Pdu::Agreement(IcResp::read_from_bytes(header).unwrap()),
        PduType::C2hData => Pdu::Data(C2hData::read_from_bytes(header).unwrap(), data),
        PduType::CapsuleResp => Pdu::Response(CapsuleResp::read_from_bytes(header).unwrap()),
        PduType::R2t => Pdu::Request(R2t::read_from_bytes(header).unwrap()),
        PduType::C2hTermReq => Pdu::Termination(TermReq::read_from_bytes(header).unwrap(), data),
        other => panic!("{other} from a controller"),
    }
}

fn put(space: Space<'_>, bytes: &[u8]) -> usize {
    match space {
        Space::Bytes(room) => {
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            count
        }
        Space::Part(segment, offset, len) => {
            segment.copy_from(offset, &bytes[..len.min(bytes.len())])
        }
    }
}
