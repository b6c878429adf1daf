//! A component's own deadlines: a binary heap with cancellation.
//!
//! The component asks for [`Timers::next`] when its poller is asked for the next deadline, and takes
//! what is due in its poll. Insertion and expiry cost `O(log n)`; cancelling costs `O(1)`, the dead
//! entry leaves the heap when it comes up or when the dead outnumber the living. In the steady state
//! nothing is allocated. Deadlines that are equal come due in the order of insertion.
//!
//! Rejected: a timer wheel. Keep-alive and request deadlines are few per turn and must be exact to
//! the nanosecond in simulation.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use slab::Slab;

use crate::Instant;

/// Heaps of up to this size are not searched for dead entries.
const SMALL: usize = 64;

/// Names one inserted deadline; stale once it was popped or cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimerId {
    slot: usize,
    sequence: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Instant,
    sequence: u64,
    slot: usize,
}

#[derive(Debug)]
struct Pending<K> {
    sequence: u64,
    key: K,
}

/// Deadlines, each with a key that comes back when it is due.
#[derive(Debug)]
pub struct Timers<K> {
    /// The first entry is always alive; others may have been cancelled.
    heap: BinaryHeap<Reverse<Due>>,
    pending: Slab<Pending<K>>,
    sequence: u64,
}

impl<K> Timers<K> {
    /// No deadlines. There is room for the dead that a small heap may hold, so that it does not grow long after its start.
    pub fn new() -> Timers<K> {
        Timers { heap: BinaryHeap::with_capacity(2 * SMALL), pending: Slab::new(), sequence: 0 }
    }

    /// The number of deadlines that are neither popped nor cancelled.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Has `key` come due at `at`.
    pub fn insert(&mut self, at: Instant, key: K) -> TimerId {
        let sequence = self.sequence;
        self.sequence += 1;
        let slot = self.pending.insert(Pending { sequence, key });
        self.heap.push(Reverse(Due { at, sequence, slot }));
        TimerId { slot, sequence }
    }

    /// Takes a deadline back; `None` if it has been popped or cancelled before.
    pub fn cancel(&mut self, id: TimerId) -> Option<K> {
        if self.pending.get(id.slot)?.sequence != id.sequence {
            return None;
        }
        let key = self.pending.remove(id.slot).key;
        if self.heap.len() > SMALL && self.heap.len() / 2 > self.pending.len() {
            let pending = &self.pending;
            self.heap.retain(|Reverse(due)| is_alive(pending, due));
        }
        self.drop_dead();
        Some(key)
    }

    /// The next key whose deadline is `now` or earlier, the earliest first.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        if self.next()? > now {
            return None;
        }
        let Reverse(due) = self.heap.pop()?;
        let key = self.pending.remove(due.slot).key;
        self.drop_dead();
        Some(key)
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(due)| due.at)
    }

    /// Restores the invariant that the heap's first entry is alive.
    fn drop_dead(&mut self) {
        while let Some(Reverse(due)) = self.heap.peek() {
            if is_alive(&self.pending, due) {
                break;
            }
            self.heap.pop();
        }
    }
}

fn is_alive<K>(pending: &Slab<Pending<K>>, due: &Due) -> bool {
    pending.get(due.slot).is_some_and(|pending| pending.sequence == due.sequence)
}

impl<K> Default for Timers<K> {
    fn default() -> Timers<K> {
        Timers::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The obvious way: an unordered list, searched each time.
    #[derive(Default)]
    struct Oracle {
        pending: Vec<(Instant, u32)>,
    }

    impl Oracle {
        fn next(&self) -> Option<Instant> {
            self.pending.iter().map(|(at, _)| *at).min()
        }

        fn pop_due(&mut self, now: Instant) -> Option<u32> {
            // The key counts insertions, so the smallest is the oldest among equals.
            let first = *self.pending.iter().min()?;
            if first.0 > now {
                return None;
            }
            self.pending.retain(|pending| *pending != first);
            Some(first.1)
        }

        fn cancel(&mut self, key: u32) -> Option<u32> {
            let at = self.pending.iter().position(|(_, known)| *known == key)?;
            Some(self.pending.remove(at).1)
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert {
            after: u64,
        },
        /// One of all that were ever inserted, the popped and cancelled among them.
        Cancel {
            which: prop::sample::Index,
        },
        Advance {
            by: u64,
        },
        PopOne,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u64..20).prop_map(|after| Step::Insert { after }),
            4 => any::<prop::sample::Index>().prop_map(|which| Step::Cancel { which }),
            1 => (0_u64..8).prop_map(|by| Step::Advance { by }),
            1 => Just(Step::PopOne),
        ]
    }

    proptest! {
        #[test]
        fn behave_like_an_unordered_list(steps in prop::collection::vec(step(), 0..400)) {
            let (mut timers, mut oracle) = (Timers::new(), Oracle::default());
            let mut ids = Vec::new();
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Insert { after } => {
                        let key = u32::try_from(ids.len()).unwrap();
                        let at = Instant::from_nanos(now + after);
                        ids.push(timers.insert(at, key));
                        oracle.pending.push((at, key));
                    }
                    Step::Cancel { which } if !ids.is_empty() => {
                        let key = which.index(ids.len());
                        let cancelled = timers.cancel(ids[key]);
                        prop_assert_eq!(cancelled, oracle.cancel(u32::try_from(key).unwrap()));
                    }
                    Step::Cancel { .. } => {}
                    Step::Advance { by } => now += by,
                    Step::PopOne => {
                        let now = Instant::from_nanos(now);
                        prop_assert_eq!(timers.pop_due(now), oracle.pop_due(now));
                    }
                }
                prop_assert_eq!(timers.next(), oracle.next());
                prop_assert_eq!(timers.len(), oracle.pending.len());
                prop_assert!(timers.heap.len() <= SMALL.max(2 * timers.len() + 1));
            }
            let end = Instant::from_nanos(u64::MAX);
            while let Some(key) = oracle.pop_due(end) {
                prop_assert_eq!(timers.pop_due(end), Some(key));
            }
            prop_assert!(timers.is_empty() && timers.heap.is_empty());
        }
    }
}
