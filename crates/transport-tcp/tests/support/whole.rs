//! A whole connection, from bytes to blocks, driven by a string of bytes that says what a host
//! does: good commands, half of them, other people's tags, garbage, silence. For property tests, a
//! corpus and a fuzzer alike. It panics where something is wrong.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use memory::{Arena, ArenaConfig, Hugepages, Pool};
use nvme::address::TransportType;
use nvme::fabrics::{
    CNTLID_DYNAMIC, Connect, ConnectAttributes, ConnectData, PropertySet, PropertySize,
};
use nvme::sgl::Sgl;
use nvme::tcp::{CapsuleResp, CommonHeader, DigestFlags, IcReq, PduType, R2t, Receiver, Rules};
use nvme::{Cqe, Nqn, Sqe};
use reactor::Instant;
use target::{PortId, Shard, ShardConfig, ShardIndex, ShardLimits};
use testkit::{column, pdus};
use transport_tcp::{InMemoryConnection, TcpConfig};
use zerocopy::{FromBytes, IntoBytes};

use super::{BLOCK, SUBSYSTEM, host_id, host_nqn, pattern, read, write, write_in_capsule};

const PORT: PortId = PortId(0);
const DEVICE: u64 = 4 << 20;
/// Little enough for a few commands to use it up.
const POOL: usize = 2 << 20;

/// One end's view of one connection.
struct Host {
    wire: InMemoryConnection,
    rules: Rules,
    /// Bytes that have come and are not yet a whole PDU.
    inbox: Vec<u8>,
    /// Bytes that the controller did not want yet.
    outbox: VecDeque<u8>,
    /// Whether it reads.
    reads: bool,
    r2ts: VecDeque<R2t>,
    answers: VecDeque<Cqe>,
    data: Vec<u8>,
    terminated: bool,
}

impl Host {
    fn new(now: Instant) -> Host {
        let end = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let config = TcpConfig { parked_capsules: 8, ..TcpConfig::default() };
        Host {
            wire: InMemoryConnection::new(config, PORT, end(4420), end(40_000), now),
            rules: Rules::new(Receiver::Host, u32::MAX),
            inbox: Vec::new(),
            outbox: VecDeque::new(),
            reads: true,
            r2ts: VecDeque::new(),
            answers: VecDeque::new(),
            data: Vec::new(),
            terminated: false,
        }
    }

    fn capsule(&self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        pdus::capsule(&self.rules, sqe, data)
    }

    fn h2c_data(&self, request: &R2t, offset: usize, data: &[u8], last: bool) -> Vec<u8> {
        let (cid, ttag) = (request.cccid.get(), request.ttag.get());
        pdus::h2c_data(&self.rules, cid, ttag, offset as u32, data, last)
    }

    /// Takes PDUs from the inbox; each must be what a controller may send.
    fn parse(&mut self) {
        while let Ok((common, _)) = CommonHeader::read_from_prefix(&self.inbox) {
            let layout = common.check(&self.rules).expect("a PDU that a host can take");
            let length = layout.length as usize;
            if self.inbox.len() < length {
                return;
            }
            assert!(!self.terminated, "the termination request is the last PDU");
            let rest = self.inbox.split_off(length);
            let pdu = std::mem::replace(&mut self.inbox, rest);
            let header = &pdu[..layout.header_length as usize];
            match layout.pdu_type {
                PduType::R2t => self.r2ts.push_back(R2t::read_from_bytes(header).unwrap()),
                PduType::CapsuleResp => {
                    self.answers.push_back(CapsuleResp::read_from_bytes(header).unwrap().cqe);
                }
                PduType::C2hData => {
                    let end = (layout.data_offset + layout.data_length) as usize;
                    self.data.extend_from_slice(&pdu[layout.data_offset as usize..end]);
                }
                PduType::C2hTermReq => self.terminated = true,
                _ => {}
            }
        }
    }
}

/// A shard, a good host with an I/O queue, and the host under test with up to two connections.
struct World {
    shard: Shard,
    pool: Pool,
    now: Instant,
    hosts: Vec<Host>,
}

impl World {
    fn new() -> World {
        let arena = Arena::new(ArenaConfig { capacity: POOL, hugepages: Hugepages::Never });
        let pool = arena.pool(POOL).unwrap();
        let now = Instant::from_nanos(1_000_000_000);
        let mut shard = Shard::new(ShardConfig {
            index: ShardIndex(0),
            shards: 1,
            pool: pool.clone(),
            limits: ShardLimits { requests: 64, ..ShardLimits::default() },
            now,
        });
        let device = Arc::new(column::ram(DEVICE));
        let configuration = column::configuration(
            &[(TransportType::Tcp, SocketAddr::from(([192, 0, 2, 1], 4420)))],
            device.clone(),
        );
        let errors = shard.configure(configuration, &mut |_| Ok(device.queue()));
        assert!(errors.is_empty());
        World { shard, pool, now, hosts: Vec::new() }
    }

    /// Runs until nothing moves any more, within a bound.
    fn settle(&mut self) {
        for _ in 0..200 {
            let mut moved = self.shard.poll(self.now);
            while let Some((_, message)) = self.shard.next_message() {
                self.shard.deliver(message);
                moved = true;
            }
            while let Some(action) = self.shard.next_action(PORT) {
                moved = true;
                let of = |host: &&mut Host| host.wire.queue() == Some(action.queue());
                if let Some(host) = self.hosts.iter_mut().find(of) {
                    host.wire.act(&mut self.shard, action, self.now);
                }
            }
            for host in &mut self.hosts {
                if host.wire.is_closed() {
                    host.outbox.clear();
                    continue;
                }
                let bytes = host.outbox.make_contiguous();
                let taken = host.wire.receive(&mut self.shard, bytes, self.now);
                host.outbox.drain(..taken);
                moved |= taken > 0;
                // A host that does not read: the socket is offered the bytes and takes none.
                let most = if host.reads { 5000 } else { 0 };
                let (shard, inbox) = (&mut self.shard, &mut host.inbox);
                moved |= host.wire.send(shard, inbox, most, self.now) > 0;
                host.parse();
            }
            if !moved && !self.shard.has_work() {
                return;
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        for host in &mut self.hosts {
            if host.wire.next_deadline().is_some_and(|at| at <= self.now) {
                host.wire.check_deadlines(&mut self.shard, self.now);
            }
        }
        self.settle();
    }

    fn send(&mut self, host: usize, bytes: &[u8]) {
        self.hosts[host].outbox.extend(bytes);
        self.settle();
    }

    fn negotiate(&mut self, digests: DigestFlags) -> usize {
        let index = self.hosts.len();
        self.hosts.push(Host::new(self.now));
        self.send(index, IcReq::new(0, digests, 0).as_bytes());
        let rules = &mut self.hosts[index].rules;
        rules.header_digest = digests.contains(DigestFlags::HEADER);
        rules.data_digest = digests.contains(DigestFlags::DATA);
        index
    }

    fn execute(&mut self, host: usize, sqe: Sqe, data: &[u8]) -> Option<Cqe> {
        let bytes = self.hosts[host].capsule(sqe, data);
        self.send(host, &bytes);
        self.hosts[host].answers.pop_back()
    }

    fn connect(&mut self, host: usize, number: usize, qid: u16, cntlid: u16) -> u16 {
        let connect =
            Connect { recfmt: 0, qid, sqsize: 31, cattr: ConnectAttributes::default(), kato: 0 };
        let subsystem: Nqn = SUBSYSTEM.parse().unwrap();
        let data = ConnectData::new(host_id(number), cntlid, &subsystem, &host_nqn(number));
        let sgl = Sgl::InCapsule { offset: 0, length: 1024 };
        let cqe = self.execute(host, connect.to_sqe().with_sgl(sgl), data.as_bytes());
        let cqe = cqe.expect("an answer to Connect");
        assert!(cqe.status().is_success(), "{:?}", cqe.status());
        cqe.dw0() as u16
    }

    /// An admin queue with its controller enabled: its connection and controller identifier.
    fn admin(&mut self, number: usize, digests: DigestFlags) -> (usize, u16) {
        let admin = self.negotiate(digests);
        let cntlid = self.connect(admin, number, 0, CNTLID_DYNAMIC);
        let enable = PropertySet { size: PropertySize::Four, offset: 0x14, value: 0x0046_0001 };
        assert!(self.execute(admin, enable.to_sqe(), &[]).unwrap().status().is_success());
        (admin, cntlid)
    }

    fn io(&mut self, number: usize, cntlid: u16, digests: DigestFlags) -> usize {
        let io = self.negotiate(digests);
        self.connect(io, number, 1, cntlid);
        io
    }
}

/// The bytes that say what happens; zeroes when they are used up.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }
}

/// Lets a host do what `script` says, beside one that must not notice.
pub fn run(script: &[u8]) {
    let mut script = Script(script);
    let mut world = World::new();
    let (_, cntlid) = world.admin(0, DigestFlags::empty());
    let good = world.io(0, cntlid, DigestFlags::HEADER | DigestFlags::DATA);
    let setup = script.byte();
    let digests = DigestFlags::from_bits_truncate(setup >> 2);
    let host = match setup & 3 {
        0 => {
            world.hosts.push(Host::new(world.now));
            world.hosts.len() - 1
        }
        1 => world.negotiate(digests),
        2 => world.admin(1, digests).0,
        _ => {
            let (_, cntlid) = world.admin(1, digests);
            world.io(1, cntlid, digests)
        }
    };
    let mut steps = 0;
    while !script.0.is_empty() && steps < 200 {
        steps += 1;
        step(&mut world, host, &mut script);
    }
    finish(world, good);
}

fn step(world: &mut World, host: usize, script: &mut Script<'_>) {
    let what = script.byte();
    let cid = u16::from(script.byte() & 31);
    let blocks = script.word();
    // Up to 16 KiB, and now and then up to 1 MiB.
    let scale = if blocks >> 13 == 7 { 64 } else { 1 };
    let length = (u32::from(blocks >> 8 & 31) + 1) * BLOCK * scale;
    let offset = u64::from(blocks & 0xff) * u64::from(BLOCK);
    let subject = &mut world.hosts[host];
    let bytes = match what {
        0..=2 => script.bytes(usize::from(cid)),
        3..=63 => subject.capsule(read(cid, offset, length), &[]),
        64..=119 => {
            let length = length.min(8192);
            let data = pattern(offset, length as usize);
            subject.capsule(write_in_capsule(cid, offset, length), &data)
        }
        120..=171 => subject.capsule(write(cid, offset, length), &[]),
        172..=223 => {
            let Some(request) = subject.r2ts.pop_front() else { return };
            let whole = pattern(offset, request.r2tl.get() as usize);
            // Mostly as asked for, in one or two parts; sometimes not.
            match script.byte() {
                0..=2 => subject.h2c_data(&request, 4, &whole, true),
                3..=5 => subject.h2c_data(&request, 0, &whole[..whole.len() / 2], true),
                6..=8 => subject.h2c_data(&request, 0, &whole, false),
                9..=127 => {
                    let (first, second) = whole.split_at(whole.len() / 2);
                    let mut both = subject.h2c_data(&request, 0, first, false);
                    both.extend(subject.h2c_data(&request, first.len(), second, true));
                    both
                }
                _ => subject.h2c_data(&request, 0, &whole, true),
            }
        }
        224..=235 => {
            let mut raw = [0; 64];
            let from = script.bytes(64);
            raw[..from.len()].copy_from_slice(&from);
            let sqe = Sqe::read_from_bytes(&raw).unwrap();
            let data = vec![7; usize::from(cid) * 64];
            subject.capsule(sqe, &data)
        }
        236..=238 => {
            let mut pdu = subject.capsule(read(cid, offset, length), &[]);
            let at = usize::from(script.byte()) % pdu.len();
            pdu[at] ^= script.byte();
            pdu
        }
        239..=245 => {
            world.wait(Duration::from_millis(u64::from(blocks)));
            return;
        }
        _ => {
            subject.reads = !subject.reads;
            world.settle();
            return;
        }
    };
    world.send(host, &bytes);
}

/// The good host still writes and reads; and when all are gone nothing is left.
fn finish(mut world: World, good: usize) {
    world.settle();
    let data = pattern(99, 4096);
    let bytes = world.hosts[good].capsule(write_in_capsule(1, 8192, 4096), &data);
    let answers = world.hosts[good].answers.len();
    world.send(good, &bytes);
    // A greedy host may hold every buffer, and most slots of the few that there are, until its deadline.
    let wait_for = |world: &mut World, served: &dyn Fn(&Host) -> bool| {
        let mut patience = 200;
        while !served(&world.hosts[good]) {
            assert!(patience > 0, "the good host is not served");
            patience -= 1;
            world.wait(Duration::from_secs(1));
        }
    };
    wait_for(&mut world, &|host| host.answers.len() > answers);
    let cqe = world.hosts[good].answers.back().unwrap();
    assert!(cqe.status().is_success(), "{:?}", cqe.status());
    world.hosts[good].data.clear();
    let bytes = world.hosts[good].capsule(read(2, 8192, 4096), &[]);
    world.send(good, &bytes);
    wait_for(&mut world, &|host| host.data.len() >= data.len());
    assert!(world.hosts[good].data == data, "the good host reads what it wrote");

    for host in &mut world.hosts {
        host.wire.close(&mut world.shard, world.now);
    }
    world.settle();
    assert_eq!(world.shard.queues_in_use(), 0);
    assert_eq!(world.shard.requests_in_use(), 0);
    assert_eq!(world.shard.controllers_in_use(), 0);
    assert_eq!(world.pool.available(), world.pool.capacity());
}
