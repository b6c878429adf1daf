//! A new snapshot of the configuration takes effect on this shard.
//!
//! Only what differs is touched. New namespaces get a block queue; those that are gone answer new commands with
//! a final status at once, and their queue is closed when the last operation is back. Controllers whose host is
//! no longer admitted, or whose way in is gone, are dropped. What hosts are to be told of is said when
//! every shard has come as far. Connects that this shard could not decide while it was behind are decided.

use std::collections::BTreeSet;
use std::sync::Arc;

use block::{BlockDevice, BlockError, BlockQueue};

use super::Shard;
use super::backend::Backend;
use super::controller::Kind;
use super::event::Notice;
use super::limit::Turns;
use super::request::Fifo;
use super::table::Key;
use crate::DisconnectReason;
use crate::configuration::{
    Change, Configuration, Namespace, NamespaceState, Subsystem, changed_namespaces, changes,
};
use crate::io::Bounds;
use crate::statistics::Counters;

/// How a shard gets a queue on a device.
pub type OpenQueue<'a> =
    dyn FnMut(&dyn BlockDevice) -> Result<Box<dyn BlockQueue>, BlockError> + 'a;

impl Shard {
    /// Takes on a snapshot. Devices whose queue cannot be opened answer "not ready" until a later snapshot
    /// replaces their namespace, and are returned.
    pub fn configure(
        &mut self,
        configuration: Arc<Configuration>,
        open: &mut OpenQueue<'_>,
    ) -> Vec<BlockError> {
        let before = std::mem::replace(&mut self.configuration, configuration);
        let after = Arc::clone(&self.configuration);
        let mut errors = Vec::new();
        let mut told = BTreeSet::new();
        let mut unwelcome = Vec::new();
        for change in changes(&before, &after) {
            self.counters.configured += 1;
            match change {
                Change::Added(subsystem) => {
                    let Some(key) = self.subsystems.add(subsystem) else { continue };
                    for namespace in subsystem.namespaces() {
                        self.place(key, subsystem, namespace.nsid(), open, &mut errors);
                    }
                }
                Change::Removed(subsystem) => {
                    let Some(key) = self.subsystems.find(subsystem.nqn()) else { continue };
                    // First, so that what has been held is not told that its namespace alone is gone.
                    self.subsystems.retire(key);
                    for namespace in subsystem.namespaces() {
                        self.displace(key, namespace.nsid());
                    }
                    unwelcome.extend(self.unwelcome(key));
                }
                Change::Replaced { before, after } => {
                    let Some(key) = self.subsystems.find(after.nqn()) else { continue };
                    if let Some(entry) = self.subsystems.get_mut(key) {
                        entry.put(Arc::clone(after));
                    }
                    let nsids: Vec<u32> = changed_namespaces(before, after).collect();
                    for nsid in &nsids {
                        self.place(key, after, *nsid, open, &mut errors);
                    }
                    let resized = self.refresh_bounds(key, after);
                    told.extend(self.note_changes(key, before, after, &nsids));
                    told.extend(self.note_sizes(key, &resized));
                    unwelcome.extend(self.unwelcome(key));
                }
            }
        }
        for cntlid in unwelcome {
            self.kill_controller(cntlid, DisconnectReason::Configuration);
        }
        if before.discovery_generation() != after.discovery_generation() {
            let all = self.subsystems.controllers(Kind::Discovery).into_iter().flatten();
            told.extend(all.map(|cntlid| (*cntlid, Notice::Discovery)));
        }
        for error in &errors {
            tracing::error!(%error, "a namespace is not served");
        }
        self.announce(after.version(), told);
        self.decide_connects();
        errors
    }

    /// Brings one namespace of a subsystem to what the snapshot says.
    fn place(
        &mut self,
        key: Key,
        subsystem: &Arc<Subsystem>,
        nsid: u32,
        open: &mut OpenQueue<'_>,
        errors: &mut Vec<BlockError>,
    ) {
        let device = subsystem.namespace(nsid).and_then(|namespace| match namespace.state() {
            NamespaceState::Ready(device) => Some((namespace, device)),
            NamespaceState::Waiting | NamespaceState::Removing(_) => None,
        });
        let Some((namespace, device)) = device else { return self.displace(key, nsid) };
        let current = self.subsystems.get(key).and_then(|entry| entry.backend(nsid));
        if let Some(backend) = current.and_then(|key| self.subsystems.backends.get_mut(key))
            && backend.queue.is_some()
            && backend.namespace.device().is_some_and(|old| Arc::ptr_eq(old, device))
        {
            // The same device: resized, renamed, made read-only; its queue stays.
            backend.namespace = Arc::clone(namespace);
            backend.counters = namespace.statistics().of(self.index);
            backend.limits = Arc::clone(namespace.rate_limits());
            return;
        }
        self.displace(key, nsid);
        let queue = open(device.as_ref()).map_err(|error| errors.push(error)).ok();
        let counters = namespace.statistics().of(self.index);
        let mut backend = new_backend(key, namespace, subsystem, device.as_ref(), queue, counters);
        backend.fences = self.fences.count(namespace);
        let backend = self.subsystems.backends.insert(backend).ok();
        if let Some(entry) = self.subsystems.get_mut(key) {
            entry.set_backend(nsid, backend);
        }
    }

    /// Takes a namespace out of service.
    fn displace(&mut self, subsystem: Key, nsid: u32) {
        let Some(entry) = self.subsystems.get_mut(subsystem) else { return };
        let Some(key) = entry.backend(nsid) else { return };
        entry.set_backend(nsid, None);
        if let Some(backend) = self.subsystems.backends.get_mut(key) {
            backend.retired = true;
            // Nobody will say that these are over, and what they hold has to be answered.
            let pauses = std::mem::take(&mut backend.pauses);
            for pause in pauses.iter().filter(|pause| !pause.acknowledged) {
                self.send(pause.key.by, super::message::Body::Paused { pause: pause.key });
            }
        }
        self.release_held(key);
        self.forget_retired(key);
    }

    /// Closes the queue of a namespace that has left, once it is empty.
    pub(super) fn forget_retired(&mut self, key: Key) {
        let Some(backend) = self.subsystems.backends.get(key) else { return };
        if backend.retired && backend.in_flight == 0 && backend.held.is_empty() {
            self.subsystems.backends.remove(key);
        }
    }

    /// What commands are checked against may have changed with the limits or the device's size.
    /// Gives the namespaces whose device has changed its size since it was looked at: hosts have to be told.
    fn refresh_bounds(&mut self, key: Key, subsystem: &Subsystem) -> Vec<u32> {
        let mut resized = Vec::new();
        let backends: Vec<Key> =
            self.subsystems.get(key).map(|entry| entry.backends().collect()).unwrap_or_default();
        for backend in backends {
            self.counters.configured += 1;
            let Some(backend) = self.subsystems.backends.get_mut(backend) else { continue };
            let before = backend.generation;
            refresh(backend, subsystem);
            if backend.generation != before {
                resized.push(backend.namespace.nsid());
            }
        }
        resized
    }

    /// Notes for the controllers of this shard what has changed for them, of these namespaces and of the states of
    /// their paths; which have to be told what.
    fn note_changes(
        &mut self,
        key: Key,
        before: &Subsystem,
        after: &Subsystem,
        nsids: &[u32],
    ) -> Vec<(u16, Notice)> {
        let mut told = Vec::new();
        let same_ana = before.options().ana == after.options().ana;
        if nsids.is_empty() && same_ana {
            return told;
        }
        for cntlid in self.controllers_of(key) {
            let Some(controller) = self.controllers.get_mut(&cntlid) else { continue };
            let (one, other) = (controller.view(before), controller.view(after));
            let mut ana = !same_ana && one.ana_states() != other.ana_states();
            let (mut members, mut changed) = (false, Vec::new());
            for nsid in nsids {
                let (one, other) = (one.namespace(*nsid), other.namespace(*nsid));
                members |= one.is_some() != other.is_some();
                let alike = match (one, other) {
                    (None, None) => true,
                    (Some(one), Some(other)) => {
                        ana |= one.ana_group() != other.ana_group();
                        one.looks_like(other)
                    }
                    _ => false,
                };
                if !alike {
                    changed.push(*nsid);
                }
            }
            for nsid in &changed {
                controller.changed.record(*nsid);
            }
            if !changed.is_empty() {
                told.push((cntlid, Notice::Namespaces));
            }
            // A namespace that comes or goes changes the page, too, but is one notice, not two.
            controller.ana_changes += u64::from(ana || members);
            if ana && after.options().ana.is_some() {
                told.push((cntlid, Notice::Ana));
            }
        }
        told
    }

    /// Notes for the controllers of this shard that these namespaces have another size; which have to be told.
    fn note_sizes(&mut self, key: Key, nsids: &[u32]) -> Vec<(u16, Notice)> {
        let mut told = Vec::new();
        let Some(entry) = self.subsystems.get(key) else { return told };
        let subsystem = Arc::clone(entry.subsystem());
        for nsid in nsids {
            for cntlid in self.controllers_of(key) {
                let Some(controller) = self.controllers.get_mut(&cntlid) else { continue };
                if controller.view(&subsystem).namespace(*nsid).is_some() {
                    controller.changed.record(*nsid);
                    told.push((cntlid, Notice::Namespaces));
                }
            }
        }
        told
    }

    fn controllers_of(&mut self, subsystem: Key) -> Vec<u16> {
        let own = self.subsystems.controllers(Kind::Nvm(subsystem));
        let own: Vec<u16> = own.into_iter().flatten().copied().collect();
        self.counters.configured += own.len() as u64;
        own
    }

    /// The controllers of a subsystem that could not connect any more.
    fn unwelcome(&mut self, subsystem: Key) -> Vec<u16> {
        let mut unwelcome = self.controllers_of(subsystem);
        let Some(entry) = self.subsystems.get(subsystem) else { return unwelcome };
        unwelcome.retain(|cntlid| {
            let Some(controller) = self.controllers.get(cntlid) else { return false };
            entry.retired
                || !entry.subsystem().allows(&controller.host.nqn)
                || !self.reaches(controller.admin, entry.subsystem().nqn())
        });
        unwelcome
    }

    /// Whether the device of a namespace has another size than this shard knows.
    pub(super) fn is_outgrown(&self, subsystem: Key, nsid: u32) -> bool {
        let entry = self.subsystems.get(subsystem);
        let backend = entry
            .and_then(|entry| entry.backend(nsid))
            .and_then(|key| self.subsystems.backends.get(key));
        backend.is_some_and(|backend| {
            let device = backend.namespace.device();
            device.is_some_and(|device| device.geometry().generation != backend.generation)
        })
    }

    /// A device may change its size by itself; hosts are told as of any other change.
    pub(super) fn watch_geometry(&mut self) {
        let mut changed = Vec::new();
        for backend in self.subsystems.backends.values_mut() {
            let generation = backend.namespace.device().map(|device| device.geometry().generation);
            if !backend.retired && generation.is_some_and(|now| now != backend.generation) {
                changed.push((backend.subsystem, backend.namespace.nsid()));
            }
        }
        for (key, nsid) in changed {
            let subsystem = self.subsystems.get(key).map(|entry| Arc::clone(entry.subsystem()));
            let Some(subsystem) = subsystem else { continue };
            let _ = self.refresh_bounds(key, &subsystem);
            let told = self.note_sizes(key, &[nsid]);
            self.announce(self.configuration.version(), told);
        }
    }

    /// Frees the records of subsystems that have left and that no queue or controller refers to any more.
    pub(super) fn forget_subsystems(&mut self) {
        let retired: Vec<Key> =
            self.subsystems.iter().filter(|(_, entry)| entry.retired).map(|(key, _)| key).collect();
        for key in retired {
            let queue = self.queues.iter().any(|(_, queue)| {
                matches!(queue.role, super::queue::Role::Io { subsystem, .. } if subsystem == key)
            });
            let controller =
                self.controllers.values().any(|controller| controller.kind == Kind::Nvm(key));
            let backend =
                self.subsystems.backends.iter().any(|(_, backend)| backend.subsystem == key);
            if !queue && !controller && !backend {
                self.subsystems.forget(key);
            }
        }
    }
}

fn new_backend(
    key: Key,
    namespace: &Arc<Namespace>,
    subsystem: &Subsystem,
    device: &dyn BlockDevice,
    queue: Option<Box<dyn BlockQueue>>,
    counters: Arc<Counters>,
) -> Backend {
    Backend {
        subsystem: key,
        namespace: Arc::clone(namespace),
        queue,
        medium: device.medium().cloned(),
        bounds: Bounds::new(namespace, device, subsystem.limits()),
        generation: device.geometry().generation,
        counters,
        limits: Arc::clone(namespace.rate_limits()),
        turns: Turns::default(),
        in_flight: 0,
        active: false,
        retired: false,
        fences: 0,
        pauses: Vec::new(),
        held: Fifo::default(),
        slots: 0,
        charged: 0,
        lent: 0,
        crowded_in: None,
    }
}

fn refresh(backend: &mut Backend, subsystem: &Subsystem) {
    if let Some(device) = backend.namespace.device() {
        backend.generation = device.geometry().generation;
        backend.bounds = Bounds::new(&backend.namespace, device.as_ref(), subsystem.limits());
    }
}
