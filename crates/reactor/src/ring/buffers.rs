//! Fixed buffers: the slabs of the reactor's pools in the ring's sparse table, in the order of their registration, each
//! in as many pieces as the ring's operations want. Other reactors' slabs are not registered: every registration pins
//! their pages once more.

use std::io;

use io_uring::Submitter;
use memory::{Pool, SLAB_SIZE, Segment};

use super::op::IoVec;

/// How a ring's table of buffers is laid out. What it has no room for is used as plain memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    /// Bytes of a place; divides a slab.
    pub(super) piece: usize,
    pub(super) places: u32,
}

/// For files: 8 GiB, in whole slabs.
pub(super) const FILES: Table = Table { piece: SLAB_SIZE, places: 4096 };

/// For NVMe commands: 4 GiB, as much as kernels take in pieces of that size. See [`super::nvme::PINNED`].
pub(super) const COMMANDS: Table = Table { piece: super::nvme::PINNED, places: 1 << 14 };

/// A slab that the kernel has pinned.
#[derive(Debug, Clone, Copy)]
struct Pinned {
    /// Its first byte.
    base: usize,
    /// Its first place in the table.
    place: u32,
}

/// Which slabs the kernel has pinned.
#[derive(Debug)]
pub(super) struct Buffers {
    reactor: usize,
    table: Table,
    /// Places that are taken.
    used: u32,
    /// By region: the slab, if it is registered.
    slabs: Vec<Option<Pinned>>,
    /// What was to be registered; keeps it mapped.
    pools: Vec<Pool>,
    refused: bool,
}

impl Buffers {
    pub(super) fn new(reactor: usize, table: Table) -> Buffers {
        let (slabs, pools) = (Vec::new(), Vec::new());
        Buffers { reactor, table, used: 0, slabs, pools, refused: false }
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
            if self.refused || self.count() >= enough {
                break;
            }
            let region = usize::from(slab.region.0);
            if self.slabs.len() <= region {
                self.slabs.resize(region + 1, None);
            }
            if self.slabs.get(region).is_some_and(Option::is_none) {
                let pinned = self.pin(kernel, slab.base());
                if let Some(place) = self.slabs.get_mut(region) {
                    *place = pinned;
                }
            }
        }
        self.count()
    }

    /// Registers one slab, if there is room.
    fn pin(&mut self, kernel: &Submitter<'_>, base: *mut u8) -> Option<Pinned> {
        let pieces = u32::try_from(SLAB_SIZE / self.table.piece).ok()?;
        let end = self.used.checked_add(pieces).filter(|end| *end <= self.table.places)?;
        for (place, offset) in (self.used..end).zip((0..).step_by(self.table.piece)) {
            let buffer = IoVec { base: base.wrapping_add(offset), len: self.table.piece };
            if let Err(error) = update(kernel, place, buffer) {
                self.refused = true;
                tracing::warn!(
                    "reactor {}: io_uring may not pin more than {} MiB of buffers ({error}); \
                     the rest is used unpinned, which costs CPU on every I/O; \
                     raise the limit on locked memory (ulimit -l)",
                    self.reactor,
                    (self.count() * SLAB_SIZE) >> 20,
                );
                return None;
            }
        }
        let pinned = Pinned { base: base.addr(), place: self.used };
        self.used = end;
        Some(pinned)
    }

    pub(super) fn count(&self) -> usize {
        self.slabs.iter().flatten().count()
    }

    /// The place of the piece that holds the whole segment.
    pub(super) fn place(&self, segment: &Segment) -> Option<u16> {
        let Pinned { base, place } = (*self.slabs.get(usize::from(segment.region()?.0))?)?;
        let offset = segment.as_ptr().addr().checked_sub(base)?;
        let piece = offset.checked_div(self.table.piece)?;
        let end = piece.checked_add(1)?.checked_mul(self.table.piece)?;
        let fits = offset.checked_add(segment.len())? <= end.min(SLAB_SIZE);
        let place = place.checked_add(u32::try_from(piece).ok()?)?;
        if fits { u16::try_from(place).ok() } else { None }
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

#[cfg(test)]
mod tests {
    use io_uring::IoUring;
    use memory::{Arena, ArenaConfig, Hugepages};

    use super::*;

    #[test]
    fn a_place_is_for_what_lies_in_one_piece() {
        let uring = IoUring::new(8).expect("io_uring works here");
        uring.submitter().register_buffers_sparse(24).unwrap();
        let arena =
            Arena::new(ArenaConfig { capacity: 4 * SLAB_SIZE, hugepages: Hugepages::Never });
        let pool = arena.pool(4 * SLAB_SIZE).unwrap();
        // Eight pieces a slab: there is room for three of the four.
        let mut buffers = Buffers::new(0, Table { places: 24, ..COMMANDS });
        assert_eq!(buffers.register(&uring.submitter(), &pool, 1), 1);
        assert_eq!(buffers.register(&uring.submitter(), &pool, usize::MAX), 3);
        assert_eq!(buffers.register(&uring.submitter(), &pool, usize::MAX), 3);
        let mut places = Vec::new();
        for _ in 0..4 {
            let slab = pool.take(SLAB_SIZE).unwrap();
            let part = |offset, len| buffers.place(&slab.segment(offset, len).unwrap());
            let piece = COMMANDS.piece;
            places.extend((0..8).filter_map(|number| part(number * piece, piece)));
            assert_eq!(part(0, 512), part(piece - 512, 512));
            assert_eq!(part(piece - 512, 513), None, "into the next");
            assert_eq!(part(0, SLAB_SIZE), None);
            // Each only once: the next slab is another.
            std::mem::forget(slab);
        }
        places.sort_unstable();
        assert_eq!(places, (0..24).collect::<Vec<u16>>());
    }
}
