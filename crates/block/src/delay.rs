//! A layer that is slow on purpose: reads and writes are carried out by the device below at once, and told of later.
//!
//! ```text
//!   submit -> base -> held until its time -> completion
//! ```
//!
//! One operation in a hundred, by chance, takes the p99 latency instead of the average one. Whatever else a device
//! does is passed on and passed back.
//!
//! * What is held waits among the reactor's [timers](reactor::Timers): nothing polls for it, a reactor that has nothing
//!   else to do sleeps. In the steady state nothing is allocated.
//! * **Cancellation is truthful.** A read that is held has done nothing, so it is aborted. A write that is held is on the
//!   medium: it cannot be aborted, and its outcome is told at once, for nobody wants it late any more.
//! * Latencies change for what comes back from the base from then on. When the device leaves the configuration, what is held
//!   is told at once.
//!
//! *Rejected:* to delay before the base sees the operation, which would make writes abortable. Then a crash would lose
//! what real slow devices have long written, and SPDK's device of this name delays completions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use reactor::{Instant, Local, TimerId, Timers};
use slab::Slab;

use crate::layer::{self, Reactors};
use crate::{
    BlockDevice, BlockError, BlockQueue, Completion, ErrorKind, Geometry, Kind, Operation,
    Properties, Token,
};

/// One operation in so many takes the p99 latency.
const RARE: u64 = 100;

/// How long completions are held, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latencies {
    /// Of 99 reads in 100.
    pub average_read: u64,
    /// Of the others.
    pub p99_read: u64,
    /// Of 99 writes in 100.
    pub average_write: u64,
    /// Of the others.
    pub p99_write: u64,
}

/// A slow device.
#[derive(Debug)]
pub struct DelayDevice {
    name: String,
    base: Arc<dyn BlockDevice>,
    properties: Properties,
    shared: Arc<Shared>,
}

/// What the queues of all reactors look at.
#[derive(Debug, Default)]
struct Shared {
    average_read: AtomicU64,
    p99_read: AtomicU64,
    average_write: AtomicU64,
    p99_write: AtomicU64,
    retired: AtomicBool,
    reactors: Reactors,
}

impl DelayDevice {
    /// A device that is as slow as `latencies` say, and otherwise like `base`.
    pub fn new(name: &str, base: Arc<dyn BlockDevice>, latencies: Latencies) -> DelayDevice {
        let properties = layer::properties(base.as_ref(), "delay: slow on purpose,");
        let device =
            DelayDevice { name: name.to_owned(), base, properties, shared: Arc::default() };
        device.set_latencies(latencies);
        device
    }

    /// It is as slow as this from now on; what is held already keeps its time.
    pub fn set_latencies(&self, latencies: Latencies) {
        let Latencies { average_read, p99_read, average_write, p99_write } = latencies;
        for (place, value) in [
            (&self.shared.average_read, average_read),
            (&self.shared.p99_read, p99_read),
            (&self.shared.average_write, average_write),
            (&self.shared.p99_write, p99_write),
        ] {
            place.store(value, Ordering::Relaxed);
        }
    }
}

impl BlockDevice for DelayDevice {
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
        // Any number but nought; another one for each queue.
        let seed = local.now().as_nanos() ^ u64::try_from(local.index()).unwrap_or(0) << 32;
        Ok(Box::new(DelayQueue {
            base,
            shared: Arc::clone(&self.shared),
            local: local.clone(),
            out: Slab::new(),
            timers: Timers::new(),
            chance: Chance(seed | 1),
        }))
    }

    fn retire(&self) {
        self.shared.retired.store(true, Ordering::Release);
        self.shared.reactors.wake();
    }
}

impl Shared {
    /// How long the completion of an operation of this kind is held.
    fn latency(&self, kind: Kind, chance: &mut Chance) -> Duration {
        let (average, p99) = match kind {
            Kind::Read => (&self.average_read, &self.p99_read),
            Kind::Write => (&self.average_write, &self.p99_write),
            _ => return Duration::ZERO,
        };
        if self.retired.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        let latency = if chance.is_rare() { p99 } else { average };
        Duration::from_micros(latency.load(Ordering::Relaxed))
    }
}

/// Marsaglia's xorshift: chance enough for one in a hundred.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn is_rare(&mut self) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.is_multiple_of(RARE)
    }
}

/// An operation that has not been told of.
#[derive(Debug)]
struct Out {
    token: Token,
    kind: Kind,
    /// Back from the base: when it is told of, and what.
    held: Option<(TimerId, Result<(), ErrorKind>)>,
}

#[derive(Debug)]
struct DelayQueue {
    base: Box<dyn BlockQueue>,
    shared: Arc<Shared>,
    local: Local,
    /// The base knows each by its place here.
    out: Slab<Out>,
    /// The places of those held.
    timers: Timers<usize>,
    chance: Chance,
}

impl DelayQueue {
    /// Tells of at most `max` whose time has come; their number.
    fn tell(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        let retired = self.shared.retired.load(Ordering::Acquire);
        let now = if retired { Instant::from_nanos(u64::MAX) } else { self.local.now() };
        let mut count = 0;
        while count < max
            && let Some(place) = self.timers.pop_due(now)
        {
            let Some(Out { token, held, .. }) = self.out.try_remove(place) else { continue };
            let result = held.map_or(Err(ErrorKind::Internal), |(_, result)| result);
            count += 1;
            done(Completion::new(token, result));
        }
        count
    }
}

impl BlockQueue for DelayQueue {
    fn submit(&mut self, operation: Operation) {
        let out = Out { token: operation.token, kind: operation.kind, held: None };
        let token = token(self.out.insert(out));
        self.base.submit(Operation { token, ..operation });
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        let mut count = self.tell(max, done);
        let DelayQueue { base, shared, local, out, timers, chance } = self;
        // Again and again until the base has nothing more: what is held fills no place among the `max`.
        while count < max {
            let room = max - count;
            let came = base.poll(room, &mut |Completion { token, result, .. }| {
                let place = usize::try_from(token.0).unwrap_or(usize::MAX);
                let Some(back) = out.get_mut(place) else { return };
                let latency = match result {
                    Err(ErrorKind::Aborted) => Duration::ZERO,
                    _ => shared.latency(back.kind, chance),
                };
                if latency.is_zero() {
                    count += 1;
                    done(Completion::new(back.token, result));
                    out.try_remove(place);
                } else {
                    back.held = Some((timers.insert(local.now() + latency, place), result));
                }
            });
            if came < room {
                break;
            }
        }
        count
    }

    fn cancel(&mut self, wanted: Token) -> bool {
        let named = self.out.iter_mut().find(|(_, out)| out.token == wanted);
        let Some((place, out)) = named else { return false };
        let Some((timer, result)) = out.held else { return self.base.cancel(token(place)) };
        let untouched = out.kind != Kind::Write;
        let result = if untouched { Err(ErrorKind::Aborted) } else { result };
        self.timers.cancel(timer);
        out.held = Some((self.timers.insert(self.local.now(), place), result));
        untouched
    }

    fn outstanding(&self) -> usize {
        self.out.len()
    }

    fn needs_poll(&self) -> bool {
        self.base.needs_poll()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.timers.next().into_iter().chain(self.base.next_deadline()).min()
    }
}

/// What the base calls the operation at this place.
fn token(place: usize) -> Token {
    Token(u64::try_from(place).unwrap_or(u64::MAX))
}
