//! What shards tell each other.
//!
//! Between the same two shards messages stay in order; between different pairs there is no order at
//! all, and any message may be late. What makes that safe:
//!
//! * Every queue is named by its generation and every answer by the request it is for, so a late message
//!   finds nothing and changes nothing.
//! * An I/O queue's shard says `Body::Detached` once for every `Body::Attach` it sent, whatever became
//!   of it, after the last of the queue's operations has left the device. The owner of the controller
//!   counts on nothing else: until then the queue's number is taken, a reset is not finished, and the
//!   host's next controller waits.
//! * What has to hold on all shards before something else happens (a fence before the queue that caused it
//!   is forgotten, a pause before it is reported, a configuration before its event is sent) is acknowledged
//!   by each of them.
//!
//! A question whose answer is a list (`Body::CallRoll`) does not go to all shards at once but from one to the next, each
//! adding to it, and back: nobody has to keep half an answer, and one that finds its asker gone is just dropped.
//! Rejected: a list of controllers that every shard keeps (it changes with each Connect on all shards, for a
//! command that hardly any host sends), and a bitmap that the shards share (configurations, which name
//! subsystems, are snapshots; it would have to live beside them and outlive them).
//!
//! A shard's messages to itself take the same way, so that one shard alone runs the same code as many.

use std::sync::Arc;

use nvme::{HostId, Nqn, Status};

use super::fence::Device;
use super::queue::QueueShare;
use crate::configuration::ListenerId;
use crate::log_page::Failure;
use crate::{DisconnectReason, QueueId, RequestId, ShardIndex};

/// A message from one shard to another: plain data.
#[derive(Debug)]
pub struct Message {
    pub(crate) from: ShardIndex,
    pub(crate) body: Body,
}

/// Who connects: the name that access is granted to, and the identifier that survives reconnects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Host {
    pub(crate) nqn: Nqn,
    pub(crate) id: HostId,
}

/// Names one pause: the shard that asked for it, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PauseKey {
    pub(crate) by: ShardIndex,
    pub(crate) number: u32,
}

/// What a message says.
#[derive(Debug)]
pub(crate) enum Body {
    /// To the owner of `cntlid`: may this I/O queue of mine join the controller?
    Attach(Box<Attach>),
    /// Its answer; if it may, with the listener that the controller's host connected to.
    Attached { attach: Box<Attach>, result: Result<Option<ListenerId>, Refusal> },
    /// To the owner: this queue is no more, and nothing of it is in a device (or that is fenced).
    Detached { cntlid: u16, qid: u16, queue: QueueId },
    /// To a queue's shard: end it.
    Drop { queue: QueueId, reason: DisconnectReason },
    /// To a queue's shard: abort this command, and tell the request about it.
    Abort { queue: QueueId, cid: u16, request: RequestId },
    /// The answer: whether it was aborted.
    Aborted { request: RequestId, aborted: bool },
    /// To all: say so when nothing of this host's dead queues in this subsystem is in a device.
    Quiesce { request: RequestId, host: Host, subsystem: Nqn },
    /// The answer.
    Quiet { request: RequestId },
    /// To all: the sender runs this version of the configuration.
    Configured { version: u64 },
    /// To all: writes that nobody waits for any longer are stuck in this namespace's device; serve nothing on it.
    Fence { device: Device, number: u64 },
    /// The answer: done.
    Fenced { number: u64 },
    /// To all: those writes have finished.
    Unfence { device: Device },
    /// To all: hold this namespace's commands, and say so when none is in the device.
    Pause { pause: PauseKey, subsystem: Nqn, nsid: u32, deadline: crate::Instant },
    /// The answer.
    Paused { pause: PauseKey },
    /// To all: the pause is over.
    Resume { pause: PauseKey, subsystem: Nqn, nsid: u32 },
    /// To each shard in turn: add your controllers.
    CallRoll(Box<Roll>),
    /// To the asker: all have.
    RollCalled(Box<Roll>),
    /// To the owner: commands on this queue failed; for the error log.
    Failed { cntlid: u16, failure: Failure },
}

/// See `Body::Attach`.
#[derive(Debug)]
pub(crate) struct Attach {
    pub(crate) queue: QueueId,
    pub(crate) request: RequestId,
    pub(crate) cntlid: u16,
    pub(crate) qid: u16,
    /// 0's based, as in the command.
    pub(crate) sqsize: u16,
    pub(crate) host: Host,
    pub(crate) subsystem: Nqn,
    pub(crate) share: Arc<QueueShare>,
}

/// Which controllers a subsystem has, for an Identify command.
#[derive(Debug)]
pub(crate) struct Roll {
    /// Who asks, and for which command.
    pub(crate) asker: ShardIndex,
    pub(crate) request: RequestId,
    pub(crate) subsystem: Nqn,
    /// Only controllers that see this namespace, if one is named.
    pub(crate) namespace: Option<u32>,
    /// The least identifier that is asked for.
    pub(crate) from: u16,
    /// Those found so far, ascending, no more than a list holds.
    pub(crate) cntlids: Vec<u16>,
}

/// How a Connect is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: Status,
    pub(crate) dw0: u32,
}
