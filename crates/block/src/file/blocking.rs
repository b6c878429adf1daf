//! A file or block device by calls that block.

use std::io::IoSlice;

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::{Errno, ReadWriteFlags, pread, pwritev2};

use super::medium::{Medium, PUNCH};
use crate::Geometry;
use crate::fault::Fault;
use crate::workers::{Blocking, retry, write_zeroes};

/// The most that is zeroed or punched by one call.
const RANGE_PIECE: u64 = 64 << 20;

impl Blocking for Medium {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        Medium::geometry(self)
    }

    fn read(&self, mut offset: u64, mut into: &mut [u8]) -> Result<(), Fault> {
        while !into.is_empty() {
            let count = whole_blocks(self, retry(|| pread(&self.file, &mut *into, offset))?);
            if count == 0 {
                return Err(Fault::End);
            }
            into = into.get_mut(count..).unwrap_or_default();
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }

    fn write(&self, mut offset: u64, mut from: &[u8], durable: bool) -> Result<(), Fault> {
        let flags = if durable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
        while !from.is_empty() {
            if durable {
                self.durability.count_durable_write();
            }
            let call = || pwritev2(&self.file, &[IoSlice::new(from)], offset, flags);
            let count = whole_blocks(self, retry(call)?);
            if count == 0 {
                return Err(Fault::End);
            }
            from = from.get(count..).unwrap_or_default();
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, deallocate: bool) -> Result<(), Fault> {
        while let Some(mode) = self.zeroing.mode(deallocate) {
            match range(self, mode, offset, len) {
                Err(Fault::System(Errno::OPNOTSUPP)) => self.zeroing.rule_out(mode),
                result => return result,
            }
        }
        write_zeroes(self, offset, len)
    }

    fn deallocate(&self, offset: u64, len: u64) -> Result<(), Fault> {
        range(self, PUNCH, offset, len)
    }

    fn sync(&self) -> Result<(), Fault> {
        self.durability.count_sync();
        retry(|| fdatasync(&self.file))
    }
}

/// Direct I/O cannot go on in the middle of a block.
fn whole_blocks(medium: &Medium, count: usize) -> usize {
    let block = usize::try_from(medium.geometry().block_size).unwrap_or(1);
    count - count % block
}

fn range(
    medium: &Medium,
    mode: FallocateFlags,
    mut offset: u64,
    mut len: u64,
) -> Result<(), Fault> {
    while len > 0 {
        let count = len.min(RANGE_PIECE);
        retry(|| fallocate(&medium.file, mode, offset, count))?;
        offset = offset.saturating_add(count);
        len -= count;
    }
    Ok(())
}
