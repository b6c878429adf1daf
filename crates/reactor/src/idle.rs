//! What a reactor does when a turn found nothing to do.

use std::time::Duration;

use crate::{Instant, Progress};

/// How a reactor spends idle time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Never sleeps: the lowest latency, and a whole core.
    Poll,
    /// Spins for a while in case something comes soon, then sleeps. The while tunes itself to the
    /// arrivals between nothing and `max_spin`.
    Adaptive {
        /// The longest spin after the last work.
        max_spin: Duration,
    },
    /// Sleeps as soon as there is nothing to do.
    Interrupt,
}

impl Default for IdlePolicy {
    fn default() -> IdlePolicy {
        IdlePolicy::Adaptive { max_spin: Duration::from_micros(100) }
    }
}

/// Spins shorter than this are not worth a turn.
const SHORTEST: Duration = Duration::from_micros(2);

/// Decides turn by turn, and learns from how long work was away.
///
/// A gap between two arrivals of up to `max_spin` would have been better spent spinning, so the spin
/// becomes twice the gap, which leaves room for jitter, at once if that is longer and by an eighth
/// of the difference if it is shorter. A longer gap could not have been bridged: the spin before it
/// was wasted and is halved, so that a reactor with rare work hardly spins at all.
#[derive(Debug)]
pub(crate) struct Idle {
    policy: IdlePolicy,
    spin: Duration,
    since: Option<Instant>,
}

impl Idle {
    pub(crate) fn new(policy: IdlePolicy) -> Idle {
        let spin = match policy {
            IdlePolicy::Adaptive { max_spin } => max_spin,
            IdlePolicy::Poll | IdlePolicy::Interrupt => Duration::ZERO,
        };
        Idle { policy, spin, since: None }
    }

    /// Takes the outcome of the turn that began at `now`; whether to sleep.
    pub(crate) fn after_turn(&mut self, progress: Progress, now: Instant) -> bool {
        if progress == Progress::Worked {
            if let Some(since) = self.since.take() {
                self.learn(now.since(since));
            }
            return false;
        }
        let since = *self.since.get_or_insert(now);
        match self.policy {
            IdlePolicy::Poll => false,
            IdlePolicy::Interrupt => true,
            IdlePolicy::Adaptive { .. } => now.since(since) >= self.spin,
        }
    }

    fn learn(&mut self, gap: Duration) {
        let IdlePolicy::Adaptive { max_spin } = self.policy else {
            return;
        };
        if gap > max_spin {
            self.spin /= 2;
        } else {
            let wanted = (gap * 2).min(max_spin);
            let excess = self.spin.saturating_sub(wanted);
            self.spin = wanted.max(self.spin.saturating_sub(excess / 8));
        }
        if self.spin < SHORTEST {
            self.spin = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(100);

    /// Plays arrivals `gap` apart to a reactor whose turns take a microsecond. For each gap, how
    /// long it spun before it slept, if it did.
    fn play(idle: &mut Idle, gap: Duration, times: usize) -> Vec<Option<Duration>> {
        let turn = Duration::from_micros(1);
        let mut now = Instant::from_nanos(1);
        (0..times)
            .map(|_| {
                let start = now + turn;
                let mut slept = None;
                while now.since(start) < gap {
                    now = now + turn;
                    if idle.after_turn(Progress::Idle, now) && slept.is_none() {
                        slept = Some(now.since(start));
                    }
                }
                assert!(!idle.after_turn(Progress::Worked, now));
                slept
            })
            .collect()
    }

    #[test]
    fn adaptive_bridges_gaps_that_it_can_bridge() {
        let mut idle = Idle::new(IdlePolicy::Adaptive { max_spin: MAX });
        let slept = play(&mut idle, Duration::from_micros(30), 100);
        assert_eq!(slept, vec![None; 100]);
        // And it does not spin longer than these gaps need.
        assert!(idle.spin >= Duration::from_micros(58) && idle.spin <= Duration::from_micros(70));
    }

    #[test]
    fn adaptive_stops_spinning_for_gaps_that_it_cannot_bridge() {
        let mut idle = Idle::new(IdlePolicy::Adaptive { max_spin: MAX });
        let slept = play(&mut idle, Duration::from_millis(1), 20);
        assert_eq!(slept[0], Some(MAX), "the first spin is as long as allowed");
        assert!(slept.windows(2).all(|pair| pair[1] <= pair[0]));
        assert_eq!(slept[19], Some(Duration::ZERO));
        // Work that comes quickly again is bridged from the second gap on.
        let slept = play(&mut idle, Duration::from_micros(30), 10);
        assert_eq!(slept[1..], [None; 9]);
    }

    #[test]
    fn adaptive_never_spins_longer_than_allowed() {
        let mut idle = Idle::new(IdlePolicy::Adaptive { max_spin: MAX });
        for gap in [99, 1, 80, 100, 101, 99, 5, 100] {
            play(&mut idle, Duration::from_micros(gap), 3);
            assert!(idle.spin <= MAX);
        }
    }

    #[test]
    fn poll_never_sleeps_and_interrupt_always_does() {
        let now = Instant::from_nanos(5);
        assert!(!Idle::new(IdlePolicy::Poll).after_turn(Progress::Idle, now));
        assert!(Idle::new(IdlePolicy::Interrupt).after_turn(Progress::Idle, now));
        assert!(!Idle::new(IdlePolicy::Interrupt).after_turn(Progress::Worked, now));
    }
}
