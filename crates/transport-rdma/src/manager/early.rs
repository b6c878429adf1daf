//! Requests of hosts that come before their listener admits hosts.
//!
//! A node that starts takes its addresses before it can serve. Hosts that it had before its restart come by at that very moment, and a
//! refusal costs them their next interval of reconnecting, ten seconds for a Linux host. So their requests are kept, as TCP keeps
//! connections in a listener's backlog, and are judged once the listener admits hosts. That takes nothing of the host's but time: its
//! connection manager sends the request again and again for a minute, and the kernel here knows that it has it already.
//!
//! What is kept is bounded in number and in time. Beyond that, and when the listener is gone, hosts are refused with "no
//! resources", the only one of the specification's codes that blames nothing of the host's. A host that gives up is
//! forgotten where the connection manager tells of it; that of Linux says nothing of connections that were neither granted nor refused,
//! and they fail when they are granted.
//!
//! Rejected: leaving the requests with the connection manager (its events come in one order for all listeners); asking the host
//! for more time (MRA: it would wait as long without).

use std::time::{Duration, Instant};

use verbs::{Connection, ConnectionId, PrivateData, Wishes};

use super::listener::{Door, Listeners};

/// Requests that are kept, as many as wait for the manager at a listener.
const MOST: usize = 256;

/// A host that wants to connect.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) listener: ConnectionId,
    pub(super) connection: Connection,
    pub(super) wishes: Wishes,
    pub(super) private_data: PrivateData,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Early {
    /// In the order of their coming, and when each has waited long enough.
    waiting: Vec<(Caller, Instant)>,
    patience: Duration,
}

impl Early {
    pub(super) fn new(patience: Duration) -> Early {
        Early { waiting: Vec::new(), patience }
    }

    /// Keeps a request, or gives it back: there are too many.
    pub(super) fn keep(&mut self, caller: Caller) -> Option<Caller> {
        if self.waiting.len() >= MOST {
            return Some(caller);
        }
        let now = Instant::now();
        self.waiting.push((caller, now.checked_add(self.patience).unwrap_or(now)));
        None
    }

    /// The host has given up, or the device is gone.
    pub(super) fn forget(&mut self, id: ConnectionId) {
        self.waiting.retain(|(caller, _)| caller.connection.id() != id);
    }

    /// Those who need not or cannot wait any longer; who is not admitted now is refused.
    pub(super) fn take_due(&mut self, listeners: &Listeners) -> Vec<Caller> {
        let now = Instant::now();
        let is_due = |(caller, until): &mut (Caller, Instant)| {
            listeners.door(caller.listener) != Door::Shut || *until <= now
        };
        self.waiting.extract_if(.., is_due).map(|(caller, _)| caller).collect()
    }

    /// When somebody will have waited long enough.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let first = self.waiting.first();
        first.map(|(_, until)| until.saturating_duration_since(Instant::now()))
    }
}
