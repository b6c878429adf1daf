//! The MSI-X table of a function: where it is, and the bit of each vector that holds it back.
//!
//! PCI Express Base Specification 4.0, section 7.7.2. The kernel has filled the table in and leaves it alone from then on; its own way to mask a vector is a system call that
//! takes the interrupt away altogether. So the bit is written here, as the kernel would, through the BAR that it lets us have. Where it does not, vectors are never
//! held back.

use crate::Registers;

/// Capability ID.
const CAPABILITY: u8 = 0x11;
/// Bytes of an entry, and where in it the control word is.
const ENTRY: usize = 16;
const CONTROL: usize = 12;
const MASKED: u32 = 1;

/// Where a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The BAR that it is in.
    pub(super) bar: u32,
    pub(super) offset: usize,
    /// Vectors.
    pub(super) count: u16,
}

impl Place {
    /// Finds the capability in a function's configuration space.
    pub(super) fn find(config: &[u8]) -> Option<Place> {
        let byte = |at: usize| config.get(at).copied();
        let has_list = byte(6)? & 0x10 != 0;
        let mut at = usize::from(byte(0x34)? & 0xFC);
        // Not more than there is room for, whatever the pointers say.
        for _ in 0..48 {
            if !has_list || at < 0x40 {
                return None;
            }
            if byte(at)? == CAPABILITY {
                let control = u16::from_le_bytes([byte(at + 2)?, byte(at + 3)?]);
                let table = u32::from_le_bytes([
                    byte(at + 4)?,
                    byte(at + 5)?,
                    byte(at + 6)?,
                    byte(at + 7)?,
                ]);
                let offset = usize::try_from(table & !7).ok()?;
                return Some(Place { bar: table & 7, offset, count: (control & 0x7FF) + 1 });
            }
            at = usize::from(byte(at + 1)? & 0xFC);
        }
        None
    }
}

/// The table, in the registers of its BAR.
#[derive(Debug)]
pub(super) struct Table {
    /// None: those of the controller.
    pub(super) registers: Option<Registers>,
    pub(super) place: Place,
}

impl Table {
    /// Holds a vector back, or lets it go.
    pub(super) fn mask(&self, own: &Registers, vector: u16, masked: bool) {
        if vector >= self.place.count {
            return;
        }
        let registers = self.registers.as_ref().unwrap_or(own);
        let at = self.place.offset + usize::from(vector) * ENTRY + CONTROL;
        registers.write32(at, if masked { MASKED } else { 0 });
        if !masked {
            // It has taken effect when this comes back: whoever unmasks looks for completions next.
            registers.read32(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_is_found_in_the_list() {
        let mut config = vec![0; 256];
        config[6] = 0x10;
        config[0x34] = 0x40;
        config[0x40..0x42].copy_from_slice(&[0x01, 0x50]);
        config[0x50..0x58].copy_from_slice(&[0x11, 0x00, 0x40, 0x80, 0x04, 0x20, 0, 0]);
        assert_eq!(Place::find(&config), Some(Place { bar: 4, offset: 0x2000, count: 65 }));
        config[0x50] = 0x05;
        assert_eq!(Place::find(&config), None);
        // A list that goes round.
        config[0x51] = 0x40;
        assert_eq!(Place::find(&config), None);
        config[6] = 0;
        assert_eq!(Place::find(&config), None);
        assert_eq!(Place::find(&[]), None);
    }
}
