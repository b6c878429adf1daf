//! What is on a disk, what is only in its volatile write cache, and what a loss of power leaves of that.
//!
//! ```text
//!   begun --> written to the cache, block by block --> completed --> durable
//!                         |                                 flush, FUA  ^
//!                         +---- cache full ---- loss of power, perhaps -+
//! ```
//!
//! The cache keeps, for each block by itself, every version since the durable one. A loss of power leaves any of
//! them, so unflushed writes are dropped, reordered and torn between their blocks, never within one.

use super::pattern::Version;
use crate::Random;

/// Versions of one block since the last durable one, beyond which the disk writes back by itself.
const CACHE_MOST: usize = 12;

#[derive(Debug, Clone, Copy)]
struct Cached {
    version: Version,
    /// Which operation wrote it.
    operation: u64,
    /// How many operations had been completed when that one was; None: it has not been.
    completed: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct Block {
    durable: Version,
    cache: Vec<Cached>,
}

impl Block {
    fn now(&self) -> Version {
        self.cache.last().map_or(self.durable, |cached| cached.version)
    }

    /// Everything up to this place in the cache is on the medium.
    fn persist(&mut self, at: usize) {
        self.durable = self.cache[at].version;
        self.cache.drain(..=at);
    }
}

#[derive(Debug)]
pub(super) struct Medium {
    blocks: Vec<Block>,
    volatile: bool,
    /// Operations completed, ever.
    completed: u64,
}

impl Medium {
    /// So many blocks of zeroes.
    pub(super) fn new(blocks: u64, volatile: bool) -> Self {
        let blocks = vec![Block::default(); usize::try_from(blocks).unwrap()];
        Self { blocks, volatile, completed: 0 }
    }

    pub(super) fn size(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// What a flush submitted now has to cover.
    pub(super) fn completed(&self) -> u64 {
        self.completed
    }

    /// What a block reads as.
    pub(super) fn version(&self, lba: u64) -> Version {
        self.blocks[usize::try_from(lba).unwrap()].now()
    }

    pub(super) fn write(
        &mut self,
        lba: u64,
        version: Version,
        operation: u64,
        random: &mut Random,
    ) {
        let block = &mut self.blocks[usize::try_from(lba).unwrap()];
        block.cache.push(Cached { version, operation, completed: None });
        if block.cache.len() > CACHE_MOST {
            let at = random.index(block.cache.len());
            block.persist(at);
        }
    }

    /// The operation completes: what it wrote is durable, or else covered by later flushes.
    pub(super) fn complete(&mut self, operation: u64, lba: u64, blocks: u64, durably: bool) {
        for at in lba..lba.saturating_add(blocks) {
            let at = usize::try_from(at).ok();
            let Some(block) = at.and_then(|at| self.blocks.get_mut(at)) else { break };
            match block.cache.iter().rposition(|cached| cached.operation == operation) {
                Some(at) if durably => block.persist(at),
                Some(at) => block.cache[at].completed = Some(self.completed),
                None => {}
            }
        }
        self.completed += 1;
    }

    /// A flush completes: what the first `covers` operations wrote is durable.
    pub(super) fn flush(&mut self, covers: u64, random: &mut Random) {
        for block in &mut self.blocks {
            let covered = block
                .cache
                .iter()
                .rposition(|cached| cached.completed.is_some_and(|when| when < covers));
            if let Some(at) = covered {
                // More than was asked for may be written as well.
                let at = random.index(block.cache.len() - at) + at;
                block.persist(at);
            }
        }
        self.completed += 1;
    }

    /// The power is gone, and with it what was only in the cache, as chance has it.
    pub(super) fn cut(&mut self, random: &mut Random) {
        for block in &mut self.blocks {
            let kept = match block.cache.len() {
                0 => continue,
                len if self.volatile => random.index(len + 1),
                len => len,
            };
            if kept > 0 {
                block.durable = block.cache[kept - 1].version;
            }
            block.cache.clear();
        }
    }
}
