//! Whole connections: bytes of two hosts, cut anywhere, into the state machine that sockets drive.

use std::collections::VecDeque;
use std::time::Duration;

use nvme::Sqe;
use nvme::tcp::{
    CapsuleResp, CommonHeader, DigestFlags, Flags, IcResp, PduType, R2t, Receiver, Rules, crc32c,
};
use transport_tcp::{InMemoryConnection, TcpConfig};
use zerocopy::FromBytes;

use super::bench::{Bench, PORT, listener, peer};
use super::steps::Steps;
use crate::pdus;

const STEPS: usize = 300;
/// Rounds until nothing moves any more; far more than anything takes.
const ROUNDS: usize = 10_000;

/// One host's end.
#[derive(Debug)]
struct Wire {
    connection: InMemoryConnection,
    /// Bytes that the connection did not want yet.
    outbox: VecDeque<u8>,
    /// Bytes that have come and are not a whole PDU.
    inbox: Vec<u8>,
    rules: Rules,
    reads: bool,
    requests: VecDeque<R2t>,
    succeeded: u32,
    terminated: bool,
}

/// Byte streams of two connections; how many commands succeeded.
///
/// The bytes are steps: one that says which connection and what, then as many bytes as that takes.
pub fn connections(bytes: &[u8]) -> u32 {
    let mut steps = Steps(bytes);
    let mut bench = Bench::new();
    let mut wires = [Wire::new(&bench), Wire::new(&bench)];
    for _ in 0..STEPS {
        if steps.is_over() {
            break;
        }
        let what = steps.byte();
        let index = usize::from(what & 1);
        wires[index].step(what >> 1, &mut steps, &mut bench);
        settle(&mut bench, &mut wires);
    }
    for wire in &mut wires {
        wire.connection.close(&mut bench.shard, bench.now);
        assert!(wire.connection.is_closed());
    }
    bench.ends_empty();
    wires.iter().map(|wire| wire.succeeded).sum()
}

/// Runs until nothing moves any more.
fn settle(bench: &mut Bench, wires: &mut [Wire; 2]) {
    for _ in 0..ROUNDS {
        let mut moved = bench.poll();
        for wire in &mut *wires {
            if wire.connection.next_deadline().is_some_and(|at| at <= bench.now) {
                wire.connection.check_deadlines(&mut bench.shard, bench.now);
            }
        }
        while let Some(action) = bench.shard.next_action(PORT) {
            moved = true;
            let queue = Some(action.queue());
            let wire = wires.iter_mut().find(|wire| wire.connection.queue() == queue);
            let wire = wire.expect("an action of an open connection");
            wire.connection.act(&mut bench.shard, action, bench.now);
        }
        for wire in &mut *wires {
            moved |= wire.turn(bench);
        }
        if !moved && !bench.shard.has_work() {
            return;
        }
    }
    panic!("it never comes to rest");
}

impl Wire {
    fn new(bench: &Bench) -> Wire {
        let config = TcpConfig { parked_capsules: 4, ..TcpConfig::default() };
        Wire {
            connection: InMemoryConnection::new(config, PORT, listener(), peer(), bench.now),
            outbox: VecDeque::new(),
            inbox: Vec::new(),
            rules: Rules::new(Receiver::Host, u32::MAX),
            reads: true,
            requests: VecDeque::new(),
            succeeded: 0,
            terminated: false,
        }
    }

    fn step(&mut self, what: u8, steps: &mut Steps<'_>, bench: &mut Bench) {
        match what {
            // Bytes as they are, any number at a time.
            0..=79 => {
                let count = usize::from(steps.word() & 0x07ff);
                self.outbox.extend(steps.bytes(count));
            }
            // A well-formed capsule around any command: without this a digest is never right.
            80..=95 => {
                let sqe = Sqe::read_from_bytes(&steps.array::<64>()).unwrap();
                let count = usize::from(steps.word() & 0x07ff);
                let data = steps.bytes(count);
                self.outbox.extend(pdus::capsule(&self.rules, sqe, data));
            }
            // Data as it was asked for, or with its length, offset or end a little wrong.
            96..=111 => {
                let Some(request) = self.requests.pop_front() else { return };
                let wrong = steps.byte();
                let length = request.r2tl.get().saturating_sub(u32::from(wrong & 7 == 1) * 4);
                let offset = u32::from(wrong & 7 == 2) * 512;
                let last = wrong & 7 != 3;
                let data = vec![wrong; length as usize];
                let (cid, ttag) = (request.cccid.get(), request.ttag.get());
                let pdu = pdus::h2c_data(&self.rules, cid, ttag, offset, &data, last);
                self.outbox.extend(pdu);
            }
            112..=115 => bench.wait(Duration::from_millis(u64::from(steps.word()))),
            116..=119 => self.reads = !self.reads,
            // The wire is cut, and another host connects.
            _ => {
                self.connection.close(&mut bench.shard, bench.now);
                let succeeded = self.succeeded;
                *self = Wire::new(bench);
                self.succeeded = succeeded;
            }
        }
    }

    /// Carries bytes both ways; whether there were any.
    fn turn(&mut self, bench: &mut Bench) -> bool {
        if self.connection.is_closed() {
            self.outbox.clear();
            return false;
        }
        let bytes = self.outbox.make_contiguous();
        let taken = self.connection.receive(&mut bench.shard, bytes, bench.now);
        self.outbox.drain(..taken);
        let most = if self.reads { 4096 } else { 0 };
        let sent = self.connection.send(&mut bench.shard, &mut self.inbox, most, bench.now);
        assert!(sent <= most);
        while self.take_pdu() {}
        taken > 0 || sent > 0
    }

    /// Takes a PDU that has come whole. It must be one that a controller may send.
    fn take_pdu(&mut self) -> bool {
        let Ok((common, _)) = CommonHeader::read_from_prefix(&self.inbox) else { return false };
        let layout = common.check(&self.rules).expect("a PDU that a host may receive");
        if self.inbox.len() < layout.length as usize {
            return false;
        }
        assert!(!self.terminated, "something follows a termination request");
        let rest = self.inbox.split_off(layout.length as usize);
        let pdu = std::mem::replace(&mut self.inbox, rest);
        let (header, behind) = pdu.split_at(layout.header_length as usize);
        if layout.header_digest {
            assert_eq!(behind[..4], crc32c(header).to_le_bytes());
        }
        let end = (layout.data_offset + layout.data_length) as usize;
        let data = &pdu[layout.data_offset as usize..end];
        if layout.data_digest {
            assert_eq!(pdu[end..], crc32c(data).to_le_bytes());
        }
        match layout.pdu_type {
            PduType::IcResp => {
                let digests = IcResp::read_from_bytes(header).unwrap().digests();
                self.rules.header_digest = digests.contains(DigestFlags::HEADER);
                self.rules.data_digest = digests.contains(DigestFlags::DATA);
            }
            PduType::R2t => self.requests.push_back(R2t::read_from_bytes(header).unwrap()),
            PduType::CapsuleResp => {
                let cqe = CapsuleResp::read_from_bytes(header).unwrap().cqe;
                self.succeeded += u32::from(cqe.status().is_success());
            }
            PduType::C2hData => {
                self.succeeded += u32::from(layout.flags.contains(Flags::SUCCESS));
            }
            PduType::C2hTermReq => self.terminated = true,
            other => panic!("{other} from a controller"),
        }
        true
    }
}
