//! The objects of the configuration file, in the form in which the control plane knows them.

use std::net::IpAddr;
use std::ops::Range;

use control::objects::{
    Address, AnaStates, Controller, Device, DeviceKind, Direct, FileMethod, Latencies, Namespace,
    Objects, Place, Referral, Subsystem, Transport, Trtype,
};
use control::state::State;
use nvme::Nqn;
use nvme_pcie::pci;
use target::configuration::{
    Configuration, ConfigurationError, MAX_CONTROLLER_ID, MAX_NAMESPACES, Subject,
};
use toml::Spanned;

use super::assemble;
use crate::config::quantity::Time;
use crate::config::{self, Config, ConfigError, Source};

/// Bytes in a logical block of memory unless the file says otherwise.
const BLOCK_SIZE: u32 = 4096;

/// The objects that the file names.
///
/// # Errors
/// What the target would refuse, with its place in the file. Nothing has been opened or made.
pub(super) fn of(config: &Config, source: &Source) -> Result<Objects, ConfigError> {
    let mut objects = Objects::default();
    for (name, entry) in &config.controllers {
        objects.controllers.insert(name.clone(), controller(name, entry.get_ref()));
    }
    for (name, entry) in &config.devices {
        objects.devices.insert(name.clone(), device(name, entry.get_ref()));
    }
    if !config.subsystems.is_empty() {
        objects.transports.insert(Trtype::Tcp, Transport::plain(Trtype::Tcp));
    }
    if config.serves_rdma() {
        objects.transports.insert(Trtype::Rdma, Transport::plain(Trtype::Rdma));
    }
    for (index, entry) in config.subsystems.iter().enumerate() {
        let object = subsystem(entry.get_ref(), source, &format!("subsystems[{index}].nqn"))?;
        objects.subsystems.insert(object.nqn.clone(), object);
    }
    for (index, entry) in config.referrals.iter().enumerate() {
        let config::Referral { transport, address, port, nqn, secure_channel } = entry.get_ref();
        let subnqn = match nqn {
            Some(text) => config::nqn(source, &format!("referrals[{index}].nqn"), text)?,
            None => Nqn::discovery(),
        };
        let address = self::address(*transport, *address, *port);
        let referral =
            Referral { address, subnqn: subnqn.clone(), secure_channel: *secure_channel };
        objects.referrals.insert((address, subnqn), referral);
    }
    match check(&objects, config) {
        Ok(()) => Ok(objects),
        Err(error) => Err(placed(&error, &State::from(objects), config, source)),
    }
}

/// Whether the target would take these objects.
pub(super) fn check(objects: &Objects, config: &Config) -> Result<(), ConfigurationError> {
    let mut state = State::from(objects.clone());
    state.settings = assemble::settings(config);
    state.steps(&State::default(), &Configuration::empty()).map(drop)
}

fn controller(name: &str, controller: &config::Controller) -> Controller {
    let text = |text: &Option<Spanned<String>>| text.as_ref().map(|text| text.get_ref().clone());
    // Checked: it has one of them.
    let place = match text(&controller.address) {
        Some(address) => {
            let address: Result<pci::Address, _> = address.parse();
            Place::Pci(address.map(|address| address.to_string()).unwrap_or_default())
        }
        None => Place::Serial(text(&controller.serial).unwrap_or_default()),
    };
    Controller::plain(name.to_owned(), place)
}

fn device(name: &str, device: &config::Device) -> Device {
    // Checked: what has no path has a size.
    let size = device.size.as_ref().map(|size| size.get_ref().0);
    let block_size = device.block_size.as_ref().map(|size| *size.get_ref());
    let base = device.base.as_ref().map(|base| base.get_ref().clone()).unwrap_or_default();
    let kind = match (device.kind, &device.path) {
        (config::DeviceKind::Nvme, _) => {
            let controller = device.controller.as_ref().map(|it| it.get_ref().clone());
            let nsid = device.nsid.as_ref().map_or(0, |nsid| *nsid.get_ref());
            DeviceKind::Nvme { controller: controller.unwrap_or_default(), nsid }
        }
        (config::DeviceKind::Error, _) => DeviceKind::Error { base },
        (config::DeviceKind::Delay, _) => DeviceKind::Delay { base, latencies: latencies(device) },
        (config::DeviceKind::File, Some(path)) => DeviceKind::File {
            path: path.get_ref().clone(),
            block_size,
            create_size: size,
            direct: match device.direct {
                config::Direct::Auto => Direct::Auto,
                config::Direct::Always => Direct::Always,
                config::Direct::Never => Direct::Never,
            },
            read_only: device.read_only,
            made_as: FileMethod::Uring,
        },
        (config::DeviceKind::Ram, _) => DeviceKind::Ram {
            size: size.unwrap_or(0),
            block_size: block_size.unwrap_or(BLOCK_SIZE),
            read_only: device.read_only,
        },
        (config::DeviceKind::Null | config::DeviceKind::File, _) => DeviceKind::Null {
            size: size.unwrap_or(0),
            block_size: block_size.unwrap_or(BLOCK_SIZE),
        },
    };
    Device { name: name.to_owned(), uuid: None, kind, limits: device.limits }
}

/// How slow a device is to be. The p99 latencies are the others unless they are given.
fn latencies(device: &config::Device) -> Latencies {
    let micros = |time: &Option<Spanned<Time>>| {
        let time = time.as_ref().map(|time| time.get_ref().0.as_micros());
        time.map(|time| u64::try_from(time).unwrap_or(u64::MAX))
    };
    let avg_read = micros(&device.read_latency).unwrap_or(0);
    let avg_write = micros(&device.write_latency).unwrap_or(0);
    Latencies {
        avg_read,
        p99_read: micros(&device.read_latency_p99).unwrap_or(avg_read),
        avg_write,
        p99_write: micros(&device.write_latency_p99).unwrap_or(avg_write),
    }
}

fn subsystem(
    subsystem: &config::Subsystem,
    source: &Source,
    key: &str,
) -> Result<Subsystem, ConfigError> {
    let namespaces = subsystem.namespaces.iter().map(|entry| {
        let namespace = entry.get_ref();
        let hosts = namespace.hosts.iter().flatten();
        let object = Namespace {
            device: namespace.device.get_ref().clone(),
            uuid: namespace.uuid,
            nguid: namespace.nguid,
            anagrpid: namespace.ana_group,
            no_auto_visible: namespace.hosts.is_some(),
            hosts: hosts.map(|host| host.get_ref().clone()).collect(),
        };
        (*namespace.nsid.get_ref(), object)
    });
    let listeners = subsystem.listeners.iter().map(|entry| {
        let listener = entry.get_ref();
        let mut states = AnaStates { every: listener.ana_state, ..AnaStates::default() };
        for (group, state) in &listener.ana_groups {
            // Checked: each is a number.
            states.set(group.parse().ok(), *state.get_ref());
        }
        (address_of(listener), states)
    });
    Ok(Subsystem {
        nqn: config::nqn(source, key, &subsystem.nqn)?,
        serial: subsystem.serial.as_ref().map(|serial| serial.get_ref().clone()),
        model: subsystem.model.as_ref().map(|model| model.get_ref().clone()),
        allow_any_host: subsystem.allows_any_host(),
        hosts: subsystem.hosts.iter().map(|host| host.get_ref().clone()).collect(),
        max_namespaces: MAX_NAMESPACES,
        min_cntlid: 1,
        max_cntlid: MAX_CONTROLLER_ID,
        ana_reporting: subsystem.ana_reporting,
        namespaces: namespaces.collect(),
        listeners: listeners.collect(),
    })
}

fn address_of(listener: &config::Listener) -> Address {
    address(listener.transport, listener.address, listener.port)
}

fn address(transport: config::Transport, traddr: IpAddr, trsvcid: u16) -> Address {
    let trtype = match transport {
        config::Transport::Tcp => Trtype::Tcp,
        config::Transport::Rdma => Trtype::Rdma,
    };
    Address { trtype, traddr, trsvcid }
}

/// A refusal of the target, with the place of what it refuses.
fn placed(
    error: &ConfigurationError,
    state: &State,
    config: &Config,
    source: &Source,
) -> ConfigError {
    let place = match error.subject() {
        Subject::Subsystem(nqn) => subsystem_at(config, nqn.as_str()),
        Subject::Namespace(nqn, nsid) => namespace_at(config, nqn.as_str(), nsid),
        Subject::Listener(id) => {
            let address = state.listeners.iter().find(|(_, number)| **number == id);
            address.and_then(|(wanted, _)| listener_at(config, *wanted))
        }
    };
    let (span, key) = place.unwrap_or((0..0, "subsystems".to_owned()));
    source.error(span, key, error)
}

type Spot = Option<(Range<usize>, String)>;

fn subsystem_at(config: &Config, nqn: &str) -> Spot {
    let mut entries = config.subsystems.iter().enumerate();
    let (index, entry) = entries.find(|(_, entry)| entry.get_ref().nqn.get_ref() == nqn)?;
    Some((entry.span(), format!("subsystems[{index}]")))
}

fn namespace_at(config: &Config, nqn: &str, nsid: u32) -> Spot {
    let (_, key) = subsystem_at(config, nqn)?;
    let subsystem = config.subsystems.iter().find(|entry| entry.get_ref().nqn.get_ref() == nqn)?;
    let mut entries = subsystem.get_ref().namespaces.iter().enumerate();
    let (index, entry) = entries.find(|(_, entry)| *entry.get_ref().nsid.get_ref() == nsid)?;
    Some((entry.span(), format!("{key}.namespaces[{index}]")))
}

fn listener_at(config: &Config, wanted: Address) -> Spot {
    config.subsystems.iter().enumerate().find_map(|(index, entry)| {
        let mut listeners = entry.get_ref().listeners.iter().enumerate();
        let (number, listener) = listeners.find(|(_, it)| address_of(it.get_ref()) == wanted)?;
        Some((listener.span(), format!("subsystems[{index}].listeners[{number}]")))
    })
}
