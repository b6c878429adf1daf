//! Counters with one writer, the reactor's thread; any thread may read.
//!
//! All accesses are relaxed: the figures are statistics, nothing is ordered by them. With one
//! writer an increment is a load and a store, without the locked instruction of `fetch_add`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, count: u64) {
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(count);
        self.0.store(sum, Ordering::Relaxed);
    }

    /// Adds a count of bytes or things in memory.
    pub fn add_len(&self, count: usize) {
        self.add(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Adds nanoseconds.
    pub fn add_time(&self, time: Duration) {
        self.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// What it has come to.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Declares the counters of a component once: `Counters`, which count, and `CounterValues`, what they have come to since
/// the start.
#[macro_export]
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters of one reactor.
        #[derive(Debug, Default)]
        #[allow(unreachable_pub, reason = "where the counters are nobody else's")]
        pub struct Counters { $(pub(crate) $name: $crate::Counter,)* }

        /// The counters at one moment, since the start.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
        pub struct CounterValues { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// The values now.
            #[allow(unreachable_pub, reason = "as above")]
            pub fn values(&self) -> CounterValues {
                CounterValues { $($name: self.$name.value(),)* }
            }
        }

        impl CounterValues {
            /// Each counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }

            /// The sum of two reactors' counters.
            #[must_use]
            pub fn plus(&self, other: &CounterValues) -> CounterValues {
                CounterValues { $($name: self.$name.wrapping_add(other.$name),)* }
            }
        }
    };
}
