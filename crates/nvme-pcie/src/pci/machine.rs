//! For tests: a made-up machine. A tree of files in the place of sysfs and the rest, and a kernel that does to it what the true one does when
//! attributes are written.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use super::{Address, KERNEL_DRIVER, Kernel, System};

/// Bytes of every disk.
pub(super) const DISK: u64 = 8 << 20;

/// A machine.
pub(super) struct Machine {
    directory: TempDir,
    pub(super) kernel: Arc<MadeUp>,
    pub(super) system: System,
}

/// A controller to be added.
#[derive(Clone, Copy)]
pub(super) struct Function {
    pub(super) namespaces: usize,
    pub(super) driver: Option<&'static str>,
    pub(super) has_iommu: bool,
    /// The class of another function in its IOMMU group.
    pub(super) companion: Option<&'static str>,
}

impl Default for Function {
    fn default() -> Function {
        let driver = Some(KERNEL_DRIVER);
        Function { namespaces: 1, driver, has_iommu: true, companion: None }
    }
}

/// Its kernel.
#[derive(Debug)]
pub(super) struct MadeUp {
    root: PathBuf,
    /// Drivers that take nothing.
    pub(super) unwilling: Mutex<BTreeSet<String>>,
    /// Ends of paths whose attributes cannot be written.
    pub(super) forbidden: Mutex<BTreeSet<String>>,
    /// Devices that somebody has for himself.
    pub(super) busy: Mutex<BTreeSet<String>>,
    /// A file that goes away once a device has been claimed.
    pub(super) passing: Mutex<Option<PathBuf>>,
    /// What was written where, below `/sys/bus/pci`.
    pub(super) written: Mutex<Vec<(String, String)>>,
}

impl Kernel for MadeUp {
    fn set(&self, attribute: &Path, value: &str) -> io::Result<()> {
        let pci = self.root.join("sys/bus/pci");
        let place = attribute.strip_prefix(&pci).unwrap().to_str().unwrap().to_owned();
        if self.forbidden.lock().unwrap().iter().any(|end| place.ends_with(end)) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.written.lock().unwrap().push((place.clone(), value.to_owned()));
        let parts: Vec<_> = place.split('/').collect();
        match parts[..] {
            ["devices", _, "driver_override"] => {
                let kept = if value == "\n" { "(null)" } else { value };
                fs::write(attribute, format!("{kept}\n"))?;
            }
            ["devices", address, "driver", "unbind"] => self.unbind(address),
            ["drivers_probe"] => self.take(value, None),
            ["drivers", driver, "bind"] => self.take(value, Some(driver)),
            _ => panic!("{place} is no attribute that is written"),
        }
        Ok(())
    }

    fn claim(&self, device: &Path) -> io::Result<File> {
        if let Some(passing) = self.passing.lock().unwrap().take() {
            fs::remove_file(passing).unwrap();
        }
        let name = device.file_name().unwrap().to_str().unwrap();
        if self.busy.lock().unwrap().contains(name) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        File::open(device)
    }
}

impl MadeUp {
    fn function(&self, address: &str) -> PathBuf {
        self.root.join("sys/bus/pci/devices").join(address)
    }

    fn unbind(&self, address: &str) {
        let function = self.function(address);
        fs::remove_file(function.join("driver")).unwrap();
        if function.join("nvme").exists() {
            fs::rename(function.join("nvme"), function.join("hidden")).unwrap();
        }
    }

    /// The driver that may have it takes it, if it likes to.
    fn take(&self, address: &str, driver: Option<&str>) {
        let function = self.function(address);
        let only = fs::read_to_string(function.join("driver_override")).unwrap();
        let only = Some(only.trim()).filter(|only| *only != "(null)");
        let driver = driver.or(only).unwrap_or(KERNEL_DRIVER);
        if function.join("driver").exists()
            || only.is_some_and(|only| only != driver)
            || self.unwilling.lock().unwrap().contains(driver)
        {
            return;
        }
        symlink(self.root.join("sys/bus/pci/drivers").join(driver), function.join("driver"))
            .unwrap();
        if driver == KERNEL_DRIVER && function.join("hidden").exists() {
            fs::rename(function.join("hidden"), function.join("nvme")).unwrap();
        }
    }
}

impl Machine {
    /// One without controllers, and with both drivers.
    pub(super) fn new() -> Machine {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let kernel = Arc::new(MadeUp {
            root: root.clone(),
            unwilling: Mutex::default(),
            forbidden: Mutex::default(),
            busy: Mutex::default(),
            passing: Mutex::default(),
            written: Mutex::default(),
        });
        let passing = Duration::ZERO;
        let system = System { root, kernel: Arc::clone(&kernel) as Arc<dyn Kernel>, passing };
        let machine = Machine { directory, kernel, system };
        machine.write("/proc/self/mountinfo", "22 1 0:21 / /proc rw - proc proc rw\n");
        machine.write("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
        for driver in [KERNEL_DRIVER, "vfio-pci", "uio_pci_generic"] {
            fs::create_dir_all(machine.path("/sys/bus/pci/drivers").join(driver)).unwrap();
        }
        machine
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path.trim_start_matches('/'))
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn append(&self, path: &str, text: &str) {
        let before = fs::read_to_string(self.path(path)).unwrap();
        self.write(path, &(before + text));
    }

    pub(super) fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// Adds a controller, at the next bus.
    pub(super) fn add(&self, function: Function) -> Address {
        let number = fs::read_dir(self.path("/sys/bus/pci/devices")).map_or(0, |entries| {
            entries.filter(|entry| is_controller(entry.as_ref().unwrap())).count()
        });
        let address = format!("0000:{:02x}:00.0", number + 1);
        let directory = format!("/sys/bus/pci/devices/{address}");
        for (name, text) in [
            ("class", "0x010802"),
            ("vendor", "0x1b36"),
            ("device", "0x0010"),
            ("driver_override", "(null)"),
            ("numa_node", "-1"),
        ] {
            self.write(&format!("{directory}/{name}"), &format!("{text}\n"));
        }
        if function.has_iommu {
            let group = self.path(&format!("/sys/kernel/iommu_groups/{}", number + 10));
            fs::create_dir_all(group.join("devices")).unwrap();
            symlink(self.path(&directory), group.join("devices").join(&address)).unwrap();
            symlink(&group, self.path(&directory).join("iommu_group")).unwrap();
            if let Some(class) = function.companion {
                let name = address.replace(".0", ".1");
                let companion = format!("/sys/bus/pci/devices/{name}");
                self.write(&format!("{companion}/class"), &format!("{class}\n"));
                symlink(self.path(&companion), group.join("devices").join(name)).unwrap();
            }
            self.write(&format!("/dev/vfio/{}", number + 10), "");
        }
        let has_kernel_driver = function.driver == Some(KERNEL_DRIVER);
        let nvme = format!(
            "{directory}/{}/nvme{number}",
            if has_kernel_driver { "nvme" } else { "hidden" }
        );
        for (name, text) in [
            ("model", "Tidal Disk                              \n".to_owned()),
            ("serial", format!("serial-{number}          \n")),
            ("firmware_rev", "1.0     \n".to_owned()),
            ("state", "live\n".to_owned()),
        ] {
            self.write(&format!("{nvme}/{name}"), &text);
        }
        for nsid in 1..=function.namespaces {
            let name = format!("nvme{number}n{nsid}");
            fs::create_dir_all(self.path(&format!("{nvme}/{name}"))).unwrap();
            let disk = format!("/sys/class/block/{name}");
            self.write(&format!("{disk}/nsid"), &format!("{nsid}\n"));
            self.write(&format!("{disk}/size"), &format!("{}\n", DISK / 512));
            self.write(&format!("{disk}/queue/logical_block_size"), "512\n");
            self.write(&format!("{disk}/dev"), &format!("260:{}\n", 16 * number + nsid));
            self.write(&format!("/dev/{name}"), "");
            File::options().write(true).open(self.disk(&name)).unwrap().set_len(DISK).unwrap();
        }
        if let Some(driver) = function.driver {
            let driver = self.path("/sys/bus/pci/drivers").join(driver);
            symlink(driver, self.path(&directory).join("driver")).unwrap();
        }
        address.parse().unwrap()
    }

    /// What is on a disk.
    pub(super) fn disk(&self, name: &str) -> PathBuf {
        self.path(&format!("/dev/{name}"))
    }

    pub(super) fn partition(&self, disk: &str, name: &str, number: &str) {
        self.write(&format!("/sys/class/block/{disk}/{name}/partition"), "1\n");
        self.write(&format!("/sys/class/block/{disk}/{name}/dev"), &format!("{number}\n"));
    }

    /// Has a device of the mapper stand on a disk, or on a partition that is named by disk and partition.
    pub(super) fn hold(&self, on: &str, name: &str, given: Option<&str>, number: &str) {
        self.write(&format!("/sys/class/block/{on}/holders/{name}"), "");
        self.write(&format!("/sys/class/block/{name}/dev"), &format!("{number}\n"));
        if let Some(given) = given {
            self.write(&format!("/sys/class/block/{name}/dm/name"), &format!("{given}\n"));
        }
    }

    pub(super) fn mount(&self, number: &str, source: &str, on: &str) {
        let line = format!("40 22 {number} / {on} rw,relatime shared:1 - ext4 {source} rw\n");
        self.append("/proc/self/mountinfo", &line);
    }

    pub(super) fn swap(&self, node: &str) {
        self.append("/proc/swaps", &format!("{node}    partition\t100\t0\t-2\n"));
    }

    pub(super) fn opened(&self, pid: u32, name: &str, node: &str) {
        self.write(&format!("/proc/{pid}/comm"), &format!("{name}\n"));
        let descriptors = self.path(&format!("/proc/{pid}/fd"));
        fs::create_dir_all(&descriptors).unwrap();
        let number = fs::read_dir(&descriptors).unwrap().count();
        symlink(node, descriptors.join(number.to_string())).unwrap();
    }
}

fn is_controller(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_str().unwrap().ends_with(".0")
}
