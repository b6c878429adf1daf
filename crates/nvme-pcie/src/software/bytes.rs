//! The only place where the software controller touches memory that is not its own: registers, and what was mapped for it.

use std::collections::BTreeMap;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use crate::Registers;
use crate::function::Mapping;

/// What a doorbell holds that nobody has written since it was last looked at. Doorbells are not for reading.
const UNTOUCHED: u32 = 0x5eed_0bad;

/// Two registers, aligned as a register of eight bytes is.
#[derive(Debug)]
#[repr(C, align(8))]
struct Pair([AtomicU32; 2]);

/// The memory of BAR 0, as the controller sees it.
#[derive(Debug)]
pub(super) struct Bar(Box<[Pair]>);

impl Bar {
    /// Registers that read as zero up to `doorbells`, and untouched doorbells from there on, `len` bytes in all.
    pub(super) fn new(doorbells: usize, len: usize) -> Bar {
        let word = |offset| AtomicU32::new(if offset < doorbells { 0 } else { UNTOUCHED.to_le() });
        Bar((0..len.div_ceil(8)).map(|pair| Pair([word(pair * 8), word(pair * 8 + 4)])).collect())
    }

    /// The same, as a driver sees it.
    pub(super) fn registers(self: &Arc<Bar>) -> Registers {
        let base = NonNull::from(&*self.0).cast::<u8>();
        let len = self.0.len() * size_of::<Pair>();
        // SAFETY: the pairs are aligned to eight bytes and live as long as the owner that is given along. All of it is atomic words,
        // which may change behind references to them, and both sides access whole ones only.
        unsafe { Registers::new(base, len, Box::new(Arc::clone(self))) }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len() * size_of::<Pair>()
    }

    fn word(&self, offset: usize) -> Option<&AtomicU32> {
        self.0.get(offset / 8)?.0.get(offset % 8 / 4)
    }

    /// What is there. What its writer wrote to memory before is there, too.
    pub(super) fn get(&self, offset: usize) -> u32 {
        self.word(offset).map_or(u32::MAX, |word| u32::from_le(word.load(Ordering::Acquire)))
    }

    pub(super) fn set(&self, offset: usize, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    /// Whether a doorbell has been written since it was last taken.
    pub(super) fn rung(&self, offset: usize) -> bool {
        self.get(offset) != UNTOUCHED
    }

    /// What was written to a doorbell last, if anything was since the last time.
    pub(super) fn take(&self, offset: usize) -> Option<u32> {
        let word = self.word(offset)?;
        let value = u32::from_le(word.swap(UNTOUCHED.to_le(), Ordering::AcqRel));
        (value != UNTOUCHED).then_some(value)
    }
}

/// The memory that the controller may reach.
#[derive(Debug, Default)]
pub(super) struct Reach {
    mappings: BTreeMap<u64, Mapping>,
}

impl Reach {
    /// Adds a mapping; false if it is empty, at the end of the addresses or overlaps another.
    pub(super) fn add(&mut self, mapping: Mapping) -> bool {
        let (iova, len) = (mapping.iova(), mapping.len() as u64);
        let Some(end) = iova.checked_add(len) else { return false };
        let before = self.mappings.range(..end).next_back();
        if len == 0 || before.is_some_and(|(&at, other)| at + other.len() as u64 > iova) {
            return false;
        }
        self.mappings.insert(iova, mapping);
        true
    }

    /// Takes the mapping that begins there; where it was.
    pub(super) fn remove(&mut self, iova: u64) -> Option<(u64, u64)> {
        let mapping = self.mappings.remove(&iova)?;
        Some((iova, iova + mapping.len() as u64))
    }

    /// Takes them all.
    pub(super) fn clear(&mut self) {
        self.mappings.clear();
    }

    /// Where that is, and how many bytes follow in the same mapping.
    fn find(&self, iova: u64) -> Option<(*mut u8, usize)> {
        let (&start, mapping) = self.mappings.range(..=iova).next_back()?;
        let offset = usize::try_from(iova.checked_sub(start)?).ok()?;
        let rest = mapping.len().checked_sub(offset).filter(|&rest| rest > 0)?;
        Some((mapping.base().wrapping_add(offset), rest))
    }

    /// Whether all of it may be reached. It may lie in several mappings, one after the other.
    pub(super) fn covers(&self, iova: u64, len: u64) -> bool {
        let Some(end) = iova.checked_add(len) else { return false };
        let mut at = iova;
        while at < end {
            let Some((_, rest)) = self.find(at) else { return false };
            at = at.saturating_add(rest as u64);
        }
        true
    }

    /// Copies out what is there; false, and nobody knows what is in `out`, if not all of it may be reached.
    pub(super) fn read(&self, mut iova: u64, mut out: &mut [u8]) -> bool {
        while !out.is_empty() {
            let Some((from, rest)) = self.find(iova) else { return false };
            let (now, later) = out.split_at_mut(rest.min(out.len()));
            // SAFETY: `from` is the beginning of at least that many initialised bytes of a mapping, whose owner keeps them there while the
            // mapping lives, and it lives as long as `self`. `now` is an exclusive reference, and nobody has references into mapped
            // memory: what is in a mapping is lent to the device.
            unsafe { ptr::copy_nonoverlapping(from.cast_const(), now.as_mut_ptr(), now.len()) };
            iova = iova.saturating_add(now.len() as u64);
            out = later;
        }
        true
    }

    /// Copies bytes to there; false if not all of it may be reached.
    pub(super) fn write(&self, mut iova: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Some((to, rest)) = self.find(iova) else { return false };
            let (now, later) = bytes.split_at(rest.min(bytes.len()));
            // SAFETY: as in `read`; `now` is a reference, so not into a mapping.
            unsafe { ptr::copy_nonoverlapping(now.as_ptr(), to, now.len()) };
            iova = iova.saturating_add(now.len() as u64);
            bytes = later;
        }
        true
    }

    /// Two bytes that both sides change.
    #[allow(clippy::cast_ptr_alignment, reason = "checked below")]
    pub(super) fn word16(&self, iova: u64) -> Option<&AtomicU16> {
        let (place, _) = self.find(iova).filter(|&(_, rest)| rest >= 2)?;
        let place = place.cast::<u16>();
        // SAFETY: inside a mapping, which lives as long as `self`, and aligned, as checked here; the driver accesses such words as
        // atomic ones, too.
        place.is_aligned().then(|| unsafe { AtomicU16::from_ptr(place) })
    }

    /// Four bytes that both sides change.
    #[allow(clippy::cast_ptr_alignment, reason = "checked below")]
    pub(super) fn word32(&self, iova: u64) -> Option<&AtomicU32> {
        let (place, _) = self.find(iova).filter(|&(_, rest)| rest >= 4)?;
        let place = place.cast::<u32>();
        // SAFETY: as in `word16`.
        place.is_aligned().then(|| unsafe { AtomicU32::from_ptr(place) })
    }
}
