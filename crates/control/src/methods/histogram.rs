//! The latencies of a device in the layout of SPDK's histograms.
//!
//! SPDK cuts each power of two into `2^granularity` buckets and numbers the powers as ranges, of which the one called 0
//! begins at 0. What is below the lowest range that a client wants, or above the highest, is in the outermost bucket.
//! The latencies are always recorded, in the target's own buckets; to enable a histogram is to say from when on, and in
//! what layout, they are asked for. Where a client wants finer buckets than there are, those in between stay empty.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use target::statistics::{Class, Snapshot, histogram};

use super::iostat::TICK_RATE;
use super::reply::{Errno, internal, invalid};
use super::{Reply, parameters};
use crate::jsonrpc::RpcError;
use crate::plane::Plane;
use crate::statistics::HistogramOptions;

/// The finest that is given: half a MiB of buckets.
const FINEST: u8 = 10;

/// As many borders as SPDK takes.
const MOST_BORDERS: usize = 256;

/// SPDK's names of the operations that there are here.
const CLASSES: [(&str, Class); 6] = [
    ("read", Class::Read),
    ("write", Class::Write),
    ("unmap", Class::Deallocate),
    ("flush", Class::Flush),
    ("write_zeroes", Class::WriteZeroes),
    ("compare", Class::Compare),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnableHistogram {
    name: String,
    enable: bool,
    opc: Option<String>,
    #[serde(default = "default_granularity")]
    granularity: u8,
    #[serde(default = "default_shortest")]
    min_nsec: u64,
    #[serde(default = "default_longest")]
    max_nsec: u64,
}

fn default_granularity() -> u8 {
    7
}

fn default_shortest() -> u64 {
    1_000
}

fn default_longest() -> u64 {
    120_000_000_000
}

pub(super) async fn enable_histogram(plane: Arc<Plane>, params: Value) -> Reply {
    let wanted: EnableHistogram = parameters(params)?;
    let state = plane.state();
    let Some(opened) = state.device(&wanted.name) else {
        return Err(Errno::NoDevice.about(wanted.name));
    };
    if !wanted.enable {
        opened.statistics.end_histogram();
        return Ok(Value::Bool(true));
    }
    let class = match wanted.opc {
        None => None,
        Some(name) => match CLASSES.iter().find(|(known, _)| *known == name) {
            Some((_, class)) => Some(*class),
            None => return Err(internal(format_args!("Invalid Io type: {name}"))),
        },
    };
    if wanted.granularity > FINEST {
        return Err(invalid(format_args!("granularity: {FINEST} is the finest")));
    }
    if wanted.min_nsec >= wanted.max_nsec {
        return Err(invalid("min_nsec: it is to be less than max_nsec"));
    }
    opened.statistics.begin_histogram(HistogramOptions {
        class,
        granularity: wanted.granularity.into(),
        nanos: (wanted.min_nsec, wanted.max_nsec),
    });
    Ok(Value::Bool(true))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetHistogram {
    name: String,
}

/// What has been recorded of a device since somebody wanted it.
fn recorded(plane: &Plane, name: &str) -> Result<(HistogramOptions, Snapshot), RpcError> {
    let state = plane.state();
    let opened = state.device(name).ok_or_else(|| Errno::NoDevice.about(name))?;
    let histogram = opened.statistics.histogram();
    histogram.ok_or_else(|| internal("Bad address: bdev_enable_histogram comes first"))
}

pub(super) async fn get_histogram(plane: Arc<Plane>, params: Value) -> Reply {
    let wanted: GetHistogram = parameters(params)?;
    let (options, snapshot) = recorded(&plane, &wanted.name)?;
    let layout = Layout::new(&options);
    let buckets = layout.fill(&snapshot, options.class);
    let bytes: Vec<u8> = buckets.into_iter().flat_map(u64::to_ne_bytes).collect();
    Ok(json!({
        "histogram": STANDARD.encode(bytes),
        "granularity": layout.granularity,
        "min_range": layout.lowest,
        "max_range": layout.highest,
        "tsc_rate": TICK_RATE,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetHistogramBorders {
    name: String,
    /// In microseconds.
    borders: Vec<u64>,
}

/// How many latencies are up to each border, and how many there are.
pub(super) async fn get_histogram_borders(plane: Arc<Plane>, params: Value) -> Reply {
    let GetHistogramBorders { name, borders } = parameters(params)?;
    if borders.is_empty() || borders.len() > MOST_BORDERS {
        return Err(invalid(format_args!("borders: 1 to {MOST_BORDERS} are asked for")));
    }
    if !borders.is_sorted() {
        return Err(invalid("borders: none may be lower than the one before"));
    }
    let (options, snapshot) = recorded(&plane, &name)?;
    Ok(json!({ "borders_count": up_to(&borders, latencies(&snapshot, options.class)) }))
}

/// How many of these latencies are up to each border in microseconds, and how many there are.
fn up_to(borders: &[u64], latencies: impl Iterator<Item = (u64, u64)>) -> Vec<u64> {
    let mut counts = vec![0_u64; borders.len().saturating_add(1)];
    for (nanos, count) in latencies {
        let first = borders.partition_point(|border| border.saturating_mul(1_000) < nanos);
        if let Some(place) = counts.get_mut(first) {
            *place += count;
        }
    }
    let mut sum = 0;
    for place in &mut counts {
        sum += *place;
        *place = sum;
    }
    counts
}

/// How often each latency has been seen, each bucket of ours at the middle of what it covers.
fn latencies(snapshot: &Snapshot, class: Option<Class>) -> impl Iterator<Item = (u64, u64)> {
    let classes = Class::ALL.into_iter().filter(move |it| class.is_none_or(|class| class == *it));
    classes.flat_map(|class| {
        let buckets = snapshot.class(class).buckets.iter().enumerate();
        buckets.map(|(at, count)| (histogram::start(at).midpoint(histogram::start(at + 1)), *count))
    })
}

/// Which buckets there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    granularity: u32,
    /// The first and the last range.
    lowest: u32,
    highest: u32,
}

impl Layout {
    fn new(options: &HistogramOptions) -> Self {
        let HistogramOptions { granularity, nanos: (shortest, longest), .. } = *options;
        let lowest = range(granularity, shortest);
        // The end is exclusive.
        let highest = range(granularity, longest.saturating_sub(1)).max(lowest);
        Self { granularity, lowest, highest }
    }

    /// The place of a latency among the buckets.
    fn bucket(self, nanos: u64) -> usize {
        let (range, each) = (range(self.granularity, nanos), 1_u64 << self.granularity);
        let (range, within) = if range < self.lowest {
            (self.lowest, 0)
        } else if range > self.highest {
            (self.highest, each - 1)
        } else {
            (range, (nanos >> range.saturating_sub(1)) & (each - 1))
        };
        let at = u64::from(range - self.lowest) * each + within;
        usize::try_from(at).unwrap_or(usize::MAX)
    }

    /// The latencies of a class, or of all.
    fn fill(self, snapshot: &Snapshot, class: Option<Class>) -> Vec<u64> {
        let ranges = usize::try_from(self.highest - self.lowest).unwrap_or(0).saturating_add(1);
        let mut filled = vec![0; ranges << self.granularity];
        for (nanos, count) in latencies(snapshot, class) {
            if let Some(bucket) = filled.get_mut(self.bucket(nanos)) {
                *bucket += count;
            }
        }
        filled
    }
}

/// The range that a latency is in.
fn range(granularity: u32, nanos: u64) -> u32 {
    (u64::BITS - nanos.leading_zeros()).saturating_sub(granularity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where a bucket ends by SPDK's rule for those who read one.
    fn end(granularity: u32, range: u32, within: u64) -> u64 {
        if range == 0 {
            within + 1
        } else {
            (1 << (range + granularity - 1)) + ((within + 1) << (range - 1))
        }
    }

    proptest! {
        #[test]
        fn a_reader_finds_a_latency_where_it_is(
            granularity in 0..=u32::from(FINEST),
            nanos in prop_oneof![0..10_000_u64, 0..100_000_000_000_u64],
        ) {
            let options = HistogramOptions { class: None, granularity, nanos: (0, u64::MAX) };
            let layout = Layout::new(&options);
            let at = layout.bucket(nanos) as u64;
            let (range, within) = (at >> granularity, at & ((1 << granularity) - 1));
            let end = end(granularity, u32::try_from(range).unwrap(), within);
            prop_assert!(nanos < end);
            prop_assert!(nanos >= end - (1 << range.saturating_sub(1)));
        }

        #[test]
        fn each_border_counts_what_is_up_to_it(
            mut borders in prop::collection::vec(0..50_u64, 1..8),
            seen in prop::collection::vec((0..60_000_u64, 0..9_u64), 0..20),
        ) {
            borders.sort_unstable();
            let counts = up_to(&borders, seen.iter().copied());
            let sum = |most| -> u64 {
                seen.iter().filter(|(nanos, _)| *nanos <= most).map(|(_, count)| count).sum()
            };
            let mut expected: Vec<u64> = borders.iter().map(|border| sum(border * 1_000)).collect();
            expected.push(sum(u64::MAX));
            prop_assert_eq!(counts, expected);
        }

        #[test]
        fn what_is_outside_is_at_the_edge(nanos: u64, granularity in 0..=u32::from(FINEST)) {
            let options = HistogramOptions { class: None, granularity, nanos: (1_000, 1_000_000) };
            let layout = Layout::new(&options);
            let all = layout.fill(&Snapshot::default(), None).len();
            let at = layout.bucket(nanos);
            prop_assert!(at < all);
            prop_assert!(nanos >= 512 || granularity > 9 || at == 0);
            prop_assert!(nanos < 1 << 20 || at == all - 1);
        }
    }

    #[test]
    fn the_default_is_as_large_as_spdk_makes_it() {
        let nanos = (default_shortest(), default_longest());
        let layout = Layout::new(&HistogramOptions { class: None, granularity: 7, nanos });
        assert_eq!(layout, Layout { granularity: 7, lowest: 3, highest: 30 });
        assert_eq!(layout.fill(&Snapshot::default(), None).len(), 28 * 128);
    }
}
