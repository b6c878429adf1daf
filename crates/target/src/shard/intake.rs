//! The life of a command from its capsule to its completion.

use memory::Buffer;
use nvme::address::TransportType;
use nvme::command::Fuse;
use nvme::fabrics::{self, Connect};
use nvme::{Cqe, Sqe, Status};

use super::Shard;
use super::message::Body;
use super::pledges::is_asked_for;
use super::queue::Role;
use super::request::{Request, Stage, Task};
use super::sgl::{self, Transfer};
use crate::log_page::Failure;
use crate::{Action, CommandRefused, QueueId, RequestId};

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) status: Status,
    /// Dwords 0 and 1 of the completion.
    pub(super) result: u64,
    /// Bytes of the buffer that go to the host.
    pub(super) data: u32,
}

impl Outcome {
    pub(super) const SUCCESS: Self = Self { status: Status::SUCCESS, result: 0, data: 0 };

    pub(super) const fn result(result: u64) -> Self {
        Self { status: Status::SUCCESS, result, data: 0 }
    }

    pub(super) const fn data(data: u32) -> Self {
        Self { status: Status::SUCCESS, result: 0, data }
    }
}

impl From<Status> for Outcome {
    fn from(status: Status) -> Self {
        Self { status, result: 0, data: 0 }
    }
}

/// What a command needs, or how it ends right away.
pub(super) type Classified = Result<(Task, Transfer), Outcome>;

impl Shard {
    /// A command capsule arrived with `in_capsule` bytes of data in it (0: none).
    ///
    /// # Errors
    /// See [`CommandRefused`]; the capsule was not taken.
    pub fn command(
        &mut self,
        queue: QueueId,
        sqe: &Sqe,
        in_capsule: u32,
    ) -> Result<RequestId, CommandRefused> {
        self.take(queue, sqe, Ok(in_capsule))
    }

    /// A command capsule arrived in which the transport cannot find the data: the command takes its place among the
    /// others and fails with `status`.
    ///
    /// # Errors
    /// See [`CommandRefused`]; the capsule was not taken.
    pub fn malformed_command(
        &mut self,
        queue: QueueId,
        sqe: &Sqe,
        status: Status,
    ) -> Result<RequestId, CommandRefused> {
        self.take(queue, sqe, Err(status))
    }

    fn take(
        &mut self,
        queue: QueueId,
        sqe: &Sqe,
        in_capsule: Result<u32, Status>,
    ) -> Result<RequestId, CommandRefused> {
        let Some(record) = self.queues.get(queue) else {
            self.counters.stale_handles += 1;
            return Err(CommandRefused::Closed);
        };
        if !record.is_live() {
            return Err(CommandRefused::Closed);
        }
        let crowded = self.crowded_device(record, sqe);
        let Some(record) = self.queues.get_mut(queue) else { return Err(CommandRefused::Closed) };
        let room = record.has_room(&self.requests, &self.hosts, &self.pledges);
        let stopping = record.is_io() && self.shutdown.is_some();
        // What the queue owes comes behind this command, and has to come before the end.
        let refused = stopping && record.pledge.is_owing();
        if !room || crowded.is_some() || (stopping && !refused) {
            record.stalled_by = crowded;
            if !record.stalled {
                record.stalled = true;
                self.stalled.push_back(queue);
                self.counters.stalls += 1;
            }
            return Err(CommandRefused::Busy);
        }
        let request = Request::new(queue, sqe, self.now);
        let id = match self.requests.insert(request) {
            Ok(id) => id,
            Err(mut request) => {
                // Not taken: the command stays with the transport.
                if let Some(obligation) = request.obligation.take() {
                    obligation.excused();
                }
                return Err(CommandRefused::Busy);
            }
        };
        record.link(&mut self.requests, id);
        self.hosts.add_slots(record.host, 1);
        record.share.command_arrived(self.now);
        self.counters.commands += 1;
        let listed = record.commands.insert(sqe.cid.get(), id);
        if listed {
            record.share.set_busy(true);
            self.pledges.take(record, &mut self.hosts);
            if let Some(request) = self.requests.get_mut(id) {
                request.listed = true;
            }
            match in_capsule {
                _ if refused => self.answer(id, Status::COMMAND_INTERRUPTED.into()),
                Ok(in_capsule) => self.start(id, in_capsule),
                Err(status) => self.answer(id, status.into()),
            }
        } else {
            self.answer(id, Status::COMMAND_ID_CONFLICT.with_dnr().into());
        }
        Ok(id)
    }

    fn start(&mut self, id: RequestId, in_capsule: u32) {
        let Some(request) = self.requests.get(id) else { return };
        let Some(queue) = self.queues.get(request.queue) else { return };
        let is_io = queue.is_io() && !request.sqe.is_fabrics();
        let info = queue.info;
        let mut classified = self.classify(request);
        if let Err(outcome) = &classified
            && outcome.status.same_code(Status::LBA_OUT_OF_RANGE)
            && let Role::Io { subsystem, .. } = queue.role
            && self.is_outgrown(subsystem, request.sqe.nsid.get())
        {
            // The device has grown since this shard looked last.
            self.watch_geometry();
            let Some(request) = self.requests.get(id) else { return };
            classified = self.classify(request);
        }
        let Some(request) = self.requests.get(id) else { return };
        let checked = classified.and_then(|(task, transfer)| {
            let checked = sgl::check(&info, is_io, &request.sqe, in_capsule, transfer)?;
            if usize::try_from(checked.length).unwrap_or(usize::MAX) > self.pool.max_buffer() {
                return Err(Status::INVALID_FIELD.with_dnr().into());
            }
            Ok((task, transfer, checked))
        });
        match checked {
            Err(outcome) => self.answer(id, outcome),
            Ok((task, transfer, checked)) => {
                if let Some(request) = self.requests.get_mut(id) {
                    request.task = task;
                    request.length = checked.length;
                    // In exchange for the buffer that the transport received it in, which is of this size.
                    let exchanged = checked.in_capsule && info.transport == TransportType::Rdma;
                    let room = if exchanged { info.in_capsule_limit } else { 0 };
                    request.room = room.max(checked.length);
                    request.in_capsule = checked.in_capsule;
                    request.from_host = matches!(transfer, Transfer::FromHost { .. });
                }
                if is_io {
                    self.charge_device(id);
                    self.note_borrower(id);
                }
                if checked.length == 0 { self.perform(id) } else { self.seek_buffer(id) }
            }
        }
    }

    fn classify(&self, request: &Request) -> Classified {
        let Some(queue) = self.queues.get(request.queue) else {
            return Err(Status::INTERNAL_ERROR.into());
        };
        let sqe = &request.sqe;
        match queue.role {
            Role::Unconnected | Role::Connecting { .. } => Self::classify_unconnected(sqe),
            Role::Admin { cntlid } if sqe.is_fabrics() => match fabrics_command(sqe)? {
                fabrics::Command::PropertyGet(get) => self.property_get(cntlid, get),
                fabrics::Command::PropertySet(_) => Ok((Task::PropertySet, Transfer::None)),
                fabrics::Command::Disconnect(_) => {
                    Err(Status::DISCONNECT_INVALID_QUEUE_TYPE.with_dnr().into())
                }
                fabrics::Command::Connect(_) => {
                    Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into())
                }
                fabrics::Command::Authentication(_) => {
                    Err(Status::INVALID_OPCODE.with_dnr().into())
                }
            },
            Role::Io { .. } if sqe.is_fabrics() => match fabrics_command(sqe)? {
                fabrics::Command::Disconnect(disconnect) if disconnect.recfmt == 0 => {
                    Ok((Task::Disconnect, Transfer::None))
                }
                fabrics::Command::Disconnect(_) => {
                    Err(Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr().into())
                }
                fabrics::Command::Connect(_) => {
                    Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into())
                }
                _ => Err(Status::INVALID_OPCODE.with_dnr().into()),
            },
            Role::Admin { cntlid } => {
                if sqe.fuse() != Fuse::Normal {
                    return Err(Status::INVALID_FIELD.with_dnr().into());
                }
                self.classify_admin(cntlid, sqe)
            }
            Role::Io { subsystem, .. } => self.classify_io(subsystem, queue, sqe),
        }
    }

    /// On a queue without a Connect nothing but Connect is allowed.
    fn classify_unconnected(sqe: &Sqe) -> Classified {
        if sqe.is_fabrics() && sqe.fctype() == fabrics::CommandType::Connect.code() {
            let length = u32::try_from(size_of::<fabrics::ConnectData>()).unwrap_or(u32::MAX);
            return Ok((Task::Connect(Connect::parse(sqe)), Transfer::from_host(length)));
        }
        Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into())
    }

    /// The data of [`Action::Receive`] is in this buffer, from its start: takes it in place of the request's own, which
    /// is given in exchange. Only for NVMe/RDMA, where both have room for
    /// [`QueueInfo::in_capsule_limit`](crate::QueueInfo::in_capsule_limit); no byte has to be copied then.
    ///
    /// # Errors
    /// The buffer itself, if the request does not wait for such data, or has a buffer of another size.
    pub fn exchange(&mut self, request: RequestId, buffer: Buffer) -> Result<Buffer, Buffer> {
        let Some(record) = self.requests.get_mut(request) else { return Err(buffer) };
        match &mut record.buffer {
            Some(own)
                if record.stage == Stage::Receive
                    && record.in_capsule
                    && own.len() == buffer.len() =>
            {
                Ok(std::mem::replace(own, buffer))
            }
            _ => Err(buffer),
        }
    }

    /// All bytes of [`Action::Receive`] are in the request's buffer, or could not be brought there; then
    /// the command, and nothing else, fails with this status.
    pub fn data_received(&mut self, request: RequestId, result: Result<(), Status>) {
        let Some(record) = self.requests.get_mut(request) else {
            self.counters.stale_handles += 1;
            return;
        };
        if record.stage != Stage::Receive {
            self.counters.stale_handles += 1;
            return;
        }
        self.data_settled(request);
        let Some(record) = self.requests.get_mut(request) else { return };
        record.stage = Stage::New;
        let give_up = record.give_up;
        match (give_up, result) {
            (Some(status), _) | (None, Err(status)) => self.answer(request, status.into()),
            // It was taken in before its turn, see `limit`.
            (None, Ok(())) if record.limited => self.seek_buffer(request),
            (None, Ok(())) => self.perform(request),
        }
    }

    /// A request's data is here, or will not be waited for: its queue owes less.
    fn data_settled(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(id) else { return };
        if request.stage == Stage::Receive
            && is_asked_for(request)
            && let Some(queue) = self.queues.get_mut(request.queue)
        {
            self.pledges.end(queue, &mut self.hosts);
            self.look_at_stalled();
        }
    }

    /// Does what is to be done, now that buffer and data are there.
    pub(super) fn perform(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(id) else { return };
        match request.task {
            Task::Connect(connect) => self.connect(id, connect),
            Task::PropertySet => self.property_set(id),
            Task::Disconnect => self.disconnect_command(id),
            Task::Admin(command) => self.admin(id, command),
            Task::Operation(_) | Task::Deallocate { .. } | Task::FlushAll { .. } => self.drive(id),
            Task::None => self.answer(id, Outcome::SUCCESS),
        }
    }

    /// Ends a command: its completion goes to the transport.
    pub(super) fn answer(&mut self, id: RequestId, outcome: Outcome) {
        let Some(request) = self.requests.get_mut(id) else { return };
        let queue_id = request.queue;
        let Some(queue) = self.queues.get_mut(queue_id) else { return };
        if request.stage == Stage::Device {
            queue.in_device = queue.in_device.saturating_sub(1);
        }
        if !queue.is_live() {
            // Nobody to answer: see `drain`.
            self.discard(id);
            return;
        }
        let Some(obligation) = request.obligation.take() else {
            self.counters.stale_handles += 1;
            return;
        };
        let cid = request.cid();
        if request.listed {
            queue.commands.remove(cid);
            queue.share.set_busy(queue.commands.len() > 0);
            request.listed = false;
            self.pledges.give_back(queue, &mut self.hosts);
        }
        let data = if outcome.status.is_success() { outcome.data.min(request.length) } else { 0 };
        let cqe = Cqe::new(cid, queue.advance_sqhd(), outcome.status).with_result(outcome.result);
        request.stage = Stage::Respond;
        request.since = self.now;
        let (port, flow_control) = (queue.port, queue.flow_control);
        let aborter = request.aborter.take();
        let failure = (!outcome.status.is_success()).then(|| Failure {
            sqid: match queue.role {
                Role::Io { qid, .. } => qid,
                _ => 0,
            },
            cid,
            status: outcome.status,
            lba: u64::from(request.sqe.cdw10.get()) | u64::from(request.sqe.cdw11.get()) << 32,
            nsid: request.sqe.nsid.get(),
            location: None,
            transport: queue.info.transport,
        });
        let role = queue.role;
        self.counters.answered_io += u64::from(queue.is_io());
        if data == 0 {
            self.release_buffer(id);
        }
        obligation.answered();
        self.act(port, Action::Respond { queue: queue_id, request: id, cqe, data, flow_control });
        if let Some((shard, request)) = aborter {
            let aborted = outcome.status.same_code(Status::ABORT_REQUESTED);
            self.send(shard, Body::Aborted { request, aborted });
        }
        if let Some(failure) = failure {
            self.counters.failed_commands += 1;
            if let Role::Admin { cntlid } | Role::Io { cntlid, .. } = role {
                self.report_failure(queue_id, cntlid, failure);
            }
        }
    }

    /// The transport has let go of the request's buffer and of the request.
    pub fn response_sent(&mut self, request: RequestId) {
        match self.requests.get(request) {
            Some(record) if record.stage == Stage::Respond => self.free(request),
            _ => self.counters.stale_handles += 1,
        }
    }

    /// Ends a command that nobody waits for.
    pub(super) fn discard(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(id) else { return };
        if let Some(obligation) = request.obligation.take() {
            obligation.excused();
        }
        if let Some((shard, request)) = request.aborter.take() {
            self.send(shard, Body::Aborted { request, aborted: false });
        }
        self.free(id);
    }

    /// Gives back everything that a request holds, and the request.
    fn free(&mut self, id: RequestId) {
        self.data_settled(id);
        self.release_buffer(id);
        let Some(request) = self.requests.get(id) else { return };
        let (queue_id, cid, listed) = (request.queue, request.cid(), request.listed);
        self.discharge_device(request.device);
        if let Some(queue) = self.queues.get_mut(queue_id) {
            if listed {
                queue.commands.remove(cid);
                queue.share.set_busy(queue.commands.len() > 0);
                self.pledges.give_back(queue, &mut self.hosts);
            }
            queue.unlink(&mut self.requests, id);
            self.hosts.remove_slots(queue.host, 1);
        }
        self.requests.remove(id);
        self.woken = true;
        self.look_at_stalled();
        self.settle(queue_id);
    }

    /// Ends an I/O queue because its host asked for it.
    fn disconnect_command(&mut self, id: RequestId) {
        let Some(queue) = self.requests.get(id).map(|request| request.queue) else { return };
        self.answer(id, Outcome::SUCCESS);
        self.end_queue(queue, crate::DisconnectReason::Asked);
    }
}

/// A fabrics command, typed; what makes no sense is final.
fn fabrics_command(sqe: &Sqe) -> Result<fabrics::Command, Outcome> {
    fabrics::Command::parse(sqe).map_err(|status| status.with_dnr().into())
}
