//! Buffers and the loans of them. One thread; the counts are plain cells in the pool's table.

use std::fmt;
use std::ops::Deref;
use std::ptr;
use std::rc::Rc;
use std::slice;

use crate::RegionId;
use crate::pool::Inner;

/// The owner of one contiguous piece of a pool. Dropped, the piece returns as soon as no
/// [`Segment`] of it is left.
pub struct Buffer {
    pool: Rc<Inner>,
    block: u32,
    len: u32,
}

impl Buffer {
    pub(crate) fn new(pool: Rc<Inner>, block: u32, len: u32) -> Buffer {
        pool.loans(block).holders.set(1);
        Buffer { pool, block, len }
    }

    /// Its length in bytes, as asked for.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lends `len` bytes from `offset`; `None` if they do not lie inside the buffer.
    pub fn segment(&self, offset: usize, len: usize) -> Option<Segment> {
        if offset.checked_add(len)? > self.len() {
            return None;
        }
        let (base, region) = self.pool.locate(self.block);
        let loans = self.pool.loans(self.block);
        loans.holders.set(loans.holders.get() + 1);
        Some(Segment {
            pool: Rc::clone(&self.pool),
            block: self.block,
            start: base.wrapping_add(offset),
            len: u32::try_from(len).ok()?,
            region,
        })
    }

    /// The bytes themselves; `None` while any of them is lent.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        if self.pool.loans(self.block).holders.get() != 1 {
            return None;
        }
        let (base, _) = self.pool.locate(self.block);
        // SAFETY: the block is `len` bytes or more of a mapping that the pool keeps alive, and
        // initialised (fresh mappings are zero). This buffer is its only holder, so no segment,
        // device or view refers to it, and `&mut self` keeps it so while the slice lives.
        Some(unsafe { slice::from_raw_parts_mut(base, self.len()) })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.release(self.block);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("block", &self.block)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A counted loan of part of a [`Buffer`]: what a device or a socket reads from or writes to.
pub struct Segment {
    pool: Rc<Inner>,
    block: u32,
    start: *mut u8,
    len: u32,
    region: RegionId,
}

impl Segment {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slab it lies in.
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// Its first byte. Valid for [`Segment::len`] bytes as long as this segment lives.
    pub fn as_ptr(&self) -> *const u8 {
        self.start
    }

    /// Its first byte, for a device to write; keep a [`DeviceWrite`] while it may.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.start
    }

    /// A loan of `len` bytes of this one from `offset`; `None` if they do not lie inside.
    pub fn part(&self, offset: usize, len: usize) -> Option<Segment> {
        if offset.checked_add(len)? > self.len() {
            return None;
        }
        let mut part = self.clone();
        part.start = self.start.wrapping_add(offset);
        part.len = u32::try_from(len).ok()?;
        Some(part)
    }

    /// Copies `data` in at `offset`; the number of bytes that fitted. Nothing is copied while a
    /// view of the same buffer is open.
    pub fn copy_from(&self, offset: usize, data: &[u8]) -> usize {
        if self.pool.loans(self.block).viewers.get() != 0 {
            return 0;
        }
        let count = self.len().saturating_sub(offset).min(data.len());
        if count > 0 {
            // SAFETY: `offset + count <= len`, so the destination lies inside the loan, which
            // keeps its memory alive. No view is open, `bytes_mut` needs all loans returned, so no
            // reference to these bytes exists; `data` therefore cannot overlap them.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.start.add(offset), count) };
        }
        count
    }

    /// Copies out from `offset` into `out`; the number of bytes there were.
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) -> usize {
        let count = self.len().saturating_sub(offset).min(out.len());
        if count > 0 {
            // SAFETY: the source lies inside the loan; `out` is an exclusive reference, which
            // cannot point into lent memory (see `copy_from`). If a device is writing, the bytes
            // are whichever it has written so far; none is ever uninitialised.
            unsafe { ptr::copy_nonoverlapping(self.start.add(offset), out.as_mut_ptr(), count) };
        }
        count
    }

    /// Fills it with zeroes, unless a view of the same buffer is open.
    pub fn fill_zero(&self) {
        if self.pool.loans(self.block).viewers.get() == 0 {
            // SAFETY: as in `copy_from`, for the whole length.
            unsafe { ptr::write_bytes(self.start, 0, self.len()) };
        }
    }

    /// Lets `look` read the bytes in place (a digest, a comparison); `None` while a device may be
    /// writing this buffer.
    pub fn view<R>(&self, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let loans = self.pool.loans(self.block);
        if loans.writers.get() != 0 {
            return None;
        }
        loans.viewers.set(loans.viewers.get() + 1);
        // SAFETY: the bytes lie inside the loan and are initialised. No device writes them (no
        // `DeviceWrite` is out, and none is granted while a view is open), copies into the buffer
        // are refused meanwhile, and `bytes_mut` needs all loans returned: they cannot change.
        let bytes = unsafe { slice::from_raw_parts(self.start, self.len()) };
        let result = look(bytes);
        loans.viewers.set(loans.viewers.get() - 1);
        Some(result)
    }

    /// Declares that a device may write these bytes until the returned guard is dropped; `None`
    /// while a view of the buffer is open.
    pub fn device_write(self) -> Option<DeviceWrite> {
        let loans = self.pool.loans(self.block);
        if loans.viewers.get() != 0 {
            return None;
        }
        loans.writers.set(loans.writers.get() + 1);
        Some(DeviceWrite { segment: self })
    }
}

impl Clone for Segment {
    fn clone(&self) -> Segment {
        let loans = self.pool.loans(self.block);
        loans.holders.set(loans.holders.get() + 1);
        Segment {
            pool: Rc::clone(&self.pool),
            block: self.block,
            start: self.start,
            len: self.len,
            region: self.region,
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.pool.release(self.block);
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("region", &self.region.0)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A segment that a device may be writing at this moment.
#[derive(Debug)]
pub struct DeviceWrite {
    segment: Segment,
}

impl Deref for DeviceWrite {
    type Target = Segment;

    fn deref(&self) -> &Segment {
        &self.segment
    }
}

impl Drop for DeviceWrite {
    fn drop(&mut self) {
        let loans = self.segment.pool.loans(self.segment.block);
        loans.writers.set(loans.writers.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use crate::{Arena, ArenaConfig, Hugepages, Pool, SLAB_SIZE};

    fn pool() -> Pool {
        let config = ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never };
        Arena::new(config).pool(SLAB_SIZE).unwrap()
    }

    #[test]
    fn a_piece_returns_only_when_every_loan_is_gone() {
        let pool = pool();
        let whole = pool.available();
        let buffer = pool.take(SLAB_SIZE).unwrap();
        let loan = buffer.segment(4096, 512).unwrap();
        let part = loan.part(1, 2).unwrap();
        drop(buffer);
        drop(loan);
        assert!(pool.take(1).is_none(), "the device still has a part of it");
        drop(part);
        assert_eq!(pool.available(), whole);
        assert!(pool.take(SLAB_SIZE).is_some());
    }

    #[test]
    fn bytes_are_ours_only_while_nothing_is_lent() {
        let pool = pool();
        let mut buffer = pool.take(10).unwrap();
        buffer.bytes_mut().unwrap().copy_from_slice(b"0123456789");
        let loan = buffer.segment(2, 4).unwrap();
        assert!(buffer.bytes_mut().is_none());
        let mut out = [0; 8];
        assert_eq!(loan.copy_to(1, &mut out), 3);
        assert_eq!(&out[..3], b"345");
        assert_eq!(loan.copy_from(2, b"xyz"), 2);
        drop(loan);
        assert_eq!(buffer.bytes_mut().unwrap(), b"0123xy6789");
    }

    #[test]
    fn a_loan_lies_inside_its_buffer() {
        let pool = pool();
        let buffer = pool.take(100).unwrap();
        assert!(buffer.segment(0, 101).is_none());
        assert!(buffer.segment(usize::MAX, 2).is_none());
        let loan = buffer.segment(50, 50).unwrap();
        assert!(loan.part(0, 51).is_none());
        assert!(loan.part(51, 0).is_none());
        assert!(loan.part(50, 0).is_some_and(|part| part.is_empty()));
    }

    #[test]
    fn views_and_device_writes_exclude_each_other() {
        let pool = pool();
        let buffer = pool.take(8).unwrap();
        let loan = buffer.segment(0, 8).unwrap();
        loan.fill_zero();
        let writing = loan.clone().device_write().unwrap();
        assert_eq!(loan.view(<[u8]>::len), None);
        drop(writing);
        let inside = loan.view(|bytes| {
            assert!(loan.clone().device_write().is_none());
            assert_eq!(loan.copy_from(0, b"ab"), 0);
            bytes.to_vec()
        });
        assert_eq!(inside.as_deref(), Some(&[0; 8][..]));
    }
}
