//! What hosts do over RDMA: connections with any private data, capsules of any bytes, descriptors that lead anywhere, and
//! things that happen to their queue pairs. Beside them an honest host is served; in the end nothing is left.

use std::rc::Rc;
use std::time::Duration;

use nvme::io::{Command, Transfer};
use nvme::{Cqe, Sgl, Sqe};
use verbs::Status;
use zerocopy::{FromBytes, IntoBytes};

use super::steps::Steps;
use crate::rdma::{Controller, Machine, Options, Phase, Queue, Wish, World, host_address, keyed};

/// Connections of the host under test.
const QUEUES: usize = 4;
/// Bytes that its commands may name.
const MEMORY: usize = 64 << 10;
/// Where the honest host's blocks begin.
const HONEST: u64 = 1 << 13;

struct Bench {
    world: World,
    machine: Rc<Machine>,
    admin: Option<Controller>,
    queues: Vec<Queue>,
    honest: (Controller, Queue),
    succeeded: u32,
}

/// Runs these bytes; the number of commands of the host under test that succeed.
pub fn rdma(bytes: &[u8]) -> u32 {
    let mut steps = Steps(bytes);
    let mut bench = Bench::new(steps.byte());
    while !steps.is_over() {
        bench.step(&mut steps);
        bench.take_answers();
    }
    bench.end()
}

impl Bench {
    fn new(kind: u8) -> Bench {
        let mut options =
            Options { seed: kind.into(), pool: 4 << 20, requests: 64, ..Options::default() };
        let device = &mut options.devices[0];
        device.max_srq = if kind & 1 == 0 { 16 } else { 0 };
        device.max_inline = if kind & 2 == 0 { 64 } else { 0 };
        device.reports_last_wqe = kind & 4 == 0;
        device.send_with_invalidate = kind & 8 == 0;
        device.max_qp_wr = if kind & 16 == 0 { 1024 } else { 16 };
        options.config.shared_receives = 64;
        let mut world = World::new(&options);
        let machine = |world: &World| Machine::new(&world.fabric, host_address(), 2 << 20);
        let others = machine(&world);
        let honest = world.host(&others, 1);
        let machine = machine(&world);
        Bench { world, machine, admin: None, queues: Vec::new(), honest, succeeded: 0 }
    }

    fn queue(&mut self, steps: &mut Steps<'_>) -> Option<&mut Queue> {
        let index = usize::from(steps.byte());
        let index = index.checked_rem(self.queues.len())?;
        self.queues.get_mut(index)
    }

    fn step(&mut self, steps: &mut Steps<'_>) {
        match steps.byte() % 16 {
            0 => self.ask(steps),
            1 => self.connect(steps),
            2 => {
                let length = steps.word() % 512;
                let bytes = steps.bytes(length.into());
                self.send(steps, bytes);
            }
            3 | 4 => {
                let sqe = self.command(steps);
                self.send(steps, &sqe);
            }
            5 => {
                let sqe = Sqe::read_from_bytes(&steps.array::<64>()).unwrap();
                let (part, invalidate) = (self.machine.segment(0, MEMORY), steps.byte() & 1 == 1);
                let memory = self.machine.registered_anew();
                self.send(steps, &keyed(sqe, &memory, &part, invalidate));
            }
            6 => {
                self.world.fabric.run(steps.byte().into());
            }
            7 => {
                self.world.turn();
            }
            8 | 9 => self.world.settle(),
            10 => self.world.wait(Duration::from_millis(u64::from(steps.byte()) * 200)),
            11 => {
                if let Some(queue) = self.queue(steps) {
                    queue.disconnect();
                }
            }
            12 => {
                let index = usize::from(steps.byte()).checked_rem(self.queues.len());
                drop(index.map(|index| self.queues.remove(index)));
            }
            13 => self.befall(steps),
            14 => {
                if let Some(queue) = self.queue(steps) {
                    queue.stop_receiving();
                }
            }
            _ => self.is_served(),
        }
    }

    /// Asks for a connection with any private data.
    fn ask(&mut self, steps: &mut Steps<'_>) {
        let length = steps.byte() % 57;
        let wish = Wish {
            private_data: steps.bytes(length.into()).to_vec(),
            responder_resources: steps.byte() % 17,
            rnr_retries: steps.byte() % 8,
            receives: steps.byte() & 1 == 0,
            ..Wish::new(self.world.addresses[0], 0, 32)
        };
        if self.queues.len() < QUEUES {
            self.queues.push(Queue::ask(&self.machine, wish));
        }
    }

    /// A good host for once: a controller, then I/O queues of it.
    fn connect(&mut self, steps: &mut Steps<'_>) {
        let qid = u16::from(steps.byte() % 4 + 1);
        let Some(admin) = &self.admin else {
            self.admin = self.world.controller(&self.machine, 2, 0).ok();
            return;
        };
        if self.queues.len() < QUEUES && !admin.admin.is_over() {
            self.queues.extend(self.world.io_queue(admin, qid, 16));
        }
    }

    /// A read or write with a descriptor, or descriptors, that may be right.
    fn command(&mut self, steps: &mut Steps<'_>) -> Vec<u8> {
        let (kind, cid, blocks) = (steps.byte(), steps.word(), u32::from(steps.byte() % 16) + 1);
        let transfer = Transfer::new(u64::from(steps.word() % 4096), blocks);
        let sqe = if kind & 1 == 0 { Command::Read(transfer) } else { Command::Write(transfer) };
        let sqe = sqe.to_sqe(1).with_cid(cid);
        let memory = Rc::clone(&self.machine.memory);
        let segment = self.machine.segment(0, (blocks * 512) as usize);
        let good = keyed(sqe, &memory, &segment, false);
        match kind >> 1 & 3 {
            0 => good,
            1 => {
                let remote = memory.remote(&segment).unwrap();
                let sgl = Sgl::Keyed {
                    address: remote.address.wrapping_add(u64::from(steps.word()) << 8),
                    length: u32::from(steps.word()),
                    key: remote.key ^ u32::from(steps.byte() & 1),
                    invalidate: false,
                };
                sqe.with_sgl(sgl).as_bytes().to_vec()
            }
            2 => {
                let sgl = Sgl::InCapsule { offset: u64::from(steps.byte()), length: blocks * 512 };
                let mut capsule = sqe.with_sgl(sgl).as_bytes().to_vec();
                capsule.resize(64 + usize::from(steps.word() % 9000), 7);
                capsule
            }
            _ => {
                let mut capsule = good;
                let (identifier, count) = (steps.byte(), usize::from(steps.byte() % 20));
                let descriptor: [u8; 16] = capsule[24..40].try_into().unwrap();
                capsule[24..28].copy_from_slice(&u32::from(steps.byte()).to_le_bytes());
                capsule[28..32].fill(0);
                capsule[32..36].copy_from_slice(&((count * 16) as u32).to_le_bytes());
                capsule[39] = if identifier < 200 { 0x31 } else { identifier };
                for _ in 0..count {
                    capsule.extend(descriptor);
                    let (end, piece) = (capsule.len(), (blocks * 512 / count as u32).to_le_bytes());
                    capsule[end - 8..end - 5].copy_from_slice(&piece[..3]);
                }
                capsule
            }
        }
    }

    fn send(&mut self, steps: &mut Steps<'_>, bytes: &[u8]) {
        if let Some(queue) = self.queue(steps)
            && queue.phase == Phase::Connected
            && queue.room() > 0
        {
            queue.send(bytes);
        }
    }

    /// Something happens to one of the queue pairs of the host under test, or to the node's end of it.
    fn befall(&mut self, steps: &mut Steps<'_>) {
        let fabric = self.world.fabric.clone();
        let (kind, status) = (steps.byte(), Status(u32::from(steps.byte() % 22) + 1));
        let Some(own) = self.queue(steps).map(|queue| queue.number()) else { return };
        let number = if kind & 1 == 0 { own } else { fabric.peer(own).unwrap_or(own) };
        match kind >> 1 & 3 {
            0 => fabric.hold(number, true),
            1 => fabric.hold(number, false),
            2 => fabric.break_pair(number),
            _ => fabric.fail_next(number, status),
        }
    }

    fn take_answers(&mut self) {
        for queue in &mut self.queues {
            while queue.turn() {}
            for message in queue.arrived.drain(..) {
                let cqe = Cqe::read_from_bytes(&message.bytes).expect("a completion");
                self.succeeded += u32::from(cqe.status().is_success());
            }
        }
    }

    /// The honest host is, at once.
    fn is_served(&mut self) {
        let queue = &mut self.honest.1;
        let machine = Rc::clone(queue.machine());
        let segment = machine.segment(0, 4096);
        let before = self.world.now();
        for sqe in [Command::Write, Command::Read].map(|of| of(Transfer::new(HONEST, 8)).to_sqe(1))
        {
            let capsule = keyed(sqe.with_cid(9), &machine.memory, &segment, false);
            let answer = self.world.execute(queue, &capsule).expect("an answer");
            assert!(answer.status().is_success(), "{answer:?}");
        }
        let took = self.world.now().since(before);
        assert!(took < Duration::from_secs(1), "the honest host waited {took:?}");
    }

    fn end(mut self) -> u32 {
        self.is_served();
        let violations = self.world.network.total();
        drop((self.queues, self.admin, self.honest));
        self.world.empties();
        let after = self.world.network.total();
        assert_eq!(after.opened, after.closed, "{violations:?}");
        self.succeeded
    }
}
