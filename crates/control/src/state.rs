//! What is configured, and what of it is there: an immutable snapshot that methods read without waiting for anybody.
//!
//! A change clones the snapshot (its objects are shared), edits the clone, and hands both to the
//! [plane](crate::plane), which derives from them what has to be written to disk and what the target serves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use block::BlockDevice;
use nvme::Nqn;
use serde::Serialize;
use serde::de::DeserializeOwned;
use target::configuration::{
    self, Ana, Configuration, ConfigurationBuilder, ConfigurationError, Hosts, Limits, Listener,
    ListenerId, NamespaceOptions, NamespaceState, Reach, SubsystemOptions,
};
use target::rate_limit::{RateLimits, Rates};
use uuid::Uuid;

use crate::controllers::Attached;
use crate::objects::{
    Address, AnaState, AnaStates, Controller, Device, DeviceKind, Namespace, NvmeOptions, Objects,
    Referral, Subsystem, Transport, Trtype,
};
use crate::statistics::DeviceStatistics;
use crate::store::Change;
use crate::transports::Settings;

/// A configured device and, if it could be opened, the device itself.
#[derive(Clone)]
pub struct Opened {
    /// As configured.
    pub object: Device,
    /// The device, or why it is waited for.
    pub device: Result<Arc<dyn BlockDevice>, String>,
    /// What its operations have come to.
    pub statistics: Arc<DeviceStatistics>,
    /// What holds it to its limits.
    pub limits: Arc<RateLimits>,
}

impl Opened {
    /// A device that is configured and still to be opened.
    pub fn not_yet(object: Device) -> Self {
        let waiting = match (object.kind.base(), object.kind.controller()) {
            (Some(base), _) => format!("{base}, which it stands on, is not there"),
            (_, Some((controller, nsid))) => {
                format!("namespace {nsid} of {controller} is not there")
            }
            _ => "it has not been opened yet".to_owned(),
        };
        Self { object, device: Err(waiting), statistics: Arc::default(), limits: Arc::default() }
    }

    /// The UUID by which clients know it: its own, or that of the namespace of a controller which it is.
    pub fn uuid(&self) -> Option<Uuid> {
        self.object.uuid.or_else(|| {
            self.object.kind.controller()?;
            let identity = self.device.as_ref().ok()?.identity();
            identity.uuid.or_else(|| identity.nguid.map(Uuid::from_bytes))
        })
    }

    /// Whether a namespace over it is the same as over the other: limits are changed without it.
    fn serves_as(&self, other: &Self) -> bool {
        let both_wait = self.device.is_err() && other.device.is_err();
        (both_wait || self.has_device_of(other))
            && self.object.uuid == other.object.uuid
            && Arc::ptr_eq(&self.statistics, &other.statistics)
            && Arc::ptr_eq(&self.limits, &other.limits)
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("object", &self.object)
            .field("waiting", &self.device.as_ref().err())
            .finish_non_exhaustive()
    }
}

/// A snapshot.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// How NVMe controllers are driven.
    pub nvme_options: NvmeOptions,
    /// NVMe controllers by name.
    pub controllers: BTreeMap<String, Arc<Attached>>,
    /// Controllers that have been attached for the change that is being made.
    pub(crate) arriving: Vec<Attached>,
    /// Devices by name.
    pub devices: BTreeMap<String, Arc<Opened>>,
    /// Transports by type.
    pub transports: BTreeMap<Trtype, Arc<Transport>>,
    /// Subsystems by name.
    pub subsystems: BTreeMap<Nqn, Arc<Subsystem>>,
    /// Referrals by where they lead.
    pub referrals: BTreeMap<(Address, Nqn), Arc<Referral>>,
    /// The numbers by which the target knows the addresses of all subsystems.
    pub listeners: BTreeMap<Address, ListenerId>,
    /// Process settings, not kept.
    pub settings: Settings,
}

/// Where an object is kept.
const NVME_OPTIONS_KEY: &str = "options/nvme";

fn controller_key(name: &str) -> String {
    format!("controller/{name}")
}

fn device_key(name: &str) -> String {
    format!("device/{name}")
}

fn transport_key(trtype: Trtype) -> String {
    format!("transport/{}", trtype.as_str())
}

fn subsystem_key(nqn: &Nqn) -> String {
    format!("subsystem/{nqn}")
}

fn referral_key(Address { trtype, traddr, trsvcid }: Address, nqn: &Nqn) -> String {
    format!("referral/{}/{traddr}/{trsvcid}/{nqn}", trtype.as_str())
}

/// An object of the store that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("stored object {key} cannot be read: {problem}")]
pub struct Damaged {
    /// Its key.
    pub key: String,
    /// What is wrong.
    pub problem: serde_json::Error,
}

/// Reads the objects that the store holds.
///
/// # Errors
/// [`Damaged`], for the first that cannot be read.
pub fn read(stored: &[(String, Vec<u8>)]) -> Result<Objects, Damaged> {
    fn read<T: DeserializeOwned>(key: &str, json: &[u8]) -> Result<T, Damaged> {
        serde_json::from_slice(json).map_err(|problem| Damaged { key: key.to_owned(), problem })
    }
    let mut objects = Objects::default();
    for (key, json) in stored {
        match key.split('/').next() {
            Some("options") if key == NVME_OPTIONS_KEY => objects.nvme_options = read(key, json)?,
            Some("controller") => {
                let controller: Controller = read(key, json)?;
                objects.controllers.insert(controller.name.clone(), controller);
            }
            Some("device") => {
                let device: Device = read(key, json)?;
                objects.devices.insert(device.name.clone(), device);
            }
            Some("transport") => {
                let transport: Transport = read(key, json)?;
                objects.transports.insert(transport.trtype, transport);
            }
            Some("subsystem") => {
                let subsystem: Subsystem = read(key, json)?;
                objects.subsystems.insert(subsystem.nqn.clone(), subsystem);
            }
            Some("referral") => {
                let referral: Referral = read(key, json)?;
                let place = (referral.address, referral.subnqn.clone());
                objects.referrals.insert(place, referral);
            }
            // Written by a version that knows more; kept as it is.
            _ => {}
        }
    }
    Ok(objects)
}

impl From<Objects> for State {
    /// With every device still to be opened.
    fn from(objects: Objects) -> Self {
        let controllers = objects.controllers.into_iter();
        let devices = objects.devices.into_iter();
        let transports = objects.transports.into_iter();
        let subsystems = objects.subsystems.into_iter();
        let referrals = objects.referrals.into_iter();
        let mut state = Self {
            nvme_options: objects.nvme_options,
            controllers: controllers
                .map(|(name, controller)| (name, Arc::new(Attached::not_yet(controller))))
                .collect(),
            devices: devices
                .map(|(name, device)| (name, Arc::new(Opened::not_yet(device))))
                .collect(),
            transports: transports.map(|(trtype, it)| (trtype, Arc::new(it))).collect(),
            subsystems: subsystems.map(|(nqn, it)| (nqn, Arc::new(it))).collect(),
            referrals: referrals.map(|(place, it)| (place, Arc::new(it))).collect(),
            ..Self::default()
        };
        state.number_listeners();
        state
    }
}

impl State {
    /// The subsystems that have a namespace over this device, and its NSID there.
    pub fn users_of(&self, device: &str) -> Vec<(Nqn, u32)> {
        let mut users = Vec::new();
        for (nqn, subsystem) in &self.subsystems {
            for (nsid, namespace) in &subsystem.namespaces {
                if namespace.device == device {
                    users.push((nqn.clone(), *nsid));
                }
            }
        }
        users
    }

    /// The names of the devices that some namespace or layer is over.
    pub fn used_devices(&self) -> BTreeSet<&str> {
        let namespaces = self.subsystems.values().flat_map(|it| it.namespaces.values());
        let by_namespaces = namespaces.map(|namespace| namespace.device.as_str());
        let by_layers = self.devices.values().filter_map(|opened| opened.object.kind.base());
        by_namespaces.chain(by_layers).collect()
    }

    /// A device by its name or UUID, as clients name them.
    pub fn device(&self, name: &str) -> Option<&Arc<Opened>> {
        self.devices.get(name).or_else(|| {
            let uuid = Uuid::try_parse(name).ok()?;
            self.devices.values().find(|opened| opened.uuid() == Some(uuid))
        })
    }

    /// What is configured, without what is there of it.
    pub fn objects(&self) -> Objects {
        let controllers = self.controllers.iter();
        let devices = self.devices.iter();
        let transports = self.transports.iter();
        let subsystems = self.subsystems.iter();
        let referrals = self.referrals.iter();
        Objects {
            nvme_options: self.nvme_options,
            controllers: controllers.map(|(name, it)| (name.clone(), it.object.clone())).collect(),
            devices: devices.map(|(name, it)| (name.clone(), it.object.clone())).collect(),
            transports: transports.map(|(trtype, it)| (*trtype, Transport::clone(it))).collect(),
            subsystems: subsystems.map(|(nqn, it)| (nqn.clone(), Subsystem::clone(it))).collect(),
            referrals: referrals.map(|(place, it)| (place.clone(), Referral::clone(it))).collect(),
        }
    }

    /// Puts the limits in force of devices that may do more or less than in the state `before`.
    pub fn enforce_limits(&self, before: &Self, shards: u16) {
        for (name, opened) in &self.devices {
            let rates = self.rates(opened);
            let same = |old: &Arc<Opened>| {
                Arc::ptr_eq(&old.limits, &opened.limits) && before.rates(old) == rates
            };
            if !before.devices.get(name).is_some_and(same) {
                opened.limits.set(&rates, shards);
            }
        }
    }

    /// How much a device may do: what is below it does all that it does and nothing else, so the least of each limit holds all.
    fn rates(&self, opened: &Opened) -> Rates {
        let mut rates = opened.object.limits.rates();
        for base in self.below(&opened.object) {
            for (rate, below) in rates.iter_mut().zip(base.limits.rates()) {
                *rate = match (*rate, below) {
                    (0, other) | (other, 0) => other,
                    (own, other) => own.min(other),
                };
            }
        }
        rates
    }

    /// The devices that are still to be opened. Layers are not, nor namespaces of controllers: see [`crate::layers`] and
    /// [`crate::controllers`].
    pub fn unopened(&self) -> impl Iterator<Item = &Arc<Opened>> {
        let by_itself = |kind: &DeviceKind| kind.base().is_none() && kind.controller().is_none();
        let devices = self.devices.values();
        devices.filter(move |opened| opened.device.is_err() && by_itself(&opened.object.kind))
    }

    /// Puts a device in the place of the same one that is still to be opened, unless that is gone.
    pub fn put_opened(&mut self, found: Opened) {
        if let Some(opened) = self.devices.get_mut(&found.object.name)
            && opened.device.is_err()
            && opened.object.opens_as(&found.object)
        {
            *opened = Arc::new(Opened { device: found.device, ..Opened::clone(opened) });
        }
    }

    /// Numbers the addresses that subsystems name, keeping the numbers of those that were there.
    pub fn number_listeners(&mut self) {
        let subsystems = self.subsystems.values();
        let wanted: BTreeSet<Address> =
            subsystems.flat_map(|subsystem| subsystem.listeners.keys()).copied().collect();
        self.listeners.retain(|address, _| wanted.contains(address));
        let used: BTreeSet<u16> = self.listeners.values().map(|id| id.0).collect();
        let mut free = (1..=u16::MAX).filter(|number| !used.contains(number));
        for address in wanted {
            if !self.listeners.contains_key(&address)
                && let Some(number) = free.next()
            {
                self.listeners.insert(address, ListenerId(number));
            }
        }
    }

    /// What has to be written to disk to get from `self` to `next`.
    ///
    /// # Errors
    /// An object that cannot be written as JSON.
    pub fn changes(&self, next: &Self) -> Result<Vec<Change>, serde_json::Error> {
        let mut changes = Vec::new();
        if self.nvme_options != next.nvme_options {
            let value = (next.nvme_options != NvmeOptions::default())
                .then(|| serde_json::to_vec(&next.nvme_options))
                .transpose()?;
            changes.push(Change { key: NVME_OPTIONS_KEY.to_owned(), value });
        }
        let to = &mut changes;
        compare(
            &self.controllers,
            &next.controllers,
            |name| controller_key(name),
            |it| &it.object,
            to,
        )?;
        compare(&self.devices, &next.devices, |name| device_key(name), |it| &it.object, to)?;
        compare(&self.transports, &next.transports, |it| transport_key(*it), |it| it, to)?;
        compare(&self.subsystems, &next.subsystems, subsystem_key, |it| it, to)?;
        let place = |(address, nqn): &(Address, Nqn)| referral_key(*address, nqn);
        compare(&self.referrals, &next.referrals, place, |it| it, to)?;
        Ok(changes)
    }

    /// How the target comes from what it serves in the state `before` to what it serves in this one: configurations to
    /// be put in force one after the other, each made from the one before and none touching more than
    /// a few subsystems and namespaces, so that no reactor has much to do in one turn. At least one.
    ///
    /// # Errors
    /// [`ConfigurationError`]: the target refuses it.
    pub fn steps(
        &self,
        before: &Self,
        current: &Arc<Configuration>,
    ) -> Result<Vec<Arc<Configuration>>, ConfigurationError> {
        let mut steps = Steps { done: Vec::new(), builder: current.change(), touched: 0 };
        for (address, id) in &self.listeners {
            if before.listeners.get(address) != Some(id) {
                steps.builder.add_listener(Listener { id: *id, address: (*address).into() })?;
            }
        }
        for (nqn, subsystem) in &before.subsystems {
            if !self.subsystems.contains_key(nqn) {
                for nsid in subsystem.namespaces.keys() {
                    steps.take(|builder| builder.remove_namespace(nqn, *nsid))?;
                }
                steps.take(|builder| builder.remove_subsystem(nqn))?;
            }
        }
        for (nqn, subsystem) in &self.subsystems {
            self.put_subsystem(before, nqn, subsystem, &mut steps)?;
        }
        for (address, id) in &before.listeners {
            if !self.listeners.contains_key(address) {
                steps.builder.remove_listener(*id)?;
            }
        }
        for (place, referral) in &before.referrals {
            if !self.referrals.contains_key(place) {
                steps.builder.remove_referral(&referral.as_ref().into());
            }
        }
        for (place, referral) in &self.referrals {
            if before.referrals.get(place) != Some(referral) {
                steps.builder.put_referral(referral.as_ref().into());
            }
        }
        let Steps { mut done, builder, .. } = steps;
        done.push(builder.build()?);
        Ok(done)
    }

    fn put_subsystem(
        &self,
        before: &Self,
        nqn: &Nqn,
        subsystem: &Arc<Subsystem>,
        steps: &mut Steps,
    ) -> Result<(), ConfigurationError> {
        let old = before.subsystems.get(nqn);
        // A transport's limits are those of every subsystem.
        let same = old.is_some_and(|old| Arc::ptr_eq(old, subsystem))
            && self.transports == before.transports;
        match old {
            None => steps.take(|it| it.add_subsystem(nqn.clone(), self.options(subsystem)))?,
            Some(_) if !same => {
                steps.take(|it| it.change_subsystem(nqn, self.options(subsystem)))?;
            }
            Some(_) => {}
        }
        let none = BTreeMap::new();
        let namespaces = old.map_or(&none, |old| &old.namespaces);
        for nsid in namespaces.keys() {
            if !subsystem.namespaces.contains_key(nsid) {
                steps.take(|builder| builder.remove_namespace(nqn, *nsid))?;
            }
        }
        for (nsid, namespace) in &subsystem.namespaces {
            let device = |state: &Self| state.devices.get(&namespace.device).cloned();
            let same_device = match (device(self), device(before)) {
                // Another size, latency or limit of the same device is nothing that a namespace says of itself.
                (Some(one), Some(other)) => one.serves_as(&other),
                (None, None) => true,
                _ => false,
            };
            let options = || self.namespace(*nsid, namespace);
            match namespaces.get(nsid) {
                None => steps.take(|builder| builder.add_namespace(nqn, options()))?,
                Some(was) if was != namespace || !same_device => {
                    steps.take(|builder| builder.change_namespace(nqn, options()))?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn options(&self, subsystem: &Subsystem) -> SubsystemOptions {
        let defaults = SubsystemOptions::default();
        let listeners = || {
            let all = subsystem.listeners.iter();
            all.filter_map(|(address, states)| Some((*self.listeners.get(address)?, states)))
        };
        let ana = || listeners().map(|(id, states)| (id, states.into())).collect::<Ana>();
        SubsystemOptions {
            serial: subsystem.serial.clone(),
            model: subsystem.model.clone().unwrap_or(defaults.model),
            controller_ids: subsystem.min_cntlid..=subsystem.max_cntlid,
            hosts: if subsystem.allow_any_host { Hosts::Any } else { hosts(&subsystem.hosts) },
            reach: listeners().map(|(id, _)| id).collect::<Reach>(),
            ana: subsystem.ana_reporting.then(ana),
            limits: Limits { max_namespaces: subsystem.max_namespaces, ..self.limits() },
            firmware: defaults.firmware,
        }
    }

    fn namespace(&self, nsid: u32, namespace: &Namespace) -> NamespaceOptions {
        let opened = self.devices.get(&namespace.device);
        let device = opened.and_then(|opened| opened.device.as_ref().ok());
        NamespaceOptions {
            state: match device {
                Some(device) => NamespaceState::Ready(Arc::clone(device)),
                None => NamespaceState::Waiting,
            },
            uuid: namespace.uuid.or_else(|| opened.and_then(|opened| opened.object.uuid)),
            nguid: namespace.nguid.map(Uuid::into_bytes),
            ana_group: namespace.anagrpid.unwrap_or(nsid),
            visible_to: if namespace.no_auto_visible {
                hosts(&namespace.hosts)
            } else {
                Hosts::Any
            },
            statistics: opened
                .map(|opened| Arc::clone(opened.statistics.counted()))
                .unwrap_or_default(),
            rate_limits: opened.map(|opened| Arc::clone(&opened.limits)).unwrap_or_default(),
            ..NamespaceOptions::waiting(nsid, namespace.device.clone())
        }
    }
}

/// Hosts by their names.
fn hosts(names: &BTreeSet<String>) -> Hosts {
    names.iter().filter_map(|host| host.parse().ok()).collect()
}

impl From<AnaState> for nvme::log::AnaState {
    fn from(state: AnaState) -> Self {
        match state {
            AnaState::Optimized => Self::Optimized,
            AnaState::NonOptimized => Self::NonOptimized,
            AnaState::Inaccessible => Self::Inaccessible,
            AnaState::PersistentLoss => Self::PersistentLoss,
            AnaState::Change => Self::Change,
        }
    }
}

impl From<&AnaStates> for configuration::AnaStates {
    fn from(AnaStates { every, groups }: &AnaStates) -> Self {
        let groups = groups.iter().map(|(group, state)| (*group, (*state).into()));
        Self { every: (*every).into(), groups: groups.collect() }
    }
}

impl From<&Referral> for configuration::Referral {
    fn from(Referral { address, subnqn, secure_channel }: &Referral) -> Self {
        let (address, subsystem) = ((*address).into(), subnqn.clone());
        Self { address, subsystem, secure_channel: *secure_channel }
    }
}

/// Subsystems and namespaces that one configuration may differ in from the one before. Opening a block queue for a new
/// namespace takes a reactor some tens of microseconds.
const STEP: usize = 16;

/// Configurations in the making.
struct Steps {
    done: Vec<Arc<Configuration>>,
    builder: ConfigurationBuilder,
    touched: usize,
}

impl Steps {
    /// Makes one change more, in a configuration of its own if the last one has enough of them.
    fn take(
        &mut self,
        change: impl FnOnce(&mut ConfigurationBuilder) -> Result<(), ConfigurationError>,
    ) -> Result<(), ConfigurationError> {
        if self.touched == STEP {
            let full = self.builder.clone().build()?;
            self.builder = full.change();
            self.done.push(full);
            self.touched = 0;
        }
        self.touched += 1;
        change(&mut self.builder)
    }
}

/// The changes from one table of objects to another.
fn compare<K: Ord, T, O: Serialize + PartialEq>(
    before: &BTreeMap<K, Arc<T>>,
    after: &BTreeMap<K, Arc<T>>,
    key: impl Fn(&K) -> String,
    object: impl Fn(&T) -> &O,
    changes: &mut Vec<Change>,
) -> Result<(), serde_json::Error> {
    for name in before.keys().filter(|name| !after.contains_key(name)) {
        changes.push(Change { key: key(name), value: None });
    }
    for (name, value) in after {
        let same = |old: &Arc<T>| Arc::ptr_eq(old, value) || object(old) == object(value);
        if before.get(name).is_some_and(same) {
            continue;
        }
        changes.push(Change { key: key(name), value: Some(serde_json::to_vec(object(value))?) });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
