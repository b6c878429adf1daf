//! One connection of a host.
//!
//! ```text
//!   Unconnected --Connect--> Connecting --> Admin | Io --+--> (we end it) closing --+--> gone
//!        ^                        |                      |                          |    |
//!        +---- refused -----------+                      +----- (it breaks) --------+    +--> freed
//! ```
//!
//! `gone`: the transport has closed the connection. The record stays until the block operations that its
//! commands started have come back, so that it can be told who still has writes under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::command_table::CommandTable;
use super::hosts::Hosts;
use super::pledges::{Pledge, Pledges};
use super::request::Requests;
use super::table::{Key, Table};
use super::waiting::Waiting;
use crate::configuration::ListenerId;
use crate::{DisconnectReason, Instant, PortId, QueueId, QueueInfo, RequestId};

/// The shard's queues.
pub(crate) type Queues = Table<QueueId, Queue>;

/// What a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// No Connect yet.
    Unconnected,
    /// This Connect is being decided.
    Connecting {
        /// The Connect.
        request: RequestId,
        /// The controller whose owner was asked for an I/O queue; None for an admin queue.
        io: Option<(u16, u16)>,
    },
    /// The admin queue of a controller of this shard.
    Admin {
        /// The controller.
        cntlid: u16,
    },
    /// An I/O queue of a controller of any shard.
    Io {
        /// The controller.
        cntlid: u16,
        /// The queue's number there.
        qid: u16,
        /// The subsystem, in this shard's table.
        subsystem: Key,
    },
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) port: PortId,
    pub(crate) info: QueueInfo,
    pub(crate) role: Role,
    /// The listener that its controller's host connected to, if it is known.
    pub(crate) listener: Option<ListenerId>,
    /// Entries of the submission queue; commands outstanding never exceed it.
    pub(crate) entries: u16,
    pub(crate) sqhd: u16,
    /// The host is told SQHD.
    pub(crate) flow_control: bool,
    pub(crate) commands: CommandTable,
    /// The latest of all its requests, answered or not.
    pub(crate) requests: Option<RequestId>,
    /// How many those are.
    pub(crate) slots: u32,
    /// Of those, how many have block operations out.
    pub(crate) in_device: u32,
    /// Data that it owes, and what is set aside for it meanwhile.
    pub(crate) pledge: Pledge,
    /// Requests that wait for a buffer.
    pub(crate) waiting: Waiting,
    /// It is in the shard's ring of queues with such requests.
    pub(crate) in_ring: bool,
    /// Whose it is, in the shard's table of hosts.
    pub(crate) host: Key,
    /// Bytes of the pool that its requests hold.
    pub(crate) charged: usize,
    /// A command was refused and [`Action::Resume`](crate::Action::Resume) is owed.
    pub(crate) stalled: bool,
    /// The device that the command was for, if it was refused because of that.
    pub(crate) stalled_by: Option<Key>,
    /// We have asked the transport to close it.
    pub(crate) closing: Option<DisconnectReason>,
    /// The transport has closed it.
    pub(crate) gone: bool,
    /// Writes in the device were given up waiting for; the namespace is fenced.
    pub(crate) written_off: bool,
    /// When the owner of its controller was last told of a failed command.
    pub(crate) reported_failure: Option<Instant>,
    /// When it took its role, or when it went.
    pub(crate) since: Instant,
    pub(crate) share: Arc<QueueShare>,
}

impl Queue {
    pub(crate) fn new(port: PortId, info: QueueInfo, host: Key, now: Instant) -> Self {
        Self {
            port,
            info,
            role: Role::Unconnected,
            listener: None,
            entries: 1,
            sqhd: 0,
            flow_control: true,
            // Only the Connect: the real table is made when the size is known.
            commands: CommandTable::new(1),
            requests: None,
            slots: 0,
            in_device: 0,
            pledge: Pledge::default(),
            waiting: Waiting::default(),
            in_ring: false,
            host,
            charged: 0,
            stalled: false,
            stalled_by: None,
            closing: None,
            gone: false,
            written_off: false,
            reported_failure: None,
            since: now,
            share: Arc::default(),
        }
    }

    /// Whether commands are still carried out and answered on it.
    pub(crate) fn is_live(&self) -> bool {
        !self.gone && self.closing.is_none()
    }

    /// Whether there is a request slot for another command of it.
    ///
    /// One of its own entries, and one that need not be kept for others. An answer holds its slot until the
    /// transport has sent it; so that a host that reads no answers does not pile them up, a queue may
    /// have twice its entries in all, and a host three quarters of the slots over all its queues, with an eighth
    /// more on admin queues. All connections without a name together have an eighth. A queue that owes data
    /// has to be read on, whatever the shares: the data may stand behind other commands.
    pub(crate) fn has_room(&self, requests: &Requests, hosts: &Hosts, pledges: &Pledges) -> bool {
        let all = requests.free().saturating_add(requests.len());
        if self.is_io() && self.pledge.is_owing() {
            return !self.commands.is_full() && requests.free() > 0;
        }
        let share = match self.role {
            Role::Io { .. } => all - all / 4,
            Role::Admin { .. } => all - all / 8,
            Role::Unconnected | Role::Connecting { .. } => all / 8,
        };
        !self.commands.is_full()
            && self.slots < 2 * u32::from(self.entries)
            && hosts.slots(self.host) < share
            && requests.free() > self.slots_kept(all, pledges)
    }

    /// How many of the shard's request slots it has to leave free. The last thirty-second is for admin
    /// queues alone, so that keep-alives pass however busy everybody else is; the one before that is for
    /// them and for new connections.
    fn slots_kept(&self, requests: u32, pledges: &Pledges) -> u32 {
        match self.role {
            Role::Admin { .. } => 0,
            Role::Unconnected | Role::Connecting { .. } => requests / 32,
            Role::Io { .. } => pledges.kept(requests).max(requests / 16),
        }
    }

    /// Entries that its host may still use.
    pub(crate) fn entries_left(&self) -> u32 {
        u32::from(self.entries).saturating_sub(self.commands.len())
    }

    /// How many bytes of the pool it has to leave free, likewise.
    pub(crate) fn memory_kept(&self, capacity: usize) -> usize {
        match self.role {
            Role::Admin { .. } => 0,
            Role::Unconnected | Role::Connecting { .. } => capacity / 32,
            Role::Io { .. } => capacity / 16,
        }
    }

    /// Whether it is an I/O queue.
    pub(crate) fn is_io(&self) -> bool {
        matches!(self.role, Role::Io { .. })
    }

    /// SQHD for the next completion.
    pub(crate) fn advance_sqhd(&mut self) -> u16 {
        if !self.flow_control {
            return nvme::command::SQHD_NO_FLOW_CONTROL;
        }
        self.sqhd = match self.sqhd.checked_add(1) {
            Some(next) if next < self.entries => next,
            _ => 0,
        };
        self.sqhd
    }

    /// Links a new request into the list of all.
    pub(crate) fn link(&mut self, requests: &mut Requests, id: RequestId) {
        let next = self.requests.replace(id);
        if let Some(request) = requests.get_mut(id) {
            request.next = next;
            request.previous = None;
        }
        if let Some(next) = next.and_then(|next| requests.get_mut(next)) {
            next.previous = Some(id);
        }
        self.slots += 1;
    }

    /// Takes one out of the list of all.
    pub(crate) fn unlink(&mut self, requests: &mut Requests, id: RequestId) {
        let Some((previous, next)) =
            requests.get_mut(id).map(|request| (request.previous.take(), request.next.take()))
        else {
            return;
        };
        match previous.and_then(|previous| requests.get_mut(previous)) {
            Some(previous) => previous.next = next,
            None => self.requests = next,
        }
        if let Some(next) = next.and_then(|next| requests.get_mut(next)) {
            next.previous = previous;
        }
        self.slots = self.slots.saturating_sub(1);
    }
}

/// What the shard of a queue and the owner of its controller both look at. Each field has one writer, so
/// relaxed loads and stores are all it takes: no read-modify-write, no lock, no message per command.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct QueueShare {
    /// When the last command arrived, in nanoseconds; written by the queue's shard.
    last_command: AtomicU64,
    /// A command is outstanding; written by the queue's shard.
    busy: AtomicBool,
    /// Commands that read, and 512-byte units that they read; written by the queue's shard.
    reads: AtomicU64,
    units_read: AtomicU64,
    /// The same of commands that write.
    writes: AtomicU64,
    units_written: AtomicU64,
    /// Commands that failed because of the medium; written by the queue's shard.
    media_errors: AtomicU64,
    /// The host has turned the volatile write cache off; written by the owner of the controller.
    write_through: AtomicBool,
}

/// Adds to a counter that nobody else writes.
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// The counters of a [`QueueShare`], or of several of them together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Commands that read.
    pub reads: u64,
    /// Units of 512 bytes read.
    pub units_read: u64,
    /// Commands that wrote.
    pub writes: u64,
    /// Units of 512 bytes written.
    pub units_written: u64,
    /// Commands that failed because of the medium.
    pub media_errors: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.reads = self.reads.wrapping_add(other.reads);
        self.units_read = self.units_read.wrapping_add(other.units_read);
        self.writes = self.writes.wrapping_add(other.writes);
        self.units_written = self.units_written.wrapping_add(other.units_written);
        self.media_errors = self.media_errors.wrapping_add(other.media_errors);
    }
}

impl QueueShare {
    pub(crate) fn command_arrived(&self, now: Instant) {
        self.last_command.store(now.as_nanos(), Ordering::Relaxed);
    }

    pub(crate) fn last_command(&self) -> Instant {
        Instant::from_nanos(self.last_command.load(Ordering::Relaxed))
    }

    pub(crate) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    pub(crate) fn count_read(&self, bytes: u32) {
        add(&self.reads, 1);
        add(&self.units_read, u64::from(bytes / 512));
    }

    pub(crate) fn count_write(&self, bytes: u32) {
        add(&self.writes, 1);
        add(&self.units_written, u64::from(bytes / 512));
    }

    pub(crate) fn count_media_error(&self) {
        add(&self.media_errors, 1);
    }

    pub(crate) fn traffic(&self) -> Traffic {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            reads: load(&self.reads),
            units_read: load(&self.units_read),
            writes: load(&self.writes),
            units_written: load(&self.units_written),
            media_errors: load(&self.media_errors),
        }
    }

    pub(crate) fn set_write_through(&self, on: bool) {
        self.write_through.store(on, Ordering::Relaxed);
    }

    pub(crate) fn write_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed)
    }
}
