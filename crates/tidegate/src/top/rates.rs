//! From two samples to what happened between them.
//!
//! A counter that went back belongs to something new of an old name (a device that was deleted and made anew): what it
//! says has all come since the earlier sample. The node itself starting anew ends the connection, and with it
//! what there is to compare with; see [`super::state`].
//!
//! A percentile is by nearest rank over all operations of the device, and said to be where its bucket ends: at least as long as
//! the true one, and by no more than an eighth longer. Of something shorter than the finest bucket, 1.2 us, nothing more is known.

use std::collections::BTreeMap;

use super::sample::{Controller, Device, Operations, Reactor, Sample, Shard};

/// Bytes of the unit in which bandwidth is shown.
const MIB: f64 = 1_048_576.0;

/// A count as a number to calculate with. Exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
pub(super) fn number(count: u64) -> f64 {
    count as f64
}

/// What happened in a span of time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) seconds: f64,
    pub(super) reactors: Vec<ReactorRates>,
    pub(super) devices: Vec<DeviceRates>,
    pub(super) controllers: Vec<ControllerRates>,
}

/// A reactor: shares of the time in percent, and events per second.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ReactorRates {
    pub(super) number: u64,
    pub(super) core: Option<u64>,
    pub(super) busy: f64,
    pub(super) idle: f64,
    pub(super) asleep: f64,
    pub(super) turns: f64,
    pub(super) shard: Option<ShardRates>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ShardRates {
    pub(super) commands: f64,
    pub(super) failed: f64,
    pub(super) waits: f64,
    /// In percent.
    pub(super) pool: f64,
    pub(super) requests: u64,
    pub(super) queues: u64,
    pub(super) controllers: u64,
}

/// A device: operations and MiB per second; latencies in microseconds, if there was an operation.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct DeviceRates {
    pub(super) name: String,
    pub(super) is_up: bool,
    pub(super) operations: f64,
    pub(super) reads: f64,
    pub(super) writes: f64,
    pub(super) read_mib: f64,
    pub(super) written_mib: f64,
    /// How many operations were in it on average.
    pub(super) depth: f64,
    /// How many were in it at the end: one that hangs has no part in the mean.
    pub(super) in_flight: u64,
    /// The median, and what 99 % and 99.9 % did not exceed.
    pub(super) percentiles: Option<[f64; 3]>,
    pub(super) errors: f64,
}

/// A controller: commands and MiB per second.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ControllerRates {
    pub(super) cntlid: u16,
    pub(super) subsystem: String,
    pub(super) host: String,
    pub(super) peer: Option<String>,
    pub(super) io_queues: u64,
    pub(super) reads: f64,
    pub(super) writes: f64,
    pub(super) read_mib: f64,
    pub(super) written_mib: f64,
    pub(super) media_errors: f64,
}

impl Rates {
    /// What happened between two samples of one process; None if no time has passed.
    pub(super) fn between(earlier: &Sample, now: &Sample) -> Option<Self> {
        let ticks = now.ticks.checked_sub(earlier.ticks).filter(|ticks| *ticks > 0)?;
        let span = Span { ticks: number(ticks), rate: number(now.tick_rate.max(1)) };
        let reactors = now.reactors.iter().map(|now| {
            let earlier = earlier.reactors.iter().find(|it| it.number == now.number);
            span.reactor(earlier, now)
        });
        let before: BTreeMap<_, _> =
            earlier.devices.iter().map(|it| (it.name.as_str(), it)).collect();
        let devices =
            now.devices.iter().map(|now| span.device(before.get(now.name.as_str()).copied(), now));
        let key = |it: &Controller| (it.cntlid, it.subsystem.clone(), it.host.clone());
        let before: BTreeMap<_, _> = earlier.controllers.iter().map(|it| (key(it), it)).collect();
        let controllers =
            now.controllers.iter().map(|now| span.controller(before.get(&key(now)).copied(), now));
        Some(Self {
            seconds: span.seconds(),
            reactors: reactors.collect(),
            devices: devices.collect(),
            controllers: controllers.collect(),
        })
    }
}

/// The time between two samples.
#[derive(Clone, Copy)]
struct Span {
    ticks: f64,
    /// Ticks in a second.
    rate: f64,
}

impl Span {
    fn seconds(self) -> f64 {
        self.ticks / self.rate
    }

    /// So many of a second.
    fn per_second(self, earlier: u64, now: u64) -> f64 {
        number(now.saturating_sub(earlier)) / self.seconds()
    }

    fn mib_per_second(self, earlier: u64, now: u64) -> f64 {
        self.per_second(earlier, now) / MIB
    }

    /// The share of the time in percent.
    fn share(self, earlier: u64, now: u64) -> f64 {
        (number(now.saturating_sub(earlier)) / self.ticks * 100.0).min(100.0)
    }

    fn reactor(self, earlier: Option<&Reactor>, now: &Reactor) -> ReactorRates {
        let none = Reactor::default();
        let earlier = earlier.unwrap_or(&none);
        let (busy, idle) = (self.share(earlier.busy, now.busy), self.share(earlier.idle, now.idle));
        // What it missed while it did not answer is of no second in particular.
        let shard = match (&earlier.shard, &now.shard) {
            (Some(earlier), Some(now)) => Some(self.shard(earlier, now)),
            _ => None,
        };
        ReactorRates {
            number: now.number,
            core: now.core,
            busy,
            idle,
            // It is counted when it is over: the sleep that it is in would be missing.
            asleep: (100.0 - busy - idle).max(0.0),
            turns: self.per_second(earlier.turns, now.turns),
            shard,
        }
    }

    fn shard(self, earlier: &Shard, now: &Shard) -> ShardRates {
        ShardRates {
            commands: self.per_second(earlier.commands, now.commands),
            failed: self.per_second(earlier.failed_commands, now.failed_commands),
            waits: self.per_second(earlier.slot_waits, now.slot_waits)
                + self.per_second(earlier.buffer_waits, now.buffer_waits),
            pool: number(now.pool_used_bytes) / number(now.pool_bytes.max(1)) * 100.0,
            requests: now.requests,
            queues: now.queues,
            controllers: now.controllers,
        }
    }

    fn device(self, earlier: Option<&Device>, now: &Device) -> DeviceRates {
        let none = Device::default();
        let earlier = earlier.filter(|earlier| !went_back(earlier, now)).unwrap_or(&none);
        let none = Operations::default();
        let pair = |class: &str| {
            let of = |device: &'_ Device| device.operations.get(class).cloned();
            (of(earlier).unwrap_or_default(), of(now).unwrap_or_default())
        };
        let (mut operations, mut in_it) = (0.0, 0.0);
        let mut latencies = Histogram::default();
        for (class, now) in &now.operations {
            let earlier = earlier.operations.get(class).unwrap_or(&none);
            operations += self.per_second(earlier.count, now.count);
            in_it += number(now.latency_ticks.saturating_sub(earlier.latency_ticks));
            latencies.add(earlier, now);
        }
        let (reads, writes) = (pair("read"), pair("write"));
        let failed =
            |device: &Device| device.errors.values().fold(0_u64, |sum, it| sum.saturating_add(*it));
        let micros = |ticks: u64| number(ticks) / self.rate * 1e6;
        let percentiles =
            [500, 990, 999].map(|permille| latencies.percentile(permille).map(micros));
        DeviceRates {
            name: now.name.clone(),
            is_up: now.size_bytes.is_some(),
            operations,
            reads: self.per_second(reads.0.count, reads.1.count),
            writes: self.per_second(writes.0.count, writes.1.count),
            read_mib: self.mib_per_second(reads.0.bytes, reads.1.bytes),
            written_mib: self.mib_per_second(writes.0.bytes, writes.1.bytes),
            depth: in_it / self.ticks,
            in_flight: now.operations_in_flight,
            percentiles: match percentiles {
                [Some(median), Some(p99), Some(p999)] => Some([median, p99, p999]),
                _ => None,
            },
            errors: self.per_second(failed(earlier), failed(now)),
        }
    }

    fn controller(self, earlier: Option<&Controller>, now: &Controller) -> ControllerRates {
        let none = Controller::default();
        // One that went back is another controller, of the same host.
        let is_same = |it: &&Controller| it.reads <= now.reads && it.writes <= now.writes;
        let earlier = earlier.filter(is_same).unwrap_or(&none);
        ControllerRates {
            cntlid: now.cntlid,
            subsystem: now.subsystem.clone(),
            host: now.host.clone(),
            peer: now.peer.clone(),
            io_queues: now.io_queues,
            reads: self.per_second(earlier.reads, now.reads),
            writes: self.per_second(earlier.writes, now.writes),
            read_mib: self.mib_per_second(earlier.read_bytes, now.read_bytes),
            written_mib: self.mib_per_second(earlier.written_bytes, now.written_bytes),
            media_errors: self.per_second(earlier.media_errors, now.media_errors),
        }
    }
}

/// Whether a counter of the device is less than it was.
fn went_back(earlier: &Device, now: &Device) -> bool {
    let count = |class| now.operations.get(class).map_or(0, |it: &Operations| it.count);
    let failed = |kind| now.errors.get(kind).copied().unwrap_or(0);
    earlier.operations.iter().any(|(class, it)| count(class) < it.count)
        || earlier.errors.iter().any(|(kind, it)| failed(kind) < *it)
}

/// How many operations took how long.
#[derive(Debug, Default)]
struct Histogram {
    /// By where a bucket ends.
    buckets: BTreeMap<u64, u64>,
    total: u64,
}

impl Histogram {
    /// Adds what came between two counts of a class.
    fn add(&mut self, earlier: &Operations, now: &Operations) {
        let before: BTreeMap<_, _> =
            earlier.latency_buckets.iter().map(|(_, end, count)| (*end, *count)).collect();
        for (_, end, count) in &now.latency_buckets {
            let count = count.saturating_sub(before.get(end).copied().unwrap_or(0));
            let sum = self.buckets.entry(*end).or_default();
            *sum = sum.saturating_add(count);
            self.total = self.total.saturating_add(count);
        }
    }

    /// Where the bucket of the operation of this rank, in thousandths of all, ends.
    fn percentile(&self, permille: u64) -> Option<u64> {
        let rank = (u128::from(self.total) * u128::from(permille)).div_ceil(1000).max(1);
        let mut seen = 0;
        self.buckets.iter().find_map(|(end, count)| {
            seen += u128::from(*count);
            (seen >= rank).then_some(*end)
        })
    }
}

#[cfg(test)]
mod tests;
