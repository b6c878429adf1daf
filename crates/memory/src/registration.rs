//! Which devices reach a medium by themselves, and by what key they know it.
//!
//! A registration pins the medium's pages: the device goes on reading those that were there when it was made. So from then on
//! pages of the medium are not given back to the system any more, which would put others in their place.
//!
//! Registering may take long and takes a lock; it is for threads that may block. [`Registrations::key`], which reactors
//! use, is a few loads.

use std::any::Any;
use std::fmt;
use std::hint;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Devices that a medium can be registered with at a time.
const PLACES: usize = 8;

/// A device that memory is registered with, more exactly a protection domain of one; no two in a process are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId(NonZeroU32);

impl DeviceId {
    /// Another one; `None` once there have been four billion.
    pub fn new() -> Option<DeviceId> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let one_more = |next: u32| next.checked_add(1);
        let next = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        NonZeroU32::new(next).map(DeviceId)
    }
}

/// A place in the table: the device above, its key below; 0 if it is not taken.
fn entry(by: DeviceId, key: u32) -> u64 {
    u64::from(by.0.get()) << 32 | u64::from(key)
}

fn is_of(entry: u64, by: DeviceId) -> bool {
    entry >> 32 == u64::from(by.0.get())
}

/// What ends a registration when it is dropped.
type Held = Box<dyn Any + Send>;

/// Those of one medium.
#[derive(Default)]
pub(crate) struct Registrations {
    entries: [AtomicU64; PLACES],
    held: Mutex<[Option<Held>; PLACES]>,
    /// [`PINNED`], and how often pages are being given back at this moment.
    pages: AtomicU32,
}

/// Pages are not given back.
const PINNED: u32 = 1 << 31;

impl fmt::Debug for Registrations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.entries.iter().filter(|entry| entry.load(Ordering::Relaxed) != 0).count();
        f.debug_tuple("Registrations").field(&count).finish()
    }
}

impl Registrations {
    /// Registers the medium by what `make` does. False if there is no place for it.
    pub(crate) fn add<E>(
        &self,
        by: DeviceId,
        make: impl FnOnce() -> Result<(u32, Held), E>,
    ) -> Result<bool, E> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut places = self.entries.iter().zip(held.iter_mut());
        let Some((place, keeper)) = places.find(|(_, keeper)| keeper.is_none()) else {
            return Ok(false);
        };
        self.pages.fetch_or(PINNED, Ordering::SeqCst);
        while self.pages.load(Ordering::SeqCst) != PINNED {
            hint::spin_loop();
            std::thread::yield_now();
        }
        let made = make().map(|(key, made)| {
            *keeper = Some(made);
            place.store(entry(by, key), Ordering::Release);
            true
        });
        self.unpin_if_unused(&held);
        made
    }

    /// Ends this device's registration, if there is one.
    pub(crate) fn remove(&self, by: DeviceId) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, keeper) in self.entries.iter().zip(held.iter_mut()) {
            if is_of(place.load(Ordering::Relaxed), by) {
                place.store(0, Ordering::Release);
                *keeper = None;
            }
        }
        self.unpin_if_unused(&held);
    }

    fn unpin_if_unused(&self, held: &[Option<Held>; PLACES]) {
        if held.iter().all(Option::is_none) {
            self.pages.fetch_and(!PINNED, Ordering::SeqCst);
        }
    }

    /// The key by which this device knows the medium.
    pub(crate) fn key(&self, by: DeviceId) -> Option<u32> {
        let entries = self.entries.iter().map(|entry| entry.load(Ordering::Acquire));
        let entry = entries.into_iter().find(|entry| is_of(*entry, by))?;
        u32::try_from(entry & u64::from(u32::MAX)).ok()
    }

    /// Runs `give_back` if pages may be given back. No registration begins meanwhile.
    pub(crate) fn if_unpinned<R>(&self, give_back: impl FnOnce() -> R) -> Option<R> {
        let may = self.pages.fetch_add(1, Ordering::SeqCst) & PINNED == 0;
        let result = may.then(give_back);
        self.pages.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Ends all.
    pub(crate) fn clear(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        held.fill_with(|| None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn each_device_has_its_key_until_it_is_removed() {
        let registrations = Registrations::default();
        let (first, second) = (DeviceId::new().unwrap(), DeviceId::new().unwrap());
        let alive = Arc::new(());
        let add = |by, key| {
            let held = Arc::clone(&alive);
            registrations.add::<()>(by, || Ok((key, Box::new(held))))
        };
        assert_eq!(registrations.if_unpinned(|| 1), Some(1));
        assert_eq!(add(first, 0), Ok(true));
        assert_eq!(add(second, u32::MAX), Ok(true));
        assert_eq!(
            (registrations.key(first), registrations.key(second)),
            (Some(0), Some(u32::MAX))
        );
        assert_eq!(registrations.if_unpinned(|| 1), None);
        registrations.remove(first);
        assert_eq!((registrations.key(first), registrations.key(second)), (None, Some(u32::MAX)));
        assert_eq!((registrations.if_unpinned(|| 1), Arc::strong_count(&alive)), (None, 2));
        registrations.remove(second);
        assert_eq!((registrations.if_unpinned(|| 1), Arc::strong_count(&alive)), (Some(1), 1));
    }

    #[test]
    fn what_fails_leaves_nothing() {
        let registrations = Registrations::default();
        let device = DeviceId::new().unwrap();
        assert_eq!(registrations.add(device, || Err("no")), Err("no"));
        assert_eq!((registrations.key(device), registrations.if_unpinned(|| 1)), (None, Some(1)));
        for _ in 0..PLACES {
            let device = DeviceId::new().unwrap();
            assert_eq!(registrations.add::<()>(device, || Ok((1, Box::new(())))), Ok(true));
        }
        assert_eq!(registrations.add::<()>(device, || Ok((1, Box::new(())))), Ok(false));
        assert_eq!(registrations.key(device), None);
    }
}
