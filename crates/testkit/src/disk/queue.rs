//! One thread's queue of a simulated disk: what its operations do, and when.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use block::{BlockQueue, Completion, ErrorKind, Kind, Operation, Token};

use super::pattern::{self, Version};
use super::{Disk, State};

/// When which shard has to look at its disks again.
#[derive(Debug, Default)]
pub struct Agenda(Vec<(u64, usize)>);

impl Agenda {
    /// What has been put down since the last time.
    pub fn take(&mut self) -> Vec<(u64, usize)> {
        std::mem::take(&mut self.0)
    }
}

/// One thing that an operation does, and when.
#[derive(Debug, Clone, Copy)]
struct Step {
    due: u64,
    /// Blocks of the operation, from and to.
    blocks: (u64, u64),
}

#[derive(Debug)]
struct Running {
    number: u64,
    operation: Operation,
    /// What the memory of a write held when it was lent.
    lent: Vec<Version>,
    /// What is still to be done before it completes, the next one last.
    steps: Vec<Step>,
    /// When it completes.
    due: u64,
    touched: bool,
    fails: Option<ErrorKind>,
    /// Of a flush: the count of completed operations that it covers.
    covers: u64,
    differs: bool,
}

/// See the module's description.
#[derive(Debug)]
pub struct DiskQueue {
    disk: Arc<Disk>,
    shard: usize,
    agenda: Rc<RefCell<Agenda>>,
    /// By the order in which they were submitted.
    running: BTreeMap<u64, Running>,
    next: u64,
}

/// Which version this block of the operation's memory holds.
fn brought(operation: &Operation, index: u64, size: usize) -> Version {
    let mut block = vec![0; size];
    let segment = operation.data.iter().next().expect("data");
    let offset = usize::try_from(index).unwrap() * size;
    assert_eq!(segment.copy_to(offset, &mut block), size, "too little memory");
    pattern::read(&block, operation.lba + index)
        .unwrap_or_else(|error| panic!("a disk was given data of nobody: {error}"))
}

impl State {
    fn block_size(&self) -> usize {
        usize::try_from(self.geometry.block_size).unwrap()
    }

    /// Carries out part of an operation.
    fn perform(&mut self, running: &mut Running, step: Step, reads_zero: bool) {
        running.touched = true;
        let size = self.block_size();
        let Self { random, medium, .. } = self;
        let Running { number, operation, lent, differs, .. } = running;
        for index in step.blocks.0..step.blocks.1 {
            let at = operation.lba + index;
            let place = usize::try_from(index).unwrap();
            match operation.kind {
                Kind::Read => {
                    let mut block = vec![0; size];
                    pattern::fill(&mut block, medium.version(at), at);
                    let segment = operation.data.iter().next().expect("data");
                    let copied = segment.copy_from(place * size, &block);
                    assert_eq!(copied, size, "a read's memory is taken");
                }
                Kind::Write => {
                    let version = brought(operation, index, size);
                    assert_eq!(version, lent[place], "memory lent to a write was changed");
                    medium.write(at, version, *number, random);
                }
                Kind::Compare => {
                    *differs |= brought(operation, index, size) != medium.version(at);
                }
                Kind::WriteZeroes { .. } => medium.write(at, 0, *number, random),
                Kind::Deallocate => {
                    if reads_zero || random.permille(500) {
                        medium.write(at, 0, *number, random);
                    }
                }
                Kind::Verify | Kind::Flush => {}
            }
        }
    }

    /// The operation completes: what it wrote counts for later flushes, and is durable where it was asked to be.
    fn complete(&mut self, running: &Running, volatile: bool) -> Result<(), ErrorKind> {
        let Self { random, medium, .. } = self;
        let Running { number, operation, fails, .. } = running;
        if operation.kind == Kind::Flush && fails.is_none() {
            medium.flush(running.covers, random);
        } else {
            let durably = fails.is_none() && (operation.fua || !volatile);
            medium.complete(*number, operation.lba, operation.blocks, durably);
        }
        match fails {
            Some(error) => Err(*error),
            None if running.differs => Err(ErrorKind::Miscompare),
            None => Ok(()),
        }
    }
}

impl DiskQueue {
    pub(super) fn new(disk: Arc<Disk>, agenda: Rc<RefCell<Agenda>>, shard: usize) -> Self {
        Self { disk, shard, agenda, running: BTreeMap::new(), next: 0 }
    }

    fn reads_zero(&self) -> bool {
        self.disk.properties.deallocation.is_some_and(|how| how.reads_zero)
    }
}

impl BlockQueue for DiskQueue {
    fn submit(&mut self, operation: Operation) {
        assert!(
            self.running.values().all(|other| other.operation.token != operation.token),
            "a token is used twice: {operation:?}"
        );
        let mut state = self.disk.state();
        let now = state.now;
        let mut fails = operation.admit(state.geometry, &self.disk.properties).err();
        assert!(fails != Some(ErrorKind::Internal), "memory does not fit the range: {operation:?}");
        let weather = state.weather;
        if fails.is_none() && weather.gone {
            fails = Some(ErrorKind::Removed);
        }
        let size = state.block_size();
        let lent = match (operation.kind, fails) {
            (Kind::Write, None) => {
                (0..operation.blocks).map(|index| brought(&operation, index, size)).collect()
            }
            _ => Vec::new(),
        };
        let random = &mut state.random;
        let mut latency = random.spread(weather.latency.0, weather.latency.1);
        if random.permille(weather.stragglers) {
            latency *= random.between(10, 100);
        }
        let mut blocks = operation.blocks;
        if fails.is_some() {
            blocks = 0;
        } else if random.permille(weather.failures) {
            fails = Some(match operation.kind {
                Kind::Read | Kind::Compare | Kind::Verify => ErrorKind::MediumRead,
                _ if random.permille(200) => ErrorKind::NoSpace,
                _ => ErrorKind::MediumWrite,
            });
            blocks = if fails == Some(ErrorKind::NoSpace) { 0 } else { random.below(blocks + 1) };
        }
        let mut steps = Vec::new();
        let mut from = 0;
        while from < blocks {
            let to = random.between(from + 1, blocks);
            steps.push(Step { due: now + random.below(latency + 1), blocks: (from, to) });
            from = to;
        }
        steps.sort_by_key(|step| std::cmp::Reverse(step.due));
        state.begun += 1;
        state.outstanding += 1;
        let running = Running {
            number: state.begun,
            lent,
            steps,
            due: now + latency,
            touched: false,
            fails,
            covers: state.medium.completed(),
            differs: false,
            operation,
        };
        self.next += 1;
        self.running.insert(self.next, running);
        self.agenda.borrow_mut().0.push((now + latency, self.shard));
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        let reads_zero = self.reads_zero();
        let mut state = self.disk.state();
        if state.weather.hangs {
            return 0;
        }
        let now = state.now;
        for running in self.running.values_mut() {
            while let Some(step) = running.steps.pop_if(|step| step.due <= now) {
                state.perform(running, step, reads_zero);
            }
        }
        let mut ready: Vec<(u64, u64)> = self
            .running
            .iter()
            .filter(|(_, running)| running.due <= now)
            .map(|(key, running)| (running.due, *key))
            .collect();
        ready.sort_unstable();
        ready.truncate(max);
        let mut completions = Vec::new();
        for (_, key) in &ready {
            let running = self.running.remove(key).unwrap();
            let result = state.complete(&running, self.disk.properties.volatile_write_cache);
            state.outstanding -= 1;
            completions.push(Completion::new(running.operation.token, result));
        }
        drop(state);
        for completion in completions {
            done(completion);
        }
        ready.len()
    }

    fn cancel(&mut self, token: Token) -> bool {
        let mut state = self.disk.state();
        let now = state.now;
        let cancels = state.weather.cancels;
        let agrees = state.random.permille(cancels);
        let Some(running) = self.running.values_mut().find(|r| r.operation.token == token) else {
            return false;
        };
        if running.touched || running.fails.is_some() || !agrees {
            return false;
        }
        running.steps.clear();
        running.fails = Some(ErrorKind::Aborted);
        running.due = now;
        self.agenda.borrow_mut().0.push((now, self.shard));
        true
    }

    fn outstanding(&self) -> usize {
        self.running.len()
    }

    fn needs_poll(&self) -> bool {
        false
    }
}

impl Drop for DiskQueue {
    /// The process is gone: what was under way happens or does not, in part or in whole.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let reads_zero = self.reads_zero();
        let mut state = self.disk.state();
        for (_, mut running) in std::mem::take(&mut self.running) {
            state.outstanding -= 1;
            let Operation { kind, lba, blocks, .. } = running.operation;
            let writes = matches!(kind, Kind::Write | Kind::WriteZeroes { .. } | Kind::Deallocate);
            while writes && let Some(step) = running.steps.pop() {
                if state.random.permille(300) {
                    state.perform(&mut running, step, reads_zero);
                }
            }
            state.medium.complete(running.number, lba, blocks, false);
        }
    }
}
