//! A PCI function that is an NVMe controller, as the driver sees it: registers, interrupts, memory.
//!
//! The driver knows nothing else of the machine, so the software controller, which is a [`Function`] too, runs all of it.
//!
//! # Addresses
//! Whatever a device is to reach is mapped for it at an I/O virtual address (IOVA). These are fixed numbers, not the addresses that the
//! process has: an IOMMU may have fewer bits than a pointer (39 is common), and an address of a buffer is then computed without
//! a table. Slab *n* of the arena is at [`ARENA_IOVA`] + *n* x 2 MiB; what a driver has for itself follows from [`OWN_IOVA`] on. Both
//! lie where machines have neither interrupts nor, as a rule, BARs: an address that is also a BAR's may reach that device, and not memory, and QEMU's controller
//! refuses its own.
//!
//! Rejected: one IOMMU domain for all controllers (pages would be pinned once instead of once per controller, but a controller
//! that errs would reach the queues of the others).

use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use memory::{Arena, RegionId, SLAB_SIZE, Segment, Slab};

use crate::{Pages, Registers};

/// Where slab 0 of the arena is.
pub const ARENA_IOVA: u64 = 64 << 30;

/// Where a driver's own memory begins: behind as many slabs as a [`RegionId`] can name.
pub const OWN_IOVA: u64 = ARENA_IOVA + (1 << 16) * SLAB_BYTES;

/// [`SLAB_SIZE`], as addresses are counted.
const SLAB_BYTES: u64 = 2 << 20;
const _: () = assert!(SLAB_SIZE == 2 << 20);

/// Where a slab of the arena is.
pub fn iova_of_slab(region: RegionId) -> u64 {
    ARENA_IOVA + u64::from(region.0) * SLAB_BYTES
}

/// Where a segment is; `None` for a lease, which no controller reaches.
#[inline]
pub fn iova_of_segment(segment: &Segment) -> Option<u64> {
    // Slabs are aligned to their size, so the low bits of an address are the place in its slab.
    let offset = segment.as_ptr().addr() & (SLAB_SIZE - 1);
    Some(iova_of_slab(segment.region()?) + u64::try_from(offset).ok()?)
}

/// Memory that a device is to reach, and where. It stays there as long as this lives.
#[derive(Debug)]
pub struct Mapping {
    iova: u64,
    base: *mut u8,
    len: usize,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: an address that this type never dereferences, of memory that its owner keeps mapped; the owner may be sent.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing can be done with a shared one but read the numbers.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A slab of the arena.
    pub fn slab(arena: &Arena, slab: &Slab) -> Mapping {
        let (iova, base) = (iova_of_slab(slab.region), slab.base());
        Mapping { iova, base, len: SLAB_SIZE, _owner: Arc::new(arena.clone()) }
    }

    /// A driver's own pages.
    pub fn pages(pages: &Arc<Pages>) -> Mapping {
        let owner = Arc::clone(pages);
        Mapping { iova: pages.iova(), base: pages.base(), len: pages.len(), _owner: owner }
    }

    /// Where the device sees it.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Where the process sees it.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// One that has been opened, for this process alone. Dropped, it is given back: the device reaches nothing any more, and the system may
/// take it for another driver.
///
/// All of it may be used by any thread; nothing but [`Function::registers`], [`Function::mask`] and [`Function::unmask`] by a reactor.
pub trait Function: Send + Sync + Debug {
    /// Where it is: `0000:03:00.0`, or what a software controller is called.
    fn address(&self) -> &str;

    /// BAR 0. All ones wherever it is read once the device is gone.
    fn registers(&self) -> &Registers;

    /// Lets the device reach this memory, until the function is dropped or it is unmapped.
    ///
    /// # Errors
    /// The system's: too much locked memory, no more entries in the IOMMU.
    fn map(&self, mapping: Mapping) -> io::Result<()>;

    /// Takes the mapping that begins there from the device, which must have ceased to use it.
    fn unmap(&self, iova: u64);

    /// Resets the function, as a machine does when it starts: afterwards the device uses no memory, whatever it did before. Mappings and
    /// interrupts stay as they are.
    ///
    /// # Errors
    /// The system's, and `Unsupported` where there is no way to.
    fn reset(&self) -> io::Result<()>;

    /// Interrupt vectors (MSI-X) that it has; 0: it cannot interrupt.
    fn vectors(&self) -> u16;

    /// Has vector *n* signal the *n*th eventfd from now on; those behind the last are not used.
    ///
    /// # Errors
    /// The system's.
    fn connect(&self, eventfds: Vec<OwnedFd>) -> io::Result<()>;

    /// Holds a vector's interrupts back. One that comes meanwhile is kept and comes when it is unmasked.
    fn mask(&self, vector: u16);

    /// Lets a vector interrupt again.
    fn unmask(&self, vector: u16);

    /// Becomes readable when the system wants the function back, because the device is being taken out.
    fn wanted_back(&self) -> Option<BorrowedFd<'_>>;
}

/// A place where a controller is, or will be again.
pub trait Slot: Send + Sync + Debug {
    /// How messages name it.
    fn name(&self) -> String;

    /// Opens the function that is there. May block.
    ///
    /// # Errors
    /// Why it cannot be had now, in one line: what, which, and what to do.
    fn open(&self) -> io::Result<Arc<dyn Function>>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::{ArenaConfig, Hugepages};

    #[test]
    fn an_address_is_computed_from_slab_and_place() {
        let config = ArenaConfig { capacity: 3 * SLAB_SIZE, hugepages: Hugepages::Never };
        let arena = Arena::new(config);
        let (_first, second) = (arena.pool(SLAB_SIZE).unwrap(), arena.pool(2 * SLAB_SIZE).unwrap());
        let buffer = second.take(8192).unwrap();
        let segment = buffer.segment(100, 10).unwrap();
        let slab = arena.slabs().into_iter().find(|slab| Some(slab.region) == segment.region());
        let mapping = Mapping::slab(&arena, &slab.unwrap());
        let offset = segment.as_ptr().addr() - mapping.base().addr();
        assert!(offset < mapping.len());
        assert_eq!(iova_of_segment(&segment), Some(mapping.iova() + offset as u64));
        assert!(iova_of_slab(RegionId(u16::MAX)) + SLAB_BYTES <= OWN_IOVA);
    }
}
