//! Points in time, and where they come from: the machine's monotonic clock or a test.

use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A point in time: nanoseconds since an origin that only the clock knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The clock's origin.
    pub const ZERO: Instant = Instant(0);

    /// `nanos` nanoseconds after the clock's origin.
    pub const fn from_nanos(nanos: u64) -> Instant {
        Instant(nanos)
    }

    /// Nanoseconds since the clock's origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    /// Saturates: a point too far away to express never comes.
    fn add(self, duration: Duration) -> Instant {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_add(nanos))
    }
}

/// What a reactor takes the time from.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    Monotonic,
    Simulated(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's `CLOCK_MONOTONIC`.
    pub const fn monotonic() -> Clock {
        Clock(Source::Monotonic)
    }

    /// The time now.
    pub fn now(&self) -> Instant {
        match &self.0 {
            Source::Monotonic => {
                let time = clock_gettime(ClockId::Monotonic);
                let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
                let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
                Instant(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
            }
            Source::Simulated(nanos) => Instant(nanos.load(Ordering::Acquire)),
        }
    }

    /// Whether time passes only when a test says so. A reactor never blocks on such a clock.
    pub const fn is_simulated(&self) -> bool {
        matches!(self.0, Source::Simulated(_))
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::monotonic()
    }
}

/// A clock that stands still until it is moved; clones are the same clock.
#[derive(Debug, Clone, Default)]
pub struct SimulatedClock(Arc<AtomicU64>);

impl SimulatedClock {
    /// A clock that stands at [`Instant::ZERO`].
    pub fn new() -> SimulatedClock {
        SimulatedClock::default()
    }

    /// The clock to give to reactors.
    pub fn clock(&self) -> Clock {
        Clock(Source::Simulated(Arc::clone(&self.0)))
    }

    /// The time now.
    pub fn now(&self) -> Instant {
        Instant(self.0.load(Ordering::Acquire))
    }

    /// Moves the time on.
    pub fn advance(&self, by: Duration) {
        self.advance_to(self.now() + by);
    }

    /// Moves the time on to `at`; it never goes back.
    pub fn advance_to(&self, at: Instant) {
        self.0.fetch_max(at.0, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_saturate_at_both_ends() {
        let late = Instant::from_nanos(u64::MAX - 1);
        assert_eq!(late + Duration::MAX, Instant::from_nanos(u64::MAX));
        assert_eq!(Instant::ZERO.since(late), Duration::ZERO);
        assert_eq!(Instant::from_nanos(7).since(Instant::from_nanos(3)), Duration::from_nanos(4));
    }

    #[test]
    fn a_simulated_clock_stands_still_and_never_goes_back() {
        let simulated = SimulatedClock::new();
        let clock = simulated.clock();
        assert_eq!(clock.now(), Instant::ZERO);
        simulated.advance(Duration::from_secs(2));
        simulated.advance_to(Instant::from_nanos(5));
        assert_eq!(clock.now(), Instant::from_nanos(2_000_000_000));
    }

    #[test]
    fn the_monotonic_clock_does_not_go_back() {
        let clock = Clock::monotonic();
        let first = clock.now();
        assert!(first > Instant::ZERO);
        assert!(clock.now() >= first);
    }
}
