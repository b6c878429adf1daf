//! What the operations of block devices have come to: how many, how much, how long, how they failed.
//!
//! ```text
//!   Statistics (one a device; control plane and namespaces share it)
//!     shard 0: Counters  <- written by reactor 0 alone      any thread reads -> Snapshot
//!     shard 1: Counters  <- written by reactor 1 alone
//! ```
//!
//! **Threads.** [`Counters`] have one writer, the shard, on cache lines of their own. A count is a relaxed load and
//! a relaxed store: no lock, no allocation, no read-modify-write. Readers look at any time and ask no reactor; what
//! they see of an operation that ends at that moment may be half of it, until they look again. The one lock is
//! taken when a shard puts a namespace into service, and by readers for as long as it takes to copy the list.
//!
//! **What is counted** is an operation of the device: a Dataset Management command of ten ranges is ten, a forced
//! read is a flush and a read. Bytes and latency are those of operations that succeeded; one that failed is an error
//! of its kind and nothing else. Latency is the time between two turns, that of the submission and that of the
//! completion, by their clock: no operation reads a clock for it. The flush of each device at the end of the process
//! is not counted.
//!
//! **How many** is not counted beside the histogram, it is the sum of the [`histogram`]'s buckets: one store less per
//! operation, and the two never disagree. The sum of the latencies is at the same time the integral of the queue
//! depth over time, so its rate is the average depth.
//!
//! **Nothing is ever reset**, since only the shard may write. Who wants to start from zero keeps a [`Snapshot`] and
//! subtracts it; the extremes of what is left are then known as exactly as the histogram's buckets.
//!
//! *Rejected:* counters in the block queues, each of which would need a table from token to time; a sampled
//! histogram, which misses exactly the operations that one looks for; the time for which a device had anything to do at
//! all, which shards that do not wait for each other cannot add up.

pub mod histogram;
mod snapshot;

use std::mem::discriminant;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use block::{ErrorKind, Kind};

use crate::ShardIndex;
use histogram::BUCKETS;
pub use snapshot::{ClassSnapshot, Snapshot};

/// What operations are told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes; they have no bytes.
    Flush,
    /// Write Zeroes, deallocating or not.
    WriteZeroes,
    /// Deallocations.
    Deallocate,
    /// Compares.
    Compare,
    /// Verifies.
    Verify,
}

impl Class {
    /// All of them, each at the place that [`Class::index`] says.
    pub const ALL: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::WriteZeroes,
        Self::Deallocate,
        Self::Compare,
        Self::Verify,
    ];

    /// Its place in [`Class::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its name in lower case: `write_zeroes`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Deallocate => "deallocate",
            Self::WriteZeroes => "write_zeroes",
            Self::Flush => "flush",
            Self::Compare => "compare",
            Self::Verify => "verify",
        }
    }
}

impl From<Kind> for Class {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Read => Self::Read,
            Kind::Write => Self::Write,
            Kind::Flush => Self::Flush,
            Kind::WriteZeroes { .. } => Self::WriteZeroes,
            Kind::Deallocate => Self::Deallocate,
            Kind::Compare => Self::Compare,
            Kind::Verify => Self::Verify,
        }
    }
}

/// Every way in which an operation fails, with its name, in the order in which [`Snapshot::errors`] counts them.
pub const ERRORS: [(ErrorKind, &str); 11] = [
    (ErrorKind::OutOfRange, "out_of_range"),
    (ErrorKind::ReadOnly, "read_only"),
    (ErrorKind::Unsupported, "unsupported"),
    (ErrorKind::Miscompare, "miscompare"),
    (ErrorKind::NoSpace, "no_space"),
    (ErrorKind::MediumRead, "medium_read"),
    (ErrorKind::MediumWrite, "medium_write"),
    (ErrorKind::Removed, "removed"),
    (ErrorKind::Aborted, "aborted"),
    (ErrorKind::Internal, "internal"),
    // Whatever the status is.
    (ErrorKind::Status { sct: 0, sc: 0 }, "status"),
];

/// One number with one writer.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn add(&self, amount: u64) {
        self.set(self.value().wrapping_add(amount));
    }
}

/// The successful operations of one class.
#[derive(Debug)]
struct ClassCounters {
    bytes: Counter,
    nanos: Counter,
    /// All ones before the first.
    shortest: Counter,
    longest: Counter,
    buckets: [Counter; BUCKETS],
}

impl Default for ClassCounters {
    fn default() -> Self {
        Self {
            bytes: Counter::default(),
            nanos: Counter::default(),
            shortest: Counter(AtomicU64::new(u64::MAX)),
            longest: Counter::default(),
            buckets: [const { Counter(AtomicU64::new(0)) }; BUCKETS],
        }
    }
}

/// What one shard counts of one device.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Counters {
    /// Operations submitted, whatever became of them.
    submitted: Counter,
    classes: [ClassCounters; Class::ALL.len()],
    /// In the order of [`ERRORS`].
    errors: [Counter; ERRORS.len()],
    /// Commands that the device's limits held back, and for how long.
    held_back: Counter,
    held_back_nanos: Counter,
}

impl Counters {
    /// An operation goes to the device.
    pub(crate) fn submitted(&self) {
        self.submitted.add(1);
    }

    /// One has come back undone, to be submitted anew.
    pub(crate) fn taken_back(&self) {
        self.submitted.set(self.submitted.value().wrapping_sub(1));
    }

    /// One has come back as it should.
    pub(crate) fn succeeded(&self, class: Class, bytes: u64, nanos: u64) {
        let Some(counters) = self.classes.get(class.index()) else { return };
        counters.bytes.add(bytes);
        counters.nanos.add(nanos);
        if nanos < counters.shortest.value() {
            counters.shortest.set(nanos);
        }
        if nanos > counters.longest.value() {
            counters.longest.set(nanos);
        }
        if let Some(bucket) = counters.buckets.get(histogram::bucket(nanos)) {
            bucket.add(1);
        }
    }

    /// One has failed.
    pub(crate) fn failed(&self, kind: ErrorKind) {
        let at = ERRORS.iter().position(|(known, _)| discriminant(known) == discriminant(&kind));
        if let Some(counter) = at.and_then(|at| self.errors.get(at)) {
            counter.add(1);
        }
    }

    /// A command goes ahead that limits have held back for so long.
    pub(crate) fn held_back(&self, time: Duration) {
        self.held_back.add(1);
        self.held_back_nanos.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// What it says now. Any thread.
    pub fn snapshot(&self) -> Snapshot {
        let class = |counters: &ClassCounters| ClassSnapshot {
            bytes: counters.bytes.value(),
            nanos: counters.nanos.value(),
            shortest: counters.shortest.value(),
            longest: counters.longest.value(),
            buckets: counters.buckets.iter().map(Counter::value).collect(),
        };
        Snapshot {
            // Last what comes first, so that nothing seems to have ended that was not submitted.
            classes: self.classes.each_ref().map(class),
            errors: self.errors.each_ref().map(Counter::value),
            submitted: self.submitted.value(),
            held_back: self.held_back.value(),
            held_back_nanos: self.held_back_nanos.value(),
        }
    }
}

/// What all shards count of one device.
#[derive(Debug, Default)]
pub struct Statistics {
    shards: Mutex<Vec<(ShardIndex, Arc<Counters>)>>,
}

impl Statistics {
    /// The counters that this shard writes, made if it has none yet.
    pub(crate) fn of(&self, shard: ShardIndex) -> Arc<Counters> {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, counters)) = shards.iter().find(|(index, _)| *index == shard) {
            return Arc::clone(counters);
        }
        let counters = Arc::default();
        shards.push((shard, Arc::clone(&counters)));
        counters
    }

    /// What each shard says now that has ever served the device, in their order.
    pub fn by_shard(&self) -> Vec<(ShardIndex, Snapshot)> {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut each: Vec<_> =
            shards.iter().map(|(shard, counters)| (*shard, counters.snapshot())).collect();
        each.sort_by_key(|(shard, _)| shard.0);
        each
    }

    /// What all of them say together.
    pub fn total(&self) -> Snapshot {
        let mut total = Snapshot::default();
        for (_, snapshot) in self.by_shard() {
            total += &snapshot;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_and_errors_are_where_they_say() {
        for (at, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class.index(), at);
        }
        let counters = Counters::default();
        for (kind, _) in ERRORS {
            counters.failed(kind);
        }
        assert_eq!(counters.snapshot().errors, [1; ERRORS.len()]);
    }

    #[test]
    fn a_shard_gets_the_same_counters_again() {
        let statistics = Statistics::default();
        let (one, other) = (statistics.of(ShardIndex(1)), statistics.of(ShardIndex(0)));
        one.succeeded(Class::Read, 512, 2000);
        other.succeeded(Class::Read, 4096, 1000);
        assert!(Arc::ptr_eq(&one, &statistics.of(ShardIndex(1))));
        let shards: Vec<_> = statistics.by_shard().iter().map(|(shard, _)| shard.0).collect();
        assert_eq!(shards, [0, 1]);
        let total = statistics.total();
        let reads = total.class(Class::Read);
        assert_eq!((reads.operations(), reads.bytes, reads.nanos), (2, 4608, 3000));
        assert_eq!((reads.shortest(), reads.longest()), (Some(1000), Some(2000)));
    }
}
