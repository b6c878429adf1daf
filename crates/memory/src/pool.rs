//! A reactor's own supply of buffers. One thread, no atomics, no allocation after it is made.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use crate::buddy::{self, Buddy, GRANULE_SHIFT, GRANULES_PER_SLAB};
use crate::{Arena, Buffer, RegionId, SLAB_SIZE, Slab};

/// Who refers to a block; kept at its first granule.
#[derive(Debug, Default)]
pub(crate) struct Loans {
    /// The buffer itself and its segments.
    pub(crate) holders: Cell<u32>,
    /// Segments that a device may be writing.
    pub(crate) writers: Cell<u32>,
    /// Views that are open right now.
    pub(crate) viewers: Cell<u32>,
}

pub(crate) struct Inner {
    slabs: Box<[Slab]>,
    buddy: RefCell<Buddy>,
    loans: Box<[Loans]>,
    /// Peers may write to all of it at any time.
    pub(crate) for_peers: bool,
    /// Keeps the mappings.
    arena: Arena,
}

/// A reactor's pool of buffers; clones refer to the same one. Not `Send`.
#[derive(Clone)]
pub struct Pool {
    pub(crate) inner: Rc<Inner>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("capacity", &self.capacity())
            .field("available", &self.available())
            .finish()
    }
}

impl Pool {
    pub(crate) fn new(arena: Arena, slabs: Vec<Slab>) -> Pool {
        let count = u32::try_from(slabs.len()).unwrap_or(0);
        let buddy = Buddy::new(count);
        let loans = (0..buddy.total()).map(|_| Loans::default()).collect();
        Pool {
            inner: Rc::new(Inner {
                slabs: slabs.into_boxed_slice(),
                buddy: RefCell::new(buddy),
                loans,
                for_peers: arena.is_for_peers(),
                arena,
            }),
        }
    }

    /// A buffer of `len` bytes, with whatever its last user left in it; `None` if there is none
    /// free now (the caller waits) or `len` exceeds [`Pool::max_buffer`] (it would wait forever).
    pub fn take(&self, len: usize) -> Option<Buffer> {
        let order = buddy::order_for(len)?;
        let block = self.inner.buddy.borrow_mut().take(order)?;
        Some(Buffer::new(Rc::clone(&self.inner), block, u32::try_from(len).ok()?))
    }

    /// The largest buffer there is, in bytes.
    pub fn max_buffer(&self) -> usize {
        SLAB_SIZE
    }

    /// Bytes not lent out, in whole granules of 4 KiB; they may lie in pieces.
    pub fn available(&self) -> usize {
        (self.inner.buddy.borrow().free() as usize) << GRANULE_SHIFT
    }

    /// Bytes in all.
    pub fn capacity(&self) -> usize {
        self.inner.slabs.len() * SLAB_SIZE
    }

    /// Its slabs: what a device registers.
    pub fn slabs(&self) -> &[Slab] {
        &self.inner.slabs
    }

    /// The arena it was made from, which keeps its slabs mapped.
    pub fn arena(&self) -> &Arena {
        &self.inner.arena
    }
}

impl Inner {
    #[inline]
    #[allow(clippy::indexing_slicing)] // `block` was given out by `buddy`, which is as long.
    pub(crate) fn loans(&self, block: u32) -> &Loans {
        &self.loans[block as usize]
    }

    /// Address and region of a block.
    #[allow(clippy::indexing_slicing)] // As above.
    pub(crate) fn locate(&self, block: u32) -> (*mut u8, RegionId) {
        let slab = self.slabs[(block / GRANULES_PER_SLAB) as usize];
        let offset = ((block % GRANULES_PER_SLAB) as usize) << GRANULE_SHIFT;
        (slab.base().wrapping_add(offset), slab.region)
    }

    /// One holder fewer; the last one returns the block.
    pub(crate) fn release(&self, block: u32) {
        let loans = self.loans(block);
        let left = loans.holders.get() - 1;
        loans.holders.set(left);
        if left == 0 {
            self.buddy.borrow_mut().give_back(block);
        }
    }
}
