//! The arena: the process's supply of slabs, mapped from the system and handed to pools.
//!
//! Used by start-up and by offloaded jobs, never on the path of an I/O: it maps memory and takes a
//! lock. A slab stays mapped until the arena and all its pools are gone, because devices may have
//! registered it.

use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::{MemoryError, Pool};

/// Size and alignment of a slab in bytes: one x86-64 hugepage, and the largest buffer there is.
pub const SLAB_SIZE: usize = 2 << 20;

/// The index of a slab in its arena. A device that registered the arena's slabs in order finds its
/// handle (fixed-buffer index, memory region, I/O virtual address) under this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub u16);

/// One mapped slab, as a device registers it: [`SLAB_SIZE`] bytes at `base`.
#[derive(Debug, Clone, Copy)]
pub struct Slab {
    /// Its index in the arena.
    pub region: RegionId,
    base: NonNull<u8>,
}

// SAFETY: a slab is an address and a number; whoever dereferences the address (a pool, a ring)
// answers for the access. The mapping outlives every copy that a pool or device holds, because
// those hold the arena.
unsafe impl Send for Slab {}
// SAFETY: as above; a shared `Slab` gives no access to the memory by itself.
unsafe impl Sync for Slab {}

impl Slab {
    /// The slab's first byte.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

/// Whether the arena tries to use hugepages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hugepages {
    /// Reserved hugepages while there are some, then transparent ones where the kernel gives them.
    #[default]
    Try,
    /// Plain pages only.
    Never,
}

/// How large the arena may become.
#[derive(Debug, Clone, Copy)]
pub struct ArenaConfig {
    /// Upper bound on all slabs together, in bytes; rounded down to whole slabs.
    pub capacity: usize,
    /// Whether to try hugepages.
    pub hugepages: Hugepages,
}

/// What the arena consists of, for `serve` to print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArenaReport {
    /// Upper bound in bytes.
    pub capacity: usize,
    /// Mapped so far in bytes.
    pub mapped: usize,
    /// Of those, in reserved hugepages.
    pub huge: usize,
}

#[derive(Debug)]
struct Mapped {
    slab: Slab,
    huge: bool,
}

#[derive(Debug)]
struct Inner {
    config: ArenaConfig,
    for_peers: bool,
    slabs: Mutex<Vec<Mapped>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let slabs = self.slabs.get_mut().unwrap_or_else(PoisonError::into_inner);
        for mapped in slabs.drain(..) {
            // SAFETY: this is the mapping that `map_slab` made, of this size; every pool and
            // registration held the arena, so nothing refers to it any more.
            let unmapped = unsafe { munmap(mapped.slab.base.as_ptr().cast(), SLAB_SIZE) };
            debug_assert!(unmapped.is_ok(), "munmap of an own slab");
        }
    }
}

/// A handle to the process's arena; clones refer to the same one.
#[derive(Debug, Clone)]
pub struct Arena {
    inner: Arc<Inner>,
}

impl Arena {
    /// An empty arena; slabs are mapped when pools are made from it.
    pub fn new(config: ArenaConfig) -> Arena {
        Arena::made(config, false)
    }

    /// An arena that is there for peers to write to, by keys that nobody can take back for single buffers: at any time, whatever
    /// has been agreed. So the bytes of its buffers are only ever copied; there are no views of them, nor
    /// [`Buffer::bytes_mut`](crate::Buffer::bytes_mut).
    pub fn for_peers(config: ArenaConfig) -> Arena {
        Arena::made(config, true)
    }

    fn made(config: ArenaConfig, for_peers: bool) -> Arena {
        Arena { inner: Arc::new(Inner { config, for_peers, slabs: Mutex::new(Vec::new()) }) }
    }

    /// Whether it is there for peers to write to.
    pub fn is_for_peers(&self) -> bool {
        self.inner.for_peers
    }

    /// Maps `bytes` (rounded up to whole slabs) and makes a reactor's pool of them.
    ///
    /// # Errors
    /// [`MemoryError::Exhausted`] beyond the arena's capacity, [`MemoryError::Map`] when the system
    /// has no more memory to map.
    pub fn pool(&self, bytes: usize) -> Result<Pool, MemoryError> {
        let count = bytes.div_ceil(SLAB_SIZE).max(1);
        let mut slabs = self.inner.slabs.lock().unwrap_or_else(PoisonError::into_inner);
        let capacity = self.inner.config.capacity.min(usize::from(u16::MAX) * SLAB_SIZE);
        let left = capacity.saturating_sub(slabs.len() * SLAB_SIZE);
        if count * SLAB_SIZE > left {
            return Err(MemoryError::Exhausted { wanted: count * SLAB_SIZE, left, capacity });
        }
        let mut own = Vec::with_capacity(count);
        for _ in 0..count {
            let region = RegionId(u16::try_from(slabs.len()).unwrap_or(u16::MAX));
            let (base, huge) = map_slab(self.inner.config.hugepages)
                .map_err(|source| MemoryError::Map { bytes: SLAB_SIZE, source })?;
            let slab = Slab { region, base };
            slabs.push(Mapped { slab, huge });
            own.push(slab);
        }
        drop(slabs);
        Ok(Pool::new(self.clone(), own))
    }

    /// Every slab mapped so far, in the order of their [`RegionId`]s.
    pub fn slabs(&self) -> Vec<Slab> {
        let slabs = self.inner.slabs.lock().unwrap_or_else(PoisonError::into_inner);
        slabs.iter().map(|mapped| mapped.slab).collect()
    }

    /// What has been mapped.
    pub fn report(&self) -> ArenaReport {
        let slabs = self.inner.slabs.lock().unwrap_or_else(PoisonError::into_inner);
        ArenaReport {
            capacity: self.inner.config.capacity / SLAB_SIZE * SLAB_SIZE,
            mapped: slabs.len() * SLAB_SIZE,
            huge: slabs.iter().filter(|mapped| mapped.huge).count() * SLAB_SIZE,
        }
    }
}

/// Maps one slab aligned to its size; says whether it is a reserved hugepage.
fn map_slab(hugepages: Hugepages) -> io::Result<(NonNull<u8>, bool)> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    if hugepages == Hugepages::Try {
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        // SAFETY: a null hint without MAP_FIXED cannot replace an existing mapping.
        let mapped = unsafe { mmap_anonymous(ptr::null_mut(), SLAB_SIZE, protection, flags) };
        if let Some(base) = mapped.ok().and_then(|base| NonNull::new(base.cast::<u8>())) {
            return Ok((base, true));
        }
    }
    // Twice the size, so that an aligned slab lies inside; the rest is given back.
    // SAFETY: a null hint without MAP_FIXED cannot replace an existing mapping.
    let raw =
        unsafe { mmap_anonymous(ptr::null_mut(), 2 * SLAB_SIZE, protection, MapFlags::PRIVATE)? };
    let raw = raw.cast::<u8>();
    let head = raw.align_offset(SLAB_SIZE) % SLAB_SIZE;
    let base = raw.wrapping_add(head);
    if head > 0 {
        // SAFETY: the first `head` bytes of the mapping just made; nobody knows of them yet.
        unsafe { munmap(raw.cast::<c_void>(), head)? };
    }
    // SAFETY: the bytes behind the aligned slab, likewise; never zero of them, as head < SLAB_SIZE.
    unsafe { munmap(base.wrapping_add(SLAB_SIZE).cast::<c_void>(), SLAB_SIZE - head) }?;
    if hugepages == Hugepages::Try {
        // SAFETY: advice on our own fresh mapping; it changes no contents. A kernel without
        // transparent hugepages refuses it, which costs speed only.
        let _ = unsafe { madvise(base.cast(), SLAB_SIZE, Advice::LinuxHugepage) };
    }
    let base = NonNull::new(base).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
    Ok((base, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_aligned_writable_and_numbered_in_order() {
        let arena =
            Arena::new(ArenaConfig { capacity: 5 * SLAB_SIZE, hugepages: Hugepages::Never });
        let _first = arena.pool(3 * SLAB_SIZE).unwrap();
        let _second = arena.pool(1).unwrap();
        let slabs = arena.slabs();
        assert_eq!(slabs.len(), 4);
        for (index, slab) in slabs.iter().enumerate() {
            assert_eq!(usize::from(slab.region.0), index);
            assert_eq!(slab.base().align_offset(SLAB_SIZE), 0);
        }
        assert_eq!(arena.report().mapped, 4 * SLAB_SIZE);
    }

    #[test]
    fn capacity_is_a_bound() {
        let arena =
            Arena::new(ArenaConfig { capacity: 2 * SLAB_SIZE, hugepages: Hugepages::Never });
        let _pool = arena.pool(SLAB_SIZE).unwrap();
        let error = arena.pool(2 * SLAB_SIZE).unwrap_err();
        assert!(matches!(error, MemoryError::Exhausted { left: SLAB_SIZE, .. }), "{error}");
    }
}
