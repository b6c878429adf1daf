//! Room that is promised to queues whose data comes behind their commands.
//!
//! A connection is read in order. When a command finds no request slot, or waits with data in its capsule for a
//! buffer, the transport stops reading its connection; and behind that command may be the very data that
//! earlier commands of the queue hold their buffers for. If enough queues stood like this, each would wait for
//! memory or slots that the others hold, for ever. So:
//!
//! * A queue is asked for data only when slots for the rest of its entries are set aside for it; as long as it
//!   owes data, they are its own. Others leave enough free for the deepest queue, so that there is always one
//!   that can be asked.
//! * What is set aside counts as its host's, which may have three quarters of all: a host whose data never comes
//!   leaves slots for every other.
//! * A command with data in its capsule, on a queue that owes data, is *urgent*: it goes before all others,
//!   whatever the shares, and a part of the pool is never given to commands whose data is still to be asked for.
//!   What it gets comes back without anything more being read.
//!
//! Found by simulation. Rejected: reading on and keeping refused capsules elsewhere, which moves the
//! bound to a place where it is larger.

use super::hosts::Hosts;
use super::queue::Queue;
use super::request::{Request, Requests};

/// Slots set aside on this shard.
#[derive(Debug, Default)]
pub(crate) struct Pledges {
    slots: u32,
    /// Entries of the deepest I/O queue that there has been.
    deepest: u32,
}

/// The part of a queue.
#[derive(Debug, Default)]
pub(crate) struct Pledge {
    /// Requests whose data it has been asked for and not sent.
    owed: u32,
    /// Slots set aside for it.
    slots: u32,
}

impl Pledge {
    /// Whether it owes data.
    pub(crate) fn is_owing(&self) -> bool {
        self.owed > 0
    }
}

impl Pledges {
    /// An I/O queue of so many entries is there.
    pub(crate) fn admit(&mut self, entries: u16) {
        self.deepest = self.deepest.max(entries.into());
    }

    /// Slots that a queue which owes nothing leaves to others, out of `all`.
    pub(crate) fn kept(&self, all: u32) -> u32 {
        // A queue deeper than that is not helped: half of the slots stay in use.
        self.slots.saturating_add(self.deepest.min(all / 2))
    }

    /// Whether the queue may be asked for data.
    pub(crate) fn allow(&self, queue: &Queue, requests: &Requests, hosts: &Hosts) -> bool {
        let all = requests.free().saturating_add(requests.len());
        let wanted = queue.entries_left().min(all / 2);
        // One queue of a host may always be asked, or a host of few but deep queues would stand still.
        let within_share = hosts.pledged(queue.host) == 0
            || hosts.slots(queue.host).saturating_add(wanted) <= all - all / 4;
        !queue.is_io()
            || queue.pledge.is_owing()
            || within_share && requests.free() >= self.slots.saturating_add(wanted)
    }

    /// The queue is asked for data.
    pub(crate) fn begin(&mut self, queue: &mut Queue, hosts: &mut Hosts) {
        if !queue.pledge.is_owing() && queue.is_io() {
            queue.pledge.slots = queue.entries_left();
            self.slots = self.slots.saturating_add(queue.pledge.slots);
            hosts.add_pledged(queue.host, queue.pledge.slots);
        }
        queue.pledge.owed = queue.pledge.owed.saturating_add(1);
    }

    /// The data is here, or nobody waits for it any more.
    pub(crate) fn end(&mut self, queue: &mut Queue, hosts: &mut Hosts) {
        queue.pledge.owed = queue.pledge.owed.saturating_sub(1);
        if !queue.pledge.is_owing() {
            self.slots = self.slots.saturating_sub(queue.pledge.slots);
            hosts.remove_pledged(queue.host, queue.pledge.slots);
            queue.pledge.slots = 0;
        }
    }

    /// The queue has taken one of its entries.
    pub(crate) fn take(&mut self, queue: &mut Queue, hosts: &mut Hosts) {
        if queue.pledge.slots > 0 {
            queue.pledge.slots -= 1;
            self.slots = self.slots.saturating_sub(1);
            hosts.remove_pledged(queue.host, 1);
        }
    }

    /// The queue has an entry more again.
    pub(crate) fn give_back(&mut self, queue: &mut Queue, hosts: &mut Hosts) {
        if queue.pledge.is_owing() && queue.is_io() {
            queue.pledge.slots = queue.pledge.slots.saturating_add(1);
            self.slots = self.slots.saturating_add(1);
            hosts.add_pledged(queue.host, 1);
        }
    }
}

/// Whether a request's data has to be asked for.
pub(crate) fn is_asked_for(request: &Request) -> bool {
    request.from_host && !request.in_capsule
}

/// Whether a request holds up data that its own queue owes.
pub(crate) fn is_urgent(request: &Request, queue: &Queue) -> bool {
    request.in_capsule && queue.pledge.is_owing()
}
