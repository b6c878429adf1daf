//! From the configuration file to what a node is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use block::BlockDevice;
use block::file::{Direct, FileDevice, FileOptions};
use block::null::NullDevice;
use block::ram::{RamDevice, RamOptions};
use memory::Hugepages;
use nvme::address::{TransportAddress, TransportType};
use reactor::{IdlePolicy, ReactorConfig, RingChoice};
use target::configuration::{
    Configuration, Hosts, Limits, Listener, ListenerId, NamespaceOptions, Reach, SubsystemOptions,
};
use tidegate::node::NodeConfig;
use toml::Spanned;
use transport_tcp::{SuccessFlag, TcpConfig, Timeouts};

use crate::config::quantity::Size;
use crate::config::{
    self, Config, ConfigError, DeviceKind, Idle, IoUring, Source, Success, Transport,
};

/// How long a port or a file that is in use is waited for: after `kill -9` of an earlier daemon
/// the kernel holds both for a while, and its last writes may still be landing.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) type Devices = BTreeMap<String, Arc<dyn BlockDevice>>;

/// The node's threads, memory and limits.
pub(super) fn node(config: &Config, cores: &[usize]) -> NodeConfig {
    let reactors = cores
        .iter()
        .map(|&core| ReactorConfig {
            core: Some(core),
            idle: idle(config.reactors.idle_on(core), config),
            ring: match config.reactors.io_uring {
                IoUring::Auto => RingChoice::default(),
                IoUring::Never => RingChoice::Forbidden,
            },
            ..ReactorConfig::default()
        })
        .collect();
    let tcp = &config.transports.tcp;
    NodeConfig {
        reactors,
        memory_per_reactor: usize::try_from(config.memory.per_reactor.get_ref().0)
            .unwrap_or(usize::MAX),
        hugepages: match config.memory.hugepages {
            config::Hugepages::Try => Hugepages::Try,
            config::Hugepages::Never => Hugepages::Never,
        },
        tcp: TcpConfig {
            in_capsule_data: narrow(&tcp.in_capsule_data),
            success_flag: match tcp.c2h_success {
                Success::On => SuccessFlag::Always,
                Success::Strict => SuccessFlag::Strict,
                Success::Off => SuccessFlag::Never,
            },
            timeouts: Timeouts {
                negotiation: tcp.connect_timeout.get_ref().0,
                pdu: tcp.receive_timeout.get_ref().0,
                data: tcp.receive_timeout.get_ref().0,
                send: tcp.send_timeout.get_ref().0,
                ..Timeouts::default()
            },
            ..TcpConfig::default()
        },
        limits: target::ShardLimits {
            connect_timeout: tcp.connect_timeout.get_ref().0,
            ..target::ShardLimits::default()
        },
    }
}

fn idle(idle: Idle, config: &Config) -> IdlePolicy {
    match (idle, config.reactors.max_spin) {
        (Idle::Poll, _) => IdlePolicy::Poll,
        (Idle::Interrupt, _) => IdlePolicy::Interrupt,
        (Idle::Adaptive, Some(max_spin)) => IdlePolicy::Adaptive { max_spin: max_spin.0 },
        (Idle::Adaptive, None) => IdlePolicy::default(),
    }
}

/// A size that the configuration's check has bounded far below 2^32.
fn narrow(size: &Spanned<Size>) -> u32 {
    u32::try_from(size.get_ref().0).unwrap_or(u32::MAX)
}

/// Opens the devices, creating files that have a size.
pub(super) fn devices(config: &Config) -> anyhow::Result<Devices> {
    let mut devices = Devices::new();
    for (name, entry) in &config.devices {
        devices.insert(name.clone(), device(name, entry)?);
    }
    Ok(devices)
}

fn device(name: &str, entry: &Spanned<config::Device>) -> anyhow::Result<Arc<dyn BlockDevice>> {
    let device = entry.get_ref();
    let block_size = device.block_size.as_ref().map(|size| *size.get_ref());
    let size = device.size.as_ref().map(|size| size.get_ref().0);
    Ok(match (device.kind, size, &device.path) {
        (DeviceKind::Null, Some(size), _) => {
            Arc::new(NullDevice::new(name, size, block_size.unwrap_or(4096))?)
        }
        (DeviceKind::Ram, Some(size), _) => Arc::new(RamDevice::new(&RamOptions {
            name: name.to_owned(),
            size,
            block_size: block_size.unwrap_or(4096),
            read_only: device.read_only,
        })?),
        (DeviceKind::File, size, Some(path)) => Arc::new(FileDevice::open(&FileOptions {
            name: name.to_owned(),
            path: path.get_ref().clone(),
            block_size,
            create_size: size,
            direct: match device.direct {
                config::Direct::Auto => Direct::Auto,
                config::Direct::Always => Direct::Always,
                config::Direct::Never => Direct::Never,
            },
            read_only: device.read_only,
            lock_wait: PATIENCE,
        })?),
        // The configuration's check has refused these; said again rather than assumed.
        _ => bail!("device {name}: size or path is missing"),
    })
}

/// Where a listener of the configuration file listens.
fn address(listener: &config::Listener) -> TransportAddress {
    let trtype = match listener.transport {
        Transport::Tcp => TransportType::Tcp,
    };
    TransportAddress { trtype, traddr: listener.address, trsvcid: listener.port }
}

/// The addresses that listeners name, each once, with the number that the target knows it by.
fn listeners(config: &Config) -> BTreeMap<TransportAddress, ListenerId> {
    let subsystems = config.subsystems.iter();
    let named: BTreeSet<_> = subsystems
        .flat_map(|subsystem| &subsystem.get_ref().listeners)
        .map(|listener| address(listener.get_ref()))
        .collect();
    named.into_iter().zip((1..).map(ListenerId)).collect()
}

/// Where in the file an address is named first, and as what.
fn place_of(wanted: TransportAddress, config: &Config) -> (Range<usize>, String) {
    for (index, subsystem) in config.subsystems.iter().enumerate() {
        for (number, listener) in subsystem.get_ref().listeners.iter().enumerate() {
            if address(listener.get_ref()) == wanted {
                return (listener.span(), format!("subsystems[{index}].listeners[{number}]"));
            }
        }
    }
    (0..0, "listeners".to_owned())
}

/// The addresses to listen on.
pub(super) fn addresses(config: &Config) -> Vec<SocketAddr> {
    listeners(config).keys().map(TransportAddress::socket).collect()
}

/// What the target is to export. A namespace whose device is not among `devices` waits for it.
pub(super) fn configuration(
    config: &Config,
    source: &Source,
    devices: &Devices,
) -> Result<Arc<Configuration>, ConfigError> {
    let mut builder = Configuration::empty().change();
    let listeners = listeners(config);
    for (&address, &id) in &listeners {
        builder.add_listener(Listener { id, address }).map_err(|error| {
            let (span, key) = place_of(address, config);
            source.error(span, key, error)
        })?;
    }
    let tcp = &config.transports.tcp;
    for (index, entry) in config.subsystems.iter().enumerate() {
        let key = format!("subsystems[{index}]");
        let subsystem = entry.get_ref();
        let nqn = config::nqn(source, &format!("{key}.nqn"), &subsystem.nqn)?;
        let hosts = if subsystem.allows_any_host() {
            Hosts::Any
        } else {
            let hosts = subsystem.hosts.iter();
            hosts.map(|host| config::nqn(source, &key, host)).collect::<Result<_, _>>()?
        };
        let reach = subsystem.listeners.iter();
        let reach =
            reach.filter_map(|listener| listeners.get(&address(listener.get_ref())).copied());
        let defaults = SubsystemOptions::default();
        let options = SubsystemOptions {
            serial: subsystem.serial.as_ref().map(|serial| serial.get_ref().clone()),
            model: subsystem.model.as_ref().map_or(defaults.model, |model| model.get_ref().clone()),
            hosts,
            reach: reach.collect::<Reach>(),
            limits: Limits {
                io_queues: *tcp.max_io_queues.get_ref(),
                queue_depth: *tcp.queue_depth.get_ref(),
                max_transfer: narrow(&tcp.max_transfer),
                in_capsule: narrow(&tcp.in_capsule_data),
                ..Limits::default()
            },
            ..SubsystemOptions::default()
        };
        builder
            .add_subsystem(nqn.clone(), options)
            .map_err(|error| source.error(entry.span(), key.clone(), error))?;
        for (index, entry) in subsystem.namespaces.iter().enumerate() {
            let namespace = entry.get_ref();
            let key = format!("{key}.namespaces[{index}]");
            let (nsid, name) = (*namespace.nsid.get_ref(), namespace.device.get_ref());
            let options = NamespaceOptions {
                uuid: namespace.uuid,
                nguid: namespace.nguid.map(uuid::Uuid::into_bytes),
                ..match devices.get(name) {
                    Some(device) => NamespaceOptions::new(nsid, Arc::clone(device)),
                    None => NamespaceOptions::waiting(nsid, name.clone()),
                }
            };
            builder
                .add_namespace(&nqn, options)
                .map_err(|error| source.error(entry.span(), key, error))?;
        }
    }
    builder.build().map_err(|error| source.error(0..0, "subsystems", error))
}
