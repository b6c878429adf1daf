//! Hosts that send anything at all, transports that say anything at all, mail that comes at any time.

use std::collections::HashMap;
use std::time::Duration;

use nvme::admin::{Abort, Command as Admin, GetLogPage, Identify, SetFeatures};
use nvme::fabrics::{Disconnect, PropertySet, PropertySize};
use nvme::feature::Feature;
use nvme::identify::Cns;
use nvme::io::{Command, DatasetManagement, Transfer, WriteZeroes};
use nvme::log::LogPage;
use nvme::{Sgl, Sqe};
use proptest::prelude::*;
use target::{Action, CommandRefused, QueueId, RequestId};
use zerocopy::FromBytes;

use crate::harness::{Attempt, ENABLED, NQN, PORT, Wire, World, nqn};

#[derive(Debug, Clone)]
enum Step {
    Open(usize),
    Connect { wire: usize, qid: u16, sqsize: u16, cntlid: u16 },
    Command { wire: usize, sqe: [u8; 64], in_capsule: u32, tame: u8 },
    Good { wire: usize, cid: u16, what: u8, lba: u64, blocks: u32 },
    Pause(u64),
    Close(usize),
    Data { slot: u32, generation: u32 },
    Sent { slot: u32, generation: u32 },
    Turn,
    Mail { from: usize, to: usize },
    Pass(u64),
    Stick(bool),
    Cancels(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0_usize..2).prop_map(Step::Open),
        3 => (any::<usize>(), 0_u16..4, prop_oneof![Just(0_u16), Just(31), Just(3), any::<u16>()], 1_u16..6)
            .prop_map(|(wire, qid, sqsize, cntlid)| Step::Connect { wire, qid, sqsize, cntlid }),
        12 => (any::<usize>(), any::<[u8; 64]>(), prop_oneof![3 => Just(0_u32), 1 => 0_u32..9000], any::<u8>())
            .prop_map(|(wire, sqe, in_capsule, tame)| Step::Command { wire, sqe, in_capsule, tame }),
        20 => (any::<usize>(), 0_u16..12, any::<u8>(), 0_u64..66, 1_u32..9)
            .prop_map(|(wire, cid, what, lba, blocks)| Step::Good { wire, cid, what, lba, blocks }),
        1 => (0_u64..2000).prop_map(Step::Pause),
        1 => any::<usize>().prop_map(Step::Close),
        1 => (0_u32..64, 0_u32..4).prop_map(|(slot, generation)| Step::Data { slot, generation }),
        1 => (0_u32..64, 0_u32..4).prop_map(|(slot, generation)| Step::Sent { slot, generation }),
        6 => Just(Step::Turn),
        4 => (0_usize..2, 0_usize..2).prop_map(|(from, to)| Step::Mail { from, to }),
        1 => (0_u64..20_000).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Stick),
        1 => any::<bool>().prop_map(Step::Cancels),
    ]
}

/// A command that is more likely to mean something than sixty-four random bytes.
fn tamed(bytes: [u8; 64], how: u8, in_capsule: u32) -> Sqe {
    let mut sqe = Sqe::read_from_bytes(&bytes).unwrap();
    if how < 40 {
        return sqe;
    }
    sqe.flags = 0x40;
    let opcodes = [0x00, 0x01, 0x02, 0x05, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18, 0x7f];
    sqe.opcode = opcodes[usize::from(how) % opcodes.len()];
    if sqe.opcode == 0x7f {
        sqe.nsid.set(u32::from([0_u8, 4, 8, 1, 5][usize::from(how) % 5]));
        sqe.cdw10.set(u32::from(how & 1));
        sqe.cdw11.set([0x14, 0x1c, 0, 8][usize::from(how / 16) % 4]);
        sqe.cdw12.set([0x0046_0001, 0x0046_0000, 0x0046_4001][usize::from(how) % 3]);
    } else {
        sqe.nsid.set([1, 1, 1, 2, u32::MAX][usize::from(how) % 5]);
        if how & 1 == 0 {
            sqe.cdw10.set(sqe.cdw10.get() % 64);
            sqe.cdw11.set(if sqe.opcode == 9 { 4 } else { 0 });
            sqe.cdw12.set(sqe.cdw12.get() % 8);
        }
    }
    let length = if in_capsule > 0 { in_capsule } else { 512 * (1 + sqe.cdw12.get() % 8) };
    let sgl = match (in_capsule, how % 7) {
        (_, 0) => return sqe,
        (0, _) => Sgl::TransportData { length },
        (_, _) => Sgl::InCapsule { offset: 0, length },
    };
    sqe.with_sgl(sgl)
}

/// A command as a sane host sends it, and how many bytes of data come with it in the capsule.
fn good(what: u8, cid: u16, lba: u64, blocks: u32) -> (Sqe, u32) {
    let transfer = Transfer::new(lba, blocks);
    let bytes = blocks * 512;
    let (sqe, from_host, to_host) = match what % 20 {
        0..=3 => (Command::Write(transfer).to_sqe(1), bytes, 0),
        4..=6 => (Command::Read(transfer).to_sqe(1), 0, bytes),
        7 => (Command::Compare(transfer).to_sqe(1), bytes, 0),
        8 => (Command::Flush.to_sqe(nvme::NSID_ALL), 0, 0),
        9 => (Command::WriteZeroes(WriteZeroes::new(lba, blocks)).to_sqe(1), 0, 0),
        10 => {
            let ranges = DatasetManagement::deallocate(u16::try_from(blocks).unwrap() * 4);
            (Command::DatasetManagement(ranges).to_sqe(1), blocks * 64, 0)
        }
        11 => (Admin::AsynchronousEventRequest.to_sqe(0), 0, 0),
        12 | 13 => {
            let sqid = u16::try_from(lba % 5).unwrap();
            let cid = u16::try_from(blocks).unwrap();
            (Admin::Abort(Abort { sqid, cid }).to_sqe(0), 0, 0)
        }
        14 => (Admin::Identify(Identify::new(Cns::Controller)).to_sqe(0), 0, 4096),
        15 => {
            let set = SetFeatures::new(Feature::VolatileWriteCache, blocks & 1);
            (Admin::SetFeatures(set).to_sqe(0), 0, 0)
        }
        16 => (Admin::GetLogPage(GetLogPage::new(LogPage::Health, 0, 512)).to_sqe(0), 0, 512),
        17 => {
            let mut cc = ENABLED;
            cc.en = !lba.is_multiple_of(4);
            let set =
                PropertySet { size: PropertySize::Four, offset: 0x14, value: cc.bits().into() };
            (set.to_sqe(), 0, 0)
        }
        18 if lba < 8 => (Disconnect::default().to_sqe(), 0, 0),
        _ => (Admin::KeepAlive.to_sqe(0), 0, 0),
    };
    let capsule = if what & 0x80 == 0 { from_host } else { 0 };
    let sgl = match (capsule, from_host, to_host) {
        (0, from_host, to_host) => Sgl::TransportData { length: from_host.max(to_host) },
        (length, _, _) => Sgl::InCapsule { offset: 0, length },
    };
    (sqe.with_cid(cid).with_sgl(sgl), capsule)
}

/// A transport that keeps count of what it was told.
#[derive(Debug, Default)]
struct Ledger {
    /// Commands taken and not yet answered, by shard.
    open: HashMap<(usize, RequestId), QueueId>,
    wires: Vec<Wire>,
    answered: u64,
    excused: u64,
}

impl Ledger {
    fn wire(&self, number: usize) -> Option<Wire> {
        let count = self.wires.len();
        (count > 0).then(|| self.wires[number % count])
    }

    fn command(&mut self, world: &mut World, wire: Wire, sqe: &Sqe, in_capsule: u32) {
        match world.shards[wire.shard].command(wire.queue, sqe, in_capsule) {
            Ok(request) => {
                let before = self.open.insert((wire.shard, request), wire.queue);
                assert_eq!(before, None, "two commands have one name");
            }
            Err(CommandRefused::Busy | CommandRefused::Closed) => {}
        }
    }

    fn close(&mut self, world: &mut World, wire: Wire) {
        self.wires.retain(|other| *other != wire);
        world.shards[wire.shard].close_queue(wire.queue);
        let before = self.open.len();
        self.open.retain(|(shard, _), queue| *shard != wire.shard || *queue != wire.queue);
        self.excused += u64::try_from(before - self.open.len()).unwrap();
    }

    /// Turns the shards once and serves what they ask.
    fn turn(&mut self, world: &mut World, connect: &[u8]) -> bool {
        let mut moved = false;
        for index in 0..world.shards.len() {
            moved |= world.shards[index].poll(world.now);
            while let Some(action) = world.shards[index].next_action(PORT) {
                moved = true;
                self.serve(world, index, action, connect);
            }
        }
        world.collect_mail() || moved || world.shards.iter().any(target::Shard::has_work)
    }

    fn serve(&mut self, world: &mut World, index: usize, action: Action, connect: &[u8]) {
        match action {
            Action::Receive { request, length, .. } => {
                assert!(self.open.contains_key(&(index, request)));
                let segment = world.shards[index].segment(request, 0, length).unwrap();
                segment.copy_from(0, connect);
                drop(segment);
                world.shards[index].data_received(request, Ok(()));
            }
            Action::Respond { queue, request, data, .. } => {
                let open = self.open.remove(&(index, request));
                assert_eq!(open, Some(queue), "answered once, and what was taken");
                self.answered += 1;
                if data > 0 {
                    assert!(world.shards[index].segment(request, 0, data).is_some());
                }
                world.shards[index].response_sent(request);
            }
            Action::Resume { .. } => {}
            Action::Disconnect { queue, .. } => self.close(world, Wire { shard: index, queue }),
        }
    }
}

proptest! {
    #[test]
    fn whatever_comes_every_command_is_ended_once(steps in prop::collection::vec(step(), 1..150)) {
        let (mut world, device) = World::one_disk(2, 64);
        let mut ledger = Ledger::default();
        let (admin, cntlid) = world.controller(0);
        ledger.wires.push(admin);
        for qid in 1..=4 {
            let wire = world.io_queue(usize::from(qid % 2), cntlid, qid);
            ledger.wires.push(wire);
        }
        world.hold_mail = true;
        let mut connect = zerocopy::IntoBytes::as_bytes(&Attempt::admin().data).to_vec();
        for step in steps {
            match step {
                Step::Open(shard) => {
                    let wire = world.open(shard);
                    ledger.wires.push(wire);
                }
                Step::Connect { wire, qid, sqsize, cntlid } => {
                    if let Some(wire) = ledger.wire(wire) {
                        let mut attempt = Attempt::admin();
                        attempt.command.qid = qid;
                        attempt.command.sqsize = sqsize;
                        attempt.data.cntlid.set(if qid == 0 { 0xffff } else { cntlid });
                        connect = zerocopy::IntoBytes::as_bytes(&attempt.data).to_vec();
                        let sgl = Sgl::InCapsule { offset: 0, length: 1024 };
                        let sqe = attempt.command.to_sqe().with_cid(9).with_sgl(sgl);
                        ledger.command(&mut world, wire, &sqe, 1024);
                        // Usually it goes on to be enabled.
                        ledger.turn(&mut world, &connect);
                    }
                }
                Step::Command { wire, sqe, in_capsule, tame } => {
                    if let Some(wire) = ledger.wire(wire) {
                        let sqe = tamed(sqe, tame, in_capsule);
                        ledger.command(&mut world, wire, &sqe, in_capsule);
                    }
                }
                Step::Good { wire, cid, what, lba, blocks } => {
                    if let Some(wire) = ledger.wire(wire) {
                        let (sqe, in_capsule) = good(what, cid, lba, blocks);
                        ledger.command(&mut world, wire, &sqe, in_capsule);
                    }
                }
                Step::Pause(milliseconds) => {
                    let deadline = world.now + Duration::from_millis(milliseconds);
                    world.shards[1].pause(&nqn(NQN), 1, deadline);
                }
                Step::Close(wire) => {
                    if let Some(wire) = ledger.wire(wire) {
                        ledger.close(&mut world, wire);
                    }
                }
                Step::Data { slot, generation } => {
                    // Names that may mean nothing; one that does is the transport's own data.
                    let request = RequestId { slot, generation: generation + 1000 };
                    world.shards[0].data_received(request, Ok(()));
                }
                Step::Sent { slot, generation } => {
                    let request = RequestId { slot, generation };
                    if !ledger.open.contains_key(&(0, request)) {
                        world.shards[0].response_sent(request);
                    }
                }
                Step::Turn => {
                    ledger.turn(&mut world, &connect);
                }
                Step::Mail { from, to } => {
                    world.deliver_one(from, to);
                }
                Step::Pass(milliseconds) => {
                    world.now = world.now + Duration::from_millis(milliseconds);
                    ledger.turn(&mut world, &connect);
                }
                Step::Stick(stuck) => device.stick(stuck),
                Step::Cancels(cancels) => device.cancels(cancels),
            }
        }
        // Everything comes to rest, and nothing is left.
        world.now = world.now + Duration::from_secs(5);
        device.stick(false);
        while let Some(wire) = ledger.wire(0) {
            ledger.close(&mut world, wire);
        }
        for _ in 0..1000 {
            let moved = ledger.turn(&mut world, &connect);
            if !world.deliver_mail() && !moved {
                break;
            }
        }
        prop_assert!(ledger.open.is_empty());
        world.wires.clear();
        world.hold_mail = false;
        world.assert_clean();
    }
}
