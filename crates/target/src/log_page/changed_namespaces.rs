//! Which namespaces changed since the host last asked: log page 04h.

use nvme::NSID_ALL;

use super::Window;
use crate::configuration::MAX_NAMESPACES;

/// Bytes of the page: 1,024 NSIDs.
pub(super) const LENGTH: u64 = 4096;

const WORDS: usize = MAX_NAMESPACES as usize / 64;

/// A set of changed namespaces: one bit for every NSID that there can be, so that recording a change
/// neither allocates nor searches. An NSID beyond makes it "too many to list", which a host answers by
/// scanning all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangedNamespaces {
    changed: [u64; WORDS],
    too_many: bool,
}

impl ChangedNamespaces {
    /// Notes a change. True: the set was empty before, which is when a host is to be notified.
    pub fn record(&mut self, nsid: u32) -> bool {
        let was_empty = self.is_empty();
        let bit = nsid.wrapping_sub(1);
        let word = usize::try_from(bit / 64).ok().and_then(|word| self.changed.get_mut(word));
        match word {
            Some(word) => *word |= 1 << (bit % 64),
            None => self.too_many = true,
        }
        was_empty
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.too_many && self.changed == [0; WORDS]
    }

    /// The host has read it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The NSIDs in ascending order, or the one that stands for too many.
    fn list(&self) -> impl Iterator<Item = u32> {
        let all = self.too_many.then_some(NSID_ALL);
        let each = (1..=MAX_NAMESPACES).filter(move |nsid| !self.too_many && self.contains(*nsid));
        all.into_iter().chain(each)
    }

    fn contains(&self, nsid: u32) -> bool {
        let bit = nsid.wrapping_sub(1);
        let word = usize::try_from(bit / 64).ok().and_then(|word| self.changed.get(word));
        word.is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }

    /// Fills the page.
    pub(super) fn write(&self, window: &mut Window<'_>) {
        for (position, nsid) in (0..).step_by(4).zip(self.list()) {
            window.put(position, &nsid.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn page(changed: &ChangedNamespaces) -> Vec<u32> {
        let mut bytes = [0xff; 4096];
        changed.write(&mut Window::new(0, &mut bytes));
        bytes.chunks_exact(4).map(|entry| u32::from_le_bytes(entry.try_into().unwrap())).collect()
    }

    proptest! {
        #[test]
        fn it_lists_what_a_set_would(
            nsids in prop::collection::vec(prop_oneof![8 => 1..=MAX_NAMESPACES, 1 => any::<u32>()], 0..1500),
        ) {
            let mut changed = ChangedNamespaces::default();
            let mut oracle = BTreeSet::new();
            for nsid in nsids {
                prop_assert_eq!(changed.record(nsid), oracle.is_empty());
                oracle.insert(nsid);
            }
            let outside = oracle.iter().any(|nsid| !(1..=MAX_NAMESPACES).contains(nsid));
            let mut expected: Vec<u32> =
                if outside { vec![NSID_ALL] } else { oracle.into_iter().collect() };
            expected.resize(1024, 0);
            prop_assert_eq!(page(&changed), expected);
            changed.clear();
            prop_assert!(changed.is_empty());
            prop_assert_eq!(page(&changed), vec![0; 1024]);
        }
    }
}
