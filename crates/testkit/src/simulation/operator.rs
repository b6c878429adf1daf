//! Whoever runs the target: changes the configuration while it serves, opens and closes paths, hides namespaces, pauses
//! them, pulls disks out, and pulls the plug.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use nvme::Nqn;
use nvme::address::{TransportAddress, TransportType};
use nvme::log::AnaState;
use target::Instant;
use target::configuration::{
    Ana, AnaStates, Configuration, ConfigurationBuilder, Hosts, Limits, Listener, ListenerId,
    NamespaceOptions, NamespaceState, Subsystem, SubsystemOptions, View,
};
use target::rate_limit::{Limit, Rates};
use target::shard::PauseId;

use super::host::Host;
use super::scenario::{MS, SECOND, Scenario};
use super::wire::IN_CAPSULE;
use super::world::{Event, World};
use crate::Random;
use crate::disk::Disk;

/// The name of a host.
pub fn host_name(identity: usize) -> Nqn {
    format!("nqn.2026-11.test.hosts:host{identity}").parse().unwrap()
}

/// The port that a host connects to, as its listener's number and as an address.
pub fn way_in(host: usize) -> SocketAddr {
    listeners()[host % 2].address.socket()
}

/// The two ways in.
fn listeners() -> [Listener; 2] {
    [1, 2].map(|id| {
        let traddr = "192.0.2.1".parse().unwrap();
        let address = TransportAddress { trtype: TransportType::Tcp, traddr, trsvcid: 4420 + id };
        Listener { id: ListenerId(id), address }
    })
}

/// The operator.
#[derive(Debug)]
pub struct Operator {
    /// The latest configuration.
    pub configuration: Arc<Configuration>,
    /// When it was published.
    pub changed_at: u64,
    /// The subsystems' names.
    pub subsystems: Vec<Nqn>,
    /// By subsystem and NSID less one: the disk behind it, whenever it is there.
    pub places: Vec<Vec<usize>>,
    limits: Limits,
    names: usize,
    pauses: Vec<(usize, PauseId, u64)>,
    /// When power or process will end.
    ends: Vec<u64>,
    /// When which disk will hang, or is pulled out, and until when.
    hangs: Vec<(u64, usize, u64)>,
    bad: Vec<(u64, usize)>,
}

impl Operator {
    /// An operator with a first configuration.
    pub fn new(random: &mut Random, scenario: &Scenario, disks: &[Arc<Disk>]) -> Self {
        let names = (0..scenario.subsystems)
            .map(|number| format!("nqn.2026-11.test.target:subsystem{number}").parse().unwrap())
            .collect();
        // Each disk stands behind one namespace: what two namespaces over one disk may do to each
        // other nobody promises.
        let places = (0..scenario.subsystems)
            .map(|at| (at..disks.len()).step_by(scenario.subsystems).collect())
            .collect();
        let limits = Limits {
            io_queues: 8,
            queue_depth: *random.pick(&[32, 32, 64, 128]),
            max_transfer: scenario.max_transfer,
            in_capsule: IN_CAPSULE,
            max_namespaces: 8,
        };
        let ends = (0..scenario.ends).map(|_| random.below(scenario.duration)).collect();
        let hangs = (0..scenario.hangs)
            .map(|_| {
                let at = random.below(scenario.duration);
                (at, random.index(disks.len()), at + random.spread(10 * MS, 4 * SECOND))
            })
            .collect();
        let mut operator = Self {
            configuration: Configuration::empty(),
            changed_at: 0,
            subsystems: names,
            places,
            limits,
            names: scenario.hosts,
            pauses: Vec::new(),
            ends,
            hangs,
            bad: Vec::new(),
        };
        let mut builder = operator.configuration.change();
        for listener in listeners() {
            builder.add_listener(listener).unwrap();
        }
        for subsystem in 0..scenario.subsystems {
            operator.add_subsystem(&mut builder, subsystem, random, disks);
        }
        operator.configuration = builder.build().unwrap();
        operator
    }

    fn add_subsystem(
        &self,
        builder: &mut ConfigurationBuilder,
        subsystem: usize,
        random: &mut Random,
        disks: &[Arc<Disk>],
    ) {
        let nqn = &self.subsystems[subsystem];
        let hosts = if random.permille(500) {
            Hosts::Any
        } else {
            (0..self.names).map(host_name).collect()
        };
        let options = SubsystemOptions {
            hosts,
            limits: self.limits,
            ana: Some(Ana::default()),
            ..SubsystemOptions::default()
        };
        builder.add_subsystem(nqn.clone(), options).unwrap();
        for (nsid, disk) in (1..).zip(&self.places[subsystem]) {
            let disk = Arc::clone(&disks[*disk]);
            builder.add_namespace(nqn, NamespaceOptions::new(nsid, disk)).unwrap();
        }
    }

    /// NSIDs that a host finds in the list of active namespaces, each with its group and the state of its path.
    pub fn active(&self, host: &Host) -> BTreeMap<u32, (u32, AnaState)> {
        let Some(subsystem) = self.configuration.subsystem(&self.subsystems[host.subsystem]) else {
            return BTreeMap::new();
        };
        let name = host_name(host.identity);
        let listener = Some(listeners()[host.number % 2].id);
        let view = View { subsystem, host: &name, listener };
        let all = view.active_after(0);
        all.map(|it| (it.nsid(), (it.ana_group(), view.ana_state(it)))).collect()
    }

    /// Whether the device of a namespace is there.
    pub fn is_ready(&self, subsystem: usize, nsid: u32) -> bool {
        self.configuration
            .subsystem(&self.subsystems[subsystem])
            .and_then(|found| found.namespace(nsid))
            .is_some_and(|namespace| namespace.ready().is_ok())
    }

    /// The disks behind namespaces that are in service.
    pub fn served_disks(&self) -> Vec<usize> {
        let all = self.places.iter().enumerate();
        all.flat_map(|(subsystem, places)| {
            (1..).zip(places).filter(move |(nsid, _)| self.is_ready(subsystem, *nsid))
        })
        .map(|(_, disk)| *disk)
        .collect()
    }

    /// Whether this host may connect to this subsystem.
    pub fn admits(&self, subsystem: usize, identity: usize) -> bool {
        self.configuration
            .subsystem(&self.subsystems[subsystem])
            .is_some_and(|found| found.allows(&host_name(identity)))
    }

    /// The process that knew of them is gone.
    pub fn forget_pauses(&mut self) {
        self.pauses.clear();
    }
}

impl World {
    /// How long the operator waits before the next thing.
    pub fn operator_pause(&mut self) -> u64 {
        self.random.spread(2 * MS, 200 * MS)
    }

    /// The operator does something.
    pub fn operator_step(&mut self) {
        if self.resting || self.stopping {
            return;
        }
        let now = self.now;
        if let Some(at) = self.operator.ends.iter().position(|at| *at <= now) {
            self.operator.ends.swap_remove(at);
            let power = self.random.permille(600);
            self.end_target(power);
            self.start_target();
        }
        if let Some(at) = self.operator.hangs.iter().position(|(at, _, _)| *at <= now) {
            let (_, disk, until) = self.operator.hangs.swap_remove(at);
            self.misbehave(disk, until);
        }
        self.end_bad_weather();
        self.end_pauses(false);
        if self.random.permille(self.scenario.changes * 20) {
            self.change_something();
        }
        if self.random.permille(self.scenario.limits) {
            self.change_limits();
        }
        let at = self.now + self.operator_pause();
        self.at(at, Event::Operator);
    }

    /// Some disk may do more or less per second from now on, or as much as it can.
    fn change_limits(&mut self) {
        let mut rates = Rates::default();
        for (limit, rate) in Limit::ALL.into_iter().zip(&mut rates) {
            if self.random.permille(300) {
                let least = if limit.is_of_bytes() { 1 << 20 } else { 200 };
                *rate = self.random.spread(least, least * 1000);
            }
        }
        let subsystem = self.random.index(self.operator.subsystems.len());
        let nqn = &self.operator.subsystems[subsystem];
        let found = self.operator.configuration.subsystem(nqn);
        let namespaces = found.map_or(&[][..], |found| found.namespaces());
        if namespaces.is_empty() {
            return;
        }
        let namespace = &namespaces[self.random.index(namespaces.len())];
        namespace.rate_limits().set(&rates, u16::try_from(self.nodes.len()).unwrap());
        let nsid = namespace.nsid();
        self.trace.note(self.now, &[26, subsystem as u64, nsid.into()], || {
            format!("namespace {nsid} of subsystem {subsystem} is limited to {rates:?}")
        });
        self.wake_all();
    }

    fn misbehave(&mut self, disk: usize, until: u64) {
        let pulled = self.random.permille(300);
        self.trace.note(self.now, &[20, disk as u64, u64::from(pulled)], || {
            format!("disk {disk} {} until {until}", if pulled { "is pulled out" } else { "hangs" })
        });
        if pulled {
            self.disks[disk].pull(true);
        } else {
            self.disks[disk].hang(true);
        }
        self.operator.bad.push((until, disk));
        // The worst moment for a host to go and come back: with writes in a disk that holds on to them.
        if self.scenario.misfortunes > 0 && self.random.permille(500) {
            let host = self.random.index(self.hosts.len());
            let at = self.now + self.random.spread(10_000, 10 * MS);
            self.at(at, Event::Crash(host));
        }
    }

    fn end_bad_weather(&mut self) {
        let now = self.now;
        while let Some(at) = self.operator.bad.iter().position(|(until, _)| *until <= now) {
            let (_, disk) = self.operator.bad.swap_remove(at);
            if self.operator.bad.iter().any(|(_, other)| *other == disk) {
                continue;
            }
            self.trace.note(self.now, &[21, disk as u64], || format!("disk {disk} is well again"));
            self.disks[disk].hang(false);
            self.disks[disk].pull(false);
            self.wake_all();
        }
    }

    /// Something outside the shards has changed.
    pub fn wake_all(&mut self) {
        for shard in 0..self.nodes.len() {
            self.wake(shard);
        }
    }

    fn end_pauses(&mut self, all: bool) {
        let now = self.now;
        while let Some(at) =
            self.operator.pauses.iter().position(|(_, _, until)| all || *until <= now)
        {
            let (shard, pause, _) = self.operator.pauses.swap_remove(at);
            self.trace
                .note(self.now, &[22, shard as u64], || format!("shard {shard} resumes {pause:?}"));
            self.nodes[shard].shard.resume(pause);
            self.wake(shard);
        }
    }

    fn change_something(&mut self) {
        let subsystem = self.random.index(self.operator.subsystems.len());
        let nqn = self.operator.subsystems[subsystem].clone();
        let place = self.random.index(self.operator.places[subsystem].len());
        let disk = self.operator.places[subsystem][place];
        let nsid = u32::try_from(place + 1).unwrap();
        let what = self.random.below(18);
        match what {
            0 => {
                let blocks = self.random.between(1, self.disks[disk].whole_size());
                self.disks[disk].resize(blocks);
                self.trace.note(self.now, &[23, disk as u64, blocks], || {
                    format!("disk {disk} has {blocks} blocks now")
                });
                return;
            }
            1 | 2 => {
                let shard = self.random.index(self.nodes.len());
                let deadline = self.now + self.random.spread(MS, SECOND);
                let until = self.now + self.random.spread(MS, SECOND);
                let node = &mut self.nodes[shard];
                let pause = node.shard.pause(&nqn, nsid, Instant::from_nanos(deadline));
                self.operator.pauses.push((shard, pause, until));
                self.trace.note(self.now, &[24, shard as u64, nsid.into()], || {
                    format!(
                        "shard {shard} pauses namespace {nsid} of {nqn} until {until} ({deadline})"
                    )
                });
                self.wake(shard);
                return;
            }
            _ => {}
        }
        let mut builder = self.operator.configuration.change();
        let device = || Arc::clone(&self.disks[disk]) as Arc<dyn block::BlockDevice>;
        let before = self.operator.configuration.subsystem(&nqn).cloned();
        let changed = match (what, before) {
            (_, None) => {
                let mut random = self.random.split();
                self.operator.add_subsystem(&mut builder, subsystem, &mut random, &self.disks);
                Ok(())
            }
            (3, Some(_)) => builder.remove_subsystem(&nqn),
            (4, Some(before)) => {
                let mut options = before.options().clone();
                let out = self.random.index(self.operator.names);
                options.hosts = match options.hosts {
                    Hosts::Any => {
                        (0..self.operator.names).filter(|at| *at != out).map(host_name).collect()
                    }
                    Hosts::Listed(_) => Hosts::Any,
                };
                builder.change_subsystem(&nqn, options)
            }
            (5..=7, Some(before)) => match before.namespace(nsid) {
                Some(_) => builder.remove_namespace(&nqn, nsid),
                None => builder.add_namespace(&nqn, NamespaceOptions::new(nsid, device())),
            },
            (8, Some(_)) => {
                builder.set_namespace_state(&nqn, nsid, NamespaceState::Removing(device()))
            }
            (9, Some(_)) => builder.set_namespace_state(&nqn, nsid, NamespaceState::Waiting),
            (10 | 14..=16, Some(before)) => match before.namespace(nsid) {
                Some(namespace) => {
                    let options = self.other_options(what, namespace.options().clone());
                    builder.change_namespace(&nqn, options)
                }
                None => Ok(()),
            },
            (12 | 13, Some(before)) => {
                let options = before.options().clone();
                let ana = Some(self.other_states(&before));
                builder.change_subsystem(&nqn, SubsystemOptions { ana, ..options })
            }
            (_, Some(_)) => {
                builder.set_namespace_state(&nqn, nsid, NamespaceState::Ready(device()))
            }
        };
        if changed.is_err() {
            return;
        }
        let configuration = builder.build().unwrap();
        self.trace.note(self.now, &[25, what, subsystem as u64, nsid.into()], || {
            format!(
                "configuration {}: change {what} of namespace {nsid} of {nqn}",
                configuration.version()
            )
        });
        self.put_in_force(configuration);
    }

    /// What a namespace is to be instead: protected or not, in another group, hidden from a host or not.
    fn other_options(&mut self, what: u64, mut options: NamespaceOptions) -> NamespaceOptions {
        match what {
            10 => options.read_only = !options.read_only,
            14 => options.ana_group = u32::try_from(self.random.between(1, 3)).unwrap(),
            _ => {
                let names = 0..self.operator.names;
                let hidden = self.random.index(self.operator.names);
                options.visible_to = match options.visible_to {
                    Hosts::Any => names.filter(|at| *at != hidden).map(host_name).collect(),
                    Hosts::Listed(_) => Hosts::Any,
                };
            }
        }
        options
    }

    fn put_in_force(&mut self, configuration: Arc<Configuration>) {
        self.operator.changed_at = self.now;
        self.operator.configuration = Arc::clone(&configuration);
        self.publish(&configuration);
    }

    /// Other states of the paths to a subsystem: all groups of a listener, or one.
    fn other_states(&mut self, before: &Subsystem) -> Ana {
        let changed = self.random.index(2);
        let state = *self.random.pick(AnaState::ALL);
        let group = u32::try_from(self.random.below(4)).unwrap();
        let states = listeners().into_iter().enumerate().map(|(at, listener)| {
            let known = before.options().ana.as_ref().and_then(|ana| ana.states(Some(listener.id)));
            let mut states = known.cloned().unwrap_or_default();
            match group {
                _ if at != changed => {}
                0 => states = AnaStates { every: state, ..AnaStates::default() },
                group => drop(states.groups.insert(group, state)),
            }
            (listener.id, states)
        });
        states.collect()
    }

    /// Opens all paths, as far as they are closed: who is to read everything has to be able to.
    fn open_paths(&mut self) {
        let mut builder = self.operator.configuration.change();
        for subsystem in self.operator.configuration.subsystems() {
            let options = subsystem.options().clone();
            if options.ana != Some(Ana::default()) {
                let ana = Some(Ana::default());
                builder
                    .change_subsystem(subsystem.nqn(), SubsystemOptions { ana, ..options })
                    .unwrap();
            }
        }
        let configuration = builder.build().unwrap();
        self.trace.note(self.now, &[26], || {
            format!("configuration {}: all paths are open", configuration.version())
        });
        self.put_in_force(configuration);
    }

    /// The operator lets go: disks are well, nothing is paused, no path is closed.
    pub fn operator_rests(&mut self) {
        if self.scenario.changes > 0 {
            self.open_paths();
        }
        for disk in &self.disks {
            disk.calm();
        }
        self.operator.bad.clear();
        self.end_pauses(true);
        self.wake_all();
    }
}
