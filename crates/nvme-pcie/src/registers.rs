//! The registers of a controller: memory whose every access the device sees.
//!
//! NVMe over PCIe Transport Specification 1.0c, section 3.1: properties from 0 on, doorbells from 1000h on. Whichever thread; each access is one
//! load or store of its size, never split, merged or left out.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

/// BAR 0 of a controller, or of a software one.
pub struct Registers {
    base: NonNull<u8>,
    len: usize,
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: the memory stays mapped while `_owner` lives, which may be sent. Accesses are single volatile loads and stores of aligned
// words, which the device orders among each other; that is what this memory is for.
unsafe impl Send for Registers {}
// SAFETY: as above.
unsafe impl Sync for Registers {}

impl Registers {
    /// Registers at `base`.
    ///
    /// # Safety
    /// `base` is aligned to eight bytes and valid for volatile reads and writes of `len` bytes for as long as `owner` lives, and nothing has
    /// references to them.
    pub unsafe fn new(
        base: NonNull<u8>,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Registers {
        Registers { base, len, _owner: owner }
    }

    /// Bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A register of four bytes; all ones, as of a device that is gone, where there is none.
    #[inline]
    pub fn read32(&self, offset: usize) -> u32 {
        match self.place::<u32>(offset) {
            // SAFETY: aligned and inside the registers, by `place`.
            Some(place) => u32::from_le(unsafe { place.read_volatile() }),
            None => u32::MAX,
        }
    }

    /// A register of eight bytes, read as two halves: not every device takes it whole.
    pub fn read64(&self, offset: usize) -> u64 {
        let low = self.read32(offset);
        let high = self.read32(offset.saturating_add(4));
        u64::from(low) | u64::from(high) << 32
    }

    /// Writes a register of four bytes. What was written to memory before is there for the device when it sees this.
    #[inline]
    pub fn write32(&self, offset: usize, value: u32) {
        if let Some(place) = self.place::<u32>(offset) {
            fence(Ordering::Release);
            // SAFETY: aligned and inside the registers, by `place`.
            unsafe { place.write_volatile(value.to_le()) };
        }
    }

    /// Writes a register of eight bytes, the lower half first.
    pub fn write64(&self, offset: usize, value: u64) {
        let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        self.write32(offset, half(value));
        self.write32(offset.saturating_add(4), half(value >> 32));
    }

    #[inline]
    #[allow(clippy::cast_ptr_alignment, reason = "the base is aligned to eight bytes")]
    fn place<T>(&self, offset: usize) -> Option<*mut T> {
        let end = offset.checked_add(size_of::<T>())?;
        let fits = end <= self.len && offset.is_multiple_of(align_of::<T>());
        fits.then(|| self.base.as_ptr().wrapping_add(offset).cast())
    }
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registers").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outside_reads_as_ones_and_takes_nothing() {
        let memory = Box::leak(vec![0_u64; 2].into_boxed_slice());
        // SAFETY: leaked memory of sixteen bytes, aligned, that nothing else refers to.
        let registers = unsafe { Registers::new(NonNull::from(memory).cast(), 16, Box::new(())) };
        registers.write64(8, 0x1122_3344_5566_7788);
        assert_eq!(registers.read64(8), 0x1122_3344_5566_7788);
        assert_eq!(registers.read32(12), 0x1122_3344);
        for offset in [16, 13, usize::MAX] {
            registers.write32(offset, 0);
            assert_eq!(registers.read32(offset), u32::MAX);
        }
        assert_eq!(registers.read64(0), 0);
    }
}
