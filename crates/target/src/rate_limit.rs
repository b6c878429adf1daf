//! How many I/Os and bytes per second a device carries out, shared fairly by all queues of all shards.
//!
//! ```text
//!   control plane --set--> rates                      read by every shard
//!                          pot of each limit          what has been handed out; one CAS per shard and slice
//!                          lease of shard 0 ..        written by shard 0 alone, read by the others
//!                          lease of shard 1 ..
//! ```
//!
//! **Threads.** Everything is atomics; nobody ever waits. A shard spends from its own lease, with plain loads and stores.
//! It goes to the pot once per *slice* of a quarter of a millisecond, if it has anything to do at all; a sleeping shard
//! with commands in line wakes up for that.
//!
//! **Time is the currency.** A limit hands out time as it passes: at 1,000 I/Os per second, an I/O costs a millisecond.
//! So a change of the rate needs no conversion, and what has been handed out is one number, an instant that follows the
//! clock. It may lag behind by `BURST`: what is not used by then is lost. A command goes ahead once its shard holds
//! what it costs in each limit that applies; nothing is ever owed, so all shards together never carry out more than
//! the rate and one burst, whatever happens. A command larger than a burst waits while its shard saves up for it.
//!
//! **Fairness.** A shard claims of each slice what its queues in line are of all queues in line, for all the slices since
//! it last came (up to `HORIZON`; one that does not come for longer leaves its claim to the others). What nobody claims is
//! divided in the same way. What a shard does not need it puts back a slice later. So a shard
//! with three queues in line gets three quarters and one with one queue a quarter, and each gets everything when it is
//! alone. How a shard divides its part is in `shard::limit`.
//!
//! **What counts** are reads and writes, as in SPDK, and Compare as the read that it is: by the command for limits of I/Os,
//! by its bytes for the others. Flush, Write Zeroes, Dataset Management and Verify do not count: they move no data.
//!
//! *Rejected:* an owner reactor that hands out leases by messages (decision 007); token counters that are added to by
//! a timer, which lose what a late timer would have added; leases on the shard's word alone (rate times its part of the
//! queues, no pot), which overshoot whenever two shards count the queues at different moments; debts, with which a command could
//! go ahead before it is paid for: they would have to be collected from shards that have gone idle.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Instant, ShardIndex};

/// Time is counted in sixty-fourths of a nanosecond: a block of 512 bytes at 100 GiB/s is 305 of them, and 2^64 of
/// them are nine years.
const PER_NANOSECOND: u64 = 64;
const PER_SECOND: u64 = 1_000_000_000 * PER_NANOSECOND;

/// log2 of a slice's nanoseconds: 262 µs.
const SLICE_SHIFT: u32 = 18;
const SLICE: u64 = PER_NANOSECOND << SLICE_SHIFT;

/// How far what is handed out may lag behind the clock: 67 ms.
const BURST: u64 = 256 * SLICE;

/// Slices after which a shard that does not come for its claim is not counted any more.
const HORIZON: u64 = 32;

/// Slices after which a shard with commands in line comes at the latest.
const LATEST: u64 = 16;

/// Slices for which a shard's greatest number of queues in line counts: a queue that has one command at a time is in
/// line, and again it is not.
const WINDOW: u64 = 8;

/// Which way a command moves data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the medium.
    Read,
    /// To the medium.
    Write,
}

impl Way {
    /// Both, each at the place that [`Way::index`] says.
    pub const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// Its place in [`Way::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// What is limited, per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// I/Os of both ways together.
    ReadWriteIos,
    /// Reads.
    ReadIos,
    /// Writes.
    WriteIos,
    /// Bytes of both ways together.
    ReadWriteBytes,
    /// Bytes read.
    ReadBytes,
    /// Bytes written.
    WriteBytes,
}

impl Limit {
    /// All of them, each at the place that [`Limit::index`] says.
    pub const ALL: [Self; 6] = [
        Self::ReadWriteIos,
        Self::ReadIos,
        Self::WriteIos,
        Self::ReadWriteBytes,
        Self::ReadBytes,
        Self::WriteBytes,
    ];

    /// Its place in [`Limit::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The way that it is about; None: both together.
    pub const fn way(self) -> Option<Way> {
        match self {
            Self::ReadWriteIos | Self::ReadWriteBytes => None,
            Self::ReadIos | Self::ReadBytes => Some(Way::Read),
            Self::WriteIos | Self::WriteBytes => Some(Way::Write),
        }
    }

    fn applies(self, way: Way) -> bool {
        self.way().is_none_or(|own| own == way)
    }

    /// Whether it counts bytes, not commands.
    pub const fn is_of_bytes(self) -> bool {
        matches!(self, Self::ReadWriteBytes | Self::ReadBytes | Self::WriteBytes)
    }

    /// What a command takes of it, in time.
    fn cost(self, bytes: u32, rate: u64) -> u64 {
        let units = if self.is_of_bytes() { bytes } else { 1 };
        let cost = u128::from(PER_SECOND).saturating_mul(units.into());
        let cost = cost.checked_div(rate.into()).unwrap_or(0);
        u64::try_from(cost).unwrap_or(u64::MAX).max(1)
    }

    /// How far it may lag behind: never so little that an I/O after a pause has to wait.
    fn burst(self, rate: u64) -> u64 {
        if self.is_of_bytes() { BURST } else { BURST.max(self.cost(0, rate)) }
    }
}

/// The rates of a device, in the order of [`Limit::ALL`]; 0: no limit.
pub type Rates = [u64; Limit::ALL.len()];

/// Some of the limits: a bit each, by their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Set(u8);

impl Set {
    fn with(self, limit: Limit) -> Self {
        Self(self.0 | 1 << limit.index())
    }

    fn has(self, limit: Limit) -> bool {
        self.0 & 1 << limit.index() != 0
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Queues in line on a shard: for reads, for writes, and for any of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct InLine {
    pub(crate) ways: [u64; 2],
    pub(crate) either: u64,
}

impl InLine {
    fn of(self, limit: Limit) -> u64 {
        let [reads, writes] = self.ways;
        match limit.way() {
            None => self.either,
            Some(Way::Read) => reads,
            Some(Way::Write) => writes,
        }
    }
}

/// Who asks for what, when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking {
    pub(crate) shard: ShardIndex,
    pub(crate) way: Way,
    pub(crate) bytes: u32,
    pub(crate) in_line: InLine,
    pub(crate) now: Instant,
}

/// A command has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Short {
    /// For these limits.
    pub(crate) of: Set,
    /// When it is worth while to ask again.
    pub(crate) until: Instant,
}

/// A shard's part of one limit. Its shard alone writes it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lease {
    /// When it last went to the pot.
    slice: AtomicU64,
    /// How many queues were in line then.
    weight: AtomicU64,
    /// What it took then beyond its claim.
    extra: AtomicU64,
    // What follows nobody else reads.
    /// What it holds.
    credit: AtomicU64,
    /// The cost of the greatest command refused since it went to the pot: so much it keeps.
    need: AtomicU64,
    /// The rates for which that holds.
    generation: AtomicU64,
    /// When the present window began, and the most queues in line in it and in the one before.
    window: AtomicU64,
    peak: AtomicU64,
    peak_before: AtomicU64,
}

fn get(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

fn put(number: &AtomicU64, value: u64) {
    number.store(value, Ordering::Relaxed);
}

impl Lease {
    fn note_in_line(&self, queues: u64) {
        put(&self.peak, get(&self.peak).max(queues));
    }

    /// The most queues in line in this window and the last.
    fn weigh(&self, slice: u64, queues: u64) -> u64 {
        let age = slice.saturating_sub(get(&self.window));
        if age >= WINDOW {
            put(&self.peak_before, if age < 2 * WINDOW { get(&self.peak) } else { 0 });
            put(&self.peak, 0);
            put(&self.window, slice);
        }
        self.note_in_line(queues);
        get(&self.peak).max(get(&self.peak_before))
    }
}

/// The limits of one device.
#[derive(Debug, Default)]
pub struct RateLimits {
    /// Whether there are any, as a [`Set`].
    on: AtomicU64,
    rates: [AtomicU64; Limit::ALL.len()],
    /// Counts the changes.
    generation: AtomicU64,
    /// The time up to which each limit has been handed out.
    pots: [AtomicU64; Limit::ALL.len()],
    /// Of each shard; made with the first limit.
    leases: OnceLock<Box<[[Lease; Limit::ALL.len()]]>>,
}

impl RateLimits {
    /// Puts rates in force, on each of the `shards` at once. Called by one thread at a time.
    pub fn set(&self, rates: &Rates, shards: u16) {
        let mut on = Set::default();
        for (limit, rate) in Limit::ALL.into_iter().zip(rates) {
            if *rate > 0 {
                on = on.with(limit);
            }
        }
        if on != Set::default() {
            self.leases.get_or_init(|| (0..shards).map(|_| Default::default()).collect());
        }
        for (own, rate) in self.rates.iter().zip(rates) {
            put(own, *rate);
        }
        self.generation.fetch_add(1, Ordering::Relaxed);
        // Whoever sees a limit that is on finds leases, and the rates.
        self.on.store(on.0.into(), Ordering::Release);
    }

    /// The rates in force.
    pub fn rates(&self) -> Rates {
        self.rates.each_ref().map(get)
    }

    /// Whether there is any limit: one load.
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire) != 0
    }

    fn on(&self) -> Set {
        Set(u8::try_from(self.on.load(Ordering::Acquire)).unwrap_or(0))
    }

    /// Those that apply to this way.
    pub(crate) fn applying(&self, way: Way) -> Set {
        let on = self.on();
        let all = Limit::ALL.into_iter().filter(|limit| on.has(*limit) && limit.applies(way));
        all.fold(Set::default(), Set::with)
    }

    /// Whether reads and writes compete for anything.
    pub(crate) fn ways_compete(&self) -> bool {
        self.applying(Way::Read).meets(self.applying(Way::Write))
    }

    /// The limits that apply to a command, with its cost in each.
    fn costs(&self, way: Way, bytes: u32) -> impl Iterator<Item = (Limit, u64)> {
        let set = self.applying(way);
        Limit::ALL.into_iter().zip(&self.rates).filter_map(move |(limit, rate)| {
            // Being changed: 0 is no limit.
            let rate = get(rate);
            (set.has(limit) && rate > 0).then(|| (limit, limit.cost(bytes, rate)))
        })
    }

    fn lease(&self, shard: ShardIndex, limit: Limit) -> Option<&Lease> {
        self.leases.get()?.get(usize::from(shard.0))?.get(limit.index())
    }

    /// Whether the shard holds what a command costs; nothing is spent yet.
    pub(crate) fn ask(&self, asking: Asking) -> Result<(), Short> {
        let Asking { shard, way, bytes, in_line, now } = asking;
        let mut short: Option<Short> = None;
        for (limit, cost) in self.costs(way, bytes) {
            let Some(lease) = self.lease(shard, limit) else { continue };
            let queues = in_line.of(limit);
            self.visit(limit, shard, lease, now, queues);
            let credit = get(&lease.credit);
            if credit >= cost {
                continue;
            }
            put(&lease.need, get(&lease.need).max(cost));
            lease.note_in_line(queues.max(1));
            let until = wait(now, cost - credit);
            let before = short.unwrap_or(Short { of: Set::default(), until });
            short = Some(Short { of: before.of.with(limit), until: before.until.max(until) });
        }
        short.map_or(Ok(()), Err)
    }

    /// The command goes ahead: the greatest of its costs, which is the time that it keeps others waiting.
    pub(crate) fn spend(&self, shard: ShardIndex, way: Way, bytes: u32) -> u64 {
        let mut most = 0;
        for (limit, cost) in self.costs(way, bytes) {
            if let Some(lease) = self.lease(shard, limit) {
                put(&lease.credit, get(&lease.credit).saturating_sub(cost));
            }
            most = most.max(cost);
        }
        most
    }

    /// Goes to the pot, once per slice: puts back what is not needed, takes what it has a claim to.
    fn visit(&self, limit: Limit, shard: ShardIndex, lease: &Lease, now: Instant, queues: u64) {
        let slice = now.as_nanos() >> SLICE_SHIFT;
        let generation = get(&self.generation);
        let changed = get(&lease.generation) != generation;
        let last = get(&lease.slice);
        if !changed && last >= slice {
            return;
        }
        put(&lease.generation, generation);
        // What was saved up for one command at the old rate might be thousands at the new one.
        let kept = if changed { 0 } else { get(&lease.credit).min(get(&lease.need)) };
        let back = get(&lease.credit).saturating_sub(kept);
        let claimed = get(&lease.weight) > 0;
        let weight = lease.weigh(slice, queues);
        let own = weight.max(1);
        let since = if claimed { slice.saturating_sub(last).min(HORIZON) } else { 1 };

        // What the others have a claim to, and what those that have come already took beyond theirs.
        let (mut all, mut unclaimed, mut extras) = (own, 0_u64, 0_u64);
        let leases = self.leases.get().into_iter().flatten().enumerate();
        for (index, leases) in leases {
            let Some(other) = leases.get(limit.index()) else { continue };
            if index == usize::from(shard.0) {
                continue;
            }
            let (weight, behind) = (get(&other.weight), slice.saturating_sub(get(&other.slice)));
            if behind == 0 {
                extras = extras.saturating_add(get(&other.extra));
            }
            if behind <= HORIZON {
                all = all.saturating_add(weight);
                unclaimed = unclaimed.saturating_add(weight.saturating_mul(behind));
            }
        }
        let part = |of: u64, weight: u64| part(of, weight, all);
        let claim = part(SLICE, own.saturating_mul(if last >= slice { 0 } else { since }));
        let others = part(SLICE, unclaimed);
        let clock = slice.saturating_mul(SLICE);
        let burst = limit.burst(get(self.rates.get(limit.index()).unwrap_or(&AtomicU64::new(1))));
        let (mut taken, mut extra) = (0, 0);
        let Some(pot) = self.pots.get(limit.index()) else { return };
        let _ = pot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |handed| {
            let handed = handed.saturating_sub(back).max(clock.saturating_sub(burst));
            let left = clock.saturating_sub(handed);
            let surplus = left.saturating_add(extras).saturating_sub(claim.saturating_add(others));
            taken = left.min(claim.saturating_add(part(surplus, own)));
            extra = taken.saturating_sub(claim);
            Some(handed.saturating_add(taken))
        });
        put(&lease.credit, kept.saturating_add(taken));
        put(&lease.need, 0);
        put(&lease.weight, weight);
        put(&lease.extra, extra);
        put(&lease.slice, slice);
    }
}

/// So much of `all` as `weight` is worth.
fn part(of: u64, weight: u64, all: u64) -> u64 {
    let part = (u128::from(of) * u128::from(weight)).checked_div(all.into()).unwrap_or(0);
    u64::try_from(part).unwrap_or(u64::MAX)
}

/// When it is worth while to ask again if so much is missing: when all that is handed out until then would do, in the next
/// slice at the earliest, and before the claim is forgotten.
fn wait(now: Instant, missing: u64) -> Instant {
    let start = |slice: u64| slice << SLICE_SHIFT;
    let slice = now.as_nanos() >> SLICE_SHIFT;
    let enough = now.as_nanos().saturating_add(missing / PER_NANOSECOND);
    Instant::from_nanos(enough.clamp(start(slice + 1), start(slice + LATEST)))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const RATE: u64 = 100_000;

    fn asking(shard: u16, now: Instant) -> Asking {
        let in_line = InLine { ways: [1, 0], either: 1 };
        Asking { shard: ShardIndex(shard), way: Way::Read, bytes: 512, in_line, now }
    }

    #[test]
    fn threads_together_never_get_more_than_the_rate_and_one_burst() {
        let limits = RateLimits::default();
        let mut rates = Rates::default();
        rates[Limit::ReadIos.index()] = RATE;
        limits.set(&rates, 4);
        let seconds = 3;
        let end = seconds * 1_000_000_000;
        let clock = AtomicU64::new(1_000_000_000);
        let spent: Vec<u64> = thread::scope(|scope| {
            let shards: Vec<_> = (0..4)
                .map(|shard| {
                    let (limits, clock) = (&limits, &clock);
                    scope.spawn(move || {
                        let mut spent = 0;
                        loop {
                            // Everybody moves the clock on, so nobody's turns are the others' at the same time.
                            let now = clock.fetch_add(997, Ordering::Relaxed);
                            if now >= 1_000_000_000 + end {
                                return spent;
                            }
                            while limits.ask(asking(shard, Instant::from_nanos(now))).is_ok() {
                                limits.spend(ShardIndex(shard), Way::Read, 512);
                                spent += 1;
                            }
                        }
                    })
                })
                .collect();
            shards.into_iter().map(|shard| shard.join().unwrap()).collect()
        });
        let all: u64 = spent.iter().sum();
        let most = RATE * seconds + RATE * BURST / PER_SECOND + 4;
        assert!(all <= most, "{spent:?} of {most}");
        assert!(all >= RATE * seconds * 95 / 100, "{spent:?} of {most}");
    }

    #[test]
    fn a_write_takes_nothing_of_a_limit_of_reads() {
        let limits = RateLimits::default();
        assert!(!limits.is_on());
        let mut rates = Rates::default();
        rates[Limit::ReadBytes.index()] = 1 << 20;
        limits.set(&rates, 1);
        assert!(limits.is_on() && !limits.ways_compete());
        let now = Instant::from_nanos(1_000_000_000);
        let read = Asking { bytes: 1 << 20, ..asking(0, now) };
        let short = limits.ask(read).unwrap_err();
        // A whole second's worth is missing but for a burst; it is asked for again in time to keep the claim.
        assert!(short.until > now && short.until.since(now).as_millis() < 5);
        limits.ask(Asking { way: Way::Write, ..read }).unwrap();
        assert_eq!(limits.spend(ShardIndex(0), Way::Write, 1 << 20), 0);
        // A shard that the limits were not made for is not held to them.
        limits.ask(Asking { shard: ShardIndex(1), ..read }).unwrap();
        limits.set(&Rates::default(), 1);
        limits.ask(read).unwrap();
    }
}
