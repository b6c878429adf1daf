//! Admin commands.

use memory::Buffer;
use nvme::admin::{Command, GetFeatures, GetLogPage, IDENTIFY_LENGTH, Identify, SetFeatures};
use nvme::feature::Feature;
use nvme::log::AnaState;
use nvme::{Sqe, Status};

use super::Shard;
use super::controller::{Controller, Kind};
use super::intake::{Classified, Outcome};
use super::queue::{Queue, Role};
use super::request::Task;
use super::sgl::Transfer;
use crate::configuration::{self, Limits, Subsystem};
use crate::discovery::DiscoveryLog;
use crate::feature::{self, Effect, Features};
use crate::identify::{self, Scope};
use crate::log_page::{self, Failure, Sources};
use crate::{QueueId, RequestId};

/// The most bytes that come with an admin command: the data of Set Features.
const SET_FEATURES_MOST: usize = 512;

impl Shard {
    pub(super) fn classify_admin(&self, cntlid: u16, sqe: &Sqe) -> Classified {
        let Some(controller) = self.controllers.get(&cntlid) else {
            return Err(Status::INTERNAL_ERROR.into());
        };
        if !controller.is_ready() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into());
        }
        let command = Command::parse(sqe).map_err(Status::with_dnr)?;
        let to_host = |length: u32| match length {
            0 => Transfer::None,
            length => Transfer::ToHost { length },
        };
        let transfer = match &command {
            Command::Identify(_) => to_host(u32::try_from(IDENTIFY_LENGTH).unwrap_or(0)),
            Command::GetLogPage(get) => to_host(self.log_request(controller, get, sqe)?.length),
            Command::GetFeatures(get) => to_host(Features::get_length(get)),
            Command::SetFeatures(set) => match Features::set_length(set) {
                0 => Transfer::None,
                length => Transfer::from_host(length),
            },
            Command::Abort(_) | Command::AsynchronousEventRequest | Command::KeepAlive => {
                Transfer::None
            }
        };
        Ok((Task::Admin(command), transfer))
    }

    fn log_request(
        &self,
        controller: &Controller,
        get: &GetLogPage,
        sqe: &Sqe,
    ) -> Result<log_page::Request, Status> {
        let most = self.limits_for(controller).max_transfer;
        let most = most.min(u32::try_from(self.pool.max_buffer()).unwrap_or(u32::MAX));
        let ana = self.reports_ana(controller);
        log_page::parse(get, sqe.nsid.get(), controller.kind.controller_type(), ana, most)
    }

    fn limits_for(&self, controller: &Controller) -> Limits {
        self.subsystem_of(controller).map_or_else(Limits::default, |subsystem| *subsystem.limits())
    }

    fn reports_ana(&self, controller: &Controller) -> bool {
        self.subsystem_of(controller).is_some_and(|subsystem| subsystem.options().ana.is_some())
    }

    fn subsystem_of(&self, controller: &Controller) -> Option<&Subsystem> {
        match controller.kind {
            Kind::Discovery => None,
            Kind::Nvm(key) => self.subsystems.get(key).map(|entry| entry.subsystem().as_ref()),
        }
    }

    /// An admin command whose buffer and data are here.
    pub(super) fn admin(&mut self, id: RequestId, command: Command) {
        let Some(request) = self.requests.get(id) else { return };
        let Some(Role::Admin { cntlid }) = self.queues.get(request.queue).map(|queue| queue.role)
        else {
            return self.answer(id, Status::INTERNAL_ERROR.into());
        };
        let nsid = request.sqe.nsid.get();
        match command {
            Command::KeepAlive => self.answer(id, Outcome::SUCCESS),
            Command::AsynchronousEventRequest => self.event_request(id, cntlid),
            Command::Abort(abort) => self.abort(id, cntlid, abort),
            Command::SetFeatures(set) => self.set_features(id, cntlid, &set, nsid),
            Command::Identify(identify) => self.identify(id, cntlid, identify),
            Command::GetLogPage(get) => self.get_log_page(id, cntlid, &get),
            Command::GetFeatures(get) => self.get_features(id, cntlid, get, nsid),
        }
    }

    /// Fills the request's buffer and answers.
    fn fill(
        &mut self,
        id: RequestId,
        write: impl FnOnce(&Self, &Queue, &mut [u8]) -> Result<(), Status>,
    ) {
        let Some(request) = self.requests.get_mut(id) else { return };
        let (queue, length) = (request.queue, request.length);
        // Out of the table while it is filled, so that what fills it can look at the shard.
        let mut buffer = request.buffer.take();
        let result = match (self.queues.get(queue), buffer.as_mut().and_then(Buffer::bytes_mut)) {
            (Some(queue), Some(bytes)) => {
                // Whoever had this memory before is nobody's business.
                bytes.fill(0);
                write(self, queue, bytes)
            }
            _ => Err(Status::INTERNAL_ERROR),
        };
        if let Some(request) = self.requests.get_mut(id) {
            request.buffer = buffer;
        }
        self.answer(id, result.map_or_else(Outcome::from, |()| Outcome::data(length)));
    }

    fn identify(&mut self, id: RequestId, cntlid: u16, command: Identify) {
        let controller = self.controllers.get(&cntlid);
        match controller.and_then(|controller| self.subsystem_of(controller)) {
            Some(subsystem) if identify::is_about_controllers(&command) => {
                let nqn = subsystem.nqn().clone();
                let nsid = self.requests.get(id).map_or(0, |request| request.sqe.nsid.get());
                self.ask_for_controllers(id, nqn, nsid, command);
            }
            _ => self.answer_identify(id, cntlid, command, &[]),
        }
    }

    /// Answers Identify. `controllers`: those of the subsystem from CNTID on, if the command is about them.
    pub(super) fn answer_identify(
        &mut self,
        id: RequestId,
        cntlid: u16,
        command: Identify,
        controllers: &[u16],
    ) {
        let Some(nsid) = self.requests.get(id).map(|request| request.sqe.nsid.get()) else {
            return;
        };
        self.fill(id, |shard, queue, bytes| {
            let controller = shard.controllers.get(&cntlid).ok_or(Status::INTERNAL_ERROR)?;
            let limits = shard.limits_for(controller);
            let scope = match shard.subsystem_of(controller) {
                Some(subsystem) => Scope::Io(controller.view(subsystem)),
                None => Scope::Discovery(&limits),
            };
            let about = identify::Controller {
                scope,
                cntlid,
                transport: queue.info.transport,
                in_capsule: limits.in_capsule.min(queue.info.in_capsule_limit),
                volatile_write_cache: controller.features.has_volatile_write_cache(),
                controllers,
            };
            about.identify(&command, nsid, bytes)
        });
    }

    fn get_log_page(&mut self, id: RequestId, cntlid: u16, get: &GetLogPage) {
        let Some(request) = self.requests.get(id) else { return };
        let Some(controller) = self.controllers.get(&cntlid) else { return };
        let log = match self.log_request(controller, get, &request.sqe) {
            Ok(log) => log,
            Err(status) => return self.answer(id, status.into()),
        };
        // Re-armed before the answer: what happens after this moment is in the next report.
        let mut filled = false;
        self.fill(id, |shard, queue, bytes| {
            let result = shard.write_log(cntlid, queue, &log, bytes);
            filled = result.is_ok();
            result
        });
        if filled && !log.retain {
            self.rearm_event(cntlid, log.page);
        }
    }

    fn write_log(
        &self,
        cntlid: u16,
        queue: &Queue,
        log: &log_page::Request,
        bytes: &mut [u8],
    ) -> Result<(), Status> {
        let controller = self.controllers.get(&cntlid).ok_or(Status::INTERNAL_ERROR)?;
        let counters = self.health_of(controller);
        let sources = match self.subsystem_of(controller) {
            Some(subsystem) => Sources::Io {
                view: controller.view(subsystem),
                volatile_write_cache: controller.features.has_volatile_write_cache(),
                error_log: &controller.errors,
                changed: &controller.changed,
                ana_changes: controller.ana_changes,
                counters: &counters,
            },
            None => Sources::Discovery {
                error_log: &controller.errors,
                log: DiscoveryLog::new(
                    &self.configuration,
                    &controller.host.nqn,
                    queue.info.local.ip(),
                ),
            },
        };
        log.fill(&sources, bytes)
    }

    /// What the SMART page of a controller shows.
    fn health_of(&self, controller: &Controller) -> log_page::Counters {
        let traffic = controller.traffic();
        let degraded = self.subsystems.backends.iter().any(|(_, backend)| {
            Kind::Nvm(backend.subsystem) == controller.kind && backend.check().is_err()
        });
        log_page::Counters {
            bytes_read: u128::from(traffic.units_read) * 512,
            bytes_written: u128::from(traffic.units_written) * 512,
            read_commands: traffic.reads,
            write_commands: traffic.writes,
            busy: controller.busy,
            running: self.now.since(self.started),
            media_errors: traffic.media_errors,
            error_log_entries: controller.errors.count(),
            // Of this process, whose start it is; nothing is kept for the next.
            power_cycles: 1,
            degraded,
            ..log_page::Counters::default()
        }
    }

    /// Why a feature cannot be had of this namespace now: it is out of reach, or, where it is lost for good,
    /// nothing can be set.
    fn feature_refusal(
        &self,
        controller: &Controller,
        fid: u8,
        nsid: u32,
        is_set: bool,
    ) -> Option<Status> {
        let view = controller.view(self.subsystem_of(controller)?);
        let state = view.ana_state(view.namespace(nsid)?);
        let concerned = Feature::try_from(fid).is_ok_and(feature::needs_access)
            || (is_set && state == AnaState::PersistentLoss);
        configuration::refusal(state).filter(|_| concerned)
    }

    fn get_features(&mut self, id: RequestId, cntlid: u16, get: GetFeatures, nsid: u32) {
        let Some(controller) = self.controllers.get(&cntlid) else { return };
        if let Some(status) = self.feature_refusal(controller, get.fid, nsid, false) {
            return self.answer(id, status.into());
        }
        let value = match controller.features.get(&get) {
            Ok(value) => value,
            Err(status) => return self.answer(id, status.into()),
        };
        let data = value.data.bytes();
        let Some(request) = self.requests.get_mut(id) else { return };
        let length = request.length;
        if let Some(bytes) = request.buffer.as_mut().and_then(Buffer::bytes_mut) {
            bytes.fill(0);
            for (to, from) in bytes.iter_mut().zip(data) {
                *to = *from;
            }
        }
        let outcome = Outcome { result: value.dw0.into(), ..Outcome::data(length) };
        self.answer(id, outcome);
    }

    fn set_features(&mut self, id: RequestId, cntlid: u16, set: &SetFeatures, nsid: u32) {
        let Some(request) = self.requests.get(id) else { return };
        let mut data = [0; SET_FEATURES_MOST];
        let length = usize::try_from(request.length).unwrap_or(0);
        let segment = request.buffer.as_ref().and_then(|buffer| buffer.segment(0, length));
        let copied = segment.map_or(0, |segment| segment.copy_to(0, &mut data));
        let data = data.get(..copied).unwrap_or(&[]);
        let controller = self.controllers.get(&cntlid);
        let refusal = controller.and_then(|it| self.feature_refusal(it, set.fid, nsid, true));
        if let Some(status) = refusal {
            return self.answer(id, status.into());
        }
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        let has_io_queues = !controller.io_queues.is_empty();
        let (dw0, effect) = match controller.features.set(set, nsid, data, has_io_queues) {
            Ok(done) => done,
            Err(status) => return self.answer(id, status.into()),
        };
        match effect {
            Effect::WriteThrough(on) => {
                for queue in controller.io_queues.values() {
                    queue.share.set_write_through(on);
                }
                if on {
                    // What was acknowledged before has to be as durable as what comes after.
                    if let Some(request) = self.requests.get_mut(id) {
                        request.task = Task::FlushAll { next: 1 };
                    }
                    return self.drive(id);
                }
            }
            Effect::Events => self.deliver_event(cntlid),
            // The timer is computed from the value and the last command, which is this one.
            Effect::KeepAlive(_) | Effect::None => {}
        }
        self.answer(id, Outcome::result(dw0.into()));
    }

    /// A command failed: the error log of its controller is told, by message if that is elsewhere. At most
    /// once per queue and turn, so that a host cannot make one shard flood another.
    pub(super) fn report_failure(&mut self, queue: QueueId, cntlid: u16, failure: Failure) {
        let owner = self.owner(cntlid);
        if owner == self.index {
            return self.failed(cntlid, &failure);
        }
        let Some(queue) = self.queues.get_mut(queue) else { return };
        if queue.reported_failure != Some(self.now) {
            queue.reported_failure = Some(self.now);
            self.send(owner, super::message::Body::Failed { cntlid, failure });
        }
    }

    /// A command on a queue of a controller of ours failed.
    pub(super) fn failed(&mut self, cntlid: u16, failure: &Failure) {
        if let Some(controller) = self.controllers.get_mut(&cntlid) {
            controller.errors.record(failure);
        }
    }
}
