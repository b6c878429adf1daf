//! Which command identifiers are outstanding on one queue.
//!
//! Hosts choose identifiers freely (Linux keeps a generation in the upper bits), so this is a small open
//! hash table of (CID, request slot), made when the queue is connected and never larger. A bitmap of all
//! 65,536 identifiers would cost 8 KiB per queue and not lead to the request, which Abort needs.

use nvme::command::CommandId;

use crate::RequestId;

#[derive(Debug, Clone, Copy)]
struct Entry {
    cid: CommandId,
    request: RequestId,
}

/// Commands of a queue by identifier, from arrival until their completion is handed to the transport.
#[derive(Debug)]
pub(crate) struct CommandTable {
    /// A power of two, at least twice `most`: probing stays short and always meets an empty place.
    places: Box<[Option<Entry>]>,
    len: u32,
    most: u32,
}

impl CommandTable {
    /// For up to `most` commands at a time.
    pub(crate) fn new(most: u32) -> Self {
        let most = most.max(1);
        let places = (most as usize).saturating_mul(2).next_power_of_two();
        Self { places: vec![None; places].into_boxed_slice(), len: 0, most }
    }

    /// Whether another command would be one too many.
    pub(crate) fn is_full(&self) -> bool {
        self.len >= self.most
    }

    /// Commands outstanding.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    fn mask(&self) -> usize {
        self.places.len().wrapping_sub(1)
    }

    fn home(&self, cid: CommandId) -> usize {
        // Multiplication by an odd number spreads identifiers that differ only in high bits.
        usize::from(cid.wrapping_mul(0x9e37).rotate_left(7)) & self.mask()
    }

    /// The place of `cid`, or the empty one where it would go.
    fn find(&self, cid: CommandId) -> Result<usize, usize> {
        let mut at = self.home(cid);
        for _ in 0..self.places.len() {
            match self.places.get(at) {
                Some(Some(entry)) if entry.cid == cid => return Ok(at),
                Some(Some(_)) => at = at.wrapping_add(1) & self.mask(),
                _ => return Err(at),
            }
        }
        Err(at)
    }

    /// The outstanding command of this identifier.
    pub(crate) fn get(&self, cid: CommandId) -> Option<RequestId> {
        let at = self.find(cid).ok()?;
        self.places.get(at).copied().flatten().map(|entry| entry.request)
    }

    /// Notes a command; false if its identifier is outstanding already, or the table is full.
    pub(crate) fn insert(&mut self, cid: CommandId, request: RequestId) -> bool {
        if self.is_full() {
            return false;
        }
        match self.find(cid) {
            Ok(_) => false,
            Err(at) => {
                if let Some(place) = self.places.get_mut(at) {
                    *place = Some(Entry { cid, request });
                    self.len += 1;
                }
                true
            }
        }
    }

    /// Forgets a command.
    pub(crate) fn remove(&mut self, cid: CommandId) {
        let Ok(mut hole) = self.find(cid) else { return };
        self.len -= 1;
        // Entries that probed past the hole move back, so that no search ends early at it.
        let mut at = hole;
        loop {
            at = at.wrapping_add(1) & self.mask();
            let Some(Some(entry)) = self.places.get(at).copied() else { break };
            let home = self.home(entry.cid);
            let from_home = at.wrapping_sub(home) & self.mask();
            let from_hole = at.wrapping_sub(hole) & self.mask();
            if from_home >= from_hole {
                if let Some(place) = self.places.get_mut(hole) {
                    *place = Some(entry);
                }
                hole = at;
            }
        }
        if let Some(place) = self.places.get_mut(hole) {
            *place = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn it_behaves_like_a_map(
            steps in prop::collection::vec((any::<bool>(), 0_u16..24, any::<bool>()), 0..400),
        ) {
            let mut table = CommandTable::new(8);
            let mut oracle = HashMap::new();
            for (number, (add, cid, high)) in (0_u32..).zip(steps) {
                let cid = if high { cid << 11 } else { cid };
                if add {
                    let request = RequestId { slot: number, generation: 0 };
                    let fits = oracle.len() < 8 && !oracle.contains_key(&cid);
                    prop_assert_eq!(table.insert(cid, request), fits);
                    if fits {
                        oracle.insert(cid, request);
                    }
                } else {
                    oracle.remove(&cid);
                    table.remove(cid);
                }
                prop_assert_eq!(table.len as usize, oracle.len());
                for cid in 0..24 {
                    for cid in [cid, cid << 11] {
                        prop_assert_eq!(table.get(cid), oracle.get(&cid).copied());
                    }
                }
            }
        }
    }
}
