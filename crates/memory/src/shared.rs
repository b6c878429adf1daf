//! Memory that is a device's medium: a memfd mapping, read and written by every reactor.
//!
//! Two hosts that write the same block at the same moment race as they would on a disk; the copies
//! go through raw pointers, so no reference to these bytes ever exists.

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::{MemoryError, Segment};

/// A zeroed, sparse region that all threads may read and write.
pub struct SharedMemory {
    base: NonNull<u8>,
    len: usize,
    file: OwnedFd,
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
        Ok(SharedMemory { base, len, file })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of `len` bytes at `offset`, if they lie inside.
    fn locate(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let start = usize::try_from(offset).ok()?;
        (start.checked_add(len)? <= self.len).then(|| self.base.as_ptr().wrapping_add(start))
    }

    /// Copies from `offset` into the segment; false if the range does not lie inside.
    pub fn read_at(&self, offset: u64, into: &Segment) -> bool {
        let Some(from) = self.locate(offset, into.len()) else {
            return false;
        };
        // SAFETY: both ranges are `into.len()` bytes inside live mappings, and distinct ones: a
        // segment lies in an arena. Racing writers change bytes, never validity.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        true
    }

    /// Copies the segment to `offset`; false if the range does not lie inside.
    pub fn write_at(&self, offset: u64, from: &Segment) -> bool {
        let Some(to) = self.locate(offset, from.len()) else {
            return false;
        };
        // SAFETY: as in `read_at`, the other way round.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        true
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

    /// Makes a range read as zero and gives its whole pages back to the system.
    ///
    /// # Errors
    /// The system's, if the range does not lie inside or pages cannot be given back.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let count = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.locate(offset, count).ok_or(io::ErrorKind::InvalidInput)?;
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, offset, len)?)
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, of this size, and nothing refers to it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arena, ArenaConfig, Hugepages, SLAB_SIZE};

    #[test]
    fn reads_back_what_was_written_until_it_is_punched() {
        let config = ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never };
        let pool = Arena::new(config).pool(SLAB_SIZE).unwrap();
        let medium = SharedMemory::new("test", 1 << 20).unwrap();
        let mut buffer = pool.take(1500).unwrap();
        buffer.bytes_mut().unwrap().fill(7);
        let segment = buffer.segment(0, 1500).unwrap();
        assert!(medium.write_at(4000, &segment));
        assert_eq!(medium.equals(4000, &segment), Some(true));
        assert_eq!(medium.equals(4001, &segment), Some(false));
        medium.punch(4000, 1500).unwrap();
        assert!(medium.read_at(4000, &segment));
        drop(segment);
        assert!(buffer.bytes_mut().unwrap().iter().all(|&byte| byte == 0));
    }

    #[test]
    fn ranges_outside_are_refused() {
        let config = ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never };
        let pool = Arena::new(config).pool(SLAB_SIZE).unwrap();
        let medium = SharedMemory::new("test", 8192).unwrap();
        let buffer = pool.take(4096).unwrap();
        let segment = buffer.segment(0, 4096).unwrap();
        assert!(medium.read_at(4096, &segment));
        assert!(!medium.read_at(4097, &segment));
        assert!(!medium.write_at(u64::MAX, &segment));
        assert_eq!(medium.equals(8192, &segment), None);
        assert!(medium.punch(8192, 1).is_err());
    }
}
