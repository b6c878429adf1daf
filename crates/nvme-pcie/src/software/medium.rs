//! What a namespace holds, and what of it would survive a loss of power.
//!
//! Memory is taken for what is written only, and none for what is written again. A block that is in the volatile write cache has two
//! contents: the one that is read, and the one that is found when power is lost and the seed is against it.

use std::collections::BTreeMap;

use super::random::Random;

/// Blocks in a chunk: one bit each of a word.
const CHUNK: u64 = 64;

/// Sixty-four blocks.
#[derive(Debug)]
struct Chunk {
    now: Box<[u8]>,
    /// What the dirty ones were before; not there while none ever was.
    durable: Box<[u8]>,
    dirty: u64,
    allocated: u64,
    /// Which of the dirty ones were allocated before.
    durable_allocated: u64,
}

/// The blocks of a namespace.
#[derive(Debug)]
pub(super) struct Medium {
    block: usize,
    /// What blocks read as that were never written.
    fill: u8,
    chunks: BTreeMap<u64, Chunk>,
    /// A block that was never written.
    blank: Box<[u8]>,
}

/// Where a block is in its chunk: its bit, and its bytes.
fn place(lba: u64, block: usize) -> (u64, std::ops::Range<usize>) {
    let index = lba % CHUNK;
    let start = usize::try_from(index).unwrap_or(0) * block;
    (1 << index, start..start + block)
}

impl Medium {
    pub(super) fn new(block: usize, fill: u8) -> Medium {
        let blank = vec![fill; block].into_boxed_slice();
        Medium { block, fill, chunks: BTreeMap::new(), blank }
    }

    /// What a block holds.
    pub(super) fn block(&self, lba: u64) -> &[u8] {
        let chunk = self.chunks.get(&(lba / CHUNK));
        let (_, bytes) = place(lba, self.block);
        chunk.and_then(|chunk| chunk.now.get(bytes)).unwrap_or(&self.blank)
    }

    /// Whether it was written and not deallocated since.
    pub(super) fn is_allocated(&self, lba: u64) -> bool {
        let (bit, _) = place(lba, self.block);
        self.chunks.get(&(lba / CHUNK)).is_some_and(|chunk| chunk.allocated & bit != 0)
    }

    /// The first allocated block from `at` on, before `end`.
    pub(super) fn next_allocated(&self, at: u64, end: u64) -> Option<u64> {
        self.chunks
            .range(at / CHUNK..)
            .find_map(|(&index, chunk)| {
                let first = index * CHUNK;
                let behind =
                    chunk.allocated & (u64::MAX << at.saturating_sub(first).min(CHUNK - 1));
                let place = u64::from(behind.trailing_zeros());
                // The chunk of the beginning alone may have only blocks before it.
                let lba = (behind != 0).then_some(first + place)?;
                (lba >= at).then_some(lba)
            })
            .filter(|&lba| lba < end)
    }

    /// Blocks that are allocated.
    pub(super) fn allocated(&self) -> u64 {
        self.chunks.values().map(|chunk| u64::from(chunk.allocated.count_ones())).sum()
    }

    /// Changes a block. Volatile: power may be lost before it is there.
    pub(super) fn change(
        &mut self,
        lba: u64,
        volatile: bool,
        allocated: bool,
        random: &mut Random,
        change: impl FnOnce(&mut [u8]),
    ) {
        let (bit, bytes) = place(lba, self.block);
        let (len, fill) = (self.block * usize::try_from(CHUNK).unwrap_or(0), self.fill);
        let chunk = self.chunks.entry(lba / CHUNK).or_insert_with(|| Chunk {
            now: vec![fill; len].into_boxed_slice(),
            durable: Box::default(),
            dirty: 0,
            allocated: 0,
            durable_allocated: 0,
        });
        let Some(now) = chunk.now.get_mut(bytes.clone()) else { return };
        if !volatile {
            chunk.dirty &= !bit;
        } else if chunk.dirty & bit == 0 || random.coin() {
            // What is overwritten may have reached the medium by itself.
            if chunk.durable.is_empty() {
                chunk.durable = vec![0; len].into_boxed_slice();
            }
            if let Some(durable) = chunk.durable.get_mut(bytes) {
                durable.copy_from_slice(now);
            }
            chunk.dirty |= bit;
            chunk.durable_allocated =
                chunk.durable_allocated & !bit | if chunk.allocated & bit != 0 { bit } else { 0 };
        }
        chunk.allocated = chunk.allocated & !bit | if allocated { bit } else { 0 };
        change(now);
    }

    /// Everything is durable.
    pub(super) fn flush(&mut self) {
        self.chunks.values_mut().for_each(|chunk| chunk.dirty = 0);
    }

    /// Blocks that power could take.
    pub(super) fn dirty(&self) -> u64 {
        self.chunks.values().map(|chunk| u64::from(chunk.dirty.count_ones())).sum()
    }

    /// Power is lost: each block that was not durable keeps what it is, or is what it was.
    pub(super) fn power_cut(&mut self, random: &mut Random) {
        for chunk in self.chunks.values_mut() {
            let lost = chunk.dirty & random.number();
            chunk.dirty = 0;
            chunk.allocated = chunk.allocated & !lost | chunk.durable_allocated & lost;
            for index in (0..CHUNK).filter(|index| lost & (1 << index) != 0) {
                let (_, bytes) = place(index, self.block);
                if let (Some(now), Some(durable)) =
                    (chunk.now.get_mut(bytes.clone()), chunk.durable.get(bytes))
                {
                    now.copy_from_slice(durable);
                }
            }
        }
    }

    /// Forgets the blocks from `blocks` on.
    pub(super) fn truncate(&mut self, blocks: u64, random: &mut Random) {
        drop(self.chunks.split_off(&blocks.div_ceil(CHUNK)));
        let fill = self.fill;
        for lba in blocks..blocks.next_multiple_of(CHUNK) {
            if self.chunks.contains_key(&(lba / CHUNK)) {
                self.change(lba, false, false, random, |block| block.fill(fill));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_durable_may_be_lost_and_nothing_else() {
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..64 {
            let random = &mut Random(seed);
            let mut medium = Medium::new(512, 0);
            medium.change(3, true, true, random, |block| block.fill(1));
            medium.flush();
            medium.change(3, true, true, random, |block| block.fill(2));
            medium.change(70, false, true, random, |block| block.fill(3));
            medium.change(71, true, false, random, |block| block.fill(4));
            assert_eq!((medium.dirty(), medium.allocated()), (2, 2));
            medium.power_cut(random);
            assert_eq!(medium.block(70), [3; 512]);
            match medium.block(3).first() {
                Some(1) => lost += 1,
                Some(2) => kept += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(lost > 0 && kept > 0);
    }

    #[test]
    fn what_a_namespace_loses_is_blank_when_it_grows_again() {
        let random = &mut Random(1);
        let mut medium = Medium::new(512, 0xff);
        for lba in [1, 65, 129] {
            medium.change(lba, true, true, random, |block| block.fill(7));
        }
        medium.truncate(65, random);
        assert_eq!(medium.block(1), [7; 512]);
        assert_eq!(medium.block(65), [0xff; 512]);
        assert_eq!(medium.block(129), [0xff; 512]);
        assert!(!medium.is_allocated(65) && medium.is_allocated(1));
    }
}
