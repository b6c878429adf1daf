//! Leases of a medium: parts of a [`SharedMemory`] that are lent to the wire, and the writes that wait for them.
//!
//! ```text
//!   Arc<SharedMemory> (process) --> Lender (one reactor) --lend--> Segment   the bytes hold still while it lives
//!                                                        --claim-> Claim     nothing more is lent; writes once nothing is
//! ```
//!
//! The medium is divided into granules of [`GRANULE`] bytes. Each has one word, which all reactors change by atomic
//! operations: how many leases there are of it, and how many claims.
//!
//! * A lease is granted only where there is no claim. It ends when the last clone of its [`Segment`] is dropped, wherever
//!   and for whatever reason that happens.
//! * A claim is granted at once. From then on nothing more is lent of its granules, so the leases that there are come to
//!   their end and the claim becomes [free](Claim::is_free): **readers cannot starve a writer**. Only a free claim writes.
//!   Claims do not exclude each other: two hosts that write the same block at the same moment race as on a disk.
//!
//! So the bytes of a lease cannot change, and [`Segment::view`] may make a slice of them: whatever writes a medium does
//! so through a free claim, a free claim has no lease in its granules, and none is granted while it stands. A device that
//! has registered the medium has been given no right to write it.
//!
//! Leases that meet writes of other blocks in the same granule are a false conflict: the write waits, the read is
//! copied, neither is wrong. It needs blocks smaller than a granule, or memory read and written at the same time anyway.
//! Eight words lie in a cache line; that reactors share one, and only that, is what neighbouring granules cost each other.
//! The words take a five-hundredth of the medium's size, of which the system gives only what is touched.
//!
//! **The last lease may be the last that there is of the medium**: its device has been deleted meanwhile. To end the registrations
//! and the mapping of a large medium blocks for long, and the thread that lets go of a lease has others to serve. So a lender is told
//! what to do then ([`Lender::freed_by`]).
//!
//! Rejected: a lock for each granule (a reactor would wait on another); one counter for the whole medium (every write
//! would meet some lease); words in a small table by hash (as many of them have to be changed for a large range, and
//! they collide); fresh pages for a write that meets a lease (neither the mapping nor a device's registration of
//! it would follow, and a range would no longer be one piece).

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::buffer::Segment;
use crate::shared::SharedMemory;

/// Bytes that are lent and claimed as one.
pub const GRANULE: usize = 4096;

/// A word counts leases in its low bits: as many as there can ever be segments.
const LEASE: u64 = 1;
const LEASES: u64 = CLAIM - 1;
/// And claims in its 16 high ones.
const CLAIM: u64 = 1 << 48;
const CLAIMS: u64 = !LEASES;

/// The words of a medium.
pub(crate) struct Leases(Box<[AtomicU64]>);

impl Leases {
    /// For a medium of `len` bytes.
    pub(crate) fn new(len: usize) -> Leases {
        let words = Box::<[AtomicU64]>::new_zeroed_slice(len.div_ceil(GRANULE));
        // SAFETY: an atomic integer may have any value, nought among them. (Zeroed by the allocator, large tables take
        // no memory before they are written.)
        Leases(unsafe { words.assume_init() })
    }

    /// The words of the granules that these bytes lie in.
    fn words(&self, start: usize, len: usize) -> &[AtomicU64] {
        let end = if len == 0 { start / GRANULE } else { (start + len).div_ceil(GRANULE) };
        self.0.get(start / GRANULE..end).unwrap_or(&[])
    }

    /// Takes a lease of the range, unless some of it is claimed.
    fn lend(&self, start: usize, len: usize) -> bool {
        let words = self.words(start, len);
        for (taken, word) in words.iter().enumerate() {
            let one_more = |word: u64| (word & CLAIMS == 0).then_some(word + LEASE);
            // Acquire: all that was written through claims that are gone is seen.
            if word.fetch_update(Ordering::Acquire, Ordering::Relaxed, one_more).is_err() {
                for word in words.iter().take(taken) {
                    word.fetch_sub(LEASE, Ordering::Release);
                }
                return false;
            }
        }
        true
    }

    /// Another lease of a range that is leased.
    fn renew(&self, start: usize, len: usize) {
        for word in self.words(start, len) {
            word.fetch_add(LEASE, Ordering::Relaxed);
        }
    }

    /// Ends a lease. Release: what was read of the range was read before anything is written there.
    fn end(&self, start: usize, len: usize) {
        for word in self.words(start, len) {
            word.fetch_sub(LEASE, Ordering::Release);
        }
    }

    fn is_claimed(&self, start: usize, len: usize) -> bool {
        self.words(start, len).iter().any(|word| word.load(Ordering::Relaxed) & CLAIMS != 0)
    }

    /// Claims the range; false if some of it has all the claims that can be counted.
    fn claim(&self, start: usize, len: usize) -> bool {
        let words = self.words(start, len);
        for (taken, word) in words.iter().enumerate() {
            let one_more = |word: u64| word.checked_add(CLAIM);
            if word.fetch_update(Ordering::Acquire, Ordering::Relaxed, one_more).is_err() {
                for word in words.iter().take(taken) {
                    word.fetch_sub(CLAIM, Ordering::Release);
                }
                return false;
            }
        }
        true
    }

    fn is_lent(&self, start: usize, len: usize) -> bool {
        self.words(start, len).iter().any(|word| word.load(Ordering::Acquire) & LEASES != 0)
    }

    /// Ends a claim.
    fn unclaim(&self, start: usize, len: usize) {
        for word in self.words(start, len) {
            word.fetch_sub(CLAIM, Ordering::Release);
        }
    }
}

/// One reactor's hold on a medium: what it lends and claims there. Not `Send`, so that clones, of which every
/// segment has one, count without atomics.
#[derive(Clone)]
pub struct Lender(Rc<Hold>);

/// What the clones share.
struct Hold {
    /// There until the hold is dropped.
    medium: ManuallyDrop<Arc<SharedMemory>>,
    free: Option<Box<dyn Fn(SharedMemory)>>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // SAFETY: it is taken here alone, and the hold is not used after.
        let medium = unsafe { ManuallyDrop::take(&mut self.medium) };
        // Of all that let go at the same moment one gets it.
        if let Some(last) = Arc::into_inner(medium)
            && let Some(free) = &self.free
        {
            free(last);
        }
    }
}

impl fmt::Debug for Lender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lender").field(self.medium()).finish()
    }
}

impl Lender {
    /// A hold on this medium for the thread that calls.
    pub fn new(medium: Arc<SharedMemory>) -> Lender {
        Lender(Rc::new(Hold { medium: ManuallyDrop::new(medium), free: None }))
    }

    /// The same for a thread that must not block: if nobody else has the medium when the last lease of this hold
    /// ends, `free` gets it, to drop it elsewhere.
    pub fn freed_by(medium: Arc<SharedMemory>, free: impl Fn(SharedMemory) + 'static) -> Lender {
        let medium = ManuallyDrop::new(medium);
        Lender(Rc::new(Hold { medium, free: Some(Box::new(free)) }))
    }

    /// The medium.
    pub fn medium(&self) -> &Arc<SharedMemory> {
        &self.0.medium
    }

    /// Lends `len` bytes at `offset`; `None` if they do not lie inside, or something is being or about to be written
    /// there: then they have to be copied.
    pub fn lend(&self, offset: u64, len: usize) -> Option<Segment> {
        let address = self.medium().locate(offset, len)?;
        let length = u32::try_from(len).ok()?;
        let start = self.start(address);
        self.medium()
            .leases
            .lend(start, len)
            .then(|| Segment::leased(self.clone(), address, length))
    }

    /// Claims `len` bytes at `offset` in order to write them; `None` if they do not lie inside, or there are tens of thousands
    /// of claims already: try again.
    pub fn claim(&self, offset: u64, len: usize) -> Option<Claim> {
        let start = self.start(self.medium().locate(offset, len)?);
        let claimed = self.medium().leases.claim(start, len);
        claimed.then(|| Claim { lender: self.clone(), start, len, free: false })
    }

    /// How far into the medium this address is.
    fn start(&self, address: *const u8) -> usize {
        address.addr() - self.medium().base().addr()
    }

    /// A segment of this lease begins anew at this address, with this length.
    pub(crate) fn renew(&self, address: *const u8, len: usize) {
        self.medium().leases.renew(self.start(address), len);
    }

    /// Such a segment is gone.
    pub(crate) fn end(&self, address: *const u8, len: usize) {
        self.medium().leases.end(self.start(address), len);
    }

    /// Whether somebody waits for it to go.
    pub(crate) fn is_claimed(&self, address: *const u8, len: usize) -> bool {
        self.medium().leases.is_claimed(self.start(address), len)
    }
}

/// The right to write a range of a medium, from when nothing of it is lent any more. Dropped, it may be lent again.
#[derive(Debug)]
pub struct Claim {
    lender: Lender,
    start: usize,
    len: usize,
    /// Nothing is lent, and nothing will be while the claim stands.
    free: bool,
}

impl Claim {
    /// Whether nothing of the range is lent any more. Once it is so, it stays so.
    pub fn is_free(&mut self) -> bool {
        self.free = self.free || !self.lender.medium().leases.is_lent(self.start, self.len);
        self.free
    }

    /// Copies the segment to `offset` of the medium; false, with nothing done, if the claim is not free or the bytes lie
    /// outside its range.
    pub fn write(&mut self, offset: u64, from: &Segment) -> bool {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let inside = start >= self.start
            && start.checked_add(from.len()).is_some_and(|end| end <= self.start + self.len);
        if !inside || !self.is_free() {
            return false;
        }
        self.lender.medium().write(start, from);
        true
    }

    /// Makes the range read as zero, and gives its whole pages back to the system unless a device has registered them.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if the claim is not free; the system's, if pages cannot be given back.
    pub fn zero(&mut self) -> io::Result<()> {
        if !self.is_free() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.lender.medium().zero(self.start, self.len)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.lender.medium().leases.unclaim(self.start, self.len);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::{Arena, ArenaConfig, Hugepages, Pool, SLAB_SIZE};

    fn medium(len: usize) -> (Lender, Pool) {
        let config = ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never };
        let pool = Arena::new(config).pool(SLAB_SIZE).unwrap();
        (Lender::new(Arc::new(SharedMemory::new("test", len).unwrap())), pool)
    }

    fn filled(pool: &Pool, byte: u8, len: usize) -> Segment {
        let mut buffer = pool.take(len).unwrap();
        buffer.bytes_mut().unwrap().fill(byte);
        buffer.segment(0, len).unwrap()
    }

    fn write(lender: &Lender, pool: &Pool, offset: u64, len: usize, byte: u8) -> bool {
        lender.claim(offset, len).unwrap().write(offset, &filled(pool, byte, len))
    }

    #[test]
    fn a_lease_is_the_mediums_own_memory() {
        let (lender, pool) = medium(64 << 10);
        assert!(write(&lender, &pool, 8192, 4096, 7));
        let lease = lender.lend(8192, 4096).unwrap();
        assert_eq!(lease.as_ptr().addr(), lender.medium().base().addr() + 8192);
        assert_eq!(lease.view(|bytes| bytes == [7; 4096]), Some(true));
        assert!(lease.region().is_none());
        assert!(lender.lend(64 << 10, 1).is_none());
        assert!(lender.lend(u64::MAX, 1).is_none());
        assert!(lender.claim(0, (64 << 10) + 1).is_none());
    }

    #[test]
    fn a_write_waits_for_every_part_of_a_lease() {
        let (lender, pool) = medium(64 << 10);
        let lease = lender.lend(0, 16384).unwrap();
        assert!(write(&lender, &pool, 16384, 4096, 1), "nobody has it");
        let mut claim = lender.claim(8192, 4096).unwrap();
        let data = filled(&pool, 1, 4096);
        assert!(!claim.write(8192, &data));
        assert!(claim.zero().is_err());
        let (front, back) = (lease.part(0, 8192).unwrap(), lease.part(8192, 10).unwrap());
        drop(lease);
        assert!(!claim.is_free());
        assert_eq!(back.view(|bytes| bytes == [0; 10]), Some(true));
        drop(back);
        assert!(claim.write(8192, &data), "the front part is none of its business");
        assert!(!claim.write(8191, &data) && !claim.write(8193, &data), "beyond its range");
        drop(front);
    }

    #[test]
    fn what_is_claimed_is_not_lent_until_the_claim_is_gone() {
        let (lender, _pool) = medium(64 << 10);
        let lease = lender.lend(4096, 1).unwrap();
        let other = lease.clone();
        assert!(!lease.is_wanted());
        let mut claim = lender.claim(8000, 500).unwrap();
        assert!(lease.is_wanted(), "in the same granule");
        for (offset, len) in [(4096, 1), (0, 16384), (8192, 1)] {
            assert!(lender.lend(offset, len).is_none(), "{offset} {len}");
        }
        assert!(lender.lend(0, 4096).is_some_and(|before| !before.is_wanted()));
        assert!(lender.lend(12288, 4096).is_some());
        drop(lease);
        assert!(!claim.is_free());
        drop(other);
        assert!(claim.is_free());
        drop(claim);
        assert!(lender.lend(0, 16384).is_some());
        assert!(lender.claim(0, 64 << 10).unwrap().is_free(), "a refused lease leaves nothing");
    }

    #[test]
    fn a_lease_is_for_reading() {
        let (lender, pool) = medium(8192);
        let lease = lender.lend(0, 4096).unwrap();
        assert_eq!(lease.copy_from(0, b"abc"), 0);
        lease.fill_zero();
        assert!(lease.clone().device_write().is_none());
        assert!(!lender.medium().read_at(4096, &lease), "not a copy from medium to medium");
        let mut out = [1; 4];
        assert_eq!(lease.copy_to(0, &mut out), 4);
        assert_eq!(out, [0; 4]);
        // It may be what is written elsewhere.
        assert!(write(&lender, &pool, 4096, 4096, 3));
        let upper = lender.lend(4096, 4096).unwrap();
        drop(lease);
        assert!(lender.claim(0, 4096).unwrap().write(0, &upper));
        assert_eq!(lender.lend(0, 4096).unwrap().view(|bytes| bytes == [3; 4096]), Some(true));
    }

    #[test]
    fn the_memory_stays_until_the_last_lease_is_gone() {
        let (lender, pool) = medium(8192);
        assert!(write(&lender, &pool, 0, 8192, 9));
        let medium = Arc::downgrade(lender.medium());
        let lease = lender.lend(0, 8192).unwrap();
        let part = lease.part(100, 100).unwrap();
        drop((lender, lease));
        assert_eq!(part.view(|bytes| bytes == [9; 100]), Some(true));
        assert!(medium.upgrade().is_some());
        drop(part);
        assert!(medium.upgrade().is_none());
    }

    #[test]
    fn whoever_has_the_last_lease_does_not_free_the_memory() {
        let freed = Rc::new(RefCell::new(Vec::new()));
        let lender = |medium: &Arc<SharedMemory>| {
            let freed = Rc::clone(&freed);
            Lender::freed_by(Arc::clone(medium), move |last| freed.borrow_mut().push(last.len()))
        };
        let medium = Arc::new(SharedMemory::new("test", 8192).unwrap());
        let (one, other) = (lender(&medium), lender(&medium));
        let lease = one.lend(0, 4096).unwrap();
        let part = lease.part(0, 100).unwrap();
        drop((one, lease, medium));
        assert!(freed.borrow().is_empty(), "there are others");
        drop(part);
        assert!(freed.borrow().is_empty(), "there is another");
        drop(other);
        assert_eq!(*freed.borrow(), [8192]);
        // Whoever is last and may block frees it on the spot.
        let medium = Arc::new(SharedMemory::new("test", 8192).unwrap());
        drop(lender(&medium));
        drop(medium);
        assert_eq!(*freed.borrow(), [8192]);
    }
}
