//! A reactor's place at a queue pair: its own, or, where the controller has fewer than there are reactors, a share of one.
//!
//! A share is a number of the pair's slots, which are its command identifiers, so nobody can take all of them. The rings of a shared pair are behind a
//! lock; whoever takes completions out of it leaves the others theirs. Commands and their memory stay with the reactor they are of. Rejected:
//! sending operations to the reactor that has a queue (their memory is counted without atomics, by the reactor that it belongs to).
//!
//! # Interrupts
//! A reactor that is awake looks for itself, so it holds its vector back then: an interrupt costs more than a command. That is one write to
//! the device's MSI-X table when it goes to sleep, and one when it has woken up. A vector that others use too is never held back.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvme::{Cqe, Sqe};

use crate::function::Function;
use crate::pointers::Scratch;
use crate::queue_pair::QueuePair;

/// Slots of a queue pair at most: so that an identifier says which use of its slot it is of.
pub(crate) const SLOTS_MOST: u16 = 1023;

/// An interrupt vector.
#[derive(Debug, Clone)]
pub(crate) struct Vector {
    pub(crate) number: u16,
    /// What it signals.
    pub(crate) eventfd: Arc<OwnedFd>,
    /// Nobody else uses it.
    pub(crate) own: bool,
}

/// The place of one reactor.
#[derive(Debug)]
pub(crate) struct Seat {
    function: Arc<dyn Function>,
    rings: Rings,
    qid: u16,
    /// The pair's slots that belong to it.
    first: u16,
    slots: u16,
    pub(crate) identifiers: Identifiers,
    /// How often its slots have been used, by the lane that had it before.
    pub(crate) uses: u16,
    pub(crate) scratch: Scratch,
    pub(crate) vector: Option<Vector>,
    masked: bool,
}

#[derive(Debug)]
enum Rings {
    Own(QueuePair),
    Shared { pair: Arc<SharedPair>, member: usize },
}

/// A queue pair of several reactors.
#[derive(Debug)]
pub(crate) struct SharedPair {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    pair: QueuePair,
    /// Slots of each member.
    share: u16,
    identifiers: Identifiers,
    /// Completions that another member has taken out for this one.
    left: Vec<VecDeque<Cqe>>,
}

impl SharedPair {
    /// A pair of so many members, not more than it has slots.
    pub(crate) fn new(pair: QueuePair, members: u16) -> SharedPair {
        let share = pair.slots().min(SLOTS_MOST) / members.max(1);
        let identifiers = Identifiers::new(share.saturating_mul(members));
        let left = (0..members).map(|_| VecDeque::with_capacity(share.into())).collect();
        SharedPair { table: Mutex::new(Table { pair, share, identifiers, left }) }
    }

    /// Slots of each member.
    pub(crate) fn share(&self) -> u16 {
        self.lock().share
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn next(&mut self, member: usize) -> Option<Cqe> {
        if let Some(left) = self.left.get_mut(member).and_then(VecDeque::pop_front) {
            return Some(left);
        }
        while let Some(completion) = self.pair.next() {
            let of = usize::from(self.identifiers.slot(completion.cid.get()) / self.share.max(1));
            match self.left.get_mut(of) {
                // Far more than it can have commands: a device that makes them up.
                Some(left) if of != member && left.len() < 2 * usize::from(self.share) => {
                    left.push_back(completion);
                }
                // What nobody sent is for whoever finds it to count.
                _ => return Some(completion),
            }
        }
        None
    }
}

/// How command identifiers of a queue pair are made: a slot below, and above it a number that changes with each use of the slot. The more slots there are, the
/// sooner a number comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identifiers {
    shift: u32,
}

impl Identifiers {
    /// For so many slots. No identifier is `FFFFh`, which is none's.
    pub(crate) fn new(slots: u16) -> Identifiers {
        Identifiers { shift: u16::BITS - slots.leading_zeros() }
    }

    #[inline]
    pub(crate) fn of(self, slot: u16, uses: u16) -> u16 {
        uses.checked_shl(self.shift).unwrap_or(0) | slot
    }

    #[inline]
    pub(crate) fn slot(self, cid: u16) -> u16 {
        cid & !u16::MAX.checked_shl(self.shift).unwrap_or(0)
    }
}

impl Seat {
    /// A queue pair of its own.
    pub(crate) fn own(
        function: &Arc<dyn Function>,
        pair: QueuePair,
        scratch: Scratch,
        vector: Option<Vector>,
    ) -> Seat {
        let (qid, slots) = (pair.qid(), pair.slots().min(SLOTS_MOST));
        Seat {
            function: Arc::clone(function),
            rings: Rings::Own(pair),
            qid,
            first: 0,
            slots,
            identifiers: Identifiers::new(slots),
            uses: 0,
            scratch,
            vector,
            masked: false,
        }
    }

    /// A share of a pair; `member` counts from 0.
    pub(crate) fn shared(
        function: &Arc<dyn Function>,
        pair: &Arc<SharedPair>,
        member: u16,
        scratch: Scratch,
        vector: Option<Vector>,
    ) -> Seat {
        let table = pair.lock();
        let (qid, slots, identifiers) = (table.pair.qid(), table.share, table.identifiers);
        drop(table);
        let rings = Rings::Shared { pair: Arc::clone(pair), member: member.into() };
        let vector = vector.map(|vector| Vector { own: false, ..vector });
        Seat {
            function: Arc::clone(function),
            rings,
            qid,
            first: member.saturating_mul(slots),
            slots,
            identifiers,
            uses: 0,
            scratch,
            vector,
            masked: false,
        }
    }

    pub(crate) fn qid(&self) -> u16 {
        self.qid
    }

    /// The first of its slots in the pair.
    pub(crate) fn first(&self) -> u16 {
        self.first
    }

    /// Commands that may be outstanding at a time.
    pub(crate) fn slots(&self) -> u16 {
        self.slots
    }

    #[inline]
    pub(crate) fn push(&mut self, sqe: &Sqe) {
        match &mut self.rings {
            Rings::Own(pair) => pair.push(sqe),
            Rings::Shared { pair, .. } => pair.lock().pair.push(sqe),
        }
    }

    #[inline]
    pub(crate) fn ring(&mut self) -> bool {
        match &mut self.rings {
            Rings::Own(pair) => pair.ring(),
            Rings::Shared { pair, .. } => pair.lock().pair.ring(),
        }
    }

    #[inline]
    pub(crate) fn next(&mut self) -> Option<Cqe> {
        match &mut self.rings {
            Rings::Own(pair) => pair.next(),
            Rings::Shared { pair, member } => pair.lock().next(*member),
        }
    }

    #[inline]
    pub(crate) fn acknowledge(&mut self, idle: bool) -> bool {
        match &mut self.rings {
            Rings::Own(pair) => pair.acknowledge(idle),
            Rings::Shared { pair, .. } => pair.lock().pair.acknowledge(idle),
        }
    }

    fn has_completion(&self) -> bool {
        match &self.rings {
            Rings::Own(pair) => pair.has_completion(),
            Rings::Shared { pair, member } => {
                let table = pair.lock();
                table.left.get(*member).is_some_and(|left| !left.is_empty())
                    || table.pair.has_completion()
            }
        }
    }

    /// Holds interrupts back, since somebody looks.
    #[inline]
    pub(crate) fn disarm(&mut self) {
        if let Some(vector) = &self.vector
            && vector.own
            && !self.masked
        {
            self.masked = true;
            self.function.mask(vector.number);
        }
    }

    /// From now on an interrupt tells of completions. False: there is one already, or there are no interrupts.
    pub(crate) fn arm(&mut self) -> bool {
        let Some(vector) = &self.vector else { return false };
        if self.masked {
            self.masked = false;
            self.function.unmask(vector.number);
        }
        !self.has_completion()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_a_slot_and_its_use() {
        for slots in [1, 2, 3, 255, 256, 1023] {
            let identifiers = Identifiers::new(slots);
            let mut seen = std::collections::BTreeSet::new();
            let uses = u16::MAX >> identifiers.shift;
            for slot in [0, slots / 2, slots - 1] {
                for one in [0, 1, uses] {
                    let cid = identifiers.of(slot, one);
                    assert_eq!(identifiers.slot(cid), slot);
                    assert_ne!(cid, u16::MAX);
                    seen.insert(cid);
                }
                assert_eq!(identifiers.of(slot, uses.wrapping_add(1)), identifiers.of(slot, 0));
            }
            assert!(uses >= 63 && seen.len() > 2);
        }
    }
}
