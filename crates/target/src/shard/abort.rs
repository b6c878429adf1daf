//! Abort that aborts: a command that waits for a buffer, for data, for the end of a pause, or in the device.
//!
//! The owner of the controller asks the shard of the queue. The Abort completes when the command has ended,
//! and says what really became of it: dword 0 bit 0 is 0 only if it was completed with Command Abort
//! Requested. A command whose data the host is sending ends when the data is here, since a host may not be
//! told of an end while it still sends.

use nvme::Status;
use nvme::admin::Abort;

use super::Shard;
use super::intake::Outcome;
use super::message::Body;
use super::queue::Role;
use super::request::Stage;
use crate::identify::ABORT_LIMIT;
use crate::{QueueId, RequestId, ShardIndex};

impl Shard {
    /// The Abort command.
    pub(super) fn abort(&mut self, id: RequestId, cntlid: u16, abort: Abort) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        let place = match abort.sqid {
            0 => Some((self.index, controller.admin)),
            qid => controller.io_queues.get(&qid).map(|queue| (queue.shard, queue.queue)),
        };
        if controller.aborts >= u32::from(ABORT_LIMIT) {
            self.answer(id, Status::ABORT_LIMIT_EXCEEDED.into());
            return;
        }
        match place {
            Some((shard, queue)) => {
                controller.aborts += 1;
                self.park(id);
                self.send(shard, Body::Abort { queue, cid: abort.cid, request: id });
            }
            None => self.answer(id, Outcome::result(Abort::dw0(false).into())),
        }
    }

    /// The owner of a queue's controller wants this command aborted.
    pub(super) fn abort_asked(
        &mut self,
        from: ShardIndex,
        queue: QueueId,
        cid: u16,
        asker: RequestId,
    ) {
        let target = self
            .queues
            .get(queue)
            .filter(|queue| queue.is_live())
            .and_then(|queue| Some((queue.role, queue.commands.get(cid)?)));
        let found = target.and_then(|(role, id)| Some((role, id, self.requests.get_mut(id)?)));
        let Some((role, id, request)) = found else {
            return self.send(from, Body::Aborted { request: asker, aborted: false });
        };
        let waits = matches!(
            request.stage,
            Stage::Buffer | Stage::Receive | Stage::Held | Stage::Device | Stage::Event
        );
        if !waits || request.aborter.is_some() {
            return self.send(from, Body::Aborted { request: asker, aborted: false });
        }
        self.counters.aborts += 1;
        // The answer to the command, whenever that is, answers the Abort too.
        request.aborter = Some((from, asker));
        match request.stage {
            Stage::Device => self.give_up(id, Status::ABORT_REQUESTED),
            Stage::Receive => request.give_up = Some(Status::ABORT_REQUESTED),
            Stage::Buffer => {
                self.leave_line(id);
                self.answer(id, Status::ABORT_REQUESTED.into());
            }
            Stage::Held => {
                self.unhold(id);
                self.answer(id, Status::ABORT_REQUESTED.into());
            }
            _ => {
                if let Role::Admin { cntlid } = role {
                    self.forget_event_request(cntlid, id);
                }
                self.answer(id, Status::ABORT_REQUESTED.into());
            }
        }
    }

    /// What became of a command that an Abort of ours was for.
    pub(super) fn aborted(&mut self, id: RequestId, aborted: bool) {
        let Some(request) = self.requests.get(id) else { return };
        let Some(queue) = self.queues.get(request.queue) else { return };
        if let Role::Admin { cntlid } = queue.role
            && let Some(controller) = self.controllers.get_mut(&cntlid)
        {
            controller.aborts = controller.aborts.saturating_sub(1);
        }
        self.answer(id, Outcome::result(Abort::dw0(aborted).into()));
    }
}
