//! Connect: who may have which queue.
//!
//! The admin queue makes a controller on the shard of its connection, which gives out the identifiers that are
//! its own modulo the number of shards: no shared allocator, and an I/O Connect finds the owner by arithmetic.
//!
//! Before a controller is made every shard is asked whether anything of the host's dead queues in this subsystem
//! is still in a device ([`Body::Quiesce`]): a write that the host has given up, and will repeat, must not
//! land after its repetition. The Connect waits up to a bound, then is told to try again.
//!
//! Refusals carry Do Not Retry where trying again cannot help; Linux stops reconnecting on it. So there is
//! none while the configuration is not there yet, while old writes drain, and during a shutdown.
//!
//! Nor is there one because this shard is behind with the configuration: a host that was told of a subsystem, by
//! the discovery log of a shard that is ahead, may come here before the configuration does. That is why access is
//! decided only after every shard has answered: whatever a shard announced before the host heard of it
//! (`Body::Configured`) has arrived by then. A Connect that this shard would refuse, knowing that it is
//! behind, waits for the configuration, up to the same bound; `nvme connect` does not repeat its first.

use std::sync::Arc;

use memory::Segment;
use nvme::address::TransportAddress;
use nvme::fabrics::{
    AuthenticationRequirement, CNTLID_DYNAMIC, Connect, ConnectData, ConnectFailure, ConnectField,
};
use nvme::register::{Configuration, ControllerStatus};
use nvme::{Nqn, Status};
use zerocopy::FromBytes;

use super::Shard;
use super::controller::{Controller, Ending, IoQueue, Kind};
use super::event::Events;
use super::intake::Outcome;
use super::message::{Attach, Body, Host, Refusal};
use super::queue::{QueueShare, Role, Traffic};
use super::request::{Stage, Task};
use crate::configuration::{Limits, ListenerId, MAX_CONTROLLER_ID};
use crate::feature::{FeatureSetup, Features};
use crate::log_page::{ChangedNamespaces, ErrorLog};
use crate::{Instant, QueueId, RequestId, ShardIndex};

/// An admin queue has at least this many entries, whatever the limit for I/O queues: 32, as the
/// specification demands and Linux uses.
const ADMIN_ENTRIES_LEAST: u16 = 32;

/// An admin Connect that waits for the host's old writes, and then perhaps for this shard's configuration.
#[derive(Debug)]
pub(crate) struct Pending {
    request: RequestId,
    host: Host,
    subsystem: Nqn,
    /// Shards that have not said that they are quiet.
    waiting: u16,
    deadline: Instant,
}

/// A refusal that trying again does not help.
fn never(failure: ConnectFailure) -> Refusal {
    Refusal { status: failure.status().with_dnr(), dw0: failure.dw0() }
}

fn wrong(field: ConnectField) -> Refusal {
    never(ConnectFailure::Parameter(field))
}

/// A refusal that passes.
fn busy() -> Refusal {
    let failure = ConnectFailure::ControllerBusy;
    Refusal { status: failure.status(), dw0: failure.dw0() }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self { status: refusal.status, result: refusal.dw0.into(), data: 0 }
    }
}

/// The data of a Connect.
fn read(segment: &Segment) -> Option<ConnectData> {
    let mut bytes = [0; size_of::<ConnectData>()];
    if segment.copy_to(0, &mut bytes) != bytes.len() {
        return None;
    }
    ConnectData::read_from_bytes(&bytes).ok()
}

impl Shard {
    /// A Connect and its data are here.
    pub(super) fn connect(&mut self, id: RequestId, connect: Connect) {
        let Some(request) = self.requests.get(id) else { return };
        let queue_id = request.queue;
        let length = usize::try_from(request.length).unwrap_or(0);
        let segment = request.buffer.as_ref().and_then(|buffer| buffer.segment(0, length));
        let Some(data) = segment.as_ref().and_then(read) else {
            self.answer(id, Status::INTERNAL_ERROR.into());
            return;
        };
        drop(segment);
        // From here on the data is no longer needed, and its memory is charged to nobody known.
        self.release_buffer(id);
        if let Err(refusal) = self.try_connect(id, queue_id, connect, &data) {
            self.refuse(id, queue_id, refusal);
        }
    }

    fn refuse(&mut self, id: RequestId, queue: QueueId, refusal: Refusal) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.role = Role::Unconnected;
            queue.since = self.now;
        }
        self.counters.connects_refused += 1;
        self.answer(id, refusal.into());
    }

    fn try_connect(
        &mut self,
        id: RequestId,
        queue_id: QueueId,
        connect: Connect,
        data: &ConnectData,
    ) -> Result<(), Refusal> {
        let (host, subsystem) = self.check_names(connect, data)?;
        let cntlid = data.cntlid.get();
        if connect.qid != 0 {
            if subsystem.is_discovery() {
                return Err(wrong(ConnectField::QueueId));
            }
            self.ask_owner(id, queue_id, connect, cntlid, host, subsystem);
            return Ok(());
        }
        if cntlid != CNTLID_DYNAMIC {
            return Err(wrong(ConnectField::ControllerId));
        }
        if subsystem.is_discovery() {
            self.check_access(queue_id, connect, &host, &subsystem)?;
            return self.create_controller(id, queue_id, connect, host, &subsystem);
        }
        self.set_role(queue_id, Role::Connecting { request: id, io: None });
        self.park(id);
        let deadline = self.now + self.limits.drain_wait;
        self.connecting.push(Pending {
            request: id,
            host: host.clone(),
            subsystem: subsystem.clone(),
            waiting: self.shards,
            deadline,
        });
        self.broadcast(|| Body::Quiesce {
            request: id,
            host: host.clone(),
            subsystem: subsystem.clone(),
        });
        Ok(())
    }

    fn set_role(&mut self, queue: QueueId, role: Role) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.role = role;
            queue.since = self.now;
        }
    }

    /// The request waits for other shards.
    pub(super) fn park(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(id) {
            request.stage = Stage::Elsewhere;
            request.since = self.now;
        }
    }

    /// The checks that need nothing but the command and its data.
    fn check_names(&self, connect: Connect, data: &ConnectData) -> Result<(Host, Nqn), Refusal> {
        if connect.recfmt != 0 {
            return Err(never(ConnectFailure::IncompatibleFormat));
        }
        let nqn = data.host().map_err(|_| wrong(ConnectField::HostNqn))?;
        let subsystem = data.subsystem().map_err(|_| wrong(ConnectField::SubsystemNqn))?;
        let host = Host { nqn, id: data.host_id() };
        if host.id.is_zero() {
            return Err(wrong(ConnectField::HostId));
        }
        if connect.qid == 0 && (self.shutdown.is_some() || self.configuration.version() == 0) {
            return Err(busy());
        }
        if connect.sqsize == 0 {
            return Err(wrong(ConnectField::QueueSize));
        }
        Ok((host, subsystem))
    }

    /// Whether this host may use this subsystem by the listener that the connection came in by, with an admin
    /// queue of this size. Of an I/O queue that is for the owner of the controller to say, which has admitted
    /// this host.
    fn check_access(
        &self,
        queue: QueueId,
        connect: Connect,
        host: &Host,
        nqn: &Nqn,
    ) -> Result<(), Refusal> {
        if !nqn.is_discovery() {
            let Some(subsystem) = self.configuration.subsystem(nqn) else {
                return Err(wrong(ConnectField::SubsystemNqn));
            };
            if !subsystem.allows(&host.nqn) {
                return Err(never(ConnectFailure::InvalidHost));
            }
            if !self.reaches(queue, nqn) {
                return Err(wrong(ConnectField::SubsystemNqn));
            }
        }
        if connect.sqsize >= self.limits_of(nqn).queue_depth.max(ADMIN_ENTRIES_LEAST) {
            return Err(wrong(ConnectField::QueueSize));
        }
        Ok(())
    }

    /// Whether the subsystem is offered where this connection came in. A connection by an address that is no
    /// listener's (one that was just removed, a forwarded one) reaches what is offered everywhere.
    pub(super) fn reaches(&self, queue: QueueId, nqn: &Nqn) -> bool {
        if self.queues.get(queue).is_none() {
            return false;
        }
        let Some(subsystem) = self.configuration.subsystem(nqn) else { return false };
        match self.listener_of(queue) {
            Some(listener) => subsystem.is_reachable_on(listener),
            None => subsystem.options().reach == crate::configuration::Reach::Everywhere,
        }
    }

    /// The listener that a connection came in by, if it is still one.
    fn listener_of(&self, queue: QueueId) -> Option<ListenerId> {
        let info = &self.queues.get(queue)?.info;
        let local = TransportAddress {
            trtype: info.transport,
            traddr: info.local.ip(),
            trsvcid: info.local.port(),
        };
        self.configuration.listener_at(&local).map(|listener| listener.id)
    }

    fn limits_of(&self, nqn: &Nqn) -> Limits {
        self.configuration
            .subsystem(nqn)
            .map_or_else(Limits::default, |subsystem| *subsystem.limits())
    }

    /// A shard has nothing of the host's past in a device.
    pub(super) fn quiet(&mut self, request: RequestId) {
        let waits = |pending: &Pending| pending.request == request;
        let Some(at) = self.connecting.iter().position(waits) else { return };
        if let Some(pending) = self.connecting.get_mut(at) {
            pending.waiting = pending.waiting.saturating_sub(1);
        }
        self.decide(at);
    }

    /// Takes up the Connects again that waited for the configuration, which has come.
    pub(super) fn decide_connects(&mut self) {
        for at in (0..self.connecting.len()).rev() {
            self.decide(at);
        }
    }

    /// Answers the Connect at this place in the list, and takes it out, unless it still has to wait.
    fn decide(&mut self, at: usize) {
        let Some(pending) = self.connecting.get(at).filter(|pending| pending.waiting == 0) else {
            return;
        };
        let (request, record) = (pending.request, self.requests.get(pending.request));
        // One whose queue has gone is forgotten by the next tick.
        let Some((queue, Task::Connect(connect))) =
            record.map(|record| (record.queue, record.task))
        else {
            return;
        };
        let access = self.check_access(queue, connect, &pending.host, &pending.subsystem);
        if access.is_err() && self.is_behind() {
            return;
        }
        let Pending { host, subsystem, .. } = self.connecting.swap_remove(at);
        let result =
            access.and_then(|()| self.create_controller(request, queue, connect, host, &subsystem));
        if let Err(refusal) = result {
            self.refuse(request, queue, refusal);
        }
    }

    /// Whether another shard is known to run a later configuration than this one.
    fn is_behind(&self) -> bool {
        self.versions.iter().any(|version| *version > self.configuration.version())
    }

    /// Refuses the Connects that have waited long enough, and forgets those whose queue has gone.
    pub(super) fn expire_connects(&mut self) {
        let mut at = 0;
        while let Some(pending) = self.connecting.get(at) {
            let (request, late) = (pending.request, pending.deadline <= self.now);
            let queue = self.requests.get(request).map(|record| record.queue);
            match queue {
                Some(queue) if late => {
                    self.connecting.swap_remove(at);
                    self.counters.connects_deferred += 1;
                    self.refuse(request, queue, busy());
                }
                Some(_) => at += 1,
                None => {
                    self.connecting.swap_remove(at);
                }
            }
        }
    }

    fn free_cntlid(&mut self, first: u16, last: u16) -> Option<u16> {
        let own = |cntlid: &u16| self.owner(*cntlid) == self.index;
        let from = self.next_cntlid.clamp(first, last);
        let found = (from..=last)
            .chain(first..from)
            .filter(own)
            .find(|cntlid| !self.controllers.contains_key(cntlid))?;
        self.next_cntlid = found.saturating_add(1);
        Some(found)
    }

    fn create_controller(
        &mut self,
        id: RequestId,
        queue_id: QueueId,
        connect: Connect,
        host: Host,
        nqn: &Nqn,
    ) -> Result<(), Refusal> {
        let (kind, (first, last)) = if nqn.is_discovery() {
            (Kind::Discovery, (1, MAX_CONTROLLER_ID))
        } else {
            let key = self.subsystems.find(nqn);
            let entry = key.and_then(|key| Some((key, self.subsystems.get(key)?)));
            let (key, entry) = entry.ok_or_else(|| wrong(ConnectField::SubsystemNqn))?;
            let range = &entry.subsystem().options().controller_ids;
            (Kind::Nvm(key), (*range.start(), *range.end()))
        };
        let cntlid = self.free_cntlid(first, last).ok_or_else(busy)?;
        let listener = self.listener_of(queue_id);
        let share = self.connected(queue_id, Role::Admin { cntlid }, connect, &host);
        let subsystem = self.configuration.subsystem(nqn);
        let volatile_write_cache = subsystem.is_some_and(|it| it.has_volatile_write_cache());
        let ana = subsystem.is_some_and(|it| it.options().ana.is_some());
        let features = Features::new(FeatureSetup {
            kind: kind.controller_type(),
            volatile_write_cache,
            ana,
            io_queues: self.limits_of(nqn).io_queues,
            host: host.id,
            keep_alive: connect.kato,
        });
        tracing::info!(
            cntlid,
            subsystem = %nqn,
            host = %host.nqn,
            keep_alive_ms = connect.kato,
            "controller connected"
        );
        let controller = Controller {
            kind,
            host,
            admin: queue_id,
            listener,
            share,
            io_queues: std::collections::BTreeMap::new(),
            past: Traffic::default(),
            cc: Configuration::default(),
            csts: ControllerStatus::default(),
            ending: None,
            features,
            events: Events::default(),
            changed: ChangedNamespaces::default(),
            ana_changes: 0,
            errors: ErrorLog::default(),
            busy: std::time::Duration::ZERO,
            aborts: 0,
            since: self.now,
        };
        self.controllers.insert(cntlid, controller);
        if let Some(own) = self.subsystems.controllers_mut(kind) {
            own.insert(cntlid);
        }
        self.counters.controllers_created += 1;
        self.welcome(id, queue_id, cntlid, connect);
        Ok(())
    }

    /// The queue takes its role.
    fn connected(
        &mut self,
        queue_id: QueueId,
        role: Role,
        connect: Connect,
        host: &Host,
    ) -> Arc<QueueShare> {
        let key = self.hosts.join(host);
        let Some(queue) = self.queues.get_mut(queue_id) else {
            self.hosts.leave(key);
            return Arc::default();
        };
        self.hosts.remove_slots(queue.host, queue.slots);
        self.hosts.add_slots(key, queue.slots);
        queue.role = role;
        queue.host = key;
        queue.since = self.now;
        queue.flow_control = !connect.cattr.disable_sq_flow_control;
        queue.entries = connect.sqsize.saturating_add(1);
        if queue.is_io() {
            self.counters.io_queues_connected += 1;
            self.pledges.admit(queue.entries);
        }
        Arc::clone(&queue.share)
    }

    /// Answers a Connect that succeeded; only then is there room for more commands.
    fn welcome(&mut self, id: RequestId, queue_id: QueueId, cntlid: u16, connect: Connect) {
        let result = Connect::response(cntlid, AuthenticationRequirement::default());
        self.answer(id, Outcome::result(result.into()));
        if let Some(queue) = self.queues.get_mut(queue_id) {
            queue.commands = super::command_table::CommandTable::new(u32::from(connect.sqsize) + 1);
        }
        self.woken = true;
        self.look_at_stalled();
    }

    /// Asks the owner of the controller whether this I/O queue may join it.
    fn ask_owner(
        &mut self,
        id: RequestId,
        queue_id: QueueId,
        connect: Connect,
        cntlid: u16,
        host: Host,
        subsystem: Nqn,
    ) {
        let Some(share) = self.queues.get(queue_id).map(|queue| Arc::clone(&queue.share)) else {
            return;
        };
        let io = Some((cntlid, connect.qid));
        self.set_role(queue_id, Role::Connecting { request: id, io });
        self.park(id);
        let attach = Attach {
            queue: queue_id,
            request: id,
            cntlid,
            qid: connect.qid,
            sqsize: connect.sqsize,
            host,
            subsystem,
            share,
        };
        self.send(self.owner(cntlid), Body::Attach(Box::new(attach)));
    }

    /// An I/O queue of `from` wants to join a controller of this shard.
    pub(super) fn attach(&mut self, from: ShardIndex, attach: Box<Attach>) {
        let result = self.admit(from, &attach);
        self.send(from, Body::Attached { attach, result });
    }

    fn admit(&mut self, from: ShardIndex, attach: &Attach) -> Result<Option<ListenerId>, Refusal> {
        let Some(controller) = self.controllers.get_mut(&attach.cntlid) else {
            return Err(wrong(ConnectField::ControllerId));
        };
        let Kind::Nvm(subsystem) = controller.kind else {
            return Err(wrong(ConnectField::SubsystemNqn));
        };
        let Some(entry) = self.subsystems.get(subsystem) else { return Err(busy()) };
        if entry.subsystem().nqn() != &attach.subsystem {
            return Err(wrong(ConnectField::SubsystemNqn));
        }
        if controller.host.nqn != attach.host.nqn {
            return Err(wrong(ConnectField::HostNqn));
        }
        if controller.host.id != attach.host.id {
            return Err(wrong(ConnectField::HostId));
        }
        match controller.ending {
            Some(Ending::Dead) => return Err(wrong(ConnectField::ControllerId)),
            Some(_) => return Err(busy()),
            None if !controller.is_ready() => return Err(wrong(ConnectField::QueueId)),
            None => {}
        }
        let limits = entry.subsystem().limits();
        if attach.qid > limits.io_queues {
            return Err(wrong(ConnectField::QueueId));
        }
        if attach.sqsize >= limits.queue_depth {
            return Err(wrong(ConnectField::QueueSize));
        }
        if let Some(queue) = controller.io_queues.get(&attach.qid) {
            // One that is on its way out is worth waiting for; and so may be the other, whose connection
            // may just have broken on its own shard.
            return Err(if queue.dropping {
                busy()
            } else {
                Refusal { status: Status::INVALID_QUEUE_ID, dw0: 0 }
            });
        }
        attach.share.set_write_through(controller.features.is_write_through());
        controller.io_queues.insert(
            attach.qid,
            IoQueue {
                shard: from,
                queue: attach.queue,
                share: Arc::clone(&attach.share),
                dropping: false,
            },
        );
        Ok(controller.listener)
    }

    /// The owner has decided.
    pub(super) fn attached(
        &mut self,
        attach: &Attach,
        result: Result<Option<ListenerId>, Refusal>,
    ) {
        let (queue_id, request) = (attach.queue, attach.request);
        let Some(queue) = self.queues.get(queue_id) else { return };
        let Role::Connecting { request: expected, io: Some((cntlid, qid)) } = queue.role else {
            return;
        };
        // A queue that has gone meanwhile says Detached when it is forgotten.
        if expected != request || !queue.is_live() {
            return;
        }
        let Some(record) = self.requests.get(request) else { return };
        let Task::Connect(connect) = record.task else { return };
        let listener = match result {
            Ok(listener) => listener,
            Err(refusal) => return self.refuse(request, queue_id, refusal),
        };
        let Some(subsystem) = self.subsystems.find(&attach.subsystem) else {
            // This shard's configuration is ahead of, or behind, the owner's, which has to forget it again.
            self.send(self.owner(cntlid), Body::Detached { cntlid, qid, queue: queue_id });
            self.refuse(request, queue_id, busy());
            return;
        };
        tracing::info!(
            cntlid,
            qid,
            subsystem = %attach.subsystem,
            host = %attach.host.nqn,
            "I/O queue connected"
        );
        self.connected(queue_id, Role::Io { cntlid, qid, subsystem }, connect, &attach.host);
        if let Some(queue) = self.queues.get_mut(queue_id) {
            queue.listener = listener;
        }
        self.welcome(request, queue_id, cntlid, connect);
    }
}
