//! Reads that are answered from the memory their device consists of: no buffer, no copy.
//!
//! The device lends what was read as a lease, which the request holds until the transport has let go, just as it would hold
//! its buffer. Everything else about such a command is as ever: limits, pauses, fences, shares of slots. It takes
//! nothing of the pool, so an empty one does not hold it up.
//!
//! Where something is being written, or a write waits for earlier leases, the device does not lend: the command then gets a
//! buffer like any other. So a write waits for the leases that there were when it came and for no others.
//!
//! **How long that is** is bounded by whoever sends. What a queue can hold is bounded by its slots, of as much as a
//! command may transfer; it is memory that is there anyway. A host that takes nothing any more keeps it until its connection
//! is given up, unless it is asked back: [`Shard::give_back`] copies what a command was lent into a buffer of
//! the pool, within the shares of its queue, host and device.

use block::Kind;
use memory::{Buffer, Segment};

use super::Shard;
use super::buffers::Attempt;
use super::request::{Stage, Task};
use super::table::Key;
use crate::{Borrows, RequestId};

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

    /// Whether nothing has to be asked for before the command is carried out: neither memory nor the leave of limits.
    pub(super) fn needs_no_leave(&self, id: RequestId) -> bool {
        let request = self.requests.get(id);
        request.is_none_or(|it| it.length == 0 || it.borrows && !it.limited)
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
        if let Some(queue) = self.queues.get_mut(request.queue) {
            queue.in_device = queue.in_device.saturating_sub(1);
        }
        self.seek_buffer(id);
    }

    /// Ends the lease of a command whose answer has not been sent, if a write waits for it, by copying what was lent into a
    /// buffer; whether it has. Segments that the transport has of it keep the lease: it asks for them anew.
    pub fn give_back(&mut self, id: RequestId) -> bool {
        let lent = self.requests.get(id).and_then(|request| request.lent.clone());
        let Some(lent) = lent else { return false };
        if !lent.is_wanted() || !self.copy_lent(id, &lent) {
            return false;
        }
        if let Some(request) = self.requests.get_mut(id) {
            request.lent = None;
        }
        self.counters.given_back += 1;
        true
    }

    /// Gets the request a buffer, unless others wait for memory, and copies what was lent into it.
    fn copy_lent(&mut self, id: RequestId, lent: &Segment) -> bool {
        if self.dry || self.take_buffer(id) != Attempt::Got {
            return false;
        }
        let request = self.requests.get_mut(id);
        let buffer = request.and_then(|request| request.buffer.as_mut());
        let bytes = buffer.and_then(Buffer::bytes_mut);
        bytes.is_some_and(|bytes| lent.copy_to(0, bytes) == lent.len())
    }
}
