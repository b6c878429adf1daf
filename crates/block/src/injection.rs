//! A layer that fails on purpose: operations of a kind are made to fail, to hang, or to carry wrong data, a number of
//! times.
//!
//! What is armed is shared by all reactors: the number of times holds for all of them together. A queue keeps a copy of what
//! is armed and looks in every submission whether there is a newer one, so without news an operation costs one load
//! of a number that nobody writes.
//!
//! * A pending operation is held until it is [resumed](InjectionDevice::resume), cancelled, or the device leaves the
//!   configuration; it has not been near the medium.
//! * An operation that "finds no memory" is tried again after [`RETRY`], as SPDK's block layer does for its users: a
//!   host sees it late, not failed. Each attempt counts.
//! * Data is made wrong in one byte: of what a read has brought, or of what a write brings. The writer's memory is wrong
//!   only as long as the write is in the device below: it is as it was when the write completes.
//!
//! *Rejected:* a copy of the data for that. It would need memory of its own for each queue of each device, for one byte.

use std::collections::VecDeque;
use std::mem;
use std::num::NonZeroU8;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use memory::Segment;
use reactor::{Instant, Local};

use crate::layer::{self, Reactors};
use crate::{
    BlockDevice, BlockError, BlockQueue, Completion, Data, ErrorKind, Geometry, Kind, Operation,
    Properties, Token,
};

/// How long an operation that found no memory waits before it looks again.
pub const RETRY: Duration = Duration::from_millis(1);

/// The operations that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// [`Kind::Read`]
    Read,
    /// [`Kind::Write`]
    Write,
    /// [`Kind::Deallocate`]
    Deallocate,
    /// [`Kind::Flush`]
    Flush,
}

impl Victim {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Deallocate, Self::Flush];

    fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Read => Some(Self::Read),
            Kind::Write => Some(Self::Write),
            Kind::Deallocate => Some(Self::Deallocate),
            Kind::Flush => Some(Self::Flush),
            Kind::WriteZeroes { .. } | Kind::Compare | Kind::Verify => None,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Deallocate => 2,
            Self::Flush => 3,
        }
    }
}

/// What happens to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// They fail so, and the device below does not see them.
    Fail(ErrorKind),
    /// They are held.
    Pend,
    /// They find no memory, and are tried again.
    NoMemory,
    /// One byte of the data of reads and writes is changed; where there is no such byte, nothing is.
    Corrupt {
        /// Which byte of an operation's data.
        offset: u64,
        /// What it is combined with by exclusive or.
        value: NonZeroU8,
    },
}

/// What is armed for one victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injection {
    /// What happens.
    pub effect: Effect,
    /// How often; 0: not at all.
    pub count: u32,
    /// Operations that a reactor must have in the device below already.
    pub queue_depth: u64,
}

/// A device that fails when it is told to.
#[derive(Debug)]
pub struct InjectionDevice {
    name: String,
    base: Arc<dyn BlockDevice>,
    properties: Properties,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    orders: Mutex<Orders>,
    /// Counts changes of the orders.
    version: AtomicU64,
    reactors: Reactors,
}

/// What the queues are to do.
#[derive(Debug, Clone, Default)]
struct Orders {
    armed: [Option<Arc<Armed>>; Victim::ALL.len()],
    /// How often pending operations have been let go.
    resumed: u64,
    retired: bool,
}

#[derive(Debug)]
struct Armed {
    injection: Injection,
    /// How often it is still to happen, on all reactors together.
    left: AtomicU32,
}

impl InjectionDevice {
    /// A device in which nothing is armed: it is like `base`.
    pub fn new(name: &str, base: Arc<dyn BlockDevice>) -> InjectionDevice {
        let properties = layer::properties(base.as_ref(), "error injection: fails on purpose,");
        InjectionDevice { name: name.to_owned(), base, properties, shared: Arc::default() }
    }

    /// Arms this for a victim, in the place of what was.
    pub fn inject(&self, victim: Victim, injection: Injection) {
        self.order(|orders| {
            if let Some(place) = orders.armed.get_mut(victim.index()) {
                let left = AtomicU32::new(injection.count);
                *place = Some(Arc::new(Armed { injection, left }));
            }
        });
    }

    /// Disarms everything. What is pending remains so.
    pub fn clear(&self) {
        self.order(|orders| orders.disarm(|_| true));
    }

    /// Lets pending operations go on, and makes no further ones pend.
    pub fn resume(&self) {
        self.order(|orders| {
            orders.disarm(|effect| effect == Effect::Pend);
            orders.resumed += 1;
        });
        self.shared.reactors.wake();
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        let mut orders = self.shared.orders();
        change(&mut orders);
        // Before the lock is let go: whoever sees it waits for the orders that belong to it.
        self.shared.version.fetch_add(1, Ordering::Release);
    }
}

impl Shared {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Orders {
    /// Also for queues that have not seen the change yet.
    fn disarm(&mut self, which: impl Fn(Effect) -> bool) {
        for place in &mut self.armed {
            if let Some(armed) = place.take_if(|armed| which(armed.injection.effect)) {
                armed.left.store(0, Ordering::Relaxed);
            }
        }
    }

    /// What happens to an operation of this kind, which is counted.
    fn strike(&self, kind: Kind, in_flight: usize) -> Option<Effect> {
        let armed = self.armed.get(Victim::of(kind)?.index())?.as_ref()?;
        if u64::try_from(in_flight).unwrap_or(u64::MAX) < armed.injection.queue_depth {
            return None;
        }
        let once = |left: u32| left.checked_sub(1);
        let struck = armed.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, once);
        struck.is_ok().then_some(armed.injection.effect)
    }
}

impl BlockDevice for InjectionDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.base.geometry()
    }

    fn rescan(&self) -> Result<Geometry, BlockError> {
        self.base.rescan()
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn open_queue(&self, local: &Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        let base = self.base.open_queue(local)?;
        self.shared.reactors.join(local);
        let mut queue = InjectionQueue {
            base,
            shared: Arc::clone(&self.shared),
            local: local.clone(),
            orders: Orders::default(),
            version: 0,
            pending: VecDeque::new(),
            starved: VecDeque::new(),
            retry_at: Instant::ZERO,
            failed: VecDeque::new(),
            corrupted: Vec::new(),
        };
        queue.read_orders();
        Ok(Box::new(queue))
    }

    fn retire(&self) {
        self.order(|orders| {
            orders.disarm(|_| true);
            orders.retired = true;
        });
        self.shared.reactors.wake();
    }
}

/// A byte of an operation in the device below that is or will be wrong.
#[derive(Debug)]
struct Corruption {
    token: Token,
    byte: Segment,
    value: NonZeroU8,
    /// It is wrong already, and not its owner's fault.
    lent: bool,
}

#[derive(Debug)]
struct InjectionQueue {
    base: Box<dyn BlockQueue>,
    shared: Arc<Shared>,
    local: Local,
    /// The copy of this version.
    orders: Orders,
    version: u64,
    pending: VecDeque<Operation>,
    /// Those that found no memory, and when they look again.
    starved: VecDeque<Operation>,
    retry_at: Instant,
    failed: VecDeque<Completion>,
    corrupted: Vec<Corruption>,
}

impl InjectionQueue {
    /// Follows orders that are new.
    fn read_orders(&mut self) {
        let version = self.shared.version.load(Ordering::Acquire);
        if version == self.version {
            return;
        }
        let orders = self.shared.orders().clone();
        let before = mem::replace(&mut self.orders, orders);
        self.version = version;
        if self.orders.retired {
            let held = self.pending.drain(..).chain(self.starved.drain(..));
            let gone = |it: Operation| Completion::new(it.token, Err(ErrorKind::Removed));
            self.failed.extend(held.map(gone));
        } else if self.orders.resumed != before.resumed {
            for operation in mem::take(&mut self.pending) {
                self.start(operation);
            }
        }
    }

    fn start(&mut self, operation: Operation) {
        let token = operation.token;
        match self.orders.strike(operation.kind, self.base.outstanding()) {
            None => self.base.submit(operation),
            Some(Effect::Fail(kind)) => {
                self.failed.push_back(Completion::new(token, Err(kind)));
            }
            Some(Effect::Pend) => self.pending.push_back(operation),
            Some(Effect::NoMemory) => {
                if self.starved.is_empty() {
                    self.retry_at = self.local.now() + RETRY;
                }
                self.starved.push_back(operation);
            }
            Some(Effect::Corrupt { offset, value }) => {
                let lent = operation.kind == Kind::Write;
                if let Some(byte) = byte_of(&operation.data, offset) {
                    if lent {
                        flip(&byte, value);
                    }
                    self.corrupted.push(Corruption { token, byte, value, lent });
                }
                self.base.submit(operation);
            }
        }
    }
}

impl BlockQueue for InjectionQueue {
    fn submit(&mut self, operation: Operation) {
        self.read_orders();
        self.start(operation);
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        self.read_orders();
        if !self.starved.is_empty() && self.retry_at <= self.local.now() {
            for operation in mem::take(&mut self.starved) {
                self.start(operation);
            }
        }
        let count = max.min(self.failed.len());
        self.failed.drain(..count).for_each(&mut *done);
        if count == max {
            return count;
        }
        let InjectionQueue { base, corrupted, .. } = self;
        count
            + base.poll(max - count, &mut |completion| {
                let at = corrupted.iter().position(|it| it.token == completion.token);
                if let Some(Corruption { byte, value, lent, .. }) =
                    at.map(|at| corrupted.swap_remove(at))
                    && (lent || completion.result.is_ok())
                {
                    flip(&byte, value);
                }
                done(completion);
            })
    }

    fn cancel(&mut self, token: Token) -> bool {
        for held in [&mut self.pending, &mut self.starved] {
            if let Some(at) = held.iter().position(|operation| operation.token == token) {
                held.remove(at);
                self.failed.push_back(Completion::new(token, Err(ErrorKind::Aborted)));
                return true;
            }
        }
        self.base.cancel(token)
    }

    fn outstanding(&self) -> usize {
        self.base.outstanding() + self.pending.len() + self.starved.len() + self.failed.len()
    }

    fn needs_poll(&self) -> bool {
        !self.failed.is_empty() || self.base.needs_poll()
    }

    fn next_deadline(&self) -> Option<Instant> {
        let retry = (!self.starved.is_empty()).then_some(self.retry_at);
        retry.into_iter().chain(self.base.next_deadline()).min()
    }
}

/// A loan of the byte at this offset of the data.
fn byte_of(data: &Data, mut offset: u64) -> Option<Segment> {
    for segment in data.iter() {
        let length = u64::try_from(segment.len()).ok()?;
        match offset.checked_sub(length) {
            Some(beyond) => offset = beyond,
            None => return segment.part(usize::try_from(offset).ok()?, 1),
        }
    }
    None
}

/// Makes a byte wrong, or right again.
fn flip(byte: &Segment, value: NonZeroU8) {
    let mut bytes = [0];
    byte.copy_to(0, &mut bytes);
    byte.copy_from(0, &bytes.map(|byte| byte ^ value.get()));
}
