//! Chance, from a seed.

/// Numbers that a seed determines (`SplitMix64`).
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// An index into something of this length; 0 if it is empty.
    pub(super) fn index(&mut self, len: usize) -> usize {
        let number = self.number().checked_rem(len as u64).unwrap_or(0);
        usize::try_from(number).unwrap_or(0)
    }

    /// Heads or tails.
    pub(super) fn coin(&mut self) -> bool {
        self.number() & 1 == 0
    }

    /// True in so many of a million cases. Nothing is drawn for none, so that what cannot happen changes nothing.
    pub(super) fn million(&mut self, share: u32) -> bool {
        share > 0 && self.number() % 1_000_000 < u64::from(share)
    }
}
