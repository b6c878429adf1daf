//! Memory that a driver shares with its device and nobody else: queues, PRP lists, what admin commands bring.
//!
//! The device may write it at any time, so there are no references to it: bytes are copied, words are loaded and stored.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, AtomicU32};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The page size of a controller that is set to the smallest there is.
pub(crate) const PAGE_SIZE: usize = 4096;

/// Whole pages, zeroed, with an address for the device.
#[derive(Debug)]
pub struct Pages {
    base: NonNull<u8>,
    len: usize,
    iova: u64,
}

// SAFETY: the mapping belongs to this object, and all accesses are raw copies and volatile or atomic words of it, bounds checked; who
// may write which part when is the queues' protocol with the device.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// At least `bytes` bytes, which the device is to find at `iova`.
    ///
    /// # Errors
    /// The system's, if it has no memory.
    pub fn new(bytes: usize, iova: u64) -> io::Result<Pages> {
        let len = bytes.max(1).next_multiple_of(PAGE_SIZE);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a null hint without MAP_FIXED cannot replace an existing mapping.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Pages { base, len, iova })
    }

    /// Where the process sees it.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the device sees it.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Copies a value in; false, and nothing done, where it does not fit.
    #[inline]
    pub fn put<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) -> bool {
        let bytes = value.as_bytes();
        let Some(place) = self.place(offset, bytes.len()) else { return false };
        // SAFETY: `place` is that many bytes inside the mapping. `bytes` is a reference, and there are none into the mapping.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        true
    }

    /// Copies bytes in; false, and nothing done, where they do not fit.
    pub fn put_bytes(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(place) = self.place(offset, bytes.len()) else { return false };
        // SAFETY: as in `put`.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        true
    }

    /// Copies a value out, of whatever bytes are there at this moment.
    #[inline]
    pub fn get<T: FromBytes + IntoBytes + KnownLayout>(&self, offset: usize) -> Option<T> {
        let mut value = T::new_zeroed();
        self.get_bytes(offset, value.as_mut_bytes()).then_some(value)
    }

    /// Copies bytes out; false, and nothing done, where there are not so many.
    #[inline]
    pub fn get_bytes(&self, offset: usize, out: &mut [u8]) -> bool {
        let Some(place) = self.place(offset, out.len()) else { return false };
        // SAFETY: `place` is that many initialised bytes inside the mapping; `out` is an exclusive reference, which is never into it.
        unsafe { ptr::copy_nonoverlapping(place.cast_const(), out.as_mut_ptr(), out.len()) };
        true
    }

    /// Zeroes it all.
    pub fn clear(&self) {
        // SAFETY: the whole mapping; there are no references into it.
        unsafe { ptr::write_bytes(self.base.as_ptr(), 0, self.len) };
    }

    /// Two bytes that the device may change at any time.
    #[inline]
    #[allow(clippy::cast_ptr_alignment, reason = "checked below")]
    pub fn word16(&self, offset: usize) -> Option<&AtomicU16> {
        let place = self.place(offset, 2)?.cast::<u16>();
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned, as checked here. Copies that overlap it are raw ones;
        // by the queues' protocol none is made while the device may write there.
        place.is_aligned().then(|| unsafe { AtomicU16::from_ptr(place) })
    }

    /// Four bytes that the device may change at any time.
    #[inline]
    #[allow(clippy::cast_ptr_alignment, reason = "checked below")]
    pub fn word32(&self, offset: usize) -> Option<&AtomicU32> {
        let place = self.place(offset, 4)?.cast::<u32>();
        // SAFETY: as in `word16`.
        place.is_aligned().then(|| unsafe { AtomicU32::from_ptr(place) })
    }

    #[inline]
    fn place(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len);
        fits.then(|| self.base.as_ptr().wrapping_add(offset))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, of this size. Functions that know of it hold it by an `Arc`, so none does any more.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of own pages");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn values_go_in_and_out_inside_the_bounds_only() {
        let pages = Pages::new(10, 0).unwrap();
        assert_eq!(pages.len(), PAGE_SIZE);
        assert!(pages.put(8, &0x0102_0304_u32.to_le_bytes()));
        assert_eq!(pages.get::<[u8; 4]>(8), Some([4, 3, 2, 1]));
        assert_eq!(pages.word16(10).unwrap().load(Ordering::Relaxed).to_le_bytes(), [2, 1]);
        assert!(pages.word32(6).is_none());
        assert!(!pages.put(PAGE_SIZE - 3, &[0_u8; 4]));
        assert!(pages.get::<[u8; 2]>(usize::MAX).is_none());
        pages.clear();
        assert_eq!(pages.get::<[u8; 4]>(8), Some([0; 4]));
    }
}
