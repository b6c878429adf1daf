//! What `serve` says once it serves: what is exported, where, on which cores, with what memory, and
//! what to type next.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};
use target::configuration::{Configuration, Listener, Subsystem};
use tidegate::node::Node;

use crate::config::quantity::Size;
use crate::config::{Config, Idle};
use crate::output;

/// Prints it to standard output.
pub(super) fn print(
    config: &Config,
    cores: &[usize],
    configuration: &Configuration,
    node: &Node,
    as_json: bool,
) -> anyhow::Result<()> {
    let text = if as_json {
        json(config, cores, configuration, node).to_string() + "\n"
    } else {
        text(config, cores, configuration, node)
    };
    output::write(text.as_bytes())
}

fn text(config: &Config, cores: &[usize], configuration: &Configuration, node: &Node) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = lines(&mut text, config, cores, configuration, node);
    text
}

fn lines(
    out: &mut String,
    config: &Config,
    cores: &[usize],
    configuration: &Configuration,
    node: &Node,
) -> std::fmt::Result {
    for subsystem in configuration.subsystems() {
        writeln!(out, "{}", subsystem.nqn())?;
        for listener in listeners(configuration, subsystem) {
            writeln!(out, "    at {}", listener.address)?;
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
    let policy = match config.reactors.idle {
        Idle::Poll => "poll",
        Idle::Adaptive => "adaptive",
        Idle::Interrupt => "interrupt",
    };
    let list: Vec<_> = cores.iter().map(usize::to_string).collect();
    let memory = node.memory();
    writeln!(
        out,
        "{} on {} {}, idle policy {policy}; memory for data in flight {}, of it {} in hugepages",
        if cores.len() == 1 {
            "one reactor".to_owned()
        } else {
            format!("{} reactors", cores.len())
        },
        if cores.len() == 1 { "core" } else { "cores" },
        list.join(", "),
        Size(memory.mapped as u64),
        if memory.huge == 0 { "none".to_owned() } else { Size(memory.huge as u64).to_string() },
    )?;
    if let Some((subsystem, listener)) = configuration
        .subsystems()
        .iter()
        .find_map(|subsystem| Some((subsystem, listeners(configuration, subsystem).next()?)))
    {
        let address = reachable(listener.address.socket());
        let (ip, port, nqn) = (address.ip(), address.port(), subsystem.nqn());
        let program = program();
        writeln!(out, "Try next:")?;
        writeln!(
            out,
            "    {program} perf -t tcp -a {ip} -s {port} -n {nqn} --rw randread --bs 4k --iodepth 32 --runtime 10s"
        )?;
        writeln!(out, "    modprobe nvme-tcp; nvme connect -t tcp -a {ip} -s {port} -n {nqn}")?;
        writeln!(out, "    nvme list")?;
    }
    Ok(())
}

fn json(config: &Config, cores: &[usize], configuration: &Configuration, node: &Node) -> Value {
    let subsystems = configuration.subsystems().iter().map(|subsystem| {
        let addresses = listeners(configuration, subsystem).map(|listener| {
            json!({
                "trtype": listener.address.trtype.to_string(),
                "traddr": listener.address.traddr.to_string(),
                "trsvcid": listener.address.trsvcid.to_string(),
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
    let memory = node.memory();
    json!({
        "subsystems": subsystems.collect::<Vec<_>>(),
        "cores": cores,
        "memory": { "bytes": memory.mapped, "hugepages": memory.huge },
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
    shell_word(
        &program.map_or_else(|| "tidegate".into(), |name| name.to_string_lossy().into_owned()),
    )
}

/// A text as one word for a shell.
fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// An address to type: a wildcard is reached by loopback from this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_for_the_shell_is_quoted_where_it_must_be() {
        for (text, word) in [
            ("target/release/tidegate", "target/release/tidegate"),
            ("/opt/my tools/tidegate", "'/opt/my tools/tidegate'"),
            ("it's", "'it'\\''s'"),
        ] {
            assert_eq!(shell_word(text), word);
        }
    }
}
