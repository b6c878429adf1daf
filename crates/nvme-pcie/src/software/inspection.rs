//! What tests ask of the controller, and what happens to it as a whole.

use nvme::event::Event;
use nvme::feature::AsynchronousEvents;
use nvme::io::{BlockRange, Command, Opcode};
use nvme::{admin, io};

use super::Controller;
use super::pointer::Cursor;
use super::world::{Stage, World};

/// Doorbell registers that were found to be rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Doorbells {
    /// Of submission queues.
    pub submission: u64,
    /// Of completion queues.
    pub completion: u64,
}

/// The I/O queues there are, by their identifiers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QueueIds {
    /// Submission queues, with the completion queue of each.
    pub submission: Vec<(u16, u16)>,
    /// Completion queues, with the vector of each that interrupts.
    pub completion: Vec<(u16, Option<u16>)>,
}

impl Controller {
    /// Everything that the driver did wrong so far.
    pub fn violations(&self) -> Vec<String> {
        let mut world = self.world();
        world.look_beside_doorbells();
        world.violations.clone()
    }

    /// Forgets what the driver did wrong so far.
    pub fn forgive(&self) {
        self.world().violations.clear();
    }

    /// Accesses to memory that is not mapped; each is a violation, too.
    pub fn iommu_faults(&self) -> u64 {
        self.world().iommu_faults
    }

    /// What blocks hold, whatever of it is durable; empty if there is no such namespace.
    pub fn read_medium(&self, nsid: u32, lba: u64, blocks: u64) -> Vec<u8> {
        let world = self.world();
        let Some(namespace) = world.namespaces.all.get(&nsid) else { return Vec::new() };
        let blocks = lba..lba.saturating_add(blocks);
        blocks.flat_map(|lba| namespace.medium.block(lba).iter().copied()).collect()
    }

    /// Puts whole blocks onto the medium, durably; what is less than a block at the end is left out.
    pub fn write_medium(&self, nsid: u32, lba: u64, data: &[u8]) {
        let mut world = self.world();
        let World { namespaces, random, .. } = &mut *world;
        let Some(namespace) = namespaces.all.get_mut(&nsid) else { return };
        let size = usize::try_from(namespace.options.block_size).unwrap_or(512);
        for (lba, block) in (lba..).zip(data.chunks_exact(size)) {
            let copied = |to: &mut [u8]| to.copy_from_slice(block);
            namespace.medium.change(lba, false, true, random, copied);
        }
    }

    /// Whether a block was written and not deallocated since.
    pub fn is_allocated(&self, nsid: u32, lba: u64) -> bool {
        let world = self.world();
        world.namespaces.all.get(&nsid).is_some_and(|found| found.medium.is_allocated(lba))
    }

    /// Blocks of a namespace that were written and not deallocated since.
    pub fn allocated(&self, nsid: u32) -> u64 {
        self.world().namespaces.all.get(&nsid).map_or(0, |found| found.medium.allocated())
    }

    /// Blocks of a namespace that a loss of power could take.
    pub fn dirty(&self, nsid: u32) -> u64 {
        self.world().namespaces.all.get(&nsid).map_or(0, |found| found.medium.dirty())
    }

    /// I/O commands with this opcode that were carried out, or failed by a fault.
    pub fn io_commands(&self, opcode: io::Opcode) -> u64 {
        self.world().counters.io.get(usize::from(opcode.code())).copied().unwrap_or(0)
    }

    /// Admin commands with this opcode that were carried out, or failed by a fault.
    pub fn admin_commands(&self, opcode: admin::Opcode) -> u64 {
        self.world().counters.admin.get(usize::from(opcode.code())).copied().unwrap_or(0)
    }

    /// Commands whose data was named by an SGL.
    pub fn commands_by_sgl(&self) -> u64 {
        self.world().counters.by_sgl
    }

    /// Reads, writes and compares that crossed a boundary of NOIOB.
    pub fn across_boundaries(&self) -> u64 {
        self.world().counters.across_boundaries
    }

    /// Doorbell registers that were found to be rung, the admin queue's among them.
    pub fn doorbells(&self) -> Doorbells {
        let counters = &self.world().counters;
        Doorbells { submission: counters.tail_doorbells, completion: counters.head_doorbells }
    }

    /// Completions that were posted.
    pub fn completions(&self) -> u64 {
        self.world().counters.completions
    }

    /// Interrupts that were signalled.
    pub fn interrupts(&self) -> u64 {
        self.world().counters.interrupts
    }

    /// The I/O queues there are.
    pub fn queues(&self) -> QueueIds {
        let world = self.world();
        let submission = world.queues.submission.iter().filter(|&(&qid, _)| qid > 0);
        let completion = world.queues.completion.iter().filter(|&(&qid, _)| qid > 0);
        QueueIds {
            submission: submission.map(|(&qid, queue)| (qid, queue.cqid)).collect(),
            completion: completion.map(|(&qid, queue)| (qid, queue.vector)).collect(),
        }
    }

    /// Commands that were taken and not answered, those that wait for events not among them.
    pub fn outstanding(&self) -> usize {
        let world = self.world();
        world.commands.iter().filter(|command| command.stage != Stage::Listening).count()
    }

    /// Commands that wait for events.
    pub fn listening(&self) -> usize {
        let world = self.world();
        world.commands.iter().filter(|command| command.stage == Stage::Listening).count()
    }

    /// Whether shadow doorbells are in use.
    pub fn has_shadow_doorbells(&self) -> bool {
        self.world().queues.shadow.is_some()
    }

    /// Whether it is ready: CSTS.RDY.
    pub fn is_ready(&self) -> bool {
        self.world().control.csts.rdy
    }

    /// Whether somebody has the function.
    pub fn is_open(&self) -> bool {
        self.world().open
    }
}

impl World {
    /// Nobody has the function any more: it is reset, and reaches no memory.
    pub(super) fn close(&mut self) {
        if self.alive {
            self.look_beside_doorbells();
            self.reset_function();
        }
        self.reach.clear();
        self.interrupts.disconnect();
        (self.open, self.alive) = (false, false);
    }

    /// The controller is gone.
    pub(super) fn take_out(&mut self) {
        if self.alive {
            self.look_beside_doorbells();
            self.reset_function();
            self.read_as_ones();
        }
        (self.present, self.alive) = (false, false);
    }

    /// Takes a mapping away, which nothing may be using.
    pub(super) fn unmap(&mut self, iova: u64) {
        let Some((start, end)) = self.reach.remove(iova) else {
            return self.violate(format!("nothing is mapped at {iova:#x}, and it was unmapped"));
        };
        let within = |at: u64, len: u64| at < end && start < at.saturating_add(len);
        let page = self.control.page();
        let mut used = Vec::new();
        for (qid, queue) in &self.queues.submission {
            if within(queue.base, u64::from(queue.entries) * 64) {
                used.push(format!("submission queue {qid}"));
            }
        }
        for (qid, queue) in &self.queues.completion {
            if within(queue.base, u64::from(queue.entries) * 16) {
                used.push(format!("completion queue {qid}"));
            }
        }
        if self.queues.shadow.is_some_and(|(a, b)| within(a, page) || within(b, page)) {
            used.push("doorbell buffers".to_owned());
        }
        // What an outstanding command lacks now, it did not lack before.
        let before = (self.violations.len(), self.iommu_faults, self.counters.by_sgl);
        for index in 0..self.commands.len() {
            let Some(command) = self.commands.get(index).copied() else { break };
            let unanswered = !matches!(command.stage, Stage::Done(_) | Stage::Listening);
            let length = self.data_length(&command);
            if unanswered && self.resolve(&command.sqe, length).is_err() {
                used.push(format!("command {} of queue {}", command.sqe.cid, command.sqid));
            }
        }
        self.violations.truncate(before.0);
        (self.iommu_faults, self.counters.by_sgl) = (before.1, before.2);
        for what in used {
            self.violate(format!("memory at {iova:#x} unmapped, in use by {what}"));
        }
    }

    /// Bytes of a command's data.
    fn data_length(&self, command: &super::world::Command) -> u64 {
        let sqe = &command.sqe;
        if command.sqid == 0 {
            return match admin::Command::parse(sqe) {
                Ok(admin::Command::Identify(_)) => admin::IDENTIFY_LENGTH as u64,
                Ok(admin::Command::GetLogPage(page)) => page.length(),
                _ => 0,
            };
        }
        let namespace = self.namespaces.all.get(&sqe.nsid.get());
        let size = namespace.map_or(0, |namespace| namespace.options.block_size);
        match Command::parse(sqe) {
            Ok(Command::Read(transfer) | Command::Write(transfer) | Command::Compare(transfer)) => {
                transfer.range.bytes(size)
            }
            Ok(Command::DatasetManagement(dsm)) => u64::from(dsm.data_length()),
            _ => nvme::copy::Copy::parse(sqe)
                .and_then(|copy| copy.data_length())
                .map_or(0, u64::from),
        }
    }

    /// Whatever was written between doorbells, or behind them.
    pub(super) fn look_beside_doorbells(&mut self) {
        if !self.alive {
            return;
        }
        let doorbells = |qid| [self.doorbell(qid, false), self.doorbell(qid, true)];
        let mut doorbells = (0..=self.last_doorbell()).flat_map(doorbells).peekable();
        let mut found = Vec::new();
        for at in (nvme::register::offset::DOORBELLS..self.bar.len()).step_by(4) {
            if doorbells.next_if_eq(&at).is_none() && self.bar.take(at).is_some() {
                found.push(at);
            }
        }
        for at in found {
            self.violate(format!("register {at:#x} written, which is no doorbell"));
        }
    }

    /// Of each write that is under way, some blocks get to the medium.
    pub(super) fn tear_writes(&mut self) {
        for index in 0..self.commands.len() {
            let Some(command) = self.commands.get(index).copied() else { return };
            let begun = command.sqid > 0 && !matches!(command.stage, Stage::Done(_));
            if !begun || command.sqe.opcode != Opcode::Write.code() {
                continue;
            }
            let Ok(Command::Write(write)) = Command::parse(&command.sqe) else { continue };
            let length = self.data_length(&command);
            if self.resolve(&command.sqe, length).is_ok() {
                self.tear(command.sqe.nsid.get(), write.range);
            }
        }
        self.commands.clear();
    }

    fn tear(&mut self, nsid: u32, range: BlockRange) {
        let World { namespaces, random, block, pieces, reach, .. } = self;
        let Some(namespace) = namespaces.all.get_mut(&nsid) else { return };
        if range.check(namespace.options.blocks).is_err() || namespace.options.metadata > 0 {
            return;
        }
        block.resize(usize::try_from(namespace.options.block_size).unwrap_or(0), 0);
        let mut cursor = Cursor::new(pieces);
        for lba in range.slba..range.end().unwrap_or(u64::MAX) {
            if cursor.gather(reach, block) && random.coin() {
                let copied = |to: &mut [u8]| to.copy_from_slice(block);
                namespace.medium.change(lba, false, true, random, copied);
            }
        }
    }

    /// The host is told of a namespace that changed, if it wants to be.
    pub(super) fn tell_of_namespace(&mut self, nsid: u32) {
        self.events.changed.insert(nsid);
        if self.features.wants(AsynchronousEvents::NAMESPACE) {
            self.events.push(Event::NAMESPACE_CHANGED);
        }
    }
}
