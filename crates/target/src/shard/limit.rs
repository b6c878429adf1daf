//! The limits of devices on this shard: which command may go ahead, and whose turn it is.
//!
//! A command that counts (see [`crate::rate_limit`]) asks for leave where it asks for its buffer, and waits in the same
//! line of its queue, holding neither: a limited device does not sit on the pool. What else happens to waiting commands
//! happens to these: Aborts find them, dying queues drop them, shares of slots bound them. Two go ahead all the same:
//!
//! * data in a capsule, behind which nothing on its connection can be read: it is taken in, within an eighth of the pool per
//!   device, and the command then waits with its buffer. Beyond that its connection stands still, as when memory is short;
//! * everything once the shard shuts down: an orderly end does not wait for limits.
//!
//! A command whose namespace is gone, fenced or without a queue does not wait either: it is going to fail.
//!
//! # Whose turn it is
//! Queues are served by start times (start-time fair queueing): a command that costs so much time pushes its queue so far
//! ahead, and a queue that is ahead of the level waits until the others have caught up. So each queue gets the same, whatever
//! the size and number of its commands; and one that cannot use its part leaves it to the others, since the level rises
//! as soon as nobody below it could use what there is. *Nobody could* means: those at the level lack credit in none of the limits
//! that the one ahead would draw from. Otherwise small commands would starve a large one that is being saved up for.
//!
//! Where reads and writes compete for nothing, each has a level of its own (a *lane*).
//!
//! Rejected: deficit round robin, whose quantum would have to fit commands between 512 bytes and a mebibyte; a heap of
//! queues per device, which would be a second order beside the ring's.

use super::Shard;
use super::request::Stage;
use super::table::Key;
use crate::rate_limit::{Asking, InLine, RateLimits, Set, Way};
use crate::{QueueId, RequestId};

/// The part of the pool that one limited device may fill with data of capsules.
const EARLY: usize = 8;

/// Whose turn it is on one backend.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    in_line: InLine,
    /// Up to where everybody has been served who could be; of each lane.
    levels: [u64; Way::ALL.len()],
    /// The round of the ring in which one was served last.
    served: Option<u64>,
    /// In this round of the ring: it is in [`Shard::limited`].
    noted: bool,
    /// The limits in which those at the level lack credit.
    lacking: Set,
    /// The least that one is ahead, of reads and of writes.
    ahead: [Option<u64>; Way::ALL.len()],
}

impl Turns {
    fn level(&self, lane: usize) -> u64 {
        self.levels.get(lane).copied().unwrap_or(0)
    }

    fn raise(&mut self, lane: usize, to: u64) {
        if let Some(level) = self.levels.get_mut(lane) {
            *level = to.max(*level);
        }
    }

    /// A queue has joined a line or left it; `alone`: it is in no other one for this device.
    fn count(&mut self, way: Way, alone: bool, joins: bool) {
        let change = |count: &mut u64| {
            *count = if joins { count.saturating_add(1) } else { count.saturating_sub(1) };
        };
        if let Some(count) = self.in_line.ways.get_mut(way.index()) {
            change(count);
        }
        if alone {
            change(&mut self.in_line.either);
        }
    }

    /// Whether nobody waits who would want a turn before a command of this way.
    fn is_nobodys(&self, lane: usize, limits: &RateLimits) -> bool {
        let count = if limits.ways_compete() {
            Some(&self.in_line.either)
        } else {
            self.in_line.ways.get(lane)
        };
        count.is_none_or(|count| *count == 0)
    }
}

/// The lane in which a command goes.
fn lane(limits: &RateLimits, way: Way) -> usize {
    if limits.ways_compete() { Way::Read.index() } else { way.index() }
}

/// What limits say to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// Go ahead.
    Given,
    /// Take the data in, and ask again with it.
    Early,
    /// Not now.
    Denied,
}

impl Shard {
    /// Whether a command that is subject to limits may go ahead; nothing is spent yet.
    pub(super) fn leave(&mut self, id: RequestId) -> Leave {
        let Some(request) = self.requests.get(id) else { return Leave::Given };
        let (device, way, waits) = (request.device, request.way(), request.stage == Stage::Buffer);
        let Some(key) = device else { return Leave::Given };
        let Some(queue) = self.queues.get(request.queue) else { return Leave::Given };
        let Some(backend) = self.subsystems.backends.get_mut(key) else { return Leave::Given };
        if self.shutdown.is_some() || backend.check().is_err() || !backend.limits.is_on() {
            return Leave::Given;
        }
        let (limits, turns) = (&backend.limits, &mut backend.turns);
        if request.in_capsule && request.buffer.is_none() {
            let (capacity, available) = (self.pool.capacity(), self.pool.available());
            let length = usize::try_from(request.length).unwrap_or(usize::MAX);
            let little = backend.charged.saturating_add(length) <= capacity / EARLY;
            if queue.pledge.is_owing() || little && available >= capacity / EARLY {
                return Leave::Early;
            }
        }
        let lane = lane(limits, way);
        if waits {
            if !turns.noted {
                turns.noted = true;
                self.limited.push(key);
            }
            let paid = queue.waiting.paid(device, lane);
            if paid > turns.level(lane) {
                if let Some(ahead) = turns.ahead.get_mut(way.index()) {
                    *ahead = Some(ahead.map_or(paid, |other| other.min(paid)));
                }
                return Leave::Denied;
            }
        } else if !turns.is_nobodys(lane, limits) {
            return Leave::Denied;
        }
        let (shard, bytes, now) = (self.index, request.length, self.now);
        let in_line = turns.in_line;
        match limits.ask(Asking { shard, way, bytes, in_line, now }) {
            Ok(()) => Leave::Given,
            Err(short) => {
                if waits {
                    turns.lacking = turns.lacking.and(short.of);
                }
                let until = self.limited_until.map_or(short.until, |other| other.min(short.until));
                self.limited_until = Some(until);
                Leave::Denied
            }
        }
    }

    /// A command goes ahead that was subject to limits: it pays.
    pub(super) fn pay_limits(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(id) else { return };
        request.limited = false;
        let (device, way, bytes) = (request.device, request.way(), request.length);
        let waited = (request.stage == Stage::Buffer).then(|| self.now.since(request.since));
        let Some(queue) = self.queues.get_mut(request.queue) else { return };
        let Some(key) = device else { return };
        let Some(backend) = self.subsystems.backends.get_mut(key) else { return };
        let (limits, turns) = (&backend.limits, &mut backend.turns);
        if let Some(waited) = waited {
            backend.counters.held_back(waited);
        }
        if !limits.is_on() {
            return;
        }
        let cost = limits.spend(self.index, way, bytes);
        let lane = lane(limits, way);
        let start = queue.waiting.paid(device, lane).max(turns.level(lane));
        turns.raise(lane, start);
        turns.served = Some(self.round);
        queue.waiting.pay(device, lane, start.saturating_add(cost));
    }

    /// Begins what a visit to the ring finds out about limits.
    pub(super) fn forget_limits(&mut self) {
        self.limited_until = None;
    }

    /// After a round of the ring: where nobody at the level could use what there is, those ahead have their turn.
    /// Whether there are any.
    pub(super) fn raise_levels(&mut self) -> bool {
        let mut raised = false;
        while let Some(key) = self.limited.pop() {
            let Some(backend) = self.subsystems.backends.get_mut(key) else { continue };
            let (limits, turns) = (&backend.limits, &mut backend.turns);
            let (lacking, ahead) =
                (std::mem::take(&mut turns.lacking), std::mem::take(&mut turns.ahead));
            turns.noted = false;
            if turns.served == Some(self.round) {
                raised = true;
                continue;
            }
            let mut next: [Option<u64>; Way::ALL.len()] = [None; Way::ALL.len()];
            for (way, ahead) in Way::ALL.into_iter().zip(ahead) {
                if let Some(ahead) = ahead
                    && !limits.applying(way).meets(lacking)
                    && let Some(next) = next.get_mut(lane(limits, way))
                {
                    *next = Some(next.map_or(ahead, |other| other.min(ahead)));
                }
            }
            for (lane, next) in next.into_iter().enumerate() {
                if let Some(next) = next {
                    turns.raise(lane, next);
                    raised = true;
                }
            }
        }
        raised
    }

    /// A command joins the line of its queue; `first`: before all others.
    pub(super) fn join_line(&mut self, id: RequestId, first: bool) {
        let Some(request) = self.requests.get(id) else { return };
        let (queue_id, device, way) = (request.queue, request.device, request.line());
        let Some(queue) = self.queues.get_mut(queue_id) else { return };
        let begins = queue.waiting.is_empty_for(device, way);
        if first {
            queue.waiting.push_front(&mut self.requests, device, way, id);
        } else {
            queue.waiting.push(&mut self.requests, device, way, id);
        }
        if begins {
            self.count_line(queue_id, device, way, true);
        }
    }

    /// A command leaves the line of its queue without having had its turn.
    pub(super) fn leave_line(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(id) else { return };
        let (queue_id, device, way) = (request.queue, request.device, request.line());
        let Some(queue) = self.queues.get_mut(queue_id) else { return };
        queue.waiting.remove(&mut self.requests, device, way, id);
        self.left_line(queue_id, device, way);
    }

    /// A command has left this line: it may have been the last.
    pub(super) fn left_line(&mut self, queue: QueueId, device: Option<Key>, way: Way) {
        let record = self.queues.get(queue);
        if record.is_some_and(|queue| queue.waiting.is_empty_for(device, way)) {
            self.count_line(queue, device, way, false);
        }
    }

    fn count_line(&mut self, queue: QueueId, device: Option<Key>, way: Way, joins: bool) {
        let Some(queue) = self.queues.get(queue) else { return };
        let backend = device.and_then(|key| self.subsystems.backends.get_mut(key));
        let mut others = Way::ALL.into_iter().filter(|other| *other != way);
        let alone = others.all(|other| queue.waiting.is_empty_for(device, other));
        if let Some(backend) = backend {
            backend.turns.count(way, alone, joins);
        }
    }
}
