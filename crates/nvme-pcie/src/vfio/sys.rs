//! The kernel's interface: `ioctl` numbers and structures of `linux/vfio.h`, and calls that fill them in.

use std::ffi::{CStr, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};

/// `_IO(';', 100 + n)`.
const fn number(n: Opcode) -> Opcode {
    0x3B << 8 | (100 + n)
}

/// Type 1 IOMMU, second version: unmapping takes whole mappings.
const TYPE1V2: i32 = 3;

/// Of `vfio_group_status`: all devices of the group are ours or nobody's.
const GROUP_VIABLE: u32 = 1;

/// Of `vfio_device_info`.
const DEVICE_RESET: u32 = 1;
const DEVICE_PCI: u32 = 2;

/// Of `vfio_region_info`.
pub(super) const REGION_MMAP: u32 = 4;

/// Of `vfio_irq_set`.
const IRQ_NOTHING: u32 = 1;
const IRQ_EVENTFD: u32 = 4;
const IRQ_TRIGGER: u32 = 32;

/// Of `vfio_iommu_type1_dma_map`.
const DMA_READ_WRITE: u32 = 3;

/// Regions of a PCI function.
pub(super) const CONFIG_REGION: u32 = 7;

/// Interrupts of a PCI function: MSI-X, and that the system wants it back.
pub(super) const MSIX: u32 = 2;
pub(super) const WANTED_BACK: u32 = 4;

/// A call whose argument is an address or a number, and whose answer is a number.
struct Call {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: opcode and argument belong together by what the callers below pass: each a structure of the call's own, `#[repr(C)]`, initialised, with its size in
// `argsz`, alive and writable during the call; or a plain number where the call takes one.
unsafe impl Ioctl for Call {
    type Output = IoctlOutput;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _: *mut c_void,
    ) -> rustix::io::Result<IoctlOutput> {
        Ok(output)
    }
}

fn call(fd: impl AsFd, n: Opcode, argument: *mut c_void) -> io::Result<IoctlOutput> {
    // SAFETY: as said at `Call`.
    Ok(unsafe { ioctl(fd, Call { opcode: number(n), argument }) }?)
}

fn call_with<T>(fd: impl AsFd, n: Opcode, argument: &mut T) -> io::Result<IoctlOutput> {
    call(fd, n, (&raw mut *argument).cast())
}

fn call_number(fd: impl AsFd, n: Opcode, argument: i32) -> io::Result<IoctlOutput> {
    call(fd, n, std::ptr::without_provenance_mut(usize::try_from(argument).unwrap_or(0)))
}

fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// Has the container use a type 1 IOMMU; whether there is one.
pub(super) fn has_type1(container: impl AsFd) -> io::Result<bool> {
    let version = call_number(&container, 0, 0)?;
    Ok(version == 0 && call_number(container, 1, TYPE1V2)? == 1)
}

pub(super) fn set_type1(container: impl AsFd) -> io::Result<()> {
    call_number(container, 2, TYPE1V2).map(drop)
}

pub(super) fn is_viable(group: impl AsFd) -> io::Result<bool> {
    #[repr(C)]
    struct Status {
        argsz: u32,
        flags: u32,
    }
    let mut status = Status { argsz: size::<Status>(), flags: 0 };
    call_with(group, 3, &mut status)?;
    Ok(status.flags & GROUP_VIABLE != 0)
}

pub(super) fn set_container(group: impl AsFd, container: impl AsFd) -> io::Result<()> {
    let mut container = container.as_fd().as_raw_fd();
    call_with(group, 4, &mut container).map(drop)
}

/// Opens the device of this name.
pub(super) fn device(group: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let fd = call(group, 6, name.as_ptr().cast_mut().cast())?;
    // SAFETY: the call has succeeded, so this is a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a device is a PCI function, and whether it can be reset.
pub(super) fn device_kind(device: impl AsFd) -> io::Result<(bool, bool)> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        argsz: u32,
        flags: u32,
        num_regions: u32,
        num_irqs: u32,
        cap_offset: u32,
        pad: u32,
    }
    let mut info = Info { argsz: size::<Info>(), ..Info::default() };
    call_with(device, 7, &mut info)?;
    Ok((info.flags & DEVICE_PCI != 0, info.flags & DEVICE_RESET != 0))
}

/// `vfio_region_info`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Region {
    argsz: u32,
    pub(super) flags: u32,
    index: u32,
    cap_offset: u32,
    pub(super) size: u64,
    /// Where it is in the device's descriptor.
    pub(super) offset: u64,
}

pub(super) fn region(device: impl AsFd, index: u32) -> io::Result<Region> {
    let mut region = Region { argsz: size::<Region>(), index, ..Region::default() };
    call_with(device, 8, &mut region)?;
    Ok(region)
}

/// How many interrupts of this kind there are.
pub(super) fn interrupts(device: impl AsFd, index: u32) -> io::Result<u32> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        argsz: u32,
        flags: u32,
        index: u32,
        count: u32,
    }
    let mut info = Info { argsz: size::<Info>(), index, ..Info::default() };
    call_with(device, 9, &mut info)?;
    Ok(info.count)
}

/// Has interrupts of a kind, from the first on, signal these eventfds; none: they are switched off.
pub(super) fn connect(device: impl AsFd, index: u32, eventfds: &[OwnedFd]) -> io::Result<()> {
    let count = u32::try_from(eventfds.len()).unwrap_or(u32::MAX);
    let data = if eventfds.is_empty() { IRQ_NOTHING } else { IRQ_EVENTFD };
    // struct vfio_irq_set: argsz, flags, index, start, count, and the descriptors.
    let words = 5_u32.saturating_add(count);
    let mut set = vec![words.saturating_mul(4), data | IRQ_TRIGGER, index, 0, count];
    set.extend(eventfds.iter().map(|fd| fd.as_raw_fd().cast_unsigned()));
    call(device, 10, set.as_mut_ptr().cast()).map(drop)
}

pub(super) fn reset(device: impl AsFd) -> io::Result<()> {
    call_number(device, 11, 0).map(drop)
}

/// Lets devices of the container read and write memory of this process.
pub(super) fn map(container: impl AsFd, base: *mut u8, iova: u64, len: usize) -> io::Result<()> {
    #[repr(C)]
    struct Map {
        argsz: u32,
        flags: u32,
        vaddr: u64,
        iova: u64,
        size: u64,
    }
    let wide = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
    let mut map = Map {
        argsz: size::<Map>(),
        flags: DMA_READ_WRITE,
        vaddr: wide(base.expose_provenance()),
        iova,
        size: wide(len),
    };
    call_with(container, 13, &mut map).map(drop)
}

pub(super) fn unmap(container: impl AsFd, iova: u64, len: usize) -> io::Result<()> {
    #[repr(C)]
    struct Unmap {
        argsz: u32,
        flags: u32,
        iova: u64,
        size: u64,
    }
    let len = u64::try_from(len).unwrap_or(u64::MAX);
    let mut unmap = Unmap { argsz: size::<Unmap>(), flags: 0, iova, size: len };
    call_with(container, 14, &mut unmap).map(drop)
}
