//! A disk whose every promise is kept to the letter and no further.
//!
//! * An operation takes effect block by block, at moments of its own between submission and completion, in
//!   no order with others. It reads the submitter's memory at those moments, not before.
//! * What was written is in a cache that a loss of power empties: block by block any version since the last
//!   durable one may be what is left. A flush covers what had been completed before it was submitted; FUA
//!   covers its own blocks.
//! * An operation that failed may have happened in part. One that was cancelled has not.
//!
//! The medium is shared by the queues of all shards; operations are their queue's, since memory is not
//! `Send`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};

use block::{
    BlockDevice, BlockError, BlockQueue, Completion, Deallocation, ErrorKind, Geometry, Kind,
    Operation, Properties, Token,
};

use super::pattern::{self, Version};
use super::scenario::Scenario;
use crate::Random;

/// Versions of one block since the last durable one, beyond which the disk writes back by itself.
const CACHE_MOST: usize = 12;

#[derive(Debug, Clone, Copy)]
struct Cached {
    version: Version,
    /// Which operation wrote it.
    operation: u64,
    /// How many operations had been completed when that one was; None: it has not been.
    completed: Option<u64>,
}

#[derive(Debug, Default)]
struct Block {
    durable: Version,
    cache: Vec<Cached>,
}

impl Block {
    fn now(&self) -> Version {
        self.cache.last().map_or(self.durable, |cached| cached.version)
    }

    /// Everything up to this place in the cache is on the medium.
    fn persist(&mut self, at: usize) {
        self.durable = self.cache[at].version;
        self.cache.drain(..=at);
    }
}

/// How a disk behaves at present.
#[derive(Debug, Clone, Copy)]
struct Weather {
    latency: (u64, u64),
    failures: u64,
    stragglers: u64,
    cancels: u64,
    hangs: bool,
    gone: bool,
}

#[derive(Debug)]
struct Medium {
    now: u64,
    random: Random,
    weather: Weather,
    geometry: Geometry,
    blocks: Vec<Block>,
    /// Operations begun, ever, and completed, ever.
    begun: u64,
    completed: u64,
    /// Operations taken and not completed, of all queues.
    outstanding: u64,
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    name: String,
    properties: Properties,
    medium: Mutex<Medium>,
}

impl Disk {
    /// A disk of `blocks` zeroed blocks.
    pub fn new(name: String, random: &mut Random, scenario: &Scenario) -> Arc<Self> {
        let block_size = *random.pick(&[512, 512, 512, 4096]);
        let properties = Properties {
            read_only: false,
            volatile_write_cache: random.permille(700),
            deallocation: random
                .permille(700)
                .then(|| Deallocation { reads_zero: random.permille(700), granularity: 1 }),
            memory_alignment: 1,
            optimal_blocks: 1,
            description: "simulated".to_owned(),
        };
        let weather = Weather {
            latency: scenario.disk,
            failures: scenario.disk_failures,
            stragglers: scenario.disk_stragglers,
            cancels: scenario.disk_cancels,
            hangs: false,
            gone: false,
        };
        let medium = Medium {
            now: 0,
            random: random.split(),
            weather,
            geometry: Geometry { block_size, blocks: scenario.blocks, generation: 0 },
            blocks: (0..scenario.blocks).map(|_| Block::default()).collect(),
            begun: 0,
            completed: 0,
            outstanding: 0,
        };
        Arc::new(Self { name, properties, medium: Mutex::new(medium) })
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().unwrap()
    }

    /// Whether this is the one.
    pub fn name_is(&self, device: &dyn BlockDevice) -> bool {
        self.name == device.name()
    }

    /// The time is now.
    pub fn set_time(&self, now: u64) {
        self.medium().now = now;
    }

    /// Whether it stops doing anything.
    pub fn hang(&self, hangs: bool) {
        self.medium().weather.hangs = hangs;
    }

    /// Whether it has been pulled out.
    pub fn pull(&self, gone: bool) {
        self.medium().weather.gone = gone;
    }

    /// From now on nothing fails and nothing straggles.
    pub fn calm(&self) {
        let mut medium = self.medium();
        medium.weather.failures = 0;
        medium.weather.stragglers = 0;
        medium.weather.hangs = false;
        medium.weather.gone = false;
    }

    /// Shows only so many of its blocks; the rest comes back when it grows.
    pub fn resize(&self, blocks: u64) {
        let geometry = &mut self.medium().geometry;
        geometry.blocks = blocks;
        geometry.generation += 1;
    }

    /// Blocks that it was made with.
    pub fn whole_size(&self) -> u64 {
        self.medium().blocks.len() as u64
    }

    /// Operations that its queues hold.
    pub fn outstanding(&self) -> u64 {
        self.medium().outstanding
    }

    /// The power is gone, and with it what was only in the cache, as chance has it. The queues are gone already.
    pub fn cut(&self) {
        let mut medium = self.medium();
        let Medium { random, blocks, .. } = &mut *medium;
        let keeps_all = !self.properties.volatile_write_cache;
        for block in blocks {
            let kept = match block.cache.len() {
                0 => continue,
                len if keeps_all => len,
                len => random.index(len + 1),
            };
            if kept > 0 {
                block.durable = block.cache[kept - 1].version;
            }
            block.cache.clear();
        }
    }

    /// What a block holds now; for reports.
    pub fn version(&self, lba: u64) -> Version {
        self.medium().blocks[usize::try_from(lba).unwrap()].now()
    }

    /// A queue of this disk.
    pub fn queue(self: &Arc<Self>, agenda: &Rc<RefCell<Agenda>>, shard: usize) -> DiskQueue {
        DiskQueue {
            disk: Arc::clone(self),
            shard,
            agenda: Rc::clone(agenda),
            running: BTreeMap::new(),
            next: 0,
        }
    }
}

impl BlockDevice for Disk {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.medium().geometry
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn open_queue(&self, _local: &reactor::Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        let problem = "a simulated disk is opened by its world".to_owned();
        Err(BlockError::Unsuitable { device: self.name.clone(), problem })
    }
}

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

/// One shard's queue.
#[derive(Debug)]
pub struct DiskQueue {
    disk: Arc<Disk>,
    shard: usize,
    agenda: Rc<RefCell<Agenda>>,
    /// By the order in which they were submitted.
    running: BTreeMap<u64, Running>,
    next: u64,
}

impl Medium {
    fn write(&mut self, lba: u64, version: Version, operation: u64) {
        let block = &mut self.blocks[usize::try_from(lba).unwrap()];
        block.cache.push(Cached { version, operation, completed: None });
        if block.cache.len() > CACHE_MOST {
            let at = self.random.index(block.cache.len());
            block.persist(at);
        }
    }

    /// Carries out part of an operation.
    fn perform(&mut self, running: &mut Running, step: Step, reads_zero: bool) {
        running.touched = true;
        let Operation { kind, lba, data, .. } = &running.operation;
        let size = usize::try_from(self.geometry.block_size).unwrap();
        for index in step.blocks.0..step.blocks.1 {
            let at = lba + index;
            let offset = usize::try_from(index).unwrap() * size;
            let segment = || data.iter().next().expect("data").clone();
            match kind {
                Kind::Read => {
                    let mut block = vec![0; size];
                    pattern::fill(&mut block, self.blocks[usize::try_from(at).unwrap()].now(), at);
                    assert_eq!(
                        segment().copy_from(offset, &block),
                        size,
                        "a read's memory is taken"
                    );
                }
                Kind::Write | Kind::Compare => {
                    let mut block = vec![0; size];
                    assert_eq!(segment().copy_to(offset, &mut block), size, "too little memory");
                    let version = pattern::read(&block, at)
                        .unwrap_or_else(|error| panic!("a disk was given data of nobody: {error}"));
                    if *kind == Kind::Write {
                        self.write(at, version, running.number);
                    } else {
                        running.differs |=
                            self.blocks[usize::try_from(at).unwrap()].now() != version;
                    }
                }
                Kind::WriteZeroes { .. } => self.write(at, 0, running.number),
                Kind::Deallocate => {
                    if reads_zero || self.random.permille(500) {
                        self.write(at, 0, running.number);
                    }
                }
                Kind::Verify | Kind::Flush => {}
            }
        }
    }

    /// What an operation wrote is covered by later flushes, or durable already.
    fn settle(&mut self, running: &Running, durable: bool) {
        let Operation { lba, blocks, .. } = running.operation;
        for at in lba..lba.saturating_add(blocks) {
            let at = usize::try_from(at).ok();
            let Some(block) = at.and_then(|at| self.blocks.get_mut(at)) else { return };
            match block.cache.iter().rposition(|cached| cached.operation == running.number) {
                Some(at) if durable => block.persist(at),
                Some(at) => block.cache[at].completed = Some(self.completed),
                None => {}
            }
        }
    }

    /// The operation completes: what it wrote counts for later flushes, and is durable where it was asked to be.
    fn complete(&mut self, running: &Running, properties: &Properties) -> Result<(), ErrorKind> {
        let Operation { kind, fua, .. } = running.operation;
        if let Some(error) = running.fails {
            self.settle(running, false);
            self.completed += 1;
            return Err(error);
        }
        match kind {
            Kind::Compare if running.differs => return Err(ErrorKind::Miscompare),
            Kind::Flush => {
                let Self { random, blocks, .. } = self;
                for block in blocks {
                    let covered = block.cache.iter().rposition(|cached| {
                        cached.completed.is_some_and(|when| when < running.covers)
                    });
                    if let Some(at) = covered {
                        // More than was asked for may be written as well.
                        let at = random.index(block.cache.len() - at) + at;
                        block.persist(at);
                    }
                }
            }
            Kind::Write | Kind::WriteZeroes { .. } | Kind::Deallocate => {
                self.settle(running, fua || !properties.volatile_write_cache);
            }
            _ => {}
        }
        self.completed += 1;
        Ok(())
    }
}

impl DiskQueue {
    fn admit(&self, operation: &Operation, geometry: Geometry) -> Result<(), ErrorKind> {
        let properties = &self.disk.properties;
        if operation.kind == Kind::Flush {
            return Ok(());
        }
        if !geometry.contains(operation.lba, operation.blocks) {
            return Err(ErrorKind::OutOfRange);
        }
        if operation.kind == Kind::Deallocate && properties.deallocation.is_none() {
            return Err(ErrorKind::Unsupported);
        }
        let moves = matches!(operation.kind, Kind::Read | Kind::Write | Kind::Compare);
        let bytes = if moves { operation.blocks * u64::from(geometry.block_size) } else { 0 };
        assert_eq!(
            bytes,
            operation.data.len() as u64,
            "memory does not fit the range: {operation:?}"
        );
        Ok(())
    }
}

impl BlockQueue for DiskQueue {
    fn submit(&mut self, operation: Operation) {
        assert!(
            self.running.values().all(|other| other.operation.token != operation.token),
            "a token is used twice: {operation:?}"
        );
        let mut medium = self.disk.medium();
        let now = medium.now;
        let mut fails = self.admit(&operation, medium.geometry).err();
        let weather = medium.weather;
        if fails.is_none() && weather.gone {
            fails = Some(ErrorKind::Removed);
        }
        let random = &mut medium.random;
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
        medium.begun += 1;
        medium.outstanding += 1;
        let running = Running {
            number: medium.begun,
            steps,
            due: now + latency,
            touched: false,
            fails,
            covers: medium.completed,
            differs: false,
            operation,
        };
        self.next += 1;
        self.running.insert(self.next, running);
        self.agenda.borrow_mut().0.push((now + latency, self.shard));
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        let mut medium = self.disk.medium();
        if medium.weather.hangs {
            return 0;
        }
        let now = medium.now;
        let properties = &self.disk.properties;
        let reads_zero = properties.deallocation.is_some_and(|how| how.reads_zero);
        for running in self.running.values_mut() {
            while let Some(step) = running.steps.pop_if(|step| step.due <= now) {
                medium.perform(running, step, reads_zero);
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
            let result = medium.complete(&running, properties);
            medium.outstanding -= 1;
            completions.push(Completion { token: running.operation.token, result });
        }
        drop(medium);
        for completion in completions {
            done(completion);
        }
        ready.len()
    }

    fn cancel(&mut self, token: Token) -> bool {
        let mut medium = self.disk.medium();
        let now = medium.now;
        let cancels = medium.weather.cancels;
        let agrees = medium.random.permille(cancels);
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
        let mut medium = self.disk.medium();
        let reads_zero = self.disk.properties.deallocation.is_some_and(|how| how.reads_zero);
        for (_, mut running) in std::mem::take(&mut self.running) {
            medium.outstanding -= 1;
            let writes = matches!(
                running.operation.kind,
                Kind::Write | Kind::WriteZeroes { .. } | Kind::Deallocate
            );
            while writes && let Some(step) = running.steps.pop() {
                if medium.random.permille(300) {
                    medium.perform(&mut running, step, reads_zero);
                }
            }
            medium.settle(&running, false);
            medium.completed += 1;
        }
    }
}
