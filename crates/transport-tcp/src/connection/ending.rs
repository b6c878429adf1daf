//! Deadlines, and the ways in which a connection ends.

use std::time::Duration;

use reactor::Instant;

use super::output::Entry;
use super::terminate::{CloseReason, Violation};
use super::{Connection, Core, LOOK_AT_LEASES, LOOK_FOR_LEASES, Phase, Turn};
use crate::deadline::{Timeout, earlier};

/// How long a host that has been sent everything may take to close, when the transport stops. A farewell, not a duty:
/// it spares an attentive host the reset that closing on its unread bytes would bring.
const FAREWELL: Duration = Duration::from_millis(500);

impl Connection {
    /// When to look at the deadlines, at the latest.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    pub(super) fn wake_by(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Looks at the deadlines. Ends the connection if one has passed, else sets the next.
    pub(crate) fn check_deadlines<C: Core>(&mut self, turn: &mut Turn<'_, C>) {
        self.transfers.retire(turn.now);
        let timeouts = &turn.config.timeouts;
        let phase = match &self.phase {
            Phase::Negotiating { deadline } => Some((*deadline, Timeout::Negotiation)),
            Phase::Ending { deadline, .. } => Some((*deadline, Timeout::Close)),
            Phase::Open | Phase::Closed => None,
        };
        let data = self.transfers.deadline();
        let sending = self.output.current().map(|batch| batch.since() + timeouts.send);
        let pdu = self.pdu_deadline.map(|at| (at, Timeout::Pdu));
        let next = earlier(
            earlier(phase, pdu),
            earlier(data.map(|at| (at, Timeout::Data)), sending.map(|at| (at, Timeout::Send))),
        );
        self.wake_at = next.map(|(at, _)| at);
        if let Some(lent) = self.output.give_back(turn) {
            self.wake_by(turn.now + if lent { LOOK_AT_LEASES } else { LOOK_FOR_LEASES });
        }
        if let Some((at, timeout)) = next
            && at <= turn.now
        {
            if self.is_waiting_for_farewell() {
                return self.end(CloseReason::Shutdown, turn);
            }
            turn.counters.timeout(timeout);
            self.end(CloseReason::Timeout(timeout), turn);
        }
    }

    /// The transport stops: the connection is closed when all is said.
    pub(crate) fn shut_down<C: Core>(&mut self, turn: &mut Turn<'_, C>) {
        self.wind_up(CloseReason::Shutdown, turn);
    }

    /// Tells the peer what it did wrong, and ends.
    pub(super) fn terminate<C: Core>(&mut self, violation: Violation, turn: &mut Turn<'_, C>) {
        turn.counters.termination(violation.status());
        self.output.abandon(turn);
        self.output.push(Entry::Termination(violation.termination));
        self.close_queue(turn);
        self.wind_up(CloseReason::Violation(violation.what), turn);
    }

    /// Sends what is queued, takes in nothing more, waits for the peer to close.
    pub(super) fn wind_up<C: Core>(&mut self, reason: CloseReason, turn: &mut Turn<'_, C>) {
        if self.is_ending() {
            return;
        }
        let deadline = turn.now + turn.config.timeouts.close;
        self.phase = Phase::Ending { deadline };
        self.reason.get_or_insert(reason);
        self.forget_input(turn);
        self.wake_by(deadline);
        if self.has_said_all() {
            self.said_all(turn);
        }
    }

    /// The last byte has left: the target need not know this queue any longer, and the host may close.
    pub(super) fn said_all<C: Core>(&mut self, turn: &mut Turn<'_, C>) {
        self.close_queue(turn);
        if self.is_waiting_for_farewell()
            && let Phase::Ending { deadline } = &mut self.phase
        {
            *deadline = (*deadline).min(turn.now + FAREWELL);
            let at = *deadline;
            self.wake_by(at);
        }
    }

    /// The transport stops, and this host has been sent everything.
    fn is_waiting_for_farewell(&self) -> bool {
        self.has_said_all() && matches!(self.reason, Some(CloseReason::Shutdown))
    }

    /// Ends it now. What the target or the peer is owed is let go.
    pub(crate) fn end<C: Core>(&mut self, reason: CloseReason, turn: &mut Turn<'_, C>) {
        if self.is_closed() {
            return;
        }
        self.phase = Phase::Closed;
        self.reason.get_or_insert(reason);
        self.wake_at = None;
        self.forget_input(turn);
        self.output.release(turn);
        self.close_queue(turn);
    }

    /// Why it ended, or is about to.
    pub(crate) fn reason(&self) -> Option<&CloseReason> {
        self.reason.as_ref()
    }

    /// Whether it is to be dropped.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    pub(super) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. } | Phase::Closed)
    }

    fn forget_input<C: Core>(&mut self, turn: &mut Turn<'_, C>) {
        self.stalled = None;
        self.parking.clear();
        self.transfers.clear();
        self.pdu_deadline = None;
        self.input.discard();
        self.input.rest(turn.buffers);
    }

    pub(super) fn close_queue<C: Core>(&mut self, turn: &mut Turn<'_, C>) {
        if let Some(queue) = self.queue.take() {
            turn.core.close_queue(queue);
        }
    }
}
