//! Memory that is a device's medium: a memfd mapping, read and written by every reactor.
//!
//! Two hosts that write the same block at the same moment race as they would on a disk; the copies
//! go through raw pointers, so no reference to these bytes exists but to those that are lent, which
//! hold still (see [`lease`](crate::lease)): a medium is written through a [`Claim`](crate::Claim) only.

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::lease::Leases;
use crate::registration::{DeviceId, Registrations};
use crate::{MemoryError, Segment};

/// A zeroed, sparse region that all threads may read and write.
pub struct SharedMemory {
    base: NonNull<u8>,
    len: usize,
    file: OwnedFd,
    pub(crate) leases: Leases,
    registrations: Registrations,
}

// SAFETY: the mapping is not tied to a thread; every access is a raw copy (see the module).
unsafe impl Send for SharedMemory {}
// SAFETY: as above; concurrent copies race only on bytes, which have no invalid values.
unsafe impl Sync for SharedMemory {}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory").field("len", &self.len).finish_non_exhaustive()
    }
}

impl SharedMemory {
    /// A region of `len` bytes, all zero; pages are allocated when they are first written.
    ///
    /// # Errors
    /// [`MemoryError::Map`] if the system refuses.
    pub fn new(name: &str, len: usize) -> Result<SharedMemory, MemoryError> {
        let refused = |source: io::Error| MemoryError::Map { bytes: len, source };
        let file = memfd_create(name, MemfdFlags::CLOEXEC).map_err(|e| refused(e.into()))?;
        ftruncate(&file, len as u64).map_err(|e| refused(e.into()))?;
        // SAFETY: a null hint without MAP_FIXED cannot replace an existing mapping; the file is
        // ours alone and never shrinks, so no access inside `len` can fault.
        let base = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, &file, 0)
        }
        .map_err(|e| refused(e.into()))?;
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| refused(io::ErrorKind::OutOfMemory.into()))?;
        let (leases, registrations) = (Leases::new(len), Registrations::default());
        Ok(SharedMemory { base, len, file, leases, registrations })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its first byte.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The address of `len` bytes at `offset`, if they lie inside.
    pub(crate) fn locate(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let start = usize::try_from(offset).ok()?;
        (start.checked_add(len)? <= self.len).then(|| self.base.as_ptr().wrapping_add(start))
    }

    /// Copies from `offset` into the segment; false if the range does not lie inside, or the segment is not one of a
    /// buffer.
    pub fn read_at(&self, offset: u64, into: &Segment) -> bool {
        let Some(from) = self.locate(offset, into.len()).filter(|_| !into.is_lease()) else {
            return false;
        };
        // SAFETY: both ranges are `into.len()` bytes inside live mappings, and distinct ones: the
        // segment lies in an arena. Racing writers change bytes, never validity.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        true
    }

    /// Copies the segment to `start`, for a [`Claim`](crate::Claim) that is free and has that range.
    pub(crate) fn write(&self, start: usize, from: &Segment) {
        // SAFETY: the caller's claim lies inside the mapping. The segment lies in an arena, or is a lease of a
        // medium; if of this one, then of other granules, since no lease is left where the claim is.
        // Racing readers and writers see bytes, which are always valid.
        unsafe {
            ptr::copy_nonoverlapping(from.as_ptr(), self.base().wrapping_add(start), from.len());
        }
    }

    /// Whether the bytes at `offset` equal the segment's; `None` if they do not lie inside.
    pub fn equals(&self, offset: u64, other: &Segment) -> Option<bool> {
        let mut at = self.locate(offset, other.len())?;
        let mut equal = true;
        let mut done = 0;
        let mut ours = [0_u8; 512];
        let mut theirs = [0_u8; 512];
        while equal && done < other.len() {
            let count = other.copy_to(done, &mut theirs);
            // SAFETY: `at` has at least `other.len() - done >= count` bytes left inside the
            // mapping, and `ours` has 512, the most that `copy_to` returned.
            unsafe { ptr::copy_nonoverlapping(at, ours.as_mut_ptr(), count) };
            equal = ours.get(..count) == theirs.get(..count);
            at = at.wrapping_add(count);
            done += count;
        }
        Some(equal)
    }

    /// Makes a range read as zero, likewise, and gives its whole pages back to the system unless they are pinned.
    pub(crate) fn zero(&self, start: usize, len: usize) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punch = || fallocate(&self.file, flags, start as u64, len as u64);
        if let Some(punched) = self.registrations.if_unpinned(punch) {
            return Ok(punched?);
        }
        // SAFETY: as in `write`.
        unsafe { ptr::write_bytes(self.base().wrapping_add(start), 0, len) };
        Ok(())
    }

    /// Registers it with a device that is to read it by itself, and to do nothing else with it. `make` does so, given
    /// where it begins and how long it is; it says the key, and what has to be dropped in order to end the registration. The
    /// memory outlives that. False if it is registered with as many devices as it can be.
    ///
    /// This pins all its pages, those never written among them, and may take long: it is no work for a reactor.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn register<E>(
        &self,
        by: DeviceId,
        make: impl FnOnce(NonNull<u8>, usize) -> Result<(u32, Box<dyn Any + Send>), E>,
    ) -> Result<bool, E> {
        self.registrations.add(by, || make(self.base, self.len))
    }

    /// Ends its registration with a device, which must not be at work with the key any more.
    pub fn unregister(&self, by: DeviceId) {
        self.registrations.remove(by);
    }

    /// The key by which a device knows it; `None` if it does not.
    pub fn key(&self, by: DeviceId) -> Option<u32> {
        self.registrations.key(by)
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        self.registrations.clear();
        // SAFETY: this is the mapping that `new` made, of this size, and nothing refers to it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Arena, ArenaConfig, Hugepages, Lender, Pool, SLAB_SIZE};

    fn pool() -> Pool {
        let config = ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never };
        Arena::new(config).pool(SLAB_SIZE).unwrap()
    }

    #[test]
    fn reads_back_what_was_written_until_it_is_zeroed() {
        let pool = pool();
        let medium = Arc::new(SharedMemory::new("test", 1 << 20).unwrap());
        let lender = Lender::new(Arc::clone(&medium));
        let device = DeviceId::new().unwrap();
        for registered in [false, true] {
            if registered {
                let make = |_, _| Ok::<_, ()>((7, Box::new(()) as Box<dyn Any + Send>));
                assert_eq!(medium.register(device, make), Ok(true));
                assert_eq!(medium.key(device), Some(7));
            }
            let mut buffer = pool.take(15000).unwrap();
            buffer.bytes_mut().unwrap().fill(7);
            let segment = buffer.segment(0, 15000).unwrap();
            assert!(lender.claim(4000, 15000).unwrap().write(4000, &segment));
            assert_eq!(medium.equals(4000, &segment), Some(true));
            assert_eq!(medium.equals(4001, &segment), Some(false));
            let held = rustix::fs::fstat(&medium.file).unwrap().st_blocks;
            lender.claim(4000, 15000).unwrap().zero().unwrap();
            let left = rustix::fs::fstat(&medium.file).unwrap().st_blocks;
            assert_eq!(left == held, registered, "pages are given back unless they are pinned");
            assert!(medium.read_at(4000, &segment));
            drop(segment);
            assert!(buffer.bytes_mut().unwrap().iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn ranges_outside_are_refused() {
        let pool = pool();
        let medium = SharedMemory::new("test", 8192).unwrap();
        let buffer = pool.take(4096).unwrap();
        let segment = buffer.segment(0, 4096).unwrap();
        assert!(medium.read_at(4096, &segment));
        assert!(!medium.read_at(4097, &segment));
        assert!(!medium.read_at(u64::MAX, &segment));
        assert_eq!(medium.equals(8192, &segment), None);
    }

    #[test]
    fn a_registration_ends_before_its_memory() {
        let medium = SharedMemory::new("test", 8192).unwrap();
        let alive = Arc::new(());
        let held = Arc::clone(&alive);
        let make = |_, _| Ok::<_, ()>((1, Box::new(held) as Box<dyn Any + Send>));
        assert_eq!(medium.register(DeviceId::new().unwrap(), make), Ok(true));
        assert_eq!(Arc::strong_count(&alive), 2);
        drop(medium);
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
