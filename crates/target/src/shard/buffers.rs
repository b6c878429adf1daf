//! Who gets memory of the pool, and when.
//!
//! A request takes all the buffer it needs or waits holding none. One that is [lent](super::lending) memory of its device
//! needs none, but counts in the shares of its queue and its host as if it did: so it can be given one later. Waiting
//! requests stand in their queue's lines for each device, the queues in a ring; the ring is served in turn, one
//! request per queue and visit.
//! So that one greedy peer cannot take everything:
//!
//! | who | may hold | why |
//! | --- | --- | --- |
//! | a queue | a quarter of the pool | three more can work at the same time |
//! | a host, over all its I/O queues on this shard | three quarters | there is always something for another host |
//! | a device | as much as it leaves free | see [`super::device_share`] |
//! | all queues without a Connect | an eighth | a flood of connections has no name to charge |
//! | I/O queues together | all but a sixteenth | admin commands pass however busy the I/O queues are |
//! | commands whose data is asked for | a sixteenth less | see [`super::pledges`] |
//! | those and new connections | all but a thirty-second | and however many connections come |
//!
//! A queue or host that holds nothing gets its buffer whatever its share, so small pools work too. The
//! first I/O queue in the ring that fits its shares and finds the pool empty keeps its place, and no other
//! I/O queue overtakes it: large transfers are not starved by small ones.

use super::Shard;
use super::device_share::DeviceShare;
use super::limit::Leave;
use super::pledges::{is_asked_for, is_urgent};
use super::queue::Queue;
use super::request::Stage;
use super::table::Key;
use crate::{Action, QueueId, RequestId};

/// The memory that a pool takes for `length` bytes: its size class.
fn size_class(length: u32) -> usize {
    usize::try_from(length.max(4096).checked_next_power_of_two().unwrap_or(u32::MAX))
        .unwrap_or(usize::MAX)
}

/// Requests that get a buffer in one visit to the ring.
const SERVED_PER_TURN: u32 = 64;

/// What came of trying to get a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Got,
    /// The queue or its host has its share.
    OverShare,
    /// The device has its share.
    Crowded,
    /// The device has done all it may for now, or others go first; see [`super::limit`].
    Limited,
    /// The pool has nothing that fits.
    Empty,
}

impl Shard {
    /// Gets the request its buffer and the leave of its device's limits, now or in its turn.
    pub(super) fn seek_buffer(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(id) else { return };
        let (queue_id, device, line) = (request.queue, request.device, request.line());
        // Nothing behind it on its connection is read before it has its buffer.
        let (limited, holds) = (request.limited, request.buffer.is_some());
        let needs = !request.has_memory();
        let blocks = request.in_capsule && !holds;
        let Some(queue) = self.queues.get(queue_id) else { return };
        // Nobody is overtaken: neither one's own earlier commands, nor queues that wait for memory.
        let first = self.is_urgent(id)
            || (queue.waiting.is_empty_for(device, line)
                && (!self.dry || !queue.is_io() || !needs));
        if first {
            match self.try_buffer(id) {
                Attempt::Got => return self.have_buffer(id, holds),
                Attempt::Empty => self.found_empty(queue_id),
                Attempt::Crowded => self.found_crowded(device),
                Attempt::OverShare | Attempt::Limited => {}
            }
        }
        let Some(request) = self.requests.get_mut(id) else { return };
        request.stage = Stage::Buffer;
        request.since = self.now;
        self.counters.buffer_waits += u64::from(!limited);
        self.join_line(id, blocks);
        if let Some(queue) = self.queues.get_mut(queue_id)
            && !queue.in_ring
        {
            queue.in_ring = true;
            self.ring.push_back(queue_id);
        }
    }

    /// Gets the request its buffer, if its device's limits let it through.
    #[inline]
    fn try_buffer(&mut self, id: RequestId) -> Attempt {
        let limited = self.requests.get(id).is_some_and(|request| request.limited);
        if limited { self.try_limited(id) } else { self.take_buffer(id) }
    }

    /// The same for one that is subject to limits. It pays once it has leave and buffer.
    #[cold]
    fn try_limited(&mut self, id: RequestId) -> Attempt {
        let holds = self.requests.get(id).is_some_and(|request| request.buffer.is_some());
        let leave = self.leave(id);
        if leave == Leave::Denied {
            return Attempt::Limited;
        }
        let attempt = if holds { Attempt::Got } else { self.take_buffer(id) };
        if attempt == Attempt::Got && leave == Leave::Given {
            self.pay_limits(id);
        }
        attempt
    }

    fn take_buffer(&mut self, id: RequestId) -> Attempt {
        let Some(request) = self.requests.get(id) else { return Attempt::OverShare };
        let Some(queue) = self.queues.get(request.queue) else { return Attempt::OverShare };
        let (asked_for, urgent) = (is_asked_for(request), is_urgent(request, queue));
        if asked_for && !self.pledges.allow(queue, &self.requests, &self.hosts) {
            return Attempt::OverShare;
        }
        let charge = size_class(request.room);
        let device_share = self.device_share(request, charge);
        let Some(request) = self.requests.get_mut(id) else { return Attempt::OverShare };
        let Some(queue) = self.queues.get_mut(request.queue) else { return Attempt::OverShare };
        let Some(host) = self.hosts.get_mut(queue.host) else { return Attempt::OverShare };
        let (capacity, available) = (self.pool.capacity(), self.pool.available());
        let most_host = if host.host.is_some() { capacity - capacity / 4 } else { capacity / 8 };
        let over = |held: usize, most: usize| held > 0 && held.saturating_add(charge) > most;
        // What a host's I/O queues hold, in a device that hangs perhaps, does not stop its admin commands: with
        // those it finds out and recovers.
        let is_admin = !queue.is_io() && host.host.is_some();
        let beyond_share =
            over(queue.charged, capacity / 4) || !is_admin && over(host.charged, most_host);
        if !urgent && beyond_share && device_share != DeviceShare::Little {
            return Attempt::OverShare;
        }
        if !urgent && device_share == DeviceShare::Beyond {
            return Attempt::Crowded;
        }
        let kept = match (urgent, asked_for) {
            (true, _) => 0,
            (false, true) => queue.memory_kept(capacity).saturating_add(capacity / 16),
            (false, false) => queue.memory_kept(capacity),
        };
        if !request.borrows {
            if charge.saturating_add(kept) > available && available != capacity {
                return Attempt::Empty;
            }
            let room = usize::try_from(request.room).unwrap_or(usize::MAX);
            let Some(buffer) = self.pool.take(room) else { return Attempt::Empty };
            request.buffer = Some(buffer);
        }
        request.charge = u32::try_from(charge).unwrap_or(u32::MAX);
        queue.charged = queue.charged.saturating_add(charge);
        host.charged = host.charged.saturating_add(charge);
        let device = request.device.and_then(|key| self.subsystems.backends.get_mut(key));
        if let Some(backend) = device {
            let held = backend.held_mut(request.borrows);
            *held = held.saturating_add(charge);
        }
        Attempt::Got
    }

    /// The request holds its buffer, or needs none: the host's data is fetched, or the work begins. `held`: it waited
    /// with the data.
    fn have_buffer(&mut self, id: RequestId, held: bool) {
        let Some(request) = self.requests.get_mut(id) else { return };
        if !request.from_host || held {
            request.stage = Stage::New;
            self.perform(id);
            return;
        }
        request.stage = Stage::Receive;
        request.since = self.now;
        let (queue, length, in_capsule) = (request.queue, request.length, request.in_capsule);
        let Some(record) = self.queues.get_mut(queue) else { return };
        let port = record.port;
        if !in_capsule {
            self.pledges.begin(record, &mut self.hosts);
            self.look_at_stalled();
        }
        self.act(port, Action::Receive { queue, request: id, length, in_capsule });
    }

    /// The request holds no memory from now on.
    pub(super) fn release_buffer(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(id) else { return };
        if request.charge == 0 {
            return;
        }
        let charge = usize::try_from(std::mem::take(&mut request.charge)).unwrap_or(usize::MAX);
        if request.borrows {
            self.lent.end(id);
        }
        let lent = request.buffer.take().is_none();
        let device = request.device.and_then(|key| self.subsystems.backends.get_mut(key));
        if let Some(backend) = device {
            let held = backend.held_mut(lent);
            *held = held.saturating_sub(charge);
        }
        if let Some(queue) = self.queues.get_mut(request.queue) {
            queue.charged = queue.charged.saturating_sub(charge);
            if let Some(host) = self.hosts.get_mut(queue.host) {
                host.charged = host.charged.saturating_sub(charge);
            }
        }
        self.woken = true;
    }

    /// Hands out what has become free, round the ring. Whether anybody got something.
    pub(super) fn serve_waiting(&mut self) -> bool {
        let mut served = 0;
        loop {
            let before = served;
            self.dry = false;
            self.forget_limits();
            self.round = self.round.wrapping_add(1);
            self.serve_round(&mut served);
            let raised = self.raise_levels();
            if self.dry || served == before && !raised || served >= SERVED_PER_TURN {
                break;
            }
        }
        // More could be served at once: come back without waiting for an event.
        self.woken |= served >= SERVED_PER_TURN;
        served > 0
    }

    /// Visits every queue of the ring once; those that get something go behind those that do not. When an I/O
    /// queue finds the pool empty, the others are passed over, but for admin queues and new connections.
    fn serve_round(&mut self, served: &mut u32) {
        for _ in 0..self.ring.len() {
            let Some(queue_id) = self.ring.pop_front() else { break };
            let got = self.serve_queue(queue_id);
            *served += u32::from(got);
            let Some(queue) = self.queues.get_mut(queue_id) else { continue };
            queue.in_ring = !queue.waiting.is_empty();
            match (queue.in_ring, got) {
                (true, true) => self.served.push_back(queue_id),
                (true, false) => self.ring.push_back(queue_id),
                (false, _) => {}
            }
        }
        self.ring.append(&mut self.served);
    }

    /// One request of this queue gets a buffer, if the pool and the shares permit; whether one did. Its devices
    /// take turns.
    fn serve_queue(&mut self, queue_id: QueueId) -> bool {
        let places = self.queues.get(queue_id).map_or(0, |queue| queue.waiting.places());
        for place in 0..places {
            let Some(queue) = self.queues.get(queue_id) else { return false };
            let is_io = queue.is_io();
            let Some(first) = queue.waiting.first(place) else { continue };
            let Some(request) = self.requests.get(first) else { continue };
            let (device, line) = (request.device, request.line());
            let (holds, needs) = (request.buffer.is_some(), !request.has_memory());
            if self.dry && is_io && needs && !self.is_urgent(first) {
                continue;
            }
            match self.try_buffer(first) {
                Attempt::Got => {
                    if let Some(queue) = self.queues.get_mut(queue_id) {
                        queue.waiting.pop(&mut self.requests, place);
                    }
                    self.left_line(queue_id, device, line);
                    self.have_buffer(first, holds);
                    return true;
                }
                Attempt::Empty => self.found_empty(queue_id),
                Attempt::Crowded => self.found_crowded(device),
                Attempt::OverShare | Attempt::Limited => {}
            }
        }
        false
    }

    /// A request within its shares finds no memory: I/O queues behind it wait until it has been served.
    fn found_empty(&mut self, queue_id: QueueId) {
        self.counters.pool_empty += 1;
        self.dry |= self.queues.get(queue_id).is_some_and(Queue::is_io);
    }

    /// A request within the other shares is beyond its device's: those behind it wait until it has been served.
    fn found_crowded(&mut self, device: Option<Key>) {
        self.counters.device_crowded += 1;
        if let Some(backend) = device.and_then(|key| self.subsystems.backends.get_mut(key)) {
            backend.crowded_in = Some(self.round);
        }
    }

    fn is_urgent(&self, id: RequestId) -> bool {
        self.requests.get(id).is_some_and(|request| {
            self.queues.get(request.queue).is_some_and(|queue| is_urgent(request, queue))
        })
    }
}
