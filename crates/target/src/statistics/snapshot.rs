//! Counters as they were at a moment, to be added up and subtracted.

use std::ops::AddAssign;

use super::histogram::{self, BUCKETS};
use super::{Class, ERRORS};

/// The successful operations of one class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassSnapshot {
    /// Bytes that they were about.
    pub bytes: u64,
    /// The sum of their latencies in nanoseconds.
    pub nanos: u64,
    /// The extremes; all ones and zero where there is none.
    pub(super) shortest: u64,
    pub(super) longest: u64,
    /// How many had a latency of each bucket of the [`histogram`].
    pub buckets: Box<[u64]>,
}

impl Default for ClassSnapshot {
    fn default() -> Self {
        let buckets = vec![0; BUCKETS].into_boxed_slice();
        Self { bytes: 0, nanos: 0, shortest: u64::MAX, longest: 0, buckets }
    }
}

impl ClassSnapshot {
    /// How many there were.
    pub fn operations(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// The shortest latency in nanoseconds.
    pub fn shortest(&self) -> Option<u64> {
        (self.shortest <= self.longest).then_some(self.shortest)
    }

    /// The longest latency in nanoseconds.
    pub fn longest(&self) -> Option<u64> {
        (self.shortest <= self.longest).then_some(self.longest)
    }

    /// How many took less than `nanos`, which is the start of a bucket.
    pub fn below(&self, nanos: u64) -> u64 {
        let below = self.buckets.iter().enumerate();
        let below = below.take_while(|(at, _)| histogram::start(at.saturating_add(1)) <= nanos);
        below.fold(0, |sum, (_, count)| sum.wrapping_add(*count))
    }

    /// What has come since `earlier`. The extremes of that are known as far as the buckets say.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let buckets: Box<[u64]> = self
            .buckets
            .iter()
            .zip(&earlier.buckets)
            .map(|(now, then)| now.saturating_sub(*then))
            .collect();
        let first = buckets.iter().position(|count| *count > 0);
        let last = buckets.iter().rposition(|count| *count > 0);
        let (shortest, longest) = match (first, last) {
            (Some(first), Some(last)) => {
                let end = histogram::start(last.saturating_add(1)).saturating_sub(1);
                // The extremes of all time bound those of a part of it.
                let shortest = histogram::start(first).max(self.shortest);
                (shortest, end.min(self.longest).max(shortest))
            }
            _ => (u64::MAX, 0),
        };
        Self {
            bytes: self.bytes.saturating_sub(earlier.bytes),
            nanos: self.nanos.saturating_sub(earlier.nanos),
            shortest,
            longest,
            buckets,
        }
    }
}

impl AddAssign<&Self> for ClassSnapshot {
    fn add_assign(&mut self, other: &Self) {
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.nanos = self.nanos.wrapping_add(other.nanos);
        self.shortest = self.shortest.min(other.shortest);
        self.longest = self.longest.max(other.longest);
        for (sum, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum = sum.wrapping_add(*count);
        }
    }
}

/// What has been counted of a device, on one shard or on several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Operations submitted, whatever became of them.
    pub submitted: u64,
    /// Operations that failed, in the order of [`ERRORS`].
    pub errors: [u64; ERRORS.len()],
    /// Commands that the device's limits have held back and let through.
    pub held_back: u64,
    /// How long that was, in nanoseconds.
    pub held_back_nanos: u64,
    /// In the order of [`Class::ALL`].
    pub(super) classes: [ClassSnapshot; Class::ALL.len()],
}

impl Snapshot {
    /// The operations of this class that succeeded.
    pub fn class(&self, class: Class) -> &ClassSnapshot {
        let [read, write, flush, write_zeroes, deallocate, compare, verify] = &self.classes;
        match class {
            Class::Read => read,
            Class::Write => write,
            Class::Flush => flush,
            Class::WriteZeroes => write_zeroes,
            Class::Deallocate => deallocate,
            Class::Compare => compare,
            Class::Verify => verify,
        }
    }

    /// Operations that have been submitted and are not back.
    pub fn in_flight(&self) -> u64 {
        let done = self.classes.iter().map(ClassSnapshot::operations).chain(self.errors);
        self.submitted.saturating_sub(done.fold(0, u64::wrapping_add))
    }

    /// What has come since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone();
        since.submitted = self.submitted.saturating_sub(earlier.submitted);
        since.held_back = self.held_back.saturating_sub(earlier.held_back);
        since.held_back_nanos = self.held_back_nanos.saturating_sub(earlier.held_back_nanos);
        for (errors, then) in since.errors.iter_mut().zip(earlier.errors) {
            *errors = errors.saturating_sub(then);
        }
        for (class, then) in since.classes.iter_mut().zip(&earlier.classes) {
            *class = class.since(then);
        }
        since
    }
}

impl AddAssign<&Self> for Snapshot {
    fn add_assign(&mut self, other: &Self) {
        self.submitted = self.submitted.wrapping_add(other.submitted);
        self.held_back = self.held_back.wrapping_add(other.held_back);
        self.held_back_nanos = self.held_back_nanos.wrapping_add(other.held_back_nanos);
        for (sum, count) in self.errors.iter_mut().zip(other.errors) {
            *sum = sum.wrapping_add(count);
        }
        for (sum, class) in self.classes.iter_mut().zip(&other.classes) {
            *sum += class;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Counters;
    use super::*;
    use proptest::prelude::*;

    /// Latencies, of which some are counted before the moment that one subtracts.
    fn latencies() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec(prop_oneof![0..5000_u64, 0..200_000_000_000_u64], 0..40)
    }

    proptest! {
        #[test]
        fn what_came_later_is_the_difference(before in latencies(), after in latencies()) {
            let counters = Counters::default();
            let count = |latencies: &[u64]| {
                for nanos in latencies {
                    counters.submitted();
                    counters.succeeded(Class::Write, 512, *nanos);
                }
            };
            count(&before);
            let then = counters.snapshot();
            count(&after);
            let now = counters.snapshot();
            let since = now.since(&then);
            let (all, later) = (now.class(Class::Write), since.class(Class::Write));
            prop_assert_eq!(all.operations(), (before.len() + after.len()) as u64);
            prop_assert_eq!(later.operations(), after.len() as u64);
            prop_assert_eq!(later.bytes, 512 * after.len() as u64);
            prop_assert_eq!(later.nanos, after.iter().sum::<u64>());
            prop_assert_eq!((now.in_flight(), since.in_flight()), (0, 0));
            // Exact over all time, within an eighth over a part of it.
            let every = || before.iter().chain(&after);
            prop_assert_eq!(all.shortest(), every().min().copied());
            prop_assert_eq!(all.longest(), every().max().copied());
            for (found, exact) in [
                (later.shortest(), after.iter().min()),
                (later.longest(), after.iter().max()),
            ] {
                prop_assert_eq!(found.is_some(), exact.is_some());
                if let (Some(found), Some(exact)) = (found, exact) {
                    let longest = histogram::start(BUCKETS);
                    let bounded = found.min(longest).abs_diff((*exact).min(longest));
                    prop_assert!(bounded <= (exact / 7).max(histogram::FLOOR * 9 / 8), "{found} {exact}");
                }
            }
            // And added to what was before it is what there is now.
            let mut sum = then.clone();
            sum += &since;
            prop_assert_eq!(&sum.class(Class::Write).buckets, &all.buckets);
        }

        #[test]
        fn a_border_parts_the_latencies(latencies in latencies(), at in 0..=BUCKETS) {
            let counters = Counters::default();
            for nanos in &latencies {
                counters.succeeded(Class::Read, 0, *nanos);
            }
            let border = histogram::start(at);
            let below = latencies.iter().filter(|nanos| **nanos < border).count() as u64;
            let longest = at == BUCKETS;
            let expected = if longest { latencies.len() as u64 } else { below };
            prop_assert_eq!(counters.snapshot().class(Class::Read).below(border), expected);
        }
    }
}
