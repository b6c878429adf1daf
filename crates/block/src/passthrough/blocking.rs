//! A namespace by commands that block.

use std::thread;

use nvme::io::{BlockRange, Command};
use reactor::ring::nvme::Data;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::medium::{Medium, is_doubtful, is_passing, list};
use super::{RETRIES, patience};
use crate::fault::Fault;
use crate::workers::{Blocking, write_zeroes};
use crate::{Geometry, Kind};

impl Medium {
    /// Carries out a command, to its end.
    fn execute(&self, command: &Command, mut data: Data<'_>) -> Result<(), Fault> {
        let mut tries = 0;
        loop {
            let fault = match self.namespace.execute(command, &mut data) {
                Ok(status) if status.is_success() => return Ok(()),
                Ok(status) => Fault::Status(status),
                Err(errno) => Fault::System(errno),
            };
            if is_doubtful(fault) && self.is_gone() {
                self.remove();
                return Err(Fault::System(Errno::NODEV));
            }
            if !is_passing(fault) || tries == RETRIES {
                return Err(fault);
            }
            thread::sleep(patience(tries));
            tries += 1;
        }
    }

    /// Has `act` do each part of a range in bytes; it is told where the part begins in the range.
    fn each_part(
        &self,
        kind: Kind,
        (offset, len): (u64, u64),
        mut act: impl FnMut(BlockRange, usize) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let size = u64::from(self.namespace.block_size()).max(1);
        let (start, count) = (offset / size, len / size);
        let mut done = 0;
        while done < count {
            let slba = start.saturating_add(done);
            let blocks = self.limits.first(kind, slba, count - done);
            let at = usize::try_from(done.saturating_mul(size)).map_err(|_| Fault::Internal)?;
            act(BlockRange { slba, blocks }, at)?;
            done += u64::from(blocks);
        }
        Ok(())
    }

    /// Has a command without data do each part of a range.
    fn plain(&self, kind: Kind, range: (u64, u64)) -> Result<(), Fault> {
        self.each_part(kind, range, |range, _| {
            self.execute(&self.command(kind, range, false), Data::None)
        })
    }

    /// Has a command that takes data do each part of a range.
    fn outwards(&self, kind: Kind, offset: u64, data: &[u8], fua: bool) -> Result<(), Fault> {
        self.each_part(kind, (offset, data.len() as u64), |range, at| {
            let part = data.get(at..at + self.bytes(range)).ok_or(Fault::Internal)?;
            self.execute(&self.command(kind, range, fua), Data::Out(part))
        })
    }

    fn bytes(&self, range: BlockRange) -> usize {
        usize::try_from(range.bytes(self.namespace.block_size())).unwrap_or(usize::MAX)
    }
}

impl Blocking for Medium {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        Medium::geometry(self)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.each_part(Kind::Read, (offset, into.len() as u64), |range, at| {
            let part = into.get_mut(at..at + self.bytes(range)).ok_or(Fault::Internal)?;
            self.execute(&self.command(Kind::Read, range, false), Data::In(part))
        })
    }

    fn write(&self, offset: u64, from: &[u8], durable: bool) -> Result<(), Fault> {
        self.outwards(Kind::Write, offset, from, durable)
    }

    fn zero(&self, offset: u64, len: u64, deallocate: bool) -> Result<(), Fault> {
        let kind = Kind::WriteZeroes { deallocate };
        if self.identified.has(kind) {
            self.plain(kind, (offset, len))
        } else {
            write_zeroes(self, offset, len)
        }
    }

    fn deallocate(&self, offset: u64, len: u64) -> Result<(), Fault> {
        self.each_part(Kind::Deallocate, (offset, len), |range, _| {
            let command = self.command(Kind::Deallocate, range, false);
            self.execute(&command, Data::Out(list(range).as_bytes()))
        })
    }

    fn sync(&self) -> Result<(), Fault> {
        self.execute(&Command::Flush, Data::None)
    }

    fn compare(&self, offset: u64, data: &[u8]) -> Result<(), Fault> {
        if self.identified.has(Kind::Compare) {
            self.outwards(Kind::Compare, offset, data, false)
        } else {
            self.compare_by_reading(offset, data)
        }
    }

    fn verify(&self, offset: u64, len: u64) -> Result<(), Fault> {
        if self.identified.has(Kind::Verify) {
            self.plain(Kind::Verify, (offset, len))
        } else {
            self.verify_by_reading(offset, len)
        }
    }
}
