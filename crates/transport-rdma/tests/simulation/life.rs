//! The course of a world: hosts come, work and go; then they rest; then nothing is left.

use std::rc::Rc;
use std::time::Duration;

use nvme::{Cqe, Sgl, Sqe};
use testkit::Random;
use testkit::rdma::{Controller, Message, Phase, Refused, World, host_address, keyed};
use testkit::simulation::oracle::{Ended, Oracle};
use zerocopy::FromBytes;

use crate::command::{Bounds, Command};
use crate::fate::Fate;
use crate::guest::{Guest, IoQueue, MEMORY};
use crate::scenario::{BLOCKS, Scenario};

/// What came of a world in which nobody complained.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Report {
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    pub(crate) lost: u64,
    pub(crate) controllers: u64,
    pub(crate) queues: u64,
    pub(crate) refused: u64,
    pub(crate) mishaps: u64,
    pub(crate) held: u64,
    pub(crate) exhausted: u64,
    pub(crate) reads_delayed: u64,
    pub(crate) failed_work: u64,
    pub(crate) timeouts: u64,
    pub(crate) receives_delayed: u64,
    pub(crate) last_receives_missed: u64,
    pub(crate) copied: u64,
    pub(crate) hash: u64,
}

impl Report {
    pub(crate) fn add(&mut self, other: &Report) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.lost += other.lost;
        self.controllers += other.controllers;
        self.queues += other.queues;
        self.refused += other.refused;
        self.mishaps += other.mishaps;
        self.held += other.held;
        self.exhausted += other.exhausted;
        self.reads_delayed += other.reads_delayed;
        self.failed_work += other.failed_work;
        self.timeouts += other.timeouts;
        self.receives_delayed += other.receives_delayed;
        self.last_receives_missed += other.last_receives_missed;
        self.copied += other.copied;
    }
}

pub(crate) struct Life {
    pub(crate) world: World,
    pub(crate) scenario: Scenario,
    pub(crate) random: Random,
    pub(crate) guests: Vec<Guest>,
    pub(crate) fate: Fate,
    pub(crate) report: Report,
    oracle: Oracle,
    moment: u64,
    printing: bool,
}

impl Life {
    pub(crate) fn new(seed: u64, printing: bool) -> Life {
        let scenario = Scenario::new(seed);
        if printing {
            eprintln!("{scenario:#?}");
        }
        let world = World::new(&scenario.options);
        let mut oracle = Oracle::default();
        oracle.add_disk(BLOCKS);
        let machine = |_| testkit::rdma::Machine::new(&world.fabric, host_address(), MEMORY);
        let guests =
            (0..scenario.hosts).map(|number| Guest::new(number, machine(number))).collect();
        let fate = Fate::new(scenario.options.devices.len());
        let random = Random::new(seed ^ 0x11fe);
        let report = Report::default();
        Life { world, scenario, random, guests, fate, report, oracle, moment: 0, printing }
    }

    pub(crate) fn tell(&mut self, what: impl FnOnce() -> String) {
        self.moment += 1;
        if self.printing {
            eprintln!("{:>12} {}", self.world.now().as_nanos(), what());
        }
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.scenario.mishaps == 0
    }

    pub(crate) fn run(mut self) -> Report {
        for _ in 0..self.scenario.steps {
            let guest = self.random.index(self.guests.len());
            match self.random.below(100) {
                0..3 => self.arrive(guest),
                3..6 => self.open_queue(guest),
                6..60 => self.submit(guest),
                _ => self.world.step(),
            }
            if self.random.permille(self.scenario.mishaps) {
                self.mishap();
            }
            self.take_answers();
        }
        self.rest();
        self.part()
    }

    /// A guest without a controller makes one.
    fn arrive(&mut self, guest: usize) {
        if self.guests[guest].controller.is_some() {
            return;
        }
        let device = self.random.index(self.world.addresses.len());
        let (machine, number) = (Rc::clone(&self.guests[guest].machine), self.guests[guest].number);
        match self.world.controller(&machine, number, device) {
            Ok(mut controller) => {
                let Some(bounds) = self.identify(&mut controller) else { return };
                self.tell(|| format!("host {number} came by device {device}: {bounds:?}"));
                self.report.controllers += 1;
                let guest = &mut self.guests[guest];
                guest.bounds = Bounds { blocks: bounds.blocks.min(self.scenario.blocks), ..bounds };
                (guest.controller, guest.next_qid) = (Some(controller), 1);
            }
            Err(refused) => self.refused(number, &refused),
        }
    }

    fn refused(&mut self, number: usize, refused: &Refused) {
        self.tell(|| format!("host {number} is refused: {refused:?}"));
        self.report.refused += 1;
        assert!(!(self.is_calm() && self.scenario.roomy), "host {number}: {refused:?}");
    }

    /// What the controller says of itself.
    fn identify(&mut self, controller: &mut Controller) -> Option<Bounds> {
        let machine = Rc::clone(controller.admin.machine());
        let page = machine.page(4096);
        let mut sqe = Sqe::new(0x06, 0).with_cid(2);
        sqe.cdw10 = 1.into();
        let capsule = keyed(sqe, &machine.memory, &page, false);
        let answer = self.world.execute(&mut controller.admin, &capsule)?;
        assert!(answer.status().is_success() || !self.is_calm(), "{answer:?}");
        if !answer.status().is_success() {
            return None;
        }
        let mut bytes = [0; 4096];
        page.copy_to(0, &mut bytes);
        let capsule = u32::from_le_bytes(bytes[1792..1796].try_into().unwrap()) * 16;
        let blocks = match bytes[77] {
            0 => 4096,
            mdts => 8 << mdts,
        };
        Some(Bounds { in_capsule: capsule as usize - 64, blocks })
    }

    fn open_queue(&mut self, guest: usize) {
        let guest = &mut self.guests[guest];
        let Some(controller) = &guest.controller else { return };
        if guest.queues.len() as u64 >= self.scenario.queues || controller.admin.is_over() {
            return;
        }
        let entries = self.random.between(2, 32) as u16;
        let (qid, number) = (guest.next_qid, guest.number);
        guest.next_qid += 1;
        match self.world.io_queue(controller, qid, entries) {
            Ok(queue) => {
                guest.queues.push(IoQueue::new(queue, entries));
                self.report.queues += 1;
                self.tell(|| format!("host {number} has queue {qid} of {entries}"));
            }
            Err(refused) => self.refused(number, &refused),
        }
    }

    fn submit(&mut self, guest: usize) {
        let count = self.random.spread(1, 32);
        let guest = &mut self.guests[guest];
        if guest.queues.is_empty() {
            return;
        }
        let index = self.random.index(guest.queues.len());
        let io = &mut guest.queues[index];
        for _ in 0..count {
            let Some(cid) = io.free_cid(&mut self.random) else { break };
            self.moment += 1;
            let (random, oracle) = (&mut self.random, &mut self.oracle);
            let made =
                Command::random(&guest.machine, random, guest.bounds, cid, oracle, self.moment);
            let Some((command, capsule)) = made else { break };
            if self.printing {
                eprintln!(
                    "{:>12} host {} qp {} command {cid}: {} {}+{} capsule {}",
                    self.world.now().as_nanos(),
                    guest.number,
                    io.queue.number(),
                    if command.write.is_some() { "write" } else { "read" },
                    command.lba,
                    command.blocks,
                    capsule.len(),
                );
            }
            io.queue.send(&capsule);
            io.under_way.insert(cid, command);
        }
    }

    /// Looks at what has come to every host.
    pub(crate) fn take_answers(&mut self) {
        for guest in 0..self.guests.len() {
            if let Some(controller) = &mut self.guests[guest].controller {
                while controller.admin.turn() {}
                controller.admin.arrived.clear();
                if controller.admin.is_over() {
                    let number = self.guests[guest].number;
                    self.tell(|| format!("host {number}: its admin queue is over"));
                    assert!(!self.is_calm(), "host {number}: its admin queue is over");
                    self.leave(guest);
                    continue;
                }
            }
            let mut index = 0;
            while index < self.guests[guest].queues.len() {
                let io = &mut self.guests[guest].queues[index];
                while io.queue.turn() {}
                while let Some(message) = self.guests[guest].queues[index].queue.arrived.pop_front()
                {
                    self.answered(guest, index, &message);
                }
                let io = &self.guests[guest].queues[index];
                if io.queue.is_over() {
                    let (number, failures) = (io.queue.number(), io.queue.failures.clone());
                    self.tell(|| format!("qp {number} is over: {failures:?}"));
                    assert!(!self.is_calm(), "qp {number} is over: {failures:?}");
                    let io = self.guests[guest].queues.remove(index);
                    self.lose(io);
                } else {
                    index += 1;
                }
            }
        }
    }

    fn answered(&mut self, guest: usize, index: usize, message: &Message) {
        let cqe = Cqe::read_from_bytes(&message.bytes).expect("a completion");
        self.moment += 1;
        let calm = self.is_calm();
        let device = self.guests[guest].controller.as_ref().map_or(0, |it| it.device);
        let does = self.scenario.options.devices[device].send_with_invalidate;
        let io = &mut self.guests[guest].queues[index];
        let cid = cqe.cid.get();
        if self.printing {
            eprintln!(
                "{:>12} qp {} answer {cid} {:?}",
                self.moment,
                io.queue.number(),
                cqe.status()
            );
        }
        let command = io.under_way.remove(&cid);
        let Some(command) = command else {
            assert!(io.leaving, "an answer to nothing: {cqe:?}");
            return;
        };
        let wanted = command.invalidates.filter(|_| does);
        assert_eq!(message.invalidated, wanted, "the key to be invalidated");
        let success = cqe.status().is_success();
        assert!(success || !calm, "{cqe:?} for {command:?}");
        self.report.answered += u64::from(success);
        self.report.failed += u64::from(!success);
        if let Some(id) = command.write {
            let how = if success { Ended::Done } else { Ended::Open };
            self.oracle.ended(id, how, true, self.moment).unwrap();
        } else {
            let versions = if success { command.versions() } else { Vec::new() };
            for (lba, version) in (command.lba..).zip(versions) {
                let span = (command.sent, self.moment);
                self.oracle.returned(0, lba, version, span).unwrap_or_else(|why| panic!("{why}"));
            }
            self.oracle.read_ended(command.sent);
        }
        command.finish();
    }

    /// What was under way on a queue will never be answered.
    pub(crate) fn lose(&mut self, io: IoQueue) {
        for command in io.under_way.values().filter(|command| command.write.is_none()) {
            self.oracle.read_ended(command.sent);
        }
        self.report.lost += io.under_way.len() as u64;
        // Its queue pair before the memory that it may reach.
        drop(io.queue);
    }

    /// A host is gone, whatever was under way.
    pub(crate) fn leave(&mut self, guest: usize) {
        let queues = std::mem::take(&mut self.guests[guest].queues);
        for io in queues {
            self.lose(io);
        }
        self.guests[guest].controller = None;
    }

    /// Nothing new is begun and nothing fails any more: everything has to be answered, or its queue over.
    fn rest(&mut self) {
        self.tell(|| "======== rest".to_owned());
        self.fate_rests();
        for _ in 0..2000 {
            for _ in 0..8 {
                self.world.step();
            }
            self.world.pass(Duration::from_millis(50));
            self.take_answers();
            if self.guests.iter().flat_map(|it| &it.queues).all(|io| io.under_way.is_empty()) {
                break;
            }
        }
        for io in self.guests.iter().flat_map(|guest| &guest.queues) {
            let waiting: Vec<_> = io.under_way.keys().collect();
            assert!(
                waiting.is_empty(),
                "qp {}: {waiting:?} were never answered: {:?}",
                io.queue.number(),
                self.world.network.total()
            );
        }
        // Those that are left go on.
        for guest in 0..self.guests.len() {
            for _ in 0..3 {
                self.submit(guest);
            }
        }
        for _ in 0..2000 {
            self.world.step();
            self.world.pass(Duration::from_millis(1));
            self.take_answers();
        }
        for io in self.guests.iter().flat_map(|guest| &guest.queues) {
            assert!(io.under_way.is_empty(), "qp {} is not served any more", io.queue.number());
        }
    }

    /// Everybody goes; nothing may be left.
    fn part(mut self) -> Report {
        self.tell(|| "======== the end".to_owned());
        let total = self.world.network.total();
        // Unlucky as they may be, no host does what it may not.
        assert_eq!(total.violations, 0, "{total:?}");
        if self.is_calm() {
            assert_eq!((total.failed_work, total.timeouts), (0, 0), "{total:?}");
            assert_eq!(total.receives_reclaimed, 0, "{total:?}");
        }
        for guest in 0..self.guests.len() {
            if guest.is_multiple_of(2)
                && let Some(controller) = &mut self.guests[guest].controller
            {
                controller.admin.disconnect();
                for io in &mut self.guests[guest].queues {
                    io.queue.disconnect();
                }
            }
            self.leave(guest);
        }
        self.guests.clear();
        self.world.empties();
        self.check_memory();
        self.report.held = total.commands_held;
        self.report.exhausted = total.receives_exhausted;
        self.report.reads_delayed = total.reads_delayed;
        self.report.failed_work = total.failed_work;
        self.report.timeouts = total.timeouts;
        self.report.receives_delayed = total.receives_delayed;
        self.report.last_receives_missed = total.last_receives_missed;
        self.report.copied = total.bytes_copied;
        self.report.hash = self.world.now().as_nanos().rotate_left(20) ^ self.moment;
        self.report
    }

    /// What is not available is posted to shared receive queues, and comes back when the devices go.
    fn check_memory(&mut self) {
        for device in 0..self.scenario.options.devices.len() {
            if let Some(device) = self.world.device(device) {
                self.world.fabric.remove_device(&device);
            }
        }
        self.world.wait(Duration::from_secs(1));
        let capacity: usize = self.world.pools.iter().map(memory::Pool::capacity).sum();
        assert_eq!(self.world.available(), capacity, "memory of the pools is lost");
        let [_, completions, receives, regions, domains, _] = self.world.fabric.census();
        assert_eq!((completions, receives, regions, domains), (0, 0, 0, 0), "objects are left");
        assert_eq!(self.world.fabric.lingering(), 0, "devices are open");
        assert_eq!(self.world.fabric.refusals(), 0, "something was destroyed that was in use");
    }

    /// The connection state of a host's queues, for choosing one that lives.
    pub(crate) fn live_pairs(&self) -> Vec<u32> {
        let io = self.guests.iter().flat_map(|guest| guest.queues.iter().map(|io| &io.queue));
        let admin = self.guests.iter().filter_map(|guest| guest.controller.as_ref());
        let all = io.chain(admin.map(|controller| &controller.admin));
        all.filter(|queue| queue.phase == Phase::Connected)
            .map(testkit::rdma::Queue::number)
            .collect()
    }

    /// A command without data.
    pub(crate) fn plain(sqe: Sqe) -> Sqe {
        sqe.with_sgl(Sgl::Keyed { address: 0, length: 0, key: 0, invalidate: false })
    }
}
