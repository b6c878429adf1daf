//! Random commands of every kind on several connections at once, each answer held against the oracle.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use host::{Completion, Controller, HostError, Queue, SlotId, Transfer};
use nvme::command::NSID_ALL;
use nvme::io::{self, Command, DatasetManagement, DsmRange, WriteZeroes};
use nvme::{Sqe, Status};
use testkit::Random;
use zerocopy::IntoBytes;

use super::model::Model;
use super::{PATIENCE, connect, options};

/// Data of one command at most.
pub(crate) const LARGEST: u32 = 1 << 20;
/// Commands outstanding on each connection.
const DEPTH: u16 = 8;

/// What a command was to do.
#[derive(Debug, Clone)]
enum Job {
    Read,
    /// Blocks get this version: a write, or zeroes if it is 0.
    Put(u32),
    /// The ranges become zeroes.
    Deallocate(Vec<Range<u64>>),
    Compare {
        equal: bool,
    },
    /// Must succeed and changes nothing: Flush, Verify.
    Harmless,
    /// Must be refused with this.
    Refused(Status),
}

#[derive(Debug, Clone)]
struct Pending {
    model: usize,
    range: Range<u64>,
    job: Job,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Workload {
    controllers: Vec<Controller>,
    queues: Vec<Queue>,
    /// By queue and slot.
    pending: Vec<Vec<Option<Pending>>>,
    models: Vec<Model>,
    random: Random,
    /// Commands answered so far.
    pub(crate) answered: u64,
    /// The target may end under it.
    may_end: bool,
}

impl Workload {
    /// Over all namespaces of a subsystem, which must be all zeroes. Four connections: two of a controller
    /// with digests, two of one without digests and without flow control.
    pub(crate) fn new(address: SocketAddr, subsystem: &str, seed: u64) -> Workload {
        let mut workload = Workload {
            controllers: Vec::new(),
            queues: Vec::new(),
            pending: Vec::new(),
            models: Vec::new(),
            random: Random::new(seed),
            answered: 0,
            may_end: false,
        };
        workload.connect(address, subsystem);
        let controller = &mut workload.controllers[0];
        for nsid in controller.namespaces().unwrap() {
            let data = controller.namespace(nsid).unwrap();
            let block_size = data.format().unwrap().block_size().unwrap() as usize;
            workload.models.push(Model::new(nsid, block_size, data.nsze.get()));
        }
        workload
    }

    /// Connects anew, to the same subsystem in the state in which the last connections left it.
    pub(crate) fn connect(&mut self, address: SocketAddr, subsystem: &str) {
        self.controllers.clear();
        self.queues.clear();
        for digests in [true, false] {
            let mut options = options(address, subsystem, "workload");
            options.header_digest = digests;
            options.data_digest = digests;
            options.disable_sq_flow_control = !digests;
            let (controller, queues) = connect(options, 2, DEPTH, LARGEST);
            assert_eq!(queues[0].digests(), (digests, digests));
            self.controllers.push(controller);
            self.queues.extend(queues);
        }
        self.pending = vec![vec![None; usize::from(DEPTH)]; self.queues.len()];
    }

    /// Does so many commands more, and waits for all answers.
    pub(crate) fn run(&mut self, commands: u64) {
        self.go(commands).unwrap();
    }

    /// Goes on until the connections break, which has to happen; what was not answered then may or may
    /// not have been done. `watch` sees the number of answers after each turn.
    pub(crate) fn run_until_broken(&mut self, mut watch: impl FnMut(u64)) -> HostError {
        let deadline = Instant::now() + PATIENCE;
        self.may_end = true;
        let broken = loop {
            assert!(Instant::now() < deadline, "the connections never broke");
            match self.turn(true) {
                Ok(()) => watch(self.answered),
                Err(broken) => break broken,
            }
        };
        self.break_off();
        self.may_end = false;
        broken
    }

    /// Drops the connections. What was not answered may or may not have been done.
    pub(crate) fn break_off(&mut self) {
        // What has been received already counts as answered.
        for at in 0..self.queues.len() {
            while let Some(completion) = self.queues[at].next_completion() {
                // The controller's death is no answer to what it was asked.
                if completion.cqe.status().is_success() {
                    self.ended(at, &completion);
                }
            }
        }
        self.queues.clear();
        self.controllers.clear();
        for pending in std::mem::take(&mut self.pending).into_iter().flatten().flatten() {
            self.lose(pending);
        }
    }

    /// Whether it was done is not known.
    fn lose(&mut self, pending: Pending) {
        let Pending { model, range, job } = pending;
        let model = &mut self.models[model];
        match job {
            Job::Put(version) => model.lose(&range, Some(version)),
            Job::Deallocate(ranges) => {
                for range in &ranges {
                    model.lose(range, Some(0));
                }
            }
            Job::Read | Job::Compare { .. } | Job::Harmless | Job::Refused(_) => {
                if !range.is_empty() {
                    model.lose(&range, None);
                }
            }
        }
    }

    /// Reads every block of every namespace and holds it against the oracle.
    pub(crate) fn read_back(&mut self) {
        let queue = &mut self.queues[0];
        for model in &mut self.models {
            let step = u64::from(LARGEST) / model.block_size as u64;
            let mut lba = 0;
            while lba < model.blocks() {
                let range = lba..(lba + step).min(model.blocks());
                let blocks = (range.end - range.start) as u32;
                let bytes = blocks * model.block_size as u32;
                let sqe = Command::Read(io::Transfer::new(lba, blocks)).to_sqe(model.nsid);
                let slot = queue.reserve().unwrap();
                let read = queue.call(slot, sqe, Transfer::Read(bytes), PATIENCE, "read").unwrap();
                assert!(read.cqe.status().is_success(), "{}", read.cqe.status());
                let mut found = vec![0; bytes as usize];
                queue.copy_to(slot, 0, &mut found);
                model.check(&range, &found);
                queue.release(slot);
                lba = range.end;
            }
        }
    }

    /// Holds a namespace's medium against the oracle.
    pub(crate) fn check_medium(&mut self, nsid: u32, medium: &[u8]) {
        let model = self.models.iter_mut().find(|model| model.nsid == nsid).unwrap();
        model.check(&(0..model.blocks()), medium);
    }

    fn go(&mut self, commands: u64) -> Result<(), HostError> {
        let last = self.answered + commands;
        let mut progress = (self.answered, Instant::now());
        loop {
            let outstanding: usize = self.queues.iter().map(Queue::outstanding).sum();
            let more = self.answered + (outstanding as u64) < last;
            if !more && outstanding == 0 {
                return Ok(());
            }
            self.turn(more)?;
            if self.answered > progress.0 {
                progress = (self.answered, Instant::now());
            }
            assert!(progress.1.elapsed() < PATIENCE, "no answer to {:?}", self.pending);
        }
    }

    /// Sends, if there is `more` to be sent, receives, and sleeps a little if nothing came.
    fn turn(&mut self, more: bool) -> Result<(), HostError> {
        let mut received = false;
        for at in 0..self.queues.len() {
            if more {
                self.refill(at);
            }
            self.queues[at].flush()?;
            received |= self.queues[at].receive()?;
            while let Some(completion) = self.queues[at].next_completion() {
                self.ended(at, &completion);
                self.queues[at].release(completion.slot);
            }
        }
        if !received {
            Queue::wait_any(&mut self.queues, Duration::from_millis(100))?;
        }
        Ok(())
    }

    fn refill(&mut self, at: usize) {
        while let Some(slot) = self.queues[at].reserve() {
            if !self.submit(at, slot) {
                self.queues[at].release(slot);
                return;
            }
        }
    }

    /// Any length up to the largest, small ones as often as large ones.
    fn length(&mut self, block_size: usize) -> u64 {
        let most = u64::from(LARGEST) / block_size as u64;
        let scale = self.random.below(u64::from(most.ilog2()) + 1);
        (1 + self.random.below(1 << scale)).min(most)
    }

    fn range(&mut self, model: usize) -> Range<u64> {
        let (block_size, all) = (self.models[model].block_size, self.models[model].blocks());
        let blocks = self.length(block_size);
        let first = self.random.below(all - blocks + 1);
        first..first + blocks
    }

    /// Submits a random command; false if the range drawn for it was busy.
    fn submit(&mut self, at: usize, slot: SlotId) -> bool {
        let index = self.random.index(self.models.len());
        let mut range = self.range(index);
        let kind = self.random.below(100);
        let mut fua = self.random.permille(250);
        let model = &mut self.models[index];
        let transfer = |range: &Range<u64>, fua| io::Transfer {
            fua,
            ..io::Transfer::new(range.start, (range.end - range.start) as u32)
        };
        let bytes = (range.end - range.start) as usize * model.block_size;
        let mut data = vec![0; bytes.max(4096)];
        let (command, moved, job) = match kind {
            0..30 => {
                (Command::Read(transfer(&range, fua)), Transfer::Read(bytes as u32), Job::Read)
            }
            30..60 => {
                let version = model.new_version();
                model.fill(&range, version, &mut data[..bytes]);
                let command = Command::Write(transfer(&range, fua));
                (command, Transfer::Write(bytes as u32), Job::Put(version))
            }
            60..70 => {
                let mut zeroes = WriteZeroes::new(range.start, (range.end - range.start) as u32);
                zeroes.deallocate = self.random.permille(500);
                zeroes.fua = fua;
                (Command::WriteZeroes(zeroes), Transfer::None, Job::Put(0))
            }
            70..78 => return self.deallocate(at, slot, index),
            78..86 => {
                let equal = self.random.permille(700);
                model.expected(&range, &mut data[..bytes]);
                if !equal {
                    data[self.random.index(bytes)] ^= 1 << self.random.below(8);
                }
                let command = Command::Compare(transfer(&range, fua));
                (command, Transfer::Write(bytes as u32), Job::Compare { equal })
            }
            86..90 => (Command::Verify(transfer(&range, fua)), Transfer::None, Job::Harmless),
            90..97 => {
                range = 0..0;
                fua = kind == 90;
                (Command::Flush, Transfer::None, Job::Harmless)
            }
            _ => {
                // One block too far, or so far that the end does not fit 64 bits.
                let blocks = range.end - range.start;
                let first = if fua { u64::MAX - 1 } else { model.blocks() - blocks + 1 };
                range = 0..0;
                let command =
                    Command::Write(io::Transfer::new(first, if fua { 2 } else { blocks as u32 }));
                let bytes = if fua { 2 * model.block_size } else { bytes };
                if bytes > data.len() {
                    return false;
                }
                let job = Job::Refused(Status::LBA_OUT_OF_RANGE);
                (command, Transfer::Write(bytes as u32), job)
            }
        };
        let changes = matches!(job, Job::Put(_));
        if !range.is_empty() && !model.begin(&range, changes) {
            return false;
        }
        if let Transfer::Write(length) = moved {
            self.queues[at].copy_from(slot, 0, &data[..length as usize]);
        }
        let everywhere = matches!(command, Command::Flush) && fua;
        let sqe = command.to_sqe(if everywhere { NSID_ALL } else { model.nsid });
        self.queue_up(at, slot, sqe, moved, Pending { model: index, range, job });
        true
    }

    /// Deallocates one to four ranges that neither overlap nor are busy.
    fn deallocate(&mut self, at: usize, slot: SlotId, index: usize) -> bool {
        let mut ranges = Vec::new();
        for _ in 0..=self.random.below(4) {
            let range = self.range(index);
            if self.models[index].begin(&range, true) {
                ranges.push(range);
            }
        }
        if ranges.is_empty() {
            return false;
        }
        let list: Vec<_> = ranges
            .iter()
            .map(|range| DsmRange::new(range.start, (range.end - range.start) as u32))
            .collect();
        let command = Command::DatasetManagement(DatasetManagement::deallocate(list.len() as u16));
        let bytes = list.as_slice().as_bytes();
        self.queues[at].copy_from(slot, 0, bytes);
        let moved = Transfer::Write(bytes.len() as u32);
        let sqe = command.to_sqe(self.models[index].nsid);
        let job = Job::Deallocate(ranges);
        self.queue_up(at, slot, sqe, moved, Pending { model: index, range: 0..0, job });
        true
    }

    fn queue_up(&mut self, at: usize, slot: SlotId, sqe: Sqe, moved: Transfer, pending: Pending) {
        self.queues[at].submit(slot, sqe, moved).unwrap();
        self.pending[at][slot.index()] = Some(pending);
    }

    fn ended(&mut self, at: usize, completion: &Completion) {
        let slot = completion.slot;
        let pending = self.pending[at][slot.index()].take().unwrap();
        let status = completion.cqe.status();
        // A target that ends may answer so what comes behind data that it waits for; a host tries again elsewhere.
        if self.may_end && status.same_code(Status::COMMAND_INTERRUPTED) {
            return self.lose(pending);
        }
        let Pending { model, ref range, ref job } = pending;
        let model = &mut self.models[model];
        assert!(!completion.data_digest_error, "{pending:?}");
        let expected = match job {
            Job::Compare { equal: false } => Status::COMPARE_FAILURE,
            Job::Refused(status) => *status,
            _ => Status::SUCCESS,
        };
        assert!(status.same_code(expected), "{pending:?}: {status} instead of {expected}");
        match job {
            Job::Read => {
                let bytes = (range.end - range.start) as usize * model.block_size;
                let mut found = vec![0; bytes];
                self.queues[at].copy_to(slot, 0, &mut found);
                model.check(range, &found);
            }
            Job::Put(version) => model.put(range, *version),
            Job::Deallocate(ranges) => {
                for range in ranges {
                    model.put(range, 0);
                    model.end(range);
                }
            }
            Job::Compare { .. } | Job::Harmless | Job::Refused(_) => {}
        }
        if !range.is_empty() {
            model.end(range);
        }
        self.answered += 1;
    }
}
