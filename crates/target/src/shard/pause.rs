//! Pauses: every shard holds a namespace's new commands, in order, and lets those in the device finish.
//!
//! Snapshots, resizing and handing over to another process need a moment in which nothing changes. Admin
//! commands, events and keep-alives are never held. A pause that is not ended in time ends by itself, on each
//! shard by its own clock; the shard that asked reports it as over before that.

use nvme::Nqn;

use super::Shard;
use super::backend::Pause;
use super::message::{Body, PauseKey};
use super::request::Stage;
use super::table::Key;
use crate::{Instant, RequestId};

/// A pause that this shard was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PauseId(u32);

/// What has become of a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseStatus {
    /// So many shards still have commands of the namespace in the device.
    Draining {
        /// Their number.
        shards: u16,
    },
    /// Nothing is in the device, and nothing new goes there.
    Paused,
    /// It was ended, or its deadline has passed.
    Over,
}

#[derive(Debug)]
struct Asked {
    number: u32,
    subsystem: Nqn,
    nsid: u32,
    deadline: Instant,
    waiting: u16,
}

/// The pauses that this shard was asked for.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    asked: Vec<Asked>,
    next: u32,
}

impl Shard {
    /// Pauses a namespace on all shards until [`Shard::resume`] or the deadline. A namespace that does not
    /// exist is paused at once.
    pub fn pause(&mut self, subsystem: &Nqn, nsid: u32, deadline: Instant) -> PauseId {
        let number = self.pauses.next;
        self.pauses.next = number.wrapping_add(1);
        let subsystem = subsystem.clone();
        let key = PauseKey { by: self.index, number };
        self.broadcast(|| Body::Pause { pause: key, subsystem: subsystem.clone(), nsid, deadline });
        let waiting = self.shards;
        self.pauses.asked.push(Asked { number, subsystem, nsid, deadline, waiting });
        PauseId(number)
    }

    /// What has become of a pause.
    pub fn pause_status(&self, pause: PauseId) -> PauseStatus {
        match self.pauses.asked.iter().find(|asked| asked.number == pause.0) {
            None => PauseStatus::Over,
            Some(asked) if asked.deadline <= self.now => PauseStatus::Over,
            Some(asked) if asked.waiting == 0 => PauseStatus::Paused,
            Some(asked) => PauseStatus::Draining { shards: asked.waiting },
        }
    }

    /// Ends a pause.
    pub fn resume(&mut self, pause: PauseId) {
        let Some(at) = self.pauses.asked.iter().position(|asked| asked.number == pause.0) else {
            return;
        };
        let Asked { number, subsystem, nsid, .. } = self.pauses.asked.swap_remove(at);
        let key = PauseKey { by: self.index, number };
        self.broadcast(|| Body::Resume { pause: key, subsystem: subsystem.clone(), nsid });
    }

    /// A shard wants a pause.
    pub(super) fn pause_asked(
        &mut self,
        pause: PauseKey,
        subsystem: &Nqn,
        nsid: u32,
        deadline: Instant,
    ) {
        let key = self.subsystems.backend(subsystem, nsid);
        match key.and_then(|key| self.subsystems.backends.get_mut(key)) {
            Some(backend) if deadline > self.now => {
                backend.pauses.push(Pause { key: pause, deadline, acknowledged: false });
            }
            _ => return self.send(pause.by, Body::Paused { pause }),
        }
        if let Some(key) = key {
            self.backend_settled(key);
        }
    }

    /// A shard has nothing of the namespace in the device.
    pub(super) fn paused(&mut self, pause: PauseKey) {
        let mut asked = self.pauses.asked.iter_mut();
        if let Some(asked) = asked.find(|asked| asked.number == pause.number) {
            asked.waiting = asked.waiting.saturating_sub(1);
        }
    }

    /// A shard has ended its pause.
    pub(super) fn resumed(&mut self, pause: PauseKey, subsystem: &Nqn, nsid: u32) {
        let Some(key) = self.subsystems.backend(subsystem, nsid) else { return };
        if let Some(backend) = self.subsystems.backends.get_mut(key) {
            backend.pauses.retain(|entry| entry.key != pause);
        }
        self.release_held(key);
    }

    /// Ends the pauses whose time is up.
    pub(super) fn expire_pauses(&mut self) {
        let now = self.now;
        self.pauses.asked.retain(|asked| asked.deadline > now);
        for slot in 0..self.subsystems.backends.slots() {
            let Some((key, backend)) = self.subsystems.backends.at(slot) else { continue };
            if backend.pauses.iter().all(|pause| pause.deadline > now) {
                continue;
            }
            if let Some(backend) = self.subsystems.backends.get_mut(key) {
                backend.pauses.retain(|pause| pause.deadline > now);
            }
            self.counters.pauses_expired += 1;
            self.release_held(key);
        }
    }

    /// A request waits for the end of the pause.
    pub(super) fn hold(&mut self, id: RequestId, key: Key) {
        let Some(request) = self.requests.get_mut(id) else { return };
        if request.stage == Stage::Device
            && let Some(queue) = self.queues.get_mut(request.queue)
        {
            queue.in_device = queue.in_device.saturating_sub(1);
        }
        request.stage = Stage::Held;
        request.since = self.now;
        request.backend = Some(key);
        if let Some(backend) = self.subsystems.backends.get_mut(key) {
            backend.held.push(&mut self.requests, id);
        }
    }

    /// Takes a request out of the list that it is held in.
    pub(super) fn unhold(&mut self, id: RequestId) {
        let backend = self.requests.get(id).and_then(|request| request.backend);
        if let Some(backend) = backend.and_then(|key| self.subsystems.backends.get_mut(key)) {
            backend.held.remove(&mut self.requests, id);
        }
    }

    /// Lets what was held go on, in order, unless another pause stands.
    pub(super) fn release_held(&mut self, key: Key) {
        let Some(backend) = self.subsystems.backends.get_mut(key) else { return };
        if backend.is_paused() {
            return;
        }
        let mut held = std::mem::take(&mut backend.held);
        while let Some(id) = held.pop(&mut self.requests) {
            self.drive(id);
        }
    }

    /// Something of this backend has ended: tells whoever waits for it to be empty.
    pub(super) fn backend_settled(&mut self, key: Key) {
        let Some(backend) = self.subsystems.backends.get_mut(key) else { return };
        if backend.in_flight > 0 {
            return;
        }
        let waiting: Vec<PauseKey> = backend
            .pauses
            .iter_mut()
            .filter(|pause| !pause.acknowledged)
            .map(|pause| {
                pause.acknowledged = true;
                pause.key
            })
            .collect();
        for pause in waiting {
            self.send(pause.by, Body::Paused { pause });
        }
        self.forget_retired(key);
    }
}
