//! Since when the figures of a device count, for the clients that ask to start anew.
//!
//! The shards' counters only ever grow, and only shards write them. A reset is a snapshot that is subtracted from then
//! on: it costs no reactor anything, and whoever reads the counters as they are (`/metrics`) never sees them go back.
//! The locks are taken by calls of clients alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use target::ShardIndex;
use target::statistics::{ERRORS, Snapshot, Statistics};

/// What is reset; SPDK's modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reset {
    /// Everything.
    All,
    /// The shortest and longest latencies.
    Maxmin,
    /// The errors.
    Error,
    /// Nothing.
    None,
}

/// The figures of a device on one shard, or on several, since they were reset.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Operations, bytes and latencies.
    pub counts: Snapshot,
    /// Only the extremes of this one count.
    pub extremes: Snapshot,
    /// In the order of [`ERRORS`].
    pub errors: [u64; ERRORS.len()],
}

impl std::ops::AddAssign<&Self> for Figures {
    fn add_assign(&mut self, other: &Self) {
        self.counts += &other.counts;
        self.extremes += &other.extremes;
        for (sum, count) in self.errors.iter_mut().zip(other.errors) {
            *sum = sum.saturating_add(count);
        }
    }
}

/// Each shard's counters at a moment.
type Moment = BTreeMap<ShardIndex, Snapshot>;

/// What each reset subtracts.
#[derive(Debug, Default)]
struct Baselines {
    counts: Moment,
    extremes: Moment,
    errors: Moment,
}

/// How a client wants its histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistogramOptions {
    /// The class whose operations are looked at; None: all.
    pub class: Option<target::statistics::Class>,
    /// log2 of the number of buckets in a power of two.
    pub granularity: u32,
    /// The range of nanoseconds that it tells apart.
    pub nanos: (u64, u64),
}

/// The statistics of one device.
#[derive(Debug, Default)]
pub struct DeviceStatistics {
    counted: Arc<Statistics>,
    baselines: Mutex<Baselines>,
    /// What a client has asked for, and what there was then.
    histogram: Mutex<Option<(HistogramOptions, Snapshot)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeviceStatistics {
    /// What the shards count.
    pub fn counted(&self) -> &Arc<Statistics> {
        &self.counted
    }

    /// The figures of each shard that has served the device, which are then reset.
    pub fn figures(&self, reset: Reset) -> Vec<(ShardIndex, Figures)> {
        let mut baselines = lock(&self.baselines);
        let now = self.counted.by_shard();
        let since = |moment: &Moment, shard: &ShardIndex, now: &Snapshot| match moment.get(shard) {
            Some(then) => now.since(then),
            None => now.clone(),
        };
        let figures = now
            .iter()
            .map(|(shard, now)| {
                let figures = Figures {
                    counts: since(&baselines.counts, shard, now),
                    extremes: since(&baselines.extremes, shard, now),
                    errors: since(&baselines.errors, shard, now).errors,
                };
                (*shard, figures)
            })
            .collect();
        let now = || now.iter().cloned().collect::<Moment>();
        if reset == Reset::All {
            baselines.counts = now();
        }
        if matches!(reset, Reset::All | Reset::Maxmin) {
            baselines.extremes = now();
        }
        if matches!(reset, Reset::All | Reset::Error) {
            baselines.errors = now();
        }
        figures
    }

    /// Begins a client's histogram. One that has begun goes on, in the form that is asked for now.
    pub fn begin_histogram(&self, options: HistogramOptions) {
        let mut histogram = lock(&self.histogram);
        match histogram.as_mut() {
            Some((current, _)) => *current = options,
            None => *histogram = Some((options, self.counted.total())),
        }
    }

    /// Ends it.
    pub fn end_histogram(&self) {
        *lock(&self.histogram) = None;
    }

    /// What has come since it began, if there is one.
    pub fn histogram(&self) -> Option<(HistogramOptions, Snapshot)> {
        let histogram = lock(&self.histogram);
        histogram.as_ref().map(|(options, then)| (*options, self.counted.total().since(then)))
    }
}
