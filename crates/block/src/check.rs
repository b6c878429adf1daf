//! The check that every queue makes before it touches anything: the last line of defence, after
//! the target's own checks of what came from the wire.

use crate::{ErrorKind, Geometry, Kind, Operation, Properties};

impl Operation {
    /// Whether a device of this size and these properties can carry out the operation as it stands.
    ///
    /// # Errors
    /// What to answer if it cannot; [`ErrorKind::Internal`] if the memory does not fit the range.
    pub fn admit(&self, geometry: Geometry, properties: &Properties) -> Result<(), ErrorKind> {
        if self.kind == Kind::Flush {
            return Ok(());
        }
        if !geometry.contains(self.lba, self.blocks) {
            return Err(ErrorKind::OutOfRange);
        }
        match self.kind {
            Kind::Write | Kind::WriteZeroes { .. } | Kind::Deallocate if properties.read_only => {
                return Err(ErrorKind::ReadOnly);
            }
            Kind::Deallocate if properties.deallocation.is_none() => {
                return Err(ErrorKind::Unsupported);
            }
            _ => {}
        }
        let moves_data = matches!(self.kind, Kind::Read | Kind::Write | Kind::Compare);
        let expected = if moves_data {
            self.blocks.checked_mul(u64::from(geometry.block_size))
        } else {
            Some(0)
        };
        // A submitter that brings too little or too much memory is mistaken about the range.
        let brought = u64::try_from(self.data.len()).ok();
        if expected.is_none() || expected != brought { Err(ErrorKind::Internal) } else { Ok(()) }
    }

    /// Where its range begins and how long it is, in bytes. In admitted operations this cannot
    /// overflow; elsewhere it saturates.
    pub fn byte_range(&self, geometry: Geometry) -> (u64, u64) {
        let size = u64::from(geometry.block_size);
        (self.lba.saturating_mul(size), self.blocks.saturating_mul(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Data, Deallocation, Token};

    const GEOMETRY: Geometry = Geometry { block_size: 512, blocks: 10, generation: 0 };

    fn operation(kind: Kind, lba: u64, blocks: u64) -> Operation {
        Operation { token: Token(0), kind, lba, blocks, data: Data::none(), fua: false }
    }

    fn properties() -> Properties {
        Properties {
            read_only: false,
            volatile_write_cache: false,
            deallocation: Some(Deallocation { reads_zero: true, granularity: 1 }),
            memory_alignment: 1,
            optimal_blocks: 1,
            description: String::new(),
        }
    }

    #[test]
    fn ranges_are_checked_without_overflow() {
        let check =
            |lba, blocks| operation(Kind::Verify, lba, blocks).admit(GEOMETRY, &properties());
        assert_eq!(check(0, 10), Ok(()));
        assert_eq!(check(10, 0), Ok(()));
        assert_eq!(check(0, 11), Err(ErrorKind::OutOfRange));
        assert_eq!(check(u64::MAX, 2), Err(ErrorKind::OutOfRange));
        let flush = operation(Kind::Flush, u64::MAX, u64::MAX);
        assert_eq!(flush.admit(GEOMETRY, &properties()), Ok(()));
    }

    #[test]
    fn what_the_device_cannot_do_is_refused() {
        let read_only = Properties { read_only: true, ..properties() };
        for kind in [Kind::Write, Kind::WriteZeroes { deallocate: true }, Kind::Deallocate] {
            let refused = operation(kind, 0, 1).admit(GEOMETRY, &read_only);
            assert_eq!(refused, Err(ErrorKind::ReadOnly), "{kind:?}");
        }
        let solid = Properties { deallocation: None, ..properties() };
        let refused = operation(Kind::Deallocate, 0, 1).admit(GEOMETRY, &solid);
        assert_eq!(refused, Err(ErrorKind::Unsupported));
        let zeroes = operation(Kind::WriteZeroes { deallocate: true }, 0, 1);
        assert_eq!(zeroes.admit(GEOMETRY, &solid), Ok(()));
    }

    #[test]
    fn memory_must_fit_the_range() {
        for kind in [Kind::Read, Kind::Write, Kind::Compare] {
            let without = operation(kind, 0, 1).admit(GEOMETRY, &properties());
            assert_eq!(without, Err(ErrorKind::Internal), "{kind:?}");
        }
    }
}
