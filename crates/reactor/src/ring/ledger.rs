//! What is in flight on a ring, and the results that wait in its ports.
//!
//! Invariants:
//! * An operation the kernel may know of is in `slots`, and nowhere else; it leaves when its
//!   completion is reaped. Slots are allocated once and never move.
//! * `queued_results` is the sum of the ports' queue lengths.

use std::collections::VecDeque;
use std::mem;

use slab::Slab;

struct InFlight<H> {
    held: H,
    tag: u64,
    /// `None`: the port is gone.
    port: Option<usize>,
}

struct Slot<H> {
    /// Counts the slot's uses, so that a late cancellation does not hit its next user.
    generation: u32,
    in_flight: Option<InFlight<H>>,
}

/// One port's results, with room for all it has in flight: reaping does not allocate.
#[derive(Default)]
struct PortQueue {
    results: VecDeque<(u64, i32)>,
    in_flight: usize,
}

/// `H`: what the kernel may touch of an operation, dropped when the kernel is done with it.
pub(super) struct Ledger<H> {
    slots: Box<[Slot<H>]>,
    free: Vec<u32>,
    ports: Slab<PortQueue>,
    queued_results: usize,
}

fn user_data(slot: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(slot)
}

fn slot_of(user_data: u64) -> (usize, u32) {
    let low = user_data & u64::from(u32::MAX);
    let slot = usize::try_from(low).unwrap_or(usize::MAX);
    (slot, u32::try_from(user_data >> 32).unwrap_or_default())
}

impl<H> Ledger<H> {
    /// For `count` operations in flight.
    pub(super) fn new(count: u32) -> Ledger<H> {
        let slots = (0..count).map(|_| Slot { generation: 0, in_flight: None });
        Ledger {
            slots: slots.collect(),
            free: (0..count).rev().collect(),
            ports: Slab::new(),
            queued_results: 0,
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn queued_results(&self) -> usize {
        self.queued_results
    }

    pub(super) fn open_port(&mut self) -> usize {
        self.ports.insert(PortQueue::default())
    }

    pub(super) fn close_port(&mut self, port: usize) {
        if let Some(queue) = self.ports.try_remove(port) {
            self.queued_results -= queue.results.len();
        }
        for in_flight in self.slots.iter_mut().filter_map(|slot| slot.in_flight.as_mut()) {
            if in_flight.port == Some(port) {
                in_flight.port = None;
            }
        }
    }

    pub(super) fn pop(&mut self, port: usize) -> Option<(u64, i32)> {
        let result = self.ports.get_mut(port)?.results.pop_front()?;
        self.queued_results -= 1;
        Some(result)
    }

    /// The place of the next operation, and its user data; `None` if there is no room.
    pub(super) fn next(&self) -> Option<(usize, u64)> {
        let &index = self.free.last()?;
        let place = usize::try_from(index).ok()?;
        Some((place, user_data(index, self.slots.get(place)?.generation)))
    }

    /// An operation has been put where [`Ledger::next`] said.
    pub(super) fn begin(&mut self, port: usize, tag: u64, held: H) {
        let place = self.free.pop().and_then(|index| usize::try_from(index).ok());
        let queue = self.ports.get_mut(port);
        let has_port = queue.is_some();
        if let Some(queue) = queue {
            queue.in_flight += 1;
            queue.results.reserve(queue.in_flight);
        }
        if let Some(slot) = place.and_then(|place| self.slots.get_mut(place)) {
            let port = has_port.then_some(port);
            slot.in_flight = Some(InFlight { held, tag, port });
        }
    }

    /// The kernel has done with an operation.
    pub(super) fn finish(&mut self, user_data: u64, result: i32) {
        let (index, generation) = slot_of(user_data);
        let slot = self.slots.get_mut(index).filter(|slot| slot.generation == generation);
        let Some((slot, in_flight)) =
            slot.and_then(|slot| slot.in_flight.take().map(|in_flight| (slot, in_flight)))
        else {
            debug_assert!(false, "a completion of nothing in flight");
            return;
        };
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(u32::try_from(index).unwrap_or(u32::MAX));
        if let Some(queue) = in_flight.port.and_then(|port| self.ports.get_mut(port)) {
            queue.in_flight -= 1;
            queue.results.push_back((in_flight.tag, result));
            self.queued_results += 1;
        }
    }

    /// Where this port's operation with this tag is.
    pub(super) fn find(&self, port: usize, tag: u64) -> Option<usize> {
        self.slots.iter().position(|slot| {
            let in_flight = slot.in_flight.as_ref();
            in_flight.is_some_and(|op| op.port == Some(port) && op.tag == tag)
        })
    }

    /// The operation in this place, with its user data.
    pub(super) fn get_mut(&mut self, index: usize) -> Option<(u64, &mut H)> {
        let slot = self.slots.get_mut(index)?;
        let user_data = user_data(u32::try_from(index).ok()?, slot.generation);
        Some((user_data, &mut slot.in_flight.as_mut()?.held))
    }

    /// Gives away for good what is still in flight: the kernel may write to these buffers at any
    /// later time. Never returned to their pool, they keep it mapped.
    pub(super) fn give_up(&mut self) {
        mem::forget(mem::take(&mut self.slots));
        self.free.clear();
    }
}
