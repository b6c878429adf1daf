//! A doorbell: how a device is told that a queue has moved on.
//!
//! The register itself costs a write across the bus, or, on a device that a virtual machine monitor makes, an exit to that. Such devices take the
//! value from memory (*shadow doorbells*, NVMe Base 2.0c, section 5.8 "Doorbell Buffer Config command"), and say there up to which value they need
//! not be told by the register.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use nvme::register::offset;

use crate::{Pages, Registers};

/// Shadow doorbells and event indices of all queues of a controller: one page each.
#[derive(Debug, Clone)]
pub(crate) struct Shadow {
    pub(crate) doorbells: Arc<Pages>,
    pub(crate) indices: Arc<Pages>,
}

/// Which end of a queue pair a doorbell tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    SubmissionTail,
    CompletionHead,
}

/// One doorbell. Whoever has the queue rings it.
#[derive(Debug)]
pub(crate) struct Doorbell {
    register: usize,
    shadow: Option<(Shadow, usize)>,
    value: u16,
}

impl Doorbell {
    /// That of this end of queue pair `qid`, whose value is 0, on a controller with doorbells 2 ^ (2 + `stride`) bytes apart (CAP.DSTRD).
    pub(crate) fn new(qid: u16, end: End, stride: u8, shadow: Option<&Shadow>) -> Doorbell {
        let register = match end {
            End::SubmissionTail => offset::tail_doorbell(qid, stride),
            End::CompletionHead => offset::head_doorbell(qid, stride),
        };
        // The buffers are laid out as the registers are. A queue whose doorbell is not in the page has none there.
        let place = register - offset::DOORBELLS;
        let shadow = shadow.filter(|shadow| place + 4 <= shadow.doorbells.len());
        let shadow = shadow.map(|shadow| (shadow.clone(), place));
        Doorbell { register, shadow, value: 0 }
    }

    /// The value that the device has been told last.
    pub(crate) fn value(&self) -> u16 {
        self.value
    }

    /// Tells the device; whether that took a write to the register.
    #[inline]
    pub(crate) fn ring(&mut self, registers: &Registers, value: u16) -> bool {
        let old = std::mem::replace(&mut self.value, value);
        if let Some((shadow, place)) = &self.shadow
            && let Some(doorbell) = shadow.doorbells.word32(*place)
            && let Some(index) = shadow.indices.word32(*place)
        {
            doorbell.store(u32::from(value).to_le(), Ordering::Release);
            // The device reads the doorbell after it has written the index, we the other way round: one of us sees the other's.
            fence(Ordering::SeqCst);
            if !passes(load(index), old, value) {
                return false;
            }
        }
        registers.write32(self.register, u32::from(value));
        true
    }
}

fn load(index: &AtomicU32) -> u16 {
    let index = u32::from_le(index.load(Ordering::Relaxed));
    u16::try_from(index & u32::from(u16::MAX)).unwrap_or(0)
}

/// Whether the way from `old` to `new` passes the value after which the device wants to be told.
fn passes(index: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(index).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;
    use std::ptr::NonNull;

    fn registers() -> (Registers, Arc<Pages>) {
        let pages = Arc::new(Pages::new(0x2000, 0).unwrap());
        let base = NonNull::new(pages.base()).unwrap();
        // SAFETY: pages that their owner, given along, keeps mapped; nothing has references into them.
        (unsafe { Registers::new(base, pages.len(), Box::new(Arc::clone(&pages))) }, pages)
    }

    #[test]
    fn the_register_is_where_stride_and_queue_say() {
        let (registers, _pages) = registers();
        let mut tail = Doorbell::new(3, End::SubmissionTail, 0, None);
        let mut head = Doorbell::new(3, End::CompletionHead, 4, None);
        assert!(tail.ring(&registers, 7) && head.ring(&registers, 9));
        assert_eq!(registers.read32(0x1000 + 6 * 4), 7);
        assert_eq!(registers.read32(0x1000 + 7 * 64), 9);
        assert_eq!((tail.value(), head.value()), (7, 9));
    }

    #[test]
    fn the_register_is_written_when_the_index_is_passed() {
        let (registers, _pages) = registers();
        let page = || Arc::new(Pages::new(4096, 0).unwrap());
        let shadow = Shadow { doorbells: page(), indices: page() };
        let mut tail = Doorbell::new(1, End::SubmissionTail, 0, Some(&shadow));
        let index = |value: u32| shadow.indices.word32(8).unwrap().store(value, Ordering::Relaxed);
        index(2);
        assert!(!tail.ring(&registers, 1) && !tail.ring(&registers, 2));
        assert!(tail.ring(&registers, 3));
        assert_eq!(registers.read32(0x1008), 3);
        assert!(!tail.ring(&registers, 5));
        assert_eq!(shadow.doorbells.word32(8).unwrap().load(Ordering::Relaxed), 5);
        assert_eq!(registers.read32(0x1008), 3);
        // A tail that comes round again passes what lies behind the end, as devices see it.
        index(5);
        assert!(tail.ring(&registers, 0));
    }
}
