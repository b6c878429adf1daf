//! A driver of the plainest kind: entries written by hand, one thread, no recovery. What it can do wrong, it does when asked to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nvme::admin::{self, SetFeatures};
use nvme::feature::{Feature, NumberOfQueues};
use nvme::pcie::{self, CreateIoCompletionQueue, CreateIoSubmissionQueue, Priority};
use nvme::register::{AdminQueueAttributes, Configuration, ControllerStatus, offset};
use nvme::{Cqe, LocalSgl, Prps, Sqe, Status};
use nvme_pcie::Pages;
use nvme_pcie::function::{Function, Mapping, OWN_IOVA, Slot};
use nvme_pcie::software::{Controller, Options};

/// Bytes of the memory that it shares with the controller.
pub(crate) const MEMORY: usize = 8 << 20;
/// Steps after which a command that is not answered never is.
const PATIENCE: usize = 100_000;

/// A submission queue and its completion queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) qid: u16,
    pub(crate) entries: u32,
    pub(crate) sq: usize,
    pub(crate) cq: usize,
    pub(crate) tail: u32,
    pub(crate) head: u32,
    phase: u16,
    /// Completions that were taken and nobody asked for.
    pub(crate) taken: VecDeque<Cqe>,
}

/// The driver.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) controller: Controller,
    pub(crate) function: Arc<dyn Function>,
    pub(crate) memory: Arc<Pages>,
    free: usize,
    pub(crate) queues: Vec<Queue>,
    next_cid: u16,
    dstrd: u8,
}

impl Raw {
    /// Opens a controller and lets it reach the driver's memory.
    pub(crate) fn open(seed: u64, options: Options) -> Raw {
        Raw::open_again(Controller::new(seed, options))
    }

    /// The same, of one that exists.
    pub(crate) fn open_again(controller: Controller) -> Raw {
        let function = controller.open().unwrap();
        let memory = Arc::new(Pages::new(MEMORY, OWN_IOVA).unwrap());
        function.map(Mapping::pages(&memory)).unwrap();
        let cap = nvme::register::Capabilities::from_bits(function.registers().read64(0));
        let (free, queues, next_cid, dstrd) = (0, Vec::new(), 0, cap.dstrd);
        Raw { controller, function, memory, free, queues, next_cid, dstrd }
    }

    /// One that is enabled, with one I/O queue pair of sixteen entries.
    pub(crate) fn ready(seed: u64, options: Options) -> Raw {
        let mut raw = Raw::open(seed, options);
        raw.enable(16);
        raw.grant(4);
        raw.create_pair(1, 16);
        raw
    }

    /// Pages that nothing else uses, zeroed: where they are in the memory.
    pub(crate) fn pages(&mut self, count: usize) -> usize {
        let at = self.free;
        self.free += count * 4096;
        assert!(self.free <= MEMORY);
        at
    }

    pub(crate) fn iova(&self, at: usize) -> u64 {
        self.memory.iova() + at as u64
    }

    pub(crate) fn csts(&self) -> ControllerStatus {
        ControllerStatus::from_bits(self.function.registers().read32(offset::CSTS))
    }

    pub(crate) fn configuration() -> Configuration {
        Configuration { en: true, iosqes: 6, iocqes: 4, ..Configuration::default() }
    }

    pub(crate) fn configure(&self, cc: Configuration) {
        self.function.registers().write32(offset::CC, cc.bits());
    }

    /// Steps until it holds.
    pub(crate) fn until(&self, mut holds: impl FnMut() -> bool) -> bool {
        (0..PATIENCE).any(|_| holds() || !self.controller.step() && holds())
    }

    /// Sets the admin queues up.
    pub(crate) fn prepare(&mut self, entries: u32) {
        let (sq, cq) = (self.pages(1), self.pages(1));
        let size = u16::try_from(entries - 1).unwrap();
        let registers = self.function.registers();
        registers.write32(offset::AQA, AdminQueueAttributes { asqs: size, acqs: size }.bits());
        registers.write64(offset::ASQ, self.iova(sq));
        registers.write64(offset::ACQ, self.iova(cq));
        self.queues = vec![Queue::new(0, entries, sq, cq)];
    }

    /// Enables it and waits until it is ready.
    pub(crate) fn enable(&mut self, entries: u32) {
        self.prepare(entries);
        self.configure(Raw::configuration());
        assert!(self.until(|| self.csts().rdy), "{:?}", self.controller.violations());
    }

    /// Disables it and waits until it is not ready.
    pub(crate) fn disable(&mut self) {
        self.configure(Configuration { en: false, ..Raw::configuration() });
        assert!(self.until(|| !self.csts().rdy));
        self.queues.clear();
    }

    /// Asks for so many queues of each kind; how many there may be.
    pub(crate) fn grant(&mut self, count: u16) -> u16 {
        let count = NumberOfQueues { submission: count - 1, completion: count - 1 };
        let set = SetFeatures::new(Feature::NumberOfQueues, count.into());
        let cqe = self.admin_ok(admin::Command::SetFeatures(set).to_sqe(0));
        NumberOfQueues::from(cqe.dw0()).submission + 1
    }

    pub(crate) fn create_cq(
        &mut self,
        qid: u16,
        entries: u32,
        cq: usize,
        vector: Option<u16>,
    ) -> Sqe {
        let create = CreateIoCompletionQueue { qid, entries, contiguous: true, vector };
        let prps = Prps { first: self.iova(cq), second: 0 };
        pcie::Command::CreateIoCompletionQueue(create).to_sqe(prps)
    }

    pub(crate) fn create_sq(&mut self, qid: u16, entries: u32, sq: usize, cqid: u16) -> Sqe {
        let (contiguous, priority, nvmsetid) = (true, Priority::Urgent, 0);
        let create = CreateIoSubmissionQueue { qid, entries, contiguous, priority, cqid, nvmsetid };
        let prps = Prps { first: self.iova(sq), second: 0 };
        pcie::Command::CreateIoSubmissionQueue(create).to_sqe(prps)
    }

    /// Creates a queue pair; its index in `queues`.
    pub(crate) fn create_pair(&mut self, qid: u16, entries: u32) -> usize {
        let bytes = usize::try_from(entries).unwrap();
        let (sq, cq) =
            (self.pages((bytes * 64).div_ceil(4096)), self.pages((bytes * 16).div_ceil(4096)));
        let vector = (self.function.vectors() > qid).then_some(qid);
        let create = self.create_cq(qid, entries, cq, vector);
        self.admin_ok(create);
        let create = self.create_sq(qid, entries, sq, qid);
        self.admin_ok(create);
        self.queues.push(Queue::new(qid, entries, sq, cq));
        self.queues.len() - 1
    }

    /// Puts an entry into a queue without ringing; its identifier.
    pub(crate) fn push(&mut self, index: usize, sqe: Sqe) -> u16 {
        let cid = self.next_cid;
        self.next_cid = (self.next_cid + 1) % 0x8000;
        self.push_as(index, sqe.with_cid(cid));
        cid
    }

    /// The same with the entry's own identifier.
    pub(crate) fn push_as(&mut self, index: usize, sqe: Sqe) {
        let queue = &mut self.queues[index];
        let at = queue.sq + usize::try_from(queue.tail).unwrap() * 64;
        assert!(self.memory.put(at, &sqe));
        queue.tail = (queue.tail + 1) % queue.entries;
    }

    pub(crate) fn ring_tail(&self, index: usize) {
        let queue = &self.queues[index];
        let place = offset::tail_doorbell(queue.qid, self.dstrd);
        self.function.registers().write32(place, queue.tail);
    }

    pub(crate) fn ring_head(&self, index: usize) {
        let queue = &self.queues[index];
        let place = offset::head_doorbell(queue.qid, self.dstrd);
        self.function.registers().write32(place, queue.head);
    }

    pub(crate) fn submit(&mut self, index: usize, sqe: Sqe) -> u16 {
        let cid = self.push(index, sqe);
        self.ring_tail(index);
        cid
    }

    /// The next completion, if there is one; the doorbell is the caller's to ring.
    pub(crate) fn peek(&mut self, index: usize) -> Option<Cqe> {
        let queue = &mut self.queues[index];
        let at = queue.cq + usize::try_from(queue.head).unwrap() * 16;
        let field = self.memory.word16(at + 14).unwrap().load(Ordering::Acquire);
        if field & 1 != queue.phase {
            return None;
        }
        queue.head = (queue.head + 1) % queue.entries;
        queue.phase ^= u16::from(queue.head == 0);
        self.memory.get(at)
    }

    /// Takes a completion and gives its place back.
    pub(crate) fn poll(&mut self, index: usize) -> Option<Cqe> {
        let cqe = self.peek(index)?;
        self.ring_head(index);
        Some(cqe)
    }

    /// Steps until the command is answered; nothing if it never is.
    pub(crate) fn wait(&mut self, index: usize, cid: u16) -> Option<Cqe> {
        for _ in 0..PATIENCE {
            let taken = &mut self.queues[index].taken;
            if let Some(place) = taken.iter().position(|cqe| cqe.cid.get() == cid) {
                return taken.remove(place);
            }
            while let Some(cqe) = self.poll(index) {
                self.queues[index].taken.push_back(cqe);
            }
            if !self.controller.step() && self.queues[index].taken.is_empty() {
                return None;
            }
        }
        None
    }

    pub(crate) fn call(&mut self, index: usize, sqe: Sqe) -> Cqe {
        let cid = self.submit(index, sqe);
        match self.wait(index, cid) {
            Some(cqe) => cqe,
            None => panic!("no answer to {sqe:?}: {:?}", self.controller.violations()),
        }
    }

    /// An admin command that succeeds, its data pointer as it is, PSDT for PRPs.
    pub(crate) fn admin_ok(&mut self, sqe: Sqe) -> Cqe {
        let cqe = self.call(0, sqe.with_prps(sqe.prps()));
        assert!(cqe.status().is_success(), "{sqe:?}: {}", cqe.status());
        cqe
    }

    /// An admin command whose data is in one page.
    pub(crate) fn admin_data(&mut self, sqe: Sqe, at: usize) -> Cqe {
        let first = self.iova(at);
        self.call(0, sqe.with_prps(Prps { first, second: 0 }))
    }

    /// An I/O command without data.
    pub(crate) fn io(&mut self, sqe: Sqe) -> Status {
        self.call(1, sqe.with_prps(Prps::default())).status()
    }

    /// An I/O command with data in the driver's memory, by PRPs.
    pub(crate) fn io_data(&mut self, sqe: Sqe, at: usize, len: usize) -> Status {
        let prps = self.prps(at, len);
        self.call(1, sqe.with_prps(prps)).status()
    }

    /// PRP entries of memory that is in one piece; lists are made in new pages.
    pub(crate) fn prps(&mut self, at: usize, len: usize) -> Prps {
        let first = self.iova(at);
        let next = (at / 4096 + 1) * 4096;
        let pages: Vec<u64> = (next..at + len).step_by(4096).map(|page| self.iova(page)).collect();
        let second = match pages.as_slice() {
            [] => 0,
            &[page] => page,
            pages => self.list(pages, 0),
        };
        Prps { first, second }
    }

    /// A PRP list of these pages that begins at a place in its page.
    pub(crate) fn list(&mut self, pages: &[u64], start: usize) -> u64 {
        let places = (4096 - start) / 8;
        let list = self.pages(1) + start;
        let (now, rest) = match pages.len() <= places {
            true => (pages, None),
            false => (&pages[..places - 1], Some(&pages[places - 1..])),
        };
        let chain = rest.map(|rest| self.list(rest, 0));
        for (index, entry) in now.iter().chain(&chain).enumerate() {
            assert!(self.memory.put(list + index * 8, &entry.to_le_bytes()));
        }
        self.iova(list)
    }

    pub(crate) fn segment(&mut self, descriptors: &[LocalSgl]) -> u64 {
        let at = self.pages(1);
        for (index, &descriptor) in descriptors.iter().enumerate() {
            assert!(self.memory.put(at + index * 16, &nvme::SglDescriptor::from(descriptor)));
        }
        self.iova(at)
    }

    pub(crate) fn fill(&self, at: usize, len: usize, seed: u8) -> Vec<u8> {
        let data: Vec<u8> = (0..len).map(|n| (n % 249) as u8 ^ (n / 512) as u8 ^ seed).collect();
        assert!(self.memory.put_bytes(at, &data));
        data
    }

    pub(crate) fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        assert!(self.memory.get_bytes(at, &mut data));
        data
    }

    /// That nothing was wrong with the driver.
    #[track_caller]
    pub(crate) fn innocent(&self) {
        assert_eq!(self.controller.violations(), Vec::<String>::new());
    }

    /// That it did this wrong, and nothing else.
    #[track_caller]
    pub(crate) fn guilty(&self, of: &str) {
        let violations = self.controller.violations();
        assert!(!violations.is_empty(), "unnoticed: {of}");
        assert!(violations.iter().all(|found| found.contains(of)), "{of}: {violations:?}");
        self.controller.forgive();
    }
}

impl Queue {
    pub(crate) fn new(qid: u16, entries: u32, sq: usize, cq: usize) -> Queue {
        let taken = VecDeque::new();
        Queue { qid, entries, sq, cq, tail: 0, head: 0, phase: 1, taken }
    }
}
