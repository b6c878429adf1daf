//! Reads that are answered from the memory their device consists of: no buffer, no copy.
//!
//! The device lends what was read as a lease, which the request holds until the transport has let go, just as it would hold
//! its buffer. Everything else about such a command is as ever: limits, pauses, fences, shares of slots. It takes
//! nothing of the pool, so an empty one does not hold it up.
//!
//! Where something is being written, or a write waits for earlier leases, the device does not lend: the command then gets a
//! buffer like any other. So a write waits for the leases that there were when it came and for no others.
//!
//! **How long that is** is bounded by whoever sends. A host that takes nothing any more would keep what it was lent until its
//! connection is given up; so it can be asked back: [`Shard::give_back`] copies it into a buffer of the pool. For
//! that, what is lent counts in the shares of its queue and its host like a buffer, and only the pool has to have it.

use block::Kind;
use memory::Segment;

use super::Shard;
use super::request::{Stage, Task};
use super::table::Key;
use crate::{Borrows, RequestId};

/// What has become of the memory that a command was lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// It has none.
    None,
    /// It keeps it: nobody wants it, or the pool has no room for a copy now.
    Kept,
    /// It has been copied.
    GivenBack,
}

/// What requests have been lent, by their slots. In the [`Request`](super::request::Request) itself it would be written and
/// copied with every command, lent or not.
#[derive(Debug)]
pub(crate) struct Lent(Box<[Option<Segment>]>);

impl Lent {
    /// For so many requests.
    pub(super) fn new(requests: u32) -> Self {
        Self((0..requests).map(|_| None).collect())
    }

    pub(super) fn get(&self, id: RequestId) -> Option<&Segment> {
        self.0.get(usize::try_from(id.slot).ok()?)?.as_ref()
    }

    pub(super) fn put(&mut self, id: RequestId, segment: Segment) {
        let slot = usize::try_from(id.slot).unwrap_or(usize::MAX);
        if let Some(place) = self.0.get_mut(slot) {
            *place = Some(segment);
        }
    }

    /// Nothing is lent to the request any more.
    pub(super) fn end(&mut self, id: RequestId) {
        let slot = usize::try_from(id.slot).unwrap_or(usize::MAX);
        if let Some(place) = self.0.get_mut(slot) {
            *place = None;
        }
    }
}

impl Shard {
    /// Finds out whether the command is to be lent what it reads.
    pub(super) fn note_borrower(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(id) else { return };
        let Task::Operation(operation) = request.task else { return };
        if operation.kind != Kind::Read {
            return;
        }
        let Some(queue) = self.queues.get(request.queue) else { return };
        let backend = request.device.and_then(|key| self.subsystems.backends.get(key));
        let Some(medium) = backend.and_then(|backend| backend.medium.as_ref()) else { return };
        request.borrows = match queue.info.borrows {
            Borrows::Nothing => false,
            Borrows::Registered(device) => medium.key(device).is_some(),
            Borrows::Anything => true,
        };
    }

    /// Its device does not lend what it asked for: it is read into a buffer after all.
    pub(super) fn not_lent(&mut self, id: RequestId, key: Key) {
        self.counters.not_lent += 1;
        if let Some(backend) = self.subsystems.backends.get(key) {
            backend.counters.taken_back();
        }
        let Some(request) = self.requests.get_mut(id) else { return };
        request.borrows = false;
        if request.give_up.is_some() {
            return self.go_on(id);
        }
        request.stage = Stage::New;
        let queue = request.queue;
        self.release_buffer(id);
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.in_device = queue.in_device.saturating_sub(1);
        }
        self.seek_buffer(id);
    }

    /// Ends the lease of a command whose answer has not been sent, if a write waits for it, by copying what was lent into a
    /// buffer. Segments that the transport has of it keep the lease: it asks for them anew.
    pub fn give_back(&mut self, id: RequestId) -> Lease {
        let Some(request) = self.requests.get_mut(id) else { return Lease::None };
        let Some(lent) = self.lent.get(id) else { return Lease::None };
        let queue = self.queues.get(request.queue).filter(|_| lent.is_wanted());
        let Some(queue) = queue else { return Lease::Kept };
        // Those who wait for memory go first, and what is kept for others is kept.
        let charge = usize::try_from(request.charge).unwrap_or(usize::MAX);
        let kept = queue.memory_kept(self.pool.capacity());
        if self.dry || charge.saturating_add(kept) > self.pool.available() {
            return Lease::Kept;
        }
        let Some(mut buffer) = self.pool.take(lent.len()) else { return Lease::Kept };
        let copied = buffer.bytes_mut().map_or(0, |bytes| lent.copy_to(0, bytes));
        if copied != lent.len() {
            return Lease::Kept;
        }
        request.buffer = Some(buffer);
        request.borrows = false;
        self.lent.end(id);
        let backend = request.device.and_then(|key| self.subsystems.backends.get_mut(key));
        if let Some(backend) = backend {
            backend.lent = backend.lent.saturating_sub(charge);
            backend.charged = backend.charged.saturating_add(charge);
        }
        self.counters.given_back += 1;
        Lease::GivenBack
    }
}
