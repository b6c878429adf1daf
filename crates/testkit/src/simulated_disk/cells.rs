//! The blocks of a simulated disk: what reads see, what is durable, and the writes in between.

use std::collections::BTreeMap;

use crate::Random;

use super::DiskCounts;

#[derive(Debug)]
pub(super) struct Cells {
    block_size: usize,
    volatile: bool,
    /// What reads see: every completed write.
    current: Vec<u8>,
    /// What stays whatever happens.
    durable: Vec<u8>,
    /// Completed writes in the volatile cache, by the order of their completion.
    unflushed: BTreeMap<u64, Write>,
    in_flight: BTreeMap<u64, Write>,
    /// Writes completed.
    completed: u64,
    next: u64,
}

/// A write, block by block. A block that is not there any more was not written, or has been
/// superseded by something durable.
#[derive(Debug, Clone)]
struct Write {
    first: usize,
    blocks: Vec<Option<Vec<u8>>>,
}

impl Cells {
    pub(super) fn new(block_size: usize, blocks: usize, volatile: bool) -> Cells {
        let bytes = blocks.saturating_mul(block_size);
        Cells {
            block_size,
            volatile,
            current: vec![0; bytes],
            durable: vec![0; bytes],
            unflushed: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            completed: 0,
            next: 0,
        }
    }

    pub(super) fn current(&self) -> &[u8] {
        &self.current
    }

    pub(super) fn durable(&self) -> &[u8] {
        &self.durable
    }

    /// The number of writes completed: what a flush submitted now has to cover.
    pub(super) fn completed(&self) -> u64 {
        self.completed
    }

    /// A write to the byte `start` is in flight from now on; its number.
    pub(super) fn begin(&mut self, start: usize, bytes: &[u8]) -> u64 {
        let blocks = bytes.chunks(self.block_size).map(|block| Some(block.to_vec())).collect();
        let number = self.next;
        self.next += 1;
        self.in_flight.insert(number, Write { first: start / self.block_size, blocks });
        number
    }

    pub(super) fn bytes_in_flight(&self, number: u64) -> Vec<u8> {
        let write = self.in_flight.get(&number);
        write
            .map(|write| write.blocks.iter().flatten().flatten().copied().collect())
            .unwrap_or_default()
    }

    /// A write in flight will not happen.
    pub(super) fn forget(&mut self, number: u64) {
        self.in_flight.remove(&number);
    }

    /// A write in flight has happened.
    pub(super) fn complete(&mut self, number: u64, durably: bool) {
        if let Some(write) = self.in_flight.remove(&number) {
            self.land(write, durably);
        }
    }

    /// A write in flight has failed: any of its blocks may have been written.
    pub(super) fn fail(&mut self, number: u64, random: &mut Random) {
        if let Some(mut write) = self.in_flight.remove(&number) {
            write.thin_out(random);
            self.land(write, false);
        }
    }

    fn land(&mut self, write: Write, durably: bool) {
        write.put(&mut self.current, self.block_size);
        self.completed += 1;
        if durably || !self.volatile {
            self.make_durable(&write);
        } else {
            self.unflushed.insert(self.completed, write);
        }
    }

    /// Makes a write durable; what older writes in the cache had for its blocks can no longer appear.
    fn make_durable(&mut self, write: &Write) {
        write.put(&mut self.durable, self.block_size);
        for older in self.unflushed.values_mut() {
            older.supersede(write);
        }
    }

    /// The first `covered` completed writes become durable.
    pub(super) fn flush(&mut self, covered: u64) {
        while let Some(entry) = self.unflushed.first_entry()
            && *entry.key() <= covered
        {
            // In order of completion, and the oldest first: nothing older is left in the cache.
            entry.remove().put(&mut self.durable, self.block_size);
        }
    }

    /// The power goes: of each write that is not durable nothing, all or part stays, in any order.
    pub(super) fn cut(&mut self, random: &mut Random, counts: &mut DiskCounts) {
        let unflushed = std::mem::take(&mut self.unflushed);
        let in_flight = std::mem::take(&mut self.in_flight);
        let mut writes: Vec<_> = unflushed.into_values().chain(in_flight.into_values()).collect();
        random.shuffle(&mut writes);
        for mut write in writes {
            match random.below(3) {
                0 => counts.lost += 1,
                1 => {
                    counts.kept += 1;
                    write.put(&mut self.durable, self.block_size);
                }
                _ => {
                    write.thin_out(random);
                    counts.torn += 1;
                    write.put(&mut self.durable, self.block_size);
                }
            }
        }
        self.current.clone_from(&self.durable);
    }
}

impl Write {
    fn put(&self, medium: &mut [u8], block_size: usize) {
        for (number, block) in (self.first..).zip(&self.blocks) {
            let start = number * block_size;
            if let (Some(block), Some(place)) = (block, medium.get_mut(start..start + block_size)) {
                place.copy_from_slice(block);
            }
        }
    }

    /// Leaves any of the blocks.
    fn thin_out(&mut self, random: &mut Random) {
        for block in &mut self.blocks {
            if random.permille(500) {
                *block = None;
            }
        }
    }

    fn supersede(&mut self, newer: &Write) {
        for (number, block) in (newer.first..).zip(&newer.blocks) {
            if block.is_some()
                && let Some(place) = number.checked_sub(self.first)
                && let Some(mine) = self.blocks.get_mut(place)
            {
                *mine = None;
            }
        }
    }
}
