//! Checks of a parsed configuration, before anything is created.

mod controllers;
mod devices;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::ops::RangeInclusive;

use rustix::thread::CpuSet;
use toml::Spanned;

use super::quantity::{Size, Time};
use super::{
    Config, ConfigError, Device, Listener, Rdma, Referral, Source, Subsystem, Tcp, Transport, nqn,
};

/// Namespaces of one subsystem.
const MAX_NAMESPACES: usize = 1024;
/// Bytes of one reactor's pool, whose slabs are numbered by 16 bits.
const MAX_POOL: u64 = (u16::MAX as u64) * (memory::SLAB_SIZE as u64);

type Check = Result<(), ConfigError>;

/// The first thing that is wrong with the configuration.
pub(super) fn check(config: &Config, source: &Source) -> Check {
    reactors(config, source)?;
    tcp(&config.transports.tcp, source)?;
    rdma(&config.transports.rdma, source)?;
    memory(config, source)?;
    devices::check(&config.devices, source)?;
    controllers::check(config, source)?;
    let mut names = HashSet::new();
    for (index, entry) in config.subsystems.iter().enumerate() {
        let key = format!("subsystems[{index}]");
        subsystem(entry, &key, &config.devices, source)?;
        let name = &entry.get_ref().nqn;
        if !names.insert(name.get_ref()) {
            let problem = format!("{:?} is the name of an earlier subsystem too", name.get_ref());
            return Err(source.error(name.span(), format!("{key}.nqn"), problem));
        }
    }
    for (index, entry) in config.referrals.iter().enumerate() {
        referral(entry, &format!("referrals[{index}]"), source)?;
    }
    Ok(())
}

fn memory(config: &Config, source: &Source) -> Check {
    let per_reactor = &config.memory.per_reactor;
    let refused = |problem| Err(source.error(per_reactor.span(), "memory.per_reactor", problem));
    let bytes = per_reactor.get_ref().0;
    let max_transfer = config.transports.tcp.max_transfer.get_ref().0;
    if bytes < 2 * max_transfer {
        return refused(format!(
            "must hold two commands of transports.tcp.max_transfer ({max_transfer} bytes) at least"
        ));
    }
    if bytes > MAX_POOL {
        return refused(format!("is more than a pool may have, {}", Size(MAX_POOL)));
    }
    let asked = &config.transports.rdma;
    // What nobody has asked for is made to fit.
    let asks = !asked.shared_receives.span().is_empty() || !asked.in_capsule_data.span().is_empty();
    let rdma = asked.to_settings();
    let got = rdma.receives_from(usize::try_from(bytes).unwrap_or(usize::MAX));
    if config.serves_rdma() && asks && got < rdma.shared_receives {
        return refused(format!(
            "has room for {got} of the {} transports.rdma.shared_receives with in_capsule_data each, which take a quarter of it at most",
            rdma.shared_receives
        ));
    }
    // Where the system does not say which cores are allowed, the start will fail for that.
    let reactors = config.cores().map_or(1, |cores| cores.len() as u64);
    let machine = machine_memory();
    if bytes.saturating_mul(reactors) > machine {
        return refused(format!(
            "{} for each of {reactors} reactors is more than the memory of this machine, {} MiB",
            Size(bytes),
            machine >> 20
        ));
    }
    Ok(())
}

/// Bytes of memory that this machine has.
fn machine_memory() -> u64 {
    let facts = rustix::system::sysinfo();
    facts.totalram.saturating_mul(facts.mem_unit.into())
}

fn reactors(config: &Config, source: &Source) -> Check {
    let cores = config.reactors.cores.as_ref();
    if let Some(cores) = cores {
        let refused = |problem: String| source.error(cores.span(), "reactors.cores", problem);
        if cores.get_ref().is_empty() {
            return Err(refused("names no core: leave it out, or name one".to_owned()));
        }
        let mut seen = HashSet::new();
        for &core in cores.get_ref() {
            if core >= CpuSet::MAX_CPU {
                return Err(refused(format!("{core} is not the number of a core")));
            }
            if !seen.insert(core) {
                return Err(refused(format!("core {core} is named twice: one reactor a core")));
            }
        }
    }
    let used = config.cores().unwrap_or_default();
    for (core, idle) in &config.reactors.idle_by_core {
        if !used.iter().any(|used| used.to_string() == *core) {
            let key = format!("reactors.idle_by_core.{core}");
            let used: Vec<_> = used.iter().map(usize::to_string).collect();
            let problem = format!("no reactor runs there: they run on {}", used.join(", "));
            return Err(source.error(idle.span(), key, problem));
        }
    }
    Ok(())
}

fn tcp(tcp: &Tcp, source: &Source) -> Check {
    let place = Section { name: "transports.tcp", source };
    place.size("in_capsule_data", &tcp.in_capsule_data, 4096..=64 << 10)?;
    place.size("max_transfer", &tcp.max_transfer, 4096..=2 << 20)?;
    place.count("max_io_queues", &tcp.max_io_queues, 1..=1024)?;
    place.count("queue_depth", &tcp.queue_depth, 32..=1024)?;
    place.timeout("connect_timeout", &tcp.connect_timeout)?;
    place.timeout("receive_timeout", &tcp.receive_timeout)?;
    place.timeout("send_timeout", &tcp.send_timeout)
}

fn rdma(rdma: &Rdma, source: &Source) -> Check {
    let place = Section { name: "transports.rdma", source };
    place.size("in_capsule_data", &rdma.in_capsule_data, 4096..=64 << 10)?;
    place.count("queue_depth", &rdma.queue_depth, 32..=1024)?;
    place.count("shared_receives", &rdma.shared_receives, 64..=64 << 10)?;
    place.count("completions", &rdma.completions, 1024..=1 << 20)?;
    place.timeout("progress_timeout", &rdma.progress_timeout)
}

/// A section of the file.
struct Section<'a> {
    name: &'static str,
    source: &'a Source,
}

impl Section<'_> {
    fn refuse<T>(&self, key: &str, value: &Spanned<T>, problem: impl Display) -> Check {
        Err(self.source.error(value.span(), format!("{}.{key}", self.name), problem))
    }

    /// A power of two in a range.
    fn size(&self, key: &str, size: &Spanned<Size>, range: RangeInclusive<u64>) -> Check {
        let bytes = size.get_ref().0;
        if !range.contains(&bytes) {
            let problem = format!("must be from {} to {} bytes", range.start(), range.end());
            return self.refuse(key, size, problem);
        }
        if !bytes.is_power_of_two() {
            return self.refuse(key, size, "must be a power of two");
        }
        Ok(())
    }

    fn count<T: PartialOrd + Display>(
        &self,
        key: &str,
        count: &Spanned<T>,
        range: RangeInclusive<T>,
    ) -> Check {
        if range.contains(count.get_ref()) {
            return Ok(());
        }
        self.refuse(key, count, format!("must be from {} to {}", range.start(), range.end()))
    }

    fn timeout(&self, key: &str, time: &Spanned<Time>) -> Check {
        if time.get_ref().0.is_zero() {
            return self.refuse(key, time, "must be above 0: no host could keep to it");
        }
        Ok(())
    }
}

fn subsystem(
    entry: &Spanned<Subsystem>,
    key: &str,
    devices: &BTreeMap<String, Spanned<Device>>,
    source: &Source,
) -> Check {
    let subsystem = entry.get_ref();
    let name = nqn(source, &format!("{key}.nqn"), &subsystem.nqn)?;
    if name.is_discovery() {
        let problem = "is the discovery subsystem's own name: every listener serves it by itself";
        return Err(source.error(subsystem.nqn.span(), format!("{key}.nqn"), problem));
    }
    for (what, text, most) in [("serial", &subsystem.serial, 20), ("model", &subsystem.model, 40)] {
        if let Some(text) = text {
            let value = text.get_ref();
            let printable = value.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
            let padded = value.trim_matches(' ') != value;
            if value.is_empty() || value.len() > most || !printable || padded {
                let problem = format!(
                    "must be 1 to {most} printable ASCII characters, not blank at either end"
                );
                return Err(source.error(text.span(), format!("{key}.{what}"), problem));
            }
        }
    }
    for (index, host) in subsystem.hosts.iter().enumerate() {
        nqn(source, &format!("{key}.hosts[{index}]"), host)?;
    }
    if subsystem.listeners.is_empty() {
        let problem = "is empty: a subsystem needs an address to be reached at";
        return Err(source.error(entry.span(), format!("{key}.listeners"), problem));
    }
    for (index, listener) in subsystem.listeners.iter().enumerate() {
        ana(subsystem, listener.get_ref(), &format!("{key}.listeners[{index}]"), source)?;
        let Listener { transport, address, .. } = *listener.get_ref();
        // A device of the network may come later.
        if transport == Transport::Tcp
            && let Err(problem) = reachable(address)
        {
            let key = format!("{key}.listeners[{index}].address");
            return Err(source.error(listener.span(), key, problem));
        }
    }
    if subsystem.namespaces.len() > MAX_NAMESPACES {
        let problem = format!("has more than {MAX_NAMESPACES} entries");
        return Err(source.error(entry.span(), format!("{key}.namespaces"), problem));
    }
    let mut seen = HashSet::new();
    for (index, namespace) in subsystem.namespaces.iter().enumerate() {
        let key = format!("{key}.namespaces[{index}]");
        let namespace = namespace.get_ref();
        let nsid = *namespace.nsid.get_ref();
        if nsid == 0 || usize::try_from(nsid).map_or(true, |nsid| nsid > MAX_NAMESPACES) {
            let problem = format!("must be from 1 to {MAX_NAMESPACES}");
            return Err(source.error(namespace.nsid.span(), format!("{key}.nsid"), problem));
        }
        if !seen.insert(nsid) {
            let problem = format!("{nsid} is an earlier namespace's too");
            return Err(source.error(namespace.nsid.span(), format!("{key}.nsid"), problem));
        }
        for (index, host) in namespace.hosts.iter().flatten().enumerate() {
            nqn(source, &format!("{key}.hosts[{index}]"), host)?;
        }
        let device = &namespace.device;
        if !devices.contains_key(device.get_ref()) {
            let known: Vec<_> = devices.keys().map(String::as_str).collect();
            let problem = format!(
                "{:?} is not in [devices], which has: {}",
                device.get_ref(),
                if known.is_empty() { "nothing".to_owned() } else { known.join(", ") }
            );
            return Err(source.error(device.span(), format!("{key}.device"), problem));
        }
        if let Some(layer) = devices::layer_on(devices, device.get_ref()) {
            let problem = format!("device {layer} stands on it: export that");
            return Err(source.error(device.span(), format!("{key}.device"), problem));
        }
    }
    Ok(())
}

/// The states of a listener: nobody would be told of them if they were not reported.
fn ana(subsystem: &Subsystem, listener: &Listener, key: &str, source: &Source) -> Check {
    for (group, state) in &listener.ana_groups {
        let refused = |problem: String| {
            Err(source.error(state.span(), format!("{key}.ana_groups.{group}"), problem))
        };
        let number = group.parse().ok().filter(|number| (1..=MAX_NAMESPACES).contains(number));
        if number.is_none() {
            return refused(format!("is no ANA group: they are 1 to {MAX_NAMESPACES}"));
        }
        if !subsystem.ana_reporting {
            return refused("needs ana_reporting = true in the subsystem".to_owned());
        }
    }
    Ok(())
}

fn referral(entry: &Spanned<Referral>, key: &str, source: &Source) -> Check {
    let referral = entry.get_ref();
    if referral.port == 0 {
        let problem = "must be 1 or more";
        return Err(source.error(entry.span(), format!("{key}.port"), problem));
    }
    match &referral.nqn {
        Some(text) => nqn(source, &format!("{key}.nqn"), text).map(drop),
        None => Ok(()),
    }
}

/// Whether this machine has the address. What nobody could listen on is the target's own to refuse.
fn reachable(address: IpAddr) -> Result<(), String> {
    match UdpSocket::bind((address, 0)) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Err(format!(
            "{address} is no address of this machine: name one of its own, or 0.0.0.0 or :: for all"
        )),
        _ => Ok(()),
    }
}
