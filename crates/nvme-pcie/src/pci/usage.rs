//! Who uses what: mounts, swap, what stands on a disk, and processes that have a device open.
//!
//! The kernel answers in several places and none of them is complete. What is mounted in other namespaces, or by a file system of several disks,
//! shows only in that the disk cannot be claimed; so claiming it is part of the check, and what is found here says why it fails.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Controller, Namespace, System, VFIO_DRIVER, attribute, names};

/// How far holders are followed: a partition, its RAID, its LVM, its encryption, ... A chain that is longer is none.
const STOREYS: usize = 16;

/// What is mounted, what is swap and what is open, at one moment.
#[derive(Debug)]
pub struct Usage {
    mounts: Vec<Mount>,
    swaps: Vec<String>,
    open: HashMap<String, Vec<Process>>,
}

#[derive(Debug)]
struct Mount {
    /// `259:1`.
    number: String,
    /// What it was mounted from, `/dev/nvme0n1`: the number is not the disk's with some file systems.
    source: String,
    on: String,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// One way in which something is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Use {
    /// It is mounted.
    Mounted {
        /// The disk, partition, or what stands on them.
        device: String,
        /// Where.
        on: String,
    },
    /// It is swap.
    Swap {
        /// The disk, partition, or what stands on them.
        device: String,
    },
    /// Another device stands on it.
    Held {
        /// The disk or partition, or what stands on them.
        device: String,
        /// The one that stands on it.
        by: String,
    },
    /// A process has it open.
    Open {
        /// The device.
        device: String,
        /// The process.
        by: Process,
    },
    /// Somebody has it for himself, and nothing says who.
    Claimed {
        /// The device.
        device: String,
    },
}

impl Use {
    /// What is used.
    pub fn device(&self) -> &str {
        match self {
            Use::Mounted { device, .. }
            | Use::Swap { device }
            | Use::Held { device, .. }
            | Use::Open { device, .. }
            | Use::Claimed { device } => device,
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.pid)
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Mounted { device, on } => write!(f, "{device} is mounted on {on}"),
            Use::Swap { device } => write!(f, "{device} is swap"),
            Use::Held { device, by } => write!(f, "{device} is held by {by}"),
            Use::Open { device, by } => write!(f, "{device} is open in {by}"),
            Use::Claimed { device } => write!(f, "{device} is open exclusively"),
        }
    }
}

impl Usage {
    /// What is so now. Processes that may not be looked at are left out.
    ///
    /// # Errors
    /// What is mounted, or what is swap, cannot be read.
    pub fn read(system: &System) -> io::Result<Usage> {
        let mounts = read(&system.path("/proc/self/mountinfo"))?;
        let swaps = match read(&system.path("/proc/swaps")) {
            // A kernel without swap.
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            swaps => swaps?,
        };
        Ok(Usage {
            mounts: mounts.lines().filter_map(mount).collect(),
            // Below a line of heads.
            swaps: swaps.lines().skip(1).filter_map(first_word).collect(),
            open: open_devices(&system.path("/proc")),
        })
    }

    /// How anything of this controller is in use, as far as can be told without opening it.
    pub fn of(&self, system: &System, controller: &Controller) -> Vec<Use> {
        let mut uses = Vec::new();
        for namespace in &controller.namespaces {
            self.of_disk(&system.disk(&namespace.name), STOREYS, &mut uses);
            self.opened(&namespace.character_device(), &mut uses);
        }
        if controller.driver.as_deref() == Some(VFIO_DRIVER) {
            for node in system.vfio_nodes(controller) {
                self.opened(&node, &mut uses);
            }
        }
        uses
    }

    /// A disk or partition, its partitions, and what stands on any of them.
    fn of_disk(&self, disk: &Path, storeys: usize, uses: &mut Vec<Use>) {
        let Some(name) = disk.file_name().and_then(|name| name.to_str()) else { return };
        let mapped = attribute(&disk.join("dm/name"));
        let nodes = [
            Some(format!("/dev/{name}")),
            mapped.as_ref().map(|name| format!("/dev/mapper/{name}")),
        ];
        let is_node = |path: &str| nodes.iter().flatten().any(|node| node == path);
        let device = display_name(disk, name);
        let number = attribute(&disk.join("dev"));
        let mut add = |found: Use| {
            if !uses.contains(&found) {
                uses.push(found);
            }
        };
        for mount in &self.mounts {
            if Some(&mount.number) == number.as_ref() || is_node(&mount.source) {
                add(Use::Mounted { device: device.clone(), on: mount.on.clone() });
            }
        }
        if self.swaps.iter().any(|swap| is_node(swap)) {
            add(Use::Swap { device: device.clone() });
        }
        let holders: Vec<PathBuf> = names(&disk.join("holders"))
            .iter()
            .filter_map(|holder| {
                Some(disk.ancestors().find(|up| up.ends_with("class/block"))?.join(holder))
            })
            .collect();
        for holder in &holders {
            if let Some(name) = holder.file_name().and_then(|name| name.to_str()) {
                add(Use::Held { device: device.clone(), by: display_name(holder, name) });
            }
        }
        for node in nodes.iter().flatten() {
            self.opened(node, uses);
        }
        let Some(storeys) = storeys.checked_sub(1) else { return };
        let partitions = names(disk).into_iter().map(|name| disk.join(name));
        let partitions = partitions.filter(|entry| entry.join("partition").exists());
        for above in partitions.chain(holders) {
            self.of_disk(&above, storeys, uses);
        }
    }

    /// Adds the processes, but for this one, that have a device open.
    fn opened(&self, node: &str, uses: &mut Vec<Use>) {
        let processes = self.open.get(node).into_iter().flatten();
        for process in processes.filter(|process| process.pid != std::process::id()) {
            let device = node.strip_prefix("/dev/").unwrap_or(node).to_owned();
            let found = Use::Open { device, by: process.clone() };
            if !uses.contains(&found) {
                uses.push(found);
            }
        }
    }
}

impl System {
    /// The files by which a program has a controller that `vfio-pci` has.
    pub(super) fn vfio_nodes(&self, controller: &Controller) -> Vec<String> {
        let own = names(&self.function(controller.address).join("vfio-dev"));
        let group = controller.group.map(|group| format!("/dev/vfio/{group}"));
        let own = own.into_iter().map(|name| format!("/dev/vfio/devices/{name}"));
        group.into_iter().chain(own).collect()
    }
}

impl Namespace {
    /// The node of its block device.
    pub(super) fn node(&self) -> String {
        format!("/dev/{}", self.name)
    }
}

/// A device's name and, for one that somebody has named, that name.
fn display_name(device: &Path, name: &str) -> String {
    match attribute(&device.join("dm/name")) {
        Some(given) => format!("{name} ({given})"),
        None => name.to_owned(),
    }
}

fn read(path: &Path) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => {
            let problem = format!("cannot read {}: {error}", path.display());
            Err(io::Error::new(error.kind(), problem))
        }
    }
}

/// A line of `mountinfo`: number, parent, device, root, place, options, further fields up to a dash, type, source, ...
fn mount(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ');
    Some(Mount {
        number: front.nth(2)?.to_owned(),
        on: unescaped(front.nth(1)?),
        source: unescaped(back.split(' ').nth(1)?),
    })
}

fn first_word(line: &str) -> Option<String> {
    line.split_whitespace().next().map(unescaped)
}

/// A path in which the kernel has written blanks and the like as a backslash and three octal digits.
fn unescaped(text: &str) -> String {
    let mut pieces = text.split('\\');
    let mut path = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let code = piece.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok());
        if let (Some(code), Some(rest)) = (code, piece.get(3..)) {
            path.push(char::from(code));
            path.push_str(rest);
        } else {
            path.push('\\');
            path.push_str(piece);
        }
    }
    path
}

/// The processes that have a device open, by its path. Links are read, not followed: following one may block.
fn open_devices(proc: &Path) -> HashMap<String, Vec<Process>> {
    let mut open: HashMap<String, Vec<Process>> = HashMap::new();
    for name in names(proc) {
        let Ok(pid) = name.parse() else { continue };
        let process = proc.join(&name);
        for descriptor in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let Some(target) = target.to_str().filter(|target| target.starts_with("/dev/")) else {
                continue;
            };
            let holders = open.entry(target.to_owned()).or_default();
            if holders.iter().all(|process| process.pid != pid) {
                let name = attribute(&process.join("comm")).unwrap_or_else(|| "process".to_owned());
                holders.push(Process { pid, name });
            }
        }
    }
    open
}

#[cfg(test)]
mod tests {
    use super::super::machine::{Function, Machine};
    use super::*;

    fn uses(machine: &Machine) -> Vec<String> {
        let controllers = machine.system.controllers().unwrap();
        let usage = Usage::read(&machine.system).unwrap();
        let uses = controllers.iter().flat_map(|controller| usage.of(&machine.system, controller));
        uses.map(|found| found.to_string()).collect()
    }

    #[test]
    fn each_way_of_using_a_disk_is_told() {
        let machine = Machine::new();
        machine.add(Function { namespaces: 2, ..Function::default() });
        assert_eq!(uses(&machine), [""; 0]);
        machine.partition("nvme0n1", "nvme0n1p1", "259:1");
        machine.partition("nvme0n1", "nvme0n1p2", "259:2");
        machine.hold("nvme0n1/nvme0n1p2", "dm-0", Some("vg-home"), "253:0");
        machine.hold("dm-0", "dm-1", None, "253:1");
        machine.mount("259:1", "/dev/nvme0n1p1", "/boot\\040it");
        machine.mount("0:44", "/dev/mapper/vg-home", "/home");
        machine.swap("/dev/dm-1");
        machine.opened(77, "dd", "/dev/nvme0n2");
        machine.opened(78, "nvme", "/dev/ng0n2");
        machine.opened(78, "nvme", "/dev/null");
        assert_eq!(
            uses(&machine),
            [
                "nvme0n1p1 is mounted on /boot it",
                "nvme0n1p2 is held by dm-0 (vg-home)",
                "dm-0 (vg-home) is mounted on /home",
                "dm-0 (vg-home) is held by dm-1",
                "dm-1 is swap",
                "nvme0n2 is open in dd (77)",
                "ng0n2 is open in nvme (78)",
            ]
        );
    }

    #[test]
    fn a_group_that_is_open_is_told_of_the_controller_that_a_program_has() {
        let machine = Machine::new();
        machine.add(Function { driver: Some(VFIO_DRIVER), ..Function::default() });
        machine.opened(9, "tidegate", "/dev/vfio/10");
        machine.opened(10, "other", "/dev/vfio/11");
        assert_eq!(uses(&machine), ["vfio/10 is open in tidegate (9)"]);
    }

    #[test]
    fn holders_that_hold_each_other_come_to_an_end() {
        let machine = Machine::new();
        machine.add(Function::default());
        machine.hold("nvme0n1", "dm-0", None, "253:0");
        machine.hold("dm-0", "dm-1", None, "253:1");
        machine.hold("dm-1", "dm-0", None, "253:0");
        assert_eq!(uses(&machine).len(), 3);
    }

    #[test]
    fn what_is_mounted_has_to_be_known() {
        let machine = Machine::new();
        std::fs::remove_file(machine.path("/proc/self/mountinfo")).unwrap();
        let error = Usage::read(&machine.system).unwrap_err().to_string();
        assert!(error.contains("mountinfo"), "{error}");
        std::fs::write(machine.path("/proc/self/mountinfo"), "nonsense\n\n1 2 3 - x\n").unwrap();
        std::fs::remove_file(machine.path("/proc/swaps")).unwrap();
        assert!(Usage::read(&machine.system).is_ok());
    }

    #[test]
    fn escapes_are_undone() {
        for (text, path) in
            [("/a\\040b", "/a b"), ("/a\\134", "/a\\"), ("/a\\9", "/a\\9"), ("\\", "\\"), ("", "")]
        {
            assert_eq!(unescaped(text), path);
        }
    }
}
