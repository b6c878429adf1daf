//! The death of queues, and what their commands leave behind in devices.
//!
//! A queue dies when its connection breaks or because we end it. Whatever has not reached a device is dropped
//! at once. What has is given up: queues are asked to cancel it, the rest finishes with nobody to answer,
//! and only then is the queue forgotten and its controller told.
//!
//! An operation that does not come back holds up its host's next Connect, up to a bound: then its device is
//! [fenced](super::fence).

use nvme::{Nqn, Status};

use super::Shard;
use super::message::{Body, Host};
use super::queue::Role;
use super::request::Stage;
use super::table::Key;
use crate::{Action, DisconnectReason, Instant, QueueId, RequestId, ShardIndex};

/// A question about old writes that cannot be answered yet.
#[derive(Debug)]
pub(crate) struct Question {
    from: ShardIndex,
    request: RequestId,
    host: Host,
    subsystem: Nqn,
    /// When whoever asked has stopped waiting.
    deadline: Instant,
}

impl Shard {
    /// The connection is gone. Requests of it that devices hold live on inside the shard; ids of the
    /// queue and of its requests are void.
    pub fn close_queue(&mut self, queue: QueueId) {
        let Some(record) = self.queues.get_mut(queue) else {
            self.counters.stale_handles += 1;
            return;
        };
        if record.gone {
            self.counters.stale_handles += 1;
            return;
        }
        record.gone = true;
        record.since = self.now;
        let role = record.role;
        self.drop_requests(queue, false);
        if let Role::Admin { cntlid } = role
            // A controller that was dropped before its queue was closed has left its number to others.
            && self.controllers.get(&cntlid).is_some_and(|controller| controller.admin == queue)
        {
            self.kill_controller(cntlid, DisconnectReason::ControllerGone);
        }
        self.settle(queue);
    }

    /// Ends a queue: the transport is asked to close it, its commands are dropped. Completions that the
    /// transport has already are still sent.
    pub(super) fn end_queue(&mut self, queue: QueueId, reason: DisconnectReason) {
        let Some(record) = self.queues.get_mut(queue) else { return };
        if !record.is_live() {
            return;
        }
        record.closing = Some(reason);
        record.since = self.now;
        let port = record.port;
        tracing::info!(%queue, %reason, peer = %record.info.peer, "queue ended");
        self.drop_requests(queue, true);
        self.act(port, Action::Disconnect { queue, reason });
    }

    /// Drops every request of a dying queue that no device holds, and gives up the others.
    fn drop_requests(&mut self, queue: QueueId, keep_responses: bool) {
        let mut next = self.queues.get(queue).and_then(|queue| queue.requests);
        while let Some(id) = next {
            let Some(request) = self.requests.get(id) else { break };
            next = request.next;
            match request.stage {
                Stage::Device => self.give_up(id, Status::ABORTED_SQ_DELETION),
                Stage::Respond if keep_responses => {}
                Stage::Buffer => {
                    self.leave_line(id);
                    self.discard(id);
                }
                Stage::Held => {
                    self.unhold(id);
                    self.discard(id);
                }
                _ => self.discard(id),
            }
        }
    }

    /// Asks the device to let go of a command; whatever it does not let go of ends as it ends.
    pub(super) fn give_up(&mut self, id: RequestId, status: Status) {
        let Some(request) = self.requests.get_mut(id) else { return };
        request.give_up.get_or_insert(status);
        let mut parts = request.parts;
        // The last one only, for a flush of all; flushes change nothing and are over soon.
        let Some(key) = request.backend else { return };
        let Some(backend) = self.subsystems.backends.get_mut(key) else { return };
        let Some(queue) = backend.queue.as_mut() else { return };
        while parts != 0 {
            let part = parts.trailing_zeros();
            parts &= parts.wrapping_sub(1);
            if queue.cancel(super::request::token(id, part)) {
                self.counters.cancelled += 1;
            }
        }
    }

    /// A request of this queue is gone: if it was the last of a dead queue, the queue goes too.
    pub(super) fn settle(&mut self, queue: QueueId) {
        let Some(record) = self.queues.get(queue) else { return };
        if !record.gone || record.slots > 0 {
            return;
        }
        let Some(record) = self.queues.remove(queue) else { return };
        self.hosts.leave(record.host);
        self.detach(queue, record.role);
        self.lift_fences(queue);
        self.answer_questions();
    }

    /// Tells the owner of the controller that this queue is no more.
    pub(super) fn detach(&mut self, queue: QueueId, role: Role) {
        if let Role::Io { cntlid, qid, .. } | Role::Connecting { io: Some((cntlid, qid)), .. } =
            role
        {
            self.send(self.owner(cntlid), Body::Detached { cntlid, qid, queue });
        }
    }

    /// Another shard, or this one, is about to make a controller for `host`.
    pub(super) fn asked(
        &mut self,
        from: ShardIndex,
        request: RequestId,
        host: Host,
        subsystem: Nqn,
    ) {
        if self.is_quiet(&host, &subsystem) {
            self.send(from, Body::Quiet { request });
        } else {
            self.counters.connects_waited += 1;
            let deadline = self.now + self.limits.drain_wait;
            self.quiescing.push(Question { from, request, host, subsystem, deadline });
        }
    }

    /// Whether nothing of this host's past in this subsystem can still reach a device.
    fn is_quiet(&self, host: &Host, subsystem: &Nqn) -> bool {
        let queues = self.queues.iter().all(|(_, queue)| {
            let Role::Io { subsystem: key, .. } = queue.role else { return true };
            queue.is_live()
                || queue.written_off
                || !self.hosts.is(queue.host, host)
                || self.subsystems.get(key).is_none_or(|entry| entry.subsystem().nqn() != subsystem)
        });
        let controllers = self.controllers.values().all(|controller| {
            // Its queues, on whatever shard, may not even know yet.
            let super::controller::Kind::Nvm(key) = controller.kind else { return true };
            controller.ending.is_none()
                || controller.host != *host
                || self.subsystems.get(key).is_none_or(|entry| entry.subsystem().nqn() != subsystem)
        });
        queues && controllers
    }

    /// Something has come to an end: answers what can be answered now.
    pub(super) fn answer_questions(&mut self) {
        let mut at = 0;
        while let Some(question) = self.quiescing.get(at) {
            if self.is_quiet(&question.host, &question.subsystem) {
                let question = self.quiescing.swap_remove(at);
                self.send(question.from, Body::Quiet { request: question.request });
            } else if question.deadline <= self.now {
                self.quiescing.swap_remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// Subsystem and NSID of a backend.
    pub(super) fn name_of(&self, key: Key) -> Option<(Nqn, u32)> {
        let backend = self.subsystems.backends.get(key)?;
        let entry = self.subsystems.get(backend.subsystem)?;
        Some((entry.subsystem().nqn().clone(), backend.namespace.nsid()))
    }
}
