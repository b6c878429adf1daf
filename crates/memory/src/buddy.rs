//! The arithmetic of a pool: which granule is free, at which order. No memory is touched here.
//!
//! A binary buddy allocator over slabs of 512 granules of 4 KiB. Freed blocks are not merged at
//! once: each order keeps up to [`KEPT`] of them as they are, so that the steady state takes and
//! returns a block in a few instructions. Merging happens when a list is longer than that, and for
//! all lists when a request finds nothing; both are bounded.

use crate::SLAB_SIZE;

/// log2 of the smallest block in bytes.
pub(crate) const GRANULE_SHIFT: u32 = 12;
/// Granules in a slab.
pub(crate) const GRANULES_PER_SLAB: u32 = 512;
/// Number of orders: 4 KiB to 2 MiB.
const ORDERS: usize = 10;
/// Blocks that an order's list keeps unmerged.
const KEPT: u32 = 64;

const NIL: u32 = u32::MAX;
const _: () = assert!((GRANULES_PER_SLAB as usize) << GRANULE_SHIFT == SLAB_SIZE);
const _: () = assert!(1 << (ORDERS - 1) == GRANULES_PER_SLAB);

/// Per granule; meaningful at a block's first granule only.
#[derive(Debug, Clone, Copy)]
struct Granule {
    next: u32,
    previous: u32,
    order: u8,
    free: bool,
}

#[derive(Debug, Clone, Copy)]
struct List {
    head: u32,
    length: u32,
}

/// The free lists of a pool.
#[derive(Debug)]
pub(crate) struct Buddy {
    granules: Box<[Granule]>,
    lists: [List; ORDERS],
    free: u32,
}

/// The order of the smallest block that holds `len` bytes, or `None` if no block does.
pub(crate) fn order_for(len: usize) -> Option<u8> {
    let granules = len.max(1).div_ceil(1 << GRANULE_SHIFT).next_power_of_two();
    let order = u8::try_from(granules.trailing_zeros()).ok()?;
    (usize::from(order) < ORDERS).then_some(order)
}

#[allow(clippy::indexing_slicing)] // Indices come from the lists and from `order_for`, never from input.
impl Buddy {
    pub(crate) fn new(slabs: u32) -> Buddy {
        let blank = Granule { next: NIL, previous: NIL, order: 0, free: false };
        let total = slabs * GRANULES_PER_SLAB;
        let mut buddy = Buddy {
            granules: vec![blank; total as usize].into_boxed_slice(),
            lists: [List { head: NIL, length: 0 }; ORDERS],
            free: total,
        };
        for slab in (0..slabs).rev() {
            buddy.push(slab * GRANULES_PER_SLAB, ORDERS - 1);
        }
        buddy
    }

    /// Free granules, whatever their order.
    pub(crate) fn free(&self) -> u32 {
        self.free
    }

    pub(crate) fn total(&self) -> usize {
        self.granules.len()
    }

    /// Takes a block of `order`; its first granule.
    pub(crate) fn take(&mut self, order: u8) -> Option<u32> {
        let wanted = usize::from(order);
        let found = if let Some(found) = self.find(wanted) {
            found
        } else {
            if self.free < 1 << wanted {
                return None;
            }
            self.merge_all();
            self.find(wanted)?
        };
        let block = self.lists[found].head;
        self.unlink(block, found);
        for order in (wanted..found).rev() {
            self.push(block + (1 << order), order);
        }
        let granule = &mut self.granules[block as usize];
        granule.order = order;
        self.free -= 1 << wanted;
        Some(block)
    }

    /// Returns the block that starts at granule `block`.
    pub(crate) fn give_back(&mut self, block: u32) {
        let order = usize::from(self.granules[block as usize].order);
        debug_assert!(!self.granules[block as usize].free, "block returned twice");
        self.free += 1 << order;
        if self.lists[order].length < KEPT {
            self.push(block, order);
        } else {
            self.merge(block, order);
        }
    }

    fn find(&self, wanted: usize) -> Option<usize> {
        (wanted..ORDERS).find(|&order| self.lists[order].head != NIL)
    }

    fn push(&mut self, block: u32, order: usize) {
        let head = self.lists[order].head;
        let narrow = u8::try_from(order).unwrap_or(u8::MAX);
        self.granules[block as usize] =
            Granule { next: head, previous: NIL, order: narrow, free: true };
        if head != NIL {
            self.granules[head as usize].previous = block;
        }
        self.lists[order].head = block;
        self.lists[order].length += 1;
    }

    fn unlink(&mut self, block: u32, order: usize) {
        let Granule { next, previous, .. } = self.granules[block as usize];
        if previous == NIL {
            self.lists[order].head = next;
        } else {
            self.granules[previous as usize].next = next;
        }
        if next != NIL {
            self.granules[next as usize].previous = previous;
        }
        self.granules[block as usize].free = false;
        self.lists[order].length -= 1;
    }

    /// Joins a block that is on no list with its free buddies, as far up as they go.
    fn merge(&mut self, mut block: u32, mut order: usize) {
        while order < ORDERS - 1 {
            let buddy = block ^ (1 << order);
            let other = self.granules[buddy as usize];
            if !other.free || usize::from(other.order) != order {
                break;
            }
            self.unlink(buddy, order);
            block &= !(1 << order);
            order += 1;
        }
        self.push(block, order);
    }

    /// Merges everything that can be merged, smallest first: at most every free block once.
    fn merge_all(&mut self) {
        for order in 0..ORDERS - 1 {
            let mut block = self.lists[order].head;
            while block != NIL {
                let buddy = block ^ (1 << order);
                let other = self.granules[buddy as usize];
                let mut next = self.granules[block as usize].next;
                if other.free && usize::from(other.order) == order {
                    if next == buddy {
                        next = other.next;
                    }
                    self.unlink(block, order);
                    self.unlink(buddy, order);
                    self.push(block & !(1 << order), order + 1);
                }
                block = next;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The slow oracle: one owner per granule.
    #[derive(Debug, Default)]
    struct Oracle {
        owner: Vec<Option<u32>>,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(u8),
        GiveBack(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0u8..10).prop_map(Step::Take),
            2 => Just(Step::Take(0)),
            4 => any::<usize>().prop_map(Step::GiveBack),
        ];
        prop::collection::vec(step, 1..600)
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_nothing_is_lost(steps in steps(), slabs in 1u32..4) {
            let mut buddy = Buddy::new(slabs);
            let mut oracle = Oracle { owner: vec![None; buddy.total()] };
            let mut held: Vec<(u32, u8)> = Vec::new();
            for step in steps {
                match step {
                    Step::Take(order) => {
                        let size = 1usize << order;
                        match buddy.take(order) {
                            Some(block) => {
                                let start = block as usize;
                                prop_assert_eq!(start % size, 0, "aligned to its size");
                                for owner in &mut oracle.owner[start..start + size] {
                                    prop_assert_eq!(*owner, None, "granule given out twice");
                                    *owner = Some(block);
                                }
                                held.push((block, order));
                            }
                            // A refusal is right only if no aligned run of that size is free.
                            None => prop_assert!(
                                oracle.owner.chunks(size).all(|run| run.iter().any(Option::is_some))
                            ),
                        }
                    }
                    Step::GiveBack(choice) if !held.is_empty() => {
                        let (block, order) = held.swap_remove(choice % held.len());
                        let start = block as usize;
                        oracle.owner[start..start + (1 << order)].fill(None);
                        buddy.give_back(block);
                    }
                    Step::GiveBack(_) => {}
                }
                let free = oracle.owner.iter().filter(|owner| owner.is_none()).count();
                prop_assert_eq!(buddy.free() as usize, free);
            }
            for (block, _) in held.drain(..) {
                buddy.give_back(block);
            }
            for _ in 0..slabs {
                prop_assert!(buddy.take(9).is_some(), "everything merges back to whole slabs");
            }
        }
    }

    #[test]
    fn order_is_the_smallest_that_fits() {
        assert_eq!(order_for(0), Some(0));
        assert_eq!(order_for(4096), Some(0));
        assert_eq!(order_for(4097), Some(1));
        assert_eq!(order_for(SLAB_SIZE), Some(9));
        assert_eq!(order_for(SLAB_SIZE + 1), None);
    }
}
