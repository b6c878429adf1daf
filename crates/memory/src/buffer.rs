//! Buffers, the loans of them, and leases of a medium under the same name. One thread; the counts of
//! buffers are plain cells in the pool's table, those of leases are in [`lease`](crate::lease).

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr;
use std::rc::Rc;
use std::slice;

use crate::pool::{Inner, Loans};
use crate::{Lender, RegionId, SharedMemory};

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
            owner: Owner::Buffer { pool: Rc::clone(&self.pool), block: self.block, region },
            start: base.wrapping_add(offset),
            len: u32::try_from(len).ok()?,
        })
    }

    /// Whether any of its bytes is lent.
    pub fn is_lent(&self) -> bool {
        self.pool.loans(self.block).holders.get() != 1
    }

    /// The bytes themselves; `None` while any of them is lent, and where [peers](crate::Arena::for_peers) may write them.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        if self.pool.for_peers || self.is_lent() {
            return None;
        }
        let (base, _) = self.pool.locate(self.block);
        // SAFETY: the block is `len` bytes or more of a mapping that the pool keeps alive, and
        // initialised (fresh mappings are zero). This buffer is its only holder, so no segment,
        // device or view refers to it, no peer has a key to it, and `&mut self` keeps it so while the slice lives.
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

/// What keeps the memory of a segment.
enum Owner {
    /// A block of a pool.
    Buffer { pool: Rc<Inner>, block: u32, region: RegionId },
    /// A medium, in which the segment's own bytes are leased.
    Lease(Lender),
}

/// A counted loan of part of a [`Buffer`], what a device or a socket reads from or writes to; or a lease
/// of part of a medium, which can only be read.
pub struct Segment {
    owner: Owner,
    start: *mut u8,
    len: u32,
}

impl Segment {
    /// A lease that has been counted.
    pub(crate) fn leased(lender: Lender, start: *mut u8, len: u32) -> Segment {
        Segment { owner: Owner::Lease(lender), start, len }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slab it lies in; `None` for a lease.
    pub fn region(&self) -> Option<RegionId> {
        match self.owner {
            Owner::Buffer { region, .. } => Some(region),
            Owner::Lease(_) => None,
        }
    }

    /// The medium that it is a lease of.
    pub fn medium(&self) -> Option<&SharedMemory> {
        match &self.owner {
            Owner::Buffer { .. } => None,
            Owner::Lease(lender) => Some(lender.medium()),
        }
    }

    /// Whether it is a lease of a medium: then nothing may write to it.
    pub fn is_lease(&self) -> bool {
        matches!(self.owner, Owner::Lease(_))
    }

    /// Whether it is a lease that a write waits for.
    pub fn is_wanted(&self) -> bool {
        match &self.owner {
            Owner::Buffer { .. } => false,
            Owner::Lease(lender) => lender.is_claimed(self.start, self.len()),
        }
    }

    /// Its first byte. Valid for [`Segment::len`] bytes as long as this segment lives.
    pub fn as_ptr(&self) -> *const u8 {
        self.start
    }

    /// Its first byte, for a device to write; keep a [`DeviceWrite`] while it may, which is not to be had for a lease.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.start
    }

    /// A loan of `len` bytes of this one from `offset`; `None` if they do not lie inside.
    pub fn part(&self, offset: usize, len: usize) -> Option<Segment> {
        if offset.checked_add(len)? > self.len() {
            return None;
        }
        Some(self.another(self.start.wrapping_add(offset), u32::try_from(len).ok()?))
    }

    /// Another loan, of these bytes of it.
    fn another(&self, start: *mut u8, len: u32) -> Segment {
        let owner = match &self.owner {
            Owner::Buffer { pool, block, region } => {
                let holders = &pool.loans(*block).holders;
                holders.set(holders.get() + 1);
                Owner::Buffer { pool: Rc::clone(pool), block: *block, region: *region }
            }
            Owner::Lease(lender) => {
                lender.renew(start, len as usize);
                Owner::Lease(lender.clone())
            }
        };
        Segment { owner, start, len }
    }

    /// Whether peers may write to it at any time.
    fn is_for_peers(&self) -> bool {
        matches!(&self.owner, Owner::Buffer { pool, .. } if pool.for_peers)
    }

    /// The counts of its buffer; a lease has none there.
    #[inline]
    fn loans(&self) -> Option<&Loans> {
        match &self.owner {
            Owner::Buffer { pool, block, .. } => Some(pool.loans(*block)),
            Owner::Lease(_) => None,
        }
    }

    /// Whether we may write to it: a buffer of which no view is open.
    #[inline]
    fn is_writable(&self) -> bool {
        self.loans().is_some_and(|loans| loans.viewers.get() == 0)
    }

    /// Copies `data` in at `offset`; the number of bytes that fitted. Nothing is copied while a
    /// view of the same buffer is open, nor to a lease.
    pub fn copy_from(&self, offset: usize, data: &[u8]) -> usize {
        if !self.is_writable() {
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

    /// Fills it with zeroes, unless a view of the same buffer is open or it is a lease.
    pub fn fill_zero(&self) {
        if self.is_writable() {
            // SAFETY: as in `copy_from`, for the whole length.
            unsafe { ptr::write_bytes(self.start, 0, self.len()) };
        }
    }

    /// Lets `look` read the bytes in place (a digest, a comparison); `None` while a device may be
    /// writing this buffer, and where [peers](crate::Arena::for_peers) may.
    pub fn view<R>(&self, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let loans = self.loans();
        if self.is_for_peers() || loans.is_some_and(|loans| loans.writers.get() != 0) {
            return None;
        }
        if let Some(loans) = loans {
            loans.viewers.set(loans.viewers.get() + 1);
        }
        // SAFETY: the bytes lie inside the loan and are initialised. Of a buffer, no device writes them (no
        // `DeviceWrite` is out, and none is granted while a view is open), no peer has a key to them, copies into the buffer
        // are refused meanwhile, and `bytes_mut` needs all loans returned: they cannot change. Of a
        // medium, they are leased while this segment lives, and nothing writes what is leased (see `lease`).
        let bytes = unsafe { slice::from_raw_parts(self.start, self.len()) };
        let result = look(bytes);
        if let Some(loans) = loans {
            loans.viewers.set(loans.viewers.get() - 1);
        }
        Some(result)
    }

    /// Declares that a device may write these bytes until the returned guard is dropped; `None`
    /// while a view of the buffer is open, and for a lease.
    #[inline]
    pub fn device_write(self) -> Option<DeviceWrite> {
        if !self.is_writable() {
            return None;
        }
        let writers = &self.loans()?.writers;
        writers.set(writers.get() + 1);
        Some(DeviceWrite { segment: self })
    }
}

impl Clone for Segment {
    fn clone(&self) -> Segment {
        self.another(self.start, self.len)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        match &self.owner {
            Owner::Buffer { pool, block, .. } => pool.release(*block),
            Owner::Lease(lender) => lender.end(self.start, self.len()),
        }
    }
}

/// Two segments are equal if they are the same memory.
impl PartialEq for Segment {
    fn eq(&self, other: &Segment) -> bool {
        (self.start, self.len) == (other.start, other.len)
    }
}

impl Eq for Segment {}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("region", &self.region())
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A segment that a device may be writing at this moment.
#[derive(Debug)]
pub struct DeviceWrite {
    segment: Segment,
}

impl DeviceWrite {
    /// The device has done with it.
    #[inline]
    pub fn end(self) -> Segment {
        let mut ended = ManuallyDrop::new(self);
        ended.count_off();
        // SAFETY: the guard is neither dropped nor used again, so this is the only owner of its segment.
        unsafe { ptr::read(&raw const ended.segment) }
    }

    #[inline]
    fn count_off(&mut self) {
        if let Some(loans) = self.segment.loans() {
            loans.writers.set(loans.writers.get() - 1);
        }
    }
}

impl Deref for DeviceWrite {
    type Target = Segment;

    fn deref(&self) -> &Segment {
        &self.segment
    }
}

impl Drop for DeviceWrite {
    #[inline]
    fn drop(&mut self) {
        self.count_off();
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
    fn what_peers_may_write_is_copied_only() {
        let config = ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never };
        let mut buffer = Arena::for_peers(config).pool(SLAB_SIZE).unwrap().take(8).unwrap();
        assert!(!buffer.is_lent() && buffer.bytes_mut().is_none());
        let loan = buffer.segment(0, 8).unwrap();
        assert!(buffer.is_lent());
        assert_eq!(loan.copy_from(2, b"xy"), 2);
        assert_eq!(loan.view(<[u8]>::len), None);
        let mut out = [0; 2];
        assert_eq!((loan.copy_to(2, &mut out), &out), (2, b"xy"));
    }

    #[test]
    fn views_and_device_writes_exclude_each_other() {
        let pool = pool();
        let buffer = pool.take(8).unwrap();
        let loan = buffer.segment(0, 8).unwrap();
        loan.fill_zero();
        let writing = loan.clone().device_write().unwrap();
        assert_eq!(loan.view(<[u8]>::len), None);
        assert_eq!(writing.end().view(<[u8]>::len), Some(8));
        let inside = loan.view(|bytes| {
            assert!(loan.clone().device_write().is_none());
            assert_eq!(loan.copy_from(0, b"ab"), 0);
            bytes.to_vec()
        });
        assert_eq!(inside.as_deref(), Some(&[0; 8][..]));
    }
}
