//! What `serve` says once it serves: what is exported, where, on which cores, with what memory, and
//! what to type next.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use clap::ValueEnum;
use control::plane::Plane;
use nvme::address::{TransportAddress, TransportType};
use rustix::thread::{CpuSet, sched_getaffinity};
use serde_json::{Value, json};
use target::configuration::{Configuration, Hosts, Listener, Subsystem};
use transport_rdma::{DeviceReport, PortReport};

use super::Serving;
use super::rpc::Places;
use crate::config::quantity::Size;
use crate::config::{Config, Idle};
use crate::output;

/// In which form it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// One line for programs.
    Json,
}

/// Prints it to standard output.
pub(super) fn print(config: &Config, serving: &Serving, format: Format) -> anyhow::Result<()> {
    let text = match format {
        Format::Json => json(config, serving).to_string() + "\n",
        Format::Text => text(config, serving),
    };
    output::write(text.as_bytes())
}

fn text(config: &Config, serving: &Serving) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = lines(&mut text, config, serving);
    text
}

fn lines(out: &mut String, config: &Config, serving: &Serving) -> std::fmt::Result {
    let Serving { cores, configuration, plane, rpc, state } = serving;
    for subsystem in configuration.subsystems() {
        writeln!(out, "{}", subsystem.nqn())?;
        for listener in listeners(configuration, subsystem) {
            let waits = if is_unbound(plane, listener) { ", once it can be had" } else { "" };
            writeln!(out, "    at {}{waits}", listener.address)?;
        }
        for namespace in subsystem.namespaces() {
            let Some(device) = namespace.device() else { continue };
            let geometry = device.geometry();
            writeln!(
                out,
                "    namespace {}: {} ({}), {} in blocks of {}{}",
                namespace.nsid(),
                device.name(),
                device.properties().description,
                Size(geometry.bytes()),
                geometry.block_size,
                if namespace.is_read_only() { ", read-only" } else { "" },
            )?;
        }
    }
    let memory = plane.node().memory();
    writeln!(
        out,
        "{}; memory for data in flight {}, of it {} in hugepages",
        reactors(config, cores, &sched_getaffinity(None).unwrap_or_default()),
        Size(memory.mapped as u64),
        if memory.huge == 0 { "none".to_owned() } else { Size(memory.huge as u64).to_string() },
    )?;
    if let Some(rdma) = rdma(plane) {
        writeln!(out, "{rdma}")?;
    }
    writeln!(out, "{}; {}", control(&rpc.places), kept(state.as_deref()))?;
    let mut subsystems = configuration.subsystems().iter();
    let Some(next) = subsystems.find_map(|subsystem| {
        let mut here = listeners(configuration, subsystem).filter(|it| !is_unbound(plane, it));
        Next::of(subsystem, here.find_map(|listener| reachable(&listener.address))?)
    }) else {
        return Ok(());
    };
    let Next { nqn, address, nsid, host } = next;
    let TransportAddress { trtype, traddr, trsvcid } = address;
    let program = program();
    let nsid = if nsid == 1 { String::new() } else { format!(" --nsid {nsid}") };
    let as_host = |flag| host.map_or_else(String::new, |host| format!(" {flag} {}", word(host)));
    let target = format!("-t {trtype} -a {traddr} -s {trsvcid} -n {}", word(nqn));
    writeln!(out, "Try next:")?;
    writeln!(
        out,
        "    {program} perf {target}{}{nsid} --rw randread --bs 4k --iodepth 32 --runtime 10s",
        as_host("-q")
    )?;
    writeln!(out, "    modprobe nvme-{trtype}; nvme connect {target}{}", as_host("--hostnqn"))?;
    writeln!(out, "    nvme list")
}

/// Whether an address is still waited for.
fn is_unbound(plane: &Plane, listener: &Listener) -> bool {
    plane.unbound().iter().any(|it| TransportAddress::from(*it) == listener.address)
}

/// What there is of RDMA, if it is to be served.
fn rdma(plane: &Plane) -> Option<String> {
    if let Some(why) = plane.rdma_waiting() {
        return Some(format!("no RDMA yet: {why}"));
    }
    let devices = plane.node().rdma()?.network().devices();
    if devices.is_empty() {
        return Some("RDMA on no device yet".to_owned());
    }
    let port = |port: &PortReport| {
        let state = if port.active { "active" } else { "down" };
        format!("port {} {state}, MTU {}", port.number, port.mtu)
    };
    let device = |device: &DeviceReport| {
        let ports: Vec<_> = device.ports.iter().map(port).collect();
        format!("{} ({})", device.name, ports.join("; "))
    };
    let devices: Vec<_> = devices.iter().filter(|it| !it.removed).map(device).collect();
    Some(format!("RDMA on {}", devices.join(", ")))
}

/// Where clients reach the control plane.
fn control(places: &Places) -> String {
    let unix = places.unix.as_deref().map(shown);
    let tcp = places.tcp.map(|address| format!("TCP {address}"));
    let http = places.http.map(|address| format!("HTTP {address}"));
    let places: Vec<_> = [unix, tcp, http].into_iter().flatten().collect();
    if places.is_empty() {
        return "no JSON-RPC".to_owned();
    }
    format!("JSON-RPC on {}", places.join(", "))
}

/// Where what clients configure is kept.
fn kept(state: Option<&Path>) -> String {
    match state {
        Some(directory) => format!("state in {}", directory.display()),
        None => "no state: what is configured is forgotten at the end".to_owned(),
    }
}

/// How many reactors there are, where they run, and what each does when there is nothing to do.
fn reactors(config: &Config, cores: &[usize], allowed: &CpuSet) -> String {
    let count = match cores {
        [_] => "one reactor".to_owned(),
        several => format!("{} reactors", several.len()),
    };
    // As the reactor does: what may not be pinned runs all the same.
    let (pinned, unpinned): (Vec<usize>, Vec<usize>) =
        cores.iter().partition(|&&core| core < CpuSet::MAX_CPU && allowed.is_set(core));
    let places = [(" on ", pinned), (", unpinned since this process may not use ", unpinned)]
        .into_iter()
        .filter(|(_, cores)| !cores.is_empty())
        .map(|(how, cores)| how.to_owned() + &named(&cores));
    let policy = |core: &usize| match config.reactors.idle_on(*core) {
        Idle::Poll => "poll",
        Idle::Adaptive => "adaptive",
        Idle::Interrupt => "interrupt",
    };
    let mut by_policy = BTreeMap::<_, Vec<usize>>::new();
    for core in cores {
        by_policy.entry(policy(core)).or_default().push(*core);
    }
    let only = by_policy.len() == 1;
    let policies = by_policy.into_iter().map(|(policy, cores)| {
        if only { policy.to_owned() } else { format!("{policy} for {}", named(&cores)) }
    });
    let policies: Vec<_> = policies.collect();
    format!("{count}{}, idle policy {}", places.collect::<String>(), policies.join(" and "))
}

/// These cores in words.
fn named(cores: &[usize]) -> String {
    let list: Vec<_> = cores.iter().map(usize::to_string).collect();
    format!("{} {}", if cores.len() == 1 { "core" } else { "cores" }, list.join(", "))
}

/// Something that a user can try and that works.
struct Next<'a> {
    nqn: &'a str,
    address: TransportAddress,
    nsid: u32,
    /// Whom to be, if not everyone is let in.
    host: Option<&'a str>,
}

impl<'a> Next<'a> {
    /// `None` if there is nothing to read in this subsystem, or nobody may.
    fn of(subsystem: &'a Subsystem, address: TransportAddress) -> Option<Self> {
        let namespace = subsystem.namespaces().iter().find(|namespace| namespace.is_active())?;
        let host = match &subsystem.options().hosts {
            Hosts::Any => None,
            Hosts::Listed(hosts) => Some(hosts.first()?.as_str()),
        };
        Some(Self { nqn: subsystem.nqn().as_str(), address, nsid: namespace.nsid(), host })
    }
}

/// A path as text: JSON has no other.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn json(config: &Config, serving: &Serving) -> Value {
    let Serving { cores, configuration, plane, rpc, state } = serving;
    let subsystems = configuration.subsystems().iter().map(|subsystem| {
        let addresses = listeners(configuration, subsystem).map(|listener| {
            json!({
                "trtype": listener.address.trtype.to_string(),
                "traddr": listener.address.traddr.to_string(),
                "trsvcid": listener.address.trsvcid.to_string(),
                "waiting": is_unbound(plane, listener),
            })
        });
        let namespaces = subsystem.namespaces().iter().filter_map(|namespace| {
            let device = namespace.device()?;
            let geometry = device.geometry();
            Some(json!({
                "nsid": namespace.nsid(),
                "device": device.name(),
                "block_size": geometry.block_size,
                "blocks": geometry.blocks,
                "uuid": namespace.identity().uuid.to_string(),
                "read_only": namespace.is_read_only(),
            }))
        });
        json!({
            "nqn": subsystem.nqn().as_str(),
            "listeners": addresses.collect::<Vec<_>>(),
            "namespaces": namespaces.collect::<Vec<_>>(),
        })
    });
    let memory = plane.node().memory();
    json!({
        "subsystems": subsystems.collect::<Vec<_>>(),
        "cores": cores,
        "rdma": rdma(plane),
        "memory": { "bytes": memory.mapped, "hugepages": memory.huge },
        "rpc": {
            "socket": rpc.places.unix.as_deref().map(shown),
            "tcp": rpc.places.tcp,
            "http": rpc.places.http,
        },
        "state": state.as_deref().map(shown),
        "shutdown_timeout_ms": u64::try_from(config.shutdown_timeout().as_millis()).unwrap_or(u64::MAX),
    })
}

/// The listeners that a subsystem can be reached on.
fn listeners<'a>(
    configuration: &'a Configuration,
    subsystem: &'a Subsystem,
) -> impl Iterator<Item = &'a Listener> {
    configuration.listeners().iter().filter(|listener| subsystem.is_reachable_on(listener.id))
}

/// How this process was started, to type again: `tidegate` need not be on the path.
fn program() -> String {
    let program = std::env::args_os().next();
    word(&program.map_or_else(|| "tidegate".into(), |name| name.to_string_lossy().into_owned()))
}

/// A text as one word for a shell.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// An address to type: a wildcard is reached by loopback from this machine, but for RDMA, where it may be any device's.
fn reachable(address: &TransportAddress) -> Option<TransportAddress> {
    let traddr = match address.traddr {
        any if any.is_unspecified() && address.trtype == TransportType::Rdma => return None,
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Some(TransportAddress { traddr, ..*address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reactors_are_where_they_run_and_idle_as_they_are_told() {
        let mut allowed = CpuSet::new();
        allowed.set(0);
        allowed.set(1);
        for (config, cores, text) in [
            ("", &[0][..], "one reactor on core 0, idle policy adaptive"),
            ("idle = 'poll'", &[0, 1], "2 reactors on cores 0, 1, idle policy poll"),
            (
                "idle_by_core = { 1 = 'interrupt' }",
                &[0, 1],
                "2 reactors on cores 0, 1, idle policy adaptive for core 0 and interrupt for core 1",
            ),
            (
                "idle_by_core = { 0 = 'poll', 1 = 'poll' }",
                &[0, 1],
                "2 reactors on cores 0, 1, idle policy poll",
            ),
            (
                "",
                &[99],
                "one reactor, unpinned since this process may not use core 99, idle policy adaptive",
            ),
            (
                "",
                &[1, 5000],
                "2 reactors on core 1, unpinned since this process may not use core 5000, idle policy adaptive",
            ),
        ] {
            let config: Config = toml::from_str(&format!("[reactors]\n{config}")).unwrap();
            assert_eq!(reactors(&config, cores, &allowed), text);
        }
    }

    #[test]
    fn a_word_for_the_shell_is_quoted_where_it_must_be() {
        for (text, typed) in [
            ("target/release/tidegate", "target/release/tidegate"),
            ("/opt/my tools/tidegate", "'/opt/my tools/tidegate'"),
            ("it's", "'it'\\''s'"),
        ] {
            assert_eq!(word(text), typed);
        }
    }
}
