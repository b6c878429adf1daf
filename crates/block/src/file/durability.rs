//! What a device may still promise about data being durable.
//!
//! A failed `fdatasync` or `RWF_DSYNC` write must not be followed by a flush that succeeds: the
//! kernel reports a failed write-back **once** per open file and then considers the pages clean, so
//! the next `fdatasync` returns success although the data are gone. Hence, once either has failed,
//! every later flush and FUA write on the device fails too, until it is opened anew (by then the
//! host has seen the error and recovered from its own copy, or not). Plain writes and reads go on.
//!
//! "Once per open file" has a second edge: of two calls at the same time, one gets the error and the
//! other, which covers the same data, succeeds. Through the page cache (`serial`), therefore, at most
//! one durable operation per device is out at a time: its verdict is known before the next one
//! begins. Direct writes have no pages to lose, so there is no such wait for them.
//!
//! Shared by the queues of all reactors; touched only by flushes and FUA writes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::fault::Fault;

/// What was done for durability, on all queues of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DurabilityCounts {
    /// Calls of `fdatasync`, also those after zeroes with FUA.
    pub syncs: u64,
    /// Writes with `RWF_DSYNC`.
    pub durable_writes: u64,
    /// Whether data may have been lost, so that flushes and FUA writes fail from now on.
    pub failed: bool,
}

/// Whether a durable operation may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// It may; it must [`leave`](Durability::leave).
    Go,
    /// Another one is out; ask again.
    Wait,
    /// It must fail.
    Fail,
}

#[derive(Debug)]
pub(super) struct Durability {
    serial: bool,
    busy: AtomicBool,
    failed: AtomicBool,
    syncs: AtomicU64,
    durable_writes: AtomicU64,
}

impl Durability {
    /// `serial`: writes go through the page cache.
    pub(super) fn new(serial: bool) -> Durability {
        Durability {
            serial,
            busy: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            durable_writes: AtomicU64::new(0),
        }
    }

    pub(super) fn enter(&self) -> Entry {
        if self.failed.load(Ordering::Acquire) {
            return Entry::Fail;
        }
        if self.serial && self.busy.swap(true, Ordering::AcqRel) {
            return Entry::Wait;
        }
        // The one before may have failed between the two looks.
        if self.failed.load(Ordering::Acquire) {
            self.busy.store(false, Ordering::Release);
            return Entry::Fail;
        }
        Entry::Go
    }

    /// Takes the outcome of an operation that had entered, and returns what may be said of it.
    pub(super) fn leave(&self, device: &str, outcome: Result<(), Fault>) -> Result<(), Fault> {
        let lost = outcome.is_err_and(|fault| fault.loses_data(!self.serial));
        if lost && !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "device {device}: data could not be made durable ({outcome:?}); flushes and FUA \
                 writes fail from now on: check the medium, then remove the device and add it again"
            );
        }
        let outcome = match outcome {
            Ok(()) if self.failed.load(Ordering::Acquire) => Err(Fault::NotDurable),
            outcome => outcome,
        };
        self.busy.store(false, Ordering::Release);
        outcome
    }

    pub(super) fn count_sync(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_durable_write(&self) {
        self.durable_writes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> DurabilityCounts {
        DurabilityCounts {
            syncs: self.syncs.load(Ordering::Relaxed),
            durable_writes: self.durable_writes.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Acquire),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn after_one_failure_nothing_is_promised() {
        let state = Durability::new(false);
        assert_eq!(state.enter(), Entry::Go);
        assert_eq!(state.enter(), Entry::Go, "direct: two at a time");
        let failure = Err(Fault::System(Errno::IO));
        assert_eq!(state.leave("d", failure), failure);
        assert_eq!(state.leave("d", Ok(())), Err(Fault::NotDurable), "it was out meanwhile");
        assert_eq!(state.enter(), Entry::Fail);
        assert!(state.counts().failed);
    }

    #[test]
    fn through_the_page_cache_one_at_a_time() {
        let state = Durability::new(true);
        assert_eq!(state.enter(), Entry::Go);
        assert_eq!(state.enter(), Entry::Wait);
        assert_eq!(state.leave("d", Ok(())), Ok(()));
        assert_eq!(state.enter(), Entry::Go);
        let full = Err(Fault::System(Errno::NOSPC));
        assert_eq!(state.leave("d", full), full);
        assert_eq!(state.enter(), Entry::Fail, "other data may have found no space either");
    }

    #[test]
    fn refusals_and_full_media_lose_nothing_of_direct_writes() {
        let state = Durability::new(false);
        for fault in [Fault::System(Errno::NOSPC), Fault::System(Errno::INVAL), Fault::Aborted] {
            assert_eq!(state.enter(), Entry::Go);
            assert_eq!(state.leave("d", Err(fault)), Err(fault));
        }
        assert_eq!(state.enter(), Entry::Go);
        assert_eq!(state.leave("d", Ok(())), Ok(()));
    }
}
