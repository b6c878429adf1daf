//! Devices that nothing may be written to, because an operation of a host that is gone is still in them.
//!
//! Such an operation holds up its host's next Connect, up to a bound. Then its device is fenced on every shard:
//! commands are refused with a retryable status until the operation has come back after all, so that nothing which
//! the old write could overwrite is written meanwhile; and the host gets its other namespaces. The fence is
//! acknowledged by all shards before the queue is forgotten.
//!
//! It is the device that is fenced, whichever namespace it stands behind: taking the namespace away and adding it
//! again, here or elsewhere, does not get round it.

use std::fmt;
use std::sync::Arc;

use block::BlockDevice;

use super::Shard;
use super::message::Body;
use super::queue::Role;
use super::request::Stage;
use crate::configuration::Namespace;
use crate::{QueueId, ShardIndex};

/// A device; equal if it is the very same.
#[derive(Clone)]
pub(crate) struct Device(Arc<dyn BlockDevice>);

impl Device {
    fn of(namespace: &Namespace) -> Option<Self> {
        namespace.device().map(|device| Self(Arc::clone(device)))
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

/// A fence that a dead queue of this shard needs.
#[derive(Debug)]
pub(crate) struct Fence {
    number: u64,
    queue: QueueId,
    device: Device,
    /// Shards that have not acknowledged.
    waiting: u16,
}

/// The fences of a shard.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    /// Those that its own dead queues need.
    needed: Vec<Fence>,
    number: u64,
    /// Devices fenced here, once for each queue of any shard that needs it.
    raised: Vec<Device>,
}

impl Fences {
    /// How many queues need this namespace's device fenced.
    pub(super) fn count(&self, namespace: &Namespace) -> u32 {
        let count = Device::of(namespace)
            .map_or(0, |device| self.raised.iter().filter(|raised| **raised == device).count());
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn has(&self, queue: QueueId) -> bool {
        self.needed.iter().any(|fence| fence.queue == queue)
    }
}

impl Shard {
    /// Fences the devices in which a queue that died long ago still has operations.
    pub(super) fn fence_overdue(&mut self) {
        let limit = self.limits.fence_after;
        let overdue: Vec<QueueId> = self
            .queues
            .iter()
            .filter(|(id, queue)| {
                !queue.is_live()
                    && queue.in_device > 0
                    && !queue.written_off
                    && self.now.since(queue.since) >= limit
                    && !self.fences.has(*id)
            })
            .map(|(id, _)| id)
            .collect();
        for queue in overdue {
            self.fence(queue);
        }
    }

    fn fence(&mut self, queue: QueueId) {
        let mut devices: Vec<Device> = Vec::new();
        let mut next = self.queues.get(queue).and_then(|queue| queue.requests);
        while let Some(request) = next.and_then(|id| self.requests.get(id)) {
            next = request.next;
            let backend = request.backend.filter(|_| request.stage == Stage::Device);
            let backend = backend.and_then(|key| self.subsystems.backends.get(key));
            let Some(device) = backend.and_then(|backend| Device::of(&backend.namespace)) else {
                continue;
            };
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        for device in devices {
            tracing::error!(
                ?device,
                "device fenced: it holds operations of a host that is gone; \
                 check it, it is served again when they finish"
            );
            self.counters.fences += 1;
            self.fences.number += 1;
            let number = self.fences.number;
            let waiting = self.shards;
            self.fences.needed.push(Fence { number, queue, device: device.clone(), waiting });
            self.broadcast(|| Body::Fence { device: device.clone(), number });
        }
    }

    /// A shard asks for a fence.
    pub(super) fn raise_fence(&mut self, from: ShardIndex, device: Device, number: u64) {
        self.fences.raised.push(device);
        self.refresh_fences();
        self.send(from, Body::Fenced { number });
    }

    /// A shard needs its fence no longer.
    pub(super) fn lower_fence(&mut self, device: &Device) {
        if let Some(at) = self.fences.raised.iter().position(|raised| raised == device) {
            self.fences.raised.swap_remove(at);
        }
        self.refresh_fences();
    }

    fn refresh_fences(&mut self) {
        for backend in self.subsystems.backends.values_mut() {
            backend.fences = self.fences.count(&backend.namespace);
        }
    }

    /// A shard has put up a fence of ours.
    pub(super) fn fenced(&mut self, number: u64) {
        let mut needed = self.fences.needed.iter_mut();
        let Some(fence) = needed.find(|fence| fence.number == number) else { return };
        fence.waiting = fence.waiting.saturating_sub(1);
        let queue = fence.queue;
        let mut of_queue = self.fences.needed.iter().filter(|fence| fence.queue == queue);
        if !of_queue.all(|fence| fence.waiting == 0) {
            return;
        }
        let Some(record) = self.queues.get_mut(queue) else { return };
        record.written_off = true;
        let role = std::mem::replace(&mut record.role, Role::Unconnected);
        self.detach(queue, role);
        self.answer_questions();
    }

    /// A queue has gone at last, and its fences with it.
    pub(super) fn lift_fences(&mut self, queue: QueueId) {
        while let Some(at) = self.fences.needed.iter().position(|fence| fence.queue == queue) {
            let Fence { device, .. } = self.fences.needed.swap_remove(at);
            tracing::info!(?device, "device served again");
            self.broadcast(|| Body::Unfence { device: device.clone() });
        }
    }
}
