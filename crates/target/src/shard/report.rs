//! Which controllers and queues there are, for whoever asks from outside.
//!
//! Page by page: a question costs its reactor a bounded time, however many there are, and what comes and goes between two
//! pages may be missed or not. Nothing of it is kept for the asking.

use nvme::{HostId, Nqn};

use super::Shard;
use super::controller::Kind;
use super::queue::{Queue, Role, Traffic};
use crate::QueueInfo;

/// Most entries of a page.
pub const PAGE: usize = 64;

/// A controller.
#[derive(Debug, Clone)]
pub struct ControllerReport {
    /// Its identifier, unique in the node.
    pub cntlid: u16,
    /// Its subsystem; None: discovery.
    pub subsystem: Option<Nqn>,
    /// The host's name.
    pub host: Nqn,
    /// The host's identifier.
    pub host_id: HostId,
    /// Its I/O queues.
    pub io_queues: usize,
    /// What they have done since the controller was made.
    pub traffic: Traffic,
}

/// Where a queue is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueState {
    /// Nobody has connected on it.
    Unconnected,
    /// A Connect is being decided.
    Connecting,
    /// Commands are carried out.
    Enabled,
    /// It is being ended, or waits for its last operations.
    Ending,
}

/// A queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueReport {
    /// The controller that it belongs to and its number there, 0 for the admin queue; None before its Connect.
    pub of: Option<(u16, u16)>,
    /// Where it is in its life.
    pub state: QueueState,
    /// Its entries.
    pub entries: u16,
    /// Its transport and addresses.
    pub info: QueueInfo,
}

impl From<&Queue> for QueueReport {
    fn from(queue: &Queue) -> Self {
        let (of, state) = match queue.role {
            Role::Unconnected => (None, QueueState::Unconnected),
            Role::Connecting { io, .. } => (io, QueueState::Connecting),
            Role::Admin { cntlid } => (Some((cntlid, 0)), QueueState::Enabled),
            Role::Io { cntlid, qid, .. } => (Some((cntlid, qid)), QueueState::Enabled),
        };
        let state = if queue.is_live() { state } else { QueueState::Ending };
        Self { of, state, entries: queue.entries, info: queue.info }
    }
}

/// Some of many things, and where to go on; None: these were the last.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// At most [`PAGE`] of them.
    pub items: Vec<T>,
    /// From where on there may be more.
    pub next: Option<u32>,
}

impl Shard {
    /// The controllers of this shard from this identifier on.
    pub fn controllers(&self, from: u32) -> Page<ControllerReport> {
        let Ok(from) = u16::try_from(from) else { return Page { items: Vec::new(), next: None } };
        let mut rest = self.controllers.range(from..);
        let items = rest.by_ref().take(PAGE).map(|(cntlid, controller)| ControllerReport {
            cntlid: *cntlid,
            subsystem: match controller.kind {
                Kind::Discovery => None,
                Kind::Nvm(key) => self.subsystems.get(key).map(|it| it.subsystem().nqn().clone()),
            },
            host: controller.host.nqn.clone(),
            host_id: controller.host.id,
            io_queues: controller.io_queues.len(),
            traffic: controller.traffic(),
        });
        let items = items.collect();
        Page { items, next: rest.next().map(|(cntlid, _)| (*cntlid).into()) }
    }

    /// The queues of this shard from this slot of its table on.
    pub fn queues(&self, from: u32) -> Page<QueueReport> {
        let end = from.saturating_add(u32::try_from(PAGE).unwrap_or(u32::MAX));
        let items = (from..end).filter_map(|slot| self.queues.at(slot)).map(|(_, it)| it.into());
        let items = items.collect();
        Page { items, next: (end < self.queues.slots()).then_some(end) }
    }
}
