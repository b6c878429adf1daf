//! A controller: what the host's admin queue talks to, on the shard that owns it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nvme::identify::ControllerType;
use nvme::register::{Configuration, ControllerStatus, ShutdownStatus};

use super::event::Events;
use super::message::Host;
use super::queue::{QueueShare, Traffic};
use super::table::Key;
use super::{Shard, message::Body};
use crate::configuration::{ListenerId, Subsystem, View};
use crate::feature::Features;
use crate::log_page::{ChangedNamespaces, ErrorLog};
use crate::{DisconnectReason, Instant, QueueId, ShardIndex};

/// What a controller is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The discovery subsystem.
    Discovery,
    /// An NVM subsystem, by its place in the shard's table.
    Nvm(Key),
}

impl Kind {
    /// As Identify reports it.
    pub(crate) fn controller_type(self) -> ControllerType {
        match self {
            Self::Discovery => ControllerType::Discovery,
            Self::Nvm(_) => ControllerType::Io,
        }
    }
}

/// An I/O queue of a controller, wherever it is.
#[derive(Debug)]
pub(crate) struct IoQueue {
    pub(crate) shard: ShardIndex,
    pub(crate) queue: QueueId,
    pub(crate) share: Arc<QueueShare>,
    /// It has been told to end.
    pub(crate) dropping: bool,
}

/// Why the I/O queues of a controller are being ended, and what happens when the last is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// CC.EN went to 0: CSTS.RDY follows.
    Reset,
    /// CC.SHN was set: CSTS.SHST says complete.
    Shutdown,
    /// The controller itself goes.
    Dead,
}

/// A controller.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) kind: Kind,
    pub(crate) host: Host,
    pub(crate) admin: QueueId,
    /// The listener that the host connected to, if it is known.
    pub(crate) listener: Option<ListenerId>,
    /// Of the admin queue.
    pub(crate) share: Arc<QueueShare>,
    pub(crate) io_queues: BTreeMap<u16, IoQueue>,
    /// Traffic of I/O queues that are gone.
    pub(crate) past: Traffic,
    pub(crate) cc: Configuration,
    pub(crate) csts: ControllerStatus,
    pub(crate) ending: Option<Ending>,
    pub(crate) features: Features,
    pub(crate) events: Events,
    pub(crate) changed: ChangedNamespaces,
    /// How often its ANA log page has changed since it was reset.
    pub(crate) ana_changes: u64,
    pub(crate) errors: ErrorLog,
    /// How long I/O commands of it have been outstanding, as far as samples tell.
    pub(crate) busy: Duration,
    /// Aborts whose outcome another shard has yet to tell.
    pub(crate) aborts: u32,
    /// When it was made.
    pub(crate) since: Instant,
}

impl Controller {
    /// Whether admin and I/O commands are carried out.
    pub(crate) fn is_ready(&self) -> bool {
        self.cc.en
            && self.csts.rdy
            && !self.csts.cfs
            && self.csts.shst == ShutdownStatus::Normal
            && self.ending.is_none()
    }

    /// When any of its queues saw a command last.
    pub(crate) fn last_command(&self) -> Instant {
        let queues = self.io_queues.values().map(|queue| queue.share.last_command());
        queues.fold(self.share.last_command(), Instant::max)
    }

    /// What all its queues have done.
    pub(crate) fn traffic(&self) -> Traffic {
        let mut traffic = self.past;
        for queue in self.io_queues.values() {
            traffic += queue.share.traffic();
        }
        traffic
    }

    /// Whether an I/O command of it is outstanding.
    pub(crate) fn is_busy(&self) -> bool {
        self.io_queues.values().any(|queue| queue.share.is_busy())
    }

    /// Its subsystem as its host sees it.
    pub(crate) fn view<'a>(&'a self, subsystem: &'a Subsystem) -> View<'a> {
        View { subsystem, host: &self.host.nqn, listener: self.listener }
    }

    /// How long it has been there.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.since(self.since)
    }
}

impl Shard {
    /// Ends all I/O queues of a controller; what follows depends on `ending`.
    pub(super) fn end_io_queues(&mut self, cntlid: u16, ending: Ending, reason: DisconnectReason) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        if controller.ending == Some(Ending::Dead) {
            return;
        }
        controller.ending = Some(ending);
        let mut drops = Vec::with_capacity(controller.io_queues.len());
        for queue in controller.io_queues.values_mut().filter(|queue| !queue.dropping) {
            queue.dropping = true;
            drops.push((queue.shard, queue.queue));
        }
        for (shard, queue) in drops {
            self.send(shard, Body::Drop { queue, reason });
        }
        self.ended(cntlid);
    }

    /// Ends a controller with all its queues.
    pub(super) fn kill_controller(&mut self, cntlid: u16, reason: DisconnectReason) {
        let Some(controller) = self.controllers.get(&cntlid) else { return };
        let admin = controller.admin;
        let io = match reason {
            DisconnectReason::Configuration | DisconnectReason::KeepAlive => reason,
            _ => DisconnectReason::ControllerGone,
        };
        self.end_queue(admin, reason);
        self.end_io_queues(cntlid, Ending::Dead, io);
    }

    /// An I/O queue is no more, and nothing of it is in a device.
    pub(super) fn detached(&mut self, from: ShardIndex, cntlid: u16, qid: u16, queue: QueueId) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        let matches = controller
            .io_queues
            .get(&qid)
            .is_some_and(|entry| entry.shard == from && entry.queue == queue);
        if !matches {
            return;
        }
        if let Some(entry) = controller.io_queues.remove(&qid) {
            controller.past += entry.share.traffic();
        }
        self.ended(cntlid);
    }

    /// If the last I/O queue of an ending controller is gone: what was to follow.
    fn ended(&mut self, cntlid: u16) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        if !controller.io_queues.is_empty() {
            return;
        }
        match controller.ending {
            None => {}
            Some(Ending::Dead) => {
                let kind = controller.kind;
                self.controllers.remove(&cntlid);
                if let Some(own) = self.subsystems.controllers_mut(kind) {
                    own.remove(&cntlid);
                }
                self.answer_questions();
            }
            Some(Ending::Reset) => {
                controller.ending = None;
                controller.csts = ControllerStatus::default();
                controller.features.reset();
                self.answer_questions();
            }
            Some(Ending::Shutdown) => {
                controller.ending = None;
                controller.csts.shst = ShutdownStatus::Complete;
                self.answer_questions();
            }
        }
    }
}
