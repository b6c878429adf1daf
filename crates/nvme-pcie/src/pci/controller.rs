//! What sysfs says of a controller.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Address, System, attribute, link_name, names};

/// The kernel's own driver.
pub const KERNEL_DRIVER: &str = "nvme";

/// The driver that hands a function to a program.
pub const VFIO_DRIVER: &str = "vfio-pci";

/// Class, subclass and interface of a controller with I/O queues.
const NVME_CLASS: u32 = 0x01_0802;

/// The class of bridges.
const BRIDGE: u32 = 0x06;

/// A PCI function that is an NVMe controller. What no driver but the kernel's knows is `None` with any other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Where it is.
    pub address: Address,
    /// Who made it.
    pub vendor: Option<u16>,
    /// And what.
    pub device: Option<u16>,
    /// Its IOMMU group; `None` where no IOMMU guards it.
    pub group: Option<u32>,
    /// What else is in the group, without bridges.
    pub companions: Vec<Companion>,
    /// The driver that has it.
    pub driver: Option<String>,
    /// The only driver that may have it, if that was said.
    pub driver_override: Option<String>,
    /// The NUMA node next to it.
    pub numa_node: Option<u32>,
    /// What the kernel's driver calls it: `nvme0`.
    pub name: Option<String>,
    /// Whether it works, in the words of the kernel's driver: `live`, `resetting`, ...
    pub state: Option<String>,
    /// Model number.
    pub model: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Firmware revision.
    pub firmware: Option<String>,
    /// Its namespaces.
    pub namespaces: Vec<Namespace>,
}

/// Another function of the same IOMMU group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Companion {
    /// Where it is.
    pub address: String,
    /// The driver that has it.
    pub driver: Option<String>,
}

/// A namespace as the kernel offers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its block device, `nvme0n1`, be it by one path or by several.
    pub name: String,
    /// Whether there is that block device: not of every command set.
    pub has_disk: bool,
    /// Its identifier.
    pub nsid: Option<u32>,
    /// Bytes.
    pub bytes: Option<u64>,
    /// Bytes of a block.
    pub block_bytes: Option<u32>,
}

impl System {
    /// Every NVMe controller, by address.
    ///
    /// # Errors
    /// The list of PCI functions is there and cannot be read.
    pub fn controllers(&self) -> io::Result<Vec<Controller>> {
        let entries = match fs::read_dir(self.path("/sys/bus/pci/devices")) {
            Ok(entries) => entries,
            // A machine without PCI.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let addresses = entries.flatten().filter_map(|entry| {
            entry.file_name().to_str().and_then(|name| name.parse::<Address>().ok())
        });
        let mut addresses: Vec<_> = addresses.collect();
        addresses.sort();
        Ok(addresses.into_iter().filter_map(|address| self.controller(address)).collect())
    }

    /// The NVMe controller at this address, if there is one.
    pub fn controller(&self, address: Address) -> Option<Controller> {
        let function = self.function(address);
        if hexadecimal(&function.join("class")) != Some(NVME_CLASS) {
            return None;
        }
        let id = |name: &str| u16::try_from(hexadecimal(&function.join(name))?).ok();
        let nvme = function.join("nvme");
        let name = names(&nvme).into_iter().next();
        let said = |item: &str| attribute(&nvme.join(name.as_ref()?).join(item));
        let group = group(&function);
        Some(Controller {
            address,
            vendor: id("vendor"),
            device: id("device"),
            companions: group.map(|_| companions(&function, address)).unwrap_or_default(),
            group,
            driver: self.driver(address),
            driver_override: attribute(&function.join("driver_override"))
                .filter(|driver| driver != "(null)"),
            // -1 stands for none.
            numa_node: attribute(&function.join("numa_node")).and_then(|node| node.parse().ok()),
            state: said("state"),
            model: said("model"),
            serial: said("serial"),
            firmware: said("firmware_rev"),
            namespaces: name
                .as_ref()
                .map(|name| self.namespaces(&nvme.join(name)))
                .unwrap_or_default(),
            name,
        })
    }

    /// The directory of a function.
    pub(super) fn function(&self, address: Address) -> PathBuf {
        self.path("/sys/bus/pci/devices").join(address.to_string())
    }

    /// The driver that has a function now.
    pub(super) fn driver(&self, address: Address) -> Option<String> {
        link_name(&self.function(address).join("driver"))
    }

    fn namespaces(&self, controller: &Path) -> Vec<Namespace> {
        let mut found: Vec<Namespace> = Vec::new();
        for entry in names(controller) {
            let Some(name) = disk_name(&entry) else { continue };
            if found.iter().all(|namespace| namespace.name != name) {
                found.push(self.namespace(name));
            }
        }
        found.sort_by_key(|namespace| super::natural(&namespace.name));
        found
    }

    fn namespace(&self, name: String) -> Namespace {
        let disk = self.disk(&name);
        // In units of 512 bytes, whatever the size of a block.
        let sectors = attribute(&disk.join("size")).and_then(|size| size.parse::<u64>().ok());
        let number = |item: &str| attribute(&disk.join(item)).and_then(|text| text.parse().ok());
        Namespace {
            has_disk: disk.exists(),
            nsid: number("nsid"),
            bytes: sectors.and_then(|sectors| sectors.checked_mul(512)),
            block_bytes: number("queue/logical_block_size"),
            name,
        }
    }

    /// What sysfs has on a block device.
    pub(super) fn disk(&self, name: &str) -> PathBuf {
        self.path("/sys/class/block").join(name)
    }
}

impl Namespace {
    /// The node of its character device, by which programs send commands of their own.
    pub(super) fn character_device(&self) -> String {
        format!("/dev/{}", self.name.replacen("nvme", "ng", 1))
    }
}

fn group(function: &Path) -> Option<u32> {
    let number = link_name(&function.join("iommu_group"))?;
    // A driver may make up a group for what no IOMMU guards.
    let made_up = attribute(&function.join("iommu_group/name"));
    let is_guarded = made_up.is_none_or(|name| name != "vfio-noiommu");
    number.parse().ok().filter(|_| is_guarded)
}

fn companions(function: &Path, address: Address) -> Vec<Companion> {
    let members = function.join("iommu_group/devices");
    let others = names(&members).into_iter().filter(|name| *name != address.to_string());
    let others = others.filter(|name| {
        let class = hexadecimal(&members.join(name).join("class"));
        class.is_none_or(|class| class >> 16 != BRIDGE)
    });
    others
        .map(|address| Companion {
            driver: link_name(&members.join(&address).join("driver")),
            address,
        })
        .collect()
}

fn hexadecimal(path: &Path) -> Option<u32> {
    let text = attribute(path)?;
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The block device of the namespace that a controller shows under this name: `nvme0n1` itself, its character device `ng0n1`, or `nvme0c1n1`, a path
/// to a namespace that has several and whose block device belongs to the subsystem.
fn disk_name(entry: &str) -> Option<String> {
    let rest = entry.strip_prefix("nvme").or_else(|| entry.strip_prefix("ng"))?;
    let (subsystem, rest) = number(rest)?;
    let rest = match rest.strip_prefix('c') {
        Some(path) => number(path)?.1,
        None => rest,
    };
    let (namespace, rest) = number(rest.strip_prefix('n')?)?;
    rest.is_empty().then(|| format!("nvme{subsystem}n{namespace}"))
}

/// The digits that a text begins with, and what follows.
fn number(text: &str) -> Option<(&str, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at_checked(digits).filter(|_| digits > 0)
}

#[cfg(test)]
mod tests {
    use super::super::machine::{DISK, Function, Machine};
    use super::*;

    #[test]
    fn names_of_namespaces_lead_to_their_disks() {
        for (entry, disk) in [
            ("nvme0n1", Some("nvme0n1")),
            ("nvme3c12n45", Some("nvme3n45")),
            ("ng3n45", Some("nvme3n45")),
            ("nvme0", None),
            ("nvme0n1p1", None),
            ("nvmen1", None),
            ("hwmon4", None),
            ("power", None),
        ] {
            assert_eq!(disk_name(entry).as_deref(), disk, "{entry}");
        }
    }

    #[test]
    fn what_sysfs_says_is_read() {
        let machine = Machine::new();
        let address = machine.add(Function { namespaces: 2, ..Function::default() });
        machine.write("/sys/class/block/nvme0n2/queue/logical_block_size", "4096");
        let controller = machine.system.controller(address).unwrap();
        assert_eq!(controller.address.to_string(), "0000:01:00.0");
        assert_eq!((controller.vendor, controller.device), (Some(0x1b36), Some(0x10)));
        assert_eq!((controller.group, controller.numa_node), (Some(10), None));
        assert_eq!(controller.driver.as_deref(), Some(KERNEL_DRIVER));
        assert_eq!(controller.driver_override, None);
        assert_eq!(controller.name.as_deref(), Some("nvme0"));
        assert_eq!(controller.model.as_deref(), Some("Tidal Disk"));
        assert_eq!(controller.serial.as_deref(), Some("serial-0"));
        let [first, second] = &controller.namespaces[..] else { panic!("{controller:?}") };
        assert_eq!(
            (first.name.as_str(), first.nsid, first.block_bytes),
            ("nvme0n1", Some(1), Some(512))
        );
        assert_eq!((second.name.as_str(), second.block_bytes), ("nvme0n2", Some(4096)));
        assert_eq!(first.bytes, Some(DISK));
        assert_eq!(machine.system.controllers().unwrap(), [controller]);
    }

    #[test]
    fn several_paths_lead_to_one_disk_of_the_subsystem() {
        let machine = Machine::new();
        let address = machine.add(Function { namespaces: 1, ..Function::default() });
        let nvme = "/sys/bus/pci/devices/0000:01:00.0/nvme/nvme0";
        machine.rename(&format!("{nvme}/nvme0n1"), &format!("{nvme}/nvme0c0n1"));
        let controller = machine.system.controller(address).unwrap();
        let [namespace] = &controller.namespaces[..] else { panic!("{controller:?}") };
        assert!(namespace.name == "nvme0n1" && namespace.has_disk && namespace.bytes.is_some());
        assert_eq!(namespace.character_device(), "/dev/ng0n1");
    }

    #[test]
    fn only_nvme_controllers_are_listed_and_bridges_are_no_companions() {
        let machine = Machine::new();
        assert_eq!(machine.system.controllers().unwrap(), []);
        let address = machine.add(Function { companion: Some("0x060400"), ..Function::default() });
        assert_eq!(machine.system.controller(address).unwrap().companions, []);
        machine.add(Function { companion: Some("0x020000"), ..Function::default() });
        let controllers = machine.system.controllers().unwrap();
        assert_eq!(controllers.len(), 2);
        assert_eq!(controllers[1].companions[0].address, "0000:02:00.1");
    }

    #[test]
    fn a_controller_without_iommu_or_driver_is_listed() {
        let machine = Machine::new();
        let address =
            machine.add(Function { has_iommu: false, driver: None, ..Function::default() });
        let controller = machine.system.controller(address).unwrap();
        assert_eq!((controller.group, controller.driver), (None, None));
        assert_eq!((controller.name, controller.model), (None, None));
    }
}
