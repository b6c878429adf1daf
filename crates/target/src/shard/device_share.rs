//! What one device may hold of the pool and of the request slots, so that a slow one delays no other.
//!
//! A device that hangs keeps the buffers and slots of its commands. It may therefore hold as much as it leaves
//! free for I/O, and no more: one such device ends with half, a second with half of the rest, and there is always
//! something for the next. As long as an eighth of the pool is free besides:
//!
//! * data in a capsule, behind which nothing on its connection can be read, and the commands of a host that
//!   holds little, which another may have forestalled, go past their device's share;
//! * a command for a device that holds little goes past the shares of its queue and its host, which may be
//!   stuck in another.
//!
//! The first command in the ring that only its device's share keeps back is the next one to be served for that
//! device, as with the pool itself: large transfers are not starved by small ones.
//!
//! Where slots are at stake, a connection whose next command is for such a device is not read on, unless its host
//! holds few; connections that leave the device alone are.
//!
//! Rejected: a fixed part for each device, since a node has one or a thousand.

use nvme::Sqe;

use super::Shard;
use super::queue::{Queue, Role};
use super::request::{Request, Task};
use super::table::Key;
use crate::RequestId;

/// What is little: this part of the pool.
const LITTLE: usize = 32;

/// The part of the pool that must be free for anybody to go past a share.
const SPARE: usize = 8;

/// How a buffer fits the share of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeviceShare {
    /// The device holds so little that the shares of others do not count.
    Little,
    /// Nothing stands against it; or there is no device.
    Within,
    /// It has to wait, or another has been waiting for its share of this device.
    Beyond,
}

impl Shard {
    /// The namespace that an I/O command on this queue names.
    fn device_of(&self, queue: &Queue, sqe: &Sqe) -> Option<Key> {
        let Role::Io { subsystem, .. } = queue.role else { return None };
        self.subsystems.get(subsystem)?.backend(sqe.nsid.get())
    }

    /// From now on the request counts against its device's share, and is subject to its limits if they concern it.
    pub(super) fn charge_device(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(id) else { return };
        let Some(queue) = self.queues.get(request.queue) else { return };
        let device = self.device_of(queue, &request.sqe);
        let backend = device.and_then(|key| self.subsystems.backends.get_mut(key));
        let mut limited = false;
        if let Some(backend) = backend {
            backend.slots = backend.slots.saturating_add(1);
            limited = backend.limits.is_on();
        }
        if let Some(request) = self.requests.get_mut(id) {
            request.device = device;
            request.limited = limited && matches!(request.task, Task::Operation(_));
        }
    }

    /// A request of this device has given everything back.
    pub(super) fn discharge_device(&mut self, device: Option<Key>) {
        if let Some(backend) = device.and_then(|key| self.subsystems.backends.get_mut(key)) {
            backend.slots = backend.slots.saturating_sub(1);
        }
    }

    /// The device, if any, that keeps this command from being taken now.
    pub(super) fn crowded_device(&self, queue: &Queue, sqe: &Sqe) -> Option<Key> {
        // No device can have that many.
        if self.requests.len() <= self.slots_for_io() {
            return None;
        }
        self.device_of(queue, sqe).filter(|key| self.is_kept_out(queue, *key))
    }

    /// Whether this queue waits because the device holds more slots than it leaves free for I/O.
    pub(super) fn is_kept_out(&self, queue: &Queue, device: Key) -> bool {
        let Some(backend) = self.subsystems.backends.get(device) else { return false };
        let left = self.slots_for_io();
        let all = self.requests.free().saturating_add(self.requests.len());
        let part = |of: usize| all / u32::try_from(of).unwrap_or(u32::MAX);
        let modest = self.hosts.slots(queue.host) < part(LITTLE) && left >= part(SPARE);
        // A queue that owes data is read on, whatever it waits for.
        backend.slots > left && !modest && !queue.pledge.is_owing()
    }

    fn slots_for_io(&self) -> u32 {
        let free = self.requests.free();
        let all = free.saturating_add(self.requests.len());
        free.saturating_sub(self.pledges.kept(all).max(all / 16))
    }

    /// How another `charge` bytes fit the share of the request's device.
    pub(super) fn device_share(&self, request: &Request, charge: usize) -> DeviceShare {
        let backend = request.device.and_then(|key| self.subsystems.backends.get(key));
        let Some(backend) = backend else { return DeviceShare::Within };
        let (capacity, available) = (self.pool.capacity(), self.pool.available());
        if request.borrows {
            // Of the pool it takes nothing; but past the shares of others it goes only with little.
            let held = backend.lent.saturating_add(charge);
            let little = backend.lent == 0 || held <= capacity / LITTLE;
            return if little { DeviceShare::Little } else { DeviceShare::Within };
        }
        let held = backend.charged.saturating_add(charge);
        let spare = available.saturating_sub(charge) >= capacity / SPARE;
        if spare && (backend.charged == 0 || held <= capacity / LITTLE) {
            return DeviceShare::Little;
        }
        let fits = backend.charged == 0 || held <= available.saturating_sub(capacity / 16);
        let queue = self.queues.get(request.queue);
        let of_host = queue.map_or(0, |queue| self.hosts.charged(queue.host));
        let modest = of_host == 0 || of_host.saturating_add(charge) <= capacity / LITTLE;
        let goes_past = spare && (request.in_capsule || modest);
        if goes_past || fits && backend.crowded_in != Some(self.round) {
            DeviceShare::Within
        } else {
            DeviceShare::Beyond
        }
    }
}
