//! What a reactor counts, and how loaded it is.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::utils::CachePadded;

use crate::{Clock, Instant};

/// The length of a window over which the busy share is measured.
const WINDOW: Duration = Duration::from_millis(20);

crate::counters! {
    /// Turns taken.
    turns,
    /// Turns in which something was done.
    busy_turns,
    /// Times it went to sleep.
    sleeps,
    /// Times another thread had to wake it by its eventfd.
    wakeups,
    /// Mailbox messages run.
    messages,
    /// `epoll_wait` calls, those that slept included.
    epoll_calls,
    /// `io_uring_enter` calls.
    ring_enters,
    /// Jobs given to the worker threads.
    offloads,
    /// Nanoseconds spent in turns in which something was done.
    busy_nanos,
    /// Nanoseconds spent in turns that found nothing to do.
    idle_nanos,
    /// Nanoseconds slept; a sleep is added when it is over.
    sleep_nanos,
}

/// How loaded a reactor is, for placing queues.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Queues placed on it.
    pub queues: u32,
    /// The share of recent time in which it did something, in thousandths.
    pub busy: u32,
}

/// The published load of a reactor.
#[derive(Debug)]
pub(crate) struct SharedLoad {
    clock: Clock,
    queues: AtomicU32,
    busy: CachePadded<PublishedBusy>,
}

#[derive(Debug, Default)]
struct PublishedBusy {
    permille: AtomicU32,
    /// When the window ended that `permille` was measured over.
    until: AtomicU64,
}

impl SharedLoad {
    pub(crate) fn new(clock: Clock) -> SharedLoad {
        SharedLoad { clock, queues: AtomicU32::new(0), busy: CachePadded::default() }
    }

    /// A queue was placed on (or reserved for) this reactor. Any thread.
    pub(crate) fn queue_added(&self) {
        self.queues.fetch_add(1, Ordering::Relaxed);
    }

    /// A queue is gone. Any thread.
    pub(crate) fn queue_removed(&self) {
        let _ = self
            .queues
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |queues| queues.checked_sub(1));
    }

    pub(crate) fn load(&self) -> Load {
        let measured = u64::from(self.busy.permille.load(Ordering::Relaxed));
        let until = Instant::from_nanos(self.busy.until.load(Ordering::Relaxed));
        // A reactor that sleeps publishes nothing: the older the figure, the less of it is left.
        let window = u64::try_from(WINDOW.as_nanos()).unwrap_or(u64::MAX);
        let age = u64::try_from(self.clock.now().since(until).as_nanos()).unwrap_or(u64::MAX);
        let busy = measured * window / window.max(age);
        Load {
            queues: self.queues.load(Ordering::Relaxed),
            busy: u32::try_from(busy).unwrap_or(1000),
        }
    }

    fn publish(&self, permille: u32, until: Instant) {
        self.busy.permille.store(permille, Ordering::Relaxed);
        self.busy.until.store(until.as_nanos(), Ordering::Relaxed);
    }
}

/// Where the reactor's time goes: adds up turns, and publishes the busy share once per window.
#[derive(Debug)]
pub(crate) struct BusyMeter {
    started: Instant,
    last: Instant,
    busy: Duration,
}

impl BusyMeter {
    pub(crate) fn new(now: Instant) -> BusyMeter {
        BusyMeter { started: now, last: now, busy: Duration::ZERO }
    }

    /// The time since the last call was slept.
    pub(crate) fn slept(&mut self, now: Instant, counters: &Counters) {
        counters.sleep_nanos.add_time(now.since(self.last));
        self.last = now;
    }

    /// The time since the last call was spent on work, or was not.
    pub(crate) fn passed(
        &mut self,
        now: Instant,
        working: bool,
        load: &SharedLoad,
        counters: &Counters,
    ) {
        let passed = now.since(self.last);
        self.last = now;
        if working {
            self.busy += passed;
            counters.busy_nanos.add_time(passed);
        } else {
            counters.idle_nanos.add_time(passed);
        }
        let window = now.since(self.started);
        if window >= WINDOW {
            let permille = self.busy.as_nanos().saturating_mul(1000) / window.as_nanos().max(1);
            load.publish(u32::try_from(permille).unwrap_or(1000).min(1000), now);
            self.started = now;
            self.busy = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimulatedClock;

    #[test]
    fn the_busy_share_is_measured_and_fades_in_sleep() {
        let time = SimulatedClock::new();
        let load = SharedLoad::new(time.clock());
        let counters = Counters::default();
        let mut meter = BusyMeter::new(time.now());
        for turn in 0..8 {
            time.advance(WINDOW / 4);
            meter.passed(time.now(), turn % 2 == 0, &load, &counters);
        }
        assert_eq!(load.load().busy, 500);
        time.advance(WINDOW * 10);
        assert_eq!(load.load().busy, 50);
        meter.slept(time.now(), &counters);
        meter.passed(time.now(), false, &load, &counters);
        assert_eq!(load.load().busy, 0);
        let values = counters.values();
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap();
        assert_eq!((values.busy_nanos, values.idle_nanos), (nanos(WINDOW), nanos(WINDOW)));
        assert_eq!(values.sleep_nanos, nanos(WINDOW * 10));
    }

    #[test]
    fn queues_never_go_below_zero() {
        let load = SharedLoad::new(Clock::monotonic());
        load.queue_removed();
        load.queue_added();
        load.queue_added();
        load.queue_removed();
        assert_eq!(load.load().queues, 1);
    }
}
