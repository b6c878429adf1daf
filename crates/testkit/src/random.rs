//! Random numbers from a seed: the same seed, the same numbers, on every machine.

/// A generator of 64 bits of state (`SplitMix64`): not for secrets.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The generator that this seed stands for.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number, each of them as likely.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if there is none.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias is below 2^-32 for the bounds that tests use.
        self.number().checked_rem(bound).unwrap_or(0)
    }

    /// An index into something of this length; 0 if it is empty.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// True in so many of a thousand cases.
    pub fn permille(&mut self, share: u64) -> bool {
        self.below(1000) < share
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low.saturating_add(self.below(high.saturating_sub(low).saturating_add(1)))
    }

    /// A number from `low` to `high`, small ones far more often than large ones: each doubling is as
    /// likely as the next.
    pub fn spread(&mut self, low: u64, high: u64) -> u64 {
        let doublings = (high.max(1) / low.max(1)).max(1).ilog2() + 1;
        let shift = self.below(u64::from(doublings));
        let top = (low.max(1) << shift).saturating_mul(2).min(high);
        self.between(low, top.max(low))
    }

    /// One of them.
    ///
    /// # Panics
    /// If there are none.
    #[allow(clippy::indexing_slicing)] // As said.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }

    /// Another generator that this one determines: who draws from it does not disturb the others.
    #[must_use]
    pub fn split(&mut self) -> Random {
        Random::new(self.number())
    }

    /// Puts the elements in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.index(end + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_and_bounds_hold() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            (0..100).map(|bound| random.below(bound)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
        assert!(numbers(7).iter().zip(0..).skip(1).all(|(&number, bound)| number < bound));
    }

    #[test]
    fn ranges_include_their_ends_and_nothing_else() {
        let mut random = Random::new(7);
        let numbers: Vec<_> = (0..200).map(|_| random.between(3, 6)).collect();
        assert!((3..=6).all(|number| numbers.contains(&number)));
        assert!(numbers.iter().all(|number| (3..=6).contains(number)));
        assert!((0..200).all(|_| (10..=1000).contains(&random.spread(10, 1000))));
    }

    #[test]
    fn shuffling_loses_nothing() {
        let mut items: Vec<_> = (0..50).collect();
        Random::new(1).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
