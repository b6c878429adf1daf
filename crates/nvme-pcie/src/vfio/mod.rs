//! Controllers that the system has handed over to this process, by VFIO.
//!
//! A function is opened through its IOMMU group (`/dev/vfio/GROUP`), alone in a container of its own with a type 1 IOMMU. That the function is bound to `vfio-pci` is
//! somebody else's doing (`tidegate devices bind`). When the descriptors are closed, by us or by the death of the process, the kernel
//! resets the function and takes all memory from it; so whatever becomes of us, the device is usable again.
//!
//! Rejected: `/dev/iommu` (from 6.2 on; 6.1 does not have it), no-IOMMU mode (a device that errs would reach all of the machine's memory, and physical
//! addresses change under us).

mod msix;
mod sys;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::function::{Function, Mapping, Slot};
use crate::pci::System;
use crate::{Registers, probe};
use msix::{Place, Table};

/// Of the PCI command register: the function answers at its BARs, and may reach memory.
const COMMAND: u64 = 4;
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;

/// Registers and doorbells of a controller: what there is at least.
const BAR_LEAST: u64 = 0x1000 + 8;

/// A place on the PCI bus.
#[derive(Debug, Clone)]
pub struct VfioSlot {
    address: String,
}

impl VfioSlot {
    /// That of this address, with its domain: `0000:03:00.0`.
    pub fn new(address: &str) -> VfioSlot {
        VfioSlot { address: address.to_owned() }
    }
}

impl Slot for VfioSlot {
    fn name(&self) -> String {
        self.address.clone()
    }

    fn open(&self) -> io::Result<Arc<dyn Function>> {
        Ok(Arc::new(VfioFunction::open(&self.address)?))
    }
}

/// Wherever the controller of a serial number is, among those that have been handed over.
///
/// Such a controller says who it is only when it is enabled, so each that nobody uses is opened and asked.
#[derive(Debug, Clone)]
pub struct SerialSlot {
    serial: String,
}

impl SerialSlot {
    /// That of this serial number.
    pub fn new(serial: &str) -> SerialSlot {
        SerialSlot { serial: serial.to_owned() }
    }
}

impl Slot for SerialSlot {
    fn name(&self) -> String {
        format!("serial number {}", self.serial)
    }

    fn open(&self) -> io::Result<Arc<dyn Function>> {
        let controllers = System::new("/").controllers()?;
        let ours = controllers.iter().filter(|it| it.driver.as_deref() == Some("vfio-pci"));
        for controller in ours {
            // In use, or broken: not this one, as far as can be said.
            let Ok(function) = VfioFunction::open(&controller.address.to_string()) else {
                continue;
            };
            let function: Arc<dyn Function> = Arc::new(function);
            if probe::serial(&function).is_ok_and(|serial| serial == self.serial) {
                return Ok(function);
            }
        }
        let elsewhere = controllers.iter().find(|it| it.serial.as_deref() == Some(&self.serial));
        let text = match elsewhere {
            Some(it) => format!(
                "the controller of serial number {} is {}, which is not bound to vfio-pci: tidegate devices bind {}",
                self.serial, it.address, it.address
            ),
            None => format!(
                "no controller of serial number {} is there and free: `tidegate devices` lists them",
                self.serial
            ),
        };
        Err(refuse(io::ErrorKind::NotFound, text))
    }
}

/// An error that says what, which, and what to do.
fn refuse(kind: io::ErrorKind, text: String) -> io::Error {
    io::Error::new(kind, text)
}

/// A BAR in memory.
#[derive(Debug)]
struct Bar {
    base: NonNull<u8>,
    len: usize,
    /// The BAR is there as long as the device is open.
    _device: Arc<File>,
}

// SAFETY: an address of a mapping that belongs to this object; it is used through `Registers` only, which says how.
unsafe impl Send for Bar {}
// SAFETY: as above.
unsafe impl Sync for Bar {}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map_bar` made, of this size; `Registers`, which owned this, was its only user.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of a BAR");
    }
}

/// A function that is open.
#[derive(Debug)]
struct VfioFunction {
    // In the order in which they are to go.
    registers: Registers,
    table: Option<Table>,
    wanted_back: Option<OwnedFd>,
    device: Arc<File>,
    mappings: Mutex<BTreeMap<u64, Mapping>>,
    _group: File,
    container: File,
    address: String,
    can_reset: bool,
    vectors: u16,
}

impl VfioFunction {
    fn open(address: &str) -> io::Result<VfioFunction> {
        let group_path = group_of(address)?;
        let name = CString::new(address)?;
        let missing = |path: &Path, error: &io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                format!(
                    "{address}: there is no {}: bind it to vfio-pci (tidegate devices bind {address})",
                    path.display()
                )
            }
            io::ErrorKind::ResourceBusy => {
                format!("{address}: {} is in use by another process: stop it", path.display())
            }
            _ => format!("{address}: cannot open {}: {error}", path.display()),
        };
        let open = |path: &Path| {
            let opened = OpenOptions::new().read(true).write(true).open(path);
            opened.map_err(|error| refuse(error.kind(), missing(path, &error)))
        };
        let said = |what: &'static str| {
            move |error: io::Error| refuse(error.kind(), format!("{address}: {what}: {error}"))
        };
        let container = open(Path::new("/dev/vfio/vfio"))?;
        if !sys::has_type1(&container).map_err(said("VFIO does not answer"))? {
            return Err(refuse(
                io::ErrorKind::Unsupported,
                format!(
                    "{address}: this machine has no IOMMU of type 1: turn it on (intel_iommu=on, or in the firmware)"
                ),
            ));
        }
        let group = open(&group_path)?;
        if !sys::is_viable(&group).map_err(said("its IOMMU group does not answer"))? {
            return Err(refuse(
                io::ErrorKind::ResourceBusy,
                format!(
                    "{address}: other devices of its IOMMU group have drivers of the kernel: bind them to vfio-pci, too, or to none"
                ),
            ));
        }
        sys::set_container(&group, &container).map_err(said("its IOMMU group cannot be used"))?;
        sys::set_type1(&container).map_err(said("the IOMMU cannot be used"))?;
        let device = sys::device(&group, &name).map_err(said("cannot be opened"))?;
        let device = Arc::new(File::from(device));
        let (is_pci, can_reset) =
            sys::device_kind(&device).map_err(said("does not say what it is"))?;
        if !is_pci {
            return Err(refuse(
                io::ErrorKind::InvalidInput,
                format!("{address}: is not a PCI function"),
            ));
        }
        let config =
            sys::region(&device, sys::CONFIG_REGION).map_err(said("has no configuration space"))?;
        enable(&device, config.offset).map_err(said("cannot be switched on"))?;
        let registers = map_bar(&device, 0).map_err(said("its registers cannot be mapped"))?;
        let vectors = sys::interrupts(&device, sys::MSIX).unwrap_or(0);
        let vectors = u16::try_from(vectors).unwrap_or(u16::MAX);
        let table = find_table(&device, config.offset);
        let wanted_back = watch_removal(&device);
        Ok(VfioFunction {
            registers,
            table,
            wanted_back,
            device,
            mappings: Mutex::default(),
            _group: group,
            container,
            address: address.to_owned(),
            can_reset,
            vectors,
        })
    }
}

/// `/dev/vfio/GROUP` of a function.
fn group_of(address: &str) -> io::Result<PathBuf> {
    let device = Path::new("/sys/bus/pci/devices").join(address);
    if !device.exists() {
        let text = format!(
            "{address}: there is no such PCI function: `tidegate devices` lists those that there are"
        );
        return Err(refuse(io::ErrorKind::NotFound, text));
    }
    let group = std::fs::read_link(device.join("iommu_group")).map_err(|error| {
        refuse(error.kind(), format!("{address}: has no IOMMU group: turn the IOMMU on (intel_iommu=on, or in the firmware)"))
    })?;
    let group = group.file_name().ok_or(io::ErrorKind::InvalidData)?;
    Ok(Path::new("/dev/vfio").join(group))
}

/// Has the function answer at its BARs, and lets it reach memory.
fn enable(device: &File, config: u64) -> io::Result<()> {
    let mut command = [0; 2];
    device.read_exact_at(&mut command, config + COMMAND)?;
    let command = u16::from_le_bytes(command) | MEMORY_SPACE | BUS_MASTER;
    device.write_all_at(&command.to_le_bytes(), config + COMMAND)
}

/// Maps a BAR whole.
fn map_bar(device: &Arc<File>, index: u32) -> io::Result<Registers> {
    let region = sys::region(device, index)?;
    if region.flags & sys::REGION_MMAP == 0 || region.size < BAR_LEAST {
        return Err(refuse(
            io::ErrorKind::Unsupported,
            format!("BAR {index} of {} bytes cannot be mapped", region.size),
        ));
    }
    let len = usize::try_from(region.size).map_err(io::Error::other)?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a null hint without MAP_FIXED cannot replace an existing mapping.
    let base =
        unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, device, region.offset)? };
    let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
    let bar = Bar { base, len, _device: Arc::clone(device) };
    // SAFETY: a mapping of `len` bytes, aligned to pages, that `bar` keeps; only this refers to it.
    Ok(unsafe { Registers::new(base, len, Box::new(bar)) })
}

/// The MSI-X table, where the kernel lets us have it.
fn find_table(device: &Arc<File>, config: u64) -> Option<Table> {
    let mut space = [0; 256];
    device.read_exact_at(&mut space, config).ok()?;
    let place = Place::find(&space)?;
    let registers = if place.bar == 0 { None } else { Some(map_bar(device, place.bar).ok()?) };
    Some(Table { registers, place })
}

/// What tells that the system wants the function back; None where it does not tell.
fn watch_removal(device: &File) -> Option<OwnedFd> {
    let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
    let handed = eventfd.try_clone().ok()?;
    sys::connect(device, sys::WANTED_BACK, &[handed]).ok()?;
    Some(eventfd)
}

impl Function for VfioFunction {
    fn address(&self) -> &str {
        &self.address
    }

    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn map(&self, mapping: Mapping) -> io::Result<()> {
        sys::map(&self.container, mapping.base(), mapping.iova(), mapping.len()).map_err(|error| {
            let (len, address) = (mapping.len(), &self.address);
            let hint = match error.raw_os_error() {
                Some(12) => ": raise the limit of locked memory (RLIMIT_MEMLOCK), or make the pools smaller (memory.per_reactor)",
                _ => "",
            };
            refuse(error.kind(), format!("{address}: {len} bytes of memory cannot be given to it: {error}{hint}"))
        })?;
        self.mappings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(mapping.iova(), mapping);
        Ok(())
    }

    fn unmap(&self, iova: u64) {
        let mut mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mapping) = mappings.remove(&iova) else { return };
        if let Err(error) = sys::unmap(&self.container, iova, mapping.len()) {
            // The device may still reach it, so it has to stay what it is.
            tracing::error!("{}: memory cannot be taken back: {error}", self.address);
            std::mem::forget(mapping);
        }
    }

    fn reset(&self) -> io::Result<()> {
        if !self.can_reset {
            return Err(io::ErrorKind::Unsupported.into());
        }
        sys::reset(&self.device)?;
        let config = sys::region(&self.device, sys::CONFIG_REGION)?;
        enable(&self.device, config.offset)
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn connect(&self, eventfds: Vec<OwnedFd>) -> io::Result<()> {
        sys::connect(&self.device, sys::MSIX, &eventfds)
    }

    fn mask(&self, vector: u16) {
        if let Some(table) = &self.table {
            table.mask(&self.registers, vector, true);
        }
    }

    fn unmask(&self, vector: u16) {
        if let Some(table) = &self.table {
            table.mask(&self.registers, vector, false);
        }
    }

    fn wanted_back(&self) -> Option<BorrowedFd<'_>> {
        self.wanted_back.as_ref().map(AsFd::as_fd)
    }
}
