//! Checks of a parsed configuration, before anything is created.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf, absolute};

use rustix::thread::CpuSet;
use toml::Spanned;

use super::{Config, ConfigError, Device, DeviceKind, Source, Subsystem, Tcp, nqn};

/// Namespaces of one subsystem.
const MAX_NAMESPACES: usize = 1024;

type Check = Result<(), ConfigError>;

/// The first thing that is wrong with the configuration.
pub(super) fn check(config: &Config, source: &Source) -> Check {
    reactors(config, source)?;
    tcp(&config.transports.tcp, source)?;
    let per_reactor = &config.memory.per_reactor;
    let max_transfer = config.transports.tcp.max_transfer.get_ref().0;
    if per_reactor.get_ref().0 < 2 * max_transfer {
        return Err(source.error(
            per_reactor.span(),
            "memory.per_reactor",
            format_args!("must hold two commands of transports.tcp.max_transfer ({max_transfer} bytes) at least"),
        ));
    }
    devices(&config.devices, source)?;
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
    Ok(())
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
    for core in config.reactors.idle_by_core.keys() {
        let known = core
            .parse::<usize>()
            .is_ok_and(|core| cores.is_none_or(|cores| cores.get_ref().contains(&core)));
        if !known {
            let key = format!("reactors.idle_by_core.{core}");
            return Err(source.error(0..0, key, "is not the number of a core in reactors.cores"));
        }
    }
    Ok(())
}

fn tcp(tcp: &Tcp, source: &Source) -> Check {
    let sizes = [
        ("in_capsule_data", &tcp.in_capsule_data, 4096..=64 << 10),
        ("max_transfer", &tcp.max_transfer, 4096..=2 << 20),
    ];
    for (key, size, range) in sizes {
        let bytes = size.get_ref().0;
        let wrong = if range.contains(&bytes) {
            (!bytes.is_power_of_two()).then(|| "must be a power of two".to_owned())
        } else {
            Some(format!("must be from {} to {} bytes", range.start(), range.end()))
        };
        if let Some(problem) = wrong {
            return Err(source.error(size.span(), format!("transports.tcp.{key}"), problem));
        }
    }
    let counts = [
        ("max_io_queues", &tcp.max_io_queues, 1..=1024),
        ("queue_depth", &tcp.queue_depth, 32..=1024),
    ];
    for (key, count, range) in counts {
        if !range.contains(count.get_ref()) {
            let problem = format!("must be from {} to {}", range.start(), range.end());
            return Err(source.error(count.span(), format!("transports.tcp.{key}"), problem));
        }
    }
    Ok(())
}

fn devices(devices: &BTreeMap<String, Spanned<Device>>, source: &Source) -> Check {
    // What each file is, however its path is written; whether it is only read.
    let mut files: BTreeMap<PathBuf, (&str, bool)> = BTreeMap::new();
    for (name, entry) in devices {
        device(entry, &format!("devices.{name}"), source)?;
        let Device { path, read_only, .. } = entry.get_ref();
        let Some(path) = path else { continue };
        let refused = |problem: String| {
            Err(source.error(path.span(), format!("devices.{name}.path"), problem))
        };
        let shown = path.get_ref().display();
        let file = match path.get_ref().canonicalize().or_else(|_| absolute(path.get_ref())) {
            Ok(file) => file,
            Err(error) => return refused(format!("{shown}: {error}")),
        };
        // Readers share a file; a writer locks it.
        if let Some((other, other_reads)) = files.insert(file, (name, *read_only))
            && !(*read_only && other_reads)
        {
            return refused(format!(
                "{shown} is the file of device {other} too: one file, one device"
            ));
        }
    }
    Ok(())
}

fn device(entry: &Spanned<Device>, key: &str, source: &Source) -> Check {
    let device = entry.get_ref();
    if let Some(block_size) = &device.block_size
        && !matches!(block_size.get_ref(), 512 | 4096)
    {
        let key = format!("{key}.block_size");
        return Err(source.error(block_size.span(), key, "must be 512 or 4096"));
    }
    let block_size = u64::from(device.block_size.as_ref().map_or(4096, |size| *size.get_ref()));
    if let Some(size) = &device.size
        && (size.get_ref().0 == 0 || !size.get_ref().0.is_multiple_of(block_size))
    {
        let problem = format!("must be a multiple of the block size, {block_size} bytes, above 0");
        return Err(source.error(size.span(), format!("{key}.size"), problem));
    }
    match (device.kind, &device.path, &device.size) {
        (DeviceKind::File, None, _) => {
            Err(source.error(entry.span(), format!("{key}.path"), "is missing: a file needs one"))
        }
        (DeviceKind::File, Some(path), size) => {
            file(path.get_ref(), size.is_some(), device.read_only)
                .map_err(|problem| source.error(path.span(), format!("{key}.path"), problem))
        }
        (DeviceKind::Null | DeviceKind::Ram, Some(path), _) => {
            let problem = "belongs to a file, not to memory: leave it out, or set kind = \"file\"";
            Err(source.error(path.span(), format!("{key}.path"), problem))
        }
        (DeviceKind::Null | DeviceKind::Ram, None, None) => {
            Err(source.error(entry.span(), format!("{key}.size"), "is missing"))
        }
        (DeviceKind::Null | DeviceKind::Ram, None, Some(_)) => Ok(()),
    }
}

/// Whether the file is there or can be made; nothing is made yet.
fn file(path: &Path, may_create: bool, read_only: bool) -> Result<(), String> {
    let shown = path.display();
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            Err(format!("{shown} is a directory: name a file in it"))
        }
        Ok(metadata) if metadata.is_file() || metadata.file_type().is_block_device() => Ok(()),
        Ok(_) => Err(format!("{shown} is neither a regular file nor a block device: name one")),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{shown}: {error}"))
        }
        Err(_) if read_only => {
            Err(format!("{shown} does not exist, and a read-only device cannot create it"))
        }
        Err(_) if may_create => Ok(()),
        Err(_) => {
            Err(format!("{shown} does not exist: create it, or give a size to have it created"))
        }
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
    }
    Ok(())
}
