//! Fixed buffers: the slabs of the reactor's pools in the ring's sparse table, a slab's index being its
//! region. Other reactors' slabs are not registered: every registration pins their pages once more.

use std::io;

use io_uring::Submitter;
use memory::{Pool, SLAB_SIZE, Segment};

use super::op::IoVec;

/// Places in the table: 8 GiB of slabs. What lies beyond is used as plain memory.
pub(super) const TABLE: u32 = 4096;

/// Which slabs the kernel has pinned.
#[derive(Debug)]
pub(super) struct Buffers {
    reactor: usize,
    places: usize,
    /// By region: the slab's first byte, if it is registered.
    bases: Vec<Option<usize>>,
    /// What was to be registered; keeps it mapped.
    pools: Vec<Pool>,
    refused: bool,
}

impl Buffers {
    pub(super) fn new(reactor: usize, places: u32) -> Buffers {
        Buffers {
            reactor,
            places: usize::try_from(places).unwrap_or(0),
            bases: Vec::new(),
            pools: Vec::new(),
            refused: false,
        }
    }

    /// The pools that were to be registered.
    pub(super) fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// Registers `at_most` of the slabs that are new; the number registered in all.
    pub(super) fn register(
        &mut self,
        kernel: &Submitter<'_>,
        pool: &Pool,
        at_most: usize,
    ) -> usize {
        let enough = self.count().saturating_add(at_most);
        let first = |pool: &Pool| pool.slabs().first().map(|slab| slab.region);
        if !self.pools.iter().any(|known| first(known) == first(pool)) {
            self.pools.push(pool.clone());
        }
        for slab in pool.slabs() {
            let region = usize::from(slab.region.0);
            if region >= self.places || self.refused || self.count() >= enough {
                break;
            }
            if self.bases.len() <= region {
                self.bases.resize(region + 1, None);
            }
            let Some(base) = self.bases.get_mut(region).filter(|base| base.is_none()) else {
                continue;
            };
            let buffer = IoVec { base: slab.base(), len: SLAB_SIZE };
            match update(kernel, u32::from(slab.region.0), buffer) {
                Ok(()) => *base = Some(slab.base().addr()),
                Err(error) => {
                    self.refused = true;
                    tracing::warn!(
                        "reactor {}: io_uring may not pin more than {} MiB of buffers ({error}); \
                         the rest is used unpinned, which costs CPU on every I/O; \
                         raise the limit on locked memory (ulimit -l)",
                        self.reactor,
                        (self.bases.iter().flatten().count() * SLAB_SIZE) >> 20,
                    );
                }
            }
        }
        self.count()
    }

    pub(super) fn count(&self) -> usize {
        self.bases.iter().flatten().count()
    }

    /// The place of the slab that holds the whole segment.
    pub(super) fn place(&self, segment: &Segment) -> Option<u16> {
        let region = segment.region()?.0;
        let base = (*self.bases.get(usize::from(region))?)?;
        let offset = segment.as_ptr().addr().checked_sub(base)?;
        (offset.checked_add(segment.len())? <= SLAB_SIZE).then_some(region)
    }
}

/// Puts one buffer into the ring's table.
pub(super) fn update(kernel: &Submitter<'_>, place: u32, buffer: IoVec) -> io::Result<()> {
    let list = std::slice::from_ref(&buffer);
    // SAFETY: `IoVec` has the layout of `struct iovec`, and the list lives through the call. The
    // kernel pins the pages; what it writes into them later is decided by operations, and each of
    // those owns its segment. The caller keeps the memory mapped (`Buffers::pools`, or a buffer
    // that outlives the ring), so a place never names memory that was given to somebody else.
    unsafe {
        let list = std::slice::from_raw_parts(list.as_ptr().cast(), list.len());
        kernel.register_buffers_update(place, list, None)
    }
}
