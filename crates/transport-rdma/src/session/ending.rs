//! The end of a queue: why, and when its queue pair may be destroyed.

use std::fmt;

use reactor::Instant;
use target::DisconnectReason;
use tracing::{debug, info};
use verbs::QueuePair;

use super::{Session, Turn};
use crate::config::RdmaConfig;
use crate::network::Order;

/// How many times [`RdmaConfig::lease`] all that is posted may take to end while others wait for memory that was lent for some of it: one
/// piece may end in time after the other, and the last be wanted all that while.
const LEASES_MOST: u32 = 4;

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// What is queued goes out; what comes in is thrown away.
    Ending {
        deadline: Instant,
    },
    /// Nothing more is posted, and what is posted is flushed.
    Closing {
        /// When the manager ended the queue pair. Until then no deadline runs: it may be busy with others.
        since: Option<Instant>,
    },
}

/// Why a session ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The target wants it.
    Target(DisconnectReason),
    /// The connection is over: the host ended it or is gone, or the device is.
    Over,
    /// Work ended with an error.
    Work(verbs::Status),
    /// A capsule without a whole command: its length.
    ShortCapsule(u32),
    /// More commands than the queue has room for.
    TooManyCommands,
    /// Its host's capsules take more than half of the receives, while others have hardly any.
    TooManyReceives,
    /// The data of a command is not where it should be.
    NoData,
    /// The device refused.
    Device(String),
    /// Nothing of what was posted ended in time.
    Timeout,
    /// The daemon ends.
    Shutdown,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(reason) => reason.fmt(f),
            Self::Over => f.write_str("the connection is over"),
            Self::Work(status) => write!(f, "the device reports: {status}"),
            Self::ShortCapsule(length) => write!(f, "a capsule of {length} bytes holds no command"),
            Self::TooManyCommands => f.write_str("the host sent more commands than fit the queue"),
            Self::TooManyReceives => f.write_str("the host's capsules take the receives of others"),
            Self::NoData => f.write_str("a command's descriptors do not lead to its data"),
            Self::Device(error) => write!(f, "the device refuses: {error}"),
            Self::Timeout => f.write_str("the host does not take what is sent to it"),
            Self::Shutdown => f.write_str("the daemon is shutting down"),
        }
    }
}

/// Whether a closing session may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Something may still happen.
    NotYet,
    /// Nothing will.
    Yes,
    /// The device says nothing more: it is to be destroyed where it is, which ends everything.
    Never,
}

/// How much depends on the end of what is posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Suspense {
    /// Nothing is.
    None,
    /// Memory, which others want sooner or later.
    Idle,
    /// Commands.
    Keen,
}

impl Session {
    /// Whether the target still has it.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Closing { .. })
    }

    pub(super) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. })
    }

    /// Whether time has to be watched: work is out whose end may not come, or an end is under way.
    pub(crate) fn is_watched(&self) -> bool {
        !matches!(self.phase, Phase::Open) || self.work.outstanding() > 0
    }

    /// What has to be heard of what it posted, for it to go on.
    pub(crate) fn suspense(&self) -> Suspense {
        let waiting = self.reads > 0
            || self.stalled
            || !self.held.is_empty()
            || !self.fetches.is_empty()
            || !self.answers.is_empty();
        match self.phase {
            Phase::Open if !waiting && self.work.outstanding() == 0 => Suspense::None,
            Phase::Open if !waiting => Suspense::Idle,
            Phase::Open | Phase::Ending { .. } | Phase::Closing { .. } => Suspense::Keen,
        }
    }

    /// It ends once what is queued has been sent.
    pub(crate) fn end(&mut self, reason: CloseReason, turn: &mut Turn<'_>) {
        if matches!(self.phase, Phase::Open) {
            self.phase = Phase::Ending { deadline: turn.now + turn.network.config.close };
            if matches!(reason, CloseReason::Target(_)) {
                // It has dropped the commands whose data was still to come.
                self.fetches.clear();
            }
            self.reason.get_or_insert(reason);
            self.dirty = true;
        }
    }

    /// Looks at what time has done.
    pub(crate) fn watch(&mut self, turn: &mut Turn<'_>) {
        let config = &turn.network.config;
        match self.phase {
            Phase::Ending { deadline } => {
                let sent = self.answers.is_empty() && self.work.outstanding() == 0;
                if sent || deadline <= turn.now {
                    self.close(CloseReason::Over, turn);
                }
            }
            Phase::Open => {
                if self.is_stuck(turn.now, config) {
                    turn.lane.counters.timeouts.add(1);
                    return self.close(CloseReason::Timeout, turn);
                }
                // What waits for room has no need of memory that others want.
                for answer in &self.answers {
                    turn.shard.give_back(answer.request);
                }
            }
            Phase::Closing { .. } => {}
        }
    }

    /// Whether what is posted has not ended for too long: less long if others wait for what was lent for it.
    fn is_stuck(&mut self, now: Instant, config: &RdmaConfig) -> bool {
        let (out, idle) = (self.work.outstanding(), now.since(self.progress));
        if out == 0 || !self.work.is_wanted() {
            self.wanted = None;
            return out > 0 && idle >= config.progress;
        }
        let (since, left) = self.wanted.get_or_insert((now, out));
        if *left == 0 {
            (*since, *left) = (now, out);
        }
        idle >= config.lease || now.since(*since) >= config.lease.saturating_mul(LEASES_MOST)
    }

    /// Ends it now: nothing more is posted, and what is posted will be flushed.
    pub(crate) fn close(&mut self, reason: CloseReason, turn: &mut Turn<'_>) {
        if !self.is_open() {
            return;
        }
        self.phase = Phase::Closing { since: None };
        let reason = self.reason.get_or_insert(reason);
        let peer = self.peer;
        match reason {
            CloseReason::ShortCapsule(_) | CloseReason::TooManyCommands | CloseReason::NoData => {
                turn.lane.counters.violations.add(1);
                info!("{peer}: a queue is ended: {reason}");
            }
            // Not a fault: where memory is short, the best of hosts has to wait with its capsules.
            CloseReason::TooManyReceives => {
                turn.lane.counters.receives_reclaimed.add(1);
                info!("{peer}: a queue is ended: {reason}");
            }
            CloseReason::Over | CloseReason::Shutdown | CloseReason::Target(_) => {
                debug!("{peer}: a queue has ended: {reason}");
            }
            _ => info!("{peer}: a queue is ended: {reason}"),
        }
        if let Some(queue) = self.queue.take() {
            turn.shard.close_queue(queue);
        }
        self.fetches.clear();
        self.answers.clear();
        self.held.clear();
        let mut from = 0;
        while self.own.is_none()
            && let Some(receives) = turn.lane.receives()
            && let Some(tag) = receives.held_by(self.index, from)
        {
            turn.lane.release(tag, turn.pool);
            from = usize::try_from(tag).unwrap_or(usize::MAX).saturating_add(1);
        }
        // Also what it should still receive into: what has been pushed counts as posted, and has to be flushed. It is all the
        // same if the device refuses.
        let _ = self.flush_receives();
        self.work.cease();
        turn.network.order(Order::End(self.connection));
    }

    /// The manager has ended the queue pair.
    pub(crate) fn was_ended(&mut self, now: Instant) {
        if let Phase::Closing { since } = &mut self.phase {
            since.get_or_insert(now);
        }
    }

    /// What was received when nobody wants it any more.
    pub(super) fn give_up(&mut self, tag: u32, turn: &mut Turn<'_>) {
        if self.own.is_none() {
            turn.lane.release(tag, turn.pool);
        }
    }

    /// The device says that the queue pair has taken its last receive from the shared queue: it is in error.
    pub(crate) fn took_last_receive(&mut self, turn: &mut Turn<'_>) {
        self.last_receive.get_or_insert(turn.lane.moment());
        self.close(CloseReason::Over, turn);
    }

    /// Whether it is over: everything flushed and taken.
    pub(crate) fn flushed(&mut self, turn: &mut Turn<'_>) -> Flushed {
        let Phase::Closing { since: Some(since) } = self.phase else {
            return Flushed::NotYet;
        };
        let config = &turn.network.config;
        let waited = turn.now.since(since);
        if self.work.outstanding() > 0 || self.work.receiving() > 0 {
            let never = waited >= config.close.saturating_add(config.last_receive);
            return if never { Flushed::Never } else { Flushed::NotYet };
        }
        if self.own.is_some() {
            return Flushed::Yes;
        }
        if self.last_receive.is_none() && waited >= config.last_receive {
            turn.lane.counters.last_receives_missed.add(1);
            self.last_receive = Some(turn.lane.moment());
        }
        // What it received last may have been in the completion queue when that was said.
        match self.last_receive {
            Some(then) if turn.lane.is_past(then) => Flushed::Yes,
            _ => Flushed::NotYet,
        }
    }

    /// The queue pair, for the manager to destroy. None if something was still on loan, and it has been destroyed here.
    pub(crate) fn into_pair(self) -> Option<QueuePair> {
        self.work.into_pair()
    }
}
